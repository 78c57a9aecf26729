# SPDX-License-Identifier: GPL-2.0-only
"""The one line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.ktap import KtapCase, explain, parse, why, why_program

GOLDEN = Path(__file__).parent.parent / "golden" / "ktap"


def whys(name: str) -> list[str]:
    report = parse((GOLDEN / f"{name}.log").read_text(errors="replace").splitlines())
    return [why(case) for case in report.cases]


def test_libvfio_assertions() -> None:
    """A libvfio assertion is told with its place, its message, the values and errno."""
    told = whys("vfio_pci_device_test-noiommu")
    assert told[0] == "lib/vfio_pci_device.c:406: Failed to find vfio cdev file."
    assert told[3] == (
        "lib/vfio_pci_device.c:280: open(/dev/vfio/0) failed: expected device->fd >= 0, "
        "got 0xffffffffffffffff >= 0 [errno: 2 - No such file or directory]"
    )


def test_kselftest_expectations() -> None:
    """A failed EXPECT or ASSERT is told with its place; a signal with its number."""
    told = whys("iommufd")
    assert told[3].startswith("iommufd.c:718: Expected 0 (0) == _test_ioctl_ioas_map_file")
    assert told[5] == "Test terminated unexpectedly by signal 11"


def reason_of(*printed: str) -> str:
    report = parse(["TAP version 13", "1..1", *printed, "not ok 1 f.t"])
    return why(report.cases[0])


def test_the_reason_is_the_failed_expectation() -> None:
    """What the test logged before, in the same form, is not the reason."""
    expected = "# t.c:20:t:Expected new (1) == secs (0)"
    told = reason_of(
        "#  RUN           f.t ...",
        "# t.c:10:t:data: 1a0",
        expected,
        "# t.c:30:t:after it",
        "# t: Test terminated by assertion",
    )
    assert told == "t.c:20: Expected new (1) == secs (0)"
    assert reason_of("# t.c:10:t:data: 1a0", "# t: Test terminated unexpectedly by signal 11") == (
        "Test terminated unexpectedly by signal 11"
    )
    assert (
        reason_of("# t.c:10:t:begin", "# t.c:12:t:wrong count", "# t: Test failed") == "t.c:12: wrong count"
    )


def test_what_went_well_is_no_reason() -> None:
    """An ok line or an information line explains a failure only when nothing else does."""
    assert reason_of("# mmap() failed: ENOMEM", "# cleaning up", "# ok 3 unmapped", "[ OK ] closed") == (
        "mmap() failed: ENOMEM"
    )
    assert reason_of("# ok 3 unmapped") == "failed without a message"


def test_kunit_expectations() -> None:
    """A failed KUNIT_EXPECT is told with its place, the expression and the values."""
    lines = [
        "    # map: EXPECTATION FAILED at drivers/iommu/kunit_iommu_pt.h:412",
        "    Expected ret == 0, but",
        "        ret == -22 (0xffffffffffffffea)",
        "    # map: pass:0 fail:1 skip:0 total:1",
    ]
    assert reason_of(*lines) == (
        "drivers/iommu/kunit_iommu_pt.h:412: Expected ret == 0, but ret == -22 (0xffffffffffffffea)"
    )


def test_passes_need_no_reason_and_skips_give_theirs() -> None:
    """A pass has nothing to explain; a skip gives its own reason."""
    assert whys("vfio_pci_device_test-edu")[:3] == ["", "", "Device does not support reset"]


def test_timeouts() -> None:
    """A timeout says so, how long, and in what, as far as known."""
    assert whys("vfio_dma_mapping_test-timeout")[1] == "timed out"
    assert whys("agent-timeout") == ["no answer within 30 s"]
    assert whys("runner-vfio")[2] == (
        "timed out 45 seconds in vfio_dma_mapping_test.iommufd_anonymous.dma_map_unmap"
    )


def test_the_runner_s_own_words_explain_nothing() -> None:
    """A skip without a reason is explained by what the program printed, not by the runner's header."""
    assert whys("runner-vfio")[1] == "No driver found for device 0000:00:04.0"


def test_a_parent_is_explained_by_its_child() -> None:
    """A failed parent names the first bad child and that child's reason."""
    assert whys("runner-vfio")[0].startswith(
        "cdev.cdev_binds_unbinds: vfio_iommufd_setup_test.c:61: Expected"
    )


def test_the_agent_s_own_reason_comes_first() -> None:
    """`why:` beats anything else the case printed."""
    assert whys("agent-fail") == ["errno is 22 (EINVAL), want 2 (ENOENT): GET_PA of an unmapped IOVA"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vfio_iommufd_setup_test-noiommu", "lib/vfio_pci_device.c:406: Failed to find vfio cdev file."),
        ("vfio_pci_driver_test-no-driver", "No driver found for device 0000:00:04.0"),
        ("vfio_selftest-no-device", "Unable to determine which device(s) to use, skipping test."),
        ("vfio_pci_sriov_uapi_test-skip", "SR-IOV may not be supported by the device"),
        ("empty", "nothing in the output is KTAP"),
        ("no-tests", "no tests ran"),
    ],
)
def test_programs_without_cases(name: str, told: str) -> None:
    """A program that brought no cases is explained by its own words, or by what its document lacks."""
    assert why_program(parse((GOLDEN / f"{name}.log").read_text().splitlines())) == told


def test_nothing_said_is_said() -> None:
    """A failure without a word does not get an empty reason."""
    assert why(KtapCase(name="x", ok=False, began=True)) == "failed without a message"
    assert why(KtapCase(name="x")) == "no result: the program did not reach it"
    assert why(KtapCase(name="x", began=True)) == "was running when the output stopped"
    assert explain(()) == ""


def test_one_line_however_long() -> None:
    """The reason is one line of bounded length."""
    told = why(KtapCase(name="x", ok=False, began=True, diagnostics=("why: a\tb  c " + "x" * 9000,)))
    assert told.startswith("a b c ")
    assert len(told) == 300
