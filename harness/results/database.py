# SPDX-License-Identifier: GPL-2.0-only
"""SQLite files as the harness keeps them: versioned, migrated, shared by processes, clear when broken."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError, InfraError, UsageError

BUSY_SECONDS = 30.0
"""Writers hold the lock for milliseconds; this is for a machine that swaps."""


class Damaged(InfraError):
    """A file, at *path*, that is no SQLite file any more, or holds what nobody wrote."""

    def __init__(self, message: str, *, path: Path, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One kind of file: how it is told from others, and how it came to be what it is."""

    application: int
    """In the field SQLite reserves for telling file formats apart (PRAGMA application_id)."""
    migrations: tuple[str, ...]
    """Script n takes a file from schema n to n + 1; never edit one that was released, add another."""
    damaged_hint: str
    """What is still good when a file is damaged."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open *path* for writing, at the newest schema."""
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._schema(connection, path)
            # Where the file system cannot do WAL, SQLite stays with its rollback journal, which is as safe.
            connection.execute("PRAGMA journal_mode = WAL")
            # In WAL mode NORMAL loses nothing to a killed process, only the last commits to a power cut.
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect_to_read(self, path: Path) -> sqlite3.Connection:
        """Open *path* without changing it, unless its schema is old and it may be written."""
        uri = path.absolute().as_uri()
        # A file without a -wal beside it, in a directory we may not write, can be read only as immutable.
        frozen = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
        connection = sqlite3.connect(
            f"{uri}?mode=ro{'&immutable=1' if frozen else ''}",
            timeout=BUSY_SECONDS,
            isolation_level=None,
            uri=True,
        )
        try:
            version = self._schema(connection, path)
        except BaseException:
            connection.close()
            raise
        if version == len(self.migrations):
            return connection
        connection.close()
        return self._connect_to_old(path, frozen)

    def _connect_to_old(self, path: Path, frozen: bool) -> sqlite3.Connection:
        """Bring *path* up to date, or a copy in memory where it may not be written."""
        if not frozen and os.access(path, os.W_OK):
            return self.connect(path)
        copy = sqlite3.connect(":memory:", isolation_level=None)
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as old:
            old.backup(copy)
        self._migrate(copy, path)
        return copy

    def _schema(self, connection: sqlite3.Connection, path: Path) -> int:
        """The schema version of *path*, 0 when it is new."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        if version > 0 and application != self.application:
            raise UsageError(f"{path} is an SQLite file, but not one of vfio-harness")
        if version > len(self.migrations):
            raise UsageError(
                f"{path} was written by a newer vfio-harness",
                hint=f"its schema is {version}, this version knows {len(self.migrations)}: "
                "use the one that wrote it",
            )
        return version

    def _migrate(self, connection: sqlite3.Connection, path: Path) -> None:
        if self._schema(connection, path) == len(self.migrations):
            return
        with immediate(connection):
            # Another process may have been quicker.
            for number in range(self._schema(connection, path), len(self.migrations)):
                for statement in self.migrations[number].split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self.application}")
            connection.execute(f"PRAGMA user_version = {len(self.migrations)}")

    @contextlib.contextmanager
    def sentences(self, path: Path) -> Iterator[None]:
        """Turn what SQLite and the file system say of *path* into one sentence for the user."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(path, error) from error
        except OSError as error:
            raise InfraError(f"{path}: {error.strerror or error}") from error

    def _translate(self, path: Path, error: sqlite3.Error) -> HarnessError:
        # The low byte is the primary code (sqlite.org/rescode.html).
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return InfraError(
                f"no space left to write {path}", hint="results so far are kept; free some space"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return InfraError(f"{path} was locked by another process for {BUSY_SECONDS:.0f} s")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return InfraError(
                f"{path} cannot be opened or written: {error}", hint="check the directory's permissions"
            )
        if code == sqlite3.SQLITE_IOERR:
            return InfraError(f"reading or writing {path} failed: {error}", hint="check the disk")
        return Damaged(f"{path} is damaged: {error}", path=path, hint=self.damaged_hint)


@contextlib.contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
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


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """What the file holds and we cannot decode is damage like any other."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise sqlite3.DatabaseError(f"unreadable value ({error})") from error


def text(value: str) -> str:
    """*value* as SQLite can keep it: a guest's stray bytes decode to lone surrogates, which UTF-8 refuses."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
