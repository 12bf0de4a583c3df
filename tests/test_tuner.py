"""The tuner: what runs, in which order, how often, and what becomes of what fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay import ReplayBench, Run, Time, VirtualClock, contenders, replayed

from autoconv import __version__
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, Convolution, algorithms, candidates
from autoconv.decision import Limits, choose
from autoconv.errors import DeviceLostError, TuningError
from autoconv.problem import Problem
from autoconv.record import MAX_DETAIL, Record, Status
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.operands import MIN_PART
from autoconv.tuning.tuner import CEILING_SLACK, Guard, Plan, tune
from autoconv.tuning.verification import Verdict

PROBLEM = Problem.parse((1, 4, 8, 8, 4), (8, 3, 3, 3, 4), padding=1)
MS = 1e-3
CPU = mx.Device(mx.cpu)


def race(
    table: dict[str, Run | Exception],
    *others: Algorithm,
    bench: ReplayBench | None = None,
    plan: Plan | None = None,
    problem: Problem = PROBLEM,
    backend: str = "cpu",
    guard: Guard | None = None,
) -> dict[str, Record]:
    """The records of native and the others by name, in the order in which they came."""
    bench = bench or ReplayBench(table)
    named = {a.name: a for a in others}
    field = contenders(*(named.get(name, replayed(name, i)) for i, name in enumerate(bench.table)))
    guarded: Any = {} if guard is None else {"guard": guard}
    found = tune(
        problem,
        "somewhere",
        backend,
        field,
        bench,
        plan,
        **guarded,
        clock=bench.clock,
        now=lambda: 1234.5,
    )
    return {record.candidate: record for record in found}


def steady(milliseconds: float) -> Run:
    return Run((milliseconds * MS,))


# Who runs


def test_native_runs_first() -> None:
    bench = ReplayBench({"native": steady(9), "a": steady(1), "b": steady(1)})
    race({}, bench=bench)
    assert bench.started() == ["native", "a", "b"]
    assert bench.calls[:2] == [("verify", "native", 1), ("sample", "native", 1)]


@pytest.mark.parametrize("failure", [RuntimeError("no kernel"), ValueError("groups"), TypeError("cannot")])
def test_native_that_fails_is_a_record_and_the_others_are_timed(failure: Exception) -> None:
    found = race({"native": failure, "a": steady(5), "b": steady(5)})
    assert found["native"].status is Status.FAILED
    assert found["native"].detail == f"{type(failure).__name__}: {failure}"
    assert found["native"].error is None
    for name in ("a", "b"):
        assert found[name].status is Status.OK
        assert len(found[name].samples_us) >= 6


def test_records_come_in_the_order_of_the_candidates() -> None:
    found = race({"native": steady(5), "slowest": steady(9), "fails": RuntimeError("no"), "fastest": steady(1)})
    assert list(found) == ["native", "slowest", "fails", "fastest"]


def test_a_candidate_that_raises_costs_nobody_else() -> None:
    found = race({"native": steady(5), "a": RuntimeError("a kernel\n  did not compile"), "b": steady(4)})
    assert (found["a"].status, found["a"].samples_us) == (Status.FAILED, ())
    assert found["a"].detail == "RuntimeError: a kernel did not compile"
    assert found["b"].status is Status.OK


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[malloc_or_wait] Unable to allocate 34359738368 bytes."),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 134668044288 bytes which is greater than the maximum allowed "
            "buffer size of 86586540032 bytes."
        ),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
        ),
        RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
        RuntimeError("cudnnBackendExecute(handle, plan, pack) failed: CUDNN_STATUS_ALLOC_FAILED."),
        RuntimeError("failed: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED."),
        MemoryError("std::bad_alloc"),
        RuntimeError("cudaErrorMemoryAllocation"),
        MemoryError(),
    ],
    ids=[
        *("malloc", "metal buffer", "metal resources", "metal command buffer", "cuda", "cudnn", "cudnn 9", "c++"),
        *("cuda name", "host"),
    ],
)
def test_memory_that_runs_out_has_a_status_of_its_own(error: Exception) -> None:
    found = race({"native": steady(5), "a": error})
    assert found["a"].status is Status.OUT_OF_MEMORY


def test_a_wrong_result_is_not_timed() -> None:
    bench = ReplayBench({"native": steady(5), "a": Run((1 * MS,), wrong="the result is not finite")})
    found = race({}, bench=bench)
    assert (found["a"].status, found["a"].detail) == (Status.WRONG, "the result is not finite")
    assert found["a"].samples_us == ()
    assert ("sample", "a", 1) not in bench.calls


@pytest.mark.parametrize(
    ("accuracy", "native", "passes", "fails"),
    [
        ("native", 1e-7, 0.9e-5, 1.1e-5),  # the floor
        ("native", 2e-5, 3.9e-5, 4.1e-5),  # twice native's
        ("native", 2e-3, 2e-3, 2.1e-3),  # native itself is lossy: no worse than it
        ("strict", 2e-5, 0.9e-5, 1.1e-5),
        (1e-2, 1e-7, 0.9e-2, 1.1e-2),
    ],
)
def test_a_result_over_the_bound_is_inaccurate_and_not_timed(
    accuracy: str | float, native: float, passes: float, fails: float
) -> None:
    bench = ReplayBench({n: Run((MS,), error=e) for n, e in (("native", native), ("good", passes), ("bad", fails))})
    found = race({}, bench=bench, plan=Plan(accuracy=accuracy))
    assert found["native"].status is Status.OK
    assert found["good"].status is Status.OK
    assert (found["bad"].status, found["bad"].error, found["bad"].samples_us) == (Status.INACCURATE, fails, ())
    assert "bad" not in bench.turns()


@pytest.mark.parametrize("native", [RuntimeError("no"), Run(error=5e-3, wrong="half of it is zero")])
def test_without_a_right_native_the_strict_bounds_hold(native: Run | Exception) -> None:
    found = race({"native": native, "good": Run(error=0.9e-5), "bad": Run(error=1.1e-5)})
    assert (found["good"].status, found["bad"].status) == (Status.OK, Status.INACCURATE)


@pytest.mark.parametrize("what", ["flops", "moved"])
def test_what_cannot_come_within_three_times_the_best_is_not_started(what: str) -> None:
    ceilings = {"matmul_float32_gflops": 1.0 / CEILING_SLACK, "copy_gb_per_s": 1.0 / CEILING_SLACK}
    # Native takes 1 ms, and 3 M of either take 3 ms at least.
    hopeful = replayed("hopeful", **{what: 2_950_000})
    hopeless = replayed("hopeless", **{what: 3_050_000})
    bench = ReplayBench({"native": steady(1), "hopeful": steady(9), "hopeless": steady(9)})
    found = race({}, hopeful, hopeless, bench=bench, plan=Plan(ceilings=ceilings))
    assert bench.started() == ["native", "hopeful"]
    assert (found["hopeless"].status, found["hopeless"].samples_us) == (Status.TOO_SLOW, ())
    assert found["hopeless"].error is None
    assert "3.05 ms" in found["hopeless"].detail


def test_metal_may_beat_the_count_of_its_operations_through_winograd() -> None:
    ceilings = {"matmul_float32_gflops": 1.0 / CEILING_SLACK}
    many = replayed("many", flops=3_050_000)
    table: dict[str, Run | Exception] = {"native": steady(1), "many": steady(1)}
    assert race(table, many, plan=Plan(ceilings=ceilings), backend="metal")["many"].status is Status.OK
    assert race(table, many, plan=Plan(ceilings=ceilings), backend="cuda")["many"].status is Status.TOO_SLOW


def test_ceilings_of_another_dtype_bound_nothing() -> None:
    many = replayed("many", flops=10**15, moved=10**15)
    found = race({"native": steady(1), "many": steady(1)}, many, plan=Plan(ceilings={"matmul_float16_gflops": 1.0}))
    assert found["many"].status is Status.OK


def test_native_is_never_held_to_be_too_slow() -> None:
    native = replayed("native", 0, flops=10**15)
    found = race({"native": steady(5), "a": steady(1)}, native, plan=Plan(ceilings={"matmul_float32_gflops": 1.0}))
    assert found["native"].status is Status.OK


def test_a_workspace_over_the_limit_is_not_tried() -> None:
    bench = ReplayBench({"native": steady(5), "fits": steady(1), "large": steady(1)})
    at, over = replayed("fits", workspace=1_000_000), replayed("large", workspace=1_000_001)
    found = race({}, at, over, bench=bench, plan=Plan(memory_bytes=1_000_000))
    assert bench.started() == ["native", "fits"]
    assert (found["large"].status, found["large"].workspace_bytes) == (Status.OVER_MEMORY, 1_000_001)


def test_where_all_workspaces_are_over_the_limit_the_smallest_is_tried() -> None:
    bench = ReplayBench({"small": steady(5)})
    native, large = replayed("native", 0, workspace=3000), replayed("large", workspace=2001)
    field = [Candidate(native), Candidate(large), Candidate(replayed("small", workspace=2000))]
    found = tune(PROBLEM, "somewhere", "cpu", field, bench, Plan(memory_bytes=1000), clock=bench.clock)
    assert [r.status for r in found] == [Status.OVER_MEMORY, Status.OVER_MEMORY, Status.OK]
    assert len(found[2].samples_us) >= 6


HUGE = Problem.parse((1, 2048, 1024, 1024, 2), (2, 1, 1, 1, 2))


def test_past_the_index_range_only_chunks_are_started() -> None:
    """Native as a whole has ended processes there."""
    whole = contenders("native", "a")
    cut = [Candidate(c.algorithm, (("frames", 64),)) for c in whole]
    bench = ReplayBench({c.name: Run((5 * MS,), error=2e-3) for c in cut})
    field = [whole[0], cut[0], whole[1], cut[1]]
    found = tune(HUGE, "somewhere", "cpu", field, bench, clock=bench.clock)
    assert [r.status for r in found] == [Status.NOT_STARTED, Status.OK, Status.NOT_STARTED, Status.OK]
    assert bench.started() == ["native(frames=64)", "a(frames=64)"]
    assert "2^31-1 elements" in found[0].detail


def test_where_native_is_left_out_native_in_chunks_sets_the_bound() -> None:
    native, other = replayed("native", 0, workspace=100), replayed("a", 1)
    candidates = [Candidate(native), Candidate(native, (("frames", 1),)), Candidate(other)]
    bench = ReplayBench({"native(frames=1)": Run((5 * MS,), error=9e-4), "a": Run((5 * MS,), error=1.7e-3)})
    found = tune(PROBLEM, "somewhere", "cpu", candidates, bench, Plan(memory_bytes=50), clock=bench.clock)
    assert [r.status for r in found] == [Status.OVER_MEMORY, Status.OVER_MEMORY, Status.INACCURATE]
    fits = Plan(memory_bytes=50 + 8 * PROBLEM.bytes)
    native = replayed("native", 0, workspace=fits.memory_bytes + 1)  # type: ignore[arg-type]
    candidates[0] = Candidate(native)
    found = tune(PROBLEM, "somewhere", "cpu", candidates[:1] + candidates[1:], bench, fits, clock=bench.clock)
    assert [r.status for r in found] == [Status.OVER_MEMORY, Status.OK, Status.OK]


def test_peaks_are_measured_where_they_are_asked_for_after_all_times() -> None:
    table: dict[str, Run | Exception] = {
        "native": Run((5 * MS,), peak=1000),
        "a": Run((4 * MS,), peak=2000),
        "wrong": Run((MS,), wrong="zeros"),
        "dies": Run((5 * MS,), peak=RuntimeError("out of memory")),
    }
    bench = ReplayBench(table)
    found = race({}, bench=bench, plan=Plan(peaks=True))
    assert {name: r.peak_bytes for name, r in found.items()} == {"native": 1000, "a": 2000, "wrong": None, "dies": None}
    assert found["dies"].status is Status.OUT_OF_MEMORY
    assert found["dies"].samples_us == ()
    methods = [method for method, _, _ in bench.calls]
    assert methods.index("peak_bytes") > max(i for i, m in enumerate(methods) if m != "peak_bytes")
    unmeasured = ReplayBench(table)
    assert all(r.peak_bytes is None for r in race({}, bench=unmeasured).values())
    assert "peak_bytes" not in {method for method, _, _ in unmeasured.calls}


def test_what_ended_a_process_is_not_started_again() -> None:
    bench = ReplayBench({"native": steady(5), "a": steady(1), "b": steady(1)})
    found = race({}, bench=bench, plan=Plan(crashed=frozenset({"a"})))
    assert bench.started() == ["native", "b"]
    assert found["a"].status is Status.CRASHED


def test_a_barred_algorithm_is_not_started_and_says_why() -> None:
    bench = ReplayBench({"native": steady(5), "a": steady(1)})
    found = race({}, bench=bench, plan=Plan(barred={"a": "silent zeros", "native": "it too"}))
    assert bench.started() == ["native"]
    assert found["a"].status is Status.FAILED
    assert "silent zeros" in found["a"].detail
    assert found["native"].status is Status.OK


# How often


def test_a_loser_is_given_up_after_its_first_run() -> None:
    found = race({"native": steady(10), "close": steady(19), "loser": steady(21)})
    assert found["loser"].status is Status.OK
    assert found["loser"].samples_us == (21_000.0,)
    assert len(found["close"].samples_us) > 1


def test_native_is_given_up_where_racing_it_would_take_too_long() -> None:
    found = race({"native": steady(300), "a": steady(100)})
    assert found["native"].samples_us == (300_000.0,)
    assert len(race({"native": steady(30), "a": steady(10)})["native"].samples_us) >= 6


@pytest.mark.parametrize("late", ["native", "a"])
def test_a_first_run_that_was_slow_for_once_is_not_held_against_anyone(late: str) -> None:
    """Making a graph ready, say, is done once."""
    table: dict[str, Run | Exception] = {"native": steady(1), "a": steady(1), late: Run((20 * MS, MS))}
    found = race(table)
    assert len(found[late].samples_us) >= 6
    assert max(found[late].samples_us) == pytest.approx(1000.0)


def test_turns_rotate_so_that_nobody_always_comes_first() -> None:
    bench = ReplayBench({name: steady(10) for name in ("native", "a", "b")})
    race({}, bench=bench, plan=Plan(budget_s=0.001))
    turns = bench.turns()
    assert turns[:12] == ["native", "a", "b", "a", "b", "native", "b", "native", "a", "native", "a", "b"]


def test_finalists_get_three_samples_to_choose_by_and_three_to_judge_by_past_any_budget() -> None:
    found = race({name: steady(500) for name in ("native", "a", "b")}, plan=Plan(budget_s=0.001))
    for record in found.values():
        assert (len(record.choosing_us), len(record.judging_us)) == (3, 3)


def test_who_is_clearly_behind_drops_out_after_two_turns() -> None:
    found = race({"native": steady(10), "a": steady(10), "behind": steady(15)})
    assert len(found["behind"].samples_us) == 2
    assert "1.50 times" in found["behind"].detail
    assert len(found["a"].samples_us) >= 6


def test_native_stays_in_the_race_when_it_is_behind() -> None:
    found = race({"native": steady(15), "a": steady(10)})
    assert len(found["native"].samples_us) >= 6


@pytest.mark.parametrize(("milliseconds", "repetitions"), [(0.1, 20), (0.001, 100), (2.0, 1), (50.0, 1)])
def test_short_convolutions_are_repeated_within_a_sample(milliseconds: float, repetitions: int) -> None:
    bench = ReplayBench({"native": steady(milliseconds), "a": steady(1.5 * milliseconds)})
    found = race({}, bench=bench)
    samples = [n for method, _, n in bench.calls if method == "sample"]
    assert samples[:2] == [1, 1]  # the first run of each
    assert set(samples[2:]) == {repetitions}
    assert found["native"].samples_us[-1] == pytest.approx(milliseconds * 1000)  # of one, not of all


@pytest.mark.parametrize(("limit", "repetitions"), [(20, 20), (19.9, 1)])
def test_short_convolutions_are_not_repeated_where_that_would_take_too_much(limit: float, repetitions: int) -> None:
    """All repetitions may live at a time; and all candidates are repeated alike."""
    more = PROBLEM.output_bytes + min(PROBLEM.input_bytes, PROBLEM.weight_bytes)
    bench = ReplayBench({"native": steady(0.1), "a": steady(0.1)})
    race({}, replayed("a", workspace=1000), bench=bench, plan=Plan(memory_bytes=limit * (more + 1000)))
    assert {n for method, _, n in bench.calls[4:] if method == "sample"} == {repetitions}


@pytest.mark.parametrize("budget_s", [0.35, 0.45, 0.55])
def test_the_budget_ends_the_race(budget_s: float) -> None:
    bench = ReplayBench({"native": steady(14), "a": WAVERING})
    start = bench.clock.now
    found = race({}, bench=bench, plan=Plan(budget_s=budget_s))
    spent = bench.clock.now - start
    assert budget_s < spent <= budget_s + 0.08  # a turn of both was begun just before, or two
    assert len(found["a"].samples_us) == len(found["native"].samples_us) > 6


WAVERING = Run((13 * MS, *[20 * MS, 13 * MS, 13 * MS, 20 * MS] * 50))
"""Whether it beats one that always takes 14 ms stays in doubt."""


def test_a_race_has_an_end_whatever_the_budget() -> None:
    found = race({"native": steady(14), "a": WAVERING}, plan=Plan(budget_s=math.inf))
    assert len(found["a"].samples_us) == 24


@pytest.mark.parametrize(("other", "noise", "turns"), [(5.1, 0.0, 6), (9.0, 0.0, 6), (9.75, 0.0, 6), (9.9, 0.0, 6)])
def test_a_race_ends_once_it_is_settled_who_beats_native(other: float, noise: float, turns: int) -> None:
    found = race({"native": steady(10), "a": steady(other)}, plan=Plan(budget_s=math.inf, noise=noise))
    assert len(found["a"].samples_us) == len(found["native"].samples_us) == turns


def test_a_race_within_the_noise_of_the_device_goes_on() -> None:
    """Five percent faster, by samples that agree; then by samples that do not, where ten percent would be needed."""
    quiet = race({"native": steady(10), "a": steady(9.5)}, plan=Plan(budget_s=math.inf, noise=0.1))
    assert len(quiet["a"].samples_us) == 6
    jumpy = Run((10 * MS, *[10 * MS, 10 * MS, 11 * MS, 11 * MS] * 50))
    noisy = race({"native": jumpy, "a": steady(9.5)}, plan=Plan(budget_s=math.inf, noise=0.1))
    assert len(noisy["a"].samples_us) == 24


def test_a_close_race_with_a_faster_candidate_gets_the_budget_twice() -> None:
    def jumpy(low: float, high: float) -> Run:
        return Run((low * MS, *[low * MS, low * MS, high * MS, high * MS] * 50))

    budget_s = 0.15
    bench = ReplayBench({"native": jumpy(10, 12), "a": jumpy(9, 11)})
    start = bench.clock.now
    race({}, bench=bench, plan=Plan(budget_s=budget_s))
    assert 2 * budget_s < bench.clock.now - start <= 2 * budget_s + 0.023


def test_one_alone_is_not_timed_for_longer_than_it_takes_to_know() -> None:
    found = race({"native": steady(1), "a": RuntimeError("no")}, plan=Plan(budget_s=100.0))
    assert len(found["native"].samples_us) == 6


# What goes wrong on the way


def test_a_candidate_that_fails_in_the_race_leaves_it() -> None:
    table: dict[str, Run | Exception] = {
        "native": steady(10),
        "a": Run((10 * MS, 10 * MS, RuntimeError("out of memory"))),
        "b": steady(10),
    }
    found = race(table)
    assert (found["a"].status, found["a"].samples_us) == (Status.OUT_OF_MEMORY, ())
    assert len(found["native"].samples_us) == len(found["b"].samples_us) >= 6


def test_the_race_ends_when_all_have_failed() -> None:
    broken = Run((10 * MS, 10 * MS, RuntimeError("no")))
    found = race({"native": broken, "a": broken})
    assert [r.status for r in found.values()] == [Status.FAILED, Status.FAILED]


def test_a_last_result_that_is_wrong_makes_its_candidate_wrong() -> None:
    found = race({"native": steady(10), "a": Run((5 * MS,), last_wrong="the result is not finite"), "b": steady(6)})
    assert (found["a"].status, found["a"].samples_us) == (Status.WRONG, ())
    assert found["a"].detail == "in the last run, the result is not finite"
    assert found["b"].status is Status.OK


def test_every_finalist_s_last_result_is_checked() -> None:
    bench = ReplayBench({"native": steady(10), "a": steady(10), "loser": steady(100), "broken": RuntimeError("no")})
    race({}, bench=bench)
    assert [name for method, name, _ in bench.calls if method == "verify_last"] == ["native", "a"]


def test_too_little_time_left_is_found_out_by_native_alone() -> None:
    bench = ReplayBench({"native": steady(100), "a": steady(1), "b": steady(1)})
    with pytest.raises(TuningError, match=r"1\.0 s are left"):
        race({}, bench=bench, plan=Plan(limit_s=1.0))
    assert bench.started() == ["native"]


def test_nothing_is_begun_past_the_limit_where_native_fails() -> None:
    bench = ReplayBench({"native": ValueError("groups"), "slow": steady(5000), "late": steady(1)})
    with pytest.raises(TuningError):
        race({}, bench=bench, plan=Plan(limit_s=2.0))
    assert "late" not in bench.started()


def test_nothing_is_begun_past_the_limit_after_a_slow_candidate() -> None:
    bench = ReplayBench({"native": steady(1), "slow": steady(5000), "late": steady(1)})
    with pytest.raises(TuningError):
        race({}, bench=bench, plan=Plan(limit_s=2.0))
    assert "late" not in bench.started()


@pytest.mark.parametrize(
    "last_words",
    [RuntimeError("illegal memory access"), Run((5 * MS, 5 * MS, RuntimeError("illegal memory access")))],
    ids=["in its first run", "in the race"],
)
def test_a_device_that_no_longer_answers_ends_it_all(last_words: Run | Exception) -> None:
    bench = ReplayBench({"native": steady(5), "killer": last_words, "b": steady(5)}, dies_with="killer")
    with pytest.raises(DeviceLostError, match=r"after killer failed .*illegal memory access.* no longer") as caught:
        race({}, bench=bench)
    assert caught.value.candidate == "killer"
    after = bench.calls[bench.calls.index(("verify", "killer", 1)) :]
    if isinstance(last_words, Exception):
        assert [name for _, name, _ in after] == ["killer"]


class Notes:
    """A guard that keeps a note while its candidate runs."""

    def __init__(self, bench: ReplayBench) -> None:
        self.bench = bench
        self.held: list[str] = []
        self.entered: list[str] = []
        self.left: list[str] = []

    @contextmanager
    def __call__(self, candidate: Candidate) -> Iterator[None]:
        assert candidate.name not in self.bench.started()
        self.entered.append(candidate.name)
        try:
            yield
        finally:
            self.left.append(candidate.name)


def test_a_note_is_held_while_any_candidate_first_runs() -> None:
    bench = ReplayBench(
        {"native": steady(5), "a": steady(5), "fails": RuntimeError("no"), "wrong": Run(wrong="zeros"), "b": steady(5)}
    )
    notes = Notes(bench)
    race({}, bench=bench, guard=notes)
    assert notes.entered == ["native", "a", "fails", "wrong", "b"] == notes.left


def test_the_note_is_taken_away_when_the_device_dies_and_the_process_does_not() -> None:
    bench = ReplayBench({"native": steady(5), "killer": RuntimeError("x"), "b": steady(5)}, dies_with="killer")
    notes = Notes(bench)
    with pytest.raises(TuningError):
        race({}, bench=bench, guard=notes)
    assert notes.entered == ["native", "killer"] == notes.left


def test_what_is_not_started_leaves_no_note() -> None:
    bench = ReplayBench({"native": steady(5), "crashed": steady(5), "large": steady(5)})
    notes = Notes(bench)
    large = replayed("large", workspace=10)
    race({}, large, bench=bench, guard=notes, plan=Plan(crashed=frozenset({"crashed"}), memory_bytes=5))
    assert notes.entered == ["native"]


# What a record holds


def test_a_record_says_where_it_comes_from() -> None:
    algorithm = replayed("a", version=7, workspace=123)
    candidate = Candidate(algorithm, (("parts", 8), ("sum", "float32")))
    field = (*contenders("native"), candidate)
    bench = ReplayBench({"native": steady(5), candidate.name: Run((4 * MS,), error=3e-7)})
    first = tune(PROBLEM, "somewhere", "cpu", field, bench, clock=bench.clock, now=lambda: 77.0)
    again = tune(PROBLEM, "somewhere", "cpu", field, bench, clock=bench.clock)
    record = first[1]
    assert record.candidate == "a(parts=8,sum=float32)"
    assert (record.problem, record.environment) == (PROBLEM.key, "somewhere")
    assert (record.algorithm, record.version, record.parameters) == ("a", 7, "parts=8,sum=float32")
    assert (record.error, record.workspace_bytes, record.created) == (3e-7, 123, 77.0)
    assert record.library == __version__
    assert set(record.samples_us) == {4000.0}
    assert len({r.run for r in first}) == len({r.run for r in again}) == 1
    assert first[0].run != again[0].run


def test_an_endless_message_is_cut() -> None:
    found = race({"native": steady(5), "a": RuntimeError("no " * 10_000)})
    assert len(found["a"].detail) == MAX_DETAIL


outcomes = st.one_of(
    st.builds(
        Run,
        times=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8),
        error=st.sampled_from([0.0, 1e-7, 1e-3]),
        wrong=st.sampled_from(["", "", "zeros"]),
        last_wrong=st.sampled_from(["", "", "zeros"]),
    ),
    st.builds(
        Run,
        times=st.lists(st.one_of(st.floats(1e-6, 1.0), st.just(RuntimeError("no"))), min_size=1, max_size=8),
    ),
    st.sampled_from([RuntimeError("no"), MemoryError()]),
)


@given(st.lists(outcomes, min_size=1, max_size=5), st.floats(1e-3, 2.0))
def test_whatever_candidates_do_each_has_one_record_and_only_the_right_have_times(
    runs: Sequence[Run | Exception], budget_s: float
) -> None:
    names = ["native", "a", "b", "c", "d"][: len(runs)]
    found = race(dict(zip(names, runs, strict=True)), plan=Plan(budget_s=budget_s))
    assert list(found) == names
    for name, run in zip(names, runs, strict=True):
        record = found[name]
        assert (record.status is Status.OK) == bool(record.samples_us)
        assert len(record.samples_us) <= 24
        if isinstance(run, Exception) or run.wrong:
            assert record.status is not Status.OK
    assert all(r.detail for r in found.values() if r.status is not Status.OK)
    kept = [run for run in runs if isinstance(run, Run) and not run.wrong and run.error < 1e-5]
    if kept and not any(run.last_wrong or any(isinstance(t, Exception) for t in run.times) for run in kept):
        # Nobody left the lead for another reason than time, so whoever held it to the end was timed to the end.
        assert max(len(r.samples_us) for r in found.values()) >= 6


def test_a_replay_of_measured_records_leads_to_the_same_decision() -> None:
    table: dict[str, Run | Exception] = {"native": steady(10), "a": steady(6), "b": steady(9), "c": RuntimeError("no")}
    noisy = ReplayBench(table, noise=0.05, seed=3)
    field = contenders(*table)
    order = {f"{c.algorithm.name}@1": i for i, c in enumerate(field)}
    measured = tune(PROBLEM, "somewhere", "cpu", field, noisy, clock=noisy.clock)
    bench = ReplayBench.of(measured)
    replay = tune(PROBLEM, "somewhere", "cpu", field, bench, clock=bench.clock)
    first, second = (choose(r, Limits(), "float32", order) for r in (measured, replay))
    assert first is not None
    assert second is not None
    assert first.candidate == second.candidate == "a"
    assert len(set(measured[1].samples_us)) > 1  # the noise is there, and is the same once more
    once_more = ReplayBench(table, noise=0.05, seed=3)
    assert [r.samples_us for r in tune(PROBLEM, "x", "cpu", field, once_more, clock=once_more.clock)] == [
        r.samples_us for r in measured
    ]


# On a real device


REAL = {
    "float32": Problem.parse((1, 4, 6, 6, 8), (8, 3, 3, 3, 8), padding=1),
    "float16": Problem.parse((1, 4, 5, 5, 8), (8, 3, 3, 3, 8), "float16", padding=1),
    "bfloat16": Problem.parse((1, 4, 5, 5, 8), (8, 3, 3, 3, 8), "bfloat16", stride=2, padding=1),
}
LARGEST_ERROR = {"float32": 1e-5, "float16": 1.5e-3, "bfloat16": 1e-2}
SHORT = Plan(budget_s=0.02)


@pytest.mark.parametrize("dtype", REAL)
def test_a_whole_race_on_the_cpu(dtype: str) -> None:
    problem = REAL[dtype]
    field = candidates(problem, "cpu")
    assert len(field) > 1
    found = tune(problem, "here", "cpu", field, DeviceBench(problem, CPU), SHORT)
    assert [r.candidate for r in found] == [c.name for c in field]
    for record in found:
        assert record.status is Status.OK, record.detail
        assert record.error is not None
        assert 0 < record.error < LARGEST_ERROR[dtype]
        assert all(0 < sample < 60e6 for sample in record.samples_us)
    assert max(len(r.samples_us) for r in found) >= 6


def test_groups_which_mlx_has_none_of_in_3d_are_a_failure_of_native_alone() -> None:
    problem = Problem.parse((1, 3, 5, 5, 8), (4, 3, 3, 3, 4), groups=2, padding=1)
    found = tune(problem, "here", "cpu", candidates(problem, "cpu"), DeviceBench(problem, CPU), SHORT)
    assert found[0].candidate == "native"
    assert found[0].status is Status.FAILED
    assert len(found) > 1
    assert all(r.status is Status.OK for r in found[1:])


def random_state() -> list[object]:
    return [part.tolist() for part in cast("list[mx.array]", mx.random.state)]


def test_a_race_leaves_no_trace_in_mlx() -> None:
    problem = REAL["float16"]
    mx.random.seed(7)
    state = random_state()
    device, stream = mx.default_device(), mx.default_stream(mx.default_device())
    mx.eval(mx.zeros((4_000_000,)) + 1)  # raises the peak far over what the race needs, and is let go
    peak = mx.get_peak_memory()
    cache = mx.set_cache_limit(123_456_789)
    try:
        tune(problem, "here", "cpu", candidates(problem, "cpu"), DeviceBench(problem, CPU), SHORT)
    finally:
        cache_after = mx.set_cache_limit(cache)
    assert random_state() == state
    assert mx.default_device() == device
    assert mx.default_stream(mx.default_device()) == stream
    assert mx.get_peak_memory() >= peak >= 16_000_000
    assert cache_after == 123_456_789


needs_cpu = pytest.mark.skipif(mx.default_device() == mx.gpu, reason="MLX's scratch on GPUs is its own")
MODERATE = Problem.parse((1, 12, 24, 24, 8), (8, 3, 3, 3, 8), "float16", padding=1)


@needs_cpu
def test_the_peak_of_a_run_has_its_operands_and_what_it_takes_besides() -> None:
    held = mx.ones((1_000_000,))
    mx.eval(held)
    bench = DeviceBench(MODERATE, CPU)
    for candidate in candidates(MODERATE, "cpu", memory_bytes=10**6):
        bench.verify(candidate)
        estimate = MODERATE.bytes + candidate.cost(MODERATE, "cpu").workspace_bytes
        most = max(bench.peak_bytes(candidate) for _ in range(5))  # evaluation may run ahead, or not
        assert MODERATE.bytes + 0.2 * (estimate - MODERATE.bytes) <= most <= 1.1 * estimate, candidate.name


@needs_cpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("operand", [0, 1])
def test_who_writes_over_the_operands_is_named_and_ends_the_run(dtype: str, operand: int) -> None:
    """What ran after it would be wrong, or look so. A single value is enough to see it."""
    problem = REAL[dtype]

    def build(problem: Problem) -> Convolution:
        run = algorithms()[0].build(problem)

        def vandal(first: mx.array, second: mx.array, /) -> mx.array:
            output = run(first, second)
            mx.eval(output)
            at = (0,) * 5
            changed = (first, second)[operand]
            changed[at] = changed[at] + 1
            return output

        return vandal

    vandal = replace(algorithms()[0], name="vandal", build=build, order=1)
    bench = DeviceBench(problem, CPU)
    field = (*candidates(problem, "cpu")[:1], Candidate(vandal))
    with pytest.raises(DeviceLostError, match=r"vandal failed .*it wrote over its operands") as caught:
        tune(problem, "here", "cpu", field, bench, Plan(budget_s=0.01))
    assert caught.value.candidate == "vandal"


@needs_cpu
def test_a_peak_is_measured_in_the_first_run_or_in_one_more() -> None:
    problem = MODERATE
    at_once, later = DeviceBench(problem, CPU, peaks=True), DeviceBench(problem, CPU)
    for candidate in candidates(problem, "cpu")[:4]:
        at_once.verify(candidate)
        ran = at_once.run_s
        first = at_once.peak_bytes(candidate)
        assert at_once.run_s == ran  # nothing more ran
        later.verify(candidate)
        again = later.peak_bytes(candidate)
        assert first >= problem.bytes
        assert abs(first - again) <= problem.bytes  # evaluation may run ahead, or not


@needs_cpu
@pytest.mark.parametrize("limit", [2 * 10**5, 10**6, 10**7])
def test_a_tuning_takes_its_operands_one_output_and_the_limit_at_most(limit: int) -> None:
    """What candidates take, and results yet to be checked, scaled operands, and what operands are made of, too."""
    problem = MODERATE
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    bench = DeviceBench(problem, CPU, memory_bytes=limit)
    making = mx.get_peak_memory() - before
    assert making <= problem.input_bytes + problem.weight_bytes + max(limit, 24 * MIN_PART)
    mx.reset_peak_memory()
    field = candidates(problem, "cpu", memory_bytes=limit)
    found = tune(problem, "here", "cpu", field, bench, Plan(memory_bytes=limit, budget_s=0.02))
    assert sum(r.status is Status.OK for r in found) >= 3
    # The tuner's own arrays and what the candidate takes each keep to the limit.
    assert mx.get_peak_memory() - before <= problem.bytes + 2 * limit


def test_results_that_there_is_no_room_to_keep_are_checked_at_once() -> None:
    problem = REAL["float32"]
    roomy, tight = DeviceBench(problem, CPU), DeviceBench(problem, CPU, memory_bytes=problem.output_bytes)
    first, second = candidates(problem, "cpu")[:2]
    for bench in (roomy, tight):
        for candidate in (first, second):
            bench.verify(candidate)
            bench.sample(candidate, 1)
    kept = [[isinstance(e.last, mx.array) for e in bench._entries.values()] for bench in (roomy, tight)]
    assert kept == [[True, True], [True, False]]
    for bench in (roomy, tight):
        for candidate in (first, second):
            verdict = bench.verify_last(candidate)
            assert (verdict.wrong, verdict.error < 1e-5) == ("", True)
    with pytest.raises(ValueError, match="has not been timed"):
        tight.verify_last(second)


@pytest.mark.parametrize(
    ("limit", "scaled"),
    [(math.inf, "input"), (REAL["float16"].input_bytes - 1, "weight"), (1, "")],
)
def test_what_is_scaled_for_float16_is_what_there_is_room_for(
    limit: float, scaled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.parse((1, 6, 12, 12, 8), (2, 1, 1, 1, 8), "float16")
    if scaled == "weight":
        limit = problem.input_bytes - 1
    bench = DeviceBench(problem, CPU, memory_bytes=limit)
    peaks: list[tuple[float, float]] = []
    native = algorithms()[0]

    def build(problem: Problem) -> Convolution:
        run = native.build(problem)

        def noted(input: mx.array, weight: mx.array, /) -> mx.array:
            peaks.append((float(mx.abs(input).max()), float(mx.abs(weight).max())))
            return run(input, weight)

        return noted

    verdict = bench.verify(Candidate(Algorithm("noted", 1, 1, build, native.cost)))
    assert (verdict.wrong, verdict.error < 2e-3) == ("", True)
    first, *again = peaks
    grown = (
        [name for name, a, b in zip(("input", "weight"), first, again[0], strict=True) if b > 8 * a] if again else []
    )
    assert grown == ([scaled] if scaled else [])


def test_the_clock_of_a_bench_is_passed_in() -> None:
    ticks = VirtualClock(0.0)

    def clock() -> float:
        ticks.pass_(0.25)
        return ticks.now

    bench = DeviceBench(REAL["float32"], CPU, clock=clock)
    native = Candidate(algorithms()[0])
    bench.verify(native)
    assert bench.sample(native, 1) == 0.25
    assert bench.sample(native, 5) == 0.05


def test_a_bench_has_nothing_to_check_before_it_timed_anything() -> None:
    bench = DeviceBench(REAL["float32"], CPU)
    native = Candidate(algorithms()[0])
    bench.verify(native)
    with pytest.raises(ValueError, match="has not been timed"):
        bench.verify_last(native)


def test_a_shape_that_is_not_the_output_s_is_wrong() -> None:
    problem = REAL["float32"]

    def build(_: Problem) -> Convolution:
        def run(input: mx.array, weight: mx.array, /) -> mx.array:
            return mx.zeros((1, 4, 6, 6, 9))

        return run

    short = Algorithm("short", 1, 1, build, replayed("x").cost)
    verdict = DeviceBench(problem, CPU).verify(Candidate(short))
    assert "(1, 4, 6, 6, 9)" in verdict.wrong
    assert verdict.error == math.inf


def test_times_are_values_or_errors() -> None:
    times: tuple[Time, ...] = (1.0, RuntimeError("no"))
    bench = ReplayBench({"native": Run(times)})
    (native,) = contenders("native")
    assert bench.sample(native, 1) == 1.0
    with pytest.raises(RuntimeError, match="no"):
        bench.sample(native, 1)


@pytest.mark.parametrize("falls", [Run((MS,), last_wrong="half of it is zero"), Run((MS, MS, RuntimeError("gone")))])
def test_where_the_fastest_falls_the_rest_is_raced_again(falls: Run) -> None:
    """They had been given up for it, after a turn or two."""
    found = race({"native": steady(5), "fastest": falls, "given up": steady(4)})
    assert found["fastest"].status in {Status.WRONG, Status.FAILED}
    assert found["fastest"].samples_us == ()
    for name in ("native", "given up"):
        assert len(found[name].samples_us) >= 6


def test_the_last_result_is_held_to_the_bound_as_well() -> None:
    class Drifting(ReplayBench):
        """Right at first, and then a little off."""

        def verify_last(self, candidate: Candidate) -> Verdict:
            found = super().verify_last(candidate)
            return Verdict(1e-3, found.wrong, found.peak) if candidate.name == "drifts" else found

    found = race({}, bench=Drifting({"native": steady(5), "drifts": steady(4)}))
    assert found["drifts"].status is Status.INACCURATE
    assert found["drifts"].error == 1e-3
    assert found["native"].status is Status.OK
