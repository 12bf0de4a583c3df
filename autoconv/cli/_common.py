"""What the commands share: one-line errors, options and the settings they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autoconv.errors import AutoconvError
from autoconv.report.words import printable

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_STDERR = 2
"""Its descriptor, whatever `sys.stderr` is."""


class Command(click.Command):
    """A command whose errors are one line on stderr that says what to do."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (AutoconvError, ValueError, TypeError) as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error


class Handover(BaseException):
    """Leaves click for what is then to run: its errors, interrupts, exits and warnings are no affair of click's.

    Args:
        run: What is to run.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self.run = run


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command, and what it hands over."""
        try:
            return super().main(*args, **extra)
        except Handover as handover:
            run = handover.run
        return run()


def database_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--database`."""
    return click.option(
        "--database",
        type=click.Path(path_type=Path),
        help="The database. Default: AUTOCONV_DATABASE, else the user's own.",
    )(function)


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add the flag `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def settings(database: Path | None, **changes: object) -> Any:
    """The settings in force, with that database and those changes that are not None."""
    from autoconv import settings as given

    chosen = {name: value for name, value in {"database": database, **changes}.items() if value is not None}
    return given.with_changes(given.current(), chosen)


def can_ask() -> bool:
    """Whether somebody can be asked: both ends are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def tell_of_stop() -> None:
    """Say that a first Ctrl-C was heard: in a signal's handler, where what else writes to stderr may be at it."""
    os.write(_STDERR, b"\nautoconv: ending after the current convolution; once more ends it now\n")


def backend_here() -> str:
    """The backend of this machine's default device."""
    from autoconv._backend import mx
    from autoconv.environment import backend_of

    return backend_of(mx.default_device().type)
