"""A sum of 2D convolutions over the depth taps, each over all the frames that its tap sees.

Wider than MLX's own rule: any batch, depth padding, stride, dilation and input dilation, groups, flip, depth and
channel count. Where taps see padding the sum runs over fewer of them, so padding frames are never made.

Parameters:
    sum: `float32`, or `dtype` to add the taps up in the problem's own dtype, which rounds after each.
    channels: Both kinds of channels are filled up with zeros to a multiple of this.
    batch: `fold` lays the clips of a batch end to end, with their padding, so that what each tap sees is one view
        rather than a copy.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from autoconv._backend import mx
from autoconv.algorithms._adapted import (
    as_one_clip,
    can_be_one_clip,
    channels_fit,
    cost_as_one_clip,
    cost_in_steps,
    in_steps,
    one_clip,
)
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, InTwoSteps, Parameters
from autoconv.algorithms._calls import Call, Calls
from autoconv.algorithms._depth import (
    FlatConvolution,
    Phase,
    flat_call,
    flat_convolution,
    flipped,
    interleave,
    phases,
    tap_frames,
    zeros_like_output,
)
from autoconv.algorithms._fused import sum_dtype, sum_float32
from autoconv.algorithms._mlx import channel_steps, rounded, workspace_2d
from autoconv.problem import Problem


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    if not problem.addressable:
        return ()
    found: list[Parameters] = [{"sum": "float32"}]
    if problem.item_bytes == 2 and backend != "cuda":  # there the kernel that sums is our own, in float32
        adds = any(taps > 1 for phase in phases(problem) for _, taps in phase.stacks)
        found += [{"sum": "dtype"}] if adds else []
    if problem.groups == 1:
        steps = channel_steps(problem.input_shape[4], problem.weight_shape[0], backend)
        found += [{"sum": "float32", "channels": s} for s in steps if channels_fit(problem, s)]
    if problem.weight_shape[1] > 1 and can_be_one_clip(problem):
        found.append({"sum": "float32", "batch": "fold"})
    return found


def _build(problem: Problem, sum: str = "float32", channels: int = 1, batch: str = "") -> Convolution:
    def build(problem: Problem) -> InTwoSteps:
        return decomposed(problem, flat_convolution(problem), wide=sum == "float32")

    if channels > 1:
        return in_steps(build, problem, channels)
    return as_one_clip(build, problem) if batch else build(problem)


def decomposed(problem: Problem, convolve: FlatConvolution, *, wide: bool) -> InTwoSteps:
    """The sum over the taps.

    Args:
        problem: The problem.
        convolve: What a tap does to the frames that it sees.
        wide: Whether what is 16 bits wide is added up in float32.
    """
    plan = phases(problem)
    orient = flipped(problem)
    wide = wide and problem.item_bytes == 2
    batch, outputs = problem.input_shape[0], problem.output_shape[1]
    several = problem.weight_shape[1] > 1

    def add(parts: list[mx.array]) -> mx.array:
        if len(parts) == 1:
            return parts[0]
        if wide:
            return sum_float32(*parts)
        return parts[0] + parts[1] if len(parts) == 2 else sum_dtype(*parts)

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        """The kernel of each tap; MLX copies them in any case, since what it convolves by is contiguous."""
        weight = orient(weight)
        return tuple(mx.contiguous(weight[:, index]) for index in range(problem.weight_shape[1]))

    def one_phase(phase: Phase, input: mx.array, kernels: Sequence[mx.array]) -> mx.array:
        results = {}
        for tap in phase.taps:
            frames = tap_frames(input, tap, tap.start, tap.stop, phase.frame_step)
            result = convolve(frames, kernels[tap.index])
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
                summed.append(zeros_like_output(problem, segment.stop - segment.start, input))
            else:
                summed.append(add(parts))
        return mx.concatenate(summed, axis=1) if len(summed) > 1 else summed[0]

    def apply(input: mx.array, kernels: Sequence[mx.array]) -> mx.array:
        if several:
            input = mx.contiguous(input)  # every tap reads it
        return interleave([one_phase(phase, input, kernels) for phase in plan], outputs)

    return InTwoSteps(derive, apply)


def _cost(problem: Problem, backend: str, sum: str = "float32", channels: int = 1, batch: str = "") -> Cost:
    def cost(problem: Problem) -> Cost:
        workspace = functools.partial(workspace_2d, problem, backend)
        return cost_decomposed(problem, workspace, wide=sum == "float32", step=channels)

    if channels > 1:
        return cost_in_steps(cost(problem), problem, channels)
    return cost_as_one_clip(cost, problem) if batch else cost(problem)


def cost_decomposed(problem: Problem, workspace: Callable[[int, int], int], *, wide: bool, step: int = 1) -> Cost:
    """What `decomposed` costs.

    Args:
        problem: The problem.
        workspace: The bytes that the taps take, from their images in all and channels: evaluation runs ahead, so that
            all taps' scratch is alive together.
        wide: Whether what is 16 bits wide is added up in float32.
        step: Both kinds of channels are filled up to a multiple of this; 1 under groups.
    """
    batch, depth, height, width, channels = problem.input_shape
    channels, outputs = rounded(channels, step), rounded(problem.weight_shape[0], step)
    frame_in = height * width * channels * problem.item_bytes
    positions = math.prod(problem.output_shape[2:4])
    frame_out = positions * outputs * problem.item_bytes
    output_bytes = batch * problem.output_shape[1] * frame_out
    kernel = math.prod(problem.weight_shape[2:4]) * outputs * (channels // problem.groups)
    plan = phases(problem)
    images = batch * sum(phase.seen for phase in plan)
    results, copies = images * frame_out, 0
    if batch > 1:
        whole = batch * sum(depth for p in plan if p.frame_step == 1 for t in p.taps if t.stop - t.start == depth)
        copies = (images - whole) * frame_in
    edges = len(plan) > 1 or any(len(phase.segments) > 1 for phase in plan)
    adds = any(len(phase.taps) > 1 for phase in plan)
    weight_bytes = problem.weight_shape[1] * kernel * problem.item_bytes
    moved = images * (frame_in + frame_out) + weight_bytes + 2 * copies
    moved += (results + output_bytes) * adds + 2 * output_bytes * edges
    # Without fusion, as on the CPU, the running sum is an array of its own, in float32.
    running = output_bytes // problem.item_bytes * (4 if wide else problem.item_bytes) * adds
    alive = results + copies + running + workspace(images, channels) + output_bytes * edges
    return Cost(2 * images * positions * kernel, moved, alive)


def _calls(problem: Problem, _backend: str, channels: int = 1, batch: str = "", **_sum: str) -> Calls:
    return calls_decomposed(one_clip(problem) if batch else problem, flat_call, channels)


def calls_decomposed(problem: Problem, call: Callable[[Problem, int, int, int], Call], step: int = 1) -> Calls:
    """What `decomposed` asks of MLX, where `call` is that of one tap from images, channels and outputs.

    Both kinds of channels are filled up to a multiple of `step`.
    """
    batch, channels, outputs = problem.input_shape[0], problem.input_shape[4], problem.weight_shape[0]
    channels, outputs = rounded(channels, step), rounded(outputs, step)
    frames = Counter(tap.stop - tap.start for phase in phases(problem) for tap in phase.taps)
    return [(call(problem, batch * count, channels, outputs), times) for count, times in frames.items()]


ALGORITHM = Algorithm(
    name="kd_decomposition",
    version=1,
    order=2,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    calls=_calls,
)
