"""Validation: what a model says of problems that it did not see, and how good its choices are.

A model is fitted on all folds but one and asked about that one; the widths of its intervals come from yet other folds,
whose own forecasts are by models that have seen that one: nested, all would be fitted eight times as often.
Choices are judged by the samples that did not choose (`record.Record.judging_us`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoconv.model import bounds as b
from autoconv.model import fitting
from autoconv.model.advice import Advice
from autoconv.model.bounds import Bounds, Expected
from autoconv.model.choices import winner
from autoconv.model.examples import Table
from autoconv.model.features import Floats

Folds = NDArray[np.intp]
Scores = defaultdict[str, list[tuple[str, float]]]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What is expected of every row of a table.

    Attributes:
        log_ratio: `(rows,)` logarithms of times over native's.
        doubt: `(rows,)` scales of their errors.
        risk: `(rows,)` probabilities that a candidate does not run accurately.
    """

    log_ratio: Floats
    doubt: Floats
    risk: Floats

    def of(self, table: Table, example: int) -> list[Expected]:
        """Those of one example."""
        rows = range(table.first[example], table.first[example + 1])
        names = [c.name for c in table.examples[example].candidates]
        return [
            b.expected(name, float(self.log_ratio[row]), float(self.doubt[row]), float(self.risk[row]))
            for name, row in zip(names, rows, strict=True)
        ]


def held_out(table: Table, folds: Folds, *, learn: NDArray[np.bool_] | None = None) -> Forecasts:
    """Forecasts of each fold by a model that was fitted on the others.

    Doubts are learned from the errors of such forecasts, and those of a fold from the errors on the others.

    Args:
        table: The examples.
        folds: `(examples,)` the fold of each.
        learn: `(examples,)` those that may be learned from. Default: all.
    """
    rows, fold = table.rows, folds[table.example]
    may = np.ones(len(rows), dtype=np.bool_) if learn is None else learn[table.example]
    ratio, risk, doubt = (np.zeros(len(rows)) for _ in range(3))
    for number in np.unique(fold):
        here, others = fold == number, (fold != number) & may
        ratio[here] = fitting.fit_ratio(table, rows, others).predict(rows[here])
        risk[here] = fitting.fit_risk(table, rows, others).predict(rows[here])
    errors = misses(table, Forecasts(ratio, doubt, risk))
    for number in np.unique(fold):
        here = fold == number
        doubt[here] = fitting.fit_doubt(rows, errors, ~here & may).predict(rows[here])
    return Forecasts(ratio, doubt, risk)


def forecast_by(table: Table, held: Forecasts, *, learn: NDArray[np.bool_]) -> Forecasts:
    """Forecasts of every example by one model of those to learn from, whose own forecasts were held out."""
    rows, may = table.rows, learn[table.example]
    return Forecasts(
        fitting.fit_ratio(table, rows, may).predict(rows),
        fitting.fit_doubt(rows, misses(table, held), may).predict(rows),
        fitting.fit_risk(table, rows, may).predict(rows),
    )


def misses(table: Table, forecasts: Forecasts) -> Floats:
    """`(rows,)` forecast log ratios less the measured ones, cut as they are learned; NaN where none is known."""
    cut = np.clip(table.log_ratio, fitting.LEAST, fitting.MOST)
    return np.where(fitting.known_ratio(table), forecasts.log_ratio - cut, np.nan)


def calibrate(table: Table, forecasts: Forecasts, networks: Sequence[str], which: NDArray[np.bool_]) -> Bounds:
    """The widths that hold for forecasts of held-out networks, by the choices among those examples.

    Scores of a choice are of the samples that judge, which neither chose a winner nor were learned from; the score of
    those in question is of the winner by the samples that choose, as they are whom a tuner would find it among.
    """
    places = [place for place in np.flatnonzero(which).tolist() if len(table.examples[place].candidates) > 1]
    said = {place: forecasts.of(table, place) for place in places}
    native: Scores = defaultdict(list)
    best: Scores = defaultdict(list)
    question: Scores = defaultdict(list)
    for place in places:
        example, first = table.examples[place], b.fastest(said[place])
        question[b.ROOT].append((networks[place], b.score_question(said[place], winner(example))))
        if example.native is not None and first != example.native and example.usable[first]:
            measured = math.log(example.judging_us[first] / example.judging_us[0])
            group = b.group_of(said[place][first].candidate)
            native[group].append((networks[place], b.score_native(said[place], first, measured)))
    for alpha in b.ALPHAS_NATIVE:
        of_native = b.calibrated(native, alpha)
        choices = {place: b.chosen(said[place], of_native) for place in places}
        if _worse(table, choices) + 1 <= b.MAX_WORSE_SHARE * (len(places) + 1):
            break
    for place, choice in choices.items():
        example, other = table.examples[place], b.rival(said[place], choice)
        rest = [t for i, t in enumerate(example.judging_us) if i != choice and example.usable[i]]
        if other is not None and rest and example.usable[choice]:  # whether it runs is what `risk` is there for
            measured = math.log(example.judging_us[choice] / min(rest))
            group = b.group_of(said[place][choice].candidate)
            best[group].append((networks[place], b.score_best(said[place], choice, other, measured)))
    of_best = b.calibrated(best, b.ALPHA_BEST)
    ends = sorted(b.worst_to_best(said[place], choice, of_best) for place, choice in choices.items())
    close = ends[math.ceil((1 - b.TIMED) * len(ends)) - 1] if ends else 0.0
    return Bounds(of_native, of_best, b.calibrated(question, b.ALPHA_QUESTION), max(1.0, close), alpha)


def _worse(table: Table, choices: Mapping[int, int]) -> int:
    """On how many examples a choice was slower than native, by more than is tolerated."""
    pairs = [(table.examples[place], choice) for place, choice in choices.items()]
    return sum(
        example.judging_us[choice] > (1 + b.WORSE_BY) * example.judging_us[0]
        for example, choice in pairs
        if example.native is not None and example.usable[choice]
    )


def calibrate_apart(
    table: Table, forecasts: Forecasts, networks: Sequence[str], folds: Folds, among: NDArray[np.bool_] | None = None
) -> list[Bounds]:
    """For each fold the widths that come from the other folds, from all examples or from those `among` them."""
    every = np.ones(len(folds), dtype=np.bool_) if among is None else among
    return [calibrate(table, forecasts, networks, every & (folds != n)) for n in range(int(folds.max()) + 1)]


def advised(
    table: Table, forecasts: Forecasts, widths: Sequence[Bounds], folds: Folds, which: NDArray[np.bool_] | None = None
) -> list[Advice]:
    """The advice on every example, or on which, by the widths of its fold."""
    places = range(len(table.examples)) if which is None else np.flatnonzero(which).tolist()
    return [b.advice(forecasts.of(table, place), widths[folds[place]]) for place in places]


def cross_advised(table: Table, forecasts: Forecasts, networks: Sequence[str], folds: Folds) -> list[Advice]:
    """The advice on every example, by widths that come from the other folds."""
    return advised(table, forecasts, calibrate_apart(table, forecasts, networks, folds), folds)
