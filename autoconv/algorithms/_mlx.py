"""Facts about MLX's own convolutions that algorithms are built on (MLX 0.32.4, `mlx/backend/*/conv.cpp`)."""

from __future__ import annotations

import math

from autoconv._backend import mx_conv_general
from autoconv.problem import Problem

conv_general = mx_conv_general
"""MLX's own function, whatever `mx.conv_general` is assigned to."""

MAX_DECOMPOSED_DEPTH = 7
"""Largest KD that the fixed rule of MLX's Metal backend decomposes."""


def channels_in_step(problem: Problem) -> bool:
    """Whether the 3D implicit GEMM of MLX on Metal takes the channels as they are; it pads them to sixteens else."""
    outputs = problem.weight_shape[0]
    return problem.input_shape[4] % 16 == 0 and (outputs <= 16 or outputs % 16 == 0)


def metal_decomposes(problem: Problem) -> bool:
    """Whether MLX's fixed rule on Metal takes the KD decomposition rather than the 3D kernel (`N == 1`, `KD <= 7`,
    depth stride and dilation 1, no low depth padding, no input dilation, channels in steps of 16).
    """
    return (
        problem.groups == 1
        and problem.input_dilation == (1, 1, 1)
        and channels_in_step(problem)
        and problem.input_shape[0] == 1
        and problem.weight_shape[1] <= MAX_DECOMPOSED_DEPTH
        and problem.stride[0] == 1
        and problem.dilation[0] == 1
        and problem.padding_low[0] == 0
    )


def metal_reads_past_end(problem: Problem) -> bool:
    """Whether MLX on Metal would read frames past the input's end: its fixed rule does not look at high padding."""
    return metal_decomposes(problem) and problem.padding_high[0] > 0


def unfolds_on_cpu(dilation: tuple[int, ...], input_dilation: tuple[int, ...], groups: int) -> bool:
    """Whether MLX's CPU backend unfolds the input for one GEMM; what it does not unfold are scalar loops."""
    return groups == 1 and max(dilation) == max(input_dilation) == 1


def unfolded_bytes(problem: Problem, first: int, images: int, channels: int, outputs: int) -> int:
    """Bytes that MLX's CPU backend takes for a convolution beyond its operands.

    What it unfolds it pads first; both are float32, and so is the result of another dtype before its conversion.

    Args:
        problem: The problem.
        first: The first axis that is convolved, of D, H, W; the others after it are as well.
        images: How many inputs are convolved at once.
        channels: Of the input.
        outputs: Channels of the output.
    """
    if not unfolds_on_cpu(problem.dilation[first:], problem.input_dilation[first:], problem.groups):
        return 0
    padded = 1
    for axis in range(first, 3):
        padded *= problem.input_shape[1 + axis] + problem.padding_low[axis] + problem.padding_high[axis]
    positions = math.prod(problem.output_shape[1 + first : 4])
    taps = math.prod(problem.weight_shape[1 + first : 4])
    result = positions * outputs if problem.dtype != "float32" else 0
    return 4 * images * (padded * channels + positions * taps * channels + result)


def workspace_2d(problem: Problem, backend: str, images: int, channels: int) -> int:
    """Bytes that one 2D convolution over so many images takes beyond its operands.

    On GPUs it is taken as none: implicit GEMM needs none, and Winograd's scratch is MLX's to bound.
    """
    if backend != "cpu":
        return 0
    return unfolded_bytes(problem, 1, images, channels, problem.weight_shape[0])


def workspace_flat(problem: Problem, backend: str, images: tuple[int, ...]) -> int:
    """Bytes beyond its operands of a 2D convolution along the height over `(N, OD, H, OW, channels)` images."""
    if backend != "cpu":
        return 0
    batch, depth, height, width, channels = images
    padded = height + problem.padding_low[1] + problem.padding_high[1]
    unfolded = problem.output_shape[2] * problem.weight_shape[2]
    result = problem.output_shape[2] * problem.weight_shape[0] if problem.dtype != "float32" else 0
    return 4 * batch * depth * width * ((padded + unfolded) * channels + result)


CHANNEL_STEPS = {"cpu": (), "cuda": (8, 32), "metal": (16, 32)}
"""Multiples of channels that a backend's kernels are made for: on CUDA 16 bytes and a warp's tile, on Metal those that
implicit GEMM and Winograd ask for. The CPU's matrix product takes any."""


def rounded(channels: int, step: int) -> int:
    """`channels` rounded up to a multiple of `step`."""
    return -(-channels // step) * step


def channel_steps(channels: int, outputs: int, backend: str) -> list[int]:
    """The multiples worth padding channels to: those that change one of them, and not to what a smaller one does."""
    found: dict[tuple[int, int], int] = {(channels, outputs): 1}
    for step in CHANNEL_STEPS[backend]:
        found.setdefault((rounded(channels, step), rounded(outputs, step)), step)
    return [step for step in found.values() if step > 1]
