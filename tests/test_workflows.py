"""The workflows of CI: they are what they should be, and what they run is there."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoconv import settings

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def commands() -> list[tuple[str, dict[str, str]]]:
    """Every line that is run, with the variables that it sees."""
    return [
        (line, {**job.get("env", {}), **step.get("env", {})})
        for path in WORKFLOWS
        for job in jobs_of(path).values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_ends_in_time_and_may_write_nothing(path: Path) -> None:
    whole = yaml.safe_load(path.read_text())
    assert whole["permissions"] == {"contents": "read"}
    assert whole[True]  # YAML 1.1 reads `on` so
    for job in jobs_of(path).values():
        assert 0 < job["timeout-minutes"] <= 90
        assert {key for step in job["steps"] for key in step} <= {
            "name", "uses", "with", "run", "env", "if", "timeout-minutes"
        }  # fmt: skip
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_what_is_run_is_there() -> None:
    assert commands()
    for line, _ in commands():
        program, *_ = shlex.split(line)
        path = ROOT / program
        if path.parts[len(ROOT.parts)] == ".venv-scripts":
            assert path.name in PYPROJECT["project"]["scripts"]
        else:
            assert os.access(path, os.X_OK), line


def test_options_of_plugins_come_with_the_development_group() -> None:
    group = " ".join(PYPROJECT["dependency-groups"]["dev"])
    for line, _ in commands():
        for option in re.findall(r"--timeout\b", line):
            assert "pytest-timeout" in group, option


def test_metal_runs_every_test_with_a_limit_for_each_on_apple_silicon() -> None:
    (job,) = jobs_of(ROOT / ".github" / "workflows" / "metal.yml").values()
    assert re.fullmatch(r"macos-(1[4-9]|2\d)", job["runs-on"])  # those of Apple silicon, that MLX runs on
    (line,) = [line for line, _ in commands() if "test-each" in line]
    limit_s = int(re.search(r"--timeout=(\d+)", line)[1])  # type: ignore[index]
    assert 60 <= limit_s <= job["timeout-minutes"] * 60 / 4
    assert "--timeout-method=thread" in line
    assert float(job["env"]["TEST_SLACK"]) > 1


def test_variables_are_such_as_something_reads() -> None:
    read = (ROOT / "scripts" / "_bootstrap.sh").read_text() + (ROOT / "tests" / "tolerance.py").read_text()
    for _, variables in commands():
        for name in variables:
            assert name in read or name in settings.VARIABLES or name.startswith(("PYTHON", "PIP_")), name
