# SPDX-License-Identifier: GPL-2.0-only
"""What stands in the answers of a dump."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from report_sample import RUN

from harness.base.errors import HostError
from harness.base.places import CodeAddress, Line, Place
from harness.kernel.debugfile import DebugInformation
from harness.machine.dump import FILE
from harness.results import Dump
from harness.session import dumps

PLANNED = cast(Any, SimpleNamespace(key="k", arch=SimpleNamespace(coarse_dumps="")))
COARSE = SimpleNamespace(arch=SimpleNamespace(name="other", coarse_dumps="LARGE"), config={"LARGE": "n"})


def test_dump_that_drgn_would_misread_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dumps, "refuse_without_drgn", lambda: None)
    run = dataclasses.replace(RUN, directory=str(tmp_path))
    read = dumps.read_dump(run, Dump(file=FILE), cast(Any, COARSE), dumps.interrogation_limit())
    assert (read.answers, read.reason) == ("", "QEMU dumps other guests in pages larger than the kernel's")


def test_debug_information_is_not_made_in_vain_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first dump took its time; the others of this kernel have its reason at once."""
    asked = []

    def fail(*_words: object) -> DebugInformation:
        asked.append(1)
        raise HostError("the objects are gone")

    monkeypatch.setattr(dumps, "refuse_without_drgn", lambda: None)
    monkeypatch.setattr(dumps, "provide_debug_information", fail)
    run, troubles = dataclasses.replace(RUN, directory=str(tmp_path)), dict[str, str]()
    limit = dumps.interrogation_limit()
    read = [dumps.read_dump(run, Dump(file=FILE), PLANNED, limit, troubles).reason for _ in range(2)]
    assert (read, len(asked)) == (["the objects are gone"] * 2, 1)


def test_code_without_debug_information_has_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """drgn prints the address there, which is decoded like those of splats."""
    said = "== tasks\n    #0  __schedule+0x3a4/0xf10\n    #1  vfio_df_open drivers/vfio/vfio_main.c:9\n"
    line = Line(function="__schedule", file="kernel/sched/core.c", line=6800)

    def find(_plan: object, wanted: tuple[CodeAddress, ...], _deadline: object) -> dict[str, Place]:
        return {one.text: Place(lines=(line,)) for one in wanted}

    monkeypatch.setattr(dumps, "refuse_without_drgn", lambda: None)
    monkeypatch.setattr(dumps, "provide_debug_information", lambda *_: DebugInformation(program=tmp_path))
    monkeypatch.setattr(dumps, "interrogate", lambda *_: said)
    monkeypatch.setattr(dumps, "find_places", find)
    run = dataclasses.replace(RUN, directory=str(tmp_path))
    read = dumps.read_dump(run, Dump(file=FILE), PLANNED, dumps.interrogation_limit())
    assert read.answers == said.replace("0xf10", "0xf10 kernel/sched/core.c:6800")
