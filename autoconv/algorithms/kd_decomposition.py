"""A sum of 2D convolutions over the depth taps, each over all the frames that its tap sees.

Wider than MLX's own rule: any batch, depth padding, stride, dilation and input dilation, groups, flip, depth and
channel count. Where taps see padding the sum runs over fewer of them, so padding frames are never made.

Parameters:
    sum: `float32`, or `dtype` to add the taps up in the problem's own dtype, which rounds after each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._depth import (
    Phase,
    flat_convolution,
    flipped,
    interleave,
    phases,
    tap_frames,
    zeros_like_output,
)
from autoconv.algorithms._fused import fused
from autoconv.algorithms._mlx import workspace_2d
from autoconv.problem import Problem


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    if not problem.addressable:
        return ()
    adds = any(len(segment.taps) > 1 for phase in phases(problem) for segment in phase.segments)
    if adds and problem.item_bytes == 2:
        return ({"sum": "float32"}, {"sum": "dtype"})
    return ({"sum": "float32"},)


@fused
def _sum_float32(*parts: mx.array) -> mx.array:
    total = parts[0].astype(mx.float32)
    for part in parts[1:]:
        total = total + part
    return total.astype(parts[0].dtype)


@fused
def _sum_dtype(*parts: mx.array) -> mx.array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _build(problem: Problem, sum: str = "float32") -> Convolution:
    plan = phases(problem)
    convolve, orient = flat_convolution(problem), flipped(problem)
    wide = sum == "float32" and problem.item_bytes == 2
    batch, outputs = problem.input_shape[0], problem.output_shape[1]
    several = problem.weight_shape[1] > 1

    def add(parts: list[mx.array]) -> mx.array:
        if len(parts) == 1:
            return parts[0]
        if wide:
            return _sum_float32(*parts)
        return parts[0] + parts[1] if len(parts) == 2 else _sum_dtype(*parts)

    def one_phase(phase: Phase, input: mx.array, weight: mx.array) -> mx.array:
        results = {}
        for tap in phase.taps:
            frames = tap_frames(input, tap, tap.start, tap.stop, phase.frame_step)
            result = convolve(frames, weight[:, tap.index])
            results[tap] = mx.unflatten(result, 0, (batch, tap.stop - tap.start))
        summed = []
        for segment in phase.segments:
            parts = [
                results[tap]
                if (tap.start, tap.stop) == (segment.start, segment.stop)
                else results[tap][:, segment.start - tap.start : segment.stop - tap.start]
                for tap in segment.taps
            ]
            if not parts:
                summed.append(zeros_like_output(problem, segment.stop - segment.start, weight))
            else:
                summed.append(add(parts))
        return mx.concatenate(summed, axis=1) if len(summed) > 1 else summed[0]

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        if several:
            input = mx.contiguous(input)  # every tap reads it
        weight = orient(weight)
        return interleave([one_phase(phase, input, weight) for phase in plan], outputs)

    return run


def _cost(problem: Problem, backend: str, sum: str = "float32") -> Cost:
    batch, depth, height, width, channels = problem.input_shape
    frame_out = math.prod(problem.output_shape[2:]) * problem.item_bytes
    frame_in = height * width * channels * problem.item_bytes
    frame_flops = 2 * math.prod(problem.output_shape[2:]) * math.prod(problem.weight_shape[2:])
    plan = phases(problem)
    flops = moved = results = scratch = copies = 0
    for phase in plan:
        for tap in phase.taps:
            images = batch * (tap.stop - tap.start)
            flops += images * frame_flops
            moved += images * (frame_in + frame_out)
            results += images * frame_out
            # Evaluation runs ahead, so that all taps' scratch is alive together.
            scratch += workspace_2d(problem, backend, images, channels)
            if batch > 1 and not (images == batch * depth and phase.frame_step == 1):
                copies += images * frame_in
    edges = len(plan) > 1 or any(len(phase.segments) > 1 for phase in plan)
    adds = any(len(phase.taps) > 1 for phase in plan)
    moved += problem.weight_bytes + 2 * copies
    moved += (results + problem.output_bytes) * adds + 2 * problem.output_bytes * edges
    # Without fusion, as on the CPU, the running sum is an array of its own, in float32.
    running = math.prod(problem.output_shape) * (4 if sum == "float32" else problem.item_bytes) * adds
    return Cost(flops, moved, results + copies + running + scratch + problem.output_bytes * edges)


ALGORITHM = Algorithm(name="kd_decomposition", version=1, order=2, build=_build, cost=_cost, parameters=_parameters)
