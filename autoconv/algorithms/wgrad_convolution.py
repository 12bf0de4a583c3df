"""The weight gradient as one 3D convolution of the input by the cotangent, batch and channels exchanged.

MLX does the same where the kernel is dilated, flipped or grouped, and else unfolds the input. On CUDA it is cuDNN's
backward-filter.
"""

from __future__ import annotations

from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._mlx import unfolds_on_cpu
from autoconv.algorithms._weight_gradient import flipped_back, padded_bytes, seen, transposed_convolution
from autoconv.problem import Kind, Problem


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    applies = problem.groups == 1 and problem.addressable and seen(problem) is not None
    return ({},) if applies else ()


def _build(problem: Problem) -> Convolution:
    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        return flipped_back(problem, transposed_convolution(input, cotangent, problem, 0))

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    images = problem.input_shape[0]
    share = -(-images // 16) * 16 // images if backend == "metal" else 1
    workspace = padded_bytes(problem, backend, images)
    if backend == "cpu":
        workspace = problem.input_bytes + problem.output_bytes
        if unfolds_on_cpu(problem.stride, problem.input_dilation, 1):
            workspace += 4 * images * problem.flops // (2 * problem.output_shape[4] * problem.input_shape[0])
    return Cost(problem.flops * share, problem.bytes + workspace, workspace)


ALGORITHM = Algorithm(
    name="wgrad_convolution",
    version=1,
    order=31,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    kinds=frozenset({Kind.WEIGHT_GRADIENT}),
)
