"""How large an error passes."""

from __future__ import annotations

import math

FLOOR = {"float16": 1.5e-3, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-5}
"""Relative L2 error that always passes under `native`. (MLX convolves float64 in float32 on the CPU.)"""

LOSSY = {"float16": 4e-3, "bfloat16": 1.5e-2, "float32": 1e-3, "float64": 1e-3}
"""Native's error past which it counts as lossy: then no candidate may be worse than it."""

STRICT = {"float16": 4.5e-4, "bfloat16": 3.6e-3, "float32": 1e-5, "float64": 1e-5}
"""Relative L2 error that passes under `strict`: a little more than rounding the exact result to the dtype."""


def bound(accuracy: str | float, dtype: str, native_error: float | None) -> float:
    """The largest relative L2 error that passes.

    Args:
        accuracy: `"native"`, `"strict"` or a number.
        dtype: The problem's dtype.
        native_error: Native's own error; None or not finite where it failed or is wrong, and then strict's bounds
            hold.
    """
    if isinstance(accuracy, float):
        return accuracy
    if accuracy == "strict" or native_error is None or not math.isfinite(native_error):
        return STRICT[dtype]
    if native_error > LOSSY[dtype]:
        return native_error
    return max(2 * native_error, FLOOR[dtype])
