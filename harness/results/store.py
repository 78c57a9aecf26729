# SPDX-License-Identifier: GPL-2.0-only
"""The results of a Run on disk: one results.sqlite in its run directory.  The only importer of sqlite3.

Every result is committed as it comes, so a kill at any moment keeps what was finished.  Several processes may
write at once (pytest-xdist's workers); each opens the store for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from harness.errors import HarnessError, InfraError, UsageError
from harness.results import codec
from harness.results.model import Address, JobRecord, Outcome, Result, Run, RunInfo, State, Verdict

FILE_NAME = "results.sqlite"

# "vfio" as four bytes, in the field SQLite reserves for telling file formats apart (PRAGMA application_id).
_APPLICATION_ID = 0x7666696F
# Writers hold the lock for milliseconds; this is for a machine that swaps.
_BUSY_SECONDS = 30.0

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
)
"""Script n takes a file from schema n to n + 1; never edit one that was released, add another."""

_COLUMNS = 'job, suite, program, "case", outcome, reason, duration, attempt, log, splat, vm_dir, rerun'


class RunStore:
    """An open results file.  Methods may be called from any thread."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._connection = connection
        self._lock = threading.Lock()

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
        with _sentences(path):
            directory.mkdir(parents=True, exist_ok=True)
            store = cls(directory, _connect(path))
            with store._transaction() as connection:
                connection.execute(
                    "INSERT INTO run (only, info, state) VALUES (1, ?, ?)",
                    (json.dumps(codec.info_to_plain(info)), State.RUNNING.value),
                )
        return store

    @classmethod
    def open(cls, directory: Path) -> RunStore:
        """Open the Run in *directory* to add to it.

        Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
        """
        path = directory / FILE_NAME
        _require(path)
        with _sentences(path):
            return cls(directory, _connect(path))

    def add(self, result: Result) -> None:
        """Append *result*; it is safe on disk from a kill of this process when this returns."""
        address = result.address
        row = (
            *map(_text, (result.job, address.suite, address.program, address.case)),
            result.outcome.value,
            _text(result.reason),
            result.duration,
            result.attempt,
            *map(_text, (result.log, result.splat, result.vm_dir, result.rerun)),
        )
        marks = ", ".join("?" * len(row))
        with self._transaction() as connection:
            connection.execute(f"INSERT INTO result ({_COLUMNS}) VALUES ({marks})", row)

    def add_job(self, job: JobRecord) -> None:
        """Record *job*, or what has become of it; its place is where it was first added."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO job (name, position, record) VALUES (?, (SELECT count(*) FROM job), ?)"
                " ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                (job.name, json.dumps(codec.job_to_plain(job))),
            )

    def finish(self, verdict: Verdict, state: State = State.FINISHED) -> None:
        """Close the books, and make the file stand alone (no -wal beside it) when no one else has it open."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE run SET state = ?, verdict = ?, finished = ?",
                (state.value, verdict.value, codec.time_to_text(datetime.datetime.now(datetime.UTC))),
            )
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA busy_timeout = 1000")
            self._connection.execute("PRAGMA journal_mode = DELETE")

    def read(self) -> Run:
        """The Run as far as it has come."""
        with self._lock, _sentences(self.directory / FILE_NAME):
            return _read(self._connection, self.directory)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _sentences(self.directory / FILE_NAME), _immediate(self._connection) as connection:
            yield connection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A line in the list of Runs; *problem* says why a directory could not be read."""

    directory: Path
    info: RunInfo | None = None
    state: State = State.RUNNING
    verdict: Verdict | None = None
    # How many results of each Outcome, attempts counted singly.
    counts: dict[Outcome, int] = dataclasses.field(default_factory=dict)
    problem: str = ""


def load(directory: Path) -> Run:
    """Read the Run in *directory*, finished or not.

    Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
    """
    path = directory / FILE_NAME
    _require(path)
    with _sentences(path), contextlib.closing(_connect_to_read(path)) as connection:
        return _read(connection, directory)


def list_runs(root: Path) -> tuple[RunSummary, ...]:
    """Every Run below *root*, newest first; one that cannot be read is listed last with its problem."""
    if not root.is_dir():
        return ()
    found = [_summarize(path.parent) for path in sorted(root.glob(f"*/{FILE_NAME}"))]
    readable = [(summary.info.started, summary) for summary in found if summary.info is not None]
    readable.sort(key=lambda pair: pair[0], reverse=True)
    return (*(summary for _, summary in readable), *(one for one in found if one.info is None))


def _summarize(directory: Path) -> RunSummary:
    path = directory / FILE_NAME
    try:
        with _sentences(path), contextlib.closing(_connect_to_read(path)) as connection:
            info, state, _, verdict = _read_run(connection)
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


def _connect(path: Path) -> sqlite3.Connection:
    """Open *path* for writing, at the newest schema."""
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _schema(connection, path)
        # Where the file system cannot do WAL, SQLite stays with its rollback journal, which is as safe.
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode NORMAL loses nothing to a killed process, only the last commits to a power cut.
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Open *path* without changing it, unless its schema is old and it may be written."""
    uri = path.absolute().as_uri()
    # A file without a -wal beside it, in a directory we may not write, can be read only as immutable.
    frozen = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    connection = sqlite3.connect(
        f"{uri}?mode=ro{'&immutable=1' if frozen else ''}",
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        uri=True,
    )
    try:
        version = _schema(connection, path)
    except BaseException:
        connection.close()
        raise
    if version == len(_MIGRATIONS):
        return connection
    connection.close()
    return _connect(path)


def _schema(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of *path*, 0 when it is new."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if version > 0 and application != _APPLICATION_ID:
        raise UsageError(f"{path} is an SQLite file, but not one of vfio-harness")
    if version > len(_MIGRATIONS):
        raise UsageError(
            f"{path} was written by a newer vfio-harness",
            hint=f"its schema is {version}, this version knows {len(_MIGRATIONS)}: use the one that wrote it",
        )
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _schema(connection, path) == len(_MIGRATIONS):
        return
    with _immediate(connection):
        # Another process may have been quicker.
        for number in range(_schema(connection, path), len(_MIGRATIONS)):
            for statement in _MIGRATIONS[number].split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


@contextlib.contextmanager
def _immediate(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction that takes the write lock at once: one that upgrades later cannot wait for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has already rolled back.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _read_run(
    connection: sqlite3.Connection,
) -> tuple[RunInfo, State, datetime.datetime | None, Verdict | None]:
    row = connection.execute("SELECT info, state, finished, verdict FROM run").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the run itself is missing")
    info, state, finished, verdict = row
    with _decoding():
        return (
            codec.info_from_plain(json.loads(info)),
            State(state),
            codec.time_from_text(finished) if finished else None,
            Verdict(verdict) if verdict else None,
        )


def _read(connection: sqlite3.Connection, directory: Path) -> Run:
    # One snapshot, so that a writer at work cannot show us a result without its Job.
    connection.execute("BEGIN")
    try:
        info, state, finished, verdict = _read_run(connection)
        jobs = connection.execute("SELECT record FROM job ORDER BY position, name").fetchall()
        rows = connection.execute(f"SELECT {_COLUMNS} FROM result ORDER BY id").fetchall()
    finally:
        connection.execute("COMMIT")
    with _decoding():
        return Run(
            info=info,
            jobs=tuple(codec.job_from_plain(json.loads(record)) for (record,) in jobs),
            results=tuple(_result(*row) for row in rows),
            state=state,
            finished=finished,
            verdict=verdict,
            directory=str(directory),
        )


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """What the file holds and we cannot decode is damage like any other."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise sqlite3.DatabaseError(f"unreadable value ({error})") from error


def _result(
    job: str,
    suite: str,
    program: str,
    case: str,
    outcome: str,
    reason: str,
    duration: float,
    attempt: int,
    *rest: str,
) -> Result:
    log, splat, vm_dir, rerun = rest
    return Result(
        address=Address(suite=suite, program=program, case=case),
        job=job,
        outcome=Outcome(outcome),
        reason=reason,
        duration=duration,
        attempt=attempt,
        log=log,
        splat=splat,
        vm_dir=vm_dir,
        rerun=rerun,
    )


def _text(value: str) -> str:
    """*value* as SQLite can keep it: a guest's stray bytes decode to lone surrogates, which UTF-8 refuses."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into one sentence for the user."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error
    except OSError as error:
        raise InfraError(f"{path}: {error.strerror or error}") from error


_DAMAGED_HINT = "the logs beside it are still there"


def _translate(path: Path, error: sqlite3.Error) -> HarnessError:
    # The low byte is the primary code (sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return InfraError(f"no space left to write {path}", hint="results so far are kept; free some space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InfraError(f"{path} was locked by another process for {_BUSY_SECONDS:.0f} s")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return InfraError(
            f"{path} cannot be opened or written: {error}", hint="check the directory's permissions"
        )
    if code == sqlite3.SQLITE_IOERR:
        return InfraError(f"reading or writing {path} failed: {error}", hint="check the disk")
    return InfraError(f"{path} is damaged: {error}", hint=_DAMAGED_HINT)
