"""Ratios of times with a bound, by rank sums: whatever the noise is distributed like.

Times are compared within strata alone: the runs of the tuner, in each of which all were taken side by side.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Of every lower bound."""

EXACT = 150
"""Ratios past which the rank-sum statistic is taken for normal: the rank is the exact one by then, or one less."""

Stratum = tuple[Sequence[float], Sequence[float]]
"""Times of the one and times of the other, to be compared with each other alone."""


def ratio(base: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """(estimate, lower bound) of the times `base` over the times `other`.

    Both are of Hodges and Lehmann: the median of all ratios between the two sets of samples, and the order statistic
    of them that the rank-sum test gives for 95% confidence. With three samples each that is the smallest ratio.
    """
    ratios = _ratios(base, other)
    return statistics.median(ratios), ratios[_rank(((len(base), len(other)),))]


def pooled_ratio(strata: Sequence[Stratum], single: Sequence[float] = ()) -> tuple[float, float]:
    """(estimate, lower bound) of the times of the ones over those of the others, by the ratios within every stratum.

    The test behind it adds up the strata's rank sums (van Elteren, Bull. Inst. Internat. Statist. 37, 1960, here with
    equal weights), so that the estimate is the median of all their ratios together (Lehmann, Ann. Math. Statist. 34,
    1963) and the bound an order statistic of them; of a single stratum both are those of `ratio`.

    That takes samples to be independent, and what disturbs a stratum disturbs all of its samples. So the bound is no
    higher than `lower` of the strata's own estimates, for which each is one observation. (Five strata of three samples
    each, whose ratios differ by 3% and samples by 0.5%: the rank sums alone claim a gain where there is none in 17% of
    cases, both together in 2%. Where strata do not differ, both find 95% of gains of 5%, one finds all.)

    Args:
        strata: One or more.
        single: Estimates of further strata, which count in the bound alone.
    """
    each = [_ratios(base, other) for base, other in strata]
    together = sorted(itertools.chain.from_iterable(each))
    least = together[_rank(tuple(sorted((len(base), len(other)) for base, other in strata)))]
    return statistics.median(together), min(least, lower([*map(statistics.median, each), *single]))


def lower(estimates: Sequence[float]) -> float:
    """The 95% lower bound of what independent estimates are of: the order statistic that the sign test gives.

    Fewer than five bound nothing with that confidence; then it is the smallest, as it is up to seven.
    """
    return sorted(estimates)[_sign_rank(len(estimates))]


def _ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    return sorted(b / o for b in base for o in other)


@functools.lru_cache(1024)
def _rank(sizes: tuple[tuple[int, int], ...]) -> int:
    """The largest `u` with `P(U <= u) <= 5%`, or 0, `U` being the sum of the rank-sum statistics of such strata.

    The distribution of the sum is the convolution of theirs.
    """
    pairs = sum(m * n for m, n in sizes)
    if pairs > EXACT:
        variance = sum(m * n * (m + n + 1) for m, n in sizes) / 12
        normal = statistics.NormalDist(pairs / 2, math.sqrt(variance))
        return max(0, math.floor(normal.inv_cdf(1 - CONFIDENCE) - 1))  # half for continuity, half to be safe
    counts, total = [1], 1
    for m, n in sizes:
        counts = _convolved(counts, _arrangements(m, n))
        total *= math.comb(m + n, m)
    allowed = (1 - CONFIDENCE) * total
    return max(0, sum(seen <= allowed for seen in itertools.accumulate(counts)) - 1)


def _arrangements(m: int, n: int) -> list[int]:
    """How many arrangements of `m` and `n` values have each rank-sum statistic, from 0 to `m n`.

    They are the coefficients of Gauss's binomial, the product over `i` from 1 to `m` of
    `(1 - q^(n + i)) / (1 - q^i)` (Andrews, The Theory of Partitions, 1976, theorem 3.1).
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    return counts


def _convolved(first: Sequence[int], second: Sequence[int]) -> list[int]:
    found = [0] * (len(first) + len(second) - 1)
    for place, times in enumerate(second):
        for u, count in enumerate(first, place):
            found[u] += times * count
    return found


@functools.cache
def _sign_rank(count: int) -> int:
    """The largest `k` with `P(K <= k) <= 5%`, or 0, `K` being how many of so many fair coins show heads."""
    allowed = math.ldexp(1 - CONFIDENCE, count)
    seen = itertools.accumulate(math.comb(count, k) for k in range(count))
    return max(0, sum(s <= allowed for s in seen) - 1)
