"""Elementwise steps as one kernel, where that costs the user nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from autoconv._backend import mx
from autoconv.algorithms import _cuda

Result = TypeVar("Result", mx.array, tuple[mx.array, ...])


def fused(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` of arrays, run as one kernel on a GPU and operation by operation on the CPU.

    On the CPU MLX compiles a kernel with the machine's C++ compiler, at seconds a kernel, where there is one.
    """
    compiled = mx.compile(function, shapeless=True)

    @functools.wraps(function)
    def run(*arrays: mx.array) -> Result:
        return compiled(*arrays) if mx.default_device() == mx.gpu else function(*arrays)

    return run


@fused
def _sum_float32(*parts: mx.array) -> mx.array:
    total = parts[0].astype(mx.float32)
    for part in parts[1:]:
        total = total + part
    return total.astype(parts[0].dtype)


def _sum_on_cuda(*parts: mx.array) -> mx.array:
    (found,) = _cuda.combine(((1.0,) * len(parts),), parts)
    return found


_differentiable_sum = functools.cache(lambda: _cuda.differentiable(_sum_on_cuda, _sum_float32))


def sum_float32(*parts: mx.array) -> mx.array:
    """The sum in float32, then in the parts' own dtype."""
    found: mx.array = _differentiable_sum()(*parts) if _cuda.is_current() else _sum_float32(*parts)
    return found


@fused
def sum_dtype(*parts: mx.array) -> mx.array:
    """The sum in the parts' own dtype, rounded after each."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
