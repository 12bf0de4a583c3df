"""Clocks that are set back, that leap and that stand still: no call fails by them, and what was found stays true."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import replaying
from faulty import Faulty, is_right, operands
from replaying import CPU, HERE, PROBLEMS

import autoconv
from autoconv import environment
from autoconv._backend import mx
from autoconv.algorithms import native
from autoconv.decision import Source
from autoconv.dispatch import Dispatcher
from autoconv.record import Status
from autoconv.store import open_store
from autoconv.tuning import qualification
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.qualification import Qualifier

YEAR = 365 * 86400.0
CLOCKS: dict[str, Callable[[], Iterator[float]]] = {
    "stands still": lambda: itertools.repeat(7.0),
    "runs back": lambda: itertools.count(1e6, -1.0),
    "leaps by years": lambda: itertools.count(0.0, YEAR),
    "is set back now and then": lambda: itertools.cycle([5.0, 6.0, 7.0, 4.0, 1e9]),
}


@pytest.fixture(params=CLOCKS)
def clock(request: pytest.FixtureRequest) -> Callable[[], float]:
    """A clock of whatever sort."""
    return CLOCKS[request.param]().__next__


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database that knows the device, which is here, from its first run."""
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    file = tmp_path / "shared.db"
    replaying.qualify(file)
    return file


@pytest.mark.parametrize("policy", ["measure", "auto"])
def test_calls_are_right_whatever_the_clock_that_times_are_taken_by(clock: Callable[[], float], policy: str) -> None:
    autoconv.configure(policy=policy, budget_ms=1)
    bench = functools.partial(DeviceBench, clock=clock)
    made = Faulty(lambda result: result).dispatcher(bench=bench, clock=clock, born=0.0)
    assert is_right(autoconv.conv3d(*operands()))
    assert math.isfinite(made.tuned_s)


def test_a_first_run_ends_whatever_the_clock(clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualification, "PROBLEMS", qualification.PROBLEMS[:1])
    monkeypatch.setattr(qualification, "CHAIN", 1)
    monkeypatch.setattr(qualification, "DTYPES", ("float32",))
    monkeypatch.setattr(qualification, "PROBE_BYTES", 3 * 4 * 128**2)  # one small product
    device = mx.default_device()
    bench = functools.partial(DeviceBench, clock=clock)
    done = Qualifier(environment.of(device), device, (native.ALGORITHM,), bench=bench, clock=clock).advance()
    assert done is not None
    assert done.barred == {}
    assert all(0 <= ceiling < math.inf for ceiling in done.ceilings.values())
    assert math.isfinite(done.noise)


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(time, "time", lambda: seconds)


@pytest.mark.parametrize("jump", [-15 * YEAR, 15 * YEAR])
def test_a_wall_clock_that_jumps_while_tuning_changes_no_time_and_no_order(
    jump: float, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(1.8e9, jump)
    monkeypatch.setattr(time, "time", lambda: max(next(now), -1e10))
    made = replaying.dispatcher(replaying.benches())
    for problem in PROBLEMS[:2]:
        found = made.decide(problem, replaying.asked(database), CPU)
        assert (found.candidate, found.source, found.margin) == ("a", Source.MEASURED, 1.0)
    made.tune(PROBLEMS[0], replaying.asked(database), CPU)
    for problem in reversed(PROBLEMS[2:]):
        made.decide(problem, replaying.asked(database, "record"), CPU)
    made.close()
    with closing(open_store(database)) as store:
        created = [record.created for record in store.records(HERE.id, PROBLEMS[0])]
        assert len(created) == 6
        assert created == sorted(created)
        assert store.problems(HERE.id) == list(PROBLEMS[:2])
        assert store.pending(HERE.id) == list(reversed(PROBLEMS[2:]))


@pytest.mark.parametrize("years", [-15, 0, 15])
def test_what_ended_processes_stays_barred_though_the_clock_was_set_back(
    years: float, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was timed well once, by a clock that told another year."""
    asked = replaying.asked(database)
    made = replaying.dispatcher(replaying.benches())
    set_wall_clock(monkeypatch, 2e9)
    assert made.decide(PROBLEMS[0], asked, CPU).candidate == "a"
    for _ in range(2):
        made.store(asked).begin(HERE.id, PROBLEMS[0], "a")
    set_wall_clock(monkeypatch, 2e9 + years * YEAR)
    assert made.tune(PROBLEMS[0], asked, CPU).candidate == "b"
    made.close()
    afterwards = Dispatcher(replaying.REGISTRY).decide(PROBLEMS[0], asked, CPU)
    assert (afterwards.candidate, afterwards.source) == ("b", Source.DATABASE)
    assert {v.record.candidate: v.status for v in afterwards.verdicts}["a"] is Status.CRASHED
