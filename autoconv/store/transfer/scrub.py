"""Scrubbing: text loses what tells of the machine and its user, and what a terminal would obey."""

from __future__ import annotations

import functools
import re
import socket

from autoconv.record import MAX_DETAIL

# Two names at least, so that `a/b`, `1/2` and `/` stay; not within a word nor after `//`, so that URLs do.
_PATH = re.compile(r"(?<!\w)(?<!:/)/[^\s/:\"'<>]+(?:/[^\s/:\"'<>]*)+")


OBEYED_IN_PROSE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""What an import refuses in a message."""


def scrub(text: str, hosts: tuple[str, ...]) -> str:
    """The text without absolute paths, these host names and control characters, of `MAX_DETAIL` characters at most."""
    text = OBEYED_IN_PROSE.sub("?", _PATH.sub("<path>", text))
    for host in hosts:
        text = re.sub(rf"(?<!\w){re.escape(host)}(?!\w)", "<host>", text, flags=re.IGNORECASE)
    return text[:MAX_DETAIL]


def scrubbed(text: str) -> str:
    """The text without absolute paths and without this machine's names."""
    return scrub(text, _host_names(socket.gethostname())) if text else text


@functools.lru_cache
def _host_names(name: str) -> tuple[str, ...]:
    """A machine's names, the longest first: `studio.local`, `studio`."""
    return tuple(dict.fromkeys(part for part in (name, name.partition(".")[0]) if part))
