"""A convolution, or a weight gradient, chunk by chunk, so that beside its operands it takes what one chunk takes.

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
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

from autoconv._backend import mx
from autoconv.algorithms._adjoint import adjoint_convolution
from autoconv.algorithms._chunks import Piece, pieces
from autoconv.algorithms._mlx import conv_general, unfolds_on_cpu
from autoconv.algorithms._weight_gradient import cut, flipped_back, seen, transposed_convolution
from autoconv.problem import Kind, Problem

Run: TypeAlias = Callable[[mx.array, mx.array], mx.array]

LEVELS = 112
"""Views between two writes into the output inside a trace: more than a chunk's graph is deep, and more than the hundred
operations that MLX's CPU backend schedules before it waits for the first (see `_pass_on`)."""

DEPTH = 16384
"""Most of those views in one convolution. MLX walks a trace by recursion: on a stack of 8 MB `mx.compile` does 30000
views in a row and not 50000, `mx.grad` 80000. What led to the operands is walked before them, not on top. Past that
many there are fewer between two writes, so that with over 146 chunks more of their results may be alive."""


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
    runs = _built(plan, build)
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
        last, levels = None, _levels(plan)
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
            _weight_gradients(plan, _built(plan, _weight_gradient), weight.shape, input, cotangent),
        )

    return _by_trace(evaluated, cast("Run", ordered))


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
    runs = _built(plan, build)
    shape = problem.weight_shape

    def evaluated(input: mx.array, cotangent: mx.array) -> mx.array:
        return _weight_gradients(plan, runs, shape, input, cotangent, evaluate=True)

    @mx.custom_function
    def ordered(input: mx.array, cotangent: mx.array) -> mx.array:
        return _weight_gradients(plan, runs, shape, input, cotangent, levels=_levels(plan))

    @ordered.vjp
    def gradients(primals: tuple[mx.array, mx.array], weight: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
        """Those of a function that is linear in each: an input gradient, and a convolution, by what came back."""
        input, cotangent = primals
        of_cotangent, last = mx.zeros(cotangent.shape, cotangent.dtype), None
        forward = _built(plan, _convolution)
        for piece in plan:
            last = forward[piece.problem](_after(input[piece.taken], last, unbatched=True), weight)
            of_cotangent[piece.written] = last
        return _input_gradients(plan, input.shape, cotangent, weight), of_cotangent

    return _by_trace(evaluated, cast("Run", ordered))


def _by_trace(evaluated: Run, ordered: Run) -> Run:
    """`evaluated`, or inside a trace `ordered`."""

    def run(first: mx.array, second: mx.array, /) -> mx.array:
        return (evaluated if may_evaluate(first, second) else ordered)(first, second)

    return run


def _levels(plan: list[Piece]) -> int:
    """Views between two writes, or two sums, of so many chunks."""
    return min(LEVELS, DEPTH // max(1, len(plan)))


def _built(plan: list[Piece], build: Callable[[Problem], Run]) -> dict[Problem, Run]:
    """What runs each different chunk; `build` is called once for equal ones."""
    return {part: build(part) for part in {piece.problem for piece in plan}}


def _input_gradients(plan: list[Piece], shape: tuple[int, ...], cotangent: mx.array, weight: mx.array) -> mx.array:
    """The sum of all chunks' input gradients, each where its input stands."""
    runs, last = _built(plan, _input_gradient), None
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
