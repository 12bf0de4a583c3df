"""What decisions rest on beside records: the candidates that there are, what they are held to, and what is taken where
nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from autoconv.algorithms import Algorithm, Candidate, candidates
from autoconv.decision import NATIVE, Decision, Source, native
from autoconv.environment import Environment
from autoconv.knowledge import Question
from autoconv.measurer import Measurer
from autoconv.model.counsel import Counsel
from autoconv.problem import Kind, Problem
from autoconv.settings import Policy, Settings
from autoconv.store import Store

MEMORY_SHARE = 0.6
"""Default memory limit, of the device's recommended working set or memory."""


class Grounds:
    """Answers for any environment, and touches no store but the one it is given. May be used from any thread.

    Args:
        registry: The algorithms to choose among.
        measurer: Tells what a device's first run found out.
        isolated: Whether the process may end without harm to anyone (see `tuning.tuner.Plan`).
    """

    def __init__(self, registry: Sequence[Algorithm], measurer: Measurer, *, isolated: bool = False) -> None:
        self._algorithms = tuple(registry)
        self._measurer = measurer
        self._isolated = isolated

    def candidates(self, problem: Problem, settings: Settings, where: Environment) -> tuple[Candidate, ...]:
        """All candidates that apply, those in chunks where the memory limit asks for them."""
        return candidates(problem, where.backend, self._algorithms, memory_bytes(settings, where))

    def can_be_timed(self, problem: Problem, settings: Settings, where: Environment) -> bool:
        """Whether there is a candidate none of whose arrays has more elements than an index reaches."""
        if self._isolated or problem.addressable:
            return True
        return any(candidate.chunks for candidate in self.candidates(problem, settings, where))

    def question(self, problem: Problem, settings: Settings, where: Environment, own: Store) -> Question:
        """What databases are asked, the user's own among them."""
        return Question(
            problem,
            where,
            settings.accuracy,
            memory_bytes(settings, where),
            may_time=settings.policy is not Policy.PREDICT,
            passed=self._measurer.qualification(own, where, gradients=problem.kind is not Kind.FORWARD),
        )

    def without_measurement(
        self, problem: Problem, settings: Settings, where: Environment, why: str, counsel: Counsel | None = None
    ) -> Decision:
        """A model's choice where that is safe; else native, and for groups, which MLX has none of in 3D, the first
        candidate that can.

        Where the policy times, a model's choice stands until the problem can be timed.
        """
        found = counsel.instead() if counsel is not None else None
        if found is not None:
            return replace(found, provisional=settings.policy is Policy.AUTO)
        why = "; ".join(filter(None, (why, counsel.doubt if counsel is not None else "")))
        if problem.groups == 1:
            return native(why)
        limit = memory_bytes(settings, where)
        offered = self.candidates(problem, settings, where)
        others = [c for c in offered if c.algorithm.name != NATIVE and (problem.addressable or c.chunks)]
        if not others:
            return native(why)
        others.sort(key=lambda c: c.cost(problem, where.backend).workspace_bytes > limit)  # the others are in order
        return Decision(others[0].name, Source.NATIVE, None, f"{why}; MLX has no groups in 3D")


def memory_bytes(settings: Settings, where: Environment) -> float:
    """Bytes that a candidate may take beyond input, weight and output."""
    if settings.memory_limit is not None:
        return settings.memory_limit
    return MEMORY_SHARE * where.memory_bytes or math.inf
