"""Fitting: from a table of examples to forests, by scikit-learn. Nothing that serves a prediction imports this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from autoconv.model.examples import Table
from autoconv.model.features import Floats
from autoconv.model.forest import LEAVES, Node

MOST, LEAST = 1.0, -3.0
"""Log ratios are cut to these: whether a loser takes three times as long or ten is no matter."""

BAGS = 4
"""Forests of the ratio, whose mean is taken: on held-out networks four of 100 trees had 0.3 points less regret than one
of 300, and chose worse than native a fifth less often."""

RATIO = {"max_iter": 60, "learning_rate": 0.15, "max_leaf_nodes": 31, "min_samples_leaf": 8, "max_features": 0.3}
DOUBT = {"max_iter": 40, "learning_rate": 0.15, "max_leaf_nodes": 31, "min_samples_leaf": 20, "max_features": 0.3}
RISK = {"max_iter": 40, "learning_rate": 0.2, "max_leaf_nodes": 31, "min_samples_leaf": 8, "max_features": 0.3}


@dataclass(frozen=True)
class Grown:
    """A sum of fitted estimators, each times a weight.

    Attributes:
        estimators: The estimators.
    """

    estimators: tuple[Any, ...]

    def predict(self, rows: Floats) -> Floats:
        """The mean of what they predict."""
        found: Floats = np.mean([each.predict(rows) for each in self.estimators], axis=0)
        return found

    def trees(self) -> tuple[float, list[list[Node]]]:
        """Base and trees of the mean, for `forest.grown`."""
        share = 1 / len(self.estimators)
        base, trees = 0.0, []
        for each in self.estimators:
            # scikit-learn has no public way to these trees; `training` compares what is made of them with `predict`.
            base += share * float(np.ravel(each._baseline_prediction)[0])
            trees += [_nodes(stage[0].nodes, share) for stage in each._predictors]
        return base, trees


def _nodes(nodes: NDArray[Any], share: float) -> list[Node]:
    return [
        Node(
            int(node["feature_idx"]),
            float(node["num_threshold"]),
            int(node["left"]),
            int(node["right"]),
            share * float(node["value"]),
            bool(node["is_leaf"]),
        )
        for node in nodes
    ]


def fit_ratio(table: Table, rows: Floats, which: NDArray[np.bool_]) -> Grown:
    """What predicts the log ratio to native, from those rows of the table that are usable and not native's."""
    kept = which & known_ratio(table)
    target = np.clip(table.log_ratio[kept], LEAST, MOST)
    return Grown(tuple(_fit(RATIO, seed, rows[kept], target) for seed in range(BAGS)))


def fit_doubt(rows: Floats, errors: Floats, which: NDArray[np.bool_]) -> Grown:
    """What predicts how far off a ratio of a problem never seen is, from the errors of held-out predictions."""
    kept = which & np.isfinite(errors)
    return Grown((_fit(DOUBT, 100, rows[kept], np.minimum(np.abs(errors[kept]), MOST)),))


def fit_risk(table: Table, rows: Floats, which: NDArray[np.bool_]) -> Grown:
    """What predicts the probability that a candidate does not run accurately."""
    target = (~table.usable[which]).astype(np.float64)
    return Grown((_fit(RISK, 200, rows[which], target),))


def known_ratio(table: Table) -> NDArray[np.bool_]:
    """The rows whose ratio to native is learned: usable, not native's own, and of a problem that has a reference."""
    return table.usable & np.isfinite(table.log_ratio) & ~is_native(table)


def is_native(table: Table) -> NDArray[np.bool_]:
    """The rows of MLX's own convolution."""
    place = len(table.candidates[0]) - len(table.vocabulary.names) + table.vocabulary.names.index("native")
    first = np.zeros(len(table.example), dtype=np.bool_)
    first[table.first[:-1]] = True
    found: NDArray[np.bool_] = first & (table.candidates[:, place] == 1)
    return found


def _fit(options: dict[str, Any], seed: int, rows: Floats, target: Floats) -> Any:
    if options["max_leaf_nodes"] > LEAVES:
        msg = f"trees of {options['max_leaf_nodes']} leaves, where {LEAVES} are the most"
        raise ValueError(msg)
    # On one thread, so that the same measurements give the same bytes on any machine.
    with threadpool_limits(limits=1, user_api="openmp"):
        return HistGradientBoostingRegressor(random_state=seed, early_stopping=False, **options).fit(rows, target)


__all__: Sequence[str] = ("Grown", "fit_doubt", "fit_ratio", "fit_risk", "is_native", "known_ratio")
