"""Threads that call new shapes at once while settings change: each is right, and timed once."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from reference import convolve
from tolerance import FLOAT32

import autoconv
from autoconv import environment
from autoconv.problem import Problem
from autoconv.store import open_store

THREADS = 6
PROBLEMS = tuple(Problem.parse((1, 3, 4, n, 2), (2, 3, 3, 3, 2)) for n in (4, 5, 6))


def together(works: list[Callable[[], None]]) -> list[BaseException]:
    """What is raised by works that begin at the same time, each in a thread."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(60)
            work()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def calls(place: int) -> None:
    """Call every shape, each thread in an order of its own, and see that each is right."""
    shift = place % len(PROBLEMS)
    for problem in PROBLEMS[shift:] + PROBLEMS[:shift]:
        draw = np.random.default_rng(place)
        operands = [draw.standard_normal(shape).astype(np.float32) for shape in problem.operand_shapes]
        convolution = autoconv.conv3d if place % 2 else mx.conv3d
        x, w = map(mx.array, operands)
        found = np.array(convolution(x, w))
        exact = convolve(operands[0].astype(np.float64), operands[1].astype(np.float64), problem)
        assert np.linalg.norm(found - exact) < FLOAT32 * np.linalg.norm(exact)


@pytest.mark.parametrize("among", ["calls alone", "changes of settings"])
def test_shapes_that_threads_call_at_once_are_right_and_timed_once(among: str, qualified: Path, tmp_path: Path) -> None:
    database = Path(shutil.copy(qualified, tmp_path / "threads.db"))
    autoconv.configure(policy="measure", budget_ms=1, database=database)

    def change() -> None:
        for number in range(8):
            autoconv.configure(budget_ms=1 + number % 2)
            with autoconv.patch(), autoconv.using(policy="off"):
                calls(1)
            autoconv.statistics()

    works: list[Callable[[], None]] = [lambda place=place: calls(place) for place in range(THREADS)]  # type: ignore[misc]
    with autoconv.patch():
        raised = together(works + [change] * (among == "changes of settings"))
    assert raised == []
    where = environment.of(mx.default_device()).id
    with closing(open_store(database)) as store:
        for problem in PROBLEMS:
            assert set(Counter(r.run for r in store.records(where, problem))) == {store.records(where, problem)[0].run}
            assert store.unended(where, problem) == {}
        assert store.pending(where) == []
