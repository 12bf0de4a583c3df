"""The weight gradient as one 3D convolution of the input by the cotangent, batch and channels exchanged.

MLX does the same where the kernel is dilated, flipped or grouped, and else unfolds the input. On CUDA it is cuDNN's
backward-filter.
"""

from __future__ import annotations

from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls
from autoconv.algorithms._mlx import unfolds_on_cpu
from autoconv.algorithms._weight_gradient import flipped_back, seen, transposed_3d, transposed_convolution
from autoconv.problem import Kind, Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    if problem.groups > 1 or not problem.addressable or seen(problem) is None:
        return ()
    # On Metal MLX pads the batch, which stands for channels here, to a multiple of 16: up to 16 times the work. On the
    # CPU it convolves by a dilated kernel, which a stride becomes, in scalar loops.
    if backend == "metal" and problem.input_shape[0] % 16:
        return ()
    return ({},) if backend != "cpu" or unfolds_on_cpu(problem.stride, problem.input_dilation, 1) else ()


def _build(problem: Problem) -> Convolution:
    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        return flipped_back(problem, transposed_convolution(input, cotangent, problem, 0))

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    workspace = 0
    if backend == "cpu":  # unfolded, in float32
        unfolded = problem.flops // (2 * problem.output_shape[4])
        workspace = problem.input_bytes + problem.output_bytes + 4 * unfolded
    return Cost(problem.flops, problem.bytes + 2 * workspace, workspace)


def _calls(problem: Problem, _backend: str) -> Calls:
    return ((transposed_3d(problem), 1),)


ALGORITHM = Algorithm(
    name="wgrad_convolution",
    version=1,
    order=31,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    kinds=frozenset({Kind.WEIGHT_GRADIENT}),
    calls=_calls,
)
