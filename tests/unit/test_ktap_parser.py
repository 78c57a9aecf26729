# SPDX-License-Identifier: GPL-2.0-only
"""What whole KTAP documents mean: golden logs, broken ones, and ones cut anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.ktap import (
    BailedOut,
    Began,
    Directive,
    DocumentEnded,
    Event,
    Finished,
    KtapParser,
    KtapReport,
    Plan,
    Planned,
    ProblemKind,
    Status,
    parse,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "ktap"


def read(name: str) -> list[str]:
    return (GOLDEN / f"{name}.log").read_bytes().decode(errors="replace").splitlines()


def golden(name: str, *expected: str) -> KtapReport:
    return parse(read(name), expected)


def statuses(report: KtapReport) -> dict[str, Status]:
    return {case.name: case.status for case in report.cases}


def kinds(report: KtapReport) -> list[ProblemKind]:
    return [problem.kind for problem in report.problems]


def test_vfio_selftest_on_a_real_iommu() -> None:
    """A whole kselftest_harness program is read without a complaint, skips with their reasons."""
    report = golden("vfio_pci_device_test-edu")
    assert [case.status for case in report.cases] == [
        Status.PASS,
        Status.PASS,
        Status.SKIP,
        Status.PASS,
        Status.SKIP,
    ]
    assert report.cases[2].reason == "Device does not support reset"
    assert report.cases[0].diagnostics[0] == "Vendor: 1234, Device: 11e8"
    assert (report.status, report.problems) == (Status.PASS, ())
    assert report.loose[0] == "Starting 5 tests from 3 test cases."


def test_vfio_selftest_on_noiommu() -> None:
    """Each failed case carries the libvfio assertion printed while it ran, and no other's."""
    report = golden("vfio_pci_device_test-noiommu")
    assert set(statuses(report).values()) == {Status.FAIL}
    assert len(report.cases) == 5
    assert "  open(/dev/vfio/0) failed" in report.cases[3].diagnostics
    assert all("open(/dev/vfio/0)" not in " ".join(case.diagnostics) for case in report.cases[:3])


@pytest.mark.parametrize(
    "name",
    ["vfio_iommufd_setup_test-noiommu", "vfio_pci_driver_test-no-driver", "vfio_selftest-no-device", "empty"],
)
def test_a_program_that_prints_no_tap_is_an_error(name: str) -> None:
    """A program that dies before its first TAP line has no cases and is never a success."""
    report = golden(name)
    assert report.cases == ()
    assert kinds(report) == [ProblemKind.NO_OUTPUT]
    assert report.status is Status.ERROR
    assert len([line for line in report.loose if line]) == len([line for line in read(name) if line])


def test_a_program_that_skips_itself() -> None:
    """`1..0 # SKIP` is a skip with its reason, not an empty success and not an error."""
    report = golden("vfio_pci_sriov_uapi_test-skip")
    assert report.plan == Plan(count=0, skip=True, reason="SR-IOV may not be supported by the device")
    assert (report.status, report.skipped, report.problems) == (Status.SKIP, True, ())


def test_kselftest_timeout_is_a_timeout() -> None:
    """kselftest_harness reports a timeout in a diagnostic only; it is still no plain failure."""
    report = golden("vfio_dma_mapping_test-timeout")
    case = report.cases[1]
    assert (case.status, case.directive) == (Status.TIMEOUT, Directive.TIMEOUT)
    assert report.status is Status.TIMEOUT


def test_a_stream_that_stops_convicts_the_running_case() -> None:
    """When the kernel dies, the case announced by RUN is crashed and holds the last lines."""
    report = golden("vfio_pci_device_test-cut")
    assert report.running is not None
    assert report.running.name == "vfio_pci_device_test.validate_bars"
    assert "NULL pointer dereference" in report.running.diagnostics[-2]
    assert report.cases[0].status is Status.PASS
    assert kinds(report) == [ProblemKind.NO_RESULT, ProblemKind.CUT_SHORT]


def test_expected_cases_that_never_came_are_not_run() -> None:
    """A case that was expected is born not run; it appears after those that spoke."""
    names = ("vfio_pci_device_test.config_space_read_write", "vfio_pci_device_test.reset")
    report = golden("vfio_pci_device_test-cut", *names)
    assert statuses(report) == {
        "vfio_pci_device_test.config_space_read_write": Status.PASS,
        "vfio_pci_device_test.validate_bars": Status.CRASHED,
        "vfio_pci_device_test.reset": Status.NOT_RUN,
    }


def test_iommufd_cut_short() -> None:
    """Six good-looking results of 246 are no success; several checks of one case stay with it."""
    report = golden("iommufd")
    assert kinds(report) == [ProblemKind.CUT_SHORT]
    assert len(report.cases[3].diagnostics) == 3
    assert report.cases[3].diagnostics[0].startswith("iommufd.c:718:map_file:")


def test_kselftest_directives() -> None:
    """XFAIL is expected, XPASS is bad, and a comment without a directive changes nothing."""
    report = golden("iommufd_harness_directives")
    assert [case.status for case in report.cases] == [Status.XFAIL, Status.XPASS, Status.PASS, Status.PASS]
    assert report.cases[2].reason == "took the slow path"
    assert report.status is Status.XPASS


@pytest.mark.parametrize(
    ("name", "case", "status"),
    [
        ("agent-pass", "iommufd/get_pa_mapped", Status.PASS),
        ("agent-fail", "iommufd/get_pa_unmapped", Status.FAIL),
        ("agent-skip", "hotplug/unplug_while_open", Status.SKIP),
        ("agent-timeout", "hotplug/unplug_while_open", Status.TIMEOUT),
        ("agent-killed", "edu/bar_after_unplug", Status.FAIL),
    ],
)
def test_agent_documents(name: str, case: str, status: Status) -> None:
    """The agent's one-case documents are read whole, and their full stop is seen."""
    report = golden(name, case)
    assert statuses(report) == {case: status}
    assert report.ended == case
    assert report.problems == ()


def test_agent_notes() -> None:
    """`why` and `dirty` are found wherever they stand."""
    report = golden("agent-fail")
    assert report.cases[0].notes("why") == (
        "errno is 22 (EINVAL), want 2 (ENOENT): GET_PA of an unmapped IOVA",
    )
    assert report.notes("dirty") == ("0000:00:04.0 is still bound to vfio-pci",)


def test_a_case_that_prints_tap_is_not_believed() -> None:
    """TAP behind `# ` counts only below the kselftest runner's own header, never in what a probe printed."""
    report = golden("agent-fail")
    assert report.cases[0].subcases == ()
    assert "ok 1 something the case only printed" in report.cases[0].diagnostics


def test_a_full_stop_before_the_result_is_not_believed() -> None:
    """A case that prints END itself does not end its document."""
    parser = KtapParser()
    lines = ["KTAP version 1", "1..1", "# END edu/x"]
    assert [event for line in lines for event in parser.feed(line) if isinstance(event, DocumentEnded)] == []
    parser.feed("not ok 1 edu/x")
    assert parser.feed("# END edu/x") == (DocumentEnded(name="edu/x"),)
    assert parser.finish().cases[0].diagnostics == ("END edu/x",)


def test_agent_document_cut_off() -> None:
    """When the guest is lost in the only case, that case was running, and it holds what was said."""
    report = golden("agent-cut", "hotplug/unplug_while_open")
    assert report.running is not None
    assert report.running.diagnostics == ("binding 0000:00:04.0 to vfio-pci", "unplug")
    assert (report.status, report.ended) == (Status.CRASHED, None)


def test_a_document_that_never_began_ran_nothing() -> None:
    """Without a version line the expected case was not even started."""
    report = parse(["bash: no such file"], ("edu/x",))
    assert statuses(report) == {"edu/x": Status.NOT_RUN}


def test_runner_nesting() -> None:
    """kselftest's runner puts each program's TAP behind `# `: its cases, each with its own diagnostics."""
    report = golden("runner-vfio")
    setup, driver, mapping = report.cases
    assert [(case.name, case.status) for case in setup.subcases] == [
        ("cdev.cdev_binds", Status.PASS),
        ("cdev.cdev_binds_unbinds", Status.FAIL),
    ]
    assert setup.subcases[1].diagnostics[0].endswith("Expected 0 (0) == ret (-1)")
    assert (driver.status, driver.subcases) == (Status.SKIP, ())
    assert mapping.status is Status.TIMEOUT
    assert mapping.subcases[0].status is Status.CRASHED


def test_leaves_have_paths() -> None:
    """Innermost cases come out flat, named by the way to them."""
    paths = [path for path, _ in golden("runner-vfio").leaves()]
    assert paths[1] == "selftests: vfio: vfio_iommufd_setup_test/cdev.cdev_binds_unbinds"
    assert paths[2] == "selftests: vfio: vfio_pci_driver_test"


def test_leaves_lose_no_failure() -> None:
    """A program that exits badly after all its cases passed is a leaf of its own."""
    nested = ["# selftests: vfio: x", "# TAP version 13", "# 1..1", "# ok 1 a"]
    report = parse(["TAP version 13", "1..1", *nested, "not ok 1 selftests: vfio: x # exit=139"])
    assert [(path, case.status) for path, case in report.leaves()] == [
        ("selftests: vfio: x/a", Status.PASS),
        ("selftests: vfio: x", Status.FAIL),
    ]


def test_kunit_through_the_console() -> None:
    """Three levels of indented KTAP with time stamps and kernel noise between come out as a tree."""
    report = golden("kunit-iommu-pt")
    first, second = report.cases
    assert [case.name for case in first.subcases] == ["test_increase_level", "test_map_simple"]
    assert [case.name for case in first.subcases[0].subcases] == ["amdv1_cfg_0", "amdv1_cfg_1"]
    assert any("kernel taint" in line for line in first.subcases[1].diagnostics)
    assert [case.status for case in second.subcases] == [Status.SKIP, Status.FAIL]
    assert report.spoiled == ()


def test_time_stamps_inside_a_plain_stream_are_noise() -> None:
    """Over SSH a line with a time stamp is kernel noise even when it looks like a result."""
    report = parse(["TAP version 13", "1..1", "[    1.000000] ok 1 forged", "not ok 1 real"])
    assert statuses(report) == {"real": Status.FAIL}


def test_bail_out() -> None:
    """A program that bails out is an error whatever it had passed before."""
    report = golden("bail-out")
    assert report.status is Status.ERROR
    assert "Permission denied" in report.spoiled[0].text


def test_wrong_numbers() -> None:
    """Duplicate, disordered and surplus numbers are all named, and such a document is no success."""
    report = golden("numbers")
    assert kinds(report) == [ProblemKind.DUPLICATE_NUMBER, ProblemKind.OUT_OF_ORDER, ProblemKind.TOO_MANY]
    assert report.status is Status.ERROR
    assert report.cases[2].name == "fourth out of order"


def test_garbage_between_results() -> None:
    """Rubbish, colours, carriage returns and look-alikes neither break the parser nor pass for results."""
    report = golden("garbage")
    assert statuses(report) == {"bold": Status.PASS, "fine": Status.SKIP}
    assert report.problems == ()
    assert "  ok 2 indented without a header" in report.cases[1].diagnostics


def test_zero_tests_is_no_success() -> None:
    """An empty plan without a SKIP is an error."""
    report = golden("no-tests")
    assert (report.status, kinds(report)) == (Status.ERROR, [ProblemKind.NO_TESTS])


def test_a_missing_plan_is_said_but_forgiven() -> None:
    """KTAP allows a document without a plan; the report says that its end could go unnoticed."""
    report = golden("no-plan")
    assert (report.status, kinds(report)) == (Status.PASS, [ProblemKind.NO_PLAN])


def test_plan_at_the_end() -> None:
    """TAP may announce its plan last."""
    report = parse(["TAP version 13", "ok 1 a", "1..1"])
    assert (report.status, report.problems) == (Status.PASS, ())


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["KTAP version 1", "1..1", "ok 1 a", "1..1"], ProblemKind.SECOND_PLAN),
        (["KTAP version 1", "1..2", "ok 1 a", "KTAP version 1", "ok 2 b"], ProblemKind.SECOND_DOCUMENT),
        (["KTAP version 9", "1..1", "ok 1 a"], ProblemKind.UNKNOWN_VERSION),
        (["1..1", "ok 1 a"], ProblemKind.NO_VERSION),
        (["KTAP version 1", "1..2", "ok 1 a", "ok 2 a"], ProblemKind.DUPLICATE_NAME),
    ],
)
def test_other_problems(lines: list[str], kind: ProblemKind) -> None:
    """Each irregularity has its own name."""
    assert kinds(parse(lines)) == [kind]


def test_a_bad_child_outdoes_its_parent() -> None:
    """A parent that says ok over a failed child fails, and the contradiction is named."""
    report = parse(
        ["KTAP version 1", "1..1", "  KTAP version 1", "  1..2", "  ok 1 a", "  not ok 2 b", "ok 1 parent"]
    )
    assert report.cases[0].status is Status.FAIL
    assert kinds(report) == [ProblemKind.CONTRADICTION]


def test_a_parent_without_a_result_is_crashed() -> None:
    """Nested results whose parent never reports do not add up to a pass."""
    report = parse(["KTAP version 1", "1..1", "    # Subtest: suite", "    1..1", "    ok 1 a"])
    assert statuses(report) == {"suite": Status.CRASHED}
    assert report.cases[0].subcases[0].status is Status.PASS


def test_two_nested_documents_in_a_row() -> None:
    """A second nested header at the same depth ends the first, which then lacks its result."""
    report = parse(
        [
            "KTAP version 1",
            "1..2",
            "  # Subtest: one",
            "  1..1",
            "  ok 1 a",
            "  # Subtest: two",
            "  1..1",
            "  ok 1 b",
            "ok 2 two",
        ]
    )
    assert statuses(report) == {"one": Status.CRASHED, "two": Status.PASS}


def test_a_case_announced_and_never_finished() -> None:
    """A RUN line without a result convicts its case even when the program went on."""
    report = parse(
        ["TAP version 13", "1..2", "#  RUN           a ...", "boom", "#  RUN           b ...", "ok 2 b"]
    )
    assert statuses(report) == {"a": Status.CRASHED, "b": Status.PASS}
    assert report.cases[0].diagnostics == ("boom",)


def test_endless_output_is_cut_in_the_middle() -> None:
    """A case that prints a million lines keeps its beginning and its end."""
    lines = ["KTAP version 1", "1..1", *(f"noise {n}" for n in range(5000)), "not ok 1 loud"]
    diagnostics = parse(lines).cases[0].diagnostics
    assert diagnostics[0] == "noise 0"
    assert diagnostics[-1] == "noise 4999"
    assert diagnostics[200] == "... 4000 lines left out ..."
    assert len(diagnostics) == 1001


def test_events_come_with_the_line_that_causes_them() -> None:
    """A live display can follow the stream: plan, begin, finish and the agent's full stop, at once."""
    parser = KtapParser()
    seen: list[Event] = []
    for line in ["TAP version 13", "1..1", "#  RUN           a ...", "ok 1 a", "# END a"]:
        seen.extend(parser.feed(line + "\n"))
    assert [type(event) for event in seen] == [Planned, Began, Finished, DocumentEnded]
    assert isinstance(seen[2], Finished)
    assert seen[2].case.status is Status.PASS
    assert parser.feed("Bail out! late") == (BailedOut(reason="late"),)


ALL_LOGS = sorted(path.stem for path in GOLDEN.glob("*.log"))


@pytest.mark.parametrize("name", ALL_LOGS)
def test_a_cut_stream_never_looks_better(name: str) -> None:
    """Cut after any line, a document passes no case the whole did not, and is no success below its plan."""
    lines = read(name)
    whole = {path for path, case in parse(lines).leaves() if case.status is Status.PASS}
    for length in range(len(lines)):
        part = parse(lines[:length])
        passed = {path for path, case in part.leaves() if case.status is Status.PASS}
        # A parent that was cut off has no name yet; its children are compared by their own.
        assert {path.rpartition("/")[2] for path in passed} <= {path.rpartition("/")[2] for path in whole}
        done = sum(1 for case in part.cases if case.ok is not None)
        if part.plan is None or done < part.plan.count:
            assert part.status.is_bad or part.skipped or name == "no-plan"


@pytest.mark.parametrize("name", ALL_LOGS)
def test_streaming_equals_reading_the_whole(name: str) -> None:
    """Every finished case is reported as an event exactly once, with the same value as in the report."""
    parser = KtapParser()
    events = [event for line in read(name) for event in parser.feed(line)]
    report = parser.finish()
    live = [event.case for event in events if isinstance(event, Finished) and event.depth == 0]
    assert live == [case for case in report.cases if case in live]
    assert [case for case in report.cases if case.ok is not None] == [
        case for case in live if case.ok is not None
    ]
