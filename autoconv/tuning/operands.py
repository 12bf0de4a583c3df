"""Random operands of a problem, hard enough to show trouble."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from autoconv._backend import mx
from autoconv.problem import Kind, Problem

OUTLIER_SHARE = 1e-3
OUTLIER_SCALE = 30.0

LEAST_SCALE = 2.0**-8
"""Least size of a cotangent's values: smaller ones would be subnormal in float16."""

HALF_PEAK = 2.0**14
"""Peak of the output in the second run of float16, a quarter of its largest number."""

MAX_PART = 2**24
MIN_PART = 2**18
"""Most elements of an array that are made at once, whatever the memory limit, and least."""

MADE_BYTES = 24
"""Bytes that making one element takes: its bits, itself and a few copies in float32."""


def make_operands(problem: Problem, seed: int = 0, memory_bytes: float = math.inf) -> tuple[mx.array, mx.array]:
    """Random operands of a problem, evaluated; nothing is drawn from the global random state.

    One value in a thousand of the first is thirty times larger than the others. The second is scaled so that the
    result's values are about 1. For a weight gradient, whose every value is a sum over all positions, the first and
    the last position of both are larger as well, so that a sum without them is seen to be wrong.

    Both are made by parts, so that what that takes beside them stays within `memory_bytes`, down to some megabytes, and
    no kernel but the one that first fills an array gets more than 2^31-1 elements.
    """
    scale = 1 / math.sqrt(_fan_in(problem) * (1 + OUTLIER_SHARE * OUTLIER_SCALE**2) / 3)
    of_weight = problem.kind is Kind.WEIGHT_GRADIENT
    if of_weight:
        scale = max(scale, LEAST_SCALE)

    def make_first(shape: Sequence[int], key: mx.array) -> mx.array:
        flat = mx.random.uniform(-1, 1, shape, mx.float32, key=key)
        return mx.where(mx.abs(flat) > 1 - OUTLIER_SHARE, flat * OUTLIER_SCALE, flat)

    def make_second(shape: Sequence[int], key: mx.array) -> mx.array:
        return mx.random.uniform(-scale, scale, shape, mx.float32, key=key)

    part = int(max(MIN_PART, min(MAX_PART, memory_bytes / MADE_BYTES)))
    shapes = problem.operand_shapes
    first = _made(make_first, shapes[0], problem.dtype, mx.random.key(2 * seed), part)
    second = _made(make_second, shapes[1], problem.dtype, mx.random.key(2 * seed + 1), part)
    if of_weight:
        large = min(OUTLIER_SCALE, _fan_in(problem) ** 0.25)  # about as large as all other products together
        first, second = _with_large_ends(first, large), _with_large_ends(second, large)
        mx.eval(first, second)
    return first, second


def _fan_in(problem: Problem) -> int:
    """About how many products a value of the result is the sum of."""
    if problem.kind is Kind.INPUT_GRADIENT:
        products = math.prod(problem.weight_shape[:4]) // problem.groups
        return max(1, products // math.prod(problem.stride))
    if problem.kind is Kind.WEIGHT_GRADIENT:
        return math.prod(problem.output_shape[:4])
    return math.prod(problem.weight_shape[1:])


def _with_large_ends(array: mx.array, scale: float) -> mx.array:
    """The array, written in place, with all channels of its first and last position so much larger."""
    if not array.size:
        return array
    ends = [(0,) * (array.ndim - 1), (-1,) * (array.ndim - 1)]
    for end in ends if math.prod(array.shape[:-1]) > 1 else ends[:1]:
        array[end] = (array[end] * scale).astype(array.dtype)
    return array


def _made(
    make: Callable[[Sequence[int], mx.array], mx.array], shape: Sequence[int], dtype: str, key: mx.array, part: int
) -> mx.array:
    """An array made by parts of at most so many elements, each with a key of its own; evaluated."""
    kind = getattr(mx, dtype)
    blocks = list(blocks_of(shape, part))
    if len(blocks) == 1:
        whole = make(shape, key).astype(kind)
        mx.eval(whole)
        return whole
    found = mx.zeros(shape, kind)
    for block, own in zip(blocks, mx.random.split(key, len(blocks)), strict=True):
        found[block] = make([len(range(*s.indices(n))) for s, n in zip(block, shape, strict=True)], own).astype(kind)
        mx.eval(found)
    return found


def blocks_of(shape: Sequence[int], elements: int) -> Iterator[tuple[slice, ...]]:
    """Slices that cut an array into blocks of at most so many elements, along its first axes, in order."""
    inner = math.prod(shape[1:])
    if not shape or inner * shape[0] <= elements:
        yield tuple(slice(0, size) for size in shape)
    elif inner <= elements:
        step = elements // inner
        for start in range(0, shape[0], step):
            yield (slice(start, min(start + step, shape[0])), *(slice(0, size) for size in shape[1:]))
    else:
        for index, block in itertools.product(range(shape[0]), blocks_of(shape[1:], elements)):
            yield (slice(index, index + 1), *block)


def half_scale(peak: float) -> float:
    """The power of two that brings float16 outputs of this peak near 2^14, the input's own values staying finite."""
    if not (peak > 0 and math.isfinite(peak)):
        return 1.0
    return 2.0 ** max(0, min(10, math.floor(math.log2(HALF_PEAK / peak))))
