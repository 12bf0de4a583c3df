"""What an import takes, what it refuses, and that no file does more than that."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from old_schemas import first_schema

from autoconv.environment import Environment
from autoconv.errors import SchemaError, StoreError
from autoconv.problem import Kind, Problem
from autoconv.record import MAX_DETAIL, Record, Status, environment_id
from autoconv.store import Imported, Qualification, Selection, connection, export, import_file, open_store
from autoconv.store.transfer import imports

SUFFIXES = (".db", ".jsonl", ".csv")
KNOWN = {"native", "fft"}
PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2, 3)]
IDENTITIES = [{"backend": "metal", "device": f"Apple M{n}", "mlx": "0.30", "cores": n} for n in (1, 2, 3)]
HERE, THERE, UNKNOWN = (environment_id(identity) for identity in IDENTITIES)
each_format = pytest.mark.parametrize("suffix", SUFFIXES)


def result(problem: Problem = PROBLEMS[0], environment: str = HERE, **fields: Any) -> Record:
    known: dict[str, Any] = {"algorithm": "native", "version": 1, "parameters": "", "status": Status.OK}
    return Record(problem=problem.key, environment=environment, **(known | {"samples_us": (1.5, 2.0)} | fields))


RECORDS = [
    result(run="a", created=1.5, error=1e-7, workspace_bytes=0, peak_bytes=7, library="0.1.0"),
    result(run="a", created=1.5, algorithm="fft", parameters="tile=4", status=Status.WRONG, error=math.inf),
    result(PROBLEMS[1], run="b", detail='slow, "quoted"\nand on two lines'),
    result(environment=THERE, run="c", samples_us=()),
]
QUALIFICATION = Qualification(
    HERE, "native=1", frozenset({("native", "float32")}), {"fft": "wrong"}, 0.5, {"copy_gb_per_s": 2.0}, 3.0
)


def fill(file: Path, records: Iterable[Record], qualifications: Sequence[Qualification] = ()) -> Path:
    with closing(open_store(file)) as store:
        for identity in IDENTITIES[:2]:
            store.add_environment(environment_id(identity), identity, {"os": "Darwin 24"})
        for record in records:
            store.add(Problem.from_key(record.problem), [record])
        for qualification in qualifications:
            store.qualify(qualification)
    return file


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return fill(tmp_path / "autoconv.db", RECORDS, [QUALIFICATION])


def exported(database: Path, suffix: str) -> Path:
    out = database.with_name(f"{database.stem}-out{suffix}")
    export(database, out, force=True)
    return out


def held(file: Path, *, origins: bool = False) -> list[Record]:
    with closing(open_store(file, readonly=True)) as store:
        records = [record for _, records in store.all_records() for record in records]
    return records if origins else [dataclasses.replace(record, origin="") for record in records]


def described(file: Path) -> dict[str, Any]:
    with closing(open_store(file, readonly=True)) as store:
        return store.environments()


# What comes through


@each_format
def test_what_was_exported_comes_in_and_says_where_it_came_from(database: Path, tmp_path: Path, suffix: str) -> None:
    out, into = exported(database, suffix), tmp_path / "into.db"
    assert import_file(into, out, known=KNOWN) == Imported(added=4, problems=2, environments=2, qualifications=1)
    assert held(into) == held(database)
    assert described(into) == described(database)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert {record.origin for record in held(into, origins=True)} == {digest[:12]}
    with closing(open_store(into)) as store:
        assert store.qualifications() == [dataclasses.replace(QUALIFICATION, origin=digest[:12])]
        assert store.qualification(HERE, "native=1") is None
    with closing(sqlite3.connect(into)) as opened:
        assert opened.execute("SELECT key, sha256, file FROM origins").fetchall() == [(digest[:12], digest, out.name)]


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
records = st.builds(
    Record,
    problem=st.sampled_from([problem.key for problem in PROBLEMS]),
    environment=st.sampled_from([HERE, THERE, UNKNOWN]),
    algorithm=st.sampled_from(sorted(KNOWN)),
    version=st.integers(0, 2**63 - 1),
    parameters=text,
    status=st.sampled_from(Status),
    samples_us=st.lists(st.floats(0, 1e12, exclude_min=True), max_size=12).map(tuple),
    error=st.none() | st.floats(0),
    workspace_bytes=st.none() | st.integers(0, 2**63 - 1),
    peak_bytes=st.none() | st.integers(0, 2**63 - 1),
    detail=st.text(
        st.characters(exclude_categories=["Cs", "Cc"], include_characters="\r\n\t", exclude_characters="/"), max_size=40
    ),
    run=st.text(st.sampled_from("ab,\"'ü"), max_size=3),
    created=st.floats(0, 1.7e9),
    library=text,
)
batches = st.lists(records, max_size=6, unique=True)


@each_format
@hypothesis_settings(max_examples=25)
@given(added=batches)
def test_nothing_is_lost_on_the_way_and_back(suffix: str, added: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database, into = fill(Path(folder) / "a.db", added), Path(folder) / "into.db"
        first = exported(database, suffix)
        assert import_file(into, first, known=KNOWN).complete
        assert sorted(held(into), key=repr) == sorted(held(database), key=repr)
        assert described(into) == described(database)
        if suffix != ".db":
            again = exported(into, suffix).read_bytes()
            assert sorted(again.split(b"\n")) == sorted(first.read_bytes().split(b"\n"))


@each_format
@hypothesis_settings(max_examples=15)
@given(one=batches, two=batches)
def test_two_databases_make_one_in_either_order_and_however_often(
    suffix: str, one: list[Record], two: list[Record]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [exported(fill(Path(folder) / f"{n}.db", batch), suffix) for n, batch in enumerate((one, two))]
        merged = []
        for name, order in (("forth.db", (0, 1)), ("back.db", (1, 0, 1, 0))):
            for place in order:
                assert import_file(Path(folder) / name, files[place], known=KNOWN).complete
            merged.append(held(Path(folder) / name))
        assert sorted(merged[0], key=repr) == sorted(merged[1], key=repr)
        assert len(merged[0]) == len({repr(dataclasses.replace(r, detail="")) for r in one + two})


@each_format
def test_the_same_file_twice_adds_nothing(database: Path, tmp_path: Path, suffix: str) -> None:
    out, into = exported(database, suffix), tmp_path / "into.db"
    import_file(into, out, known=KNOWN)
    before = held(into, origins=True)
    assert import_file(into, out, known=KNOWN) == Imported(known=4)
    assert held(into, origins=True) == before


@each_format
def test_what_was_measured_here_stays_one_s_own(database: Path, suffix: str) -> None:
    before = held(database, origins=True)
    assert import_file(database, exported(database, suffix), known=KNOWN) == Imported(known=4)
    assert held(database, origins=True) == before
    with closing(open_store(database)) as store:
        assert store.qualifications() == [QUALIFICATION]


@each_format
def test_records_of_one_run_that_differ_are_both_kept(tmp_path: Path, suffix: str) -> None:
    own = fill(tmp_path / "own.db", [result(run="a")])
    others = fill(tmp_path / "others.db", [result(run="a", samples_us=(9.0,)), result(run="a", detail="in words")])
    assert import_file(own, exported(others, suffix), known=KNOWN) == Imported(added=1, known=1)
    assert [record.samples_us for record in held(own)] == [(1.5, 2.0), (9.0,)]


@each_format
def test_notes_the_pending_list_and_circumstances_stay_as_they_are(database: Path, tmp_path: Path, suffix: str) -> None:
    own = tmp_path / "own.db"
    with closing(open_store(own)) as store:
        store.add_environment(HERE, IDENTITIES[0], {"os": "another"})
        store.note(HERE, PROBLEMS[0])
        store.begin(HERE, PROBLEMS[0], "fft")
        import_file(own, exported(database, suffix), known=KNOWN)
        assert store.pending(HERE) == [PROBLEMS[0]]
        assert store.unended(HERE, PROBLEMS[0]) == {"fft": 1}
        assert store.environments()[HERE] == (IDENTITIES[0], {"os": "another"})
        assert store.environments()[THERE] == (IDENTITIES[1], {"os": "Darwin 24"})


@each_format
def test_an_import_in_many_transactions_is_the_same(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(imports, "BATCH", 1)
    parts: list[float] = []
    import_file(tmp_path / "into.db", exported(database, suffix), known=KNOWN, tell=parts.append)
    assert held(tmp_path / "into.db") == held(database)
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_a_database_of_the_first_schema_comes_in_as_it_is(tmp_path: Path) -> None:
    old, into = tmp_path / "old.db", tmp_path / "into.db"
    first_schema(old, [record for record in RECORDS if record.environment == HERE], [], [HERE])
    with closing(sqlite3.connect(old)) as opened, opened:
        opened.execute("UPDATE environments SET identity = ?", (json.dumps(IDENTITIES[0]),))
    with closing(sqlite3.connect(old)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    before = old.read_bytes()
    assert import_file(into, old, known=KNOWN) == Imported(added=3, problems=2, environments=1)
    assert held(into) == RECORDS[:3]
    assert described(into) == {HERE: (IDENTITIES[0], {})}
    assert old.read_bytes() == before


def test_lines_of_the_first_version_come_in(tmp_path: Path) -> None:
    old = tmp_path / "old.jsonl"
    fields = {f.name: getattr(RECORDS[1], f.name) for f in dataclasses.fields(Record) if f.name != "origin"}
    environment = {"type": "environment", "id": HERE, "identity": IDENTITIES[0], "circumstances": {}}
    lines = [environment, {"type": "record", **fields, "error": "inf"}]
    old.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert import_file(tmp_path / "into.db", old, known=KNOWN) == Imported(added=1, problems=1, environments=1)
    assert held(tmp_path / "into.db") == [RECORDS[1]]


def test_an_environment_s_id_is_that_of_the_environment() -> None:
    assert Environment({"b": 1, "a": "ü"}).id == environment_id({"a": "ü", "b": 1})


def test_a_clock_that_is_somewhat_ahead_is_let_in(tmp_path: Path) -> None:
    in_lines([line(created=time.time() + 3600)], tmp_path / "in.jsonl")
    assert import_file(tmp_path / "into.db", tmp_path / "in.jsonl", known=KNOWN).added == 1


def test_a_qualification_of_a_moment_to_come_is_refused(tmp_path: Path) -> None:
    never = dataclasses.replace(QUALIFICATION, created=1e300)
    imported = import_file(tmp_path / "into.db", exported(fill(tmp_path / "a.db", [], [never]), ".jsonl"), known=KNOWN)
    assert (imported.qualifications, list(imported.rejected)) == (0, ["a moment to come"])


# Selections


NARROW = {
    "device": (Selection(device="m2"), [RECORDS[3]]),
    "environment": (Selection(environment=HERE[:6]), RECORDS[:3]),
    "problems": (
        Selection(problems=[dataclasses.replace(PROBLEMS[1], dtype="float16", kind=Kind.WEIGHT_GRADIENT)]),
        [RECORDS[2]],
    ),
    "both": (Selection(device="M1", problems=PROBLEMS[:1]), RECORDS[:2]),
}


@each_format
def test_an_export_of_nothing_leaves_what_was_there(database: Path, tmp_path: Path, suffix: str) -> None:
    out = exported(database, suffix)
    before = out.read_bytes()
    with pytest.raises(StoreError, match="is selected"):
        export(database, out, selection=Selection(device="M9"), force=True)
    assert out.read_bytes() == before
    with pytest.raises(StoreError, match="is selected"):
        export(database, tmp_path / f"new{suffix}", selection=Selection(device="M9"))
    assert not list(tmp_path.glob("*new*"))


@each_format
@pytest.mark.parametrize("name", NARROW)
def test_an_export_holds_what_is_selected_alone(database: Path, tmp_path: Path, suffix: str, name: str) -> None:
    selection, expected = NARROW[name]
    out, into = tmp_path / f"out{suffix}", tmp_path / "into.db"
    with closing(open_store(database)) as store:
        store.note(THERE, PROBLEMS[2])
    assert export(database, out, selection=selection).records == len(expected)
    import_file(into, out, known=KNOWN)
    assert held(into) == expected
    assert set(described(into)) == {record.environment for record in expected}
    with closing(open_store(into)) as store:
        assert len(store.qualifications()) == any(record.environment == HERE for record in expected)
    for record in {*RECORDS} - {*expected}:
        if record.problem not in {other.problem for other in expected}:
            assert record.problem.encode() not in out.read_bytes()
    assert PROBLEMS[2].key.encode() not in out.read_bytes()


@each_format
def test_an_export_does_not_say_where_imports_came_from(database: Path, tmp_path: Path, suffix: str) -> None:
    secret = database.with_name("name-of-alice.jsonl")
    export(database, secret)
    into = tmp_path / "into.db"
    import_file(into, secret, known=KNOWN)
    with closing(open_store(into)) as store:
        store.qualify(dataclasses.replace(QUALIFICATION, noise=0.25))
    out = exported(into, suffix)
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    assert b"alice" not in out.read_bytes()
    assert digest[:12].encode() not in out.read_bytes()
    import_file(tmp_path / "again.db", out, known=KNOWN)
    with closing(open_store(tmp_path / "again.db")) as store:
        assert [qualification.noise for qualification in store.qualifications()] == [0.25]


def test_a_table_can_be_read_by_people(database: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(database, ".csv").read_text(), newline="")))
    assert [row["type"] for row in rows] == ["environment"] * 2 + ["qualification"] + ["record"] * 4
    assert [(row["device"], row["median_us"]) for row in rows[3:]] == [("Apple M1", "1.75")] * 3 + [("Apple M2", "")]


# What is refused


def line(**changes: Any) -> dict[str, Any]:
    fields = {f.name: getattr(RECORDS[0], f.name) for f in dataclasses.fields(Record) if f.name != "origin"}
    return {"type": "record", **fields} | changes


ENVIRONMENT = {"type": "environment", "environment": HERE, "identity": IDENTITIES[0], "circumstances": {}}

ELSEWHERE = ENVIRONMENT | {"environment": UNKNOWN, "identity": IDENTITIES[2]}


def _described(changes: dict[str, Any]) -> dict[str, Any]:
    """An environment whose id is that of its identity."""
    identity = {**IDENTITIES[2], **changes}
    return ENVIRONMENT | {"environment": environment_id(identity), "identity": identity}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "algorithm": (line(algorithm="evil"), "an unknown algorithm"),
    "no algorithm": (line(algorithm=["native"]), "an unknown algorithm"),
    "problem": (line(problem="nonsense"), "a problem that is none"),
    "long problem": (line(problem=PROBLEMS[0].key + " " * 1000), "a problem that is none"),
    "status": (line(status="dreamt"), "an unknown status"),
    "zero": (line(samples_us=[0.0]), "impossible samples"),
    "negative": (line(samples_us=[1.0, -1.0]), "impossible samples"),
    "eternal": (line(samples_us=[1.1e12]), "impossible samples"),
    "text sample": (line(samples_us=["1"]), "impossible samples"),
    "no sample": (line(samples_us=[None]), "impossible samples"),
    "nested samples": (line(samples_us=[[1.0]]), "impossible samples"),
    "many samples": (line(samples_us=[1.0] * 2001), "impossible samples"),
    "negative bytes": (line(peak_bytes=-1), "an impossible number"),
    "too many bytes": (line(workspace_bytes=2**63), "an impossible number"),
    "negative error": (line(error=-1e-3), "an impossible number"),
    "negative version": (line(version=-1), "an impossible number"),
    "before all time": (line(created=-1.0), "an impossible number"),
    "long detail": (line(detail="x" * (MAX_DETAIL + 1)), "a text that is too long"),
    "long parameters": (line(parameters="x" * 501), "a text that is too long"),
    "long run": (line(run="x" * 501), "a text that is too long"),
    "long library": (line(library="x" * 501), "a text that is too long"),
    "environment": (line(environment="0123456789ABCDEF"), "an environment's id that is none"),
    "identity": (ELSEWHERE | {"identity": IDENTITIES[1]}, "an environment whose id is not that of its identity"),
    "no identity": (ELSEWHERE | {"identity": [1]}, "an object that is none"),
    "long": (ELSEWHERE | {"circumstances": {"os": "x" * 20_000}}, "an object that is too long"),
    "eternity": (line(created=1e300), "a moment to come"),
    "two days ahead": (line(created=time.time() + 2 * 86_400), "a moment to come"),
    "no MLX": (_described({"mlx": 3}), "an environment without the texts backend, device, mlx"),
    "title": (line(detail="\x1b]0;owned\x07"), "a text with control characters"),
    "C1": (line(detail="\x9b2J"), "a text with control characters"),
    "a tab in a name": (line(parameters="tile=4\tError"), "a text with control characters"),
    "titled device": (_described({"device": "\x1b[2J"}), "a text with control characters"),
    "titled field": (ELSEWHERE | {"circumstances": {"os": {"\x7f": 1}}}, "a text with control characters"),
    "type": ({"type": "spell"}, "a row of an unknown type"),
}


def in_table(lines: Iterable[dict[str, Any]], file: Path) -> None:
    nested = ("identity", "circumstances", "samples_us")
    columns = list(dict.fromkeys(["type", *ENVIRONMENT, *line()]))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        for entry in lines:
            writer.writerow({n: json.dumps(v) if n in nested else v for n, v in entry.items()})


def in_lines(lines: Iterable[dict[str, Any]], file: Path) -> None:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


@pytest.mark.parametrize("write", [in_lines, in_table])
@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_makes_no_sense_is_refused_and_costs_no_other(
    tmp_path: Path, name: str, write: Callable[[Iterable[dict[str, Any]], Path], None]
) -> None:
    bad, reason = REFUSED[name]
    file = tmp_path / ("in.csv" if write is in_table else "in.jsonl")
    write([line(run="first"), bad, bad, line(run="last")], file)
    imported = import_file(tmp_path / "into.db", file, known=KNOWN)
    assert {reason: rejected.count for reason, rejected in imported.rejected.items()} == {reason: 2}
    assert imported.rejected[reason].example.startswith("line 3" if write is in_table else "line 2")
    assert "\n" not in imported.rejected[reason].example
    assert len(imported.rejected[reason].example) < 200
    assert (imported.added, imported.broken, imported.complete) == (2, "", False)
    assert [record.run for record in held(tmp_path / "into.db")] == ["first", "last"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"no json", "no JSON"),
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 30_000, "no JSON"),
        (b"\xff\xfe", "a line of over 200000 bytes, or no UTF-8"),
        (b"x" * 1_000_000, "a line of over 200000 bytes, or no UTF-8"),
        (json.dumps(line(error=math.nan)).encode(), "no JSON"),
        (json.dumps(line(created=math.inf)).encode(), "no JSON"),
        (json.dumps(line(error=0.5)).replace("0.5", "1" * 5000).encode(), "no JSON"),
        (json.dumps(line(created=0.5)).replace("0.5", "1" + "0" * 400).encode(), "an impossible number"),
        (json.dumps(line(created=0.5)).replace("0.5", "1e999").encode(), "an impossible number"),
        (json.dumps(line(run="\ud800")).encode(), "a text that is none"),
        (json.dumps(line(created=True)).encode(), "an impossible number"),
        (json.dumps(line(version=1.0)).encode(), "an impossible number"),
        (json.dumps({n: v for n, v in line().items() if n != "run"}).encode(), "a missing field"),
        (json.dumps(line(command="rm")).encode(), "a field that this version does not know"),
        (b'{"type": ["record"]}', "a row of an unknown type"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_a_line_that_is_no_entry_is_refused_and_costs_no_other(tmp_path: Path, raw: bytes, reason: str) -> None:
    file = tmp_path / "in.jsonl"
    good = [json.dumps(line(run=run)).encode() for run in ("first", "last")]
    file.write_bytes(b"\n".join([good[0], raw, good[1]]))
    imported = import_file(tmp_path / "into.db", file, known=KNOWN)
    assert {reason: rejected.count for reason, rejected in imported.rejected.items()} == {reason: 1}
    assert imported.rejected[reason].example.startswith("line 2")
    assert imported.added == 2


def test_a_long_cell_costs_no_other_row(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    in_table([line(run="first"), line(detail="x" * 150_000), line(run="last")], tmp_path / "in.csv")
    imported = import_file(tmp_path / "into.db", tmp_path / "in.csv", known=KNOWN)
    assert (imported.added, list(imported.rejected), imported.broken) == (2, ["a text that is too long"], "")
    assert csv.field_size_limit() == limit


def test_text_is_never_a_command(tmp_path: Path) -> None:
    nasty = "'); DROP TABLE records; --"
    file = tmp_path / f"{nasty}.jsonl"
    in_lines([line(parameters=nasty, run=nasty, detail=nasty), line(algorithm="\x1b[2J\n")], file)
    imported = import_file(tmp_path / "into.db", file, known=KNOWN)
    assert imported.added == 1
    assert "\x1b" not in imported.rejected["an unknown algorithm"].example
    assert [record.parameters for record in held(tmp_path / "into.db")] == [nasty]


def test_records_of_an_environment_that_was_refused_are_refused(tmp_path: Path) -> None:
    in_lines([ENVIRONMENT | {"identity": IDENTITIES[1]}, line(), line(environment=THERE)], tmp_path / "in.jsonl")
    imported = import_file(tmp_path / "into.db", tmp_path / "in.jsonl", known=KNOWN)
    assert imported.rejected["an environment that was refused"].count == 1
    assert [record.environment for record in held(tmp_path / "into.db")] == [THERE]


# Files that are not what they should be


def altered(database: Path, *statements: str) -> Path:
    out = exported(database, ".db")
    with closing(sqlite3.connect(out, isolation_level=None)) as opened:
        opened.execute("PRAGMA writable_schema = ON")
        opened.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            opened.execute(statement)
    return out


STRICT_ALL = "SELECT run, position, candidate, status, samples_us, error, workspace_bytes, peak_bytes, detail FROM"
HOSTILE: dict[str, tuple[list[str], str]] = {
    "view": (
        ["ALTER TABLE records RENAME TO old", f"CREATE VIEW records AS {STRICT_ALL} old"],
        "records are no plain table",
    ),
    "cyclic views": (
        [
            "ALTER TABLE records RENAME TO old",
            "CREATE VIEW records AS SELECT * FROM other",
            "CREATE VIEW other AS SELECT * FROM records",
        ],
        "records are no plain table",
    ),
    "endless view": (
        [
            "ALTER TABLE runs RENAME TO old",
            "CREATE VIEW runs AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n) SELECT id FROM n",
        ],
        "runs are no plain table",
    ),
    "generated": (
        ["ALTER TABLE environments ADD COLUMN extra TEXT GENERATED ALWAYS AS (hex(zeroblob(1000000)))"],
        "environments are no plain table",
    ),
    "virtual": (
        ["DROP VIEW results", "DROP TABLE candidates", "CREATE VIRTUAL TABLE candidates USING fts5(id, algorithm)"],
        "candidates are no plain table",
    ),
    "column": (["ALTER TABLE runs RENAME COLUMN created TO made"], "runs are no plain table"),
    "missing": (["DROP VIEW results", "DROP TABLE origins", "DROP TABLE problems"], "problems are no plain table"),
    "foreign": (["PRAGMA application_id = 7"], "another program"),
    "newer": ([f"PRAGMA user_version = {connection.SCHEMA + 1}"], "newer autoconv"),
    "number": (["PRAGMA user_version = -1"], "it has schema -1, which none is"),
    "blob": (
        [
            "CREATE TABLE more (id INTEGER PRIMARY KEY, key, identity, circumstances)",
            "INSERT INTO more SELECT 1, key, zeroblob(2000000), circumstances FROM environments LIMIT 1",
            "DROP VIEW results",
            "DROP TABLE environments",
            "ALTER TABLE more RENAME TO environments",
        ],
        "too big",
    ),
    "schema": (["UPDATE sqlite_master SET sql = 'CREATE TABLE runs (' WHERE name = 'runs'"], "malformed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_database_changes_nothing_but_the_report(database: Path, tmp_path: Path, name: str) -> None:
    statements, reason = HOSTILE[name]
    own = fill(tmp_path / "own.db", [result(PROBLEMS[2], run="own")])
    file = altered(database, *statements)
    before = file.read_bytes()
    with pytest.raises(StoreError, match=reason):
        import_file(own, file, known=KNOWN)
    with pytest.raises(StoreError, match=reason):
        import_file(tmp_path / "new.db", file, known=KNOWN)
    assert not (tmp_path / "new.db").exists()
    assert [record.run for record in held(own)] == ["own"]
    assert file.read_bytes() == before


def test_triggers_of_a_foreign_database_never_run(database: Path, tmp_path: Path) -> None:
    events = ("INSERT ON records", "DELETE ON runs", "UPDATE ON environments")
    statements = [
        f"CREATE TRIGGER t{n} AFTER {event} BEGIN DELETE FROM environments; END" for n, event in enumerate(events)
    ]
    file = altered(database, *statements)
    before = file.read_bytes()
    assert import_file(tmp_path / "into.db", file, known=KNOWN).added == 4
    assert file.read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "into.db")) as opened:
        assert opened.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (0,)


def untyped(*tables: str) -> list[str]:
    """What makes tables forget the types of their columns, so that anything can stand in them."""
    return [
        f"UPDATE sqlite_master SET sql = replace(replace(sql, 'STRICT, WITHOUT', 'WITHOUT'), ') STRICT', ')') "
        f"WHERE name = '{table}'"
        for table in tables
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("UPDATE records SET samples_us = x'5b5d'", "impossible samples"),
        ("UPDATE records SET samples_us = '[0]'", "impossible samples"),
        (f"UPDATE records SET samples_us = '{'[' * 10_000}'", "impossible samples"),
        ("UPDATE records SET error = 'much'", "an impossible number"),
        ("UPDATE records SET detail = x'ff'", "a text that is none"),
        ("UPDATE runs SET created = 9e999", "an impossible number"),
        ("UPDATE problems SET key = key || ' '", "a problem that is none"),
        ("UPDATE candidates SET algorithm = x'00'", "an unknown algorithm"),
        ("UPDATE environments SET key = upper(key)", "an environment's id that is none"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_rows_of_a_database_are_checked_like_any_other(
    database: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    file = altered(database, *untyped("records", "runs", "candidates", "problems", "environments"))
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        opened.execute("PRAGMA ignore_check_constraints = ON")
        opened.execute(damage)
    imported = import_file(tmp_path / "into.db", file, known=KNOWN)
    assert imported.rejected[reason].count >= 4
    assert imported.added == 0
    assert held(tmp_path / "into.db") == []


def test_a_query_that_would_not_end_is_ended(tmp_path: Path) -> None:
    database = fill(tmp_path / "a.db", [result(run=str(number)) for number in range(300)])
    # Without the primary key by which records are found, each run reads all of them; here they are all of every run.
    file = altered(
        database,
        "CREATE TABLE more (id INTEGER PRIMARY KEY, run, position, candidate, status, samples_us, error, "
        "workspace_bytes, peak_bytes, detail)",
        "INSERT INTO more WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) "
        "SELECT i, -1, '', '', '', '', '', '', '', '' FROM n",
        "DROP VIEW results",
        "DROP TABLE records",
        "ALTER TABLE more RENAME TO records",
        "INSERT INTO runs (environment, problem, key, created, library) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) SELECT 1, 1, '', 0, '' FROM n",
    )
    imported = import_file(tmp_path / "into.db", file, known=KNOWN)
    assert "longer than its size explains" in imported.broken
    assert imported.added == 0


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_database_changes_nothing(tmp_path: Path, seed: int) -> None:
    database = fill(tmp_path / "a.db", [result(run=str(n), detail="x" * 400) for n in range(100)])
    out, chance = exported(database, ".db"), random.Random(seed)
    content = bytearray(out.read_bytes())
    if seed % 3 == 0:
        content = content[: chance.randrange(100, len(content))]
    for _ in range(40 * (seed % 3)):
        content[chance.randrange(100, len(content))] = chance.randrange(256)
    out.write_bytes(content)
    own = fill(tmp_path / "own.db", [result(PROBLEMS[2], run="own")])
    try:
        taken = import_file(own, out, known=KNOWN).added
    except StoreError:
        taken = 0
    assert len(held(own)) == 1 + taken
    # Damage within a text may leave a database that is sound; what it says is taken row by row.
    assert seed % 3 or taken == 0
    with closing(sqlite3.connect(own)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_database_in_use_is_not_read_in_part(database: Path, tmp_path: Path) -> None:
    with closing(open_store(database)) as store:
        store.add(PROBLEMS[2], [result(PROBLEMS[2])])
        with pytest.raises(StoreError, match=r"in use .*import an export of it"):
            import_file(tmp_path / "into.db", database, known=KNOWN)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_text_that_ends_early_gives_what_came_before(database: Path, tmp_path: Path, suffix: str) -> None:
    out = exported(database, suffix)
    os.truncate(out, out.stat().st_size - 20)
    imported = import_file(tmp_path / "into.db", out, known=KNOWN)
    assert (imported.added, len(imported.rejected)) == (3, 1)


@pytest.mark.parametrize("rest", ['"' + "x\n" * 200_000, "x" * 300_000, '"\x00" "\n'], ids=["open", "long", "quote"])
def test_a_table_that_cannot_be_told_apart_says_how_far_it_came(database: Path, tmp_path: Path, rest: str) -> None:
    out = exported(database, ".csv")
    with out.open("a") as opened:
        opened.write(rest)
    imported = import_file(tmp_path / "into.db", out, known=KNOWN)
    assert imported.added == 4
    assert "7 rows before that were read" in imported.broken
    assert "\n" not in imported.broken


@pytest.mark.parametrize(
    ("name", "content", "error", "reason"),
    [
        ("in.db", b"no database" * 1000, SchemaError, "no SQLite database"),
        ("in.db", b"", SchemaError, "empty"),
        ("in.jsonl", b'{"type": "autoconv", "format": 3}\n', SchemaError, "newer autoconv"),
        ("in.csv", b"a,b\n1,2\n", SchemaError, "no table of autoconv"),
        ("in.csv", b"type,type\n1,2\n", SchemaError, "no table of autoconv"),
        ("in.csv", b"type,of_tomorrow\nrecord,2\n", SchemaError, "does not know, 'of_tomorrow'"),
        ("in.txt", b"", ValueError, "suffix"),
    ],
)
def test_a_file_of_another_kind_is_named_and_nothing_is_made(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=reason):
        import_file(tmp_path / "into.db", tmp_path / name, known=KNOWN)
    assert not (tmp_path / "into.db").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(StoreError, match=rf"missing{suffix}: No such file"):
            import_file(tmp_path / "into.db", tmp_path / f"missing{suffix}", known=KNOWN)


def test_a_database_is_never_imported_into_itself(database: Path) -> None:
    with pytest.raises(StoreError, match="itself"):
        import_file(database, database, known=KNOWN)
