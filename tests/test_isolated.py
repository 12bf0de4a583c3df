"""Timing in a child process: whatever ends the child, the sweep goes on, and it is known who did it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deadly_child import registry
from importing import python_path

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.dispatch import Dispatcher
from autoconv.errors import StoreError, TuningError
from autoconv.notes import STRIKES
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.settings import Settings
from autoconv.store import Qualification, open_store
from autoconv.sweep.isolated import Isolated
from autoconv.sweep.witness import Sighting, last_seen, saw
from autoconv.tuning.qualification import fingerprint

CPU = mx.Device(mx.cpu)
WIDTH = 5
DEADLY = Problem.parse((1, 3, 4, WIDTH, 4), (4, 3, 3, 3, 4))
HARMLESS = Problem.parse((1, 3, 4, WIDTH + 1, 4), (4, 3, 3, 3, 4))


@pytest.fixture(autouse=True)
def _child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path(*Path(__file__).parents[:2]))
    monkeypatch.setenv("DEADLY_WIDTH", str(WIDTH))
    monkeypatch.setenv("DEADLY_BEGUN", str(tmp_path / "begun"))


class Sweep:
    """An isolated tuner over a database that knows the device from its first run."""

    def __init__(self, folder: Path, names: str, **limits: float) -> None:
        self.where = environment.of(CPU)
        self.database = folder / "sweep.db"
        self.settings: Settings = settings.with_changes(
            settings.from_environment({}), {"policy": "measure", "database": self.database, "budget_ms": 5}
        )
        self.dispatcher = Dispatcher(registry(names))
        store = self.dispatcher.store(self.settings, strict=True)
        store.add_environment(self.where.id, dict(self.where.identity), {})
        store.qualify(Qualification(self.where.id, fingerprint(registry(names)), created=1.0))
        command = (sys.executable, str(Path(__file__).with_name("deadly_child.py")))
        self.tuner = Isolated(self.dispatcher, command=command, **limits)

    def records(self, problem: Problem) -> dict[str, Record]:
        store = open_store(self.database, readonly=True)
        found = {r.algorithm: r for r in store.records(self.where.id, problem)}
        store.close()
        return found

    def tune(self, problem: Problem) -> str:
        return self.tuner.tune(problem, self.settings, CPU, anew=False).candidate

    def notes(self, problem: Problem) -> dict[str, int]:
        return self.dispatcher.store(self.settings).unended(self.where.id, problem)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    names, limits = request.param
    monkeypatch.setenv("DEADLY", names)
    found = Sweep(tmp_path, names, **limits)
    try:
        yield found
    finally:
        found.tuner.close(at_once=True)
        found.dispatcher.close()


def children(tmp_path: Path) -> int:
    return len((tmp_path / "begun").read_text().splitlines())


@pytest.mark.parametrize("sweep", [("is_well", {})], indirect=True)
def test_one_child_times_all_and_the_database_has_it(sweep: Sweep, tmp_path: Path) -> None:
    for problem in (DEADLY, HARMLESS):
        sweep.tune(problem)
        assert {r.status for r in sweep.records(problem).values()} == {Status.OK}
    assert children(tmp_path) == 1
    assert sweep.tuner.run_s > 0


@pytest.mark.parametrize(
    ("sweep", "killer", "others"),
    [
        (("segfaults,is_well", {}), "segfaults", {"native", "is_well"}),
        (("is_well,exits", {}), "exits", {"native", "is_well"}),
        (("hangs", {"stuck_s": 0.5}), "hangs", {"native"}),
    ],
    indirect=["sweep"],
)
def test_who_ends_the_child_is_named_and_not_tried_again(
    sweep: Sweep, tmp_path: Path, killer: str, others: set[str]
) -> None:
    assert sweep.tune(DEADLY) in others
    found = sweep.records(DEADLY)
    assert found[killer].status is Status.CRASHED
    assert {name for name, r in found.items() if r.status is Status.OK} == others
    assert sweep.notes(DEADLY) == {killer: STRIKES}
    assert children(tmp_path) == 2
    assert sweep.tune(HARMLESS)  # another problem, of which it is not known to end anything
    assert sweep.records(HARMLESS)[killer].status is Status.OK
    assert children(tmp_path) == 2


@pytest.mark.parametrize("sweep", [("segfaults,exits", {})], indirect=True)
def test_two_that_end_it_are_found_one_after_another(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep.tune(DEADLY) == "native"
    assert {n for n, r in sweep.records(DEADLY).items() if r.status is Status.CRASHED} == {"segfaults", "exits"}
    assert children(tmp_path) == 3


@pytest.mark.parametrize("sweep", [("", {})], indirect=True)
def test_a_child_that_ends_by_itself_again_and_again_is_one_problem_that_is_not_timed(
    sweep: Sweep, tmp_path: Path
) -> None:
    with pytest.raises(TuningError, match="ended with exit code 5 each time, while no candidate ran"):
        sweep.tune(DEADLY)
    assert children(tmp_path) == 3
    assert sweep.notes(DEADLY) == {}


@pytest.mark.parametrize("sweep", [("hangs", {"stuck_s": 60.0})], indirect=True)
def test_a_user_who_interrupts_accuses_nobody(sweep: Sweep) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while "hangs" not in sweep.notes(DEADLY) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        sweep.tune(DEADLY)
    waiting.join()
    assert sweep.notes(DEADLY) == {}
    assert sweep.records(DEADLY) == {}


@pytest.mark.parametrize("sweep", [("is_well", {})], indirect=True)
def test_a_database_that_cannot_be_written_ends_the_sweep(sweep: Sweep) -> None:
    sweep.tune(HARMLESS)
    sweep.tuner.close()
    sweep.dispatcher.close()
    sweep.database.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError):
        sweep.tune(DEADLY)


def test_a_testimony_is_read_back_and_its_absence_is_none(tmp_path: Path) -> None:
    with (tmp_path / "witness").open("w+b") as file:
        before = time.monotonic()
        assert last_seen(file.fileno()).candidate == ""
        saw(file.fileno(), "kd_decomposition(sum=float32)")
        saw(file.fileno(), "native")
        found = last_seen(file.fileno())
        assert found.candidate == "native"
        assert before <= found.since <= time.monotonic()
        os.pwrite(file.fileno(), b"{[", 0)
        assert isinstance(last_seen(file.fileno()), Sighting)
