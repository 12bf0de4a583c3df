"""R3D-18: a residual network of 3D convolutions that classifies clips."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from networks._network import Network, Size, layers
from networks._norm import BatchNorm3d


class Block(layers.Module):  # type: ignore[misc]
    """Two 3x3x3 convolutions beside the input, or beside a 1x1x1 convolution of it where the shape changes."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.Conv3d(channels, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = layers.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = BatchNorm3d(outputs), BatchNorm3d(outputs)
        self.beside = layers.Identity()
        if stride != 1 or channels != outputs:
            shortcut = layers.Conv3d(channels, outputs, 1, stride=stride, bias=False)
            self.beside = layers.Sequential(shortcut, BatchNorm3d(outputs))

    def __call__(self, x: mx.array) -> mx.array:
        y = layers.relu(self.norm1(self.conv1(x)))
        found: mx.array = layers.relu(self.norm2(self.conv2(y)) + self.beside(x))
        return found


class R3D(layers.Module):  # type: ignore[misc]
    """`(N, classes)` of clips `(N, D, H, W, 3)`.

    Args:
        features: Channels of each stage; each but the first halves all sizes.
        blocks: Residual blocks of each stage.
        classes: Outputs.
    """

    def __init__(self, features: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, classes: int = 400) -> None:
        super().__init__()
        self.stem = layers.Conv3d(3, features[0], (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.norm = BatchNorm3d(features[0])
        self.blocks = []
        channels = features[0]
        for stage, outputs in enumerate(features):
            for block in range(blocks):
                self.blocks.append(Block(channels, outputs, 2 if stage and not block else 1))
                channels = outputs
        self.head = layers.Linear(channels, classes)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.head(self.features(x).mean(axis=(1, 2, 3)))
        return y

    def features(self, x: mx.array) -> mx.array:
        """What the last convolutions make of clips, at each position."""
        x = layers.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x


NETWORK = Network(
    "r3d18",
    "R3D-18",
    full=Size((16, 16, 112, 112, 3), R3D),
    small=Size((2, 4, 16, 16, 3), lambda: R3D(features=(4, 8), blocks=1, classes=5)),
)
