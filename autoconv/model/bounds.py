"""From forecasts to advice: how wide a forecast's interval is, and whom it leaves in question.

Intervals are conformal: a score tells how far a past choice was off, in units of its doubt, and a quantile of the
scores of choices made on held-out networks is the width that holds for a new one. The score is of the choice, after it
was made, since calibrating each candidate alone is voided by taking the best of them. Networks weigh the same, whatever
their number of layers, and one more network whose score is infinite stands for the new one: the quantile of `alpha`
needs at least `1 / alpha` networks (Lee, Barber and Willett, *Distribution-free inference with hierarchical data*,
2023). A group with fewer takes its parent's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoconv.decision import NATIVE
from autoconv.model.advice import Advice, Forecast

ALPHA_NATIVE = 0.05
"""Share of new networks' choices that may be past the upper end of their interval against native."""

ALPHA_BEST = 0.1
"""The same against the best other candidate."""

ALPHA_QUESTION = 0.1
"""Share of new networks' problems whose best candidate may be left out of those in question."""

MAX_RISK = 0.02
"""A candidate that is unusable with more than this probability, as the model has it, is not chosen by it."""

WORSE = 1.0
"""A choice is safe if its time is surely no more than this times native's."""

CLOSE = 1.10
"""A choice is sure if it is safe and its time surely no more than this times that of the best other candidate."""

LEAST_DOUBT = 0.01
"""What no doubt is below: what times repeat to."""

ROOT = "all"
"""The group that every choice belongs to."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the forests say of one candidate.

    Attributes:
        candidate: Its name.
        log_ratio: Logarithm of its time over native's.
        doubt: Scale of the error of that.
        risk: Probability that it does not run accurately.
    """

    candidate: str
    log_ratio: float
    doubt: float
    risk: float


@dataclass(frozen=True)
class Bounds:
    """Widths of intervals in units of doubt, by group: an algorithm chosen, or all.

    Attributes:
        native: Of the choice against native.
        best: Of the choice against the best other candidate.
        question: Of two candidates of which each may be the better one.
    """

    native: Mapping[str, float]
    best: Mapping[str, float]
    question: Mapping[str, float]


UNBOUNDED = Bounds({ROOT: math.inf}, {ROOT: math.inf}, {ROOT: math.inf})


def chosen(expected: Sequence[Expected]) -> int:
    """The place of the choice: the fastest of those that are not risky; of risky ones alone the least risky."""
    safe = [i for i, e in enumerate(expected) if e.risk <= MAX_RISK or e.candidate == NATIVE]
    if not safe:
        return min(range(len(expected)), key=lambda i: (expected[i].risk, expected[i].log_ratio, i))
    return min(safe, key=lambda i: (expected[i].log_ratio, i))


def rival(expected: Sequence[Expected], choice: int) -> int | None:
    """The place of the fastest other candidate, risky ones too; None where there is none."""
    others = [i for i in range(len(expected)) if i != choice]
    return min(others, key=lambda i: (expected[i].log_ratio, i)) if others else None


def score_native(expected: Sequence[Expected], choice: int, log_ratio: float) -> float:
    """How far the choice's time over native's was above its forecast, in doubts; its measured logarithm is given."""
    return (log_ratio - expected[choice].log_ratio) / expected[choice].doubt


def score_best(expected: Sequence[Expected], choice: int, other: int, log_ratio: float) -> float:
    """How far the choice's time over that of the best other was above the forecast of the rival, in doubts."""
    return (log_ratio - _gap(expected, choice, other)) / _doubt(expected, choice, other)


def score_question(expected: Sequence[Expected], best: int) -> float:
    """The least width at which the best candidate, known by now, is still in question."""
    mine = expected[best]
    return max(
        (mine.log_ratio - other.log_ratio) / (mine.doubt + other.doubt) for other in expected if other is not mine
    )


def _gap(expected: Sequence[Expected], choice: int, other: int) -> float:
    return expected[choice].log_ratio - expected[other].log_ratio


def _doubt(expected: Sequence[Expected], choice: int, other: int) -> float:
    return math.hypot(expected[choice].doubt, expected[other].doubt)


def quantile(scores: Sequence[tuple[str, float]], alpha: float) -> float:
    """The width that a new network's score is above with a probability of at most `alpha`; infinite if none is known.

    Args:
        scores: Networks and scores of their choices.
        alpha: Between 0 and 1.
    """
    sizes: dict[str, int] = defaultdict(int)
    for network, _ in scores:
        sizes[network] += 1
    total = 0.0
    for network, score in sorted(scores, key=lambda pair: pair[1]):
        total += 1 / ((len(sizes) + 1) * sizes[network])
        if total >= 1 - alpha - 1e-12:
            return score
    return math.inf


def calibrated(scores: Mapping[str, Sequence[tuple[str, float]]], alpha: float) -> dict[str, float]:
    """The width of every group with at least `1 / alpha` networks, and of all."""
    every = [pair for found in scores.values() for pair in found]
    widths = {ROOT: max(0.0, quantile(every, alpha))}
    for group, found in scores.items():
        if len({network for network, _ in found}) >= 1 / alpha:
            widths[group] = max(0.0, quantile(found, alpha))
    return widths


def group_of(candidate: str) -> str:
    """The group of a choice: its algorithm."""
    return candidate.partition("(")[0]


def advice(expected: Sequence[Expected], bounds: Bounds) -> Advice:
    """What follows of what is expected.

    Args:
        expected: One a candidate; native is the first where MLX has it.
        bounds: The widths of intervals.
    """
    choice = chosen(expected)
    taken, group = expected[choice], group_of(expected[choice].candidate)
    has_native = expected[0].candidate == NATIVE
    width = _width(bounds.native, group)
    worst_native = 1.0 if choice == 0 and has_native else _exp(taken.log_ratio + width * taken.doubt)
    if not has_native:
        worst_native = math.inf
    other = rival(expected, choice)
    worst_best = 0.0
    if other is not None:
        worst_best = _exp(_gap(expected, choice, other) + _width(bounds.best, group) * _doubt(expected, choice, other))
    runs = taken.risk <= MAX_RISK
    safe = runs and (worst_native <= WORSE or not has_native)
    sure = safe and worst_best <= CLOSE
    ranked = sorted(range(len(expected)), key=lambda i: (i != choice, expected[i].log_ratio, i))
    forecasts = tuple(Forecast(expected[i].candidate, expected[i].log_ratio, expected[i].doubt) for i in ranked)
    return Advice(
        forecasts,
        worst_native,
        worst_best,
        safe,
        sure,
        in_question(expected, bounds),
        _reason(taken, worst_native, worst_best, other, expected),
    )


def in_question(expected: Sequence[Expected], bounds: Bounds) -> tuple[str, ...]:
    """Names of the candidates that may be the best, the most promising first, and of native."""
    width = _width(bounds.question, ROOT)
    least = min(_above(e.log_ratio, width, e.doubt) for e in expected)
    kept = [
        (e.log_ratio, i, e.candidate)
        for i, e in enumerate(expected)
        if e.candidate == NATIVE or _above(e.log_ratio, -width, e.doubt) <= least
    ]
    return tuple(name for *_, name in sorted(kept))


def _above(middle: float, width: float, doubt: float) -> float:
    return middle + width * doubt if doubt else middle


def _width(widths: Mapping[str, float], group: str) -> float:
    return widths.get(group, widths.get(ROOT, math.inf))


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf


def _reason(
    taken: Expected, worst_native: float, worst_best: float, other: int | None, expected: Sequence[Expected]
) -> str:
    if taken.candidate == NATIVE:
        start = "the model keeps native"
    elif worst_native < math.inf:
        start = f"the model expects {_exp(taken.log_ratio):.2f} of native's time, at most {worst_native:.2f}"
    else:
        start = "the model takes it for the fastest"
    if taken.risk > MAX_RISK:
        start += f", and that it fails or is inaccurate with a probability of {min(taken.risk, 1.0):.0%}"
    if other is None:
        return start
    return f"{start}; at most {worst_best:.2f} times that of {expected[other].candidate}, or whatever else is best"
