"""Advice: what a cost model says of one problem's candidates, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from autoconv.algorithms import Candidate
from autoconv.problem import Problem

DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What comes of a model that is not what it should be, whether it is read or asked."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is thought of one candidate.

    Attributes:
        candidate: Its name.
        log_ratio: Natural logarithm of its time over native's, as expected; 0 for native itself.
        doubt: How far off that is expected to be, in the same unit; 0 for native.
    """

    candidate: str
    log_ratio: float
    doubt: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What a model says of a problem.

    Attributes:
        forecasts: One a candidate, the fastest first.
        worst_to_native: Upper end of the interval of the choice's time over native's; 1 where native is the choice,
            infinite where the model cannot tell.
        worst_to_best: Upper end of the interval of the choice's time over that of the best other candidate.
        safe: Whether the choice is surely no worse than native: enough under `predict`.
        sure: Whether it is that and surely close to the best as well: enough under `auto`.
        in_question: Names of the candidates that may still be the best, the most promising first; native is always
            among them where MLX has it.
        reason: Why, in words.
    """

    forecasts: tuple[Forecast, ...]
    worst_to_native: float = math.inf
    worst_to_best: float = math.inf
    safe: bool = False
    sure: bool = False
    in_question: tuple[str, ...] = ()
    reason: str = ""

    @property
    def choice(self) -> Forecast:
        """The candidate that the model takes: the first."""
        return self.forecasts[0]


class Adviser(Protocol):
    """What advises on problems of one environment that were never timed.

    It may be called from any thread, and imports neither scikit-learn nor joblib.
    """

    @property
    def name(self) -> str:
        """What it is, for people: `cuda.npz, trained on 8100 problems of 2 devices`."""
        ...

    def advise(self, problem: Problem, candidates: tuple[Candidate, ...]) -> Advice:
        """What it says of a problem, whose candidates are those that keep to the limits of the call."""
        ...
