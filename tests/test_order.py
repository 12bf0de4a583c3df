"""A sweep's order: what is much at stake and little known first, and no more than that is moved."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems

from autoconv.problem import Kind, Problem
from autoconv.sweep import Estimate, Layer, Measured, Neighbours, ordered, random_layers
from autoconv.sweep import order as module
from autoconv.sweep.order import UNKNOWN, features


def problem(
    channels: int = 64, outputs: int = 64, frames: int = 6, side: int = 32, dtype: str = "float32", **rest: object
) -> Problem:
    return Problem.parse(
        (1, frames, side, side, channels),
        (outputs, 3, 3, 3, channels),
        dtype,
        **rest,  # type: ignore[arg-type]
    )


def layer(of: Problem, name: str = "", count: int = 1) -> Layer:
    return Layer("net", "", name, count, of, "")


DTYPES = ("float16", "bfloat16")
ROUNDED = {"float16": 1.0, "bfloat16": 1 + 1e-12}


class Says:
    """An estimator that says what it was told to."""

    def __init__(self, tell: Callable[[Problem], Estimate]) -> None:
        self._tell = tell

    def estimate(self, problems: Sequence[Problem]) -> list[Estimate]:
        return [self._tell(p) for p in problems]


# A device whose native convolution is poor at few channels, groups and one frame, and another at depth.


def native_us(p: Problem) -> float:
    slow = 3.0 if p.input_shape[4] < 16 else 1.0
    return 20 + max(p.flops / 4e6, p.bytes / 4e5) * slow * (1.5 if p.dtype == "float32" else 1.0)


def speedup(p: Problem) -> float:
    """The other candidate's, which may be slower than native."""
    found = 0.8
    if p.input_shape[4] < 16:
        found *= 3
    if p.weight_shape[1] >= 3 and p.padding_low[0] == 0:
        found *= 1.3 * (p.input_shape[4] / 256) ** 0.3
    if p.groups > 1:
        found *= 4
    if p.output_shape[1] == 1:
        found *= 1.5
    return found * (1.2 if p.dtype == "bfloat16" else 1.0)


def measured(layers: Sequence[Layer]) -> list[Measured]:
    return [Measured(la.problem, native_us(la.problem), max(speedup(la.problem) - 1, 0.0)) for la in layers]


def loss(timed: Sequence[Layer], rest: Sequence[Layer]) -> np.ndarray:
    """What choosing by the neighbours among `timed` costs over `rest`: microseconds lost, their share, log error."""
    lost = least = error = 0.0
    estimates = Neighbours(measured(timed)).estimate([la.problem for la in rest])
    for la, found in zip(rest, estimates, strict=True):
        native, gain = native_us(la.problem), speedup(la.problem)
        best = min(native, native / gain)
        lost += (native / gain if found.gain > 0.05 else native) - best
        least += best
        error += abs(math.log1p(found.gain) - math.log(max(gain, 1.0)))
    return np.array([lost, lost / least, error / len(rest)])


def test_a_third_timed_in_this_order_leaves_less_to_lose_than_in_others() -> None:
    losses: dict[str, list[np.ndarray]] = {}
    for seed in range(5):
        layers = random_layers(480, seed, max_gflop=200)
        known, rest = layers[::12], [la for i, la in enumerate(layers) if i % 12]
        estimator = Neighbours(measured(known))
        mine = ordered(rest, estimator)
        times = {la: e.native_us for la, e in zip(rest, estimator.estimate([x.problem for x in rest]), strict=True)}
        for name, order in {
            "mine": mine,
            "given": rest,
            "reverse": mine[::-1],
            "longest": sorted(rest, key=lambda la: -times[la]),
        }.items():
            third = len(order) // 3
            losses.setdefault(name, []).append(loss([*known, *order[:third]], order[third:]))
        assert losses["mine"][-1][0] < losses["given"][-1][0] < losses["reverse"][-1][0]
    lost, share, error = np.mean(losses["mine"], axis=0)
    for other in ("given", "reverse", "longest"):
        _, others_share, others_error = np.mean(losses[other], axis=0)
        assert share < others_share, other
        assert error < others_error, other
    # The longest alone leave the least time, and so the least to lose of it; what is lost by the rest is learned worse.
    assert lost < 0.5 * np.mean(losses["given"], axis=0)[0]


def test_without_measurements_the_given_order_stays() -> None:
    layers = random_layers(60, 2)
    counted = [dataclasses.replace(la, count=1 + i % 7) for i, la in enumerate(layers)]
    few = Neighbours(measured(layers[:15]))
    assert few.estimate([la.problem for la in layers]) == [UNKNOWN] * 60
    assert ordered(counted, few) == counted
    assert ordered(counted, Neighbours([])) == counted
    enough = Neighbours(measured(layers[:16]))
    assert ordered(counted, enough) != counted


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (Estimate(900.0, 0.5, 0.5), Estimate(300.0, 0.5, 0.5)),
        (Estimate(300.0, 0.5, 0.5), Estimate(300.0, 0.1, 0.5)),
        (Estimate(300.0, 0.5, 0.9), Estimate(300.0, 0.5, 0.2)),
        (Estimate(300.0, 0.0, 0.9), Estimate(300.0, 9.0, 0.0)),
    ],
)
def test_more_time_more_gain_and_more_doubt_come_first(more: Estimate, less: Estimate) -> None:
    layers = [layer(problem(64)), layer(problem(512, 8, 3, 90, "float16"))]
    for first, second in ((more, less), (less, more)):
        says = Says(lambda p, first=first, second=second: first if p == layers[0].problem else second)  # type: ignore
        assert ordered(layers, says) == (layers if first is more else layers[::-1])


def test_a_layer_that_is_called_more_often_comes_first() -> None:
    layers = [layer(problem(64), count=1), layer(problem(512, 8, 3, 90, "float16"), count=5)]
    says = Says(lambda p: Estimate(100.0, 0.5, 0.5 if p.dtype == "float16" else 0.6))
    assert ordered(layers, says) == layers[::-1]
    assert ordered([layers[0], dataclasses.replace(layers[1], count=1)], says)[0] == layers[0]


def test_many_sizes_of_one_layer_wait_for_others() -> None:
    alike = [layer(problem(96, 96, side=400 + 2 * i)) for i in range(60)]
    others = [layer(la.problem) for la in random_layers(20, 1, dtypes=["float16"])]
    says = Says(lambda p: Estimate(1000.0 if p.dtype == "float32" else 400.0, 0.5, 1.0))
    order = ordered([*alike, *others], says)
    assert order[0] in alike
    early = order[:25]
    assert sum(la in others for la in early) >= 15
    assert sorted(map(str, order)) == sorted(map(str, [*alike, *others]))


def test_equal_layers_keep_their_order() -> None:
    """Twins, each pair of which is worth the same and is as near to all the others."""
    base = random_layers(40, 5, dtypes=["float32"])
    twins = [dataclasses.replace(la, layer=f"{la.layer} {name}") for la in base for name in "ab"]
    random.Random(3).shuffle(twins)
    says = Says(lambda p: Estimate(1.0 + p.flops / 1e9, 0.3, 0.8))
    places = {la.layer: place for place, la in enumerate(ordered(twins, says))}
    given = {la.layer: place for place, la in enumerate(twins)}
    for la in base:
        a, b = f"{la.layer} a", f"{la.layer} b"
        assert (places[a] < places[b]) == (given[a] < given[b])


def test_a_difference_of_rounding_moves_nothing() -> None:
    layers = random_layers(20, 5, dtypes=["float32"])
    twins = [dataclasses.replace(la, problem=dataclasses.replace(la.problem, dtype=d)) for la in layers for d in DTYPES]
    exact = Says(lambda p: Estimate(native_us(dataclasses.replace(p, dtype="float32")), 0.3, 0.8))
    rounded = Says(lambda p: dataclasses.replace(e := exact.estimate([p])[0], native_us=e.native_us * ROUNDED[p.dtype]))
    assert ordered(twins, rounded) == ordered(twins, exact)


def test_what_is_worth_nothing_comes_last_as_it_stood() -> None:
    layers = random_layers(30, 6)
    certain = {la.problem for la in layers[::2]}
    says = Says(lambda p: Estimate(100.0, 0.2, 0.0 if p in certain else 0.5))
    order = ordered(layers, says)
    assert order[15:] == layers[::2]
    assert set(order[:15]) == set(layers[1::2])


@given(st.lists(problems(dtypes=("float32", "float16"), kinds=tuple(Kind)), max_size=12), st.randoms())
def test_every_order_is_a_permutation_and_the_same_again(drawn: list[Problem], chance: random.Random) -> None:
    layers = [layer(p, str(i), chance.randint(1, 9)) for i, p in enumerate(drawn)]
    table = {p: Estimate(chance.random() * 1e6, chance.random() * 3, chance.random()) for p in drawn}
    order = ordered(layers, Says(table.__getitem__))
    assert sorted(order, key=lambda la: int(la.layer)) == layers
    assert order == ordered(layers, Says(table.__getitem__))


def test_beyond_the_picks_the_rest_is_sorted_by_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = random_layers(60, 4)
    says = Says(lambda p: Estimate(native_us(p), 0.5, 0.5))
    whole = ordered(layers, says)
    monkeypatch.setattr(module, "PICKS", 20)
    short = ordered(layers, says)
    assert short[:21] == whole[:21]
    assert set(short) == set(whole)
    monkeypatch.setattr(module, "PICKS", 0)
    by_time = sorted(layers, key=lambda la: -native_us(la.problem))
    assert [native_us(la.problem) for la in ordered(layers, says)] == pytest.approx(
        [native_us(la.problem) for la in by_time], rel=2e-3
    )


def test_degenerate_inputs() -> None:
    one = [layer(problem())]
    says = Says(lambda _: Estimate(5.0, 1.0, 1.0))
    assert ordered([], says) == []
    assert ordered(one, says) == one
    assert ordered(one * 3, says) == one * 3
    assert Neighbours([]).estimate([]) == []
    assert Neighbours(measured(random_layers(20))).estimate([]) == []
    same = Neighbours([Measured(problem(), 7.0, 0.5)] * 20)
    assert same.estimate([problem()]) == [UNKNOWN]  # twenty times one problem is one
    single = Neighbours([Measured(problem(), 9.0, 0.1), Measured(problem(), 7.0, 0.5)], least=1)
    assert single.estimate([problem()])[0].native_us == pytest.approx(7.0)  # the later one counts
    empty = dataclasses.replace(problem(), input_shape=(0, 6, 32, 32, 64))
    assert np.isfinite(features([empty])).all()
    assert ordered([layer(empty), *one], Neighbours(measured(random_layers(20))))


@pytest.mark.parametrize(
    "values",
    [(-1.0, 0, 0), (math.nan, 0, 0), (math.inf, 0, 0), (1, -0.1, 0), (1, math.inf, 0), (1, 0, 1.1), (1, 0, -1)],
)
def test_what_no_estimate_can_be_is_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="an estimate has"):
        Estimate(*values)


@pytest.mark.parametrize("values", [(0.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1.0, -0.1), (1.0, math.nan)])
def test_what_no_measurement_can_be_is_refused(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="a measurement has"):
        Measured(problem(), *values)


def spread_out(gain: Callable[[int], float], dtype: str = "float32") -> Neighbours:
    """Measured layers of 32 to 512 channels, and of 4 to 64 frames."""
    return Neighbours(
        Measured(p, p.flops / 1e6, gain(p.input_shape[4]))
        for p in (problem(32 * c, 32 * c, f, dtype=dtype) for c in (1, 2, 4, 8, 16) for f in (6, 10, 18, 34))
    )


def test_a_measured_problem_is_estimated_as_it_was_measured() -> None:
    (found,) = spread_out(lambda c: c / 512).estimate([problem(128, 128, 10)])
    assert found.native_us == pytest.approx(problem(128, 128, 10).flops / 1e6, rel=0.02)
    assert found.gain == pytest.approx(0.25, abs=0.01)
    assert found.doubt < 0.2


def test_times_are_brought_to_the_problems_size() -> None:
    between = problem(192, 192, 14)
    (found,) = spread_out(lambda _: 0.5).estimate([between])
    assert found.native_us == pytest.approx(between.flops / 1e6, rel=0.15)
    assert found.gain == pytest.approx(0.5)


def test_doubt_grows_with_distance_and_with_disagreement() -> None:
    near, farther, off = problem(128, 128, 10), problem(144, 128, 12, 40), problem(2, 2, 300, 10)
    agree = spread_out(lambda _: 0.5).estimate([near, farther, off])
    assert 0 <= agree[0].doubt < agree[1].doubt < agree[2].doubt <= 1
    quarrel = spread_out(lambda c: 3.0 if c > 100 else 0.0).estimate([problem(100, 100, 10)])
    assert quarrel[0].doubt > spread_out(lambda _: 0.5).estimate([problem(100, 100, 10)])[0].doubt + 0.2


def test_other_dtypes_and_kinds_tell_nothing() -> None:
    neighbours = spread_out(lambda _: 0.5)
    for other in (problem(128, 128, 10, dtype="float16"), problem(128, 128, 10, kind=Kind.WEIGHT_GRADIENT)):
        assert neighbours.estimate([other])[0].doubt > 0.99
    nearest = Neighbours(
        [
            *(Measured(problem(c, c), 10.0, 0.0) for c in range(64, 84)),
            *(Measured(problem(c, c, dtype="float16"), 10.0, 1.0) for c in range(512, 532)),
        ]
    )
    assert nearest.estimate([problem(100, 100)])[0].gain == pytest.approx(0.0)
    assert nearest.estimate([problem(400, 400, dtype="float16")])[0].gain == pytest.approx(1.0)


@given(st.lists(problems(dtypes=("float32", "bfloat16"), kinds=tuple(Kind)), min_size=1, max_size=6))
def test_estimates_of_any_problem_are_estimates(drawn: list[Problem]) -> None:
    found = Neighbours(measured(random_layers(40, 1))).estimate(drawn)
    assert len(found) == len(drawn)  # and none was refused
    assert np.isfinite(features(drawn)).all()


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours, asked = Neighbours(measured(random_layers(80, 1))), [la.problem for la in random_layers(70, 2)]
    whole = neighbours.estimate(asked)
    monkeypatch.setattr(module, "_BLOCK", 9)
    for part, found in zip(neighbours.estimate(asked), whole, strict=True):
        assert dataclasses.astuple(part) == pytest.approx(dataclasses.astuple(found), rel=1e-9, abs=1e-12)
