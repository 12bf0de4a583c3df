"""The 3D convolutions that a network asks MLX for, and what does those that MLX does not."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from autoconv.problem import Problem, triple

Convolve = Callable[..., mx.array]


@contextlib.contextmanager
def recorded() -> Iterator[Counter[Problem]]:
    """How often a block calls `mx.conv3d` for which problem; depthwise ones, which MLX refuses, are added up by taps.

    So the block's results are MLX's own where there are no groups. It is for one thread, and not for patched code.
    """
    met: Counter[Problem] = Counter()
    original = mx.conv3d

    def conv3d(
        input: mx.array, weight: mx.array, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> mx.array:
        given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        met[Problem.parse(input.shape, weight.shape, str(input.dtype).removeprefix("mlx.core."), **given)] += 1
        if groups == 1:
            return original(input, weight, **given)
        if groups != input.shape[-1] or triple(dilation, "dilation") != (1, 1, 1):
            msg = f"of convolutions in groups only undilated depthwise ones have a reference; got {given}"
            raise NotImplementedError(msg)
        return depthwise(input, weight, triple(stride, "stride"), triple(padding, "padding"))

    mx.conv3d = conv3d  # type: ignore[assignment]
    try:
        yield met
    finally:
        mx.conv3d = original


def depthwise(x: mx.array, weight: mx.array, stride: tuple[int, int, int], padding: tuple[int, int, int]) -> mx.array:
    """A convolution of each channel by itself: the taps' products, added up in float32 and rounded once.

    Args:
        x: `(N, D, H, W, C)`.
        weight: `(C, KD, KH, KW, 1)`.
        stride: Of depth, height and width.
        padding: Zeros at either end of each.
    """
    frames = mx.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)]).astype(mx.float32)
    kernel = weight.shape[1:4]
    size = [(n - k) // s + 1 for n, k, s in zip(frames.shape[1:4], kernel, stride, strict=True)]
    ends = [(n - 1) * s + 1 for n, s in zip(size, stride, strict=True)]
    total = mx.zeros((x.shape[0], *size, x.shape[-1]))
    for d in range(kernel[0]):
        for h in range(kernel[1]):
            for w in range(kernel[2]):
                places = [slice(a, a + end, s) for a, end, s in zip((d, h, w), ends, stride, strict=True)]
                total = total + frames[:, *places] * weight[:, d, h, w, 0].astype(mx.float32)
    return total.astype(x.dtype)
