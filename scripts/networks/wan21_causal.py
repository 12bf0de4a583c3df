"""Wan 2.1's decoder with `autoconv.nn.CausalConv3d`, which neither joins cache and frames nor pads them."""

from __future__ import annotations

import mlx.core as mx

import autoconv.nn
from networks._network import layers
from networks.wan21 import KERNEL, Decoder, Stream


class Streamed(layers.Module):  # type: ignore[misc]
    """What the decoder's own causal convolution computes, with parameters of the same names."""

    def __init__(self, channels: int, outputs: int, spatial: int = KERNEL) -> None:
        super().__init__()
        size, padding = (KERNEL, spatial, spatial), (KERNEL // 2, spatial // 2, spatial // 2)
        self.conv = autoconv.nn.CausalConv3d(channels, outputs, size, padding=padding)

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        y: mx.array
        y, stream.kept[id(self)] = self.conv.chunk(x, stream.kept.get(id(self)))
        return y


def causal(decoder: Decoder) -> Decoder:
    """A decoder of the same parameters with autoconv's causal convolutions."""
    found = Decoder(*decoder.made_of, causal=Streamed)
    found.update(decoder.parameters())
    return found
