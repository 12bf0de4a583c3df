"""Whether a database is begun: one that a kill left empty is not, as if no file were there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from command import run

from autoconv import settings
from autoconv.model.learning import default_databases
from autoconv.open_stores import OpenStores, begun, open_file
from autoconv.store import is_begun, open_store
from autoconv.warn import WarnOnce


def no_table(path: Path) -> None:
    """What a kill leaves between the switch to a write-ahead log and the first table."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0


EMPTY: dict[str, Callable[[Path], None]] = {"no byte": Path.touch, "no table": no_table}
each_empty = pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)


@pytest.fixture
def own() -> Path:
    """The user's own database."""
    path = settings.current().database
    assert path is not None
    return path


@each_empty
def test_an_empty_database_is_not_begun(own: Path, make: Callable[[Path], None]) -> None:
    assert not is_begun(own)
    make(own)
    assert not is_begun(own)
    assert begun(settings.current()) is None
    assert not OpenStores(open_file, WarnOnce()).is_begun(settings.current())
    assert own not in default_databases(settings.current())
    open_store(own).close()
    assert begun(settings.current()) == own
    assert own in default_databases(settings.current())


def test_a_database_whose_tables_are_still_in_its_log_is_begun(own: Path) -> None:
    with closing(open_store(own)):
        assert Path(f"{own}-wal").stat().st_size > own.stat().st_size
        assert is_begun(own)


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"no database" * 100)], ids=["folder", "pipe", "text"]
)
def test_what_is_no_database_is_told_of_by_whoever_opens_it(own: Path, make: Callable[[Path], object]) -> None:
    make(own)
    assert begun(settings.current()) == own


@each_empty
@pytest.mark.parametrize("options", [[], ["--network", "wan21"], ["--device", "none"]], ids=" ".join)
def test_a_report_is_the_same_as_if_no_file_were_there(
    own: Path, tmp_path: Path, make: Callable[[Path], None], options: list[str]
) -> None:
    def report() -> tuple[int, str]:
        done = run("report", tmp_path / "out.html", *options)
        return done.exit_code, done.output

    without = report()
    make(own)
    assert report() == without
    assert "is empty" not in without[1]


@each_empty
def test_it_is_not_begun_by_who_prunes_it(own: Path, make: Callable[[Path], None]) -> None:
    make(own)
    before = own.read_bytes()
    for option in ("--yes", "--dry-run"):
        done = run("prune", option)
        assert done.exit_code == 1
        assert done.stderr == f"Error: {own} is not begun yet, so nothing is to be pruned\n"
    assert own.read_bytes() == before


@each_empty
@pytest.mark.parametrize("command", ["report out.html", "export out.jsonl", "export --rule out.py"])
def test_one_that_is_named_is_an_error_that_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "named.db"
    make(named)
    done = run(*command.split(), "--database", named)
    assert done.exit_code == 1
    assert done.stderr == f"Error: {named} is empty: nothing was measured into it yet\n"
