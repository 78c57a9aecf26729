# SPDX-License-Identifier: GPL-2.0-only
"""`run --watch` on a clone of a real history finds a saved fault and its line; an edit costs what it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_history import BASE, MAIN, make_history

from harness.base import process
from harness.base.errors import ExitCode
from harness.kernel.provide import Kernel
from harness.kernel.trees import KernelTree
from harness.results import Outcome, RunState, Verdict
from harness.results.decoded import decoded_splat
from harness.results.store import list_runs, load

CASE = "probes/nodes/cdev_is_named_noiommu"

SPOT = "\t\tdevice->noiommu = true;\n"
"""In a function that is inlined into __vfio_register_dev()."""


@pytest.fixture(scope="module")
def clone(tree: KernelTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of 7.3.4 at a path where nothing was built."""
    path = tmp_path_factory.mktemp("watched") / "linux"
    history = make_history(tree.path).path
    process.run(["git", "clone", "--quiet", "--shared", "--no-checkout", history, path]).check("git clone")
    process.run(["git", "-C", path, "checkout", "--quiet", BASE]).check("git checkout")
    return path


def test_saved_fault_is_found(group_cdev: Kernel, clone: Path) -> None:
    """In a clone, where the runs are too, the first run is good; a save that makes the kernel warn makes the
    second one bad, and its reports name the line."""
    words = ("-m", "harness", "run", "--watch", "--topology", "edu", "--case", CASE)
    with subprocess.Popen(
        # If a shell started the tests in the background, all their child processes ignore SIGINT.
        ("env", "--default-signal=INT", sys.executable, *words),
        cwd=clone,
        env={name: value for name, value in os.environ.items() if name != "VFIO_HARNESS_RUNS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        told = _until(child.stderr, "waiting for the next save")
        before, spot, after = (clone / MAIN).read_text(encoding="utf-8").partition(SPOT)
        saved = f"{before}{spot.replace('true', 'WARN_ON(true)')}{after}"
        (clone / MAIN).write_text(saved, encoding="utf-8")
        told += _until(child.stderr, "waiting for the next save")
        os.killpg(child.pid, signal.SIGINT)
        told += child.stderr.readlines()
        assert child.wait(timeout=60) == ExitCode.INTERRUPTED, "".join(told)
    assert f"saved: {MAIN}\n" in told
    assert len(list_runs(clone / "runs")) == 2, "".join(told)
    second, first = (load(summary.directory) for summary in list_runs(clone / "runs"))
    assert (first.state, first.verdict) == (RunState.FINISHED, Verdict.GOOD)
    assert (second.state, second.verdict) == (RunState.FINISHED, Verdict.BAD)
    # A VM that QEMU lost while it booted, and the next one that came up, are a case of the run too.
    (case,) = (case for case in second.cases if str(case.address) == CASE)
    assert case.outcome is Outcome.CRASH, "".join(told)
    place = f"{MAIN}:{before.count(chr(10)) + 1}"
    shown = decoded_splat(second, case)
    assert f"RIP: 0010:vfio_device_set_noiommu_and_name {place} [inline]" in shown
    page = Path(second.directory, "report.html").read_text(encoding="utf-8")
    assert f"{place} in vfio_device_set_noiommu_and_name():" in page
    assert "Traceback" not in "".join(told)


def _until(lines: Iterator[str], words: str) -> list[str]:
    """Return *lines* up to one with *words*; fail if there is none."""
    told = []
    for line in lines:
        told.append(line)
        if words in line:
            return told
    pytest.fail(f"it never said {words!r}:\n{''.join(told)}")
