"""The dispatcher: what each policy does for a shape, what it costs, and what it survives."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from importing import python_path
from memory import taken
from replay import Benches, ReplayBench, Run, VirtualClock, nothing_is_timed, registry, replayed
from tolerance import SLACK

from autoconv import device_lock, dispatch, environment, measurer, settings
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, algorithms
from autoconv.algorithms import candidates as algorithm_candidates
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.errors import AccuracyError, AutoconvWarning, ReadOnlyError, StoreError, TuningError
from autoconv.problem import Problem
from autoconv.record import Status
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Qualification, Store, open_store
from autoconv.tuning.qualification import PROBLEMS, Qualifier, fingerprint

CPU = mx.Device(mx.cpu)
HERE = Environment({"backend": "cpu", "device": "a device", "mlx": "1.2.3"}, {"os": "an OS"}, memory_bytes=10**9)
ELSEWHERE = Environment({"backend": "cpu", "device": "another", "mlx": "1.2.3"}, {}, memory_bytes=10**9)
PROBLEM = Problem.parse((1, 4, 8, 8, 4), (8, 3, 3, 3, 4), padding=1)
OTHERS = [Problem.parse((1, 4, 8, n, 4), (8, 3, 3, 3, 4), padding=1) for n in range(9, 40)]
REGISTRY = registry("native", "a", "b")
MS = 1e-3
A_WINS: dict[str, Run | Exception] = {"native": Run((6 * MS,)), "a": Run((3 * MS,)), "b": Run((4 * MS,))}
POLICIES = ("auto", "measure", "predict", "record", "off")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is a device of this test's own, with a lock of its own."""
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store that knows the device as qualified."""
    made: Store = MemoryStore() if request.param == "memory" else open_store(tmp_path / "own.db")
    made.qualify(qualification())
    yield made
    made.close()


def qualification(where: Environment = HERE, among: Sequence[Algorithm] = REGISTRY, **known: Any) -> Qualification:
    return Qualification(where.id, fingerprint(among), **known)


def qualified() -> MemoryStore:
    made = MemoryStore()
    made.qualify(qualification())
    return made


def asked(policy: str = "auto", **changes: object) -> Settings:
    return settings.with_changes(settings.from_environment({}), {"policy": policy, **changes})


def dispatcher_over(
    store: Store,
    bench: Callable[..., Any] = nothing_is_timed,
    among: Sequence[Algorithm] = REGISTRY,
) -> Dispatcher:
    clock = bench.clock if isinstance(bench, Benches) else VirtualClock()
    return Dispatcher(among, stores=lambda _path, _readonly: store, bench=bench, clock=clock)


def measure(store: Store, *problems: Problem, table: dict[str, Run | Exception] | None = None) -> None:
    """Put the winner of each problem in the store: `a`, unless the table says otherwise."""
    with contextlib.redirect_stderr(io.StringIO()):
        made = dispatcher_over(store, Benches(table or A_WINS))
        for problem in problems:
            made.decide(problem, asked("measure"), CPU)


def state(found: Decision, name: str) -> Status:
    return next(v.status for v in found.verdicts if v.record.candidate == name)


# The policies


@pytest.mark.parametrize(
    ("policy", "candidate", "source"),
    [(p, "a", Source.DATABASE) for p in POLICIES if p != "off"] + [("off", "native", Source.NATIVE)],
)
def test_a_shape_that_is_in_the_database(store: Store, policy: str, candidate: str, source: Source) -> None:
    measure(store, PROBLEM)
    found = dispatcher_over(store).decide(PROBLEM, asked(policy), CPU)
    assert (found.candidate, found.source) == (candidate, source)


@pytest.mark.parametrize("policy", ["auto", "measure"])
def test_a_shape_that_is_in_no_database_is_timed(store: Store, policy: str) -> None:
    benches = Benches(A_WINS)
    found = dispatcher_over(store, benches).decide(PROBLEM, asked(policy), CPU)
    assert (found.candidate, found.source) == ("a", Source.MEASURED)
    assert found.margin == pytest.approx(1.0)
    assert benches.problems == [PROBLEM]
    assert [r.candidate for r in store.records(HERE.id, PROBLEM)] == ["native", "a", "b"]


@pytest.mark.parametrize(("policy", "noted"), [("predict", []), ("record", [PROBLEM]), ("off", [])])
def test_a_shape_that_is_in_no_database_is_native(store: Store, policy: str, noted: list[Problem]) -> None:
    found = dispatcher_over(store).decide(PROBLEM, asked(policy), CPU)
    assert (found.candidate, found.source, found.margin) == ("native", Source.NATIVE, None)
    assert store.pending(HERE.id) == noted
    assert store.records(HERE.id, PROBLEM) == []


def test_a_noted_shape_is_noted_once_until_it_is_timed(store: Store) -> None:
    made = dispatcher_over(store, Benches(A_WINS))
    for problem in (PROBLEM, OTHERS[0], PROBLEM):
        made.decide(problem, asked("record"), CPU)
    assert store.pending(HERE.id) == [PROBLEM, OTHERS[0]]
    made.tune(PROBLEM, asked("record"), CPU)
    assert store.pending(HERE.id) == [OTHERS[0]]


def test_off_touches_no_store_and_no_bench() -> None:
    def stores(path: Path, readonly: bool) -> NoReturn:
        msg = f"{path} is opened"
        raise AssertionError(msg)

    made = Dispatcher(REGISTRY, stores=stores, bench=nothing_is_timed)
    assert made.decide(PROBLEM, asked("off"), CPU).candidate == "native"
    assert made.explanation(PROBLEM, asked("off"), CPU).decision.reason == "policy is off"
    with pytest.raises(AssertionError, match="is opened"):
        made.decide(PROBLEM, asked("predict"), CPU)


def test_a_second_process_times_nothing_and_picks_the_same(store: Store) -> None:
    problems = [PROBLEM, *OTHERS[:3]]
    benches = Benches({"native": Run((9 * MS,)), "a": Run((5.96 * MS,)), "b": Run((6 * MS,))})
    first = dispatcher_over(store, benches)
    second = dispatcher_over(store)
    chosen = [first.decide(p, asked("measure"), CPU) for p in problems]
    again = [second.decide(p, asked("measure"), CPU) for p in problems]
    assert {d.source for d in chosen} == {Source.MEASURED}
    assert {d.source for d in again} == {Source.DATABASE}
    assert [(d.candidate, d.margin, d.reason) for d in chosen] == [(d.candidate, d.margin, d.reason) for d in again]


def test_a_file_makes_the_same_decisions_when_it_is_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    with contextlib.closing(open_store(file)) as first:
        first.qualify(qualification())
        measure(first, PROBLEM)
    made = Dispatcher(REGISTRY, bench=nothing_is_timed)
    for readonly in (False, True):
        found = made.decide(PROBLEM, asked("predict", database=file, readonly=readonly), CPU)
        assert (found.candidate, found.source) == ("a", Source.DATABASE)
    made.close()


def test_each_database_has_its_own_answers(tmp_path: Path) -> None:
    made = Dispatcher(REGISTRY, bench=nothing_is_timed)
    for name, table in (("one", A_WINS), ("two", {**A_WINS, "b": Run((1 * MS,))})):
        with contextlib.closing(open_store(tmp_path / name)) as filled:
            filled.qualify(qualification())
            measure(filled, PROBLEM, table=table)
    chosen = [made.decide(PROBLEM, asked(database=tmp_path / n), CPU).candidate for n in ("one", "two", "one")]
    assert chosen == ["a", "b", "a"]
    made.close()


def test_two_environments_never_mix(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(store, PROBLEM)
    monkeypatch.setitem(environment._environments, repr(CPU), ELSEWHERE)
    store.qualify(qualification(ELSEWHERE))
    assert dispatcher_over(store).decide(PROBLEM, asked("predict"), CPU).source is Source.NATIVE
    benches = Benches({**A_WINS, "b": Run((1 * MS,))})
    found = dispatcher_over(store, benches).decide(PROBLEM, asked("measure"), CPU)
    assert (found.candidate, found.source) == ("b", Source.MEASURED)
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    assert dispatcher_over(store).decide(PROBLEM, asked(), CPU).candidate == "a"
    assert list(store.environments()) == [HERE.id, ELSEWHERE.id]
    assert store.environments()[HERE.id] == (HERE.identity, HERE.circumstances)


# The limits of now


def test_a_stored_choice_is_held_to_the_accuracy_of_now() -> None:
    store = qualified()
    measure(store, PROBLEM, table={**A_WINS, "native": Run((6 * MS,), 9e-6), "a": Run((3 * MS,), 1.5e-5)})
    made = dispatcher_over(store)
    assert made.decide(PROBLEM, asked(), CPU).candidate == "a"
    assert made.decide(PROBLEM, asked(accuracy="strict"), CPU).candidate == "b"


def test_a_stored_choice_is_held_to_the_memory_of_now() -> None:
    store, among = qualified(), [REGISTRY[0], replayed("a", 1, workspace=10**8), REGISTRY[2]]
    made = dispatcher_over(store, Benches(A_WINS), among)
    assert made.decide(PROBLEM, asked("measure"), CPU).candidate == "a"
    later = dispatcher_over(store, among=among)
    assert later.decide(PROBLEM, asked(memory_limit="100MB"), CPU).candidate == "a"
    assert later.decide(PROBLEM, asked(memory_limit="99MB"), CPU).candidate == "b"


def test_more_memory_than_was_tried_with_is_a_reason_to_time_again() -> None:
    store, among = qualified(), [REGISTRY[0], replayed("a", 1, workspace=10**8), REGISTRY[2]]
    first, second = Benches(A_WINS), Benches(A_WINS)
    small, large = asked("measure", memory_limit="10MB"), asked("measure", memory_limit="1GB")
    assert dispatcher_over(store, first, among).decide(PROBLEM, small, CPU).candidate == "b"
    assert "a" not in first.made[0][1].started()
    assert dispatcher_over(store, second, among).decide(PROBLEM, large, CPU).candidate == "a"
    assert second.problems == [PROBLEM]


LONG = Problem.parse((1, 16, 8, 8, 4), (8, 3, 3, 3, 4), padding=1)
HUNGRY = [REGISTRY[0], replayed("a", 1, outputs=9), REGISTRY[2]]
HUNGRY_WINS: dict[str, Run | Exception] = {
    "native": Run((6 * MS,)),
    "a": Run((3 * MS,)),
    "a(frames=4)": Run((4 * MS,)),
    "b": Run((5 * MS,)),
}
ENOUGH_FOR_CHUNKS = 3 * LONG.output_bytes + 10_000


def test_what_is_over_the_limit_is_timed_in_chunks(store: Store) -> None:
    benches = Benches(HUNGRY_WINS)
    tight = asked("measure", memory_limit=ENOUGH_FOR_CHUNKS)
    found = dispatcher_over(store, benches, HUNGRY).decide(LONG, tight, CPU)
    assert found.candidate == "a(frames=4)"
    assert benches.made[0][1].started() == ["native", "a(frames=4)", "b"]
    assert state(found, "a") is Status.OVER_MEMORY
    assert [c.name for c in (dispatcher_over(store, among=HUNGRY).candidate(found, LONG, CPU),)] == ["a(frames=4)"]


@pytest.mark.parametrize("first", ["loose", "tight"])
def test_one_database_holds_what_was_timed_under_several_limits(store: Store, first: str) -> None:
    limits = {"loose": 10**9, "tight": ENOUGH_FOR_CHUNKS}
    winners = {"loose": "a", "tight": "a(frames=4)"}
    for name in (first, *(name for name in limits if name != first)):
        benches = Benches(HUNGRY_WINS)
        made = dispatcher_over(store, benches, HUNGRY)
        assert made.decide(LONG, asked("measure", memory_limit=limits[name]), CPU).candidate == winners[name]
        assert benches.problems == [LONG]
    for name in (*limits, *limits):  # and nothing is timed any more
        assert (
            dispatcher_over(store, among=HUNGRY).decide(LONG, asked(memory_limit=limits[name]), CPU).candidate
            == winners[name]
        )


def test_where_nothing_may_be_timed_what_fits_of_a_run_without_chunks_is_taken() -> None:
    store = qualified()
    dispatcher_over(store, Benches(HUNGRY_WINS), HUNGRY).decide(LONG, asked("measure"), CPU)
    tight = asked("predict", memory_limit=ENOUGH_FOR_CHUNKS)
    found = dispatcher_over(store, among=HUNGRY).decide(LONG, tight, CPU)
    assert (found.candidate, found.source) == ("b", Source.DATABASE)


def test_peaks_are_measured_where_a_tuning_is_asked_for_and_not_inside_calls() -> None:
    table: dict[str, Run | Exception] = {
        "native": Run((6 * MS,), peak=PROBLEM.bytes + 10**6),
        "a": Run((3 * MS,), peak=PROBLEM.bytes + 5 * 10**6),
        "b": Run((4 * MS,), peak=PROBLEM.bytes),
    }
    for inside in (True, False):
        store, benches = qualified(), Benches(table)
        made = dispatcher_over(store, benches)
        ask = made.decide if inside else made.tune
        assert ask(PROBLEM, asked("measure"), CPU).candidate == "a"
        asked_for = [name for method, name, _ in benches.made[0][1].calls if method == "peak_bytes"]
        assert asked_for == ([] if inside else ["native", "a", "b"])
        # What was measured is what counts: `a` needs 5 MB, and its estimate is none.
        later = dispatcher_over(store).decide(PROBLEM, asked("predict", memory_limit="4MB"), CPU)
        assert later.candidate == ("a" if inside else "b")


def test_by_default_a_workspace_may_take_three_fifths_of_the_memory() -> None:
    store = qualified()
    among = [REGISTRY[0], replayed("a", 1, workspace=600_000_001), replayed("b", 2, workspace=600_000_000)]
    benches = Benches(A_WINS)
    found = dispatcher_over(store, benches, among).decide(PROBLEM, asked("measure"), CPU)
    assert found.candidate == "b"
    assert benches.made[0][1].started() == ["native", "b"]


def test_the_noise_of_the_device_is_what_a_winner_must_be_over() -> None:
    table: dict[str, Run | Exception] = {"native": Run((11 * MS,)), "a": Run((10 * MS,)), "b": Run((12 * MS,))}
    chosen = []
    for noise in (0.05, 0.15):
        store = MemoryStore()
        store.qualify(qualification(noise=noise))
        measure(store, PROBLEM, table=table)
        chosen.append(dispatcher_over(store).decide(PROBLEM, asked(), CPU).candidate)
    assert chosen == ["a", "native"]


def test_the_ceilings_of_the_device_are_what_a_candidate_must_come_near() -> None:
    store, benches = MemoryStore(), Benches(A_WINS)
    store.qualify(qualification(ceilings={"copy_gb_per_s": 1.0}))
    among = [REGISTRY[0], replayed("a", 1, moved=10**9), REGISTRY[2]]  # one second at that rate
    found = dispatcher_over(store, benches, among).decide(PROBLEM, asked("measure"), CPU)
    assert benches.made[0][1].started() == ["native", "b"]
    assert found.candidate == "b"


# What calls may cost


def slow(milliseconds: float) -> dict[str, Run | Exception]:
    return {name: Run((milliseconds * MS,)) for name in ("native", "a", "b")}


def test_under_auto_tuning_ends_when_its_share_of_the_time_is_spent() -> None:
    store, benches = qualified(), Benches(slow(20))
    made = dispatcher_over(store, benches)
    sources = [made.decide(problem, asked(stall="2", budget_ms=1), CPU).source for problem in OTHERS]
    spent = benches.clock.now - 1000.0
    assert sources[0] is Source.MEASURED
    assert sources[-1] is Source.NATIVE
    assert sources == sorted(sources, key=lambda s: s is Source.NATIVE)  # one after the other, then none
    assert 1.0 < spent <= 2.0 + 2 * 20 * MS  # the one that showed that no more fit
    timed = sources.count(Source.MEASURED)
    assert store.pending(HERE.id) == OTHERS[timed:]
    assert store.problems(HERE.id) == OTHERS[:timed]


def test_a_spent_share_grows_again_with_the_process_s_age() -> None:
    benches = Benches(slow(20))
    made = dispatcher_over(qualified(), benches)
    auto = asked(stall="0+5%", budget_ms=1)
    assert made.decide(PROBLEM, auto, CPU).source is Source.NATIVE
    benches.clock.pass_(100.0)
    assert made.decide(PROBLEM, auto, CPU).source is Source.MEASURED


def test_nothing_runs_once_the_share_is_spent() -> None:
    benches = Benches(slow(20))
    made = dispatcher_over(qualified(), benches)
    found = made.decide(PROBLEM, asked(stall="0"), CPU)
    assert (found.candidate, found.source) == ("native", Source.NATIVE)
    assert benches.made == []


def test_measure_lifts_what_auto_may_cost() -> None:
    store, benches = qualified(), Benches(slow(20))
    made = dispatcher_over(store, benches)
    assert made.decide(PROBLEM, asked("auto", stall="0"), CPU).source is Source.NATIVE
    assert store.pending(HERE.id) == [PROBLEM]
    assert made.decide(PROBLEM, asked("measure", stall="0"), CPU).source is Source.MEASURED
    assert store.pending(HERE.id) == []


def test_what_is_asked_for_is_not_counted_as_a_stall() -> None:
    benches = Benches(slow(20))
    made = dispatcher_over(qualified(), benches)
    for problem in OTHERS:
        made.tune(problem, asked(), CPU)
    assert made.decide(PROBLEM, asked("auto", stall="2"), CPU).source is Source.MEASURED


def test_a_shape_that_must_take_longer_than_is_left_is_not_begun() -> None:
    store = MemoryStore()
    gflops = PROBLEM.flops / 1e9 / 10.0  # native takes ten seconds at the best rate this device has
    store.qualify(qualification(ceilings={"matmul_float32_gflops": gflops}))
    among = [replayed("native", 0, flops=PROBLEM.flops), *REGISTRY[1:]]
    benches = Benches(slow(10_000))
    found = dispatcher_over(store, benches, among).decide(PROBLEM, asked("auto", stall="2"), CPU)
    assert found.source is Source.NATIVE
    assert benches.clock.now - 1000.0 <= 2.0
    assert store.pending(HERE.id) == [PROBLEM]


def test_the_first_stall_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    made = dispatcher_over(qualified(), Benches(A_WINS))
    made.decide(PROBLEM, asked("auto", stall="3+4%"), CPU)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "3 s + 4% of run time" in told.err
    assert "AUTOCONV_POLICY=record" in told.err
    for problem in OTHERS[:2]:
        made.decide(problem, asked("measure"), CPU)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("policy", ["predict", "record", "off"])
def test_what_does_not_stall_says_nothing(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = dispatcher_over(qualified())
    made.decide(PROBLEM, asked(policy), CPU)
    assert capsys.readouterr().err == ""


def test_what_is_asked_for_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    dispatcher_over(qualified(), Benches(A_WINS)).tune(PROBLEM, asked(), CPU)
    assert capsys.readouterr().err == ""


def test_too_little_room_is_a_reason_to_time_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store = qualified()
    made = 24 * max(math.prod(PROBLEM.input_shape), math.prod(PROBLEM.weight_shape))
    needed = PROBLEM.bytes + made  # nothing for results: where they cannot be kept they are checked at once
    monkeypatch.setattr(environment, "free_bytes", lambda _: needed - 1)
    found = dispatcher_over(store).decide(PROBLEM, asked("measure"), CPU)
    assert (found.source, store.pending(HERE.id)) == (Source.NATIVE, [PROBLEM])
    monkeypatch.setattr(environment, "free_bytes", lambda _: needed)
    assert dispatcher_over(store, Benches(A_WINS)).decide(PROBLEM, asked("measure"), CPU).candidate == "a"


def test_while_another_process_is_timing_auto_is_native() -> None:
    store = qualified()
    made = dispatcher_over(store, Benches(A_WINS))
    with device_lock.hold(HERE.id) as held:
        assert held
        found = made.decide(PROBLEM, asked("auto"), CPU)
    assert found.source is Source.NATIVE
    assert "another process is timing" in found.reason
    assert made.decide(PROBLEM, asked("auto"), CPU).source is Source.MEASURED


# Threads


def in_threads(count: int, run: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_threads_that_ask_for_one_shape_at_once_time_it_once(store: Store) -> None:
    benches, gate = Benches(A_WINS), threading.Barrier(8)
    made = dispatcher_over(store, benches)
    found = []

    def ask() -> None:
        gate.wait()
        found.append(made.decide(PROBLEM, asked("measure"), CPU))

    for thread in in_threads(8, ask):
        thread.join()
    assert benches.problems == [PROBLEM]
    assert [d.candidate for d in found] == ["a"] * 8
    assert sorted(d.source for d in found) == [Source.DATABASE] * 7 + [Source.MEASURED]
    assert len(store.records(HERE.id, PROBLEM)) == 3


def test_under_auto_other_threads_are_native_while_one_is_timing() -> None:
    store, benches = qualified(), Benches(A_WINS)
    timing, may_go_on = threading.Event(), threading.Event()
    found = []

    def bench(problem: Problem, device: mx.Device, **_: float) -> ReplayBench:
        timing.set()
        assert may_go_on.wait(60)
        return benches(problem, device)

    made = dispatcher_over(store, bench)
    (thread,) = in_threads(1, lambda: found.append(made.decide(PROBLEM, asked(), CPU)))
    try:
        assert timing.wait(60)
        meanwhile = [made.decide(p, asked(), CPU) for p in (PROBLEM, OTHERS[0])]
    finally:
        may_go_on.set()
        thread.join()
    assert [(d.candidate, d.source) for d in meanwhile] == [("native", Source.NATIVE)] * 2
    assert [(d.candidate, d.source) for d in found] == [("a", Source.MEASURED)]
    assert made.decide(PROBLEM, asked(), CPU).candidate == "a"


# Stores that fail


class Failing(MemoryStore):
    """A store of which some methods fail."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        self.qualify(qualification())
        for method in methods:
            setattr(self, method, self._fail)

    def _fail(self, *arguments: object) -> NoReturn:
        msg = "cannot write /x/own.db: disk I/O error"
        raise StoreError(msg)


WRITES = ("add_environment", "add", "begin", "end", "note", "forget", "qualify")
READS = ("records", "problems", "unended", "pending", "qualification", "environments")


@pytest.mark.parametrize("policy", ["auto", "measure", "predict", "record"])
def test_a_database_that_cannot_be_opened_costs_one_warning(policy: str) -> None:
    opened = []

    def stores(path: Path, readonly: bool) -> NoReturn:
        opened.append(path)
        msg = f"cannot open {path}: it is a directory"
        raise StoreError(msg)

    benches = Benches(A_WINS)
    made = Dispatcher(REGISTRY, stores=stores, bench=benches, clock=benches.clock)
    made._measurer._qualifications[HERE.id] = qualification()
    with pytest.warns(AutoconvWarning, match="it is a directory") as caught:
        found = [made.decide(p, asked(policy, database="/x/own.db"), CPU) for p in (PROBLEM, OTHERS[0], PROBLEM)]
    assert len(caught) == 1
    assert opened == [Path("/x/own.db")]
    if policy in {"auto", "measure"}:  # kept for this process
        assert [d.source for d in found] == [Source.MEASURED, Source.MEASURED, Source.DATABASE]
    else:
        assert {d.candidate for d in found} == {"native"}


@pytest.mark.parametrize("failing", [("add",), ("add_environment", "add", "note"), ("add", "note")], ids=" ".join)
def test_a_result_that_cannot_be_written_is_used_at_the_cost_of_one_warning(failing: tuple[str, ...]) -> None:
    made = dispatcher_over(Failing(*failing), Benches(A_WINS))
    with pytest.warns(AutoconvWarning, match="disk I/O error") as caught:
        found = [made.decide(p, asked("measure"), CPU) for p in (PROBLEM, OTHERS[0])]
    assert len(caught) == 1
    assert [(d.candidate, d.source) for d in found] == [("a", Source.MEASURED)] * 2


@pytest.mark.parametrize("policy", ["auto", "measure", "predict", "record"])
@pytest.mark.parametrize("failing", [WRITES, READS, WRITES + READS], ids=["writing", "reading", "everything"])
def test_no_store_keeps_a_call_from_going_on(policy: str, failing: tuple[str, ...]) -> None:
    made = dispatcher_over(Failing(*failing), Benches(A_WINS))
    made._measurer._qualifications[HERE.id] = qualification()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [made.decide(p, asked(policy), CPU) for p in (PROBLEM, OTHERS[0], PROBLEM)]
    assert {d.candidate for d in found} <= {"native", "a"}
    assert len(caught) == (0 if failing == WRITES and policy == "predict" else 1)


def test_a_network_that_cannot_be_kept_costs_one_warning() -> None:
    made = dispatcher_over(Failing("name_network"))
    with pytest.warns(AutoconvWarning, match="disk I/O error") as caught:
        made.name_network("decode.py", {PROBLEM: 1}, asked())
    assert len(caught) == 1
    made.name_network("decode.py", {PROBLEM: 1}, asked())  # warnings are errors here


def test_a_network_is_kept_while_no_database_can_be_opened(tmp_path: Path) -> None:
    file = tmp_path / "later" / "own.db"
    (tmp_path / "later").write_text("in its way")
    clock = VirtualClock()
    made = Dispatcher(REGISTRY, clock=clock)
    chosen = asked("record", database=file)
    with pytest.warns(AutoconvWarning, match="measurements are kept for this process alone"):
        made.decide(PROBLEM, chosen, CPU)
    made.name_network("decode.py", {PROBLEM: 3}, chosen)
    (tmp_path / "later").unlink()
    made.close()
    with contextlib.closing(open_store(file, readonly=True)) as store:
        assert store.networks() == {"decode.py": {PROBLEM: 3}}


def test_where_no_note_can_be_left_nothing_is_timed() -> None:
    benches = Benches(A_WINS)
    made = dispatcher_over(Failing("begin"), benches)
    found = made.decide(PROBLEM, asked("measure"), CPU)
    assert (found.candidate, found.source) == ("native", Source.NATIVE)
    assert "no note can be left of what runs" in found.reason
    assert benches.made[0][1].started() == []


def folder_state(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A database with one measured shape, on its own in a folder."""
    file = tmp_path / "shipped" / "own.db"
    with contextlib.closing(open_store(file)) as filled:
        filled.qualify(qualification())
        measure(filled, PROBLEM)
    return file


@pytest.mark.parametrize("policy", POLICIES)
def test_a_database_that_is_only_read_is_not_written(shipped: Path, policy: str) -> None:
    before = shipped.read_bytes()
    benches = Benches(A_WINS)
    made = Dispatcher(REGISTRY, bench=benches, clock=benches.clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for problem in (PROBLEM, OTHERS[0]):
            made.decide(problem, asked(policy, database=shipped, readonly=True), CPU)
    made.close()
    assert shipped.read_bytes() == before
    assert folder_state(shipped.parent).keys() <= {"own.db", "own.db-wal", "own.db-shm"}
    with contextlib.closing(open_store(shipped)) as after:
        assert after.problems(HERE.id) == [PROBLEM]
        assert after.pending(HERE.id) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_reading_only_is_no_reason_to_warn(shipped: Path, policy: str) -> None:
    benches = Benches(A_WINS)
    made = Dispatcher(REGISTRY, bench=benches, clock=benches.clock)
    found = made.decide(OTHERS[0], asked(policy, database=shipped, readonly=True), CPU)
    made.close()
    assert found.candidate == ("a" if policy in {"auto", "measure"} else "native")


def test_what_could_not_be_kept_is_still_not_timed_twice_in_a_process(shipped: Path) -> None:
    benches = Benches(A_WINS)
    made = Dispatcher(REGISTRY, bench=benches, clock=benches.clock)
    chosen = [made.decide(OTHERS[0], asked(database=shipped, readonly=True), CPU).candidate for _ in range(3)]
    made.close()
    assert chosen == ["a"] * 3
    assert benches.problems == [OTHERS[0]]


# Asking for a measurement


def test_tune_times_what_is_known_already() -> None:
    store = qualified()
    measure(store, PROBLEM)
    benches = Benches({**A_WINS, "b": Run((1 * MS,))})
    found = dispatcher_over(store, benches).tune(PROBLEM, asked("predict"), CPU)
    assert (found.candidate, found.source) == ("b", Source.MEASURED)
    assert dispatcher_over(store).decide(PROBLEM, asked(), CPU).candidate == "b"


def test_what_is_timed_again_is_decided_by_both_runs_here_and_in_the_next_process(store: Store) -> None:
    measure(store, PROBLEM, table={**A_WINS, "a": Run((9 * MS,)), "b": Run((6 * MS,))})
    benches = Benches({**A_WINS, "b": Run((6 * MS,))})
    found = dispatcher_over(store, benches).tune(PROBLEM, asked(), CPU)
    assert benches.problems == [PROBLEM]
    assert (found.candidate, found.source) == ("native", Source.MEASURED)  # of the second run alone it would be `a`
    later = dispatcher_over(store).decide(PROBLEM, asked(), CPU)
    assert (later.candidate, later.margin, later.reason) == (found.candidate, found.margin, found.reason)
    assert "2 runs" in str(dispatcher_over(store).explanation(PROBLEM, asked(), CPU))


def test_what_cannot_be_read_again_is_decided_by_its_own_run() -> None:
    made = dispatcher_over(Failing("records"), Benches(A_WINS))
    with pytest.warns(AutoconvWarning, match="disk I/O error") as caught:
        found = made.decide(PROBLEM, asked("measure"), CPU)
    assert len(caught) == 1
    assert (found.candidate, found.source) == ("a", Source.MEASURED)


LOSSY: dict[str, Run | Exception] = {"native": Run((9 * MS,), 5e-2), "a": Run((5 * MS,), 4e-2), "b": Run((MS,), 6e-2)}


def test_tune_raises_where_nothing_is_accurate_enough_and_keeps_what_it_found() -> None:
    store = qualified()
    with pytest.raises(AccuracyError, match=r"no candidate is within 1\.0e-05"):
        dispatcher_over(store, Benches(LOSSY)).tune(PROBLEM, asked(accuracy="strict"), CPU)
    assert [r.status for r in store.records(HERE.id, PROBLEM)] == [Status.OK, Status.INACCURATE, Status.INACCURATE]


def test_a_call_takes_the_most_accurate_with_one_warning() -> None:
    made = dispatcher_over(qualified(), Benches(LOSSY))
    with pytest.warns(AutoconvWarning, match="the most accurate") as caught:
        found = [made.decide(PROBLEM, asked("measure", accuracy="strict"), CPU) for _ in range(3)]
    assert len(caught) == 1
    assert [(d.candidate, d.accurate) for d in found] == [("a", False)] * 3


def test_tune_raises_where_the_database_cannot_be_opened() -> None:
    def stores(path: Path, readonly: bool) -> NoReturn:
        msg = "cannot open it"
        raise StoreError(msg)

    made = Dispatcher(REGISTRY, stores=stores, bench=nothing_is_timed)
    with pytest.raises(StoreError, match="cannot open it"):
        made.tune(PROBLEM, asked(), CPU)


@pytest.mark.parametrize("failing", ["add_environment", "begin", "add"])
def test_tune_raises_where_the_database_cannot_be_written(failing: str) -> None:
    with pytest.raises(StoreError, match="disk I/O error"):
        dispatcher_over(Failing(failing), Benches(A_WINS)).tune(PROBLEM, asked(), CPU)


def test_tune_refuses_a_database_that_is_only_read_before_it_times(shipped: Path) -> None:
    made = Dispatcher(REGISTRY, bench=nothing_is_timed)
    with pytest.raises(ReadOnlyError):
        made.tune(PROBLEM, asked(database=shipped, readonly=True), CPU)
    made.close()


HUGE = Problem.parse((1, 2048, 1024, 1024, 2), (2, 1, 1, 1, 2))


def test_an_array_past_the_index_range_is_native_until_it_is_timed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = qualified()
    assert not HUGE.addressable
    for policy in ("predict", "record", "off"):
        found = dispatcher_over(store).decide(HUGE, asked(policy), CPU)
        assert (found.candidate, found.source) == ("native", Source.NATIVE)
    monkeypatch.setattr(environment, "free_bytes", lambda _: 10**12)
    whole = [c for c in algorithm_candidates(HUGE, "cpu", REGISTRY, 6e8) if c.chunks]
    assert [c.algorithm.name for c in whole] == ["native", "a", "b"]
    names = [c.name for c in whole]
    table = {**dict.fromkeys(names, Run((9 * MS,), error=1e-6)), names[1]: Run((3 * MS,), error=2e-6)}
    benches = Benches(table)
    found = dispatcher_over(store, benches).decide(HUGE, asked("measure"), CPU)
    assert (found.candidate, found.source) == (names[1], Source.MEASURED)
    assert benches.made[0][1].started() == names
    states = {v.record.candidate: v.status for v in found.verdicts}
    assert [states[name] for name in ("native", "a", "b")] == [Status.NOT_STARTED] * 3
    again = dispatcher_over(store)
    assert again.decide(HUGE, asked(), CPU).candidate == names[1]
    assert again.candidate(again.decide(HUGE, asked(), CPU), HUGE, CPU).name == names[1]


def test_a_device_that_died_is_not_timed_on_again() -> None:
    table = {**A_WINS, "b": RuntimeError("illegal memory access")}
    benches = Benches(table, dies_with="b")
    made = dispatcher_over(qualified(), benches)
    first, second = (made.decide(p, asked("measure"), CPU) for p in (PROBLEM, OTHERS[0]))
    assert (first.candidate, second.candidate) == ("native", "native")
    assert "no longer answers" in first.reason
    assert benches.problems == [PROBLEM]
    with pytest.raises(TuningError, match="stopped answering"):
        made.tune(PROBLEM, asked(), CPU)


def test_what_lost_the_device_is_not_tried_again_by_the_next_process(store: Store) -> None:
    dying = Benches({**A_WINS, "a": RuntimeError("illegal memory access")}, dies_with="a")
    assert dispatcher_over(store, dying).decide(PROBLEM, asked("measure"), CPU).candidate == "native"
    benches = Benches(A_WINS)
    found = dispatcher_over(store, benches).decide(PROBLEM, asked("measure"), CPU)
    assert benches.made[0][1].started() == ["native", "b"]
    assert found.candidate == "b"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("no"), MemoryError()])
def test_operands_that_do_not_fit_are_a_reason_to_be_native(error: Exception) -> None:
    def bench(problem: Problem, device: mx.Device, **_: float) -> NoReturn:
        raise error

    store = qualified()
    found = dispatcher_over(store, bench).decide(PROBLEM, asked("measure"), CPU)
    assert (found.candidate, found.source) == ("native", Source.NATIVE)
    assert store.pending(HERE.id) == [PROBLEM]


# What ended a process


def test_a_candidate_that_left_its_note_once_is_tried_again(store: Store) -> None:
    """Its process may have been ended by whoever did not want to wait."""
    store.begin(HERE.id, PROBLEM, "a")
    assert dispatcher_over(store, Benches(A_WINS)).decide(PROBLEM, asked("measure"), CPU).candidate == "a"
    assert list(store.unended(HERE.id, PROBLEM)) == []


def test_a_candidate_that_left_its_note_twice_is_not_tried_again(store: Store) -> None:
    for _ in range(2):
        store.begin(HERE.id, PROBLEM, "a")
    benches = Benches(A_WINS)
    made = dispatcher_over(store, benches)
    found = made.decide(PROBLEM, asked("measure"), CPU)
    assert found.candidate == "b"
    assert benches.made[0][1].started() == ["native", "b"]
    assert {r.candidate: r.status for r in store.records(HERE.id, PROBLEM)}["a"] is Status.CRASHED
    made.decide(OTHERS[0], asked("measure"), CPU)
    assert "a" in benches.made[1][1].started()  # for another problem it is
    made.tune(PROBLEM, asked(), CPU)
    assert benches.made[2][1].started() == ["native", "b"]


def test_what_survives_leaves_no_note(store: Store) -> None:
    benches = Benches({**A_WINS, "b": RuntimeError("no")})
    dispatcher_over(store, benches).decide(PROBLEM, asked("measure"), CPU)
    assert list(store.unended(HERE.id, PROBLEM)) == []


KILLED = """
import os, sys
from replay import Benches, Run, registry
from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.problem import Problem

cpu = mx.Device(mx.cpu)
environment._environments[repr(cpu)] = Environment(
    {"backend": "cpu", "device": "a device", "mlx": "1.2.3"}, {}, memory_bytes=10**9)
problem = Problem.from_key(sys.argv[2])
benches = Benches({"native": Run(), "a": Run(), "b": Run()})

class Deadly:
    def __getattr__(self, name):
        return getattr(self.bench, name)
    def __init__(self, problem, device, **_):
        self.bench = benches(problem, device)
    def verify(self, candidate):
        if candidate.name == "a":
            os.kill(os.getpid(), 9)
        return self.bench.verify(candidate)

made = Dispatcher(registry("native", "a", "b"), bench=Deadly, clock=benches.clock)
made.decide(problem, settings.with_changes(settings.from_environment({}), {"policy": "measure",
            "database": sys.argv[1]}), cpu)
"""


def test_a_process_that_is_killed_tells_the_next_one_by_what(tmp_path: Path) -> None:
    file = tmp_path / "own.db"
    with contextlib.closing(open_store(file)) as store:
        store.qualify(qualification())
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(file), PROBLEM.key],
            env={**os.environ, "PYTHONPATH": python_path(Path(__file__).parent), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -9, done.stderr
    benches = Benches(A_WINS)
    made = Dispatcher(REGISTRY, bench=benches, clock=benches.clock)
    found = made.decide(PROBLEM, asked("measure", database=file), CPU)
    made.close()
    assert benches.made[0][1].started() == ["native", "b"]
    assert found.candidate == "b"


# The first run on a device


class Introduction:
    """A qualifier that takes some steps and finds what it was told to; counts itself."""

    def __init__(self, *, steps: int = 1, barred: dict[str, str] | None = None, dies: bool = False) -> None:
        self.steps = steps
        self.barred = barred or {}
        self.dies = dies
        self.begun: list[str] = []
        self.seconds: list[float] = []
        self.shortage = ""

    def __call__(self, where: Environment, device: mx.Device, among: Sequence[Algorithm], **_: object) -> Introduction:
        self.begun.append(where.id)
        self.left = self.steps
        self.among = among
        return self

    def advance(self, seconds: float = math.inf) -> Qualification | None:
        self.seconds.append(seconds)
        self.left -= 1
        return None if self.left > 0 else qualification(among=self.among, barred=self.barred)


@pytest.fixture
def unqualified(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Introduction]:
    """Puts an introduction in the place of the qualifier."""

    def put(**how: Any) -> Introduction:
        made = Introduction(**how)
        monkeypatch.setattr(measurer, "Qualifier", made)
        return made

    return put


def test_a_device_is_qualified_once_and_that_is_kept(unqualified: Callable[..., Introduction]) -> None:
    introduction, store = unqualified(), MemoryStore()
    made = dispatcher_over(store, Benches(A_WINS))
    for problem in (PROBLEM, OTHERS[0]):
        assert made.decide(problem, asked("measure"), CPU).source is Source.MEASURED
    dispatcher_over(store, Benches(A_WINS)).decide(OTHERS[1], asked("measure"), CPU)
    assert introduction.begun == [HERE.id]
    assert store.qualification(HERE.id, fingerprint(REGISTRY)) is not None


def test_other_algorithms_make_it_be_qualified_again(unqualified: Callable[..., Introduction]) -> None:
    introduction, store = unqualified(), qualified()
    among = [*REGISTRY[:2], replayed("b", 2, version=2)]
    dispatcher_over(store, Benches(A_WINS), among).decide(PROBLEM, asked("measure"), CPU)
    assert introduction.begun == [HERE.id]


def test_a_qualification_goes_on_where_the_last_call_left_it(unqualified: Callable[..., Introduction]) -> None:
    introduction, store = unqualified(steps=3), MemoryStore()
    made = dispatcher_over(store, Benches(A_WINS))
    found = [made.decide(PROBLEM, asked("auto", stall="2"), CPU) for _ in range(3)]
    assert [d.source for d in found] == [Source.NATIVE, Source.NATIVE, Source.MEASURED]
    assert introduction.begun == [HERE.id]
    assert max(introduction.seconds) <= 2.0


@pytest.mark.parametrize("policy", ["predict", "record", "off"])
def test_what_times_nothing_qualifies_nothing(policy: str, unqualified: Callable[..., Introduction]) -> None:
    introduction = unqualified()
    dispatcher_over(MemoryStore()).decide(PROBLEM, asked(policy), CPU)
    assert introduction.begun == []


def test_a_barred_algorithm_is_not_used_and_named_once(unqualified: Callable[..., Introduction]) -> None:
    unqualified(barred={"a": "silent zeros"})
    store, benches = MemoryStore(), Benches(A_WINS)
    made = dispatcher_over(store, benches)
    with pytest.warns(AutoconvWarning, match="^a is not used on .*: silent zeros") as caught:
        found = [made.decide(p, asked("measure"), CPU) for p in (PROBLEM, OTHERS[0])]
    assert len(caught) == 1
    assert [d.candidate for d in found] == ["b", "b"]
    assert all("a" not in bench.started() for _, bench in benches.made)
    assert "silent zeros" in str(made.explanation(PROBLEM, asked(), CPU))
    later = dispatcher_over(store, benches)  # known from the store, and not said again
    assert later.decide(OTHERS[1], asked("measure"), CPU).candidate == "b"


def test_a_device_that_dies_while_it_is_qualified_is_not_timed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def bench(problem: Problem, device: mx.Device, **_: float) -> ReplayBench:
        begun.append(problem)
        return ReplayBench({**A_WINS, "a": RuntimeError("illegal memory access")}, dies_with="a")

    monkeypatch.setattr(measurer, "Qualifier", functools.partial(Qualifier, bench=bench))
    made = dispatcher_over(MemoryStore())
    found = [made.decide(p, asked("measure"), CPU) for p in (PROBLEM, OTHERS[0])]
    assert {d.candidate for d in found} == {"native"}
    assert set(begun) == {PROBLEMS[0]}
    assert "stopped answering" in found[1].reason


def test_what_lost_the_device_in_its_qualification_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    benches = Benches({**A_WINS, "a": RuntimeError("illegal memory access")}, dies_with="a")
    monkeypatch.setattr(measurer, "Qualifier", functools.partial(Qualifier, bench=benches))
    store = MemoryStore()
    first, second = (
        Dispatcher(REGISTRY, stores=lambda _path, _readonly: store, bench=Benches(A_WINS)) for _ in range(2)
    )
    first.decide(PROBLEM, asked("measure"), CPU)
    with pytest.warns(AutoconvWarning, match="a is not used .* the process ended while it ran"):
        second.decide(PROBLEM, asked("measure"), CPU)
    assert [name for _, made in benches.made for name in made.started()].count("a") == 1


# Groups, which MLX has none of in 3D


GROUPED = Problem.parse((1, 4, 5, 5, 8), (8, 3, 3, 3, 4), groups=2)


@pytest.mark.parametrize("policy", ["predict", "record"])
def test_groups_that_are_not_measured_go_to_a_candidate_that_can(policy: str) -> None:
    made = dispatcher_over(MemoryStore(), among=algorithms())
    found = made.decide(GROUPED, asked(policy), CPU)
    assert found.candidate != "native"
    assert found.source is Source.NATIVE
    assert "no groups" in found.reason
    made.candidate(found, GROUPED, CPU).build(GROUPED)


# What can be asked


def test_decisions_are_counted_by_source() -> None:
    store = qualified()
    measure(store, PROBLEM)
    made = dispatcher_over(store, Benches(A_WINS))
    assert set(made.statistics().values()) == {0}
    made.decide(PROBLEM, asked(), CPU)
    made.decide(PROBLEM, asked("predict"), CPU)
    made.decide(OTHERS[0], asked("measure"), CPU)
    for policy in ("off", "predict", "record"):
        made.decide(OTHERS[1], asked(policy), CPU)
    made.explanation(PROBLEM, asked(), CPU)
    counted = made.statistics()
    assert {s: n for s, n in counted.items() if n} == {Source.DATABASE: 2, Source.MEASURED: 1, Source.NATIVE: 3}
    assert set(counted) == set(Source) - {Source.MEMORY}


ALL_KINDS: dict[str, Run | Exception] = {
    "native": Run((9 * MS,)),
    "fast": Run((3 * MS,), error=3e-7, peak=12_300_000),
    "broken": RuntimeError("no kernel\nfor this"),
    "wrong": Run((1 * MS,), wrong="the result is not finite"),
    "loose": Run((1 * MS,), error=0.01),
    "large": Run((1 * MS,)),
    "barred": Run((1 * MS,)),
}


@pytest.fixture
def explained() -> tuple[Dispatcher, MemoryStore]:
    """A dispatcher that times nothing over a store with a record of every kind."""
    among = [*registry(*ALL_KINDS), replayed("new", 9)]
    among[5] = replayed("large", 5, workspace=10**9)
    store = MemoryStore()
    for registered in (among, among[:-1]):
        store.qualify(qualification(among=registered, barred={"barred": "silent zeros"}))
    dispatcher_over(store, Benches(ALL_KINDS), among[:-1]).tune(PROBLEM, asked(), CPU)
    return dispatcher_over(store, among=among), store


@pytest.mark.parametrize("policy", POLICIES)
def test_an_explanation_never_times_and_notes_nothing(policy: str, explained: tuple[Dispatcher, MemoryStore]) -> None:
    made, store = explained
    for problem in (PROBLEM, OTHERS[0], GROUPED, HUGE):
        found = made.explanation(problem, asked(policy), CPU)
        assert found.problem == problem
        assert str(problem) in str(found)
    assert store.pending(HERE.id) == []
    assert set(made.statistics().values()) == {0}


def test_an_explanation_says_of_every_candidate_why_it_was_or_was_not_taken(
    explained: tuple[Dispatcher, MemoryStore],
) -> None:
    text = str(explained[0].explanation(PROBLEM, asked(), CPU))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name, said in (
        ("native", "9.000"),
        ("fast", "3.000"),
        ("broken", "no kernel for this"),
        ("wrong", "the result is not finite"),
        ("loose", "1.0e-02 is over 1.0e-05"),
        ("large", "over the limit of 0.60 GB"),
        ("barred", "silent zeros"),
        ("new", "not measured"),
    ):
        assert said in lines[name], name
    assert "3.00x" in lines["fast"]
    assert lines["fast"].split()[5:9] == ["3.0e-07", "1.0e-05", "0.0", "12.3"]  # error, bound, workspace, peak
    assert "0.60 GB beyond input, weight and output" in text
    assert "3.00 times as fast as native" in lines["fast"]
    assert "fast, from database: " in text
    assert str(HERE) in text


def test_an_explanation_as_json_holds_the_same(explained: tuple[Dispatcher, MemoryStore]) -> None:
    found = explained[0].explanation(PROBLEM, asked(), CPU)
    text = json.dumps(found.as_dict(), allow_nan=False)  # JSON knows neither NaN nor Infinity
    read = cast("dict[str, Any]", json.loads(text))
    assert read["problem"] == PROBLEM.key
    assert read["environment"]["id"] == HERE.id
    assert (read["candidate"], read["source"]) == ("fast", "database")
    assert read["margin"] == pytest.approx(2.0)
    assert read["memory_limit_bytes"] == 600_000_000
    assert {c["candidate"]: c["status"] for c in read["candidates"]} == {
        "native": "ok",
        "fast": "ok",
        "broken": "failed",
        "wrong": "wrong",
        "loose": "inaccurate",
        "large": "over_memory",
        "barred": "failed",
    }
    fast = next(c for c in read["candidates"] if c["candidate"] == "fast")
    assert (fast["median_us"], fast["error"], fast["speedup"]) == (3000.0, 3e-7, pytest.approx(3.0))
    assert (fast["bound"], fast["workspace_bytes"], fast["peak_bytes"]) == (1e-5, 0, 12_300_000)
    assert read["not_measured"] == ["new"]


def test_a_shape_that_is_not_known_is_explained_as_json_too() -> None:
    found = dispatcher_over(qualified()).explanation(PROBLEM, asked(), CPU)
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (read["candidate"], read["source"], read["margin"]) == ("native", "native", None)
    assert read["candidates"] == []
    assert read["not_measured"] == ["native", "a", "b"]


# On a real device, with everything as it is


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="MLX's scratch on GPUs is its own")
@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("compiled", [False, True], ids=["called", "compiled"])
def test_a_call_under_a_limit_takes_no_more_than_that(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv import conv3d

    monkeypatch.delitem(environment._environments, repr(CPU))
    input, weight = mx.random.normal((1, 16, 32, 32, 8)), mx.random.normal((8, 3, 3, 3, 8))
    expected = mx.conv3d(input, weight, padding=1)
    mx.eval(input, weight, expected)
    limit = 2 * 10**6  # native takes 14 MB

    def limited(x: mx.array, w: mx.array) -> mx.array:
        return conv3d(x, w, padding=1, policy="measure", memory_limit=limit)

    limited(input, weight)  # which times it
    run = mx.compile(limited) if compiled else limited
    output = run(input, weight)
    mx.eval(output)
    assert taken(lambda: run(input, weight)) <= limit
    assert mx.allclose(output, expected, rtol=SLACK * 1e-4, atol=SLACK * 1e-3)


def test_a_real_device_is_qualified_timed_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(environment._environments, repr(CPU))
    where, problem = environment.of(CPU), Problem.parse((1, 4, 4, 4, 4), (4, 3, 3, 3, 4), padding=1)
    first, second = Dispatcher(), Dispatcher(bench=nothing_is_timed)
    how = asked("measure", database=tmp_path / "own.db", budget_ms=20)
    found = first.decide(problem, how, CPU)
    assert found.source is Source.MEASURED
    assert found.accurate
    assert {v.status for v in found.verdicts} == {Status.OK}
    known = first.store(how).qualification(where.id, fingerprint(algorithms()))
    assert known is not None
    assert known.barred == {}
    assert known.passed >= {(a.name, dtype) for a in algorithms()[:1] for dtype in ("float32", "float16", "bfloat16")}
    assert 0 <= known.noise < math.inf
    assert all(0 < ceiling < math.inf for ceiling in known.ceilings.values())
    assert {"matmul_float32_gflops", "matmul_float16_gflops", "copy_gb_per_s", "launch_us"} <= known.ceilings.keys()
    again = second.decide(problem, how, CPU)
    assert (again.candidate, again.source) == (found.candidate, Source.DATABASE)
    assert capsys.readouterr().err.count("\n") == 1
    first.close()
    second.close()


# Where nothing can be timed


def test_what_can_never_be_timed_is_not_noted_for_later() -> None:
    huge = Problem.parse((1, 2, 1, 1, 2**16), (2**15, 2, 1, 1, 2**16))  # its weight is what is too large
    store = qualified()
    for policy in ("auto", "measure", "record"):
        found = dispatcher_over(store).decide(huge, asked(policy), CPU)
        assert (found.candidate, found.source) == ("native", Source.NATIVE)
        assert "2^31-1" in found.reason
    assert store.pending(HERE.id) == []


def test_what_measure_took_is_not_held_against_auto() -> None:
    benches = Benches(slow(100))
    made = dispatcher_over(qualified(), benches)
    made.decide(PROBLEM, asked("measure"), CPU)
    assert benches.clock.now - 1000.0 > 2.0
    assert made.decide(OTHERS[0], asked("auto", stall="2"), CPU).source is Source.MEASURED


def test_threads_that_come_first_at_the_same_time_get_one_dispatcher() -> None:
    dispatch.forget()
    start = threading.Barrier(8)
    found = []

    def come() -> None:
        start.wait()
        found.append(dispatch.dispatcher())

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_what_another_process_timed_meanwhile_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the device; once it has it, it looks once more."""
    store, other = qualified(), qualified()
    measure(other, PROBLEM)
    held = device_lock.hold

    @contextlib.contextmanager
    def hold(name: str, wait_s: float = 0.0) -> Iterator[bool]:
        store.add(PROBLEM, other.records(HERE.id, PROBLEM))
        with held(name, wait_s) as had:
            yield had

    monkeypatch.setattr(device_lock, "hold", hold)
    found = dispatcher_over(store).decide(PROBLEM, asked("measure"), CPU)  # times nothing, or fails
    assert (found.candidate, found.source) == ("a", Source.DATABASE)
