"""What patching costs: MLX's functions as they are and patched, in turns, in one process.

Nothing is evaluated: all only add an operation to the graph. The 3D shapes are known; native is what runs them, and
once more, as "chosen", a function that calls it as any other algorithm is run, beside that function by itself.
"""

from __future__ import annotations

import functools
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
from autoconv import _calls
from autoconv._tracing import sized

TARGETS_US = {"3D": 2.5, "2D": 0.8}

Call = Callable[..., Any]
Calls = dict[str, tuple[Call, Call, Call]]


def operands() -> tuple[mx.array, mx.array]:
    """Those of a 3D convolution."""
    return mx.zeros((1, 5, 16, 16, 32)), mx.zeros((32, 3, 3, 3, 32))


def calls() -> Calls:
    """By name, a call of MLX's own function, the same of what stands for it, and MLX's own of any operands."""
    video, taps = operands()
    image, kernel = mx.zeros((1, 16, 16, 32)), mx.zeros((32, 3, 3, 32))
    line, filters = mx.zeros((1, 16, 32)), mx.zeros((32, 3, 32))
    ones, list_of_ones = (1, 1, 1), [1, 1, 1]

    def of(name: str, *given: Any, **arguments: Any) -> tuple[Call, Call, Call]:
        plain: Any = getattr(mx, name)
        with autoconv.patch():
            patched: Any = getattr(mx, name)
        more = given[2:]

        def run(input: mx.array, weight: mx.array) -> mx.array:
            found: mx.array = plain(input, weight, *more, **arguments)
            return found

        return (lambda: plain(*given, **arguments)), (lambda: patched(*given, **arguments)), run

    return {
        "3D conv3d": of("conv3d", video, taps, padding=1),
        "3D conv3d, as nn.Conv3d writes it": of("conv3d", video, taps, ones, ones, ones),
        "3D conv3d, of lists": of("conv3d", video, taps, list_of_ones, list_of_ones, list_of_ones),
        "3D conv_general": of("conv_general", video, taps, padding=1),
        "3D conv_general, of lists": of("conv_general", video, taps, list_of_ones, list_of_ones),
        "3D conv_general, a pair of lists": of("conv_general", video, taps, padding=(list_of_ones, list_of_ones)),
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
        chosen = [(f"{name}, chosen", of_it) for name, of_it in pairs.items() if name.startswith("3D")]
        for name, (plain, patched, run) in [*pairs.items(), *chosen]:
            _calls.forget()
            patched()  # from here on a 3D shape is known
            if "chosen" in name:
                _calls.known.update((key, sized(run, run)) for key in _calls.known)
                plain = functools.partial(run, *operands())  # noqa: PLW2901 - what stands beside it is another
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
                f"{name:42} {row['plain_us']:6.2f} {row['patched_us']:6.2f}  {row['overhead_us']:+.2f} of "
                f"{row['target_us']} at most, {row['ratio']:.2f}x (noise {row['noise_us']:.2f})"
            )
        click.echo(f"{'nn.Conv3d':42} {found['layers']['plain_us']:6.2f} {found['layers']['patched_us']:6.2f}")
    if any(row["overhead_us"] > row["target_us"] for row in found["calls"].values()):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
