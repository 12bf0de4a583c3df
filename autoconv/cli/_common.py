"""What the commands share: one-line errors, options and the settings they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv import interrupt
from autoconv.errors import AutoconvError
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.environment import Environment


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
        except KeyboardInterrupt:  # before click listens, or after
            sys.exit(interrupt.heard())
        return run()

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the arguments."""
        with _interruptible():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _interruptible():
            return super().invoke(ctx)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, at a question too, ends with its own exit code, where click has that of errors."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise click.exceptions.Exit(interrupt.heard()) from None


class OutFile(click.Path):
    """The path of a file that a command writes."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "-":
            self.fail("it is written whole, as a file alone can be: name one", param, ctx)
        return super().convert(value, param, ctx)


def check_out(out: Path) -> None:
    """Refuse, before much is done, a file that could not be written after it.

    Raises:
        ClickException: something else than a file is there, or there is no folder for it that can be written.
    """
    from autoconv.plain_file import unwritten, written_at

    try:
        folder = written_at(out).parent
    except OSError as error:
        raise click.ClickException(printable(unwritten(out, error))) from error
    if not os.access(folder, os.W_OK):
        msg = printable(f"cannot write {out}: {folder} is not yours to write in, name a file elsewhere")
        raise click.ClickException(msg)


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
    os.write(interrupt.STDERR, b"\nautoconv: ending after the current convolution; once more ends it now\n")


def environment_here() -> Environment:
    """The environment of this machine's default device."""
    from autoconv import environment
    from autoconv._backend import mx

    return environment.of(mx.default_device())


def backend_here() -> str:
    """The backend of this machine's default device."""
    from autoconv._backend import mx
    from autoconv.environment import backend_of

    return backend_of(mx.default_device().type)
