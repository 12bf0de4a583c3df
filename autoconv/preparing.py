"""Preparing: the convolutions of a function are timed before it is used, where nobody waits for a call.

A choice that is native for want of time stays, inside `mx.compile`, for the life of the trace. So the function is run
once beforehand, with nothing decided, and what it asks for is noted and then timed.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from autoconv import _calls
from autoconv import settings as _settings
from autoconv._backend import mx
from autoconv._tracing import may_be_traced
from autoconv.algorithms._algorithm import Convolution
from autoconv.decision import NATIVE
from autoconv.mutex import Mutex
from autoconv.patching import patch
from autoconv.problem import Problem
from autoconv.settings import Policy, Settings

if TYPE_CHECKING:
    from autoconv.dispatch import Dispatcher


@dataclass(frozen=True)
class Preparation:
    """What `prepare` met and did.

    Attributes:
        shapes: Different convolutions and gradients that were met.
        tuned: Those that were timed now.
        known: Those that the database, or one that came with the package, told of already.
        failed: Those that could not be timed, or that no candidate computes accurately.
        left: Those that there was no time for.
        reasons: Why, a line for each that failed.
    """

    shapes: int
    tuned: int
    known: int
    failed: int
    left: int
    reasons: tuple[str, ...] = ()


class _Notes:
    """Notes problems, and builds what runs instead of a decision: native, but where MLX has none."""

    def __init__(self) -> None:
        self.counts: dict[tuple[Settings, str], Counter[Problem]] = {}
        self.devices: dict[str, mx.Device] = {}

    def __call__(self, problem: Problem, settings: Settings, device: mx.Device) -> Convolution:
        """Note a problem that is met under settings on a device; what runs it."""
        from autoconv.algorithms import candidates
        from autoconv.environment import backend_of

        name = repr(device)
        self.devices[name] = device
        key = (_settings.with_changes(settings, {"policy": str(Policy.MEASURE)}), name)
        self.counts.setdefault(key, Counter())[problem] += 1
        found = candidates(problem, backend_of(device.type))
        usable = [c for c in found if (c.name == NATIVE) == (problem.groups == 1)]
        built: Convolution = (usable or list(found))[0].build(problem)
        return built


def title_of(fn: Callable[..., Any]) -> str:
    """What a function or a model is called among networks, as the class or the function is named; empty for a lambda,
    and for what else has no name.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    last = str(name).rpartition("<locals>.")[2]
    return "" if "<" in last else last


def prepare(
    fn: Callable[..., Any], /, *example: Any, time_limit: str | float | timedelta | None = None, **kwargs: Any
) -> Preparation:
    """Time the convolutions that a function or a model makes beforehand, those first that take the most.

    The function is called once, with MLX patched and every `mx.compile` left out; what it does beside convolving is
    done. Nothing is decided in that call: convolutions are MLX's own, and what it returns is not evaluated. All that
    it asks of autoconv or of MLX in 3D is noted, in the thread that calls it, and the gradients that it takes where
    `gradients` is on. Then what no database tells of is timed, without the cap on timing inside calls, and
    kept; reports show it under the name of the model's class, or of the function. Elsewhere in the process functions
    run patched and uncompiled until it returns.

    Args:
        fn: The function or the model.
        example: What it is called with; arrays of the shapes and dtypes that count, of whatever elements.
        time_limit: Begin no other convolution after so long: seconds, a `timedelta`, or text such as `"90s"` or
            `"2m"`. One that was begun ends; the call of the function counts. Default: None, no limit.
        kwargs: What else it is called with.

    Returns:
        How many convolutions were met, timed, known, failed and left; a progress bar is on stderr meanwhile where that
        is a terminal.

    Raises:
        SettingsError: `time_limit` is no such time; nothing was called.
        DeviceLostError: a candidate broke the device for this process. It is noted, and a new process goes on without.
        StoreError: the database cannot be opened or written. What was timed before is kept.
        Exception: what the function raises, as it is; nothing is timed then.
    """
    limit_s = math.inf if time_limit is None else _settings.parse_seconds(time_limit)
    end = time.monotonic() + limit_s
    notes = _Notes()
    # Settings of their own, though they say the same, so that no decision that is known is one under them.
    apart = replace(_settings.current(), policy=Policy.MEASURE)
    noting, under = _calls.noter.set(notes), _settings.override.set(apart)
    try:
        with patch(), _uncompiled:
            fn(*example, **kwargs)
    finally:
        _settings.override.reset(under)
        _calls.noter.reset(noting)
        for key in [key for key in list(_calls.known) if isinstance(key, tuple) and apart in key]:
            _calls.known.pop(key, None)
    return _tune(notes, end, title_of(fn))


class _AsCalls:
    """A sweep's tuner that times what a call would time: nothing that any database decides."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.look_up = dispatcher.known
        self.tune = dispatcher.tune


def _tune(notes: _Notes, end: float, title: str) -> Preparation:
    from autoconv import environment
    from autoconv.dispatch import dispatcher
    from autoconv.report.progress import progress
    from autoconv.sweep.measured import measured_in
    from autoconv.sweep.order import work_of
    from autoconv.sweep.runner import Ending, Outcome, sweep
    from autoconv.sweep.workload import Layer

    shapes = sum(map(len, notes.counts.values()))
    outcomes: list[Outcome] = []
    groups = list(notes.counts.items())
    # What is measured counts for more than the work, and is seen to by the sweep.
    groups.sort(key=lambda group: -sum(count * work_of(problem) for problem, count in group[1].items()))
    try:
        with progress(shapes, "tuning") as bar:
            for (settings, name), counts in groups:
                device = notes.devices[name]
                ordered = sorted(counts.items(), key=lambda item: -item[1] * work_of(item[0]))
                outcomes += sweep(
                    [Layer("", "", "", count, problem, "") for problem, count in ordered],
                    _AsCalls(dispatcher()),
                    settings,
                    device,
                    limit_s=end - time.monotonic(),
                    measured=measured_in(dispatcher().store(settings), environment.of(device).id),
                    tell=lambda outcome: bar.advance(str(outcome.layer.problem)),
                )
    finally:
        _calls.forget()  # decisions made before may be others now
        if title:
            _name(title, notes, dispatcher())
    endings = Counter(outcome.ending for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.failed]
    return Preparation(
        shapes,
        endings[Ending.TIMED],
        endings[Ending.KNOWN],
        len(failed),
        shapes - len(outcomes),
        tuple(f"{outcome.layer.problem}: {outcome.why}" for outcome in failed),
    )


def _name(title: str, notes: _Notes, to: Dispatcher) -> None:
    """Keep what was met under a title, all settings and devices of a database together."""
    settings_of: dict[object, Settings] = {}
    met: defaultdict[object, Counter[Problem]] = defaultdict(Counter)
    for (settings, _), counts in notes.counts.items():
        settings_of[settings.database] = settings
        met[settings.database] += counts
    for database, counts in met.items():
        to.name_network(title, counts, settings_of[database])


class _Uncompiled:
    """A block in which `mx.compile` compiles nothing, in whatever thread; blocks may overlap.

    MLX does not say whether compilation is on, so that it is tried.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._blocks = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                some = mx.zeros(())
                may_be_traced(some, some)
                self._was_on = not may_be_traced(some, some)
                mx.disable_compile()
            self._blocks += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks and self._was_on:
                mx.enable_compile()


_uncompiled = _Uncompiled()
