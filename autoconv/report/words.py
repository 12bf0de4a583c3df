"""Words that somebody else wrote, such as names in files and messages of MLX: shown as they are, and never obeyed."""

from __future__ import annotations

import re

# What terminals obey, and what turns the direction of reading; lines and tabs stay.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with what a terminal obeys written out, as `\x1b`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(count: int, word: str) -> str:
    """So many of what a word says: `1 record`, `2 records`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
