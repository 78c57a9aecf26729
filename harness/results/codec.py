# SPDX-License-Identifier: GPL-2.0-only
"""Results to and from plain JSON values, by the names the store and the JSON report keep."""

from __future__ import annotations

import datetime
from typing import Any

from harness.errors import ExitCode
from harness.results.model import Address, Inputs, JobRecord, Outcome, Result, RunInfo

Plain = dict[str, Any]

_RESULT_FIELDS = ("job", "reason", "duration", "attempt", "log", "splat", "vm_dir", "rerun")


def time_to_text(moment: datetime.datetime) -> str:
    """*moment* in UTC, ISO 8601, to the millisecond."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def time_from_text(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def inputs_to_plain(inputs: Inputs) -> Plain:
    return {
        "tree": inputs.tree,
        "kernels": dict(inputs.kernels),
        "qemu": inputs.qemu,
        "accel": inputs.accel,
        "timeout_factor": inputs.timeout_factor,
        "topologies": list(inputs.topologies),
        "root": inputs.root,
        "machine": inputs.machine,
        "seed": inputs.seed,
        "extra": dict(inputs.extra),
        "suites": list(inputs.suites),
        "cases": list(inputs.cases),
        "narrowed": inputs.narrowed,
        "compare": inputs.compare,
        "elsewhere": list(inputs.elsewhere),
    }


_INPUT_LISTS = ("topologies", "suites", "cases", "elsewhere")


def inputs_from_plain(plain: Plain) -> Inputs:
    lists = {name: tuple(plain.get(name, ())) for name in _INPUT_LISTS}
    return Inputs(**{**plain, **lists})


def info_to_plain(info: RunInfo) -> Plain:
    return {
        "id": info.id,
        "started": time_to_text(info.started),
        "harness_version": info.harness_version,
        "command": list(info.command),
        "inputs": inputs_to_plain(info.inputs),
    }


def info_from_plain(plain: Plain) -> RunInfo:
    return RunInfo(
        id=plain["id"],
        started=time_from_text(plain["started"]),
        harness_version=plain["harness_version"],
        command=tuple(plain["command"]),
        inputs=inputs_from_plain(plain["inputs"]),
    )


def job_to_plain(job: JobRecord) -> Plain:
    return {
        "name": job.name,
        "kernel": job.kernel,
        "variant": job.variant,
        "topology": job.topology,
        "addons": list(job.addons),
        "tree": job.tree,
        "line": job.line,
        "features": list(job.features),
        "suites": list(job.suites),
        "problem": job.problem,
        "problem_code": int(job.problem_code),
        "applicable": job.applicable,
    }


def job_from_plain(plain: Plain) -> JobRecord:
    # An older harness recorded a duration that it never measured.
    known = {name: value for name, value in plain.items() if name != "duration"}
    return JobRecord(
        **{
            **known,
            "features": tuple(plain["features"]),
            "addons": tuple(plain.get("addons", ())),
            "suites": tuple(plain.get("suites", ())),
            "problem_code": ExitCode(plain["problem_code"]),
        }
    )


def result_to_plain(result: Result) -> Plain:
    return {
        "address": str(result.address),
        "suite": result.address.suite,
        "program": result.address.program,
        "case": result.address.case,
        "job": result.job,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "duration": result.duration,
        "attempt": result.attempt,
        "confirms": result.confirms,
        "flaky": result.flaky,
        "log": result.log,
        "splat": result.splat,
        "vm_dir": result.vm_dir,
        "rerun": result.rerun,
    }


def result_from_plain(plain: Plain) -> Result:
    address = Address(suite=plain["suite"], program=plain["program"], case=plain["case"])
    kept = {name: plain[name] for name in _RESULT_FIELDS}
    # Values of an older harness lack what is younger.
    labels = {name: bool(plain.get(name, False)) for name in ("confirms", "flaky")}
    return Result(**{**kept, **labels, "address": address, "outcome": Outcome(plain["outcome"])})
