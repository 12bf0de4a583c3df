"""Elementwise steps as one kernel, where that costs the user nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable

from autoconv._backend import mx


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` of arrays, run as one kernel on a GPU and operation by operation on the CPU.

    On the CPU MLX compiles a kernel with the machine's C++ compiler, at seconds a kernel, where there is one.
    """
    compiled = mx.compile(function, shapeless=True)

    @functools.wraps(function)
    def run(*arrays: mx.array) -> mx.array:
        return compiled(*arrays) if mx.default_device() == mx.gpu else function(*arrays)

    return run
