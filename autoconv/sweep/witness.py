"""A witness: a file in which a process writes what it is doing, for who finds it dead."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

_BYTES = 512


@dataclass(frozen=True)
class Sighting:
    """What a process was doing.

    Attributes:
        since: When it began, by the system's monotonic clock, which all processes share.
        candidate: The candidate that was running; empty where none was.
    """

    since: float
    candidate: str


def saw(witness: int, candidate: str) -> None:
    """Write to a file's descriptor that a candidate is about to run, or with no name that none does; takes 2 us."""
    text = json.dumps([time.monotonic(), candidate]).encode()
    os.pwrite(witness, text[:_BYTES].ljust(_BYTES), 0)


def last_seen(witness: int) -> Sighting:
    """What was written down last; that nothing runs, where it cannot be read."""
    try:
        since, candidate = json.loads(os.pread(witness, _BYTES, 0))
        return Sighting(float(since), str(candidate))
    except (ValueError, TypeError):
        return Sighting(time.monotonic(), "")
