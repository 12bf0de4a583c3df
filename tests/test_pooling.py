"""The pool: what several runs of one problem say together, whatever order they come in."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv.decision import Decision, Limits, Verdict, choose
from autoconv.environment import Environment
from autoconv.pooling import Pooled, runs
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report.explanation import Explanation

ORDER = {"native@1": 0, "a@1": 1, "b@1": 2, "c@1": 3}
GB = 10**9
Result = float | Sequence[float] | Status


def result(name: str, found: Result, *, run: str, created: float = 0.0) -> Record:
    """A record with six times alike, with these times, or of this status."""
    algorithm, _, parameters = name.rstrip(")").partition("(")
    made = Record("p", "e", algorithm, 1, parameters, Status.OK, error=1e-7, run=run, created=created)
    if isinstance(found, Status):
        return replace(made, status=found, error=None)
    return replace(made, samples_us=(found,) * 6 if isinstance(found, float) else tuple(found))


def run(name: str, created: float = 0.0, /, **results: Result) -> list[Record]:
    return [result(candidate, found, run=name, created=created) for candidate, found in results.items()]


def rows_of(each: Iterable[Sequence[Record]]) -> list[Record]:
    return list(itertools.chain.from_iterable(each))


def decide(*rows: list[Record], limits: Limits | None = None) -> Decision:
    found = choose(rows_of(rows), limits or Limits(), "float32", ORDER)
    assert found is not None
    return found


def verdict(found: Decision, name: str) -> Verdict:
    return next(v for v in found.verdicts if v.record.candidate == name)


# Times


def test_only_times_of_one_run_are_compared() -> None:
    """In the second run the device was three times as slow."""
    found = decide(run("r", native=10.0, a=6.0), run("s", native=30.0, a=18.0))
    assert found.candidate == "a"
    assert found.margin == pytest.approx(10 / 6 - 1)
    assert found.reason == "1.67 times as fast as native, 1.67 at least"


@pytest.mark.parametrize("slower", [1.0, 4.0])
def test_candidates_of_different_runs_are_compared_by_native(slower: float) -> None:
    found = decide(run("r", native=10.0, a=8.0), run("s", native=slower * 10, b=slower * 6))
    assert found.candidate == "b"
    assert found.margin == pytest.approx(10 / 6 - 1)


def test_shown_times_are_those_of_runs_in_which_native_takes_the_same() -> None:
    found = decide(run("r", native=10.0, a=6.0), run("s", native=30.0, b=15.0))
    assert [v.record.median_us for v in found.verdicts] == pytest.approx([20.0, 12.0, 10.0])


def test_where_no_run_has_native_s_time_raw_times_count() -> None:
    failed = Status.FAILED
    found = decide(run("r", native=failed, a=8.0, b=7.0), run("s", native=failed, a=10.0, b=6.0))
    assert (found.candidate, found.margin) == ("b", None)


def test_of_two_runs_that_disagree_neither_is_believed() -> None:
    fast, slow = run("r", 1.0, native=10.0, a=5.0), run("s", 2.0, native=10.0, a=11.0)
    assert decide(fast).candidate == "a"
    for rows in ((fast, slow), (slow, fast)):
        found = decide(*rows)
        assert found.candidate == "native"
        assert not verdict(found, "a").outliers
    assert "at least 0.91" in found.reason


def test_samples_that_choose_still_do_not_judge() -> None:
    lucky = (5.0, 11.0) * 3
    found = decide(run("r", native=10.0, a=lucky), run("s", native=10.0, a=lucky))
    assert found.candidate == "native"
    assert verdict(found, "a").speedup == pytest.approx(10 / 11)
    assert verdict(found, "a").record.choosing_us == (5.0,) * 6
    assert verdict(found, "a").record.judging_us == (11.0,) * 6


def test_more_runs_make_a_small_gain_sure() -> None:
    """Noise of 4% in every run, which alone leaves a gain of 5% in doubt."""
    noisy = {"native": [10.0, 9.8, 10.0, 10.2, 10.0, 10.0], "a": [9.5, 9.3, 9.5, 9.7, 9.5, 9.5]}
    each = [run(name, **noisy) for name in "rstu"]
    assert decide(each[0]).candidate == "native"
    assert decide(*each).candidate == "a"


def test_what_was_given_up_after_its_first_turn_in_another_run_holds_the_bound_down() -> None:
    both = run("r", native=10.0, a=8.0)
    assert decide(both).candidate == "a"
    assert decide(both, run("s", native=10.0, a=[25.0])).candidate == "native"  # a run in which it was hopeless
    assert decide(both, run("s", native=10.0, a=[5.0])).candidate == "a"


def test_a_single_turn_in_every_run_counts_where_it_differs_by_more_than_half() -> None:
    for native, winner in ((14.0, "native"), (16.0, "a")):
        assert decide(*(run(name, native=[native], a=10.0) for name in "rs")).candidate == winner


def test_of_a_single_run_the_very_records_are_shown() -> None:
    rows = run("r", native=10.0, a=6.0, b=Status.FAILED)
    found = decide(rows)
    assert all(v.record is r for v, r in zip(found.verdicts, rows, strict=True))
    assert [v.runs for v in found.verdicts] == [("r",), ("r",), ()]
    assert {v.provenance for v in found.verdicts} == {""}


# Outliers


def ratios(*native_over_a: float, **others: Sequence[float]) -> list[list[Record]]:
    """A run for each ratio of native's time to that of `a`, and to those of others."""
    return [
        run(f"r{i}", float(i), native=10.0, a=10.0 / gain, **{name: 10.0 / gains[i] for name, gains in others.items()})
        for i, gain in enumerate(native_over_a)
    ]


def test_a_run_that_is_far_off_the_others_is_left_out_and_marked() -> None:
    found = decide(*ratios(1.5, 1.52, 0.9, 1.48, b=[1.2, 1.21, 1.2, 1.19]))
    assert found.candidate == "a"
    assert found.margin == pytest.approx(0.5)
    a = verdict(found, "a")
    assert (a.runs, a.outliers) == (("r0", "r1", "r3"), ("r2",))
    assert a.provenance == "4 runs, 1 left out as an outlier"
    assert max(a.record.samples_us) < 10.0
    assert verdict(found, "b").provenance == "4 runs"
    assert len(verdict(found, "native").runs) == 4


@pytest.mark.parametrize(("last", "out"), [(1.31, 0), (1.72, 0), (1.3, 1), (1.73, 1), (0.5, 1)])
def test_a_run_may_be_off_by_fifteen_percent(last: float, out: int) -> None:
    found = decide(*ratios(1.5, 1.5, last, b=[1.0, 1.0, 1.0]))
    assert len(verdict(found, "a").outliers) == out


@pytest.mark.parametrize(("last", "out"), [(2.8, 0), (3.0, 1)])
def test_where_runs_differ_much_one_may_be_off_by_more(last: float, out: int) -> None:
    others = [1.0] * 5
    found = decide(*ratios(1.2, 1.6, 1.4, 1.7, last, b=others))
    assert len(verdict(found, "a").outliers) == out


def test_of_two_runs_none_is_an_outlier() -> None:
    found = decide(*ratios(3.0, 1.0))
    assert found.candidate == "native"
    assert all(not v.outliers for v in found.verdicts)


def test_an_outlier_saves_no_one_whom_the_other_runs_do_not_bear_out() -> None:
    assert decide(*ratios(1.0, 4.0, 0.99)).candidate == "native"
    assert decide(*ratios(1.0, 4.0, 0.99, 4.1)).candidate == "native"


def test_a_run_in_which_native_was_off_is_an_outlier_for_all() -> None:
    # `c` varies so much that it alone would not show that native took twice its time in the last run.
    each = ratios(1.1, 1.1, 1.1, 2.2, b=[1.2, 1.2, 1.2, 2.4], c=[1.0, 1.6, 0.7, 2.0])
    found = decide(*each)
    assert [v.outliers for v in found.verdicts] == [("r3",)] * 4
    assert found.candidate == "b"
    assert found.margin == pytest.approx(0.2)


def test_a_run_in_which_one_candidate_of_two_was_off_is_no_outlier_for_the_other() -> None:
    found = decide(*ratios(1.5, 1.5, 1.5, 3.0, b=[1.2, 1.2, 1.2, 1.2]))
    assert [v.outliers for v in found.verdicts] == [(), ("r3",), ()]
    found = decide(*ratios(1.5, 1.5, 1.5, 3.0, b=[1.2, 1.2, 1.2, 0.6]))  # to opposite sides, so not by native
    assert [v.outliers for v in found.verdicts] == [(), ("r3",), ("r3",)]


def test_who_was_timed_in_an_outlier_alone_keeps_that() -> None:
    each = ratios(1.1, 1.1, 1.1, 2.2)
    each[-1] += run("r3", 3.0, c=5.0)
    c = verdict(decide(*each), "c")
    assert (c.runs, c.outliers, c.status) == (("r3",), (), Status.OK)


# Statuses


@pytest.mark.parametrize("place", [0, 1])
def test_what_was_wrong_in_any_run_is_barred(place: int) -> None:
    rows = [run("r", 1.0, native=10.0, a=5.0), run("s", 2.0, native=10.0, a=5.0)]
    rows[place][1] = replace(result("a", Status.WRONG, run="rs"[place], created=1.0 + place), detail="not finite")
    found = decide(*rows)
    assert (found.candidate, verdict(found, "a").status) == ("native", Status.WRONG)
    assert verdict(found, "a").reason == "not finite"


def test_what_was_wrong_in_a_run_that_does_not_tell_is_barred_too() -> None:
    found = decide(run("r", native=10.0, a=5.0), run("s", a=Status.WRONG))
    assert (found.candidate, verdict(found, "a").status) == ("native", Status.WRONG)


def test_another_version_that_was_wrong_bars_no_one() -> None:
    old = [replace(r, version=2) for r in run("s", a=Status.WRONG)]
    assert decide(run("r", native=10.0, a=5.0), old).candidate == "a"


@pytest.mark.parametrize("status", [Status.FAILED, Status.OUT_OF_MEMORY])
@pytest.mark.parametrize(("ran", "failed", "winner"), [(2, 1, "a"), (1, 1, "native"), (1, 2, "native"), (3, 2, "a")])
def test_failing_goes_by_the_majority_of_the_runs(status: Status, ran: int, failed: int, winner: str) -> None:
    rows = [run(f"r{i}", float(i), native=10.0, a=5.0) for i in range(ran)]
    rows += [run(f"s{i}", float(i), native=10.0, a=status) for i in range(failed)]
    found = decide(*rows)
    assert found.candidate == winner
    assert verdict(found, "a").status is (Status.OK if winner == "a" else status)
    assert len(verdict(found, "a").runs) == (ran if winner == "a" else 0)


def test_failures_are_named_by_the_more_frequent() -> None:
    failed, room = Status.FAILED, Status.OUT_OF_MEMORY
    for statuses, status in (((failed, room, room), room), ((failed, room), failed), ((room, failed), failed)):
        rows = [run(f"r{i}", native=10.0, a=s) for i, s in enumerate(statuses)]
        assert verdict(decide(*rows), "a").status is status


@pytest.mark.parametrize("status", [Status.TOO_SLOW, Status.NOT_STARTED])
def test_what_one_run_did_not_start_goes_by_those_that_timed_it(status: Status) -> None:
    without = decide(run("s", native=10.0, a=status))
    assert (without.candidate, verdict(without, "a").status) == ("native", status)
    found = decide(run("r", native=10.0, a=5.0), run("s", native=10.0, a=status))
    assert (found.candidate, verdict(found, "a").runs) == ("a", ("r",))


@pytest.mark.parametrize(
    ("status", "known", "tight", "loose"),
    [
        (Status.INACCURATE, {"error": 0.6}, Limits(accuracy=0.5), Limits(accuracy=0.7)),
        (Status.OVER_MEMORY, {"workspace_bytes": 2 * GB}, Limits(memory_bytes=GB), Limits(memory_bytes=3 * GB)),
    ],
)
def test_what_one_run_was_not_allowed_goes_by_what_is_allowed_now(
    status: Status, known: dict[str, float], tight: Limits, loose: Limits
) -> None:
    timed, untimed = run("r", native=10.0, a=5.0), run("s", native=10.0, a=status)
    timed[1], untimed[1] = (replace(rows[1], **known) for rows in (timed, untimed))  # type: ignore[arg-type]
    found = decide(timed, untimed, limits=tight)
    assert (found.candidate, verdict(found, "a").status) == ("native", status)
    found = decide(timed, untimed, limits=loose)
    assert (found.candidate, verdict(found, "a").runs, verdict(found, "native").runs) == ("a", ("r",), ("r",))


def test_errors_and_memory_are_the_largest_of_any_run() -> None:
    rows = [run("r", native=10.0, a=5.0), run("s", native=10.0, a=5.0), run("t", native=10.0, a=5.0)]
    for row, error, peak, workspace in zip(rows, (1e-7, 3e-6, 2e-7), (None, 7, 9), (5, None, 3), strict=True):
        row[1] = replace(row[1], error=error, peak_bytes=peak, workspace_bytes=workspace)
    record = verdict(decide(*rows), "a").record
    assert (record.error, record.peak_bytes, record.workspace_bytes) == (3e-6, 9, 5)
    assert decide(*rows).candidate == "a"
    found = decide(*rows, limits=Limits(accuracy=2e-6))
    assert (found.candidate, verdict(found, "a").status) == ("native", Status.INACCURATE)


def test_native_of_another_version_takes_its_whole_run_out() -> None:
    other = run("s", native=10.0, a=20.0)
    other[0] = replace(other[0], version=2)
    found = decide(run("r", native=10.0, a=5.0), other)
    assert (found.candidate, verdict(found, "a").runs) == ("a", ("r",))


def test_a_bound_that_another_run_s_native_loosens_lets_no_one_pass_untimed() -> None:
    """Each run tells by itself, so their pool must; and what is not timed cannot win."""
    close, loose = run("r", native=10.0, a=Status.INACCURATE), run("s", native=10.0, b=5.0)
    close[1] = replace(close[1], error=3e-5)
    loose[0] = replace(loose[0], error=1e-4)
    found = decide(close, loose)
    assert found.bound == 2e-4
    assert (found.candidate, verdict(found, "a").status) == ("b", Status.INACCURATE)


def test_a_candidate_twice_in_one_run_is_one() -> None:
    rows = run("r", native=10.0, a=5.0)
    twin = replace(rows[1], samples_us=(20.0,) * 6)
    assert decide(rows, [twin]) == decide([twin], rows)
    assert len(runs([*rows, twin])[0].records) == 2


# Origins


def imported(rows: list[Record], origin: str = "0123456789ab") -> list[Record]:
    return [replace(r, origin=origin) for r in rows]


def test_imported_runs_count_as_own_ones_do_and_are_told_apart() -> None:
    first, second, third, fourth = ratios(1.5, 1.5, 1.5, 0.5, b=[1.2] * 4)
    found = decide(imported(fourth, "fedcba987654"), first, imported(second), imported(third))
    a = verdict(found, "a")
    assert (found.candidate, a.runs, a.outliers) == ("a", ("r0", "r1", "r2"), ("r3",))
    assert a.origins == ("", "0123456789ab", "fedcba987654")
    assert a.provenance == "4 runs, 3 imported, 1 left out as an outlier"
    assert verdict(found, "b").provenance == "4 runs, 3 imported"


def test_a_single_imported_run_is_said_to_be_imported() -> None:
    found = decide(imported(run("r", native=10.0, a=5.0, b=Status.FAILED)))
    assert [v.provenance for v in found.verdicts] == ["1 run, 1 imported", "1 run, 1 imported", ""]


def test_a_run_that_came_back_is_counted_once_and_as_the_own() -> None:
    own = run("r", native=10.0, a=5.0)
    for rows in ((own, imported(own)), (imported(own), own)):
        found = decide(*rows)
        assert found == decide(own)
        assert verdict(found, "a").origins == ("",)


# Whatever was measured, in whatever order


few_times = st.lists(st.sampled_from([5.0, 5.04, 6.0, 9.9, 10.0, 12.0, 30.0]), min_size=1, max_size=7).map(tuple)
any_times = st.lists(st.floats(1e-2, 1e6), min_size=1, max_size=7).map(tuple)
statuses = st.sampled_from([s for s in Status if s is not Status.OK])


@st.composite
def run_of(draw: st.DrawFn, name: str) -> list[Record]:
    """A run with any of the candidates, most of them timed."""
    created = float(draw(st.integers(0, 2)))
    names = draw(st.lists(st.sampled_from(["a", "a(n=8)", "a(n=16)", "b", "c", "gone"]), unique=True, max_size=5))
    if draw(st.integers(0, 5)):
        names.append("native")
    found = []
    for candidate in names:
        samples = draw(st.one_of(few_times, any_times, st.none()))
        row = result(candidate, samples or draw(statuses), run=name, created=created)
        found.append(
            replace(
                row,
                version=draw(st.sampled_from([1] * 9 + [2])),
                error=draw(st.sampled_from([None, 1e-7, 3e-7, 1e-4, math.inf])) if row.error is None else 1e-7,
                workspace_bytes=draw(st.sampled_from([None, 0, 10**6, 3 * GB])),
                peak_bytes=draw(st.sampled_from([None, 10**8, 3 * 10**8])),
                detail=draw(st.sampled_from(["", "said"])),
                origin=draw(st.sampled_from(["", "0123456789ab"])),
            )
        )
    return found


several = st.integers(1, 5).flatmap(lambda n: st.tuples(*(run_of(f"run {i}") for i in range(n)))).map(list)
held_to = st.sampled_from([Limits(), Limits("strict"), Limits(1e-3, GB), Limits(memory_bytes=1e5), Limits(noise=0.2)])


def chosen(rows: Sequence[Record], limits: Limits) -> Decision | None:
    return choose(rows, limits, "float32", ORDER, chunked=["a(n=8)"])


@given(several.map(rows_of).flatmap(lambda r: st.tuples(st.just(r), st.permutations(r))), held_to)
def test_the_decision_is_the_same_in_whatever_order_records_come(
    orders: tuple[list[Record], list[Record]], limits: Limits
) -> None:
    assert chosen(orders[0], limits) == chosen(orders[1], limits)


@given(several, several, held_to)
def test_it_does_not_matter_which_of_two_databases_is_merged_into_which(
    own: list[list[Record]], other: list[list[Record]], limits: Limits
) -> None:
    first, second = rows_of(own), [replace(r, run=f"other {r.run}") for r in rows_of(other)]
    assert chosen(first + second, limits) == chosen(second + first, limits)


@given(several, held_to)
def test_a_pool_s_winner_is_one_that_may_win(each: list[list[Record]], limits: Limits) -> None:
    found = chosen(rows_of(each), limits)
    if found is None:
        return
    assert found.margin is None or math.isfinite(found.margin)
    if not (found.accurate and found.within_memory):
        return
    winner = verdict(found, found.candidate)
    assert winner.status is Status.OK
    assert winner.record.samples_us
    assert winner.reason == found.reason
    assert winner.record.error is None or winner.record.error <= (found.bound or 0.0)
    if found.candidate != "native" and found.margin is not None and "less memory" not in found.reason:
        assert found.margin > max(0.02, limits.noise)


@given(several, held_to)
def test_any_run_that_tells_makes_the_pool_tell(each: list[list[Record]], limits: Limits) -> None:
    """So that what has just been timed is never asked for again; unless another run bars what it found."""
    harmless = [[r for r in rows if r.status not in {Status.WRONG, Status.CRASHED}] for rows in each]
    alone = [chosen(rows, limits) for rows in harmless]
    assert (chosen(rows_of(harmless), limits) is not None) == any(found is not None for found in alone)


@given(several)
def test_every_time_is_counted_or_left_out_and_no_more_than_half_are(each: list[list[Record]]) -> None:
    found = chosen(rows_of(each), Limits())
    for v in found.verdicts if found else ():
        assert not set(v.runs) & set(v.outliers)
        assert len(set(v.runs)) == len(v.runs)
        if isinstance(v.record, Pooled):
            assert len(v.record.samples_us) == len(v.record.choosing_us) + len(v.record.judging_us)
            assert bool(v.record.samples_us) == bool(v.runs)
            assert sum(r.run in v.runs and r.candidate == v.record.candidate for r in rows_of(each)) == len(v.runs)


@given(st.lists(st.tuples(any_times, any_times), min_size=2, max_size=6))
def test_at_least_half_of_the_runs_count(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    found = decide(*(run(f"r{i}", native=native, a=a) for i, (native, a) in enumerate(pairs)))
    for v in found.verdicts:
        assert 2 * len(v.outliers) < len(pairs)
        assert len(v.runs) + len(v.outliers) == len(pairs)


# As people see it


def explained(found: Decision) -> Explanation:
    problem = Problem.parse((1, 4, 8, 8, 4), (8, 3, 3, 3, 4))
    return Explanation(problem, Environment({"backend": "cpu"}, {}, 0), found, GB, ("native", "a"))


def test_an_explanation_says_how_many_runs_there_were_and_which_were_left_out() -> None:
    made = explained(decide(*ratios(1.5, 1.5, 0.5, b=[1.2, 1.2, 1.2])))
    why = {row[0]: row[-1] for row in made.rows()}
    assert why["a"] == "1.50 times as fast as native, 1.50 at least; 3 runs, 1 left out as an outlier"
    assert why["b"] == "1.20 times as fast as native; 3 runs"
    read = json.loads(json.dumps(made.as_dict()))
    a = next(c for c in read["candidates"] if c["candidate"] == "a")
    assert (a["runs"], a["outliers"], a["origins"]) == (["r0", "r1"], ["r2"], [""])


def test_an_explanation_of_a_single_run_says_nothing_of_runs() -> None:
    made = explained(decide(*ratios(1.5)))
    assert "run" not in "".join(row[-1] for row in made.rows())
