"""The schema, as the named steps that lead to it.

A step that was released is never edited: the next one follows it. Importing this module imports sqlite-utils
(0.2 s), so `connection` does it only where a step is missing.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("autoconv")

# Statuses are not checked here: a newer version may add one, and an older one reads it as a miss. Nor is JSON in
# full: SQLite 3.40 refuses json_valid() in a schema that is not trusted.
_MEASUREMENTS = (
    """
    CREATE TABLE environments (
        id TEXT PRIMARY KEY,
        identity TEXT,
        circumstances TEXT,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        CHECK ((identity IS NULL) = (circumstances IS NULL))
    ) STRICT
    """,
    """
    CREATE TABLE problems (
        key TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        dtype TEXT NOT NULL,
        n INTEGER NOT NULL,
        d INTEGER NOT NULL,
        h INTEGER NOT NULL,
        w INTEGER NOT NULL,
        c_in INTEGER NOT NULL,
        c_out INTEGER NOT NULL,
        kd INTEGER NOT NULL,
        kh INTEGER NOT NULL,
        kw INTEGER NOT NULL,
        groups INTEGER NOT NULL,
        gflop REAL NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        environment TEXT NOT NULL REFERENCES environments (id),
        problem TEXT NOT NULL REFERENCES problems (key),
        algorithm TEXT NOT NULL,
        version INTEGER NOT NULL,
        parameters TEXT NOT NULL,
        status TEXT NOT NULL,
        samples_us TEXT NOT NULL CHECK (substr(samples_us, 1, 1) = '['),
        error REAL,
        workspace_bytes INTEGER,
        peak_bytes INTEGER,
        detail TEXT NOT NULL,
        run TEXT NOT NULL,
        created REAL NOT NULL,
        library TEXT NOT NULL
    ) STRICT
    """,
    # The rowid at its end keeps a problem's records in the order in which they came.
    "CREATE INDEX records_by_problem ON records (environment, problem)",
    """
    CREATE TABLE notes (
        environment TEXT NOT NULL REFERENCES environments (id),
        problem TEXT NOT NULL REFERENCES problems (key),
        candidate TEXT NOT NULL,
        times INTEGER NOT NULL DEFAULT 1,
        pid INTEGER NOT NULL,
        started REAL NOT NULL,
        PRIMARY KEY (environment, problem, candidate)
    ) STRICT
    """,
    """
    CREATE TABLE pending (
        environment TEXT NOT NULL REFERENCES environments (id),
        problem TEXT NOT NULL REFERENCES problems (key),
        noted REAL NOT NULL,
        PRIMARY KEY (environment, problem)
    ) STRICT
    """,
    """
    CREATE TABLE qualifications (
        environment TEXT NOT NULL REFERENCES environments (id),
        fingerprint TEXT NOT NULL,
        passed TEXT NOT NULL CHECK (substr(passed, 1, 1) = '['),
        barred TEXT NOT NULL CHECK (substr(barred, 1, 1) = '{'),
        noise REAL NOT NULL,
        ceilings TEXT NOT NULL CHECK (substr(ceilings, 1, 1) = '{'),
        created REAL NOT NULL,
        PRIMARY KEY (environment, fingerprint)
    ) STRICT
    """,
)


@migrations()
def m001_measurements(db: Database) -> None:
    """Environments, problems and records; notes and pending problems; qualifications."""
    for statement in _MEASUREMENTS:
        db.execute(statement)


def migrate(connection: sqlite3.Connection, application_id: int, schema: int) -> None:
    """Bring a database to the newest schema and mark it with its number and as ours, all in one transaction.

    Processes that come at the same time wait for the first, and then find nothing left to do.
    """
    db = Database(connection, recursive_triggers=False, execute_plugins=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(db)
        connection.execute(f"PRAGMA application_id = {application_id}")
        connection.execute(f"PRAGMA user_version = {schema}")
        db.commit()
    except BaseException:
        db.rollback()
        raise
