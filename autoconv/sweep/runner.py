"""The runner: times the problems of a workload, one after another, and tells how each ended.

What the database tells already is told first. The rest comes in the order in which most is learned, where an estimator
knows enough to tell, and otherwise as the workload has it.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from types import FrameType
from typing import Protocol

from autoconv._backend import mx
from autoconv.decision import NATIVE, Decision
from autoconv.errors import AccuracyError, DeviceLostError, TuningError
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.sweep.measured import as_measured
from autoconv.sweep.order import Estimator, Measured, Neighbours, ordered
from autoconv.sweep.workload import Layer
from autoconv.tuning.bench import Clock

REORDER = 100
"""Problems after which the rest is put in order anew, by what was learned from them."""


class Ending(StrEnum):
    """How a problem of a sweep ended."""

    TIMED = "timed"
    KNOWN = "known"
    """The database told already."""
    INACCURATE = "inaccurate"
    """Timed, and no candidate is accurate enough."""
    NOT_TIMED = "not timed"
    """It could not be timed now."""


@dataclass(frozen=True)
class Outcome:
    """How one layer of a sweep ended.

    Attributes:
        layer: The layer.
        ending: How it ended.
        decision: What was chosen; None where nothing is known.
        why: What stood in the way, in words; empty where nothing did.
        environment: The id of the environment that it was timed in, in a fleet; else empty.
        device: What that is, for people.
    """

    layer: Layer
    ending: Ending
    decision: Decision | None
    why: str = ""
    environment: str = ""
    device: str = ""

    @property
    def native_us(self) -> float | None:
        """Native's median time in microseconds, None where it has none."""
        return self.decision.median_us(NATIVE) if self.decision else None

    @property
    def best_us(self) -> float | None:
        """The chosen candidate's median time in microseconds, None where it has none."""
        return self.decision.median_us(self.decision.candidate) if self.decision else None

    @property
    def error(self) -> float | None:
        """The chosen candidate's relative L2 error, None where it has none."""
        if self.decision is None:
            return None
        found = (v.record.error for v in self.decision.verdicts if v.record.candidate == self.decision.candidate)
        return next(found, None)

    @property
    def speedup(self) -> float | None:
        """Native's time over the chosen one's, on the samples that judge; None where one of the two has none."""
        if self.decision is None or self.native_us is None or self.decision.margin is None:
            return None
        return 1 + self.decision.margin

    @property
    def failed(self) -> bool:
        """Whether it was not timed, or no candidate does it accurately."""
        return self.ending in {Ending.NOT_TIMED, Ending.INACCURATE}


class Tuner(Protocol):
    """What a sweep asks of the dispatcher."""

    def look_up(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision | None:
        """The decision that the database makes."""
        ...

    def tune(self, problem: Problem, settings: Settings, device: mx.Device, *, anew: bool) -> Decision:
        """Time a problem now; not `anew`, only if the database still does not tell of it."""
        ...


@contextmanager
def stopping(told: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Take Ctrl-C and SIGTERM as the wish to end after the current problem, which sets the event and calls `told`; a
    second one interrupts it.
    """
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        told()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unique(layers: Iterable[Layer]) -> list[Layer]:
    """The layers with each problem once, in the order in which each came first, their counts added up."""
    found: dict[Problem, Layer] = {}
    for layer in layers:
        known = found.get(layer.problem)
        found[layer.problem] = layer if known is None else replace(known, count=known.count + layer.count)
    return list(found.values())


def sweep(
    layers: Sequence[Layer],
    tuner: Tuner,
    settings: Settings,
    device: mx.Device,
    *,
    refresh: bool = False,
    again: Collection[Problem] = (),
    limit_s: float = math.inf,
    measured: Sequence[Measured] = (),
    informed: Callable[[Estimator], Estimator] = lambda estimator: estimator,
    stop: threading.Event | None = None,
    tell: Callable[[Outcome], None] = lambda _: None,
    wait: Callable[[], None] = lambda: None,
    clock: Clock = time.monotonic,
) -> list[Outcome]:
    """Time every layer that the database does not tell of yet.

    Args:
        layers: The layers, each problem once.
        tuner: What times; the dispatcher, or `isolated.Isolated`.
        settings: What candidates are held to, and the database.
        device: Where.
        refresh: Whether to time what the database tells of as well.
        again: The problems of which that holds in any case: those that calls noted, of which a duel may be known.
        limit_s: Seconds after which no other problem is begun.
        measured: What is known of other problems, by which the order is made.
        informed: From an estimator by those to one that knows more (see `informed.ModelEstimator`).
        stop: Ends the sweep after the current problem once it is asked to.
        tell: Called with each outcome as it comes.
        wait: Called before each problem; returns when timing makes sense.
        clock: Seconds.

    Returns:
        The outcomes, in the layers' order; fewer than layers where the sweep was stopped or its time was up.

    Raises:
        StoreError: the database cannot be read or written. What was timed before is in it.
        DeviceLostError: a candidate broke the device for this process. It is noted, so that the same sweep in a new
            process goes on without it.
    """
    end = clock() + limit_s
    outcomes: dict[Problem, Outcome] = {}

    def over() -> bool:
        return clock() >= end or (stop is not None and stop.is_set())

    def anew(layer: Layer) -> bool:
        return refresh or layer.problem in again

    def add(outcome: Outcome) -> None:
        outcomes[outcome.layer.problem] = outcome
        tell(outcome)

    left = []
    for layer in layers:
        if over():
            break
        known = None if anew(layer) else tuner.look_up(layer.problem, settings, device)
        if known is None:
            left.append(layer)
        else:
            add(as_known(layer, known))
    while left and not over():
        seen = filter(None, (as_measured(o.layer.problem, o.decision) for o in outcomes.values()))
        left = ordered(left, informed(Neighbours([*measured, *seen])))
        now, left = left[:REORDER], left[REORDER:]
        for layer in now:
            wait()
            if over():
                break
            add(_one(layer, tuner, settings, device, anew=anew(layer)))
    return [outcomes[layer.problem] for layer in layers if layer.problem in outcomes]


def as_known(layer: Layer, known: Decision) -> Outcome:
    """The outcome of a layer that the database tells of; a failure where nothing that it tells of is accurate."""
    if known.accurate:
        return Outcome(layer, Ending.KNOWN, known)
    return Outcome(layer, Ending.INACCURATE, known, known.reason)


def _one(layer: Layer, tuner: Tuner, settings: Settings, device: mx.Device, *, anew: bool) -> Outcome:
    try:
        return Outcome(layer, Ending.TIMED, tuner.tune(layer.problem, settings, device, anew=anew))
    except AccuracyError as error:
        return Outcome(layer, Ending.INACCURATE, tuner.look_up(layer.problem, settings, device), str(error))
    except DeviceLostError:
        raise
    except TuningError as error:
        return Outcome(layer, Ending.NOT_TIMED, None, str(error))
