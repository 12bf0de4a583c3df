"""The convolutions that `autoconv contribute` times: a fixed list of real layers, so that machines can be compared.

The list is in the order in which most is learned, made by `scripts/choose_contribution.py` from the workloads of the
package: any beginning of it is of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoconv.problem import Problem
from autoconv.sweep.order import UNKNOWN, Estimate
from autoconv.sweep.runner import unique
from autoconv.sweep.workload import DEMO_GFLOP, Layer, crop, read_workload

MAX_GFLOP = {"metal": 60.0, "cuda": 60.0, "cpu": DEMO_GFLOP}
"""Larger layers are cropped to this, by backend: a call takes a tenth of a second on an M1, or with a slow BLAS."""

MAX_BYTES = 400 * 10**6
"""Most bytes of input, weight and output: with a candidate's workspace they fit a Mac of 8 GB, beside a browser."""


def contribution_layers(backend: str) -> list[Layer]:
    """The layers to time on a backend, each problem once, the most useful first; the same everywhere."""
    rows = read_workload(Path(__file__).with_name("contribution.csv"))
    return unique(crop(layer, MAX_GFLOP[backend]) for layer in rows)


@dataclass(frozen=True)
class AsListed:
    """An estimator that tells no two problems apart, so that a sweep keeps their order."""

    def estimate(self, problems: Sequence[Problem]) -> list[Estimate]:
        """The same of each."""
        return [UNKNOWN] * len(problems)
