"""Databases, models and variables whose author means harm: nothing is run, nothing hangs, and a call goes on."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sqlite3
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from faults import aside, convolve, problem, recall_first_run
from old_schemas import first_schema, fourth_schema, second_schema, third_schema

import autoconv
from autoconv import _calls, dispatch, environment
from autoconv import settings as _settings
from autoconv.algorithms import algorithms
from autoconv.errors import AutoconvWarning, SettingsError, StoreError
from autoconv.model import advisers
from autoconv.record import Record, Status
from autoconv.settings import current
from autoconv.store import MendingStore, ModelRecord, connection, import_file, open_store
from autoconv.store.migrations import migrate
from autoconv.store.schema import DIGESTS, check_schema, digest

COMMAND = "'); DROP TABLE records; ATTACH DATABASE '/tmp/evil' AS evil; --"
NUMBERS = {"AUTOCONV_STALL"}
"""Variables that take any number, however large."""

HERE = environment.of(mx.default_device())


def result(width: int, candidate: str = "native", run: str = "run", **fields: object) -> Record:
    record = Record(problem(width).key, HERE.id, candidate, 1, "", Status.OK, (9.0,) * 6, 1e-7, run=run)
    return record if not fields else Record(**{f: getattr(record, f) for f in Record.__slots__} | fields)


@pytest.fixture
def file(qualified: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own database, which knows the device and one convolution."""
    recall_first_run(qualified, monkeypatch)
    autoconv.configure(policy="measure", budget_ms=5)
    with closing(open_store(qualified)) as store:
        store.add(problem(4), [result(4)])
    return qualified


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def alter(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        opened.execute("PRAGMA writable_schema = ON")
        opened.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            opened.execute(statement)


# What a schema says of itself


@pytest.mark.parametrize("schema", DIGESTS)
def test_every_schema_is_known_by_what_its_migrations_wrote(tmp_path: Path, schema: int) -> None:
    file = tmp_path / "some.db"
    if schema == connection.SCHEMA:
        with closing(sqlite3.connect(file, isolation_level=None)) as opened:
            migrate(opened, connection.APPLICATION_ID, schema)
    else:
        {1: first_schema, 2: second_schema, 3: third_schema, 4: fourth_schema}[schema](file, [], [], ["env"])
    with closing(sqlite3.connect(file)) as opened:
        assert digest(opened, schema) == DIGESTS[schema]
        check_schema(opened, file, schema)
    assert set(DIGESTS) == set(range(1, connection.SCHEMA + 1))


HOSTILE = {
    "view": ["ALTER TABLE records RENAME TO old", "CREATE VIEW records AS SELECT * FROM old"],
    "cyclic views": [
        "DROP TABLE records",
        "CREATE VIEW records AS SELECT * FROM other",
        "CREATE VIEW other AS SELECT * FROM records",
    ],
    "endless view": [
        "ALTER TABLE runs RENAME TO old",
        "CREATE VIEW runs AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n) "
        "SELECT id, 1 AS environment, 1 AS problem, '' AS key, 0.0 AS created, '' AS library, 1 AS origin FROM n",
    ],
    "trigger": [
        "CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM records; DELETE FROM environments; END",
    ],
    "endless trigger": [
        "CREATE TRIGGER t AFTER INSERT ON pending BEGIN INSERT INTO pending SELECT NULL, n.id, n.id, 0 FROM "
        "(WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n) SELECT id FROM n) n; END",
    ],
    "generated column": [
        "ALTER TABLE environments ADD COLUMN extra TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000)))"
    ],
    "virtual table": ["DROP TABLE candidates", "CREATE VIRTUAL TABLE candidates USING fts5(id, algorithm, version)"],
    "collation": [
        "UPDATE sqlite_master SET sql = replace(sql, 'TEXT NOT NULL UNIQUE', 'TEXT NOT NULL UNIQUE COLLATE evil') "
        "WHERE name = 'problems'"
    ],
    "types": [
        "UPDATE sqlite_master SET sql = replace(sql, ') STRICT', ')') WHERE type = 'table'",
        "UPDATE sqlite_master SET sql = replace(sql, 'id INTEGER', 'id TEXT') WHERE name = 'runs'",
    ],
    "no statement": ["UPDATE sqlite_master SET sql = 'DROP TABLE runs' WHERE name = 'runs'"],
    "root page": ["UPDATE sqlite_master SET rootpage = 1 WHERE name = 'records'"],
    "missing": ["DROP TABLE records"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_never_asked_and_is_put_aside(file: Path, name: str) -> None:
    alter(file, "DROP VIEW results", *HOSTILE[name])
    assert "damaged-1" in convolve(4, 5).only
    assert aside(file) == ["autoconv.db.damaged-1"]
    with closing(open_store(file, readonly=True)) as store:
        assert {p.key for p in store.problems(HERE.id)} == {problem(4).key, problem(5).key}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_not_read_either_where_it_may_not_be_changed(file: Path, name: str) -> None:
    alter(file, "DROP VIEW results", *HOSTILE[name])
    autoconv.configure(readonly=True)
    assert str(file) in convolve(4).only
    assert aside(file) == []


def test_a_table_or_a_view_that_somebody_added_is_no_harm(file: Path) -> None:
    alter(file, "CREATE TABLE notebook (text)", "CREATE VIEW more AS SELECT * FROM records", "ANALYZE")
    assert convolve(4, 5).warnings == []
    assert aside(file) == []


# What stands in it


def test_text_is_never_a_command(file: Path) -> None:
    hostile = result(4, run=COMMAND, detail=COMMAND, library=COMMAND, algorithm=COMMAND, parameters=COMMAND)
    with closing(open_store(file)) as store:
        store.add_environment(COMMAND, {"device": COMMAND}, {})
        store.add(problem(4), [hostile])
        store.begin(HERE.id, problem(5), COMMAND)
        assert store.records(HERE.id, problem(4))[-1] == hostile
        assert store.unended(HERE.id, problem(5)) == {COMMAND: 1}
    assert convolve(4, 5).warnings == []
    assert str(autoconv.explain((1, 3, 3, 4, 2), (3, 2, 2, 2, 2), padding=(1, 0, 1)))
    alter(file, "SELECT count(*) FROM records")


NONSENSE = {
    "negative numbers": ["UPDATE records SET workspace_bytes = -9223372036854775808, peak_bytes = -1, error = -1.0"],
    "giant numbers": [
        "UPDATE records SET workspace_bytes = 9223372036854775807, error = 1e308, samples_us = '[1e308]'"
    ],
    "giant ids": ["UPDATE candidates SET version = 9223372036854775807", "UPDATE runs SET created = -1e308"],
    "no numbers": ["UPDATE records SET error = 9e999, samples_us = '[NaN]'"],
    "no time": ["UPDATE runs SET created = 9e999"],
    "nested": [f"UPDATE records SET samples_us = '{'[' * 100_000}'"],
    "many samples": [
        "UPDATE records SET samples_us = '[' || substr(replace(hex(zeroblob(500000)), '00', ',1'), 2) || ']'"
    ],
    "a first run": [
        f"UPDATE qualifications SET passed = '{'[' * 100_000}', barred = '{{\"a\": 1}}', noise = -1e308",
    ],
    "notes": [
        "INSERT INTO notes (environment, problem, candidate, times, pid, started) "
        "SELECT environment, problem, 'x', 9223372036854775807, -1, 0 FROM runs LIMIT 1"
    ],
    "keys": [
        "UPDATE problems SET key = '%s%n{0.__class__}' || id",
        f"UPDATE environments SET key = '{COMMAND.replace(chr(39), chr(39) * 2)}' || id",
    ],
    "identity": [f"UPDATE environments SET identity = '{'[' * 100_000}', circumstances = '{{}}'"],
}

ELSEWHERE = {"negative numbers", "a first run", "notes", "identity"}
"""Nonsense in what no look-up rests on: it still finds what was measured."""


@pytest.mark.parametrize("name", NONSENSE)
def test_rows_of_nonsense_are_misses(file: Path, name: str) -> None:
    alter(file, *NONSENSE[name])
    with closing(open_store(file, readonly=True)) as store:
        read = [record for _, records in store.all_records() for record in records]
    assert all(math.isfinite(number) for record in read for number in (record.created, *record.samples_us))
    found = dispatch.dispatcher().look_up(problem(4), current(), mx.default_device())
    assert (found is None) is (name not in ELSEWHERE)
    dispatch.forget()
    assert convolve(4, 5).warnings == []
    assert aside(file) == []
    dispatch.forget()
    _calls.forget()
    assert convolve(4, 5, policy="predict").warnings == []


def test_a_value_that_is_too_large_costs_a_warning_and_no_memory(file: Path) -> None:
    alter(file, "UPDATE records SET detail = hex(zeroblob(20000000))")
    with closing(open_store(file, readonly=True)) as store:
        tracemalloc.start()
        try:
            with pytest.raises(StoreError, match="too big"):
                store.records(HERE.id, problem(4))
            assert tracemalloc.get_traced_memory()[1] < 1e6
        finally:
            tracemalloc.stop()
    assert "too big" in convolve(4, 5).only


# Imports


@pytest.mark.parametrize("name", ["trigger", "endless trigger", "endless view", "collation", "types", "root page"])
def test_no_import_runs_or_changes_anything_that_a_schema_says(file: Path, tmp_path: Path, name: str) -> None:
    own = tmp_path / "own.db"
    shutil.copy(file, own)
    alter(file, "DROP VIEW results", *HOSTILE[name])
    before = file.read_bytes()
    said = ""
    try:
        import_file(own, file, known={algorithm.name for algorithm in algorithms()})
    except StoreError as error:
        said = str(error)
    assert ("no plain table" in said) is (name == "endless view")
    assert file.read_bytes() == before
    with closing(open_store(own)) as store:
        assert [record.run for record in store.records(HERE.id, problem(4)) if not record.origin] == ["run"]


# Models


class Canary:
    """What is unpickled into a file that is there then."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "sung")))
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    "name", ["../evil/autoconv.cpu.npz", "/tmp/evil/autoconv.cpu.npz", "autoconv.cpu.joblib", "", ".", "\x00"]
)
def test_a_database_that_names_a_model_elsewhere_is_not_believed(
    file: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from autoconv.model import shelf

    evil = tmp_path / "evil" / "autoconv.cpu.npz"
    evil.parent.mkdir()
    evil.write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    named = name.replace("/tmp/evil", str(evil.parent))
    with closing(open_store(file)) as store:
        store.trust_model(ModelRecord("cpu", named, hashlib.sha256(evil.read_bytes()).hexdigest(), HERE.id, 1000))
    read: list[Path] = []
    monkeypatch.setattr(shelf, "load", lambda path, *_: read.append(path))
    assert advisers.trusted(current(), "cpu") is None
    assert convolve(5, policy="predict").warnings == []
    assert read == []
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_model_that_holds_a_pickle_is_not_unpickled_even_if_it_is_trusted(
    file: Path, tmp_path: Path, linked: bool
) -> None:
    import hashlib

    own = tmp_path / f"autoconv.{HERE.backend}.npz"
    held = tmp_path / "elsewhere.npz" if linked else own
    held.write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    if linked:
        own.symlink_to(held)
    with closing(open_store(file)) as store:
        sha256 = hashlib.sha256(held.read_bytes()).hexdigest()
        store.trust_model(ModelRecord(HERE.backend, own.name, sha256, HERE.id, 1000))
    model, why = advisers.model_for(HERE, {"launch_us": 1.0}, current())
    assert model is None
    assert why == "your own model is not used: it is no .npz file"
    assert convolve(5, policy="predict").warnings == []
    assert not (tmp_path / "sung").exists()


# Variables


@pytest.mark.parametrize(
    "name",
    [
        "plain.db?mode=memory",
        "plain.db#fragment",
        "100%25.db",
        "%2e%2e%2fup.db",
        "a?immutable=1&vfs=unix-none.db",
        "{0.__class__}%s%n.db",
        "line\nbreak.db",
        "\x1b[31mred.db",
        "file:other.db",
        "-rf.db",
        "'; DROP TABLE runs; --.db",
        "b\udcffytes.db",
    ],
)
def test_a_database_s_name_is_a_name_and_nothing_else(file: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    with autoconv.using(**_settings_of({"AUTOCONV_DATABASE": str(folder / name)})):  # type: ignore[arg-type]
        shutil.copy(file, folder / name)
        assert convolve(5).warnings == []
        dispatch.forget()
    assert [path.name for path in folder.iterdir()] == [name]
    with closing(open_store(folder / name)) as store:
        assert problem(5) in store.problems(HERE.id)


def _settings_of(environ: dict[str, str]) -> dict[str, object]:
    return {"database": _settings.from_environment(environ).database}


@pytest.mark.parametrize("length", [300, 5_000, 200_000])
def test_a_database_whose_name_is_too_long_costs_one_warning(file: Path, length: int) -> None:
    autoconv.configure(database=_settings.from_environment({"AUTOCONV_DATABASE": f"/tmp/{'x' * length}"}).database)
    assert "File name too long" in convolve(5, 6).only


@pytest.mark.parametrize("variable", [*_settings.VARIABLES, "AUTOCONV_PATCH", "AUTOCONV_LOG"])
@pytest.mark.parametrize(
    "value", ["%s%n{0.__class__}", "\x1b[31m\x07", "9" * 100_000, "x" * 100_000, "__import__('os')", "nan", "-1"]
)
def test_a_hostile_variable_is_a_setting_or_an_error_that_names_it(variable: str, value: str) -> None:
    if variable == "AUTOCONV_DATABASE" or (value[:1] == "9" and variable in NUMBERS):
        assert _settings.from_environment({variable: value})  # a name, or a number
        return
    read: dict[str, Callable[[], object]] = {
        "AUTOCONV_PATCH": lambda: _settings.patches({variable: value}),
        "AUTOCONV_LOG": lambda: _settings.set_up_logging(value),
    }
    with pytest.raises(SettingsError, match=variable) as caught:
        read.get(variable, lambda: _settings.from_environment({variable: value}))()
    assert "\x1b" not in str(caught.value)


def test_a_name_with_a_nul_is_refused_where_it_is_given() -> None:
    with pytest.raises(SettingsError, match="NUL"):
        autoconv.configure(database="a\0b")


# Rights


def test_whatever_the_umask_all_is_for_the_user_alone(file: Path, tmp_path: Path, no_umask: None) -> None:
    database = tmp_path / "deep" / "er" / "autoconv.db"
    with closing(MendingStore(database)) as store:
        store.add(problem(4), [result(4)])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
        assert modes == dict.fromkeys(("autoconv.db", "autoconv.db-wal", "autoconv.db-shm"), 0o600)
    assert [stat.S_IMODE(path.stat().st_mode) for path in database.parents[:2]] == [0o700, 0o700]
    with database.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xa5" * 100_000)
    with pytest.warns(AutoconvWarning, match="damaged-1"):
        store = MendingStore(database)
    with closing(store):
        store.add(problem(4), [result(4)])
        assert {stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()} == {0o600}
