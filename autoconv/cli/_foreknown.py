"""What is known beforehand, by which a sweep is put in order: measurements of other problems, and the cost model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autoconv.cli._common import environment_here

if TYPE_CHECKING:
    from autoconv.settings import Settings
    from autoconv.sweep import Estimator, Measured


def unchanged(estimator: Estimator) -> Estimator:
    """The estimator: no more is known."""
    return estimator


def informed(chosen: Settings) -> Callable[[Estimator], Estimator]:
    """What makes an estimator know what the cost model that applies here knows; nothing more where none does."""
    from autoconv.algorithms import candidates
    from autoconv.counsellor import BROKEN
    from autoconv.grounds import memory_bytes
    from autoconv.model.advisers import adviser_for, ceilings_of
    from autoconv.sweep.informed import ModelEstimator

    where = environment_here()
    try:
        adviser, _ = adviser_for(where, ceilings_of(where, chosen), chosen)
    except BROKEN:  # which `doctor` tells of; here it is about the order alone
        adviser = None
    if adviser is None:
        return unchanged
    limit = memory_bytes(chosen, where)
    return ModelEstimator(adviser, lambda problem: candidates(problem, where.backend, memory_bytes=limit)).over


def measured(chosen: Settings) -> list[Measured]:
    """What is known of other problems, by which a sweep is put in order: a few thousand of this device's, or of what
    came with the package where those are few.
    """
    from autoconv.dispatch import dispatcher
    from autoconv.sweep.measured import measured_in
    from autoconv.sweep.order import LEAST

    where = environment_here()
    known = measured_in(dispatcher().store(chosen, strict=True), where.id)
    if len(known) >= LEAST:
        return known
    from autoconv.store.shipped import open_shipped

    shipped = open_shipped()
    try:
        for store in shipped.values():
            for key, (identity, _) in store.environments().items():
                if identity.get("backend") == where.backend:
                    known += measured_in(store, key)
    finally:
        for store in shipped.values():
            store.close()
    return known
