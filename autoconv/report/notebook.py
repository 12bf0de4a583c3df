"""An explanation in a notebook: a piece of HTML without scripts, colours or addresses, for light and dark pages."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from autoconv.words import printable

_SCROLLS = "overflow-x: auto"
_PLAIN = "border-collapse: collapse; font-size: 0.9em"
_CELL = "padding: 0.1em 0.7em 0.1em 0; white-space: nowrap"
_LAST = "padding: 0.1em 0; min-width: 20em"
_QUIET = "opacity: 0.75"
"""Fainter in whatever colour the page writes in."""


def as_html(
    lines: Sequence[str], header: Sequence[str], rows: Iterable[Sequence[str]], *, words: Iterable[str], chosen: str
) -> str:
    """Lines above a table, as a piece of HTML in which every text is escaped.

    Colours are the page's own, so that it reads on light and on dark.

    Args:
        lines: The lines; the third is the decision, which stands out.
        header: The columns' names.
        rows: A text for each column.
        words: Columns of words; the others are numbers, and end where they end.
        chosen: The first text of the row that stands out.
    """
    return "\n".join(_pieces(lines, header, rows, frozenset(words), chosen))


def _pieces(
    lines: Sequence[str], header: Sequence[str], rows: Iterable[Sequence[str]], words: frozenset[str], chosen: str
) -> Iterator[str]:
    yield f'<div style="{_SCROLLS}">'
    for number, line in enumerate(lines):
        yield f"<div><strong>{_text(line)}</strong></div>" if number == 2 else f"<div>{_text(line)}</div>"
    yield f'<table style="{_PLAIN}">'
    yield "<thead><tr>" + "".join(_cell("th", name, name, words, header) for name in header) + "</tr></thead>"
    yield "<tbody>"
    for row in rows:
        style = "font-weight: bold" if row[0] == chosen else _QUIET if row[1] != "ok" else ""
        cells = "".join(_cell("td", text, name, words, header) for name, text in zip(header, row, strict=True))
        yield f'<tr style="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(tag: str, text: str, column: str, words: frozenset[str], header: Sequence[str]) -> str:
    side = "left" if column in words else "right"
    return f'<{tag} style="text-align: {side}; {_LAST if column == header[-1] else _CELL}">{_text(text)}</{tag}>'


def _text(text: str) -> str:
    return html.escape(printable(text))
