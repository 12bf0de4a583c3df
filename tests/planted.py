"""Decisions that are planted, as if databases held them, so that a test says what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import pytest

from autoconv.algorithms import Candidate, candidates, find
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.problem import Kind, Problem
from autoconv.settings import Settings

BACKENDS = ("cpu", "cuda", "metal")


def anywhere(name: str, problem: Problem) -> Candidate | None:
    """The candidate of that name, of whichever backend offers it."""
    found = (find(name, problem, backend) for backend in BACKENDS)
    return next((candidate for candidate in found if candidate is not None), None)


def names_anywhere(problem: Problem) -> list[str]:
    """Names of the candidates of all backends, in their order."""
    return list(dict.fromkeys(c.name for backend in BACKENDS for c in candidates(problem, backend)))


def plant(
    monkeypatch: pytest.MonkeyPatch, name_of: Mapping[Kind, str] | Callable[[Problem, mx.Device], str] | str
) -> list[tuple[Problem, mx.Device]]:
    """Let these be decided, by kind or of a problem and a device, and counted as a database's; lists what is asked."""
    asked = []

    def decide(self: Dispatcher, problem: Problem, _settings: Settings, device: mx.Device) -> Decision:
        asked.append((problem, device))
        self.count(Source.DATABASE)
        if isinstance(name_of, str):
            name = name_of
        else:
            name = name_of(problem, device) if callable(name_of) else name_of[problem.kind]
        return Decision(name, Source.DATABASE, 0.5, "for a test")

    def candidate(_self: Dispatcher, found: Decision, problem: Problem, _device: mx.Device) -> Candidate:
        known = anywhere(found.candidate, problem)
        assert known is not None, found.candidate
        return known

    monkeypatch.setattr(Dispatcher, "decide", decide)
    monkeypatch.setattr(Dispatcher, "candidate", candidate)
    return asked
