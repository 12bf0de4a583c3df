"""The demo: real layers tuned on this machine, then used by a second process that times nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoconv import ops, settings
from autoconv._backend import mx
from autoconv.dispatch import dispatcher
from autoconv.errors import AutoconvError
from autoconv.sweep.runner import Outcome, sweep
from autoconv.sweep.workload import Layer, demo_layers

SECOND_RUN_S = 300


@dataclass(frozen=True)
class SecondRun:
    """What the second process did.

    Attributes:
        statistics: Its decisions by source.
        winners: The candidate that it ran for each problem, by key.
        outputs: How many convolutions it computed.
    """

    statistics: dict[str, int]
    winners: dict[str, str]
    outputs: int


def first_run(
    database: Path, *, stop: threading.Event | None = None, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Tune the demo's layers into a database."""
    with settings.using(policy="measure", database=database) as chosen:
        return sweep(demo_layers(), dispatcher(), chosen, mx.default_device(), stop=stop, tell=tell)


def second_run(database: Path) -> SecondRun:
    """Call the same convolutions in a new process over the same database.

    Raises:
        AutoconvError: that process failed; the message holds what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "autoconv.sweep.demo", str(database)],
        capture_output=True,
        text=True,
        timeout=SECOND_RUN_S,
        check=False,
    )
    if done.returncode:
        msg = f"the second process failed: {' '.join(done.stderr.split())}"
        raise AutoconvError(msg)
    return SecondRun(**json.loads(done.stdout))


def replay(layers: Sequence[Layer], database: Path) -> SecondRun:
    """Call each layer's convolution on random arrays, as a user's program would, and tell what ran it."""
    winners = {}
    outputs = 0
    with settings.using(policy="measure", database=database):
        for number, layer in enumerate(layers):
            problem = layer.problem
            key = mx.random.key(number)
            input = mx.random.normal(problem.input_shape, getattr(mx, problem.dtype), key=key)
            weight = mx.random.normal(problem.weight_shape, getattr(mx, problem.dtype), key=key)
            arguments: dict[str, Any] = {
                "stride": problem.stride,
                "padding": problem.padding_low,
                "dilation": problem.dilation,
            }
            output = ops.conv3d(input, weight, **arguments, groups=problem.groups)
            mx.eval(output)
            outputs += output.shape == problem.output_shape
            found = ops.explain(input, weight, **arguments, groups=problem.groups)
            winners[problem.key] = found.decision.candidate
        return SecondRun(ops.statistics(), winners, outputs)


if __name__ == "__main__":
    json.dump(vars(replay(demo_layers(), Path(sys.argv[1]))), sys.stdout)
