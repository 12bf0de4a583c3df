"""Tables: what is written to them, and the numbers by which rows refer to others."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store import rows

_RESULTS = ", ".join(rows.RESULT_COLUMNS)
_QUALIFICATIONS = ", ".join(rows.QUALIFICATION_COLUMNS)

# CROSS JOIN: in this order and no other.
_RECORDS = f"""
    SELECT runs.origin, records.candidate, {", ".join(rows.RUN_COLUMNS)}, {_RESULTS}
    FROM runs CROSS JOIN records ON records.run = runs.id
    WHERE runs.environment = (SELECT id FROM environments WHERE key = ?)
        AND runs.problem = (SELECT id FROM problems WHERE key = ?)
    ORDER BY runs.id, records.position
"""
_GROUPS = """
    SELECT DISTINCT environment, problem FROM runs
    WHERE (environment, problem) > (?, ?) AND environment <= ?
    ORDER BY environment, problem LIMIT ?
"""
_RECORDS_OF_GROUPS = f"""
    SELECT runs.environment, runs.problem, environments.key, problems.key,
        runs.id, records.position, runs.origin, records.candidate, runs.key, created, library, {_RESULTS}
    FROM runs INDEXED BY runs_by_problem
    CROSS JOIN records ON records.run = runs.id
    JOIN environments ON environments.id = runs.environment
    JOIN problems ON problems.id = runs.problem
    WHERE (runs.environment, runs.problem) > (?, ?) AND (runs.environment, runs.problem) <= (?, ?)
    ORDER BY runs.environment, runs.problem, runs.id, records.position
"""
_ADD_PROBLEM = """
    INSERT INTO problems (key, kind, dtype, n, d, h, w, c_in, c_out, kd, kh, kw, groups, gflop)
    VALUES (:key, :kind, :dtype, :n, :d, :h, :w, :c_in, :c_out, :kd, :kh, :kw, :groups, :gflop)
"""
_ADD_RUN = "INSERT INTO runs (environment, problem, key, created, library, origin) VALUES (?, ?, ?, ?, ?, ?)"
_ADD_RECORD = f"INSERT INTO records (run, position, candidate, {_RESULTS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_QUALIFICATION = f"""
    INSERT OR REPLACE INTO qualifications (environment, fingerprint, origin, {_QUALIFICATIONS})
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
# An environment may have records before anyone described it, and is given its identity once.
_DESCRIBE = """
    INSERT INTO environments (key, identity, circumstances, first_seen, last_seen)
    VALUES (:key, :identity, :circumstances, :now, :now)
    ON CONFLICT (key) DO UPDATE SET
        identity = coalesce(identity, excluded.identity),
        circumstances = excluded.circumstances,
        last_seen = excluded.last_seen
"""

LAST = 2**63 - 1
"""Larger than any number of a row."""

Place = tuple[int, int, str, float]
"""Where a record stands: number of its run, position in it, and the run's key and time, by which it is known again."""


class Tables:
    """The tables behind one connection. Whoever writes has begun a transaction, and calls `forget` if it is undone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.forget()

    def forget(self) -> None:
        """Ask anew for the numbers of candidates and origins: those given in an undone transaction are none."""
        self._candidates: dict[int, rows.Candidate | None] = {}
        self._candidate_numbers: dict[rows.Candidate, int] = {}
        self._origins: dict[int | None, str | None] = {None: ""}
        self._origin_numbers: dict[str, int | None] = {"": None}

    def records(self, environment: str, problem: str) -> list[Record]:
        """All records of a problem in an environment, oldest first."""
        found = self.select(_RECORDS, (environment, problem))
        read = [
            rows.record_of(environment, problem, self._candidate(row[1]), self._origin(row[0]), row[2:])
            for row in found
        ]
        return [record for record in read if record is not None]

    def groups(self, after: tuple[int, int], last: int, most: int) -> list[tuple[int, int]]:
        """Numbers of the next environments and problems that have records, up to an environment."""
        return self.select(_GROUPS, (*after, last, most))

    def records_of_groups(self, after: tuple[int, int], last: tuple[int, int]) -> list[tuple[Problem, list[Record]]]:
        """The problems after one group up to another, each with its records, as far as they can be understood."""
        return [(problem, [record for record, _ in group]) for problem, group in self.placed(after, last)]

    def placed(
        self, after: tuple[int, int], last: tuple[int, int]
    ) -> Iterator[tuple[Problem, list[tuple[Record, Place]]]]:
        """As `records_of_groups`, with where each record stands."""
        found = self.select(_RECORDS_OF_GROUPS, (*after, *last))
        for (_, _, environment, key), group in itertools.groupby(found, key=lambda row: row[:4]):
            problem = rows.problem_of(key)
            if problem is None:
                continue
            made = (
                (rows.record_of(environment, problem.key, self._candidate(row[7]), self._origin(row[6]), row[8:]), row)
                for row in group
            )
            records = [(record, (row[4], row[5], row[8], row[9])) for record, row in made if record is not None]
            if records:
                yield problem, records

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """Add checked records of a problem, in runs of those that follow one another."""
        if not records:
            return  # and the problem is known no sooner than it has one
        connection = self._connection
        number = self.problem(problem)
        environments = {key: self.environment(key) for key in dict.fromkeys(r.environment for r in records)}
        for key, environment in environments.items():
            run, shared, position = 0, None, 0
            results = []
            for record in records:
                if record.environment != key:
                    continue
                mine = (record.run, record.created, record.library, record.origin)
                if mine != shared:
                    shared, position = mine, 0
                    values = (environment, number, *mine[:3], self.origin(record.origin))
                    run = connection.execute(_ADD_RUN, values).lastrowid or 0
                candidate = self.candidate((record.algorithm, record.version, record.parameters))
                results.append((run, position, candidate, *rows.result_row(record)))
                position += 1
            connection.executemany(_ADD_RECORD, results)

    def add_qualification(self, environment: str, fingerprint: str, origin: str, row: tuple[Any, ...]) -> None:
        """Keep QUALIFICATION_COLUMNS in place of those of the same environment, fingerprint and origin."""
        values = (self.environment(environment), fingerprint, self.origin(origin), *row)
        self._connection.execute(_ADD_QUALIFICATION, values)

    def qualifications(self, environment: str, fingerprint: str) -> list[tuple[Any, ...]]:
        """QUALIFICATION_COLUMNS of every origin."""
        return self.select(
            f"SELECT {_QUALIFICATIONS} FROM qualifications WHERE fingerprint = ? "
            "AND environment = (SELECT id FROM environments WHERE key = ?)",
            (fingerprint, environment),
        )

    def describe(self, environment: str, identity: str, circumstances: str, *, anew: bool = True) -> bool:
        """Give an environment its identity and circumstances; whether it was.

        One that has an identity keeps it, and its circumstances as well unless `anew`.
        """
        if not anew and self.select("SELECT 1 FROM environments WHERE key = ? AND identity NOT NULL", (environment,)):
            return False
        row = {"key": environment, "identity": identity, "circumstances": circumstances, "now": time.time()}
        self._connection.execute(_DESCRIBE, row)
        return True

    def environment(self, key: str) -> int:
        """The number of an environment, which is made known."""
        now = time.time()
        return self._number("environments", key) or self._insert(
            "INSERT INTO environments (key, first_seen, last_seen) VALUES (?, ?, ?)", (key, now, now)
        )

    def problem(self, problem: Problem) -> int:
        """The number of a problem, which is made known."""
        return self._number("problems", problem.key) or self._insert(_ADD_PROBLEM, rows.problem_row(problem))

    def candidate(self, candidate: rows.Candidate) -> int:
        """The number of a candidate, which is made known."""
        number = self._candidate_numbers.get(candidate)
        if number is None:
            found = self._connection.execute(
                "SELECT id FROM candidates WHERE (algorithm, version, parameters) = (?, ?, ?)", candidate
            ).fetchone()
            number = (
                found[0]
                if found
                else self._insert("INSERT INTO candidates (algorithm, version, parameters) VALUES (?, ?, ?)", candidate)
            )
            self._candidate_numbers[candidate] = number
        return number

    def origin(self, key: str, sha256: str | None = None, file: str | None = None) -> int | None:
        """The number of an origin, which is made known; None for this database's own user."""
        if key not in self._origin_numbers:
            self._origin_numbers[key] = self._number("origins", key) or self._insert(
                "INSERT INTO origins (key, sha256, file, imported) VALUES (?, ?, ?, ?)",
                (key, sha256, file, time.time()),
            )
        return self._origin_numbers[key]

    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; text that damage made none comes as bytes, lest one bad row cost those beside it."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if not str(error).startswith("Could not decode"):
                raise
        self._connection.text_factory = text_or_bytes
        try:
            return self._connection.execute(sql, parameters).fetchall()
        finally:
            self._connection.text_factory = str

    def _candidate(self, number: int) -> rows.Candidate | None:
        try:
            return self._candidates[number]
        except KeyError:
            found = self.select("SELECT algorithm, version, parameters FROM candidates WHERE id = ?", (number,))
            sound = bool(found) and tuple(map(type, found[0])) == (str, int, str)
            known = self._candidates[number] = found[0] if sound else None
            return known

    def _origin(self, number: int | None) -> str | None:
        try:
            return self._origins[number]
        except KeyError:
            found = self.select("SELECT key FROM origins WHERE id = ?", (number,))
            known = self._origins[number] = found[0][0] if found and type(found[0][0]) is str else None
            return known

    def _number(self, table: str, key: str) -> int:
        found = self._connection.execute(f"SELECT id FROM {table} WHERE key = ?", (key,)).fetchone()
        return int(found[0]) if found else 0

    def _insert(self, sql: str, parameters: Any) -> int:
        return self._connection.execute(sql, parameters).lastrowid or 0


def text_or_bytes(raw: bytes) -> str | bytes:
    """Text; where damage made it none, its bytes: as `text_factory`, lest one bad row end a look-up."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
