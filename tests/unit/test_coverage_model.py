# SPDX-License-Identifier: GPL-2.0-only
"""Coverage as a value: tables, questions, its file."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import errno
import gzip
import json
import os
from pathlib import Path

import pytest

from harness.base.errors import InfraError, UsageError
from harness.results import Run, RunInfo
from harness.results.coverage import model
from harness.results.coverage.model import Coverage, FileCoverage, Reach, Row, parse_ranges, ranges
from harness.results.coverage.show import render_diff, render_missing, render_table
from harness.session.coverage import Found, export

NAME = "drivers/vfio/vfio_main.c"
TEXT = (
    "int f(void)\n{\n\treturn 1;\n}\n\nint vfio_noiommu(void)\n{\n\tif (a)\n\t\treturn 2;\n\treturn 3;\n}\n"
)


def counted(lines: dict[int, int], branches: dict[int, list[int]] | None = None) -> FileCoverage:
    return FileCoverage(collections.Counter(lines), branches or {})


COVERAGE = Coverage(
    tree="Linux 7.3.4",
    line="7.3",
    sources={NAME: TEXT, "drivers/vfio/pci/vfio_pci.c": "int x;\n"},
    files={NAME: counted({3: 5, 8: 2, 9: 0, 10: 2}, {8: [0, 2]})},
    cases=(
        Reach("job", "probes/a/one", {NAME: frozenset({3, 8, 10})}),
        Reach("job", "probes/a/two", {NAME: frozenset({3})}),
        Reach("other", "probes/a/two", {NAME: frozenset({8})}),
    ),
    lost=("job probes/a/three",),
)


def test_the_first_row_is_the_noiommu_code() -> None:
    assert [row for row in COVERAGE.rows()] == [
        Row("no-IOMMU code", 3, 2, 2, 1),
        Row(NAME, 4, 3, 2, 1),
    ]


def test_without_files_there_is_no_code() -> None:
    rows = dataclasses.replace(COVERAGE, files={}, cases=()).rows()
    assert list(rows) == [Row("no-IOMMU code", 0, 0, 0, 0)]


def test_adding_matches_branches_by_their_order() -> None:
    one = counted({1: 1}, {1: [1, 0]})
    one.add(counted({1: 2, 2: 0}, {1: [0, 0, 3]}))
    assert one == counted({1: 3, 2: 0}, {1: [1, 0, 3]})


def test_which_cases_reach_a_line_or_a_function() -> None:
    assert COVERAGE.find("vfio_main.c:3") == (NAME, frozenset({3}))
    assert COVERAGE.find("./vfio_main.c:3-5") == (NAME, frozenset({3, 4, 5}))
    assert COVERAGE.find(f"/home/me/linux/{NAME}:3") == (NAME, frozenset({3}))
    name, lines = COVERAGE.find("vfio/vfio_main.c:vfio_noiommu")
    assert COVERAGE.reached(name, lines) == {"probes/a/one": {8, 10}, "probes/a/two": {8}}
    assert COVERAGE.functions_of(COVERAGE.cases[0]) == {f"{NAME}:f", f"{NAME}:vfio_noiommu"}


@pytest.mark.parametrize(
    ("place", "said", "hint"),
    [
        ("vfio_main.c", "names no line", "FILE:LINE"),
        ("vfio_man.c:3", "no profiled file ends with 'vfio_man.c'", "'vfio_main.c'"),
        ("other.c:3", "no profiled file ends with 'other.c'", "vfio-harness coverage shows the files"),
        ("vfio_main.c:99", "has 11 lines", ""),
        ("vfio_main.c:0", "has 11 lines", ""),
        (f"vfio_main.c:{'9' * 5000}", "has no function '9", ""),
        ("vfio_main.c:9-12", "has 11 lines", ""),
        ("vfio_main.c:5-3", "has 11 lines", ""),
        ("vfio_main.c:\N{SUPERSCRIPT TWO}", "has no function '\N{SUPERSCRIPT TWO}'", ""),
        ("vfio_main.c:vfio_noiomu", "has no function 'vfio_noiomu'", "'vfio_noiommu'"),
    ],
)
def test_a_place_that_does_not_exist_names_the_nearest(place: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        COVERAGE.find(place)
    assert hint in (caught.value.hint or "")


def test_the_text_forms() -> None:
    table = render_table(COVERAGE)
    assert "no-IOMMU code" in table
    assert "66.6 %" in table
    assert render_missing(COVERAGE, noiommu=True).splitlines() == [
        f"{NAME}:9  vfio_noiommu()",
        f"{NAME}:8  vfio_noiommu(): 1 of 2 branches never taken",
    ]
    assert render_diff(COVERAGE, {NAME: {3, 5, 9}}, ["kernel/fork.c"]).splitlines() == [
        "1 of 2 changed lines with code ran; never: vfio_main.c:9",
        f"  {NAME}:3  2 cases: probes/a/one, probes/a/two",
        f"  {NAME}:9  no case",
        "  kernel/fork.c: changed, but has no coverage counters",
    ]


def test_its_file_keeps_everything(tmp_path: Path) -> None:
    COVERAGE.save(tmp_path)
    assert model.load(tmp_path) == (COVERAGE,)
    assert model.load(tmp_path / "other") == ()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    COVERAGE.save(tmp_path)
    path = next((tmp_path / model.DIRECTORY).iterdir())
    whole = path.read_bytes()
    plain = json.loads(gzip.decompress(whole))
    wrong: tuple[dict[str, object], ...] = (
        {"cases": [["j", "c", []]]},
        {"cases": [["j", "c", {"a": 5}]]},
        {"files": []},
        {"format": 0},
    )
    damaged = [
        *(whole[:size] for size in range(0, len(whole), 50)),
        *(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(10, len(whole))),
        *(gzip.compress(json.dumps(one).encode()) for one in ([], 5, {}, *({**plain, **w} for w in wrong))),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InfraError, match=path.name):
            model.load(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    COVERAGE.save(tmp_path)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        dataclasses.replace(COVERAGE, cases=()).save(tmp_path)
    assert model.load(tmp_path) == (COVERAGE,)


def test_reports_need_one_tree_and_a_directory(tmp_path: Path) -> None:
    """The reports of two trees do not overwrite each other, and no directory is made by mistake."""
    info = RunInfo(id="r", started=datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC), harness_version="1")
    run = Run(info=info, results=(), directory=str(tmp_path))
    with pytest.raises(UsageError, match="run r tested several source trees"):
        export(Found(run, (COVERAGE, COVERAGE)), html=tmp_path / "html", lcov=None)
    with pytest.raises(UsageError, match="--lcov: there is no directory"):
        export(Found(run, (COVERAGE,)), html=None, lcov=tmp_path / "none" / "cov.info")
    assert not list(tmp_path.iterdir())


def test_ranges() -> None:
    assert ranges([7, 1, 2, 3, 9]) == "1-3,7,9"
    assert set(parse_ranges("1-3,7,9")) == {1, 2, 3, 7, 9}
    assert list(parse_ranges("")) == []
