# SPDX-License-Identifier: GPL-2.0-only
"""A Run as JUnit XML, one testcase per Case, in the dialect that Jenkins, GitLab and xunit2 consumers share.

There is no standard; this keeps to the attributes and the order of the schema Jenkins' xUnit plugin checks
against (junit-10.xsd): testsuites > testsuite > properties, testcase..., system-out, system-err.
"""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from harness.report import names, view
from harness.results import Outcome, Result, Run

_LOG_MOST = 20_000
"""Characters of log in a testcase: GitLab drops a report beyond a size limit, and the whole log is a file."""

_FAILURES = frozenset({Outcome.FAIL, Outcome.TIMEOUT, Outcome.XPASS})
_ERRORS = frozenset({Outcome.ERROR, Outcome.CRASH, Outcome.LOST, Outcome.NOT_RUN})
_SKIPS = frozenset({Outcome.SKIP, Outcome.XFAIL})


def render(run: Run) -> str:
    """*run* as an XML document."""
    root = ET.Element("testsuites", {"name": "vfio-harness", **_counts(run.cases)})
    for number, job in enumerate(view.by_job(run)):
        _suite(root, run, job, number)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ("<?xml version='1.0' encoding='utf-8'?>\n", "\n")
    )


def _suite(root: ET.Element, run: Run, job: view.JobView, number: int) -> None:
    cases = list(job.cases)
    stopped = bool(job.job.problem) and job.job.applicable and not any(case.outcome.is_bad for case in cases)
    counts = _counts(cases)
    if stopped:
        counts["tests"] = str(len(cases) + 1)
        counts["errors"] = str(int(counts["errors"]) + 1)
        total = root.attrib
        total["tests"], total["errors"] = str(int(total["tests"]) + 1), str(int(total["errors"]) + 1)
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": names.name(job.job.name),
            "id": str(number),
            "package": "vfio-harness",
            "hostname": names.name(run.info.inputs.extra.get("host", "localhost")),
            # The schema knows no time zones.
            "timestamp": run.info.started.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            **counts,
        },
    )
    _properties(suite, run, job)
    for case in cases:
        _case(suite, run, case)
    if stopped:
        element = ET.SubElement(
            suite, "testcase", {"classname": names.dotless(job.job.name), "name": "(job)", "time": "0.000"}
        )
        _mark(element, "error", job.job.problem_code.name, job.job.problem)
    ET.SubElement(suite, "system-out").text = view.acceleration(run)
    ET.SubElement(suite, "system-err").text = names.text(job.job.problem)


def _properties(suite: ET.Element, run: Run, job: view.JobView) -> None:
    record = job.job
    rows = (
        *view.facts(run),
        ("kernel", record.kernel),
        ("variant", record.variant),
        ("topology", record.topology),
        ("features", " ".join(record.features)),
        ("problem", record.problem),
    )
    element = ET.SubElement(suite, "properties")
    for key, value in rows:
        if value:
            ET.SubElement(element, "property", {"name": key, "value": names.name(value)})


def _case(suite: ET.Element, run: Run, case: Result) -> None:
    address = case.address
    # The Job is part of the class name: consumers merge cases of the same class and name.
    parts = (case.job, address.suite, address.program)
    element = ET.SubElement(
        suite,
        "testcase",
        {
            "classname": ".".join(names.dotless(part) for part in parts),
            "name": names.name(address.case),
            "time": _seconds(case.duration),
        },
    )
    reason = view.reason(case)
    if case.outcome in _SKIPS:
        ET.SubElement(element, "skipped", {"type": case.outcome.value, "message": reason})
    elif case.outcome in _FAILURES:
        _mark(element, "failure", case.outcome.value, reason, _evidence(run, case))
    elif case.outcome in _ERRORS:
        _mark(element, "error", case.outcome.value, reason, _evidence(run, case))
    if case.outcome.is_bad and case.log:
        ET.SubElement(element, "system-out").text = names.excerpt(case.log, _LOG_MOST)


def _mark(element: ET.Element, tag: str, kind: str, message: str, body: str = "") -> None:
    mark = ET.SubElement(element, tag, {"type": kind, "message": names.name(message)})
    mark.text = body or names.text(message)


def _evidence(run: Run, case: Result) -> str:
    """What a reader of the CI page needs without opening an artifact."""
    path = view.log_path(run, case)
    lines = (
        view.reason(case),
        f"job: {names.name(case.job)}",
        f"log: {path}" if path else "",
        f"rerun: {names.name(case.rerun)}" if case.rerun else "",
        names.excerpt(case.splat, _LOG_MOST),
    )
    return "\n".join(line for line in lines if line)


def _counts(cases: Iterable[Result]) -> dict[str, str]:
    found = list(cases)
    outcomes = [case.outcome for case in found]
    return {
        "tests": str(len(found)),
        "failures": str(sum(outcome in _FAILURES for outcome in outcomes)),
        "errors": str(sum(outcome in _ERRORS for outcome in outcomes)),
        "skipped": str(sum(outcome in _SKIPS for outcome in outcomes)),
        "time": _seconds(sum(case.duration for case in found)),
    }


def _seconds(value: float) -> str:
    return f"{max(0.0, value):.3f}"
