"""The counsellor: asks the cost model that applies in an environment about problems that were never timed.

A model is data, and data may be bad: whatever one raises costs a warning, and is no advice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoconv import pooling
from autoconv.algorithms import Candidate
from autoconv.decision import NATIVE
from autoconv.environment import Environment
from autoconv.knowledge import Knowledge, Question
from autoconv.measurer import Measurer
from autoconv.model.advice import DAMAGED, Advice, Adviser
from autoconv.model.advisers import Advisers
from autoconv.model.counsel import Counsel
from autoconv.mutex import Mutex
from autoconv.notes import ended_processes
from autoconv.problem import Kind, Problem
from autoconv.settings import Settings
from autoconv.store import Store
from autoconv.warn import WarnOnce

BROKEN = (*DAMAGED, ImportError)
"""What comes of a model whose numbers or whose file are not what they should be, or for which a library is missing."""

MOST = 300.0
"""Logarithm of no ratio of two times that ever was; its exponential is a number still."""

Key = tuple[str, Path | None, bool, frozenset[tuple[str, float]]]


class Counsellor:
    """Knows what advises in each environment. May be used from any thread.

    Args:
        advisers: Finds what advises in an environment.
        knowledge: Tells what was verified there.
        measurer: As `knowledge`, of this machine.
        warn: Warns once of each thing.
    """

    def __init__(self, advisers: Advisers, knowledge: Knowledge, measurer: Measurer, warn: WarnOnce) -> None:
        self._advisers = advisers
        self._knowledge = knowledge
        self._measurer = measurer
        self._warn = warn
        self._found: dict[Key, tuple[Adviser | None, str]] = {}
        self._finding = Mutex()

    def of(self, question: Question, settings: Settings, store: Store) -> Counsel:
        """What is known of a problem before it is timed.

        Args:
            question: The problem, and what its candidates are held to.
            settings: The settings.
            store: The user's own database, which tells of candidates that end processes or are wrong.
        """
        problem, where = question.problem, question.where
        gradients = problem.kind is not Kind.FORWARD
        passed = self._knowledge.qualification(where, question.passed, gradients=gradients)
        # The ceilings are those of the first run of convolutions, which may be all that was done.
        own = self._measurer.qualification(store, where)
        first_run = self._knowledge.qualification(where, own, gradients=False)
        ceilings = first_run.ceilings if first_run else {}
        adviser, why = self._adviser(where, ceilings, settings)
        offered = self._knowledge.candidates(question)
        if adviser is None:
            prior, mark = _prior(problem, where, offered, ceilings)
            return Counsel(problem, question.accuracy, why, prior=prior, mark=mark)
        bars = dict(passed.barred) if passed else {}
        against = self._against(store, where, problem)
        left_out = {c.name: _left_out(c, question, bars, against) for c in offered}
        left_out = {name: reason for name, reason in left_out.items() if reason}
        asked = tuple(c for c in offered if c.name not in left_out)
        try:
            name = adviser.name
            advice = _checked(adviser.advise(problem, asked), asked) if asked else Advice((), reason="none may run")
        except BROKEN as error:
            return Counsel(problem, question.accuracy, self._broken(error), left_out=left_out)
        verified = bool(advice.forecasts) and self._knowledge.has_passed(advice.choice.candidate, problem, passed)
        return Counsel(problem, question.accuracy, why, name, advice, verified, left_out)

    def close(self) -> None:
        """Forget what advises; it is looked for again when it is needed."""
        with self._finding:
            self._found.clear()

    def _adviser(
        self, where: Environment, ceilings: Mapping[str, float], settings: Settings
    ) -> tuple[Adviser | None, str]:
        """What advises, looked for once, and once more when the ceilings are known."""
        key = (where.id, settings.database, settings.readonly, frozenset(ceilings.items()))
        with self._finding:
            if key not in self._found:
                try:
                    self._found[key] = self._advisers(where, ceilings, settings)
                except BROKEN as error:
                    self._found[key] = (None, self._broken(error))
            return self._found[key]

    def _broken(self, error: Exception) -> str:
        """Why a model that raised is no model; warns once."""
        why = f"the cost model cannot be used: {describe(error)}"
        self._warn("model", why)
        return why

    def _against(self, store: Store, where: Environment, problem: Problem) -> dict[str, str]:
        """Candidates that are known to be wrong here or to end processes, and which."""
        found: dict[str, str] = {}
        with self._warn.tolerating(strict=False):
            for name, record in pooling.barred(store.records(where.id, problem)).items():
                found[name] = str(record.status).replace("_", " ")
            for name in ended_processes(store, where, problem):
                found[name] = "the process ended while it ran"
        return found


def describe(error: Exception) -> str:
    """An error in one line of words."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _left_out(candidate: Candidate, question: Question, bars: Mapping[str, str], against: Mapping[str, str]) -> str:
    """Why a candidate may not run under these limits; empty if it may."""
    problem, algorithm = question.problem, candidate.algorithm.name
    if candidate.name in against:
        return against[candidate.name]
    if algorithm == NATIVE and problem.groups > 1:
        return "MLX has no groups in 3D"
    if algorithm in bars and algorithm != NATIVE:
        return f"barred on this device: {bars[algorithm]}"
    if not (problem.addressable or candidate.chunks):
        return "an array of it has more than 2^31-1 elements"
    needed = candidate.cost(problem, question.where.backend).workspace_bytes
    if needed > question.memory_bytes:
        return f"needs {needed / 1e6:.1f} MB, the limit is {question.memory_bytes / 1e6:.1f} MB"
    return ""


def _checked(advice: Advice, asked: Sequence[Candidate]) -> Advice:
    """The advice.

    Raises:
        ValueError: it is not about what was asked, or not in numbers.
    """
    names = {candidate.name for candidate in asked}
    told = {f.candidate for f in advice.forecasts}
    if (told | set(advice.in_question)) - names:
        msg = f"advice on {', '.join(sorted((told | set(advice.in_question)) - names))}, which may not run"
        raise ValueError(msg)
    if not all(abs(f.log_ratio) <= MOST and (0 <= f.doubt <= MOST or f.doubt == math.inf) for f in advice.forecasts):
        msg = "a forecast is no number, or none that a time has"
        raise ValueError(msg)
    if not advice.forecasts and (advice.safe or advice.sure or advice.in_question):
        msg = "advice without a forecast"
        raise ValueError(msg)
    if math.isnan(advice.worst_to_native) or math.isnan(advice.worst_to_best):
        msg = "an interval ends nowhere"
        raise ValueError(msg)
    return advice


def _prior(
    problem: Problem, where: Environment, offered: Sequence[Candidate], ceilings: Mapping[str, float]
) -> tuple[tuple[str, ...], str]:
    """All candidates in the order of the prior for Metal, and its mark; nothing elsewhere."""
    if where.backend != "metal":
        return (), ""
    from autoconv.model import prior  # only needed there

    working_set = where.identity.get("working_set")
    size = float(working_set) if isinstance(working_set, int) and working_set > 0 else math.inf
    return tuple(c.name for c in prior.ordered(problem, offered, ceilings, size)), prior.MARK
