"""MLX's 3D kernel where its fixed rule on Metal would decompose.

The rule asks for depth stride 1, depth dilation 1 and no low depth padding. So an argument that cannot act is made
to fail it: a depth stride of 2 where there is one output frame, a depth dilation of 2 where KD is 1. Elsewhere one
extra frame of low depth padding fails it, and its first output frame, 1/OD of the work more, is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls
from autoconv.algorithms._mlx import conv_general, metal_decomposes
from autoconv.algorithms.native import workspace_3d
from autoconv.problem import MAX_ELEMENTS, Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    # Elsewhere there is no rule to fail, and native is this kernel already.
    if backend != "metal" or not metal_decomposes(problem) or not problem.addressable:
        return ()
    frames = problem.output_shape[1] + _needs_extra_frame(problem)
    return ({},) if math.prod(problem.output_shape) // problem.output_shape[1] * frames <= MAX_ELEMENTS else ()


def _needs_extra_frame(problem: Problem) -> bool:
    return problem.output_shape[1] > 1 and problem.weight_shape[1] > 1


def _failing(problem: Problem) -> Problem:
    """The problem with an argument that fails the rule."""
    if problem.output_shape[1] == 1:
        # A stride of 2 still leaves the one output frame only if no second one begins: none does, as OD is 1.
        return replace(problem, stride=(2, *problem.stride[1:]))
    if problem.weight_shape[1] == 1:
        return replace(problem, dilation=(2, *problem.dilation[1:]))
    low = problem.padding_low
    return replace(problem, padding_low=(low[0] + problem.stride[0], *low[1:]))


def _build(problem: Problem) -> Convolution:
    extra = _needs_extra_frame(problem)
    problem = _failing(problem)
    stride, padding, dilation = problem.stride, (problem.padding_low, problem.padding_high), problem.dilation
    input_dilation, groups, flip = problem.input_dilation, problem.groups, problem.flip

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        output = conv_general(input, weight, stride, padding, dilation, input_dilation, groups, flip)
        return output[:, 1:] if extra else output

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    frames = problem.output_shape[1]
    share = (frames + 1) / frames if _needs_extra_frame(problem) else 1.0
    extra = 0 if share == 1.0 else problem.output_bytes + problem.output_bytes // frames
    return Cost(
        int(problem.flops * share),
        problem.bytes + 2 * extra,
        int(workspace_3d(problem, backend) * share) + extra,
    )


def _calls(problem: Problem, _backend: str) -> Calls:
    return ((_failing(problem), 1),)


ALGORITHM = Algorithm(
    name="implicit_gemm",
    version=1,
    order=1,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    one_call=True,
    calls=_calls,
)
