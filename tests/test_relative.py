"""Databases that are named relative to the working folder: every command finds them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import run

from autoconv import environment, ops, settings, sweep
from autoconv._backend import mx
from autoconv.cli import main
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import export, open_store
from autoconv.store.health import health
from autoconv.sweep import Layer, demo

PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
OTHER = Problem.parse((1, 3, 4, 6, 4), (4, 3, 3, 3, 4))
SHAPES = ["--input", "1,3,4,5,4", "--weight", "4,3,3,3,4"]

COMMANDS: dict[str, tuple[Sequence[str], int | None, str]] = {
    "contribute": (["c.jsonl", "--minutes", "0", "--yes"], 1, "nothing was measured yet"),
    "demo": ([], 0, "1 of 1 winners the same"),
    "doctor": ([], None, "w.db, .* MB: 1 problem measured here"),
    "evaluate": (["wan21"], 1, "no cost model applies here"),
    "explain": (SHAPES, 0, "native, from database"),
    "export": (["out.jsonl"], 0, "out.jsonl: 1 record of 1 environment"),
    "import": (["in.jsonl"], 0, "in.jsonl: 1 record added"),
    "prune": (["--dry-run"], 0, "w.db: .* nothing is changed"),
    "report": (["out.html"], 0, "1 problem of 1 environment"),
    "sweep": (["--pending"], 0, "nothing to time"),
    "train": ([], 1, "150 are the least to learn from"),
}
"""What each command is given beside the database, how it ends, and what it says."""


def add(database: Path, problem: Problem) -> None:
    where = environment.of(mx.default_device())
    store = open_store(database)
    store.add_environment(where.id, dict(where.identity), {})
    store.add(problem, [Record(problem.key, where.id, "native", 1, "", Status.OK, (9.0,) * 6, 1e-7, run="r")])
    store.close()


@pytest.fixture
def folder(tmp_path: Path, qualified_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a database `w.db` of one problem and an export `in.jsonl` of another."""
    made = tmp_path / "work"
    made.mkdir()
    add(Path(shutil.copy(qualified_database, made / "w.db")), PROBLEM)
    add(tmp_path / "other.db", OTHER)
    export(tmp_path / "other.db", made / "in.jsonl")
    monkeypatch.chdir(made)
    layer = Layer("net", "", "conv", 1, PROBLEM, "")
    monkeypatch.setattr(sweep, "demo_layers", lambda: [layer])
    monkeypatch.setattr(demo, "demo_layers", lambda: [layer])
    monkeypatch.setattr(demo, "second_run", second_run)
    return made


def second_run(database: Path) -> demo.SecondRun:
    """Stands for the second process, which takes seconds."""
    with settings.using(database=database):
        found = ops.explain(PROBLEM.input_shape, PROBLEM.weight_shape)
    return demo.SecondRun({"measured": 0}, {PROBLEM.key: found.decision.candidate}, 1)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_finds_a_database_beside_it(folder: Path, name: str) -> None:
    options = {option for parameter in main.commands[name].params for option in parameter.opts}
    if "--database" not in options:
        assert name == "run", name
        return
    arguments, code, says = COMMANDS[name]
    done = run(name, *arguments, "--database", "w.db")
    assert re.search(says, done.output), done.output
    assert code is None or done.exit_code == code
    assert isinstance(done.exception, SystemExit | None)
    assert health(Path("w.db")).faults == ()


def test_the_doctor_finds_the_one_that_the_variable_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCONV_DATABASE", "w.db")
    monkeypatch.setattr(settings, "_configured", None)
    done = CliRunner().invoke(main, ["doctor"])
    assert "1 problem measured here" in done.output
    assert "database w.db (AUTOCONV_DATABASE)" in done.output
    assert "sound; schema" in done.output
