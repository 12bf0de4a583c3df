"""A connection: how a database file is created, opened and recognised, and what its failures are called."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoconv.device_lock import hold
from autoconv.errors import DamagedError, EmptyError, SchemaError, StoreError
from autoconv.plain_file import other_kind
from autoconv.store.schema import MOVE_AWAY, check_schema

APPLICATION_ID = int.from_bytes(b"aCnv")
"""What marks a SQLite file as ours: https://sqlite.org/pragma.html#pragma_application_id."""

SCHEMA = 5
"""How many migrations there are; a database's `user_version` says how many it has had."""

READABLE = 2
"""The oldest schema that can be read as it is: that of the measurements has not changed since."""

BUSY_SECONDS = 5.0
"""How long one process waits for another's transaction; ours take milliseconds."""

HURRIED_SECONDS = 0.05
"""How long it waits where the last wait was in vain: who holds a database for seconds may hold it for hours."""

POLL_SECONDS = 0.002
"""How often a process that waits for its turn to write asks for it."""

MAX_VALUE = 16_000_000
"""Longest value and row, in bytes, so that damage takes no more memory; ours have some thousand."""

FAILURES = (sqlite3.Error, OSError, OverflowError, UnicodeDecodeError, MemoryError)
"""What goes wrong with a file; `UnicodeDecodeError` where SQLite's message quotes damage that is no text, `MemoryError`
where damage to a schema makes it say that there is no memory (seen of SQLite 3.40).
"""

OPENING, READING, WRITING, TURN = "open", "read", "write", "take a turn at"
"""What is waited for, each by itself: in WAL mode a database can be read while somebody writes it."""

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_MARK_AT = 68
"""Where `APPLICATION_ID` stands in a file's header: https://sqlite.org/fileformat.html#the_database_header."""
_TOLD_BY = b"runs_by_problem"
"""A name of ours: the schema of a database that began with this version lies within its first `_SCHEMA_BYTES`."""
_SCHEMA_BYTES = 1 << 18

_log = logging.getLogger(__name__)

_in_vain: set[tuple[Path, str]] = set()
"""What was waited for in vain, and not had since."""

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
    file = file.absolute()
    try:
        check_kind(file, OPENING)
        if not readonly:
            connection = _connect(file)
        elif immutable:
            return _checked(opened(file, "mode=ro&immutable=1"), file)
        else:
            connection = _connect_readonly(file)
    except FAILURES as error:
        if is_busy(error):
            waited(file, OPENING, in_vain=True)
        raise failure(OPENING, file, error) from error
    waited(file, OPENING)
    return connection


@contextmanager
def turn(file: Path) -> Iterator[bool]:
    """Wait for this process's turn to write a database, or to put it aside; yields whether it came.

    SQLite lets whoever asks next write next, and asks ever less often the longer it waits: of 32 processes that wrote
    without pause some got no turn in three seconds. So those of one user take turns by a lock of their own, and ask
    for it often. Where that cannot be had, SQLite's way is left.
    """
    with hold(_lock_name(file), patience(file, TURN), POLL_SECONDS) as held:
        waited(file, TURN, in_vain=not held)
        yield held


def patience(file: Path, doing: str) -> float:
    """Seconds to wait for a database that somebody else holds: few where the last wait was in vain."""
    if not _in_vain or not ((file, doing) in _in_vain or (file, TURN) in _in_vain):
        return BUSY_SECONDS
    return min(HURRIED_SECONDS, BUSY_SECONDS)


def waited(file: Path, doing: str, *, in_vain: bool = False) -> None:
    """Remember whether a wait for a database was in vain."""
    if in_vain:
        _in_vain.add((file, doing))
    elif _in_vain:
        _in_vain.discard((file, doing))


def is_busy(error: Exception) -> bool:
    """Whether somebody else holds the database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: Exception) -> bool:
    """Whether an error tells of damage, if the file is ours: all that is asked of SQLite is right by our schema."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, UnicodeDecodeError | MemoryError) or code in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
    )


def is_ours(file: Path) -> bool:
    """Whether a file that SQLite cannot read was a database of ours, by what is left of it.

    That is the mark in its header, or a name of our schema in it or in its -wal file. A file that ends within SQLite's
    header is no more any program's database.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        start = opened.read(_SCHEMA_BYTES)
    if len(start) < _HEADER_BYTES:
        return bool(start) and (start.startswith(_MAGIC) or _MAGIC.startswith(start))
    if start[_MARK_AT : _MARK_AT + 4] == APPLICATION_ID.to_bytes(4) or _TOLD_BY in start:
        return True
    try:
        with open(f"{file}-wal", "rb") as log:
            return _TOLD_BY in log.read(_SCHEMA_BYTES)
    except FileNotFoundError:
        return False


@functools.lru_cache
def _lock_name(file: Path) -> str:
    return "database-" + hashlib.sha256(os.path.realpath(file).encode(errors="surrogateescape")).hexdigest()[:16]


def failure(doing: str, file: Path, error: Exception) -> StoreError:
    """One line that says what could not be done to a file, why, and what to do where that is known."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB and not _is_surely_ours(file):
        return SchemaError(f"{file} is no SQLite database", "move it away, or name another in AUTOCONV_DATABASE")
    reason, advice = str(error), ""
    if isinstance(error, MemoryError):
        reason = "there is no memory for it, or it is damaged"
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        # SQLite does not say why.
        try:
            os.stat(file)
        except OSError as missing:
            reason = missing.strerror or reason
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        advice = MOVE_AWAY
    elif is_busy(error):
        advice = "another process holds it; try again once that has ended"
    kind = DamagedError if is_damage(error) else StoreError
    return kind(f"cannot {doing} {file}: {reason}", advice)


def check_kind(file: Path, doing: str) -> None:
    """Refuse what is there and is no plain file.

    Raises:
        StoreError: it is something else.
        OSError: it cannot be looked at.
    """
    if kind := other_kind(file):
        msg = f"cannot {doing} {file}: it is {kind}"
        raise StoreError(msg, "name another file")


def _is_surely_ours(file: Path) -> bool:
    try:
        return is_ours(file)
    except OSError:
        return False


def _connect(file: Path) -> sqlite3.Connection:
    # In turn, lest a damaged file is put aside by another process between its opening and that of its -wal file. Also,
    # of those that come at the same time to an older schema or none, one changes it.
    with turn(file):
        _create(file)
        connection = opened(file, "mode=rw")
        try:
            number = schema_of(connection, file)
            if number:
                check_schema(connection, file, number)
            if _prefer_wal(connection, file):
                # Safe against a kill; a loss of power may cost the last transactions, never the database.
                connection.execute("PRAGMA synchronous = NORMAL")
            if number < SCHEMA and schema_of(connection, file) < SCHEMA:
                from autoconv.store.migrations import migrate

                migrate(connection, APPLICATION_ID, SCHEMA)
        except BaseException:
            connection.close()
            raise
    return connection


def _connect_readonly(file: Path) -> sqlite3.Connection:
    try:
        return _checked(opened(file, "mode=ro"), file)
    except sqlite3.OperationalError as error:
        # A database in WAL mode needs a -shm file beside it even to be read. Where none can be made, nobody
        # writes either and the file can be taken as it is, unless a crash left changes that wait in another.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if any(_has_content(f"{file}{suffix}") for suffix in ("-wal", "-journal")):
            raise
    return _checked(opened(file, "mode=ro&immutable=1"), file)


def _checked(connection: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    """The connection, for reading: nothing can be migrated, so its schema must be one that is read."""
    try:
        number = schema_of(connection, file)
        if number < READABLE:
            if not number:
                raise EmptyError(f"{file} is empty", "nothing was measured into it yet")
            msg = f"{file} has schema {number}, older than {READABLE}"
            raise SchemaError(
                msg, "autoconv sweep --pending brings it up to date, with --database where it is not your own"
            )
        check_schema(connection, file, number)
    except BaseException:
        connection.close()
        raise
    return connection


def opened(file: Path, query: str) -> sqlite3.Connection:
    """A connection to a file by a query of SQLite's URIs, such as `mode=ro`; nothing in the file is looked at.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    connection = sqlite3.connect(
        _uri(file, query),
        uri=True,
        timeout=patience(file, OPENING),
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
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
    """Make the file and its folders, for the user alone, unless they exist; where it is a link, the file it leads to.

    SQLite would create it with the modes that the umask leaves. Its -wal and -shm files take theirs from it.
    """
    file = Path(os.path.realpath(file))
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
        DamagedError: it is ours, and says a number that no version gave it.
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
        msg = f"{file} is another program's database"
        raise SchemaError(msg, "name another file in AUTOCONV_DATABASE")
    if number < 0:
        msg = f"{file} says that it has schema {number}, which none is"
        raise DamagedError(msg, MOVE_AWAY)
    if number > SCHEMA:
        msg = f"{file} was written by a newer autoconv (schema {number}, this one knows {SCHEMA})"
        raise SchemaError(msg, "update autoconv, or name another file in AUTOCONV_DATABASE")
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
