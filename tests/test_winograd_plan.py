"""How depth Winograd cuts the output, and what stands beside its CUDA kernels.

The kernels themselves run on a GPU alone (`test_gpu`); here NumPy takes their place, from what their docstrings say, so
that the plan around them and the plain operations that MLX derives instead are checked everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Array, convolve, input_gradient, weight_gradient
from strategies import problems

from autoconv.algorithms import _cuda, depth_winograd
from autoconv.problem import Problem

Rows = tuple[tuple[float, ...], ...]


def host(array: mx.array) -> Array:
    return np.asarray(array.astype(mx.float32)).astype(np.float64)


def device(values: Array, like: mx.array) -> mx.array:
    return mx.array(values.astype(np.float32)).astype(like.dtype)


def taps(rows: Rows, weight: mx.array) -> tuple[mx.array, ...]:
    return tuple(device(np.einsum("k,ok...->o...", np.array(row), host(weight)), weight) for row in rows)


def frames(rows: Rows, input: mx.array, tiles: int, step: int, first: int) -> tuple[mx.array, ...]:
    values = host(input)
    around = [(0, 0), (max(0, -first), tiles * step + len(rows[0])), (0, 0), (0, 0), (0, 0)]
    padded = np.pad(values, around)[:, max(0, first) :]
    found = []
    for row in rows:
        seen = sum(f * padded[:, i : i + (tiles - 1) * step + 1 : step] for i, f in enumerate(row))
        found.append(device(np.asarray(seen).reshape(-1, *values.shape[2:]), input))
    return tuple(found)


def to_frames(rows: Rows, arrays: Sequence[mx.array], batch: int, count: int) -> mx.array:
    values = np.stack([host(a) for a in arrays])
    tiles = np.einsum("jp,pthwc->tjhwc", np.array(rows), values)
    return device(tiles.reshape(batch, -1, *values.shape[2:])[:, :count], arrays[0])


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "is_current", lambda: True)
    monkeypatch.setattr(_cuda, "combine_taps", taps)
    monkeypatch.setattr(_cuda, "combine_frames", frames)
    monkeypatch.setattr(_cuda, "combine_to_frames", to_frames)


@st.composite
def eligible(draw: st.DrawFn) -> tuple[Problem, int]:
    problem = draw(problems(dilations=False).filter(lambda p: p.stride[0] == 1 and p.weight_shape[1] > 1))
    return problem, draw(st.sampled_from(depth_winograd.TILES))


def arrays(problem: Problem) -> tuple[mx.array, mx.array, mx.array]:
    random = np.random.default_rng(0)
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    input, weight, cotangent = (mx.array(random.standard_normal(s).astype(np.float32)) for s in shapes)
    return input, weight, cotangent


def near(found: mx.array, exact: Array) -> bool:
    return float(np.linalg.norm(host(found) - exact)) <= 1e-5 * float(np.linalg.norm(exact)) + 1e-5


@settings(max_examples=100)
@given(eligible())
def test_the_pieces_are_the_output_in_order(case: tuple[Problem, int]) -> None:
    problem, tile = case
    cut = depth_winograd.pieces(problem, tile)
    covered = [frame for piece in cut for frame in range(piece.segment.start, piece.segment.stop)]
    assert covered == list(range(problem.output_shape[1]))
    for piece in cut:
        assert piece.outputs % piece.tile == 0
        assert piece.tile == 1 or len(piece.segment.taps) == problem.weight_shape[1]


@pytest.mark.usefixtures("as_on_cuda")
def test_the_plan_of_kernels_computes_the_convolution_and_its_gradients() -> None:
    for problem, tile in (
        (Problem.parse((2, 9, 3, 3, 2), (4, 3, 2, 3, 2), padding=1), 4),
        (Problem.parse((1, 7, 3, 3, 2), (4, 3, 3, 3, 2)), 3),
        (Problem.parse((2, 6, 3, 4, 2), (3, 5, 3, 3, 2), padding=((2, 1, 1), (1, 0, 1)), flip=True), 2),
        (Problem.parse((1, 4, 3, 3, 2), (4, 2, 3, 3, 2), padding=((0, 0, 0), (3, 0, 0))), 4),
        (Problem.parse((1, 5, 3, 3, 4), (4, 3, 3, 3, 2), padding=(3, 0, 0), groups=2), 2),
    ):
        input, weight, cotangent = arrays(problem)
        run = depth_winograd.ALGORITHM.build(problem, tile=tile)
        x, w, c = host(input), host(weight), host(cotangent)
        assert near(run(input, weight), convolve(x, w, problem)), problem
        _, (of_input, of_weight) = mx.vjp(run, [input, weight], [cotangent])
        assert near(of_input, input_gradient(x, w, c, problem)), problem
        assert near(of_weight, weight_gradient(x, w, c, problem)), problem


def test_what_a_weight_gives_can_be_kept() -> None:
    problem = Problem.parse((1, 7, 3, 3, 2), (4, 3, 3, 3, 2), padding=1)
    run = depth_winograd.ALGORITHM.build(problem, tile=2)
    input, weight, _ = arrays(problem)
    kept = run.derive(weight)  # type: ignore[attr-defined]
    for scale in (1, 2):
        exact = convolve(host(input * scale), host(weight), problem)
        assert near(run.apply(input * scale, kept), exact)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "stack",
    [
        _cuda.Stack(3, 1, 0, 4, 1, 6),
        _cuda.Stack(3, 1, -1, 6, 1, 8),
        _cuda.Stack(2, 2, -2, 3, 2, 5),
        _cuda.Stack(4, 1, 3, 2, 1, 8),
    ],
    ids=str,
)
def test_the_plain_stack_is_what_its_numbers_say(stack: _cuda.Stack) -> None:
    input = arrays(Problem.parse((2, 6, 2, 3, 2), (1, 1, 1, 1, 2)))[0]
    values, found = host(input), host(_cuda._stack_plainly(input, stack))
    assert found.shape == (2 * stack.outputs, 2, 3, stack.channels)
    for clip in range(2):
        for output in range(stack.outputs):
            expected = np.zeros((2, 3, stack.channels))
            for tap in range(stack.taps):
                frame = stack.first + output * stack.step + tap * stack.apart
                if 0 <= frame < 6:
                    expected[..., 2 * tap : 2 * tap + 2] = values[clip, frame]
            np.testing.assert_array_equal(found[clip * stack.outputs + output], expected)
