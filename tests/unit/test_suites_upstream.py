# SPDX-License-Identifier: GPL-2.0-only
"""What the kselftest-*.yaml and kunit-*.yaml files say, and how programs are aimed at devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.needs import check_names
from harness.errors import UsageError
from harness.session.planning import needs_selftests
from harness.suites.programs import kunit_script, script
from harness.suites.upstream import Target, load_suite, shipped_suites

EDU = Target(id="edu0", driver="edu", translated=False)
IGB = Target(id="igb0", driver="igb", translated=False)


def test_every_need_in_the_shipped_files_is_a_feature() -> None:
    """A misspelt need would make its program silently inapplicable."""
    for suite in shipped_suites().values():
        for entry in suite.entries.values():
            check_names(entry.needs)
        for expectation in suite.expectations:
            check_names(expectation.when)


def test_programs_are_aimed_by_their_rule() -> None:
    """`each` gives a run per device, a driver's name one per such device, `all` one with every device."""
    vfio = shipped_suites()["kselftest:vfio"]
    built = ("vfio/vfio_pci_device_test", "vfio/vfio_pci_driver_test", "vfio/vfio_pci_device_init_perf_test")
    titles = [program.title for program in vfio.programs((*built, "iommu/iommufd"), (EDU, IGB))]
    assert titles == [
        "vfio_pci_device_test@edu0",
        "vfio_pci_device_test@igb0",
        "vfio_pci_driver_test@igb0",
        "vfio_pci_device_init_perf_test@all",
    ]


def test_a_program_upstream_added_runs_by_default_rules() -> None:
    """A new upstream test is not lost for want of an entry; one pass is the least it must show."""
    (program,) = shipped_suites()["kselftest:vfio"].programs(("vfio/vfio_new_test",), (EDU,))
    assert (program.title, program.fewest) == ("vfio_new_test@edu0", 1)


def test_memory_follows_the_programs_that_apply() -> None:
    """The driver test's 4 GiB are asked for only where it can run."""
    vfio = shipped_suites()["kselftest:vfio"]
    built = ("vfio/vfio_pci_driver_test",)
    assert vfio.memory_for(built, frozenset({"cdev", "viommu", "link-peer"})) == 4096
    assert vfio.memory_for(built, frozenset({"cdev", "link-peer"})) == 0
    assert vfio.memory_for((), frozenset({"cdev", "viommu", "link-peer"})) == 0


def test_script_gives_each_program_what_it_needs() -> None:
    """Huge pages, SR-IOV and the no-IOMMU parameter are set before upstream's setup.sh binds the device."""
    vfio = shipped_suites()["kselftest:vfio"]
    (program,) = vfio.programs(("vfio/vfio_dma_mapping_test",), (EDU,))
    text = script(program, ("0000:00:04.0",), frozenset({"noiommu", "cdev"}))
    order = ["enable_unsafe_noiommu_mode", "nr_hugepages", "setup.sh 0000:00:04.0", "./vfio_dma_mapping_test"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    # Who comes next finds the mode off.
    assert text.index("echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode") > places[-1]
    assert "enable_unsafe_noiommu_mode" not in script(program, ("0000:00:04.0",), frozenset({"viommu"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fewest: {edu: many}", r"x.yaml:5: 'fewest' for 'edu' must be a whole number"),
        ("sekonds: 3", r"x.yaml:5: 'vfio_x' has no key 'sekonds'"),
        ("needs: cdev", r"x.yaml:5: 'needs' in 'vfio_x' must be a list"),
    ],
)
def test_bad_entries_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    """A wrong key or type is refused where it stands."""
    path = tmp_path / "x.yaml"
    path.write_text(f"suite: s\ndirectory: d\nprograms:\n  vfio_x:\n    {text}\n")
    with pytest.raises(UsageError, match=message):
        load_suite(path)


def test_only_excuses_can_be_expected(tmp_path: Path) -> None:
    """Nobody can declare that a crash is expected."""
    path = tmp_path / "x.yaml"
    path.write_text("suite: s\ndirectory: d\nprograms: {}\nexpectations:\n  - {outcome: CRASH, reason: r}\n")
    with pytest.raises(UsageError, match="'CRASH' cannot be expected"):
        load_suite(path)


def test_kunit_suites_are_part_of_the_kernel() -> None:
    """None is compiled beside it; they run where it was built with them, on no device in particular."""
    kunit = shipped_suites()["kunit:iommu"]
    programs = kunit.programs((), (EDU, IGB))
    assert [program.title for program in programs[:2]] == ["amdv1_fmt_test", "amdv1_iommu_test"]
    assert all(program.is_kunit and program.needs == ("kunit",) for program in programs)
    assert not needs_selftests(["probes", "kunit:iommu"])
    assert needs_selftests(["kunit:iommu", "kselftest:vfio"])


def test_kunit_suite_is_run_by_its_file_in_debugfs() -> None:
    """And its results are read when it has ended; the kernel's log is told between what it runs."""
    (program, *_) = shipped_suites()["kunit:iommu"].programs((), ())
    told, run, results, ended = kunit_script(program).splitlines()[2:6]
    assert "begin amdv1_fmt_test" in told
    assert run == "echo run > /sys/kernel/debug/kunit/amdv1_fmt_test/run; status=$?"
    assert results == "cat /sys/kernel/debug/kunit/amdv1_fmt_test/results"
    assert "end amdv1_fmt_test" in ended
