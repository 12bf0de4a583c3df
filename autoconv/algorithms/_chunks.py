"""Any convolution in chunks of its output, so that beside its operands it takes what one chunk takes.

A chunk of output frames, or of rows of one frame, is itself a convolution, of a slice of the input with padding of its
own: output `o` of an axis sees the positions `o * stride - low` to `+ (kernel - 1) * dilation` of the dilated input,
element `i` standing at `i * input_dilation`; what a chunk's positions reach beyond its elements is padding. Outputs
that see no element are zero, and left out. (That also keeps the gradients right which MLX has wrong where padding
reaches further than the kernel.)

The output begins as zeros and each chunk is written into it. MLX writes in place if nobody else holds the array, so no
second output lives. (A concatenation holds all parts and the whole; and on GPUs it copies each part with 32-bit
indices, though the steps between a part's batches are those of the whole, while a write into a slice takes 64-bit ones
where the whole is past 2^31-1 elements. So is the fill with zeros, the one kernel that gets all of such an output.)

Outside a trace each chunk is evaluated before the next is begun, and what it took is free by then. Inside one, where
nothing can be evaluated or all that is would be kept, each chunk's input depends on the result of the chunk before,
which orders them. On the CPU that keeps to the same bound; GPUs allocate for up to ten command buffers ahead of what
runs, so that there more than one chunk's memory may be taken at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from autoconv._backend import mx
from autoconv.problem import Problem

Run: TypeAlias = Callable[[mx.array, mx.array], mx.array]

PARAMETERS = ("frames", "rows")
"""Parameters that are this module's, whatever the algorithm: the most output frames, and rows, of a chunk."""

LEVELS = 112
"""Views between two writes into the output inside a trace: more than a chunk's graph is deep, and more than the hundred
operations that MLX's CPU backend schedules before it waits for the first (see `_pass_on`)."""

DEPTH = 16384
"""Most of those views in one trace. MLX walks a trace by recursion, and a stack of 8 MB ends at some 50000. Past that
many there are fewer between two writes, so that with over 146 chunks in a trace more of their results may be alive."""

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
    def form(self) -> tuple[int, int, int]:
        """What the work depends on: elements and padding."""
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
    outputs, elements = problem.output_shape[1 + axis], problem.input_shape[1 + axis]
    low, high = problem.padding_low[axis], problem.padding_high[axis]
    if size is None:
        return [Span(0, outputs, 0, elements, low, high)]
    stride, spread = problem.stride[axis], problem.input_dilation[axis]
    reach = (problem.weight_shape[1 + axis] - 1) * problem.dilation[axis]

    def seen(start: int, stop: int) -> tuple[int, int]:
        """Elements from the first position of one output to the last of another."""
        first, last = start * stride - low, stop * stride - low + reach
        return max(0, -(-first // spread)), min(elements, last // spread + 1)

    count = math.ceil(outputs / size)
    found = []
    for start, stop in itertools.pairwise(index * outputs // count for index in range(count + 1)):
        sees = [output for output in range(start, stop) if (ends := seen(output, output))[0] < ends[1]]
        if sees:
            a, b = sees[0], sees[-1]
            first, end = seen(a, b)
            before = first * spread - (a * stride - low)
            after = b * stride - low + reach - (end - 1) * spread
            found.append(Span(a, b + 1, first, end, before, after))
    return found


def _part(problem: Problem, depth: Span, height: Span) -> Problem:
    batch, _, _, width, channels = problem.input_shape
    return replace(
        problem,
        input_shape=(batch, depth.end - depth.first, height.end - height.first, width, channels),
        padding_low=(depth.low, height.low, problem.padding_low[2]),
        padding_high=(depth.high, height.high, problem.padding_high[2]),
    )


def parts(problem: Problem, frames: int, rows: int | None = None) -> set[Problem]:
    """The different problems that a problem's chunks are."""
    depth, height = ({s.form: s for s in spans(problem, axis, n)} for axis, n in enumerate((frames, rows)))
    return {_part(problem, d, h) for d, h in itertools.product(depth.values(), height.values())}


def keeps_derivatives(problem: Problem, part: Problem, axes: Iterable[int] = (0, 1)) -> bool:
    """Whether MLX has a chunk's second derivatives right along these axes, where they are cut.

    The first ones are right always. Under input dilation it has the second wrong where the padding is longer than the
    distance of the outputs.
    """

    def extent(of: Problem, axis: int) -> tuple[int, int, int]:
        return of.input_shape[1 + axis], of.padding_low[axis], of.padding_high[axis]

    for axis in axes:
        reach = (part.output_shape[1 + axis] - 1) * part.stride[axis]
        cut = extent(part, axis) != extent(problem, axis)
        if cut and part.input_dilation[axis] > 1 and max(extent(part, axis)[1:]) > reach:
            return False
    return True


def pieces(problem: Problem, frames: int, rows: int | None = None) -> list[Piece]:
    """The chunks of a problem, in order."""
    known: dict[tuple[object, object], Problem] = {}
    found = []
    for d, h in itertools.product(spans(problem, 0, frames), spans(problem, 1, rows)):
        part = known.get((d.form, h.form))
        if part is None:
            part = known[d.form, h.form] = _part(problem, d, h)
        everything = slice(None)
        taken = (everything, slice(d.first, d.end), slice(h.first, h.end))
        found.append(Piece(part, taken, (everything, slice(d.start, d.stop), slice(h.start, h.stop))))
    return found


def largest(
    problem: Problem, fits: Callable[[Problem], bool], applies: Callable[[Problem], bool]
) -> dict[str, int] | None:
    """The parameters of the largest chunks each of which `fits`, frames first; None where no chunk does.

    Where frames alone do not fit, rows are cut of the fewest frames to which the algorithm `applies`.
    """
    frames, height = problem.output_shape[1], problem.output_shape[2]
    cuts = ((n, rows) for n in range(1, min(FEWEST, frames) + 1) for rows in (None, 1))
    least = next((n for n, rows in cuts if all(map(applies, parts(problem, n, rows)))), None)
    if least is None:
        return None

    def fit(cut: set[Problem]) -> bool:
        return bool(cut) and all(map(fits, cut))

    size = _largest(frames, least, lambda n: fit(parts(problem, n)))
    if size is not None:
        return {"frames": size}
    size = _largest(height, 1, lambda n: fit(parts(problem, least, n)))
    return None if size is None else {"frames": least, "rows": size}


def _largest(outputs: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """The largest size, of those that cut an axis in two or more, that fits; a smaller one is taken to fit as well."""
    sizes = sorted({size for count in range(2, outputs + 1) if (size := math.ceil(outputs / count)) >= least})
    fitting, too_large = -1, len(sizes)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if fits(sizes[middle]):
            fitting = middle
        else:
            too_large = middle
    return sizes[fitting] if fitting >= 0 else None


def chunked(
    problem: Problem,
    build: Callable[[Problem], Run],
    frames: int,
    rows: int | None = None,
    *,
    one_call: bool = False,
) -> Run:
    """The convolution, chunk by chunk.

    Args:
        problem: The whole.
        build: Makes the convolution of a chunk; called once for equal ones.
        frames: The most output frames of a chunk.
        rows: The most output rows of a chunk. Default: all.
        one_call: Whether a chunk is one 3D convolution of MLX's. Of those it has none that is batched over input and
            weight, so that under `vmap` waiting must not make an operand batched that is not; in other algorithms it
            must, since MLX's `vmap` has some of their operations wrong on an array that passed it unbatched.
    """
    after = functools.partial(_after, unbatched=one_call)
    plan = pieces(problem, frames, rows)
    runs = {part: build(part) for part in {piece.problem for piece in plan}}
    shape, narrow = problem.output_shape, problem.item_bytes == 2

    def evaluated(input: mx.array, weight: mx.array) -> mx.array:
        output = mx.zeros(shape, input.dtype)
        for piece in plan:
            output[piece.written] = runs[piece.problem](input[piece.taken], weight)
            mx.eval(output)
        return output

    @mx.custom_function
    def ordered(input: mx.array, weight: mx.array) -> mx.array:
        output = mx.zeros(shape, input.dtype)
        last = None
        for piece in plan:
            last = runs[piece.problem](after(input[piece.taken], last), weight)
            output = _pass_on(output, min(LEVELS, DEPTH // len(plan)))
            output[piece.written] = last
        return output

    @ordered.vjp
    def gradients(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Both gradients, chunk by chunk as well; only what is used of them is ever evaluated."""
        input, weight = primals
        of_input = mx.zeros(input.shape, input.dtype)
        of_weight = mx.zeros(weight.shape, mx.float32 if narrow else weight.dtype)
        last_input = last_weight = None
        for piece in plan:
            run, taken, wanted = runs[piece.problem], input[piece.taken], cotangent[piece.written]
            last_input = _gradient(run, (taken, weight), 0, after(wanted, last_input))
            of_input = of_input.at[piece.taken].add(last_input)
            last_weight = _gradient(run, (taken, weight), 1, after(wanted, last_weight))
            of_weight = of_weight + last_weight
        return of_input, of_weight.astype(weight.dtype)

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        if may_evaluate(input, weight):
            return evaluated(input, weight)
        return cast("mx.array", ordered(input, weight))

    return run


def _gradient(run: Run, operands: tuple[mx.array, mx.array], which: int, cotangent: mx.array) -> mx.array:
    """The gradient with respect to one operand; not a number where MLX has even its shape wrong, or fails over that.

    (It does for some paddings under input dilation.) The gradient may not be used at all, so this is no place to raise.
    """
    operand, other = operands[which], operands[1 - which]

    def of_one(variable: mx.array) -> mx.array:
        return run(other, variable) if which else run(variable, other)

    try:
        _, (found,) = mx.vjp(of_one, [operand], [cotangent])
    except ValueError:
        found = None
    if found is None or found.shape != operand.shape:
        return mx.full(operand.shape, math.nan, operand.dtype)
    return found


def may_evaluate(*arrays: mx.array) -> bool:
    """Whether evaluating these now raises no error and frees what led to them.

    Neither is so while a function is traced that they are arguments of: under `mx.compile` and `mx.vmap` evaluation
    raises, and under `mx.grad` all that is evaluated is kept. An asynchronous evaluation is refused in all three.
    """
    try:
        mx.async_eval(*map(mx.stop_gradient, arrays))  # type: ignore[no-untyped-call] # no kernel: a view of each, once it is there
    except ValueError:
        return False
    return True


def _after(operand: mx.array, last: mx.array | None, *, unbatched: bool = False) -> mx.array:
    """The same operand, which cannot be read before `last` is there; it costs one copy.

    Under `vmap` it is batched as `last` is, or with `unbatched` as it was.
    """
    if last is None:
        return operand
    link: Run = _linked_as_it_was if unbatched else _linked
    return link(operand, last[0, 0, 0, 0, 0])


def _linked(operand: mx.array, last: mx.array) -> mx.array:
    """A choice between an operand and itself: no arithmetic touches it, so no NaN of `last` can."""
    return mx.where(mx.stop_gradient(last) == 0, operand, operand)


_linked_as_it_was: Any = mx.custom_function(_linked)


@_linked_as_it_was.vmap  # type: ignore[untyped-decorator]
def _linked_batch(
    arrays: tuple[mx.array, mx.array], axes: tuple[int | None, int | None]
) -> tuple[mx.array, int | None]:
    operand, last = arrays
    return _linked_as_it_was(operand, last if axes[1] is None else mx.flatten(last)[0]), axes[0]


def _pass_on(output: mx.array, levels: int) -> mx.array:
    """The same output through so many views that do nothing but take their turn.

    MLX's order of evaluation is that of the distance from the result, the furthest first. A write into the output is
    one step nearer than the write before, and a chunk many more than the chunk before; so without these all writes
    would come last, and all chunks would live until then. (They cannot be ordered by data: who reads the output of a
    write keeps the next from being in place.)
    """
    for _ in range(levels // 2):
        output = mx.squeeze(mx.expand_dims(output, 0), 0)
    return output
