"""Bounds by rank sums: of one run, of several together, and of runs that are single observations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import rank_sum
from autoconv.rank_sum import _rank, _sign_rank, lower, pooled_ratio, ratio

times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)
strata = st.lists(st.tuples(times, times), min_size=1, max_size=5)
Sizes = tuple[tuple[int, int], ...]


def statistics_of(m: int, n: int) -> list[int]:
    """The rank-sum statistic of every arrangement of two samples, which are equally likely where nothing differs."""
    found = []
    for places in itertools.combinations(range(m + n), m):
        others = [place for place in range(m + n) if place not in places]
        found.append(sum(b < o for b in places for o in others))
    return found


@given(times, times)
def test_one_stratum_is_the_ratio_of_two_samples(base: list[float], other: list[float]) -> None:
    assert pooled_ratio([(base, other)]) == ratio(base, other)


@given(strata)
def test_the_estimate_is_the_median_of_the_ratios_within_strata(each: list[tuple[list[float], list[float]]]) -> None:
    estimate, bound = pooled_ratio(each)
    ratios = sorted(b / o for base, other in each for b in base for o in other)
    below, above = sum(r < estimate for r in ratios), sum(r > estimate for r in ratios)
    assert max(below, above) <= len(ratios) / 2
    assert ratios[0] <= bound <= estimate


@given(strata.flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))))
def test_the_order_of_the_strata_does_not_matter(orders: tuple[list[rank_sum.Stratum], list[rank_sum.Stratum]]) -> None:
    assert pooled_ratio(orders[0]) == pooled_ratio(orders[1])


@given(st.lists(st.tuples(times, times), min_size=1, max_size=4), st.lists(st.floats(1e-3, 1e3), max_size=3))
def test_up_to_seven_strata_the_bound_is_over_none_of_them(
    each: list[tuple[list[float], list[float]]], single: list[float]
) -> None:
    bound = pooled_ratio(each, single)[1]
    assert all(bound <= estimate for estimate in single)
    assert all(bound <= ratio(*stratum)[0] for stratum in each)


@pytest.mark.parametrize(
    "sizes",
    [
        ((3, 3), (3, 3)),
        ((2, 3), (3, 3)),
        ((1, 3), (3, 3)),
        ((1, 1), (4, 4)),
        ((2, 2), (2, 2), (2, 2)),
        ((3, 3), (3, 3), (3, 3)),
        ((1, 1),) * 6,
    ],
)
def test_where_nothing_differs_the_rank_is_reached_in_one_case_of_twenty_at_most(sizes: Sizes) -> None:
    cases = [sum(each) for each in itertools.product(*(statistics_of(m, n) for m, n in sizes))]
    rank = _rank(sizes)
    assert sum(u <= rank for u in cases) <= len(cases) / 20
    assert sum(u <= rank + 1 for u in cases) > len(cases) / 20


many = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=16)


@given(many)
def test_past_many_ratios_the_rank_is_the_exact_one_or_one_less(each: list[tuple[int, int]]) -> None:
    sizes = tuple(sorted(each))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_sum, "EXACT", math.inf)
        exact = _rank.__wrapped__(sizes)
        patch.setattr(rank_sum, "EXACT", 0)
        near = _rank.__wrapped__(sizes)
    pairs = sum(m * n for m, n in sizes)
    if pairs > 60:  # far fewer than it is used for
        assert near in {exact, exact - 1}


def test_thousands_of_samples_have_a_rank_too() -> None:
    rank = _rank(((5000, 5000),))
    assert 0.49 < rank / 5000**2 < 0.5


@pytest.mark.parametrize("count", range(1, 13))
def test_where_nothing_differs_the_sign_test_claims_a_gain_in_one_case_of_twenty_at_most(count: int) -> None:
    cases = list(itertools.product((0.5, 2.0), repeat=count))
    claims = sum(lower(case) > 1 for case in cases)
    if count < 5:
        assert all(lower(case) == min(case) for case in cases)  # there is no better
    else:
        assert claims <= len(cases) / 20
        assert sum(sum(x < 1 for x in case) <= _sign_rank(count) + 1 for case in cases) > len(cases) / 20


@pytest.mark.parametrize("differing", [0.005, 0.03])
def test_samples_that_agree_within_their_strata_claim_no_more_than_the_strata_do(differing: float) -> None:
    """What disturbs a stratum disturbs all its samples: five strata, off to either side, which is equally likely."""

    def claimed(signs: Sequence[int]) -> bool:
        each = [([math.exp(sign * differing)] * 6, [1.0] * 6) for sign in signs]
        return pooled_ratio(each)[1] > 1

    cases = list(itertools.product((-1, 1), repeat=5))
    assert 0 < sum(map(claimed, cases)) <= len(cases) / 20
