"""The doctor: what it finds of a machine and its files, what it says is to be done, and its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

import autoconv
from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.algorithms import algorithms
from autoconv.cli import main
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report import doctor, machine
from autoconv.report.finding import Finding
from autoconv.store import Qualification, default_path, open_store, shipped
from autoconv.store.connection import SCHEMA
from autoconv.store.health import health
from autoconv.tuning.qualification import fingerprint

DEVICE = mx.default_device()
ON_CPU = pytest.mark.skipif(environment.of(DEVICE).backend != "cpu", reason="a BLAS is asked about on CPUs alone")


def examined(
    database: Path | None = None, environ: Mapping[str, str] | None = None, gflops: float = 500.0
) -> dict[str, Finding]:
    """The findings by what they are about, on a machine whose BLAS has that rate."""
    environ = environ or {}
    chosen = settings.from_environment(environ)
    if database is not None:
        chosen = settings.with_changes(chosen, {"database": database})
    return {f.about: f for f in doctor.examine(chosen, DEVICE, {}, environ=environ, probe=lambda: gflops)}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An empty database in which this device's first run is known, with a BLAS of 3 GFLOP/s."""
    path, where = tmp_path / "some.db", environment.of(DEVICE)
    store = open_store(path)
    store.add_environment(where.id, dict(where.identity), {})
    store.qualify(
        Qualification(where.id, fingerprint(algorithms()), ceilings={"matmul_float32_gflops": 3.0}, created=1.0)
    )
    store.close()
    return path


# The machine


@pytest.mark.parametrize(
    ("backend", "version", "says"),
    [
        ("metal", "0.32.1", "N == 1 and KD <= 7"),
        ("metal", "0.33.0.dev20260101+abc", "N == 1 and KD <= 7"),
        ("metal", "0.32.0", "none in 0.32.0"),
        ("metal", "0.9.1", "none in 0.9.1"),
        ("cuda", "0.32.4", "none on cuda"),
    ],
)
def test_mlx_s_rule_is_that_of_the_version(backend: str, version: str, says: str) -> None:
    assert says in machine.fixed_rule(backend, version)


@ON_CPU
def test_a_slow_blas_needs_attention_and_a_fast_one_none() -> None:
    slow, fast = examined(gflops=machine.SLOW_BLAS_GFLOPS * 0.9)["BLAS"], examined(gflops=200.0)["BLAS"]
    assert ("LD_PRELOAD=libopenblas.so.0" in slow.advice) is (sys.platform == "linux")
    assert "measured now" in slow.found
    assert (fast.advice, "200 GFLOP/s" in fast.found) == ("", True)


@ON_CPU
def test_the_blas_is_not_measured_again_where_the_first_run_did(database: Path) -> None:
    found = examined(database, gflops=500.0)["BLAS"]
    assert "3 GFLOP/s in float32, measured in the first run" in found.found
    assert found.advice


@ON_CPU
def test_the_rate_that_is_measured_is_a_rate() -> None:
    assert 1e-3 < machine.blas_gflops() < 1e6


def test_on_a_gpu_no_blas_is_asked_about() -> None:
    assert not list(machine.blas(Environment({"backend": "metal"}), None, probe=lambda: 1.0))


def test_memory_tells_what_a_convolution_may_take_and_whether_much_of_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = Environment({"backend": "metal"}, memory_bytes=10 * 10**9)
    for free, advice in ((8 * 10**9, False), (10**9, True)):
        monkeypatch.setattr(environment, "free_bytes", lambda _where, free=free: free)
        found = machine.memory(settings.from_environment({}), where)
        assert "10.0 GB recommended working set" in found.found
        assert "6.00 GB beyond its operands (60% of it)" in found.found
        assert bool(found.advice) is advice
    limited = settings.from_environment({"AUTOCONV_MEMORY_LIMIT": "2GB"})
    assert "2.00 GB beyond its operands (as set)" in machine.memory(limited, where).found


def test_patching_is_told_as_it_is() -> None:
    assert examined()["patching"].found == "mx.conv3d is MLX's own: AUTOCONV_PATCH is not set"
    with autoconv.patch():
        found = examined(environ={"AUTOCONV_PATCH": "1"})["patching"]
    assert (found.found, found.advice) == ("mx.conv3d is autoconv's: AUTOCONV_PATCH asks for it", "")
    wrong = examined(environ={"AUTOCONV_PATCH": "please"})["patching"]
    assert "'please'" in wrong.found
    assert wrong.advice


def test_settings_are_told_with_where_they_came_from(tmp_path: Path) -> None:
    environ = {"AUTOCONV_POLICY": "record", "AUTOCONV_BUDGET_MS": "500", "AUTOCONV_ACCURACY": ""}
    found = examined(tmp_path / "mine.db", environ)["settings"].found
    for told in (
        "policy record (AUTOCONV_POLICY)",
        "budget_ms 500.0 (AUTOCONV_BUDGET_MS)",
        "accuracy native (default)",
        f"database {tmp_path / 'mine.db'} (given)",
    ):
        assert told in found
    assert (
        f"database {tmp_path / 'x.db'} (AUTOCONV_DATABASE)"
        in examined(environ={"AUTOCONV_DATABASE": str(tmp_path / "x.db")})["settings"].found
    )


def test_a_variable_that_nothing_reads_needs_attention() -> None:
    every = dict.fromkeys([*settings.VARIABLES, "AUTOCONV_PATCH", "AUTOCONV_LOG", "AUTOCONV_BACKEND", "OTHER"], "")
    assert "variables" not in examined(environ=every)
    found = examined(environ=every | {"AUTOCONV_POLICIY": "off"})["variables"]
    assert found.found.startswith("AUTOCONV_POLICIY: ")
    assert "AUTOCONV_POLICY" in found.advice


def test_settings_that_are_not_set_are_told_as_what_they_come_to() -> None:
    where = environment.of(DEVICE)
    found = examined()["settings"].found
    assert "None" not in found
    assert f"memory_limit {0.6 * where.memory_bytes / 1e9:.3g}GB (default)" in found
    assert f"database {default_path()} (default)" in found
    assert (
        "memory_limit 2GB (AUTOCONV_MEMORY_LIMIT)"
        in examined(environ={"AUTOCONV_MEMORY_LIMIT": "2e9"})["settings"].found
    )


def test_where_there_is_no_home_the_database_is_told_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_data_dir", lambda _name: "~/nowhere")
    found = examined()
    assert "database none: there is no home folder" in found["settings"].found
    assert found["database"].advice == "name a file in AUTOCONV_DATABASE"


def test_a_variable_that_has_no_such_value_is_a_finding_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"AUTOCONV_POLICY": "zzz", "AUTOCONV_LOG": "loud", "AUTOCONV_STALL": "-"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            patch.setattr(settings, "_configured", None)
            done = CliRunner().invoke(main, ["doctor", "--json"])
        told = {f["about"]: f for f in json.loads(done.stdout)}
        assert told["variable"]["found"].startswith(f"{variable}: ")
        assert repr(value) in told["variable"]["found"]
        assert told["variable"]["attention"]
        assert told["settings"]["values"]["policy"] == "auto"
        assert {"MLX", "memory", "database"} < told.keys()
        assert done.exit_code == 1


# Databases


def test_a_sound_database_is_told_with_schema_size_and_modes(database: Path) -> None:
    found = examined(database)["database file"]
    assert found.advice == ""
    for told in ("sound", f"schema {SCHEMA} of {SCHEMA}", "mode 0600"):
        assert told in found.found
    assert " MB: 0 problems measured here" in examined(database)["database"].found


def test_a_large_database_of_which_much_decides_nothing_needs_attention(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, problem = environment.of(DEVICE), Problem.parse((1, 4, 8, 8, 1), (16, 3, 3, 3, 1), padding=1)
    with contextlib.closing(open_store(database)) as store:
        for run in range(900):
            version = next(a.version for a in algorithms() if a.name == "native") - (run > 300)
            store.add(
                problem, [Record(problem.key, where.id, "native", version, "", Status.OK, (1.5,) * 12, run=str(run))]
            )
    assert examined(database)["database"].advice == ""
    monkeypatch.setattr(doctor, "LARGE_BYTES", database.stat().st_size)
    assert "autoconv prune" in examined(database)["database"].advice
    before = database.stat().st_size
    assert CliRunner().invoke(main, ["prune", "--database", str(database)]).exit_code == 0
    assert database.stat().st_size < before
    monkeypatch.setattr(doctor, "LARGE_BYTES", 0)
    assert examined(database)["database"].advice == ""


def damage(path: Path, where: str) -> None:
    """Make the last page, of a table, into noise, or let the header count free pages that there are not."""
    with sqlite3.connect(path) as connection:
        connection.executescript("PRAGMA journal_mode = DELETE; CREATE TABLE more (x); INSERT INTO more VALUES (1);")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'more'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    if where == "page":
        data[(page - 1) * size : page * size] = bytes([0xA5]) * size
    else:
        data[36:40] = (5).to_bytes(4)  # https://sqlite.org/fileformat.html#the_database_header
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["page", "free list"])
def test_damage_is_found_though_the_database_opens(database: Path, where: str) -> None:
    damage(database, where)
    found = examined(database)
    told = found["database file" if where == "free list" else "database"]
    assert told.advice
    assert "sound" not in told.found
    assert ("reelist" in told.found) is (where == "free list")


def test_rows_of_nothing_are_found(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE qualifications SET environment = 99")
    connection.close()
    assert health(database).faults == ("a row of qualifications is of nothing that is there",)


def test_what_others_may_write_needs_attention(database: Path) -> None:
    for mode, attention in ((0o600, False), (0o644, False), (0o660, True), (0o602, True)):
        database.chmod(mode)
        found = examined(database)["database file"]
        assert f"mode {mode:04o}" in found.found
        assert ("chmod 600" in found.advice) is attention


def test_what_cannot_be_written_and_a_full_disk_need_attention(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoconv.store.health.os.access", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    advice = examined(database)["database file"].advice
    assert "cannot be written" in advice
    assert "make room" in advice


def test_the_size_counts_what_waits_in_the_log(database: Path) -> None:
    """Of a database that is in use, most may not be in its file yet."""
    before = health(database).bytes
    Path(f"{database}-journal").write_bytes(bytes(4096))  # an empty header: SQLite takes it for none
    assert health(database).bytes == before + 4096


def test_what_is_no_database_raises(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="no SQLite database"):
        health(path)


@pytest.mark.parametrize("where", ["page", "free list"])
def test_shipped_files_are_looked_through(where: str, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = database.with_name("fine.db")
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    shutil.copy(database, fine)
    monkeypatch.setattr(shipped, "shipped_files", lambda: [database, fine])
    chosen = settings.from_environment({"AUTOCONV_DATABASE": str(database.with_name("own.db"))})

    def about_files() -> list[Finding]:
        return [f for f in doctor.examine(chosen, DEVICE, environ={}, probe=lambda: 1.0) if f.about == "shipped files"]

    (sound,) = about_files()
    assert sound.found.startswith("2 databases")
    assert sound.advice == ""
    damage(database, where)
    faulty, rest = about_files()
    assert "some.db" in faulty.found
    assert "anew" in faulty.advice
    assert rest.found.startswith("1 database,")


def test_the_model_s_card_is_told(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv.model.cost_model import Advising
    from autoconv.model.shelf import load

    model = load(model_folder / "cpu.npz")
    judged = model.card.judgements["network"]["all"]["native"]
    found = doctor.examine(
        settings.from_environment({}), DEVICE, {}, lambda *_: (Advising(model, {}), ""), environ={}, probe=lambda: 1.0
    )
    (told,) = [f for f in found if f.about == "its card"]
    assert f"{judged.regret_mean:.1%} slower" in told.found


def test_numbers_are_told_as_numbers(database: Path) -> None:
    found = {name: finding.as_dict()["values"] for name, finding in examined(database).items()}
    where = environment.of(DEVICE)
    assert found["memory"] == {
        "bytes": where.memory_bytes,
        "free_bytes": pytest.approx(environment.free_bytes(where), abs=where.memory_bytes / 4),
        "limit_bytes": pytest.approx(0.6 * where.memory_bytes),
    }
    assert found["database"] == {
        "bytes": health(database).bytes,
        "problems": 0,
        "pending": 0,
        "other_environments": 0,
    }
    assert (found["database file"]["schema"], found["database file"]["faults"]) == (SCHEMA, [])
    assert found["ceilings"] == {"matmul_float32_gflops": 3.0}
    if where.backend == "cpu":
        assert found["BLAS"]["gflops"] == 3.0


def no_table(path: Path) -> None:
    """A database as a kill leaves it before its first table is made."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty": (Path.touch, "empty: not begun yet", ""),
    "without a table": (no_table, "empty: not begun yet", ""),
    "directory": (Path.mkdir, "it is a directory", "name another file"),
    "pipe": (os.mkfifo, "it is a pipe", "name another file"),
    "no database": (lambda path: path.write_bytes(b"no database" * 100), "is no SQLite database", "move it away"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_database_is_told_once_with_one_piece_of_advice(tmp_path: Path, kind: str) -> None:
    make, says, advice = UNUSABLE[kind]
    path = tmp_path / "own.db"
    make(path)
    found = examined(path)["database"]
    assert says in found.found
    assert found.advice.startswith(advice)
    assert bool(found.advice) is bool(advice)
    both = f"{found.found} {found.advice}"
    assert both.count("name another") <= 1
    assert both.count("move") <= 1
    assert "open it for writing" not in both


# The command


def test_what_goes_to_a_pipe_ends_with_no_blanks(database: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--database", str(database)])
    assert len(done.output.splitlines()) > 8
    assert [line for line in done.output.splitlines() if line != line.rstrip()] == []


def test_the_exit_code_is_1_where_something_needs_attention_and_else_0(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for findings, code in (([Finding("a", "well")], 0), ([Finding("a", "well"), Finding("b", "not", "do this")], 1)):
        monkeypatch.setattr(doctor, "examine", lambda *_, found=findings, **__: found)
        for options in ([], ["--json"]):
            assert CliRunner().invoke(main, ["doctor", *options]).exit_code == code


def test_the_command_tells_of_a_misspelt_variable(database: Path) -> None:
    found = CliRunner(env={"AUTOCONV_DATABSE": "x"}).invoke(main, ["doctor", "--database", str(database), "--json"])
    told = {f["about"]: f for f in json.loads(found.stdout)}
    assert told["variables"]["found"].startswith("AUTOCONV_DATABSE")
    assert found.exit_code == 1
