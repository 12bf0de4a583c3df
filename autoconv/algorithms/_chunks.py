"""Any convolution, or weight gradient, in chunks of its output, so that beside its operands it takes what one chunk
takes.

A chunk of clips of the batch, of output frames, or of rows of a few frames is itself a convolution, of a slice of the
input with padding of its own: output `o` of an axis sees the positions `o * stride - low` to `+ (kernel - 1) *
dilation` of the dilated input, element `i` standing at `i * input_dilation`; what a chunk's positions reach beyond its
elements is padding. Outputs that see no element are zero, and left out. A weight gradient is the sum of those of the
chunks.

The output begins as zeros and each chunk is written into it. MLX writes in place if nobody else holds the array, so no
second output lives. (A concatenation holds all parts and the whole; and on GPUs it copies each part with 32-bit
indices, though the steps between a part's batches are those of the whole, while a write into a slice takes 64-bit ones
where the whole is past 2^31-1 elements. So is the fill with zeros, the one kernel that gets all of such an output.)

The gradients of what runs in chunks are computed in the same chunks, by MLX's own convolutions, so that they are right
where those of `mx.vjp` are not. Nor is `mx.vjp` asked for them: it walks all that led to the operands, for each chunk
of each layer.

Outside a trace each chunk is evaluated before the next is begun, and what it took is free by then. Inside one, where
nothing can be evaluated or all that is would be kept, each chunk's input depends on the result of the chunk before,
which orders them. On the CPU that keeps to the same bound; GPUs allocate for up to ten command buffers ahead of what
runs, so that there more than one chunk's memory may be taken at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from autoconv._backend import mx
from autoconv.algorithms._adjoint import adjoint_convolution
from autoconv.algorithms._mlx import conv_general, unfolds_on_cpu
from autoconv.algorithms._weight_gradient import cut, flipped_back, seen, transposed_convolution
from autoconv.problem import Kind, Problem

Run: TypeAlias = Callable[[mx.array, mx.array], mx.array]

PARAMETERS = ("clips", "frames", "rows")
"""Parameters that are this module's, whatever the algorithm: the most clips of the batch, output frames and rows of a
chunk."""

MOST = 4096
"""Chunks that are offered at most: each costs some 0.1 ms to ask for, in a trace as well, and there as much memory as a
dozen operations take."""

LEVELS = 112
"""Views between two writes into the output inside a trace: more than a chunk's graph is deep, and more than the hundred
operations that MLX's CPU backend schedules before it waits for the first (see `_pass_on`)."""

DEPTH = 16384
"""Most of those views in one convolution. MLX walks a trace by recursion: on a stack of 8 MB `mx.compile` does 30000
views in a row and not 50000, `mx.grad` 80000. What led to the operands is walked before them, not on top. Past that
many there are fewer between two writes, so that with over 146 chunks more of their results may be alive."""

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
    if size is None:
        return [_whole(problem, axis)]
    parts = (_span(problem, axis, start, stop) for start, stop in _even(problem.output_shape[1 + axis], size))
    return [part for part in parts if part is not None]


def _even(total: int, size: int) -> Iterator[tuple[int, int]]:
    """So many things in as few parts as are of at most `size`, which differ by one at most."""
    count = math.ceil(total / size)
    return itertools.pairwise(index * total // count for index in range(count + 1)) if count else iter(())


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
def forms(problem: Problem, axis: int, size: int | None) -> tuple[tuple[Span, int], ...]:
    """One span of each form that an axis's spans have, and how many there are of it.

    Of spans that see no padding only the first of each length, and place relative to the elements, is looked at.
    """
    if size is None:
        return ((_whole(problem, axis), 1),)
    stride, spread, low = problem.stride[axis], problem.input_dilation[axis], problem.padding_low[axis]
    last = (problem.input_shape[1 + axis] - 1) * spread + low - _reach(problem, axis)
    alike: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], int] = {}
    found: dict[tuple[int, int, int], tuple[Span, int]] = {}

    def add(start: int, stop: int, times: int) -> None:
        span = _span(problem, axis, start, stop)
        if span is not None:
            known, count = found.get(span.form, (span, 0))
            found[span.form] = known, count + times

    for start, stop in _even(problem.output_shape[1 + axis], size):
        if start * stride >= low and (stop - 1) * stride <= last:
            kind = stop - start, (start * stride - low) % spread
            alike[kind] += 1
            examples.setdefault(kind, start)
        else:
            add(start, stop, 1)
    for kind, start in examples.items():
        add(start, start + kind[0], alike[kind])
    return tuple(found.values())


def _part(problem: Problem, batch: int, depth: Span, height: Span) -> Problem:
    _, _, _, width, channels = problem.input_shape
    return replace(
        problem,
        input_shape=(batch, depth.end - depth.first, height.end - height.first, width, channels),
        padding_low=(depth.low, height.low, problem.padding_low[2]),
        padding_high=(depth.high, height.high, problem.padding_high[2]),
    )


@functools.lru_cache(maxsize=256)
def counted(
    problem: Problem, frames: int | None = None, rows: int | None = None, clips: int | None = None
) -> tuple[tuple[Problem, int], ...]:
    """The different problems that a problem's chunks are, and how many there are of each."""
    batch = problem.input_shape[0]
    batches = Counter(stop - start for start, stop in _even(batch, clips)) if clips else {batch: 1}
    found: Counter[Problem] = Counter()
    for (n, a), (d, b), (h, c) in itertools.product(
        batches.items(), forms(problem, 0, frames), forms(problem, 1, rows)
    ):
        found[_part(problem, n, d, h)] += a * b * c
    return tuple(found.items())


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
            part = known[kind] = _part(problem, n[1] - n[0], d, h)
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
    counts = range(2, min(outputs, most) + 1)
    sizes = sorted({size for count in counts if (size := math.ceil(outputs / count)) >= least})
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
    frames: int | None = None,
    rows: int | None = None,
    clips: int | None = None,
    *,
    one_call: bool = False,
) -> Run:
    """The convolution, chunk by chunk.

    Args:
        problem: The whole.
        build: Makes the convolution of a chunk; called once for equal ones.
        frames: The most output frames of a chunk. Default: all.
        rows: The most output rows of a chunk. Default: all.
        clips: The most clips of the batch in a chunk. Default: all.
        one_call: Whether a chunk is one 3D convolution of MLX's. Of those it has none that is batched over input and
            weight, so that under `vmap` waiting must not make an operand batched that is not; in other algorithms it
            must, since MLX's `vmap` has some of their operations wrong on an array that passed it unbatched.
    """
    after = functools.partial(_after, unbatched=one_call)
    plan = pieces(problem, frames, rows, clips)
    runs = {part: build(part) for part in {piece.problem for piece in plan}}
    shape = problem.output_shape

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
        levels = min(LEVELS, DEPTH // max(1, len(plan)))
        for piece in plan:
            last = runs[piece.problem](after(input[piece.taken], last), weight)
            output = _pass_on(output, levels)
            output[piece.written] = last
        return output

    @ordered.vjp
    def gradients(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Both gradients, chunk by chunk as well; only what is used of them is ever evaluated."""
        input, weight = primals
        return (
            _input_gradients(plan, input.shape, cotangent, weight),
            _weight_gradients(plan, _derivatives(plan, _weight_gradient), weight.shape, input, cotangent),
        )

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        if may_evaluate(input, weight):
            return evaluated(input, weight)
        return cast("mx.array", ordered(input, weight))

    return run


def chunked_weight_gradient(
    problem: Problem,
    build: Callable[[Problem], Run],
    frames: int | None = None,
    rows: int | None = None,
    clips: int | None = None,
) -> Run:
    """The weight gradient as a sum of those of chunks, in float32 where the dtype has 16 bits.

    The arguments are those of `chunked`.
    """
    plan = pieces(problem, frames, rows, clips)
    runs = {part: build(part) for part in {piece.problem for piece in plan}}
    shape = problem.weight_shape

    def evaluated(input: mx.array, cotangent: mx.array) -> mx.array:
        return _weight_gradients(plan, runs, shape, input, cotangent, evaluate=True)

    @mx.custom_function
    def ordered(input: mx.array, cotangent: mx.array) -> mx.array:
        levels = min(LEVELS, DEPTH // max(1, len(plan)))
        return _weight_gradients(plan, runs, shape, input, cotangent, levels=levels)

    @ordered.vjp
    def gradients(primals: tuple[mx.array, mx.array], weight: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
        """Those of a function that is linear in each: an input gradient, and a convolution, by what came back."""
        input, cotangent = primals
        of_cotangent, last = mx.zeros(cotangent.shape, cotangent.dtype), None
        forward = _derivatives(plan, _convolution)
        for piece in plan:
            last = forward[piece.problem](_after(input[piece.taken], last, unbatched=True), weight)
            of_cotangent[piece.written] = last
        return _input_gradients(plan, input.shape, cotangent, weight), of_cotangent

    def run(input: mx.array, cotangent: mx.array, /) -> mx.array:
        if may_evaluate(input, cotangent):
            return evaluated(input, cotangent)
        return cast("mx.array", ordered(input, cotangent))

    return run


def _derivatives(plan: list[Piece], build: Callable[[Problem], Run]) -> dict[Problem, Run]:
    return {part: build(part) for part in {piece.problem for piece in plan}}


def _input_gradients(plan: list[Piece], shape: tuple[int, ...], cotangent: mx.array, weight: mx.array) -> mx.array:
    """The sum of all chunks' input gradients, each where its input stands."""
    runs, last = _derivatives(plan, _input_gradient), None
    total = mx.zeros(shape, cotangent.dtype)
    for piece in plan:
        last = runs[piece.problem](_after(cotangent[piece.written], last, unbatched=True), weight)
        total = total.at[piece.taken].add(last)
    return total


def _weight_gradients(
    plan: list[Piece],
    runs: dict[Problem, Run],
    shape: tuple[int, ...],
    input: mx.array,
    cotangent: mx.array,
    *,
    evaluate: bool = False,
    levels: int = 0,
) -> mx.array:
    """The sum of all chunks' weight gradients. Inside a trace each waits for the sum so far, through so many views."""
    total = None
    for piece in plan:
        taken, wanted = input[piece.taken], cotangent[piece.written]
        if total is not None:
            total = _pass_on(total, levels)
        if not evaluate:  # both wait, as either may be unfolded or transposed
            taken, wanted = _after(taken, total), _after(wanted, total)
        found = runs[piece.problem](taken, wanted)
        if cotangent.itemsize == 2:
            found = found.astype(mx.float32)
        total = found if total is None else total + found
        if evaluate:
            mx.eval(total)
    return mx.zeros(shape, cotangent.dtype) if total is None else total.astype(cotangent.dtype)


def _convolution(problem: Problem) -> Run:
    """A convolution by MLX's own, group by group, whose derivatives of any order are right.

    MLX's own derivatives are not, under an input dilation or a padding longer than the kernel; and to ask `mx.vjp` for
    them walks all that led to the operands, once a chunk.
    """
    from autoconv.algorithms.native import ALGORITHM

    run, groups = ALGORITHM.build(_of_one_group(problem)), problem.groups

    @mx.custom_function
    def convolution(input: mx.array, weight: mx.array) -> mx.array:
        return _by_group(run, groups, (input, -1), (weight, 0), -1)

    @convolution.vjp
    def gradients(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, mx.array]:
        input, weight = primals
        return _input_gradient(problem)(cotangent, weight), _weight_gradient(problem)(input, cotangent)

    return cast("Run", convolution)


def _input_gradient(problem: Problem) -> Run:
    """A convolution's input gradient by that of the cotangent, which is right wherever MLX's own vjp is not."""
    return adjoint_convolution(problem, _convolution)


def _weight_gradient(problem: Problem) -> Run:
    """A convolution's weight gradient, group by group, whose derivatives are right as well."""
    single, groups, shape = _of_one_group(problem), problem.groups, problem.weight_shape
    part = seen(single)

    def run(input: mx.array, cotangent: mx.array) -> mx.array:
        if problem.flip or not unfolds_on_cpu(problem.dilation, problem.input_dilation, 1):
            return flipped_back(single, transposed_convolution(input, cotangent, single, 0))
        assert part is not None

        def forward(input: mx.array, weight: mx.array) -> mx.array:
            return conv_general(input, weight, problem.stride, (problem.padding_low, part.high))

        # MLX unfolds there. The input is a variable so that what led to it is not walked; its gradient is not computed.
        variables = [cut(input, part.sizes), mx.zeros(single.weight_shape, cotangent.dtype)]
        return mx.vjp(forward, variables, [cotangent])[1][1]

    @mx.custom_function
    def gradient(input: mx.array, cotangent: mx.array) -> mx.array:
        if part is None:
            return mx.zeros(shape, cotangent.dtype)
        return _by_group(run, groups, (input, -1), (cotangent, -1), 0)

    @gradient.vjp
    def gradients(primals: tuple[mx.array, mx.array], weight: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
        input, cotangent = primals
        return _input_gradient(problem)(cotangent, weight), _convolution(problem)(input, weight)

    return cast("Run", gradient)


def _of_one_group(problem: Problem) -> Problem:
    channels, outputs = problem.input_shape[4] // problem.groups, problem.weight_shape[0] // problem.groups
    return replace(
        problem,
        input_shape=(*problem.input_shape[:4], channels),
        weight_shape=(outputs, *problem.weight_shape[1:]),
        groups=1,
        kind=Kind.FORWARD,
    )


def _by_group(run: Run, groups: int, first: tuple[mx.array, int], second: tuple[mx.array, int], axis: int) -> mx.array:
    """What `run` makes of each group of the operands, whose groups lie along the axes named, side by side."""
    if groups == 1:
        return run(first[0], second[0])
    both = zip(mx.split(first[0], groups, first[1]), mx.split(second[0], groups, second[1]), strict=True)
    return mx.concatenate([run(*operands) for operands in both], axis)


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
