"""The schema as it must be: a database that says it is ours, and has other tables, is not asked anything.

What is asked of a table that is none may never end, as a view can recurse, and what comes of one that lies about its
types cannot be relied on. So the statements that made our tables must be those of the migrations, to the letter.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from autoconv.errors import DamagedError

_FIRST = ("environments", "notes", "pending", "problems", "qualifications", "records", "records_by_problem")
_SECOND = (
    *(name for name in _FIRST if name != "records_by_problem"),
    *("candidates", "origins", "qualifications_once", "runs", "runs_by_problem"),
)

_THIRD = (*_SECOND, "models")
_FIFTH = (*_THIRD, "networks")

OURS: dict[int, tuple[str, ...]] = {1: _FIRST, 2: _SECOND, 3: _THIRD, 4: _THIRD, 5: _FIFTH}
"""Names of the tables and indices of each schema; what else there is, views for people too, is not used."""

MOVE_AWAY = "move the file away and a new one is begun"
"""What to do with a database of ours that is damaged."""

DIGESTS: dict[int, str] = {
    1: "a565cc1bf3e870f4b61023d9bacec66e85f4b93aaa7872a0970cc6377e8b06e8",
    2: "df2d579278b3d85b118351f33dbe68d9c2c0f7f64b47a71d346c3b6c5284a1c5",
    3: "16e7f648eceb7a289aa74c07d6cd083f31acfd767cf77667fe3083e534ee299a",
    4: "16e7f648eceb7a289aa74c07d6cd083f31acfd767cf77667fe3083e534ee299a",
    5: "86096442352e4e0f411be40b3667b4c15189a8aaa98817dcd876b67f25c825ec",
}
"""Of each schema's statements, as `digest` makes them."""


def digest(connection: sqlite3.Connection, schema: int) -> str:
    """Of the statements that made the tables and indices of a schema; without those that are not there."""
    names = OURS[schema]
    statements = connection.execute(
        f"SELECT type, name, sql FROM sqlite_master WHERE name IN ({', '.join('?' * len(names))}) ORDER BY name", names
    ).fetchall()
    return hashlib.sha256(repr(statements).encode(errors="replace")).hexdigest()


def check_schema(connection: sqlite3.Connection, file: Path, schema: int) -> None:
    """Refuse a database whose tables are not as the migrations to its schema left them, or that has triggers.

    Raises:
        DamagedError: it is such a one.
        sqlite3.Error: its schema cannot be read.
    """
    (triggers,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone()
    if triggers or digest(connection, schema) != DIGESTS[schema]:
        what = "it has triggers" if triggers else "its tables are not those of this library"
        msg = f"{file} was changed by somebody else, {what}"
        raise DamagedError(msg, MOVE_AWAY)
