# SPDX-License-Identifier: GPL-2.0-only
"""Selftests that a tree has beside upstream's of 7.3: a developer's own, and a libvfio with no-IOMMU mode."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_faults import run_plan

from harness.base import process
from harness.kernel.arch import host_arch
from harness.kernel.make import Make
from harness.kernel.selftests import build_selftests, features, list_programs
from harness.kernel.store import selftests_entry
from harness.kernel.toolchain import GCC
from harness.kernel.trees import KernelTree
from harness.plan import Job
from harness.results import WHOLE_PROGRAM, Outcome, Run, Verdict, reach_verdict

OWN = Path(__file__).parent / "selftests"
LOOKUP = 'strncmp("vfio", entry->d_name, 4)'
"""How the libvfio of 7.3 recognises a device node."""


def grown(tree: Path, directory: Path, *, learnt: bool) -> Path:
    """A copy of *tree* with the programs of OWN, whose libvfio may have learnt no-IOMMU mode."""
    process.run(["cp", "--archive", "--symbolic-link", str(tree), str(directory)]).check(
        "cannot copy the tree"
    )
    place = directory / "tools/testing/selftests/vfio"
    shutil.rmtree(place)
    shutil.copytree(tree / "tools/testing/selftests/vfio", place)
    added = sorted(OWN.glob("*.c"))
    for source in added:
        shutil.copy(source, place)
    makefile = place / "Makefile"
    first = "TEST_GEN_PROGS += vfio_dma_mapping_test\n"
    lines = "".join(f"TEST_GEN_PROGS += {source.stem}\n" for source in added)
    makefile.write_text(makefile.read_text().replace(first, first + lines))
    device = place / "lib/vfio_pci_device.c"
    text = device.read_text()
    assert LOOKUP in text
    if learnt:
        device.write_text(text.replace(LOOKUP, f'{LOOKUP} && strncmp("noiommu-vfio", entry->d_name, 12)'))
    return directory


@contextlib.contextmanager
def built(source: Path, base: Path) -> Iterator[Path]:
    """A store entry with the selftests of *source*."""
    entry = selftests_entry(f"grown{os.getpid()}")
    entry.mkdir(parents=True)
    make = Make(tree=source, log=base / "log", arch=host_arch(), toolchain=GCC)
    try:
        build_selftests(make, base / "work", entry)
        yield entry
    finally:
        shutil.rmtree(entry)


def run_of(tree: KernelTree, job: Job, base: Path, *, learnt: bool, only: tuple[str, ...]) -> Run:
    """Run the programs *only* of a tree that has grown from *tree*."""
    with built(grown(tree.path, base / "linux", learnt=learnt), base) as entry:
        kernel = dataclasses.replace(
            job.kernel,
            selftests=entry.name,
            programs=tuple(f"{p.collection}/{p.name}" for p in list_programs(entry) if p.name in only),
            sources={},
            selftest_features=features(entry),
        )
        return run_plan(dataclasses.replace(job, kernel=kernel), base / "run")


def outcomes(run: Run) -> dict[str, Outcome]:
    return {str(case.address).removeprefix("kselftest:vfio/"): case.outcome for case in run.cases}


@pytest.mark.usefixtures("group_cdev")
def test_a_tree_that_learnt_noiommu_mode_passes(tree: KernelTree, edu_job: Job, tmp_path: Path) -> None:
    """Where libvfio finds no-IOMMU devices, upstream's tests and unnamed ones PASS: no XFAIL, no XPASS."""
    only = ("vfio_iommufd_setup_test", "vfio_pci_device_test", "vfio_iommufd_noiommu_test", "my_test")
    run = run_of(tree, edu_job, tmp_path, learnt=True, only=only)
    found = outcomes(run)
    assert found["my_test@edu0/bound"] is Outcome.PASS
    for point in ("info", "mapped", "unmapped"):
        assert found[f"vfio_iommufd_noiommu_test@edu0/noiommu.{point}"] is Outcome.PASS
    assert set(found.values()) <= {Outcome.PASS, Outcome.SKIP}
    assert reach_verdict(run).verdict is Verdict.GOOD


@pytest.mark.usefixtures("group_cdev")
def test_a_tree_that_did_not_is_expected_to_fail(tree: KernelTree, edu_job: Job, tmp_path: Path) -> None:
    """The reviewed programs are XFAIL with the reason; an unnamed one is judged by its own points."""
    run = run_of(tree, edu_job, tmp_path, learnt=False, only=("vfio_iommufd_setup_test", "my_test"))
    assert outcomes(run) == {
        "my_test@edu0/bound": Outcome.PASS,
        f"vfio_iommufd_setup_test@edu0/{WHOLE_PROGRAM}": Outcome.XFAIL,
    }
    assert reach_verdict(run).verdict is Verdict.GOOD
