# SPDX-License-Identifier: GPL-2.0-only
"""The results of a Run on disk: one results.sqlite in its run directory.

Every result is committed as it comes, so a kill at any moment keeps what was finished.  Several processes may
write at once (pytest-xdist's workers); each opens the store for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from harness.base.errors import HarnessError, UsageError
from harness.base.places import Place
from harness.base.values import structure, unstructure
from harness.results import codec, database
from harness.results.model import Dump, JobRecord, Result, Run, RunInfo, RunState, Verdict
from harness.results.owner import hold

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
    """
    ALTER TABLE result ADD COLUMN cause TEXT NOT NULL DEFAULT '';
    ALTER TABLE result ADD COLUMN stopped_by TEXT NOT NULL DEFAULT ''
    """,
    "UPDATE run SET verdict = 'infrastructure' WHERE verdict = 'our fault'",
    "ALTER TABLE run ADD COLUMN tested REAL NOT NULL DEFAULT 0",
    "ALTER TABLE run ADD COLUMN places TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE run ADD COLUMN dumps TEXT NOT NULL DEFAULT '{}'",
)
_FORM = database.Form(
    # "vfio" as four bytes.
    application=0x7666696F,
    migrations=_MIGRATIONS,
    damaged_hint="the logs beside it are still there",
)

_COLUMNS = (
    *("job", "suite", "program", "case", "outcome", "reason", "duration", "attempt", "log", "splat"),
    *("vm_dir", "rerun", "confirms", "cause", "stopped_by"),
)
"""The columns of the table `result`, named as in codec.result_to_plain()."""
_COLUMNS_SQL = ", ".join(f'"{name}"' for name in _COLUMNS)


def new_run_id(started: datetime.datetime) -> str:
    """Return a unique name for a Run that starts at *started*; names sort by time.

    A name that is taken would show only after the kernels are built, so 32 random bits tell apart Runs of the
    same second.  Nothing may depend on the length of a name.
    """
    return f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class RunStore:
    """An open results file: one of its methods writes each part of a Run.  Any thread may call them."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._connection = connection
        self._lock = threading.Lock()
        self._hold = hold(directory)

    @classmethod
    def create(cls, directory: Path, info: RunInfo) -> RunStore:
        """Begin a Run in *directory*, which is created if missing.

        Raises UsageError when it already holds one, InfraError when it cannot be written.
        """
        path = directory / FILE_NAME
        if path.exists():
            raise UsageError(
                f"{directory} already holds the results of a run", hint="choose another directory"
            )
        # Renamed into place, so that no reader finds a file without its run.
        unborn = path.with_name(f"{FILE_NAME}.{os.getpid()}.new")
        with _FORM.sentences(path):
            directory.mkdir(parents=True, exist_ok=True)
            store = cls(directory, _FORM.connect(unborn))
            with store._transaction() as connection:
                connection.execute(
                    "INSERT INTO run (only, info, state) VALUES (1, ?, ?)",
                    (json.dumps(codec.info_to_plain(info)), RunState.RUNNING.value),
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
        """Append *results*, all or none; on return a kill of this process cannot lose them."""
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction() as connection:
            connection.executemany(
                f"INSERT INTO result ({_COLUMNS_SQL}) VALUES ({marks})", [_row(result) for result in results]
            )

    def add_job(self, job: JobRecord) -> None:
        """Record *job*, or update its record; its position stays that of the first time."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO job (name, position, record) VALUES (?, (SELECT count(*) FROM job), ?)"
                " ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                (job.name, json.dumps(codec.job_to_plain(job))),
            )

    def go_on(self) -> None:
        """Set an unfinished Run that is resumed to running."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE run SET state = ?, verdict = NULL, finished = NULL", (RunState.RUNNING.value,)
            )

    def finish(
        self,
        verdict: Verdict,
        state: RunState = RunState.FINISHED,
        at: datetime.datetime | None = None,
    ) -> None:
        """Record the end, *at* a time or now; without other users the file then stands alone (no -wal)."""
        ended = at or datetime.datetime.now(datetime.UTC)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE run SET state = ?, verdict = ?, finished = ?",
                (state.value, verdict.value, codec.time_to_text(ended)),
            )
        self._stand_alone()

    def _stand_alone(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA busy_timeout = 1000")
            self._connection.execute("PRAGMA journal_mode = DELETE")

    def amend(self, accel: str, extra: Mapping[str, str]) -> None:
        """Record which accelerator the Run really had, if that is known, and more facts of Inputs.extra."""
        info = self.read().info
        inputs = dataclasses.replace(
            info.inputs, accel=accel or info.inputs.accel, extra={**info.inputs.extra, **extra}
        )
        plain = json.dumps(codec.info_to_plain(dataclasses.replace(info, inputs=inputs)))
        with self._transaction() as connection:
            connection.execute("UPDATE run SET info = ?", (plain,))

    def accept(self, reason: str) -> None:
        """Accept the coverage that this Run lost: later Runs are compared with it.

        Raises UsageError for a Run that is not finished: cases that it did not reach would count as lost.
        """
        if self.read().state is not RunState.FINISHED:
            hint = "resume it (matrix --resume), or accept the next one"
            raise UsageError("the run is not finished, so nothing of it can be accepted", hint=hint)
        with self._transaction() as connection:
            connection.execute("UPDATE run SET accepted = ?", (database.text(reason),))
        self._stand_alone()

    def account(self, spent: Mapping[str, float], tested: float = 0.0) -> None:
        """Record the CPU time of the Run, see Run.spent, and the wall time of its tests."""
        with self._transaction() as connection:
            connection.execute("UPDATE run SET spent = ?, tested = ?", (json.dumps(dict(spent)), tested))
        self._stand_alone()

    def locate(self, places: Mapping[str, Mapping[str, Place]]) -> None:
        """Record *places*, see Run.places, in addition to those that are there."""
        known = self.read().places
        merged = {kernel: {**known.get(kernel, {}), **found} for kernel, found in places.items()}
        with self._transaction() as connection:
            plain = json.dumps(unstructure({**known, **merged}))
            connection.execute("UPDATE run SET places = ?", (database.text(plain),))
        self._stand_alone()

    def read(self) -> Run:
        """Return the Run with its results so far."""
        with self._lock, _FORM.sentences(self.directory / FILE_NAME):
            return _read(self._connection, self.directory)

    def close(self) -> None:
        self._connection.close()
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

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


def record_dumps(directory: Path, dumps: Mapping[str, Dump]) -> None:
    """Record *dumps*, see Run.dumps, in the Run in *directory*, in addition to those that are there.

    Raises what RunStore.open() raises.
    """
    with RunStore.open(directory) as store:
        plain = json.dumps(unstructure({**store.read().dumps, **dumps}))
        with store._transaction() as connection:
            connection.execute("UPDATE run SET dumps = ?", (database.text(plain),))
        store._stand_alone()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A row in the list of Runs; *problem* says why a directory could not be read."""

    directory: Path
    info: RunInfo | None = None
    state: RunState = RunState.RUNNING
    problem: str = ""


def load(directory: Path) -> Run:
    """Read the Run in *directory*, finished or not.

    Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
    """
    path = directory / FILE_NAME
    _require(path)
    with _FORM.sentences(path), contextlib.closing(_FORM.connect_to_read(path)) as connection:
        return _read(connection, directory)


def count_splats(directory: Path) -> int:
    """Return how many results of the Run in *directory* have a splat, without reading them.

    Raises as load().
    """
    path = directory / FILE_NAME
    _require(path)
    with _FORM.sentences(path), contextlib.closing(_FORM.connect_to_read(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM result WHERE splat != ''").fetchone()[0])


def list_runs(root: Path) -> tuple[RunSummary, ...]:
    """Every Run below *root*, newest first; Runs that cannot be read are last, with their problems."""
    if not root.is_dir():
        return ()
    found = [summarize(path.parent) for path in sorted(root.glob(f"*/{FILE_NAME}"))]
    readable = [(summary.info.started, summary) for summary in found if summary.info is not None]
    readable.sort(key=lambda pair: pair[0], reverse=True)
    return (*(summary for _, summary in readable), *(one for one in found if one.info is None))


def summarize(directory: Path) -> RunSummary:
    """Return the Run in *directory* as a row in a list; an error becomes its problem."""
    path = directory / FILE_NAME
    try:
        with _FORM.sentences(path), contextlib.closing(_FORM.connect_to_read(path)) as connection:
            run = _read_run(connection, directory)
    except HarnessError as error:
        return RunSummary(directory=directory, problem=str(error))
    return RunSummary(directory=directory, info=run.info, state=run.state)


def _require(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path.parent} holds no run: there is no {FILE_NAME} in it")


def _read_run(connection: sqlite3.Connection, directory: Path) -> Run:
    """The Run without its Jobs and results."""
    row = connection.execute(
        "SELECT info, state, finished, verdict, accepted, spent, tested, places, dumps FROM run"
    ).fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the run itself is missing")
    info, state, finished, verdict, accepted, spent, tested, places, dumps = row
    with database.decoding():
        return Run(
            info=codec.info_from_plain(json.loads(info)),
            state=RunState(state),
            finished=codec.time_from_text(finished) if finished else None,
            verdict=Verdict(verdict) if verdict else None,
            directory=str(directory),
            accepted=str(accepted),
            spent={str(use): float(seconds) for use, seconds in json.loads(spent).items()},
            tested=float(tested),
            places=structure(json.loads(places), dict[str, dict[str, Place]], directory)
            if places != "{}"
            else {},
            dumps=structure(json.loads(dumps), dict[str, Dump], directory) if dumps != "{}" else {},
        )


def _read(connection: sqlite3.Connection, directory: Path) -> Run:
    # One snapshot, so that no writer at work can show us a result without its Job.
    connection.execute("BEGIN")
    try:
        run = _read_run(connection, directory)
        jobs = connection.execute("SELECT record FROM job ORDER BY position, name").fetchall()
        rows = connection.execute(f"SELECT {_COLUMNS_SQL} FROM result ORDER BY id").fetchall()
    finally:
        connection.execute("COMMIT")
    with database.decoding():
        return dataclasses.replace(
            run,
            jobs=tuple(codec.job_from_plain(json.loads(record)) for (record,) in jobs),
            results=tuple(codec.result_from_plain(dict(zip(_COLUMNS, row, strict=True))) for row in rows),
        )


def _row(result: Result) -> tuple[object, ...]:
    plain = codec.result_to_plain(result)
    values = ("" if plain[name] is None else plain[name] for name in _COLUMNS)
    return tuple(database.text(value) if isinstance(value, str) else value for value in values)
