"""Words for people: those that somebody else wrote, shown as they are and never obeyed, and what there are many of."""

from __future__ import annotations

import re

# What terminals obey, and what turns the direction of reading; lines and tabs stay.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with what a terminal obeys written out, as `\x1b`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(count: int, word: str, plural: str = "") -> str:
    """So many of what a word says: `1 record`, `2 records`; of a word that takes no `s`, by its plural."""
    return f"{count} {word if count == 1 else plural or word + 's'}"
