"""What the commands share: one-line errors, options, the settings they make, a progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from autoconv.errors import AutoconvError
from autoconv.report.words import printable

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_STDERR = 2
"""Its descriptor, whatever `sys.stderr` is."""

_TASK = "{task.description}"
"""What is under way: a field of the task, as the format may not hold names, in which braces and brackets may stand."""


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


@dataclass(frozen=True)
class Bar:
    """A progress bar, or none.

    Attributes:
        advance: Counts one more, and shows a text.
        expect: Sets how many there are in all.
    """

    advance: Callable[[str], None]
    expect: Callable[[int], None]


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Bar]:
    """A progress bar on stderr, where that is a terminal; with None it is not known yet how many there are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield Bar(lambda _: None, lambda _: None)
        return
    columns = (
        TextColumn(_TASK, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(printable(what), total=total, text="")
        yield Bar(
            advance=lambda text: progress.update(task, advance=1, text=printable(text)),
            expect=lambda total: progress.update(task, total=total),
        )


@contextmanager
def progress_of(what: str, after_s: float = 2.0) -> Iterator[Callable[[float], None]]:
    """A bar on stderr for what takes over two seconds, where that is a terminal; yields what is told the part done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    stderr, start = Console(stderr=True), time.monotonic()
    columns = (TextColumn(_TASK, markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=stderr, transient=True)
    task = shown.add_task(printable(what), total=1.0)

    def tell(part: float) -> None:
        if stderr.is_terminal and not shown.live.is_started and time.monotonic() - start > after_s:
            shown.start()
        shown.update(task, completed=part)

    try:
        yield tell
    finally:
        if shown.live.is_started:
            shown.stop()
