"""The scripts make their environment on machines of every kind: bash runs with a PATH of fakes, and no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
BASH = shutil.which("bash")
TOOLS = ("cat", "chmod", "cksum", "cp", "dirname", "mkdir", "rm", "tail")
OLD = "sys.version_info = (3, 9, 6)"
BARE = "sys.modules['ensurepip'] = None"
TRANSLATED = "sys.platform = 'darwin'; import platform; platform.machine = lambda: 'x86_64'"
FIT = "sys.modules['ensurepip'] = sys"

pytestmark = pytest.mark.skipif(BASH is None, reason="the scripts need bash")


@dataclass
class Machine:
    """A checkout in `root`, and the only commands there are in `bin`; what the fakes did stands in `log`."""

    root: Path
    bin: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, name: str, text: str) -> None:
        """Put a command on PATH that is this shell script."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def system(self, name: str, machine: str) -> None:
        """Be this kind of machine."""
        self.command("uname", f'case "$1" in -s) echo {name} ;; -m) echo {machine} ;; *) exit 64 ;; esac')

    def python(self, name: str, prelude: str) -> None:
        """Put a Python on PATH: this very one, after `prelude`; `-m venv` copies one that logs what is asked."""
        self.command(
            name,
            f"""case "$2" in
                -c) code=$3; shift 3; exec '{sys.executable}' -I -c "import sys; {prelude}
$code" "$@" ;;
                -m) echo "venv by {name}" >>'{self.log}'
                    mkdir -p "$4/bin"; cp '{self.bin}/inner' "$4/bin/python"; : >"$4/bin/pip" ;;
            esac""",
        )

    def uv(self, *, venv: str = "true", install: str = "true") -> None:
        """Put a uv on PATH whose two steps end as these commands do."""
        self.command(
            "uv",
            f"""echo "uv $*" >>'{self.log}'
            if [ "$1" = pip ]; then {install}; exit; fi
            for last; do :; done
            mkdir -p "$last/bin"; cp '{self.bin}/inner' "$last/bin/python"; : >"$last/by-uv"; {venv}""",
        )

    def inner(self, *, fit: str = "true", mlx: str = "true", install: str = "true") -> None:
        """Say how the environment's own Python does: when probed, importing MLX, and pip."""
        self.command(
            "inner",
            f"""case "$*" in
                *tomllib*) exec '{sys.executable}' "$@" ;;
                *version_info*) {fit} ;;
                *mlx.core*) {mlx} ;;
                *"-m pip"*) echo "$*" >>'{self.log}'; {install} ;;
                *run_mlx_tests*) echo "$*" ;;
                *"-m "*) echo "$*" ; echo "PYTHONPATH=$PYTHONPATH" ;;
            esac""",
        )

    def bash(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `code` after the bootstrap is sourced, as the scripts do."""
        return self.run("-c", f'set -euo pipefail; . "{self.root}/scripts/_bootstrap.sh"; {code}', **environment)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run bash with these arguments."""
        assert BASH
        return subprocess.run(
            [BASH, *arguments],
            env={"PATH": str(self.bin), **self.environment, **environment},
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def did(self) -> list[str]:
        """What the fakes did since the last call."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine without a GPU, a Python or uv, in a folder with a space."""
    root = tmp_path / "check out"
    shutil.copytree(SCRIPTS, root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    groups = 'dev = ["pytest>=8.2", "ruff>=0.15"]\nmlx-tests = ["torch"]\n'
    (root / "pyproject.toml").write_text(f"[dependency-groups]\n{groups}")
    made = Machine(root, tmp_path / "bin", tmp_path / "log")
    made.bin.mkdir()
    made.log.write_text("")
    for name in TOOLS:
        tool = shutil.which(name)
        assert tool
        (made.bin / name).symlink_to(tool)
    made.system("Linux", "x86_64")
    made.inner()
    return made


def fails_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The line that a run which failed as it should left on stderr."""
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("kind", "sysctl", "version", "message"),
    [
        ("Darwin x86_64", "sysctl.proc_translated", "15.1", "Rosetta"),
        ("Darwin x86_64", "hw.optional.arm64", "15.1", "Rosetta"),
        ("Darwin x86_64", "", "15.1", "Intel Mac"),
        ("Darwin arm64", "hw.optional.arm64", "13.7.1", "macOS 14 or later, and this is macOS 13.7.1"),
        ("FreeBSD amd64", "", "", "this is FreeBSD"),
    ],
)
def test_a_machine_that_cannot_run_mlx_gets_one_line(
    machine: Machine, kind: str, sysctl: str, version: str, message: str
) -> None:
    machine.system(*kind.split())
    machine.command("sysctl", f'[ "$2" = "{sysctl}" ] && echo 1')
    machine.command("sw_vers", f'[ "$1" = -productVersion ] && echo {version}')
    assert message in fails_in_one_line(machine.bash("bootstrap"))


@pytest.mark.parametrize(
    ("kind", "version"), [("Darwin arm64", "14.0"), ("Darwin arm64", "26.1"), ("Linux aarch64", "")]
)
def test_a_machine_that_can_run_mlx_passes(machine: Machine, kind: str, version: str) -> None:
    machine.system(*kind.split())
    machine.command("sw_vers", f"echo {version}")
    result = machine.bash("check_platform; echo passed")
    assert (result.returncode, result.stdout, result.stderr) == (0, "passed\n", "")


@pytest.mark.parametrize(
    ("driver", "chosen", "backend", "says"),
    [
        (None, "", "cpu", ""),
        ("exit 9", "", "cpu", ""),
        ("echo No devices were found", "", "cpu", ""),
        ("echo 580.65.06", "", "cuda13", ""),
        ("echo 590.1; echo 590.1", "", "cuda13", ""),
        ("echo 550.54.14", "", "cpu", "driver from 580 on, and this is 550"),
        ("echo 580.65.06", "cpu", "cpu", ""),
        (None, "cuda13", "cuda13", ""),
    ],
)
def test_the_backend_is_what_the_driver_can_run(
    machine: Machine, driver: str | None, chosen: str, backend: str, says: str
) -> None:
    if driver:
        machine.command("nvidia-smi", driver)
    result = machine.bash("backend", AUTOCONV_BACKEND=chosen)
    assert (result.returncode, result.stdout) == (0, f"{backend}\n")
    assert says in result.stderr
    assert bool(says) == bool(result.stderr)


def test_macos_needs_no_backend(machine: Machine) -> None:
    machine.system("Darwin", "arm64")
    assert machine.bash("backend", AUTOCONV_BACKEND="cpu").stdout == ""


def test_an_unknown_backend_is_refused(machine: Machine) -> None:
    line = fails_in_one_line(machine.bash("bootstrap", AUTOCONV_BACKEND="cuda12"))
    assert "'cuda12'" in line
    assert "cpu or cuda13" in line


def test_the_first_fit_python_is_taken(machine: Machine) -> None:
    machine.command("python3.13", "exit 127")
    machine.python("python3.12", BARE)
    machine.python("python3.11", FIT)
    machine.python("python3", FIT)
    assert machine.bash("find_python").stdout == "python3.11\n"


def test_the_python_asked_for_is_taken(machine: Machine) -> None:
    machine.python("python3", FIT)
    machine.python("my python", FIT)
    path = str(machine.bin / "my python")
    assert machine.bash("find_python", AUTOCONV_PYTHON=path).stdout == f"{path}\n"


@pytest.mark.parametrize(
    ("pythons", "asked", "message"),
    [
        ({}, "", "no Python here, and autoconv needs 3.11 or later; install Python 3.13, or uv"),
        ({"python3": OLD}, "", "python3 is Python 3.9.6, and autoconv needs 3.11 or later; install"),
        ({"python3.12": BARE, "python3": OLD}, "", "apt install python3-venv"),
        ({"python3": TRANSLATED}, "", "Rosetta; install a Python"),
        ({"python3": FIT}, "python3.14", "AUTOCONV_PYTHON is 'python3.14', which does not run"),
        ({"python3": FIT, "python3.9": OLD}, "python3.9", "python3.9 is Python 3.9.6"),
    ],
)
def test_without_a_fit_python_one_line_says_what_to_do(
    machine: Machine, pythons: dict[str, str], asked: str, message: str
) -> None:
    for name, prelude in pythons.items():
        machine.python(name, prelude)
    assert message in fails_in_one_line(machine.bash("bootstrap", AUTOCONV_PYTHON=asked))


def test_the_environment_is_made_once(machine: Machine) -> None:
    machine.python("python3", FIT)
    first = machine.bash("bootstrap")
    assert first.returncode == 0, first.stderr
    made, installed = machine.did()
    assert made == "venv by python3"
    assert installed.endswith("-e .[cpu]")
    second = machine.bash("bootstrap")
    assert (second.returncode, second.stderr, machine.did()) == (0, "", [])


def test_a_group_is_added_to_what_is_there(machine: Machine) -> None:
    machine.python("python3", FIT)
    machine.bash("bootstrap")
    machine.did()
    machine.bash("bootstrap dev")
    (installed,) = machine.did()
    assert installed.endswith("-e .[cpu] pytest>=8.2 ruff>=0.15")
    machine.bash("bootstrap dev")
    machine.bash("bootstrap")
    assert machine.did() == []


def test_macos_installs_no_backend_beside_mlx(machine: Machine) -> None:
    machine.system("Darwin", "arm64")
    machine.command("sw_vers", "echo 15.1")
    machine.uv()
    assert machine.bash("bootstrap").returncode == 0
    assert machine.did()[-1].endswith("-e .")


@pytest.mark.parametrize("change", ["pyproject", "backend", "python", "place", "broken", "interrupted"])
def test_the_environment_is_made_anew(machine: Machine, change: str) -> None:
    machine.python("python3", FIT)
    assert machine.bash("bootstrap").returncode == 0
    environment = machine.root / ".venv-scripts"
    (environment / "marker").write_text("")
    machine.did()
    settings = {}
    match change:
        case "pyproject":
            (machine.root / "pyproject.toml").write_text("[dependency-groups]\ndev = []\n")
        case "backend":
            settings["AUTOCONV_BACKEND"] = "cuda13"
        case "python":
            settings["AUTOCONV_PYTHON"] = "python3"
        case "place":
            machine.root = machine.root.rename(machine.root.with_name("elsewhere"))
        case "broken":
            (environment / "bin" / "python").unlink()
        case "interrupted":
            (environment / "made-for").unlink()
    result = machine.bash("bootstrap", **settings)
    assert result.returncode == 0
    assert "uv" not in result.stderr
    made, installed = machine.did()
    assert made == "venv by python3"
    assert installed.endswith("-e .[cuda13]" if change == "backend" else "-e .[cpu]")
    assert not (machine.root / ".venv-scripts" / "marker").exists()


def test_uv_is_used_where_it_is(machine: Machine) -> None:
    machine.uv()
    machine.python("python3", FIT)
    assert machine.bash("bootstrap dev").returncode == 0
    made, installed = machine.did()
    environment = machine.root.resolve() / ".venv-scripts"
    assert made == f"uv venv --quiet --python >=3.11 {environment}"
    assert installed.startswith(f"uv pip install --quiet --python {environment}/bin/python -e .[cpu]")
    assert installed.endswith("pytest>=8.2 ruff>=0.15")


@pytest.mark.parametrize("step", ["venv", "probe", "install"])
def test_what_uv_cannot_do_is_done_by_pip(machine: Machine, step: str) -> None:
    machine.uv(venv="false" if step == "venv" else "true", install="false" if step == "install" else "true")
    if step == "probe":
        machine.inner(fit="exit 12")
    machine.python("python3", FIT)
    result = machine.bash("bootstrap")
    assert result.returncode == 0
    assert "uv could not do it" in result.stderr
    *by_uv, made, installed = machine.did()
    assert len(by_uv) == (2 if step == "install" else 1)
    assert made == "venv by python3"
    assert installed.endswith("-e .[cpu]")
    assert not (machine.root / ".venv-scripts" / "by-uv").exists()


def test_a_failed_install_is_tried_again(machine: Machine) -> None:
    machine.python("python3", FIT)
    machine.inner(install="exit 1")
    result = machine.bash("bootstrap")
    assert result.returncode == 1
    assert "installing failed" in result.stderr.splitlines()[-1]
    machine.inner()
    assert machine.bash("bootstrap").returncode == 0


def test_an_mlx_that_does_not_start_is_named(machine: Machine) -> None:
    machine.python("python3", FIT)
    machine.inner(mlx="echo Traceback; echo 'ImportError: libblas.so.3'; exit 1")
    result = machine.bash("bootstrap")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("MLX was installed but does not start: ImportError: libblas.so.3")


@pytest.mark.parametrize(
    ("script", "runs"), [("demo", "-m autoconv demo --json a b"), ("test", "-m pytest --json a b")]
)
def test_the_scripts_pass_their_arguments_on(machine: Machine, script: str, runs: str) -> None:
    machine.python("python3", FIT)
    users = {"PYTHONPATH": "/nowhere", "PYTHONNOUSERSITE": "", "CDPATH": "/"}
    result = machine.run(str(machine.root / "scripts" / script), "--json", "a b", **users)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [runs, "PYTHONPATH="]


@pytest.mark.parametrize(("arguments", "folder"), [([], "docs/_build"), (["a b"], "a b")])
def test_the_documentation_is_built_by_a_group_of_its_own(machine: Machine, arguments: list[str], folder: str) -> None:
    machine.python("python3", FIT)
    (machine.root / "pyproject.toml").write_text('[dependency-groups]\ndev = []\ndocs = ["sphinx>=8.2"]\n')
    result = machine.run(str(machine.root / "scripts" / "docs"), *arguments)
    assert result.returncode == 0, result.stderr
    assert machine.did()[-1].endswith("-e .[cpu] sphinx>=8.2")
    (ran,) = result.stdout.splitlines()[:1]
    assert ran.startswith("-m sphinx --fail-on-warning")
    assert ran.endswith(f" docs {folder}")


def test_lint_stops_at_what_fails(machine: Machine) -> None:
    machine.python("python3", FIT)
    lint = str(machine.root / "scripts" / "lint")
    assert machine.run(lint).returncode == 0
    inner = machine.root / ".venv-scripts" / "bin" / "python"
    inner.write_text(inner.read_text().replace('*"-m "*)', '*"-m ruff format"*) exit 3 ;; *"-m "*)'))
    failed = machine.run(lint)
    assert failed.returncode == 3
    assert "mypy" not in failed.stdout


def test_mlx_s_tests_have_an_environment_of_their_own(machine: Machine) -> None:
    machine.python("python3", FIT)
    result = machine.run(str(machine.root / "scripts" / "mlx_tests"), "--tests", "a b")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{machine.root}/scripts/run_mlx_tests.py --tests a b\n"
    assert "making .venv-mlx-tests with python3" in result.stderr
    assert machine.did()[-1].endswith("-e .[cpu] torch")
    assert not (machine.root / ".venv-scripts").exists()


@pytest.mark.parametrize("script", ["demo", "test", "lint", "mlx_tests"])
def test_the_scripts_are_executable(script: str) -> None:
    assert os.access(SCRIPTS / script, os.X_OK)


def test_each_file_of_tests_is_run_though_one_ends_its_process(machine: Machine) -> None:
    machine.python("python3", FIT)
    (machine.root / "tests").mkdir()
    for name in ("test_a", "test_b", "test_c"):
        (machine.root / "tests" / f"{name}.py").touch()
    each = str(machine.root / "scripts" / "test-each")
    passed = machine.run(each, "--timeout=300")
    assert passed.returncode == 0, passed.stderr
    runs = [line for line in passed.stdout.splitlines() if line.startswith("-m pytest")]
    assert runs == [f"-m pytest tests/test_{letter}.py --timeout=300" for letter in "abc"]
    inner = machine.root / ".venv-scripts" / "bin" / "python"
    ends = '*test_a*) kill -9 $$ ;; *test_b*) echo b; exit 5 ;; *test_c*) echo c; exit 1 ;; *"-m "*)'
    inner.write_text(inner.read_text().replace('*"-m "*)', ends))
    failed = machine.run(each)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-3:] == ["", "== tests/test_c.py ==", "c"]
    assert failed.stderr.splitlines()[-1] == "autoconv: these did not pass: tests/test_a.py tests/test_c.py"
