"""MLX's own 3D convolution, untouched."""

from __future__ import annotations

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost
from autoconv.algorithms._mlx import conv_general, metal_reads_past_end, unfolded_bytes
from autoconv.problem import Problem


def is_untouched(problem: Problem) -> bool:
    """Whether native is the very call that MLX would get without this library."""
    return not (mx.metal.is_available() and metal_reads_past_end(problem))


def _build(problem: Problem) -> Convolution:
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


def workspace_3d(problem: Problem, backend: str) -> int:
    """Bytes of MLX's 3D convolution beyond its operands: on the CPU what it unfolds, on GPUs taken as none."""
    if backend != "cpu":
        return 0
    return unfolded_bytes(problem, 0, problem.input_shape[0], problem.input_shape[4], problem.weight_shape[0])


def _cost(problem: Problem, backend: str) -> Cost:
    return Cost(problem.flops, problem.bytes, workspace_3d(problem, backend))


ALGORITHM = Algorithm(name="native", version=1, order=0, build=_build, cost=_cost, one_call=True)
