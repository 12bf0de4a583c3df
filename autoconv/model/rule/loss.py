"""What a choice for each case loses: against the best there, and against MLX's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoconv.decision import NATIVE
from autoconv.model.bounds import WORSE_BY
from autoconv.model.rule.case import JUDGING, Case

WORSE = 1 + WORSE_BY
"""Times native from which a choice counts as worse."""


@dataclass(frozen=True)
class Loss:
    """What some choices lose, judged by the samples that chose nothing.

    Regret is the time over the least time measured, less one: 0.25 is a quarter more.

    Attributes:
        cases: How many cases it is over.
        mean: Mean regret.
        p95: Its 95th percentile.
        worst: The largest.
        compared: In how many of them that can run which would be taken otherwise, native; all that follows is over
            these.
        gain: Geometric mean of native's time over that of the choice.
        weighted: The same of the sums of all times.
        worse: Share of the cases in which the choice is worse than native by over 2%.
        worst_to_native: The largest time of a choice over native's.
    """

    cases: int
    mean: float
    p95: float
    worst: float
    compared: int
    gain: float
    weighted: float
    worse: float
    worst_to_native: float

    def __str__(self) -> str:
        """The regret in one line."""
        return f"mean {self.mean:.1%}, 95th percentile {self.p95:.1%}, worst {self.worst:.1%}"


NOTHING = Loss(0, 0.0, 0.0, 0.0, 0, 1.0, 1.0, 0.0, 1.0)
"""That of no cases."""


def loss(cases: Sequence[Case], taken_us: Sequence[float], otherwise: str = NATIVE) -> Loss:
    """The loss of what takes so long in each case."""
    if not cases:
        return NOTHING
    taken = np.array(taken_us)
    regret = taken / np.array([case.best_us(JUDGING) for case in cases]) - 1
    compared = [place for place, case in enumerate(cases) if otherwise in case.times_us]
    found = Loss(
        len(cases), float(regret.mean()), float(np.quantile(regret, 0.95)), float(regret.max()), 0, 1.0, 1.0, 0.0, 1.0
    )
    if not compared:
        return found
    taken = taken[compared]
    native = np.array([cases[place].time_us(otherwise, JUDGING) for place in compared])
    return replace(
        found,
        compared=len(compared),
        gain=float(np.exp(np.log(native / taken).mean())),
        weighted=float(native.sum() / taken.sum()),
        worse=float((taken > WORSE * native).mean()),
        worst_to_native=float((taken / native).max()),
    )


def loss_of_choices(cases: Sequence[Case], choices: Sequence[str], otherwise: str = NATIVE) -> Loss:
    """The loss of one choice a case; one that may not run there means `otherwise`."""
    return loss(cases, [c.time_us(name, JUDGING, otherwise) for c, name in zip(cases, choices, strict=True)], otherwise)
