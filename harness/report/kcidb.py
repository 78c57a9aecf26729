# SPDX-License-Identifier: GPL-2.0-only
"""A Run for KernelCI's common database: checkouts, builds, and a test for every attempt at every case.

A documented failure (XFAIL) is a FAIL with an incident that ties it to an issue, as KCIDB wants it.  Attempts
are separate tests, so that a flaky case is one FAIL and one PASS.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable
from typing import Any

from harness.base.values import dumps
from harness.report import names, view
from harness.report.looks import look
from harness.report.splats import evidence
from harness.results import Background, JobRecord, Outcome, Result, Run, codec
from harness.results.fingerprint import fingerprint

ORIGIN = "vfio_harness"
"""The name of the CI system that submits; KernelCI gives each submitter its own."""

_EXCERPT_MOST = 16_000
"""How many characters of a log are submitted; the schema's maximum is 16384."""

_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")

Plain = dict[str, Any]


def render(run: Run, background: Background = view.NOTHING) -> str:
    """Render *run* as KCIDB JSON of the newest schema, validated."""
    return dumps(to_plain(run))


def to_plain(run: Run) -> Plain:
    """Return *run* as KCIDB's objects.  Raises jsonschema's ValidationError for a bug of ours."""
    # The import takes a third of a second, which only this format needs.
    import kcidb_io

    jobs = {job.job.name: job.job for job in view.by_job(run)}
    issues, incidents = _known(run)
    plain: Plain = {
        "version": {"major": kcidb_io.schema.LATEST.major, "minor": kcidb_io.schema.LATEST.minor},
        "checkouts": _unique(_checkout(run, job) for job in jobs.values()),
        "builds": _unique(_build(run, job) for job in jobs.values()),
        "tests": [_test(run, jobs[result.job], result, number) for result, number in _numbered(run)],
        "issues": issues,
        "incidents": incidents,
    }
    kcidb_io.schema.LATEST.validate(plain)
    return plain


def _id(*parts: str) -> str:
    """An identifier that depends on *parts* only."""
    return f"{ORIGIN}:{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'replace')).hexdigest()[:32]}"


def _unique(objects: Iterable[Plain]) -> list[Plain]:
    return list({one["id"]: one for one in objects}.values())


def _excerpt(raw: str) -> str:
    return names.excerpt(raw, _EXCERPT_MOST - 100)


def _tree(run: Run, job: JobRecord) -> str:
    return job.tree or run.info.inputs.tree


def _checkout_id(run: Run, job: JobRecord) -> str:
    return _id("checkout", job.line, _tree(run, job))


def _checkout(run: Run, job: JobRecord) -> Plain:
    tree = _tree(run, job)
    commit = _COMMIT.search(tree)
    return {
        "id": _checkout_id(run, job),
        "origin": ORIGIN,
        "comment": names.name(tree),
        "start_time": codec.time_to_text(run.info.started),
        "valid": True,
        **({"git_commit_hash": commit[0]} if commit else {}),
        "misc": {"line": job.line, "tree": tree},
    }


def _build_id(run: Run, job: JobRecord) -> str:
    kernel, toolchain = job.kernel or job.variant or job.name, [job.toolchain] if job.toolchain else []
    return _id("build", _checkout_id(run, job), kernel, job.variant, *job.addons, *toolchain)


def _build(run: Run, job: JobRecord) -> Plain:
    status = "PASS" if not job.problem else "FAIL" if job.applicable else "SKIP"
    config = job.config or job.name
    return {
        "id": _build_id(run, job),
        "checkout_id": _checkout_id(run, job),
        "origin": ORIGIN,
        **({"architecture": job.arch} if job.arch else {}),
        "config_name": names.name(config),
        **({"compiler": job.compiler} if job.compiler else {}),
        "comment": names.name(f"{job.kernel or 'no kernel'}, VFIO no-IOMMU variant {config}"),
        "status": status,
        **({"log_excerpt": _excerpt(job.problem)} if job.problem else {}),
        "misc": {"kernel": job.kernel, "features": list(job.features)},
    }


def _path(result: Result) -> str:
    """The case as KCIDB wants it: dots between the parts, letters, digits, - and _ within."""
    address = result.address
    parts = ("vfio_noiommu", address.suite, address.program, *address.case.split("."))
    words = (re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_") for part in parts)
    return ".".join(word for word in words if word)


def _numbered(run: Run) -> list[tuple[Result, int]]:
    """Every attempt with its number among those at its case.

    Result.attempt restarts at 1 when a Run is resumed, so that two attempts may have the same.
    """
    tries: collections.Counter[tuple[str, str]] = collections.Counter()
    found = []
    for result in run.results:
        key = (result.job, str(result.address))
        tries[key] += 1
        found.append((result, tries[key]))
    return found


def _test_id(run: Run, result: Result, number: int) -> str:
    return _id("test", run.info.id, result.job, str(result.address), str(number))


def _test(run: Run, job: JobRecord, result: Result, number: int) -> Plain:
    shown = evidence(run, result, _EXCERPT_MOST - 100)
    topology = job.topology or "no topology"
    return {
        "id": _test_id(run, result, number),
        "build_id": _build_id(run, job),
        "origin": ORIGIN,
        "path": _path(result),
        "status": look(result.outcome).kcidb,
        "comment": names.name(
            f"{result.address} on {topology}: {result.outcome.value}: {view.reason(result)}"
        ),
        "start_time": codec.time_to_text(run.info.started),
        "duration": max(0.0, result.duration),
        "environment": {
            "comment": names.name(f"QEMU {run.info.inputs.qemu}, {topology}, {run.info.inputs.accel}"),
            "misc": {"topology": job.topology, "accelerator": run.info.inputs.accel},
        },
        **({"log_excerpt": shown} if shown else {}),
        "misc": {
            "job": names.text(result.job),
            "outcome": result.outcome.value,
            "attempt": result.attempt,
            "confirms": result.confirms,
            "rerun": names.text(result.rerun),
            **({"fingerprint": fingerprint(result.splat)} if result.splat else {}),
        },
    }


def _known(run: Run) -> tuple[list[Plain], list[Plain]]:
    """The documented failures as issues, and every test that showed one as an incident."""
    issues: dict[str, Plain] = {}
    incidents = []
    for result, number in _numbered(run):
        if result.outcome is not Outcome.XFAIL:
            continue
        issue = _id("issue", str(result.address), result.reason)
        test = _test_id(run, result, number)
        issues[issue] = {
            "id": issue,
            "version": 1,
            "origin": ORIGIN,
            "comment": names.name(f"{result.address}: {view.reason(result)}"),
        }
        incidents.append(
            {
                "id": _id("incident", issue, test),
                "origin": ORIGIN,
                "issue_id": issue,
                "issue_version": 1,
                "test_id": test,
                "present": True,
            }
        )
    return list(issues.values()), incidents
