# SPDX-License-Identifier: GPL-2.0-only
"""The coverage map in the history: which functions each case reaches, for each kernel version.

Runs with coverage write it.  For each case and cell the newest such run counts; the map outlives the runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base.errors import HarnessError
from harness.results import codec, database
from harness.results.compare import covers
from harness.results.coverage import model
from harness.results.model import Inputs, JobRecord, Run

COUNTERS = "gcov"
"""The add-on that builds coverage counters."""

TABLE = """
    CREATE TABLE IF NOT EXISTS reach (
        line TEXT NOT NULL,
        cell TEXT NOT NULL,
        "case" TEXT NOT NULL,
        functions TEXT NOT NULL,
        started TEXT NOT NULL,
        PRIMARY KEY (line, cell, "case")
    ) WITHOUT ROWID
    """


class ReachMap:
    """The coverage map, and the last good Run, of an open history."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def learn(self, run: Run) -> None:
        """Add what *run* found, in one transaction."""
        with database.immediate(self._connection):
            self.add(run)

    def add(self, run: Run) -> None:
        """Add what *run* found, if it has coverage that can be read."""
        with contextlib.suppress(HarnessError):
            for coverage in model.load(Path(run.directory)):
                self._connection.executemany(
                    'INSERT INTO reach (line, cell, "case", functions, started) VALUES (?, ?, ?, ?, ?)'
                    ' ON CONFLICT (line, cell, "case") DO UPDATE'
                    " SET functions = excluded.functions, started = excluded.started"
                    " WHERE excluded.started >= started",
                    _rows(run, coverage),
                )

    def lines(self) -> tuple[str, ...]:
        """Return the kernel versions that have a map."""
        rows = self._connection.execute("SELECT DISTINCT line FROM reach ORDER BY line")
        return tuple(line for (line,) in rows)

    def read(self, line: str) -> Mapping[str, frozenset[str]]:
        """Return case -> the functions that it reaches in some cell of *line*, as `FILE:FUNCTION`."""
        found: dict[str, frozenset[str]] = {}
        rows = self._connection.execute('SELECT "case", functions FROM reach WHERE line = ?', (line,))
        for case, functions in rows:
            found[case] = found.get(case, frozenset()) | frozenset(functions.split("\n"))
        return found

    def last_good(self, job: JobRecord, inputs: Inputs) -> tuple[str, JobRecord] | None:
        """Return the last Run with a good Job that ran all that *job* with *inputs* runs, and that Job.

        Its source must have a commit; None without such a Run.  Whether its kernel had
        counters makes no difference.
        """
        rows = self._connection.execute(
            "SELECT run.name, run.info, job.record FROM job JOIN run ON run.id = job.run"
            " WHERE job.good = 1 AND json_extract(job.record, '$.line') = ? ORDER BY run.started DESC",
            (job.line,),
        )
        with database.decoding():
            for name, info, record in rows:
                found = codec.job_from_plain(json.loads(record))
                if _uncounted(found).series != _uncounted(job).series:
                    continue
                earlier = codec.info_from_plain(json.loads(info)).inputs.of(found)
                if found.commit and covers(earlier, inputs):
                    return str(name), found
        return None


def _uncounted(job: JobRecord) -> JobRecord:
    return dataclasses.replace(job, addons=tuple(name for name in job.addons if name != COUNTERS))


def _rows(run: Run, coverage: model.Coverage) -> Iterator[tuple[str, ...]]:
    cells = {job.name: job.cell for job in run.jobs}
    # What failed may have ended early: it reaches more when it passes.
    # The counters of a selftest are those of its program.
    bad = [result for result in run.cases if result.is_bad]
    ended_early = {(one.job, name) for one in bad for name in (str(one.address), one.address.program_path)}
    found: dict[tuple[str, str], set[str]] = {}
    for one in coverage.cases:
        if (one.job, one.case) in ended_early:
            continue
        key = cells.get(one.job, one.job), one.case
        found.setdefault(key, set()).update(coverage.functions_of(one))
    for (cell, case), functions in found.items():
        row = (coverage.line, cell, case, "\n".join(sorted(functions)), codec.time_to_text(run.info.started))
        yield tuple(map(database.text, row))
