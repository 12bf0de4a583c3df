"""A rule: a tree of few leaves that a person can read, and what is lost by following it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoconv.algorithms import algorithms
from autoconv.algorithms._chunks import PARAMETERS
from autoconv.decision import NATIVE
from autoconv.errors import RuleError
from autoconv.model.rule.case import CHOOSING, Case
from autoconv.model.rule.features import FEATURES, Feature
from autoconv.model.rule.loss import Loss, loss, loss_of_choices
from autoconv.model.rule.tree import Floats, Leaf, Node, Rows, grow, leaf_of, leaves_of
from autoconv.problem import Kind, Problem

LEAVES = 12
"""Most leaves of a rule that people read."""

FEWEST = 10
"""Different shapes, dtype aside, without which a leaf would be an anecdote."""

FOLDS = 5

AGAINST_NATIVE = 2.0
"""Weight of the square of a loss to native, as a logarithm, beside the logarithm of the time over the best.

Of 0, 0.5, 1, 2 and 4, with and without the square, this had a low cross-validated regret on CUDA and on the CPU
at once; without it trees were worse than native twice as often on CUDA.
"""

Forecast = Callable[[Problem], Mapping[str, float]]
"""What a model says: the time of each candidate that may run, in any unit, native's among them."""


@dataclass(frozen=True)
class Evidence:
    """What a leaf rests on.

    Attributes:
        problems: Different problems that come to it.
        runs: On how many of them its choice may run; on the others it means native.
        loss: What its choice loses there, in sample.
    """

    problems: int
    runs: int
    loss: Loss


@dataclass(frozen=True)
class Rule:
    """A tree, and what is known of it.

    Attributes:
        tree: The tree.
        otherwise: What a choice that may not run means: native.
        cases: The cases that it is judged by, in their order.
        chips: Names of the chips.
        evidence: That of each leaf, from left to right.
        held_out: The loss on cases whose shape no tree that judged them had seen: five trees, each grown without a
            fifth of the shapes. Where native cannot run, a case is in none of these.
        in_sample: That of this tree on the cases that it was grown from.
        native: That of always taking native.
        winners: That of what the measurements choose for each case: what no rule can do without.
        without_native: That of this tree where native cannot run, as with groups; no gain is known there.
    """

    tree: Node
    otherwise: str
    cases: tuple[Case, ...]
    chips: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    held_out: Loss
    in_sample: Loss
    native: Loss
    winners: Loss
    without_native: Loss

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Its leaves from left to right."""
        return tuple(leaves_of(self.tree))

    @property
    def problems(self) -> int:
        """How many different problems it is judged by."""
        return len({case.problem for case in self.cases})

    def choose(self, problem: Problem) -> str:
        """The choice for a problem; one that may not run there means `otherwise`."""
        return leaf_of(self.tree, problem).choice


def readable(problem: Problem) -> bool:
    """Whether the arguments of the Python rule say all of a problem: forward, no input dilation, not flipped."""
    return problem.kind is Kind.FORWARD and problem.input_dilation == (1, 1, 1) and not problem.flip


def distil(
    cases: Iterable[Case],
    leaves: int = LEAVES,
    *,
    features: Sequence[Feature] = FEATURES,
    otherwise: str = NATIVE,
    forecast: Forecast | None = None,
    unlabelled: Iterable[Problem] = (),
) -> Rule:
    """The rule that these cases teach, the same in whatever order they come.

    Samples that choose grow it, samples that judge say what it loses.

    Args:
        cases: The cases.
        leaves: Most leaves.
        features: What it may ask.
        otherwise: What a choice that may not run means.
        forecast: A model that teaches instead of the measurements, which then only judge.
        unlabelled: More problems to ask the model about.

    Raises:
        RuleError: there are no cases.
    """
    known = tuple(sorted(cases, key=lambda case: (case.problem.key, case.chip, sorted(case.times_us.items()))))
    if not known:
        msg = "no measurements to distil a rule from"
        raise RuleError(msg)
    taught: Sequence[Case] = known
    if forecast is not None:
        problems = sorted({*(case.problem for case in known), *unlabelled}, key=lambda p: p.key)
        taught = [_forecast_case(problem, forecast(problem)) for problem in problems]
    tree = _grown(taught, leaves, features, otherwise)
    compared = [case for case in known if otherwise in case.times_us]
    without = [case for case in known if otherwise not in case.times_us]

    def lost(among: Sequence[Case]) -> Loss:
        return loss_of_choices(among, [leaf_of(tree, case.problem).choice for case in among], otherwise)

    return Rule(
        tree=tree,
        otherwise=otherwise,
        cases=known,
        chips=tuple(sorted({case.chip for case in known})),
        evidence=_evidence(tree, known, otherwise),
        held_out=loss_of_choices(compared, _held_out(taught, compared, leaves, features, otherwise), otherwise),
        in_sample=lost(compared),
        native=loss_of_choices(compared, [otherwise] * len(compared), otherwise),
        winners=loss(compared, [case.winning_us for case in compared], otherwise),
        without_native=lost(without),
    )


def _forecast_case(problem: Problem, times: Mapping[str, float]) -> Case:
    return Case(problem, "", {name: (time, time) for name, time in times.items()})


def _grown(cases: Sequence[Case], leaves: int, features: Sequence[Feature], otherwise: str) -> Node:
    choices = _choices(cases, otherwise)
    shapes = {shape: number for number, shape in enumerate(sorted({case.shape for case in cases}))}
    rows = Rows(
        features=features,
        choices=choices,
        values=np.array([[f.of(case.problem) for f in features] for case in cases], np.int64).reshape(len(cases), -1),
        costs=_costs(cases, choices, otherwise),
        shapes=np.array([shapes[case.shape] for case in cases], np.int64),
    )
    return grow(rows, leaves, FEWEST)


def _choices(cases: Sequence[Case], otherwise: str) -> list[str]:
    """The candidates that a leaf may name: `otherwise`, and those that ran on enough shapes, natively ordered.

    Of those in chunks none: how many frames a chunk has is worked out for one problem.
    """
    ran = Counter(name for name, _ in {(name, case.shape) for case in cases for name in case.times_us})
    order = {algorithm.name: place for place, algorithm in enumerate(algorithms())}

    def in_chunks(name: str) -> bool:
        return any(f"{parameter}=" in name for parameter in PARAMETERS)

    known = [n for n, shapes in ran.items() if n != otherwise and shapes >= FEWEST and not in_chunks(n)]
    return [otherwise, *sorted(known, key=lambda name: (order.get(name.partition("(")[0], len(order)), name))]


def _costs(cases: Sequence[Case], choices: Sequence[str], otherwise: str) -> Floats:
    """What each choice costs in each case.

    The logarithm of its time over the best, so that one case in which a choice takes 200 times as long does not
    outweigh hundreds; and more where it loses to native, the more the farther.
    """
    times = np.array([[case.time_us(name, CHOOSING, otherwise) for name in choices] for case in cases])
    best = np.array([case.best_us(CHOOSING) for case in cases])
    compared = np.array([otherwise in case.times_us for case in cases])
    lost = np.where(compared[:, None], np.log(times / times[:, :1]), 0.0).clip(min=0.0)
    costs: Floats = np.log(times / best[:, None]) + AGAINST_NATIVE * lost**2
    return costs


def _held_out(
    taught: Sequence[Case], judged: Sequence[Case], leaves: int, features: Sequence[Feature], otherwise: str
) -> list[str]:
    """The choice for each case of a tree that was grown without any of its shape."""
    trees: list[Node] = []
    for fold in range(FOLDS):
        others = [case for case in taught if _fold(case) != fold]
        trees.append(_grown(others, leaves, features, otherwise) if others else Leaf(otherwise))
    return [leaf_of(trees[_fold(case)], case.problem).choice for case in judged]


def _fold(case: Case) -> int:
    return int.from_bytes(hashlib.sha256(case.shape.encode()).digest()[:4], "big") % FOLDS


def _evidence(tree: Node, cases: Sequence[Case], otherwise: str) -> tuple[Evidence, ...]:
    inside: dict[int, list[Case]] = {}
    for case in cases:
        inside.setdefault(id(leaf_of(tree, case.problem)), []).append(case)
    found = []
    for leaf in leaves_of(tree):
        among = inside.get(id(leaf), [])
        problems = len({case.problem for case in among})
        runs = len({case.problem for case in among if leaf.choice in case.times_us})
        found.append(Evidence(problems, runs, loss_of_choices(among, [leaf.choice] * len(among), otherwise)))
    return tuple(found)


def figures(rule: Rule) -> list[tuple[str, Loss]]:
    """What there is to say of a rule's losses, each with its name."""
    found = [
        ("rule, on shapes held out", rule.held_out),
        ("rule, on what it learned from", rule.in_sample),
        (f"{rule.otherwise} always", rule.native),
        ("what was measured the fastest", rule.winners),
    ]
    if rule.without_native.cases:
        found.append((f"rule, where {rule.otherwise} cannot", rule.without_native))
    return found


def percent(value: float) -> str:
    """A share in words as short as it allows: `4.2%`, `310%`."""
    return f"{value:.1%}" if abs(value) < 1 and math.isfinite(value) else f"{value:.0%}"
