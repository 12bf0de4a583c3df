"""What leaves in an export, what does not, and what is left when it fails."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing import python_path

from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import Exported, ModelRecord, Qualification, export, open_store
from autoconv.store.transfer import browsing, scrub

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2, 3)]
SECRETS = ["/Users/alice/private/model.safetensors", "studio-of-alice.local", "studio-of-alice"]
IDENTITY = {"backend": "metal", "cores": 40}
CIRCUMSTANCES = {"macos": "15.2"}


def result(problem: Problem, environment: str = "env", **fields: Any) -> Record:
    return Record(problem.key, environment, "native", 1, "", Status.OK, **fields)


RECORDS = [
    result(PROBLEMS[0], samples_us=(1.5, 2.25), error=1e-7, workspace_bytes=0, peak_bytes=7, run="r", created=1.5),
    dataclasses.replace(result(PROBLEMS[1], error=math.inf), status=Status.WRONG, detail="not finite at (0, 0)"),
    result(PROBLEMS[0], "other", samples_us=(3.0,), library="0.1.0"),
]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(socket, "gethostname", lambda: SECRETS[1])
    file = tmp_path / "autoconv.db"
    with closing(open_store(file)) as store:
        store.add_environment("env", IDENTITY, CIRCUMSTANCES)
        for record in RECORDS:
            store.add(Problem.from_key(record.problem), [record])
    return file


def lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        yield json.loads(line, parse_constant=pytest.fail)


def records_in(file: Path) -> list[Record]:
    with closing(open_store(file, readonly=True)) as store:
        return [record for e in ("env", "other") for p in store.problems(e) for record in store.records(e, p)]


def test_a_copy_holds_every_record_in_one_file(database: Path, tmp_path: Path) -> None:
    for suffix in (".db", ".sqlite", ".DB"):
        folder = tmp_path / suffix
        folder.mkdir()
        out = folder / f"out{suffix}"
        assert export(database, out) == Exported(environments=1, records=3)
        assert [path.name for path in folder.iterdir()] == [out.name]
        assert records_in(out) == RECORDS
        with closing(open_store(out, readonly=True)) as store:
            assert store.environments() == {"env": (IDENTITY, CIRCUMSTANCES)}
        # Reading it needed no other file: its journal is not the write-ahead log.
        assert [path.name for path in folder.iterdir()] == [out.name]


def test_a_copy_can_be_written_again(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    export(database, out)
    with closing(open_store(out)) as store:
        store.add(PROBLEMS[2], [result(PROBLEMS[2], "other")])
    assert records_in(out) == [*RECORDS, result(PROBLEMS[2], "other")]


def test_lines_hold_environments_then_records_in_the_order_in_which_they_came(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert export(database, out) == Exported(environments=1, records=3)
    head, first, *rest = lines(out)
    assert head == {"type": "autoconv", "format": 2}
    assert first == {
        "type": "environment",
        "environment": "env",
        "identity": IDENTITY,
        "circumstances": CIRCUMSTANCES,
    }
    assert [line.pop("type") for line in rest] == ["record"] * 3
    assert rest[1]["error"] == "inf"
    for line in rest:
        line |= {"samples_us": tuple(line["samples_us"]), "status": Status(line["status"])}
        line["error"] = line["error"] and float(line["error"])
    assert [Record(**line) for line in rest] == RECORDS


@pytest.mark.parametrize("suffix", [".db", ".jsonl", ".csv"])
def test_what_a_writer_holds_back_in_its_log_is_exported(database: Path, tmp_path: Path, suffix: str) -> None:
    with closing(open_store(database)) as store:
        store.add(PROBLEMS[2], [result(PROBLEMS[2])])
        assert database.with_name("autoconv.db-wal").stat().st_size > 0
        assert export(database, tmp_path / f"out{suffix}").records == 4


@pytest.mark.parametrize("suffix", [".db", ".jsonl", ".csv"])
def test_no_host_path_or_pid_leaves(database: Path, tmp_path: Path, suffix: str) -> None:
    detail = f"cannot load {SECRETS[0]} on {SECRETS[1]}: see https://github.com/ml-explore/mlx/issues (Studio-of-Alice)"
    with closing(open_store(database)) as store:
        store.add(PROBLEMS[2], [result(PROBLEMS[2], detail=detail)])
        store.qualify(Qualification("env", "native=1", barred={"fft": f"no {SECRETS[0]}"}))
        store.begin("env", PROBLEMS[0], "candidate-that-was-running")
        store.note("env", PROBLEMS[1])
    out = tmp_path / f"out{suffix}"
    export(database, out)
    content = out.read_bytes().lower()
    for secret in (*SECRETS, "alice", "candidate-that-was-running"):
        assert secret.lower().encode() not in content
    cleaned = b"cannot load <path> on <host>: see https://github.com/ml-explore/mlx/issues (<host>)"
    assert cleaned in content
    if suffix == ".db":
        with closing(open_store(out, readonly=True)) as store:
            assert list(store.unended("env", PROBLEMS[0])) == []
            assert store.pending("env") == []
            assert store.qualification("env", "native=1") == Qualification(
                "env", "native=1", barred={"fft": "no <path>"}
            )
    with closing(open_store(database)) as store:
        assert list(store.unended("env", PROBLEMS[0])) == ["candidate-that-was-running"]
        assert store.pending("env") == [PROBLEMS[1]]


names = st.text(st.characters(categories=["L", "N"], include_characters=".-_"), min_size=1)


@given(folders=st.lists(names, min_size=2), before=st.sampled_from(["", "at ", "'", '"', "(", "=", "file://", "~"]))
def test_absolute_paths_are_scrubbed_wherever_they_stand(folders: list[str], before: str) -> None:
    path = "/" + "/".join(folders)
    assert scrub(f"{before}{path}: no such file", ()) == f"{before}<path>: no such file"


@pytest.mark.parametrize(
    "text", ["1/2", "a/b and c/d", "3 GB/s", "https://ml-explore.github.io/mlx/build", "2026/01/02", "/", "either / or"]
)
def test_what_is_no_path_stays(text: str) -> None:
    assert scrub(text, ("studio",)) == text


def test_what_a_terminal_would_obey_does_not_leave_so_that_an_import_takes_it() -> None:
    assert scrub("a\x1b]0;b\x07\n\tc\x9b2J", ()) == "a?]0;b?\n\tc?2J"


def test_a_host_name_is_scrubbed_as_a_word_alone() -> None:
    assert scrub("metal on Metal, not metallic", ("metal",)) == "<host> on <host>, not metallic"


def test_damaged_rows_do_not_stop_an_export(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE records SET status = 'dreamt', detail = CAST(x'ff' AS TEXT) WHERE run = 1")
        connection.execute("UPDATE problems SET key = CAST(x'ff' AS TEXT) WHERE id = 2")
        connection.execute("UPDATE runs SET created = 9e999 WHERE id = 3")
        connection.execute("UPDATE environments SET identity = '[1]' WHERE key = 'env'")
    with closing(open_store(database)) as store:
        store.add(PROBLEMS[2], [result(PROBLEMS[2])])
    assert export(database, tmp_path / "out.jsonl") == Exported(environments=0, records=1)
    assert [line["problem"] for line in list(lines(tmp_path / "out.jsonl"))[1:]] == [PROBLEMS[2].key]
    assert export(database, tmp_path / "out.csv") == Exported(environments=0, records=1)
    export(database, tmp_path / "out.db")
    assert records_in(tmp_path / "out.db") == [result(PROBLEMS[2])]


def test_lines_are_written_as_they_are_read(tmp_path: Path) -> None:
    database, out = tmp_path / "autoconv.db", tmp_path / "out.jsonl"
    with closing(open_store(database)) as store:
        store.add(PROBLEMS[0], [result(PROBLEMS[0], detail="x" * 500)] * 2000)
    export(database, tmp_path / "warm.jsonl")
    tracemalloc.start()
    try:
        export(database, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.stat().st_size / 10


@pytest.mark.parametrize("name", ["out.txt", "out", "out.db.gz"])
def test_an_unknown_suffix_is_refused_with_the_choices(database: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.db, \.sqlite, \.jsonl, \.csv"):
        export(database, tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("suffix", [".db", ".jsonl", ".csv"])
def test_an_existing_file_is_replaced_only_when_asked(database: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    out.write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        export(database, out)
    assert out.read_text() == "precious"
    assert export(database, out, force=True).records == 3
    assert out.stat().st_size > len("precious")


def test_a_database_is_never_exported_onto_itself(database: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(database)
    for out in (database, tmp_path / "link.db"):
        with pytest.raises(StoreError, match="itself"):
            export(database, out, force=True)
    assert records_in(database) == RECORDS


def test_a_database_in_use_is_not_replaced(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    with closing(open_store(out)) as store:
        store.note("env", PROBLEMS[0])
        with pytest.raises(StoreError, match="in use"):
            export(database, out, force=True)
        assert store.pending("env") == [PROBLEMS[0]]


def test_ctrl_c_amid_an_export_is_ctrl_c_and_leaves_nothing(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("autoconv.store.transfer.export"), "scrubbed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(database, tmp_path / "out.db")
    assert list(tmp_path.glob("*out.db*")) == []


def test_a_missing_database_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing\.db: No such file"):
        export(tmp_path / "missing.db", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(database: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"out\.jsonl: there is no folder .*folder: make it"):
        export(database, tmp_path / "folder" / "out.jsonl")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("suffix", [".db", ".jsonl", ".csv"])
def test_an_export_that_ends_early_leaves_what_was_there(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException
) -> None:
    out = tmp_path / "folder" / f"out{suffix}"
    out.parent.mkdir()
    out.write_text("precious")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((KeyboardInterrupt, StoreError)):
        export(database, out, force=True)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_text() == "precious"


@pytest.mark.parametrize("suffix", [".db", ".jsonl", ".csv"])
def test_others_may_read_an_export(database: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    before = os.umask(0o022)
    try:
        export(database, out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o644


def test_no_cost_model_leaves(database: Path, tmp_path: Path) -> None:
    with closing(open_store(database)) as store:
        store.trust_model(ModelRecord("cpu", "ours.cpu.npz", "ab", created=1.0))
    out = tmp_path / "out.db"
    export(database, out)
    with closing(open_store(out, readonly=True)) as store:
        assert store.trusted_models() == []
    assert b"ours.cpu.npz" not in out.read_bytes()


def test_what_is_not_to_leave_is_for_the_user_alone_while_it_is_in_the_file(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at that moment would leave it there."""
    out, seen, undo = tmp_path / "folder" / "out.db", dict[str, int](), browsing.undo
    out.parent.mkdir()

    def look(copy: sqlite3.Connection) -> None:
        seen.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in out.parent.iterdir()})
        undo(copy)

    monkeypatch.setattr(browsing, "undo", look)
    before = os.umask(0)
    try:
        export(database, out)
    finally:
        os.umask(before)
    assert any(name.endswith("-journal") for name in seen)
    assert set(seen.values()) == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o666


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "export_db.py"), *map(str, arguments)]
    return subprocess.run(
        command, text=True, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": python_path(ROOT)}
    )


def test_the_script_exports_and_says_what(database: Path, tmp_path: Path) -> None:
    done = script("--database", database, tmp_path / "out.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out.db'}: 3 records of 1 environment\n"
    assert records_in(tmp_path / "out.db") == RECORDS


@pytest.mark.parametrize(("name", "reason"), [("out.txt", "suffix"), ("out.db", "No such file")])
def test_the_script_fails_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    done = script("--database", tmp_path / "missing.db", tmp_path / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_script_s_help_has_an_example() -> None:
    assert "Example: autoconv export" in script("--help").stdout
