"""`autoconv run`: a program runs as under `python` itself, only patched, and one line says what happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from importing import python_path

from autoconv.problem import Problem
from autoconv.program import is_there, located
from autoconv.store import open_store
from autoconv.tally import NOTHING

CONVOLVES = """
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx.nn as nn
layer = nn.Conv3d(4, 6, 3)
for _ in range(3):
    mx.eval(layer(mx.ones((1, 3, 4, 4, 4))))
"""

SHOWS = """
import sys
print([sys.argv, sys.path[0], __name__, __package__, __file__, getattr(__spec__, "name", None)])
names = {name for name in globals() if name.startswith("__")}
print(sys.modules["__main__"].__dict__ is globals(), sorted(names - {"__annotations__"}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "programs"
    made.mkdir()
    return made


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOCONV_")}
    return inherited | {"AUTOCONV_POLICY": "record", "PYTHONPATH": python_path(Path(__file__).parents[1])}


def start(command: Sequence[str], folder: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment() | {"AUTOCONV_DATABASE": str(folder / "own.db")} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(folder: Path, *command: str, **environ: str) -> tuple[int, str, str]:
    """How it ends and what it writes."""
    process = start(command, folder, **environ)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run(folder: Path, *command: str, **environ: str) -> tuple[int, str, str]:
    return python(folder, "-m", "autoconv", "run", *command, **environ)


def write(folder: Path, text: str, name: str = "program.py") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return name


def last_line(err: str) -> str:
    *_, line = err.splitlines()
    assert line.startswith("autoconv: ")
    return line.removeprefix("autoconv: ")


# What it does


def test_a_program_s_convolutions_are_ours_and_a_line_says_so(folder: Path) -> None:
    ended = run(folder, "--", write(folder, CONVOLVES))
    expected = "autoconv: 3 conv3d calls, 1 shape noted: `autoconv sweep --pending` times it\n"
    assert ended == (0, "", expected)


TWICE = """
import mlx.core as mx
mx.set_default_device(mx.cpu)
x, w = mx.ones((1, 3, 4, 4, 4)), mx.ones((6, 3, 3, 3, 4))
for _ in range(2):
    mx.eval(mx.conv3d(x, w), mx.conv3d(x, w), mx.conv3d(x, w, padding=1))
"""


@pytest.mark.parametrize("policy", ["record", "measure"])
@pytest.mark.parametrize("is_module", [False, True])
def test_how_often_a_program_makes_each_convolution_is_kept_under_its_name(
    folder: Path, policy: str, is_module: bool
) -> None:
    name = write(folder, TWICE, "decode.py")
    command = ["-m", "decode"] if is_module else ["--", name]
    done = run(folder, "--policy", policy, *command, AUTOCONV_BUDGET_MS="1")
    assert done[0] == 0, done
    shapes = (1, 3, 4, 4, 4), (6, 3, 3, 3, 4)
    with closing(open_store(folder / "own.db", readonly=True)) as store:
        assert store.networks() == {
            command[-1]: {Problem.parse(*shapes): 4, Problem.parse(*shapes, padding=1): 2},
        }


def test_what_was_noted_is_told_beside_what_is_known_already(folder: Path) -> None:
    assert run(folder, "--policy", "measure", write(folder, CONVOLVES), AUTOCONV_BUDGET_MS="1")[0] == 0
    more = CONVOLVES.replace("(1, 3, 4, 4, 4)", "(1, 3, 4, 4 + _ % 3, 4)")
    _, _, err = run(folder, "--policy", "record", write(folder, more))
    said = last_line(err)
    assert said.startswith("3 conv3d calls, 3 shapes, 0.0 s tuning, estimated gain ")
    assert said.endswith("; 2 shapes noted: `autoconv sweep --pending` times them")


def test_what_cannot_be_noted_is_not_said_to_be(folder: Path) -> None:
    (folder / "own.db").mkdir()
    _, _, err = run(folder, "--policy", "record", write(folder, CONVOLVES))
    assert last_line(err) == "3 conv3d calls, 1 shape (1 never timed), 0.0 s tuning, estimated gain 0.0 s"


def test_a_program_of_which_nothing_is_decided_leaves_no_database(folder: Path) -> None:
    assert run(folder, "--policy", "off", write(folder, CONVOLVES))[0] == 0
    assert not (folder / "own.db").exists()


def test_a_policy_is_that_of_the_program(folder: Path) -> None:
    code, _, err = run(folder, "--policy", "off", write(folder, CONVOLVES))
    assert (code, err) == (0, "autoconv: 3 conv3d calls, all left to MLX\n")


def test_what_was_timed_is_told(folder: Path) -> None:
    code, _, err = run(folder, "--policy", "measure", write(folder, CONVOLVES), AUTOCONV_BUDGET_MS="1")
    assert code == 0
    found = re.fullmatch(r"3 conv3d calls, 1 shape, ([\d.]+) m?s tuning, estimated gain -?[\d.e-]+ m?s", last_line(err))
    assert found
    assert float(found[1]) > 0


def test_a_program_without_any_is_told_so(folder: Path) -> None:
    flat = "import mlx.core as mx\nmx.conv_general(mx.ones((1, 4, 4, 2)), mx.ones((2, 2, 2, 2)))"
    assert run(folder, write(folder, "print('hi')")) == (0, "hi\n", f"autoconv: {NOTHING}\n")
    assert run(folder, write(folder, flat)) == (0, "", f"autoconv: {NOTHING}\n")


def test_what_threads_and_exits_of_the_program_do_is_told_too(folder: Path) -> None:
    late = f"""
import atexit, threading, time
def late(text):
    time.sleep(0.2)
    exec(text, {{}})
    print(__name__, __file__ is not None)
atexit.register(late, {CONVOLVES!r})
threading.Thread(target=late, args=({CONVOLVES!r},)).start()
"""
    code, out, err = run(folder, write(folder, late))
    assert (code, out) == (0, "__main__ True\n" * 2), err
    assert last_line(err).startswith("6 conv3d calls, 1 shape")


def test_a_fork_that_ends_tells_nothing(folder: Path) -> None:
    forks = "import os, sys\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: sys.exit(0)"
    quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}  # of forks beside threads
    assert run(folder, write(folder, forks), **quiet) == (0, "", f"autoconv: {NOTHING}\n")


def test_a_program_that_closes_stderr_is_not_disturbed(folder: Path) -> None:
    assert run(folder, write(folder, "import sys\nsys.stderr.close()\nsys.exit(4)")) == (4, "", "")


# As python does


def as_python(folder: Path, *command: str) -> tuple[int, str, str]:
    """Runs it both ways; what both wrote and how they ended, the line apart."""
    code, out, err = run(folder, *command)
    assert last_line(err) == NOTHING
    plain = python(folder, *command)
    assert (code, out) == plain[:2]
    return code, out, err


@pytest.mark.parametrize("place", ["program.py", "deep/er/program.py"])
def test_a_script_finds_everything_as_under_python(folder: Path, place: str) -> None:
    as_python(folder, write(folder, SHOWS, place), "--help", "-m", "x", "--", "--policy", "off")


def test_a_script_by_a_link_finds_what_lies_beside_it(folder: Path) -> None:
    write(folder, "print('beside')", "real/beside.py")
    (folder / "link.py").symlink_to(folder / write(folder, "import beside", "real/program.py"))
    assert as_python(folder, "link.py")[1] == "beside\n"


@pytest.mark.parametrize("name", ["module", "package", "package.part"])
def test_a_module_finds_everything_as_under_python(folder: Path, name: str) -> None:
    for file in ("module.py", "package/__main__.py", "package/part.py"):
        write(folder, SHOWS, file)
    write(folder, "", "package/__init__.py")
    as_python(folder, "-m", name, "--policy", "off", "-m", "x", "--")


def test_a_folder_and_an_archive_are_programs(folder: Path) -> None:
    write(
        folder,
        "import os, sys, beside; print(os.path.abspath(sys.argv[0]), sys.argv[1:], sys.path[0])",
        "whole/__main__.py",
    )
    write(folder, "", "whole/beside.py")
    with zipfile.ZipFile(folder / "whole.zip", "w") as archive:
        for name in ("__main__.py", "beside.py"):
            archive.write(folder / "whole" / name, name)
    as_python(folder, "whole", "x")
    as_python(folder, "whole.zip", "x")


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit()",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('no good')",
        "raise SystemExit(True)",
        "import os; os.kill(os.getpid(), 15)",
        "raise ValueError('mine')",
        "raise TypeError('mine')",
        "raise KeyboardInterrupt",
        "raise EOFError",
        "raise BrokenPipeError(32, 'mine')",
        "import sys; sys.excepthook = lambda *_: print('hooked'); raise ValueError",
        "import click; raise click.Abort",
        "import click; click.command()(lambda: print('click'))(['--help'])",
        "this is no python",
        "import nowhere",
        "import sys, atexit; atexit.register(print, 'bye'); sys.exit(5)",
        "import os; os._exit(6)",
    ],
)
def test_it_ends_as_under_python(folder: Path, text: str) -> None:
    name = write(folder, text)
    code, out, err = run(folder, name)
    plain = python(folder, name)
    assert (code, out) == plain[:2]
    said = [line for line in err.splitlines() if not line.startswith("autoconv: ")]
    assert said[-1:] == plain[2].splitlines()[-1:]
    assert ("autoconv: " in err) is ("os._exit" not in text and "os.kill" not in text)


FAILS = {
    "deep": "def f():\n    raise ValueError('mine')\nf()",
    "chained": "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('mine') from error",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "this is no python",
    "import": "import json\njson.loads('{')",
    "group": "raise ExceptionGroup('some', [ValueError('one'), TypeError('two')])",
    "exec": "exec('raise ValueError(1)')",
}


@pytest.mark.parametrize("name", FAILS)
def test_a_traceback_is_that_of_python_to_the_letter(folder: Path, name: str) -> None:
    program = write(folder, FAILS[name])
    code, _, err = run(folder, program)
    plain = python(folder, program)
    assert (code, err.splitlines()[:-1]) == (plain[0], plain[2].splitlines())


@pytest.mark.parametrize("command", [["-m", "package"], ["package"]])
def test_a_traceback_of_a_module_begins_with_its_own_first_frame(folder: Path, command: list[str]) -> None:
    write(folder, "", "package/__init__.py")
    write(folder, "def f():\n    raise ValueError('mine')\nf()", "package/__main__.py")
    _, _, err = run(folder, *command)
    plain = [line for line in python(folder, *command)[2].splitlines() if "runpy" not in line]
    assert err.splitlines()[:-1] == plain


def test_a_hook_of_the_program_s_own_sees_its_own_frames_alone(folder: Path) -> None:
    hooked = """
import sys, traceback
sys.excepthook = lambda _, error, frames: print(len(traceback.extract_tb(frames)), error.__traceback__ is frames)
def f():
    raise ValueError
f()
"""
    code, out, _ = run(folder, write(folder, hooked))
    assert (code, out) == (1, "2 True\n")


def test_warnings_are_shown_as_python_does(folder: Path) -> None:
    name = write(folder, "import warnings; warnings.warn('mine')")
    _, _, err = run(folder, name)
    assert err.splitlines()[:-1] == python(folder, name)[2].splitlines()


def test_ctrl_c_ends_it_as_under_python_and_the_line_comes(folder: Path) -> None:
    name = write(folder, "import time\nprint('begun', flush=True)\ntime.sleep(60)")
    process = start(["-m", "autoconv", "run", name], folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    assert last_line(err) == NOTHING


def test_a_command_that_is_written_in_python_is_found_on_the_path(folder: Path) -> None:
    (folder / "bin").mkdir()
    command = folder / write(folder, f"#!{sys.executable}\nprint('found')", "bin/tool")
    command.chmod(0o755)
    code, out, _ = run(folder, "tool", PATH=str(folder / "bin"))
    assert (code, out) == (0, "found\n")


# What it refuses


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["nowhere.py"], 2, "there is no file and no command 'nowhere.py'"),
        (["-m", "nowhere"], 1, "there is no module 'nowhere'"),
        (["-m", "no/where"], 1, "is no name of a module"),
        (["--", "-m"], 1, "is no name of a module"),
        ([], 2, "there is no program to run"),
        (["--policy", "fast", "x.py"], 2, "'fast' is not one of"),
        (["--", sys.executable, "x.py"], 2, "is not written in Python"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(folder: Path, command: list[str], code: int, words: str) -> None:
    ended, out, err = run(folder, *command)
    assert (ended, out) == (code, "")
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_setting_that_cannot_be_is_said_in_a_line(folder: Path) -> None:
    code, _, err = run(folder, write(folder, "print('run')"), AUTOCONV_POLICY="fast")
    assert code == 1
    assert err.startswith("Error: AUTOCONV_POLICY: ")


def test_a_command_of_a_shell_is_no_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / write(folder, "#!/bin/sh\necho hi", "tool")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ValueError, match="is not written in Python"):
        located("tool")


def test_looking_for_a_module_leaves_the_path_alone() -> None:
    before = list(sys.path)
    assert is_there("json.tool")
    assert not is_there("nowhere.at.all")
    assert sys.path == before
