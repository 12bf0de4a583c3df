"""What the ways to compute a weight gradient share.

The weight's gradient at a tap is a matrix product: of the cotangent at every output, and the input's element that the
output sees through that tap.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from autoconv._backend import mx
from autoconv.algorithms._calls import Convolution2D
from autoconv.algorithms._mlx import conv_general, rounded
from autoconv.problem import Kind, Problem, Triple, dilated


@dataclass(frozen=True)
class Seen:
    """The part of an input that some output sees.

    Attributes:
        sizes: How many of its first elements in D, H, W.
        extents: Length of what the outputs see, padding included and the input dilated.
        high: Zeros after the last of those elements.
    """

    sizes: Triple
    extents: Triple
    high: Triple


@functools.lru_cache(maxsize=256)
def seen(problem: Problem) -> Seen | None:
    """What of a problem's input is seen; None where nothing is, so that the weight's gradient is zero."""
    sizes, extents, high = [], [], []
    for axis in range(3):
        spread, low = problem.input_dilation[axis], problem.padding_low[axis]
        extent = (problem.output_shape[1 + axis] - 1) * problem.stride[axis]
        extent += dilated(problem.weight_shape[1 + axis], problem.dilation[axis])
        size = min(problem.input_shape[1 + axis], -(-(extent - low) // spread))
        if size <= 0:
            return None
        sizes.append(size)
        extents.append(extent)
        high.append(extent - low - dilated(size, spread))
    return Seen((sizes[0], sizes[1], sizes[2]), (extents[0], extents[1], extents[2]), (high[0], high[1], high[2]))


def cut(array: mx.array, sizes: tuple[int, ...]) -> mx.array:
    """The first elements of an array along its axes after the first."""
    if array.shape[1 : 1 + len(sizes)] == sizes:
        return array
    return array[(slice(None), *(slice(size) for size in sizes))]


def flipped_back(problem: Problem, gradient: mx.array) -> mx.array:
    """The gradient of the weight as it is kept, from that of the cross-correlation's."""
    return gradient[:, ::-1, ::-1, ::-1] if problem.flip else gradient


def _by_groups(input: mx.array, groups: int) -> mx.array:
    """`(C / groups, ..., groups * N)` from `(N, ..., C)`."""
    if groups == 1:
        return mx.swapaxes(input, 0, -1)
    return mx.flatten(mx.swapaxes(mx.unflatten(input, -1, (groups, -1)), 0, -1), -2, -1)


def transposed_convolution(input: mx.array, cotangent: mx.array, problem: Problem, first: int) -> mx.array:
    """A weight gradient as a convolution of the input by the cotangent, batch and channels exchanged.

    That is what MLX's own vjp asks for where the kernel is dilated, flipped or grouped; elsewhere it unfolds the input
    instead. On CUDA a convolution of transposed views by a large kernel is tried as cuDNN's backward-filter. There MLX
    takes the low padding for the high as well, so that where the two do not give the same outputs the padding is made
    here; and an axis of one channel would hide that the views are transposed, so that eight take its place.

    Args:
        input: `(N, D, H, W, C_in)`, or images `(N, H, W, C_in)`.
        cotangent: Of the output, `(N, OD, OH, OW, C_out)` or `(N, OH, OW, C_out)`.
        problem: The convolution; of its axes only the last ones count for images.
        first: The first axis that is convolved, of D, H, W.

    Returns:
        `(C_out, KD, KH, KW, C_in / groups)` or `(C_out, KH, KW, C_in / groups)`, not flipped back.
    """
    part = seen(problem)
    assert part is not None
    stride, dilation, spread = problem.stride[first:], problem.dilation[first:], problem.input_dilation[first:]
    low, high, groups = problem.padding_low[first:], part.high[first:], problem.groups
    outputs, channels = cotangent.shape[-1], input.shape[-1]
    input = mx.contiguous(cut(input, part.sizes[first:]))
    widths = [(0, 0)] * input.ndim
    if _is_padded_here(problem, first):
        widths[1:-1] = zip(low, high, strict=True)
        low = high = (0,) * len(low)
    if channels == 1:
        widths[-1] = (0, 7)
    if any(max(width) for width in widths):
        input = mx.pad(input, widths)
    if outputs == 1:
        cotangent = mx.pad(cotangent, [(0, 0)] * (cotangent.ndim - 1) + [(0, 7)])
    found = conv_general(
        _by_groups(input, groups), mx.swapaxes(cotangent, 0, -1), dilation, (low, high), stride, spread, groups
    )
    found = mx.swapaxes(found, 0, -1)
    found = found[:1] if outputs == 1 else found
    return found[..., :1] if channels == 1 else found


def transposed_problem(problem: Problem) -> Problem:
    """The 3D convolution that MLX makes of a weight gradient: of the input by the cotangent."""
    part = seen(problem)
    assert part is not None
    batch, channels = problem.input_shape[0], problem.weight_shape[4]
    return replace(
        problem,
        input_shape=(channels, *part.sizes, batch * problem.groups),
        weight_shape=(problem.weight_shape[0], *problem.output_shape[1:4], batch),
        stride=problem.dilation,
        padding_high=part.high,
        dilation=problem.stride,
        flip=False,
        kind=Kind.FORWARD,
    )


def transposed_3d(problem: Problem) -> Problem:
    """The convolution that `transposed_convolution` asks of MLX for a whole input."""
    found = transposed_problem(problem)
    low, high = found.padding_low, found.padding_high
    channels, *sizes, batch = found.input_shape
    if _is_padded_here(problem, 0):
        sizes = [size + a + b for size, a, b in zip(sizes, low, high, strict=True)]
        low = high = (0, 0, 0)
    return replace(
        found,
        input_shape=(_filled(channels), sizes[0], sizes[1], sizes[2], batch),
        weight_shape=(_filled(found.weight_shape[0]), *found.weight_shape[1:]),
        padding_low=low,
        padding_high=high,
    )


def transposed_2d(problem: Problem, images: int, channels: int) -> Convolution2D:
    """The convolution that `transposed_convolution` asks of MLX for so many images with so many channels."""
    part = seen(problem)
    assert part is not None
    _, height, width = part.sizes
    if _is_padded_here(problem, 1):
        height += problem.padding_low[1] + part.high[1]
        width += problem.padding_low[2] + part.high[2]
    _, out_h, out_w = problem.output_shape[1:4]
    _, kernel_h, kernel_w = problem.weight_shape[1:4]
    return Convolution2D(
        _filled(channels) // problem.groups,
        (height, width),
        images * problem.groups,
        _filled(problem.weight_shape[0]),
        (out_h, out_w),
        (kernel_h, kernel_w),
        problem.dilation[1:],
        problem.stride[1:],
        problem.input_dilation[1:],
        problem.groups,
    )


def _filled(channels: int) -> int:
    return 8 if channels == 1 else channels


def _is_padded_here(problem: Problem, first: int) -> bool:
    part = seen(problem)
    assert part is not None
    return max(problem.input_dilation[first:]) == 1 and not _symmetric(problem, part, first)


def _symmetric(problem: Problem, part: Seen, first: int) -> bool:
    """Whether the low padding on both sides gives the same outputs."""
    return all(
        (part.sizes[axis] + 2 * problem.padding_low[axis] - dilated(problem.weight_shape[1 + axis], dilation))
        // problem.stride[axis]
        + 1
        == problem.output_shape[1 + axis]
        for axis, dilation in list(enumerate(problem.dilation))[first:]
    )


def padded_bytes(problem: Problem, backend: str, images: int) -> int:
    """Bytes that MLX on Metal takes for such a convolution beyond its operands: it pads the channels of an operand,
    here so many images, to a multiple of 16.
    """
    if backend != "metal" or images % 16 == 0:
        return 0
    return int((problem.input_bytes + problem.output_bytes) * rounded(images, 16) / images)
