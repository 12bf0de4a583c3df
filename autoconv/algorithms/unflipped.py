"""MLX's 3D convolution by a weight that was flipped beforehand.

MLX's kernel for a flipped convolution is another: on CUDA it is cuDNN's backward-data, where this is its forward, and
on Metal a flipped 2D one never takes Winograd. An input gradient is a flipped convolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms import native
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._depth import flipped
from autoconv.problem import Problem


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    # On CUDA only backward-data takes an input dilation.
    applies = problem.flip and problem.groups == 1 and max(problem.input_dilation) == 1 and problem.addressable
    return ({},) if applies and max(problem.weight_shape[1:4]) > 1 else ()


def _build(problem: Problem) -> Convolution:
    orient, convolve = flipped(problem), native.ALGORITHM.build(replace(problem, flip=False))

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        return convolve(input, orient(weight))

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    cost = native.ALGORITHM.cost(problem, backend)
    return Cost(cost.flops, cost.bytes + 2 * problem.weight_bytes, cost.workspace_bytes + problem.weight_bytes)


ALGORITHM = Algorithm(name="unflipped", version=1, order=30, build=_build, cost=_cost, parameters=_parameters)
