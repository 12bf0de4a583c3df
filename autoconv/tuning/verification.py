"""Whether a candidate's result is right, by a float64 reference at sampled output positions.

The reference gathers the input patches of a few positions and multiplies them in NumPy, so it costs the same at any
size and shares nothing with what it checks: no convolution of MLX, no index arithmetic of a kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoconv._backend import mx
from autoconv.problem import MAX_ELEMENTS, Problem

POSITIONS = 32
"""Output positions that are checked, corners and the last element first."""

CHANNELS = 32
"""Output channels that are checked at each position, the first and the last among them."""

OUTLIER_SHARE = 1e-3
OUTLIER_SCALE = 30.0

STRAY = 30.0
"""How many times the usual error a single value may be off."""

HALF_PEAK = 2.0**14
"""Peak of the output in the second run of float16, a quarter of its largest number."""

MAX_PART = 2**24
MIN_PART = 2**18
"""Most elements of an array that are made at once, whatever the memory limit, and least."""

MADE_BYTES = 24
"""Bytes that making one element takes: its bits, itself and a few copies in float32."""

Position = tuple[int, int, int, int]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
        error: Relative L2 error over the samples; infinite where one is not finite.
        wrong: What makes the result no approximation at all; empty if nothing does.
        peak: Largest absolute value of the whole output.
    """

    error: float
    wrong: str
    peak: float


def make_operands(problem: Problem, seed: int = 0, memory_bytes: float = math.inf) -> tuple[mx.array, mx.array]:
    """Random input and weight of a problem, evaluated; nothing is drawn from the global random state.

    One input value in a thousand is thirty times larger than the others. The weight is scaled so that the output's
    values are about 1. Both are made by parts, so that what that takes beside them stays within `memory_bytes`, down to
    some megabytes, and no kernel but the one that first fills an array gets more than 2^31-1 elements.
    """
    fan_in = math.prod(problem.weight_shape[1:])
    scale = 1 / math.sqrt(fan_in * (1 + OUTLIER_SHARE * OUTLIER_SCALE**2) / 3)

    def of_input(shape: Sequence[int], key: mx.array) -> mx.array:
        flat = mx.random.uniform(-1, 1, shape, mx.float32, key=key)
        return mx.where(mx.abs(flat) > 1 - OUTLIER_SHARE, flat * OUTLIER_SCALE, flat)

    def of_weight(shape: Sequence[int], key: mx.array) -> mx.array:
        return mx.random.uniform(-scale, scale, shape, mx.float32, key=key)

    part = int(max(MIN_PART, min(MAX_PART, memory_bytes / MADE_BYTES)))
    input = _made(of_input, problem.input_shape, problem.dtype, mx.random.key(2 * seed), part)
    weight = _made(of_weight, problem.weight_shape, problem.dtype, mx.random.key(2 * seed + 1), part)
    return input, weight


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


def sample_positions(problem: Problem, count: int = POSITIONS) -> list[Position]:
    """Output positions `(n, d, h, w)`: the last element, the corners, then random ones, always the same."""
    sizes = problem.output_shape[:4]
    last: Position = (sizes[0] - 1, sizes[1] - 1, sizes[2] - 1, sizes[3] - 1)
    corners = itertools.product(*({0, size - 1} for size in sizes))
    found: dict[Position, None] = dict.fromkeys([last, *((n, d, h, w) for n, d, h, w in corners)])
    random = np.random.default_rng(0)
    for _ in range(4 * count):
        if len(found) >= count:
            break
        n, d, h, w = (int(random.integers(size)) for size in sizes)
        found[n, d, h, w] = None
    return list(found)[:count]


def sample_channels(problem: Problem, count: int = CHANNELS) -> list[int]:
    """Output channels: the first, the last, and random ones between, always the same."""
    outputs = problem.weight_shape[0]
    if outputs <= count:
        return list(range(outputs))
    between = np.random.default_rng(1).choice(np.arange(1, outputs - 1), count - 2, replace=False)
    return [0, *sorted(int(c) for c in between), outputs - 1]


def _axis(problem: Problem, axis: int, output: int) -> tuple[slice, slice]:
    """(taps, elements) of one axis that an output sees: slices of the kernel and of the input."""
    taps, elements = [], []
    for tap in range(problem.weight_shape[1 + axis]):
        position = output * problem.stride[axis] - problem.padding_low[axis] + tap * problem.dilation[axis]
        element, remainder = divmod(position, problem.input_dilation[axis])
        if remainder == 0 and 0 <= element < problem.input_shape[1 + axis]:
            taps.append(tap)
            elements.append(element)

    def as_slice(numbers: Sequence[int]) -> slice:
        if not numbers:
            return slice(0, 0)
        return slice(numbers[0], numbers[-1] + 1, numbers[1] - numbers[0] if len(numbers) > 1 else 1)

    return as_slice(taps), as_slice(elements)


def _host(arrays: Iterable[mx.array]) -> list[Array]:
    """The arrays in NumPy float64, fetched with one evaluation."""
    wide = [a if a.dtype == mx.float64 else a.astype(mx.float32) for a in arrays]
    mx.eval(wide)
    return [np.asarray(a).astype(np.float64) for a in wide]


class Reference:
    """The exact result of a problem's convolution at sampled positions and channels, in float64.

    Attributes:
        positions: Output positions `(n, d, h, w)`.
        channels: Output channels.
        values: `(positions, channels)`.
    """

    def __init__(self, problem: Problem, input: mx.array, weight: mx.array) -> None:
        self.positions = sample_positions(problem)
        self.channels = sample_channels(problem)
        group_in, group_out = problem.weight_shape[4], problem.weight_shape[0] // problem.groups
        kernels = _host(weight[c] for c in self.channels)
        if problem.flip:
            kernels = [k[::-1, ::-1, ::-1] for k in kernels]
        axes = [[_axis(problem, i, p[1 + i]) for i in range(3)] for p in self.positions]
        patches = _host(input[p[0], d[1], h[1], w[1]] for p, (d, h, w) in zip(self.positions, axes, strict=True))
        self.values = np.zeros((len(self.positions), len(self.channels)))
        for row, (patch, (d, h, w)) in enumerate(zip(patches, axes, strict=True)):
            for column, (channel, kernel) in enumerate(zip(self.channels, kernels, strict=True)):
                first = channel // group_out * group_in
                seen = patch if problem.groups == 1 else patch[..., first : first + group_in]
                self.values[row, column] = np.vdot(seen, kernel[d[0], h[0], w[0]])

    def check(self, output: mx.array, scale: float = 1.0) -> Verdict:
        """Compare an output with the reference.

        Args:
            output: `(N, OD, OH, OW, C_out)`.
            scale: Factor, a power of two, by which the input was larger than that of the reference.
        """
        rows = [output[n, d, h, w] for n, d, h, w in self.positions]
        found = _host(rows)
        return judge(np.stack(found)[:, self.channels] / scale, self.values, _peak(output))


def _peak(output: mx.array) -> float:
    """Largest absolute value, not finite where one is not; without a copy, and by blocks where there are many elements.

    Both ends are no number where an element is none.
    """
    ends = []
    for block in blocks_of(output.shape, MAX_ELEMENTS):
        part = output[block]
        ends += [mx.max(part), mx.min(part)]
    return float(np.max(np.abs(np.stack(_host(ends)))))


def judge(found: Array, exact: Array, peak: float = 1.0) -> Verdict:
    """Compare values, each row a position.

    A result is wrong if any value is not finite, or if a few are off by far more than the others: more than
    `STRAY` times the root mean square of the errors without the largest fiftieth, plus a thousandth; or if many are:
    one by more than a hundred times the median error plus a twentieth. All are relative to the root mean square of the
    value's row. (Honest errors are up to 8 times as large as usual, since kernels of several precisions may share one
    result: that was seen under TF32.)
    """
    if not (math.isfinite(peak) and np.isfinite(found).all()):
        return Verdict(math.inf, "the result is not finite", peak)
    difference = np.abs(found - exact)
    size = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(difference)) / size if size else float(np.linalg.norm(difference))
    rows = np.sqrt(np.mean(exact**2, axis=1, keepdims=True))
    # A row that sees only padding is exactly zero, and so must the result be.
    relative = difference / np.where(rows > 0, rows, 1.0)
    ordered = np.sort(relative, axis=None)
    worst = float(ordered[-1])
    usual = float(np.sqrt(np.mean(ordered[: max(1, len(ordered) * 49 // 50)] ** 2)))
    few, many = STRAY * usual + 1e-3, 100 * float(np.median(relative)) + 0.05
    if worst > min(few, many) or error > 0.5:
        return Verdict(error, f"one value is off by {worst:.2g} of the output's size", peak)
    return Verdict(error, "", peak)


def half_scale(peak: float) -> float:
    """The power of two that brings float16 outputs of this peak near 2^14, the input's own values staying finite."""
    if not (peak > 0 and math.isfinite(peak)):
        return 1.0
    return 2.0 ** max(0, min(10, math.floor(math.log2(HALF_PEAK / peak))))
