# SPDX-License-Identifier: GPL-2.0-only
"""Workers that die under real pytest-xdist: the run ends, and all items were run."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from harness.base import process
from harness.base.deadline import Deadline

CONFTEST = """
from harness.plugin.scheduling import JobScheduling

def pytest_xdist_make_scheduler(config, log):
    return JobScheduling(config, log)
"""

SECONDS = 300.0
"""Only a run that hangs takes as long, on a host with twenty busy processes per CPU too."""


def run(directory: Path, text: str, workers: int) -> str:
    """Return the output of pytest for the tests in *text*, run by *workers*; it must end."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(textwrap.dedent(text))
    argv = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "loadgroup"]
    argv += ["-p", "no:cacheprovider", "--no-loadscope-reorder", f"--rootdir={directory}", str(directory)]
    done = process.run(argv, cwd=directory, deadline=Deadline.after(SECONDS))
    return done.stdout


DIES_ONCE = """
    import os, pathlib, pytest

    @pytest.mark.parametrize("number", range({before}))
    def test_before(number): pass

    @pytest.mark.xdist_group("fatal")
    def test_fatal():
        mark = pathlib.Path(__file__).with_name("died")
        if not mark.exists():
            mark.touch()
            os._exit(1)

    {group}
    @pytest.mark.parametrize("number", range({after}))
    def test_after(number): pass
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (3, 5)])
@pytest.mark.parametrize("group", ["", '@pytest.mark.xdist_group("fatal")'])
def test_a_dead_worker_ends_no_run(tmp_path: Path, workers: int, before: int, after: int, group: str) -> None:
    """Its item and the items that it had not begun run again; those that it had finished do not."""
    printed = run(tmp_path, DIES_ONCE.format(before=before, after=after, group=group), workers)
    passed = before + after + 1
    assert f"1 failed, {passed} passed" in printed, printed


def test_an_item_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    """Two workers die of it, not all that xdist would start; all other items run."""
    text = """
        import os, pytest

        def test_fatal(): os._exit(1)

        @pytest.mark.parametrize("number", range(5))
        def test_other(number): pass
    """
    printed = run(tmp_path, text, 1)
    assert "2 failed, 5 passed" in printed, printed
