"""What a candidate asks of MLX: 3D convolutions, 2D convolutions of images, matrix products.

Sizes alone, so that they are known on any machine; which kernel each becomes is `model.routes`' affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from autoconv.problem import Problem

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Convolution2D:
    """A 2D convolution of `(images, *size, channels)` into `(images, *result, outputs)`.

    Attributes:
        images: How many.
        size: Of an image, as `(H, W)`.
        channels: Of an image, over all groups.
        outputs: Channels of the result, over all groups.
        kernel: `(KH, KW)`.
        result: `(OH, OW)`.
        stride: Steps of the kernel.
        dilation: Distance of the kernel's taps.
        input_dilation: Distance of the image's elements.
        groups: Groups of channels that do not mix.
        flip: Whether the kernel is flipped.
    """

    images: int
    size: Pair
    channels: int
    outputs: int
    kernel: Pair
    result: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    input_dilation: Pair = (1, 1)
    groups: int = 1
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """A product of `(batch, rows, depth)` and `(batch, depth, columns)`.

    Attributes:
        rows: Of the result.
        columns: Of the result.
        depth: Over which is summed.
        batch: How many products are one call.
        unfolded: Whether MLX itself unfolds an input for it, as its own weight gradient does.
    """

    rows: int
    columns: int
    depth: int
    batch: int = 1
    unfolded: bool = False


Call: TypeAlias = Problem | Convolution2D | Product
"""A 3D convolution is the problem that it is."""

Calls: TypeAlias = Iterable[tuple[Call, int]]
"""Calls, and how many there are of each; equal ones may come apart."""
