"""A problem as another one that suits MLX's kernels better: with more channels, or with its batch as one clip.

Each takes the `build` of an algorithm, builds the other problem, and says what leads there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Cost, InTwoSteps
from autoconv.algorithms._mlx import rounded
from autoconv.problem import MAX_ELEMENTS, Problem

Build = Callable[[Problem], InTwoSteps]


def with_channels(problem: Problem, step: int) -> Problem:
    """The problem with input and output channels rounded up to multiples of `step`; groups must be 1."""
    channels, outputs = rounded(problem.input_shape[4], step), rounded(problem.weight_shape[0], step)
    return replace(
        problem,
        input_shape=(*problem.input_shape[:4], channels),
        weight_shape=(outputs, *problem.weight_shape[1:4], channels),
    )


def channels_fit(problem: Problem, step: int) -> bool:
    """Whether `with_channels` has few enough elements; groups must be 1."""
    channels, outputs = rounded(problem.input_shape[4], step), rounded(problem.weight_shape[0], step)
    most = max(
        math.prod(problem.input_shape[:4]) * channels,
        math.prod(problem.weight_shape[1:4]) * channels * outputs,
        math.prod(problem.output_shape[:4]) * outputs,
    )
    return most <= MAX_ELEMENTS


def in_steps(build: Build, problem: Problem, step: int) -> InTwoSteps:
    """The convolution of `with_channels`, its input and weight filled up with zeros, its output cut."""
    wide = with_channels(problem, step)
    run = build(wide)
    spare_in = wide.input_shape[4] - problem.input_shape[4]
    outputs = problem.weight_shape[0]
    spare_out = wide.weight_shape[0] - outputs

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        return run.derive(mx.pad(weight, [(0, spare_out), *[(0, 0)] * 3, (0, spare_in)]))

    def apply(input: mx.array, derived: Sequence[mx.array]) -> mx.array:
        if spare_in:
            input = mx.pad(input, [(0, 0)] * 4 + [(0, spare_in)])
        output = run.apply(input, derived)
        return mx.contiguous(output[..., :outputs]) if spare_out else output

    return InTwoSteps(derive, apply)


def cost_in_steps(cost: Cost, problem: Problem, step: int) -> Cost:
    """What `in_steps` costs where the wide convolution costs `cost`."""
    channels, outputs = problem.input_shape[4], problem.weight_shape[0]
    wide_in, wide_out = rounded(channels, step), rounded(outputs, step)
    widened = problem.input_bytes // channels * wide_in if wide_in != channels else 0
    cut = problem.output_bytes // outputs * wide_out if wide_out != outputs else 0
    weight = problem.weight_bytes // (channels * outputs) * wide_in * wide_out
    moved = cost.bytes + 2 * widened + 2 * cut + 2 * weight
    return Cost(cost.flops, moved, cost.workspace_bytes + widened + weight + cut)


def can_be_one_clip(problem: Problem) -> bool:
    """Whether `as_one_clip` applies: several clips, no input dilation in depth, and few enough elements."""
    if problem.input_shape[0] < 2 or problem.input_dilation[0] != 1:
        return False
    frames, outputs = _frames(problem), problem.input_shape[0] * _period(problem) // problem.stride[0]
    most = max(frames * math.prod(problem.input_shape[2:]), outputs * math.prod(problem.output_shape[2:]))
    return most <= MAX_ELEMENTS


def _period(problem: Problem) -> int:
    """Frames from one clip to the next: its own, its padding, and what makes that a multiple of the stride."""
    frames = problem.input_shape[1] + problem.padding_low[0] + problem.padding_high[0]
    return rounded(frames, problem.stride[0])


def _frames(problem: Problem) -> int:
    """Those of all clips, and more for the last outputs to see."""
    return problem.input_shape[0] * _period(problem) + (problem.weight_shape[1] - 1) * problem.dilation[0]


def one_clip(problem: Problem) -> Problem:
    """All clips as one, each with its padding, one after another; and frames for the last outputs to see."""
    return replace(
        problem,
        input_shape=(1, _frames(problem), *problem.input_shape[2:]),
        padding_low=(0, *problem.padding_low[1:]),
        padding_high=(0, *problem.padding_high[1:]),
    )


def as_one_clip(build: Build, problem: Problem) -> InTwoSteps:
    """The convolution of `one_clip`, and of its outputs those that see one clip alone."""
    clip = one_clip(problem)
    run = build(clip)
    batch, frames, outputs = problem.input_shape[0], problem.input_shape[1], problem.output_shape[1]
    period, low = _period(problem), problem.padding_low[0]
    around = [(0, 0), (low, period - frames - low), (0, 0), (0, 0), (0, 0)]
    after = [(0, 0), (0, clip.input_shape[1] - batch * period), (0, 0), (0, 0), (0, 0)]
    kept = period // problem.stride[0]

    def apply(input: mx.array, derived: Sequence[mx.array]) -> mx.array:
        clips = mx.flatten(mx.pad(input, around), 0, 1)[None]
        output = run.apply(mx.pad(clips, after), derived)
        return mx.unflatten(output[0, : batch * kept], 0, (batch, kept))[:, :outputs]

    return InTwoSteps(run.derive, apply)


def cost_as_one_clip(cost: Callable[[Problem], Cost], problem: Problem) -> Cost:
    """What `as_one_clip` costs where the one clip costs what `cost` says."""
    clip = one_clip(problem)
    found, copies = cost(clip), 2 * clip.input_bytes
    return Cost(found.flops, found.bytes + 2 * copies, found.workspace_bytes + copies + clip.output_bytes)
