"""A model's card for a report: who advises on a device, how good its choices are, and whether its intervals hold.

A card has means, 95th percentiles and extremes on what was held out, and no curve. Curves are made here, of at most
`MOST` stored problems and what the model says of them, which takes seconds. It may have learned from them, so that they
flatter it; where it did, that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autoconv.algorithms import algorithms
from autoconv.counsellor import BROKEN, describe
from autoconv.environment import Environment
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Selection, Store

if TYPE_CHECKING:
    from autoconv.model.choices import Choice
    from autoconv.model.cost_model import CostModel
    from autoconv.model.examples import Example

MOST = 600
"""Problems that curves are made of, spread evenly over those that are stored."""

FEWEST = 10
"""Problems of which a curve says anything."""

WAYS = ("predict", "auto", "always", "native", "neighbour", "winner")
"""The ways to choose that are shown, of those that a card judges."""

SHARES = tuple(round(0.5 + 0.005 * step, 3) for step in range(101))
"""Shares of the problems at which a curve is read: the better half is next to nothing for all."""


def model_cards(
    environments: Sequence[Environment], stores: Sequence[Store], settings: Settings, selection: Selection
) -> Iterator[dict[str, Any]]:
    """For each environment the model that advises there, with its card and curves of the selected problems, as plain
    values; or why none does.
    """
    for where in environments:
        ceilings = _ceilings(stores, where)
        told: dict[str, Any] = {"environment": where.id, "name": "", "why": ""}
        try:
            from autoconv.model.advisers import model_for

            model, told["why"] = model_for(where, ceilings, settings)
            if model is not None:
                told |= _told(model, where, stores, selection)
        except BROKEN as error:
            told["why"] = f"it cannot be used: {describe(error)}"
        yield told


def _ceilings(stores: Sequence[Store], where: Environment) -> Mapping[str, float]:
    """What a device can do at most, by its newest first run that says so."""
    known = [q for store in stores for q in store.qualifications() if q.environment == where.id and q.ceilings]
    return max(known, key=lambda q: (not q.origin, q.created)).ceilings if known else {}


def _told(model: CostModel, where: Environment, stores: Sequence[Store], selection: Selection) -> dict[str, Any]:
    judgements = {
        split: {way: asdict(found) for way, found in groups["all"].items() if way in WAYS}
        for split, groups in model.card.judgements.items()
        if "all" in groups
    }
    examples = _examples(stores, where, selection)
    return {
        "name": model.name,
        "problems": model.origin.problems,
        "devices": list(model.origin.devices),
        "judgements": judgements,
        "coverages": [asdict(found) for found in model.card.coverages],
        "curves": _curves(model, examples) if len(examples) >= FEWEST else {},
        "examples": len(examples),
        "seen": any(source.environment == where.id for source in model.origin.sources),
    }


def _examples(stores: Sequence[Store], where: Environment, selection: Selection) -> list[Example]:
    from autoconv.model.examples import read

    stored = ((store, problem) for store in stores for problem in store.problems(where.id))
    places = [(store, problem) for store, problem in stored if selection.takes_problem(problem.key)]
    some = MemoryStore()  # as an example of every problem takes a millisecond
    some.add_environment(where.id, where.identity, where.circumstances)
    for qualification in (q for store in stores for q in store.qualifications() if q.environment == where.id):
        some.qualify(qualification)
    for store, problem in places[:: max(1, -(-len(places) // MOST))]:
        some.add(problem, store.records(where.id, problem))
    return list(read(some, where.backend, tuple(algorithms())))


def _curves(model: CostModel, examples: Sequence[Example]) -> dict[str, list[float]]:
    """By way, the regret that is not exceeded on each of `SHARES` of the examples."""
    from autoconv.model.choices import Choice, always, automatic, predicting, winner

    found: dict[str, list[Choice]] = {way: [] for way in ("predict", "auto", "always", "native", "winner")}
    for example in examples:
        said = model.advise(example.problem, example.candidates, example.device.ceilings)
        found["predict"].append(predicting(example, said))
        found["auto"].append(automatic(example, said))
        found["always"].append(always(example, said))
        if example.native is not None:
            found["native"].append(Choice(example, example.native))
        found["winner"].append(Choice(example, winner(example)))
    return {way: _quantiles(choices) for way, choices in found.items() if choices}


def _quantiles(choices: Sequence[Choice]) -> list[float]:
    regrets = sorted(choice.regret for choice in choices if choice.place is not None)
    return [round(regrets[round(share * (len(regrets) - 1))], 6) for share in SHARES] if regrets else []
