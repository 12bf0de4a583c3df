"""A sweep's child with algorithms that end or hang it: what `autoconv.sweep.child` must be apart for."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from autoconv import algorithms, dispatch
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Convolution
from autoconv.algorithms import native as natives
from autoconv.algorithms._algorithm import Cost
from autoconv.problem import Problem
from autoconv.sweep import child

DEATHS: dict[str, Any] = {
    "segfaults": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda: os._exit(3),
    "hangs": lambda: time.sleep(1000),
    "is_well": lambda: None,
}


def deadly(name: str) -> Algorithm:
    """An algorithm that computes as native does, after what its name says."""

    def build(problem: Problem) -> Convolution:
        def run(input: mx.array, weight: mx.array, /) -> mx.array:
            if problem.input_shape[3] == int(os.environ["DEADLY_WIDTH"]):
                DEATHS[name]()
            return natives.ALGORITHM.build(problem)(input, weight)

        return run

    def cost(problem: Problem, backend: str) -> Cost:
        return natives.ALGORITHM.cost(problem, backend)

    return Algorithm(name, 1, 90 + list(DEATHS).index(name), build, cost)


def registry(names: str) -> tuple[Algorithm, ...]:
    """Native, and these."""
    return (natives.ALGORITHM, *(deadly(name) for name in names.split(",") if name))


if __name__ == "__main__":
    chosen = registry(os.environ["DEADLY"])
    vars(dispatch)["algorithms"] = lambda: chosen
    algorithms.algorithms.cache_clear()
    begun = Path(os.environ["DEADLY_BEGUN"])
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if os.environ["DEADLY"] == "":
        sys.exit(5)
    child.main(sys.argv[1], sys.stdin, sys.stdout)
