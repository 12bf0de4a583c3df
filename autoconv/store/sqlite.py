"""A store in a SQLite file, which many processes share and a kill at any moment leaves whole."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoconv.errors import ReadOnlyError, StoreError
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.connection import connect, failure
from autoconv.store.contract import Qualification, Store

if TYPE_CHECKING:
    from sqlite_utils import Database

_RECORDS = f"SELECT {', '.join(rows.RESULT_COLUMNS)} FROM records WHERE environment = ? AND problem = ? ORDER BY id"
# Answered from the index on (environment, problem) alone.
_PROBLEMS = "SELECT problem FROM records WHERE environment = ? GROUP BY problem ORDER BY min(id)"
_ENVIRONMENTS = """
    SELECT id, identity, circumstances FROM environments WHERE identity IS NOT NULL ORDER BY rowid
"""
_QUALIFICATION = f"""
    SELECT {", ".join(rows.QUALIFICATION_COLUMNS)} FROM qualifications
    WHERE environment = ? AND fingerprint = ?
"""
# An environment may have records before anyone described it, and is given its identity once.
_DESCRIBE = """
    INSERT INTO environments (id, identity, circumstances, first_seen, last_seen)
    VALUES (:id, :identity, :circumstances, :now, :now)
    ON CONFLICT (id) DO UPDATE SET
        identity = coalesce(identity, excluded.identity),
        circumstances = excluded.circumstances,
        last_seen = excluded.last_seen
"""
_BEGIN = """
    INSERT INTO notes (environment, problem, candidate, pid, started)
    VALUES (:environment, :problem, :candidate, :pid, :started)
    ON CONFLICT (environment, problem, candidate) DO UPDATE SET
        times = times + 1,
        pid = excluded.pid,
        started = excluded.started
"""


def default_path() -> Path:
    """Where the user's own database lies: `autoconv.db` in the system's folder for a user's data."""
    import platformdirs

    return Path(platformdirs.user_data_dir("autoconv")) / "autoconv.db"


def open_store(path: str | os.PathLike[str], *, readonly: bool = False) -> Store:
    """The store in a file; for writing, a missing file is created, for the user alone.

    Args:
        path: The file. A database that another machine wrote is welcome.
        readonly: Refuse every write, and create nothing. Works in folders that cannot be written, too.

    Raises:
        SchemaError: the file is no autoconv database, or a newer version's; it has not been changed.
        StoreError: it cannot be opened, or does not exist and may not be created.
    """
    return SqliteStore(path, readonly=readonly)


class SqliteStore:
    """A `Store` in a SQLite file. The wrong choice on network folders that lose file locks.

    One connection serves all threads in turn; a look-up holds it for tens of microseconds. It is closed
    before a fork, and parent and child each open their own when next they need one: SQLite forbids to carry
    one across.
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self._file = Path(path).absolute()
        self._readonly = readonly
        self._closed = False
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        with _registering:
            _stores.add(self)
        with self._lock:
            self._connection = connect(self._file, readonly=readonly)

    @property
    def readonly(self) -> bool:
        """Whether this store refuses to be written."""
        return self._readonly

    def add_environment(
        self, environment: str, identity: Mapping[str, object], circumstances: Mapping[str, object]
    ) -> None:
        """As the contract says.

        Raises:
            TypeError, ValueError: a value that JSON cannot hold.
        """
        row = {
            "id": environment,
            "identity": rows.json_text(identity),
            "circumstances": rows.json_text(circumstances),
            "now": time.time(),
        }
        with self._writing() as db:
            db.execute(_DESCRIBE, row)

    def environments(self) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
        """As the contract says."""
        found = {
            environment: rows.environment_of(identity, circumstances)
            for environment, identity, circumstances in self._select(_ENVIRONMENTS)
        }
        return {environment: pair for environment, pair in found.items() if pair is not None}

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """As the contract says."""
        kept = [rows.checked(problem, record) for record in records]
        with self._writing() as db:
            for environment in dict.fromkeys(record.environment for record in kept):
                _know(db, environment, problem)
                db.execute("DELETE FROM pending WHERE environment = ? AND problem = ?", (environment, problem.key))
            db.table("records").insert_all(map(rows.record_row, kept))

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """As the contract says."""
        key = problem.key
        found = [rows.record_of(environment, key, row) for row in self._select(_RECORDS, (environment, key))]
        return [record for record in found if record is not None]

    def problems(self, environment: str) -> list[Problem]:
        """As the contract says."""
        return _problems(self._select(_PROBLEMS, (environment,)))

    def begin(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        note = {
            "environment": environment,
            "problem": problem.key,
            "candidate": candidate,
            "pid": os.getpid(),
            "started": time.time(),
        }
        with self._writing() as db:
            _know(db, environment, problem)
            db.execute(_BEGIN, note)

    def end(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        with self._writing() as db:
            db.execute(
                "DELETE FROM notes WHERE environment = ? AND problem = ? AND candidate = ?",
                (environment, problem.key, candidate),
            )

    def unended(self, environment: str, problem: Problem) -> dict[str, int]:
        """As the contract says."""
        found = self._select(
            "SELECT candidate, times FROM notes WHERE environment = ? AND problem = ? ORDER BY rowid",
            (environment, problem.key),
        )
        return {name: times for name, times in found if isinstance(name, str) and isinstance(times, int)}

    def note(self, environment: str, problem: Problem) -> None:
        """As the contract says."""
        row = {"environment": environment, "problem": problem.key, "noted": time.time()}
        with self._writing() as db:
            _know(db, environment, problem)
            db.table("pending").insert(row, ignore=True)

    def pending(self, environment: str) -> list[Problem]:
        """As the contract says."""
        # By rowid, not by `noted`: clocks are set back, rowids only rise.
        return _problems(
            self._select("SELECT problem FROM pending WHERE environment = ? ORDER BY rowid", (environment,))
        )

    def forget(self, environment: str, problems: Iterable[Problem]) -> None:
        """As the contract says."""
        gone = [(environment, problem.key) for problem in problems]
        with self._writing() as db:
            db.conn.executemany("DELETE FROM pending WHERE environment = ? AND problem = ?", gone)

    def qualify(self, qualification: Qualification) -> None:
        """As the contract says.

        Raises:
            ValueError: a number is not finite.
        """
        row = rows.qualification_row(qualification)
        with self._writing() as db:
            _know(db, qualification.environment)
            db.table("qualifications").insert(row, replace=True)

    def qualification(self, environment: str, fingerprint: str) -> Qualification | None:
        """As the contract says."""
        for row in self._select(_QUALIFICATION, (environment, fingerprint)):
            return rows.qualification_of(environment, fingerprint, row)
        return None

    def close(self) -> None:
        """As the contract says; twice is once."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._connected("read") as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        """A transaction that is committed when the block ends, and undone if it raises."""
        if self._readonly:
            msg = f"{self._file} is open for reading only"
            raise ReadOnlyError(msg)
        with self._connected("write") as connection:
            # Here, so that processes that only look up never wait the 0.2 s that its import takes.
            from sqlite_utils import Database

            db = Database(connection, recursive_triggers=False, execute_plugins=False)
            # IMMEDIATE takes its place in the queue of writers; a reader that turned writer could only fail.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.commit()
            except BaseException:
                db.rollback()
                raise

    @contextmanager
    def _connected(self, doing: str) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone; whatever goes wrong with the file is a StoreError."""
        with self._lock:
            if self._closed:
                msg = f"{self._file} is closed"
                raise StoreError(msg)
            if self._connection is None:
                self._connection = connect(self._file, readonly=self._readonly)
            try:
                yield self._connection
            except (sqlite3.Error, OSError, OverflowError) as error:
                raise failure(doing, self._file, error) from error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _know(db: Database, environment: str, problem: Problem | None = None) -> None:
    """Make sure that the rows which others refer to are there."""
    now = time.time()
    db.table("environments").insert({"id": environment, "first_seen": now, "last_seen": now}, ignore=True)
    if problem is not None:
        db.table("problems").insert(rows.problem_row(problem), ignore=True)


def _problems(found: Iterable[tuple[Any, ...]]) -> list[Problem]:
    read = (rows.problem_of(key) for (key,) in found)
    return [problem for problem in read if problem is not None]


# A connection must not be carried across a fork, nor even closed in the child: its locks are the parent's
# (https://sqlite.org/howtocorrupt.html, 2.6). So every store lets go of its connection first, and its lock
# is held meanwhile, lest the child inherit it taken by a thread that the child lacks.
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_registering = threading.Lock()
_forking: list[SqliteStore] = []


def _before_fork() -> None:
    _registering.acquire()
    _forking.extend(_stores)
    for store in _forking:
        store._lock.acquire()
        store._disconnect()


def _after_fork() -> None:
    for store in _forking:
        store._lock.release()
    _forking.clear()
    _registering.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
