"""Evaluation: a model's card made again, and the model judged on what it did not learn from. Imports scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoconv.algorithms import algorithms
from autoconv.errors import ModelError
from autoconv.model import learning, training
from autoconv.model.card import Card, Judgement
from autoconv.model.cost_model import CostModel
from autoconv.model.examples import distinct

MOST_DIFFERENCES = 3
"""That are told of."""


@dataclass(frozen=True)
class Judged:
    """How good a model is on problems that it did not learn from.

    Attributes:
        groups: Judgements by group and way.
        problems: How many it was judged on.
        learned: How many are left out, as it learned from their shapes.
    """

    groups: Mapping[str, Mapping[str, Judgement]]
    problems: int
    learned: int


def again(model: CostModel, databases: Sequence[Path], tell: Callable[[str], None] = lambda _: None) -> Card:
    """The card that a model of the same measurements has, by the databases that it names.

    Raises:
        ModelError: one of them is missing, or has other measurements now.
        StoreError: one cannot be read.
    """
    return training.card_of(learning.reproduced(model, databases), tell)


def differences(model: CostModel, card: Card) -> list[str]:
    """How a card differs from the one that a model carries, in words: the first few; empty where they are equal."""
    mine, other = dict(_leaves(model.card.as_dict())), dict(_leaves(card.as_dict()))
    changed = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    found = [f"{name}: {mine.get(name, 'none')} is now {other.get(name, 'none')}" for name in changed]
    more = len(found) - MOST_DIFFERENCES
    return [*found[:MOST_DIFFERENCES], *([f"and {more} others"] if more > 0 else [])]


def judge(
    model: CostModel, measured: Sequence[Path], learned_from: Sequence[Path], shapes: Collection[str] | None = None
) -> Judged:
    """A model judged on the measured problems of databases whose shapes it did not learn from.

    Args:
        model: The model.
        measured: The databases; of a problem that several have on the same device the first counts.
        learned_from: Among which those lie that the model names.
        shapes: The shapes to judge by (see `examples.shape_of`). Default: all.

    Raises:
        ModelError: nothing is left, or what it learned from is missing or has changed.
        StoreError: a database cannot be read.
    """
    known = {example.shape for example in learning.reproduced(model, learned_from).examples}
    backend = model.origin.backend
    with learning.opened(measured) as stores:
        examples = [example for _, example in distinct(stores, backend, tuple(algorithms()))]
    seen = [example for example in examples if shapes is None or example.shape in shapes]
    unseen = [example for example in seen if example.shape not in known]
    if not unseen:
        msg = (
            f"{model.name} learned from all {len(seen)} measured problems of it on {backend}: sweep others"
            if seen
            else f"nothing of it is measured on {backend}: sweep it first"
        )
        raise ModelError(msg)
    return Judged(training.judged(model, unseen), len(unseen), len(seen) - len(unseen))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of all that is no list or object; texts, as no NaN is equal to another."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, json.dumps(value)
        return
    for key, each in items:
        yield from _leaves(each, f"{name}, {key}" if name else str(key))
