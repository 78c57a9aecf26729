# SPDX-License-Identifier: GPL-2.0-only
"""The results of a Run on disk: one results.sqlite in its run directory.

Every result is committed as it comes, so a kill at any moment keeps what was finished.  Several processes may
write at once (pytest-xdist's workers); each opens the store for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from harness.errors import HarnessError, UsageError
from harness.results import codec, database
from harness.results.model import Address, JobRecord, Outcome, Result, Run, RunInfo, State, Verdict

FILE_NAME = "results.sqlite"

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        info TEXT NOT NULL,
        state TEXT NOT NULL,
        finished TEXT,
        verdict TEXT
    );
    CREATE TABLE job (
        name TEXT PRIMARY KEY,
        position INTEGER NOT NULL,
        record TEXT NOT NULL
    );
    CREATE TABLE result (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL,
        suite TEXT NOT NULL,
        program TEXT NOT NULL,
        "case" TEXT NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        duration REAL NOT NULL,
        attempt INTEGER NOT NULL,
        log TEXT NOT NULL,
        splat TEXT NOT NULL,
        vm_dir TEXT NOT NULL,
        rerun TEXT NOT NULL
    );
    CREATE INDEX result_by_address ON result (suite, program, "case", job);
    """,
    """
    ALTER TABLE result ADD COLUMN confirms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN accepted TEXT NOT NULL DEFAULT ''
    """,
    "ALTER TABLE run ADD COLUMN spent TEXT NOT NULL DEFAULT '{}'",
)
_FORM = database.Form(
    # "vfio" as four bytes.
    application=0x7666696F,
    migrations=_MIGRATIONS,
    damaged_hint="the logs beside it are still there",
)

# Others that look at the same moment are in the way for microseconds.
_LOOKS, _LOOK_SECONDS = 5, 0.01

_COLUMNS = (
    'job, suite, program, "case", outcome, reason, duration, attempt, log, splat, vm_dir, rerun, confirms'
)


def new_run_id(started: datetime.datetime) -> str:
    """A name for what begins at *started*: by its moment, so that names sort, and no other's.

    A directory that is there already would show when kernels are built: 32 bits tell apart what begins in
    one second.  Nothing may depend on how long it is.
    """
    return f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class RunStore:
    """An open results file.  Methods may be called from any thread."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._connection = connection
        self._lock = threading.Lock()
        # What is_alive() looks for; the kernel drops it when we die.
        self._sign = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(self._sign, fcntl.LOCK_SH)

    @classmethod
    def create(cls, directory: Path, info: RunInfo) -> RunStore:
        """Begin a Run in *directory*, which is made if need be.

        Raises UsageError when it already holds one, InfraError when it cannot be written.
        """
        path = directory / FILE_NAME
        if path.exists():
            raise UsageError(
                f"{directory} already holds the results of a run", hint="choose another directory"
            )
        # Made beside and renamed into place: who looks meanwhile must not find a file without its run.
        unborn = path.with_name(f"{FILE_NAME}.{os.getpid()}.new")
        with _FORM.sentences(path):
            directory.mkdir(parents=True, exist_ok=True)
            store = cls(directory, _FORM.connect(unborn))
            with store._transaction() as connection:
                connection.execute(
                    "INSERT INTO run (only, info, state) VALUES (1, ?, ?)",
                    (json.dumps(codec.info_to_plain(info)), State.RUNNING.value),
                )
            store._connection.close()
            unborn.rename(path)
            store._connection = _FORM.connect(path)
        return store

    @classmethod
    def open(cls, directory: Path) -> RunStore:
        """Open the Run in *directory* to add to it.

        Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
        """
        path = directory / FILE_NAME
        _require(path)
        with _FORM.sentences(path):
            return cls(directory, _FORM.connect(path))

    def add(self, *results: Result) -> None:
        """Append *results*, all or none; they are safe on disk from a kill of this process on return."""
        marks = ", ".join("?" * len(_COLUMNS.split(",")))
        with self._transaction() as connection:
            connection.executemany(
                f"INSERT INTO result ({_COLUMNS}) VALUES ({marks})", [_row(result) for result in results]
            )

    def add_job(self, job: JobRecord) -> None:
        """Record *job*, or what has become of it; its place is where it was first added."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO job (name, position, record) VALUES (?, (SELECT count(*) FROM job), ?)"
                " ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                (job.name, json.dumps(codec.job_to_plain(job))),
            )

    def go_on(self) -> None:
        """Open the books of a Run that was cut short again."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE run SET state = ?, verdict = NULL, finished = NULL", (State.RUNNING.value,)
            )

    def finish(self, verdict: Verdict, state: State = State.FINISHED) -> None:
        """Close the books, and make the file stand alone (no -wal beside it) when no one else has it open."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE run SET state = ?, verdict = ?, finished = ?",
                (state.value, verdict.value, codec.time_to_text(datetime.datetime.now(datetime.UTC))),
            )
        self._stand_alone()

    def _stand_alone(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA busy_timeout = 1000")
            self._connection.execute("PRAGMA journal_mode = DELETE")

    def accept(self, reason: str) -> None:
        """Take what this Run no longer covers for meant: later ones are held against it.

        Raises UsageError for one that did not come to its end: what it never came to would be taken for gone.
        """
        if self.read().state is not State.FINISHED:
            hint = "go on with it (matrix --resume), or accept the next one"
            raise UsageError("the run did not come to its end: nothing of it can be accepted", hint=hint)
        with self._transaction() as connection:
            connection.execute("UPDATE run SET accepted = ?", (database.text(reason),))
        self._stand_alone()

    def account(self, spent: Mapping[str, float]) -> None:
        """Record what processor time the Run cost, in seconds by what took it: see Run.spent."""
        with self._transaction() as connection:
            connection.execute("UPDATE run SET spent = ?", (json.dumps(dict(spent)),))
        self._stand_alone()

    def read(self) -> Run:
        """The Run as far as it has come."""
        with self._lock, _FORM.sentences(self.directory / FILE_NAME):
            return _read(self._connection, self.directory)

    def close(self) -> None:
        self._connection.close()
        if self._sign >= 0:
            os.close(self._sign)
            self._sign = -1

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with (
            self._lock,
            _FORM.sentences(self.directory / FILE_NAME),
            database.immediate(self._connection) as connection,
        ):
            yield connection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A line in the list of Runs; *problem* says why a directory could not be read."""

    directory: Path
    info: RunInfo | None = None
    state: State = State.RUNNING
    verdict: Verdict | None = None
    counts: dict[Outcome, int] = dataclasses.field(default_factory=dict)
    """How many results of each Outcome, attempts counted singly."""
    problem: str = ""


def load(directory: Path) -> Run:
    """Read the Run in *directory*, finished or not.

    Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
    """
    path = directory / FILE_NAME
    _require(path)
    with _FORM.sentences(path), contextlib.closing(_FORM.connect_to_read(path)) as connection:
        return _read(connection, directory)


def is_alive(directory: Path) -> bool:
    """Whether a process is writing to the Run in *directory* now."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for _ in range(_LOOKS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_LOOK_SECONDS)
            else:
                return False
    finally:
        os.close(handle)
    return True


def list_runs(root: Path) -> tuple[RunSummary, ...]:
    """Every Run below *root*, newest first; one that cannot be read is listed last with its problem."""
    if not root.is_dir():
        return ()
    found = [summarize(path.parent) for path in sorted(root.glob(f"*/{FILE_NAME}"))]
    readable = [(summary.info.started, summary) for summary in found if summary.info is not None]
    readable.sort(key=lambda pair: pair[0], reverse=True)
    return (*(summary for _, summary in readable), *(one for one in found if one.info is None))


def summarize(directory: Path) -> RunSummary:
    """The Run in *directory* as a line in a list; what is wrong with it is its problem."""
    path = directory / FILE_NAME
    try:
        with _FORM.sentences(path), contextlib.closing(_FORM.connect_to_read(path)) as connection:
            info, state, _, verdict, _, _ = _read_run(connection)
            counted = dict(connection.execute("SELECT outcome, count(*) FROM result GROUP BY outcome"))
    except HarnessError as error:
        return RunSummary(directory=directory, problem=str(error))
    return RunSummary(
        directory=directory,
        info=info,
        state=state,
        verdict=verdict,
        counts={outcome: counted[outcome.value] for outcome in Outcome if outcome.value in counted},
    )


def _require(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path.parent} holds no run: there is no {FILE_NAME} in it")


def _read_run(
    connection: sqlite3.Connection,
) -> tuple[RunInfo, State, datetime.datetime | None, Verdict | None, str, dict[str, float]]:
    row = connection.execute("SELECT info, state, finished, verdict, accepted, spent FROM run").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the run itself is missing")
    info, state, finished, verdict, accepted, spent = row
    with database.decoding():
        return (
            codec.info_from_plain(json.loads(info)),
            State(state),
            codec.time_from_text(finished) if finished else None,
            Verdict(verdict) if verdict else None,
            str(accepted),
            {str(what): float(seconds) for what, seconds in json.loads(spent).items()},
        )


def _read(connection: sqlite3.Connection, directory: Path) -> Run:
    # One snapshot, so that a writer at work cannot show us a result without its Job.
    connection.execute("BEGIN")
    try:
        info, state, finished, verdict, accepted, spent = _read_run(connection)
        jobs = connection.execute("SELECT record FROM job ORDER BY position, name").fetchall()
        rows = connection.execute(f"SELECT {_COLUMNS} FROM result ORDER BY id").fetchall()
    finally:
        connection.execute("COMMIT")
    with database.decoding():
        return Run(
            info=info,
            jobs=tuple(codec.job_from_plain(json.loads(record)) for (record,) in jobs),
            results=tuple(_result(*row) for row in rows),
            state=state,
            finished=finished,
            verdict=verdict,
            directory=str(directory),
            accepted=accepted,
            spent=spent,
        )


def _row(result: Result) -> tuple[object, ...]:
    address = result.address
    return (
        *map(database.text, (result.job, address.suite, address.program, address.case)),
        result.outcome.value,
        database.text(result.reason),
        result.duration,
        result.attempt,
        *map(database.text, (result.log, result.splat, result.vm_dir, result.rerun)),
        result.confirms,
    )


def _result(
    job: str,
    suite: str,
    program: str,
    case: str,
    outcome: str,
    reason: str,
    duration: float,
    attempt: int,
    log: str,
    splat: str,
    vm_dir: str,
    rerun: str,
    confirms: int,
) -> Result:
    return Result(
        address=Address(suite=suite, program=program, case=case),
        job=job,
        outcome=Outcome(outcome),
        reason=reason,
        duration=duration,
        attempt=attempt,
        confirms=bool(confirms),
        log=log,
        splat=splat,
        vm_dir=vm_dir,
        rerun=rerun,
    )
