"""The script that runs MLX's tests through autoconv tells what failed, and passes nothing that was not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_mlx_tests.py"

PASSES = """
    def test_conv_3D(self):
        self.convolve()
        self.assertTrue(hasattr(mx.conv3d, "_autoconv_original"))

    def test_it_is_told_its_policy_and_has_a_database_that_is_empty(self):
        self.assertIn(os.environ["AUTOCONV_POLICY"], ("off", "record"))
        self.assertTrue(FRESH)

    @unittest.skip("requires Metal")
    def test_conv_2D(self): ...
"""

FAILS = """
    def test_by_parts(self):
        self.convolve()
        for part in range(3):
            with self.subTest(part=part):
                self.assertEqual(part, 1)

    def test_error(self):
        raise KeyError

    @unittest.skip("requires Torch")
    def test_conv_3D(self): ...
"""

NOTHING = """
    def test_conv_3D(self): ...
"""

ENDS = """
    def test_conv_3D(self):
        self.convolve()
        os._exit(0)
"""


def suite(folder: Path, tests: str) -> Path:
    """A checkout of MLX with these tests."""
    path = folder / "python" / "tests" / "test_conv.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"""
import os
import unittest
import mlx.core as mx

FRESH = not os.path.exists(os.environ["AUTOCONV_DATABASE"])

class Tests(unittest.TestCase):
    def convolve(self):
        mx.eval(mx.conv3d(mx.ones((1, 3, 3, 3, 1)), mx.ones((1, 1, 1, 1, 1))))
{tests}""")
    return folder


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_each_policy_runs_alone(tmp_path: Path) -> None:
    done = run("--tests", suite(tmp_path, PASSES), "--policy", "record", "--policy", "off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "record: 3 tests, 0 failed, 1 skipped; 1 calls in 3D (1 native)",
        "off: 3 tests, 0 failed, 1 skipped; 1 calls in 3D (none decided)",
    ]


FAULTS = {
    "failed": (
        FAILS,
        [
            "record: 3 tests, 2 failed, 1 skipped; 1 calls in 3D (1 native)",
            "  test_conv.Tests.test_by_parts failed",
            "  test_conv.Tests.test_error failed",
            "  test_conv.Tests.test_conv_3D was skipped: requires Torch",
        ],
    ),
    "nothing": (
        NOTHING,
        [
            "record: 1 tests, 0 failed, 0 skipped; 0 calls in 3D (none decided)",
            "  no 3D convolution came to autoconv",
        ],
    ),
    "ends": (ENDS, ["record: the process ended before the tests had"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_failed_or_was_not_tested_is_told(case: str, tmp_path: Path) -> None:
    tests, told = FAULTS[case]
    done = run("--tests", suite(tmp_path, tests), "--policy", "record")
    assert done.returncode == 1
    assert done.stdout.splitlines() == told


def test_one_policy_that_passes_makes_up_for_no_other(tmp_path: Path) -> None:
    tests = PASSES.replace("self.convolve()", 'self.convolve(); self.assertEqual(os.environ["AUTOCONV_POLICY"], "off")')
    assert run("--tests", suite(tmp_path, tests), "--policy", "record", "--policy", "off").returncode == 1


def test_tests_of_the_installed_version_are_cloned_by_its_tag(tmp_path: Path) -> None:
    repository = suite(tmp_path / "mlx", PASSES)
    for command in ("init", "add .", "-c user.name=a -c user.email=a commit -m a", f"tag v{version('mlx')}"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True, capture_output=True)
    # What would be fetched from GitHub is fetched from there.
    environment = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/ml-explore/mlx",
    }
    done = run("--fetch", "--policy", "off", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("off: 3 tests, 0 failed")
    subprocess.run(["git", "tag", "-d", f"v{version('mlx')}"], cwd=repository, check=True, capture_output=True)
    done = run("--fetch", "--policy", "off", **environment)
    assert done.returncode == 1
    assert f"MLX's tests of v{version('mlx')} cannot be fetched: name a checkout by --tests DIR" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--fetch", "--tests", "."]])
def test_nothing_is_fetched_unasked(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "name MLX's tests by --tests DIR, or clone them by --fetch" in done.stderr


def test_a_folder_without_tests_is_refused(tmp_path: Path) -> None:
    done = run("--tests", tmp_path)
    assert done.returncode == 1
    assert f"there is no test_conv.py in {tmp_path} or its python/tests" in done.stderr
