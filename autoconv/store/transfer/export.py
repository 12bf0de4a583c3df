"""An export: a database's measurements in one file, for others to read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from autoconv import plain_file
from autoconv.errors import StoreError
from autoconv.store import rows
from autoconv.store.connection import APPLICATION_ID, SCHEMA, connect, failure, schema_of
from autoconv.store.tables import text_or_bytes
from autoconv.store.transfer import browsing, entries
from autoconv.store.transfer.scrub import scrubbed
from autoconv.store.transfer.selection import Selection

SQLITE_SUFFIXES = (".db", ".sqlite")
"""Suffixes of a SQLite database."""

TEXT_SUFFIXES = (".jsonl", ".csv")
"""Suffixes of JSON lines and of tables."""

# Of qualifications of one environment and fingerprint, the one that was made here, else the newest.
_ONE_QUALIFICATION = """
    SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY environment, fingerprint ORDER BY origin IS NOT NULL, created DESC, id DESC
        ) AS place FROM qualifications
    ) WHERE place = 1
"""
_QUALIFICATIONS = f"""
    SELECT environment, fingerprint, {", ".join(rows.QUALIFICATION_COLUMNS)} FROM qualifications
    WHERE id IN ({_ONE_QUALIFICATION}) ORDER BY id
"""
_RECORDS = f"""
    SELECT runs.id, runs.environment, problems.id, problems.key, records.candidate,
        {", ".join(f"runs.{column}" for column in rows.RUN_COLUMNS)}, {", ".join(rows.RESULT_COLUMNS)}
    FROM runs CROSS JOIN problems ON problems.id = runs.problem CROSS JOIN records ON records.run = runs.id
    ORDER BY runs.id, records.position
"""


@dataclass(frozen=True)
class Exported:
    """How much an export holds."""

    environments: int
    records: int


def export(
    database: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    force: bool = False,
    browsable: bool = False,
    tell: Callable[[float], None] = lambda _: None,
) -> Exported:
    """Write measurements of a database to one file, to be read by others; says how many there were.

    `.db` and `.sqlite` make a SQLite database that needs no file beside it, `.jsonl` one JSON object a line:

        {"type": "autoconv", "format": 2}
        {"type": "environment", "environment": <id>, "identity": {...}, "circumstances": {...}}
        {"type": "qualification", "environment": <id>, "fingerprint": ..., "passed": [...], ...}
        {"type": "record", "environment": <id>, "problem": <key>, "algorithm": ..., "samples_us": [...], ...}

    in that order, and `.csv` a table with a row for each of these: the column `type` says of what, those of other types
    are empty, objects and lists are JSON. Its columns `device` and `median_us` are for people. An error that is
    infinite is the text "inf" in JSON, which has no such number. Rows that cannot be understood are left out of both.

    No host name, path or pid leaves: notes, pending problems and cost models stay behind, and the messages of errors
    are scrubbed. Nor does where an imported measurement had come from. The file appears whole or not at all, and the
    database is only read.

    Args:
        database: The database's file; others may be writing it.
        out: The file to write.
        selection: What to write. Default: everything.
        force: Replace `out` if it exists.
        browsable: Make a database quick to look through, by Datasette for one: its winners are kept in it as they are
            at this moment.
        tell: Called now and then with how much is done, 1 being all.

    Raises:
        ValueError: the suffix of `out` is none of these.
        StoreError: nothing is selected, `out` exists and may not be replaced, or one of the files cannot be read or
            written. What was there stays.
    """
    source, target = Path(database).absolute(), Path(out).absolute()
    suffix = target.suffix.lower()
    if suffix not in SQLITE_SUFFIXES + TEXT_SUFFIXES:
        choices = ", ".join(SQLITE_SUFFIXES + TEXT_SUFFIXES)
        msg = f"cannot export to {target.name}: its suffix says the format, and must be one of {choices}"
        raise ValueError(msg)
    selection = selection or Selection()
    with closing(connect(source, readonly=True)) as connection:
        connection.text_factory = text_or_bytes
        _check_target(source, target, force=force)
        try:
            with plain_file.replacing(target) as temporary:
                if suffix in SQLITE_SUFFIXES:
                    exported = _copy(connection, temporary, selection, browsable)
                else:
                    exported = _write(connection, temporary, suffix, selection, tell)
                if not exported.records and not selection.is_everything:
                    msg = f"nothing in {source} is selected: {selection.lacking(_environments(connection))}"
                    raise StoreError(msg)
        except OSError as error:
            raise StoreError(plain_file.unwritten(target, error)) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise failure("export", source, error) from error
    return exported


def _environments(connection: sqlite3.Connection) -> Iterator[tuple[str, Mapping[str, object] | None]]:
    """Ids of the environments that something was measured in, with their identities."""
    query = "SELECT key, identity, circumstances FROM environments WHERE id IN (SELECT environment FROM runs)"
    for key, *texts in connection.execute(query):
        pair = rows.environment_of(*texts) if texts[0] is not None else None
        yield str(key), pair and pair[0]


def _check_target(source: Path, target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if target.samefile(source):
        msg = f"cannot export {source} onto itself: name another file"
        raise StoreError(msg)
    if not force:
        msg = f"{target} exists: name another file, or have it replaced (--force)"
        raise StoreError(msg)
    for suffix in ("-wal", "-journal"):
        # SQLite would take it for the new file's, and break it.
        if Path(f"{os.path.realpath(target)}{suffix}").exists():
            msg = f"{target} is a database in use ({target.name}{suffix} lies beside it): name another file"
            raise StoreError(msg)


def _copy(connection: sqlite3.Connection, out: Path, selection: Selection, browsable: bool) -> Exported:
    connection.execute("VACUUM INTO ?", (str(out),))
    with closing(sqlite3.connect(out, isolation_level=None)) as copy:
        if schema_of(copy, out) < SCHEMA:
            from autoconv.store.migrations import migrate

            migrate(copy, APPLICATION_ID, SCHEMA)  # so that others find its views
        copy.text_factory = text_or_bytes
        interrupts: list[KeyboardInterrupt] = []
        _add_function(copy, "scrub", lambda raw: scrubbed(raw.decode(errors="replace")), interrupts)
        _add_function(copy, "scrub_barred", lambda raw: rows.scrubbed_barred(raw, scrubbed), interrupts)
        copy.execute("BEGIN")
        copy.execute("DELETE FROM notes")
        copy.execute("DELETE FROM pending")
        copy.execute("DELETE FROM networks")
        copy.execute("DELETE FROM models")
        if not selection.is_everything:
            _leave_out(copy, selection)
        copy.execute("DELETE FROM problems WHERE id NOT IN (SELECT problem FROM runs)")
        copy.execute("DELETE FROM candidates WHERE id NOT IN (SELECT candidate FROM records)")
        copy.execute(f"DELETE FROM qualifications WHERE id NOT IN ({_ONE_QUALIFICATION})")
        copy.execute("UPDATE runs SET origin = NULL WHERE origin IS NOT NULL")
        copy.execute("UPDATE qualifications SET origin = NULL")
        copy.execute("DELETE FROM origins")
        # As bytes: damaged text would not reach the function.
        try:
            copy.execute("UPDATE records SET detail = scrub(CAST(detail AS BLOB)) WHERE detail <> ''")
            copy.execute("UPDATE qualifications SET barred = scrub_barred(CAST(barred AS BLOB))")
        except sqlite3.OperationalError as error:
            raise (interrupts[0] if interrupts else error) from None
        if browsable:
            browsing.arrange(copy)
        else:
            browsing.undo(copy)
        copy.execute("COMMIT")
        # What was deleted is still in the file's free pages.
        copy.execute("VACUUM")
        environments, records = copy.execute(
            "SELECT (SELECT count(*) FROM environments WHERE identity IS NOT NULL), (SELECT count(*) FROM records)"
        ).fetchone()
        return Exported(environments, records)


def _add_function(
    copy: sqlite3.Connection, name: str, function: Callable[[bytes], str], interrupts: list[KeyboardInterrupt]
) -> None:
    """Add a function of one argument to SQL. SQLite tells of a Ctrl-C in it as of any error, so that it is kept."""

    def called(raw: bytes) -> str:
        try:
            return function(raw)
        except KeyboardInterrupt as interrupt:
            interrupts.append(interrupt)
            raise

    copy.create_function(name, 1, called)


def _leave_out(copy: sqlite3.Connection, selection: Selection) -> None:
    """Delete what is not selected, and environments of which no record is left."""
    environments = copy.execute("SELECT id, key, identity, circumstances FROM environments").fetchall()
    problems = copy.execute("SELECT id, key FROM problems").fetchall()
    copy.execute("CREATE TEMP TABLE other_environments (id INTEGER PRIMARY KEY)")
    copy.execute("CREATE TEMP TABLE other_problems (id INTEGER PRIMARY KEY)")
    for number, key, *texts in environments:
        pair = rows.environment_of(*texts)
        if not selection.takes_environment(key, pair and pair[0]):
            copy.execute("INSERT INTO other_environments VALUES (?)", (number,))
    copy.executemany(
        "INSERT INTO other_problems VALUES (?)", ((n,) for n, key in problems if not selection.takes_problem(key))
    )
    other = "environment IN (SELECT id FROM other_environments) OR problem IN (SELECT id FROM other_problems)"
    copy.execute(f"DELETE FROM records WHERE run IN (SELECT id FROM runs WHERE {other})")
    copy.execute(f"DELETE FROM runs WHERE {other}")
    copy.execute("DELETE FROM environments WHERE id NOT IN (SELECT environment FROM runs)")
    copy.execute("DELETE FROM qualifications WHERE environment NOT IN (SELECT id FROM environments)")


def _write(
    connection: sqlite3.Connection, out: Path, suffix: str, selection: Selection, tell: Callable[[float], None]
) -> Exported:
    count = {"environment": 0, "qualification": 0, "record": 0}

    def counted() -> Iterator[entries.Entry]:
        for entry in _entries(connection, selection, tell):
            count[entry["type"]] += 1
            yield entry

    # One transaction, so that all tables are seen at one moment; rows are fetched as they are written.
    connection.execute("BEGIN")
    if suffix == ".csv":
        with out.open("w", encoding="utf-8", newline="") as table:
            entries.write_table(counted(), table)
    else:
        with out.open("w", encoding="utf-8") as lines:
            entries.write_lines(counted(), lines)
    connection.execute("COMMIT")
    return Exported(count["environment"], count["record"])


def _entries(
    connection: sqlite3.Connection, selection: Selection, tell: Callable[[float], None]
) -> Iterator[entries.Entry]:
    """All that is selected, environments first, then qualifications, then records in the order in which they came."""
    problems = {n for n, key in connection.execute("SELECT id, key FROM problems") if selection.takes_problem(key)}
    pairs = connection.execute("SELECT DISTINCT environment, problem FROM runs")
    measured = {environment for environment, problem in pairs if problem in problems}
    chosen: dict[int, str] = {}
    for number, key, *texts in connection.execute("SELECT id, key, identity, circumstances FROM environments"):
        pair = rows.environment_of(*texts) if texts[0] is not None else None
        if not selection.takes_environment(key, pair and pair[0]):
            continue
        if isinstance(key, str) and (selection.is_everything or number in measured):
            chosen[number] = key
            if pair is not None:
                yield entries.environment_entry(key, *pair)
    for environment, fingerprint, *row in connection.execute(_QUALIFICATIONS):
        found = rows.qualification_of(chosen.get(environment, ""), fingerprint, "", row)
        if found is not None and environment in chosen:
            barred = {name: scrubbed(reason) for name, reason in found.barred.items()}
            yield entries.qualification_entry(replace(found, barred=barred))
    candidates = {
        number: tuple(candidate) if tuple(map(type, candidate)) == (str, int, str) else None
        for number, *candidate in connection.execute("SELECT id, algorithm, version, parameters FROM candidates")
    }
    total = max(1, connection.execute("SELECT max(id) FROM runs").fetchone()[0] or 0)
    for count, (run, environment, number, problem, candidate, *row) in enumerate(connection.execute(_RECORDS)):
        if environment not in chosen or number not in problems or not isinstance(problem, str):
            continue
        record = rows.record_of(chosen[environment], problem, candidates.get(candidate), "", tuple(row))
        if record is not None:
            yield entries.record_entry(replace(record, detail=scrubbed(record.detail)) if record.detail else record)
        if count % 1000 == 0:
            tell(min(1.0, run / total))
