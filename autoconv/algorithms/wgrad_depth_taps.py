"""The weight gradient as 2D weight gradients, one a depth tap, each over the frames that its tap sees.

No frame is unfolded, and none of padding is made; a depth tap's gradient is a slice of the result, so that nothing is
added up outside the kernels (but under an input dilation in depth).

Parameters:
    taps: `each` is one 2D weight gradient a depth tap; `stacked` stacks the frames of all taps on the channel axis,
        padding included, and takes one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls
from autoconv.algorithms._depth import Tap, phases, take, tap_frames
from autoconv.algorithms._weight_gradient import (
    flipped_back,
    padded_bytes,
    seen,
    transposed_2d,
    transposed_convolution,
)
from autoconv.problem import MAX_ELEMENTS, Kind, Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    if not problem.addressable or seen(problem) is None:
        return ()
    # MLX's CPU backend convolves by a dilated kernel, which a stride becomes, in scalar loops; products do better.
    plain = problem.groups == 1 and max(problem.input_dilation) == 1
    if backend == "cpu" and plain and max(problem.stride[1:]) > 1:
        return ()
    several = problem.weight_shape[1] > 1 and problem.output_shape[1] * problem.input_shape[0] > 1
    stacks = several and problem.groups == 1 and problem.input_dilation[0] == 1
    frame = problem.input_shape[0] * math.prod(problem.input_shape[2:])
    fits = _stacked_frames(problem) * frame <= MAX_ELEMENTS
    return ({"taps": "each"}, {"taps": "stacked"}) if stacks and fits else ({"taps": "each"},)


def _stacked_frames(problem: Problem) -> int:
    return problem.output_shape[1] * problem.weight_shape[1]


def _build(problem: Problem, taps: str = "each") -> Convolution:
    return _build_stacked(problem) if taps == "stacked" else _build_each(problem)


def _build_each(problem: Problem) -> Convolution:
    plan, depth, shape = phases(problem), problem.weight_shape[1], problem.weight_shape
    count = len(plan)

    def of_tap(input: mx.array, cotangent: mx.array, phase: int, tap: Tap) -> mx.array:
        frames = tap_frames(input, tap, tap.start, tap.stop, plan[phase].frame_step)
        outputs = take(cotangent, phase + tap.start * count, phase + (tap.stop - 1) * count + 1, count)
        return transposed_convolution(frames, outputs, problem, 1)

    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        input, cotangent = mx.contiguous(input), mx.contiguous(cotangent)  # every tap reads them
        # A tap stands on the grid of the input's elements in one phase alone.
        zero = mx.zeros((shape[0], *shape[2:]), cotangent.dtype)
        found = [zero] * depth
        for index, phase in enumerate(plan):
            for tap in phase.taps:
                found[tap.index] = of_tap(input, cotangent, index, tap)
        return flipped_back(problem, mx.stack(found, axis=1))

    return run


def _build_stacked(problem: Problem) -> Convolution:
    part = seen(problem)
    assert part is not None
    widths = [(0, 0), (problem.padding_low[0], part.high[0]), (0, 0), (0, 0), (0, 0)]
    stride, dilation, depth = problem.stride[0], problem.dilation[0], problem.weight_shape[1]
    span, channels = (problem.output_shape[1] - 1) * stride + 1, problem.input_shape[4]

    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        frames = input[:, : part.sizes[0]]
        frames = mx.pad(frames, widths) if any(widths[1]) else mx.contiguous(frames)
        images = [take(frames, k * dilation, k * dilation + span, stride) for k in range(depth)]
        found = transposed_convolution(mx.concatenate(images, axis=-1), mx.flatten(cotangent, 0, 1), problem, 1)
        return flipped_back(problem, mx.moveaxis(mx.unflatten(found, -1, (depth, channels)), -2, 1))

    return run


def _cost(problem: Problem, backend: str, taps: str = "each") -> Cost:
    batch, _, height, width, channels = problem.input_shape
    frame_in = height * width * channels * problem.item_bytes
    frame_out = math.prod(problem.output_shape[2:]) * problem.item_bytes
    frame_flops = 2 * math.prod(problem.output_shape[2:]) * math.prod(problem.weight_shape[2:])
    if taps == "stacked":
        images = batch * _stacked_frames(problem)
        padded = batch * (problem.input_shape[1] + problem.padding_low[0] + problem.padding_high[0]) * frame_in
        read = images * frame_in + problem.output_bytes
        workspace = padded + images * frame_in + problem.weight_bytes
        moved = 2 * padded + 2 * images * frame_in + read
        most = batch * problem.output_shape[1]
    else:
        counts = [batch * (tap.stop - tap.start) for phase in phases(problem) for tap in phase.taps]
        images, most = sum(counts), max(counts, default=1)
        read = images * (frame_in + frame_out)
        # Views where there is one image a frame; evaluation runs ahead, so that all taps' copies are alive together.
        workspace = problem.weight_bytes + (read if batch > 1 else 0)
        moved = read + 2 * workspace
    if backend == "cpu":  # unfolded, in float32
        taps_2d = math.prod(problem.weight_shape[2:4])
        workspace += 2 * read + 4 * images * math.prod(problem.output_shape[2:4]) * taps_2d * channels
    workspace += padded_bytes(problem, backend, most)
    return Cost(images * frame_flops, moved + problem.weight_bytes, workspace)


def _calls(problem: Problem, _backend: str, taps: str = "each") -> Calls:
    batch, channels = problem.input_shape[0], problem.input_shape[4]
    if taps == "stacked":
        images = batch * problem.output_shape[1]
        return ((transposed_2d(problem, images, problem.weight_shape[1] * channels), 1),)
    frames = Counter(tap.stop - tap.start for phase in phases(problem) for tap in phase.taps)
    return [(transposed_2d(problem, batch * count, channels), times) for count, times in frames.items()]


ALGORITHM = Algorithm(
    name="wgrad_depth_taps",
    version=1,
    order=32,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    kinds=frozenset({Kind.WEIGHT_GRADIENT}),
    calls=_calls,
)
