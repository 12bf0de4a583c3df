"""Candidates that go wrong: no convolution fails or is wrong by them, and who ended a process is known."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from faulty import PROBLEM, Fault, Faulty, is_right, operands
from replay import Benches, Run, registry

import autoconv
from autoconv import device_lock, environment, notes, settings
from autoconv._backend import mx
from autoconv.decision import Source
from autoconv.dispatch import Dispatcher
from autoconv.errors import TuningError
from autoconv.problem import Problem
from autoconv.record import Status
from autoconv.store import MemoryStore, Qualification, open_store
from autoconv.sweep.runner import Ending, sweep
from autoconv.sweep.workload import Layer
from autoconv.tuning.qualification import Qualifier, fingerprint


@pytest.fixture(autouse=True)
def _quick() -> None:
    autoconv.configure(policy="measure", budget_ms=1)


def here() -> str:
    return environment.of(mx.default_device()).id


def raising(error: BaseException) -> Fault:
    def fault(_result: mx.array) -> NoReturn:
        raise error

    return fault


class OddError(Exception):
    """What no library raises."""


def with_one_wrong(result: mx.array) -> mx.array:
    """The result with its last element off by a hundred."""
    off = np.zeros(result.shape, np.float32)
    off[(-1,) * 5] = 100.0
    return result + mx.array(off)


RAISED = (
    KeyError("a name"),
    AttributeError("no such thing"),
    IndexError("out of range"),
    ZeroDivisionError("division by zero"),
    AssertionError("never"),
    FileNotFoundError("no compiler"),
    StopIteration(),
    RecursionError("too deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"),
    OddError("odd"),
    RuntimeError("CUDA error 700: an illegal memory access was encountered"),
)
NO_MEMORY = (
    MemoryError(),
    RuntimeError("[malloc_or_wait] Unable to allocate 68719476736 bytes."),
    RuntimeError(
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size"
    ),
)
GARBAGE: dict[str, Fault] = {
    "zeros": mx.zeros_like,
    "twice as much": lambda result: 2 * result,
    "not a number": lambda result: result * float("nan"),
    "infinite": lambda result: result / 0,
    "one wrong": with_one_wrong,
    "a frame less": lambda result: result[:, 1:],
    "flat": lambda result: result.reshape(-1),
    "float16": lambda result: result.astype(mx.float16),
    "bfloat16": lambda result: result.astype(mx.bfloat16),
    "int32": lambda result: result.astype(mx.int32),
}
NO_ARRAY: dict[str, Fault] = {"nothing": lambda _: None, "a list": lambda result: [result], "NumPy's": np.array}
BAD = {Status.WRONG, Status.FAILED}
"""Of what cannot even be linked to the next run, that fails."""

FAULTS = (
    *(pytest.param(raising(error), {Status.FAILED}, id=type(error).__name__) for error in RAISED),
    *(pytest.param(raising(error), {Status.OUT_OF_MEMORY}, id=f"memory {i}") for i, error in enumerate(NO_MEMORY)),
    *(pytest.param(fault, BAD, id=name) for name, fault in (GARBAGE | NO_ARRAY).items()),
)


def call(_made: Dispatcher) -> str:
    assert is_right(autoconv.conv3d(*operands()))
    return autoconv.explain(*operands()).decision.candidate


def tune(_made: Dispatcher) -> str:
    return autoconv.tune(*operands()).decision.candidate


def prepare(_made: Dispatcher) -> str:
    assert autoconv.prepare(autoconv.conv3d, *operands()) == autoconv.Preparation(1, 1, 0, 0, 0)
    return autoconv.explain(*operands()).decision.candidate


def swept(made: Dispatcher) -> str:
    (outcome,) = sweep([Layer("", "", "", 1, PROBLEM, "")], made, settings.current(), mx.default_device())
    assert outcome.ending is Ending.TIMED
    assert outcome.decision is not None
    return outcome.decision.candidate


@pytest.mark.parametrize("begins", [1, 5], ids=["when verified", "in the race"])
@pytest.mark.parametrize(("fault", "statuses"), FAULTS)
def test_what_a_candidate_does_wrong_is_its_record_and_the_call_is_right(
    fault: Fault, statuses: set[Status], begins: int, tmp_path: Path
) -> None:
    faulty = Faulty(fault, begins)
    made = faulty.dispatcher()
    assert call(made) == "native"
    assert faulty.runs >= begins
    with closing(open_store(tmp_path / "autoconv.db")) as store:
        found = {r.algorithm: r.status for r in store.records(here(), PROBLEM)}
        assert store.unended(here(), PROBLEM) == {}
    assert found["native"] is Status.OK
    assert found["faulty"] in statuses


@pytest.mark.parametrize("begins", [1, 5], ids=["when verified", "in the race"])
def test_a_right_result_of_another_dtype_is_wrong(begins: int) -> None:
    Faulty(lambda result: result.astype(mx.float32), begins).dispatcher()
    input, weight = (operand.astype(mx.float16) for operand in operands())
    assert autoconv.conv3d(input, weight).dtype == mx.float16
    found = {v.record.algorithm: v.reason for v in autoconv.explain(input, weight).decision.verdicts}
    assert found["faulty"].endswith("the result has dtype float32")


@pytest.mark.parametrize("ask", [tune, prepare, swept])
@pytest.mark.parametrize("fault", [raising(OddError("odd")), GARBAGE["float16"], NO_ARRAY["nothing"]])
def test_so_it_is_whoever_asks_for_the_time(ask: Callable[[Dispatcher], str], fault: Fault) -> None:
    assert ask(Faulty(fault).dispatcher()) == "native"


@pytest.mark.parametrize("fault", [raising(OddError("odd")), GARBAGE["float16"], NO_ARRAY["nothing"]])
def test_who_goes_wrong_in_the_first_run_on_a_device_is_barred_there(fault: Fault) -> None:
    device = mx.default_device()
    done = Qualifier(environment.of(device), device, (Faulty(lambda r: r).algorithm, Faulty(fault).algorithm)).advance()
    assert done is not None
    assert set(done.barred) == {"faulty"}


# Ctrl-C, and what else is meant to end the process


@pytest.mark.parametrize("begins", [1, 2, 5])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(3)], ids=["Ctrl-C", "exit"])
def test_what_ends_the_process_passes_and_accuses_nobody(end: BaseException, begins: int, tmp_path: Path) -> None:
    made = Faulty(raising(end), begins).dispatcher()
    with pytest.raises(type(end)):
        autoconv.conv3d(*operands())
    with closing(open_store(tmp_path / "autoconv.db")) as store:
        assert store.unended(here(), PROBLEM) == {}
        assert store.records(here(), PROBLEM) == []
    free: list[bool] = []
    other = threading.Thread(target=lambda: free.append(made._timing.acquire(blocking=False)))
    other.start()
    other.join()
    with device_lock.hold(environment.of(mx.default_device()).lock_name) as held:
        assert (held, free) == (True, [True])


def test_a_ctrl_c_that_comes_just_when_the_note_was_written_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    begin = store.begin

    def interrupted(environment: str, problem: Problem, candidate: str) -> None:
        begin(environment, problem, candidate)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "begin", interrupted)
    faulty = Faulty(lambda result: result)
    faulty.dispatcher(stores=lambda _path, _readonly: store)
    with pytest.raises(KeyboardInterrupt):
        autoconv.conv3d(*operands())
    assert store.unended(here(), PROBLEM) == {}
    monkeypatch.undo()


# Ends of the process


def start(database: Path, death: str, begins: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("faulty.py")), str(database), death, str(begins)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def noted(database: Path) -> dict[str, int]:
    with closing(open_store(database)) as store:
        return store.unended(here(), PROBLEM)


def end(process: subprocess.Popen[str], database: Path, notes: dict[str, int]) -> None:
    """See to it that it ends: one that hangs is killed, as its user would, when it left its note."""
    deadline = time.monotonic() + 60  # a GPU's first kernels take seconds
    while process.poll() is None and noted(database) != notes and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("death", "begins", "name"),
    [
        ("segfaults", 1, "faulty"),
        ("hangs", 2, "faulty"),
        ("exits", 5, notes.RACE),
        ("hangs", 5, notes.RACE),
    ],
)
def test_what_ended_two_processes_is_known_to_the_third(death: str, begins: int, name: str, tmp_path: Path) -> None:
    database = tmp_path / "deadly.db"
    open_store(database).close()
    for strikes in (1, 2):
        with start(database, death, begins) as process:
            end(process, database, {name: strikes})
        assert process.returncode != 0
        assert noted(database) == {name: strikes}
    with start(database, death, begins) as process:
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert printed.split() == ["True", "native"]
    with closing(open_store(database)) as store:
        found = {r.algorithm: r.status for r in store.records(here(), PROBLEM)}
        pending = store.pending(here())
    if name == notes.RACE:  # nobody is known by name, so that nothing is timed but by a sweep
        assert (found, pending) == ({}, [PROBLEM])
    else:
        assert (found, pending) == ({"native": Status.OK, "faulty": Status.CRASHED}, [])


def raced(*, isolated: bool) -> tuple[Dispatcher, MemoryStore, Benches]:
    """A dispatcher of replayed candidates of which two processes have not survived the race."""
    store, benches, names = MemoryStore(), Benches({"native": Run((6e-3,)), "a": Run((3e-3,))}), registry("native", "a")
    store.qualify(Qualification(here(), fingerprint(names)))
    for _ in range(notes.STRIKES):
        store.begin(here(), PROBLEM, notes.RACE)
    made = Dispatcher(
        names, stores=lambda _path, _readonly: store, bench=benches, clock=benches.clock, isolated=isolated
    )
    return made, store, benches


def test_a_race_that_ended_processes_is_left_to_a_sweep_s_child() -> None:
    made, store, benches = raced(isolated=False)
    found = made.decide(PROBLEM, settings.current(), mx.default_device())
    assert (found.candidate, found.source, benches.made) == ("native", Source.NATIVE, [])
    assert "`autoconv sweep` finds out by which" in found.reason
    with pytest.raises(TuningError, match="timed in turns"):
        made.tune(PROBLEM, settings.current(), mx.default_device())
    assert store.pending(here()) == [PROBLEM]


def test_a_child_that_comes_through_a_race_clears_it_of_suspicion() -> None:
    made, store, _ = raced(isolated=True)
    assert made.tune(PROBLEM, settings.current(), mx.default_device()).candidate == "a"
    assert store.unended(here(), PROBLEM) == {}


def test_a_note_lasts_as_long_as_the_race() -> None:
    store, benches, names = MemoryStore(), Benches({"native": Run(), "a": Run()}), registry("native", "a")
    store.qualify(Qualification(here(), fingerprint(names)))
    seen: list[tuple[str, dict[str, int]]] = []

    def bench(*arguments: Any, **options: Any) -> Any:
        made = benches(*arguments, **options)
        for method in ("verify", "sample", "verify_last"):
            run = getattr(made, method)

            def noting(candidate: Any, *more: Any, run: Any = run, method: str = method) -> Any:
                seen.append((method, store.unended(here(), PROBLEM)))
                return run(candidate, *more)

            setattr(made, method, noting)
        return made

    made = Dispatcher(names, stores=lambda _path, _readonly: store, bench=bench, clock=benches.clock)
    made.decide(PROBLEM, settings.current(), mx.default_device())
    first, rest = seen[:4], seen[4:]
    assert [held for _, held in first] == [{"native": 1}] * 2 + [{"a": 1}] * 2
    assert {method for method, _ in rest} == {"sample", "verify_last"}
    assert all(held == {notes.RACE: 1} for _, held in rest)
    assert store.unended(here(), PROBLEM) == {}
