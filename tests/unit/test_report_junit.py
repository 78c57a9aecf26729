# SPDX-License-Identifier: GPL-2.0-only
"""The JUnit report, held to the structure that Jenkins and GitLab read."""

from __future__ import annotations

import collections
import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import xmlschema
from report_night import night
from report_sample import EMPTY, GOOD, RUN

from harness.report import junit
from harness.results import Run

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))


def parsed(run: Run) -> ET.Element:
    return ET.fromstring(junit.render(run).encode())


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_structure(run: Run) -> None:
    """Elements, their order and their attributes are those of the schema, hostile names or not."""
    SCHEMA.validate(junit.render(run))


def test_a_night(tmp_path: Path) -> None:
    """What makes the judgement bad fails in JUnit too: lost coverage; a flaky case is marked and passes."""
    run, background = night(tmp_path)
    text = junit.render(run, background)
    SCHEMA.validate(text)
    root = ET.fromstring(text)
    kinds = collections.Counter(
        (mark.tag, mark.attrib["type"]) for case in root.iter("testcase") for mark in case if mark.attrib
    )
    assert kinds["failure", "VANISHED"] == kinds["failure", "NEW_SKIP"] == 1
    assert kinds["flakyFailure", "FAIL"] == 1
    assert root.attrib["failures"] == "5"
    (flaky,) = (case for case in root.iter("testcase") if case.find("flakyFailure") is not None)
    assert (flaky.findtext("system-out") or "").startswith("FLAKY: FAIL: the line is high, want low")
    accepted = dataclasses.replace(run, accepted="it is meant")
    assert "VANISHED" not in junit.render(accepted, background)


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_counts_are_right(run: Run) -> None:
    """The numbers on each suite, and on the whole, are the numbers of children one can count."""
    root = parsed(run)
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
        for attribute, tag in tags.items() if element is not root else list(tags.items())[:2]:
            assert int(element.attrib[attribute]) == sum(case.find(tag) is not None for case in cases)


def test_each_outcome_has_its_element() -> None:
    """FAIL, TIMEOUT and XPASS fail; CRASH, LOST, ERROR and NOT_RUN are errors; SKIP and XFAIL are skipped."""
    seen: dict[str, set[str]] = collections.defaultdict(set)
    for case in parsed(RUN).iter("testcase"):
        marks = [child for child in case if child.tag in ("skipped", "failure", "error")]
        assert len(marks) <= 1
        for mark in marks:
            seen[mark.tag].add(mark.attrib["type"])
    assert seen == {
        "failure": {"FAIL", "TIMEOUT", "XPASS"},
        "error": {"CRASH", "LOST", "ERROR", "NOT_RUN", "KERNEL"},
        "skipped": {"SKIP", "XFAIL"},
    }


def test_no_two_testcases_are_the_same() -> None:
    """Consumers merge testcases of one class and name: jobs keep them apart, attempts are settled."""
    keys = [(case.attrib["classname"], case.attrib["name"]) for case in parsed(RUN).iter("testcase")]
    assert len(keys) == len(set(keys)) == 12
    assert ("7_3_4-cdev-edu.probes.iommufd", "get_pa_mapped") in keys


def test_a_failure_carries_its_evidence() -> None:
    """The CI page shows the reason, the log's place, the command to rerun, the splat and the output."""
    case = next(case for case in parsed(RUN).iter("testcase") if case.attrib["name"] == "unplug_while_open")
    error = case.find("error")
    assert error is not None
    assert error.attrib["message"] == "BUG: kernel NULL pointer dereference"
    assert "rerun: vfio-harness run -k unplug_while_open" in (error.text or "")
    assert "log: runs/20300102-030405-1/vms/1" in (error.text or "")
    assert "RIP: 0010:vfio_df_unbind" in (error.text or "")
    assert case.findtext("system-out") == "console"


def test_the_inputs_are_properties() -> None:
    """Every suite says what it was run with."""
    suite = parsed(RUN)[0]
    properties = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
    assert properties["tree"] == "v7.3.4"
    assert properties["topology"] == "edu"
    assert properties["accelerator"] == "tcg"


def test_a_job_that_could_not_run_is_an_error() -> None:
    """A Job without a kernel shows up red; one that does not apply to the tree does not."""
    suites = {suite.attrib["name"]: suite for suite in parsed(RUN)}
    assert suites["7.3.4-broken-edu"].attrib["errors"] == "1"
    assert suites["7.2-cdev-edu"].attrib["errors"] == "0"


def test_nothing_a_guest_prints_breaks_the_document() -> None:
    """Control characters, lone surrogates and markup are replaced or escaped; the rest is kept."""
    text = junit.render(RUN)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", text)
    evil = next(case for case in parsed(RUN).iter("testcase") if "evil" in case.attrib["classname"])
    assert evil.attrib["name"].startswith('a<b>&"c" [red]x[/red]')


def test_long_logs_keep_their_end() -> None:
    """A log beyond what CI servers take is cut at its beginning, with a word about it."""
    long = dataclasses.replace(RUN.results[1], log="".join(f"line {n}\n" for n in range(20000)))
    case = next(parsed(dataclasses.replace(RUN, results=(long,))).iter("testcase"))
    text = case.findtext("system-out") or ""
    assert text.startswith("... ")
    assert text.endswith("line 19999\n")
    assert len(text) < 21_000
