# SPDX-License-Identifier: GPL-2.0-only
"""The kselftest-*.yaml and kunit-*.yaml files, and how programs are aimed at devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from plan_jobs import job

from guest.needs import check_names
from harness.base.errors import UsageError
from harness.ktap import parse
from harness.results import Outcome
from harness.session.planning import needs_selftests
from harness.suites.judging import missing
from harness.suites.kselftest import KselftestSuite
from harness.suites.model import Work
from harness.suites.programs import ProgramSuite, Target
from harness.suites.registry import all_suites, suite_named

EDU = Target(id="edu0", driver="edu", translated=False)
IGB = Target(id="igb0", driver="igb", translated=False)


def shipped(name: str) -> ProgramSuite:
    """The suite *name*, which is one of programs."""
    suite = suite_named(name)
    assert isinstance(suite, ProgramSuite)
    return suite


def work_of(suite: str, built: str, features: set[str], *libvfio: str) -> Work:
    """The work of the program *built* on the topology `edu`, with a libvfio that can do *libvfio*."""
    one = job("edu", features=tuple(features))
    kernel = dataclasses.replace(one.kernel, programs=(built,), selftest_features=libvfio)
    return next(iter(suite_named(suite).work(dataclasses.replace(one, kernel=kernel))))


def test_every_need_in_the_shipped_files_is_a_feature() -> None:
    """A misspelt need would make its program silently inapplicable."""
    for suite in all_suites():
        if not isinstance(suite, ProgramSuite):
            continue
        for entry in suite.entries.values():
            check_names(entry.needs)
        for expectation in suite.expectations:
            check_names(expectation.when)


def test_programs_are_aimed_by_their_rule() -> None:
    """`each` gives a run per device, a driver's name one per such device, `all` one with every device."""
    vfio = shipped("kselftest:vfio")
    built = ("vfio/vfio_pci_device_test", "vfio/vfio_pci_driver_test", "vfio/vfio_pci_device_init_perf_test")
    titles = [program.title for program in vfio.programs((*built, "iommu/iommufd"), (EDU, IGB))]
    assert titles == [
        "vfio_pci_device_test@edu0",
        "vfio_pci_device_test@igb0",
        "vfio_pci_driver_test@igb0",
        "vfio_pci_device_init_perf_test@all",
    ]


def test_a_program_upstream_added_runs_by_default_rules() -> None:
    """A new upstream test runs without an entry and must pass one point."""
    vfio = shipped("kselftest:vfio")
    (program,) = vfio.programs(("vfio/vfio_new_test",), (EDU,))
    assert program.title == "vfio_new_test@edu0"
    required = vfio.requirement(work_of("kselftest:vfio", "vfio/vfio_new_test", {"viommu"}), job(), ())
    assert required.fewest == 1


TAP = ["TAP version 13", "1..2", "ok 1 a.x", "ok 2 a.type1"]
NOIOMMU = {"noiommu", "noiommu-cdev", "cdev", "group"}


@pytest.mark.parametrize("learnt", [(), ("libvfio-noiommu-cdev",)])
def test_a_program_nobody_named_is_judged_by_its_own_word(learnt: tuple[str, ...]) -> None:
    """No expectation that was written for others makes its pass an XPASS or excuses its failure."""
    vfio = shipped("kselftest:vfio")
    work = work_of("kselftest:vfio", "vfio/my_test", NOIOMMU, *learnt)
    assert work.refusal is None
    passed = vfio.judge(work, parse(TAP), 0)
    assert {point.outcome for point in passed} == {Outcome.PASS}
    assert not missing(vfio.requirement(work, job(), passed), passed)
    said = ["Failed to find vfio cdev file.", "TAP version 13", "1..1", "not ok 1 a.x"]
    assert vfio.judge(work, parse(said), 1)[0].outcome is Outcome.FAIL


def test_a_program_nobody_named_may_skip_itself() -> None:
    """A test of no-IOMMU mode skips itself on a device with an IOMMU; points that all skip are no success."""
    vfio = shipped("kselftest:vfio")
    work = work_of("kselftest:vfio", "vfio/my_test", {"cdev", "viommu"})
    skipped = vfio.judge(work, parse(["# no-IOMMU mode is not enabled"]), 4)
    assert [result.outcome for result in skipped] == [Outcome.SKIP]
    assert not missing(vfio.requirement(work, job(), skipped), skipped)
    points = vfio.judge(work, parse(["TAP version 13", "1..1", "ok 1 a # SKIP no"]), 4)
    (whole,) = missing(vfio.requirement(work, job(), points), points)
    assert whole.outcome is Outcome.ERROR


def test_a_program_nobody_named_needs_what_the_directory_does() -> None:
    """Without device nodes libvfio's programs have nothing to open."""
    work = work_of("kselftest:vfio", "vfio/my_test", {"noiommu", "noiommu-group", "group"})
    assert work.refusal == "not applicable here: needs cdev"


def test_expectations_follow_the_tree() -> None:
    """What libvfio cannot do is XFAIL; once the tree's libvfio can, the same points PASS or FAIL."""
    vfio, program = shipped("kselftest:vfio"), "vfio/vfio_dma_mapping_test"
    old = work_of("kselftest:vfio", program, NOIOMMU)
    new = work_of("kselftest:vfio", program, NOIOMMU, "libvfio-noiommu-cdev", "libvfio-noiommu-group")
    half = work_of("kselftest:vfio", program, NOIOMMU, "libvfio-noiommu-cdev")
    blind = ["TAP version 13", "1..2", "Failed to find vfio cdev file.", "not ok 1 a.x",
             "open(/dev/vfio/0) failed", "not ok 2 a.type1"]  # fmt: skip

    def told(work: Work, lines: list[str], status: int) -> list[Outcome]:
        return [point.outcome for point in vfio.judge(work, parse(lines), status)]

    assert told(old, blind, 1) == [Outcome.XFAIL, Outcome.XFAIL]
    assert told(new, blind, 1) == [Outcome.FAIL, Outcome.FAIL]
    assert told(half, blind, 1) == [Outcome.FAIL, Outcome.XFAIL]
    assert told(old, TAP, 0) == [Outcome.XPASS, Outcome.XPASS]
    assert told(new, TAP, 0) == [Outcome.PASS, Outcome.PASS]


def test_no_iommu_mode_is_allowed_only_for_devices_without_an_iommu() -> None:
    """So a test of the mode skips itself where its device has an IOMMU."""
    work = work_of("kselftest:vfio", "vfio/my_test", {"noiommu", "cdev"})
    translated = dataclasses.replace(work, features=work.features | {"viommu"})
    suite, bdfs = shipped("kselftest:vfio"), {"edu0": "0000:00:04.0"}
    assert "enable_unsafe_noiommu_mode" in suite.how(work, bdfs).text
    assert "enable_unsafe_noiommu_mode" not in suite.how(translated, bdfs).text


def test_an_expectation_names_programs_of_its_file(tmp_path: Path) -> None:
    """A misspelt program would make its expectation hold for nothing."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "suite: s\ndirectory: d\ndevice: each\nprograms: {vfio_x: {}}\nexpectations:\n"
        "  - {outcome: XFAIL, reason: r, says: x, programs: [vfio_y]}\n"
    )
    with pytest.raises(UsageError, match="this file has no program 'vfio_y'"):
        KselftestSuite.read(path)


def test_memory_follows_the_programs_that_apply() -> None:
    """The driver test's 4 GiB are needed only where it can run."""
    vfio = shipped("kselftest:vfio")
    built = ("vfio/vfio_pci_driver_test",)
    assert vfio.memory(built, frozenset({"cdev", "viommu", "link-peer"})) == 4096
    assert vfio.memory(built, frozenset({"cdev", "link-peer"})) == 0
    assert vfio.memory((), frozenset({"cdev", "viommu", "link-peer"})) == 0


def test_script_gives_each_program_what_it_needs() -> None:
    """Huge pages, SR-IOV and the no-IOMMU parameter are set before upstream's setup.sh binds the device."""
    vfio, program = shipped("kselftest:vfio"), "vfio/vfio_dma_mapping_test"
    bdfs = {"edu0": "0000:00:04.0"}
    work = work_of("kselftest:vfio", program, {"noiommu", "cdev"})
    assert vfio.how(work, bdfs).needs_selftests
    text = vfio.how(work, bdfs).text
    order = ["enable_unsafe_noiommu_mode", "nr_hugepages", "setup.sh 0000:00:04.0", "./vfio_dma_mapping_test"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    # The next work finds the mode off.
    assert text.index("echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode") > places[-1]
    without = work_of("kselftest:vfio", program, {"viommu"})
    assert "enable_unsafe_noiommu_mode" not in vfio.how(without, bdfs).text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fewest: {edu: many}", r"x.yaml:6: 'fewest' for 'edu' must be a whole number"),
        ("sekonds: 3", r"x.yaml:6: 'vfio_x' has no key 'sekonds'"),
        ("needs: cdev", r"x.yaml:6: 'needs' in 'vfio_x' must be a list"),
    ],
)
def test_bad_entries_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    """A wrong key or type is refused with file and line."""
    path = tmp_path / "x.yaml"
    path.write_text(f"suite: s\ndirectory: d\ndevice: each\nprograms:\n  vfio_x:\n    {text}\n")
    with pytest.raises(UsageError, match=message):
        KselftestSuite.read(path)


def test_only_excuses_can_be_expected(tmp_path: Path) -> None:
    """A crash cannot be expected."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "suite: s\ndirectory: d\ndevice: each\nprograms: {}\nexpectations:\n  - {outcome: CRASH, reason: r}\n"
    )
    with pytest.raises(UsageError, match="'CRASH' cannot be expected"):
        KselftestSuite.read(path)


def test_kunit_suites_are_part_of_the_kernel() -> None:
    """They are not compiled beside the kernel, and run without a device where it was built with them."""
    kunit = shipped("kunit:iommu")
    programs = kunit.programs((), (EDU, IGB))
    assert [program.title for program in programs[:2]] == ["amdv1_fmt_test", "amdv1_iommu_test"]
    assert all(program.entry.needs == ("kunit",) for program in programs)
    assert not needs_selftests(["probes", "kunit:iommu"])
    assert needs_selftests(["kunit:iommu", "kselftest:vfio"])


def test_kunit_suite_is_run_by_its_file_in_debugfs() -> None:
    """Its results are read when it has ended; the kernel's log has its begin and end."""
    one = dataclasses.replace(job(), suites=("kunit:iommu",))
    work = next(iter(shipped("kunit:iommu").work(one)))
    script = shipped("kunit:iommu").how(work, {})
    assert not script.needs_selftests
    told, run, results, ended = script.text.splitlines()[2:6]
    assert "begin amdv1_fmt_test" in told
    assert run == "echo run > /sys/kernel/debug/kunit/amdv1_fmt_test/run; status=$?"
    assert results == "cat /sys/kernel/debug/kunit/amdv1_fmt_test/results"
    assert "end amdv1_fmt_test" in ended
