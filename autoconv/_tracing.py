"""Whether a call is traced by `mx.compile(shapeless=True)`, under which nothing may know a size.

What is traced there is run again on arrays of other sizes, and MLX works these out operation by operation. It cannot
for a slice by concrete sizes, a split, a pad or a custom function, and says so only when the function has returned.
"""

from __future__ import annotations

import io
import threading

from autoconv._backend import mx


class _Seen(threading.local):
    """What this thread's latest look has seen."""

    traced = False


_seen = _Seen()


def _note(first: mx.array, _second: mx.array) -> mx.array:
    _seen.traced = True
    return first


# A compiled function is called itself only where its arguments are traced, or are of dtypes and axes not met before.
_look = mx.compile(_note, shapeless=True)


def may_be_traced(first: mx.array, second: mx.array) -> bool:
    """False where neither array is an argument of a function that is being traced, or was made of one; a microsecond.

    MLX has no question for it. True too at the first look at arrays of these dtypes and axes in a thread, and wherever
    `mx.disable_compile` holds.
    """
    _seen.traced = False
    _look(first, second)
    return _seen.traced


def is_shapeless(first: mx.array, second: mx.array) -> bool:
    """Whether arrays are traced, and by `mx.compile(shapeless=True)`; evaluates nothing.

    There a product of three axes and two stays one, which elsewhere MLX flattens to two and two.
    """
    if not may_be_traced(first, second):
        return False
    text = io.StringIO()
    mx.export_to_dot(text, mx.matmul(mx.zeros((2, 2, 3)), mx.zeros((3, 2))))
    return "Flatten" not in text.getvalue()
