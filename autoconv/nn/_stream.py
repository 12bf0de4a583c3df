"""The depth axis of a causal convolution, over a stream of frames that comes in chunks.

A chunk's axis is what lies before its frames (padding at the stream's start, a cache later), its frames, and padding
after them where the convolution is not causal. Output `o` sees through tap `k` place `o * stride + k * dilation` of it.

Outputs that see the chunk's own frames alone are a convolution like any other. The few around them are sums over terms:
neighbouring outputs that see, through the same taps, frames of one array that lie in it one stride apart. Where padding
repeats a frame, taps that see the same frame are one tap, whose kernel is the sum of theirs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from autoconv._backend import mx
from autoconv.algorithms._depth import FlatConvolution, take
from autoconv.nn._derived import total


class Fill(Enum):
    """What lies around a chunk's frames."""

    CACHE = "cache"
    """Frames that came before, an array of their own."""
    ZEROS = "zeros"
    """Padding by zeros."""
    EDGE = "edge"
    """Padding by the first frame, and by the last."""


class Held(Enum):
    """The array that holds a frame."""

    CACHE = "cache"
    INPUT = "input"


@dataclass(frozen=True)
class Term:
    """What neighbouring outputs see through some taps.

    Attributes:
        start: The first output.
        count: How many outputs.
        taps: The taps, which all see one frame for each output.
        held: The array that holds the frames.
        frame: The one that the first output sees; those of neighbouring outputs lie one stride apart.
    """

    start: int
    count: int
    taps: range
    held: Held
    frame: int

    @property
    def stop(self) -> int:
        """One past the last output."""
        return self.start + self.count


@dataclass(frozen=True)
class Stream:
    """A chunk's depth axis.

    Attributes:
        frames: Frames of the chunk.
        before: Frames of cache or padding before them.
        after: Frames of padding after them.
        fill: What lies around them.
        kernel: Taps.
        stride: Distance of what neighbouring outputs see.
        dilation: Distance of what neighbouring taps see.
    """

    frames: int
    before: int
    after: int
    fill: Fill
    kernel: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """Frames that an output sees before its last one."""
        return (self.kernel - 1) * self.dilation

    @functools.cached_property
    def outputs(self) -> int:
        """How many outputs see nothing beyond the axis."""
        return max(0, (self.before + self.frames + self.after - self.reach - 1) // self.stride + 1)

    @functools.cached_property
    def inner(self) -> range:
        """Outputs that see frames of the chunk alone; at the end of all outputs if there are none."""
        start = -(-self.before // self.stride)
        stop = (self.before + self.frames - self.reach - 1) // self.stride + 1
        return range(start, stop) if start < stop else range(self.outputs, self.outputs)

    @functools.cached_property
    def low(self) -> range:
        """Outputs before the inner ones."""
        return range(self.inner.start)

    @functools.cached_property
    def high(self) -> range:
        """Outputs after the inner ones."""
        return range(self.inner.stop, self.outputs)

    def place(self, output: int) -> int:
        """The first frame that an output sees, counted from the chunk's first."""
        return output * self.stride - self.before

    def seen(self, output: int, *, outside: bool) -> dict[tuple[Held, int], range]:
        """The frames that an output sees, and through which taps."""
        found: dict[tuple[Held, int], range] = {}
        for tap in range(self.kernel):
            frame = self.place(output) + tap * self.dilation
            inside = 0 <= frame < self.frames
            if (inside and outside) or (not inside and self.fill is Fill.ZEROS):
                continue
            if frame < 0 and self.fill is Fill.CACHE:
                source = Held.CACHE, frame + self.before
            else:
                source = Held.INPUT, min(max(frame, 0), self.frames - 1)
            found[source] = range(found[source].start if source in found else tap, tap + 1)
        return found


@functools.lru_cache(maxsize=256)
def terms(stream: Stream, outputs: range, *, outside: bool = False) -> tuple[Term, ...]:
    """The terms of some outputs, which are counted from the first of these.

    Args:
        stream: The axis.
        outputs: Which outputs.
        outside: Whether to leave out what is seen of the chunk's frames in their own place.
    """
    found: list[Term] = []
    going: dict[tuple[range, Held, int], int] = {}  # by what the next output must see to go on with a term
    for output in outputs:
        goes_on = {}
        for (held, frame), taps in stream.seen(output, outside=outside).items():
            place = going.get((taps, held, frame), len(found))
            if place == len(found):
                found.append(Term(output - outputs.start, 0, taps, held, frame))
            found[place] = replace(found[place], count=found[place].count + 1)
            goes_on[taps, held, frame + stream.stride] = place
        going = goes_on
    return tuple(found)


def add_up(
    terms: Sequence[Term],
    outputs: int,
    frames: Mapping[Held, mx.array],
    stride: int,
    kernel: Callable[[range], mx.array],
    convolve: FlatConvolution,
    nothing: Callable[[int], mx.array],
) -> mx.array:
    """Outputs as sums over their terms: `(N, outputs, OH, OW, C_out)`.

    Args:
        terms: The terms of these outputs.
        outputs: How many they are.
        frames: The arrays that hold frames, which are read where they lie: `(N, D, H, W, C)`.
        stride: Distance of the frames that neighbouring outputs see.
        kernel: The sum of some taps, `(C_out, KH, KW, C / groups)`.
        convolve: The 2D convolution.
        nothing: So many output frames that see only zeros.
    """
    results = []
    for term in terms:
        held = frames[term.held]
        seen = take(held, term.frame, term.frame + (term.count - 1) * stride + 1, stride)
        results.append(mx.unflatten(convolve(seen, kernel(term.taps)), 0, (held.shape[0], term.count)))
    summed = []
    for start, stop in itertools.pairwise(sorted({0, outputs, *(t.start for t in terms), *(t.stop for t in terms)})):
        parts = [
            result if (term.start, term.stop) == (start, stop) else result[:, start - term.start : stop - term.start]
            for term, result in zip(terms, results, strict=True)
            if term.start <= start and stop <= term.stop
        ]
        summed.append(total(parts) if parts else nothing(stop - start))
    return mx.concatenate(summed, axis=1) if len(summed) > 1 else summed[0]
