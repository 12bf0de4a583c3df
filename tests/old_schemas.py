"""Files as older schemas had them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from autoconv.record import Record
from autoconv.store import connection
from autoconv.store.migrations import migrations


def first_schema(file: Path, records: Sequence[Record], problems: Sequence[str], environments: Sequence[str]) -> None:
    """A file as the first schema had it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        migrations.apply(Database(opened, execute_plugins=False), stop_before="m002_numbers")
        opened.execute(f"PRAGMA application_id = {connection.APPLICATION_ID}")
        opened.execute("PRAGMA user_version = 1")
        opened.execute("PRAGMA journal_mode = WAL")
        for place, environment in enumerate(environments):
            texts = (json.dumps({"device": environment}), "{}") if place == 0 else (None, None)
            opened.execute("INSERT INTO environments VALUES (?, ?, ?, 1.0, 2.0)", (environment, *texts))
        for key in dict.fromkeys([*problems, *(r.problem for r in records)]):
            opened.execute(
                "INSERT INTO problems VALUES (?, 'forward', 'float32', 1, 4, 8, 8, 1, 16, 3, 3, 3, 1, 0.5)", (key,)
            )
        for r in records:
            values: tuple[Any, ...] = (r.environment, r.problem, r.algorithm, r.version, r.parameters, r.status.value)
            values += (json.dumps(r.samples_us), r.error, r.workspace_bytes, r.peak_bytes, r.detail, r.run, r.created)
            places = ", ".join("?" * 14)
            opened.execute(f"INSERT INTO records VALUES (NULL, {places})", (*values, r.library))


def second_schema(file: Path, records: Sequence[Record], problems: Sequence[str], environments: Sequence[str]) -> None:
    """A file as the second schema had it."""
    first_schema(file, records, problems, environments)
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        migrations.apply(Database(opened, execute_plugins=False), stop_before="m003_models")
        opened.execute("PRAGMA user_version = 2")


def third_schema(file: Path, records: Sequence[Record], problems: Sequence[str], environments: Sequence[str]) -> None:
    """A file as the third schema had it."""
    second_schema(file, records, problems, environments)
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        migrations.apply(Database(opened, execute_plugins=False), stop_before="m004_views")
        opened.execute("PRAGMA user_version = 3")


def fourth_schema(file: Path, records: Sequence[Record], problems: Sequence[str], environments: Sequence[str]) -> None:
    """A file as the fourth schema had it."""
    third_schema(file, records, problems, environments)
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        migrations.apply(Database(opened, execute_plugins=False), stop_before="m005_networks")
        opened.execute("PRAGMA user_version = 4")
