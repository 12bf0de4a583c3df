"""X3D-M: a classifier of clips by depthwise 3D convolutions, which stock MLX refuses: it has no groups in 3D."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from networks._network import Network, Size, layers
from networks._norm import BatchNorm3d

EXPANSION = 2.25
SQUEEZE = 1 / 16
DIVISOR = 8

REFINEMENT = 0.25
"""Of a block's last norm: training begins with zero there, and leaves blocks that refine what lies beside them. At one,
26 blocks of random weights are chaos: bfloat16's rounding alone turned 69% of the result, on whatever way.
"""

Triple = tuple[int, int, int]


class Depthwise(layers.Module):  # type: ignore[misc]
    """A convolution of each channel by itself."""

    def __init__(self, channels: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        scale = (kernel[0] * kernel[1] * kernel[2]) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (channels, *kernel, 1))
        self.stride = stride
        self.padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.conv3d(x, self.weight, stride=self.stride, padding=self.padding, groups=x.shape[-1])


class SqueezeExcitation(layers.Module):  # type: ignore[misc]
    """Scales channels by what a clip's mean says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded(channels * SQUEEZE)
        self.down, self.up = layers.Conv3d(channels, squeezed, 1), layers.Conv3d(squeezed, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        y: mx.array = x * mx.sigmoid(self.up(layers.relu(self.down(mean))))
        return y


def rounded(width: float) -> int:
    """The nearest multiple of 8, at least 8, and no less than nine tenths of the width."""
    found = max(DIVISOR, int(width + DIVISOR / 2) // DIVISOR * DIVISOR)
    return found if found >= 0.9 * width else found + DIVISOR


class Bottleneck(layers.Module):  # type: ignore[misc]
    """1x1x1 to more channels, a depthwise 3x3x3, 1x1x1 back, beside the input or a 1x1x1 convolution of it."""

    def __init__(self, channels: int, outputs: int, stride: int, *, squeeze: bool) -> None:
        super().__init__()
        inner, strides = int(outputs * EXPANSION), (1, stride, stride)
        self.conv_a = layers.Conv3d(channels, inner, 1, bias=False)
        self.conv_b = Depthwise(inner, (3, 3, 3), strides)
        self.conv_c = layers.Conv3d(inner, outputs, 1, bias=False)
        self.norm_a, self.norm_b, self.norm_c = BatchNorm3d(inner), BatchNorm3d(inner), BatchNorm3d(outputs)
        self.norm_c.weight = REFINEMENT * self.norm_c.weight
        self.squeeze = SqueezeExcitation(inner) if squeeze else layers.Identity()
        self.beside = layers.Identity()
        if stride != 1 or channels != outputs:
            shortcut = [layers.Conv3d(channels, outputs, 1, stride=strides, bias=False)]
            self.beside = layers.Sequential(*shortcut, *([BatchNorm3d(outputs)] if channels != outputs else []))

    def __call__(self, x: mx.array) -> mx.array:
        y = layers.relu(self.norm_a(self.conv_a(x)))
        y = layers.silu(self.squeeze(self.norm_b(self.conv_b(y))))
        found: mx.array = layers.relu(self.norm_c(self.conv_c(y)) + self.beside(x))
        return found


class X3D(layers.Module):  # type: ignore[misc]
    """`(N, classes)` of clips `(N, D, H, W, 3)`.

    Args:
        features: Channels of each stage; each halves height and width.
        blocks: Bottlenecks of each stage; every other one has squeeze and excitation.
        hidden: Channels between the last stage and the classes.
        classes: Outputs.
    """

    def __init__(
        self,
        features: Sequence[int] = (24, 48, 96, 192),
        blocks: Sequence[int] = (3, 5, 11, 7),
        hidden: int = 2048,
        classes: int = 400,
    ) -> None:
        super().__init__()
        channels = features[0]
        self.stem = layers.Conv3d(3, channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.stem_time, self.norm = Depthwise(channels, (5, 1, 1)), BatchNorm3d(channels)
        self.blocks = []
        for outputs, count in zip(features, blocks, strict=True):
            for block in range(count):
                self.blocks.append(Bottleneck(channels, outputs, 1 if block else 2, squeeze=block % 2 == 0))
                channels = outputs
        inner = int(channels * EXPANSION)
        self.before_mean, self.mean_norm = layers.Conv3d(channels, inner, 1, bias=False), BatchNorm3d(inner)
        self.after_mean = layers.Conv3d(inner, hidden, 1, bias=False)
        self.head = layers.Linear(hidden, classes)

    def __call__(self, x: mx.array) -> mx.array:
        mean = self.features(x).mean(axis=(1, 2, 3), keepdims=True)
        y: mx.array = self.head(layers.relu(self.after_mean(mean)))
        return y.reshape(y.shape[0], -1)

    def features(self, x: mx.array) -> mx.array:
        """What the last convolutions make of clips, at each position."""
        x = layers.relu(self.norm(self.stem_time(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        y: mx.array = layers.relu(self.mean_norm(self.before_mean(x)))
        return y


NETWORK = Network(
    "x3d",
    "X3D-M",
    full=Size((8, 16, 224, 224, 3), X3D),
    small=Size((2, 4, 16, 16, 3), lambda: X3D(features=(8, 12), blocks=(2, 1), hidden=16, classes=5)),
)
