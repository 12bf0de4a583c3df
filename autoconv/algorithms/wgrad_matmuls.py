"""The weight gradient as matrix products, one a tap, of flat views of the operands: nothing is unfolded.

In the padded input every tap is a flat offset: with the cotangent spread into rows of the same length, zeros between,
the gradient at a tap is `cotangent[0:P]^T @ input[offset : offset + P]`, both contiguous. Under a stride the input is
first taken apart by the remainders of its positions; to each part the same applies.

The sum runs over all positions, of which there are millions, and the products are small. So the positions are cut
into parts whose products fill the device as one batched product, and whose results are added up in float32.

An infinity in the input meets the spread cotangent's zeros: then the gradient is not finite at any tap, where MLX's own
is finite at those taps that do not see it.

Parameters:
    stack: `none`, or the kernel's axes whose taps are stacked on the channel axis by a copy, for one wider product:
        `w`, `hw` or `dhw`, the last of which unfolds the input.
    splits: Parts of the sum.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls, Product
from autoconv.algorithms._weight_gradient import cut, flipped_back, seen
from autoconv.problem import MAX_ELEMENTS, Kind, Problem, Triple

STACKS = {"none": 3, "w": 2, "hw": 1, "dhw": 0}
"""The first axis whose taps are stacked."""

ROWS = (4096, 32768)
"""Positions in a part that are worth trying."""


@dataclass(frozen=True)
class _Plan:
    """The sizes of it.

    Attributes:
        lengths: Of the padded input in D, H, W, in steps of the stride.
        widths: Padding of the input that is seen, on either side, to that length.
        rows: Positions over which the sum runs, zeros of the spread cotangent included.
        taps: (remainder, offset) of each tap in D, H, W.
    """

    lengths: Triple
    widths: tuple[tuple[int, int], ...]
    rows: int
    taps: tuple[tuple[tuple[int, int], ...], ...]


@functools.lru_cache(maxsize=256)
def _plan(problem: Problem) -> _Plan | None:
    part = seen(problem)
    if part is None:
        return None
    lengths = [-(-extent // step) for extent, step in zip(part.extents, problem.stride, strict=True)]
    widths = tuple(
        (low, length * step - low - size)
        for low, length, step, size in zip(problem.padding_low, lengths, problem.stride, part.sizes, strict=True)
    )
    batch, depth, height, width, _ = problem.output_shape
    rows = (((batch - 1) * lengths[0] + depth - 1) * lengths[1] + height - 1) * lengths[2] + width
    taps = tuple(
        tuple((k * dilation % step, k * dilation // step) for k in range(kernel))
        for kernel, dilation, step in zip(problem.weight_shape[1:4], problem.dilation, problem.stride, strict=True)
    )
    return _Plan((lengths[0], lengths[1], lengths[2]), widths, rows, taps)


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    plan = _plan(problem)
    if plan is None or not problem.addressable or max(problem.input_dilation) > 1:
        return ()
    batch, channels, outputs = problem.input_shape[0], problem.input_shape[4], problem.output_shape[4]
    positions = batch * math.prod(plan.lengths)
    if positions * max(channels * math.prod(problem.stride), outputs) > MAX_ELEMENTS:
        return ()
    stacks, before = ["none"], 1
    for stack, first in list(STACKS.items())[1:]:
        wide = math.prod(problem.weight_shape[1 + first : 4])
        # A stack of no more bytes than a few times the operands.
        if wide > before and positions * channels * wide <= min(MAX_ELEMENTS, 2 * positions * (channels + outputs)):
            stacks, before = ["none", stack], wide
    # All parts' results together are no more than the operands.
    room = positions * (channels + outputs) // math.prod(problem.weight_shape)
    splits = sorted({max(1, min(plan.rows // rows, room)) for rows in ROWS}, reverse=True)
    return [{"stack": stack, "splits": split} for stack in stacks for split in splits]


def _build(problem: Problem, stack: str = "none", splits: int = 1) -> Convolution:
    plan = _plan(problem)
    part = seen(problem)
    assert plan is not None
    assert part is not None
    axis, groups, shape, stride = STACKS[stack], problem.groups, problem.weight_shape, problem.stride
    widths = [(0, 0), *plan.widths, (0, 0)]
    spread = [(0, 0), *((0, n - o) for n, o in zip(plan.lengths, problem.output_shape[1:4], strict=True)), (0, 0)]
    _, height, width = plan.lengths
    each = plan.rows // splits
    main = each * splits

    def flat(array: mx.array) -> mx.array:
        """`(positions, groups, channels / groups)`."""
        return mx.reshape(array, (-1, groups, array.shape[-1] // groups))

    def offset(steps: Iterable[int]) -> int:
        depth, row, column = steps
        return (depth * height + row) * width + column

    def product(rows: mx.array, columns: mx.array) -> mx.array:
        """`(groups, C_out / groups, columns)` in float32, of `(rows, groups, ...)` both."""

        def batched(start: int, stop: int, parts: int) -> mx.array:
            left, right = (mx.unflatten(a[start:stop], 0, (parts, -1)) for a in (rows, columns))
            return mx.matmul(mx.transpose(left, (0, 2, 3, 1)), mx.swapaxes(right, 1, 2))

        found = batched(0, main, splits)
        wide = found.dtype if found.dtype == mx.float64 else mx.float32
        total = mx.sum(found.astype(wide), axis=0)
        if main < plan.rows:
            total = total + batched(main, plan.rows, 1)[0].astype(wide)
        return total

    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        padded = cut(input, part.sizes)
        padded = mx.pad(padded, widths) if any(max(w) for w in widths) else mx.contiguous(padded)
        weighing = mx.pad(cotangent, spread) if any(max(w) for w in spread) else mx.contiguous(cotangent)
        weighing = flat(weighing)

        @functools.cache
        def remainder(*first: int) -> mx.array:
            """The positions of these remainders, flat."""
            places = (slice(r, None, s) for r, s in zip(first, stride, strict=True))
            return flat(mx.contiguous(padded[(slice(None), *places)]) if max(stride) > 1 else padded)

        @functools.cache
        def stacked(*outer: int) -> mx.array:
            """The stacked taps' positions on the channel axis, for these remainders along the other axes."""
            inner = list(itertools.product(*plan.taps[axis:]))
            offsets = [offset((*[0] * axis, *(step for _, step in tap))) for tap in inner]
            arrays = [remainder(*outer, *(r for r, _ in tap)) for tap in inner]
            if len(arrays) == 1 and not offsets[0]:
                return arrays[0]
            length = arrays[0].shape[0] - max(offsets)
            return mx.concatenate([a[o : o + length] for a, o in zip(arrays, offsets, strict=True)], axis=-1)

        found = []
        for tap in itertools.product(*plan.taps[:axis]):
            start = offset((*(step for _, step in tap), *[0] * (3 - axis)))
            columns = stacked(*(r for r, _ in tap))[start : start + plan.rows]
            found.append(mx.flatten(product(weighing[: plan.rows], columns), 0, 1))
        gradient = mx.reshape(mx.stack(found, axis=1), shape)
        return flipped_back(problem, gradient.astype(input.dtype))

    return run


def _cost(problem: Problem, _backend: str, stack: str = "none", splits: int = 1) -> Cost:
    plan = _plan(problem)
    assert plan is not None
    axis, item = STACKS[stack], problem.item_bytes
    positions = problem.input_shape[0] * math.prod(plan.lengths)
    channels, outputs = problem.input_shape[4], problem.output_shape[4]
    inner, outer = math.prod(problem.weight_shape[1 + axis : 4]), math.prod(problem.weight_shape[1 : 1 + axis])
    phases = math.prod(len({r for r, _ in taps}) for taps in plan.taps)
    outer_phases = math.prod(len({r for r, _ in taps}) for taps in plan.taps[:axis])
    pads = any(max(width) for width in plan.widths)
    padded = positions * channels * math.prod(problem.stride) * item * pads
    apart = positions * channels * phases * item * (max(problem.stride) > 1)
    spread = positions * outputs * item * (positions != math.prod(problem.output_shape[:4]))
    wide = positions * channels * inner * outer_phases * item * (inner > 1)
    partial = math.prod(problem.weight_shape) * (splits * (item + 4 * (item == 2)) + 4)
    copied = padded + apart + spread + wide
    read = outer * positions * (channels * inner + outputs) * item
    return Cost(
        2 * plan.rows * math.prod(problem.weight_shape),
        2 * copied + read + 2 * partial + problem.weight_bytes,
        copied + partial + problem.weight_bytes,
    )


def _calls(problem: Problem, _backend: str, stack: str = "none", splits: int = 1) -> Calls:
    plan = _plan(problem)
    assert plan is not None
    axis, groups = STACKS[stack], problem.groups
    inner, outer = math.prod(problem.weight_shape[1 + axis : 4]), math.prod(problem.weight_shape[1 : 1 + axis])
    rows, columns = problem.weight_shape[0] // groups, problem.weight_shape[4] * inner
    return ((Product(rows, columns, plan.rows // splits, splits * groups), outer),)


ALGORITHM = Algorithm(
    name="wgrad_matmuls",
    version=1,
    order=33,
    build=_build,
    cost=_cost,
    parameters=_parameters,
    kinds=frozenset({Kind.WEIGHT_GRADIENT}),
    calls=_calls,
)
