"""The fleet: a sweep over the workers of a Dask scheduler, each on a device of its own.

Workers are grouped by environment, and each group measures the whole workload, one problem at a time on each worker.
Dask only carries the tasks. Where each one runs is decided here, and none is ever run again by itself: a problem that
ends its worker would end the others as well.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from autoconv._version import __version__
from autoconv.algorithms import algorithms
from autoconv.decision import Decision
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.errors import FleetError
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.store import Qualification, Store
from autoconv.sweep import wire
from autoconv.sweep.fleet_worker import farewell, hello, time_problem
from autoconv.sweep.measured import as_measured
from autoconv.sweep.order import Measured, Neighbours, ordered
from autoconv.sweep.runner import REORDER, Ending, Outcome, as_known
from autoconv.sweep.scheduler import Failure, Scheduler, Task, checked_address, connected
from autoconv.sweep.workload import Layer
from autoconv.tuning.bench import Clock
from autoconv.tuning.qualification import fingerprint, first_run, said_of, tells
from autoconv.warn import WarnOnce

_log = logging.getLogger("autoconv")

RESOURCE = {"device": 1}
"""What a worker must offer, and a timing takes: so that whatever else runs there, one problem at a time is timed."""

ADVICE = "dask worker SCHEDULER --nthreads 1 --memory-limit 0 --resources device=1"
"""How a worker is begun, one for each device."""

POLL_S = 0.5
"""Seconds between two looks at which workers there are."""

GRACE_S = 60.0
"""How long a device's problems wait for a worker when its last one is gone; a nanny brings one back in a few."""

HELLO_S = 120.0
"""How long the sweep goes on for a worker alone that has not said yet what it is; importing MLX may take long."""

REST_S = 20.0
"""Seconds after which a worker that was hindered is asked again."""

FAREWELL_S = 5.0
"""How long workers may take to end their children."""

FAILURES = 3
"""A worker that fails so often in a row, for a full disk say, is left out; else it would fail at all there is."""

DEATHS = 2
"""Workers that may end while they time a problem; it is given to no other."""


def sweep_fleet(
    layers: Sequence[Layer],
    address: str,
    settings: Settings,
    store: Store,
    *,
    refresh: bool = False,
    again: Collection[Problem] = (),
    limit_s: float = math.inf,
    measured: Sequence[Measured] = (),
    stop: threading.Event | None = None,
    tell: Callable[[Outcome], None] = lambda _: None,
    expect: Callable[[int], None] = lambda _: None,
    insecure: bool = False,
    hindered: bool = False,
    grace_s: float = GRACE_S,
    clock: Clock = time.monotonic,
    connect: Callable[..., AbstractContextManager[Scheduler]] = connected,
) -> list[Outcome]:
    """Time every layer that the database does not tell of yet, in each environment that the fleet has.

    A worker that ends costs the problem that it is at, which is told as not timed; one that comes joins in, also a
    nanny's. Results are kept as they come. The same sweep again goes on from what is kept.

    Args:
        layers: The layers, each problem once.
        address: The scheduler's: `tls://HOST:PORT`; plain `tcp://` on this machine alone.
        settings: What candidates are held to.
        store: The database.
        refresh: Whether to time what the database tells of as well.
        again: The problems of which that holds in any case.
        limit_s: Seconds after which no other problem is begun.
        measured: What is known of other problems, by which the order is made.
        stop: Ends the sweep after the problems that are under way once it is asked to.
        tell: Called with each outcome as it comes.
        expect: Called with the number of outcomes to come in all, whenever another environment makes it larger.
        insecure: Whether to go beyond this machine without encryption.
        hindered: Whether to time on Macs that are slower now than they could be; else those wait.
        grace_s: How long to wait for a worker where there is none (left).
        clock: Seconds.
        connect: Makes the connection to the scheduler.

    Returns:
        The outcomes in the layers' order, one environment after the other; fewer where the sweep was stopped or its
        time was up.

    Raises:
        FleetError: the scheduler cannot be reached, may not be used or is lost, or no worker can be used. What was
            timed before is in the database.
        StoreError: the database cannot be read or written.
    """
    with connect(address, insecure=insecure) as scheduler:
        fleet = _Fleet(
            scheduler,
            layers,
            settings,
            store,
            again=frozenset(layer.problem for layer in layers) if refresh else frozenset(again),
            end=clock() + limit_s,
            measured=measured,
            stop=stop,
            tell=tell,
            expect=expect,
            insecure=insecure,
            hindered=hindered,
            grace_s=grace_s,
            clock=clock,
        )
        fleet.run()
        return fleet.outcomes()


@dataclass(eq=False)
class _Group:
    """The workers of one environment.

    Attributes:
        where: The environment.
        left: The layers that are to be given out, those worth most first.
        alone_since: Since when there has been no worker; None while there is one.
        given: How many were given out since they were put in order.
    """

    where: Environment
    left: list[Layer] = field(default_factory=list)
    alone_since: float | None = None
    given: int = REORDER


@dataclass(eq=False)
class _Worker:
    """A worker that the scheduler knows.

    Attributes:
        address: Where it is.
        met: When it was first seen.
        greeting: What it was asked first; None once it has answered.
        id: What tells it from another at the same address.
        group: The workers like it; None until it has answered.
        layer: What it times; None for nothing.
        timing: The task by which it does.
        running: Whether it takes tasks.
        rests_until: When it is to be asked again, after it was hindered.
        failures: How often in a row it failed otherwise than at the problem itself.
    """

    address: str
    met: float
    greeting: Task | None
    id: str = ""
    group: _Group | None = None
    layer: Layer | None = None
    timing: Task | None = None
    running: bool = True
    rests_until: float = 0.0
    failures: int = 0


@dataclass
class _Fleet:
    """A sweep over a fleet, as it stands. One thread runs it; arguments are those of `sweep_fleet`."""

    scheduler: Scheduler
    layers: Sequence[Layer]
    settings: Settings
    store: Store
    again: Collection[Problem]
    end: float
    measured: Sequence[Measured]
    stop: threading.Event | None
    tell: Callable[[Outcome], None]
    expect: Callable[[int], None]
    insecure: bool
    hindered: bool
    grace_s: float
    clock: Clock
    _groups: dict[str, _Group] = field(default_factory=dict)
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _left_out: dict[str, str] = field(default_factory=dict)
    _outcomes: dict[tuple[str, Problem], Outcome] = field(default_factory=dict)
    _deaths: Counter[Problem] = field(default_factory=Counter)
    _warn: WarnOnce = field(default_factory=WarnOnce)

    def __post_init__(self) -> None:
        """Make ready."""
        self._began = self.clock()
        self._looked = -math.inf
        self._look_up = Dispatcher(stores=lambda _path, _readonly: self.store).look_up_in
        self._fingerprints = [fingerprint(algorithms(), gradients=gradients) for gradients in (False, True)]

    def run(self) -> None:
        """Time until there is nothing left, nobody who could, or no time."""
        while True:
            self._watch()
            self._collect()
            if not self._over():
                self._give()
            busy = any(worker.layer for worker in self._workers.values())
            if not busy and (self._over() or not self._more_may_come()):
                break
            self.scheduler.wait(POLL_S)
        if not self._over():
            self._give_up()
        self._part()

    def outcomes(self) -> list[Outcome]:
        """Those of the first environment in the layers' order, then the others'."""
        keys = ((environment, layer.problem) for environment in self._groups for layer in self.layers)
        return [self._outcomes[key] for key in keys if key in self._outcomes]

    # When it ends

    def _over(self) -> bool:
        return self.clock() >= self.end or (self.stop is not None and self.stop.is_set())

    def _more_may_come(self) -> bool:
        """Whether, though nobody times now, it is too early to give up."""
        now = self.clock()
        if any(worker.greeting is not None and now < worker.met + HELLO_S for worker in self._workers.values()):
            return True
        if not self._groups:
            return now < self._began + (0 if self._left_out else self.grace_s)
        waiting = (group for group in self._groups.values() if group.left)
        return any(group.alone_since is None or now < group.alone_since + self.grace_s for group in waiting)

    def _give_up(self) -> None:
        """Tell of what is left without a worker.

        Raises:
            FleetError: there never was one that can be used.
        """
        for worker in self._workers.values():
            if worker.greeting is not None:
                self._leave_out(worker.address, "it is busy with something else, or hangs")
        if not self._groups:
            reason = "; ".join(f"{address}: {why}" for address, why in self._left_out.items())
            msg = f"no worker can be used: {reason}" if reason else f"there is no worker; begin one by: {ADVICE}"
            raise FleetError(msg)
        for group in self._groups.values():
            left, group.left = group.left, []
            for layer in left:
                self._add(group, layer, Ending.NOT_TIMED, None, "no worker with this device is left")

    def _part(self) -> None:
        """Have the workers end their children."""
        asked = [
            self.scheduler.submit(farewell, worker.address, takes=RESOURCE)
            for worker in self._workers.values()
            if worker.group and worker.running
        ]
        if asked and not self.scheduler.finish(asked, FAREWELL_S):
            _log.debug("not every worker ended its child")

    # Workers come and go

    def _watch(self) -> None:
        """Learn which workers there are; a task of one that is gone would wait forever."""
        now = self.clock()
        if now < self._looked + POLL_S:
            return
        self._looked = now
        known = self.scheduler.workers()
        for address in [a for a in self._workers if a not in known]:
            self._lose(self._workers.pop(address))
        self._left_out = {address: why for address, why in self._left_out.items() if address in known}
        for address, about in known.items():
            if address in self._workers:
                self._workers[address].running = about["status"] == "running"
            elif address not in self._left_out:
                self._meet(address, about)
        there = [worker.group for worker in self._workers.values() if worker.running]
        for group in self._groups.values():
            if group in there:
                group.alone_since = None
            elif group.alone_since is None:
                group.alone_since = now

    def _meet(self, address: str, about: Mapping[str, Any]) -> None:
        """Ask a new worker what it is, or leave it out."""
        try:
            checked_address(address, insecure=self.insecure)
        except FleetError as error:
            self._leave_out(address, str(error))
            return
        if any(about["resources"].get(name, 0) < amount for name, amount in RESOURCE.items()):
            self._leave_out(address, f"it has no resource `device`; begin it by: {ADVICE}")
            return
        self._workers[address] = _Worker(address, self.clock(), self.scheduler.submit(hello, address, takes={}))

    def _leave_out(self, address: str, why: str) -> None:
        self._left_out[address] = why
        self._warn(f"worker {address} {why}", f"the worker {address} is left out: {why}")

    def _lose(self, worker: _Worker) -> None:
        """A worker is gone, and its task, which is never to be run by another, with it."""
        for task in filter(None, (worker.greeting, worker.timing)):
            self.scheduler.drop(task)
        if worker.group is not None and worker.layer is not None:
            self._deaths[worker.layer.problem] += 1
            self._add(worker.group, worker.layer, Ending.NOT_TIMED, None, "the worker that timed it is gone")

    def _greeted(self, worker: _Worker, answer: object) -> None:
        """A worker has told what it is: it joins those like it, or is left out."""
        worker.greeting = None
        try:
            if isinstance(answer, Failure):
                msg = (
                    f"it cannot run autoconv {__version__}, to be installed there and with the scheduler ({answer.why})"
                )
                raise ValueError(msg)
            told = wire.greeting_of(answer)
            if told.library != __version__:
                msg = f"it has autoconv {told.library}, and here is {__version__}; install the same there"
                raise ValueError(msg)
            if told.algorithms != self._fingerprints[-1]:
                msg = "it has other algorithms than there are here; install the same autoconv there"
                raise ValueError(msg)
        except ValueError as error:
            del self._workers[worker.address]
            self._leave_out(worker.address, str(error))
            return
        where = told.where
        self.store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
        if where.id not in self._groups:
            self._begin(where)
        worker.id, worker.group = told.worker, self._groups[where.id]
        worker.group.alone_since = None

    def _begin(self, where: Environment) -> None:
        """Begin with another environment, with those layers that the database does not tell of there."""
        _log.info("the fleet has %s", where)
        group = self._groups[where.id] = _Group(where)
        self.expect(len(self.layers) * len(self._groups))
        for layer in self.layers:
            if self._over():
                break
            known = None if layer.problem in self.again else self._look_up(where, layer.problem, self.settings)
            if known is None:
                group.left.append(layer)
            else:
                found = as_known(layer, known)
                self._add(group, layer, found.ending, known, found.why)

    # Problems are given out, and come back

    def _give(self) -> None:
        """Give every worker that has nothing to do the next problem of its group."""
        for worker in self._workers.values():
            group = worker.group
            if group is None or worker.layer or not worker.running or self.clock() < worker.rests_until:
                continue
            layer = self._next(group)
            if layer is not None:
                request = self._request(worker, group.where, layer.problem)
                worker.timing = self.scheduler.submit(time_problem, worker.address, request, takes=RESOURCE)
                worker.layer = layer

    def _next(self, group: _Group) -> Layer | None:
        """The next layer of a group that is to be timed; None where there is none."""
        if group.given >= REORDER:
            mine = (outcome for (environment, _), outcome in self._outcomes.items() if environment == group.where.id)
            seen = filter(None, (as_measured(o.layer.problem, o.decision) for o in mine))
            group.left = ordered(group.left, Neighbours([*self.measured, *seen]))
            group.given = 0
        while group.left:
            group.given += 1
            layer = group.left.pop(0)
            if self._deaths[layer.problem] < DEATHS:
                return layer
            self._add(group, layer, Ending.NOT_TIMED, None, f"{DEATHS} workers ended while they timed it")
        return None

    def _request(self, worker: _Worker, where: Environment, problem: Problem) -> wire.Values:
        known = (first_run(self.store, where.id, name) for name in self._fingerprints)
        return {
            "worker": worker.id,
            "problem": problem.key,
            "anew": problem in self.again,
            "hindered": self.hindered,
            "limits": {name: getattr(self.settings, name) for name in ("accuracy", "memory_limit", "budget_ms")},
            "notes": self.store.unended(where.id, problem),
            "qualifications": [wire.values_of(qualification) for qualification in known if qualification is not None],
        }

    def _collect(self) -> None:
        """Take in what has come."""
        for worker in list(self._workers.values()):
            if worker.greeting is not None:
                answer = self.scheduler.answer(worker.greeting)
                if answer is not None:
                    self._greeted(worker, answer)
            if worker.timing is not None and worker.group is not None and worker.layer is not None:
                answer = self.scheduler.answer(worker.timing)
                if answer is not None:
                    self._timed(worker, worker.group, worker.layer, answer)

    def _timed(self, worker: _Worker, group: _Group, layer: Layer, answer: object) -> None:
        """A worker is done with a problem."""
        ending = answer.get("ending") if isinstance(answer, dict) else None
        if ending == "gone" or (isinstance(answer, Failure) and answer.gone):
            self._lose(self._workers.pop(worker.address))  # whoever is there now is met as another
            return
        worker.timing = worker.layer = None
        if ending == "hindered" and isinstance(answer, dict):
            group.left.insert(0, layer)
            worker.rests_until = self.clock() + REST_S
            self._warn(f"hindered {worker.address}", f"the worker {worker.address} waits: {answer.get('why')}")
            return
        try:
            if isinstance(answer, Failure):
                raise ValueError(answer.why)
            self._keep(group, layer, wire.result_of(answer, group.where.id))
            worker.failures = 0
        except ValueError as error:
            self._add(group, layer, Ending.NOT_TIMED, None, f"the worker failed: {error}")
            worker.failures += 1
            if worker.failures == FAILURES:
                del self._workers[worker.address]
                self._leave_out(worker.address, f"it failed {FAILURES} times in a row, at last by {error}")

    def _keep(self, group: _Group, layer: Layer, result: wire.Result) -> None:
        """Keep what a worker tells of a problem.

        Raises:
            ValueError: it cannot be kept.
        """
        environment, problem, store = group.where.id, layer.problem, self.store
        for qualification in result.qualifications:
            self._qualify(group.where, qualification)
        there = {record.run for record in store.records(environment, problem)}
        # A worker tells all it has, since an earlier sweep may not have lived to hear of it.
        store.add(problem, [record for record in result.records if record.run not in there])
        for candidate in store.unended(environment, problem).keys() - result.notes.keys():
            store.end(environment, problem, candidate)
        wire.leave_notes(store, environment, problem, result.notes)
        ending, why, found = result.ending, result.why, None
        if ending is not Ending.NOT_TIMED:
            found = self._look_up(group.where, problem, self.settings)
            if found is None:
                ending, why = Ending.NOT_TIMED, "its measurement does not tell under these settings"
        self._add(group, layer, ending, found, why)

    def _qualify(self, where: Environment, qualification: Qualification) -> None:
        """Keep what a device's first run found out, unless it is known already."""
        if qualification.fingerprint not in self._fingerprints:
            msg = "it has other algorithms than it said"
            raise ValueError(msg)
        if tells(qualification) and first_run(self.store, where.id, qualification.fingerprint) is None:
            self.store.qualify(qualification)
            for name, why in qualification.barred.items():
                self._warn(f"barred {where.id} {name}", said_of(name, where, why))

    def _add(self, group: _Group, layer: Layer, ending: Ending, found: Decision | None, why: str = "") -> None:
        outcome = Outcome(layer, ending, found, why, group.where.id, str(group.where))
        self._outcomes[group.where.id, layer.problem] = outcome
        self.tell(outcome)
