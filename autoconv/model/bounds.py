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

ALPHAS_NATIVE = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)
"""Shares of new networks' fastest candidates, by forecast, that may be past their interval against native: the first is
taken with which few enough choices are worse. It depends on how often another than native is chosen, which on GPUs is
one time in ten and on CPUs two in three."""

WORSE_BY = 0.02
MAX_WORSE_SHARE = 0.0075
"""Choices may be slower than native by more than the former on the latter share of new problems (conformal risk
control, Angelopoulos and others, 2022: the share is that of held-out problems with one more that is worse)."""

ALPHA_BEST = 0.1
"""The same of choices against the best other candidate."""

ALPHA_QUESTION = 0.1
"""Share of new networks' problems whose best candidate may be left out of those in question."""

MAX_RISK = 0.05
"""A candidate that is unusable with more than this probability, as the model has it, is not chosen by it."""

WORSE = 1.0
"""Another than native is chosen if its time is surely no more than this times native's."""

TIMED = 0.2
"""Share of held-out problems that the model is not sure of: how close to the best a choice must surely be follows."""

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
        doubt: Square root of the scale of the error of that (see `expected`); what intervals are measured in.
        risk: Probability that it does not run accurately.
    """

    candidate: str
    log_ratio: float
    doubt: float
    risk: float


def expected(candidate: str, log_ratio: float, doubt: float, risk: float) -> Expected:
    """What forests say of a candidate, within what makes sense; of native its ratio is known."""
    if candidate == NATIVE:
        return Expected(candidate, 0.0, 0.0, min(max(risk, 0.0), 1.0))
    # Under a square root, since what is learned of doubts is doubtful itself: so damped, choices no worse than native
    # on half a percent of held-out problems saved two thirds of what could be saved, and undamped one third.
    return Expected(candidate, log_ratio, math.sqrt(max(doubt, LEAST_DOUBT)), min(max(risk, 0.0), 1.0))


@dataclass(frozen=True)
class Bounds:
    """Widths of intervals in units of doubt, by group: an algorithm chosen, or all.

    Attributes:
        native: Of the candidate that is the fastest by forecast, against native.
        best: Of the choice against the best other candidate.
        question: Of two candidates of which each may be the better one.
        close: A choice is sure if its time is surely no more than this times that of the best other candidate.
        alpha: Share of new networks that may be past the interval against native.
    """

    native: Mapping[str, float]
    best: Mapping[str, float]
    question: Mapping[str, float]
    close: float = 1.0
    alpha: float = ALPHAS_NATIVE[-1]


UNBOUNDED = Bounds({ROOT: math.inf}, {ROOT: math.inf}, {ROOT: math.inf})


def fastest(expected: Sequence[Expected]) -> int:
    """The place of the fastest by forecast, of those that are not risky; of risky ones alone the least risky."""
    safe = [i for i, e in enumerate(expected) if e.risk <= MAX_RISK or e.candidate == NATIVE]
    if not safe:
        return min(range(len(expected)), key=lambda i: (expected[i].risk, expected[i].log_ratio, i))
    return min(safe, key=lambda i: (expected[i].log_ratio, i))


def chosen(expected: Sequence[Expected], native: Mapping[str, float]) -> int:
    """The place of the choice: the fastest by forecast if it is surely no worse than native, else native.

    Args:
        expected: One a candidate; native is the first where MLX has it.
        native: Widths of intervals against native.
    """
    first = fastest(expected)
    if expected[0].candidate != NATIVE or first == 0:
        return first
    return first if worst_to_native(expected[first], native) <= WORSE else 0


def worst_to_native(taken: Expected, native: Mapping[str, float]) -> float:
    """The upper end of the interval of a candidate's time over native's; 1 for native."""
    if taken.candidate == NATIVE:
        return 1.0
    return _exp(taken.log_ratio + _width(native, group_of(taken.candidate)) * taken.doubt)


def worst_to_best(expected: Sequence[Expected], choice: int, best: Mapping[str, float]) -> float:
    """The upper end of the interval of a choice's time over that of the best other; 0 where there is none."""
    other = rival(expected, choice)
    if other is None:
        return 0.0
    width = _width(best, group_of(expected[choice].candidate))
    return _exp(_gap(expected, choice, other) + width * _doubt(expected, choice, other))


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
    choice = chosen(expected, bounds.native)
    taken, has_native = expected[choice], expected[0].candidate == NATIVE
    native = worst_to_native(taken, bounds.native) if has_native else math.inf
    best = worst_to_best(expected, choice, bounds.best)
    safe = taken.risk <= MAX_RISK
    ranked = sorted(range(len(expected)), key=lambda i: (i != choice, expected[i].log_ratio, i))
    forecasts = tuple(_forecast(expected[i]) for i in ranked)
    reason = _reason(expected, choice, native, best)
    return Advice(forecasts, native, best, safe, safe and best <= bounds.close, in_question(expected, bounds), reason)


def _forecast(expected: Expected) -> Forecast:
    """What is told of a candidate: its doubt as it was learned, in the unit of its ratio."""
    return Forecast(expected.candidate, expected.log_ratio, expected.doubt * expected.doubt)


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


def _reason(expected: Sequence[Expected], choice: int, native: float, best: float) -> str:
    taken, first = expected[choice], expected[fastest(expected)]
    if taken.candidate != NATIVE and native < math.inf:
        said = f"the model expects {_exp(taken.log_ratio):.2f} of native's time, at most {native:.2f}"
    elif taken is first:
        said = f"the model takes {taken.candidate} for the fastest"
    else:
        said = f"the model keeps native, since {first.candidate} may be slower"
    if taken.risk > MAX_RISK:
        said = f"{said}, and that fails or is inaccurate with a probability of {taken.risk:.0%}"
    return f"{said}; at most {best:.2f} times what the best other takes" if best else said
