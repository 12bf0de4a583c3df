"""MLX's own 3D convolution, untouched, and its own gradients.

The input gradient is the very call of `conv_general` that MLX's vjp makes (see `_adjoint`). The weight gradient is
MLX's vjp itself: it unfolds the input where the kernel is neither dilated, flipped nor grouped.
"""

from __future__ import annotations

import math
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost
from autoconv.algorithms._calls import Calls, Product
from autoconv.algorithms._mlx import conv_general, metal_reads_past_end, unfolded_bytes, unfolds_on_cpu
from autoconv.algorithms._weight_gradient import cut, seen, transposed_problem
from autoconv.problem import Kind, Problem, dilated


def is_untouched(problem: Problem) -> bool:
    """Whether native is the very call that MLX would get without this library."""
    return not (mx.metal.is_available() and metal_reads_past_end(problem))


def _build(problem: Problem) -> Convolution:
    if problem.kind is Kind.WEIGHT_GRADIENT:
        return _build_weight_gradient(problem)
    stride, dilation, input_dilation = problem.stride, problem.dilation, problem.input_dilation
    padding = (problem.padding_low, problem.padding_high)
    groups, flip = problem.groups, problem.flip

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        return conv_general(input, weight, stride, padding, dilation, input_dilation, groups, flip)

    if is_untouched(problem):
        return run

    # The one call that is not passed on as it is: MLX's rule would read past the input's end.
    low, high = problem.padding_low, problem.padding_high
    widths = [(0, 0), (low[0], high[0]), (0, 0), (0, 0), (0, 0)]
    rest = ((0, *low[1:]), (0, *high[1:]))

    def run_padded(input: mx.array, weight: mx.array, /) -> mx.array:
        return conv_general(mx.pad(input, widths), weight, stride, rest, dilation, input_dilation, groups, flip)

    return run_padded


def _build_weight_gradient(problem: Problem) -> Convolution:
    part, shape = seen(problem), problem.weight_shape
    if part is None:
        return lambda _input, cotangent: mx.zeros(shape, cotangent.dtype)
    stride, dilation, spread = problem.stride, problem.dilation, problem.input_dilation
    groups, flip, high, sizes = problem.groups, problem.flip, problem.padding_high, problem.input_shape[1:4]
    if not weight_gradient_is_right(problem):
        sizes, high = part.sizes, part.high
    padding = (problem.padding_low, high)

    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        def forward(weight: mx.array) -> mx.array:
            return conv_general(cut(input, sizes), weight, stride, padding, dilation, spread, groups, flip)

        # Only the weight's shape is used, and the convolution is never evaluated.
        _, (gradient,) = mx.vjp(forward, [mx.zeros(shape, cotangent.dtype)], [cotangent])
        return gradient

    return run


def weight_gradient_is_right(problem: Problem) -> bool:
    """Whether MLX's own weight gradient is right.

    It is not where the outputs end before the input does, and it would cut off the rest: under an input dilation, since
    it cuts in elements of the undilated input, and where that is longer than the input.
    """
    part = seen(problem)
    for axis, extent in enumerate(part.extents if part else ()):
        size, spread = problem.input_shape[1 + axis], problem.input_dilation[axis]
        rest = problem.padding_low[axis] + dilated(size, spread) - extent
        if rest > 0 and (spread > 1 or rest > size):
            return False
    return True


def workspace_3d(problem: Problem, backend: str) -> int:
    """Bytes of MLX's 3D convolution beyond its operands: on the CPU what it unfolds, on GPUs taken as none."""
    if backend != "cpu":
        return 0
    return unfolded_bytes(problem, 0, problem.input_shape[0], problem.input_shape[4], problem.weight_shape[0])


def _cost(problem: Problem, backend: str) -> Cost:
    if problem.kind is Kind.WEIGHT_GRADIENT:
        # MLX unfolds on every backend, but under a dilation, a flip or groups, where it convolves.
        plain = not problem.flip and unfolds_on_cpu(problem.dilation, problem.input_dilation, problem.groups)
        taps = math.prod(problem.weight_shape[1:4])
        unfolded = math.prod(problem.output_shape[:4]) * taps * problem.input_shape[4] * problem.item_bytes * plain
        return Cost(problem.flops, problem.bytes + 2 * unfolded, unfolded)
    return Cost(problem.flops, problem.bytes, workspace_3d(problem, backend))


def calls_3d(problem: Problem, backend: str) -> Calls:
    """What native asks for a convolution: the very problem, or on Metal the one that is not read past its end."""
    if backend != "metal" or not metal_reads_past_end(problem):
        return ((problem, 1),)
    (batch, frames, *frame), high = problem.input_shape, problem.padding_high
    padded = (batch, frames + high[0], frame[0], frame[1], frame[2])
    return ((replace(problem, input_shape=padded, padding_high=(0, *high[1:])), 1),)


def _calls(problem: Problem, backend: str) -> Calls:
    if problem.kind is not Kind.WEIGHT_GRADIENT:
        return calls_3d(problem, backend)
    if seen(problem) is None:
        return ()
    if problem.flip or not unfolds_on_cpu(problem.dilation, problem.input_dilation, problem.groups):
        return ((transposed_problem(problem), 1),)
    unfolded = math.prod(problem.weight_shape[1:])
    return ((Product(problem.weight_shape[0], unfolded, math.prod(problem.output_shape[:4]), unfolded=True), 1),)


ALGORITHM = Algorithm(
    name="native",
    version=1,
    order=0,
    build=_build,
    cost=_cost,
    kinds=frozenset({Kind.FORWARD, Kind.WEIGHT_GRADIENT}),
    one_call=True,
    calls=_calls,
)
