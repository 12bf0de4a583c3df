"""The kernel's taps unfolded onto the channel axis, then one matrix product, or a convolution along the height alone.

Few channels become many: RGB under 3x3x3 is 81 of them, or 27 where the height is left to the convolution. The input
is unfolded axis by axis, so that all copies but the first are of long runs. The unfolded channels are filled up with
zeros to a multiple of `STEP`.

Parameters:
    axes: `dhw` for the matrix product, `dw` to leave the height to a 2D convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls, Convolution2D, Product
from autoconv.algorithms._depth import flipped
from autoconv.algorithms._mlx import conv_general, rounded, workspace_flat
from autoconv.problem import MAX_ELEMENTS, Problem

MOST = 4
"""The unfolded input is at most so many times as large as input and output together. Past that, on an H100, moving it
took longer than MLX's own convolution without exception, two to ten times as long."""

STEP = 8
"""16 bytes of 16-bit elements: GPUs' matrix units load no less at a time."""

_AXES = {"d": 1, "h": 2, "w": 3}


def _unfolded(problem: Problem, axes: str) -> tuple[int, ...]:
    """Shape of the input with those axes unfolded: `(N, OD, OH or padded H, OW, taps * C)`."""
    batch, depth, height, width, _ = problem.output_shape
    taps = problem.weight_shape[1] * problem.weight_shape[3]
    if axes == "dhw":
        taps *= problem.weight_shape[2]
    else:
        height = problem.input_shape[2] + problem.padding_low[1] + problem.padding_high[1]
    return (batch, depth, height, width, rounded(taps * problem.input_shape[4], STEP))


def _padded(problem: Problem) -> tuple[int, ...]:
    batch, depth, height, width, channels = problem.input_shape
    low, high = problem.padding_low, problem.padding_high
    return (batch, depth + low[0] + high[0], height + low[1] + high[1], width + low[2] + high[2], channels)


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    # MLX's CPU backend does just this itself.
    if backend == "cpu" or not problem.addressable or problem.groups > 1 or problem.input_dilation != (1, 1, 1):
        return ()
    _, depth, height, width, _ = problem.weight_shape
    if depth * width == 1 or math.prod(_padded(problem)) > MAX_ELEMENTS:
        return ()
    choices = ["dhw"] if height == 1 else ["dhw", "dw"]
    most = min(MAX_ELEMENTS, MOST * (math.prod(problem.input_shape) + math.prod(problem.output_shape)))
    return [{"axes": axes} for axes in choices if math.prod(_unfolded(problem, axes)) <= most]


def _build(problem: Problem, axes: str) -> Convolution:
    orient = flipped(problem)
    low, high = problem.padding_low, problem.padding_high
    # The height that a 2D convolution pads needs no copy.
    inner = [axis for axis in range(3) if "dhw"[axis] in axes]
    widths = [(0, 0), *((low[a], high[a]) if a in inner else (0, 0) for a in range(3)), (0, 0)]
    pads = any(a or b for a, b in widths)
    channels = math.prod(problem.weight_shape[_AXES[a]] for a in axes) * problem.input_shape[4]
    spare = rounded(channels, STEP) - channels
    height = (problem.stride[1], 1), ((low[1], 0), (high[1], 0)), (problem.dilation[1], 1)
    out_shape = problem.output_shape

    def unfold(array: mx.array, axis: int, *, last: bool) -> mx.array:
        taps, count = problem.weight_shape[axis], out_shape[axis]
        step, apart = problem.stride[axis - 1], problem.dilation[axis - 1]
        before: tuple[slice, ...] = (slice(None),) * axis
        span = (count - 1) * step + 1
        seen = [array[(*before, slice(t * apart, t * apart + span, step))] for t in range(taps)]
        if last and spare:
            seen.append(mx.zeros((*seen[0].shape[:4], spare), array.dtype))
        return seen[0] if len(seen) == 1 else mx.concatenate(seen, axis=-1)

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        weight = orient(weight)
        array = mx.pad(input, widths) if pads else input
        for axis in "whd" if axes == "dhw" else "wd":
            array = unfold(array, _AXES[axis], last=axis == "d")
        if axes == "dhw":
            kernel = mx.pad(mx.flatten(weight, 1), [(0, 0), (0, spare)]) if spare else mx.flatten(weight, 1)
            return mx.unflatten(mx.flatten(array, 0, 3) @ kernel.T, 0, out_shape[:4])
        kernel = mx.flatten(mx.moveaxis(weight, 2, 1), 2)[:, :, None]  # (C_out, KH, 1, KD * KW * C)
        kernel = mx.pad(kernel, [(0, 0)] * 3 + [(0, spare)]) if spare else kernel
        output = conv_general(mx.flatten(array, 0, 1), kernel, *height, (1, 1), 1)
        return mx.unflatten(output, 0, out_shape[:2])

    return run


def _cost(problem: Problem, backend: str, axes: str) -> Cost:
    outputs, _, rows, columns, _ = problem.weight_shape
    unfolded, item = _unfolded(problem, axes), problem.item_bytes
    batch, depth, height, _, channels = padded = _padded(problem)
    # Of the copies, the first unfolds the width, and under a matrix product the second one the height.
    widened = batch * depth * problem.output_shape[3] * columns * channels
    between = height * widened
    if axes == "dhw" and rows > 1:
        between += problem.output_shape[2] * widened * rows
    if padded != problem.input_shape:
        between += math.prod(padded)
    between *= item
    left = rows if axes == "dw" else 1  # taps that are left to the convolution
    kernel = outputs * left * unfolded[4] * item
    last = math.prod(unfolded) * item
    flops = 2 * math.prod(problem.output_shape) * unfolded[4] * left
    scratch = 0 if axes == "dhw" else workspace_flat(problem, backend, unfolded)
    moved = 2 * between + 2 * last + problem.output_bytes + 3 * kernel
    return Cost(flops, moved, last + between + kernel + scratch)


def _calls(problem: Problem, _backend: str, axes: str) -> Calls:
    channels, outputs = _unfolded(problem, axes)[4], problem.weight_shape[0]
    batch, depth, height, width, _ = problem.output_shape
    if axes == "dhw":
        return ((Product(batch * depth * height * width, outputs, channels), 1),)
    call = Convolution2D(
        batch * depth,
        (problem.input_shape[2], width),
        channels,
        outputs,
        (problem.weight_shape[2], 1),
        (height, width),
        (problem.stride[1], 1),
        (problem.dilation[1], 1),
    )
    return ((call, 1),)


ALGORITHM = Algorithm(name="im2col", version=1, order=6, build=_build, cost=_cost, parameters=_parameters, calls=_calls)
