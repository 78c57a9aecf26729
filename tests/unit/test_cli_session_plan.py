# SPDX-License-Identifier: GPL-2.0-only
"""harness.cli.session and what it keeps for a run that goes on: no VM, no kernel."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli.session import Session
from harness.cli.wishes import Conduct, JobWish, KernelWish, MachineWish, load_wishes, save_wishes
from harness.errors import UsageError
from harness.results import JobRecord, Run, RunInfo, State


def wish(tree: str | None) -> JobWish:
    return JobWish(kernel=KernelWish(tree=tree, variant="cdev"), machine=MachineWish(topology="edu"))


def linux(directory: Path) -> Path:
    """Just enough of a tree to be taken for one."""
    for name in ("drivers", "scripts"):
        (directory / name).mkdir(parents=True)
    for name in ("Kbuild", "Kconfig", "MAINTAINERS"):
        (directory / name).write_text("", encoding="utf-8")
    return directory


@pytest.mark.parametrize("spec", [None, ".", "../one"])
def test_a_run_goes_on_with_its_tree_from_anywhere(
    spec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was meant by no --tree, or by a relative one, does not change with the working directory."""
    first = linux(tmp_path / "one")
    monkeypatch.chdir(first)
    save_wishes(tmp_path, [wish(spec)], Conduct())
    monkeypatch.chdir(linux(tmp_path / "two"))
    (loaded,), _ = load_wishes(tmp_path)
    assert loaded.kernel.tree is not None
    assert Path(loaded.kernel.tree).resolve() == first


@pytest.mark.parametrize(
    ("line", "tree", "refused"),
    [("/src/one", "7.3 abc", False), ("/src/one", "7.3 def", True), ("/src/two", "7.3 abc", True)],
)
def test_a_run_goes_on_with_the_sources_it_began_with(line: str, tree: str, refused: bool) -> None:
    """Another state of a tree would make one run of two kernels, and so would another tree."""
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    before = Run(
        info=info,
        directory="runs/r",
        state=State.INTERRUPTED,
        jobs=(JobRecord(name="j", line="/src/one", tree="7.3 abc"),),
    )
    session = Session([wish(line)], Conduct(), goes_on=before)
    record = JobRecord(name="j", line=line, tree=tree)
    session._planned = {wish(line).kernel: SimpleNamespace(record=lambda *_: record)}  # type: ignore[dict-item]
    if refused:
        with pytest.raises(UsageError, match="has changed since run r began"):
            session._check_same_trees(before)
    else:
        session._check_same_trees(before)
