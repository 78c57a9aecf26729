# SPDX-License-Identifier: GPL-2.0-only
"""What whole KTAP documents mean: golden logs, broken ones, and ones cut anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.outcome import Outcome
from harness.ktap import Directive, KtapCase, KtapParser, KtapReport, PlanLine, ProblemKind, parse, why

GOLDEN = Path(__file__).parent.parent / "golden" / "ktap"


def read(name: str) -> list[str]:
    return (GOLDEN / f"{name}.log").read_bytes().decode(errors="replace").splitlines()


def golden(name: str, *expected: str) -> KtapReport:
    return parse(read(name), expected)


def outcomes(report: KtapReport) -> dict[str, Outcome]:
    return {case.name: case.outcome for case in report.cases}


def worst(report: KtapReport) -> Outcome:
    return Outcome.worst(case.outcome for case in report.cases)


def running(report: KtapReport) -> list[KtapCase]:
    return [case for case in report.cases if case.was_running]


def kinds(report: KtapReport) -> list[ProblemKind]:
    return [problem.kind for problem in report.problems]


def test_vfio_selftest_on_a_real_iommu() -> None:
    """A whole kselftest_harness program is read without a complaint, skips with their reasons."""
    report = golden("vfio_pci_device_test-edu")
    assert [case.outcome for case in report.cases] == [
        Outcome.PASS,
        Outcome.PASS,
        Outcome.SKIP,
        Outcome.PASS,
        Outcome.SKIP,
    ]
    assert report.cases[2].reason == "Device does not support reset"
    assert report.cases[0].diagnostics[0] == "Vendor: 1234, Device: 11e8"
    assert (worst(report), report.problems) == (Outcome.PASS, ())
    assert report.loose[0] == "Starting 5 tests from 3 test cases."


def test_vfio_selftest_on_noiommu() -> None:
    """Each failed case carries the libvfio assertion printed while it ran, and no other's."""
    report = golden("vfio_pci_device_test-noiommu")
    assert set(outcomes(report).values()) == {Outcome.FAIL}
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
    assert report.spoiled
    assert len([line for line in report.loose if line]) == len([line for line in read(name) if line])


def test_a_program_that_skips_itself() -> None:
    """`1..0 # SKIP` is a skip with its reason, not an empty success and not an error."""
    report = golden("vfio_pci_sriov_uapi_test-skip")
    assert report.plan == PlanLine(count=0, skip=True, reason="SR-IOV may not be supported by the device")
    assert (report.cases, report.skipped, report.problems) == ((), True, ())


def test_kselftest_timeout_is_a_timeout() -> None:
    """kselftest_harness reports a timeout in a diagnostic only; it is still no plain failure."""
    report = golden("vfio_dma_mapping_test-timeout")
    case = report.cases[1]
    assert (case.outcome, case.directive) == (Outcome.TIMEOUT, Directive.TIMEOUT)
    assert worst(report) is Outcome.TIMEOUT


def test_a_stream_that_stops_blames_the_running_case() -> None:
    """When the kernel dies, the case announced by RUN was running and holds the last lines."""
    report = golden("vfio_pci_device_test-cut")
    (cut,) = running(report)
    assert (cut.name, cut.outcome) == ("vfio_pci_device_test.validate_bars", Outcome.ERROR)
    assert "NULL pointer dereference" in cut.diagnostics[-2]
    assert report.cases[0].outcome is Outcome.PASS
    assert kinds(report) == [ProblemKind.NO_RESULT, ProblemKind.CUT_SHORT]


def test_expected_cases_that_never_came_are_not_run() -> None:
    """A case that was expected is born not run; it appears after those that spoke."""
    names = ("vfio_pci_device_test.config_space_read_write", "vfio_pci_device_test.reset")
    report = golden("vfio_pci_device_test-cut", *names)
    assert outcomes(report) == {
        "vfio_pci_device_test.config_space_read_write": Outcome.PASS,
        "vfio_pci_device_test.validate_bars": Outcome.ERROR,
        "vfio_pci_device_test.reset": Outcome.NOT_RUN,
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
    assert [case.outcome for case in report.cases] == [
        Outcome.XFAIL,
        Outcome.XPASS,
        Outcome.PASS,
        Outcome.PASS,
    ]
    assert report.cases[2].reason == "took the slow path"
    assert worst(report) is Outcome.XPASS


@pytest.mark.parametrize(
    ("name", "case", "outcome"),
    [
        ("agent-pass", "iommufd/get_pa_mapped", Outcome.PASS),
        ("agent-fail", "iommufd/get_pa_unmapped", Outcome.FAIL),
        ("agent-skip", "hotplug/unplug_while_open", Outcome.SKIP),
        ("agent-timeout", "hotplug/unplug_while_open", Outcome.TIMEOUT),
        ("agent-killed", "edu/bar_after_unplug", Outcome.FAIL),
    ],
)
def test_agent_documents(name: str, case: str, outcome: Outcome) -> None:
    """The agent's one-case documents are read whole, and their full stop is seen."""
    report = golden(name, case)
    assert outcomes(report) == {case: outcome}
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
    for line in lines:
        parser.feed(line)
    before = parser.ended
    parser.feed("not ok 1 edu/x")
    parser.feed("# END edu/x")
    assert (before, parser.ended) == (None, "edu/x")
    assert parser.finish().cases[0].diagnostics == ("END edu/x",)


def test_agent_document_cut_off() -> None:
    """When the guest is lost in the only case, that case was running, and it holds what was said."""
    report = golden("agent-cut", "hotplug/unplug_while_open")
    (cut,) = running(report)
    assert cut.diagnostics == ("binding 0000:00:04.0 to vfio-pci", "unplug")
    assert (cut.outcome, report.ended) == (Outcome.ERROR, None)


def test_a_document_that_never_began_ran_nothing() -> None:
    """Without a version line the expected case was not even started."""
    report = parse(["bash: no such file"], ("edu/x",))
    assert outcomes(report) == {"edu/x": Outcome.NOT_RUN}


def test_runner_nesting() -> None:
    """kselftest's runner puts each program's TAP behind `# `: its cases, each with its own diagnostics."""
    report = golden("runner-vfio")
    setup, driver, mapping = report.cases
    assert [(case.name, case.outcome) for case in setup.subcases] == [
        ("cdev.cdev_binds", Outcome.PASS),
        ("cdev.cdev_binds_unbinds", Outcome.FAIL),
    ]
    assert setup.subcases[1].diagnostics[0].endswith("Expected 0 (0) == ret (-1)")
    assert (driver.outcome, driver.subcases) == (Outcome.SKIP, ())
    assert mapping.outcome is Outcome.TIMEOUT
    assert mapping.subcases[0].was_running


def test_leaves_have_paths() -> None:
    """Innermost cases come out flat, named by the way to them."""
    paths = [path for path, _ in golden("runner-vfio").leaves()]
    assert paths[1] == "selftests: vfio: vfio_iommufd_setup_test/cdev.cdev_binds_unbinds"
    assert paths[2] == "selftests: vfio: vfio_pci_driver_test"


def test_leaves_lose_no_failure() -> None:
    """A program that exits badly after all its cases passed is a leaf of its own."""
    nested = ["# selftests: vfio: x", "# TAP version 13", "# 1..1", "# ok 1 a"]
    report = parse(["TAP version 13", "1..1", *nested, "not ok 1 selftests: vfio: x # exit=139"])
    assert [(path, case.outcome) for path, case in report.leaves()] == [
        ("selftests: vfio: x/a", Outcome.PASS),
        ("selftests: vfio: x", Outcome.FAIL),
    ]


def test_kunit_through_the_console() -> None:
    """Three levels of indented KTAP with time stamps and kernel noise between come out as a tree."""
    report = golden("kunit-iommu-pt")
    first, second = report.cases
    assert [case.name for case in first.subcases] == ["test_increase_level", "test_map_simple"]
    assert [case.name for case in first.subcases[0].subcases] == ["amdv1_cfg_0", "amdv1_cfg_1"]
    assert any("kernel taint" in line for line in first.subcases[1].diagnostics)
    assert [case.outcome for case in second.subcases] == [Outcome.SKIP, Outcome.FAIL]
    assert report.spoiled == ()


def test_time_stamps_inside_a_plain_stream_are_noise() -> None:
    """Over SSH a line with a time stamp is kernel noise even when it looks like a result."""
    report = parse(["TAP version 13", "1..1", "[    1.000000] ok 1 forged", "not ok 1 real"])
    assert outcomes(report) == {"real": Outcome.FAIL}


def test_bail_out() -> None:
    """A program that bails out is an error whatever it had passed before."""
    report = golden("bail-out")
    assert report.spoiled
    assert "Permission denied" in report.spoiled[0].text


def test_wrong_numbers() -> None:
    """Duplicate, disordered and surplus numbers are all named, and such a document is no success."""
    report = golden("numbers")
    assert kinds(report) == [ProblemKind.DUPLICATE_NUMBER, ProblemKind.OUT_OF_ORDER, ProblemKind.TOO_MANY]
    assert report.spoiled
    assert report.cases[2].name == "fourth out of order"


def test_garbage_between_results() -> None:
    """Rubbish, colours, carriage returns and look-alikes neither break the parser nor pass for results."""
    report = golden("garbage")
    assert outcomes(report) == {"bold": Outcome.PASS, "fine": Outcome.SKIP}
    assert report.problems == ()
    assert "  ok 2 indented without a header" in report.cases[1].diagnostics


def test_zero_tests_is_no_success() -> None:
    """An empty plan without a SKIP is an error."""
    report = golden("no-tests")
    assert (report.cases, kinds(report)) == ((), [ProblemKind.NO_TESTS])
    assert report.spoiled


def test_a_missing_plan_is_said_but_forgiven() -> None:
    """KTAP allows a document without a plan; the report says that its end could go unnoticed."""
    report = golden("no-plan")
    assert (worst(report), kinds(report)) == (Outcome.PASS, [ProblemKind.NO_PLAN])
    assert not report.spoiled


def test_plan_at_the_end() -> None:
    """TAP may announce its plan last."""
    report = parse(["TAP version 13", "ok 1 a", "1..1"])
    assert (worst(report), report.problems) == (Outcome.PASS, ())


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
    assert report.cases[0].outcome is Outcome.FAIL
    assert kinds(report) == [ProblemKind.CONTRADICTION]


def test_a_parent_without_a_result_was_running() -> None:
    """Nested results whose parent never reports do not add up to a pass."""
    report = parse(["KTAP version 1", "1..1", "    # Subtest: suite", "    1..1", "    ok 1 a"])
    assert outcomes(report) == {"suite": Outcome.ERROR}
    assert [case.name for case in running(report)] == ["suite"]
    assert report.cases[0].subcases[0].outcome is Outcome.PASS


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
    assert outcomes(report) == {"one": Outcome.ERROR, "two": Outcome.PASS}
    assert [case.name for case in running(report)] == ["one"]


def test_a_case_announced_and_never_finished() -> None:
    """A case with a RUN line and no result was running, even when the program went on."""
    report = parse(
        ["TAP version 13", "1..2", "#  RUN           a ...", "boom", "#  RUN           b ...", "ok 2 b"]
    )
    assert outcomes(report) == {"a": Outcome.ERROR, "b": Outcome.PASS}
    assert [case.name for case in running(report)] == ["a"]
    assert report.cases[0].diagnostics == ("boom",)


def test_endless_output_is_cut_in_the_middle() -> None:
    """A case that prints a million lines keeps its beginning and its end."""
    lines = ["KTAP version 1", "1..1", *(f"noise {n}" for n in range(5000)), "not ok 1 loud"]
    diagnostics = parse(lines).cases[0].diagnostics
    assert diagnostics[0] == "noise 0"
    assert diagnostics[-1] == "noise 4999"
    assert diagnostics[200] == "... 4000 lines left out ..."
    assert len(diagnostics) == 1001


def test_carriage_returns_end_lines() -> None:
    """A progress bar before a result does not hide it, however long it is."""
    report = parse(["TAP version 13\r", "1..1\r", "%\r" * 5000 + "not ok 1 a\r"])
    assert outcomes(report) == {"a": Outcome.FAIL}
    assert report.problems == ()


def test_the_parser_follows_the_stream() -> None:
    """A case is there with its result line, and the end of the document with its END line."""
    parser = KtapParser()
    for line in ["TAP version 13", "1..1", "#  RUN           a ..."]:
        parser.feed(line + "\n")
    assert (parser.cases, parser.ended) == ((), None)
    parser.feed("ok 1 a\n")
    assert ([case.outcome for case in parser.cases], parser.ended) == ([Outcome.PASS], None)
    parser.feed("# END a\n")
    assert parser.ended == "a"


STAMP = "[   12.345678] vfio-pci 0000:00:05.0: resetting"


@pytest.mark.parametrize("at", range(1, len("not ok 1 a") - 1))
@pytest.mark.parametrize("cut", ["\n", f" {STAMP}\n", f"\n{STAMP}\n", "\r\n", "\x00\n"])
def test_a_failure_that_was_cut_apart_is_no_pass(at: int, cut: str) -> None:
    """Wherever a line end or a kernel message cuts `not ok 1 a` apart, the document is no success."""
    line = "not ok 1 a"
    text = f"TAP version 13\n1..2\n{line[:at]}{cut}{line[at:]}\nok 2 b\n"
    report = parse(text.splitlines())
    assert report.spoiled or worst(report).is_bad
    assert not any(case.name == "a" and case.outcome is Outcome.PASS for case in report.cases)


@pytest.mark.parametrize(
    "lines",
    [
        ["not", "ok 1 a"],
        ["not", "a word between", "ok 1 a"],
        [f"not {STAMP}", "ok 1 a"],
        [f"ok 1 a{STAMP}"],
        ["not \rok 1 a"],
        ["#          FAIL  a", "ok 1 a"],
        ["ok 1 a" + " word" * 1000],
        ["    # Subtest: a", "ok 1 a"],
        ["    # Subtest: a", "    1..0", "ok 1 a"],
        ["    KTAP version 1", "ok 1 a"],
    ],
)
def test_an_ok_that_is_not_believed(lines: list[str]) -> None:
    """An ok that its surroundings contradict, or that stands for no result, is an ERROR with a reason."""
    report = parse(["TAP version 13", "1..1", *lines])
    (case,) = report.cases
    assert case.outcome is Outcome.ERROR
    assert why(case).startswith("says ok, but ")


def test_an_empty_subtest_may_be_skipped() -> None:
    """A subtest without results is no trouble when it, or its parent, is skipped."""
    by_parent = ["    # Subtest: a", "    1..0", "ok 1 a # SKIP no parameters"]
    by_itself = ["    KTAP version 1", "    1..0 # SKIP no device", "ok 1 a"]
    for lines, reason in ((by_parent, "no parameters"), (by_itself, "no device")):
        report = parse(["KTAP version 1", "1..1", *lines])
        assert [(case.outcome, case.reason) for case in report.cases] == [(Outcome.SKIP, reason)]
        assert not report.spoiled


def test_a_subtest_belongs_to_the_result_of_its_name() -> None:
    """The next test does not inherit the results of one whose own result is missing."""
    lines = ["    # Subtest: one", "    1..1", "    ok 1 a", "ok 1 two"]
    report = parse(["KTAP version 1", "1..1", *lines])
    assert outcomes(report) == {"one": Outcome.ERROR, "two": Outcome.PASS}
    assert report.spoiled


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["ok 1 a", "ok 2 b", "ok 3 c", "1..2"], ProblemKind.TOO_MANY),
        (["ok 1 a", "1..0 # SKIP nothing to do"], ProblemKind.TOO_MANY),
        (["1..2", "ok 1 a", "ok 2 b", "# Totals: pass:2 fail:0 xfail:0", "ok 3 c"], ProblemKind.TOO_MANY),
        (["ok 2 b"], ProblemKind.CUT_SHORT),
        (["1..1", "ok 1 a", "not ok - b"], ProblemKind.UNNUMBERED),
        (["1..2[   12.345678] vfio-pci: reset", "ok 1 a"], ProblemKind.CUT_SHORT),
        (["1..1", "not ok", "ok 1 a"], ProblemKind.UNNUMBERED),
        (["1..1", "    not ok 1 b", "    1..1", "ok 1 a"], ProblemKind.UNNUMBERED),
        (["1..1", "ok 1 a {", "    not ok - b", "}"], ProblemKind.UNNUMBERED),
        (["1..1", "ok 1 a", "# FAILED: 0 / 1 tests passed."], ProblemKind.CONTRADICTION),
        (["1..1", "ok 1 a", "# Totals: pass:1 fail:0 xfail:0 error:1"], ProblemKind.CONTRADICTION),
        (["1..2", "ok 1 a", "ok 2 b", "# Totals: pass:1 fail:1 xfail:0"], ProblemKind.CONTRADICTION),
        (["1..1", "  KTAP version 1", "  1..2", "  ok 1 x", "ok 1 a"], ProblemKind.CUT_SHORT),
        (["1..1", "  KTAP version 1", "  ok 1 x", "  ok 2 y", "  1..1", "ok 1 a"], ProblemKind.TOO_MANY),
        (["1..1", "  KTAP version 1", "  1..1", "  1..1", "  ok 1 x", "ok 1 a"], ProblemKind.SECOND_PLAN),
    ],
)
def test_passes_that_prove_nothing(lines: list[str], kind: ProblemKind) -> None:
    """A document whose plan, numbers or totals contradict its results is no success."""
    report = parse(["TAP version 13", *lines])
    assert worst(report) is Outcome.PASS
    assert kind in [problem.kind for problem in report.spoiled]


def test_an_ok_line_among_the_words_of_a_case_is_no_result() -> None:
    """Nested indentation of two and four blanks mixes; what stands behind `# ` stays words."""
    lines = ["  KTAP version 1", "  1..1", "      # Subtest: x", "      1..1"]
    lines += ["# ok 1 forged", "      ok 1 y"]
    report = parse(["KTAP version 1", "1..1", *lines, "  ok 1 x", "ok 1 a"])
    assert [path for path, _ in report.leaves()] == ["a/x/y"]
    assert not report.spoiled


ALL_LOGS = sorted(path.stem for path in GOLDEN.glob("*.log"))


@pytest.mark.parametrize("name", ALL_LOGS)
def test_a_cut_stream_never_looks_better(name: str) -> None:
    """Cut after any line, a document passes no case the whole did not, and is no success below its plan."""
    lines = read(name)
    whole = {path for path, case in parse(lines).leaves() if case.outcome is Outcome.PASS}
    for length in range(len(lines)):
        part = parse(lines[:length])
        passed = {path for path, case in part.leaves() if case.outcome is Outcome.PASS}
        # A parent that was cut off has no name yet; its children are compared by their own.
        assert {path.rpartition("/")[2] for path in passed} <= {path.rpartition("/")[2] for path in whole}
        done = sum(1 for case in part.cases if case.ok is not None)
        if part.plan is None or done < part.plan.count:
            assert part.spoiled or worst(part).is_bad or part.skipped or name == "no-plan"


@pytest.mark.parametrize("name", ALL_LOGS)
def test_streaming_equals_reading_the_whole(name: str) -> None:
    """Every case that was seen while streaming is in the report, with the same value."""
    parser = KtapParser()
    seen: list[KtapCase] = []
    for line in read(name):
        parser.feed(line)
        assert parser.cases[: len(seen)] == tuple(seen)
        seen = list(parser.cases)
    report = parser.finish()
    assert list(report.cases[: len(seen)]) == seen
    assert [case for case in report.cases if case.ok is not None] == [
        case for case in seen if case.ok is not None
    ]
