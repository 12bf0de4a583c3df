"""What a candidate says that it asks of MLX is what it asks."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import decomposed_problems, problems

from autoconv.algorithms import (
    Candidate,
    _chunked,
    _cuda,
    _depth,
    _weight_gradient,
    candidates,
    depth_conv2d,
    im2col,
    implicit_gemm,
    native,
)
from autoconv.algorithms._calls import Call, Convolution2D, Product
from autoconv.problem import Kind, Problem

ASKING = (_chunked, _depth, _weight_gradient, depth_conv2d, im2col, implicit_gemm, native)
"""The modules that ask MLX for convolutions."""

FORWARD = st.one_of(problems(), decomposed_problems())
GRADIENTS = problems(kinds=(Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT))


@contextmanager
def on_metal() -> Iterator[Counter[Call]]:
    """The convolutions asked of MLX inside the block, as if on Metal; none is computed."""
    asked: Counter[Call] = Counter()

    def convolution(
        input: mx.array,
        weight: mx.array,
        stride: Sequence[int] = (1, 1, 1),
        padding: tuple[Sequence[int], Sequence[int]] = ((0, 0, 0), (0, 0, 0)),
        dilation: Sequence[int] = (1, 1, 1),
        input_dilation: Sequence[int] = (1, 1, 1),
        groups: int = 1,
        flip: bool = False,
    ) -> mx.array:
        flat = input.ndim == 4
        shapes = [(s[0], 1, *s[1:]) if flat else s for s in (input.shape, weight.shape)]
        steps = [(1, *v) if flat else tuple(v) for v in (stride, dilation, input_dilation)]
        low, high = ((0, *v) if flat else tuple(v) for v in padding)
        problem = Problem.parse(
            shapes[0], shapes[1], stride=steps[0], padding=(low, high), dilation=steps[1], input_dilation=steps[2],
            groups=groups, flip=flip,
        )  # fmt: skip
        asked[as_2d(problem) if flat else problem] += 1
        shape = problem.output_shape
        return mx.zeros((shape[0], *shape[2:]) if flat else shape, input.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx.metal, "is_available", lambda: True)
        patch.setattr(_cuda, "is_current", lambda: False)
        for module in ASKING:
            patch.setattr(module, "conv_general", convolution)
        yield asked


def as_2d(problem: Problem) -> Convolution2D:
    images, _, height, width, channels = problem.input_shape
    outputs, _, kernel_h, kernel_w, _ = problem.weight_shape
    _, _, out_h, out_w, _ = problem.output_shape
    return Convolution2D(
        images=images,
        size=(height, width),
        channels=channels,
        outputs=outputs,
        kernel=(kernel_h, kernel_w),
        result=(out_h, out_w),
        stride=problem.stride[1:],
        dilation=problem.dilation[1:],
        input_dilation=problem.input_dilation[1:],
        groups=problem.groups,
        flip=problem.flip,
    )


def check(candidate: Candidate, problem: Problem) -> None:
    """Compare what it asks with what it says, and how many products that makes with those in its graph."""
    first, second = (mx.zeros(shape) for shape in problem.operand_shapes)
    with on_metal() as asked:
        found = candidate.build(problem)(first, second)
    said: Counter[Call] = Counter()
    for call, count in candidate.calls(problem, "metal"):
        said[call] += count
    convolutions = Counter({call: count for call, count in said.items() if not isinstance(call, Product)})
    assert convolutions == asked, candidate.name
    if not candidate.chunks:  # else each is computed by itself
        assert products_in(found) == said.total() - convolutions.total(), candidate.name


def products_in(array: mx.array) -> int:
    """Matrix products in an array's graph."""
    text = io.StringIO()
    mx.export_to_dot(text, array)
    return text.getvalue().count('"Matmul"')


def is_vjp(candidate: Candidate, problem: Problem) -> bool:
    """Whether the call is made by MLX's own vjp, which cannot be listened to."""
    return candidate.algorithm.name == "native" and problem.kind is Kind.WEIGHT_GRADIENT


def multiply_adds(call: Call) -> int:
    """Of the sums that define it."""
    if isinstance(call, Product):
        return call.batch * call.rows * call.columns * call.depth
    if isinstance(call, Problem):
        return math.prod(call.output_shape) * math.prod(call.weight_shape[1:])
    positions = call.images * math.prod(call.result)
    return positions * call.outputs * math.prod(call.kernel) * call.channels // call.groups


@settings(max_examples=200)
@given(st.one_of(FORWARD, GRADIENTS), st.sampled_from((math.inf, 1000.0)))
def test_a_candidate_asks_for_the_convolutions_that_it_says(problem: Problem, memory_bytes: float) -> None:
    for candidate in candidates(problem, "metal", memory_bytes=memory_bytes):
        if not is_vjp(candidate, problem):
            check(candidate, problem)


@settings(max_examples=200)
@given(FORWARD, st.sampled_from(("cpu", "cuda", "metal")), st.sampled_from((math.inf, 1000.0)))
def test_its_calls_are_the_work_that_it_costs(problem: Problem, backend: str, memory_bytes: float) -> None:
    for candidate in candidates(problem, backend, memory_bytes=memory_bytes):
        work = sum(2 * multiply_adds(call) * count for call, count in candidate.calls(problem, backend))
        assert work == pytest.approx(candidate.cost(problem, backend).flops, rel=1e-6), candidate.name


PADDED_BEHIND = Problem.parse((1, 4, 8, 8, 16), (16, 3, 3, 3, 16), padding=((0, 1, 1), (2, 1, 1)))


def test_on_metal_native_asks_for_the_problem_that_is_not_read_past_its_end() -> None:
    wanted = Problem.parse((1, 6, 8, 8, 16), (16, 3, 3, 3, 16), padding=(0, 1, 1))
    (native, *_) = candidates(PADDED_BEHIND, "metal")
    assert native.calls(PADDED_BEHIND, "metal") == ((wanted, 1),)
    assert native.calls(PADDED_BEHIND, "cuda") == ((PADDED_BEHIND, 1),)


def test_natives_weight_gradient_unfolds_or_convolves_batch_and_channels_exchanged() -> None:
    # As MLX's vjp does: it unfolds where the kernel is neither dilated, flipped nor grouped.
    problem = Problem.parse((2, 4, 8, 8, 16), (32, 3, 3, 3, 16), padding=1, kind=Kind.WEIGHT_GRADIENT)
    (native, *_) = candidates(problem, "metal")
    assert native.calls(problem, "metal") == ((Product(32, 27 * 16, 2 * 4 * 8 * 8, unfolded=True), 1),)
    flipped = replace(problem, flip=True)
    wanted = Problem.parse((16, 4, 8, 8, 2), (32, 4, 8, 8, 2), padding=1)
    assert native.calls(flipped, "metal") == ((wanted, 1),)
    assert math.prod(wanted.output_shape[1:4]) == 27


def test_an_algorithm_that_does_not_say_what_it_asks_asks_nothing() -> None:
    problem = Problem.parse((1, 4, 8, 8, 16), (16, 3, 3, 3, 16))
    (native, *_) = candidates(problem, "metal")
    silent = replace(native, algorithm=replace(native.algorithm, calls=None))
    assert silent.calls(problem, "metal") == ()
