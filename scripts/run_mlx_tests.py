"""MLX's own tests of convolutions, with MLX patched: a process and an empty database for each policy.

Most compare with PyTorch, which `scripts/mlx_tests` brings along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click

POLICIES = ("off", "record", "measure", "auto")
REPOSITORY = "https://github.com/ml-explore/mlx"
FOLDER = "python/tests"
FILE = "test_conv.py"


@dataclass(frozen=True)
class Ran:
    """What came of the tests under a policy.

    Attributes:
        tests: How many ran, skipped ones among them.
        calls: Calls of 3D convolutions that came to autoconv.
        decisions: By where they came from, as `autoconv.statistics`.
        failed: Names of the tests that failed, parts of one counted once.
        skipped: Reasons by the names of those that were skipped.
    """

    tests: int
    calls: int
    decisions: dict[str, int]
    failed: list[str]
    skipped: dict[str, str]

    def faults(self) -> list[str]:
        """What is wrong, a line each: what failed, what of 3D was skipped, and if nothing was tested at all."""
        skipped = [f"{name} was skipped: {why}" for name, why in self.skipped.items() if "3d" in name.lower()]
        nothing = [] if self.calls else ["no 3D convolution came to autoconv"]
        return [*(f"{name} failed" for name in self.failed), *skipped, *nothing]


def fetched(into: Path) -> Path:
    """The folder of the installed MLX's tests, cloned from GitHub by its tag."""
    tag = f"v{version('mlx')}"
    quiet = ["git", "-c", "advice.detachedHead=false"]
    clone = [*quiet, "clone", "-q", "--depth=1", "--filter=blob:none", "--sparse", f"--branch={tag}"]
    for command in ([*clone, REPOSITORY, str(into)], [*quiet, "-C", str(into), "sparse-checkout", "set", FOLDER]):
        if subprocess.run(command, check=False).returncode:
            msg = f"MLX's tests of {tag} cannot be fetched: name a checkout by --tests DIR"
            raise click.ClickException(msg)
    return into / FOLDER


def located(tests: Path) -> Path:
    """The folder with MLX's tests: this one, or that of this checkout."""
    for folder in (tests, tests / FOLDER):
        if (folder / FILE).is_file():
            return folder.resolve()
    msg = f"there is no {FILE} in {tests} or its {FOLDER}"
    raise click.ClickException(msg)


def run(folder: Path, policy: str) -> Ran | None:
    """What comes of the tests under a policy, in a process of their own; None where that ends before they have."""
    with tempfile.TemporaryDirectory() as own:
        told = Path(own) / "told.json"
        command = [sys.executable, __file__, "--tests", str(folder), "--policy", policy, "--tell", str(told)]
        environment = {"AUTOCONV_POLICY": policy, "AUTOCONV_DATABASE": str(Path(own) / "autoconv.db")}
        subprocess.run(command, env=os.environ | environment, check=False)
        return Ran(**json.loads(told.read_text())) if told.exists() else None


def run_here(folder: Path) -> Ran:
    """What comes of the tests in this process, under the settings that its environment makes."""
    sys.path.insert(0, str(folder))
    tests = unittest.defaultTestLoader.loadTestsFromName(Path(FILE).stem)  # sets what MLX reads when it is imported

    import autoconv
    from autoconv import patching

    with autoconv.patch():
        result = unittest.TextTestRunner(verbosity=0).run(tests)
    return Ran(
        result.testsRun,
        patching.calls(),
        autoconv.statistics(),
        # A part of a test names the test that it is of.
        sorted({getattr(test, "test_case", test).id() for test, _ in (*result.failures, *result.errors)}),
        {test.id(): why for test, why in result.skipped},
    )


@click.command(epilog="Example: scripts/mlx_tests --tests ~/mlx --policy measure")
@click.option("--tests", type=click.Path(path_type=Path), metavar="DIR", help="MLX's checkout, or its folder of tests.")
@click.option("--fetch", is_flag=True, help="Clone those of the installed version from GitHub.")
@click.option("--policy", "policies", type=click.Choice(POLICIES), multiple=True, help="Under this. Default: each.")
@click.option("--tell", type=click.Path(path_type=Path), hidden=True)
def main(tests: Path | None, fetch: bool, policies: tuple[str, ...], tell: Path | None) -> None:
    """Run MLX's tests of convolutions through autoconv; exit code 1 where any fails, or one in 3D is skipped."""
    if (tests is None) != fetch:  # neither, or both
        msg = "name MLX's tests by --tests DIR, or clone them by --fetch"
        raise click.UsageError(msg)
    if tell is not None and tests is not None:
        tell.write_text(json.dumps(asdict(run_here(tests))))
        return
    with tempfile.TemporaryDirectory() as own:
        folder = located(tests) if tests is not None else fetched(Path(own) / "mlx")
        failed = [policy for policy in policies or POLICIES if not _passes(folder, policy)]
    if failed:
        raise click.exceptions.Exit(1)


def _passes(folder: Path, policy: str) -> bool:
    """Whether all is right under a policy; prints what came of it."""
    ran = run(folder, policy)
    if ran is None:
        click.echo(f"{policy}: the process ended before the tests had")
        return False
    decided = ", ".join(f"{count} {source}" for source, count in ran.decisions.items() if count)
    click.echo(
        f"{policy}: {ran.tests} tests, {len(ran.failed)} failed, {len(ran.skipped)} skipped; "
        f"{ran.calls} calls in 3D ({decided or 'none decided'})"
    )
    for fault in ran.faults():
        click.echo(f"  {fault}")
    return not ran.faults()


if __name__ == "__main__":
    main()
