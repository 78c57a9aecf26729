# SPDX-License-Identifier: GPL-2.0-only
"""Decode the coverage counters that guests sent (guest/gcov.py) with the gcov of the kernel's compiler."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from harness.base import process
from harness.base.errors import HostError
from harness.results.coverage.model import FileCoverage, add_counts

_AT_ONCE = 8
"""How many files of counters one gcov process decodes: it prints some megabytes for each."""


Reached = Mapping[str, frozenset[int]] | None
"""Source file -> the lines that a file of counters reached; None if it is damaged."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Decodes the counters of one kernel."""

    gcov: str
    notes: Path
    """The directory with gcov's notes and with the sources; see harness.kernel.store.Built."""

    def decode(
        self, counters: Sequence[Path], *, processes: int
    ) -> tuple[list[Reached], dict[str, FileCoverage]]:
        """Return what each file of *counters* reached, and the sum of all counters.

        Raises HostError when gcov is missing or fails, or memory is short.
        """
        parts = [counters[first : first + _AT_ONCE] for first in range(0, len(counters), _AT_ONCE)]
        total: dict[str, FileCoverage] = {}
        reached: list[Reached] = []
        try:
            with concurrent.futures.ProcessPoolExecutor(max_workers=processes) as pool:
                for lines, files in pool.map(self._decode_some, parts):
                    reached += lines
                    add_counts(total, files.items())
        except BrokenProcessPool as error:
            raise HostError(
                "a process that decoded coverage counters was killed", hint="is memory short?"
            ) from error
        add_counts(total, self._unrun())
        return reached, total

    def _decode_some(self, counters: Sequence[Path]) -> tuple[list[Reached], dict[str, FileCoverage]]:
        damaged: set[int] = set()
        with tempfile.TemporaryDirectory(prefix="vfio-harness-gcov-") as scratch:
            for number, path in enumerate(counters):
                try:
                    for name, content in read_counters(path.read_bytes(), self._names()):
                        self._put(Path(scratch, str(number)), name, content)
                except HostError:
                    damaged.add(number)
            total: dict[str, FileCoverage] = {}
            reached = [collections.defaultdict[str, set[int]](set) for _ in counters]
            for number, name, counted in self._ask(Path(scratch)):
                reached[number][name].update(line for line, count in counted.lines.items() if count)
                total.setdefault(name, FileCoverage()).add(counted)
        return [
            None if number in damaged else {name: frozenset(lines) for name, lines in one.items() if lines}
            for number, one in enumerate(reached)
        ], total

    def _unrun(self) -> list[tuple[str, FileCoverage]]:
        """Return the lines and branches of all objects, each with the count 0."""
        with tempfile.TemporaryDirectory(prefix="vfio-harness-gcov-") as scratch:
            for name in self._names():
                self._put(Path(scratch, "0"), name, None)
            return [(name, counted) for _, name, counted in self._ask(Path(scratch))]

    def _names(self) -> frozenset[str]:
        """Return the names of all objects, without suffix."""
        return frozenset(
            os.fspath(path.relative_to(self.notes).with_suffix("")) for path in self.notes.rglob("*.gcno")
        )

    def _put(self, directory: Path, name: str, content: bytes | None) -> None:
        place = directory / f"{name}.gcno"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(self.notes / f"{name}.gcno")
        if content is not None:
            place.with_suffix(".gcda").write_bytes(content)

    def _ask(self, scratch: Path) -> Iterator[tuple[int, str, FileCoverage]]:
        """Yield the number of the directory in *scratch*, the file and what is counted in it."""
        objects = sorted(os.fspath(path.relative_to(scratch)) for path in scratch.rglob("*.gcno"))
        if not objects:
            return
        done = process.run([self.gcov, "--json-format", "--stdout", "-t", "-b", *objects], cwd=scratch)
        done.check("cannot decode coverage counters")
        try:
            for line in done.stdout.splitlines():
                plain = json.loads(line)
                number = int(str(plain["data_file"]).partition("/")[0])
                for file in plain["files"]:
                    name = self._source(str(file["file"]))
                    if name:
                        yield number, name, _counted(file["lines"])
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(f"{self.gcov} printed what cannot be read: {error!r}") from error

    def _source(self, name: str) -> str:
        """Return gcov's *name* of a source relative to the tree; empty outside the profiled directories."""
        return _tail(os.path.normpath(name).replace("../", ""), lambda tail: (self.notes / tail).is_file())


def _tail(path: str, is_known: Callable[[str], bool]) -> str:
    """Return the longest tail of *path* that *is_known*; empty if none is."""
    words = path.strip("/").split("/")
    return next((tail for first in range(len(words)) if is_known(tail := "/".join(words[first:]))), "")


def _counted(lines: Iterable[Mapping[str, Any]]) -> FileCoverage:
    counted = FileCoverage()
    for line in lines:
        number, branches = int(line["line_number"]), [int(branch["count"]) for branch in line["branches"]]
        one = FileCoverage(
            collections.Counter({number: int(line["count"])}), {number: branches} if branches else {}
        )
        # A line has an entry for each function that it was inlined into.
        counted.add(one)
    return counted


def read_counters(data: bytes, known: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield object and counters from *data*, as guest.gcov sends them; only of objects in *known*.

    The kernel names an object by the directory in which it was compiled, which may have moved since.
    Raises HostError when *data* is damaged.
    """
    try:
        head, _, rest = zlib.decompress(data).partition(b"\n")
        for name, size in json.loads(head):
            content, rest = rest[:size], rest[size:]
            if found := _tail(name.removesuffix(".gcda"), known.__contains__):
                yield found, content
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise HostError(f"coverage counters are damaged: {error}") from error
