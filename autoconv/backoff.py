"""Backing off: what failed is left alone for a while, twice as long each time."""

from __future__ import annotations

import math
from dataclasses import dataclass

RETRY_S = 1.0
"""How long what failed once is left alone."""

MAX_RETRY_S = 60.0
"""How long what fails time and again is left alone."""


@dataclass(frozen=True)
class Backoff:
    """How long something is left alone since it failed last; by default it did not.

    Attributes:
        wait_s: How long in all.
        until: When that is over, in seconds of the clock that `failed` was told the time of.
    """

    wait_s: float = 0.0
    until: float = -math.inf

    def is_over(self, now: float) -> bool:
        """Whether it may be tried again."""
        return now >= self.until

    def failed(self, now: float) -> Backoff:
        """That of what failed now, once more."""
        wait_s = min(MAX_RETRY_S, 2 * self.wait_s or RETRY_S)
        return Backoff(wait_s, now + wait_s)
