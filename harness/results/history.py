# SPDX-License-Identifier: GPL-2.0-only
"""What all Runs below one directory came to: history.sqlite beside them, to judge each by those before it.

A run directory is the record of its Run, and travels; the history is made from run directories, can be made
anew from those that are there at any time, and keeps what it has of those that are gone.  Each Run goes in as
one transaction, when it has ended: finished, or its process gone.  Several processes may bring the history up
to date at once.
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

from harness.errors import ExitCode, HarnessError
from harness.results import codec, database, store
from harness.results.compare import (
    Comparison,
    Exists,
    LostJob,
    Slower,
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
from harness.results.judge import judgement
from harness.results.model import FLAKY, Address, Inputs, JobRecord, Outcome, Result, Run, State, Verdict
from harness.results.past import Background, Past, PastRun

WINDOW = 30
"""How many earlier Runs of a series tell how long a case takes and whether it is flaky."""


class History:
    """An open history; see consult()."""

    def __init__(self, root: Path, connection: sqlite3.Connection, exists: Exists) -> None:
        self._root = root
        self._connection = connection
        self._exists = exists

    def catch_up(self) -> None:
        """Take in every ended Run below the root that is not in here, or has gone on since."""
        known = dict(self._connection.execute("SELECT directory, stamp FROM run"))
        behind: list[tuple[datetime.datetime, Path]] = []
        for path in self._root.glob(f"*/{store.FILE_NAME}"):
            if known.get(path.parent.name) != _stamp(path):
                info = store.summarize(path.parent).info
                # The list of runs tells what is wrong with one that cannot be read.
                behind += [(info.started, path)] if info is not None else []
        # A Run is judged by those before it; and only one of them is in memory at a time.
        for _, path in sorted(behind):
            self._take_in_ended(path)

    def _take_in_ended(self, path: Path) -> None:
        try:
            run = store.load(path.parent)
        except HarnessError:
            return
        if run.state is not State.RUNNING or not store.is_alive(path.parent):
            # Reading may have brought the file up to date.
            self._take_in(run, _stamp(path))

    def _take_in(self, run: Run, stamp: str) -> None:
        directory = Path(run.directory).name
        with database.immediate(self._connection):
            row = self._connection.execute(
                "SELECT stamp FROM run WHERE directory = ?", (directory,)
            ).fetchone()
            if row == (stamp,):
                # Another process was quicker.
                return
            self._connection.execute("DELETE FROM run WHERE directory = ?", (directory,))
            cases = {**{job.name: [] for job in run.jobs}, **cases_by_job(run)}
            comparisons = {job.name: self._compare_job(run, job, cases[job.name]) for job in run.jobs}
            whole = self._with_left_out(run, join(comparisons.values()))
            judged = judgement(run, whole if run.info.inputs.compare else None)
            number = self._connection.execute(
                "INSERT INTO run (directory, stamp, name, started, seconds, accel, state, verdict, exit_code,"
                " why, accepted, info, matrix) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    database.text(directory),
                    stamp,
                    run.info.id,
                    codec.time_to_text(run.info.started),
                    run.seconds,
                    run.info.inputs.accel,
                    run.state.value,
                    judged.verdict.value,
                    int(judged.exit_code),
                    database.text(judged.why),
                    run.accepted,
                    json.dumps(codec.info_to_plain(run.info)),
                    database.text(run.info.inputs.matrix),
                ),
            ).lastrowid
            records = {job.name: job for job in run.jobs}
            for name, found in cases.items():
                job = records.get(name, JobRecord(name=name))
                lost = comparisons[name].lost if name in comparisons else ()
                good = _is_good(run, job, found) and (not lost or bool(run.accepted))
                self._add_job(number, job, found, good)

    def _add_job(self, run: int | None, job: JobRecord, cases: Sequence[Result], good: bool) -> None:
        number = self._connection.execute(
            "INSERT INTO job (run, name, series, seconds, good, record) VALUES (?, ?, ?, ?, ?, ?)",
            (
                run,
                database.text(job.name),
                database.text(job.series),
                sum(case.duration for case in cases),
                good,
                json.dumps(codec.job_to_plain(job)),
            ),
        ).lastrowid
        addresses = [(database.text(str(case.address)),) for case in cases]
        self._connection.executemany('INSERT OR IGNORE INTO "case" (address) VALUES (?)', addresses)
        self._connection.executemany(
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
                "SELECT id, directory, name, started, seconds, accel, state, verdict, exit_code, why,"
                " accepted, info FROM run ORDER BY started DESC, id DESC"
            ).fetchall()
            return tuple(self._past_run(row, jobs, counts) for row in found)

    def _past_run(
        self, row: tuple[Any, ...], jobs: Mapping[int, int], counts: Mapping[int, Mapping[str, int]]
    ) -> PastRun:
        number, directory, name, started, seconds, accel, state, verdict, code, why, accepted, info = row
        return PastRun(
            directory=self._root / directory,
            name=name,
            started=codec.time_from_text(started),
            seconds=seconds,
            accel=accel,
            state=State(state),
            verdict=Verdict(verdict),
            exit_code=ExitCode(code),
            why=why,
            accepted=accepted,
            inputs=codec.info_from_plain(json.loads(info)).inputs,
            jobs=jobs.get(number, 0),
            counts=counts.get(number, {}),
        )

    def addresses(self) -> tuple[str, ...]:
        """Every case that ever had an outcome, sorted."""
        rows = self._connection.execute('SELECT address FROM "case" ORDER BY address')
        return tuple(address for (address,) in rows)

    def of_case(self, address: str) -> tuple[Past, ...]:
        """What the case at *address* came to, oldest first."""
        return self._past('"case".address = ?', (address,))

    def background(self, run: Run) -> Background:
        """What *run*, which may be anywhere, is to be seen against: the Runs that began before it."""
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
            slower = _slower(job, mine, by_address, run.info.inputs.accel)
            parts.append(dataclasses.replace(part, slower=slower))
        comparison = self._with_left_out(run, join(parts))
        return Background(comparison=comparison, past=past, job_seconds=seconds)

    def _with_left_out(self, run: Run, comparison: Comparison) -> Comparison:
        """*comparison* with the Jobs that the same matrix had before and *run* has not."""
        lost = tuple(self._left_out(run))
        against = {**comparison.against, **{one.job: one.since for one in lost}}
        return dataclasses.replace(comparison, against=against, lost_jobs=(*comparison.lost_jobs, *lost))

    def _left_out(self, run: Run) -> Iterator[LostJob]:
        """Jobs of its lines that were tested since a good Run, or a person, settled what there is to be."""
        if not is_complete(run) or not run.info.inputs.matrix:
            return
        seats = {*(job.seat for job in run.jobs), *run.info.inputs.elsewhere}
        lines = {job.line for job in run.jobs}
        earlier = self._connection.execute(
            "SELECT id, name, verdict, accepted, info FROM run WHERE matrix = ? AND started < ?"
            " ORDER BY started DESC",
            (run.info.inputs.matrix, _moment(run.info.started)),
        )
        for number, name, verdict, accepted, info in earlier:
            jobs = self._tested(number)
            for job in jobs:
                if job.line in lines and job.seat not in seats:
                    seats.add(job.seat)
                    yield left_out(job, name)
            with database.decoding():
                judged = codec.info_from_plain(json.loads(info)).inputs.compare
            if accepted or (verdict == Verdict.GOOD.value and judged):
                lines -= {job.line for job in jobs}
            if not lines:
                return

    def _tested(self, run: int) -> tuple[JobRecord, ...]:
        """The Jobs of a Run in which something had its chance."""
        rows = self._connection.execute(
            "SELECT record FROM job WHERE run = ? AND EXISTS"
            " (SELECT 1 FROM outcome WHERE outcome.job = job.id AND outcome NOT IN (?, ?, ?)) ORDER BY id",
            (run, Outcome.SKIP.value, Outcome.NOT_RUN.value, Outcome.LOST.value),
        )
        with database.decoding():
            return tuple(codec.job_from_plain(json.loads(record)) for (record,) in rows)

    def _compare_job(
        self,
        run: Run,
        job: JobRecord,
        cases: Sequence[Result],
        past: Mapping[Address, Sequence[Past]] | None = None,
    ) -> Comparison:
        """What changed in *job* of *run* since the last good Run of its series."""
        inputs = run.info.inputs.of(job)
        good = previous = None
        accepted: list[int] = []  # since the good one: what they lost is meant, as a person has said
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
            baseline=self._left_of(in_scope(self._cases(good[0]), inputs), accepted) if good else (),
            previous=in_scope(self._cases(previous[0]), inputs),
            since=against[1],
            complete=is_complete(run) and not job.problem,
            flaky_before=frozenset(flaky),
            exists=self._exists,
        )
        return dataclasses.replace(found, against={job.name: against[1]})

    def _left_of(self, cases: Sequence[Result], accepted: Iterable[int]) -> tuple[Result, ...]:
        """Those *cases* that every one of the *accepted* Jobs still had, other than skipped."""
        left = [
            {case.address for case in self._cases(job) if case.outcome is not Outcome.SKIP}
            for job in accepted
        ]
        return tuple(case for case in cases if all(case.address in tried for tried in left))

    def _cases(self, job: int) -> tuple[Result, ...]:
        return tuple(one.case for one in self._past("job.id = ?", (job,)))

    def job_seconds(
        self, series: str, inputs: Inputs, before: datetime.datetime | None = None
    ) -> tuple[float, ...]:
        """How long the Jobs of *series* took that ran what one with *inputs* does, there; oldest first."""
        rows = self._connection.execute(
            "SELECT job.seconds, run.info, job.record FROM job JOIN run ON run.id = job.run"
            " WHERE job.series = ? AND run.accel = ? AND run.started < ? AND run.state = ?"
            " ORDER BY run.started DESC",
            (series, inputs.accel, _moment(before), State.FINISHED.value),
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
        """How long each case of *series* took when it passed, on *accel*, in its last Runs; oldest first."""
        found: dict[Address, list[float]] = {}
        for one in self._recent(series, None):
            if one.accel == accel and one.case.outcome in (Outcome.PASS, Outcome.XFAIL):
                found.setdefault(one.case.address, []).append(one.case.duration)
        return {address: tuple(seconds) for address, seconds in found.items()}

    def _recent(self, series: str, before: datetime.datetime | None) -> tuple[Past, ...]:
        """The last Runs of *series*, oldest first."""
        return self._past(
            "job.id IN (SELECT job.id FROM job JOIN run ON run.id = job.run WHERE job.series = ?"
            " AND run.started < ? ORDER BY run.started DESC LIMIT ?)",
            (series, _moment(before), WINDOW),
        )

    def _past(self, where: str, values: Iterable[object]) -> tuple[Past, ...]:
        rows = self._connection.execute(
            "SELECT run.name, run.started, run.accel, job.name, job.series, job.record, address, outcome,"
            " flaky, attempt, duration, reason, fingerprint FROM outcome JOIN job ON job.id = outcome.job"
            f' JOIN run ON run.id = job.run JOIN "case" ON "case".id = outcome."case" WHERE {where}'
            " ORDER BY run.started, run.id, job.id",
            tuple(values),
        ).fetchall()
        kernels: dict[str, str] = {}
        with database.decoding():
            return tuple(_read_past(row, kernels) for row in rows)


def _moment(before: datetime.datetime | None) -> str:
    """*before* as the history sorts it; after everything when it is None."""
    return "~" if before is None else codec.time_to_text(before)


def _inputs(info: str, record: str) -> Inputs:
    """The inputs of the Job that the history keeps as *record*, of the Run that it keeps as *info*."""
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
    """As Result.label."""
    return FLAKY if flaky and outcome != Outcome.CRASH.value else Outcome(outcome).value


def _stamp(path: Path) -> str:
    """What changes when a results file does; a writer's -wal counts."""
    facts = []
    for each in (path, path.with_name(path.name + "-wal")):
        with contextlib.suppress(OSError):
            found = each.stat()
            facts.append(f"{found.st_size}:{found.st_mtime_ns}")
    return " ".join(facts)


def _is_good(run: Run, job: JobRecord, cases: Sequence[Result]) -> bool:
    """Whether *job* by itself is something that a later Run can be held against."""
    if run.accepted and not job.applicable:
        # That there is nothing to test is meant.
        return run.state is State.FINISHED
    passed = any(case.outcome is Outcome.PASS for case in cases)
    clean = not any(case.is_bad for case in cases) and not job.problem
    return run.state is State.FINISHED and passed and clean


def _slower(
    job: JobRecord, cases: Sequence[Result], past: Mapping[Address, Sequence[Past]], accel: str
) -> tuple[Slower, ...]:
    durations = {
        address: [
            one.case.duration for one in found if one.accel == accel and one.case.outcome is Outcome.PASS
        ]
        for address, found in past.items()
    }
    return find_slower(job, cases, durations)
