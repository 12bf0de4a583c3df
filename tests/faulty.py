"""Algorithms that go wrong, and a process that calls one: `python faulty.py DATABASE DEATH NUMBER`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from reference import convolve
from tolerance import FLOAT32

import autoconv
from autoconv import dispatch, environment, settings
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Convolution
from autoconv.algorithms import native as natives
from autoconv.algorithms._algorithm import Cost
from autoconv.dispatch import Dispatcher
from autoconv.problem import Problem
from autoconv.store import Qualification
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.qualification import fingerprint

PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))

Fault = Callable[[mx.array], Any]
"""What becomes of a right result."""


class Faulty:
    """An algorithm that does as native does, but for its faults.

    Args:
        fault: What becomes of its result.
        begins: The number of the run from which on it goes wrong: 1 is verified, 2 timed, and later ones are a race.
    """

    def __init__(self, fault: Fault, begins: int = 1) -> None:
        self._fault = fault
        self._begins = begins
        self.runs = 0
        self.algorithm = Algorithm("faulty", 1, 90, self._build, self._cost)

    def _build(self, problem: Problem) -> Convolution:
        right = natives.ALGORITHM.build(problem)

        def run(input: mx.array, weight: mx.array, /) -> Any:
            self.runs += 1
            found = right(input, weight)
            return self._fault(found) if self.runs >= self._begins else found

        return run

    @staticmethod
    def _cost(problem: Problem, backend: str) -> Cost:
        return natives.ALGORITHM.cost(problem, backend)

    def dispatcher(self, **options: Any) -> Dispatcher:
        """The process's dispatcher from now on, of native and this; its database knows the device as qualified."""
        registry = (natives.ALGORITHM, self.algorithm)
        made = Dispatcher(registry, **{"bench": steady, **options})
        where = environment.of(mx.default_device())
        store = made.store(settings.current(), strict=True)
        store.add_environment(where.id, dict(where.identity), {})
        store.qualify(Qualification(where.id, fingerprint(registry), created=1.0))
        dispatch.forget()
        dispatch._dispatcher = made
        return made


def steady(problem: Problem, device: mx.Device, /, *, memory_bytes: float, peaks: bool) -> DeviceBench:
    """A bench on which whatever runs takes the same time, so that none is given up before its fault."""
    ticks = itertools.count()
    return DeviceBench(problem, device, clock=lambda: next(ticks) * 1e-3, memory_bytes=memory_bytes, peaks=peaks)


def operands() -> tuple[mx.array, mx.array]:
    """An input and a weight of `PROBLEM`."""
    draw = np.random.default_rng(3)
    first, second = (draw.standard_normal(shape).astype(np.float32) for shape in PROBLEM.operand_shapes)
    return mx.array(first), mx.array(second)


def is_right(result: mx.array) -> bool:
    """Whether a result for `operands` is what NumPy computes in float64, but for rounding."""
    input, weight = (np.array(operand).astype(np.float64) for operand in operands())
    exact = convolve(input, weight, PROBLEM)
    off = float(np.linalg.norm(np.array(result) - exact) / np.linalg.norm(exact))
    return result.dtype == mx.float32 and off < FLOAT32


DEATHS: dict[str, Callable[[], object]] = {
    "segfaults": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda: os._exit(3),
    "hangs": lambda: time.sleep(1000),
}


def main(database: str, death: str, begins: str) -> None:
    """Call the convolution, and print whether it is right and what ran it."""
    autoconv.configure(database=database, policy="measure", budget_ms=1)

    def die(result: mx.array) -> mx.array:
        DEATHS[death]()
        return result

    Faulty(die, int(begins)).dispatcher()
    result = autoconv.conv3d(*operands())
    print(is_right(result), autoconv.explain(*operands()).decision.candidate)


if __name__ == "__main__":
    main(*sys.argv[1:])
