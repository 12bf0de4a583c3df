"""The measurer: everything about timing a problem on a device but the timing itself.

It qualifies the device, asks for room, leaves notes for the case that the process does not survive, and
turns what MLX raises into reasons.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from autoconv import environment
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, candidates
from autoconv.backoff import Backoff
from autoconv.decision import NATIVE
from autoconv.environment import Environment
from autoconv.errors import AutoconvError, DeviceLostError, StoreError, TuningError
from autoconv.notes import RACE, STRIKES, ended_processes, noted, race_noted
from autoconv.problem import Kind, Problem
from autoconv.record import Record
from autoconv.settings import Settings
from autoconv.store import Qualification, Store
from autoconv.tuning.bench import Bench, Clock
from autoconv.tuning.operands import MADE_BYTES, MIN_PART
from autoconv.tuning.qualification import Qualifier, fingerprint, first_run, said_of, tells
from autoconv.tuning.reference import reference_seconds
from autoconv.tuning.tuner import Plan, tune
from autoconv.warn import WarnOnce

_log = logging.getLogger("autoconv")


@dataclass(frozen=True)
class _PutOff:
    """A first run that is put off: why, and until when no call tries it again."""

    why: str
    backoff: Backoff


class Benches(Protocol):
    """Makes the bench of a problem on a device, whose own arrays may take so many bytes, and which measures peaks of
    memory or not.
    """

    def __call__(self, problem: Problem, device: mx.Device, /, *, memory_bytes: float, peaks: bool) -> Bench:
        """The bench."""
        ...


class Measurer:
    """Measures problems, and keeps what it learns of each device: its qualification, and whether it was lost.

    Args:
        registry: The algorithms to measure.
        bench: Makes the bench of a problem.
        clock: Seconds, for what timing costs.
        warn: Warns once of each thing.
        isolated: Whether the process may end without harm to anyone (see `tuning.tuner.Plan`).
    """

    def __init__(
        self, registry: Sequence[Algorithm], *, bench: Benches, clock: Clock, warn: WarnOnce, isolated: bool = False
    ) -> None:
        self._algorithms = tuple(registry)
        self._bench = bench
        self._clock = clock
        self._warn = warn
        self._isolated = isolated
        self._qualifications: dict[str, Qualification] = {}
        self._qualifiers: dict[str, Qualifier] = {}
        self._put_off: dict[str, _PutOff] = {}
        self._logged: set[str] = set()
        self._lost: set[str] = set()
        self._described: set[tuple[Store, str]] = set()
        self._unwritten: dict[tuple[Store, str], Qualification] = {}

    def measure(
        self,
        problem: Problem,
        settings: Settings,
        device: mx.Device,
        store: Store,
        *,
        memory_bytes: float,
        limit_s: float,
        strict: bool,
        only: Sequence[str] | None = None,
        budget_share: float = 1.0,
    ) -> list[Record]:
        """The records of every candidate of a problem; they are not kept yet. The caller holds the device's lock.

        Args:
            problem: The problem.
            settings: Its accuracy and its budget.
            device: Where.
            store: Where the device is made known and notes are left.
            memory_bytes: Bytes that a candidate may take beyond its operands, and the tuner for arrays of its own.
            limit_s: Seconds after which nothing more is begun.
            strict: Whether a store that fails raises `StoreError`; else it costs a warning, or the measurement where
                no note can be left. Only with it, outside users' calls, are peaks of memory measured, which resets
                MLX's counter.
            only: Names of the candidates to time, in that order, native first in any case. Default: all as they stand.
            budget_share: Of the settings' budget.

        Raises:
            TuningError: the problem cannot be measured now.
        """
        where = environment.of(device)
        start = self._clock()
        qualification = self.qualify(problem, device, store, limit_s=limit_s, strict=strict)
        with self._reasons(where, strict=strict):
            crashed = ended_processes(store, where, problem)
            if RACE in crashed and not self._isolated:
                msg = "processes ended while its candidates were timed in turns; `autoconv sweep` finds out by which"
                raise TuningError(msg)
            found = candidates(problem, where.backend, self._algorithms, memory_bytes)
            if only is not None:
                found = _among(found, only)
            room = _room(problem, where, found, memory_bytes)
            plan = Plan(
                accuracy=settings.accuracy,
                memory_bytes=memory_bytes,
                budget_s=budget_share * settings.budget_ms / 1e3,
                limit_s=limit_s - (self._clock() - start),
                ceilings=qualification.ceilings,
                barred=qualification.barred,
                crashed=crashed,
                peaks=strict,
                noise=qualification.noise,
                isolated=self._isolated,
            )
            records = self._tune(problem, device, store, found, plan, room)
            if RACE in crashed:  # and a child, which is told of by name, came through
                store.end(where.id, problem, RACE)
            return records

    def qualify(
        self, problem: Problem, device: mx.Device, store: Store, *, limit_s: float, strict: bool
    ) -> Qualification:
        """What the device's first run found out that counts for a problem; runs it where it has not been.

        Raises:
            TuningError: the device cannot be qualified now.
        """
        where = environment.of(device)
        if where.id in self._lost:
            msg = "the device stopped answering rightly earlier in this process"
            raise TuningError(msg)
        start = self._clock()
        if not store.readonly and (store, where.id) not in self._described:
            with self._warn.tolerating(strict=strict):
                store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
                self._described.add((store, where.id))
        for owed in [owed for owed in self._unwritten if owed[0] is store]:
            with self._warn.tolerating(strict=strict):
                store.qualify(self._unwritten[owed])
                del self._unwritten[owed]
        with self._reasons(where, strict=strict):
            found = self._qualify(store, where, device, limit_s, strict=strict)
            if problem.kind is Kind.FORWARD:
                return found
            left_s = limit_s - (self._clock() - start)
            return self._qualify(store, where, device, left_s, strict=strict, forward=found)

    def qualification(self, store: Store, where: Environment, *, gradients: bool = False) -> Qualification | None:
        """What is known of a device from its first run, of convolutions or of gradients; None before that."""
        key = _key(where, gradients)
        known = self._qualifications.get(key)
        if known is None:
            with self._warn.tolerating(strict=False):
                known = first_run(store, where.id, fingerprint(self._algorithms, gradients=gradients))
            if known is not None:
                self._qualifications[key] = known
        return known

    def put_off(self, where: Environment, *, gradients: bool = False) -> str:
        """Why a device's first run, of convolutions or of gradients, is put off; empty if it is not."""
        # One look each: whoever explains holds no lock, and a thread that times may be done with it any moment.
        found = (self._put_off.get(_key(where, g)) for g in {False, gradients})
        return next((put_off.why for put_off in found if put_off is not None), "")

    def _qualify(
        self,
        store: Store,
        where: Environment,
        device: mx.Device,
        limit_s: float,
        *,
        strict: bool,
        forward: Qualification | None = None,
    ) -> Qualification:
        """The device's qualification, that of gradients where that of convolutions is given; goes on with it if it is
        not complete, but inside a call not soon after the device was full.
        """
        gradients = forward is not None
        known = self.qualification(store, where, gradients=gradients)
        if known is not None:
            return known
        key = _key(where, gradients)
        before = self._put_off.get(key)
        if before is not None and not strict and not before.backoff.is_over(self._clock()):
            raise TuningError(before.why)
        qualifier = self._qualifiers.get(key)
        if qualifier is None:
            qualifier = self._qualifiers[key] = Qualifier(
                where,
                device,
                self._algorithms,
                guard=functools.partial(noted, store, where),
                crashed=functools.partial(ended_processes, store, where),
                clock=self._clock,
                forward=forward,
            )
        done = qualifier.advance(limit_s)
        if qualifier.shortage:
            why = f"the first run on this device is put off: {qualifier.shortage}"
            if key not in self._logged:
                self._logged.add(key)
                _log.warning("%s: %s", where, why)
            backoff = before.backoff if before is not None else Backoff()
            self._put_off[key] = _PutOff(why, backoff.failed(self._clock()))
            raise TuningError(why)
        self._put_off.pop(key, None)
        if done is None:
            msg = "the device is not qualified yet"
            raise TuningError(msg)
        for name, why in done.barred.items():
            self._warn(f"barred {where.id} {name}", said_of(name, where, why))
        self._qualifications[key] = done
        if not store.readonly and tells(done):  # else the next process finds out
            self._unwritten[store, key] = done  # and if it cannot be written now, then at a later measurement
            with self._warn.tolerating(strict=strict):
                store.qualify(done)
                del self._unwritten[store, key]
        return done

    def _tune(
        self, problem: Problem, device: mx.Device, store: Store, found: Sequence[Candidate], plan: Plan, room: float
    ) -> list[Record]:
        where, start = environment.of(device), self._clock()
        expected_s = reference_seconds(problem)
        if expected_s > plan.limit_s:
            msg = (
                f"what results are compared with takes {expected_s:.1f} s, and {max(0.0, plan.limit_s):.1f} s are left"
            )
            raise TuningError(msg)
        try:
            bench = self._bench(problem, device, memory_bytes=room, peaks=plan.peaks)
            return tune(
                problem,
                where.id,
                where.backend,
                found,
                bench,
                replace(plan, limit_s=plan.limit_s - (self._clock() - start)),
                guard=functools.partial(noted, store, where, problem),
                now=functools.partial(_no_earlier, store, where, problem),
                race=None if self._isolated else race_noted(store, where, problem),
                clock=self._clock,
            )
        except DeviceLostError as error:
            if not store.readonly:  # in its first run it has its notes already, but not in the race
                with self._warn.tolerating(strict=False):
                    for _ in range(STRIKES):
                        store.begin(where.id, problem, error.candidate)
            raise

    @contextlib.contextmanager
    def _reasons(self, where: Environment, *, strict: bool) -> Iterator[None]:
        """Turn what is raised outside a candidate's own run into `TuningError`."""
        try:
            yield
        except DeviceLostError:
            self._lost.add(where.id)
            raise
        except StoreError as error:
            if strict:
                raise
            msg = f"no note can be left of what runs: {error}"
            raise TuningError(msg) from error
        except AutoconvError:
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            msg = f"the bench failed: {' '.join(str(error).split())}"
            raise TuningError(msg) from error


def _key(where: Environment, gradients: bool) -> str:
    return f"{where.id} gradients" if gradients else where.id


def _among(found: Sequence[Candidate], only: Sequence[str]) -> tuple[Candidate, ...]:
    """Those of the candidates that are named, in the order of the names, but native before all: it is what the others
    are compared with.
    """
    places = {name: place for place, name in enumerate(only)}
    named = [candidate for candidate in found if candidate.name in places]
    return tuple(sorted(named, key=lambda c: (c.name != NATIVE, places[c.name])))


def _room(problem: Problem, where: Environment, found: Sequence[Candidate], memory_bytes: float) -> float:
    """Bytes that are left now for the bench's own arrays, beside the operands, one result and the largest workspace.

    A bench that is short of room checks each result at once, so little is asked for; but what making the operands
    takes must be there.

    Raises:
        TuningError: there is less.
    """
    workspaces = [c.cost(problem, where.backend).workspace_bytes for c in found]
    largest = max((w for w in workspaces if w <= memory_bytes), default=0)
    making = MADE_BYTES * min(MIN_PART, max(map(math.prod, problem.operand_shapes)))
    needed = problem.bytes + largest + making
    free = environment.free_bytes(where)
    if needed > free:
        msg = f"timing needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
        raise TuningError(msg)
    return min(memory_bytes, free - problem.bytes - largest)


def _no_earlier(store: Store, where: Environment, problem: Problem) -> float:
    """Seconds since the epoch, but no earlier than what this machine measured of the problem before.

    Clocks are set back, and what ended a process must not seem to have been survived later.
    """
    with contextlib.suppress(StoreError):  # whoever keeps the records tells of that
        before = [r.created for r in store.records(where.id, problem) if not r.origin]
        return max([time.time(), *before])
    return time.time()
