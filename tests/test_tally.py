"""What is told at a program's end follows from its decisions and the calls of what they chose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoconv._backend import mx
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.decision import NATIVE, Decision, Source, Verdict
from autoconv.problem import Kind, Problem
from autoconv.record import Record, Status
from autoconv.tally import NOTHING, Tally, saved_us

PROBLEM = Problem.parse((1, 4, 5, 5, 4), (8, 3, 3, 3, 4))
OTHER = Problem.parse((1, 5, 5, 5, 4), (8, 3, 3, 3, 4))


def first(x: mx.array, _: object) -> mx.array:
    """Stands for a convolution."""
    return x


ARRAY = mx.array(1)


def decision(candidate: str, margin: float | None, source: Source = Source.DATABASE, us: float = 100.0) -> Decision:
    record = Record(PROBLEM.key, "here", candidate, 1, "", Status.OK, (us,) * 3, 1e-7, run="r", created=1.0)
    return Decision(candidate, source, margin, "for a test", verdicts=(Verdict(record, Status.OK, None, ""),))


def test_a_gain_is_the_time_of_the_chosen_by_its_margin() -> None:
    assert saved_us(decision("im2col", 0.25)) == pytest.approx(25)
    assert saved_us(decision("im2col", None)) is None
    assert saved_us(Decision("im2col", Source.MODEL, 0.25, "")) is None
    assert saved_us(decision(NATIVE, None)) == 0


def test_each_decision_counts_its_own_calls() -> None:
    tally = Tally()
    fast = tally.counted(first, PROBLEM, decision("im2col", 0.5))
    again = tally.counted(first, PROBLEM, decision("im2col", 0.5))
    slow = tally.counted(first, OTHER, decision("matmul", 0.1))
    for _ in range(10):
        assert fast(ARRAY, ARRAY) is again(ARRAY, ARRAY) is slow(ARRAY, ARRAY) is ARRAY
    assert tally.shapes == 2
    assert tally.gain_s == pytest.approx((20 * 50 + 10 * 10) / 1e6)
    assert tally.line(30, 1.5) == "30 conv3d calls, 2 shapes, 1.5 s tuning, estimated gain 1.1 ms"


def test_native_gains_nothing() -> None:
    tally = Tally()
    tally.counted(first, PROBLEM, decision(NATIVE, None))(ARRAY, ARRAY)
    assert tally.line(1, 0.0) == "1 conv3d call, 1 shape, 0.0 s tuning, estimated gain 0.0 s"


def test_of_each_problem_all_calls_are_known_whatever_was_chosen() -> None:
    tally = Tally()
    gradient = Problem.parse(PROBLEM.input_shape, PROBLEM.weight_shape, kind=Kind.INPUT_GRADIENT)
    runs = [
        tally.counted(first, PROBLEM, decision(NATIVE, None)),
        tally.counted(first, PROBLEM, decision("im2col", 0.5)),
        tally.counted(first, gradient, decision("im2col", 0.5)),
    ]
    for times, run in enumerate(runs, start=1):
        for _ in range(times):
            run(ARRAY, ARRAY)
    tally.counted(first, OTHER, decision(NATIVE, None))
    assert tally.calls == {PROBLEM: 3, gradient: 3, OTHER: 0}


def test_two_steps_stay_two_and_are_counted_once() -> None:
    tally = Tally()
    run = tally.counted(InTwoSteps(lambda w: (w,), first), PROBLEM, decision("matmul", 1.0))
    assert isinstance(run, InTwoSteps)
    run.apply(ARRAY, run.derive(ARRAY))
    run(ARRAY, ARRAY)
    assert tally.gain_s == pytest.approx(200e-6)


def test_what_was_never_timed_is_said() -> None:
    tally = Tally()
    tally.counted(first, OTHER, Decision(NATIVE, Source.NATIVE, None, ""))
    chosen = tally.counted(first, PROBLEM, Decision("im2col", Source.MODEL, 0.5, ""))
    assert tally.unmeasured == 0
    chosen(ARRAY, ARRAY)
    assert tally.line(2, 0.0) == (
        "2 conv3d calls, 2 shapes (1 never timed), 0.0 s tuning, "
        "estimated gain 0.0 s (1 shape not counted: no times to compare)"
    )


def test_what_was_noted_is_said_with_what_times_it() -> None:
    tally = Tally()
    nothing_known = Decision(NATIVE, Source.NATIVE, None, "")
    tally.counted(first, PROBLEM, nothing_known)
    assert tally.line(3, 0.0, {PROBLEM}) == "3 conv3d calls, 1 shape noted: `autoconv sweep --pending` times it"
    tally.counted(first, OTHER, nothing_known)
    assert (
        tally.line(3, 0.0, {PROBLEM, OTHER}) == "3 conv3d calls, 2 shapes noted: `autoconv sweep --pending` times them"
    )
    assert tally.line(3, 0.5, {OTHER}) == (
        "3 conv3d calls, 2 shapes (1 never timed), 500 ms tuning, estimated gain 0.0 s; "
        "1 shape noted: `autoconv sweep --pending` times it"
    )


def test_gradients_that_were_noted_are_no_shapes() -> None:
    tally = Tally()
    tally.counted(first, PROBLEM, Decision(NATIVE, Source.NATIVE, None, ""))
    both = {replace(PROBLEM, kind=kind) for kind in Kind}
    assert tally.line(3, 0.0, both) == (
        "3 conv3d calls, 1 shape and 2 gradients noted: `autoconv sweep --pending` times them"
    )
    assert tally.line(3, 0.5, both - {PROBLEM}) == (
        "3 conv3d calls, 1 shape (1 never timed), 500 ms tuning, estimated gain 0.0 s; "
        "2 gradients noted: `autoconv sweep --pending` times them"
    )


def test_gradients_gain_and_are_no_shapes() -> None:
    tally = Tally()
    gradient = Problem.parse(PROBLEM.input_shape, PROBLEM.weight_shape, kind=Kind.WEIGHT_GRADIENT)
    tally.counted(first, gradient, decision("wgrad_matmuls", 2.0))(ARRAY, ARRAY)
    assert tally.shapes == 0
    assert tally.gain_s == pytest.approx(200e-6)


def test_a_line_for_nothing_and_for_what_was_left_to_mlx() -> None:
    assert Tally().line(0, 0.0) == NOTHING
    assert Tally().line(2, 0.0) == "2 conv3d calls, all left to MLX"
