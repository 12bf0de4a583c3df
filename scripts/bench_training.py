"""A training step of real layers, forward and both gradients: MLX's own beside autoconv's, in turns, in one process.

Each layer is tuned first, its convolution and its two gradients, unless the database tells of them already. Then the
whole step is timed both ways, as a user takes it: `mx.vjp` of `mx.conv3d` and of `autoconv.conv3d`.

Resumable: what is tuned is in the database, what is timed in the file of `--json`. A layer during which the process
ended is not tried again.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

import autoconv
from autoconv import environment
from autoconv import settings as _settings
from autoconv.dispatch import dispatcher
from autoconv.errors import AccuracyError, TuningError
from autoconv.problem import Kind, Problem
from autoconv.settings import Settings
from autoconv.sweep import Layer, packaged_workloads, read_workload
from autoconv.sweep.runner import unique

MIN_SAMPLE_S = 5e-3
TARGET = 1.2

Step = Callable[[], None]


def layers_of(workloads: Sequence[str], dtype: str | None, batch: int | None, max_gflop: float) -> list[Layer]:
    """The workloads' layers, each problem once."""
    packaged = packaged_workloads()
    found = [layer for name in workloads for layer in read_workload(packaged.get(name, Path(name)))]
    if dtype is not None:
        found = [replace(la, problem=replace(la.problem, dtype=dtype)) for la in found]
    if batch is not None:
        found = [
            replace(la, problem=replace(la.problem, input_shape=(batch, *la.problem.input_shape[1:]))) for la in found
        ]
    return [la for la in unique(found) if la.problem.flops <= max_gflop * 1e9]


def tuned(problem: Problem, chosen: Settings, device: mx.Device) -> dict[str, dict[str, Any]]:
    """What computes each of the three, and its time beside native's where it was taken."""
    found = {}
    for kind in Kind:
        asked, why = replace(problem, kind=kind), ""
        try:
            decision = dispatcher().look_up(asked, chosen, device)
            decision = decision or dispatcher().tune(asked, chosen, device, anew=False)
        except (TuningError, AccuracyError) as error:
            decision, why = dispatcher().look_up(asked, chosen, device), str(error)
        verdicts = decision.verdicts if decision else ()
        found[str(kind)] = {
            "candidate": decision.candidate if decision else "native",
            "why": why,
            "candidates": {
                v.record.candidate: {"status": str(v.status), "us": v.record.median_us, "error": v.record.error}
                for v in verdicts
                if v.record.error is None or math.isfinite(v.record.error)
            },
        }
        mx.clear_cache()
    return found


def steps(problem: Problem) -> dict[str, Step]:
    """The step of MLX and that of autoconv on the same operands."""
    dtype = getattr(mx, problem.dtype)
    keys = mx.random.split(mx.random.key(0), 3)
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    x, w, c = (mx.random.normal(shape, dtype=dtype, key=key) for shape, key in zip(shapes, keys, strict=True))
    mx.eval(x, w, c)
    padding = (problem.padding_low, problem.padding_high)
    arguments: Any = (problem.stride, padding, problem.dilation, problem.input_dilation, problem.groups, problem.flip)

    def step_of(convolve: Callable[..., mx.array]) -> Step:
        def step() -> None:
            outputs, gradients = mx.vjp(lambda x, w: convolve(x, w, *arguments), [x, w], [c])
            mx.eval(outputs, gradients)

        return step

    return {"mlx": step_of(mx.conv_general), "autoconv": step_of(autoconv.conv_general)}


def in_turns(runs: dict[str, Step], turns: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(milliseconds of a step in each turn, why there are none) by name."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    first: dict[str, float] = {}
    for name, run in runs.items():
        with _noting(failed, name):
            run()
            first[name] = min(_timed(run, 1), _timed(run, 1))
    repetitions = max(1, min(100, math.ceil(MIN_SAMPLE_S / min(first.values())))) if first else 0
    for _ in range(turns):
        for name in first.keys() - failed.keys():
            with _noting(failed, name):
                samples[name].append(_timed(runs[name], repetitions) * 1e3)
    return {name: [] if name in failed else times for name, times in samples.items()}, failed


@contextlib.contextmanager
def _noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note what MLX raises, such as for want of memory."""
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        failed[name] = " ".join(str(error).split())[:300]
        mx.clear_cache()


def _timed(run: Step, repetitions: int) -> float:
    mx.synchronize()
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    mx.synchronize()
    return (time.perf_counter() - start) / repetitions


def measure(layer: Layer, chosen: Settings, device: mx.Device, turns: int) -> dict[str, Any]:
    """One layer's figures."""
    problem = layer.problem
    row: dict[str, Any] = {"kinds": tuned(problem, chosen, device)}
    try:
        runs = steps(problem)
    except (RuntimeError, MemoryError) as error:
        return row | {"failed": {"operands": " ".join(str(error).split())[:300]}}
    samples, failed = in_turns(runs, turns)
    for name, times in samples.items():
        row[f"{name}_ms"] = statistics.median(times) if times else None
    row["ratio"] = row["mlx_ms"] / row["autoconv_ms"] if row["mlx_ms"] and row["autoconv_ms"] else None
    return row | {"failed": failed}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """By network: the sum of count x MLX's time over that of count x autoconv's, where both have one."""
    found: dict[str, dict[str, float | int | None]] = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        both = [row for row in mine if row.get("ratio")]
        before, after = (sum(row["count"] * row[name] for row in both) for name in ("mlx_ms", "autoconv_ms"))
        found[network] = {
            "layers": len(mine),
            "compared": len(both),
            "mlx_ms": before,
            "autoconv_ms": after,
            "ratio": before / after if after else None,
            "only_autoconv": sum(bool(row.get("autoconv_ms")) and not row.get("mlx_ms") for row in mine),
        }
    return found


def line(row: dict[str, Any]) -> str:
    """A layer's figures in one line."""
    if row.get("state") == "begun":
        return f"{row['layer']}: the process ended here"
    times = (f"{row[n]:.3f}" if row.get(n) else "-" for n in ("mlx_ms", "autoconv_ms"))
    ratio = f"{row['ratio']:.2f}x" if row.get("ratio") else "-"
    winners = ", ".join(f"{kind}: {found['candidate']}" for kind, found in row["kinds"].items())
    failed = "".join(f"; {name} failed: {why[:80]}" for name, why in row["failed"].items())
    return f"{ratio}  mlx {' ms, autoconv '.join(times)} ms  x{row['count']}  {row['problem']}  [{winners}]{failed}"


@click.command(epilog="Example: python scripts/bench_training.py nnunet svd_unet --dtype bfloat16 --json training.json")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD ...]")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Instead of the layers' own.")
@click.option("--batch", type=click.IntRange(min=1), help="Instead of the layers' own N.")
@click.option("--max-gflop", type=float, default=math.inf, help="Leave out larger convolutions.")
@click.option("--turns", type=click.IntRange(min=1), default=7, show_default=True, help="Samples of each step.")
@click.option("--database", type=click.Path(path_type=Path), help="Default: the user's own.")
@click.option(
    "--json", "out", type=click.Path(path_type=Path), help="Keep the figures in this file, and go on from it."
)
def main(
    workloads: Sequence[str],
    dtype: str | None,
    batch: int | None,
    max_gflop: float,
    turns: int,
    database: Path | None,
    out: Path | None,
) -> None:
    """Time a training step of the layers of WORKLOADs; default: nnunet and svd_unet."""
    device = mx.default_device()
    autoconv.configure(gradients=True, policy="measure")
    if database is not None:
        autoconv.configure(database=database)
    layers = layers_of(workloads or ("nnunet", "svd_unet"), dtype, batch, max_gflop)
    rows: dict[str, dict[str, Any]] = {}
    if out is not None and out.exists():
        rows = {row["problem"]: row for row in json.loads(out.read_text(encoding="utf-8"))["layers"]}
    click.echo(f"{environment.of(device)}: {len(layers)} layers")

    def keep(row: dict[str, Any]) -> None:
        rows[row["problem"]] = row
        if out is not None:
            found = {"device": str(environment.of(device)), "layers": list(rows.values())}
            partial = out.with_name(out.name + ".partial")
            partial.write_text(json.dumps(found | {"summary": summary(list(rows.values()))}, indent=2), "utf-8")
            partial.replace(out)

    for layer in layers:
        key = layer.problem.key
        if key not in rows:
            row = {"problem": key, "network": layer.network, "layer": layer.layer, "count": layer.count}
            keep(row | {"state": "begun"})
            keep(row | {"state": "done"} | measure(layer, _settings.current(), device, turns))
            mx.clear_cache()
        click.echo(line(rows[key]))
    for network, found in summary([rows[la.problem.key] for la in layers]).items():
        ratio = f"{found['ratio']:.2f}x" if found["ratio"] else "-"
        click.echo(
            f"{network}: {ratio} time-weighted over {found['compared']} of {found['layers']} layers (goal {TARGET}x); "
            f"{found['only_autoconv']} that MLX cannot do"
        )


if __name__ == "__main__":
    main()
