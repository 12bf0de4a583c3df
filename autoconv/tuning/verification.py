"""Whether a result is right, beside exact values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STRAY = 30.0
"""How many times the usual error a single value may be off."""

ROUNDING = {"bfloat16": 1e-2}
"""What a single value may be off by its rounding, elsewhere a thousandth: of two values one may happen to be exact."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
        error: Relative L2 error over the samples; infinite where one is not finite.
        wrong: What makes the result no approximation at all; empty if nothing does.
        peak: Largest absolute value of the whole output.
    """

    error: float
    wrong: str
    peak: float


def judge(found: Array, exact: Array, peak: float = 1.0, rounding: float = 1e-3, *, by_value: bool = False) -> Verdict:
    """Compare values, each row a position.

    A result is wrong if any value is not finite, or if a few are off by far more than the others: more than
    `STRAY` times the root mean square of the errors without the largest fiftieth, plus `rounding`; or if many are:
    one by more than a hundred times the median error plus a twentieth. All are relative to the root mean square of
    the value's row, or to half that of all values where it is larger: what mixes neighbouring frames, as Winograd
    does, carries their rounding into rows that see little themselves (0.16 of such a row in bfloat16, by F(3, 3) at
    the corner of a frame whose neighbour had a large value). With `by_value` they are relative to the value itself
    where that is larger. (Honest errors are up to 8 times as large as usual, since kernels of several precisions may
    share one result: that was seen under TF32.)
    """
    if not (math.isfinite(peak) and np.isfinite(found).all()):
        return Verdict(math.inf, "the result is not finite", peak)
    difference = np.abs(found - exact)
    size = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(difference)) / size if size else float(np.linalg.norm(difference))
    rows = np.sqrt(np.mean(exact**2, axis=1, keepdims=True))
    scale = np.maximum(rows, np.sqrt(np.mean(exact**2)) / 2)
    # A row that sees only padding is exactly zero, and so must the result be.
    relative = difference / np.where(rows > 0, np.maximum(scale, np.abs(exact)) if by_value else scale, 1.0)
    worst = float(relative.max())
    # Exact zeros say nothing of how large honest errors are; under a stride an input gradient may be mostly those.
    honest = np.sort(relative[exact != 0] if exact.any() else relative, axis=None)
    usual = float(np.sqrt(np.mean(honest[: max(1, len(honest) * 49 // 50)] ** 2)))
    few, many = STRAY * usual + rounding, 100 * float(np.median(honest)) + 0.05
    if worst > min(few, many) or error > 0.5:
        return Verdict(error, f"one value is off by {worst:.2g} of the output's size", peak)
    return Verdict(error, "", peak)
