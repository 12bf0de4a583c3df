"""Other ways to choose, which a model is compared with on its card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoconv.algorithms._mlx import metal_decomposes
from autoconv.model.choices import Choice, winner
from autoconv.model.examples import STAND_IN, Example
from autoconv.model.validation import Folds
from autoconv.sweep.order import features

_BLOCK = 256


def native(example: Example) -> Choice:
    """MLX's own; where it does not run, as for groups, the fastest, so that only choices are compared."""
    return Choice(example, example.native if example.native is not None else winner(example))


def best(example: Example) -> Choice:
    """What the samples that choose say: its regret, by those that judge, is the noise below all other figures."""
    return Choice(example, winner(example))


def fixed_rule(example: Example) -> Choice:
    """MLX's rule of Metal, wherever it is: the decomposition where its guard holds, else native."""
    place = example.place(STAND_IN) if metal_decomposes(example.problem) else None
    return Choice(example, place) if place is not None else native(example)


def neighbours(examples: Sequence[Example], folds: Folds) -> list[Choice]:
    """Of each example what won on the nearest problem of another fold; native where that does not run here."""
    rows = features([e.problem for e in examples]).astype(np.float32)
    winners = [e.candidates[winner(e)].name for e in examples]
    found: list[Choice] = []
    for start in range(0, len(examples), _BLOCK):
        block = rows[start : start + _BLOCK]
        far = ((block**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1)) - 2 * block @ rows.T
        far[folds[start : start + _BLOCK, None] == folds] = np.inf
        for example, near in zip(examples[start : start + _BLOCK], far.argmin(axis=1).tolist(), strict=True):
            place = example.place(winners[near])
            found.append(Choice(example, place) if place is not None else native(example))
    return found
