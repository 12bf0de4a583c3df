"""An estimate by a cost model: which problems it is unsure of, and how much there is to be gained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autoconv.algorithms import Candidate
from autoconv.counsellor import BROKEN
from autoconv.model.advice import Advice, Adviser
from autoconv.problem import Problem
from autoconv.sweep.order import UNKNOWN, Estimate, Estimator


class ModelEstimator:
    """An estimator whose gains and doubts are a model's, and whose times are those of another estimator.

    The gain is that of the candidate that the model takes to be the fastest, whether or not it is sure enough to choose
    it. The doubt is the share of its choice's time that a better one may save. What the model cannot tell of keeps the
    other estimate. Each problem is asked about once, as models take half a millisecond, and orders are made often.

    Args:
        adviser: The model at work on the device.
        candidates: The candidates of a problem there.
    """

    def __init__(self, adviser: Adviser, candidates: Callable[[Problem], tuple[Candidate, ...]]) -> None:
        self._adviser = adviser
        self._candidates = candidates
        self._said: dict[Problem, tuple[float, float] | None] = {}

    def over(self, times: Estimator) -> Estimator:
        """The estimator with these times."""
        return _Over(self, times)

    def gain_and_doubt(self, problem: Problem) -> tuple[float, float] | None:
        """What the model says of a problem; None where it can say nothing."""
        if problem not in self._said:
            try:
                self._said[problem] = _gain_and_doubt(self._adviser.advise(problem, self._candidates(problem)))
            except BROKEN:  # an order is no reason to end a sweep
                self._said[problem] = None
        return self._said[problem]


class _Over:
    """A model's gains and doubts over an estimator's times."""

    def __init__(self, model: ModelEstimator, times: Estimator) -> None:
        self._model = model
        self._times = times

    def estimate(self, problems: Sequence[Problem]) -> list[Estimate]:
        """One estimate a problem, in their order."""
        return [
            _joined(found, None if found == UNKNOWN else self._model.gain_and_doubt(problem))
            for problem, found in zip(problems, self._times.estimate(problems), strict=True)
        ]


def _joined(found: Estimate, said: tuple[float, float] | None) -> Estimate:
    return found if said is None else Estimate(found.native_us, *said)


def _gain_and_doubt(advice: Advice) -> tuple[float, float] | None:
    if not advice.forecasts or math.isnan(advice.worst_to_best):
        return None
    fastest = min(forecast.log_ratio for forecast in advice.forecasts)
    if not math.isfinite(fastest):
        return None
    return max(0.0, math.expm1(-fastest)), min(max(0.0, 1 - 1 / max(advice.worst_to_best, 1.0)), 1.0)
