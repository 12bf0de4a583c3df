"""Operands of every layout, dtype and size: read as they are, or refused in MLX's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from planted import plant
from reference import convolve, input_gradient, weight_gradient

import autoconv
from autoconv import environment
from autoconv.algorithms import candidates
from autoconv.dispatch import Dispatcher
from autoconv.problem import MAX_ELEMENTS, Problem

PROBLEM = Problem.parse((2, 5, 4, 6, 4), (4, 3, 3, 3, 4), padding=1)
CHUNKED = ["native(clips=1)", "native(clips=1,frames=1,rows=2)", "depth_winograd(clips=1,tile=2)"]
CHOSEN = [*(c.name for c in candidates(PROBLEM, "cpu")), *CHUNKED]


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    before = mx.default_device()
    if "gpu" not in request.keywords:
        mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def array(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


INPUTS: dict[str, Callable[[], mx.array]] = {
    "NCDHW": lambda: mx.moveaxis(array(2, 4, 5, 4, 6), 1, -1),
    "every second element": lambda: array(4, 10, 8, 12, 8)[::2, ::2, 1::2, ::2, 1::2],
    "reversed": lambda: array(2, 5, 4, 6, 4)[:, ::-1, ::-1, :, ::-1],
    "a frame for all": lambda: mx.broadcast_to(array(2, 1, 4, 6, 4), (2, 5, 4, 6, 4)),
    "a channel for all": lambda: mx.broadcast_to(array(2, 5, 4, 6, 1), (2, 5, 4, 6, 4)),
    "a number for all": lambda: mx.broadcast_to(mx.array(1.5), (2, 5, 4, 6, 4)),
    "inside a larger one": lambda: array(3, 7, 6, 8, 4)[1:, 1:6, 2:, 1:7],
    "overlapping windows": lambda: mx.as_strided(array(400), (2, 5, 4, 6, 4), (60, 20, 7, 3, 1)),
}
WEIGHTS: dict[str, Callable[[], mx.array]] = {
    "as it is": lambda: array(4, 3, 3, 3, 4, seed=1),
    "transposed": lambda: mx.swapaxes(array(4, 3, 3, 3, 4, seed=1), 0, 4),
    "reversed": lambda: array(4, 3, 3, 3, 4, seed=1)[::-1, ::-1, :, ::-1],
    "one for all outputs": lambda: mx.broadcast_to(array(1, 3, 3, 3, 4, seed=1), (4, 3, 3, 3, 4)),
}


def near(found: mx.array, exact: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), exact, rtol=1e-3, atol=1e-4 * abs(exact).max())


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("input", INPUTS.values(), ids=INPUTS)
def test_a_view_is_convolved_as_its_elements_are(
    input: Callable[[], mx.array], weight: Callable[[], mx.array], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, chosen)
    x, w, c = input(), weight(), mx.swapaxes(array(2, 5, 6, 4, 4, seed=2), 2, 3)
    (found,), slopes = mx.vjp(lambda x, w: autoconv.conv3d(x, w, padding=1), [x, w], [c])
    a, b, d = (np.array(operand, np.float64) for operand in (x, w, c))
    near(found, convolve(a, b, PROBLEM))
    near(slopes[0], input_gradient(a, b, d, PROBLEM))
    near(slopes[1], weight_gradient(a, b, d, PROBLEM))


# Dtypes

FLOATS = (mx.float16, mx.bfloat16, mx.float32, mx.float64)
OTHERS = (mx.int8, mx.int32, mx.uint8, mx.bool_, mx.complex64)
TOLERANCE = {mx.float16: 4e-3, mx.bfloat16: 3e-2, mx.float32: 1e-5, mx.float64: 1e-5}
"""Of float64, too: MLX's CPU convolutions compute it in float32."""


@pytest.mark.parametrize("second", FLOATS, ids=str)
@pytest.mark.parametrize("first", FLOATS, ids=str)
@pytest.mark.parametrize("chosen", ["native", "kd_decomposition(sum=float32)", "native(clips=1)"])
def test_floats_of_two_dtypes_promote_as_in_mlx_with_gradients_of_their_own(
    chosen: str, first: mx.Dtype, second: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, chosen)
    x, w = array(2, 5, 4, 6, 4).astype(first), array(4, 3, 3, 3, 4, seed=1).astype(second)

    def taken(of: Callable[..., mx.array]) -> list[mx.array]:
        outputs, slopes = mx.vjp(lambda x, w: of(x, w, padding=1), [x, w], [mx.ones(PROBLEM.output_shape)])
        return [*outputs, *slopes]

    for found, expected in zip(taken(autoconv.conv3d), taken(mx.conv3d), strict=True):
        assert found.dtype == expected.dtype
        a, b = (np.array(side.astype(mx.float64)) for side in (found, expected))
        bound = max(TOLERANCE[dtype] for dtype in (found.dtype, first, second))
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


@pytest.mark.parametrize("second", [*OTHERS, mx.float32], ids=str)
@pytest.mark.parametrize("first", OTHERS, ids=str)
def test_what_is_no_float_is_refused_in_mlx_s_words(first: mx.Dtype, second: mx.Dtype) -> None:
    x, w = mx.ones(PROBLEM.input_shape).astype(first), mx.ones(PROBLEM.weight_shape).astype(second)
    with pytest.raises(ValueError, match="conv") as theirs:
        mx.conv3d(x, w, padding=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="conv") as ours:
            autoconv.conv3d(x, w, padding=1)
        assert str(ours.value) == str(theirs.value)


# Sizes


@pytest.mark.parametrize(
    ("shape", "padding"),
    [((0, 5, 6, 6, 4), 0), ((0, 5, 6, 6, 4), 2), ((2, 0, 6, 6, 4), 2), ((2, 5, 0, 6, 4), 2), ((1, 0, 0, 0, 4), 2)],
    ids=str,
)
def test_of_nothing_there_is_what_mlx_makes_and_each_call_is_counted(
    shape: tuple[int, ...], padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plant(monkeypatch, "kd_decomposition(sum=float32)")
    x, w = mx.zeros(shape), array(4, 3, 3, 3, 4)
    before = autoconv.statistics()
    for _ in range(2):
        found = autoconv.conv3d(x, w, padding=padding)
        expected = mx.conv3d(x, w, padding=padding)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert not mx.any(found).item()
    after = autoconv.statistics()
    assert {s: n - before[s] for s, n in after.items() if n != before[s]} == {"native": 1, "memory": 1}
    assert not asked


@pytest.mark.parametrize("shape", [(2, 0, 6, 6, 4), (2, 5, 0, 6, 4), (2, 2, 2, 2, 4)], ids=str)
def test_too_little_for_one_output_is_refused_in_mlx_s_words(shape: tuple[int, ...]) -> None:
    x, w = mx.zeros(shape), array(4, 3, 3, 3, 4)
    with pytest.raises(ValueError, match="cannot be smaller") as theirs:
        mx.conv3d(x, w)
    with pytest.raises(ValueError, match="cannot be smaller") as ours:
        autoconv.conv3d(x, w)
    assert str(ours.value) == str(theirs.value)


HUGE = (1, 40, 1024, 1024, 64)  # 2.7e9 elements


@pytest.mark.parametrize("policy", ["auto", "measure", "predict", "record"])
def test_past_the_index_range_what_cannot_be_cut_is_native_untimed_and_nothing_is_made(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By shapes alone: the input is one number that stands for all, and nothing is evaluated."""
    monkeypatch.setattr(Dispatcher, "_measure", lambda *_, **__: pytest.fail("something is timed"))
    x, w = mx.broadcast_to(mx.array(1.0), HUGE), mx.zeros((8, 3, 3, 3, 64))
    assert x.size > MAX_ELEMENTS
    before, taken = autoconv.statistics(), mx.get_active_memory()
    found = autoconv.conv3d(x, w, padding=1, policy=policy, memory_limit=1000)
    assert found.shape == (*HUGE[:4], 8)
    assert autoconv.statistics()["native"] == before["native"] + 1
    assert autoconv.statistics()["measured"] == before["measured"]
    assert mx.get_active_memory() - taken < 1e6


def test_past_the_index_range_every_way_is_offered_in_chunks() -> None:
    told = autoconv.explain(HUGE, (8, 3, 3, 3, 64), padding=1, memory_limit=10**16)  # which is no reason to cut
    in_parts = [name for name in told.candidates if any(key in name for key in ("clips=", "frames=", "rows="))]
    assert {name.partition("(")[0] for name in in_parts} >= {"native", "kd_decomposition", "depth_concat"}
    assert told.decision.candidate == "native"


@pytest.mark.gpu
def test_past_the_index_range_frames_are_convolved_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    if environment.free_bytes(environment.of(mx.default_device())) < 30e9:
        pytest.skip("takes 20 GB")
    shape = (1, 36, 1024, 1024, 64)  # 2.4e9 elements
    plant(monkeypatch, "native(clips=1,frames=4)")
    x = mx.broadcast_to(mx.arange(64, dtype=mx.float16) / 64, shape)
    w = mx.ones((8, 3, 3, 3, 64), mx.float16) / 64
    found = autoconv.conv3d(x, w, padding=(1, 0, 0))
    # All inner frames are the same: 27 taps of the mean of 0 to 63 over 64; those at the ends see two frames of three.
    for frame, taps in ((0, 18), (17, 27), (35, 18)):
        seen = np.array(found[0, frame, ::511, ::511].astype(mx.float32))
        np.testing.assert_allclose(seen, taps * 31.5 / 64, rtol=4e-3)
