"""The console of stdout, by which tables are printed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""


class _Plain(Console):
    """A console of what is no terminal: wide, and without the blanks by which rich fills lines up."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As of any console."""
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = "\n".join(line.rstrip(" ") for line in captured.get().split("\n"))
        super().print(Text(lines), no_wrap=True, overflow="ignore", crop=False, end="")


def console() -> Console:
    """The console of stdout; wide where that is no terminal."""
    found = Console(highlight=False, markup=False, emoji=False)
    return found if found.is_terminal else _Plain(width=PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
