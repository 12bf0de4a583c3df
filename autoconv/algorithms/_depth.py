"""A 3D convolution's depth axis as arithmetic progressions of frames.

Output frame `o` sees, through tap `k`, position `o * stride - low + k * dilation` of the dilated input, which holds
input frame `position / input_dilation` where that divides and lies inside. With `step = input_dilation /
gcd(stride, input_dilation)`, output frames that are `step` apart see the same taps, and through each of them input
frames that are `stride / gcd(stride, input_dilation)` apart. So the outputs fall into `step` phases (one, without
input dilation), and in each phase a tap is a slice of the input with a start, a count and a step.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.algorithms._calls import Convolution2D, Product
from autoconv.algorithms._fused import sum_float32
from autoconv.algorithms._mlx import conv_general
from autoconv.problem import Problem

FlatConvolution = Callable[[mx.array, mx.array], mx.array]


@dataclass(frozen=True)
class Tap:
    """One depth tap in one phase.

    Attributes:
        index: Its place in the weight's depth, before any flip.
        first_frame: The input frame that the phase's first output sees; may lie before the input.
        start: First output of the phase whose frame lies inside the input.
        stop: One past the last such output.
    """

    index: int
    first_frame: int
    start: int
    stop: int


@dataclass(frozen=True)
class Segment:
    """Neighbouring outputs of one phase that see the same taps.

    Attributes:
        start: First output of the phase.
        stop: One past its last.
        taps: The taps that see frames of the input; none where all is padding.
    """

    start: int
    stop: int
    taps: tuple[Tap, ...]


@dataclass(frozen=True)
class Phase:
    """Output frames that see the same taps.

    Attributes:
        outputs: How many there are.
        frame_step: Distance of the input frames that neighbouring outputs see.
        taps: The taps that see at least one frame of the input.
    """

    outputs: int
    frame_step: int
    taps: tuple[Tap, ...]

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The phase's outputs cut where the taps change, in order."""
        cuts = sorted({0, self.outputs, *(t.start for t in self.taps), *(t.stop for t in self.taps)})
        return tuple(
            Segment(a, b, tuple(t for t in self.taps if t.start <= a and b <= t.stop))
            for a, b in itertools.pairwise(cuts)
        )

    @functools.cached_property
    def partial(self) -> bool:
        """Whether some tap sees padding for some output."""
        return any(tap.start > 0 or tap.stop < self.outputs for tap in self.taps)

    @functools.cached_property
    def seen(self) -> int:
        """Frames that the taps see, each counted once for each of them."""
        return sum(tap.stop - tap.start for tap in self.taps)

    @functools.cached_property
    def stacks(self) -> tuple[tuple[int, int], ...]:
        """(outputs, taps) of each segment that sees frames."""
        return tuple((s.stop - s.start, len(s.taps)) for s in self.segments if s.taps)


def phases(problem: Problem) -> tuple[Phase, ...]:
    """The phases of a problem's output frames: output `phase + i * step` is the phase's `i`-th."""
    return _phases(
        problem.input_shape[1],
        problem.weight_shape[1],
        problem.output_shape[1],
        problem.stride[0],
        problem.input_dilation[0],
        problem.padding_low[0],
        problem.dilation[0],
    )


@functools.lru_cache(maxsize=64)
def _phases(
    frames: int, depth: int, outputs: int, stride: int, spread: int, low: int, dilation: int
) -> tuple[Phase, ...]:
    """Those of a depth axis, which a problem's candidates and their costs ask for a dozen times.

    They are kept by what they depend on, 0.3 us to look up: a network has many problems, but few depth axes.
    """
    common = math.gcd(stride, spread)
    count, frame_step = spread // common, stride // common
    found = []
    for phase in range(min(count, outputs)):
        size = len(range(phase, outputs, count))
        taps = []
        for index in range(depth):
            position = phase * stride - low + index * dilation
            if position % spread:
                continue
            first = position // spread
            start = max(0, -(first // frame_step))
            stop = min(size, (frames - 1 - first) // frame_step + 1)
            if start < stop:
                taps.append(Tap(index, first, start, stop))
        found.append(Phase(size, frame_step, tuple(taps)))
    return tuple(found)


def take(input: mx.array, start: int, stop: int, step: int) -> mx.array:
    """Frames `start`, `start + step`, ... before `stop` as images: `(N * frames, H, W, C)`.

    A view where `N` is 1 or all frames are taken; else one copy.
    """
    everything = start == 0 and step == 1 and stop >= input.shape[1]
    return mx.flatten(input if everything else input[:, start:stop:step], 0, 1)


def tap_frames(input: mx.array, tap: Tap, start: int, stop: int, step: int) -> mx.array:
    """The images that a tap sees for outputs `start` to `stop` of its phase: `(N * outputs, H, W, C)`."""
    first = tap.first_frame + start * step
    return take(input, first, first + (stop - start - 1) * step + 1, step)


def flipped(problem: Problem) -> Callable[[mx.array], mx.array]:
    """The weight as `flat_convolution` takes it.

    Flipping the weight, which is small, rather than asking MLX for a flipped convolution: a flipped 2D convolution
    never takes MLX's Winograd. Under an input dilation in H or W none does, and only a flipped one is cuDNN's
    backward-data on CUDA, where MLX would unfold else; so there the depth alone is flipped.
    """
    if not problem.flip:
        return lambda weight: weight
    if _flips_2d(problem):
        return lambda weight: weight[:, ::-1]
    return lambda weight: weight[:, ::-1, ::-1, ::-1]


def _flips_2d(problem: Problem) -> bool:
    return problem.flip and max(problem.input_dilation[1:]) > 1


def flat_convolution(problem: Problem) -> FlatConvolution:
    """The problem's spatial axes as a 2D convolution of `(images, H, W, C)` with `(C_out, KH, KW, C / groups)`.

    The weight is as `flipped` makes it.
    """
    stride, dilation, input_dilation = problem.stride[1:], problem.dilation[1:], problem.input_dilation[1:]
    padding = (problem.padding_low[1:], problem.padding_high[1:])
    groups, flip = problem.groups, _flips_2d(problem)

    def run(images: mx.array, weight: mx.array) -> mx.array:
        return conv_general(images, weight, stride, padding, dilation, input_dilation, groups, flip)

    return run


def flat_call(problem: Problem, images: int, channels: int, outputs: int) -> Convolution2D:
    """What `flat_convolution` asks of MLX for so many images with so many channels."""
    _, _, height, width, _ = problem.input_shape
    _, _, kernel_h, kernel_w, _ = problem.weight_shape
    _, _, out_h, out_w, _ = problem.output_shape
    return Convolution2D(
        images,
        (height, width),
        channels,
        outputs,
        (kernel_h, kernel_w),
        (out_h, out_w),
        problem.stride[1:],
        problem.dilation[1:],
        problem.input_dilation[1:],
        problem.groups,
        _flips_2d(problem),
    )


def tap_sum(convolve: FlatConvolution, input: mx.array, kernels: Sequence[mx.array], segment: Segment) -> mx.array:
    """A segment's outputs as a sum over the taps that it sees, in float32: `(N, frames, OH, OW, C_out)`.

    For frames that stand one apart; `kernels` holds each tap's, `(C_out, KH, KW, C / groups)`.
    """
    parts = [
        convolve(tap_frames(input, tap, segment.start, segment.stop, 1), kernels[tap.index]) for tap in segment.taps
    ]
    summed = parts[0] if len(parts) == 1 else sum_float32(*parts)
    return mx.unflatten(summed, 0, (input.shape[0], segment.stop - segment.start))


def flat_matmul(problem: Problem) -> FlatConvolution:
    """What `flat_convolution` computes where `is_pointwise`, as one matrix product over all positions."""
    _, step_h, step_w = problem.stride

    def run(images: mx.array, weight: mx.array) -> mx.array:
        seen = images[:, ::step_h, ::step_w] if max(step_h, step_w) > 1 else images
        kernel = mx.flatten(weight, 1)  # (C_out, C)
        return mx.unflatten(mx.flatten(seen, 0, 2) @ kernel.T, 0, seen.shape[:3])

    return run


def flat_product(problem: Problem, images: int, channels: int, outputs: int) -> Product:
    """What `flat_matmul` asks of MLX for so many images with so many channels."""
    return Product(images * math.prod(problem.output_shape[2:4]), outputs, channels)


def is_pointwise(problem: Problem) -> bool:
    """Whether every output position sees one position of each frame: KH and KW are 1, and there is no padding there."""
    return (
        problem.groups == 1
        and problem.weight_shape[2:4] == (1, 1)
        and problem.input_dilation[1:] == (1, 1)
        and problem.padding_low[1:] == problem.padding_high[1:] == (0, 0)
    )


def interleave(parts: Sequence[mx.array], outputs: int) -> mx.array:
    """The output from its phases, each `(N, frames, OH, OW, C_out)`, the first ones at most one frame longer."""
    if len(parts) == 1:
        return parts[0]
    longest = parts[0].shape[1]
    even = [p if p.shape[1] == longest else mx.pad(p, [(0, 0), (0, 1), (0, 0), (0, 0), (0, 0)]) for p in parts]
    return mx.flatten(mx.stack(even, axis=2), 1, 2)[:, :outputs]


def zeros_like_output(problem: Problem, frames: int, like: mx.array) -> mx.array:
    """`frames` output frames that see only padding, of the dtype of `like`."""
    batch, _, out_h, out_w, outputs = problem.output_shape
    return mx.zeros((batch, frames, out_h, out_w, outputs), like.dtype)
