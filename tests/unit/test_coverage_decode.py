# SPDX-License-Identifier: GPL-2.0-only
"""Counters of a program that is compiled as the kernel is, decoded by gcov and shown by gcovr."""

from __future__ import annotations

import json
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HostError
from harness.results.coverage.decode import Decoder, read_counters
from harness.results.coverage.model import Coverage
from harness.results.coverage.reports import write_reports

NAME = "drivers/vfio/group.c"
TEXT = """\
extern int puts(const char *text);
static inline void small(const char *text)
{
	puts(text);
}

int main(int count, char **words)
{
	if (count > 1)
		small("words");
	puts("done");
	return 0;
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An O= directory in a source, with notes, sources and a program."""
    source = tmp_path_factory.mktemp("source")
    (source / NAME).parent.mkdir(parents=True)
    (source / NAME).write_text(TEXT)
    build = source / "vfio-harness-0"
    (build / NAME).parent.mkdir(parents=True)
    words = ["gcc", "-O2", "--coverage", "-c", f"../{NAME}", "-o", "drivers/vfio/group.o"]
    subprocess.run(words, cwd=build, check=True)
    subprocess.run(["gcc", "--coverage", "drivers/vfio/group.o", "-o", "program"], cwd=build, check=True)
    (build / NAME).write_text(TEXT)
    return build


def counters(build: Path, target: Path, *words: str) -> Path:
    """What a guest would send after the program ran with *words*."""
    counted = build / "drivers/vfio/group.gcda"
    counted.unlink(missing_ok=True)
    subprocess.run(["./program", *words], cwd=build, check=True, stdout=subprocess.DEVNULL)
    content = counted.read_bytes()
    head = json.dumps([["/elsewhere/drivers/vfio/group.gcda", len(content)], ["/lib/other.gcda", 3]])
    target.write_bytes(zlib.compress(head.encode() + b"\n" + content + b"abc"))
    return target


def decode(build: Path, *sent: Path) -> tuple[list[Any], Coverage]:
    reached, files = Decoder(gcov="gcov", notes=build).decode(sent, processes=1)
    return reached, Coverage(tree="t", line="7.3", sources={NAME: TEXT}, files=files, cases=())


def test_lines_of_each_case_and_their_sum(build: Path, tmp_path: Path) -> None:
    one = counters(build, tmp_path / "one")
    two = counters(build, tmp_path / "two", "word")
    reached, coverage = decode(build, one, two)
    assert [sorted(lines[NAME]) for lines in reached] == [[7, 9, 11], [4, 5, 7, 9, 11]]
    assert coverage.files[NAME].lines[9] == 2
    assert coverage.files[NAME].branches[9] == [1, 1]


def test_an_object_that_no_case_used_still_has_lines(build: Path) -> None:
    _, coverage = decode(build)
    lines = coverage.files[NAME].lines
    assert set(lines) >= {4, 9, 11}
    assert not any(lines.values())


def test_damaged_counters_cost_only_their_case(build: Path, tmp_path: Path) -> None:
    """As a full disk leaves them."""
    whole, cut = counters(build, tmp_path / "whole"), tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:40])
    reached, coverage = decode(build, cut, whole)
    assert reached[0] is None
    assert sorted(reached[1][NAME]) == [7, 9, 11]
    assert coverage.files[NAME].lines[9] == 1


def test_html_and_lcov(build: Path, tmp_path: Path) -> None:
    _, coverage = decode(build, counters(build, tmp_path / "one"))
    write_reports(coverage, html=tmp_path / "html", lcov=tmp_path / "lcov.info")
    pages = "".join(path.read_text() for path in (tmp_path / "html").glob("*.html"))
    assert "group.c" in pages
    assert not [
        name for name in re.findall(r'(?:src|link rel="stylesheet" href)="([^"]*)"', pages) if "/" in name
    ]
    tracefile = (tmp_path / "lcov.info").read_text()
    assert f"SF:{NAME}" in tracefile
    assert "DA:9,1" in tracefile
    assert "DA:4,0" in tracefile


@pytest.mark.parametrize("head", ["5", "[[1, 2]]", '[["a", "b"]]', "{"])
def test_damaged_counters_are_refused(head: str) -> None:
    for data in (head.encode(), zlib.compress(f"{head}\n".encode())):
        with pytest.raises(HostError, match="damaged"):
            list(read_counters(data, ()))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo rubbish", "printed what cannot be read"),
        ("echo '{}'", "printed what cannot be read"),
        ('echo \'{"data_file": "0/a", "files": [5]}\'', "printed what cannot be read"),
        # As the OOM killer takes the process that waits for gcov.
        ("kill -9 $PPID", "was killed"),
    ],
)
def test_what_gcov_does_wrong_is_an_error_of_the_host(
    build: Path, tmp_path: Path, script: str, said: str
) -> None:
    sent = counters(build, tmp_path / "one")
    gcov = tmp_path / "gcov"
    gcov.write_text(f"#!/bin/sh\n{script}\n")
    gcov.chmod(0o755)
    with pytest.raises(HostError, match=said):
        Decoder(gcov=str(gcov), notes=build).decode([sent], processes=1)
