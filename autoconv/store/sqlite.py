"""A store in a SQLite file, which many processes share and a kill at any moment leaves whole."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from autoconv.errors import ReadOnlyError, StoreError
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.connection import FAILURES, READING, WRITING, connect, failure, is_busy, patience, turn, waited
from autoconv.store.contract import MAX_NAME, ModelRecord, Qualification, Store
from autoconv.store.tables import LAST, Tables

# Answered from the index on (environment, problem) alone.
_PROBLEMS = """
    SELECT problems.key
    FROM (
        SELECT problem, min(id) AS first FROM runs
        WHERE environment = (SELECT id FROM environments WHERE key = ?) GROUP BY problem
    ) JOIN problems ON problems.id = problem
    ORDER BY first
"""
_ENVIRONMENTS = "SELECT key, identity, circumstances FROM environments WHERE identity IS NOT NULL ORDER BY id"
_PLACE = """
    environment = (SELECT id FROM environments WHERE key = ?) AND problem = (SELECT id FROM problems WHERE key = ?)
"""
_BEGIN = """
    INSERT INTO notes (environment, problem, candidate, pid, started) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (environment, problem, candidate) DO UPDATE SET
        times = times + 1,
        pid = excluded.pid,
        started = excluded.started
"""
# By id, not by `noted`: clocks are set back, ids only rise.
_PENDING = """
    SELECT problems.key FROM pending JOIN problems ON problems.id = problem
    WHERE environment = (SELECT id FROM environments WHERE key = ?) ORDER BY pending.id
"""
_QUALIFICATIONS = f"""
    SELECT environments.key, fingerprint, origins.key, {", ".join(f"q.{c}" for c in rows.QUALIFICATION_COLUMNS)}
    FROM qualifications q
    JOIN environments ON environments.id = environment
    LEFT JOIN origins ON origins.id = origin
"""
_TRUST = f"""
    INSERT OR REPLACE INTO models ({", ".join(rows.MODEL_COLUMNS)})
    VALUES ({", ".join("?" for _ in rows.MODEL_COLUMNS)})
"""
_NETWORKS = """
    SELECT name, key, calls FROM networks JOIN problems ON problems.id = problem ORDER BY name, problem
"""
_GROUPS_AT_ONCE = 256


def default_path() -> Path:
    """Where the user's own database lies: `autoconv.db` in the system's folder for a user's data.

    Raises:
        StoreError: there is no such folder, since nothing says where the user's home is.
    """
    import platformdirs

    try:
        folder = Path(platformdirs.user_data_dir("autoconv"))
    except RuntimeError:  # as its newer versions have it
        folder = Path()
    if not folder.is_absolute():  # else it begins with `~`, which would be made in the working folder
        msg = "there is no home folder for autoconv.db"
        raise StoreError(msg, "name a file in AUTOCONV_DATABASE")
    return folder / "autoconv.db"


def open_store(path: str | os.PathLike[str], *, readonly: bool = False, immutable: bool = False) -> Store:
    """The store in a file; for writing, a missing file is created, for the user alone.

    Args:
        path: The file. A database that another machine wrote is welcome.
        readonly: Refuse every write, and create nothing. Works in folders that cannot be written, too.
        immutable: With `readonly`, for a file that nothing writes, such as one that came with the package: it is read
            as it lies there, without locks and without any file beside it.

    Raises:
        SchemaError: the file is no autoconv database, or a newer version's; it has not been changed.
        StoreError: it cannot be opened, or does not exist and may not be created.
        ValueError: it is to be written and immutable.
    """
    return SqliteStore(path, readonly=readonly, immutable=immutable)


def imported_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names of the files that a database's imported records came from, by `Record.origin`; some are not known.

    Raises:
        StoreError: it cannot be read.
    """
    file = Path(path).absolute()
    with closing(connect(file, readonly=True)) as connection:
        try:
            found = Tables(connection).select("SELECT key, file FROM origins")
        except FAILURES as error:
            raise failure("read", file, error) from error
    return {key: name for key, name in found if isinstance(key, str) and isinstance(name, str)}


class SqliteStore:
    """A `Store` in a SQLite file. The wrong choice on network folders that lose file locks.

    One connection serves all threads in turn; a look-up holds it for tens of microseconds. It is closed
    before a fork, and parent and child each open their own when next they need one: SQLite forbids to carry
    one across.
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False, immutable: bool = False) -> None:
        if immutable and not readonly:
            msg = f"{path} cannot be written and immutable: open it with readonly=True"
            raise ValueError(msg)
        self._file = Path(path).absolute()
        self._readonly = readonly
        self._immutable = immutable
        self._closed = False
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._tables: Tables | None = None
        self._waits = -1.0
        with _registering:
            _stores.add(self)
        with self._lock:
            self._connect()

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
        texts = rows.json_text(identity), rows.json_text(circumstances)
        with self.writing() as (_, tables):
            tables.describe(environment, *texts)

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
        with self.writing() as (connection, tables):
            tables.add(problem, kept)
            gone = [(environment, problem.key) for environment in {record.environment for record in kept}]
            connection.executemany(f"DELETE FROM pending WHERE {_PLACE}", gone)

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """As the contract says."""
        with self._connected(READING) as (_, tables):
            return tables.records(environment, problem.key)

    def problems(self, environment: str) -> list[Problem]:
        """As the contract says."""
        return _problems(self._select(_PROBLEMS, (environment,)))

    def all_records(self, environment: str | None = None) -> Iterator[tuple[Problem, list[Record]]]:
        """As the contract says."""
        after, last = (0, 0), LAST
        if environment is not None:
            found = self._select("SELECT id FROM environments WHERE key = ?", (environment,))
            if not found:
                return
            last = found[0][0]
            after = (last, -1)
        # In pages, so that nothing is held while the caller does what it wants with them.
        while True:
            with self._connected(READING) as (_, tables):
                groups = tables.groups(after, last, _GROUPS_AT_ONCE)
                found = tables.records_of_groups(after, groups[-1]) if groups else []
            if not groups:
                return
            yield from found
            after = groups[-1]

    def begin(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        with self.writing() as (connection, tables):
            place = tables.environment(environment), tables.problem(problem)
            connection.execute(_BEGIN, (*place, candidate, os.getpid(), time.time()))

    def end(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        with self.writing() as (connection, _):
            connection.execute(
                f"DELETE FROM notes WHERE {_PLACE} AND candidate = ?", (environment, problem.key, candidate)
            )

    def unended(self, environment: str, problem: Problem) -> dict[str, int]:
        """As the contract says."""
        found = self._select(
            f"SELECT candidate, times FROM notes WHERE {_PLACE} ORDER BY id", (environment, problem.key)
        )
        return {name: times for name, times in found if isinstance(name, str) and isinstance(times, int)}

    def note(self, environment: str, problem: Problem) -> None:
        """As the contract says."""
        with self.writing() as (connection, tables):
            connection.execute(
                "INSERT INTO pending (environment, problem, noted) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (tables.environment(environment), tables.problem(problem), time.time()),
            )

    def pending(self, environment: str) -> list[Problem]:
        """As the contract says."""
        return _problems(self._select(_PENDING, (environment,)))

    def forget(self, environment: str, problems: Iterable[Problem]) -> None:
        """As the contract says."""
        gone = [(environment, problem.key) for problem in problems]
        with self.writing() as (connection, _):
            connection.executemany(f"DELETE FROM pending WHERE {_PLACE}", gone)

    def qualify(self, qualification: Qualification) -> None:
        """As the contract says.

        Raises:
            ValueError: a number is not finite.
        """
        row = rows.qualification_row(qualification)
        with self.writing() as (_, tables):
            tables.add_qualification(qualification.environment, qualification.fingerprint, qualification.origin, row)

    def qualification(self, environment: str, fingerprint: str) -> Qualification | None:
        """As the contract says."""
        own = f"{_QUALIFICATIONS} WHERE environments.key = ? AND fingerprint = ? AND origin IS NULL"
        return next(iter(_qualifications(self._select(own, (environment, fingerprint)))), None)

    def qualifications(self) -> list[Qualification]:
        """As the contract says."""
        return _qualifications(self._select(f"{_QUALIFICATIONS} ORDER BY q.id"))

    def trust_model(self, model: ModelRecord) -> None:
        """As the contract says.

        Raises:
            ValueError: `created` is not finite.
        """
        row = rows.model_row(model)
        with self.writing() as (connection, _):
            connection.execute(_TRUST, row)

    def trusted_models(self) -> list[ModelRecord]:
        """As the contract says."""
        if not self._has("models"):
            return []
        found = self._select(f"SELECT {', '.join(rows.MODEL_COLUMNS)} FROM models ORDER BY id")
        return [model for model in map(rows.model_of, found) if model is not None]

    def name_network(self, name: str, calls: Mapping[Problem, int]) -> None:
        """As the contract says."""
        known_as = rows.one_line(name, MAX_NAME)
        with self.writing() as (connection, tables):
            kept = [(known_as, tables.problem(problem), times) for problem, times in calls.items() if times > 0]
            connection.executemany("INSERT OR REPLACE INTO networks (name, problem, calls) VALUES (?, ?, ?)", kept)

    def networks(self) -> dict[str, dict[Problem, int]]:
        """As the contract says."""
        found: dict[str, dict[Problem, int]] = {}
        if self._has("networks"):
            for name, key, calls in self._select(_NETWORKS):
                problem = rows.problem_of(key)
                if problem is not None and isinstance(name, str) and isinstance(calls, int):
                    found.setdefault(rows.one_line(name, MAX_NAME), {})[problem] = calls
        return found

    def close(self) -> None:
        """As the contract says; twice is once."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _has(self, table: str) -> bool:
        """Whether there is this table, which came with a later schema than the first that are read."""
        return bool(self._select("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)))

    def _select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._connected(READING) as (_, tables):
            return tables.select(sql, parameters)

    @contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, Tables]]:
        """A transaction of this package's own, committed when the block ends and undone if it raises."""
        if self._readonly:
            msg = f"{self._file} is open for reading only"
            raise ReadOnlyError(msg)
        with self._connected(WRITING) as (connection, tables), turn(self._file):
            self._wait_as(WRITING, connection)  # not for long where the turn did not come
            # IMMEDIATE takes its place in the queue of writers; a reader that turned writer could only fail.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection, tables
                connection.execute("COMMIT")
            except BaseException:
                tables.forget()
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _connected(self, doing: str) -> Iterator[tuple[sqlite3.Connection, Tables]]:
        """The connection, for this thread alone; whatever goes wrong with the file is a StoreError."""
        with self._lock:
            tables = self._open_tables()
            assert self._connection is not None
            try:
                self._wait_as(doing, self._connection)
                yield self._connection, tables
            except FAILURES as error:
                if is_busy(error):
                    waited(self._file, doing, in_vain=True)
                raise failure(doing, self._file, error) from error
            waited(self._file, doing)

    def _wait_as(self, doing: str, connection: sqlite3.Connection) -> None:
        """Have the connection wait for others as long as is worth it."""
        seconds = patience(self._file, doing)
        if seconds != self._waits:
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
            self._waits = seconds

    def _open_tables(self) -> Tables:
        if self._closed:
            msg = f"{self._file} is closed"
            raise StoreError(msg)
        return self._tables or self._connect()

    def _connect(self) -> Tables:
        self._connection = connect(self._file, readonly=self._readonly, immutable=self._immutable)
        self._waits = -1.0
        self._tables = Tables(self._connection)
        return self._tables

    def _disconnect(self) -> None:
        connection, self._connection, self._tables = self._connection, None, None
        if connection is not None:
            connection.close()


def _problems(found: Iterable[tuple[Any, ...]]) -> list[Problem]:
    read = (rows.problem_of(key) for (key,) in found)
    return [problem for problem in read if problem is not None]


def _qualifications(found: Iterable[tuple[Any, ...]]) -> list[Qualification]:
    read = (rows.qualification_of(row[0], row[1], row[2] or "", row[3:]) for row in found)
    return [qualification for qualification in read if qualification is not None]


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
