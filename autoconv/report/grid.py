"""A grid: rows of text in columns, as a table that fits the terminal it is printed in, with no number cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from autoconv.words import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

GAP = "  "
"""Between two columns."""

INDENT = "    "
"""Before what stands beneath its row."""

ROOM = 32
"""Columns of the terminal that words need beside others; where there are fewer they go beneath."""

NARROWEST = 12
"""To how many columns of the terminal other words are broken where nothing else helps."""

_BREAKS = re.compile(r"(?<=[\s,])|(?<=\w\()")
"""Where words, and the names of candidates, are broken."""


@dataclass(frozen=True)
class Column:
    """A column, and what becomes of it where the terminal is too narrow for all.

    Attributes:
        name: Its heading.
        numbers: Whether it holds numbers: they end where they end, and are never broken.
        leaves: When it leaves: those with 1 first, those with 0 never.
        beneath: Whether it may stand on lines of its own beneath its row, the first such column first.
        unless: Of a column that left, the text that is not worth saying; every other one stands beneath its row. None
            where all of it may go.
        narrows: To how many columns of the terminal its words are broken before any column leaves; 0 for not at all.
        style: Rich's style of its texts.
    """

    name: str
    numbers: bool = False
    leaves: int = 0
    beneath: bool = False
    unless: str | None = None
    narrows: int = 0
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A text for each column, and rich's style of them all."""

    texts: tuple[str, ...]
    style: str = ""


@dataclass
class Grid:
    """Rows in columns, for rich's `print`.

    What is too wide has its headings broken between words; then words go beneath their rows, and columns leave, those
    that are empty first; names that may not narrow before that are broken last. No line has blanks at its end.
    """

    columns: tuple[Column, ...]
    headed: bool = True
    rows: list[Row] = field(default_factory=list)

    def add(self, *texts: str, style: str = "") -> None:
        """Add a row, a text for each column; nobody obeys what is in one."""
        self.rows.append(Row(tuple(re.sub(r"\s*[\n\r\t]\s*", " ", printable(text)) for text in texts), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich prints: the lines of `lines`."""
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> Iterator[Text]:
        """The table's lines, none wider than that unless not even `NARROWEST` names fit."""
        layout = _layout(self.columns, self.rows, width, self.headed)
        if self.headed:
            yield from layout.head()
        for row in self.rows:
            yield from layout.row(row)


def paragraphs(lines: Iterable[str]) -> Grid:
    """Lines for rich's `print`, each broken between words where the terminal ends."""
    found = Grid((Column("line"),), headed=False)
    for line in lines:
        found.add(line)
    return found


@dataclass
class _Layout:
    """How wide each column is; those that are not here stand beneath or have left."""

    columns: tuple[Column, ...]
    width: int
    widths: dict[int, int]
    beneath: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    @property
    def excess(self) -> int:
        """How many columns of the terminal it takes too many."""
        return sum(self.widths.values()) + len(GAP) * (len(self.widths) - 1) - self.width

    def head(self) -> Iterator[Text]:
        """The headings, broken between words where that is needed, their last lines side by side."""
        broken = {at: wrapped(self.columns[at].name, width) for at, width in self.widths.items()}
        most = max(len(lines) for lines in broken.values())
        cells = {at: [""] * (most - len(lines)) + lines for at, lines in broken.items()}
        told = [at for at in sorted([*self.left, *self.beneath]) if self._tells(at)]
        yield from self._lines(cells, ": ".join(self.columns[at].name for at in told), "bold")

    def row(self, row: Row) -> Iterator[Text]:
        """A row's lines, and what stands beneath it."""
        cells = {at: wrapped(row.texts[at], width) for at, width in self.widths.items()}
        told = [
            row.texts[at]
            for at in sorted([*self.left, *self.beneath])
            if self._tells(at) and row.texts[at] not in ("", self.columns[at].unless)
        ]
        yield from self._lines(cells, ": ".join(told), row.style)

    def _tells(self, at: int) -> bool:
        return at in self.beneath or self.columns[at].unless is not None

    def _lines(self, cells: dict[int, list[str]], beneath: str, style: str) -> Iterator[Text]:
        from rich.text import Text  # not paid for by who never prints one

        for texts in zip_longest(*cells.values(), fillvalue=""):
            line = Text(style=style, overflow="fold")
            for at, text in zip(cells, texts, strict=True):
                blanks = " " * (self.widths[at] - _wide(text))
                padded = blanks + text if self.columns[at].numbers else text + blanks
                line.append(GAP if line.plain else "").append(padded, self.columns[at].style or None)
            line.rstrip()
            if line.plain:
                yield line
        for text in wrapped(beneath, self.width - len(INDENT)) if beneath else ():
            yield Text(INDENT + text, style=style, overflow="fold")


def _layout(columns: tuple[Column, ...], rows: Sequence[Row], width: int, headed: bool) -> _Layout:
    """The layout of the least loss that fits a terminal."""
    texts = {at: max((_wide(row.texts[at]) for row in rows), default=0) for at in range(len(columns))}
    empty = {at for at, most in texts.items() if not most}
    names = {at: _wide(column.name) if headed else 0 for at, column in enumerate(columns)}
    words = {at: max(map(_wide, column.name.split()), default=0) for at, column in enumerate(columns)}
    found = _Layout(columns, width, {at: max(most, names[at]) for at, most in texts.items()})
    if _made_room(found):
        return found
    if headed:
        found.widths = {at: max(most, words[at]) for at, most in texts.items()}
    while not _made_room(found) and (next_ := _next_beneath(found)) is not None:
        del found.widths[next_]
        found.beneath.append(next_)
    whole = dict(found.widths)
    _narrow(found, {at: column.narrows for at, column in enumerate(columns) if column.narrows})
    for at in sorted(found.widths, key=lambda at: (at not in empty, columns[at].leaves)):
        if found.excess <= 0:
            break
        if columns[at].leaves:
            del found.widths[at]
            found.left.append(at)
    _narrow(found, {at: NARROWEST for at, column in enumerate(columns) if not column.numbers})
    for at, most in found.widths.items():
        found.widths[at] += max(0, min(whole[at] - most, -found.excess))
    return found


def _narrow(layout: _Layout, least: Mapping[int, int]) -> None:
    """Make columns narrower as far as is needed, down to the least widths given, the widest first."""
    while layout.excess > 0:
        wide = [at for at, most in layout.widths.items() if at in least and most > least[at]]
        if not wide:
            break
        layout.widths[max(wide, key=layout.widths.__getitem__)] -= 1


def _made_room(layout: _Layout) -> bool:
    """Whether it fits, if need be with the words that go beneath next made narrower."""
    at = _next_beneath(layout)
    if layout.excess > 0 and at is not None and layout.widths[at] - layout.excess >= min(ROOM, layout.widths[at]):
        layout.widths[at] -= layout.excess
    return layout.excess <= 0


def _next_beneath(layout: _Layout) -> int | None:
    return next((at for at in layout.widths if layout.columns[at].beneath), None)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most that width, broken after blanks and commas, and else where it must be."""
    from rich.cells import chop_cells

    lines, line = [], ""
    for piece in _BREAKS.split(text):
        if _wide((line + piece).rstrip()) <= width:
            line += piece
            continue
        lines += [line.rstrip()] if line.strip() else []
        *full, line = chop_cells(piece, max(1, width)) if _wide(piece.rstrip()) > width else [piece]
        lines += full
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _wide(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
