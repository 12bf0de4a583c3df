"""What a layer gains by keeping what it derives of its weight: `autoconv.nn.Conv3d` beside `autoconv.conv3d`, in turns.

Each shape is tuned first, unless the database tells of it. Shapes whose winner derives nothing are left out.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import mlx.core as mx

import autoconv
import autoconv.nn
import autoconv.settings
from autoconv import _calls
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.errors import AutoconvError

SHAPES = (
    ((1, 33, 66, 66, 1024), 1024),
    ((1, 6, 178, 322, 1024), 512),
    ((1, 6, 178, 322, 512), 512),
    ((1, 15, 18, 26, 1024), 1024),
    ((1, 6, 32, 32, 512), 512),
    ((1, 6, 20, 20, 64), 64),
    ((1, 6, 8, 8, 128), 128),
)
"""(input, output channels) of 3x3x3 convolutions, from video decoders and, last, for a CPU."""


def seconds(call: Callable[[], mx.array]) -> float:
    """One evaluated call."""
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(call())
    mx.synchronize()
    return time.perf_counter() - start


@click.command()
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["float16", "bfloat16", "float32"]))
@click.option("--max-gflop", type=float, default=1e6, help="Leave out larger convolutions.")
@click.option("--turns", default=9, show_default=True)
@click.option("--database", type=click.Path(path_type=Path), help="Default: the user's own.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(dtype: str, max_gflop: float, turns: int, database: Path | None, file: Path | None) -> None:
    """Time layers with and without what they keep of their weights."""
    found = []
    with autoconv.using(policy="measure"), autoconv.using(database=database or autoconv.settings.current().database):
        for shape, outputs in SHAPES:
            layer = autoconv.nn.Conv3d(shape[-1], outputs, 3, padding=(0, 1, 1), bias=False)
            layer.set_dtype(getattr(mx, dtype))
            x = mx.random.normal(shape, getattr(mx, dtype))
            mx.eval(x, layer.parameters())
            problem = autoconv.explain(x, layer.weight, padding=(0, 1, 1)).problem
            if problem.flops > max_gflop * 1e9:
                continue
            try:
                mx.eval(layer(x), layer(x))
            except (AutoconvError, RuntimeError) as error:
                print(f"{problem}: {error}")
                continue
            run = _calls.found(x, layer.weight, (layer.stride, layer.padding, layer.dilation, layer.groups))
            if not isinstance(run, InTwoSteps):
                print(f"{problem}: its winner derives nothing")
                continue
            arguments = (layer.stride, layer.padding, layer.dilation)
            calls = (partial(layer, x), partial(autoconv.conv3d, x, layer.weight, *arguments))
            samples = [[seconds(call) for call in calls] for _ in range(turns)]
            kept, anew = map(statistics.median, zip(*samples, strict=True))
            name = autoconv.explain(x, layer.weight, padding=(0, 1, 1)).decision.candidate
            print(f"{problem}: {name}, {kept * 1e3:.3f} ms kept, {anew * 1e3:.3f} ms derived anew, {anew / kept:.2f}x")
            found.append({"problem": problem.key, "candidate": name, "kept_s": kept, "anew_s": anew})
    if file:
        file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
