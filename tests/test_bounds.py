"""Intervals of choices: they hold for new networks as often as they say, and advice follows from them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoconv.decision import NATIVE
from autoconv.model import bounds as b
from autoconv.model.bounds import ROOT, Bounds, Expected, advice, calibrated, quantile


def expected(*log_ratios: float, doubt: float = 0.1, risk: float = 0.0) -> list[Expected]:
    """Native, and other candidates of such ratios."""
    others = [Expected(f"other{i}(a={i})", ratio, doubt, risk) for i, ratio in enumerate(log_ratios)]
    return [Expected(NATIVE, 0.0, 0.0, 0.0), *others]


def bounds(native: float = 1.0, best: float = 1.0, question: float = 1.0, close: float = 1.1) -> Bounds:
    return Bounds({ROOT: native}, {ROOT: best}, {ROOT: question}, close)


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.floats(-3, 3)), min_size=1), st.floats(0.02, 0.5))
def test_a_quantile_leaves_at_most_its_share_of_networks_above(scores: list[tuple[str, float]], alpha: float) -> None:
    names = {name for name, _ in scores}
    sizes = {name: sum(other == name for other, _ in scores) for name in names}

    def above(width: float) -> float:
        """The weight above a width, the new network's among it, which may be anywhere."""
        seen = sum(1 / sizes[name] for name, score in scores if score > width)
        return (seen + 1) / (len(names) + 1)

    found = quantile(scores, alpha)
    if found == math.inf:
        assert all(above(width) > alpha - 1e-9 for _, width in scores)
    else:
        assert above(found) <= alpha + 1e-9
        lower = [score for _, score in scores if score < found]
        assert all(above(score) > alpha - 1e-9 for score in lower)


def test_it_takes_one_over_alpha_networks() -> None:
    some = [(str(i), float(i)) for i in range(9)]
    assert quantile(some[:8], 0.1) == math.inf
    assert quantile(some, 0.1) == 8.0


def test_intervals_hold_for_new_networks() -> None:
    """Networks differ, and a network's layers are alike, as real ones are: 400 new networks, 40 to calibrate by."""
    chance = random.Random(3)

    def network() -> list[float]:
        middle = chance.gauss(0, 1)
        return [middle + chance.gauss(0, 0.3) for _ in range(chance.randint(1, 60))]

    held = []
    for _ in range(400):
        known = [(str(i), score) for i in range(40) for score in network()]
        new = network()
        width = quantile(known, 0.1)
        held.append(sum(score <= width for score in new) / len(new))
    # Shares between 0 and 1 with a mean of 0.9 deviate by 0.3 at most, and the mean of 400 by a twentieth of that.
    assert sum(held) / len(held) >= 0.9 - 3 * 0.3 / 20


def test_a_group_with_too_few_networks_takes_its_parents_width() -> None:
    many = [(str(i), 1.0) for i in range(30)]
    few = [(str(i), -9.0) for i in range(3)]
    widths = calibrated({"matmul": many, "im2col": few}, 0.1)
    assert set(widths) == {ROOT, "matmul"}
    assert calibrated({}, 0.1) == {ROOT: math.inf}


def test_another_is_chosen_where_it_is_surely_no_worse_than_native() -> None:
    assert advice(expected(-0.2), bounds()).choice.candidate == "other0(a=0)"
    kept = advice(expected(-0.05), bounds())
    assert kept.choice.candidate == NATIVE
    assert kept.worst_to_native == 1.0
    assert "may be slower" in kept.reason
    found = advice(expected(-0.2), bounds())
    assert found.worst_to_native == pytest.approx(math.exp(-0.2 + 0.1))


def test_the_doubt_that_is_told_is_the_one_that_was_learned() -> None:
    learned = 0.04
    told = advice([b.expected(NATIVE, 0.0, 0.5, 0.0), b.expected("other", -2.0, learned, 0.0)], bounds())
    assert {f.candidate: f.doubt for f in told.forecasts} == {NATIVE: 0.0, "other": pytest.approx(learned)}


def test_sure_is_close_to_the_best_other() -> None:
    # The fastest other is 0.3 away, in doubts of both: hypot(0.1, 0.1).
    found = advice(expected(-0.5, -0.2), bounds(close=0.9))
    assert found.worst_to_best == pytest.approx(math.exp(-0.3 + math.hypot(0.1, 0.1)))
    assert found.sure
    assert not advice(expected(-0.5, -0.2), bounds(close=0.8)).sure
    assert not advice(expected(-0.5, -0.45), bounds(close=1.0)).sure


def test_what_fails_or_is_inaccurate_is_not_chosen_but_in_question() -> None:
    said = [*expected(-0.3), Expected("risky", -1.0, 0.1, 2 * b.MAX_RISK)]
    found = advice(said, bounds())
    assert found.choice.candidate == "other0(a=0)"
    assert found.in_question[0] == "risky"
    alone = advice([Expected("risky", -1.0, 0.1, 2 * b.MAX_RISK)], bounds())
    assert not alone.safe
    assert not alone.sure


def test_without_native_the_fastest_is_chosen() -> None:
    said = [Expected("a", 0.5, 0.1, 0.0), Expected("b", 0.1, 0.1, 0.0)]
    found = advice(said, bounds(close=1.0))
    assert found.choice.candidate == "b"
    assert found.worst_to_native == math.inf
    assert found.safe


def test_with_unbounded_widths_nothing_but_native_is_chosen_and_nothing_is_sure() -> None:
    found = advice(expected(-2.0, 0.5), b.UNBOUNDED)
    assert found.choice.candidate == NATIVE
    assert not found.sure
    assert set(found.in_question) == {NATIVE, "other0(a=0)", "other1(a=1)"}


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0, 3))
def test_those_in_question_are_all_that_may_be_the_best(ratios: Sequence[float], width: float) -> None:
    said = expected(*ratios)
    assume(len(set(ratios)) == len(ratios))
    names = b.in_question(said, bounds(question=width))
    assert NATIVE in names
    least = min(e.log_ratio + width * e.doubt for e in said)
    for e in said:
        if e.candidate != NATIVE and abs(e.log_ratio - width * e.doubt - least) > 1e-9:
            assert (e.candidate in names) == (e.log_ratio - width * e.doubt < least)
    by_name = {e.candidate: e.log_ratio for e in said}
    assert list(names) == sorted(names, key=lambda name: (by_name[name], name != NATIVE))


def test_the_score_of_a_question_is_the_least_width_that_keeps_the_best() -> None:
    said = expected(-0.5, -0.1, 0.3)
    for best in range(4):
        score = b.score_question(said, best)
        name = said[best].candidate
        assert name in b.in_question(said, bounds(question=max(0.0, score) + 1e-9))
        if score > 0.01 and name != NATIVE:
            assert name not in b.in_question(said, bounds(question=score - 0.01))
