"""One 2D convolution over depth and position, for kernels of one tap in a frame.

A (KD, 1, 1) kernel slides along the depth alone. With each frame flattened to one axis, which is a view, that is a 2D
convolution of an image of D rows and H * W columns with a (KD, 1) kernel, padding, stride and dilation included.
"""

from __future__ import annotations

from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls, Convolution2D
from autoconv.algorithms._depth import flipped
from autoconv.algorithms._mlx import conv_general
from autoconv.algorithms.native import workspace_3d
from autoconv.problem import Problem


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    applies = (
        problem.addressable
        and problem.weight_shape[1] > 1
        and problem.weight_shape[2:4] == (1, 1)
        and problem.stride[1:] == problem.input_dilation[1:] == (1, 1)
        and problem.padding_low[1:] == problem.padding_high[1:] == (0, 0)
    )
    return ({},) if applies else ()


def _build(problem: Problem) -> Convolution:
    orient, groups = flipped(problem), problem.groups
    stride, dilation, input_dilation = ((v[0], 1) for v in (problem.stride, problem.dilation, problem.input_dilation))
    padding = ((problem.padding_low[0], 0), (problem.padding_high[0], 0))
    frame = problem.output_shape[2:4]

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        kernel = mx.flatten(orient(weight), 2, 3)
        output = conv_general(mx.flatten(input, 2, 3), kernel, stride, padding, dilation, input_dilation, groups)
        return mx.unflatten(output, 2, frame)

    return run


def _cost(problem: Problem, backend: str) -> Cost:
    return Cost(problem.flops, problem.bytes, workspace_3d(problem, backend))


def _calls(problem: Problem, _backend: str) -> Calls:
    batch, depth, height, width, channels = problem.input_shape
    _, out_d, out_h, out_w, outputs = problem.output_shape
    call = Convolution2D(
        batch,
        (depth, height * width),
        channels,
        outputs,
        (problem.weight_shape[1], 1),
        (out_d, out_h * out_w),
        (problem.stride[0], 1),
        (problem.dilation[0], 1),
        (problem.input_dilation[0], 1),
        problem.groups,
    )
    return ((call, 1),)


ALGORITHM = Algorithm(
    name="depth_conv2d", version=1, order=7, build=_build, cost=_cost, parameters=_parameters, calls=_calls
)
