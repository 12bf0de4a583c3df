"""What patching costs: MLX's functions as they are and patched, in turns, in one process.

Nothing is evaluated: all only add an operation to the graph. The 3D shapes are known, and native is what runs them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import mlx.nn
from bench_dispatch import in_turns

import autoconv

TARGETS_US = {"3D": 2.5, "2D": 0.8}

Calls = dict[str, tuple[Callable[[], object], Callable[[], object]]]


def calls() -> Calls:
    """By name, a call of MLX's own function and the same of what stands for it, which is looked up once."""
    video, taps = mx.zeros((1, 5, 16, 16, 32)), mx.zeros((32, 3, 3, 3, 32))
    image, kernel = mx.zeros((1, 16, 16, 32)), mx.zeros((32, 3, 3, 32))
    line, filters = mx.zeros((1, 16, 32)), mx.zeros((32, 3, 32))
    ones = (1, 1, 1)

    def of(name: str, *operands: Any, **arguments: Any) -> tuple[Callable[[], object], Callable[[], object]]:
        plain: Any = getattr(mx, name)
        with autoconv.patch():
            patched: Any = getattr(mx, name)
        return (lambda: plain(*operands, **arguments)), (lambda: patched(*operands, **arguments))

    return {
        "3D conv3d": of("conv3d", video, taps, padding=1),
        "3D conv3d, as nn.Conv3d writes it": of("conv3d", video, taps, ones, ones, ones),
        "3D conv_general": of("conv_general", video, taps, padding=1),
        "2D conv_general": of("conv_general", image, kernel, padding=1),
        "2D conv_general, uneven padding": of("conv_general", image, kernel, padding=([1, 0], [0, 1])),
        "1D conv_general": of("conv_general", line, filters, padding=1),
        "2D conv2d": of("conv2d", image, kernel, padding=1),
        "1D conv1d": of("conv1d", line, filters, padding=1),
    }


def measure(turns: int, number: int) -> dict[str, Any]:
    """The figures, by name with their units."""
    rows, pairs = {}, calls()
    with (
        tempfile.TemporaryDirectory() as folder,
        autoconv.using(policy="record", database=Path(folder) / "bench.db"),
        autoconv.patch(),
    ):
        for name, (plain, patched) in pairs.items():
            patched()  # from here on a 3D shape is known
            samples = in_turns({"plain": plain, "patched": patched, "again": plain}, turns, number)
            extra = [b - a for a, b in zip(samples["plain"], samples["patched"], strict=True)]
            null = [b - a for a, b in zip(samples["plain"], samples["again"], strict=True)]
            rows[name] = {
                "plain_us": statistics.median(samples["plain"]),
                "patched_us": statistics.median(samples["patched"]),
                "overhead_us": statistics.median(extra),
                "noise_us": statistics.median(map(abs, null)),
                "ratio": statistics.median(samples["patched"]) / statistics.median(samples["plain"]),
                "target_us": TARGETS_US.get(name[:2], TARGETS_US["2D"]),
            }
    return {
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # its stub has none
        "device": str(mx.device_info().get("device_name")),
        "calls": rows,
        "layers": layers(turns, max(1, number // 10)),
    }


def layers(turns: int, number: int) -> dict[str, float]:
    """Microseconds of a layer's call, patched or not; patching takes turns with it, as in `with autoconv.patch()`."""
    layer: Any = mlx.nn.Conv3d(32, 32, 3, padding=1)  # type: ignore[attr-defined]  # MLX's layers have no types
    x = mx.zeros((1, 5, 16, 16, 32))
    samples: dict[str, list[float]] = {"plain": [], "patched": []}
    with tempfile.TemporaryDirectory() as folder, autoconv.using(policy="record", database=Path(folder) / "bench.db"):
        with autoconv.patch():
            layer(x)
        for _ in range(turns):
            samples["plain"] += in_turns({"plain": lambda: layer(x)}, 1, number)["plain"]
            with autoconv.patch():
                samples["patched"] += in_turns({"patched": lambda: layer(x)}, 1, number)["patched"]
    return {f"{name}_us": statistics.median(found) for name, found in samples.items()}


@click.command(epilog="Example: python scripts/bench_patch.py --json")
@click.option("--turns", type=int, default=200, show_default=True, help="Turns of both.")
@click.option("--number", type=int, default=500, show_default=True, help="Calls in a turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(turns: int, number: int, as_json: bool) -> None:
    """Time calls of patched functions beside those of MLX's own; exit code 1 where one costs more than it may."""
    found = measure(turns, number)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{found['device']}, MLX {found['mlx']}; microseconds a call, and what patching adds")
        for name, row in found["calls"].items():
            click.echo(
                f"{name:34} {row['plain_us']:6.2f} {row['patched_us']:6.2f}  {row['overhead_us']:+.2f} of "
                f"{row['target_us']} at most, {row['ratio']:.2f}x (noise {row['noise_us']:.2f})"
            )
        click.echo(f"{'nn.Conv3d':34} {found['layers']['plain_us']:6.2f} {found['layers']['patched_us']:6.2f}")
    if any(row["overhead_us"] > row["target_us"] for row in found["calls"].values()):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
