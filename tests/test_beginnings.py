"""The command's first moments: Ctrl-C while it is imported, and an MLX that has no backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from importing import python_path

from autoconv.cli import main
from autoconv.cli._common import Command, Group

ROOT = Path(__file__).parents[1]
ADVICE = "autoconv[cpu]" if sys.platform == "linux" else "reinstall mlx"


def command(*arguments: str, before: Path | None = None, **environ: str) -> tuple[int, str, str]:
    """How `python -m autoconv` ends, and what it writes; modules in the folder `before` come before all others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOCONV_")}
    path = python_path(*([before] if before else []), ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "autoconv", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=inherited | {"PYTHONPATH": path} | environ,
    )
    return done.returncode, done.stdout, done.stderr


# MLX without a backend


@pytest.fixture
def no_mlx(tmp_path: Path) -> Path:
    """A folder with an MLX as it is on Linux without the package of a backend."""
    folder = tmp_path / "packages"
    (folder / "mlx").mkdir(parents=True)
    (folder / "mlx" / "__init__.py").touch()
    (folder / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    return folder


@pytest.mark.parametrize("patch", ["", "1"])
def test_version_and_help_need_no_mlx(no_mlx: Path, patch: str) -> None:
    assert command("--version", before=no_mlx, AUTOCONV_PATCH=patch)[::2] == (0, "")
    code, out, said = command("--help", before=no_mlx, AUTOCONV_PATCH=patch)
    assert (code, said) == (0, "")
    assert all(name in out for name in main.commands)


def test_so_it_is_where_its_script_is_run(no_mlx: Path, tmp_path: Path) -> None:
    script = tmp_path / "autoconv"
    script.write_text("from autoconv.__main__ import main\nmain()\n")
    path = python_path(no_mlx, ROOT)
    for argument, code in (("--version", 0), ("explain", 2), ("doctor", 1)):
        done = subprocess.run(
            [sys.executable, script, argument],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("use", ["from autoconv import conv3d", "import autoconv; autoconv.patch()"])
def test_a_program_is_told_when_it_asks_for_anything(no_mlx: Path, use: str) -> None:
    path = python_path(no_mlx, ROOT)
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {use}\nexcept ImportError as error:\n    print(type(error).__name__)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout == "BackendMissingError\n"


GIVEN = {
    "explain": ["--input", "1,3,4,5,4", "--weight", "4,3,3,3,4"],
    "report": ["out.html"],
    "run": ["-m", "this"],
    "sweep": ["wan21"],
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_needs_mlx_says_in_a_line_how_to_get_it(no_mlx: Path, name: str) -> None:
    code, out, said = command(name, *GIVEN[name], before=no_mlx)
    assert (code, out) == (1, "")
    assert said.startswith("Error: MLX cannot be loaded (libmlx.so: cannot open shared object file)")
    assert ADVICE in said
    assert len(said.splitlines()) == 1


def test_the_doctor_finds_that_mlx_is_missing_and_looks_at_the_rest(no_mlx: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.db"
    own.write_bytes(b"no database" * 100)
    environ = {"AUTOCONV_DATABASE": str(own), "AUTOCONV_POLICY": "fast"}
    code, out, said = command("doctor", "--json", before=no_mlx, **environ)
    assert (code, said) == (1, "")
    told = {finding["about"]: finding for finding in json.loads(out)}
    assert "libmlx.so" in told["MLX"]["found"]
    assert ADVICE in told["MLX"]["advice"]
    assert "AUTOCONV_POLICY" in told["variable"]["found"]
    assert "no SQLite database" in told["database"]["found"]
    assert [about for about, finding in told.items() if finding["attention"]] == ["MLX", "variable", "database"]
    own.unlink()
    subprocess.run(
        [sys.executable, "-c", f"from autoconv.store import open_store; open_store({str(own)!r}).close()"],
        check=True,
        env=os.environ | {"PYTHONPATH": python_path(ROOT)},
    )
    code, out, _ = command("doctor", before=no_mlx, AUTOCONV_DATABASE=str(own))
    assert code == 1
    assert f"database {own} (AUTOCONV_DATABASE)" in " ".join(out.split())
    assert "sound; schema" in out


# Ctrl-C


@pytest.fixture
def interrupting(tmp_path: Path) -> Path:
    """A folder whose module, imported first of all, is Ctrl-C at the import that `AT` names."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == os.environ["AT"]:
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
        """)
    )
    return tmp_path


@pytest.mark.parametrize("at", ["autoconv.cli", "click", "autoconv.dispatch", "autoconv.store.sqlite"])
def test_ctrl_c_while_it_begins_ends_it_in_a_line(interrupting: Path, at: str) -> None:
    code, out, said = command("explain", *GIVEN["explain"], before=interrupting, AT=at)
    assert (code, out, said) == (130, "", "autoconv: interrupted\n")


@pytest.mark.parametrize(
    ("raised", "asks", "code"),
    [(KeyboardInterrupt, True, 130), (EOFError, True, 1), (KeyboardInterrupt, False, 130)],
    ids=["at a question", "no answer", "at work"],
)
def test_ctrl_c_in_a_command_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    raised: type[BaseException],
    asks: bool,
    code: int,
) -> None:
    def interrupted(*_: object) -> str:
        raise raised

    def work() -> None:
        if asks:
            click.confirm("Go on?")
        interrupted()

    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    group = Group("autoconv", commands={"work": Command("work", callback=work)})
    with pytest.raises(SystemExit) as ended:
        group.main(["work"])
    assert ended.value.code == code
    assert ("autoconv: interrupted" in capfd.readouterr().err) is (code == 130)


def test_ctrl_c_that_an_extension_tells_of_as_a_failed_import_is_no_missing_backend(tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n    raise ImportError('x') from error"
    )
    _, _, said = command("explain", *GIVEN["explain"], before=tmp_path)
    assert said.splitlines()[-1] == "KeyboardInterrupt"


def test_ctrl_c_in_what_is_executed_as_text_ends_with_the_same_code(tmp_path: Path) -> None:
    """Python dies of the signal itself, where it saw the interrupt leave an `exec`."""
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text("exec('raise KeyboardInterrupt')")
    code, _, said = command("explain", *GIVEN["explain"], before=tmp_path)
    assert (code, said) == (130, "autoconv: interrupted\n")
