"""Wan 2.1's video VAE decoder: a latent frame at a time, each causal convolution with the two frames before.

The first latent frame becomes one frame, each later one four. What the reference implementation pads is padded before
the convolution here as well, so that a convolution gets frames with their border and pads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import mlx.core as mx

from networks._network import Network, Size, layers

KERNEL = 3


class Stream:
    """What the causal convolutions of a decoder keep between chunks.

    Attributes:
        begun: Whether a chunk was decoded already.
        kept: Frames by the layer that keeps them.
    """

    def __init__(self) -> None:
        self.begun = False
        self.kept: dict[int, mx.array] = {}

    def joined(self, layer: int, x: mx.array) -> mx.array:
        """A chunk after the two frames that the layer saw last, zeros before the first; its last two are kept."""
        before = self.kept.get(layer)
        if before is None:
            before = mx.zeros((x.shape[0], KERNEL - 1, *x.shape[2:]), x.dtype)
        frames = mx.concatenate([before, x], axis=1)
        self.kept[layer] = frames[:, 1 - KERNEL :]
        return frames


class CausalConv(layers.Module):  # type: ignore[misc]
    """A convolution along time, 3x3x3 or 3x1x1, which sees no later frame."""

    def __init__(self, channels: int, outputs: int, spatial: int = KERNEL) -> None:
        super().__init__()
        self.border = spatial // 2
        self.conv = layers.Conv3d(channels, outputs, (KERNEL, spatial, spatial))

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        frames = stream.joined(id(self), x)
        around = (self.border, self.border)
        y: mx.array = self.conv(mx.pad(frames, [(0, 0), (0, 0), around, around, (0, 0)]))
        return y


Causal: TypeAlias = Callable[..., Any]
"""Makes a causal convolution of its channels, its outputs, and its kernel's height and width."""


class Residual(layers.Module):  # type: ignore[misc]
    """Two causal convolutions beside the input, or beside a 1x1x1 convolution of it where the channels change."""

    def __init__(self, channels: int, outputs: int, causal: Causal) -> None:
        super().__init__()
        self.norm1, self.norm2 = layers.RMSNorm(channels), layers.RMSNorm(outputs)
        self.conv1, self.conv2 = causal(channels, outputs), causal(outputs, outputs)
        self.shortcut = layers.Conv3d(channels, outputs, 1) if channels != outputs else layers.Identity()

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        y = self.conv1(layers.silu(self.norm1(x)), stream)
        y = self.conv2(layers.silu(self.norm2(y)), stream)
        found: mx.array = y + self.shortcut(x)
        return found


class Attention(layers.Module):  # type: ignore[misc]
    """Each frame's positions attend to each other, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layers.RMSNorm(channels)
        self.to_qkv = layers.Conv2d(channels, 3 * channels, 1)
        self.out = layers.Conv2d(channels, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        n, d, h, w, c = x.shape
        parts = self.to_qkv(self.norm(x).reshape(n * d, h, w, c)).reshape(n * d, 1, h * w, 3 * c)
        q, k, v = mx.split(parts, 3, axis=-1)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=c**-0.5)
        found: mx.array = x + self.out(y.reshape(n * d, h, w, c)).reshape(x.shape)
        return found


class Upsample(layers.Module):  # type: ignore[misc]
    """Twice the height and width at half the channels; before that twice the frames, where it is temporal.

    The stream's first frame stays one.
    """

    def __init__(self, channels: int, causal: Causal, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        if temporal:
            self.time_conv = causal(channels, 2 * channels, 1)
        self.larger = layers.Upsample(2.0, mode="nearest")
        self.conv = layers.Conv2d(channels, channels // 2, 3, padding=1)

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        if self.temporal:
            alone = 0 if stream.begun else 1
            parts = [x[:, :alone]] if alone else []
            if x.shape[1] > alone:
                parts.append(self._twice(x[:, alone:], stream))
            x = mx.concatenate(parts, axis=1)
        n, d, h, w, c = x.shape
        y: mx.array = self.conv(self.larger(x.reshape(n * d, h, w, c)))
        return y.reshape(n, d, 2 * h, 2 * w, c // 2)

    def _twice(self, x: mx.array, stream: Stream) -> mx.array:
        n, d, h, w, c = x.shape
        pairs: mx.array = self.time_conv(x, stream).reshape(n, d, h, w, 2, c)
        return pairs.transpose(0, 1, 4, 2, 3, 5).reshape(n, 2 * d, h, w, c)


class Decoder(layers.Module):  # type: ignore[misc]
    """Frames `(N, 4D - 3, 8H, 8W, 3)` of latents `(N, D, H, W, latents)`.

    Args:
        width: Channels at full resolution; four times as many at the lowest two.
        latents: Channels of a latent.
        blocks: Residual blocks of each resolution.
        causal: What makes a causal convolution.
    """

    def __init__(self, width: int = 96, latents: int = 16, blocks: int = 3, causal: Causal = CausalConv) -> None:
        super().__init__()
        self.made_of = (width, latents, blocks)
        widest = 4 * width
        self.post_quant = layers.Conv3d(latents, latents, 1)
        self.conv_in = causal(latents, widest)
        self.middle_first, self.middle_last = Residual(widest, widest, causal), Residual(widest, widest, causal)
        self.attention = Attention(widest)
        self.stages: list[list[Any]] = []
        channels = widest
        for outputs, temporal in ((widest, True), (widest, True), (2 * width, False), (width, None)):
            residuals = [Residual(channels if i == 0 else outputs, outputs, causal) for i in range(blocks)]
            upsample = [] if temporal is None else [Upsample(outputs, causal, temporal=temporal)]
            self.stages.append([*residuals, *upsample])
            channels = outputs // 2
        self.norm = layers.RMSNorm(width)
        self.conv_out = causal(width, 3)

    def __call__(self, z: mx.array, frames: int = 1) -> mx.array:
        """All frames, decoded so many latent frames at a time, each chunk evaluated before the next is begun."""
        found = []
        for chunk, kept in self.chunks(z, frames):
            mx.eval(chunk, kept)
            found.append(chunk)
        return mx.concatenate(found, axis=1)

    def chunks(self, z: mx.array, frames: int) -> Iterator[tuple[mx.array, list[mx.array]]]:
        """(a chunk's frames, what is kept for the next)."""
        stream = Stream()
        z = self.post_quant(z)
        for start in range(0, z.shape[1], frames):
            yield self._chunk(z[:, start : start + frames], stream), list(stream.kept.values())
            stream.begun = True

    def _chunk(self, z: mx.array, stream: Stream) -> mx.array:
        x = self.attention(self.middle_first(self.conv_in(z, stream), stream))
        x = self.middle_last(x, stream)
        for stage in self.stages:
            for layer in stage:
                x = layer(x, stream)
        y: mx.array = self.conv_out(layers.silu(self.norm(x)), stream)
        return y


NETWORK = Network(
    "wan21",
    "Wan 2.1 VAE, decode",
    full=Size((1, 21, 60, 104, 16), Decoder),
    small=Size((1, 3, 2, 3, 4), lambda: Decoder(width=4, latents=4, blocks=1)),
)
