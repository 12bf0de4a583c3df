"""A case: what was measured of one problem on one chip, as far as a rule learns from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from autoconv.algorithms import algorithms, places
from autoconv.decision import NATIVE, Decision, Limits, choose
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import Selection, Store
from autoconv.store.transfer import shape_of

TOO_SLOW = 3.0
"""What was not started for being too slow counts as so many times the best: the tuner's own bound."""

CHOOSING, JUDGING = 0, 1
"""Places in a candidate's pair of medians."""


@dataclass(frozen=True)
class Case:
    """One problem on one chip.

    Attributes:
        problem: The problem.
        chip: Name of the device.
        times_us: For each candidate that may run there, by name: median of the samples that choose, and of those that
            judge.
        winner: The candidate that the measurements choose (`decision.choose`). Default: the fastest by the samples
            that choose.
    """

    problem: Problem
    chip: str
    times_us: Mapping[str, tuple[float, float]]
    winner: str = ""

    @cached_property
    def shape(self) -> str:
        """What two problems share that differ in dtype alone."""
        return shape_of(self.problem.key)

    def time_us(self, choice: str, samples: int, otherwise: str = NATIVE) -> float:
        """What a choice takes, by the samples at this place of the pair.

        A choice that may not run there means `otherwise`; where that cannot run either, the slowest that can.
        """
        found = self.times_us.get(choice) or self.times_us.get(otherwise)
        return found[samples] if found else max(pair[samples] for pair in self.times_us.values())

    def best_us(self, samples: int) -> float:
        """The least time."""
        return min(pair[samples] for pair in self.times_us.values())

    @property
    def winning_us(self) -> float:
        """The time of what the measurements choose, by the samples that judge."""
        winner = self.winner or min(self.times_us, key=lambda name: self.times_us[name][CHOOSING])
        return self.time_us(winner, JUDGING)


def cases_in(
    stores: Iterable[Store],
    backend: str,
    selection: Selection | None = None,
    tell: Callable[[float], None] = lambda _: None,
) -> list[Case]:
    """The cases of a backend in some databases, in one order whatever order these come in.

    A problem that several databases know of one environment is one case. What nothing accurate is known of is left out.

    Args:
        stores: The databases.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        selection: Which measurements count. Default: all.
        tell: Is told the part done, between 0 and 1.
    """
    taken = selection or Selection()
    records: dict[tuple[str, Problem], list[Record]] = {}
    chips: dict[str, str] = {}
    noise: dict[str, float] = {}
    for store in stores:
        for qualification in store.qualifications():
            noise[qualification.environment] = max(qualification.noise, noise.get(qualification.environment, 0.0))
        for environment, (identity, _) in store.environments().items():
            if identity.get("backend") != backend or not taken.takes_environment(environment, identity):
                continue
            chips[environment] = str(identity.get("device", "unknown"))
            for problem, found in store.all_records(environment):
                if taken.takes_problem(problem.key):
                    records.setdefault((environment, problem), []).extend(found)
    return list(_cases(records, chips, noise, tell))


def _cases(
    records: Mapping[tuple[str, Problem], list[Record]],
    chips: Mapping[str, str],
    noise: Mapping[str, float],
    tell: Callable[[float], None],
) -> Iterator[Case]:
    order = places(algorithms())
    pairs = sorted(records, key=lambda pair: (pair[1].key, chips[pair[0]], pair[0]))
    for done, (environment, problem) in enumerate(pairs):
        limits = Limits(noise=noise.get(environment, 0.0))
        found = records[environment, problem]
        decision = choose(found, limits, problem.dtype, order, operand_bytes=problem.bytes)
        times = _times(decision) if decision and decision.accurate else {}
        if decision and times:
            yield Case(problem, chips[environment], times, decision.candidate)
        tell((done + 1) / len(pairs))


def _times(decision: Decision) -> dict[str, tuple[float, float]]:
    """The pairs of medians.

    A candidate that was given up after one sample is judged by that, and one that was too slow to be started by what
    it takes at least: a rule that names it would run it.
    """
    found = {
        v.record.candidate: (
            statistics.median(v.record.choosing_us),
            statistics.median(v.record.judging_us or v.record.choosing_us),
        )
        for v in decision.verdicts
        if v.status is Status.OK and v.record.choosing_us
    }
    if found:
        least = TOO_SLOW * min(chosen for chosen, _ in found.values())
        found |= {v.record.candidate: (least, least) for v in decision.verdicts if v.status is Status.TOO_SLOW}
    return found
