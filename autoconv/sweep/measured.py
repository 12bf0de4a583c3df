"""What was measured already, as far as it tells of other problems."""

from __future__ import annotations

import itertools

from autoconv.algorithms import algorithms, places
from autoconv.decision import NATIVE, Decision, Limits, choose
from autoconv.problem import Problem
from autoconv.store import Store
from autoconv.sweep.order import Measured

MOST = 2000
"""Problems of a database that are read for it, so that a large one holds no sweep up for seconds."""


def as_measured(problem: Problem, found: Decision | None) -> Measured | None:
    """What a decision tells about problems like its own; None where native has no time to compare with."""
    if found is None or found.margin is None:
        return None
    native_us = found.median_us(NATIVE)
    return Measured(problem, native_us, max(0.0, found.margin)) if native_us else None


def measured_in(store: Store, environment: str, most: int = MOST) -> list[Measured]:
    """What a database tells of the first so many problems of an environment."""
    order = places(algorithms())
    found = (
        as_measured(problem, choose(records, Limits(), problem.dtype, order, operand_bytes=problem.bytes))
        for problem, records in itertools.islice(store.all_records(environment), most)
    )
    return [measured for measured in found if measured is not None]
