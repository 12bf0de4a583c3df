"""Height and width padded by the image's own elements, of which no more than strips are ever copied.

A convolution that pads by zeros is right but for the outputs that see padding: a few rows above and below, a few
columns left and right. Those are computed anew, from strips of the image that are padded, and written over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from autoconv._backend import mx

Mode: TypeAlias = Literal["zeros", "replicate", "reflect"]


@dataclass(frozen=True)
class Axis:
    """A spatial axis of a convolution.

    Attributes:
        size: Elements of the image.
        kernel: Taps.
        stride: Distance of what neighbouring outputs see.
        padding: On either side.
        dilation: Distance of what neighbouring taps see.
    """

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return (self.size + 2 * self.padding - (self.kernel - 1) * self.dilation - 1) // self.stride + 1

    @property
    def inner(self) -> range:
        """Outputs that see no padding."""
        start = min(self.outputs, -(-self.padding // self.stride))
        stop = (self.size + self.padding - (self.kernel - 1) * self.dilation - 1) // self.stride + 1
        return range(start, max(start, stop))

    def seen(self, outputs: range, mode: Mode) -> list[int]:
        """The element at each place that these outputs see, from the first to the last."""
        start = outputs.start * self.stride - self.padding
        stop = (outputs.stop - 1) * self.stride - self.padding + (self.kernel - 1) * self.dilation + 1
        return [_inside(place, self.size, mode) for place in range(start, stop)]


def _inside(place: int, size: int, mode: Mode) -> int:
    """The element that stands at a place which may lie outside."""
    last = size - 1
    if mode == "reflect":
        return last - abs(last - abs(place))
    return min(max(place, 0), last)


@dataclass(frozen=True)
class Strip:
    """Outputs that are computed from a padded part of the image.

    Attributes:
        height: Which rows of the output.
        width: Which columns.
        rows: The image's row at each place that they see.
        columns: Likewise.
    """

    height: slice
    width: slice
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def of(self, image: mx.array) -> mx.array:
        """That part of `(N, D, H, W, C)`, padded; of which the axis that less is left of is taken first."""
        _, _, height, width, _ = image.shape
        axes = [(len(self.rows) / height, self.rows, 2), (len(self.columns) / width, self.columns, 3)]
        for _, places, axis in sorted(axes):
            image = mx.take(image, mx.array(places), axis=axis)
        return image


@functools.lru_cache(maxsize=256)
def strips(height: Axis, width: Axis, mode: Mode) -> tuple[Strip, ...]:
    """What must be written over; one strip, the whole image, where that is at least half of all outputs.

    Raises:
        ValueError: an image is too small to be reflected that far.
    """
    for axis, name in ((height, "height"), (width, "width")):
        if mode == "reflect" and axis.padding >= axis.size:
            msg = f"[conv] A {name} of {axis.size} cannot be padded by its reflection by {axis.padding}."
            raise ValueError(msg)
    rows, columns = height.inner, width.inner

    def strip(down: range, along: range) -> Strip:
        return Strip(
            slice(down.start, down.stop),
            slice(along.start, along.stop),
            tuple(height.seen(down, mode)),
            tuple(width.seen(along, mode)),
        )

    everything = range(height.outputs), range(width.outputs)
    if 2 * len(rows) * len(columns) <= height.outputs * width.outputs:
        return (strip(*everything),)
    around = (
        (range(rows.start), everything[1]),
        (range(rows.stop, height.outputs), everything[1]),
        (rows, range(columns.start)),
        (rows, range(columns.stop, width.outputs)),
    )
    return tuple(strip(down, along) for down, along in around if down and along)


def bordered(
    image: mx.array,
    cache: mx.array | None,
    plan: tuple[Strip, ...],
    shape: tuple[int, int],
    by_zeros: Callable[[], mx.array],
    unpadded: Callable[[mx.array, mx.array | None, bool], mx.array],
) -> mx.array:
    """The convolution of a padded image.

    Args:
        image: `(N, D, H, W, C)`.
        cache: Frames that came before, if any.
        plan: What `strips` gave.
        shape: Rows and columns of the output.
        by_zeros: The convolution of the image padded by zeros.
        unpadded: That of an image and its cache, without padding; whether it is the whole image.
    """
    if (plan[0].height, plan[0].width) == (slice(0, shape[0]), slice(0, shape[1])):
        return unpadded(plan[0].of(image), None if cache is None else plan[0].of(cache), True)
    output = by_zeros()
    for strip in plan:
        part = unpadded(strip.of(image), None if cache is None else strip.of(cache), False)
        output[:, :, strip.height, strip.width] = part
    return output
