"""Removal: how a database's rows are taken away, and its file made smaller. `prune` alone does so.

Candidates and origins are never removed, since every open connection keeps the numbers that it has seen. Nor is a row
that cannot be understood, which a newer version may have written, but with its environment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from autoconv.store.contract import Pruned
from autoconv.store.tables import Place

# Runs are removed as well, and their numbers given anew: so a run is known again by its key and its time.
_RECORD = """
    DELETE FROM records WHERE run = ?1 AND position = ?2
        AND EXISTS (SELECT 1 FROM runs WHERE id = ?1 AND key = ?3 AND created = ?4)
"""
_EMPTY_RUN = "DELETE FROM runs WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM records WHERE run = ?1)"
_OF_ENVIRONMENT = (
    "DELETE FROM records WHERE run IN (SELECT id FROM runs WHERE environment = ?)",
    "DELETE FROM runs WHERE environment = ?",
    "DELETE FROM notes WHERE environment = ?",
    "DELETE FROM pending WHERE environment = ?",
    "DELETE FROM qualifications WHERE environment = ?",
    "DELETE FROM environments WHERE id = ?",
)
_UNUSED_PROBLEMS = """
    DELETE FROM problems WHERE id NOT IN (
        SELECT problem FROM runs UNION SELECT problem FROM notes UNION SELECT problem FROM pending
        UNION SELECT problem FROM networks
    )
"""
_COUNTS = (
    "SELECT count(*) FROM records",
    "SELECT count(*) FROM (SELECT DISTINCT environment, problem FROM runs)",
    "SELECT count(*) FROM environments",
    "SELECT count(*) FROM pending",
)

_STEPS = 100_000
"""Steps of SQLite's machine after which a Ctrl-C is heard, a millisecond or so."""


def remove(
    connection: sqlite3.Connection, doomed: Iterable[Place], environments: Iterable[str], *, pending: bool
) -> Pruned:
    """Remove records, whole environments and pending lists, and what is of none any more. Whoever calls it has begun a
    transaction, without foreign keys: those of a problem would have all runs looked through for each one removed.
    """
    before = _counts(connection)
    for key in environments:
        for number in connection.execute("SELECT id FROM environments WHERE key = ?", (key,)).fetchall():
            for statement in _OF_ENVIRONMENT:
                connection.execute(statement, number)
    runs: set[int] = set()

    def noted() -> Iterator[Place]:
        for place in doomed:
            runs.add(place[0])
            yield place

    connection.executemany(_RECORD, noted())
    connection.executemany(_EMPTY_RUN, ((run,) for run in sorted(runs)))
    if pending:
        connection.execute("DELETE FROM pending")
    connection.execute(_UNUSED_PROBLEMS)
    return Pruned(*(first - last for first, last in zip(before, _counts(connection), strict=True)))


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something: about what the file takes once it is compacted."""
    names = "page_count", "freelist_count", "page_size"
    pages, free, size = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
    return (pages - free) * size


def compact(connection: sqlite3.Connection) -> bool:
    """Write the file anew without the pages that hold nothing; whether it is smaller now.

    Where others read the database meanwhile, it is so once they are done. Takes as much room beside the file as is
    left in it, and a kill or a full disk amid it leaves the file as it was.
    """
    connection.execute("VACUUM")
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


@contextmanager
def heeding_interrupts(connection: sqlite3.Connection) -> Iterator[None]:
    """SQLite's own loops end at Ctrl-C as well, which Python else hears of only after the statement.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
    """
    # Whatever is raised there ends the statement, and is not told of: what ended is.
    connection.set_progress_handler(_nothing, _STEPS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


@contextmanager
def without_foreign_keys(connection: sqlite3.Connection) -> Iterator[None]:
    """For a transaction that keeps them by itself."""
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def _counts(connection: sqlite3.Connection) -> list[int]:
    return [int(connection.execute(statement).fetchone()[0]) for statement in _COUNTS]


def _nothing() -> None:
    """Where Python looks for signals."""
