"""A foreign database: read as if its author meant harm."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoconv.errors import SchemaError, StoreError
from autoconv.store.connection import schema_of
from autoconv.store.tables import text_or_bytes
from autoconv.store.transfer.entries import FIELDS, Entries, Entry, Place

MAX_VALUE = 1_000_000
"""Longest value that is read, in bytes; a longer one is damage."""

_STEPS_AT_ONCE = 10_000
_STEPS_BYTE = 10
"""Steps of SQLite's machine that a byte of the file is worth: to check and to read one of ours takes about one."""

_COLUMNS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "environments": ("id", "identity", "circumstances"),
        "qualifications": FIELDS["qualification"],
        "records": ("id", *FIELDS["record"]),
    },
    2: {
        "environments": ("id", "key", "identity", "circumstances"),
        "problems": ("id", "key"),
        "candidates": ("id", "algorithm", "version", "parameters"),
        "runs": ("id", "environment", "problem", "key", "created", "library"),
        "records": (
            "run",
            "position",
            "candidate",
            "status",
            "samples_us",
            "error",
            "workspace_bytes",
            "peak_bytes",
            "detail",
        ),
        "qualifications": ("id", *FIELDS["qualification"]),
    },
}
# The third one has models as well and the fifth networks, and those of others are not looked at; the fourth has more
# views.
_COLUMNS[3] = _COLUMNS[4] = _COLUMNS[5] = _COLUMNS[2]
"""Tables and columns that are read of each schema; views, triggers and all other tables are not looked at."""

# The columns are those of FIELDS, in their order. CROSS JOIN keeps the order in which tables are read.
_QUERIES: dict[int, dict[str, str]] = {
    1: {
        "environment": "SELECT id, identity, circumstances FROM environments WHERE identity IS NOT NULL ORDER BY rowid",
        "qualification": f"SELECT {', '.join(FIELDS['qualification'])} FROM qualifications ORDER BY rowid",
        "record": f"SELECT {', '.join(FIELDS['record'])} FROM records ORDER BY id",
    },
    2: {
        "environment": "SELECT key, identity, circumstances FROM environments WHERE identity IS NOT NULL ORDER BY id",
        "qualification": """
            SELECT e.key, fingerprint, passed, barred, noise, ceilings, created
            FROM qualifications q CROSS JOIN environments e ON e.id = q.environment ORDER BY q.id
        """,
        "record": """
            SELECT e.key, p.key, algorithm, version, parameters, status, samples_us, error, workspace_bytes,
                peak_bytes, detail, runs.key, created, library
            FROM runs
            CROSS JOIN environments e ON e.id = runs.environment
            CROSS JOIN problems p ON p.id = runs.problem
            CROSS JOIN records r ON r.run = runs.id
            CROSS JOIN candidates c ON c.id = r.candidate
            ORDER BY runs.id, r.position
        """,
    },
}
_QUERIES[3] = _QUERIES[4] = _QUERIES[5] = _QUERIES[2]
_SETTINGS = ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "ignore_check_constraints = ON")
_TABLE = "SELECT type, sql FROM sqlite_master WHERE name = ?"
_XINFO = "SELECT name, hidden FROM pragma_table_xinfo(?)"
_NESTED = ("identity", "circumstances", "passed", "barred", "ceilings")


def read_database(file: Path) -> Entries:
    """The entries of a database, of this schema or an older one, in the order in which they came.

    The file is only read, as it lies there. Nothing that its schema defines is run: names must be plain tables.

    Raises:
        SchemaError: it is no database of ours, or a newer version's.
        StoreError: it is damaged, in use, or not what it says. Unless entries came before, none will.
    """
    for suffix in ("-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{file}{suffix}").st_size:
                msg = f"{file} is in use ({file.name}{suffix} holds changes): import an export of it"
                raise StoreError(msg)
    with _opened(file) as connection:
        schema = schema_of(connection, file)
        if not schema:
            msg = f"{file} is empty"
            raise SchemaError(msg)
        _check_tables(connection, file, _COLUMNS[schema])
        yield from _entries(connection, schema)


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    steps = math.ceil(file.stat().st_size * _STEPS_BYTE / _STEPS_AT_ONCE) + 1000

    def count() -> bool:
        nonlocal steps
        steps -= 1
        return steps < 0

    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        connection.set_progress_handler(count, _STEPS_AT_ONCE)
        for limit, most in (
            (sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100),
            (sqlite3.SQLITE_LIMIT_COLUMN, 100),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 3),
        ):
            connection.setlimit(limit, most)
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        for pragma in _SETTINGS:
            connection.execute(f"PRAGMA {pragma}")
        connection.text_factory = text_or_bytes
        yield connection
    except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:  # see `connection.FAILURES`
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
            msg = f"{file} is no SQLite database"
            raise SchemaError(msg) from error
        reason = "it takes longer than its size explains" if steps < 0 else str(error) or "it is damaged"
        msg = f"cannot read {file}: {reason}"
        raise StoreError(msg) from error
    finally:
        connection.close()


def _check_tables(connection: sqlite3.Connection, file: Path, tables: dict[str, tuple[str, ...]]) -> None:
    for name, columns in tables.items():
        found = connection.execute(_TABLE, (name,)).fetchall()
        plain = len(found) == 1 and found[0][0] == "table" and str(found[0][1]).upper().startswith("CREATE TABLE")
        # The last column says what is hidden: generated columns, and those of virtual tables.
        there = connection.execute(_XINFO, (name,)).fetchall() if plain else []
        if not plain or any(hidden for _, hidden in there) or not set(columns) <= {column for column, _ in there}:
            msg = f"{file} is no sound database: its {name} are no plain table with the columns that they should have"
            raise SchemaError(msg)
        # Checked whole before any of it is taken: a damaged file gives nothing, rather than a part.
        state = connection.execute(f"PRAGMA quick_check('{name}')").fetchone()[0]
        if state != "ok":
            msg = f"cannot read {file}: it is damaged ({str(state).splitlines()[-1][:200]})"
            raise StoreError(msg)


def _entries(connection: sqlite3.Connection, schema: int) -> Entries:
    total = max(1, connection.execute("SELECT count(*) FROM records").fetchone()[0])
    for kind, query in _QUERIES[schema].items():
        for number, row in enumerate(connection.execute(query), start=1):
            place: Place = (f"{kind} {number}", min(1.0, number / total) if kind == "record" else 0.0)
            yield place, _entry(kind, row)


def _entry(kind: str, row: tuple[Any, ...]) -> Entry | str:
    entry: Entry = {"type": kind, **dict(zip(FIELDS[kind], row, strict=True))}
    if kind != "record":
        try:
            for name in _NESTED:
                if name in entry:
                    entry[name] = json.loads(entry[name])
        except (ValueError, TypeError, RecursionError):
            return "no JSON"
    return entry
