"""The exact result of a problem at sampled places, in float64.

The reference gathers the input patches of a few positions and multiplies them in NumPy, so it costs the same at any
size and shares nothing with what it checks: no convolution of MLX, no index arithmetic of a kernel.

An input gradient is checked likewise: at sampled positions of the input, by the outputs that see them. A weight
gradient is a sum over all outputs, so that each of its values costs a pass over one channel of the input and one of the
cotangent: it is checked at few taps and channels, fewer where there are more outputs (`MAX_TERMS`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autoconv._backend import mx
from autoconv.problem import MAX_ELEMENTS, Kind, Problem, Shape5
from autoconv.tuning.operands import blocks_of
from autoconv.tuning.verification import ROUNDING, Verdict, judge

POSITIONS = 32
"""Output positions that are checked, corners and the last element first."""

CHANNELS = 32
"""Output channels that are checked at each position, the first and the last among them."""

GRADIENT_CHANNELS = 4
"""Channels on either side that a weight gradient is checked at."""

MAX_TERMS = 2 * 10**8
"""Products that checking a weight gradient takes at most, four taps apart: about half a second in NumPy."""

MAX_TAPS, MIN_TAPS = 27, 4

BLOCK = 2**18
"""Positions whose products are summed at a time."""

Position = tuple[int, int, int, int]
Array = npt.NDArray[np.float64]


class Reference:
    """The exact result of a problem at sampled places, in float64.

    Attributes:
        positions: Positions `(n, d, h, w)` of the result; for a weight gradient its taps, and `n` is 0.
        channels: Channels of the result; for a weight gradient the channels of either side of each value.
        values: `(positions, channels)`; for a weight gradient one row.
    """

    def __init__(self, problem: Problem, first: mx.array, second: mx.array) -> None:
        self._kind = problem.kind
        self._rounding = ROUNDING.get(problem.dtype, 1e-3)
        if problem.kind is Kind.WEIGHT_GRADIENT:
            self.positions, pairs = sample_taps(problem), _sample_pairs(problem)
            self._pairs = pairs
            self.channels = sorted({c for _, c in pairs})
            # One row: a lone sum may happen to be near zero, and says nothing of how large an error is.
            self.values = _weight_gradient(problem, first, second, self.positions, pairs).reshape(1, -1)
            return
        self.positions, self.channels = sample_positions(problem), sample_channels(problem)
        of = _input_gradient if problem.kind is Kind.INPUT_GRADIENT else _convolution
        self.values = of(problem, first, second, self.positions, self.channels)

    def check(self, result: mx.array, scale: float = 1.0) -> Verdict:
        """Compare a result with the reference.

        Args:
            result: Of the problem's `result_shape`.
            scale: Factor, a power of two, by which the first operand was larger than that of the reference.
        """
        ends = _ends(result)
        if self._kind is Kind.WEIGHT_GRADIENT:
            found = _host([*ends, *(result[:, d, h, w] for _, d, h, w in self.positions)])
            outputs, inputs = (list(side) for side in zip(*self._pairs, strict=True))
            values = np.stack([tap[outputs, inputs] for tap in found[len(ends) :]]).reshape(1, -1)
        else:
            slices, places = _slices(result, self.positions)
            found = _host([*ends, *slices])
            rows = np.concatenate([part.reshape(-1, result.shape[4]) for part in found[len(ends) :]])
            values = rows[places][:, self.channels]
        peak = float(np.max(np.abs(np.stack(found[: len(ends)]))))
        return judge(values / scale, self.values, peak, self._rounding, by_value=self._kind is Kind.WEIGHT_GRADIENT)


def reference_seconds(problem: Problem) -> float:
    """About how long a `Reference` takes: for a weight gradient, which is summed over all outputs, 0.3 us each."""
    return 3e-7 * math.prod(problem.output_shape[:4]) if problem.kind is Kind.WEIGHT_GRADIENT else 0.0


def _slices(result: mx.array, positions: Sequence[Position]) -> tuple[list[mx.array], list[int]]:
    """Few slices that hold all positions, and the place of each among their positions.

    The corners are one slice, where an index reaches all elements: each slice costs a launch, and half of the positions
    are corners.
    """
    corners = _corners(result.shape[:4])
    slices, place = [], {}
    if result.size <= MAX_ELEMENTS and set(corners) <= set(positions):
        slices.append(result[tuple(slice(None, None, max(1, size - 1)) for size in result.shape[:4])])
        place = {corner: i for i, corner in enumerate(corners)}
    for position in positions:
        if position not in place:
            place[position] = len(place)
            slices.append(result[position])
    return slices, [place[position] for position in positions]


def _corners(sizes: Sequence[int]) -> list[Position]:
    """The corners in ascending order, each once."""
    return [(n, d, h, w) for n, d, h, w in itertools.product(*(sorted({0, size - 1}) for size in sizes))]


def _ends(output: mx.array) -> list[mx.array]:
    """The largest and the least value; without a copy, and of blocks where there are many elements.

    Both are no number where an element is none.
    """
    ends = []
    for block in blocks_of(output.shape, MAX_ELEMENTS):
        part = output[block]
        ends += [mx.max(part), mx.min(part)]
    return ends


def sample_positions(problem: Problem, count: int = POSITIONS) -> list[Position]:
    """Positions `(n, d, h, w)` of a convolution's or an input gradient's result: the last element, the corners, then
    random ones, always the same.
    """
    return _sample(problem.result_shape[:4], count)


def _sample(sizes: tuple[int, int, int, int], count: int) -> list[Position]:
    last: Position = (sizes[0] - 1, sizes[1] - 1, sizes[2] - 1, sizes[3] - 1)
    found: dict[Position, None] = dict.fromkeys([last, *_corners(sizes)])
    random = np.random.default_rng(0)
    for _ in range(4 * count):
        if len(found) >= count:
            break
        n, d, h, w = (int(random.integers(size)) for size in sizes)
        found[n, d, h, w] = None
    return list(found)[:count]


def sample_channels(problem: Problem, count: int = CHANNELS) -> list[int]:
    """The result's channels: the first, the last, and random ones between, always the same."""
    return _sample_channels(problem.result_shape[4], count)


def _sample_channels(outputs: int, count: int) -> list[int]:
    if outputs <= count:
        return list(range(outputs))
    between = np.random.default_rng(1).choice(np.arange(1, outputs - 1), count - 2, replace=False)
    return [0, *sorted(int(c) for c in between), outputs - 1]


def sample_taps(problem: Problem) -> list[Position]:
    """Taps `(0, kd, kh, kw)` of a weight gradient: the last, those at the corners and the middle, then random ones.

    As many as `MAX_TERMS` allows, but `MIN_TAPS`.
    """
    outputs = math.prod(problem.output_shape[:4])
    count = max(MIN_TAPS, min(MAX_TAPS, MAX_TERMS // max(1, outputs * GRADIENT_CHANNELS**2)))
    depth, height, width = problem.weight_shape[1:4]
    middle: Position = (0, depth // 2, height // 2, width // 2)
    sampled = _sample((1, depth, height, width), count)
    return sampled if middle in sampled else [sampled[0], middle, *sampled[1 : count - 1]]


def _sample_pairs(problem: Problem) -> list[tuple[int, int]]:
    """(output channel, place in the weight's channels)."""
    outputs = _sample_channels(problem.weight_shape[0], GRADIENT_CHANNELS)
    return list(itertools.product(outputs, _sample_channels(problem.weight_shape[4], GRADIENT_CHANNELS)))


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
    """The arrays in NumPy float64, fetched as one: on CUDA each transfer costs 30 to 50 us by itself."""
    found = list(arrays)
    if not found:
        return []
    flat = mx.concatenate([mx.flatten(a) for a in found])
    host = np.asarray(flat if flat.dtype == mx.float64 else flat.astype(mx.float32)).astype(np.float64)
    ends = itertools.accumulate(a.size for a in found)
    return [host[end - a.size : end].reshape(a.shape) for a, end in zip(found, ends, strict=True)]


def _convolution(
    problem: Problem, input: mx.array, weight: mx.array, positions: Sequence[Position], channels: Sequence[int]
) -> Array:
    group_in, group_out = problem.weight_shape[4], problem.weight_shape[0] // problem.groups
    kernels = np.stack(_host(weight[c] for c in channels))
    if problem.flip:
        kernels = kernels[:, ::-1, ::-1, ::-1]
    axes = [[_axis(problem, i, p[1 + i]) for i in range(3)] for p in positions]
    patches = _host(input[p[0], d[1], h[1], w[1]] for p, (d, h, w) in zip(positions, axes, strict=True))
    seen: dict[tuple[tuple[int, int, int], ...], list[int]] = {}
    for row, taps in enumerate(axes):
        seen.setdefault(tuple((t.start, t.stop, t.step) for t, _ in taps), []).append(row)
    groups: dict[int, list[int]] = {}
    for column, channel in enumerate(channels):
        groups.setdefault(channel // group_out * group_in, []).append(column)
    values = np.zeros((len(positions), len(channels)))
    for rows in seen.values():  # those that see the same taps, as all inner ones do
        d, h, w = (taps for taps, _ in axes[rows[0]])
        block = np.stack([patches[row] for row in rows])
        for first, columns in groups.items():
            left = block[..., first : first + group_in].reshape(len(rows), -1)
            right = kernels[columns, d, h, w].reshape(len(columns), -1)
            values[np.ix_(rows, columns)] = left @ right.T
    return values


def _seen_by(problem: Problem, axis: int, element: int) -> tuple[list[int], list[int]]:
    """(taps, outputs) of one axis through which an input element is seen."""
    taps, outputs = [], []
    for tap in range(problem.weight_shape[1 + axis]):
        position = element * problem.input_dilation[axis] + problem.padding_low[axis] - tap * problem.dilation[axis]
        output, remainder = divmod(position, problem.stride[axis])
        if remainder == 0 and 0 <= output < problem.output_shape[1 + axis]:
            taps.append(tap)
            outputs.append(output)
    return taps, outputs


def _input_gradient(
    problem: Problem, cotangent: mx.array, weight: mx.array, positions: Sequence[Position], channels: Sequence[int]
) -> Array:
    group_in, group_out = problem.weight_shape[4], problem.weight_shape[0] // problem.groups
    firsts = [channel // group_in * group_out for channel in channels]
    kernels = _host(
        weight[first : first + group_out, ..., channel % group_in]
        for first, channel in zip(firsts, channels, strict=True)
    )
    if problem.flip:
        kernels = [k[:, ::-1, ::-1, ::-1] for k in kernels]
    axes = [[_seen_by(problem, i, p[1 + i]) for i in range(3)] for p in positions]

    def box(outputs: Sequence[int]) -> slice:
        return slice(min(outputs, default=0), max(outputs, default=-1) + 1)

    patches = _host(
        cotangent[p[0], box(d[1]), box(h[1]), box(w[1])] for p, (d, h, w) in zip(positions, axes, strict=True)
    )
    values = np.zeros((len(positions), len(channels)))
    for row, (patch, seen) in enumerate(zip(patches, axes, strict=True)):
        if not patch.size:
            continue
        taps, places = np.ix_(*(t for t, _ in seen)), np.ix_(*([o - min(os) for o in os] for _, os in seen))
        wanted = patch[places]
        for column, (first, kernel) in enumerate(zip(firsts, kernels, strict=True)):
            chosen = kernel[:, taps[0], taps[1], taps[2]]
            values[row, column] = np.vdot(np.moveaxis(wanted[..., first : first + group_out], -1, 0), chosen)
    return values


def _weight_gradient(
    problem: Problem,
    input: mx.array,
    cotangent: mx.array,
    positions: Sequence[Position],
    pairs: Sequence[tuple[int, int]],
) -> Array:
    """`(taps, pairs)`: the sampled channels come to the host in float32, and are summed in float64 block by block.

    It holds four channels of each operand, padding and dilation of the input written out.
    """
    outputs, inputs = (sorted(set(side)) for side in zip(*pairs, strict=True))
    group_in, group_out = problem.weight_shape[4], problem.weight_shape[0] // problem.groups
    groups = sorted({o // group_out for o in outputs})
    columns = [g * group_in + c for g in groups for c in inputs]
    seen, wanted = (_columns(a, c) for a, c in ((input, columns), (cotangent, outputs)))
    padded = _written_out(problem, seen)
    values = np.zeros((len(positions), len(outputs), len(columns)))
    for row, (_, *tap) in enumerate(positions):
        window = padded[slice(None), *(_tap_window(problem, axis, k) for axis, k in enumerate(tap))]
        for place in _blocks(problem.output_shape):
            left, right = wanted[place].astype(np.float64), window[place].astype(np.float64)
            values[row] += left.reshape(-1, len(outputs)).T @ right.reshape(-1, len(columns))
    where = [(outputs.index(o), groups.index(o // group_out) * len(inputs) + inputs.index(c)) for o, c in pairs]
    return np.stack([values[:, o, c] for o, c in where], axis=1)


def _tap_window(problem: Problem, axis: int, tap: int) -> slice:
    """What all outputs see of one axis of the padded input through a tap of the weight."""
    place = problem.weight_shape[1 + axis] - 1 - tap if problem.flip else tap
    first, stride = place * problem.dilation[axis], problem.stride[axis]
    return slice(first, first + (problem.output_shape[1 + axis] - 1) * stride + 1, stride)


def _columns(array: mx.array, channels: Sequence[int]) -> npt.NDArray[Any]:
    """Some channels of an array on the host, one after another: a gather compiles a kernel first on CUDA."""
    wide = array.dtype if array.dtype == mx.float64 else mx.float32
    return np.stack([np.asarray(array[..., channel].astype(wide)) for channel in channels], axis=-1)


def _written_out(problem: Problem, input: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The input with the zeros of its dilation and padding."""
    batch, *sizes, channels = input.shape
    lengths = [
        low + max(0, (size - 1) * apart + 1) + high
        for size, apart, low, high in zip(
            sizes, problem.input_dilation, problem.padding_low, problem.padding_high, strict=True
        )
    ]
    padded = np.zeros((batch, *lengths, channels), input.dtype)
    places = (
        slice(low, low + (size - 1) * apart + 1, apart)
        for size, apart, low in zip(sizes, problem.input_dilation, problem.padding_low, strict=True)
    )
    padded[(slice(None), *places)] = input
    return padded


def _blocks(shape: Shape5) -> Iterator[tuple[slice, slice]]:
    """Slices of N and D, of about `BLOCK` positions each."""
    batch, depth, height, width, _ = shape
    frames = max(1, BLOCK // max(1, height * width))
    for image in range(batch):
        for start in range(0, depth, frames):
            yield slice(image, image + 1), slice(start, start + frames)
