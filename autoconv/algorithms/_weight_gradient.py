"""What the ways to compute a weight gradient share.

The weight's gradient at a tap is a matrix product: of the cotangent at every output, and the input's element that the
output sees through that tap.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.algorithms._mlx import conv_general, rounded
from autoconv.problem import Problem, Triple, dilated


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
    if max(spread) == 1 and not _symmetric(problem, part, first):
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
