"""How a convolution, or a weight gradient, is cut into chunks of its output.

A chunk of clips of the batch, of output frames, or of rows of a few frames is itself a convolution, of a slice of the
input with padding of its own: output `o` of an axis sees the positions `o * stride - low` to `+ (kernel - 1) *
dilation` of the dilated input, element `i` standing at `i * input_dilation`; what a chunk's positions reach beyond its
elements is padding. Outputs that see no element are zero, and left out. A weight gradient is the sum of those of the
chunks. How they run is `_chunked`'s affair.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from autoconv.problem import Problem

Form: TypeAlias = tuple[int, int, int]
"""Elements that neighbouring outputs see along an axis, and padding before and after them."""

PARAMETERS = ("clips", "frames", "rows")
"""Parameters that are this module's, whatever the algorithm: the most clips of the batch, output frames and rows of a
chunk."""

MOST = 4096
"""Chunks that are offered at most: each costs some 0.1 ms to ask for, in a trace as well, and there as much memory as a
dozen operations take."""

FEWEST = 8
"""Frames that the smallest chunk may have: an algorithm may need some, such as those of a tile."""


@dataclass(frozen=True)
class Span:
    """Neighbouring outputs of one axis, and what they see.

    Attributes:
        start: First output.
        stop: One past the last.
        first: First element of the input that they see.
        end: One past the last.
        low: Padding before the first element.
        high: Padding after the last.
    """

    start: int
    stop: int
    first: int
    end: int
    low: int
    high: int

    @property
    def form(self) -> Form:
        """What the work depends on."""
        return self.end - self.first, self.low, self.high


@dataclass(frozen=True)
class Piece:
    """One chunk.

    Attributes:
        problem: The chunk as a problem.
        taken: Where its input stands in the input, over N, D and H.
        written: Where its result stands in the output.
    """

    problem: Problem
    taken: tuple[slice, slice, slice]
    written: tuple[slice, slice, slice]


def spans(problem: Problem, axis: int, size: int | None) -> list[Span]:
    """An axis (0 for D, 1 for H) in parts of at most `size` outputs that differ by one at most; whole for None.

    Outputs at a part's ends that see no element are left out of it, and a part that sees none altogether.
    """
    if size is None:
        return [_whole(problem, axis)]
    parts = (_span(problem, axis, start, stop) for start, stop in _even(problem.output_shape[1 + axis], size))
    return [part for part in parts if part is not None]


def _even(total: int, size: int) -> Iterator[tuple[int, int]]:
    """So many things in as few parts as are of at most `size`, which differ by one at most."""
    count = math.ceil(total / size)
    return itertools.pairwise(index * total // count for index in range(count + 1)) if count else iter(())


def _ceil(value: int, by: int) -> int:
    """`value` divided by `by`, rounded up."""
    return -(-value // by)


def _lengths(total: int, parts: int) -> list[tuple[int, int]]:
    """The lengths of so many parts of so many things that differ by one at most, and how many there are of each."""
    least, longer = divmod(total, parts) if parts else (0, 0)
    return [(length, times) for length, times in ((least, parts - longer), (least + 1, longer)) if times]


def _whole(problem: Problem, axis: int) -> Span:
    outputs, elements = problem.output_shape[1 + axis], problem.input_shape[1 + axis]
    return Span(0, outputs, 0, elements, problem.padding_low[axis], problem.padding_high[axis])


def _reach(problem: Problem, axis: int) -> int:
    """Distance of the first and the last position that one output sees."""
    return (problem.weight_shape[1 + axis] - 1) * problem.dilation[axis]


def _span(problem: Problem, axis: int, start: int, stop: int) -> Span | None:
    """What outputs from `start` to before `stop` see; None where that is nothing.

    Elements stand an input dilation apart, so that what an output sees, or whether anything, repeats with that period.
    """
    elements, low, reach = problem.input_shape[1 + axis], problem.padding_low[axis], _reach(problem, axis)
    stride, spread = problem.stride[axis], problem.input_dilation[axis]

    def sees(output: int) -> tuple[int, int]:
        position = output * stride - low
        return max(0, -(-position // spread)), min(elements, (position + reach) // spread + 1)

    start = max(start, -(-(low - reach) // stride))
    stop = min(stop, ((elements - 1) * spread + low) // stride + 1)
    seeing = (output for output in range(start, min(stop, start + spread)) if operator.lt(*sees(output)))
    a = next(seeing, None)
    if a is None:
        return None
    b = next(output for output in range(stop - 1, a - 1, -1) if operator.lt(*sees(output)))
    first, end = sees(a)[0], sees(b)[1]
    before = first * spread - (a * stride - low)
    after = b * stride - low + reach - (end - 1) * spread
    return Span(a, b + 1, first, end, before, after)


@functools.lru_cache(maxsize=1024)
def forms(problem: Problem, axis: int, size: int | None) -> tuple[tuple[Form, int], ...]:
    """The forms that an axis's spans have, and how many spans there are of each.

    Of spans that see no padding only the first of each length, and place relative to the elements, is looked at; and
    without an input dilation they are not even walked through, since their lengths follow from how many there are.
    """
    if size is None:
        return ((_whole(problem, axis).form, 1),)
    outputs, low, reach = problem.output_shape[1 + axis], problem.padding_low[axis], _reach(problem, axis)
    stride, spread = problem.stride[axis], problem.input_dilation[axis]
    last = (problem.input_shape[1 + axis] - 1) * spread + low - reach
    count = math.ceil(outputs / size)
    # Span `i` is of outputs `i * outputs // count` to before `(i + 1) * outputs // count`. Those that see no padding
    # begin at output `low / stride` or after it, and end with output `last / stride` or before it.
    first = min(count, _ceil(_ceil(low, stride) * count, outputs))
    end = max(first, min(count, _ceil((last // stride + 2) * count, outputs) - 1))
    found: Counter[Form] = Counter()

    def add(start: int, stop: int, times: int) -> None:
        span = _span(problem, axis, start, stop)
        if span is not None:
            found[span.form] += times

    for index in itertools.chain(range(first), range(end, count)):
        add(index * outputs // count, (index + 1) * outputs // count, 1)
    if spread == 1:
        for length, times in _lengths(end * outputs // count - first * outputs // count, end - first):
            found[(length - 1) * stride + reach + 1, 0, 0] += times
        return tuple(found.items())
    alike: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], int] = {}
    for index in range(first, end):
        start, stop = index * outputs // count, (index + 1) * outputs // count
        kind = stop - start, (start * stride - low) % spread
        alike[kind] += 1
        examples.setdefault(kind, start)
    for kind, start in examples.items():
        add(start, start + kind[0], alike[kind])
    return tuple(found.items())


def _part(problem: Problem, batch: int, depth: Form, height: Form) -> Problem:
    _, _, _, width, channels = problem.input_shape
    return replace(
        problem,
        input_shape=(batch, depth[0], height[0], width, channels),
        padding_low=(depth[1], height[1], problem.padding_low[2]),
        padding_high=(depth[2], height[2], problem.padding_high[2]),
    )


@functools.lru_cache(maxsize=256)
def counted(
    problem: Problem, frames: int | None = None, rows: int | None = None, clips: int | None = None
) -> tuple[tuple[Problem, int], ...]:
    """The different problems that a problem's chunks are, and how many there are of each."""
    batch = problem.input_shape[0]
    batches = _lengths(batch, math.ceil(batch / clips)) if clips else [(batch, 1)]
    # Parts of different lengths or forms are different problems.
    return tuple(
        (_part(problem, n, d, h), a * b * c)
        for (n, a), (d, b), (h, c) in itertools.product(batches, forms(problem, 0, frames), forms(problem, 1, rows))
    )


def parts(
    problem: Problem, frames: int | None = None, rows: int | None = None, clips: int | None = None
) -> list[Problem]:
    """The different problems that a problem's chunks are."""
    return [part for part, _ in counted(problem, frames, rows, clips)]


def number(problem: Problem, frames: int | None = None, rows: int | None = None, clips: int | None = None) -> int:
    """How many chunks there are at most."""
    totals = zip(problem.output_shape, (clips, frames, rows), strict=False)
    return math.prod(math.ceil(total / size) for total, size in totals if size)


def pieces(
    problem: Problem, frames: int | None = None, rows: int | None = None, clips: int | None = None
) -> list[Piece]:
    """The chunks of a problem, in order."""
    batch = problem.input_shape[0]
    known: dict[tuple[object, ...], Problem] = {}
    found = []
    for n, d, h in itertools.product(
        _even(batch, clips) if clips else [(0, batch)], spans(problem, 0, frames), spans(problem, 1, rows)
    ):
        kind = n[1] - n[0], d.form, h.form
        part = known.get(kind)
        if part is None:
            part = known[kind] = _part(problem, n[1] - n[0], d.form, h.form)
        whole = slice(*n) if clips else slice(None)
        taken = (whole, slice(d.first, d.end), slice(h.first, h.end))
        found.append(Piece(part, taken, (whole, slice(d.start, d.stop), slice(h.start, h.stop))))
    return found


def largest(
    problem: Problem, fits: Callable[[Problem], bool], applies: Callable[[Problem], bool]
) -> dict[str, int] | None:
    """The parameters of the largest chunks each of which `fits`; None where no chunk does, or over `MOST` would be
    needed.

    The batch is cut first: clips share no frames, so that nothing is read twice, and a slice of them is contiguous.
    Where one clip does not fit, frames are cut of one, and where those do not, rows of the fewest frames to which the
    algorithm `applies`. One that does not apply to a single clip has frames and rows of all of them cut.
    """
    batch = problem.input_shape[0]
    size = _largest(batch, 1, MOST, lambda n: _all_fit(problem, fits, clips=n))
    if size is not None:
        return {"clips": size}
    found = _largest_of_frames(problem, fits, applies, {"clips": 1}) if batch > 1 else None
    return found or _largest_of_frames(problem, fits, applies, {})


def _all_fit(problem: Problem, fits: Callable[[Problem], bool], **sizes: int) -> bool:
    cut = parts(problem, **sizes)
    return bool(cut) and all(map(fits, cut))


def _largest_of_frames(
    problem: Problem, fits: Callable[[Problem], bool], applies: Callable[[Problem], bool], alone: dict[str, int]
) -> dict[str, int] | None:
    """Where the batch is cut as `alone` says."""
    frames, height = problem.output_shape[1:3]
    cuts = ((n, rows) for n in range(1, min(FEWEST, frames) + 1) for rows in (None, 1))
    least = next((n for n, rows in cuts if all(map(applies, parts(problem, n, rows, **alone)))), None)
    if least is None:
        return None
    most = MOST // max(1, number(problem, **alone))
    size = _largest(frames, least, most, lambda n: _all_fit(problem, fits, frames=n, **alone))
    if size is not None:
        return {**alone, "frames": size}
    most //= math.ceil(frames / least)
    size = _largest(height, 1, most, lambda n: _all_fit(problem, fits, frames=least, rows=n, **alone))
    return None if size is None else {**alone, "frames": least, "rows": size}


def _largest(outputs: int, least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest size that fits, of those that cut an axis in two to `most`; a smaller one is taken to fit as well."""
    sizes: list[int] = []
    count, most = 2, min(outputs, most)
    while count <= most and (size := _ceil(outputs, count)) >= least:
        sizes.append(size)
        count = _ceil(outputs, size - 1) if size > 1 else most + 1  # the next that cuts it smaller
    sizes.reverse()
    fitting, too_large = -1, len(sizes)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if fits(sizes[middle]):
            fitting = middle
        else:
            too_large = middle
    return sizes[fitting] if fitting >= 0 else None
