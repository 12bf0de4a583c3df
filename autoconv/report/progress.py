"""Progress bars on stderr, where that is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autoconv.words import printable

_TASK = "{task.description}"
"""What is under way: a field of the task, as the format may not hold names, in which braces and brackets may stand."""


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
