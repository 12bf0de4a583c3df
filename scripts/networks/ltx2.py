"""LTX-2's video VAE decoder, as MLX runs it: not causal, images mirrored at their border, the largest in chunks.

Frames are padded by the first and the last one again. A convolution of more elements than MLX's is trusted with gets
some of the frames at a time, 24 at most.
"""

from __future__ import annotations

import mlx.core as mx

from networks._network import Network, Size, layers

MAX_ELEMENTS = 30 * 192 * 192 * 128
"""Elements of an input past which it is convolved in chunks."""

MAX_FRAMES = 24
PATCH = 4
"""Height and width of the pixels that a position of the last convolution holds."""


def reflected(x: mx.array, axis: int) -> mx.array:
    """With one more at either end of an axis, mirrored in the outermost."""
    first, last = mx.take(x, mx.array([1]), axis), mx.take(x, mx.array([x.shape[axis] - 2]), axis)
    return mx.concatenate([first, x, last], axis)


class Conv(layers.Module):  # type: ignore[misc]
    """A 3x3x3 convolution that keeps all sizes."""

    def __init__(self, channels: int, outputs: int, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.conv = layers.Conv3d(channels, outputs, 3)

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        x = reflected(reflected(x, 2), 3)
        whole: mx.array
        if x.size <= self.elements:
            whole = self.conv(x)
            return whole
        frames = max(1, min(self.elements // (x.size // x.shape[1]), MAX_FRAMES))
        chunks = []
        for start in range(0, x.shape[1] - 2, frames):
            chunks.append(self.conv(x[:, start : start + frames + 2]))
            mx.eval(chunks[-1])
        return mx.concatenate(chunks, axis=1)


class Residual(layers.Module):  # type: ignore[misc]
    """Two convolutions beside the input."""

    def __init__(self, channels: int, elements: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, channels, elements), Conv(channels, channels, elements)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.conv1(layers.silu(pixel_norm(x)))
        return x + self.conv2(layers.silu(pixel_norm(y)))


def pixel_norm(x: mx.array) -> mx.array:
    """Each position's channels over their root mean square."""
    return mx.fast.rms_norm(x, None, 1e-8)


def unfolded(x: mx.array, frames: int, height: int, width: int) -> mx.array:
    """`(N, D * frames, H * height, W * width, C)` of `(N, D, H, W, C * frames * height * width)`."""
    n, d, h, w, c = x.shape
    channels = c // (frames * height * width)
    x = x.reshape(n, d, h, w, channels, frames, height, width).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, d * frames, h * height, w * width, channels)


class Upsample(layers.Module):  # type: ignore[misc]
    """Twice the frames but for the first, height and width, half the channels; beside the input, unfolded as well."""

    def __init__(self, channels: int, elements: int) -> None:
        super().__init__()
        self.conv = Conv(channels, 4 * channels, elements)

    def __call__(self, x: mx.array) -> mx.array:
        beside = mx.tile(unfolded(x, 2, 2, 2), (1, 1, 1, 1, 4))
        return (unfolded(self.conv(x), 2, 2, 2) + beside)[:, 1:]


class Decoder(layers.Module):  # type: ignore[misc]
    """Frames `(N, 8D - 7, 32H, 32W, 3)` of latents `(N, D, H, W, latents)`.

    Args:
        width: Channels at the lowest resolution, a multiple of 32; each of three upsamplings halves them.
        latents: Channels of a latent.
        blocks: Residual blocks of each resolution.
        elements: Of an input past which it is convolved in chunks.
    """

    def __init__(self, width: int = 1024, latents: int = 128, blocks: int = 5, elements: int = MAX_ELEMENTS) -> None:
        super().__init__()
        self.conv_in = Conv(latents, width, elements)
        self.layers = [Residual(width, elements) for _ in range(blocks)]
        for channels in (width, width // 2, width // 4):
            self.layers.append(Upsample(channels, elements))
            self.layers += [Residual(channels // 2, elements) for _ in range(blocks)]
        self.conv_out = Conv(width // 8, 3 * PATCH * PATCH, elements)

    def __call__(self, z: mx.array) -> mx.array:
        x = self.conv_in(z)
        for layer in self.layers:
            x = layer(x)
        return unfolded(self.conv_out(layers.silu(pixel_norm(x))), 1, PATCH, PATCH)


NETWORK = Network(
    "ltx2",
    "LTX-2 VAE, decode",
    full=Size((1, 13, 16, 24, 128), Decoder),
    small=Size((1, 2, 2, 2, 4), lambda: Decoder(width=32, latents=4, blocks=1, elements=5 * 18 * 18 * 4)),
)
