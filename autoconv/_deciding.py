"""The way from a call to the dispatcher, which is imported only when a first call needs it."""

from __future__ import annotations

from autoconv import decision as decisions
from autoconv._backend import mx
from autoconv.algorithms import Candidate, native
from autoconv.decision import Decision, Source
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.warn import WarnOnce

_warn = WarnOnce()


def decided(problem: Problem, settings: Settings, device: mx.Device) -> Decision:
    """The decision on a problem; native for now where what decides cannot be imported.

    So it is where a process has no file descriptors left, or its installation is removed beneath it.
    """
    try:
        from autoconv.dispatch import dispatcher

        return dispatcher().decide(problem, settings, device)
    except (ImportError, OSError) as error:
        why = f"nothing can be decided now: {' '.join(str(error).split())}"
        _warn("deciding", why)
        return decisions.native(why)


def candidate_of(found: Decision, problem: Problem, device: mx.Device) -> Candidate:
    """The candidate that a decision names."""
    try:
        from autoconv.dispatch import dispatcher

        return dispatcher().candidate(found, problem, device)
    except (ImportError, OSError):
        return Candidate(native.ALGORITHM)


def count(source: Source) -> None:
    """Count a decision that was not asked for."""
    try:
        from autoconv.dispatch import dispatcher
    except (ImportError, OSError):
        return  # there is nothing that counts
    dispatcher().count(source)
