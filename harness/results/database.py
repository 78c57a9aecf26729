# SPDX-License-Identifier: GPL-2.0-only
"""The SQLite files of the harness: versioned, migrated, shared by processes, with clear errors."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import HarnessError, InfraError, UsageError

BUSY_SECONDS = 30.0
"""How long to wait for a lock; writers hold it for milliseconds, but the host may swap."""


class Damaged(InfraError):
    """The file *path* is not an SQLite file, or holds invalid values."""

    def __init__(self, message: str, *, path: Path, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One kind of file: its identification and its schema."""

    application: int
    """The file format's number in SQLite's own field for it (PRAGMA application_id)."""
    migrations: tuple[str, ...]
    """Script n migrates a file from schema n to n + 1; never edit a released one, add another."""
    damaged_hint: str
    """The hint for a damaged file: what is still good."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open *path* for writing, migrated to the newest schema."""
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._schema(connection, path)
            # Where the file system cannot do WAL, SQLite keeps its rollback journal, which is as safe.
            connection.execute("PRAGMA journal_mode = WAL")
            # In WAL mode with NORMAL a killed process loses nothing; a power cut loses the last commits.
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect_to_read(self, path: Path) -> sqlite3.Connection:
        """Open *path* for reading; migrate it when its schema is old and it is writable."""
        uri = path.absolute().as_uri()
        # Without a -wal, and in a read-only directory, SQLite can read a file only as immutable.
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
        """Migrate *path*, or a copy in memory where it is read-only."""
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
            # Another process may have migrated it meanwhile.
            for number in range(self._schema(connection, path), len(self.migrations)):
                for statement in self.migrations[number].split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self.application}")
            connection.execute(f"PRAGMA user_version = {len(self.migrations)}")

    @contextlib.contextmanager
    def sentences(self, path: Path) -> Iterator[None]:
        """Turn errors of SQLite and of the file system about *path* into a HarnessError."""
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
    """A transaction that takes the write lock at once; SQLite does not wait for a lock taken later."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back when the disk is full.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Report values that cannot be decoded as damage."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise sqlite3.DatabaseError(f"unreadable value ({error})") from error


def text(value: str) -> str:
    """*value* without lone surrogates, to which stray bytes of a guest decode and which SQLite refuses."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
