"""A convolution whose gradients are decided like itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Convolution
from autoconv.problem import Kind, Problem

GradientOf = Callable[[Kind], Convolution]
"""What computes the gradient of a kind; asked for whenever a gradient is taken."""


def differentiable(run: Convolution, gradient_of: GradientOf) -> Convolution:
    """`run` as an `mx.custom_function` with gradients of its own.

    MLX does not tell which of the gradients is wanted, so that both are decided; one that is not wanted is never
    evaluated. The gradients are made of MLX's operations, which have the further derivatives. Under `mx.vmap` the
    function is `run` itself, whose gradients are those of its operations. (A rule of our own for `mx.vmap` or `mx.jvp`
    would not help where an operation has none: MLX applies both to the operations that were run as well.)
    """

    def forward(input: mx.array, weight: mx.array) -> mx.array:
        return run(input, weight)

    def vjp(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        input, weight = primals
        of_input, of_weight = gradient_of(Kind.INPUT_GRADIENT), gradient_of(Kind.WEIGHT_GRADIENT)
        return of_input(cotangent, weight), of_weight(input, cotangent)

    convolution = mx.custom_function(forward)
    convolution.vjp(vjp)
    return cast("Convolution", convolution)


def by_vjp(run: Convolution, problem: Problem) -> Convolution:
    """A gradient of the very operations that a convolution `run` is made of; those of the convolution are never run.

    Args:
        run: The convolution.
        problem: Its gradient.
    """
    shape = problem.result_shape

    def of_input(cotangent: mx.array, weight: mx.array, /) -> mx.array:
        _, (gradient,) = mx.vjp(lambda x: run(x, weight), [mx.zeros(shape, cotangent.dtype)], [cotangent])
        return gradient

    def of_weight(input: mx.array, cotangent: mx.array, /) -> mx.array:
        _, (gradient,) = mx.vjp(lambda w: run(input, w), [mx.zeros(shape, cotangent.dtype)], [cotangent])
        return gradient

    return of_input if problem.kind is Kind.INPUT_GRADIENT else of_weight
