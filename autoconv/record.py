"""A record: one candidate's result for one problem in one environment."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL = 500
"""Longest `detail` that is kept, in characters."""


def environment_id(identity: Mapping[str, object]) -> str:
    """Sixteen hexadecimal digits of an identity's SHA-256, by which records name their environment."""
    text = json.dumps(dict(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Status(StrEnum):
    """How a candidate fared. Only `ok` records can win."""

    OK = "ok"
    FAILED = "failed"
    """It raised an error."""
    OUT_OF_MEMORY = "out_of_memory"
    """It raised an error of the allocator."""
    WRONG = "wrong"
    """Its result is no approximation of the convolution: not finite where it should be, or far off."""
    INACCURATE = "inaccurate"
    """Its error is over the bound it was held to; not timed."""
    TOO_SLOW = "too_slow"
    """By its FLOPs or bytes it cannot come within three times the best; not started."""
    OVER_MEMORY = "over_memory"
    """What it takes is over the memory limit it was held to; not started."""
    NOT_STARTED = "not_started"
    """It might end the process, as native might on an array of more than 2^31-1 elements; left out of this one."""
    CRASHED = "crashed"
    """The process ended while it ran, or lost the device; never tried again for this problem."""


@dataclass(frozen=True, slots=True)
class Record:
    """One candidate's result.

    Attributes:
        problem: The problem's key.
        environment: The environment's id.
        algorithm: Name of the algorithm.
        version: Version of the algorithm.
        parameters: The candidate's parameters, as `name=value,name=value` sorted by name; empty if it has none.
        status: How it fared.
        samples_us: Times of one convolution in microseconds, in the order taken. Samples at even positions choose a
            winner, those at odd positions judge it.
        error: Relative L2 error at the sampled positions against float64, None where it gave no result.
        workspace_bytes: Estimated bytes beyond input, weight and output.
        peak_bytes: Measured peak of device memory during one run, its input, weight and output included; None where
            not measured, as inside users' calls, whose counter it would reset.
        detail: What happened, in words: an error's message, or the bound that was passed.
        run: Identifier of the tuner's run: only times of one run were taken side by side.
        created: Seconds since the epoch.
        library: Version of autoconv that made the record.
        origin: Empty for what was measured here; for what was imported the first twelve hexadecimal digits of the
            file's SHA-256.
    """

    problem: str
    environment: str
    algorithm: str
    version: int
    parameters: str
    status: Status
    samples_us: tuple[float, ...] = ()
    error: float | None = None
    workspace_bytes: int | None = None
    peak_bytes: int | None = None
    detail: str = ""
    run: str = ""
    created: float = 0.0
    library: str = ""
    origin: str = ""

    @property
    def candidate(self) -> str:
        """The candidate's name: `kd_decomposition(sum=float32)`, or `native` where there are no parameters."""
        return f"{self.algorithm}({self.parameters})" if self.parameters else self.algorithm

    @property
    def choosing_us(self) -> tuple[float, ...]:
        """The samples that choose."""
        return self.samples_us[::2]

    @property
    def judging_us(self) -> tuple[float, ...]:
        """The samples that judge, taken in turn with those that choose."""
        return self.samples_us[1::2]

    @property
    def median_us(self) -> float | None:
        """Median of all samples in microseconds, None where there are none."""
        return statistics.median(self.samples_us) if self.samples_us else None

    @property
    def spread(self) -> float | None:
        """Median absolute deviation over the median, None where there are fewer than two samples."""
        if len(self.samples_us) < 2:
            return None
        middle = statistics.median(self.samples_us)
        return statistics.median(abs(s - middle) for s in self.samples_us) / middle
