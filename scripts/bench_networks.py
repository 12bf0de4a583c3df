"""Real networks as a whole, stock MLX beside the same code under `autoconv.patch()`, in turns, in one process.

Each network is run to see what it convolves, once stock and twice patched, in which shapes are decided, and then both
ways in turns. Its outputs must agree: each convolution may be off from native by native's own error `e` and
by what `accuracy` lets a candidate be off, and the errors of layers, which know nothing of each other, add up as
squares. So the relative L2 distance of the whole outputs is at most `sqrt(layers) * (e + bound(accuracy, e))`, `e`
being the largest of native's errors that the database tells of. Of classifiers, the features are compared that they
take the mean of.

MLX has no groups in 3D: where a network has any, the stock column gives MLX's own error, and the output is compared
with that of depthwise convolutions added up by taps, in float32.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from mlx.utils import tree_flatten
from networks import NETWORKS, Network
from networks._calls import recorded
from networks._network import Model
from networks._norm import calibrated
from rich.table import Table

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
from autoconv.report.tables import console

TF32 = 2.0**-11
"""About native's error in float32 where MLX rounds operands to TF32."""

COLUMNS = (
    "network", "dtype", "input", "stock ms", "patched ms", "ratio", "spread", "stock MB", "patched MB", "apart",
    "at most", "shapes", "decisions", "tuned s",
)  # fmt: skip

Run = Callable[[], mx.array]


@dataclass(frozen=True)
class Way:
    """What a network takes, run one way.

    Attributes:
        seconds: Those of each turn.
        peak_bytes: The most that MLX held in one, weights and input among it; None where it was not run.
        failed: Why there are no times; empty where there are.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    failed: str = ""

    @property
    def median_s(self) -> float | None:
        """Of the turns, None where there are none."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Result:
    """One network's figures.

    Attributes:
        stock: MLX's own.
        patched: The same code under `autoconv.patch()`.
        calls: 3D convolutions of one pass.
        shapes: Different ones.
        apart: Relative L2 distance of the patched output from the stock one; None where that is not finite.
        allowed: How far they may be apart.
        decisions: New decisions while it ran patched, by where they came from; `memory` counts calls of known shapes.
        tuned_s: Seconds that timing took, inside calls and by `prepare`.
        prepared: What `prepare` met and did; None where it was not asked to.
        failed: Why there are no figures; empty where there are.
    """

    network: str
    title: str
    dtype: str
    input_shape: tuple[int, ...]
    stock: Way = Way()
    patched: Way = Way()
    calls: int = 0
    shapes: int = 0
    apart: float | None = None
    allowed: float | None = None
    decisions: dict[str, int] = field(default_factory=dict)
    tuned_s: float = 0.0
    prepared: dict[str, Any] | None = None
    failed: str = ""

    @property
    def ratio(self) -> float | None:
        """Stock's median time over that of patched."""
        stock, patched = self.stock.median_s, self.patched.median_s
        return stock / patched if stock and patched else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the largest ratio of one turn."""
        ratios = [a / b for a, b in zip(self.stock.seconds, self.patched.seconds, strict=False)]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def agrees(self) -> bool:
        """Whether the patched output is as near to stock's as it must be."""
        return self.apart is not None and self.allowed is not None and self.apart <= self.allowed

    @property
    def why(self) -> str:
        """What is wrong with autoconv here, empty where nothing is; what stock cannot do is not."""
        if self.failed or self.patched.failed:
            return self.failed or self.patched.failed
        return "" if self.agrees else "the outputs do not agree"

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {
            "stock_ms": _ms(self.stock),
            "patched_ms": _ms(self.patched),
            "ratio": self.ratio,
            "spread": self.spread,
            "agrees": self.agrees,
        }

    def notes(self) -> list[str]:
        """A line for each thing that failed."""
        failed = {"stock": self.stock.failed, "patched": self.patched.failed, "": self.failed}
        return [" ".join(filter(None, (self.title, name))) + f": {why}" for name, why in failed.items() if why]

    def row(self) -> tuple[str, ...]:
        """A row of text, in the order of `COLUMNS`."""
        decisions = ", ".join(f"{count} {source}" for source, count in self.decisions.items() if count)
        return (
            self.title,
            self.dtype,
            ",".join(map(str, self.input_shape)),
            _text(_ms(self.stock), "{:.1f}") or "failed",
            _text(_ms(self.patched), "{:.1f}") or "failed",
            _text(self.ratio, "{:.2f}x"),
            "" if self.spread is None else "{:.2f} to {:.2f}".format(*self.spread),
            _text(self.stock.peak_bytes, "{:.0f}", 1e6),
            _text(self.patched.peak_bytes, "{:.0f}", 1e6),
            _text(self.apart, "{:.1e}"),
            _text(self.allowed, "{:.1e}"),
            f"{self.shapes} in {self.calls} calls",
            decisions,
            f"{self.tuned_s:.1f}",
        )


def _ms(way: Way) -> float | None:
    return None if way.median_s is None else way.median_s * 1e3


def _text(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)


@dataclass(frozen=True)
class Asked:
    """What is asked of all networks.

    Attributes:
        size: `full` or `small`.
        dtype: Of weights and input.
        repeats: Turns.
        prepare: Whether to tune with `autoconv.prepare` first.
        time_limit: How long that may take a network; None for as long as it takes.
    """

    size: str = "full"
    dtype: str = "bfloat16"
    repeats: int = 5
    prepare: bool = False
    time_limit: str | None = None


def measure(network: Network, asked: Asked) -> Result:
    """One network's figures; what fails is told in them."""
    size = network.at(asked.size)
    begun: dict[str, Any] = {
        "network": network.name, "title": network.title, "dtype": asked.dtype, "input_shape": size.input_shape,
    }  # fmt: skip
    try:
        return Result(**begun, **_figures(network, asked))
    except (AutoconvError, RuntimeError, ValueError, MemoryError) as error:
        return Result(**begun, failed=_said(error))
    finally:
        mx.clear_cache()


def _figures(network: Network, asked: Asked) -> dict[str, Any]:
    size, dtype = network.at(asked.size), getattr(mx, asked.dtype)
    mx.random.seed(0)
    model = size.build()
    x = mx.random.normal(size.input_shape)
    with recorded():
        calibrated(model, x)
    model.set_dtype(dtype)
    x = x.astype(dtype)
    mx.eval(model.parameters(), x)
    with recorded() as met:
        mx.eval(model(x))
    compared = getattr(model, "features", model)  # the mean over positions would hide much
    with recorded():
        expected = compared(x)
        mx.eval(expected)
    figures: dict[str, Any] = {"calls": met.total(), "shapes": len(met)}
    tuned_s = dispatcher().tuned_s
    if asked.prepare:
        start = time.perf_counter()
        figures["prepared"] = asdict(autoconv.prepare(model, x, time_limit=asked.time_limit))
        tuned_s -= time.perf_counter() - start

    def patched(function: Model = model) -> mx.array:
        with autoconv.patch():
            y = function(x)
            mx.eval(y)
            return y

    before = autoconv.statistics()
    ways: dict[str, Run] = {"stock": lambda: model(x), "patched": patched}
    failed: dict[str, str] = {}
    for name, run in ways.items():
        with _noted(failed, name):
            mx.eval(run())
    with _noted(failed, "patched"):
        figures["apart"] = finite(distance(patched(compared), expected))
        figures["allowed"] = allowed(met, _layers(model), asked.dtype)
    del expected
    figures |= in_turns(ways, failed, asked.repeats)
    after = autoconv.statistics()
    figures["decisions"] = {source: count - before[source] for source, count in after.items()}
    return figures | {"tuned_s": dispatcher().tuned_s - tuned_s}


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note what MLX or autoconv raises, such as for want of memory."""
    try:
        yield
    except (AutoconvError, RuntimeError, ValueError, MemoryError) as error:
        failed.setdefault(name, _said(error))
        mx.clear_cache()


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def in_turns(ways: dict[str, Run], failed: dict[str, str], repeats: int) -> dict[str, Way]:
    """Each way's times and memory, but of those that failed already; the ways take turns."""
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
    """Relative L2 distance, in float32; NaN where something is."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    return math.sqrt(float(mx.square(found - expected).sum()) / float(mx.square(expected).sum()))


def allowed(problems: Iterable[Problem], layers: int, dtype: str) -> float:
    """How far patched may be from stock; see the module's own words."""
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


def show(results: Sequence[Result]) -> None:
    """Print a row a network, and what failed."""
    found = Table(box=None, header_style="bold", pad_edge=False)
    for name in COLUMNS:
        words = name in ("network", "dtype", "input", "decisions")
        found.add_column(name, justify="left" if words else "right", overflow="fold")
    for result in results:
        found.add_row(*result.row())
    console().print(found)
    for result in results:
        for note in result.notes():
            console().print(note)


@click.command(
    epilog="Example: python scripts/bench_networks.py --network wan21 --network nnunet --prepare --out networks.json"
)
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)), help="Default: all of them.")
@click.option("--size", type=click.Choice(["full", "small"]), default="full", show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns.")
@click.option("--policy", type=click.Choice([str(p) for p in _settings.Policy]), help="Default: the one in force.")
@click.option("--prepare", is_flag=True, help="Time what each network convolves first, by `autoconv.prepare`.")
@click.option("--time-limit", help="How long that may take for each, such as 90s. Default: as long as it takes.")
@click.option("--database", type=click.Path(path_type=Path), help="Default: the one in force.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the figures in this file as they come.")
def main(
    names: Sequence[str],
    size: str,
    dtype: str,
    repeats: int,
    policy: str | None,
    prepare: bool,
    time_limit: str | None,
    database: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Time whole networks, stock and patched."""
    autoconv.unpatch()  # AUTOCONV_PATCH would make stock patched too
    changes: dict[str, Any] = {"policy": policy, "database": database}
    autoconv.configure(**{name: value for name, value in changes.items() if value is not None})
    here = str(environment.of(mx.default_device()))
    asked = Asked(size, dtype, repeats, prepare, time_limit)
    results: list[Result] = []

    def report() -> str:
        networks = [result.as_dict() for result in results]
        return json.dumps({"device": here, "policy": str(_settings.current().policy), "networks": networks}, indent=1)

    if not as_json:
        click.echo(here)
    for name in dict.fromkeys(names or NETWORKS):
        results.append(measure(NETWORKS[name], asked))
        if not as_json:
            show(results[-1:])
        if out is not None:
            partial = out.with_name(out.name + ".partial")
            partial.write_text(report() + "\n", encoding="utf-8")
            partial.replace(out)
    if as_json:
        click.echo(report())
    elif len(results) > 1:
        show(results)
    wrong = [f"{result.network}: {result.why}" for result in results if result.why]
    if wrong:
        raise click.ClickException("; ".join(wrong))


if __name__ == "__main__":
    main()
