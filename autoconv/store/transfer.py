"""Transfer: measurements on their way out, as a SQLite copy or as JSON lines."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import secrets
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autoconv.errors import StoreError
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.connection import connect, failure

SQLITE_SUFFIXES = (".db", ".sqlite")
"""Suffixes of a SQLite copy."""

JSON_SUFFIXES = (".jsonl",)
"""Suffixes of JSON lines."""

# Two names at least, so that `a/b`, `1/2` and `/` stay; not within a word nor after `//`, so that URLs do.
_PATH = re.compile(r"(?<!\w)(?<!:/)/[^\s/:\"'<>]+(?:/[^\s/:\"'<>]*)+")


@dataclass(frozen=True)
class Exported:
    """How much an export holds."""

    environments: int
    records: int


def export(database: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False) -> Exported:
    """Write all measurements of a database to one file, to be read by others; says how many there were.

    `.db` and `.sqlite` make a SQLite database that needs no file beside it, `.jsonl` one JSON object a line:

        {"type": "environment", "id": ..., "identity": {...}, "circumstances": {...}}
        {"type": "record", "problem": <key>, "environment": <id>, "algorithm": ..., "samples_us": [...], ...}

    Environments come first. An error that is infinite is the text "inf", for which JSON has no number. Rows
    that cannot be understood are left out of JSON lines.

    No host name, path or pid leaves: notes and pending problems stay behind, and the messages of errors are
    scrubbed. The file appears whole or not at all, and the database is only read.

    Args:
        database: The database's file; others may be writing it.
        out: The file to write.
        force: Replace `out` if it exists.

    Raises:
        ValueError: the suffix of `out` is none of these.
        StoreError: `out` exists and may not be replaced, or one of the files cannot be read or written.
    """
    source, target = Path(database).absolute(), Path(out).absolute()
    suffix = target.suffix.lower()
    if suffix not in SQLITE_SUFFIXES + JSON_SUFFIXES:
        choices = ", ".join(SQLITE_SUFFIXES + JSON_SUFFIXES)
        msg = f"cannot export to {target.name}: its suffix says the format, and must be one of {choices}"
        raise ValueError(msg)
    with closing(connect(source, readonly=True)) as connection:
        _check_target(source, target, force=force)
        with _replacing(target) as temporary:
            if suffix in SQLITE_SUFFIXES:
                return _copy(connection, source, temporary)
            with temporary.open("w", encoding="utf-8") as lines:
                return _write_lines(connection, source, lines)


def scrub(text: str, hosts: tuple[str, ...]) -> str:
    """The text without absolute paths and without these host names."""
    text = _PATH.sub("<path>", text)
    for host in hosts:
        text = re.sub(rf"(?<!\w){re.escape(host)}(?!\w)", "<host>", text, flags=re.IGNORECASE)
    return text


def _host_names() -> tuple[str, ...]:
    """This machine's names, the longest first: `studio.local`, `studio`."""
    name = socket.gethostname()
    return tuple(dict.fromkeys(part for part in (name, name.partition(".")[0]) if part))


def _check_target(source: Path, target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if target.samefile(source):
        msg = f"cannot export {source} onto itself: name another file"
        raise StoreError(msg)
    if not force:
        msg = f"{target} exists: name another file, or ask for it to be replaced"
        raise StoreError(msg)
    for suffix in ("-wal", "-journal"):
        # SQLite would take it for the new file's, and break it.
        if Path(f"{target}{suffix}").exists():
            msg = f"{target} is a database in use ({target.name}{suffix} lies beside it): name another file"
            raise StoreError(msg)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new empty file beside the target: it takes its place when the block ends, or goes if it raises."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        # Not mkstemp: an export is for others to read, so it gets the modes that the umask leaves.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            for suffix in ("", "-journal"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{temporary}{suffix}")
            raise
    except OSError as error:
        raise failure("write", target, error) from error


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(connection: sqlite3.Connection, source: Path, out: Path) -> Exported:
    clean = functools.partial(scrub, hosts=_host_names())
    try:
        connection.execute("VACUUM INTO ?", (str(out),))
        with closing(sqlite3.connect(out, isolation_level=None)) as copy:
            copy.create_function("scrub", 1, lambda raw: clean(raw.decode(errors="replace")))
            copy.create_function("scrub_barred", 1, lambda raw: rows.scrubbed_barred(raw, clean))
            copy.execute("BEGIN")
            copy.execute("DELETE FROM notes")
            copy.execute("DELETE FROM pending")
            # As bytes: damaged text would not reach the function.
            copy.execute("UPDATE records SET detail = scrub(CAST(detail AS BLOB)) WHERE detail <> ''")
            copy.execute("UPDATE qualifications SET barred = scrub_barred(CAST(barred AS BLOB))")
            copy.execute("COMMIT")
            # What was deleted is still in the file's free pages.
            copy.execute("VACUUM")
            environments, records = copy.execute(
                "SELECT (SELECT count(*) FROM environments WHERE identity IS NOT NULL), (SELECT count(*) FROM records)"
            ).fetchone()
            return Exported(environments, records)
    except sqlite3.Error as error:
        raise failure("export", source, error) from error


def _write_lines(connection: sqlite3.Connection, source: Path, lines: IO[str]) -> Exported:
    hosts = _host_names()
    environments = records = 0
    try:
        # One transaction, so that both tables are seen at one moment; rows are fetched as they are written.
        connection.execute("BEGIN")
        for line in _environment_lines(connection):
            lines.write(json.dumps(line) + "\n")
            environments += 1
        for record in _records(connection):
            lines.write(json.dumps(_record_line(record, hosts), allow_nan=False) + "\n")
            records += 1
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise failure("export", source, error) from error
    return Exported(environments, records)


def _environment_lines(connection: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    query = "SELECT id, identity, circumstances FROM environments WHERE identity IS NOT NULL ORDER BY rowid"
    for environment, identity, circumstances in connection.execute(query):
        pair = rows.environment_of(identity, circumstances)
        if pair is not None:
            yield {"type": "environment", "id": environment, "identity": pair[0], "circumstances": pair[1]}


def _records(connection: sqlite3.Connection) -> Iterator[Record]:
    query = f"SELECT environment, problem, {', '.join(rows.RESULT_COLUMNS)} FROM records ORDER BY id"
    for environment, problem, *row in connection.execute(query):
        record = rows.record_of(environment, problem, row)
        if record is not None:
            yield record


def _record_line(record: Record, hosts: tuple[str, ...]) -> dict[str, Any]:
    line = {"type": "record"} | {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if record.error is not None and math.isinf(record.error):
        line["error"] = str(record.error)
    line["detail"] = scrub(record.detail, hosts)
    return line
