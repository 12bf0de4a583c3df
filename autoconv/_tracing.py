"""Whether a call is traced by `mx.compile(shapeless=True)`, under which nothing may know a size.

What is traced there is run again on arrays of other sizes, and MLX works these out operation by operation. It cannot
for a slice by concrete sizes, a split, a pad or a custom function, and says so only when the function has returned.
"""

from __future__ import annotations

import io
import threading

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Convolution


class Called(Exception):
    """`look` was called itself, rather than what was compiled of it; no error, and never seen outside."""


class _Thread(threading.local):
    """What a thread's looks do: raise, or let MLX compile them."""

    compiles = False


_thread = _Thread()


def _look(_first: mx.array, _second: mx.array) -> None:
    if not _thread.compiles:
        raise Called


look = mx.compile(_look, shapeless=True)
"""Raises `Called` where an array may be traced (see `may_be_traced`), and returns in 0.7 us elsewhere.

MLX has no question for it, but calls a compiled function itself only where its arguments are traced, or are of dtypes
and axes not met before, of which it compiles nothing if the function raises.
"""


def may_be_traced(first: mx.array, second: mx.array) -> bool:
    """False where neither array is an argument of a function that is being traced, or was made of one.

    True too wherever `mx.disable_compile` holds.
    """
    try:
        look(first, second)
    except Called:
        return _still_called(first, second)
    return False


def is_shapeless(first: mx.array, second: mx.array) -> bool:
    """Whether arrays are traced, and by `mx.compile(shapeless=True)`; evaluates nothing.

    A function so compiled that is first called inside another transformation, on arrays that this does not trace, is
    not seen: MLX tells of the outermost alone.
    """
    try:
        look(first, second)
    except Called:
        return _still_called(first, second) and traces_shapeless()
    return False


def traces_shapeless() -> bool:
    """Whether this thread's outermost trace is that of `mx.compile(shapeless=True)`.

    There a product of three axes and two stays one, which elsewhere MLX flattens to two and two.
    """
    text = io.StringIO()
    mx.export_to_dot(text, mx.matmul(mx.zeros((2, 2, 3)), mx.zeros((3, 2))))
    return "Flatten" not in text.getvalue()


def sized(run: Convolution, sizeless: Convolution) -> Convolution:
    """A convolution that knows sizes, or `sizeless` where `mx.compile(shapeless=True)` traces and none may be known.

    `runs_here` tells which. (A closure costs 0.1 us less a call than an object with two attributes.)
    """

    def convolution(input: mx.array, weight: mx.array, /) -> mx.array:
        try:
            look(input, weight)  # as `is_shapeless` does first, without its call
        except Called:
            shapeless = is_shapeless(input, weight)
        else:
            return run(input, weight)
        return (sizeless if shapeless else run)(input, weight)

    setattr(convolution, _SIZED, run)
    return convolution


_SIZED = "_autoconv_sized"
"""The attribute of what `sized` makes that holds the convolution that knows sizes."""


def runs_here(run: Convolution, input: mx.array, weight: mx.array) -> Convolution | None:
    """What is known to run a call on these arrays, itself; None where `sized` would not run what knows sizes."""
    by_sizes: Convolution | None = getattr(run, _SIZED, None)
    if by_sizes is None:
        return run
    return None if is_shapeless(input, weight) else by_sizes


def _still_called(first: mx.array, second: mx.array) -> bool:
    """Whether `look` raises when what can be compiled of it for these arrays is."""
    _thread.compiles = True
    try:
        look(first, second)
    finally:
        _thread.compiles = False
    try:
        look(first, second)
    except Called:
        return True
    return False
