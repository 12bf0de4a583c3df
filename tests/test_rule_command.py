"""`autoconv export --rule`: what it writes and prints, and what it says where it writes nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click.testing
import pytest
from rules import ENVIRONMENT, IDENTITY, asked, layer, record, run_rule

from autoconv.cli import main
from autoconv.store import open_store


def invoke(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, list(arguments))


def test_the_command_writes_a_rule_and_what_it_loses(tmp_path: Path) -> None:
    database, out = tmp_path / "own.db", tmp_path / "rule.py"
    with closing(open_store(database)) as store:
        store.add_environment(ENVIRONMENT, IDENTITY, {})
        for channels in range(16, 400, 16):
            problem = layer(channels)
            records = [record(problem, "native", (10, 11, 10, 11)), record(problem, "implicit_gemm", (5, 6, 5, 6))]
            store.add(problem, records)
    found = invoke("export", "--rule", str(out), "--backend", "metal", "--database", str(database))
    assert found.exit_code == 0, found.output
    assert f"{out}: 1 leaf, from 24 problems on Apple M2" in found.output
    assert "rule, on shapes held out: mean 0.0%" in found.output
    assert "both of its ways were timed for 24 problems on 0 chips" in found.stderr
    assert asked(run_rule(out.read_text()), layer(16)) == "implicit_gemm"

    again = invoke("export", "--rule", str(out), "--backend", "metal", "--database", str(database))
    assert again.exit_code == 1
    assert "exists" in again.stderr
    other = invoke("export", "--rule", str(out), "--backend", "cuda", "--database", str(database))
    assert other.exit_code == 1
    assert "nothing was measured on cuda" in other.stderr
    none = invoke("export", "--rule", str(out), "--backend", "metal", "--device", "M9", "--database", str(database))
    assert none.exit_code == 1
    assert "no device has 'M9' in its name; there are: Apple M2" in none.stderr
    empty = tmp_path / "empty.db"
    open_store(empty).close()
    nothing = invoke("export", "--rule", str(out), "--backend", "metal", "--database", str(empty))
    assert "300 problems on 3 such chips are needed" in nothing.stderr


@pytest.mark.parametrize("arguments", [("a.db", "--backend", "cpu"), ("a.py", "--rule", "--card")])
def test_what_does_not_go_together_is_said(arguments: tuple[str, ...]) -> None:
    found = invoke("export", *arguments)
    assert found.exit_code == 2
    assert "goes with" in found.stderr
