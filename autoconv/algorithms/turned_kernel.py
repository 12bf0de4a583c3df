"""MLX's own 3D convolution with the kernel turned around: its taps reversed, and `flip` the other way.

The numbers are the same, the kernels are others. On CUDA MLX takes a flipped convolution for a backward pass and asks
cuDNN for its backward-data engines, which at 96 channels were twice as fast as the forward ones on an H100; and an
input gradient, which is a flipped convolution, runs on the forward ones this way. Elsewhere it is tried for flipped
convolutions alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms import native
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls
from autoconv.problem import Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    if not problem.addressable or problem.groups > 1 or max(problem.weight_shape[1:4]) == 1:
        return ()
    if problem.flip:  # only backward-data takes an input dilation
        return ({},) if max(problem.input_dilation) == 1 else ()
    if backend != "cuda" or problem.stride != (1, 1, 1):  # MLX leaves strides out of what it asks of backward-data
        return ()
    reach = [(k - 1) * d for k, d in zip(problem.weight_shape[1:4], problem.dilation, strict=True)]
    # Padding past the kernel would be negative there.
    return ({},) if all(p <= r for p, r in zip(problem.padding_low, reach, strict=True)) else ()


def _build(problem: Problem) -> Convolution:
    convolve = native.ALGORITHM.build(replace(problem, flip=not problem.flip))

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        return convolve(input, weight[:, ::-1, ::-1, ::-1])

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    cost = native.ALGORITHM.cost(problem, backend)
    return Cost(cost.flops, cost.bytes + 2 * problem.weight_bytes, cost.workspace_bytes + problem.weight_bytes)


def _calls(problem: Problem, backend: str) -> Calls:
    return native.calls_3d(replace(problem, flip=not problem.flip), backend)


ALGORITHM = Algorithm(
    name="turned_kernel",
    version=1,
    order=8,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    one_call=True,
    calls=_calls,
)
