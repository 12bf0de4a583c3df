"""The way of a call: from its arguments to the convolution that runs it."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeAlias, cast

from autoconv import settings as _settings
from autoconv._arguments import DTYPES, promoted
from autoconv._backend import mx, mx_conv_general
from autoconv._deciding import candidate_of, count, decided
from autoconv._gradients import by_vjp, differentiable
from autoconv._tracing import is_shapeless, runs_here, sized
from autoconv.algorithms import native
from autoconv.algorithms._algorithm import Convolution
from autoconv.algorithms.native import is_untouched
from autoconv.decision import NATIVE, Decision, Source
from autoconv.problem import Kind, Problem, cropped, padding_pair
from autoconv.settings import Policy, Settings

Stream: TypeAlias = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

IMPORTED = time.perf_counter()
"""When this library was imported: the process is about as old."""

RETRY_S = 1.0
"""How long a native choice for want of time is kept before the shape is looked at again; twice as long each time."""

MAX_RETRY_S = 300.0

_default_device = mx.default_device
_gpu = mx.gpu


def _gpu_is_default() -> bool:
    return _default_device().type is _gpu


def _name_of_default() -> str:
    return repr(_default_device())


# A Device is hashed by identity, and every look at the default one is a new object.
device_key: Callable[[], object] = (bool, _gpu_is_default, _name_of_default)[min(2, mx.device_count(mx.gpu))]
"""The default device as part of a key; its type says enough where there is one GPU, in a third of the time, and `bool`
is always False where there is none.
"""

_waits: dict[object, float] = {}

known: dict[object, Convolution | None] = {}
"""What runs a call, None for MLX as it is called: by all that the caller wrote, the device and the `using` around.
Beside these, what computes a gradient, by its problem, its settings and the device.
"""

_beaten: dict[object, tuple[bool, float]] = {}
"""What `is_beaten` answered, and until when that stands."""

_UNKNOWN = object()

_counter = itertools.count()
hit = _counter.__next__
"""Counts a call whose shape was known; one step for the interpreter, so no thread's count is lost."""

Listener = Callable[[Convolution, Problem, Decision], Convolution]
listener: Listener | None = None
"""Told of what each decision chose; what it returns runs in its place."""


Noter = Callable[[Problem, Settings, mx.Device], Convolution]
noter: ContextVar[Noter | None] = ContextVar("autoconv_noter", default=None)
"""Told, in this thread or task, of every problem in place of a decision; what it returns runs, and is not remembered.

Decisions known under the settings in force are not asked for anew, so that these must be an object of their own.
"""


def found(input: mx.array, weight: mx.array, raw: tuple[object, ...]) -> Convolution | None:
    """What is known to run a call with these arguments, as it is written and under no settings of its own.

    None where nothing is, or MLX's own call, or where what is known may not run.
    """
    try:
        run = known.get(
            (input.shape, weight.shape, input.dtype, weight.dtype, *raw, device_key(), _settings.override.get())
        )
    except (TypeError, AttributeError):
        return None
    return None if run is None else runs_here(run, input, weight)


def on(stream: Stream) -> AbstractContextManager[Any]:
    """The stream, or the default one, as a context."""
    return contextlib.nullcontext() if stream is None else mx.stream(stream)


def hashable(value: Any) -> Any:
    """An argument as it is looked up: a list as a tuple, and a pair of lists, as paddings may be, as a pair of tuples.

    What else MLX refuses or has its own reading of stays as it is.
    """
    if type(value) is list:
        value = tuple(value)
    if type(value) is tuple and len(value) == 2:
        low, high = value
        return tuple(low) if type(low) is list else low, tuple(high) if type(high) is list else high
    return value


def changed(changes: Mapping[str, object]) -> Settings:
    """The settings of a call whose own arguments for them are `changes`, None for those it does not give.

    Raises:
        SettingsError: a value that cannot be.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return _settings.with_changes(_settings.current(), given) if given else _settings.current()


def call(
    untouched: Callable[[], mx.array],
    input: mx.array,
    weight: mx.array,
    raw: tuple[object, ...],
    arguments: dict[str, Any],
    stream: Stream,
    changes: Mapping[str, object],
) -> mx.array:
    """A call that is not known as it is written: in other words perhaps, or on a stream, or under its own settings."""
    settings = changed(changes)
    around = settings if any(value is not None for value in changes.values()) else _settings.override.get()
    with on(stream):
        if not (isinstance(input, mx.array) and isinstance(weight, mx.array)):
            return untouched()
        device = mx.default_device()
        key = (input.shape, weight.shape, input.dtype, weight.dtype, *map(hashable, raw), device_key(), around)
        try:
            run = known.get(key, _UNKNOWN)
        except TypeError:  # an argument that cannot be hashed is one that MLX refuses
            return untouched()
        if run is _UNKNOWN:
            run = _decide(input, weight, arguments, settings, device, key)
        else:
            hit()
        return untouched() if run is None else cast("Convolution", run)(input, weight)


def _decide(
    input: mx.array,
    weight: mx.array,
    arguments: dict[str, Any],
    settings: Settings,
    device: mx.Device,
    key: object,
) -> Convolution | None:
    """Decide what runs a call and remember it under `key`; None if the call goes to MLX as it is."""
    dtype = promoted(input.dtype, weight.dtype)
    if settings.policy is Policy.OFF or dtype is None:
        known[key] = None
        return None
    try:
        problem = Problem.parse(input.shape, weight.shape, DTYPES[dtype], **arguments)
    except (TypeError, ValueError):
        # MLX says what is wrong; but it has no groups in 3D, and its CPU backend ends the process on empty sums.
        if arguments["groups"] != 1 or 0 in weight.shape or input.shape[-1:] == (0,):
            raise
        return None
    if input.size == 0:  # nothing to convolve, and so nothing to decide
        count(Source.NATIVE)
        known[key] = None
        return None
    if is_shapeless(input, weight):  # whatever is faster here could not run
        count(Source.NATIVE)
        return _sizeless(problem, arguments)
    low, high = padding_pair(arguments["padding"])
    crop = cropped(input.shape, low, high)[0] if min(*low, *high) < 0 else None
    note = noter.get()
    if note is not None:
        run = note(problem, settings, device)
        if settings.gradients:
            run = differentiable(run, lambda kind: note(replace(problem, kind=kind), settings, device))
        return _adapted(run, dtype, crop, mixed=input.dtype != weight.dtype)
    found = decided(problem, settings, device)
    candidate = candidate_of(found, problem, device)
    waiting = _for_want_of_time(found, settings)
    run = candidate.build(problem)
    if settings.gradients:
        run = _with_gradients(run, candidate.name == NATIVE, problem, settings, device)
    if listener is not None:
        run = listener(run, problem, found)
    elif candidate.name == NATIVE and is_untouched(problem) and not waiting and not settings.gradients:
        known[key] = None
        return None
    run = _adapted(run, dtype, crop, mixed=input.dtype != weight.dtype)
    if candidate.name != NATIVE or settings.gradients or crop is not None:
        run = sized(run, _sizeless(problem, arguments))
    known[key] = _provisional(run, key) if waiting else run
    return run


def _sizeless(problem: Problem, arguments: Mapping[str, Any]) -> Convolution:
    """MLX's own convolution for a call's arguments, in which no size of the operands stands.

    But where on Metal it would read past the input's end: there the one that pads, of which MLX says that it cannot.
    """
    if not is_untouched(problem):
        built: Convolution = native.ALGORITHM.build(problem)
        return built
    given: Any = {"kernel_dilation" if name == "dilation" else name: value for name, value in arguments.items()}

    def sizeless(input: mx.array, weight: mx.array, /) -> mx.array:
        return mx_conv_general(input, weight, **given)

    return sizeless


def _with_gradients(
    run: Convolution, is_native: bool, problem: Problem, settings: Settings, device: mx.Device
) -> Convolution:
    """`run` with gradients that are decided when they are taken, under the settings of the call.

    Where nothing is known of a gradient, that of another convolution than native is its own operations': they may have
    been chosen because MLX has none or runs out of memory.
    """
    asked = {kind: replace(problem, kind=kind) for kind in (Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT)}
    where = repr(device)

    def gradient_of(kind: Kind) -> Convolution:
        key = (asked[kind], settings, where)
        gradient = known.get(key)
        if gradient is None:
            unmeasured = None if is_native else by_vjp(run, asked[kind])
            gradient = known[key] = _decide_gradient(asked[kind], settings, device, key, unmeasured)
        else:
            hit()
        return gradient

    return differentiable(run, gradient_of)


def _decide_gradient(
    problem: Problem, settings: Settings, device: mx.Device, key: object, unmeasured: Convolution | None
) -> Convolution:
    """Decide what computes a gradient; `unmeasured`, if there is one, where nothing is known of it."""
    found = decided(problem, settings, device)
    if found.source is Source.NATIVE and unmeasured is not None:
        run = unmeasured
    else:
        run = candidate_of(found, problem, device).build(problem)
    if listener is not None:
        run = listener(run, problem, found)

    def on_device(first: mx.array, second: mx.array, /) -> mx.array:
        """On the convolution's device, whichever is the default where the gradient is taken."""
        if mx.default_device() == device:
            return run(first, second)
        with mx.stream(device):
            return run(first, second)

    waiting = problem.addressable and _for_want_of_time(found, settings)
    return _provisional(on_device, key) if waiting else on_device


def _adapted(run: Convolution, dtype: mx.Dtype, crop: tuple[slice, ...] | None, *, mixed: bool) -> Convolution:
    """`run` for operands as they were passed: of two dtypes, or with padding that is negative."""
    if not mixed and crop is None:
        return run

    def adapted(input: mx.array, weight: mx.array, /) -> mx.array:
        if crop is not None:
            input = input[crop]
        return run(input.astype(dtype), weight.astype(dtype))

    return adapted


def _for_want_of_time(made: Decision, settings: Settings) -> bool:
    waits = made.source is Source.NATIVE or made.provisional
    return waits and settings.policy in (Policy.AUTO, Policy.MEASURE)


def _next_look(key: object) -> float:
    """Until when a choice for want of time stands, made now under this key; each time twice as long as the last."""
    wait = _waits[key] = min(MAX_RETRY_S, 2 * _waits.get(key, RETRY_S / 2))
    return time.monotonic() + wait


def _provisional(run: Convolution, key: object) -> Convolution:
    """`run` until some time has passed, when the shape is looked at again."""
    until = _next_look(key)

    def provisional(first: mx.array, second: mx.array, /) -> mx.array:
        if time.monotonic() > until:
            known.pop(key, None)
        return run(first, second)

    return provisional


def is_beaten(algorithm: str, problem: Problem, by: float) -> bool:
    """Whether something else is known to be faster at a problem than an algorithm in any way, by more than that part.

    Not where nothing is known, nor where times are asked for and there are none yet.
    """
    settings = _settings.current()
    if settings.policy is Policy.OFF:
        return False
    note = noter.get()
    if note is not None:
        note(problem, settings, mx.default_device())
        return False
    key = (algorithm, problem, by, device_key(), _settings.override.get())
    answer, until = _beaten.get(key, (False, -math.inf))
    if time.monotonic() < until:
        return answer
    made = decided(problem, settings, mx.default_device())
    if made.source is Source.NATIVE or made.candidate.partition("(")[0] == algorithm:
        answer = False
    else:
        best = made.median_us(made.candidate)
        own = [v.record.median_us for v in made.verdicts if v.record.algorithm == algorithm]
        times = [time_us for time_us in own if time_us is not None]
        answer = best is None or not times or min(times) > (1 + by) * best
    _beaten[key] = answer, _next_look(key) if _for_want_of_time(made, settings) else math.inf
    return answer


def forget() -> None:
    """Forget every decision of this process; databases keep theirs."""
    known.clear()
    _waits.clear()
    _beaten.clear()


_settings.on_configure.append(forget)


def count_of(counter: itertools.count[int]) -> int:
    """How far a counter is; a look that does not count."""
    return int(repr(counter).removeprefix("count(").removesuffix(")"))


def hits() -> int:
    """Calls so far whose shape was known."""
    return count_of(_counter)
