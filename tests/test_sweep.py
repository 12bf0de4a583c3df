"""The sweep: what it times, what it leaves alone, and what it survives."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from replay import VirtualClock

from autoconv import settings
from autoconv._backend import mx
from autoconv.decision import Decision, Source, Verdict
from autoconv.errors import AccuracyError, DeviceLostError, TuningError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report import console, tables
from autoconv.settings import Settings
from autoconv.store import MemoryStore, open_store
from autoconv.sweep import Layer
from autoconv.sweep.measured import as_measured, measured_in
from autoconv.sweep.order import Measured
from autoconv.sweep.runner import Ending, Outcome, stopping, sweep, unique

CPU = mx.Device(mx.cpu)
HERE = settings.from_environment({})


def layer(width: int, count: int = 1) -> Layer:
    return Layer("net", "part", f"layer {width}", count, Problem.parse((1, 3, 4, width, 4), (4, 3, 3, 3, 4)), "")


def record(candidate: str, *times_us: float, error: float = 1e-7, status: Status = Status.OK) -> Record:
    return Record("", "", candidate, 1, "", status, times_us, error)


def decided(candidate: str, margin: float | None, *records: Record) -> Decision:
    verdicts = tuple(Verdict(r, r.status, None, "") for r in records)
    return Decision(candidate, Source.MEASURED, margin, "", 1e-5, verdicts=verdicts)


class Tuner:
    """Tells of some problems already, and times or refuses the others."""

    def __init__(self, known: Sequence[Problem] = (), refusing: dict[Problem, Exception] | None = None) -> None:
        self.known = {p: decided("native", 0.0, record("native", 5.0)) for p in known}
        self.refusing = refusing or {}
        self.timed: list[Problem] = []
        self.anew: list[bool] = []

    def look_up(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision | None:
        return self.known.get(problem)

    def tune(self, problem: Problem, settings: Settings, device: mx.Device, *, anew: bool) -> Decision:
        self.anew.append(anew)
        self.timed.append(problem)
        if problem in self.refusing:
            raise self.refusing[problem]
        return self.known.setdefault(problem, decided("fast", 1.0, record("native", 8.0), record("fast", 4.0)))


def test_what_the_database_tells_is_not_timed_again() -> None:
    layers = [layer(4), layer(5), layer(6)]
    tuner = Tuner(known=[layers[1].problem])
    outcomes = sweep(layers, tuner, HERE, CPU)
    assert [o.ending for o in outcomes] == [Ending.TIMED, Ending.KNOWN, Ending.TIMED]
    assert tuner.timed == [layers[0].problem, layers[2].problem]
    again = sweep(layers, tuner, HERE, CPU)
    assert [o.ending for o in again] == [Ending.KNOWN] * 3
    assert len(tuner.timed) == 2
    assert not any(tuner.anew)


def test_what_the_database_tells_is_timed_again_when_it_is_to_be_refreshed() -> None:
    layers = [layer(4), layer(5)]
    tuner = Tuner(known=[layers[1].problem])
    assert [o.ending for o in sweep(layers, tuner, HERE, CPU, refresh=True)] == [Ending.TIMED] * 2
    assert tuner.anew == [True, True]


def test_a_known_problem_that_nothing_does_accurately_is_a_failure_each_time() -> None:
    tuner = Tuner()
    tuner.known[layer(4).problem] = replace(decided("native", None), accurate=False, reason="nothing passes")
    (found,) = sweep([layer(4)], tuner, HERE, CPU)
    assert (found.ending, found.why, found.failed) == (Ending.INACCURATE, "nothing passes", True)


def test_what_is_asked_for_again_is_timed_though_it_is_known() -> None:
    """A duel with what won among kin is known, and noted for a sweep that times all."""
    layers = [layer(4), layer(5)]
    tuner = Tuner(known=[la.problem for la in layers])
    outcomes = sweep(layers, tuner, HERE, CPU, again={layers[1].problem})
    assert [o.ending for o in outcomes] == [Ending.KNOWN, Ending.TIMED]
    assert tuner.anew == [True]


@pytest.mark.parametrize(("limit_s", "timed"), [(0.0, 0), (15.0, 2), (20.0, 2), (21.0, 3), (1e9, 4)])
def test_no_problem_is_begun_once_the_time_is_up(limit_s: float, timed: int) -> None:
    clock = VirtualClock()
    tuner = Tuner()

    def pass_(_outcome: Outcome) -> None:
        clock.pass_(10.0)

    layers = [layer(width) for width in range(4, 8)]
    outcomes = sweep(layers, tuner, HERE, CPU, limit_s=limit_s, clock=clock, tell=pass_)
    assert tuner.timed == [la.problem for la in layers[:timed]]
    assert [o.layer for o in outcomes] == layers[:timed]


def test_a_sweep_waits_before_each_problem_that_it_times() -> None:
    events: list[str] = []
    layers = [layer(4), layer(5), layer(6)]
    sweep(
        layers,
        Tuner(known=[layers[1].problem]),
        HERE,
        CPU,
        wait=lambda: events.append("wait"),
        tell=lambda o: events.append(str(o.ending)),
    )
    assert events == ["known", "wait", "timed", "wait", "timed"]


def test_a_wait_that_ends_with_a_stop_begins_nothing() -> None:
    stop, tuner = threading.Event(), Tuner()
    assert sweep([layer(4)], tuner, HERE, CPU, stop=stop, wait=stop.set) == []
    assert tuner.timed == []


def test_what_is_uncertain_and_matters_comes_first_and_is_told_in_the_workload_s_order() -> None:
    """The more a problem is like those that gained much, the sooner; unlike ones that gained nothing come last."""
    small = [Problem.parse((1, 4, 8, 8 + i, 16), (16, 1, 1, 1, 16)) for i in range(20)]
    large = [Problem.parse((1, 8, 64, 64 + i, 64), (64, 3, 3, 3, 64)) for i in range(20)]
    measured = [Measured(p, 10.0, 0.0) for p in small] + [Measured(p, 5000.0, 1.0) for p in large]
    first = Layer("net", "", "small", 1, replace(small[0], input_shape=(1, 4, 8, 40, 16)), "")
    second = Layer("net", "", "large", 1, replace(large[0], input_shape=(1, 8, 64, 128, 64)), "")
    tuner = Tuner()
    outcomes = sweep([first, second], tuner, HERE, CPU, measured=measured)
    assert tuner.timed == [second.problem, first.problem]
    assert [o.layer for o in outcomes] == [first, second]


def test_a_decision_tells_of_other_problems_only_where_native_has_a_time() -> None:
    problem = layer(4).problem
    found = decided("fast", 0.5, record("native", 8.0, 8.0), record("fast", 4.0))
    assert as_measured(problem, found) == Measured(problem, 8.0, 0.5)
    assert as_measured(problem, None) is None
    assert as_measured(problem, decided("fast", None, record("fast", 4.0))) is None


def test_what_cannot_be_timed_is_told_and_the_rest_goes_on() -> None:
    layers = [layer(4), layer(5), layer(6)]
    refusing: dict[Problem, Exception] = {
        layers[0].problem: TuningError("no room"),
        layers[1].problem: AccuracyError("nothing passes"),
    }
    told: list[Outcome] = []
    outcomes = sweep(layers, Tuner(refusing=refusing), HERE, CPU, tell=told.append)
    assert told == outcomes
    assert [o.ending for o in outcomes] == [Ending.NOT_TIMED, Ending.INACCURATE, Ending.TIMED]
    assert [line.split(": ")[-1] for line in tables.failures(outcomes)] == ["no room", "nothing passes"]


def test_a_lost_device_ends_the_sweep() -> None:
    layers = [layer(4), layer(5), layer(6)]
    tuner = Tuner(refusing={layers[1].problem: DeviceLostError("gone", "fast")})
    with pytest.raises(DeviceLostError, match="gone"):
        sweep(layers, tuner, HERE, CPU)
    assert tuner.timed == [layers[0].problem, layers[1].problem]


def test_a_stop_ends_after_the_current_problem() -> None:
    stop = threading.Event()
    tuner = Tuner()

    def ask(_outcome: Outcome) -> None:
        stop.set()

    assert len(sweep([layer(4), layer(5)], tuner, HERE, CPU, stop=stop, tell=ask)) == 1
    assert len(tuner.timed) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_ask_to_stop_and_a_second_one_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_problem_that_several_layers_pose_is_timed_once() -> None:
    found = unique([layer(4, 2), layer(5), layer(4, 3)])
    assert [(la.problem.input_shape[3], la.count) for la in found] == [(4, 5), (5, 1)]


def test_the_summary_weighs_by_count_and_leaves_out_what_native_cannot() -> None:
    twice = decided("fast", 1.0, record("native", 8.0), record("fast", 4.0))
    same = decided("native", 0.0, record("native", 4.0))
    only = decided("fast", None, record("native", status=Status.FAILED), record("fast", 3.0))
    outcomes = [
        Outcome(layer(4, 3), Ending.TIMED, twice),
        Outcome(layer(5, 2), Ending.KNOWN, same),
        Outcome(layer(6, 9), Ending.TIMED, only),
        Outcome(layer(7), Ending.NOT_TIMED, None, "no room"),
    ]
    found = tables.summary(outcomes)
    assert found["gain_weighted"] == pytest.approx((3 * 8 + 2 * 4) / (3 * 4 + 2 * 4))
    assert found["gain_geometric"] == pytest.approx(2**0.5)
    assert found["best_gain"] == 2.0
    assert found["native_cannot"] == 1
    assert found["winners"] == {"fast": 2, "native": 1}
    assert found["endings"] == {"timed": 2, "known": 1, "not timed": 1}
    assert found["statuses"]["native failed"] == 1


def test_a_crop_and_the_state_of_native_stand_in_the_table() -> None:
    only = decided("fast", None, record("native", status=Status.FAILED), record("fast", 3000.0))
    whole = Problem.parse((1, 3, 40, 40, 4), (4, 3, 3, 3, 4))
    cropped = Layer("net", "", "conv1", 1, layer(4).problem, "", crop_of=whole)
    out = console.console()
    with out.capture() as capture:
        out.print(tables.outcome_table([Outcome(cropped, Ending.TIMED, only)]))
    row = capture.get().splitlines()[1]
    assert "(crop)" in row
    assert row.split()[-4:] == ["failed", "3.000", "fast", "1.0e-07"]


def workload(path: Path, widths: Sequence[int]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "layer", "N", "D", "H", "W", "C_in", "C_out", "KD", "KH", "KW"])
        rows.writerows(["net", f"w{w}", 1, 3, 6, w, 8, 8, 3, 3, 3] for w in widths)
    return path


def test_kill_9_at_any_moment_leaves_every_finished_record(qualified: Path, tmp_path: Path) -> None:
    """Killed again and again, the same command goes on each time, and at last has everything."""
    path = workload(tmp_path / "work.csv", range(4, 44))
    chance = random.Random(7)
    # In the device's first run, and after it.
    for database, kills in ((tmp_path / "fresh.db", 2), (qualified, 5)):
        command = [sys.executable, "-m", "autoconv", "sweep", str(path), "--database", str(database)]
        finished: set[str] = set()
        for _ in range(kills):
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.3 + 0.9 * chance.random())
            child.kill()
            child.wait()
            if not database.exists():
                continue
            with sqlite3.connect(database) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()
            store = open_store(database)
            assert len(store.environments()) <= 1
            now = {p.key for where in store.environments() for p in store.problems(where)}
            complete = {
                key
                for where in store.environments()
                for key in now
                if {r.algorithm for r in store.records(where, Problem.from_key(key))}
                == {"native", "kd_decomposition", "depth_concat"}
            }
            store.close()
            assert finished <= now
            assert complete == now  # a problem's records are kept all at once
            finished = now
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What a killed sweep was at may have ended after it, and is known as well.
    known = re.search(r"(\d+) known", done.stdout)
    assert int(known[1]) >= len(finished) if known else not finished
    store = open_store(qualified)
    assert len([p for where in store.environments() for p in store.problems(where)]) == 40
    store.close()


def test_a_database_tells_of_its_problems_up_to_a_number(tmp_path: Path) -> None:
    store = MemoryStore()
    for width in (4, 5, 6):
        problem = layer(width).problem
        times = {"native": 8.0, "kd_decomposition": 4.0 if width == 5 else 9.0}
        rows = [Record(problem.key, "here", name, 1, "", Status.OK, (us,) * 6, 1e-7) for name, us in times.items()]
        store.add(problem, rows)
    found = measured_in(store, "here")
    assert [(m.problem.input_shape[3], m.native_us, m.gain) for m in found] == [(4, 8, 0), (5, 8, 1), (6, 8, 0)]
    assert measured_in(store, "here", most=2) == found[:2]
    assert measured_in(store, "elsewhere") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_after_its_problem_and_the_same_command_goes_on(
    number: signal.Signals, qualified: Path, tmp_path: Path
) -> None:
    path = workload(tmp_path / "work.csv", range(4, 64))
    command = [sys.executable, "-m", "autoconv", "sweep", str(path), "--database", str(qualified), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not timed(qualified) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    first = json.loads(stdout)["summary"]["endings"]
    assert 1 <= first["timed"] < 60
    assert f"stopped after {first['timed']} of 60" in stderr
    assert len(timed(qualified)) == first["timed"]
    assert notes(qualified) == 0  # nobody is accused
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["endings"] == {"known": first["timed"], "timed": 60 - first["timed"]}


def test_a_second_signal_ends_a_sweep_at_once_and_accuses_nobody(qualified: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("N,D,H,W,C_in,C_out,KD,KH,KW\n1,20,60,60,64,64,3,3,3\n")  # many seconds a run
    command = [sys.executable, "-m", "autoconv", "sweep", str(path), "--database", str(qualified)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not notes(qualified) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    assert "once more ends it now" in child.stderr.readline() + child.stderr.readline()
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert notes(qualified) == 0
    assert timed(qualified) == []


def timed(database: Path) -> list[Problem]:
    store = open_store(database, readonly=True)
    found = [p for where in store.environments() for p in store.problems(where)]
    store.close()
    return found


def notes(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM notes").fetchone()[0])
