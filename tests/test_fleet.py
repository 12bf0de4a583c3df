"""A fleet: schedulers and workers are processes of their own, as users begin them; what no cluster does on demand is
played by a scheduler that is none.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

import autoconv
from autoconv import device_lock, environment, settings
from autoconv._backend import mx
from autoconv.algorithms import algorithms
from autoconv.environment import Environment
from autoconv.errors import AutoconvWarning, FleetError
from autoconv.problem import Problem
from autoconv.store import SqliteStore, open_store
from autoconv.sweep import Layer
from autoconv.sweep.fleet import FleetOutcome, sweep_fleet
from autoconv.sweep.runner import Ending
from autoconv.tuning.qualification import fingerprint

HERE = environment.of(mx.default_device())
SETTINGS = settings.with_changes(settings.from_environment({}), {"budget_ms": 20})
OTHER = {"MLX_BFS_MAX_WIDTH": "19"}
"""A variable that makes another environment of the same device."""


Value = TypeVar("Value")


def layer(width: int) -> Layer:
    return Layer("net", "part", f"layer {width}", 1, Problem.parse((1, 3, 4, width, 4), (4, 3, 3, 3, 4)), "")


def patiently(true: Callable[[], object]) -> None:
    """Wait until something holds; a test that waits in vain ends by its runner's limit."""
    while not true():
        time.sleep(0.02)


def when(found: Callable[[], Value | None]) -> Value:
    """What is found in the end."""
    while (value := found()) is None:
        time.sleep(0.02)
    return value


class Cluster:
    """A scheduler and its workers, each a process, on this machine.

    Each worker has a folder for its temporary files, and so for its locks: by default one of its own, as if it were on
    a machine of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        told = folder / "scheduler.json"
        self.scheduler = self._begin(
            "dask_scheduler", ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]
        )
        patiently(lambda: told.exists() and told.read_text().endswith("}"))
        self.address: str = json.loads(told.read_text())["address"]

    def worker(
        self, name: str, *options: str, resources: str = "device=1", nanny: bool = False, **variables: str
    ) -> subprocess.Popen[bytes]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        given = [self.address, "--name", name, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
        given += ["--host", "127.0.0.1", "--local-directory", str(folder), "--nanny" if nanny else "--no-nanny"]
        given += ["--resources", resources] if resources else []
        return self._begin("dask_worker", [*given, *options], {"TMPDIR": str(folder), **variables})

    @property
    def log(self) -> str:
        return (self.folder / "dask_scheduler.0.log").read_text()

    def _begin(
        self, module: str, options: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[1])
        environ = os.environ | {"PYTHONPATH": root, "TMPDIR": str(self.folder)} | (variables or {})
        with (self.folder / f"{module}.{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *options],
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self.folder,
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def store(qualified: Path) -> Iterator[SqliteStore]:
    """A store that knows this device, and the same device with another setting of MLX."""
    found = open_store(qualified)
    for gradients in (False, True):
        known = found.qualification(HERE.id, fingerprint(algorithms(), gradients=gradients))
        assert known is not None
        found.qualify(replace(known, environment=other_environment().id))
    yield found
    found.close()


def other_environment(width: str = "19") -> Environment:
    return Environment(dict(HERE.identity) | {"MLX_BFS_MAX_WIDTH": width})


@dataclass
class Sweep:
    """A sweep in a thread, whose outcomes are seen as they come."""

    told: list[FleetOutcome]
    stop: threading.Event
    thread: threading.Thread
    returned: list[FleetOutcome]
    raised: list[FleetError]

    def end(self) -> list[FleetOutcome]:
        self.thread.join()
        assert not self.raised
        return self.returned


def begin(layers: Sequence[Layer], cluster: Cluster, store: SqliteStore, **options: Any) -> Sweep:
    def run() -> None:
        try:
            sweep.returned += sweep_fleet(
                layers, cluster.address, SETTINGS, store, stop=sweep.stop, tell=sweep.told.append, **options
            )
        except FleetError as error:
            sweep.raised.append(error)

    sweep = Sweep([], threading.Event(), threading.Thread(target=run), [], [])
    sweep.thread.start()
    return sweep


def child_of(worker: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The process in which a worker times."""
    found = psutil.Process(worker.pid).children(recursive=True)
    return next((each for each in found if "autoconv.sweep.child" in " ".join(each.cmdline())), None)


def test_workers_share_the_problems_and_take_turns_on_one_device(cluster: Cluster, store: SqliteStore) -> None:
    workers = [cluster.worker(name, TMPDIR=str(cluster.folder)) for name in "abc"]
    layers = [layer(width) for width in range(4, 14)]
    expected: list[int] = []
    with device_lock.hold(HERE.lock_name) as held:
        assert held
        sweep = begin(layers, cluster, store, expect=expected.append)
        patiently(lambda: not _can_be_had(f"{HERE.lock_name}-turn"))
        assert not any(map(child_of, workers))  # who waits in a worker waits as long as it takes
    outcomes = sweep.end()
    assert [o.ending for o in outcomes] == [Ending.TIMED] * 10, [o.why for o in outcomes]
    assert [o.layer for o in outcomes] == layers
    assert len(sweep.told) == 10
    assert expected == [10]
    assert {(o.environment, o.device) for o in outcomes} == {(HERE.id, str(HERE))}
    patiently(lambda: not any(map(child_of, workers)))  # they end with the sweep
    for each in layers:
        records = store.records(HERE.id, each.problem)
        assert "native" in {r.algorithm for r in records}
        assert len({r.run for r in records}) == 1
    assert store.environments()[HERE.id] == (dict(HERE.identity), dict(HERE.circumstances))
    again = sweep_fleet(layers, cluster.address, SETTINGS, store)
    assert [o.ending for o in again] == [Ending.KNOWN] * 10
    anew = sweep_fleet(layers[:1], cluster.address, SETTINGS, store, refresh=True)
    assert [o.ending for o in anew] == [Ending.TIMED]
    assert len({r.run for r in store.records(HERE.id, layers[0].problem)}) == 2


def _can_be_had(lock: str) -> bool:
    with device_lock.hold(lock) as held:
        return held


def test_kill_9_of_a_worker_costs_the_problem_it_is_at(cluster: Cluster, store: SqliteStore) -> None:
    killed = cluster.worker("killed")
    cluster.worker("other")
    layers = [layer(width) for width in range(4, 12)]
    sweep = begin(layers, cluster, store)
    child = when(lambda: child_of(killed))
    child.suspend()  # so that what it is at stays under way
    patiently(lambda: len(sweep.told) >= 7)
    killed.kill()
    child.kill()
    outcomes = sweep.end()
    assert Counter(o.ending for o in outcomes) == {Ending.TIMED: 7, Ending.NOT_TIMED: 1}
    (lost,) = [o for o in outcomes if o.ending is Ending.NOT_TIMED]
    assert lost.why == "the worker that timed it is gone"
    assert store.records(HERE.id, lost.layer.problem) == []
    again = sweep_fleet(layers, cluster.address, SETTINGS, store)
    assert {o.layer.layer: o.ending for o in again} == {
        la.layer: Ending.TIMED if la is lost.layer else Ending.KNOWN for la in layers
    }


def test_a_worker_that_its_nanny_brings_back_goes_on(cluster: Cluster, store: SqliteStore) -> None:
    """At the same address, where Dask gives it the task of the one that was killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nanny = cluster.worker("nanny", "--worker-port", str(port), nanny=True)
    layers = [layer(width) for width in range(4, 9)]
    sweep = begin(layers, cluster, store)
    child = when(lambda: child_of(nanny))
    child.suspend()
    worker = child.parent()
    assert worker is not None
    worker.kill()
    child.kill()
    outcomes = sweep.end()
    assert Counter(o.ending for o in outcomes) == {Ending.TIMED: 4, Ending.NOT_TIMED: 1}, [o.why for o in outcomes]


def test_every_environment_measures_everything(cluster: Cluster, store: SqliteStore) -> None:
    cluster.worker("one")
    cluster.worker("other", **OTHER)
    other = other_environment()
    layers = [layer(4), layer(5), layer(6)]
    expected: list[int] = []
    outcomes = sweep_fleet(layers, cluster.address, SETTINGS, store, expect=expected.append)
    assert [o.ending for o in outcomes] == [Ending.TIMED] * 6, [o.why for o in outcomes]
    assert {(o.environment, o.layer.layer) for o in outcomes} == {
        (where.id, each.layer) for where in (HERE, other) for each in layers
    }
    assert expected == [3, 6]
    for where in (HERE, other):
        assert store.environments()[where.id][0] == where.identity
        for each in layers:
            records = store.records(where.id, each.problem)
            assert records
            assert {r.environment for r in records} == {where.id}


def test_workers_that_do_not_fit_are_left_out_by_name(cluster: Cluster, store: SqliteStore) -> None:
    old = cluster.folder / "old.py"
    old.write_text("from autoconv.sweep import fleet_worker\nfleet_worker.__version__ = '0.0.1'\n")
    cluster.worker("good")
    cluster.worker("old", "--preload", str(old))
    cluster.worker("bare", resources="")
    patiently(lambda: cluster.log.count("Starting worker compute stream") == 3)
    with pytest.warns(AutoconvWarning) as warned:
        outcomes = sweep_fleet([layer(4), layer(5), layer(6)], cluster.address, SETTINGS, store)
    assert [o.ending for o in outcomes] == [Ending.TIMED] * 3
    assert sorted(str(w.message).partition("left out: ")[2] for w in warned) == [
        f"it has autoconv 0.0.1, and here is {autoconv.__version__}; install the same there",
        "it has no resource `device`; begin it by: dask worker SCHEDULER --nthreads 1 --memory-limit 0 "
        "--resources device=1",
    ]


def test_a_lost_scheduler_costs_nothing_that_was_timed(cluster: Cluster, store: SqliteStore) -> None:
    cluster.worker("worker")
    layers = [layer(width) for width in range(4, 44)]
    sweep = begin(layers, cluster, store)
    patiently(lambda: len(sweep.told) >= 2)
    cluster.scheduler.kill()
    sweep.thread.join()
    assert [str(e).partition(";")[0] for e in sweep.raised] == ["the scheduler is lost"]
    told = [o.layer.problem for o in sweep.told]
    assert 2 <= len(told) < len(layers)
    assert store.problems(HERE.id) == told
