"""Which kernels MLX's Metal backend takes for what a candidate asks of it, and what they do.

Read in MLX's source (`dispatch_conv_3D_gpu` and `dispatch_conv_2D_gpu` of `mlx/backend/metal/conv.cpp`, 0.32.2). Sizes
alone decide, so that routes are known where there is no Metal. A 3D convolution:

1. groups: refused, MLX has none in 3D.
2. An input dilation: explicit GEMM. The input is unfolded, with the zeros of the dilation, and multiplied.
3. Channels out of step (`C % 16`, or `O > 16` and `O % 16`): they are padded, implicit GEMM 3D.
4. MLX's fixed rule (`metal_decomposes`): KD decomposition. One 2D convolution a depth tap over all output frames as a
   batch, routed as below, flipped if the 3D one is; summed in turn.
5. Else implicit GEMM 3D.

A 2D convolution of one group:

1. Not flipped, 3x3, stride and dilations 1, `C % 32 == O % 32 == 0`, `C + O >= 256`, `N * H * W >= 4096`, its scratch
   within the working set: Winograd F(6x6, 3x3).
2. No input dilation, `C <= 4` or `C % 16 == 0`, `O <= 16` or `O % 16 == 0`: implicit GEMM 2D. Channels of the input
   that are out of step are padded for it at stride 1, 9 taps or more and 256 output positions or more.
3. `C % 16 == O % 16 == 0`, or 256 output positions or more: the implicit GEMM that takes any channels and dilations,
   and is slower.
4. Else explicit GEMM.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from enum import StrEnum

from autoconv.algorithms import Candidate
from autoconv.algorithms._calls import Call, Convolution2D, Product
from autoconv.algorithms._depth import flat_call
from autoconv.algorithms._mlx import channels_in_step, metal_decomposes, rounded
from autoconv.problem import Problem

STEP = 16
"""Channels that an implicit GEMM takes at a time (`bk`)."""

WINOGRAD_TILE = 6
"""Output positions of a tile along H and W; 8 x 8 values of each channel stand for it."""

WINOGRAD_CHANNELS = 256
WINOGRAD_POSITIONS = 4096
LARGE_OUTPUT = 256
"""Positions of the output from which a 2D convolution is never unfolded."""

LEAST_ROWS = 32
"""Rows that Winograd's product must have at least, where the working set holds no more than a part of the images."""


class Route(StrEnum):
    """A way that MLX's Metal backend computes a convolution or a product."""

    IMPLICIT_GEMM_3D = "implicit_gemm_3d"
    KD_DECOMPOSITION = "kd_decomposition"
    WINOGRAD_2D = "winograd_2d"
    IMPLICIT_GEMM_2D = "implicit_gemm_2d"
    GENERAL_GEMM_2D = "general_gemm_2d"
    DEPTHWISE_2D = "depthwise_2d"
    EXPLICIT_GEMM = "explicit_gemm"
    MATMUL = "matmul"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Launch:
    """What one route does for a call.

    Attributes:
        route: The route; that of a KD decomposition is what it adds to its 2D convolutions, the sum.
        flops: Floating-point operations that it does, with channels and tiles filled up and in Winograd's domain.
        bytes: Bytes of its operands and its result.
        scratch_bytes: Bytes that it moves beyond these: what it pads, transforms or unfolds.
        steps: Kernels up to its last, each of which waits for the one before.
        count: How many of these there are, none of which waits for another.
    """

    route: Route
    flops: int
    bytes: int
    scratch_bytes: int = 0
    steps: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a candidate's work goes.

    Attributes:
        route: The route of the call that does most of the work.
        kernel: What does that call's work: under a KD decomposition the route of its 2D convolutions, else `route`.
        launches: All that MLX does for the candidate's calls.
    """

    route: Route
    kernel: Route
    launches: tuple[Launch, ...]

    @property
    def shares(self) -> dict[Route, float]:
        """Share of each route's in the FLOPs that are done; a KD decomposition has none itself."""
        flops: dict[Route, int] = dict.fromkeys((launch.route for launch in self.launches), 0)
        for launch in self.launches:
            flops[launch.route] += launch.flops * launch.count
        total = sum(flops.values())
        return {route: done / total if total else 0.0 for route, done in flops.items()}


@functools.lru_cache(maxsize=256)
def routed(problem: Problem, candidate: Candidate, working_set: float = math.inf) -> Routed | None:
    """Where a candidate's work goes on Metal; None where its algorithm does not say what it asks of MLX.

    Args:
        problem: The problem.
        candidate: One that applies to it on Metal.
        working_set: The device's recommended working set in bytes. Default: any scratch fits.
    """
    found: list[Launch] = []
    most, main = -1, (Route.REFUSED, Route.REFUSED)
    for call, count in candidate.calls(problem, "metal"):
        launches = launches_of(call, problem.item_bytes, working_set, count)
        flops = sum(launch.flops * launch.count for launch in launches)
        if flops > most:
            most, main = flops, (launches[-1].route, launches[0].route)
        found += launches
    return Routed(*main, tuple(found)) if found else None


def route(call: Call, item_bytes: int = 4, working_set: float = math.inf) -> Route:
    """The route that MLX takes for a call.

    Args:
        call: A 3D convolution, a 2D one or a product.
        item_bytes: Bytes of an element, which tell whether scratch fits.
        working_set: The device's recommended working set in bytes. Default: any scratch fits.
    """
    if isinstance(call, Problem):
        return _route_3d(call)
    if isinstance(call, Convolution2D):
        return _route_2d(call, item_bytes, working_set)
    return Route.EXPLICIT_GEMM if call.unfolded else Route.MATMUL


def launches_of(call: Call, item_bytes: int, working_set: float = math.inf, count: int = 1) -> list[Launch]:
    """What MLX does for so many calls, whose other arguments are those of `route`.

    The convolutions of a KD decomposition come first, their sum last.
    """
    if isinstance(call, Product):
        return [_product(call, item_bytes, count)]
    if isinstance(call, Convolution2D):
        return [_convolution_2d(call, item_bytes, working_set, count)]
    return _convolution_3d(call, item_bytes, working_set, count)


def _route_3d(problem: Problem) -> Route:
    if problem.groups > 1:
        return Route.REFUSED
    if max(problem.input_dilation) > 1:
        return Route.EXPLICIT_GEMM
    return Route.KD_DECOMPOSITION if metal_decomposes(problem) else Route.IMPLICIT_GEMM_3D


def _route_2d(call: Convolution2D, item_bytes: int, working_set: float) -> Route:
    undilated = call.input_dilation == (1, 1)
    channels, outputs = call.channels // call.groups, call.outputs // call.groups
    outputs_fit = outputs <= 16 or outputs % STEP == 0
    in_step = (channels <= 4 or channels % STEP == 0) and outputs_fit
    if call.groups > 1:
        if undilated and _is_depthwise(call):
            return Route.DEPTHWISE_2D
        return Route.IMPLICIT_GEMM_2D if undilated and in_step else Route.EXPLICIT_GEMM
    if takes_winograd(call) and _winograd_fits(call, item_bytes, working_set):
        return Route.WINOGRAD_2D
    if undilated and (in_step or _is_padded(call)):
        return Route.IMPLICIT_GEMM_2D
    if (channels % STEP == 0 and outputs % STEP == 0) or _is_large(call):
        return Route.GENERAL_GEMM_2D
    return Route.EXPLICIT_GEMM


def takes_winograd(call: Convolution2D) -> bool:
    """Whether MLX takes Winograd F(6x6, 3x3) if its scratch fits the working set."""
    return (
        call.groups == 1
        and not call.flip
        and call.kernel == (3, 3)
        and call.stride == call.dilation == call.input_dilation == (1, 1)
        and call.channels % 32 == 0
        and call.outputs % 32 == 0
        and call.channels + call.outputs >= WINOGRAD_CHANNELS
        and call.images * call.size[0] * call.size[1] >= WINOGRAD_POSITIONS
    )


def _winograd_fits(call: Convolution2D, item_bytes: int, working_set: float) -> bool:
    """Whether all images' scratch fits, or that of so many that their product is worth it (`winograd_batch_step`).

    In three quarters of the working set, less what input, output and transformed weight take.
    """
    if working_set == math.inf:
        return True
    tiles, padded = _tiles(call)
    kernel = 64 * call.channels * call.outputs
    operands = call.images * (math.prod(call.size) * call.channels + math.prod(call.result) * call.outputs)
    each = padded * call.channels + 64 * tiles * (call.channels + call.outputs)
    images = (working_set * 3 / 4 - (operands + kernel) * item_bytes) // (each * item_bytes)
    return images >= call.images or (images > 0 and images * tiles >= LEAST_ROWS)


def _tiles(call: Convolution2D) -> tuple[int, int]:
    """(Winograd's tiles of one image, positions of the image padded to whole tiles)."""
    down, across = (-(-size // WINOGRAD_TILE) for size in call.result)
    return down * across, (WINOGRAD_TILE * down + 2) * (WINOGRAD_TILE * across + 2)


def _is_depthwise(call: Convolution2D) -> bool:
    return (
        call.channels == call.outputs == call.groups
        and call.channels % 16 == 0
        and call.dilation == (1, 1)
        and max(call.kernel) <= 7
        and max(call.stride) <= 2
    )


def _is_large(call: Convolution2D) -> bool:
    return call.images * math.prod(call.result) >= LARGE_OUTPUT


def _is_padded(call: Convolution2D) -> bool:
    """Whether channels out of step are padded, where nothing else keeps a 2D convolution from the implicit GEMM."""
    return (
        call.stride == (1, 1)
        and math.prod(call.kernel) >= 9
        and (call.outputs <= 16 or call.outputs % STEP == 0)
        and _is_large(call)
    )


def _product(call: Product, item_bytes: int, count: int) -> Launch:
    rows, columns = rounded(call.rows, 32), rounded(call.columns, 32)  # the least tile of MLX's matrix products
    flops = 2 * call.batch * rows * columns * call.depth
    moved = call.rows * call.depth + call.depth * call.columns + call.rows * call.columns
    return Launch(route(call), flops, call.batch * moved * item_bytes, count=count)


def _convolution_2d(call: Convolution2D, item_bytes: int, working_set: float, count: int) -> Launch:
    taken = _route_2d(call, item_bytes, working_set)
    taps, positions = math.prod(call.kernel), call.images * math.prod(call.result)
    channels, outputs = call.channels // call.groups, call.outputs // call.groups
    inputs = call.images * math.prod(call.size) * call.channels
    weight = call.outputs * taps * channels
    moved = (inputs + weight + positions * call.outputs) * item_bytes
    scratch, steps = 0, 1
    if taken is Route.WINOGRAD_2D:
        tiles, padded = _tiles(call)
        values, spread = 64 * call.images * tiles, call.images * padded * channels
        flops = 2 * values * channels * outputs
        # Zeros, the input among them, read again; its values and those of the result are written and read.
        scratch = 3 * spread + 2 * values * (channels + outputs) + 2 * 64 * channels * outputs
        steps = 5
    elif taken is Route.EXPLICIT_GEMM:
        flops = 2 * call.groups * positions * outputs * taps * channels
        scratch, steps = 2 * positions * taps * call.channels, 2
    elif taken is Route.DEPTHWISE_2D:
        flops = 2 * positions * taps * call.outputs
    elif taken is Route.GENERAL_GEMM_2D:
        # Taps that meet zeros between the input's elements are stepped over.
        apart = math.prod(math.lcm(i, k) // k for i, k in zip(call.input_dilation, call.dilation, strict=True))
        flops = _implicit_flops(positions, outputs, channels, max(1, taps // apart) * rounded(channels, STEP))
    else:
        wide = channels if channels <= 4 or channels % STEP == 0 else rounded(channels, STEP)
        if wide != channels:
            scratch, steps = inputs + inputs // channels * wide, 2
        # Of up to four channels several taps are taken at a time.
        depth = taps * wide if wide > 4 else rounded(taps * (4 if wide > 2 else wide), STEP)
        flops = call.groups * _implicit_flops(positions, outputs, wide, depth)
    return Launch(taken, flops, moved, scratch * item_bytes, steps, count)


def _convolution_3d(problem: Problem, item_bytes: int, working_set: float, count: int) -> list[Launch]:
    taken = _route_3d(problem)
    channels, outputs = problem.input_shape[4], problem.weight_shape[0]
    positions, taps = math.prod(problem.output_shape[:4]), math.prod(problem.weight_shape[1:4])
    if taken is Route.KD_DECOMPOSITION:
        depth = problem.weight_shape[1]
        call = flat_call(problem, problem.output_shape[1], channels, outputs)
        if problem.flip:
            call = replace(call, flip=True)
        sums = 3 * (depth - 1) * problem.output_bytes  # two are read and one is written, in turn
        convolutions = _convolution_2d(call, item_bytes, working_set, depth * count)
        return [convolutions, Launch(taken, 0, 0, sums, convolutions.steps + depth - 1, count)]
    flops, scratch, steps = problem.flops, 0, 1
    if taken is Route.EXPLICIT_GEMM:
        scratch, steps = 2 * positions * taps * channels, 2
    elif taken is Route.IMPLICIT_GEMM_3D:
        wide = channels
        if not channels_in_step(problem):
            wide, outputs = rounded(channels, STEP), rounded(outputs, STEP)
            inputs = math.prod(problem.input_shape[:4])
            scratch = inputs * (channels + wide) * (wide != channels) + positions * (outputs - problem.weight_shape[0])
            steps = 2
        flops = _implicit_flops(positions, outputs, wide, taps * wide)
    return [Launch(taken, flops, problem.bytes, scratch * item_bytes, steps, count)]


def _implicit_flops(positions: int, outputs: int, channels: int, depth: int) -> int:
    """What an implicit GEMM does, whose tiles of positions and outputs are full or not."""
    rows = 64 if positions >= 8192 and channels >= 64 else 32
    columns = 8 if outputs <= 16 else 64 if rows == 64 or outputs >= 64 else 32
    return 2 * rounded(positions, rows) * rounded(outputs, columns) * depth
