"""What a fleet's workers do: say what they are, and time problems, each in a child process.

A sweep submits these functions to Dask, which finds them by name: autoconv must be installed where the workers are,
and where the scheduler is, which reads what it passes on. Arguments and results are plain values (see `wire`).

    hello()             {"worker": <id>, "library": <version>, "algorithms": <their fingerprint>, "identity": {...},
                         "circumstances": {...}, "memory_bytes": ...}
    time_problem(...)   {"ending": "timed" | "inaccurate" | "not timed", "why": ..., "records": [...],
                         "notes": {<candidate>: <count>}, "qualifications": [...]}
                        {"ending": "gone"}                   the worker that was asked is no more
                        {"ending": "hindered", "why": ...}   it would time a slower machine than it is
    farewell()          nothing; the child ends

What was timed stays in a database of the worker's own as long as it lives, so that the device is qualified once, and
what a sweep did not live to hear is there for the next one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distributed import get_worker

from autoconv import device_lock, environment, settings
from autoconv._backend import mx
from autoconv._version import __version__
from autoconv.algorithms import algorithms
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.errors import AccuracyError, TuningError
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.store import Store
from autoconv.store.transfer import scrubbed
from autoconv.sweep.isolated import Isolated
from autoconv.sweep.power import awake, hindrance
from autoconv.sweep.wire import Values, leave_notes, qualification_of, values_of
from autoconv.tuning.qualification import fingerprint, first_run, tells

TURN_S = 1800.0
"""Seconds that a worker waits for others that time on its device: workers that share one take turns, however long."""


def hello() -> Values:
    """What this worker is."""
    where = environment.of(mx.default_device())
    return {
        "worker": get_worker().id,
        "library": __version__,
        "algorithms": fingerprint(algorithms(), gradients=True),
        "identity": dict(where.identity),
        "circumstances": dict(where.circumstances),
        "memory_bytes": where.memory_bytes,
    }


def time_problem(request: Values) -> Values:
    """Time a problem, and tell all that is known of it then.

    Args:
        request: `worker`, the id of the worker that is asked; `problem`, its key; `anew`, whether to time it even if
            this worker's own database tells of it; `hindered`, whether to time it on a Mac that is slower now than it
            could be; `limits`, the settings that candidates are held to; `notes` and `qualifications`, what is known.

    Raises:
        StoreError: the worker's own database cannot be read or written.
    """
    worker = get_worker()
    if request["worker"] != worker.id:  # begun anew at the same address, and given the task of the one that ended
        return {"ending": "gone"}
    hindered = "" if request["hindered"] else hindrance()
    if hindered:
        return {"ending": "hindered", "why": hindered}
    with _making:
        station = _stations.get(worker.id)
        if station is None:
            station = _stations[worker.id] = _Station(Path(worker.local_directory))
    return station.time(request)


def farewell() -> None:
    """End this worker's child, which would keep memory of the device until the worker ends."""
    with _making:
        station = _stations.get(get_worker().id)
    if station is not None:
        station.rest()


class _Station:
    """A worker's own database, and the child that writes it.

    Args:
        folder: Where the database is, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self._database = folder / "autoconv.db"
        self._dispatcher = Dispatcher()
        self._tuner = Isolated(self._dispatcher)

    def rest(self) -> None:
        """End the child; the next problem begins another."""
        self._tuner.close()

    def time(self, request: Values) -> Values:
        """The answer to one request."""
        device = mx.default_device()
        where, problem = environment.of(device), Problem.from_key(request["problem"])
        changes = {"policy": "measure", "database": self._database, **request["limits"]}
        chosen = settings.with_changes(settings.from_environment({}), changes)
        store = self._dispatcher.store(chosen, strict=True)
        _learn(store, where, problem, request)
        ending, why = "timed", ""
        try:
            self._tune(problem, chosen, device, anew=request["anew"])
        except AccuracyError as error:
            ending, why = "inaccurate", str(error)
        except TuningError as error:
            ending, why = "not timed", str(error)
        records = store.records(where.id, problem)
        return {
            "ending": ending,
            "why": why,
            "records": [values_of(replace(record, detail=scrubbed(record.detail))) for record in records],
            "notes": store.unended(where.id, problem),
            "qualifications": _qualifications(store, where),
        }

    def _tune(self, problem: Problem, chosen: Settings, device: mx.Device, *, anew: bool) -> None:
        with _turn(environment.of(device)) as had, awake():
            if not had:
                msg = f"others have been timing on this device for {TURN_S / 60:.0f} minutes"
                raise TuningError(msg)
            self._tuner.tune(problem, chosen, device, anew=anew)


@contextlib.contextmanager
def _turn(where: Environment) -> Iterator[bool]:
    """Wait for the workers that share this device, then for who else is timing on it; yields whether it is free.

    Else the child would wait for the device, which it does for a minute and no longer. Whoever times outside of the
    fleet lets go of the device after each problem, and so does the child of a worker that was killed.
    """
    with device_lock.hold(f"{where.lock_name}-turn", TURN_S) as mine:
        free = mine
        if mine:
            with device_lock.hold(where.lock_name, TURN_S) as free:
                pass
        yield free


def _learn(store: Store, where: Environment, problem: Problem, request: Values) -> None:
    """Take over what the sweep's own database knows."""
    for values in request["qualifications"]:
        known = qualification_of(values)
        if known.environment == where.id and tells(known) and first_run(store, where.id, known.fingerprint) is None:
            store.qualify(known)
    leave_notes(store, where.id, problem, request["notes"])


def _qualifications(store: Store, where: Environment) -> list[Values]:
    known = (first_run(store, where.id, fingerprint(algorithms(), gradients=g)) for g in (False, True))
    return [
        values_of(replace(q, barred={name: scrubbed(why) for name, why in q.barred.items()}))
        for q in known
        if q is not None
    ]


_making = threading.Lock()
_stations: dict[str, _Station] = {}
"""By the worker's id: several workers may live in one process."""
