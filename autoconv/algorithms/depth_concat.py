"""The frames of all depth taps stacked on the channel axis, and one 2D convolution over them.

KD times the channels reach kernels that few channels do not, and no sum is left outside the kernel. With one output
frame the stack is one transposing copy of the input.

Parameters:
    edges: `split` convolves outputs that see padding apart, with the taps that see frames; `pad` pads the input with
        zero frames and convolves once. Without depth padding they are the same and only `split` is tried.
    channels: The stacked channels, and those of the output, are filled up with zeros to a multiple of this.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from autoconv._backend import mx
from autoconv.algorithms import _cuda
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, InTwoSteps, Parameters
from autoconv.algorithms._calls import Call, Calls
from autoconv.algorithms._depth import (
    FlatConvolution,
    Phase,
    Tap,
    flat_call,
    flat_convolution,
    flipped,
    interleave,
    phases,
    zeros_like_output,
)
from autoconv.algorithms._mlx import channel_steps, rounded, workspace_2d
from autoconv.problem import MAX_ELEMENTS, Problem


def _stacked_images(phase: Phase, edges: str) -> Sequence[tuple[int, int]]:
    """(outputs, taps) of each 2D convolution of a phase."""
    if edges == "pad":
        return [(phase.outputs, len(phase.taps))] if phase.taps else []
    return phase.stacks


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    if not problem.addressable or problem.weight_shape[1] == 1:
        return ()
    plan = phases(problem)
    taps = max((len(phase.taps) for phase in plan), default=0)
    one_group = problem.groups == 1
    steps = channel_steps(taps * problem.input_shape[4], problem.weight_shape[0], backend) if one_group else []
    choices = ["split", "pad"] if any(phase.partial for phase in plan) else ["split"]
    offers = [(edges, 1) for edges in choices] + [(edges, step) for edges in choices for step in steps]
    # Where the largest fits all do, and almost always it does.
    if not fits(problem, choices[-1], max((1, *steps))):
        offers = [(edges, step) for edges, step in offers if fits(problem, edges, step)]
    return [{"edges": edges, "channels": step} if step > 1 else {"edges": edges} for edges, step in offers]


def fits(problem: Problem, edges: str, step: int = 1) -> bool:
    """Whether no stack, and no result with channels in steps, has more elements than can be addressed."""
    plan = phases(problem)
    batch, frames, height, width, channels = problem.input_shape
    position = batch * height * width
    stacks = [
        count * position * rounded(taps * channels, step)
        for phase in plan
        for count, taps in _stacked_images(phase, edges)
    ]
    padded = frames + sum(_padding(plan, frames)) if edges == "pad" else 0
    results = math.prod(problem.output_shape[:4]) * rounded(problem.weight_shape[0], step)
    return max(padded * position * channels, results, *stacks) <= MAX_ELEMENTS


def _padding(plan: Sequence[Phase], frames: int) -> tuple[int, int]:
    """Frames of zeros before and after the input that the phases' taps see."""
    low = high = 0
    for phase in plan:
        for tap in phase.taps:
            last = tap.first_frame + (phase.outputs - 1) * phase.frame_step
            low, high = max(low, -tap.first_frame), max(high, last - (frames - 1))
    return low, high


def _build(problem: Problem, edges: str = "split", channels: int = 1) -> Convolution:
    return concatenated(problem, flat_convolution(problem), edges=edges, step=channels)


def concatenated(problem: Problem, convolve: FlatConvolution, *, edges: str = "split", step: int = 1) -> InTwoSteps:
    """The convolution of the stacked taps.

    Args:
        problem: The problem.
        convolve: What is done with images of stacked frames.
        edges: `split` or `pad`.
        step: The stacked channels and those of the output are filled up to a multiple of this; 1 under groups.
    """
    plan = phases(problem)
    orient = flipped(problem)
    wide = replace(problem, weight_shape=(rounded(problem.weight_shape[0], step), *problem.weight_shape[1:]))
    spare_out = rounded(problem.weight_shape[0], step) - problem.weight_shape[0]
    batch, outputs, groups = problem.input_shape[0], problem.output_shape[1], problem.groups
    low, high = _padding(plan, problem.input_shape[1]) if edges == "pad" else (0, 0)
    widths = [(0, 0), (low, high), (0, 0), (0, 0), (0, 0)]

    def grouped(images: mx.array) -> mx.array:
        return images if groups == 1 else mx.unflatten(images, -1, (groups, -1))

    def stack_frames(input: mx.array, taps: Sequence[Tap], frame_step: int, start: int, stop: int) -> mx.array:
        """`(N * (stop - start), H, W, taps * C)`; under groups each group's taps stand together."""
        firsts = [tap.first_frame + start * frame_step for tap in taps]
        apart = {b - a for a, b in itertools.pairwise(firsts)}
        if groups == 1 and len(apart) <= 1 and _cuda.is_current():
            channels, distance = rounded(len(taps) * input.shape[4], step), next(iter(apart), 1)
            stack = _cuda.Stack(len(taps), distance, firsts[0], stop - start, frame_step, channels)
            return _cuda.stacker(stack)(input)
        if low or high:
            input, firsts = mx.pad(input, widths), [low + first for first in firsts]
        if stop - start == 1 and len(apart) == 1 and step == 1:  # one output: the taps' frames are one slice
            frames = grouped(input[:, firsts[0] : firsts[-1] + 1 : apart.pop()])
            stacked = mx.moveaxis(frames, 1, -2)
            return mx.flatten(stacked, -2 if groups == 1 else -3, -1)
        span = (stop - start - 1) * frame_step + 1
        images = [grouped(input[:, first : first + span : frame_step]) for first in firsts]
        spare = rounded(len(taps) * input.shape[4], step) - len(taps) * input.shape[4]
        if spare:
            images.append(mx.zeros((*images[0].shape[:-1], spare), input.dtype))
        stacked = mx.flatten(images[0] if len(images) == 1 else mx.concatenate(images, axis=-1), 0, 1)
        return stacked if groups == 1 else mx.flatten(stacked, -2, -1)

    def stack_weight(weight: mx.array, indices: Sequence[int]) -> mx.array:
        """`(C_out, KH, KW, taps * C / groups)`, filled up where channels are."""
        apart = {b - a for a, b in itertools.pairwise(indices)}
        if len(apart) == 1:
            chosen = weight[:, indices[0] : indices[-1] + 1 : apart.pop()]
            kernel = mx.flatten(mx.moveaxis(chosen, 1, -2), -2, -1)
        else:
            # One tap, or, where a stride steps over the whole input, taps with others between that see only padding.
            kernels = [weight[:, index] for index in indices]
            kernel = kernels[0] if len(kernels) == 1 else mx.concatenate(kernels, axis=-1)
        if step == 1:
            return mx.contiguous(kernel)
        spare = rounded(kernel.shape[-1], step) - kernel.shape[-1]
        return mx.pad(kernel, [(0, spare_out), (0, 0), (0, 0), (0, spare)])

    def pieces_of(phase: Phase) -> list[tuple[int, int, tuple[Tap, ...]]]:
        """(first output, one past the last, taps) of what is convolved at once."""
        if edges == "pad" and phase.taps:
            return [(0, phase.outputs, phase.taps)]
        return [(s.start, s.stop, s.taps) for s in phase.segments]

    pieces = [pieces_of(phase) for phase in plan]
    stacks = list(dict.fromkeys(indices_of(taps) for cut in pieces for _, _, taps in cut if taps))

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        weight = orient(weight)
        return tuple(stack_weight(weight, indices) for indices in stacks)

    def apply(input: mx.array, kernels: Sequence[mx.array]) -> mx.array:
        if outputs > 1:
            input = mx.contiguous(input)  # every tap reads it; the one transposing copy reads it once
        results = []
        for phase, cut in zip(plan, pieces, strict=True):
            parts = []
            for start, stop, taps in cut:
                if taps:
                    images = stack_frames(input, taps, phase.frame_step, start, stop)
                    result = convolve(images, kernels[stacks.index(indices_of(taps))])
                    parts.append(mx.unflatten(result, 0, (batch, stop - start)))
                else:
                    parts.append(zeros_like_output(wide, stop - start, input))
            results.append(mx.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])
        output = interleave(results, outputs)
        return mx.contiguous(output[..., : problem.weight_shape[0]]) if spare_out else output

    return InTwoSteps(derive, apply)


def indices_of(taps: Sequence[Tap]) -> tuple[int, ...]:
    """Places of some taps in the weight's depth."""
    return tuple(tap.index for tap in taps)


def _cost(problem: Problem, backend: str, edges: str = "split", channels: int = 1) -> Cost:
    workspace = functools.partial(workspace_2d, problem, backend)
    return cost_concatenated(problem, workspace, edges=edges, step=channels)


def cost_concatenated(
    problem: Problem, workspace: Callable[[int, int], int], *, edges: str = "split", step: int = 1
) -> Cost:
    """What `concatenated` costs, where `workspace` gives the bytes of one convolution from its images and channels."""
    batch, frames, height, width, channels = problem.input_shape
    outputs = rounded(problem.weight_shape[0], step)
    position = batch * height * width * problem.item_bytes
    taps_2d, products = math.prod(problem.weight_shape[2:4]), 2 * batch * math.prod(problem.output_shape[2:4]) * outputs
    flops = stacked = scratch = kernels = 0
    plan = phases(problem)
    pieces = [piece for phase in plan for piece in _stacked_images(phase, edges)]
    for count, taps in pieces:
        stack = rounded(taps * channels, step)
        flops += products * count * (taps_2d * stack // problem.groups)
        stacked += count * stack * position
        kernels += outputs * taps_2d * stack // problem.groups * problem.item_bytes
        # Evaluation runs ahead, so that all pieces' scratch is alive together.
        scratch += workspace(batch * count, stack)
    padded = (frames + sum(_padding(plan, frames))) * position * channels if edges == "pad" else 0
    result = problem.output_bytes // problem.weight_shape[0] * outputs
    joined = result if len(pieces) > 1 else 0
    cut = result if outputs != problem.weight_shape[0] else 0
    moved = 3 * stacked + 2 * padded + problem.output_bytes + 2 * joined + 2 * cut + 3 * kernels
    return Cost(flops, moved, stacked + padded + joined + cut + kernels + scratch)


def _calls(problem: Problem, _backend: str, edges: str = "split", channels: int = 1) -> Calls:
    return calls_concatenated(problem, flat_call, edges=edges, step=channels)


def calls_concatenated(
    problem: Problem, call: Callable[[Problem, int, int, int], Call], *, edges: str = "split", step: int = 1
) -> Calls:
    """What `concatenated` asks of MLX, where `call` is one convolution from images, channels and outputs."""
    batch, channels, outputs = problem.input_shape[0], problem.input_shape[4], rounded(problem.weight_shape[0], step)
    pieces = Counter(piece for phase in phases(problem) for piece in _stacked_images(phase, edges))
    return [
        (call(problem, batch * count, rounded(taps * channels, step), outputs), times)
        for (count, taps), times in pieces.items()
    ]


ALGORITHM = Algorithm(
    name="depth_concat", version=1, order=3, build=_build, cost=_cost, parameters=_parameters, calls=_calls
)
