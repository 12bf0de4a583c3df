"""A database of an older schema is brought up to date in place, and loses nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from old_schemas import first_schema, fourth_schema, second_schema, third_schema

from autoconv.errors import SchemaError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import ModelRecord, Qualification, connection, export, import_file, open_store

PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2)]


def record(problem: Problem, run: str, environment: str = "env", **fields: Any) -> Record:
    return Record(
        problem.key, environment, fields.pop("algorithm", "native"), 1, "", Status.OK, (1.5, 2.0), run=run, **fields
    )


RECORDS = [
    record(PROBLEMS[1], "a", error=1e-7, workspace_bytes=0, peak_bytes=7, created=1.5, library="0.1.0"),
    record(PROBLEMS[1], "a", algorithm="fft", detail="slow", created=1.5, library="0.1.0"),
    record(PROBLEMS[0], "a", created=1.5, library="0.1.0"),
    record(PROBLEMS[1], "b"),
    record(PROBLEMS[1], "a", "other"),
    record(PROBLEMS[1], "a", created=1.5, library="0.1.0"),
    record(PROBLEMS[1], "a", created=2.5, library="0.1.0"),
    record(PROBLEMS[1], "a", created=2.5, library="0.2.0"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    first_schema(path, RECORDS, [problem.key for problem in PROBLEMS], ["env", "other"])
    return path


@pytest.fixture
def second(tmp_path: Path) -> Path:
    path = tmp_path / "second.db"
    second_schema(path, RECORDS, [problem.key for problem in PROBLEMS], ["env", "other"])
    return path


@pytest.fixture
def third(tmp_path: Path) -> Path:
    path = tmp_path / "third.db"
    third_schema(path, RECORDS, [problem.key for problem in PROBLEMS], ["env", "other"])
    return path


@pytest.fixture
def fourth(tmp_path: Path) -> Path:
    path = tmp_path / "fourth.db"
    fourth_schema(path, RECORDS, [problem.key for problem in PROBLEMS], ["env", "other"])
    return path


@pytest.mark.parametrize("schema", ["file", "second", "third", "fourth"])
def test_every_record_is_there_in_its_order(schema: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(schema)
    with closing(open_store(file)) as store:
        for environment in ("env", "other"):
            for problem in PROBLEMS:
                expected = [r for r in RECORDS if (r.environment, r.problem) == (environment, problem.key)]
                assert store.records(environment, problem) == expected
        assert store.problems("env") == [PROBLEMS[1], PROBLEMS[0]]
        assert store.environments() == {"env": ({"device": "env"}, {})}


@pytest.mark.parametrize("schema", ["file", "second", "third", "fourth"])
def test_it_is_as_a_new_one(schema: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    file: Path = request.getfixturevalue(schema)
    open_store(file).close()
    open_store(tmp_path / "new.db").close()
    schemas = []
    for path in (file, tmp_path / "new.db"):
        with closing(sqlite3.connect(path)) as opened:
            schemas.append(opened.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 2").fetchall())
            assert opened.execute("PRAGMA user_version").fetchone() == (connection.SCHEMA,)
            assert opened.execute("PRAGMA foreign_key_check").fetchall() == []
            assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert schemas[0] == schemas[1]


def test_records_of_one_run_share_it(file: Path) -> None:
    open_store(file).close()
    with closing(sqlite3.connect(file)) as opened:
        shared = "SELECT count(*) FROM runs JOIN records ON run = runs.id GROUP BY runs.id ORDER BY runs.id"
        assert [count for (count,) in opened.execute(shared)] == [2, 1, 1, 1, 1, 1, 1]


def test_notes_pending_problems_and_qualifications_come_along(file: Path) -> None:
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute("INSERT INTO notes VALUES ('env', ?, 'fft', 2, 1, 1.0)", (PROBLEMS[0].key,))
        for problem in reversed(PROBLEMS):
            opened.execute("INSERT INTO pending VALUES ('other', ?, 1.0)", (problem.key,))
        opened.execute(
            """INSERT INTO qualifications VALUES ('env', 'f', '[["a", "b"]]', '{}', 0.5, '{"x": 1.0}', 2.0)"""
        )
    with closing(open_store(file)) as store:
        assert store.unended("env", PROBLEMS[0]) == {"fft": 2}
        assert store.pending("other") == [PROBLEMS[1], PROBLEMS[0]]
        assert store.qualification("env", "f") == Qualification(
            "env", "f", frozenset({("a", "b")}), {}, 0.5, {"x": 1.0}, 2.0
        )


def test_a_row_that_cannot_be_understood_stays_a_miss_and_costs_no_other(file: Path) -> None:
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute("UPDATE records SET status = 'dreamt', algorithm = CAST(x'ff' AS TEXT) WHERE run = 'b'")
    with closing(open_store(file)) as store:
        expected = [r for r in RECORDS if (r.environment, r.problem, r.run) == ("env", PROBLEMS[1].key, "a")]
        assert store.records("env", PROBLEMS[1]) == expected


def test_it_can_be_written_afterwards(file: Path) -> None:
    with closing(open_store(file)) as store:
        store.add(PROBLEMS[0], [record(PROBLEMS[0], "new")])
        assert [r.run for r in store.records("env", PROBLEMS[0])] == ["a", "new"]


def test_for_reading_only_it_is_refused_and_left_as_it_is(file: Path) -> None:
    before = file.read_bytes()
    for immutable in (False, True):
        with pytest.raises(SchemaError, match="older than"):
            open_store(file, readonly=True, immutable=immutable)
    assert file.read_bytes() == before


@pytest.mark.parametrize("schema", ["second", "third"])
@pytest.mark.parametrize("immutable", [False, True])
def test_the_second_schema_and_the_third_can_be_read_as_they_are_and_trust_no_model(
    schema: str, immutable: bool, request: pytest.FixtureRequest
) -> None:
    second: Path = request.getfixturevalue(schema)
    with closing(sqlite3.connect(second)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    before = second.read_bytes()
    with closing(open_store(second, readonly=True, immutable=immutable)) as store:
        assert [r.run for r in store.records("env", PROBLEMS[0])] == ["a"]
        assert store.trusted_models() == []
    assert second.read_bytes() == before


def test_the_second_schema_learns_to_trust_models(second: Path) -> None:
    with closing(open_store(second)) as store:
        store.trust_model(ModelRecord("cpu", "a.npz", "ab", created=1.0))
    with closing(open_store(second, readonly=True)) as store:
        assert store.trusted_models() == [ModelRecord("cpu", "a.npz", "ab", created=1.0)]


@pytest.mark.parametrize("trusting", [False, True])
def test_no_export_tells_of_models_and_no_import_makes_one_trusted(
    second: Path, tmp_path: Path, trusting: bool
) -> None:
    model = ModelRecord("cpu", "secret-name.npz", "ab", created=1.0)
    if trusting:
        with closing(open_store(second)) as store:
            store.trust_model(model)
    out = tmp_path / "out.db"
    export(second, out)
    assert b"secret-name" not in out.read_bytes()
    with closing(open_store(out)) as store:
        assert store.trusted_models() == []
        store.trust_model(model)
    with closing(sqlite3.connect(out)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    found = import_file(tmp_path / "new.db", out, known={"native", "fft"})
    assert found.rejected  # it was read: its environments are no real ones
    assert not found.broken
    with closing(open_store(tmp_path / "new.db")) as store:
        assert store.trusted_models() == []


def test_networks_are_none_before_they_are_kept(fourth: Path) -> None:
    with closing(open_store(fourth, readonly=True)) as store:
        assert store.networks() == {}
    with closing(open_store(fourth)) as store:
        store.name_network("a.py", {PROBLEMS[0]: 2})
        assert store.networks() == {"a.py": {PROBLEMS[0]: 2}}


@pytest.mark.parametrize("suffix", ["db", "jsonl", "csv"])
def test_no_export_tells_of_networks_and_no_import_names_one(fourth: Path, tmp_path: Path, suffix: str) -> None:
    with closing(open_store(fourth)) as store:
        store.name_network("secret-name.py", {PROBLEMS[0]: 2})
        store.name_network("secret-name.py", {Problem.parse((7, 7, 7, 7, 7), (7, 7, 7, 7, 7)): 1})
    out = tmp_path / f"out.{suffix}"
    export(fourth, out)
    assert b"secret-name" not in out.read_bytes()
    assert b"7,7,7,7,7" not in out.read_bytes()
    if suffix != "db":
        return
    with closing(open_store(out)) as store:
        assert store.networks() == {}
        store.name_network("secret-name.py", {PROBLEMS[0]: 2})
    with closing(sqlite3.connect(out)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    found = import_file(tmp_path / "new.db", out, known={"native", "fft"})
    assert found.rejected  # it was read: its environments are no real ones
    assert not found.broken
    with closing(open_store(tmp_path / "new.db")) as store:
        assert store.networks() == {}


def test_the_view_shows_a_readable_row_a_record(file: Path) -> None:
    open_store(file).close()
    with closing(sqlite3.connect(file)) as opened:
        opened.row_factory = sqlite3.Row
        opened.execute("PRAGMA trusted_schema = OFF")
        first, *rest = opened.execute("SELECT * FROM results").fetchall()
    assert len(rest) == len(RECORDS) - 1
    assert dict(first) == {
        "environment": "env",
        "device": "env",
        "problem": PROBLEMS[1].key,
        "gflop": 0.5,
        "candidate": "native",
        "version": 1,
        "status": "ok",
        "median_us": 1.75,
        "error": 1e-7,
        "workspace_bytes": 0,
        "peak_bytes": 7,
        "detail": "",
        "run": "a",
        "created": "1970-01-01 00:00:01",
        "library": "0.1.0",
        "origin": None,
    }


@pytest.mark.parametrize("schema", ["second", "third"])
def test_an_export_has_the_views_and_leaves_its_source_as_it_is(
    schema: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file: Path = request.getfixturevalue(schema)
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    before = file.read_bytes()
    export(file, tmp_path / "out.db")
    assert file.read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "out.db")) as opened:
        assert opened.execute("PRAGMA user_version").fetchone() == (connection.SCHEMA,)
        assert opened.execute("SELECT count(*) FROM winners").fetchone() == (3,)
