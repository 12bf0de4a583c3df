"""The command `autoconv`, in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from autoconv.cli import main


def run(*arguments: str | Path) -> Result:
    """What comes of the command with these arguments."""
    return CliRunner().invoke(main, list(map(str, arguments)))
