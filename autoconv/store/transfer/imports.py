"""An import: measurements from a file that somebody else wrote, taken row by row."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from autoconv.errors import StoreError
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.connection import check_kind, failure
from autoconv.store.contract import Qualification
from autoconv.store.sqlite import SqliteStore
from autoconv.store.tables import Tables
from autoconv.store.transfer import entries
from autoconv.store.transfer.check import Checker, RefusedError, problem_of
from autoconv.store.transfer.export import SQLITE_SUFFIXES, TEXT_SUFFIXES
from autoconv.store.transfer.foreign import read_database

BATCH = 2_000
"""Entries that are added in one transaction, which takes a tenth of a second."""

MAX_EXAMPLE = 120
"""Longest example of what was refused, in characters."""


@dataclass(frozen=True)
class Rejected:
    """Rows that were refused for one reason: how many, and the first of them in words."""

    count: int
    example: str


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        added: Records that were added.
        known: Records that were there already.
        rejected: Rows that were refused, by reason.
        problems: Problems that nothing was known of before.
        environments: Environments that were not described before.
        qualifications: Qualifications that were added; they are kept and shown, and decide nothing.
        broken: Why the file could not be read to its end, empty where it was. What came before has been added; the same
            import goes on from there once the file is whole.
    """

    added: int = 0
    known: int = 0
    rejected: Mapping[str, Rejected] = field(default_factory=lambda: MappingProxyType({}))
    problems: int = 0
    environments: int = 0
    qualifications: int = 0
    broken: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything that the file holds is now in the database."""
        return not self.rejected and not self.broken


def import_file(
    database: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    known: Collection[str],
    tell: Callable[[float], None] = lambda _: None,
) -> Imported:
    """Add the measurements of an exported file to a database; says what was added and what was not, and why.

    A record that is there already, whoever made it, is not added again: it is the same if all but its words (`detail`)
    and its origin are. So an import may be repeated, and files may come in any order. Each row is checked by itself,
    and one that is refused costs no other; nothing in a file is ever executed. Records are added some thousand at a
    time, so that others may write meanwhile. Notes and the pending list are left as they are, and nothing that is known
    of an environment is replaced.

    Args:
        database: The database's file, which is created where it is missing.
        file: The file to read; its suffix says the format, as `export` has them. A database of an older schema, and
            JSON lines of the first version, are welcome.
        known: Names of the algorithms that there are; records of others are refused.
        tell: Called now and then with how much of the file is read, 1 being all.

    Raises:
        ValueError: the suffix is none of these.
        SchemaError: a newer version wrote the file, or it is none of ours.
        StoreError: one of the files cannot be read or written, or a database is damaged or not what it says; nothing
            has been added from it then.
    """
    source = Path(file).absolute()
    suffix = source.suffix.lower()
    if suffix not in SQLITE_SUFFIXES + TEXT_SUFFIXES:
        choices = ", ".join(SQLITE_SUFFIXES + TEXT_SUFFIXES)
        msg = f"cannot import {source.name}: its suffix says the format, and must be one of {choices}"
        raise ValueError(msg)
    if source.exists() and Path(database).exists() and source.samefile(database):
        msg = f"cannot import {source} into itself: name another file"
        raise StoreError(msg)
    read = (
        read_database if suffix in SQLITE_SUFFIXES else entries.read_table if suffix == ".csv" else entries.read_lines
    )
    try:
        check_kind(source, "read")
        digest = _sha256(source)
        # Before the database is opened, so that a file that cannot be read at all creates none.
        found = read(source)
        first = next(found, None)
    except OSError as error:
        raise failure("read", source, error) from error
    with closing(SqliteStore(database)) as store:
        importing = _Importing(store, source, digest, Checker(known, digest[:12]))
        importing.run(first, found, tell)
        return importing.report()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class _Importing:
    """One import under way."""

    def __init__(self, store: SqliteStore, source: Path, digest: str, checker: Checker) -> None:
        self._store = store
        self._source = source
        self._digest = digest
        self._checker = checker
        self._added = self._known = self._problems = self._described = self._qualified = 0
        self._broken = ""
        self._rejected: dict[str, Rejected] = {}
        self._environments: list[tuple[str, str, str]] = []
        self._qualifications: list[Qualification] = []
        self._records: list[Record] = []

    def run(
        self,
        first: tuple[entries.Place, entries.Entry | str] | None,
        rest: entries.Entries,
        tell: Callable[[float], None],
    ) -> None:
        """Read to the end, or as far as it goes, and add what is let in."""
        item, count = first, 0
        while item is not None:
            (place, done), entry = item
            self._take(place, entry)
            count += 1
            if count % BATCH == 0:
                self._write()
                tell(done)
            try:
                item = next(rest, None)
            except (StoreError, OSError) as error:
                self._broken = f"{error}; {count} rows before that were read"
                break
        self._write()

    def report(self) -> Imported:
        """What was done."""
        return Imported(
            self._added,
            self._known,
            MappingProxyType(self._rejected),
            self._problems,
            self._described,
            self._qualified,
            self._broken,
        )

    def _take(self, place: str, entry: entries.Entry | str) -> None:
        try:
            if isinstance(entry, str):
                raise RefusedError(entry)
            kind = entry.get("type")
            if kind == "record":
                self._records.append(self._checker.record(entry))
            elif kind == "environment":
                self._environments.append(self._checker.environment(entry))
            elif kind == "qualification":
                self._qualifications.append(self._checker.qualification(entry))
            elif kind != "autoconv":
                reason = "a row of an unknown type"
                raise RefusedError(reason, kind)
        except RefusedError as refused:
            before = self._rejected.get(refused.reason)
            if before is None:
                before = Rejected(0, f"{place}: {_shown(refused.example)}" if refused.example != "" else place)
            self._rejected[refused.reason] = replace(before, count=before.count + 1)

    def _write(self) -> None:
        """Add what was let in since the last time, in one transaction."""
        if not (self._records or self._environments or self._qualifications):
            return
        records: dict[tuple[str, str], dict[tuple[object, ...], Record]] = {}
        for record in self._records:
            records.setdefault((record.environment, record.problem), {}).setdefault(_sameness(record), record)
        with self._store.writing() as (connection, tables):
            problems = _last(connection, "problems")
            described = sum(tables.describe(*texts, anew=False) for texts in self._environments)
            added = 0
            for (environment, key), group in records.items():
                there = {_sameness(record) for record in tables.records(environment, key)}
                new = [record for same, record in group.items() if same not in there]
                if new:
                    self._make_known(tables)
                    problem = problem_of(key)
                    assert problem is not None  # it was checked
                    tables.add(problem, new)
                added += len(new)
            qualified = sum(self._qualify(tables, qualification) for qualification in self._qualifications)
            problems = _last(connection, "problems") - problems
        # After the commit: what is counted is there.
        self._problems += problems
        self._described += described
        self._qualified += qualified
        self._added += added
        self._known += len(self._records) - added
        self._records, self._environments, self._qualifications = [], [], []

    def _qualify(self, tables: Tables, qualification: Qualification) -> bool:
        """Keep a qualification unless the very same is there; whether it was not."""
        row = rows.qualification_row(qualification)
        if row in tables.qualifications(qualification.environment, qualification.fingerprint):
            return False
        tables.add_qualification(qualification.environment, qualification.fingerprint, self._make_known(tables), row)
        return True

    def _make_known(self, tables: Tables) -> str:
        key = self._digest[:12]
        tables.origin(key, self._digest, self._source.name)
        return key


def _sameness(record: Record) -> tuple[object, ...]:
    """What two records that are the same have in common, beside environment and problem."""
    return (
        record.algorithm,
        record.version,
        record.parameters,
        record.status,
        record.samples_us,
        record.error,
        record.workspace_bytes,
        record.peak_bytes,
        record.run,
        record.created,
        record.library,
    )


def _last(connection: sqlite3.Connection, table: str) -> int:
    """The highest number of a table; its rise within a transaction is how many rows were added."""
    return int(connection.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0])


def _shown(value: object) -> str:
    """A value that somebody else wrote, on one line and without what terminals obey."""
    text = ascii(value)
    return text if len(text) <= MAX_EXAMPLE else text[:MAX_EXAMPLE] + "..."
