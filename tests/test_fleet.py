"""A fleet: schedulers and workers are processes of their own, as users begin them; what no cluster does on demand is
played by a scheduler that is none.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import dask
import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from importing import python_path

import autoconv
from autoconv import device_lock, environment, settings
from autoconv._backend import mx
from autoconv.algorithms import algorithms, candidates
from autoconv.cli import main
from autoconv.environment import Environment
from autoconv.errors import AutoconvWarning, FleetError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Qualification, Store, open_store
from autoconv.sweep import Layer, fleet_worker, scheduler, wire
from autoconv.sweep.fleet import sweep_fleet
from autoconv.sweep.fleet_worker import hello, time_problem
from autoconv.sweep.runner import Ending, Outcome
from autoconv.sweep.scheduler import Failure, checked_address
from autoconv.tuning.qualification import fingerprint

HERE = environment.of(mx.default_device())
SETTINGS = settings.with_changes(settings.from_environment({}), {"budget_ms": 20})
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

    def __init__(self, folder: Path, protocol: str = "tcp", **variables: str) -> None:
        self.folder = folder
        self._protocol = protocol
        self._variables = variables
        self._processes: list[subprocess.Popen[bytes]] = []
        told = folder / "scheduler.json"
        options = ["--port", "0", "--scheduler-file", str(told)]
        self.scheduler = self._begin("dask_scheduler", options, {})
        patiently(lambda: told.exists() and told.read_text().endswith("}"))
        self.address: str = json.loads(told.read_text())["address"]

    def worker(
        self, name: str, *options: str, resources: str = "device=1", nanny: bool = False, **variables: str
    ) -> subprocess.Popen[bytes]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        given = [self.address, "--name", name, "--nthreads", "1", "--memory-limit", "0"]
        given += ["--local-directory", str(folder), "--nanny" if nanny else "--no-nanny"]
        given += ["--resources", resources] if resources else []
        return self._begin("dask_worker", [*given, *options], {"TMPDIR": str(folder), **variables})

    @property
    def log(self) -> str:
        return (self.folder / "dask_scheduler.0.log").read_text()

    def _begin(self, module: str, options: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        here = ["--host", "127.0.0.1", "--protocol", self._protocol, "--no-dashboard"]
        root = {"PYTHONPATH": python_path(Path(__file__).parents[1]), "TMPDIR": str(self.folder)}
        with (self.folder / f"{module}.{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *options, *here],
                stdout=log,
                stderr=log,
                env={**os.environ, **root, **self._variables, **variables},
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


def fingerprints() -> list[str]:
    return [fingerprint(algorithms(), gradients=gradients) for gradients in (False, True)]


@pytest.fixture
def store(qualified: Path) -> Iterator[Store]:
    """A store that knows this device, and the same device with another setting of MLX."""
    found = open_store(qualified)
    for name in fingerprints():
        known = found.qualification(HERE.id, name)
        assert known is not None
        found.qualify(replace(known, environment=other_environment().id))
    yield found
    found.close()


def other_environment(width: str = "19") -> Environment:
    """The environment of this device under another setting of MLX."""
    return Environment({**HERE.identity, "MLX_BFS_MAX_WIDTH": width})


@dataclass
class Sweep:
    """A sweep in a thread, whose outcomes are seen as they come."""

    told: list[Outcome]
    stop: threading.Event
    thread: threading.Thread
    returned: list[Outcome]
    raised: list[FleetError]

    def end(self) -> list[Outcome]:
        self.thread.join()
        assert not self.raised
        return self.returned


def begin(layers: Sequence[Layer], cluster: Cluster, store: Store, **options: Any) -> Sweep:
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
    for each in psutil.Process(worker.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # workers ask `uname` and the like
            if "autoconv.sweep.child" in " ".join(each.cmdline()):
                return each
    return None


def test_workers_share_the_problems_and_take_turns_on_one_device(cluster: Cluster, store: Store) -> None:
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


def test_kill_9_of_a_worker_costs_the_problem_it_is_at(cluster: Cluster, store: Store) -> None:
    killed = cluster.worker("killed")
    layers = [layer(width) for width in range(4, 12)]
    sweep = begin(layers, cluster, store)
    child = when(lambda: child_of(killed))
    child.suspend()  # so that what it is at stays under way
    cluster.worker("other")  # not before, or it may do all of them while the first one is still being greeted
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


def test_a_worker_that_its_nanny_brings_back_goes_on(cluster: Cluster, store: Store) -> None:
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


def test_every_environment_measures_everything(cluster: Cluster, store: Store) -> None:
    cluster.worker("one")
    cluster.worker("other", MLX_BFS_MAX_WIDTH="19")
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


def test_workers_that_do_not_fit_are_left_out_by_name(cluster: Cluster, store: Store) -> None:
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


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
def test_an_encrypted_fleet(tmp_path: Path, store: Store) -> None:
    make = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=fleet")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", *make, "-out", cert, "-keyout", key], check=True, capture_output=True)
    files = {
        f"distributed.comm.tls.{who}.{what}": str(path)
        for who in ("scheduler", "worker", "client")
        for what, path in (("cert", cert), ("key", key))
    }
    files["distributed.comm.tls.ca-file"] = str(cert)
    variables = {f"DASK_{name.upper().replace('.', '__')}": path for name, path in files.items()}
    with contextlib.closing(Cluster(tmp_path, "tls", **variables)) as cluster:
        cluster.worker("worker")
        with dask.config.set(files):
            assert cluster.address.startswith("tls://")
            outcomes = sweep_fleet([layer(4)], cluster.address, SETTINGS, store)
            assert [o.ending for o in outcomes] == [Ending.TIMED]
        with pytest.raises(FleetError, match="needs certificates"):
            sweep_fleet([layer(4)], cluster.address, SETTINGS, store)


def test_the_command_sweeps_over_a_fleet_and_shows_each_device(
    cluster: Cluster, qualified: Path, tmp_path: Path
) -> None:
    path = tmp_path / "layers.csv"
    rows = [f"net,1,3,4,{width},4,4,3,3,3" for width in (4, 5, 6)]
    path.write_text("\n".join(["model,N,D,H,W,C_in,C_out,KD,KH,KW", *rows]))
    cluster.worker("a")
    command = ["sweep", str(path), "--scheduler", cluster.address, "--database", str(qualified)]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["summary"]["endings"] == {"timed": 3}
    assert {(o["environment"], o["device"]) for o in found["outcomes"]} == {(HERE.id, str(HERE))}
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0
    assert str(HERE) in shown.stdout
    assert "3 problems: 3 known" in shown.stdout
    refused = CliRunner().invoke(main, [*command[:3], "tcp://192.0.2.1:8786"])
    assert refused.exit_code == 1
    assert "--insecure" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_lost_scheduler_costs_nothing_that_was_timed(cluster: Cluster, store: Store) -> None:
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


def test_a_worker_takes_over_what_is_known_and_tells_what_it_has(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fleet_worker, "get_worker", lambda: SimpleNamespace(id="me", local_directory=str(tmp_path / "w"))
    )
    monkeypatch.setattr(fleet_worker, "_stations", {})
    (tmp_path / "w").mkdir()
    known = [store.qualification(HERE.id, name) for name in fingerprints()]
    problem = layer(4).problem
    deadly = next(c.name for c in candidates(problem, HERE.backend, algorithms(), math.inf) if c.name != "native")
    request = {
        "worker": "me",
        "problem": problem.key,
        "anew": False,
        "hindered": False,
        "limits": {"accuracy": "native", "memory_limit": None, "budget_ms": 20},
        "notes": {deadly: 2},
        "qualifications": [wire.values_of(q) for q in known if q],
    }
    assert fleet_worker.time_problem(request | {"worker": "another"}) == {"ending": "gone"}
    monkeypatch.setattr(fleet_worker, "hindrance", lambda: "on battery power")
    assert fleet_worker.time_problem(request) == {"ending": "hindered", "why": "on battery power"}
    answer = fleet_worker.time_problem(request | {"hindered": True})
    fleet_worker.farewell()
    result = wire.result_of(json.loads(json.dumps(answer)), HERE.id)
    assert (result.ending, result.why) == (Ending.TIMED, "")
    assert {r.candidate: r.status for r in result.records}[deadly] is Status.CRASHED
    assert {r.candidate: r.status for r in result.records}["native"] is Status.OK
    assert result.notes == {deadly: 2}
    assert list(result.qualifications) == known  # as of their first runs, which were not repeated
    again = fleet_worker.time_problem(request | {"hindered": True})
    assert again["records"] == answer["records"]  # it knows
    fleet_worker.farewell()


Answers = Callable[[str, Environment, dict[str, Any]], object]


class Played:
    """A scheduler whose workers do at once, and by the clock of this test, what they are told to.

    Args:
        answers: What becomes of a timing, by the worker's address, its environment and the request; `WAITS` for
            nothing yet. Default: it is timed.
    """

    def __init__(self, **answers: Answers) -> None:
        self.answers = answers
        self.now = 0.0
        self.there: dict[str, Environment] = dict.fromkeys(answers, HERE)
        self.plans: list[tuple[float, Callable[[], object]]] = []
        self.asked: list[tuple[str, str]] = []
        self.dropped: list[object] = []
        self.greets: Callable[[wire.Values], object] = lambda values: values

    @contextlib.contextmanager
    def connect(self, address: str, *, insecure: bool) -> Iterator[Any]:
        yield self

    def clock(self) -> float:
        return self.now

    def at(self, when: float, what: Callable[[], object]) -> None:
        self.plans.append((when, what))

    def workers(self) -> dict[str, Mapping[str, Any]]:
        return {f"inproc://{a}": {"status": "running", "resources": {"device": 1.0}} for a in self.there}

    def submit(self, task: Any, address: str, *arguments: Any, takes: Mapping[str, int]) -> list[object]:
        name = address.removeprefix("inproc://")
        where = self.there[name]
        if task is hello:
            return [
                self.greets(
                    {
                        "worker": name,
                        "library": autoconv.__version__,
                        "algorithms": fingerprint(algorithms(), gradients=True),
                        "identity": dict(where.identity),
                        "circumstances": {"os": "Played"},
                        "memory_bytes": 10**10,
                    }
                )
            ]
        if task is time_problem:
            assert takes == {"device": 1}
            self.asked.append((name, arguments[0]["problem"]))
            return [self.answers[name](name, where, json.loads(json.dumps(arguments[0])))]
        return [None]

    def answer(self, task: list[object]) -> object:
        return None if task[0] is WAITS else task[0]

    def drop(self, task: list[object]) -> None:
        self.dropped.append(task)

    def wait(self, limit_s: float) -> None:
        self.now += limit_s
        assert self.now < 3600, "it waits for what never comes"
        due = [what for when, what in self.plans if when <= self.now]
        self.plans = [(when, what) for when, what in self.plans if when > self.now]
        for what in due:
            what()

    def finish(self, tasks: Sequence[object], limit_s: float) -> bool:
        return True

    def sweep(self, layers: Sequence[Layer], store: Store, **options: Any) -> list[Outcome]:
        return sweep_fleet(
            layers, "tcp://127.0.0.1:1", SETTINGS, store, connect=self.connect, clock=self.clock, **options
        )


WAITS = object()


def timed(_name: str, where: Environment, request: dict[str, Any]) -> wire.Values:
    """What a worker answers where all goes well."""
    record = Record(
        request["problem"], where.id, "native", 1, "", Status.OK, (5.0, 6.0), 1e-7, 0, None, "", "run", 1.0, "1"
    )
    return {"ending": "timed", "why": "", "records": [wire.values_of(record)], "notes": {}, "qualifications": []}


def waits(*_: object) -> object:
    return WAITS


def always(answer: object) -> Answers:
    return lambda *_: answer


MALFORMED: dict[str, Callable[[wire.Values], object]] = {
    "nothing": lambda _: [],
    "no notes": lambda a: {name: value for name, value in a.items() if name != "notes"},
    "another thing": lambda a: a | {"command": "ls"},
    "an unknown ending": lambda a: a | {"ending": "fine"},
    "records that are none": lambda a: a | {"records": [1]},
    "a negative sample": lambda a: a | {"records": [a["records"][0] | {"samples_us": [-1.0]}]},
    "a sample that is text": lambda a: a | {"records": [a["records"][0] | {"samples_us": ["1"]}]},
    "an error that is no number": lambda a: a | {"records": [a["records"][0] | {"error": math.nan}]},
    "an unknown status": lambda a: a | {"records": [a["records"][0] | {"status": "fast"}]},
    "a version that is none": lambda a: a | {"records": [a["records"][0] | {"version": True}]},
    "another problem": lambda a: a | {"records": [a["records"][0] | {"problem": layer(99).problem.key}]},
    "another device": lambda a: a | {"records": [a["records"][0] | {"environment": "0" * 16}]},
    "notes that are none": lambda a: a | {"notes": {"native": "many"}},
    "other algorithms": lambda a: a | {"qualifications": [wire.values_of(Qualification(HERE.id, "magic@1"))]},
    "an exception": lambda _: Failure("OSError: disk full"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_an_answer_that_is_none_costs_one_problem(how: str) -> None:
    layers = [layer(4), layer(5), layer(6)]

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        found = timed(name, where, request)
        return MALFORMED[how](found) if request["problem"] == layers[1].problem.key else found

    store = MemoryStore()
    outcomes = Played(a=answer).sweep(layers, store)
    assert [o.ending for o in outcomes] == [Ending.TIMED, Ending.NOT_TIMED, Ending.TIMED]
    assert outcomes[1].why.startswith("the worker failed: ")
    assert store.problems(HERE.id) == [layers[0].problem, layers[2].problem]
    assert store.unended(HERE.id, layers[1].problem) == {}


def test_a_worker_that_fails_at_everything_is_left_out() -> None:
    layers = [layer(width) for width in range(4, 12)]
    played = Played(bad=always(Failure("OSError: disk full")), good=timed)
    with pytest.warns(AutoconvWarning, match=r"bad is left out: it failed 3 times in a row.*disk full"):
        outcomes = played.sweep(layers, MemoryStore())
    assert Counter(o.ending for o in outcomes) == {Ending.TIMED: 5, Ending.NOT_TIMED: 3}


def test_a_problem_that_ended_two_workers_is_given_to_no_third() -> None:
    played = Played(a=waits, b=waits)
    played.there["b"] = other_environment("19")
    played.answers["c"] = timed
    played.at(1, lambda: played.there.pop("a"))
    played.at(1, lambda: played.there.pop("b"))
    played.at(2, lambda: played.there.update(c=other_environment("23")))
    outcomes = played.sweep([layer(4), layer(5)], MemoryStore(), grace_s=5)
    assert played.asked[-1] == ("c", layer(5).problem.key)
    assert len(played.asked) == 3
    assert len(played.dropped) == 2
    assert [(o.layer.layer, o.ending, o.why) for o in outcomes] == [
        *[
            ("layer 4", Ending.NOT_TIMED, "the worker that timed it is gone"),
            ("layer 5", Ending.NOT_TIMED, "no worker with this device is left"),
        ]
        * 2,
        ("layer 4", Ending.NOT_TIMED, "2 workers ended while they timed it"),
        ("layer 5", Ending.TIMED, ""),
    ]


@pytest.mark.parametrize("end", [{"ending": "gone"}, Failure("KilledWorker: ...", gone=True)])
def test_a_worker_begun_anew_at_the_same_address_is_another(end: object) -> None:
    played = Played(a=always(end))
    played.at(0.5, lambda: played.answers.update(a=timed))
    outcomes = played.sweep([layer(4), layer(5)], MemoryStore())
    assert [(o.ending, o.why) for o in outcomes] == [
        (Ending.NOT_TIMED, "the worker that timed it is gone"),
        (Ending.TIMED, ""),
    ]


def test_a_worker_that_comes_within_the_grace_goes_on_and_later_there_is_none() -> None:
    played = Played(a=timed)
    played.answers["b"] = timed
    played.there.clear()
    played.at(4, lambda: played.there.update(a=HERE))
    assert [o.ending for o in played.sweep([layer(4)], MemoryStore(), grace_s=5)] == [Ending.TIMED]
    late = Played(a=timed)
    late.there.clear()
    late.at(6, lambda: late.there.update(a=HERE))
    with pytest.raises(FleetError, match="there is no worker; begin one by: dask worker"):
        late.sweep([layer(4)], MemoryStore(), grace_s=5)


def test_who_never_says_what_it_is_is_waited_for_and_then_left_out() -> None:
    played = Played(a=timed)
    played.greets = lambda _: WAITS
    with (
        pytest.warns(AutoconvWarning, match="busy with something else"),
        pytest.raises(FleetError, match="no worker can be used: inproc://a: it is busy"),
    ):
        played.sweep([layer(4)], MemoryStore())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"algorithms": "magic@1"}, "it has other algorithms"),
        ({"identity": {"backend": "cpu"}}, "no device's identity"),
        ({"memory_bytes": "much"}, "no whole number"),
        ({"worker": None}, "no text"),
    ],
)
def test_a_greeting_that_is_none_leaves_out_the_worker(change: wire.Values, why: str) -> None:
    played, store = Played(a=timed), MemoryStore()
    played.greets = lambda values: values | change
    with pytest.warns(AutoconvWarning, match=why), pytest.raises(FleetError, match=why):
        played.sweep([layer(4)], store)
    assert store.environments() == {}


def test_a_hindered_worker_is_asked_again() -> None:
    played = Played(a=always({"ending": "hindered", "why": "on battery power"}))
    played.at(50, lambda: played.answers.update(a=timed))
    with pytest.warns(AutoconvWarning, match="waits: on battery power") as warned:
        outcomes = played.sweep([layer(4)], MemoryStore())
    assert len(warned) == 1
    assert [o.ending for o in outcomes] == [Ending.TIMED]
    assert len(played.asked) == 4  # at 0, 20, 40 and 60 s


def test_a_stop_lets_what_is_under_way_end_and_begins_no_other() -> None:
    layers = [layer(4), layer(5), layer(6)]
    played, stop, store = Played(a=timed), threading.Event(), MemoryStore()
    outcomes = played.sweep(layers, store, stop=stop, tell=lambda _: stop.set())
    assert [o.layer for o in outcomes] == layers[:1]
    assert store.problems(HERE.id) == [layers[0].problem]
    assert len(played.asked) == 1


def test_no_problem_is_begun_when_the_time_is_up() -> None:
    played = Played(a=timed)
    outcomes = played.sweep([layer(w) for w in range(4, 30)], MemoryStore(), limit_s=2)
    assert 1 <= len(outcomes) == len(played.asked) < 26
    assert Played(a=timed).sweep([layer(4)], MemoryStore(), limit_s=0) == []


def test_notes_go_to_the_worker_and_come_back() -> None:
    seen: list[dict[str, int]] = []

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        seen.append(request["notes"])
        return timed(name, where, request) | {"notes": {"deadly": 2}}

    store, problem = MemoryStore(), layer(4).problem
    store.begin(HERE.id, problem, "harmless")
    store.begin(HERE.id, problem, "deadly")
    Played(a=answer).sweep([layer(4)], store)
    assert seen == [{"harmless": 1, "deadly": 1}]
    assert store.unended(HERE.id, problem) == {"deadly": 2}


def test_a_first_run_is_kept_and_what_it_barred_is_named_once() -> None:
    names = fingerprints()
    known = [Qualification(HERE.id, names[0], frozenset({("native", "float32")}), {"bad": "wrong"}, 0.03, {"x": 1.0})]

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        told.append(request["qualifications"])
        return timed(name, where, request) | {"qualifications": [wire.values_of(q) for q in known]}

    told: list[object] = []
    store = MemoryStore()
    with pytest.warns(AutoconvWarning, match="bad is not used on .*: wrong") as warned:
        Played(a=answer).sweep([layer(4), layer(5)], store)
    assert len(warned) == 1
    assert store.qualification(HERE.id, names[0]) == known[0]
    assert told == [[], [wire.values_of(known[0])]]


def test_native_that_failed_a_worker_s_first_run_is_not_said_to_be_unused() -> None:
    failed = Qualification(HERE.id, fingerprints()[0], barred={"native": "silent zeros"})

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        return timed(name, where, request) | {"qualifications": [wire.values_of(failed)]}

    store = MemoryStore()
    with pytest.warns(AutoconvWarning, match="^native failed the first run on .*: silent zeros") as warned:
        Played(a=answer).sweep([layer(4)], store)
    assert len(warned) == 1
    assert store.qualifications() == [failed]


def test_a_first_run_of_a_full_device_is_neither_kept_nor_passed_on() -> None:
    full = Qualification(HERE.id, fingerprints()[0], barred={"native": "[malloc] Unable to allocate 99 bytes."})
    told: list[object] = []

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        told.append(request["qualifications"])
        return timed(name, where, request) | {"qualifications": [wire.values_of(full)]}

    store, poisoned = MemoryStore(), MemoryStore()
    poisoned.qualify(full)
    for each in (store, poisoned):
        Played(a=answer).sweep([layer(4)], each)
    assert (store.qualifications(), told) == ([], [[], []])


def test_one_that_tells_takes_its_place() -> None:
    mark = fingerprints()[0]
    full = Qualification(HERE.id, mark, barred={"native": "[malloc] Unable to allocate 99 bytes."})
    right = Qualification(HERE.id, mark, frozenset({("native", "float32")}))

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        return timed(name, where, request) | {"qualifications": [wire.values_of(right)]}

    store = MemoryStore()
    store.qualify(full)
    Played(a=answer).sweep([layer(4)], store)
    assert store.qualifications() == [right]


def test_a_worker_neither_learns_nor_tells_of_one() -> None:
    problem, mark = layer(4).problem, fingerprints()[0]
    full = Qualification(HERE.id, mark, barred={"native": "[malloc] Unable to allocate 99 bytes."})
    right = Qualification(HERE.id, mark, frozenset({("native", "float32")}))
    store, poisoned = MemoryStore(), MemoryStore()
    fleet_worker._learn(store, HERE, problem, {"qualifications": [wire.values_of(full)], "notes": {}})
    assert store.qualifications() == []
    poisoned.qualify(full)
    assert fleet_worker._qualifications(poisoned, HERE) == []
    fleet_worker._learn(poisoned, HERE, problem, {"qualifications": [wire.values_of(right)], "notes": {}})
    assert poisoned.qualifications() == [right]
    assert fleet_worker._qualifications(poisoned, HERE) == [wire.values_of(right)]


def test_what_earlier_sweeps_did_not_live_to_hear_is_kept_once() -> None:
    store, problem = MemoryStore(), layer(4).problem

    def answer(name: str, where: Environment, request: dict[str, Any]) -> object:
        (first,) = timed(name, where, request)["records"]
        return timed(name, where, request) | {"records": [first | {"run": "earlier"}, first]}

    for _ in range(2):
        Played(a=answer).sweep([layer(4)], store, refresh=True)
    assert [r.run for r in store.records(HERE.id, problem)] == ["earlier", "run"]


@pytest.mark.parametrize(
    ("address", "used"),
    [
        ("127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("tcp://127.8.9.1:8786", "tcp://127.8.9.1:8786"),
        ("tcp://[::1]:8786", "tcp://[::1]:8786"),
        ("localhost:1", "tcp://localhost:1"),
        ("tls://10.0.0.1:8786", "tls://10.0.0.1:8786"),
        ("inproc://10.0.0.1/12/1", "inproc://10.0.0.1/12/1"),
    ],
)
def test_addresses_that_may_be_used(address: str, used: str) -> None:
    assert checked_address(address) == used


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:8786", "tcp://128.0.0.1:1", "tcp://localhost.example.org:1", "tcp://[::2]:1", "tcp://0.0.0.0:1"],
)
def test_beyond_this_machine_it_takes_encryption_or_a_word(address: str) -> None:
    with pytest.raises(FleetError, match=r"use tls://\S+, or say --insecure"):
        checked_address(address)
    assert checked_address(address, insecure=True).endswith(address)


@pytest.mark.parametrize("address", ["", "host", "tcp://", "tls://:", "ftp://127.0.0.1:1", "127.0.0.1:port", "://"])
@pytest.mark.parametrize("insecure", [False, True])
def test_what_is_no_address_is_said_in_one_line(address: str, insecure: bool) -> None:
    with pytest.raises(FleetError, match="address of a scheduler is tls://HOST:PORT") as raised:
        checked_address(address, insecure=insecure)
    assert "\n" not in str(raised.value)


def test_a_worker_beyond_this_machine_needs_encryption_too() -> None:
    class Abroad(Played):
        def workers(self) -> dict[str, Mapping[str, Any]]:
            return dict(zip(["tcp://10.0.0.1:1"], super().workers().values(), strict=True))

    with pytest.warns(AutoconvWarning, match="left out"), pytest.raises(FleetError, match=r"tcp://10\.0\.0\.1:1"):
        Abroad(a=timed).sweep([layer(4)], MemoryStore())


def test_a_scheduler_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FleetError, match=f"no scheduler can be reached at {address}: nothing answers"):
            sweep_fleet([layer(4)], address, SETTINGS, MemoryStore())
    with pytest.raises(FleetError, match=f"no scheduler can be reached at {address}: nothing answers"):
        sweep_fleet([layer(4)], address, SETTINGS, MemoryStore())
    with pytest.raises(FleetError, match="needs certificates: name their files in Dask's configuration"):
        sweep_fleet([layer(4)], "tls://127.0.0.1:1", SETTINGS, MemoryStore())


@given(
    samples=st.lists(st.floats(0, 1e9)),
    error=st.none() | st.floats(0),
    texts=st.text(),
    number=st.none() | st.integers(0),
    status=st.sampled_from(Status),
)
def test_records_come_through_the_wire_as_they_were(
    samples: list[float], error: float | None, texts: str, number: int | None, status: Status
) -> None:
    record = Record(
        layer(4).problem.key, HERE.id, texts, 3, texts, status, tuple(samples), error, number, number, texts, texts, 2.5
    )
    values = json.loads(json.dumps(wire.values_of(record)))
    told = {"ending": "timed", "why": texts, "records": [values], "notes": {texts: 2}, "qualifications": []}
    result = wire.result_of(told, HERE.id)
    assert result.records == (record,)
    assert result.notes == {texts: 2}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    )
)
def test_what_is_no_message_is_a_value_error(values: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire.result_of(values, HERE.id)
    with pytest.raises(ValueError, match=r".+"):
        wire.greeting_of(values)
    with pytest.raises(ValueError, match=r".+"):
        wire.qualification_of(values)
