# SPDX-License-Identifier: GPL-2.0-only
"""The file of the history: its schema and migrations, opening it, replacing a damaged one."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.base.errors import HarnessError
from harness.base.locks import alone_with
from harness.results import database, reach
from harness.results.compare import Exists, everything_exists
from harness.results.history import History

FILE_NAME = "history.sqlite"

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (
        id INTEGER PRIMARY KEY,
        directory TEXT NOT NULL UNIQUE,
        stamp TEXT NOT NULL,
        name TEXT NOT NULL,
        started TEXT NOT NULL,
        seconds REAL NOT NULL,
        accel TEXT NOT NULL,
        state TEXT NOT NULL,
        verdict TEXT NOT NULL,
        exit_code INTEGER NOT NULL,
        why TEXT NOT NULL,
        accepted TEXT NOT NULL,
        info TEXT NOT NULL
    );
    CREATE INDEX run_by_start ON run (started);
    CREATE TABLE job (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES run ON DELETE CASCADE,
        name TEXT NOT NULL,
        series TEXT NOT NULL,
        seconds REAL NOT NULL,
        good INTEGER NOT NULL,
        record TEXT NOT NULL
    );
    CREATE INDEX job_by_series ON job (series);
    CREATE INDEX job_by_run ON job (run);
    CREATE TABLE "case" (
        id INTEGER PRIMARY KEY,
        address TEXT NOT NULL UNIQUE
    );
    CREATE TABLE outcome (
        job INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
        "case" INTEGER NOT NULL REFERENCES "case",
        outcome TEXT NOT NULL,
        flaky INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        duration REAL NOT NULL,
        reason TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        PRIMARY KEY (job, "case")
    ) WITHOUT ROWID;
    CREATE INDEX outcome_by_case ON outcome ("case", job)
    """,
    """
    ALTER TABLE run ADD COLUMN matrix TEXT NOT NULL DEFAULT '';
    UPDATE run SET matrix = trim(coalesce(json_extract(info, '$.inputs.extra.matrix'), '') || ' '
        || coalesce(json_extract(info, '$.inputs.extra.shard'), ''))
    """,
    "UPDATE run SET verdict = 'infrastructure' WHERE verdict = 'our fault'",
    # Fingerprints are made in another way: read the runs that have any again.
    """
    UPDATE run SET stamp = '' WHERE id IN (
        SELECT job.run FROM job JOIN outcome ON outcome.job = job.id WHERE fingerprint != '')
    """,
    reach.TABLE,
)

_FORM = database.Form(
    # "vfih" as four bytes.
    application=0x76666968,
    migrations=_MIGRATIONS,
    damaged_hint="it is rebuilt from the run directories",
)

_log = logging.getLogger("harness.history")

T = TypeVar("T")


def consult(root: Path, question: Callable[[History], T], *, exists: Exists = everything_exists) -> T:
    """Update the history of the Runs below *root* and return the answer to *question*.

    A damaged history is moved aside, with a warning, and rebuilt.  Where *root* is read-only the history is
    made in memory.  Raises UsageError for a history of a newer harness, InfraError when it cannot be read or
    written.
    """
    path = root / FILE_NAME
    if not os.access(root, os.W_OK):
        return _consult(Path(":memory:"), root, question, exists)
    with _FORM.sentences(path):
        if not path.exists():
            # SQLite does not wait for a lock while it switches a new file to WAL.
            with alone_with(root):
                _FORM.connect(path).close()
        inode = path.stat().st_ino
    try:
        return _consult(path, root, question, exists)
    except database.Damaged as error:
        if error.path != path:
            raise
        _move_aside(path, inode, error)
    return _consult(path, root, question, exists)


def _consult(path: Path, root: Path, question: Callable[[History], T], exists: Exists) -> T:
    with _FORM.sentences(path), contextlib.closing(_FORM.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        history = History(root, connection, exists)
        history.catch_up()
        return question(history)


def _move_aside(path: Path, inode: int, error: HarnessError) -> None:
    """Rename the damaged file *path*, unless another process has already: it has another inode then."""
    with _FORM.sentences(path), alone_with(path.parent):
        if path.exists() and path.stat().st_ino == inode:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            for leftover in ("-wal", "-shm", "-journal"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)
            _log.warning("%s: moved to %s and rebuilt from the run directories", error.message, aside.name)
        if not path.exists():
            _FORM.connect(path).close()
