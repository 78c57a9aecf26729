# SPDX-License-Identifier: GPL-2.0-only
"""The history of all Runs below one directory: history.sqlite beside them, to compare each with earlier ones.

A run directory is the record of its Run.  The history is made from run directories, can be rebuilt from those
that are there, and keeps the data of removed ones.  Each ended Run is added in one transaction.  Several
processes may update the history at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import ExitCode, HarnessError
from harness.base.outcome import Outcome
from harness.results import codec, database, store
from harness.results.compare import (
    Comparison,
    Exists,
    LostJob,
    cases_by_job,
    compare_job,
    covers,
    find_slower,
    in_scope,
    is_complete,
    join,
    left_out,
)
from harness.results.fingerprint import fingerprint
from harness.results.merge import MERGED, in_turn, parts_of
from harness.results.model import FLAKY, Address, Inputs, JobRecord, Result, Run, RunState, Verdict
from harness.results.owner import is_alive
from harness.results.past import Background, Past, PastRun
from harness.results.reach import ReachMap
from harness.results.verdict import reach_verdict

WINDOW = 30
"""The number of earlier Runs of a series that decide how long a case takes and whether it is flaky."""


class History:
    """An open history; see consult()."""

    def __init__(self, root: Path, connection: sqlite3.Connection, exists: Exists) -> None:
        self._root = root
        self._connection = connection
        self._exists = exists
        self.map = ReachMap(connection)

    def catch_up(self) -> None:
        """Add every ended Run below the root that is not in the history, or was resumed since."""
        known = dict(self._connection.execute("SELECT directory, stamp FROM run"))
        paths = self._root.glob(f"*/{store.FILE_NAME}")
        behind = [store.summarize(p.parent) for p in paths if known.get(p.parent.name) != _stamp(p)]
        # Each Run is compared with those before it; only one is in memory at a time.
        for directory in in_turn(behind, _merged(self._connection)):
            try:
                run = store.load(directory)
            except HarnessError:
                continue
            if run.state is not RunState.RUNNING or not is_alive(directory):
                # Reading may have migrated the file, so its stamp is read now.
                self._add(run, _stamp(directory / store.FILE_NAME))

    def _add(self, run: Run, stamp: str) -> None:
        directory = Path(run.directory).name
        with database.immediate(self._connection):
            row = self._connection.execute(
                "SELECT stamp FROM run WHERE directory = ?", (directory,)
            ).fetchone()
            if row == (stamp,):
                # Another process has added it meanwhile.
                return
            self._connection.execute("DELETE FROM run WHERE directory = ?", (directory,))
            for part in parts_of(run.info):
                self._connection.execute("DELETE FROM run WHERE name = ?", (part,))
            cases = {**{job.name: [] for job in run.jobs}, **cases_by_job(run)}
            comparisons = {job.name: self._compare_job(run, job, cases[job.name]) for job in run.jobs}
            whole = self._with_left_out(run, join(comparisons.values()))
            reached = reach_verdict(run, whole if run.info.inputs.compare else None)
            number = _insert(
                self._connection,
                "run",
                directory=directory,
                stamp=stamp,
                name=run.info.id,
                started=codec.time_to_text(run.info.started),
                seconds=run.seconds,
                accel=run.info.inputs.accel,
                state=run.state.value,
                verdict=reached.verdict.value,
                exit_code=int(reached.exit_code),
                why=reached.why,
                accepted=run.accepted,
                info=json.dumps(codec.info_to_plain(run.info)),
                matrix=run.info.inputs.matrix,
            )
            records = {job.name: job for job in run.jobs}
            for name, found in cases.items():
                job = records.get(name, JobRecord(name=name))
                lost = comparisons[name].lost if name in comparisons else ()
                good = _is_good(run, job, found) and (not lost or bool(run.accepted))
                _add_job(self._connection, number, job, found, good)
            self.map.add(run)

    def runs(self) -> tuple[PastRun, ...]:
        """Every Run, newest first."""
        counts: dict[int, dict[str, int]] = {}
        rows = self._connection.execute(
            "SELECT job.run, outcome, flaky, count(*) FROM outcome JOIN job ON job.id = outcome.job"
            " GROUP BY job.run, outcome, flaky"
        )
        with database.decoding():
            for run, outcome, flaky, number in rows:
                label = _label(outcome, flaky)
                counts.setdefault(run, {})[label] = counts.get(run, {}).get(label, 0) + number
            jobs = dict(self._connection.execute("SELECT run, count(*) FROM job GROUP BY run"))
            found = self._connection.execute(
                "SELECT id, directory, name, started, accel, state, verdict, exit_code, why, accepted,"
                " coalesce(json_extract(info, '$.inputs.tree'), '') FROM run ORDER BY started DESC, id DESC"
            )
            return tuple(
                PastRun(
                    directory=self._root / directory,
                    name=name,
                    started=codec.time_from_text(started),
                    accel=accel,
                    state=RunState(state),
                    verdict=Verdict(verdict),
                    exit_code=ExitCode(code),
                    why=why,
                    accepted=accepted,
                    tree=tree,
                    jobs=jobs.get(number, 0),
                    counts=counts.get(number, {}),
                )
                for (
                    *(number, directory, name, started, accel, state, verdict, code, why, accepted, tree),
                ) in found
            )

    def addresses(self) -> tuple[str, ...]:
        """Every case that ever had an outcome, sorted."""
        rows = self._connection.execute('SELECT address FROM "case" ORDER BY address')
        return tuple(address for (address,) in rows)

    def of_case(self, address: str) -> tuple[Past, ...]:
        """The results of the case at *address*, oldest first."""
        return _past(self._connection, '"case".address = ?', (address,))

    def last_run(self, series: str) -> tuple[str, tuple[Result, ...]] | None:
        """The last Run that has a Job of *series*, and the cases of that Job; None without one."""
        row = self._connection.execute(
            "SELECT run.name, job.id FROM job JOIN run ON run.id = job.run"
            " WHERE job.series = ? ORDER BY run.started DESC LIMIT 1",
            (series,),
        ).fetchone()
        return (str(row[0]), _cases_of(self._connection, row[1])) if row else None

    def background(self, run: Run) -> Background:
        """Compare *run*, which may be in any directory, with the Runs that began before it."""
        parts: list[Comparison] = []
        past: dict[tuple[str, Address], Sequence[Past]] = {}
        seconds: dict[str, Sequence[float]] = {}
        cases = cases_by_job(run)
        for job in run.jobs:
            earlier = self._recent(job.series, run.info.started)
            by_address: dict[Address, list[Past]] = {}
            for one in earlier:
                by_address.setdefault(one.case.address, []).append(one)
            past.update({(job.name, address): tuple(found) for address, found in by_address.items()})
            seconds[job.name] = self.job_seconds(job.series, run.info.inputs.of(job), run.info.started)
            mine = cases.get(job.name, [])
            part = self._compare_job(run, job, mine, by_address)
            durations = {address: _durations(found, run) for address, found in by_address.items()}
            parts.append(dataclasses.replace(part, slower=find_slower(job, mine, durations)))
        comparison = self._with_left_out(run, join(parts))
        return Background(comparison=comparison, past=past, job_seconds=seconds)

    def _with_left_out(self, run: Run, comparison: Comparison) -> Comparison:
        """Add to *comparison* the Jobs that the same matrix had before and *run* lacks."""
        lost = tuple(self._left_out(run))
        against = {**comparison.against, **{one.job: one.since for one in lost}}
        return dataclasses.replace(comparison, against=against, lost_jobs=(*comparison.lost_jobs, *lost))

    def _left_out(self, run: Run) -> Iterator[LostJob]:
        """The Jobs that Runs of its lines tested since the last good or accepted one and *run* lacks."""
        if not is_complete(run) or not run.info.inputs.matrix:
            return
        cells = {*(job.cell for job in run.jobs), *run.info.inputs.elsewhere}
        lines = {job.line for job in run.jobs}
        earlier = self._connection.execute(
            "SELECT id, name, verdict, accepted, info FROM run WHERE matrix = ? AND started < ?"
            " ORDER BY started DESC",
            (run.info.inputs.matrix, _moment(run.info.started)),
        )
        for number, name, verdict, accepted, info in earlier:
            jobs = _tested(self._connection, number)
            for job in jobs:
                if job.line in lines and job.cell not in cells:
                    cells.add(job.cell)
                    yield left_out(job, name)
            with database.decoding():
                was_compared = codec.info_from_plain(json.loads(info)).inputs.compare
            if accepted or (verdict == Verdict.GOOD.value and was_compared):
                lines -= {job.line for job in jobs}
            if not lines:
                return

    def _compare_job(
        self,
        run: Run,
        job: JobRecord,
        cases: Sequence[Result],
        past: Mapping[Address, Sequence[Past]] | None = None,
    ) -> Comparison:
        """Compare *job* of *run* with the last good Run of its series."""
        inputs = run.info.inputs.of(job)
        good = previous = None
        accepted: list[int] = []  # Jobs since the good one whose losses a user accepted
        for number, name, fine, meant, info, record in self._connection.execute(
            "SELECT job.id, run.name, job.good, run.accepted, run.info, job.record"
            " FROM job JOIN run ON run.id = job.run"
            " WHERE job.series = ? AND run.started < ? ORDER BY run.started DESC",
            (job.series, _moment(run.info.started)),
        ):
            with database.decoding():
                earlier = _inputs(info, record)
            if not covers(earlier, inputs):
                continue
            previous = previous or (number, name)
            if fine:
                good = (number, name)
                break
            if meant:
                accepted.append(number)
        if previous is None:
            return Comparison()
        against = good or previous
        flaky = {a for a, found in (past or {}).items() if any(one.case.flaky for one in found)}
        found = compare_job(
            job,
            cases,
            baseline=self._left_of(in_scope(_cases_of(self._connection, good[0]), inputs), accepted)
            if good
            else (),
            previous=in_scope(_cases_of(self._connection, previous[0]), inputs),
            since=against[1],
            complete=is_complete(run) and not job.problem,
            flaky_before=frozenset(flaky),
            exists=self._exists,
        )
        return dataclasses.replace(found, against={job.name: against[1]})

    def _left_of(self, cases: Sequence[Result], accepted: Iterable[int]) -> tuple[Result, ...]:
        """The *cases* that all *accepted* Jobs still had and did not skip."""
        left = [
            {case.address for case in _cases_of(self._connection, job) if case.outcome is not Outcome.SKIP}
            for job in accepted
        ]
        return tuple(case for case in cases if all(case.address in tried for tried in left))

    def job_seconds(
        self, series: str, inputs: Inputs, before: datetime.datetime | None = None
    ) -> tuple[float, ...]:
        """The durations of Jobs of *series* with the same inputs on the same accelerator, oldest first."""
        rows = self._connection.execute(
            "SELECT job.seconds, run.info, job.record FROM job JOIN run ON run.id = job.run"
            " WHERE job.series = ? AND run.accel = ? AND run.started < ? AND run.state = ?"
            " ORDER BY run.started DESC",
            (series, inputs.accel, _moment(before), RunState.FINISHED.value),
        )
        found: list[float] = []
        with database.decoding():
            for seconds, info, record in rows:
                earlier = _inputs(info, record)
                if covers(earlier, inputs) and covers(inputs, earlier):
                    found.insert(0, seconds)
                if len(found) == WINDOW:
                    break
        return tuple(found)

    def case_seconds(self, series: str, accel: str) -> dict[Address, tuple[float, ...]]:
        """Address -> durations of passes on *accel* in the last Runs of *series*, oldest first."""
        found: dict[Address, list[float]] = {}
        for one in self._recent(series, None):
            if one.accel == accel and one.case.outcome.is_expected:
                found.setdefault(one.case.address, []).append(one.case.duration)
        return {address: tuple(seconds) for address, seconds in found.items()}

    def _recent(self, series: str, before: datetime.datetime | None) -> tuple[Past, ...]:
        """The last Runs of *series*, oldest first."""
        return _past(
            self._connection,
            "job.id IN (SELECT job.id FROM job JOIN run ON run.id = job.run WHERE job.series = ?"
            " AND run.started < ? ORDER BY run.started DESC LIMIT ?)",
            (series, _moment(before), WINDOW),
        )


def _insert(connection: sqlite3.Connection, table: str, **values: object) -> int | None:
    """Insert a row; return its id."""
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    row = [database.text(value) if isinstance(value, str) else value for value in values.values()]
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
    return connection.execute(statement, row).lastrowid


def _add_job(
    connection: sqlite3.Connection, run: int | None, job: JobRecord, cases: Sequence[Result], good: bool
) -> None:
    number = _insert(
        connection,
        "job",
        run=run,
        name=job.name,
        series=job.series,
        seconds=sum(case.duration for case in cases),
        good=good,
        record=json.dumps(codec.job_to_plain(job)),
    )
    addresses = [(database.text(str(case.address)),) for case in cases]
    connection.executemany('INSERT OR IGNORE INTO "case" (address) VALUES (?)', addresses)
    connection.executemany(
        'INSERT OR REPLACE INTO outcome (job, "case", outcome, flaky, attempt, duration, reason,'
        ' fingerprint) SELECT ?, id, ?, ?, ?, ?, ?, ? FROM "case" WHERE address = ?',
        [
            (
                number,
                case.outcome.value,
                case.flaky,
                case.attempt,
                case.duration,
                database.text(case.reason),
                fingerprint(case.splat),
                address,
            )
            for case, (address,) in zip(cases, addresses, strict=True)
        ],
    )


def _tested(connection: sqlite3.Connection, run: int) -> tuple[JobRecord, ...]:
    """The Jobs of a Run in which some case was carried out."""
    untested = [one.value for one in Outcome if one.is_infra or one is Outcome.SKIP]
    marks = ", ".join("?" * len(untested))
    rows = connection.execute(
        "SELECT record FROM job WHERE run = ? AND EXISTS"
        f" (SELECT 1 FROM outcome WHERE outcome.job = job.id AND outcome NOT IN ({marks})) ORDER BY id",
        (run, *untested),
    )
    with database.decoding():
        return tuple(codec.job_from_plain(json.loads(record)) for (record,) in rows)


def _past(connection: sqlite3.Connection, where: str, values: Iterable[object]) -> tuple[Past, ...]:
    rows = connection.execute(
        "SELECT run.name, run.started, run.accel, job.name, job.series, job.record, address, outcome,"
        " flaky, attempt, duration, reason, fingerprint FROM outcome JOIN job ON job.id = outcome.job"
        f' JOIN run ON run.id = job.run JOIN "case" ON "case".id = outcome."case" WHERE {where}'
        " ORDER BY run.started, run.id, job.id",
        tuple(values),
    ).fetchall()
    kernels: dict[str, str] = {}
    with database.decoding():
        return tuple(_read_past(row, kernels) for row in rows)


def _cases_of(connection: sqlite3.Connection, job: int) -> tuple[Result, ...]:
    return tuple(one.case for one in _past(connection, "job.id = ?", (job,)))


def _moment(before: datetime.datetime | None) -> str:
    """*before* as the history sorts times; None is after everything."""
    return "~" if before is None else codec.time_to_text(before)


def _inputs(info: str, record: str) -> Inputs:
    """The inputs of the Job *record* of the Run *info*."""
    return codec.info_from_plain(json.loads(info)).inputs.of(codec.job_from_plain(json.loads(record)))


def _read_past(row: tuple[Any, ...], kernels: dict[str, str]) -> Past:
    run, started, accel, job, series, record, address, outcome, flaky, attempt, duration, reason, print_ = row
    if record not in kernels:
        kernels[record] = codec.job_from_plain(json.loads(record)).kernel
    case = Result(
        address=Address.parse(address),
        job=job,
        outcome=Outcome(outcome),
        flaky=bool(flaky),
        attempt=int(attempt),
        duration=float(duration),
        reason=reason,
    )
    return Past(
        run=run,
        started=codec.time_from_text(started),
        accel=accel,
        job=job,
        series=series,
        kernel=kernels[record],
        case=case,
        fingerprint=print_,
    )


def _label(outcome: str, flaky: int) -> str:
    """Return the label, as in Result.label."""
    return FLAKY if flaky and outcome != Outcome.CRASH.value else Outcome(outcome).value


def _merged(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield the ids of the Runs that another Run was made of: their outcomes would count twice."""
    merged = f"json_extract(info, '$.inputs.extra.{MERGED}')"
    for (ids,) in connection.execute(f"SELECT {merged} FROM run WHERE {merged} IS NOT NULL"):
        yield from str(ids).split()


def _stamp(path: Path) -> str:
    """A text that changes when a results file, or its -wal, does."""
    facts = []
    for each in (path, path.with_name(path.name + "-wal")):
        with contextlib.suppress(OSError):
            found = each.stat()
            facts.append(f"{found.st_size}:{found.st_mtime_ns}")
    return " ".join(facts)


def _is_good(run: Run, job: JobRecord, cases: Sequence[Result]) -> bool:
    """Whether later Runs may be compared with *job*."""
    if run.accepted and not job.applicable:
        # The user accepted that there is nothing to test.
        return run.state is RunState.FINISHED
    passed = any(case.outcome is Outcome.PASS for case in cases)
    clean = not any(case.is_bad for case in cases) and not job.problem
    return run.state is RunState.FINISHED and passed and clean


def _durations(past: Sequence[Past], run: Run) -> list[float]:
    """The durations of the passes in *past* on the accelerator of *run*."""
    accel = run.info.inputs.accel
    return [one.case.duration for one in past if one.accel == accel and one.case.outcome is Outcome.PASS]
