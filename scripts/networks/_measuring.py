"""A network is run stock and patched, in turns, and the outputs are compared."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

import autoconv
from autoconv import environment
from autoconv import settings as _settings
from autoconv.accuracy import FLOOR, bound
from autoconv.decision import NATIVE
from autoconv.dispatch import dispatcher
from autoconv.environment import Environment
from autoconv.errors import AutoconvError
from autoconv.problem import Problem
from autoconv.report.explanation import finite
from networks import wan21, wan21_causal
from networks._calls import recorded
from networks._comparison import Comparison, Way
from networks._network import Model, Network
from networks._norm import calibrated

CAUSAL: Mapping[str, Callable[[Any], Any]] = {wan21.NETWORK.name: wan21_causal.causal}
"""What makes of a model the same with autoconv's causal convolutions, by the network's name."""

TF32 = 2.0**-11
"""About native's error in float32 where MLX rounds operands to TF32."""

SURVIVED = (AutoconvError, RuntimeError, ValueError, MemoryError)
"""What MLX and autoconv raise for want of memory, or for what they cannot do."""

Run = Callable[[], mx.array]


@dataclass(frozen=True)
class Asked:
    """What is asked of all networks.

    Attributes:
        size: `full` or `small`.
        dtype: Of weights and input.
        repeats: Turns.
        prepare: Whether to tune with `autoconv.prepare` first.
        time_limit: How long that may take a network; None for as long as it takes.
        causal: Whether to run those that there are with autoconv's causal convolutions as well.
    """

    size: str = "full"
    dtype: str = "bfloat16"
    repeats: int = 5
    prepare: bool = False
    time_limit: str | None = None
    causal: bool = False


def measure(network: Network, asked: Asked) -> Comparison:
    """One network's figures; what fails is told in them."""
    begun = Comparison(network.name, network.title, asked.dtype, network.at(asked.size).input_shape)
    try:
        return replace(begun, **_figures(network, asked))
    except SURVIVED as error:
        return replace(begun, failed=_said(error))
    finally:
        mx.clear_cache()


def _figures(network: Network, asked: Asked) -> dict[str, Any]:
    model, x = _made(network, asked)
    compared = {"patched": model} | _causal(network, model, asked)
    with recorded() as met:
        expected = model(x)
        mx.eval(expected)
    if features(model) is not model:
        with recorded():
            expected = features(model)(x)
            mx.eval(expected)
    figures: dict[str, Any] = {"calls": met.total(), "shapes": len(met)}
    tuned_s, before = dispatcher().tuned_s, autoconv.statistics()
    if asked.prepare:
        start = time.perf_counter()
        figures["prepared"] = asdict(autoconv.prepare(_all_of(compared), x, time_limit=asked.time_limit))
        tuned_s -= time.perf_counter() - start
    ways: dict[str, Run] = {"stock": lambda: model(x)}
    ways |= {name: _patched(other, x) for name, other in compared.items()}
    failed: dict[str, str] = {}
    apart: dict[str, float | None] = {}
    for name, run in ways.items():
        with _noted(failed, name):
            mx.eval(run())
            if name != "stock":
                apart[name] = finite(distance(_patched(features(compared[name]), x)(), expected))
    figures["allowed"] = allowed(met, _layers(model), asked.dtype)
    del expected
    found = in_turns(ways, failed, asked.repeats)
    figures |= {name: replace(way, apart=apart.get(name)) for name, way in found.items()}
    after = autoconv.statistics()
    figures["decisions"] = {source: count - before[source] for source, count in after.items()}
    return figures | {"tuned_s": dispatcher().tuned_s - tuned_s}


def _all_of(models: Mapping[str, Model]) -> Callable[[mx.array], list[mx.array]]:
    return lambda x: [model(x) for model in models.values()]


def _made(network: Network, asked: Asked) -> tuple[Any, mx.array]:
    """(a model of random weights, the same at each run; an input)."""
    mx.random.seed(0)
    size, dtype = network.at(asked.size), getattr(mx, asked.dtype)
    model, x = size.build(), mx.random.normal(size.input_shape)
    with recorded():
        calibrated(model, x)
    model.set_dtype(dtype)
    x = x.astype(dtype)
    mx.eval(model.parameters(), x)
    return model, x


def _causal(network: Network, model: Any, asked: Asked) -> dict[str, Any]:
    make = CAUSAL.get(network.name) if asked.causal else None
    return {} if make is None else {"causal": make(model)}


def features(model: Any) -> Any:
    """What is compared: of classifiers what their last convolutions make, as the mean of all positions hides much."""
    return getattr(model, "features", model)


def _patched(model: Model, x: mx.array) -> Run:
    def run() -> mx.array:
        with autoconv.patch():
            y = model(x)
            mx.eval(y)
            return y

    return run


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note what MLX or autoconv raises."""
    try:
        yield
    except SURVIVED as error:
        failed[name] = _said(error)
        mx.clear_cache()


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def in_turns(ways: Mapping[str, Run], failed: dict[str, str], repeats: int) -> dict[str, Way]:
    """Each way's times and memory, but of those that failed already or do so now; the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = {}
    for _ in range(repeats):
        for name in (name for name in ways if name not in failed):
            with _noted(failed, name):
                taken, peak = timed(ways[name])
                seconds[name].append(taken)
                peaks[name] = max(peak, peaks.get(name, 0))
    return {
        name: Way((), None, failed[name]) if name in failed else Way(tuple(seconds[name]), peaks.get(name))
        for name in ways
    }


def timed(run: Run) -> tuple[float, int]:
    """(seconds, most bytes that MLX held) of one evaluated run."""
    mx.synchronize()
    mx.reset_peak_memory()
    start = time.perf_counter()
    mx.eval(run())
    mx.synchronize()
    return time.perf_counter() - start, mx.get_peak_memory()


def distance(found: mx.array, expected: mx.array) -> float:
    """Relative L2 distance, in float32; not finite where something is not."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    return math.sqrt(float(mx.square(found - expected).sum()) / float(mx.square(expected).sum()))


def allowed(problems: Iterable[Problem], layers: int, dtype: str) -> float:
    """How far a patched output may be from stock, as relative L2 distance.

    A convolution may be off from native by native's own error and by what `accuracy` lets a candidate be off. Errors of
    layers know nothing of each other, so that their squares add up.

    Args:
        problems: The convolutions. The largest error of native's that the database tells of is taken for all.
        layers: How many of them a value passes at most.
        dtype: Theirs.
    """
    device, settings = mx.default_device(), _settings.current()
    errors = [
        verdict.record.error
        for problem in problems
        for verdict in dispatcher().explanation(problem, settings, device).decision.verdicts
        if verdict.record.candidate == NATIVE and finite(verdict.record.error) is not None
    ]
    native = max((e for e in errors if e is not None), default=_rounding(dtype, environment.of(device)))
    return math.sqrt(layers) * (native + bound(settings.accuracy, dtype, native))


def _rounding(dtype: str, where: Environment) -> float:
    """About native's error where no record tells."""
    tf32 = where.backend == "cuda" and where.identity.get("MLX_ENABLE_TF32") != "0"
    return TF32 if tf32 and dtype == "float32" else FLOOR[dtype] / 2


def _layers(model: Any) -> int:
    """How many 3D convolutions a model has; no value passes more of them."""
    parameters: Any = tree_flatten(model.parameters())
    return sum(weight.ndim == 5 for _, weight in parameters)
