"""Memory that a run takes."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def taken(run: Callable[[], mx.array]) -> int:
    """Most bytes that a run takes beyond its result."""
    mx.synchronize()
    mx.clear_cache()  # a buffer that is used again may be larger than what is asked for
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    output = run()
    mx.eval(output)
    mx.synchronize()
    return mx.get_peak_memory() - before - output.nbytes
