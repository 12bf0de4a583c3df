"""MLX's own convolution with the kernel turned around: its taps reversed, and `flip` the other way.

The numbers are the same, the kernels are others. On CUDA MLX takes a flipped convolution for a backward pass and asks
cuDNN for its backward-data engines, which at 96 channels were twice as fast as the forward ones on an H100. On Metal
both ways lead to the same kernels, and on the CPU to the same product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms import native
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.problem import Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    reach = [(k - 1) * d for k, d in zip(problem.weight_shape[1:4], problem.dilation, strict=True)]
    # MLX leaves strides out of what it asks of those engines, and padding past the kernel would be negative there.
    applies = (
        backend == "cuda"
        and problem.addressable
        and problem.groups == 1
        and problem.stride == (1, 1, 1)
        and all(p <= r for p, r in zip(problem.padding_low, reach, strict=True))
        and max(problem.weight_shape[1:4]) > 1
    )
    return ({},) if applies else ()


def _build(problem: Problem) -> Convolution:
    run = native.ALGORITHM.build(replace(problem, flip=not problem.flip))

    def turned(input: mx.array, weight: mx.array, /) -> mx.array:
        return run(input, weight[:, ::-1, ::-1, ::-1])

    return turned


def _cost(problem: Problem, backend: str) -> Cost:
    found = native.ALGORITHM.cost(problem, backend)
    return Cost(found.flops, found.bytes + 4 * problem.weight_bytes, found.workspace_bytes + 2 * problem.weight_bytes)


ALGORITHM = Algorithm(name="backward_data", version=1, order=8, build=_build, cost=_cost, parameters=_parameters)
