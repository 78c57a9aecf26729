# SPDX-License-Identifier: GPL-2.0-only
"""A Run as JUnit XML, one testcase per case, in the dialect that Jenkins, GitLab and xunit2 readers share.

There is no standard; this has the attributes and the order of the schema of Jenkins' xUnit plugin
(junit-10.xsd): testsuites > testsuite > properties, testcase..., system-out, system-err.
"""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from harness.base.cause import Cause
from harness.report import names, view
from harness.report.looks import LABELS
from harness.report.splats import evidence
from harness.results import (
    FLAKY,
    Address,
    Background,
    Change,
    Comparison,
    JobRecord,
    LostJob,
    Result,
    Run,
)

_LOG_MOST = 20_000
"""How many characters of log are in a testcase: GitLab drops a report beyond a size limit; the log is a file
as well.
"""


def render(run: Run, background: Background = view.NOTHING) -> str:
    """Render *run* as an XML document."""
    root = ET.Element("testsuites", {"name": "vfio-harness"})
    # Lost coverage makes the Run bad, so it must show, unless it was accepted.
    comparison = (not run.accepted and background.comparison) or Comparison()
    gone = {one.job: one for one in comparison.lost_jobs}
    jobs = view.by_job(run)
    there = {job.job.name for job in jobs}
    absent = [view.JobView(job=JobRecord(name=name), cases=()) for name in gone if name not in there]
    for number, job in enumerate((*jobs, *absent)):
        lost = [change for change in comparison.lost if change.job == job.job.name]
        _suite(root, run, job, number, lost, gone.get(job.job.name))
    _total(root)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ("<?xml version='1.0' encoding='utf-8'?>\n", "\n")
    )


def _suite(
    root: ET.Element,
    run: Run,
    job: view.JobView,
    number: int,
    lost: Sequence[Change],
    gone: LostJob | None,
) -> None:
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
        },
    )
    _properties(suite, run, job)
    skipped = {change.address for change in lost if change.after is not None}
    for case in job.cases:
        _case(suite, run, case, lost=case.address in skipped)
    for change in lost:
        if change.after is None:
            _vanished(suite, job.job.name, change)
    if gone is not None:
        _mark(_about_job(suite, job), "failure", "LOST_JOB", f"tested in {gone.since}, and now {gone.reason}")
    elif job.job.problem and job.job.applicable and not any(case.is_bad for case in job.cases):
        _mark(_about_job(suite, job), "error", job.job.problem_code.name, job.job.problem)
    for key, value in _counts(suite).items():
        suite.set(key, value)
    said = (view.acceleration(run), view.retries(run, job.job.name))
    ET.SubElement(suite, "system-out").text = "\n".join(line for line in said if line)
    ET.SubElement(suite, "system-err").text = names.text(job.job.problem)


def _about_job(suite: ET.Element, job: view.JobView) -> ET.Element:
    """Add a testcase for the Job as a whole."""
    identity = {"classname": names.dotless(job.job.name), "name": "(job)", "time": "0.000"}
    return ET.SubElement(suite, "testcase", identity)


def _vanished(suite: ET.Element, job: str, change: Change) -> None:
    element = ET.SubElement(suite, "testcase", {**_identity(job, change.address), "time": "0.000"})
    was = change.before.label if change.before is not None else "there"
    _mark(element, "failure", "VANISHED", f"it was {was} in an earlier run and is missing now")


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


def _identity(job: str, address: Address) -> dict[str, str]:
    # The Job is part of the class name: consumers merge cases of the same class and name.
    parts = (job, address.suite, address.program)
    return {"classname": ".".join(names.dotless(part) for part in parts), "name": names.name(address.case)}


def _case(suite: ET.Element, run: Run, case: Result, *, lost: bool) -> None:
    element = ET.SubElement(
        suite, "testcase", {**_identity(case.job, case.address), "time": _seconds(case.duration)}
    )
    reason, tag = view.reason(case), LABELS[case.label].junit
    tag = "skipped" if case.cause is Cause.BY_WISH else tag
    if lost:
        _mark(element, "failure", "NEW_SKIP", f"it ran before and is skipped: {reason}")
    elif tag == "skipped":
        ET.SubElement(element, tag, {"type": case.outcome.value, "message": reason})
    elif tag:
        _mark(element, tag, case.outcome.value, reason, _evidence(run, case))
    log = names.excerpt(case.log, _LOG_MOST) if case.log else ""
    if case.label == FLAKY:
        ET.SubElement(element, "system-out").text = f"FLAKY: {case.outcome.value}: {reason}\n{log}"
    elif case.is_bad and log:
        ET.SubElement(element, "system-out").text = log


def _mark(element: ET.Element, tag: str, kind: str, message: str, body: str = "") -> None:
    mark = ET.SubElement(element, tag, {"type": kind, "message": names.name(message)})
    mark.text = body or names.text(message)


def _evidence(run: Run, case: Result) -> str:
    """Reason, job, log directory, rerun command and splat, for the CI page."""
    path, memory = view.log_path(run, case), view.memory_of(run, case)
    lines = (
        view.reason(case),
        f"job: {names.name(case.job)}",
        f"log: {path}" if path else "",
        f"rerun: {names.name(case.rerun)}" if case.rerun else "",
        f"memory: {memory.what}" if memory else "",
        *(f"  {line}" for line in (memory.summary if memory else ())),
        evidence(run, case, _LOG_MOST) if case.splat else "",
    )
    return "\n".join(line for line in lines if line)


def _counts(suite: ET.Element) -> dict[str, str]:
    cases = suite.findall("testcase")
    marked = {
        tag: sum(case.find(tag) is not None for case in cases) for tag in ("failure", "error", "skipped")
    }
    return {
        "tests": str(len(cases)),
        "failures": str(marked["failure"]),
        "errors": str(marked["error"]),
        "skipped": str(marked["skipped"]),
        "time": _seconds(sum(float(case.attrib["time"]) for case in cases)),
    }


def _total(root: ET.Element) -> None:
    """Set the sums over all suites; the schema has no `skipped` at the top."""
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.attrib[key]) for suite in root)))
    root.set("time", _seconds(sum(float(suite.attrib["time"]) for suite in root)))


def _seconds(value: float) -> str:
    return f"{max(0.0, value):.3f}"
