# SPDX-License-Identifier: GPL-2.0-only
"""A finished kernel is tested like one that the harness built, with the selftests of another tree."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TREE
from test_selftests import grown, outcomes

from harness.base import process
from harness.base.deadline import Deadline
from harness.kernel.provide import Kernel
from harness.kernel.trees import KernelTree
from harness.plan import load_plan
from harness.results import Outcome, Run
from harness.results.store import load

CASES = ("--topology", "edu", "--case", "probes/nodes/*", "-n", "0")


def probed(run: Run) -> dict[str, Outcome]:
    """The outcomes of the probes, without what a busy host adds about the boot."""
    return {str(case.address): case.outcome for case in run.cases if case.address.suite == "probes"}


def ran(*words: str) -> tuple[Run, str]:
    """Run `vfio-harness WORDS`, which must end well; return the Run and what was said."""
    done = process.run([sys.executable, "-m", "harness", *words], deadline=Deadline.after(3600))
    assert done.status == 0, done.stderr
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    assert where is not None
    return load(Path(where[1])), done.stderr


def test_outcomes_are_those_of_our_own_build(group_cdev: Kernel, tmp_path: Path) -> None:
    """A vmlinux alone gives the same outcomes, and its rerun line the same kernel when the file changed."""
    own, _ = ran("run", "--tree", TREE, *CASES)
    vmlinux = tmp_path / "vmlinux"
    shutil.copy(group_cdev.vmlinux, vmlinux)
    found, said = ran("run", "--kernel", str(vmlinux), *CASES)
    assert "kselftest:vfio: a finished kernel comes without the source of its selftests" in said
    assert probed(found) == probed(own)
    compared = process.run([sys.executable, "-m", "harness", "compare", own.directory, found.directory])
    assert compared.status == 0
    assert "no job in common" not in compared.stdout
    (line,) = load_plan(Path(found.directory) / "plan.json").reruns.values()
    vmlinux.write_bytes(b"")
    again, _ = ran(*shlex.split(line)[1:], "--case", "probes/nodes/*", "-n", "0")
    assert again.info.inputs.kernels == found.info.inputs.kernels
    assert probed(again) == probed(own)


@pytest.mark.usefixtures("group_cdev")
def test_selftests_of_another_tree(tree: KernelTree, group_cdev: Kernel, tmp_path: Path) -> None:
    """Its own tests run on the finished kernel, and what its libvfio can do decides what is expected."""
    tests = grown(tree.path, tmp_path / "linux", learnt=True)
    words = ("--kernel", str(group_cdev.vmlinux), "--selftests", str(tests), "--topology", "edu", "-n", "0")
    cases = [f"kselftest:vfio/{name}@edu0/*" for name in ("my_test", "vfio_iommufd_noiommu_test")]
    run, _ = ran("run", *words, *(word for case in cases for word in ("--case", case)))
    found = outcomes(run)
    assert found["my_test@edu0/bound"] is Outcome.PASS
    assert found["vfio_iommufd_noiommu_test@edu0/noiommu.info"] is Outcome.PASS
    assert set(found.values()) == {Outcome.PASS}
