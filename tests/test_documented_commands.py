"""The commands of the guides are run one after another, as by somebody who follows a page; those that measure for long
are read alone (`test_documentation.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from importing import python_path
from test_documentation import PAGES, ROOT, by_name, lines_of

from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import export, open_store
from autoconv.sweep import packaged_workloads, read_workload

LONG = {"demo", "contribute", "train", "evaluate"}
"""Commands that measure or learn for minutes."""

PROGRAM = """
import mlx.core as mx
mx.set_default_device(mx.cpu)
x, w = mx.ones((1, 3, 4, 4, 4)), mx.ones((6, 3, 3, 3, 4))
mx.eval(mx.conv3d(x, w), mx.conv3d(x, w, padding=1))
"""

CPU = Environment({"backend": "cpu", "device": "a CPU", "architecture": "x86_64", "mlx": "0.32.4"}, {})
M3 = Environment({"backend": "metal", "device": "Apple M3 Max", "architecture": "applegpu_g15s", "mlx": "0.32.4"}, {})


def runs_long(words: list[str]) -> bool:
    """Whether a command takes minutes, another machine, or what only a checkout has."""
    name, *rest = words
    measures = name == "sweep" and rest != ["--pending"]
    return name in LONG or measures or any("tuning_db/" in word for word in rest)


RUN = {page: [words for words in lines_of(page) if not runs_long(words)] for page in PAGES}


def measured(file: Path) -> Path:
    """A database of somebody's Mac and of another's CPU, who ran a program."""
    made: dict[str, Any] = {"run": "r", "created": 86400.0, "library": "0.1.0"}
    layer = read_workload(packaged_workloads()["wan21"])[0].problem
    small = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
    problems = (layer, small, replace(small, dtype="float16"))
    with closing(open_store(file)) as store:
        for where in (M3, CPU):
            store.add_environment(where.id, dict(where.identity), {})
            for problem in problems:
                native = Record(problem.key, where.id, "native", 1, "", Status.OK, (100.0,) * 6, 1e-7, **made)
                other = replace(native, algorithm="depth_concat", parameters="edges=split", samples_us=(50.0,) * 6)
                store.add(problem, [native, other])
        store.name_network("generate.py", {small: 1})
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with what the guides take for granted."""
    home = tmp_path / "home"
    home.mkdir()
    work = tmp_path / "work"
    (work / "mlx_video").mkdir(parents=True)
    for file in ("generate.py", "program.py", "mlx_video/generate.py", "mlx_video/__init__.py"):
        (work / file).write_text("" if "__init__" in file else PROGRAM)
    own = measured(work / "my.db")
    export(own, work / "m3-max.db")
    export(own, work / "m2.jsonl")
    export(own, work / "m3-max.jsonl")
    data = home / ".local" / "share" / "autoconv"
    data.mkdir(parents=True)
    measured(data / "autoconv.db")
    return work


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOCONV_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-m", "autoconv", *words],
        cwd=folder,
        env=kept | {"HOME": str(folder.parent / "home"), "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def expanded(words: list[str], folder: Path) -> list[str]:
    """The words as a shell passes them on."""
    return [name for word in words for name in (sorted(p.name for p in folder.glob(word)) if "*" in word else [word])]


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=by_name)
def test_the_commands_of_a_page_run_one_after_another(page: Path, folder: Path) -> None:
    for words in RUN[page]:
        if words[0] == "export":
            (folder / words[1]).unlink(missing_ok=True)
        done = run(folder, *expanded(words, folder))
        # The doctor's 1 says that something needs attention, as a slow BLAS does; a prune asks, and nobody is there.
        says_so = words[0] == "doctor" or (words[0] == "prune" and "--yes drops them unasked" in done.stderr)
        assert done.returncode in ({0, 1} if says_so else {0}), (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, words


def test_nearly_every_command_is_among_them() -> None:
    names = {words[0] for commands in RUN.values() for words in commands}
    assert names >= {"run", "sweep", "report", "explain", "export", "import", "doctor"}
    assert sum(map(len, RUN.values())) > 25
