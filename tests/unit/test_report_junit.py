# SPDX-License-Identifier: GPL-2.0-only
"""The JUnit report, held to the structure that Jenkins and GitLab read."""

from __future__ import annotations

import collections
import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from report_sample import EMPTY, GOOD, RUN

from harness.report import junit
from harness.results import Run

# Jenkins xUnit plugin, junit-10.xsd: element -> (required attributes, allowed attributes, order of children).
_SCHEMA: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors", "skipped"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests"},
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id", "package"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, {"name", "value"}, []),
    "testcase": (
        {"name"},
        {"name", "classname", "time"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "skipped": (set(), {"message", "type"}, []),
    "error": (set(), {"message", "type"}, []),
    "failure": (set(), {"message", "type"}, []),
    "system-out": (set(), set(), []),
    "system-err": (set(), set(), []),
}


def check(element: ET.Element) -> None:
    """Fail where *element* breaks the schema."""
    required, allowed, children = _SCHEMA[element.tag]
    assert required <= set(element.attrib) <= allowed, element.attrib
    ranks = [children.index(child.tag) for child in element]
    assert ranks == sorted(ranks), [child.tag for child in element]
    for name in ("tests", "failures", "errors", "skipped"):
        assert re.fullmatch(r"\d+", element.attrib.get(name, "0"))
    assert re.fullmatch(r"\d+\.\d{3}", element.attrib.get("time", "0.000"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.attrib.get("timestamp", "2030-01-02T03:04:05")
    )
    for child in element:
        check(child)


def parsed(run: Run) -> ET.Element:
    return ET.fromstring(junit.render(run).encode())


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_structure(run: Run) -> None:
    """Elements, their order and their attributes are those of the schema, hostile names or not."""
    root = parsed(run)
    assert root.tag == "testsuites"
    check(root)


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_counts_are_right(run: Run) -> None:
    """The numbers on each suite, and on the whole, are the numbers of children one can count."""
    root = parsed(run)
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        for attribute, tag in {"failures": "failure", "errors": "error", "skipped": "skipped"}.items():
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
