"""A connection: how a database file is created, opened and recognised, and what its failures are called."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoconv.device_lock import hold
from autoconv.errors import SchemaError, StoreError

APPLICATION_ID = int.from_bytes(b"aCnv")
"""What marks a SQLite file as ours: https://sqlite.org/pragma.html#pragma_application_id."""

SCHEMA = 4
"""How many migrations there are; a database's `user_version` says how many it has had."""

READABLE = 2
"""The oldest schema that can be read as it is: that of the measurements has not changed since."""

BUSY_SECONDS = 5.0
"""How long one process waits for another's transaction; ours take milliseconds."""

POLL_SECONDS = 0.002
"""How often a process that waits for its turn to write asks for it."""

FAILURES = (sqlite3.Error, OSError, OverflowError, UnicodeDecodeError)
"""What goes wrong with a file; the last where SQLite's message quotes damage that is no text."""

_log = logging.getLogger(__name__)

# Closing any descriptor of a file drops all locks that this process has on it (POSIX), and with them the
# protection of a transaction that runs in another thread. So no thread may see a new file before its creator
# has closed it. A fork waits, lest the child inherit the lock taken.
_creating = threading.Lock()
os.register_at_fork(before=_creating.acquire, after_in_parent=_creating.release, after_in_child=_creating.release)


def connect(file: Path, *, readonly: bool, immutable: bool = False) -> sqlite3.Connection:
    """A connection to a database, usable from any thread, in autocommit mode.

    For writing, the file and its folders are created where they are missing, for the user alone, and an older
    schema is brought up to the newest. For reading only, schema `READABLE` will do, and nothing is created or changed,
    save that SQLite itself may put its -wal and -shm files beside a database in WAL mode. What is immutable as well,
    such as a file that came with a package, is read as it lies there, in folders that cannot be written too: no file is
    put beside it, no lock is taken, and changes that wait in a -wal file are not seen. Nothing may write it meanwhile.

    Raises:
        SchemaError: the file is no autoconv database, or a newer version's; it has not been changed.
        StoreError: it cannot be opened.
    """
    try:
        if not readonly:
            return _connect(file)
        return _checked(_open(file, "mode=ro&immutable=1"), file) if immutable else _connect_readonly(file)
    except FAILURES as error:
        raise failure("open", file, error) from error


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Wait for this process's turn to write a database.

    SQLite lets whoever asks next write next, and asks ever less often the longer it waits: of 32 processes that wrote
    without pause some got no turn in three seconds. So those of one user take turns by a lock of their own, and ask
    for it often. Where that cannot be had, SQLite's way is left.
    """
    with hold(_lock_name(file), BUSY_SECONDS, POLL_SECONDS):
        yield


@functools.lru_cache
def _lock_name(file: Path) -> str:
    return "database-" + hashlib.sha256(os.path.realpath(file).encode(errors="surrogateescape")).hexdigest()[:16]


def failure(doing: str, file: Path, error: Exception) -> StoreError:
    """One line that says what could not be done to a file, why, and what to do where that is known."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return SchemaError(f"{file} is no SQLite database: move it away, or name another in AUTOCONV_DATABASE")
    reason = str(error)
    if isinstance(error, OSError):
        reason = error.strerror or reason
    elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        # SQLite does not say why.
        try:
            if stat.S_ISDIR(os.stat(file).st_mode):
                reason = "it is a directory"
        except OSError as missing:
            reason = missing.strerror or reason
    elif code == sqlite3.SQLITE_CORRUPT:
        reason += ": move the file away and a new one is begun"
    return StoreError(f"cannot {doing} {file}: {reason}")


def _connect(file: Path) -> sqlite3.Connection:
    _create(file)
    connection = _open(file, "mode=rw")
    try:
        number = schema_of(connection, file)
        if _prefer_wal(connection, file):
            # Safe against a kill; a loss of power may cost the last transactions, never the database.
            connection.execute("PRAGMA synchronous = NORMAL")
        if number < SCHEMA:
            with turn(file):
                # Others that came at the same time may have done it.
                if schema_of(connection, file) < SCHEMA:
                    from autoconv.store.migrations import migrate

                    migrate(connection, APPLICATION_ID, SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_readonly(file: Path) -> sqlite3.Connection:
    try:
        return _checked(_open(file, "mode=ro"), file)
    except sqlite3.OperationalError as error:
        # A database in WAL mode needs a -shm file beside it even to be read. Where none can be made, nobody
        # writes either and the file can be taken as it is, unless a crash left changes that wait in another.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if any(_has_content(f"{file}{suffix}") for suffix in ("-wal", "-journal")):
            raise
    return _checked(_open(file, "mode=ro&immutable=1"), file)


def _checked(connection: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    """The connection, for reading: nothing can be migrated, so its schema must be one that is read."""
    try:
        number = schema_of(connection, file)
        if number < READABLE:
            state = f"has schema {number}, older than {READABLE}" if number else "is empty"
            msg = f"{file} {state}: open it for writing once, or name another in AUTOCONV_DATABASE"
            raise SchemaError(msg)
    except BaseException:
        connection.close()
        raise
    return connection


def _open(file: Path, query: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        _uri(file, query), uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _uri(file: Path, query: str) -> str:
    return f"{file.as_uri()}?{query}"


def _create(file: Path) -> None:
    """Make the file and its folders, for the user alone, unless they exist.

    SQLite would create it with the modes that the umask leaves. Its -wal and -shm files take theirs from it.
    """
    for folder in reversed((file.parent, *file.parent.parents)):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    with _creating:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        os.close(descriptor)


def schema_of(connection: sqlite3.Connection, file: Path) -> int:
    """How many migrations the database has had; 0 for an empty one.

    Raises:
        SchemaError: it is not ours, or a newer version's.
    """
    # One transaction, so that another process's migration is seen whole or not at all.
    connection.execute("BEGIN")
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        number: int = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if application != APPLICATION_ID and (application or number or tables):
        msg = f"{file} is another program's database: name another file in AUTOCONV_DATABASE"
        raise SchemaError(msg)
    if number > SCHEMA:
        msg = (
            f"{file} was written by a newer autoconv (schema {number}, this one knows {SCHEMA}): "
            "update autoconv, or name another file in AUTOCONV_DATABASE"
        )
        raise SchemaError(msg)
    return number


def _prefer_wal(connection: sqlite3.Connection, file: Path) -> bool:
    """Switch to a write-ahead log, where readers and a writer do not wait for each other; whether it took.

    Folders without shared memory (most network file systems) keep the rollback journal.
    """
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    except sqlite3.OperationalError as error:
        _log.debug("%s keeps its journal mode: %s", file, error)
        return False
    if mode != "wal":
        _log.debug("%s keeps journal mode %s", file, mode)
    return bool(mode == "wal")


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
