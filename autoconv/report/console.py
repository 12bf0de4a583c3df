"""The console of stdout, by which tables are printed."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 1_000_000
"""Columns of what goes to a file or a pipe, where a row is a line, however long."""


def console() -> Console:
    """The console of stdout; where that is no terminal, one that breaks no line."""
    found = Console(highlight=False, markup=False, emoji=False)
    return found if found.is_terminal else Console(width=PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
