"""Notes: what runs is named in the store before it does, so that who ends a process is known to the next one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterator

from autoconv.algorithms import Candidate
from autoconv.environment import Environment
from autoconv.errors import DeviceLostError, StoreError, TuningError
from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.store import Store

STRIKES = 2
"""Notes left behind by which a candidate is known to end processes. One may be a user's own kill; nobody stops the same
candidate of the same problem twice."""

RACE = "(race)"
"""In a candidate's place: all of them, timed in turns. Which one ended the process is not known then, and a note for
each of a hundred turns would take longer than they do."""


@contextlib.contextmanager
def noted(store: Store, where: Environment, problem: Problem, candidate: Candidate) -> Iterator[None]:
    """A note that is found again if the process does not survive what runs, or loses the device by it.

    Raises:
        StoreError: it cannot be left; nothing has run then.
        TuningError: the process is ending, and nothing more is begun in it.
    """
    try:
        with _noted(store, where, problem, candidate.name):
            yield
    except DeviceLostError:
        if not store.readonly:
            for _ in range(STRIKES):  # it certainly was this one
                store.begin(where.id, problem, candidate.name)
        raise


def race_noted(store: Store, where: Environment, problem: Problem) -> contextlib.AbstractContextManager[None]:
    """A note that is found again if the process does not survive the race.

    Raises:
        StoreError, TuningError: as `noted`, when it is entered.
    """
    return _noted(store, where, problem, RACE)


def ended_processes(store: Store, where: Environment, problem: Problem) -> frozenset[str]:
    """The candidates of a problem that are known to end processes, and are never tried again for it.

    `RACE` is among them where it is one of those in its race, and not known which.
    """
    return frozenset(name for name, notes in store.unended(where.id, problem).items() if notes >= STRIKES)


@contextlib.contextmanager
def _noted(store: Store, where: Environment, problem: Problem, name: str) -> Iterator[None]:
    if store.readonly:
        yield
        return
    end = functools.partial(store.end, where.id, problem, name)
    with _changing:
        if _ending:
            msg = "the process is ending"
            raise TuningError(msg)
        _under_way.append(end)
    try:
        store.begin(where.id, problem, name)
        yield
    finally:  # Ctrl-C, too, wherever it comes, is no candidate's fault
        with _changing:
            if end in _under_way:
                _under_way.remove(end)
                end()


_changing = Mutex()
_under_way: list[Callable[[], None]] = []
"""What takes back each note of this process that has not been taken back."""

_ending = False


def _take_back() -> None:
    """A process that ends in good order is ended by no candidate, though a thread of it may be timing one."""
    global _ending  # noqa: PLW0603 - nothing begins again after it
    with _changing:
        _ending = True
        for end in _under_way:
            with contextlib.suppress(StoreError):
                end()
        _under_way.clear()


atexit.register(_take_back)
os.register_at_fork(after_in_child=_under_way.clear)  # they are the parent's
