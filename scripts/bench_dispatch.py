"""What deciding costs once a shape is known: autoconv.conv3d beside mx.conv3d, in turns, in one process.

Neither evaluates anything: both only add an operation to the graph.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import click
import mlx.core as mx

import autoconv

TARGET_US = 2.5
HEAVY = ("sklearn", "sqlite_utils", "joblib", "rich")


def in_turns(calls: dict[str, Callable[[], object]], turns: int, number: int) -> dict[str, list[float]]:
    """Microseconds of one call, for each of some turns in which all calls have theirs."""
    timers = {name: timeit.Timer(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, timer in timers.items():
            samples[name].append(timer.timeit(number) / number * 1e6)
    return samples


def imported() -> list[str]:
    """Which of the heavy packages `import autoconv` brings in."""
    code = f"import sys, autoconv; print(*[m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def measure(turns: int, number: int) -> dict[str, object]:
    """The figures, by name with their units."""
    x = mx.zeros((1, 5, 16, 16, 32))
    w = mx.zeros((32, 3, 3, 3, 32))
    with tempfile.TemporaryDirectory() as folder, autoconv.using(policy="record", database=Path(folder) / "bench.db"):
        autoconv.conv3d(x, w, padding=1)  # from here on the shape is known, and native runs it
        known = autoconv.statistics()["memory"]
        samples = in_turns(
            {
                "mlx": lambda: mx.conv3d(x, w, padding=1),
                "autoconv": lambda: autoconv.conv3d(x, w, padding=1),
                "autoconv_tuples": lambda: autoconv.conv3d(x, w, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
            },
            turns,
            number,
        )
        known = autoconv.statistics()["memory"] - known
    extra = [a - b for a, b in zip(samples["autoconv"], samples["mlx"], strict=True)]
    return {
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # its stub has none
        "device": str(mx.device_info().get("device_name")),
        "mlx_us": statistics.median(samples["mlx"]),
        "autoconv_us": statistics.median(samples["autoconv"]),
        "autoconv_tuples_us": statistics.median(samples["autoconv_tuples"]),
        "overhead_us": statistics.median(extra),
        "overhead_spread_us": max(extra) - min(extra),
        "ratio": statistics.median(samples["autoconv"]) / statistics.median(samples["mlx"]),
        "target_us": TARGET_US,
        "known_calls": known,
        "heavy_imports": imported(),
    }


@click.command(epilog="Example: python scripts/bench_dispatch.py --json")
@click.option("--turns", type=int, default=25, show_default=True, help="Turns of all calls.")
@click.option("--number", type=int, default=5000, show_default=True, help="Calls in a turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(turns: int, number: int, as_json: bool) -> None:
    """Time a call whose shape is known beside MLX's own."""
    found = measure(turns, number)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{found['device']}, MLX {found['mlx']}")
    click.echo(f"mx.conv3d {found['mlx_us']:.2f} us, autoconv.conv3d {found['autoconv_us']:.2f} us")
    click.echo(f"deciding: {found['overhead_us']:.2f} us, of {found['target_us']} us at most")
    click.echo(f"heavy packages imported: {', '.join(imported()) or 'none'}")


if __name__ == "__main__":
    main()
