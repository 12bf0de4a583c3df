"""The frames of all depth taps stacked on the channel axis, and one 2D convolution over them.

KD times the channels reach kernels that few channels do not, and no sum is left outside the kernel. With one output
frame the stack is one transposing copy of the input.

Parameters:
    edges: `split` convolves outputs that see padding apart, with the taps that see frames; `pad` pads the input with
        zero frames and convolves once. Without depth padding they are the same and only `split` is tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._depth import (
    Phase,
    Tap,
    flat_convolution,
    flipped,
    interleave,
    phases,
    take,
    zeros_like_output,
)
from autoconv.algorithms._mlx import workspace_2d
from autoconv.problem import MAX_ELEMENTS, Problem


def _stacked_images(phase: Phase, edges: str) -> list[tuple[int, int]]:
    """(outputs, taps) of each 2D convolution of a phase."""
    if edges == "pad":
        return [(phase.outputs, len(phase.taps))] if phase.taps else []
    return [(s.stop - s.start, len(s.taps)) for s in phase.segments if s.taps]


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    if not problem.addressable or problem.weight_shape[1] == 1:
        return ()
    plan = phases(problem)
    choices = ["split", "pad"] if any(phase.partial for phase in plan) else ["split"]
    frame = problem.input_shape[0] * math.prod(problem.input_shape[2:])
    padded = problem.input_shape[1] + sum(_padding(plan, problem.input_shape[1]))
    return [
        {"edges": edges}
        for edges in choices
        if all(
            outputs * taps * frame <= MAX_ELEMENTS for phase in plan for outputs, taps in _stacked_images(phase, edges)
        )
        and (edges == "split" or padded * frame <= MAX_ELEMENTS)
    ]


def _padding(plan: Sequence[Phase], frames: int) -> tuple[int, int]:
    """Frames of zeros before and after the input that the phases' taps see."""
    low = high = 0
    for phase in plan:
        for tap in phase.taps:
            last = tap.first_frame + (phase.outputs - 1) * phase.frame_step
            low, high = max(low, -tap.first_frame), max(high, last - (frames - 1))
    return low, high


def _build(problem: Problem, edges: str = "split") -> Convolution:
    plan = phases(problem)
    convolve, orient = flat_convolution(problem), flipped(problem)
    batch, outputs, groups = problem.input_shape[0], problem.output_shape[1], problem.groups
    low, high = _padding(plan, problem.input_shape[1]) if edges == "pad" else (0, 0)
    widths = [(0, 0), (low, high), (0, 0), (0, 0), (0, 0)]

    def grouped(images: mx.array) -> mx.array:
        return images if groups == 1 else mx.unflatten(images, -1, (groups, -1))

    def stack_frames(input: mx.array, taps: Sequence[Tap], frame_step: int, start: int, stop: int) -> mx.array:
        """`(N * (stop - start), H, W, taps * C)`; under groups each group's taps stand together."""
        firsts = [low + tap.first_frame + start * frame_step for tap in taps]
        apart = {b - a for a, b in itertools.pairwise(firsts)}
        if stop - start == 1 and len(apart) == 1:  # one output: the taps' frames are one slice
            frames = grouped(input[:, firsts[0] : firsts[-1] + 1 : apart.pop()])
            stacked = mx.moveaxis(frames, 1, -2)
            return mx.flatten(stacked, -2 if groups == 1 else -3, -1)
        span = (stop - start - 1) * frame_step + 1
        images = [grouped(take(input, first, first + span, frame_step)) for first in firsts]
        stacked = images[0] if len(images) == 1 else mx.concatenate(images, axis=-1)
        return stacked if groups == 1 else mx.flatten(stacked, -2, -1)

    def stack_weight(weight: mx.array, taps: Sequence[Tap]) -> mx.array:
        """`(C_out, KH, KW, taps * C / groups)`."""
        indices = [tap.index for tap in taps]
        apart = {b - a for a, b in itertools.pairwise(indices)}
        if len(apart) == 1:
            chosen = weight[:, indices[0] : indices[-1] + 1 : apart.pop()]
            return mx.flatten(mx.moveaxis(chosen, 1, -2), -2, -1)
        # One tap, or, where a stride steps over the whole input, taps with others between that see only padding.
        kernels = [weight[:, index] for index in indices]
        return kernels[0] if len(kernels) == 1 else mx.concatenate(kernels, axis=-1)

    def one_phase(phase: Phase, input: mx.array, weight: mx.array) -> mx.array:
        if edges == "pad" and phase.taps:
            pieces = [(0, phase.outputs, phase.taps)]
        else:
            pieces = [(s.start, s.stop, s.taps) for s in phase.segments]
        results = []
        for start, stop, taps in pieces:
            if taps:
                images = stack_frames(input, taps, phase.frame_step, start, stop)
                result = convolve(images, stack_weight(weight, taps))
                results.append(mx.unflatten(result, 0, (batch, stop - start)))
            else:
                results.append(zeros_like_output(problem, stop - start, weight))
        return mx.concatenate(results, axis=1) if len(results) > 1 else results[0]

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        if low or high:
            input = mx.pad(input, widths)
        elif outputs > 1:
            input = mx.contiguous(input)  # every tap reads it; the one transposing copy reads it once
        weight = orient(weight)
        return interleave([one_phase(phase, input, weight) for phase in plan], outputs)

    return run


def _cost(problem: Problem, backend: str, edges: str = "split") -> Cost:
    batch, _, height, width, channels = problem.input_shape
    frame_in = batch * height * width * channels * problem.item_bytes
    frame_flops = 2 * batch * math.prod(problem.output_shape[2:]) * math.prod(problem.weight_shape[2:])
    flops = moved = stacked = scratch = 0
    plan = phases(problem)
    pieces = [piece for phase in plan for piece in _stacked_images(phase, edges)]
    for outputs, taps in pieces:
        flops += outputs * taps * frame_flops
        stacked += outputs * taps * frame_in
        # Evaluation runs ahead, so that all pieces' scratch is alive together.
        scratch += workspace_2d(problem, backend, batch * outputs, taps * channels)
    padded = (problem.input_shape[1] + sum(_padding(plan, problem.input_shape[1]))) * frame_in
    padded = padded if edges == "pad" else 0
    joined = problem.output_bytes if len(pieces) > 1 else 0
    moved = 3 * stacked + 2 * padded + problem.output_bytes + 2 * joined + 3 * problem.weight_bytes
    return Cost(flops, moved, stacked + padded + joined + problem.weight_bytes + scratch)


ALGORITHM = Algorithm(name="depth_concat", version=1, order=3, build=_build, cost=_cost, parameters=_parameters)
