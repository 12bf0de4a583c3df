"""A convolution's input gradient as a convolution of the cotangent.

Output `o` sees input element `i` through tap `k` where `o * stride + k * dilation = i * input_dilation + low`. So the
gradient at `i` is a sum over the cotangent, whose elements stand `stride` apart, by the flipped kernel: a convolution
in which stride and input dilation have changed places, with `(K - 1) * dilation - low` zeros before the cotangent
and, after it, as many as make the result as long as the input. Where that is less than none, elements of the
cotangent are cut off first: no element of the input is seen by them.

That is what MLX's own vjp asks of `conv_general`, the flip included (on CUDA a flipped one is cuDNN's
backward-data); only that MLX, under input dilation, cuts off negative padding wrongly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.problem import Kind, Problem, dilated


@dataclass(frozen=True)
class Adjoint:
    """An input gradient as an ordinary convolution.

    Attributes:
        problem: The forward problem whose input is what is left of the cotangent, whose weight is the transposed one.
        left: What is left of the cotangent in N, D, H and W.
        cuts: Whether anything was cut off.
    """

    problem: Problem
    left: tuple[slice, ...]
    cuts: bool


@functools.lru_cache(maxsize=256)
def adjoint(problem: Problem) -> Adjoint | None:
    """The convolution that a problem's input gradient is; None where the gradient is zero or empty."""
    left, low, high, sizes = [slice(None)], [], [], []
    for axis in range(3):
        size, kernel = problem.input_shape[1 + axis], problem.weight_shape[1 + axis]
        outputs, apart = problem.output_shape[1 + axis], problem.stride[axis]
        before = (kernel - 1) * problem.dilation[axis] - problem.padding_low[axis]
        after = dilated(size, problem.input_dilation[axis]) + problem.padding_low[axis] - dilated(outputs, apart)
        first, last = -(min(0, before) // apart), -(min(0, after) // apart)  # elements that are cut off
        if first + last >= outputs or not size:
            return None
        left.append(slice(first, outputs - last))
        sizes.append(outputs - first - last)
        low.append(before + first * apart)
        high.append(after + last * apart)
    batch, channels, groups = problem.input_shape[0], problem.input_shape[4], problem.groups
    outputs = problem.weight_shape[0]
    found = Problem(
        input_shape=(batch, sizes[0], sizes[1], sizes[2], outputs),
        weight_shape=(channels, *problem.weight_shape[1:4], outputs // groups),
        stride=problem.input_dilation,
        padding_low=(low[0], low[1], low[2]),
        padding_high=(high[0], high[1], high[2]),
        dilation=problem.dilation,
        input_dilation=problem.stride,
        groups=groups,
        flip=not problem.flip,
        dtype=problem.dtype,
        kind=Kind.FORWARD,
    )
    return Adjoint(found, tuple(left), tuple(sizes) != problem.output_shape[1:4])


def transposed(weight: mx.array, groups: int) -> mx.array:
    """`(C_in, KD, KH, KW, C_out / groups)` from `(C_out, KD, KH, KW, C_in / groups)`, a view without groups."""
    if groups == 1:
        return mx.swapaxes(weight, 0, -1)
    return mx.flatten(mx.swapaxes(mx.unflatten(weight, 0, (groups, -1)), 1, -1), 0, 1)


def adjoint_convolution(
    problem: Problem, build: Callable[[Problem], Callable[[mx.array, mx.array], mx.array]]
) -> Callable[[mx.array, mx.array], mx.array]:
    """A problem's input gradient from its cotangent and weight, by what `build` makes of the adjoint."""
    found = adjoint(problem)
    if found is None:
        shape = problem.input_shape
        return lambda cotangent, _weight: mx.zeros(shape, cotangent.dtype)
    run, groups, left, cuts = build(found.problem), problem.groups, found.left, found.cuts

    def gradient(cotangent: mx.array, weight: mx.array, /) -> mx.array:
        return run(cotangent[left] if cuts else cotangent, transposed(weight, groups))

    return gradient
