# SPDX-License-Identifier: GPL-2.0-only
"""Splats are decoded while the tests run, each kind once, and at the end; trouble is only said."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from report_sample import RUN

from harness.base.deadline import Deadline
from harness.base.errors import HostError
from harness.base.places import CodeAddress, Line, Place
from harness.results import Outcome, Result, Run
from harness.results.decoded import decoded_splat
from harness.results.store import RunStore, load
from harness.session import decoding
from harness.session.pipeline import PlannedRun

SPLAT = (
    "[    5.000001] BUG: kernel NULL pointer dereference, address: 18\n[    5.000002] RIP: 0010:{}+0x18/0x60"
)
PLACE = Place(lines=(Line(function="vfio_one", file="drivers/vfio/a.c", line=3),))


class _Planned:
    """What decoding needs of a PlannedRun: where it is, and one kernel."""

    def __init__(self, directory: Path) -> None:
        self.checked = self
        self.run_dir = directory
        job = RUN.jobs[0]
        self.jobs = {self: job}
        self.kernel = self
        self.plan = "plan"
        self.kernels = {self: self}


def _crash(function: str) -> Result:
    crash = next(result for result in RUN.results if result.splat)
    splat = SPLAT.format(function)
    return type(crash)(address=crash.address, job=RUN.jobs[0].name, outcome=Outcome.CRASH, splat=splat)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path / "run", RUN.info)
    store.add_job(RUN.jobs[0])
    return store


def _find(plan: object, wanted: list[CodeAddress], _deadline: object) -> dict[str, Place]:
    return {one.text: PLACE for one in wanted}


def test_each_kind_of_splat_is_told_once(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its source line, soon after it was recorded, whatever number of cases it hits."""
    monkeypatch.setattr(decoding, "find_places", _find)
    monkeypatch.setattr(decoding, "_POLL_SECONDS", 0.01)
    told = ""
    with decoding.telling_splats(cast(PlannedRun, _Planned(store.directory))):
        store.add(_crash("vfio_one"), _crash("vfio_one"))
        end = time.monotonic() + 10
        while "a.c:3" not in told and time.monotonic() < end:
            told += capsys.readouterr().err
            time.sleep(0.01)
    assert told.count("RIP: 0010:vfio_one+0x18/0x60 drivers/vfio/a.c:3") == 1
    run = load(store.directory)
    assert decoded_splat(run, run.results[0]).endswith("vfio_one+0x18/0x60 drivers/vfio/a.c:3")


def test_nothing_is_sought_twice_or_without_a_splat(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A green run asks nothing; what the Run knows is not asked again."""
    planned = cast(PlannedRun, _Planned(store.directory))
    monkeypatch.setattr(decoding, "find_places", _find)
    assert not decoding.locate_splats(planned, load(store.directory))
    store.add(_crash("vfio_one"))
    assert decoding.locate_splats(planned, load(store.directory))
    monkeypatch.setattr(decoding, "find_places", None)
    assert not decoding.locate_splats(planned, load(store.directory))


def test_what_had_no_lines_is_tried_again_at_the_end(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While tests ran, the next kernel may have been built from the same source."""

    def busy(_plan: object, wanted: list[CodeAddress], _deadline: object) -> dict[str, Place]:
        return {one.text: Place(reason="another process kept building") for one in wanted}

    planned, soon = cast(PlannedRun, _Planned(store.directory)), Deadline.after(60)
    store.add(_crash("vfio_one"))
    monkeypatch.setattr(decoding, "find_places", busy)
    assert decoding.locate_splats(planned, load(store.directory), soon)
    monkeypatch.setattr(decoding, "find_places", _find)
    assert not decoding.locate_splats(planned, load(store.directory), soon)
    assert decoding.locate_splats(planned, load(store.directory))


def test_the_end_of_the_tests_ends_decoding(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever interrupts a run does not wait for two minutes."""
    began = threading.Event()

    def slow(_plan: object, wanted: list[CodeAddress], deadline: Deadline) -> dict[str, Place]:
        began.set()
        while not deadline.expired:
            time.sleep(0.01)
        return {one.text: Place(reason="no time was left") for one in wanted}

    monkeypatch.setattr(decoding, "find_places", slow)
    monkeypatch.setattr(decoding, "_POLL_SECONDS", 0.01)
    with decoding.telling_splats(cast(PlannedRun, _Planned(store.directory))):
        store.add(_crash("vfio_one"))
        assert began.wait(30)
    assert load(store.directory).places


def test_trouble_is_said_and_changes_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_words: Any) -> dict[str, Place]:
        raise HostError("the disk is full")

    store.add(_crash("vfio_one"))
    before: Run = load(store.directory)
    monkeypatch.setattr(decoding, "find_places", fail)
    assert not decoding.locate_splats(cast(PlannedRun, _Planned(store.directory)), before)
    assert "the splats have no source lines: the disk is full" in capsys.readouterr().err
    assert load(store.directory) == before
