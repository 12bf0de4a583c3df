"""The dispatcher: which candidate computes a problem, here and now.

It asks, in this order: what this process knows, the user's own database, those that came with the package, then by
policy the cost model, the tuner or native. What it decides it remembers, so that a shape costs this once.
"""

from __future__ import annotations

import atexit
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoconv import _calls, device_lock, environment
from autoconv import decision as decisions
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, algorithms, find
from autoconv.counsellor import Counsellor
from autoconv.decision import Decision, Source
from autoconv.environment import Environment
from autoconv.errors import AccuracyError, ReadOnlyError, TuningError
from autoconv.grounds import Grounds, memory_bytes
from autoconv.knowledge import Knowledge, Question, Shipped
from autoconv.measurer import Benches, Measurer
from autoconv.model.advisers import Advisers, adviser_for
from autoconv.model.counsel import Counsel
from autoconv.mutex import Mutex
from autoconv.open_stores import Opener, OpenStores, open_file
from autoconv.problem import Kind, Problem
from autoconv.report.explanation import Explanation
from autoconv.settings import Policy, Settings
from autoconv.stall import TOLD_S, StallClock
from autoconv.store import MemoryStore, Store, located
from autoconv.store.shipped import open_shipped
from autoconv.tuning.bench import Clock, DeviceBench
from autoconv.warn import WarnOnce

KIN_MARGIN = 0.15
"""What won in an environment that is kin is taken unmeasured, under `predict`, where it won by more than this."""

DUEL_SHARE = 0.2
"""Of the budget, for a duel of native with what won in an environment that is kin."""

NOWHERE = "it is in no database"

PAST_INDEX = "an array of it has more than 2^31-1 elements, and there is no doing it in parts; not timed"

WAIT_S = 60.0
"""How long a measurement that was asked for waits for another process that is timing on the device."""


class Dispatcher:
    """Decides, and keeps what it needs for that: open stores, qualifications, the time that calls have stalled.

    All methods may be called from any thread.

    Args:
        registry: The algorithms to choose among. Default: all.
        stores: Opens a store from a path and whether it is only read. Default: a SQLite file.
        bench: Makes the bench of a problem. Default: on the device.
        clock: Seconds, for what timing costs.
        born: When the process began, by that clock. Default: now.
        isolated: Whether this process may end without harm to anyone, as a sweep's child may. Default: no.
        shipped: Opens the databases that came with the package. Default: those that did.
        advisers: Finds the cost model of an environment. Default: those of the user and of the package.
    """

    def __init__(
        self,
        registry: Sequence[Algorithm] | None = None,
        *,
        stores: Opener = open_file,
        bench: Benches = DeviceBench,
        clock: Clock = time.perf_counter,
        born: float | None = None,
        isolated: bool = False,
        shipped: Shipped = open_shipped,
        advisers: Advisers = adviser_for,
    ) -> None:
        self._algorithms = tuple(algorithms() if registry is None else registry)
        self._clock = clock
        self._stall = StallClock(clock, born)
        self._counts: Counter[Source] = Counter()
        self._warn = WarnOnce()
        self._stores = OpenStores(stores, self._warn, clock)
        self._knowledge = Knowledge(self._algorithms, shipped, self._warn)
        self._measurer = Measurer(self._algorithms, bench=bench, clock=clock, warn=self._warn, isolated=isolated)
        self._grounds = Grounds(self._algorithms, self._measurer, isolated=isolated)
        self._counsellor = Counsellor(advisers, self._knowledge, self._measurer, self._warn)
        self._lock = Mutex()
        self._timing = Mutex()

    # Decisions

    def decide(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision:
        """What computes a problem; times it where the policy says so, and never raises for want of a decision."""
        found = self._decide(problem, settings, device)
        self.count(found.source)
        if not found.within_memory:
            limit = memory_bytes(settings, environment.of(device))
            self._warn(f"memory {limit} {problem.key}", f"{problem}: {found.reason}")
        if not found.accurate:
            self._warn(f"accuracy {problem.key}", f"{problem}: {found.reason}")
            if found.candidate == decisions.NATIVE and problem.groups > 1:  # nothing ran, and MLX has none of these
                return self._grounds.without_measurement(problem, settings, environment.of(device), found.reason)
        return found

    def count(self, source: Source) -> None:
        """Count a decision; one that is not made here, too."""
        with self._lock:
            self._counts[source] += 1

    def _decide(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision:
        if settings.policy is Policy.OFF:
            return decisions.native("policy is off")
        where = environment.of(device)
        found = self._known(problem, settings, where)
        if found is not None:
            return found
        if not self._grounds.can_be_timed(problem, settings, where):
            return self._grounds.without_measurement(problem, settings, where, PAST_INDEX)
        if settings.policy is Policy.RECORD:
            self._stores.note(settings, where, problem)
            why = "noted for `autoconv sweep --pending`"
            return self._grounds.without_measurement(problem, settings, where, why)
        kin = self._of_kin(problem, settings, where)
        if settings.policy is Policy.PREDICT:
            if kin is not None and (kin.margin or 0.0) > KIN_MARGIN:
                return kin
            counsel = self._counsel(problem, settings, where)
            return self._grounds.without_measurement(problem, settings, where, NOWHERE, counsel)
        if settings.policy is Policy.AUTO:
            if kin is not None and kin.candidate == decisions.NATIVE:
                self._stores.note(settings, where, problem)
                return kin
            taken = self._counsel(problem, settings, where).taken() if kin is None else None
            if taken is not None:
                return taken
        try:
            return self._time_in_call(problem, settings, device, kin)
        except TuningError as error:
            why = str(error)
        found = self._known(problem, settings, where)
        if found is not None:  # who was timing was at this very problem
            return found
        self._stores.note(settings, where, problem)
        asked = self._counsel(problem, settings, where) if settings.policy is Policy.AUTO else None
        return self._grounds.without_measurement(problem, settings, where, why, asked)

    def look_up(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision | None:
        """The decision that the user's own database makes under these settings, None where it does not tell."""
        return self.look_up_in(environment.of(device), problem, settings)

    def look_up_in(self, where: Environment, problem: Problem, settings: Settings) -> Decision | None:
        """As `look_up`, for an environment that may be another machine's."""
        question = self._question(problem, settings, where)
        records = self._stores.records(settings, where.id, problem)
        found = self._knowledge.own(records, question)
        if found is None:
            unkept = self._stores.unkept(settings, where.id, problem)
            found = self._knowledge.own([*records, *unkept], question, Source.MEASURED) if unkept else None
        return found

    def known(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision | None:
        """The decision that a call finds in databases, those that came with the package too; None without one."""
        return self._known(problem, settings, environment.of(device))

    def _known(
        self, problem: Problem, settings: Settings, where: Environment, *, begun: bool = True
    ) -> Decision | None:
        """The decision of the user's own database, if begun, or of one that came with the package. Never times."""
        if not begun:
            return self._knowledge.shipped(self._question(problem, settings, where, store=MemoryStore()))
        found = self.look_up_in(where, problem, settings)
        return found or self._knowledge.shipped(self._question(problem, settings, where))

    def _of_kin(self, problem: Problem, settings: Settings, where: Environment) -> Decision | None:
        """What won in an environment that is kin to this one; under `predict` only what was verified here."""
        question = self._question(problem, settings, where)
        found = self._knowledge.of_kin(self.store(settings), question)
        if (
            found is not None
            and settings.policy is Policy.PREDICT
            and not self._knowledge.is_qualified(found, question)
        ):
            return None
        return found

    def tune(self, problem: Problem, settings: Settings, device: mx.Device, *, anew: bool = True) -> Decision:
        """Time a problem now.

        Args:
            problem: The problem.
            settings: What candidates are held to, and the database.
            device: Where.
            anew: Whether to time it even if the database tells of it, once the device is had. Default: `True`.

        Raises:
            TuningError: it cannot be timed now.
            AccuracyError: no candidate is accurate enough; its records are kept.
            StoreError: the database cannot be opened or written.
        """
        with self._timing:
            found = self._measure(problem, settings, device, limit_s=math.inf, wait_s=WAIT_S, strict=True, anew=anew)
        if not found.accurate:
            msg = f"{problem}: {found.reason}"
            raise AccuracyError(msg)
        return found

    def candidate(self, found: Decision, problem: Problem, device: mx.Device) -> Candidate:
        """The candidate that a decision names."""
        known = find(found.candidate, problem, environment.of(device).backend, self._algorithms)
        if known is None:
            msg = f"{found.candidate} does not apply to {problem}"
            raise KeyError(msg)
        return known

    def statistics(self) -> dict[Source, int]:
        """Decisions made, by source."""
        with self._lock:
            return {source: self._counts[source] for source in Source if source is not Source.MEMORY}

    @property
    def tuned_s(self) -> float:
        """Seconds that timing inside calls has taken, under whatever policy."""
        return self._stall.all_seconds

    def explanation(
        self, problem: Problem, settings: Settings, device: mx.Device, found: Decision | None = None
    ) -> Explanation:
        """A decision with all that is known about its problem, by default that which a call would make without timing.

        Begins no database.
        """
        where = environment.of(device)
        names = tuple(c.name for c in self._grounds.candidates(problem, settings, where))
        limit = memory_bytes(settings, where)
        if found is None and settings.policy is Policy.OFF:
            return Explanation(problem, where, decisions.native("policy is off"), limit, names)
        begun = self._stores.is_begun(settings)
        found = found or self._known(problem, settings, where, begun=begun)
        if found is not None and {v.record.candidate for v in found.verdicts}.issuperset(names):
            return Explanation(problem, where, found, limit, names)
        counsel = self._counsel(problem, settings, where, None if begun else MemoryStore())
        if settings.policy is Policy.AUTO:
            found = found or counsel.taken()
        if found is None:
            asked = counsel if settings.policy is Policy.PREDICT else None
            why = NOWHERE
            if settings.policy in {Policy.AUTO, Policy.MEASURE}:
                put_off = self._measurer.put_off(where, gradients=problem.kind is not Kind.FORWARD)
                why = "; ".join(filter(None, (NOWHERE, put_off)))
            found = self._grounds.without_measurement(problem, settings, where, why, asked)
        return Explanation(problem, where, found, limit, names, counsel)

    # Timing

    def _time_in_call(self, problem: Problem, settings: Settings, device: mx.Device, kin: Decision | None) -> Decision:
        """Time a problem inside a user's call, within the stall cap where the policy has one.

        Of all candidates, or where kin name one, that one and native: a duel, and the problem is noted for a sweep.
        """
        challenger = kin.candidate if kin is not None and kin.candidate != decisions.NATIVE else None
        capped = settings.policy is Policy.AUTO
        if not self._timing.acquire(blocking=not capped):
            msg = "another thread is timing"
            raise TuningError(msg)
        start = self._clock()
        try:
            left = self._stall.left_s(settings) if capped else math.inf
            if left <= 0:
                msg = f"timing has taken {self._stall.seconds:.1f} s of this process already"
                raise TuningError(msg)
            wait_s = 0.0 if capped else WAIT_S
            found = self._measure(
                problem,
                settings,
                device,
                limit_s=left,
                wait_s=wait_s,
                strict=False,
                anew=False,
                challenger=challenger,
                advised=capped and challenger is None,
            )
            if challenger is not None:
                self._stores.note(settings, environment.of(device), problem)
            if found.source is Source.MEASURED:
                self._stall.tell_once("timed 1 conv3d shape", self._clock() - start, settings)
            return found
        finally:
            if self._clock() - start > TOLD_S:  # and nothing was timed, or it was told
                self._stall.tell_once("took a first look at this device", self._clock() - start, settings)
            self._stall.add(self._clock() - start, capped=capped)
            self._timing.release()

    def _measure(
        self,
        problem: Problem,
        settings: Settings,
        device: mx.Device,
        *,
        limit_s: float,
        wait_s: float,
        strict: bool,
        anew: bool,
        challenger: str | None = None,
        advised: bool = False,
    ) -> Decision:
        """Time a problem and keep its records; `anew` even if it is known, with `strict` a store that fails raises.

        With a challenger it and native alone are timed; where `advised`, those that the model still questions, or none
        if it is sure. If nothing that may win is among them all are.
        """
        where = environment.of(device)
        if not self._grounds.can_be_timed(problem, settings, where):
            raise TuningError(PAST_INDEX)
        store = self.store(settings, strict=strict)
        if strict and store.readonly:
            msg = f"{located(settings.database)} is open for reading only, and a measurement is to be kept"
            raise ReadOnlyError(msg)
        with device_lock.hold(where.lock_name, wait_s) as held:
            if not held:
                msg = "another process is timing on this device"
                raise TuningError(msg)
            if not anew:  # the process waited for may have timed this very problem
                found = self.look_up(problem, settings, device)
                if found is not None:
                    return found
            start = self._clock()
            self._measurer.qualify(problem, device, store, limit_s=limit_s, strict=strict)
            if not anew:  # what was imported runs once its algorithm is known to be right here
                found = self.look_up(problem, settings, device)
                if found is not None:
                    return found
            # The device's ceilings are known by now, and who passed its first run. A prior there is on Metal alone.
            counsel = self._counsel(problem, settings, where) if advised or where.backend == "metal" else None
            taken = counsel.taken() if counsel is not None and advised else None
            if taken is not None:
                return taken
            offered = self._grounds.candidates(problem, settings, where)
            turns = counsel.turns(offered, narrow=advised) if counsel is not None else (None,)
            if challenger is not None:
                turns = ((decisions.NATIVE, challenger), turns[-1])
            for only, share in zip(turns, (DUEL_SHARE if challenger else 1.0, 1.0), strict=False):
                records = self._measurer.measure(
                    problem,
                    settings,
                    device,
                    store,
                    memory_bytes=memory_bytes(settings, where),
                    limit_s=limit_s - (self._clock() - start),
                    strict=strict,
                    only=only,
                    budget_share=share,
                )
                self._stores.keep(settings, problem, records, strict=strict)
                # Of all that is known by now, as the next process will; of this run alone where that cannot be read.
                found = self.look_up(problem, settings, device) or self._knowledge.choose(
                    records, self._question(problem, settings, where), Source.MEASURED
                )
                if found is not None:
                    return replace(found, source=Source.MEASURED)
        msg = "its measurement does not tell under these settings"
        raise TuningError(msg)

    # What decisions rest on

    def _question(
        self, problem: Problem, settings: Settings, where: Environment, store: Store | None = None
    ) -> Question:
        """What databases are asked, the user's own among them by default."""
        return self._grounds.question(problem, settings, where, self.store(settings) if store is None else store)

    def _counsel(self, problem: Problem, settings: Settings, where: Environment, store: Store | None = None) -> Counsel:
        """What a model or a prior says of a problem, beside the user's own database by default."""
        own = self.store(settings) if store is None else store
        return self._counsellor.of(self._question(problem, settings, where, own), settings, own)

    # Stores

    def store(self, settings: Settings, *, strict: bool = False) -> Store:
        """The store of these settings, opened once; where it cannot be, one in memory, or if `strict` `StoreError`."""
        return self._stores.get(settings, strict=strict)

    @property
    def noted(self) -> set[Problem]:
        """The problems that calls noted for a sweep, and did not time since."""
        return self._stores.noted

    def name_network(self, name: str, calls: Mapping[Problem, int], settings: Settings) -> None:
        """Keep how often a network makes each problem, for reports; what goes wrong costs a warning."""
        self._stores.name_network(settings, name, calls)

    def settle(self) -> None:
        """Write what no store could take before, as far as one can now."""
        self._stores.settle()

    def close(self) -> None:
        """Close every store; the next decision opens them again."""
        self._stores.close()
        self._knowledge.close()
        self._counsellor.close()


def dispatcher() -> Dispatcher:
    """The dispatcher of this process; threads that come at the same time get the same one."""
    global _dispatcher  # noqa: PLW0603 - the one place where the process's dispatcher is kept
    with _making:
        if _dispatcher is None:
            _dispatcher = Dispatcher(born=_calls.IMPORTED)
            atexit.register(_dispatcher.settle)
        return _dispatcher


def forget() -> None:
    """Close the stores of this process's dispatcher and forget it; the next decision makes another."""
    global _dispatcher  # noqa: PLW0603 - as above
    with _making:
        if _dispatcher is not None:
            _dispatcher.close()
            atexit.unregister(_dispatcher.settle)
        _dispatcher = None


_dispatcher: Dispatcher | None = None
_making = Mutex()
