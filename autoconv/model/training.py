"""Training: from databases to a model with its card. Imports scikit-learn."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sklearn
from numpy.typing import NDArray

from autoconv._version import __version__
from autoconv.algorithms import Algorithm, algorithms
from autoconv.errors import ModelError
from autoconv.model import baselines, fitting
from autoconv.model import bounds as b
from autoconv.model.advice import Advice
from autoconv.model.bounds import Bounds
from autoconv.model.card import Card, Coverage, Judgement, judge
from autoconv.model.choices import Choice, always, automatic, predicting
from autoconv.model.cost_model import CostModel, Origin, Source
from autoconv.model.examples import Example, Table, distinct, networks, spread, tabulate
from autoconv.model.features import Floats
from autoconv.model.forest import Forests, grown
from autoconv.model.validation import (
    Folds,
    Forecasts,
    advised,
    calibrate,
    calibrate_apart,
    cross_advised,
    forecast_by,
    held_out,
    misses,
)
from autoconv.store import Store

FOLDS = 8
"""Parts of which each is held out once."""

LEAST_PROBLEMS = 150
"""Problems below which nothing is trained."""

AGREE = 1e-9
"""How closely the arrays must predict what the estimators do."""

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes:
        model: The model as it serves.
        estimators: The fitted estimators of log ratio, doubt and risk, by name.
    """

    model: CostModel
    estimators: Mapping[str, fitting.Grown]


@dataclass(frozen=True, eq=False)
class Material:
    """Examples of one backend, and where they come from.

    Attributes:
        backend: The backend.
        examples: The examples, each problem on each device once.
        sources: What is recorded of the databases.
    """

    backend: str
    examples: tuple[Example, ...]
    sources: tuple[Source, ...]


def material(stores: Mapping[str, Store], backend: str, among: Sequence[Algorithm] | None = None) -> Material:
    """What databases, by name, have to learn from; of a problem that several have on the same device the first counts.

    Raises:
        ModelError: it is too little.
    """
    known = tuple(algorithms() if among is None else among)
    found: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for name, example in distinct(stores, backend, known):
        found[name, example.device.environment].append(example)
    examples = [example for those in found.values() for example in those]
    sources = []
    for (name, where), those in found.items():
        device = those[0].device
        sources.append(Source(name, digest(those), where, device.name, dict(device.ceilings), len(those)))
    if len(examples) < LEAST_PROBLEMS:
        msg = (
            f"{len(examples)} convolutions are measured on {backend}, {LEAST_PROBLEMS} are the least to learn from; "
            "sweep more: autoconv sweep --random 300"
        )
        raise ModelError(msg)
    return Material(backend, tuple(examples), tuple(sources))


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 of what is learned from some examples, in whatever order they come."""
    lines = sorted(
        json.dumps(
            [
                e.device.environment,
                e.problem.key,
                [c.name for c in e.candidates],
                e.choosing_us,
                e.judging_us,
                e.usable,
                sorted(e.device.ceilings.items()),
            ]
        )
        for e in examples
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def train(found: Material, *, created: float = 0.0, tell: Tell = lambda _: None) -> Trained:
    """A model of everything, with intervals and a card from models that saw only parts.

    The same material gives the same model, bit for bit.

    Args:
        found: What to learn from.
        created: When, in seconds since the epoch.
        tell: Called with what is being done, for people who wait.

    Raises:
        ModelError: the arrays do not predict what scikit-learn does.
    """
    held = _hold_out(found, tell)
    card = _card(held, tell)
    tell("fitting")
    table = held.table
    rows, every = table.rows, np.ones(len(table.example), dtype=np.bool_)
    errors = misses(table, held.forecasts)
    estimators = {
        "log_ratio": fitting.fit_ratio(table, rows, every),
        "doubt": fitting.fit_doubt(rows, errors, every),
        "risk": fitting.fit_risk(table, rows, every),
    }
    forests = grown([estimators[name].trees() for name in ("log_ratio", "doubt", "risk")], table.problems.shape[1])
    _compare(forests, estimators, table, rows)
    model = CostModel(
        origin=Origin(
            found.backend,
            found.sources,
            {a.name: a.version for a in algorithms() if a.name in table.vocabulary.words},
            libraries(),
            created,
        ),
        vocabulary=table.vocabulary,
        forests=forests,
        bounds=held.bounds,
        lowest=table.problems.min(axis=0),
        highest=table.problems.max(axis=0),
        dtypes=frozenset(e.problem.dtype for e in found.examples),
        card=card,
    )
    return Trained(model, estimators)


def card_of(found: Material, tell: Tell = lambda _: None) -> Card:
    """The card that a model of this material has."""
    return _card(_hold_out(found, tell), tell)


def libraries() -> dict[str, str]:
    """Versions of the libraries on which a model's numbers depend."""
    return {"autoconv": __version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__}


def judged(model: CostModel, examples: Sequence[Example]) -> Mapping[str, Mapping[str, Judgement]]:
    """Judgements of a finished model on examples that it did not learn from, by group and way."""
    said = [model.advise(e.problem, e.candidates, e.device.ceilings) for e in examples]
    return _groups(examples, networks(examples), _ways(examples, said))


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """What models say of the networks that they did not see.

    Attributes:
        table: The examples.
        groups: The network of each.
        folds: The fold of each, by network.
        forecasts: Those of models that did not see the fold.
        bounds: The widths that hold for these.
    """

    table: Table
    groups: Sequence[str]
    folds: Folds
    forecasts: Forecasts
    bounds: Bounds


def _hold_out(found: Material, tell: Tell) -> _HeldOut:
    tell("reading features")
    table = tabulate(found.examples, found.backend)
    groups = networks(found.examples)
    folds = spread(groups, FOLDS)
    tell("holding out networks")
    forecasts = held_out(table, folds)
    every = np.ones(len(table.examples), dtype=np.bool_)
    return _HeldOut(table, groups, folds, forecasts, calibrate(table, forecasts, groups, every))


def _compare(forests: Forests, estimators: Mapping[str, fitting.Grown], table: Table, rows: Floats) -> None:
    """Refuse arrays that do not predict what the estimators do, on some of the examples."""
    for place in range(0, len(table.examples), max(1, len(table.examples) // 200)):
        here = slice(table.first[place], table.first[place + 1])
        mine = forests.predict(table.problems[place], table.candidates[here])
        theirs = np.stack([estimators[name].predict(rows[here]) for name in ("log_ratio", "doubt", "risk")])
        if np.abs(mine - theirs).max() > AGREE:
            msg = f"the trees of scikit-learn {sklearn.__version__} are not what this version takes them for"
            raise ModelError(msg)


def _card(held: _HeldOut, tell: Tell) -> Card:
    table, groups, folds = held.table, held.groups, held.folds
    examples = table.examples
    said = cross_advised(table, held.forecasts, groups, folds)
    judgements = {"network": _groups(examples, groups, _ways(examples, said, folds))}
    tell("holding out shapes")
    shapes = [e.shape for e in examples]
    by_shape = spread(shapes, FOLDS)
    theirs = cross_advised(table, held_out(table, by_shape), shapes, by_shape)
    judgements["shape"] = _groups(examples, groups, _ways(examples, theirs, by_shape))
    devices = [e.device.name for e in examples]
    if len(set(devices)) > 1:
        tell("holding out devices")
        judgements |= _by_device(table, groups, folds, devices)
    return Card(judgements, tuple(_coverages(table, said, groups, held.bounds.alpha)))


def _by_device(
    table: Table, groups: Sequence[str], folds: Folds, devices: Sequence[str]
) -> dict[str, dict[str, dict[str, Judgement]]]:
    """Each device judged by models of the others: of all their networks, and of other networks than the judged one."""
    found: dict[str, dict[str, dict[str, Judgement]]] = {"device": {}, "device and network": {}}
    names = np.array(devices)
    for name in sorted(set(devices)):
        here = names == name
        forecasts = held_out(table, folds, learn=~here)
        apart = calibrate_apart(table, forecasts, groups, folds, among=~here)
        whole = [calibrate(table, forecasts, groups, ~here)] * len(apart)
        seen = forecast_by(table, forecasts, learn=~here)
        examples = [table.examples[place] for place in np.flatnonzero(here).tolist()]
        for split, from_, widths in (("device", seen, whole), ("device and network", forecasts, apart)):
            ways = _ways(examples, advised(table, from_, widths, folds, which=here))
            found[split][name] = _judgements(ways)
    return found


def _ways(examples: Sequence[Example], said: Sequence[Advice], folds: Folds | None = None) -> dict[str, list[Choice]]:
    pairs = list(zip(examples, said, strict=True))
    found = {
        "predict": [predicting(e, s) for e, s in pairs],
        "auto": [automatic(e, s) for e, s in pairs],
        "always": [always(e, s) for e, s in pairs],
        "native": [baselines.native(e) for e in examples],
        "fixed rule": [baselines.fixed_rule(e) for e in examples],
    }
    if folds is not None:
        found["neighbour"] = baselines.neighbours(examples, folds)
    return found | {"winner": [baselines.best(e) for e in examples]}


def _groups(
    examples: Sequence[Example], groups: Sequence[str], ways: Mapping[str, list[Choice]]
) -> dict[str, dict[str, Judgement]]:
    """Judgements of all, of those of known networks, of random ones, and by dtype and device."""
    labels: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(examples), dtype=np.bool_)}
    inside = np.array([name != e.shape for name, e in zip(groups, examples, strict=True)])
    if inside.any() and not inside.all():
        labels |= {"networks": inside, "other shapes": ~inside}
    for values in ([e.problem.dtype for e in examples], [e.device.name for e in examples]):
        if len(set(values)) > 1:
            labels |= {value: np.array([v == value for v in values]) for value in sorted(set(values))}
    found: dict[str, dict[str, Judgement]] = {}
    for label, which in labels.items():
        places = np.flatnonzero(which).tolist()
        found[label] = _judgements({way: [choices[i] for i in places] for way, choices in ways.items()})
    return found


def _judgements(ways: Mapping[str, list[Choice]]) -> dict[str, Judgement]:
    """One of each way, but for those none of whose choices runs."""
    judged = {way: judge(choices) for way, choices in ways.items()}
    return {way: judgement for way, judgement in judged.items() if judgement is not None}


def _coverages(table: Table, said: Sequence[Advice], groups: Sequence[str], alpha: float) -> Iterable[Coverage]:
    """How often the intervals of held-out networks held."""
    held: dict[str, list[tuple[str, bool]]] = {"native": [], "best": [], "question": []}
    for example, advice, network in zip(table.examples, said, groups, strict=True):
        taken, fastest = automatic(example, replace(advice, sure=True)), baselines.best(example)
        names = [c.name for c in example.candidates]
        if fastest.place is not None:
            held["question"].append((network, names[fastest.place] in advice.in_question))
        if taken.place is None:
            continue
        if taken.against_native is not None and taken.place != example.native:
            held["native"].append((network, 1 + taken.against_native <= advice.worst_to_native))
        rest = [t for i, t in enumerate(example.judging_us) if i != taken.place and example.usable[i]]
        if rest:
            held["best"].append((network, example.judging_us[taken.place] / min(rest) <= advice.worst_to_best))
    alphas = {"native": alpha, "best": b.ALPHA_BEST, "question": b.ALPHA_QUESTION}
    for interval, pairs in held.items():
        sizes: dict[str, int] = defaultdict(int)
        for network, _ in pairs:
            sizes[network] += 1
        if pairs:
            seen = sum(ok / sizes[network] for network, ok in pairs) / len(sizes)
            yield Coverage(interval, 1 - alphas[interval], seen, len(pairs), len(sizes))
