"""The browser that the report's tests need: found where there is one, and missed in one line where there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import browser
import pytest

BASH = shutil.which("bash")
SCRIPT = Path(__file__).parents[1] / "scripts" / "_browser.sh"
pytestmark = pytest.mark.skipif(BASH is None, reason="the script needs bash")


def need_browser(path: Path) -> subprocess.CompletedProcess[str]:
    assert BASH is not None
    code = f'set -euo pipefail; . "{SCRIPT}"; need_browser; echo there'
    return subprocess.run([BASH, "-c", code], env={"PATH": str(path)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", browser.NAMES)
def test_one_that_is_there_will_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / name
    program.touch(0o755)
    done = need_browser(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.program() == str(program)


def test_where_there_is_none_and_none_can_be_installed_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = need_browser(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["autoconv: the tests of the report need a browser: install Chromium or Chrome"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.program() is None


def test_it_is_installed_where_it_can_be(tmp_path: Path) -> None:
    apt, user = tmp_path / "apt-get", tmp_path / "id"
    apt.write_text(
        f'#!{BASH}\ncase "$*" in *"install"*chromium*) : > "{tmp_path}/chromium"; chmod_ ;; esac\n'.replace(
            "chmod_", f'{shutil.which("chmod")} 755 "{tmp_path}/chromium"'
        )
    )
    user.write_text(f"#!{BASH}\necho 0\n")
    for fake in (apt, user):
        fake.chmod(0o755)
    done = need_browser(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "")
