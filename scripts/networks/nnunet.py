"""nnU-Net's 3d_fullres: a plain convolutional U-Net over patches of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from networks._network import Network, Size, layers


class Block(layers.Module):  # type: ignore[misc]
    """A 3x3x3 convolution, instance norm and leaky ReLU."""

    def __init__(self, channels: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = layers.Conv3d(channels, outputs, 3, stride=stride, padding=1)
        self.norm = layers.InstanceNorm(outputs, affine=True)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = layers.leaky_relu(self.norm(self.conv(x)), 0.01)
        return y


class UNet(layers.Module):  # type: ignore[misc]
    """`(N, D, H, W, classes)` of `(N, D, H, W, channels)`, sizes multiples of two to the number of stages less one.

    Args:
        features: Channels of each stage; each has half the size of the one before.
        channels: Channels of the volume.
        classes: Channels of the result.
    """

    def __init__(
        self, features: Sequence[int] = (32, 64, 128, 256, 320, 320), channels: int = 1, classes: int = 3
    ) -> None:
        super().__init__()
        pairs = list(zip([channels, *features], features, strict=False))
        self.encoder = [[Block(i, o, 2 if stage else 1), Block(o, o)] for stage, (i, o) in enumerate(pairs)]
        upwards = [(features[i], features[i - 1]) for i in range(len(features) - 1, 0, -1)]
        self.larger = [layers.ConvTranspose3d(i, o, 2, stride=2) for i, o in upwards]
        self.decoder = [[Block(2 * o, o), Block(o, o)] for _, o in upwards]
        self.head = layers.Conv3d(features[0], classes, 1)

    def __call__(self, x: mx.array) -> mx.array:
        skips = []
        for first, second in self.encoder:
            x = second(first(x))
            skips.append(x)
        for larger, (first, second), skip in zip(self.larger, self.decoder, skips[-2::-1], strict=True):
            x = second(first(mx.concatenate([larger(x), skip], axis=-1)))
        y: mx.array = self.head(x)
        return y


NETWORK = Network(
    "nnunet",
    "nnU-Net 3d_fullres",
    full=Size((2, 128, 128, 128, 1), UNet),
    small=Size((2, 8, 8, 8, 1), lambda: UNet(features=(4, 8, 12))),
)
