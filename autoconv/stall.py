"""The stall: how long timing inside calls has held a process up, and how long it still may."""

from __future__ import annotations

import contextlib
import sys

from autoconv.settings import Policy, Settings
from autoconv.tuning.bench import Clock

TOLD_S = 0.5
"""A stall that came to nothing is told of past this."""


class StallClock:
    """Counts the seconds that a process has spent timing inside its calls.

    Args:
        clock: Seconds.
        born: When the process began, by that clock. Default: now.

    Attributes:
        seconds: Those that count against the cap: under `auto`.
        all_seconds: Those under any policy.
    """

    def __init__(self, clock: Clock, born: float | None = None) -> None:
        self._clock = clock
        self._born = clock() if born is None else born
        self._told = False
        self.seconds = 0.0
        self.all_seconds = 0.0

    def left_s(self, settings: Settings) -> float:
        """Seconds that timing inside calls may still take."""
        age = self._clock() - self._born
        return settings.stall.seconds + settings.stall.share * age - self.seconds

    def add(self, seconds: float, *, capped: bool) -> None:
        """Count what timing inside a call took."""
        self.all_seconds += seconds
        if capped:
            self.seconds += seconds

    def tell_once(self, what: str, seconds: float, settings: Settings) -> None:
        """One line on stderr about the first stall, which a user may wonder about."""
        if self._told:
            return
        self._told = True
        stall, capped = settings.stall, settings.policy is Policy.AUTO
        most = f", {stall.seconds:g} s + {stall.share * 100:g}% of run time at most" if capped else ""
        line = (
            f"autoconv: {what} in {seconds:.1f} s; each new shape is timed once{most}; "
            "AUTOCONV_POLICY=record defers that to `autoconv sweep --pending`"
        )
        with contextlib.suppress(OSError, ValueError):  # stderr may be a file on a full disk, or closed
            print(line, file=sys.stderr)
