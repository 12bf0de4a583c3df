"""The decision: which of the measured candidates is taken, by time, noise, accuracy and memory."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay import replayed

from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, Convolution, algorithms, candidates
from autoconv.decision import Decision, Limits, Source, choose
from autoconv.pooling import runs, speedup
from autoconv.problem import Problem
from autoconv.rank_sum import _rank, ratio
from autoconv.record import Record, Status
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.tuner import Plan, tune

ORDER = {"native@1": 0, "a@1": 1, "b@1": 2, "c@1": 3}
GB = 10**9


def record(
    name: str,
    *times: float,
    choosing: Sequence[float] = (),
    judging: Sequence[float] = (),
    status: Status = Status.OK,
    error: float | None = 1e-7,
    workspace: int = 0,
    peak: int | None = None,
    run: str = "first",
    version: int = 1,
    parameters: str = "",
) -> Record:
    """A record whose samples are `times`, or `choosing` and `judging` in turns; one time stands for six alike."""
    if choosing:
        times = tuple(itertools.chain.from_iterable(zip(choosing, judging, strict=True)))
    elif len(times) == 1:
        times *= 6
    return Record(
        "a problem", "somewhere", name, version, parameters, status, times, error, workspace, peak, run=run, detail=""
    )


def failed(name: str, status: Status = Status.FAILED, error: float | None = None) -> Record:
    return record(name, status=status, error=error)


def pick(
    *records: Record,
    limits: Limits | None = None,
    order: dict[str, int] | None = None,
    operand_bytes: int | None = None,
) -> Decision:
    found = choose(records, limits or Limits(), "float32", order or ORDER, operand_bytes=operand_bytes)
    assert found is not None
    return found


def state_of(found: Decision, name: str) -> Status:
    return next(v.status for v in found.verdicts if v.record.candidate == name)


# By time


def test_the_fastest_wins() -> None:
    found = pick(record("native", 12.0), record("a", 8.0), record("b", 6.0), record("c", 9.0))
    assert found.candidate == "b"
    assert found.margin == pytest.approx(1.0)
    assert found.accurate
    assert [v.record.candidate for v in found.verdicts] == ["native", "a", "b", "c"]
    assert [v.speedup for v in found.verdicts] == pytest.approx([1.0, 1.5, 2.0, 12 / 9])


def test_native_wins_where_it_is_the_fastest() -> None:
    found = pick(record("native", 5.0), record("a", 6.0))
    assert (found.candidate, found.margin, found.reason) == ("native", 0.0, "native is the fastest")


@pytest.mark.parametrize(("gain", "winner"), [(1.005, "native"), (1.015, "native"), (1.025, "a"), (1.5, "a")])
def test_native_is_kept_unless_another_is_faster_by_more_than_two_percent(gain: float, winner: str) -> None:
    assert pick(record("native", 100.0), record("a", 100.0 / gain)).candidate == winner


@pytest.mark.parametrize(("gain", "winner"), [(1.03, "native"), (1.09, "native"), (1.11, "a")])
def test_a_noisy_device_asks_for_a_larger_margin(gain: float, winner: str) -> None:
    found = pick(record("native", 100.0), record("a", 100.0 / gain), limits=Limits(noise=0.10))
    assert found.candidate == winner
    if winner == "native":
        assert found.margin == 0.0
        assert "1.10 would be needed" in found.reason


def test_native_is_kept_where_one_comparison_of_three_is_in_doubt() -> None:
    clear = record("a", choosing=(7, 7, 7), judging=(7, 7, 7))
    doubtful = record("a", choosing=(7, 7, 7), judging=(7, 7, 9.9))
    assert pick(record("native", 10.0), clear).candidate == "a"
    assert pick(record("native", 10.0), doubtful).candidate == "native"


def test_one_slow_sample_of_many_does_not_hide_a_winner() -> None:
    judging = (7.0,) * 9 + (20.0,)
    found = pick(record("native", *[10.0] * 20), record("a", choosing=(7.0,) * 10, judging=judging))
    assert found.candidate == "a"


def test_who_was_lucky_only_when_it_was_chosen_does_not_win() -> None:
    lucky = record("a", choosing=(5, 5, 5), judging=(11, 11, 11))
    found = pick(record("native", 10.0), lucky)
    assert (found.candidate, found.margin) == ("native", 0.0)


def test_who_is_fast_only_when_judged_is_not_chosen() -> None:
    late = record("a", choosing=(11, 11, 11), judging=(1, 1, 1))
    assert pick(record("native", 10.0), late).candidate == "native"


def test_the_margin_is_that_of_the_samples_that_judge() -> None:
    found = pick(record("native", 10.0), record("a", choosing=(2, 2, 2), judging=(8, 8, 8)))
    assert found.candidate == "a"
    assert found.margin == pytest.approx(0.25)


def test_a_tie_goes_by_the_order_of_the_algorithms() -> None:
    records = [record("native", 10.0), record("a", 6.0), record("b", 5.95)]
    assert pick(*records).candidate == "a"
    assert pick(*records, order={"native@1": 0, "b@1": 1, "a@1": 2}).candidate == "b"
    assert pick(record("native", 10.0), record("a", 6.0), record("b", 5.9)).candidate == "b"


def test_a_tie_with_native_goes_to_native() -> None:
    found = pick(record("native", 10.0), record("a", 9.95))
    assert (found.candidate, found.reason) == ("native", "native is the fastest")


@pytest.mark.parametrize(("native", "winner"), [(14.0, "native"), (16.0, "a")])
def test_a_single_run_of_native_counts_only_where_it_differs_by_more_than_half(native: float, winner: str) -> None:
    once = replace(record("native"), samples_us=(native,))
    assert pick(once, record("a", 10.0)).candidate == winner


def test_a_loser_with_a_single_run_never_wins() -> None:
    once = replace(record("a"), samples_us=(30.0,))
    found = pick(record("native", 10.0), once)
    assert found.candidate == "native"
    assert found.verdicts[1].speedup == pytest.approx(1 / 3)


# By accuracy and memory


def test_a_candidate_is_held_to_the_accuracy_asked_for_now() -> None:
    records = [record("native", 10.0, error=1e-6), record("a", 5.0, error=5e-5), record("b", 7.0, error=9e-6)]
    assert pick(*records, limits=Limits(accuracy=1e-3)).candidate == "a"
    strict = pick(*records, limits=Limits(accuracy="strict"))
    assert strict.candidate == "b"
    assert state_of(strict, "a") is Status.INACCURATE
    assert strict.bound == 1e-5


def test_a_candidate_is_held_to_the_memory_allowed_now() -> None:
    records = [record("native", 10.0), record("a", 5.0, workspace=2 * GB)]
    assert pick(*records, limits=Limits(memory_bytes=2 * GB)).candidate == "a"
    small = pick(*records, limits=Limits(memory_bytes=2 * GB - 1))
    assert small.candidate == "native"
    assert state_of(small, "a") is Status.OVER_MEMORY


@pytest.mark.parametrize(
    ("kept_out", "tight", "loose"),
    [
        (
            failed("a", Status.INACCURATE, 5e-5),
            Limits(accuracy="strict"),
            Limits(accuracy=1e-3),
        ),
        (
            record("a", status=Status.OVER_MEMORY, error=None, workspace=2 * GB),
            Limits(memory_bytes=GB),
            Limits(memory_bytes=3 * GB),
        ),
    ],
    ids=["accuracy", "memory"],
)
def test_records_do_not_tell_once_a_candidate_may_run_that_was_not_timed(
    kept_out: Record, tight: Limits, loose: Limits
) -> None:
    assert pick(record("native", 10.0), kept_out, limits=tight).candidate == "native"
    assert choose([record("native", 10.0), kept_out], loose, "float32", ORDER) is None


@pytest.mark.parametrize("status", [Status.FAILED, Status.OUT_OF_MEMORY, Status.WRONG, Status.TOO_SLOW, Status.CRASHED])
def test_other_failures_stay_failures_under_any_limits(status: Status) -> None:
    found = pick(record("native", 10.0), failed("a", status), limits=Limits(accuracy=1e6))
    assert found.candidate == "native"
    assert state_of(found, "a") is status


def test_without_native_the_fastest_that_passes_is_taken() -> None:
    found = pick(failed("native"), record("a", 5.0, error=9e-6), record("b", 4.0, error=8e-6))
    assert (found.candidate, found.margin, found.accurate) == ("b", None, True)
    assert found.reason == "the fastest of those that pass; native failed"


@pytest.mark.parametrize(
    "native",
    [
        failed("native"),
        failed("native", Status.WRONG, math.inf),
        failed("native", Status.WRONG, 4e-4),
        failed("native", Status.OUT_OF_MEMORY),
        failed("native", Status.FAILED, 4e-4),  # it failed after its first result had been checked
        failed("native", Status.OUT_OF_MEMORY, 4e-4),
    ],
    ids=["failed", "not finite", "wrong", "out of memory", "failed later", "out of memory later"],
)
def test_where_native_fails_or_is_wrong_strict_s_bounds_hold(native: Record) -> None:
    found = pick(native, record("a", 5.0, error=1.1e-5), record("b", 6.0, error=0.9e-5))
    assert found.bound == 1e-5
    assert found.candidate == "b"


def test_where_native_is_lossy_nothing_worse_than_it_passes() -> None:
    found = pick(record("native", 10.0, error=5e-3), record("a", 5.0, error=5.1e-3), record("b", 6.0, error=4.9e-3))
    assert (found.candidate, found.bound) == ("b", 5e-3)


def test_under_strict_a_lossy_native_is_not_kept_even_where_it_is_faster() -> None:
    found = pick(record("native", 1.0, error=5e-3), record("a", 9.0, error=1e-6), limits=Limits(accuracy="strict"))
    assert (found.candidate, found.accurate, found.margin) == ("a", True, None)
    assert state_of(found, "native") is Status.INACCURATE


def test_where_nothing_passes_the_most_accurate_is_taken_and_said_to_be_inaccurate() -> None:
    found = pick(
        record("native", 1.0, error=5e-3),
        record("a", 9.0, error=2e-3),
        failed("b", Status.INACCURATE, 3e-3),
        failed("c", Status.WRONG, 1e-9),
        limits=Limits(accuracy="strict"),
    )
    assert (found.candidate, found.accurate) == ("a", False)


def test_where_nothing_ran_native_is_taken_and_said_to_be_inaccurate() -> None:
    found = pick(failed("native"), failed("a", Status.CRASHED))
    assert (found.candidate, found.accurate) == ("native", False)


def test_what_failed_after_its_first_result_is_not_taken_for_its_accuracy() -> None:
    found = pick(
        record("native", 1.0, error=5e-3), failed("a", Status.OUT_OF_MEMORY, 1e-6), limits=Limits(accuracy="strict")
    )
    assert (found.candidate, found.accurate) == ("native", False)


def test_what_is_over_the_memory_limit_is_not_taken_for_its_accuracy_either() -> None:
    found = pick(
        record("native", 1.0, error=5e-3),
        record("a", 9.0, error=1e-6, workspace=2 * GB),
        limits=Limits(accuracy="strict", memory_bytes=GB),
    )
    assert (found.candidate, found.accurate) == ("native", False)


# By memory, where times tie


MB = 10**6


@pytest.mark.parametrize(
    ("time", "taken", "winner"),
    [
        (6.17, 10 * MB, "b"),  # within 3%, and far lighter
        (6.19, 10 * MB, "a"),  # not within 3%
        (6.17, 99 * MB, "a"),  # no lighter than by a megabyte
        (6.17, 96 * MB, "a"),  # by less than 5%
        (6.17, 94 * MB, "b"),
        (6.03, 200 * MB, "a"),  # a tie in time of the heavier one
    ],
)
def test_of_candidates_within_three_percent_the_one_that_takes_less_is_taken(
    time: float, taken: int, winner: str
) -> None:
    native, a = record("native", 10.0, peak=100 * MB), record("a", 6.0, peak=100 * MB)
    found = pick(native, a, record("b", time, peak=taken))
    assert found.candidate == winner
    assert found.margin == pytest.approx(10 / (6.0 if winner == "a" else time) - 1)
    if winner == "b":
        assert "a is within 3% of it and takes" in found.reason


def test_memory_counts_only_where_all_have_it_measured() -> None:
    # MLX's own scratch on GPUs is in no estimate, so that native's would always be the least.
    light = record("b", 6.1, workspace=90 * MB, peak=MB)
    assert pick(record("native", 10.0), record("a", 6.0, workspace=99 * MB), light).candidate == "a"
    assert pick(record("native", 10.0), record("a", 6.0, workspace=10 * MB, peak=99 * MB), light).candidate == "b"
    assert pick(record("native", 10.2), record("a", 10.0, workspace=99 * MB)).candidate == "native"


def test_where_what_all_take_ties_the_fastest_wins_and_ties_go_by_order() -> None:
    assert pick(record("native", 10.0), record("a", 6.1), record("b", 6.0)).candidate == "b"
    assert pick(record("native", 10.0), record("a", 6.05), record("b", 6.0)).candidate == "a"


@pytest.mark.parametrize(
    ("time", "taken", "winner"),
    [
        (9.95, 10 * MB, "a"),  # as fast, and lighter
        (10.0, 10 * MB, "a"),
        (10.05, 10 * MB, "a"),  # a little slower: what decides is not which of two equals happened to be ahead
        (10.29, 10 * MB, "a"),
        (10.31, 10 * MB, "native"),  # over 3% slower
        (9.95, 99 * MB, "native"),  # as heavy
        (9.95, 200 * MB, "native"),
    ],
)
def test_native_is_given_up_for_less_memory_by_what_is_within_three_percent_of_it(
    time: float, taken: int, winner: str
) -> None:
    found = pick(record("native", 10.0, peak=100 * MB), record("a", time, peak=taken))
    assert found.candidate == winner
    if winner == "a":
        assert found.margin == pytest.approx(10.0 / time - 1)
        assert "less memory" in found.reason


def test_native_is_not_given_up_for_one_that_is_far_behind_on_either_half_of_the_samples() -> None:
    native = record("native", 10.0, peak=100 * MB)
    assert pick(native, record("a", choosing=(10.4,) * 3, judging=(9.9,) * 3, peak=MB)).candidate == "native"
    assert pick(native, record("a", choosing=(9.9,) * 3, judging=(10.4,) * 3, peak=MB)).candidate == "native"


def test_a_native_that_is_nearly_the_fastest_and_lighter_is_kept() -> None:
    found = pick(record("native", 10.2, peak=10 * MB), record("a", 10.0, peak=100 * MB))
    assert (found.candidate, found.margin) == ("native", 0.0)
    assert "a is within 3% of it and takes 90.00 MB more memory" in found.reason


@pytest.mark.parametrize(("native", "winner"), [(50 * MB, "b"), (MB, "a")])
def test_the_fastest_that_surely_beats_native_is_given_up_only_for_what_is_lighter_than_both(
    native: int, winner: str
) -> None:
    light = record("b", choosing=(9.0,) * 3, judging=(9.0, 9.0, 11.0), peak=MB)  # faster than native, but not surely
    found = pick(record("native", 10.0, peak=native), record("a", 8.9, peak=90 * MB), light)
    assert found.candidate == winner


def test_where_nothing_keeps_to_the_memory_limit_the_lightest_that_ran_is_taken() -> None:
    held_to = Limits(memory_bytes=GB)
    found = pick(record("native", 1.0, workspace=9 * GB), record("a", 5.0, workspace=2 * GB), limits=held_to)
    assert (found.candidate, found.accurate, found.within_memory) == ("a", True, False)
    assert "takes the least" in found.reason
    # What did not run is not known to be right.
    over = replace(failed("a", Status.OVER_MEMORY), workspace_bytes=2 * GB)
    assert pick(record("native", 1.0, workspace=9 * GB), over, limits=held_to).candidate == "native"
    wrong = record("a", 5.0, workspace=2 * GB, error=1.0)
    assert pick(record("native", 1.0, workspace=9 * GB), wrong, limits=held_to).candidate == "native"


# By memory, measured and estimated


def test_what_was_measured_counts_and_not_the_estimate() -> None:
    """The whole peak is stored; the limit is for what is beyond the operands."""
    heavy = record("a", 5.0, workspace=10 * MB, peak=130 * MB)
    light = record("b", 6.0, workspace=90 * MB, peak=105 * MB)
    limit = Limits(memory_bytes=20 * MB)
    found = pick(record("native", 10.0, peak=100 * MB), heavy, light, limits=limit, operand_bytes=100 * MB)
    assert found.candidate == "b"
    assert state_of(found, "a") is Status.OVER_MEMORY
    assert "needs 30.00 MB" in found.verdicts[1].reason
    assert pick(record("native", 10.0), heavy, light, limits=limit).candidate == "a"  # operands not known


NATIVE_OVER = record("native", status=Status.OVER_MEMORY, error=None, workspace=9 * GB)


@pytest.mark.parametrize("status", [Status.OVER_MEMORY, Status.NOT_STARTED])
def test_where_native_was_left_out_native_in_chunks_says_what_accuracy_there_is(status: Status) -> None:
    left_out = replace(NATIVE_OVER, status=status)
    parts = record("native", 10.0, error=1e-3, parameters="frames=2")
    close = record("a", 5.0, error=9e-4)
    tight = Limits(memory_bytes=GB)
    found = pick(left_out, parts, close, limits=tight)
    assert (found.candidate, found.bound, found.margin) == ("a", 2e-3, None)
    assert status.replace("_", " ") in found.reason
    assert pick(failed("native"), parts, close, limits=tight).bound == 1e-5


# Runs under several limits


def under(limit: str, *records: Record) -> list[Record]:
    return [replace(r, run=limit) for r in records]


OPEN = under("open", record("native", 10.0, workspace=2 * GB), record("a", 5.0, workspace=2 * GB))
CUT = [
    *under("tight", replace(NATIVE_OVER, workspace_bytes=2 * GB)),
    *under("tight", record("native", 12.0, parameters="frames=2", workspace=GB)),
    *under("tight", record("a", status=Status.OVER_MEMORY, error=None, workspace=2 * GB)),
    *under("tight", record("a", 7.0, parameters="frames=1", workspace=GB)),
]
CHUNKED = ("native(frames=2)", "a(frames=1)")
TIGHT, LOOSE = Limits(memory_bytes=GB), Limits(memory_bytes=4 * GB)


def decided(records: Sequence[Record], limits: Limits, chunked: Sequence[str] = ()) -> str | None:
    found = choose(records, limits, "float32", ORDER, chunked=chunked)
    return found.candidate if found else None


def test_a_run_without_the_chunks_that_a_limit_asks_for_does_not_tell() -> None:
    assert decided(OPEN, LOOSE) == "a"
    assert decided(OPEN, TIGHT, CHUNKED) is None
    assert decided(CUT, TIGHT, CHUNKED) == "a(frames=1)"
    assert decided(CUT[:-1], TIGHT, CHUNKED) is None
    assert decided(CUT, TIGHT, ("native(frames=1)", "a(frames=1)")) is None
    assert decided(CUT, LOOSE) is None


@pytest.mark.parametrize("records", [OPEN + CUT, CUT + OPEN], ids=["open first", "tight first"])
def test_runs_under_two_limits_live_side_by_side(records: list[Record]) -> None:
    assert decided(records, LOOSE) == "a"
    assert decided(records, TIGHT, CHUNKED) == "a(frames=1)"


def test_a_run_that_does_not_tell_under_these_limits_is_not_in_the_pool() -> None:
    slower = under("slower", record("native", 10.0), record("a", 100.0))
    assert decided([*OPEN, *slower], LOOSE) == "native"
    assert decided([*OPEN, *under("slower", *slower[:1], failed("a", Status.OVER_MEMORY))], LOOSE) == "a"
    assert decided([*OPEN, *slower, *CUT], TIGHT, CHUNKED) == decided(CUT, TIGHT, CHUNKED)


def test_chunks_of_an_algorithm_that_the_run_has_not_are_not_asked_for() -> None:
    assert decided(CUT, TIGHT, (*CHUNKED, "c(frames=4)")) == "a(frames=1)"


def at(created: float, *records: Record) -> list[Record]:
    """The records as a run that was then."""
    return [replace(r, created=created, run=str(created)) for r in records]


@pytest.mark.parametrize("other_way_round", [False, True])
def test_what_ended_a_process_later_is_not_taken_from_an_older_run(other_way_round: bool) -> None:
    for crashed, winner in ((1.0, "a"), (2.0, "native"), (3.0, "native")):
        rows = [*at(2.0, *OPEN), replace(failed("a", Status.CRASHED), created=crashed, run="crashed")]
        assert decided(rows[::-1] if other_way_round else rows, LOOSE) == winner


@given(st.permutations(range(3)))
def test_each_run_comes_once_the_earliest_first(places: Sequence[int]) -> None:
    rows = [r for place in places for r in at(float(place), record("native", 1.0), record("a", 2.0))]
    found = runs(rows)
    assert [run.name for run in found] == ["0.0", "1.0", "2.0"]
    assert [{r.run for r in run.records.values()} for run in found] == [{"0.0"}, {"1.0"}, {"2.0"}]
    assert [list(run.records) for run in found] == [["native", "a"]] * 3


# Which records count


def test_no_records_tell_nothing() -> None:
    assert choose([], Limits(), "float32", ORDER) is None


def test_records_without_native_tell_nothing() -> None:
    assert choose([record("a", 1.0)], Limits(), "float32", ORDER) is None


def test_the_newest_run_counts_no_more_than_any_other() -> None:
    old = at(1.0, record("native", 10.0), record("a", 5.0), record("b", 1.0))
    new = at(2.0, record("native", 5.0), record("a", 10.0))
    assert pick(*old).candidate == "b"
    found = pick(*old, *new)
    assert found.candidate == "b"
    assert [v.record.candidate for v in found.verdicts] == ["native", "a", "b"]


def test_what_ended_a_process_is_remembered_beyond_its_run() -> None:
    crashed = failed("a", Status.CRASHED)
    old = [crashed, record("b", 1.0)]  # which does not tell
    new = [record("native", 10.0, run="second"), record("c", 5.0, run="second")]
    found = pick(*old, *new)
    assert found.candidate == "c"
    assert state_of(found, "a") is Status.CRASHED
    assert next(v.record for v in found.verdicts if v.record.candidate == "a") is crashed


def test_what_is_measured_again_after_a_crash_counts_again() -> None:
    found = pick(*at(1.0, failed("a", Status.CRASHED)), *at(2.0, record("native", 10.0), record("a", 5.0)))
    assert found.candidate == "a"


def test_algorithms_and_versions_that_are_not_known_are_left_out() -> None:
    found = pick(record("native", 10.0), record("gone", 1.0), record("a", 2.0, version=2), record("b", 5.0))
    assert found.candidate == "b"
    assert [v.record.candidate for v in found.verdicts] == ["native", "b"]


def test_an_older_native_tells_nothing_about_this_one() -> None:
    assert choose([record("native", 10.0, version=2), record("a", 1.0)], Limits(), "float32", ORDER) is None


@given(st.permutations(range(4)))
def test_the_rows_of_a_run_decide_in_any_order(places: Sequence[int]) -> None:
    rows = [record("native", 10.0), record("a", 6.0), record("b", 5.95), failed("c")]
    assert pick(*(rows[i] for i in places)) == pick(*rows)


def test_the_source_is_passed_on() -> None:
    found = choose([record("native", 1.0)], Limits(), "float32", ORDER, Source.MEASURED)
    assert found is not None
    assert found.source is Source.MEASURED


# Whatever was measured


times = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=8).map(tuple)
errors = st.one_of(st.none(), st.floats(0, 1), st.just(math.inf))
timed = st.builds(lambda samples, error: (Status.OK, samples, error), times, st.floats(0, 1))
untimed = st.tuples(st.sampled_from([s for s in Status if s is not Status.OK]), st.just(()), errors)


@st.composite
def measured(draw: st.DrawFn) -> list[Record]:
    found = []
    for name in ("native", "a", "b", "c"):
        status, samples, error = draw(st.one_of(timed, timed, untimed))
        workspace = draw(st.integers(0, 4 * GB))
        found.append(Record("p", "e", name, 1, "", status, samples, error, workspace, run="r"))
    return found


limits = st.builds(
    Limits,
    accuracy=st.one_of(st.sampled_from(["native", "strict"]), st.floats(1e-6, 1.0)),
    memory_bytes=st.floats(1, 5 * GB),
    noise=st.floats(0, 1),
)


@given(measured(), limits)
def test_a_decision_is_for_a_candidate_that_may_win(records: list[Record], held_to: Limits) -> None:
    found = choose(records, held_to, "float32", ORDER)
    if found is None:
        return
    assert found.margin is None or math.isfinite(found.margin)
    assert [v.record.candidate for v in found.verdicts] == ["native", "a", "b", "c"]
    if found.accurate and found.within_memory:
        verdict = next(v for v in found.verdicts if v.record.candidate == found.candidate)
        assert verdict.status is Status.OK
        assert verdict.reason == found.reason
        assert verdict.record.error is None or verdict.record.error <= (found.bound or 0.0)
        assert (verdict.record.workspace_bytes or 0) <= held_to.memory_bytes
    if found.candidate != "native" and found.margin is not None and "less memory" not in found.reason:
        assert found.margin > max(0.02, held_to.noise)
    assert found.margin is None or found.margin >= 1 / 1.03 - 1


@given(measured(), limits, st.sampled_from([2.0**-20, 0.5, 2.0, 1024.0]))
def test_a_decision_does_not_depend_on_the_unit_of_time(records: list[Record], held_to: Limits, unit: float) -> None:
    def scaled(old: Record) -> Record:
        return replace(old, samples_us=tuple(s * unit for s in old.samples_us))

    first = choose(records, held_to, "float32", ORDER)
    second = choose([scaled(r) for r in records], held_to, "float32", ORDER)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (first.candidate, first.margin, first.reason) == (second.candidate, second.margin, second.reason)


@pytest.mark.parametrize(
    ("native", "other"),
    [((0.0,) * 6, (1.0,) * 6), ((1.0,) * 6, (0.0,) * 6), ((0.0,) * 6, (0.0,) * 6), ((0.0,), (0.0,)), ((1.0,), (0.0,))],
)
def test_times_of_zero_which_a_store_may_hold_end_no_call(native: tuple[float, ...], other: tuple[float, ...]) -> None:
    rows = [
        Record("p", "e", name, 1, "", Status.OK, samples, 1e-7, 0, run="r")
        for name, samples in (("native", native), ("a", other))
    ]
    found = choose(rows, Limits(), "float32", ORDER)
    assert found is None or found.margin is None or math.isfinite(found.margin)


# The bound


samples = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9)


@given(samples, samples)
def test_the_bound_is_a_ratio_of_two_samples_and_never_over_the_estimate(base: list[float], other: list[float]) -> None:
    estimate, bound = ratio(base, other)
    pairs = [b / o for b in base for o in other]
    assert bound in pairs
    assert min(pairs) <= bound <= estimate <= max(pairs)


@given(samples, samples, st.sampled_from([0.25, 2.0, 4096.0]))
def test_the_bound_scales_with_the_times(base: list[float], other: list[float], unit: float) -> None:
    estimate, bound = ratio(base, other)
    assert ratio([b * unit for b in base], [o * unit for o in other]) == (estimate, bound)
    assert ratio([b * unit for b in base], other) == (estimate * unit, bound * unit)


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3))
def test_with_three_samples_each_the_bound_is_the_smallest_ratio(base: list[float], other: list[float]) -> None:
    assert ratio(base, other)[1] == min(base) / max(other)


SIZES = [(m, n) for m in range(1, 7) for n in range(1, 7)]


@pytest.mark.parametrize(("first", "second"), SIZES)
def test_where_nothing_differs_the_bound_claims_a_gain_in_one_case_of_twenty_at_most(first: int, second: int) -> None:
    """All arrangements of the samples of two alike are equally likely; so counting them is the whole truth."""
    total = claims = one_rank_more = 0
    for places in itertools.combinations(range(first + second), first):
        base = [1.0 + place for place in places]
        other = [1.0 + place for place in range(first + second) if place not in places]
        total += 1
        claims += ratio(base, other)[1] > 1
        below = sum(b < o for b in base for o in other)  # that many of the sorted ratios are under 1
        one_rank_more += below <= _rank(((first, second),)) + 1
    if _rank(((first, second),)) > 0 or math.comb(first + second, first) >= 20:
        assert claims <= total / 20
        assert one_rank_more > total / 20 or _rank(((first, second),)) + 1 == first * second
    else:  # too few for any such bound: the smallest ratio is the best there is
        assert _rank(((first, second),)) == 0


@given(samples, samples)
def test_a_speedup_is_of_the_samples_that_judge(base: list[float], other: list[float]) -> None:
    first, second = (
        Record("p", "e", "x", 1, "", Status.OK, tuple(itertools.chain(*zip([1e9] * len(s), s, strict=True))))
        for s in (base, other)
    )
    assert speedup(second, first) == ratio(base, other)


def test_no_samples_make_no_speedup() -> None:
    none = failed("a")
    assert speedup(none, record("native", 1.0)) is None
    assert speedup(record("native", 1.0), none) is None


# Planted errors


PROBLEM = Problem.parse((1, 4, 5, 6, 8), (8, 3, 3, 3, 8), padding=1)
CPU = mx.Device(mx.cpu)
Spoil = Callable[[mx.array, mx.array, Convolution], mx.array]


def planted(name: str, spoil: Spoil) -> Algorithm:
    """An algorithm that computes what `spoil` makes of native."""

    def build(problem: Problem) -> Convolution:
        right = algorithms()[0].build(problem)

        def run(input: mx.array, weight: mx.array, /) -> mx.array:
            return spoil(input, weight, right)

        return run

    return Algorithm(name, 1, 9, build, replayed(name).cost)


def only_at(output: mx.array, *index: int) -> mx.array:
    """One at one position and zero elsewhere."""
    return mx.zeros(output.shape).at[index].add(1.0)


def flipped_taps(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    return right(input, weight[:, ::-1, ::-1, ::-1])


def unwritten_last_element(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    output = right(input, weight)
    return mx.where(only_at(output, -1, -1, -1, -1, -1) > 0, mx.zeros_like(output), output)


def nan_at_one_position(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    output = right(input, weight)
    return mx.where(only_at(output, 0, 1, 2, 3, 4) > 0, mx.full(output.shape, math.nan), output)


def zeros_in_the_second_half(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    output = right(input, weight)
    return mx.concatenate([output[:, :2], mx.zeros_like(output[:, 2:])], axis=1)


def one_frame_late(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    output = right(input, weight)
    return mx.concatenate([output[:, :1], output[:, :-1]], axis=1)


def rounded_to_half(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    return right(input.astype(mx.float16), weight.astype(mx.float16)).astype(mx.float32)


def nothing_at_all(input: mx.array, weight: mx.array, right: Convolution) -> mx.array:
    return right(input, weight)


class Favouring(DeviceBench):
    """A device on which the planted candidates are by far the fastest."""

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        taken = super().sample(candidate, repetitions)
        return taken / 1000 if candidate.algorithm.order == 9 else taken


def decide_among(*spoils: Spoil) -> Decision:
    among = (*algorithms(), *(planted(spoil.__name__, spoil) for spoil in spoils))
    field = candidates(PROBLEM, "cpu", among)
    records = tune(PROBLEM, "here", "cpu", field, Favouring(PROBLEM, CPU), Plan(budget_s=0.02))
    found = choose(records, Limits(), PROBLEM.dtype, {f"{a.name}@{a.version}": i for i, a in enumerate(among)})
    assert found is not None
    return found


def test_a_planted_error_never_wins_however_fast_it_is() -> None:
    wrong = (
        flipped_taps,
        unwritten_last_element,
        nan_at_one_position,
        zeros_in_the_second_half,
        one_frame_late,
    )
    found = decide_among(*wrong, rounded_to_half)
    names = {spoil.__name__ for spoil in (*wrong, rounded_to_half)}
    assert found.candidate not in names
    assert found.accurate
    for spoil in wrong:
        assert state_of(found, spoil.__name__) is Status.WRONG, spoil.__name__
    assert state_of(found, "rounded_to_half") is Status.INACCURATE


def test_the_same_plant_wins_where_there_is_nothing_wrong_with_it() -> None:
    found = decide_among(nothing_at_all)
    assert found.candidate == "nothing_at_all"
    assert found.margin is not None
    assert found.margin > 1
    assert statistics.median(found.verdicts[0].record.samples_us) > 0
