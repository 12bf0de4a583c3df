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


# A problem's key is 70 characters and stood in every record, in the index and in the notes; so did an environment's.
# Now a number stands for each, and what all records of a run share stands once. Records lie in the order of their runs:
# a look-up reads them side by side, and they need no index of their own. Runs, like the records in them, are added at
# the end, a run once more where others came between, so that their order is that of the calls; a prune removes some.
#
# Candidates and origins are never removed, since every open connection keeps the numbers that it has seen.
_NUMBERS = (
    *(
        f"ALTER TABLE {name} RENAME TO old_{name}"
        for name in ("environments", "problems", "records", "notes", "pending", "qualifications")
    ),
    """
    CREATE TABLE environments (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        identity TEXT,
        circumstances TEXT,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        CHECK ((identity IS NULL) = (circumstances IS NULL))
    ) STRICT
    """,
    """
    CREATE TABLE problems (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
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
    CREATE TABLE candidates (
        id INTEGER PRIMARY KEY,
        algorithm TEXT NOT NULL,
        version INTEGER NOT NULL,
        parameters TEXT NOT NULL,
        UNIQUE (algorithm, version, parameters)
    ) STRICT
    """,
    # `key` is what `Record.origin` says; no sha256 where nothing but that is known of it.
    """
    CREATE TABLE origins (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE CHECK (key <> ''),
        sha256 TEXT,
        file TEXT,
        imported REAL NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        environment INTEGER NOT NULL REFERENCES environments (id),
        problem INTEGER NOT NULL REFERENCES problems (id),
        key TEXT NOT NULL,
        created REAL NOT NULL,
        library TEXT NOT NULL,
        origin INTEGER REFERENCES origins (id)
    ) STRICT
    """,
    "CREATE INDEX runs_by_problem ON runs (environment, problem)",
    """
    CREATE TABLE records (
        run INTEGER NOT NULL REFERENCES runs (id),
        position INTEGER NOT NULL,
        candidate INTEGER NOT NULL REFERENCES candidates (id),
        status TEXT NOT NULL,
        samples_us TEXT NOT NULL CHECK (substr(samples_us, 1, 1) = '['),
        error REAL,
        workspace_bytes INTEGER,
        peak_bytes INTEGER,
        detail TEXT NOT NULL,
        PRIMARY KEY (run, position)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE notes (
        id INTEGER PRIMARY KEY,
        environment INTEGER NOT NULL REFERENCES environments (id),
        problem INTEGER NOT NULL REFERENCES problems (id),
        candidate TEXT NOT NULL,
        times INTEGER NOT NULL DEFAULT 1,
        pid INTEGER NOT NULL,
        started REAL NOT NULL,
        UNIQUE (environment, problem, candidate)
    ) STRICT
    """,
    """
    CREATE TABLE pending (
        id INTEGER PRIMARY KEY,
        environment INTEGER NOT NULL REFERENCES environments (id),
        problem INTEGER NOT NULL REFERENCES problems (id),
        noted REAL NOT NULL,
        UNIQUE (environment, problem)
    ) STRICT
    """,
    """
    CREATE TABLE qualifications (
        id INTEGER PRIMARY KEY,
        environment INTEGER NOT NULL REFERENCES environments (id),
        fingerprint TEXT NOT NULL,
        passed TEXT NOT NULL CHECK (substr(passed, 1, 1) = '['),
        barred TEXT NOT NULL CHECK (substr(barred, 1, 1) = '{'),
        noise REAL NOT NULL,
        ceilings TEXT NOT NULL CHECK (substr(ceilings, 1, 1) = '{'),
        created REAL NOT NULL,
        origin INTEGER REFERENCES origins (id)
    ) STRICT
    """,
    # In a UNIQUE constraint no NULL is like another.
    "CREATE UNIQUE INDEX qualifications_once ON qualifications (environment, fingerprint, coalesce(origin, 0))",
    """
    INSERT INTO environments (key, identity, circumstances, first_seen, last_seen)
    SELECT id, identity, circumstances, first_seen, last_seen FROM old_environments ORDER BY rowid
    """,
    """
    INSERT INTO problems (key, kind, dtype, n, d, h, w, c_in, c_out, kd, kh, kw, groups, gflop)
    SELECT key, kind, dtype, n, d, h, w, c_in, c_out, kd, kh, kw, groups, gflop FROM old_problems ORDER BY rowid
    """,
    """
    INSERT INTO candidates (algorithm, version, parameters)
    SELECT algorithm, version, parameters FROM old_records GROUP BY 1, 2, 3 ORDER BY min(id)
    """,
    # A run has the id of its first record. It begins where a record's run, time or library is not that of the record
    # before it of the same problem and environment.
    """
    CREATE TABLE old_starts AS
    SELECT id, environment, problem, max(CASE WHEN starts THEN id END) OVER same AS run
    FROM (
        SELECT id, environment, problem,
            run IS NOT lag(run) OVER same
                OR created IS NOT lag(created) OVER same
                OR library IS NOT lag(library) OVER same AS starts
        FROM old_records WINDOW same AS (PARTITION BY environment, problem ORDER BY id)
    )
    WINDOW same AS (PARTITION BY environment, problem ORDER BY id)
    """,
    """
    INSERT INTO runs (id, environment, problem, key, created, library)
    SELECT r.id, e.id, p.id, r.run, r.created, r.library
    FROM old_starts s
    JOIN old_records r ON r.id = s.id
    JOIN environments e ON e.key = r.environment
    JOIN problems p ON p.key = r.problem
    WHERE s.id = s.run ORDER BY r.id
    """,
    """
    INSERT INTO records
    SELECT s.run, r.id - s.run, c.id, r.status, r.samples_us, r.error, r.workspace_bytes, r.peak_bytes, r.detail
    FROM old_starts s
    JOIN runs ON runs.id = s.run
    JOIN old_records r ON r.id = s.id
    JOIN candidates c ON (c.algorithm, c.version, c.parameters) = (r.algorithm, r.version, r.parameters)
    ORDER BY s.run, r.id
    """,
    """
    INSERT INTO notes (environment, problem, candidate, times, pid, started)
    SELECT e.id, p.id, candidate, times, pid, started
    FROM old_notes n JOIN environments e ON e.key = n.environment JOIN problems p ON p.key = n.problem
    ORDER BY n.rowid
    """,
    """
    INSERT INTO pending (environment, problem, noted)
    SELECT e.id, p.id, noted
    FROM old_pending n JOIN environments e ON e.key = n.environment JOIN problems p ON p.key = n.problem
    ORDER BY n.rowid
    """,
    """
    INSERT INTO qualifications (environment, fingerprint, passed, barred, noise, ceilings, created)
    SELECT e.id, fingerprint, passed, barred, noise, ceilings, created
    FROM old_qualifications q JOIN environments e ON e.key = q.environment ORDER BY q.rowid
    """,
    # Those that refer to others first.
    *(
        f"DROP TABLE old_{name}"
        for name in ("starts", "notes", "pending", "qualifications", "records", "problems", "environments")
    ),
    # For people and for Datasette: one readable row a record. json_each, since SQLite 3.40 lets no other function of
    # JSON into a schema that is not trusted.
    """
    CREATE VIEW results AS
    SELECT
        environments.key AS environment,
        (SELECT value FROM json_each(environments.identity) WHERE key = 'device') AS device,
        problems.key AS problem,
        problems.gflop,
        algorithm || iif(parameters = '', '', '(' || parameters || ')') AS candidate,
        version,
        status,
        (
            SELECT avg(value)
            FROM (
                SELECT value, row_number() OVER (ORDER BY value) AS place, count(*) OVER () AS samples
                FROM json_each(samples_us)
            )
            WHERE place IN ((samples + 1) / 2, (samples + 2) / 2)
        ) AS median_us,
        error,
        workspace_bytes,
        peak_bytes,
        detail,
        runs.key AS run,
        datetime(created, 'unixepoch') AS created,
        library,
        origins.key AS origin
    FROM runs
    JOIN records ON records.run = runs.id
    JOIN candidates ON candidates.id = records.candidate
    JOIN environments ON environments.id = runs.environment
    JOIN problems ON problems.id = runs.problem
    LEFT JOIN origins ON origins.id = runs.origin
    """,
)


@migrations()
def m002_numbers(db: Database) -> None:
    """Numbers in place of keys, runs and candidates of their own, where measurements came from, and a view."""
    for statement in _NUMBERS:
        db.execute(statement)


# A model is a file beside the database, and read only if it is the very file that its owner trained: so its digest
# stands here. Nobody else's database may say so, and this table leaves in no export and comes with no import.
_MODELS = """
    CREATE TABLE models (
        id INTEGER PRIMARY KEY,
        backend TEXT NOT NULL,
        file TEXT NOT NULL UNIQUE,
        sha256 TEXT NOT NULL,
        environment TEXT,
        problems INTEGER NOT NULL,
        created REAL NOT NULL
    ) STRICT
"""


@migrations()
def m003_models(db: Database) -> None:
    """Cost models that the owner trusts."""
    db.execute(_MODELS)


# For people and for Datasette, like `results`. They rest on samples alone, so that they are true of every row, whoever
# wrote it; a page of them takes milliseconds, and all of 4,500 problems about half a second.
#
# A winner here may differ from a decision: it is that of the newest run that timed anything, where a decision pools all
# runs; native is kept up to 2%, where a decision asks for more on a noisy device and judges by a lower bound, on other
# samples than chose; and neither memory, limits set since, nor what was barred by another run is looked at.
_VIEWS = (
    """
    CREATE VIEW times AS
    SELECT
        run,
        position,
        algorithm || iif(parameters = '', '', '(' || parameters || ')') AS candidate,
        algorithm,
        (
            SELECT avg(value)
            FROM (
                SELECT value, row_number() OVER (ORDER BY value) AS place, count(*) OVER () AS samples
                FROM json_each(samples_us)
            )
            WHERE place IN ((samples + 1) / 2, (samples + 2) / 2)
        ) AS median_us,
        error,
        workspace_bytes,
        peak_bytes
    FROM records JOIN candidates ON candidates.id = records.candidate
    WHERE status = 'ok' AND samples_us <> '[]'
    """,
    """
    CREATE VIEW winners AS
    SELECT
        (SELECT value FROM json_each(environments.identity) WHERE key = 'device') AS device,
        kind,
        dtype,
        n || 'x' || d || 'x' || h || 'x' || w || 'x' || c_in AS input,
        c_out || 'x' || kd || 'x' || kh || 'x' || kw || 'x' || (c_in / groups) AS weight,
        kd || 'x' || kh || 'x' || kw AS kernel,
        round(gflop, 3) AS gflop,
        best.algorithm,
        best.candidate AS winner,
        round(newest.native_us, 2) AS native_us,
        round(best.median_us, 2) AS winner_us,
        round(newest.native_us / best.median_us, 3) AS speedup,
        best.error,
        best.peak_bytes,
        date(newest.created, 'unixepoch') AS measured,
        (SELECT file FROM origins WHERE origins.id = newest.origin) AS imported_from,
        environments.key AS environment,
        problems.key AS problem
    FROM (
        SELECT
            id,
            environment,
            problem,
            created,
            origin,
            (
                SELECT position FROM times WHERE times.run = runs.id
                ORDER BY iif(candidate = 'native', median_us / 1.02, median_us) LIMIT 1
            ) AS best,
            (SELECT median_us FROM times WHERE times.run = runs.id AND candidate = 'native' LIMIT 1) AS native_us
        FROM runs
        WHERE id = (
            SELECT id FROM runs AS other
            WHERE other.environment = runs.environment AND other.problem = runs.problem AND EXISTS (
                SELECT 1 FROM records WHERE records.run = other.id AND status = 'ok' AND samples_us <> '[]'
            )
            ORDER BY id DESC LIMIT 1
        )
    ) AS newest
    CROSS JOIN environments ON environments.id = newest.environment
    CROSS JOIN problems ON problems.id = newest.problem
    CROSS JOIN times AS best ON best.run = newest.id AND best.position = newest.best
    """,
    # Sums of times weigh every problem by what native takes, and none by how often a network calls it.
    """
    CREATE VIEW gains AS
    SELECT
        device,
        kind,
        dtype,
        kernel,
        count(*) AS problems,
        sum(algorithm <> 'native') AS not_native,
        round(sum(native_us) / 1000.0, 3) AS native_ms,
        round(sum(winner_us) / 1000.0, 3) AS winners_ms,
        round(sum(native_us) / sum(winner_us), 3) AS gain,
        max(speedup) AS most,
        environment
    FROM winners
    WHERE native_us IS NOT NULL
    GROUP BY environment, kind, dtype, kernel
    """,
    """
    CREATE VIEW failures AS
    SELECT
        (SELECT value FROM json_each(environments.identity) WHERE key = 'device') AS device,
        algorithm,
        algorithm || iif(parameters = '', '', '(' || parameters || ')') AS candidate,
        status,
        detail,
        error,
        kind,
        dtype,
        date(runs.created, 'unixepoch') AS measured,
        environments.key AS environment,
        problems.key AS problem
    FROM records
    JOIN runs ON runs.id = records.run
    JOIN candidates ON candidates.id = records.candidate
    JOIN environments ON environments.id = runs.environment
    JOIN problems ON problems.id = runs.problem
    WHERE status IN ('failed', 'out_of_memory', 'wrong', 'inaccurate', 'crashed')
    """,
    # `environments` is the table.
    """
    CREATE VIEW devices AS
    SELECT
        (SELECT value FROM json_each(identity) WHERE key = 'device') AS device,
        (SELECT value FROM json_each(identity) WHERE key = 'backend') AS backend,
        (SELECT value FROM json_each(identity) WHERE key = 'architecture') AS architecture,
        (SELECT value FROM json_each(identity) WHERE key = 'mlx') AS mlx,
        (SELECT value FROM json_each(circumstances) WHERE key = 'os') AS os,
        (SELECT value FROM json_each(circumstances) WHERE key = 'driver') AS driver,
        (SELECT count(DISTINCT problem) FROM runs WHERE runs.environment = environments.id) AS problems,
        (SELECT count(*) FROM runs WHERE runs.environment = environments.id) AS runs,
        (
            SELECT count(*) FROM runs JOIN records ON records.run = runs.id
            WHERE runs.environment = environments.id
        ) AS records,
        (SELECT date(min(created), 'unixepoch') FROM runs WHERE runs.environment = environments.id) AS first,
        (SELECT date(max(created), 'unixepoch') FROM runs WHERE runs.environment = environments.id) AS last,
        key AS environment
    FROM environments
    WHERE identity IS NOT NULL
    """,
)


@migrations()
def m004_views(db: Database) -> None:
    """Views that people can read: winners, gains, failures and devices."""
    for statement in _VIEWS:
        db.execute(statement)


# What networks of the user's own make, by the name of the program, the function or the workload file that made them. A
# name is a user's: this table leaves in no export and comes with no import.
_NETWORKS = """
    CREATE TABLE networks (
        name TEXT NOT NULL,
        problem INTEGER NOT NULL REFERENCES problems (id),
        calls INTEGER NOT NULL,
        PRIMARY KEY (name, problem)
    ) STRICT, WITHOUT ROWID
"""


@migrations()
def m005_networks(db: Database) -> None:
    """How often the user's own networks make each problem."""
    db.execute(_NETWORKS)


VIEWS = {sql.split()[2]: sql for sql in (_NUMBERS[-1], *_VIEWS)}
"""The statement that makes each view of the newest schema, by its name."""


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
