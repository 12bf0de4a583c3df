"""The order in which a sweep learns most: first what is much at stake and little known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoconv.problem import ITEM_BYTES, Kind, Problem
from autoconv.sweep.workload import Layer

_Floats: TypeAlias = NDArray[np.float64]

POSSIBLE = 0.05
"""What a problem is taken to gain beyond its estimate, so that one said to gain nothing is doubted as well."""

REACH = 2.0
"""Distance over which one measurement tells of another problem: twice as many channels at both ends are about 2."""

SHARED = 0.9
"""Share of a problem's doubt that timing one just like it takes away."""

FAR = 12.0
"""Distance of another dtype or kind: other kernels run, so that nothing can be told."""

TIE = 1e-3
"""Two worths whose logarithms differ by less are the same; rounding, which differs between machines, is far below."""

PICKS = 5000
"""Most problems that are picked one by one, each pick at the cost of a look at all; the others are sorted once."""

SPREAD = 0.2
"""Standard deviation of the neighbours' log gains at which even a near one leaves half of the doubt."""

_BYTE_FLOPS = 40.0
"""FLOPs that take as long as a byte, within a factor of two or three on GPUs; it brings neighbours' times to scale."""

_BLOCK = 512
_SCALES = {
    "flops": 0.5,
    "bytes": 0.5,
    "channels": 1.0,
    "outputs": 1.0,
    "kernel depth": 2.0,
    "kernel area": 1.5,
    "depth stride": 3.0,
    "frame stride": 1.5,
    "dilation": 2.0,
    "groups": 1.0,
    "frames": 1.0,
    "frame": 0.5,
    "batch": 1.0,
    "channels in step": 2.0,
    "outputs in step": 2.0,
    "unpadded depth": 1.0,
}
"""What a factor of two, or a yes for a no, is worth as a distance."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is thought of a problem that was not timed.

    Attributes:
        native_us: Native's time in microseconds, at least 0.
        gain: How much faster than native the best candidate is expected to be, 0.25 being a quarter; at least 0.
        doubt: From 0, as good as timed, to 1, a guess.
    """

    native_us: float
    gain: float
    doubt: float

    def __post_init__(self) -> None:
        """Refuse what no estimate can be."""
        if not (0 <= self.native_us < math.inf and 0 <= self.gain < math.inf and 0 <= self.doubt <= 1):
            msg = f"an estimate has a finite time and gain of at least 0 and a doubt from 0 to 1, not {self}"
            raise ValueError(msg)


LEAST = 16
"""Measured problems without which nothing is known of others."""

UNKNOWN = Estimate(native_us=1.0, gain=0.0, doubt=1.0)
"""The estimate of who knows nothing."""


class Estimator(Protocol):
    """What tells of problems that were not timed."""

    def estimate(self, problems: Sequence[Problem]) -> Sequence[Estimate]:
        """One estimate a problem, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A problem that was timed.

    Attributes:
        problem: The problem.
        native_us: Native's time in microseconds, above 0.
        gain: How much faster than native the best candidate is; 0 where native is.
    """

    problem: Problem
    native_us: float
    gain: float

    def __post_init__(self) -> None:
        """Refuse what no measurement can be."""
        if not (0 < self.native_us < math.inf and 0 <= self.gain < math.inf):
            msg = f"a measurement has a finite time above 0 and a finite gain of at least 0, not {self}"
            raise ValueError(msg)


class Neighbours:
    """An estimator by the problems nearest to one: their times, brought to its size, and their gains.

    Both are means of logarithms, each neighbour weighing by its inverse squared distance. The doubt is high where the
    nearest is far or where the neighbours' gains differ. It takes a few dozen measured problems to be of use; a
    learned model takes over from hundreds on.

    Args:
        measured: What was timed; a later entry of the same problem replaces an earlier one.
        count: How many neighbours are asked.
        least: With fewer measured problems than these it knows nothing, and every estimate is `UNKNOWN`.
    """

    def __init__(self, measured: Iterable[Measured], *, count: int = 6, least: int = LEAST) -> None:
        known = list({each.problem: each for each in measured}.values())
        self._enough = len(known) >= max(least, 1)
        self._count = min(count, len(known))
        self._features = features([each.problem for each in known])
        self._log_rate = np.log([each.native_us / work_of(each.problem) for each in known])
        self._log_gain = np.log1p([each.gain for each in known])

    def estimate(self, problems: Sequence[Problem]) -> list[Estimate]:
        """One estimate a problem, in their order."""
        if not self._enough:
            return [UNKNOWN] * len(problems)
        asked = features(problems)
        found = []
        for start in range(0, len(problems), _BLOCK):
            block = asked[start : start + _BLOCK]
            rows = np.arange(len(block))[:, None]
            square = _square_distances(block, self._features)
            nearest = np.argpartition(square, self._count - 1, axis=1)[:, : self._count]
            near = square[rows, nearest]
            weight = 1 / (near + (REACH / 40) ** 2)
            weight /= weight.sum(axis=1, keepdims=True)
            log_gain = (weight * self._log_gain[nearest]).sum(axis=1)
            spread = np.sqrt((weight * (self._log_gain[nearest] - log_gain[:, None]) ** 2).sum(axis=1))
            log_rate = (weight * self._log_rate[nearest]).sum(axis=1)
            known = np.exp(-near.min(axis=1) / (2 * REACH**2)) / (1 + spread / SPREAD)
            found += [
                Estimate(math.exp(rate) * work_of(problem), math.expm1(max(gain, 0.0)), min(max(1 - sure, 0.0), 1.0))
                for problem, rate, gain, sure in zip(
                    problems[start : start + _BLOCK], log_rate.tolist(), log_gain.tolist(), known.tolist(), strict=True
                )
            ]
        return found


def ordered(layers: Sequence[Layer], estimator: Estimator) -> list[Layer]:
    """The layers, those first whose timing is worth most.

    A layer is worth the time that a forward pass stands to save, `count * native_us * (1 - 1 / (1 + gain))`, the gain
    and `POSSIBLE` taken together, times the doubt of it: what is certain need not be timed, and what saves nothing need
    not be known. Each pick takes doubt from the layers like it, the nearer the more, so that a hundred sizes of one
    layer wait until others had their turn.

    Where several are worth the same, to a thousandth, the first of them stays first; what is worth nothing comes last,
    as it stood. An estimator that tells no two problems apart leaves all as they stood, whatever their counts.
    """
    estimates = estimator.estimate([layer.problem for layer in layers])
    if len(set(estimates)) < 2:
        return list(layers)
    worth = np.array([layer.count * _stake_us(found) for layer, found in zip(layers, estimates, strict=True)])
    rest = np.flatnonzero(worth > 0)
    picked = rest[_picked(features([layers[i].problem for i in rest.tolist()]), np.log(worth[rest]))]
    return [layers[i] for i in (*picked.tolist(), *np.flatnonzero(worth == 0).tolist())]


def features(problems: Sequence[Problem]) -> _Floats:
    """A row a problem, such that the Euclidean distance of two rows tells how differently the two are computed.

    Sizes are logarithms to base 2. Those of one dtype and kind are near one another, others at least `FAR` away.
    """
    scales = np.array(list(_SCALES.values()))
    sizes = np.array([_sizes(problem) for problem in problems]).reshape(len(problems), len(scales)) * scales
    kinds = [*ITEM_BYTES, *Kind]
    exact = np.array([[name in {p.dtype, p.kind} for name in kinds] for p in problems]).reshape(-1, len(kinds))
    return np.hstack([sizes, exact * (FAR / math.sqrt(2))])


def _sizes(problem: Problem) -> list[float]:
    """The features of `_SCALES`, in its order."""
    channels, outputs = problem.input_shape[4], problem.weight_shape[0]
    depth, height, width = problem.weight_shape[1:4]
    batch, frames, rows, columns, _ = problem.output_shape
    counts = (
        problem.flops,
        problem.bytes,
        channels,
        outputs,
        depth,
        height * width,
        problem.stride[0] / problem.input_dilation[0],
        problem.stride[1] * problem.stride[2] / (problem.input_dilation[1] * problem.input_dilation[2]),
        math.prod(problem.dilation),
        problem.groups,
        frames,
        rows * columns,
        batch,
    )
    # What kernels ask beside sizes: MLX's of Metal want channels in sixteens, and its fixed rule no padding in front.
    asks = (channels % 16 == 0, outputs % 16 == 0, problem.padding_low[0] == 0)
    return [*(math.log2(max(count, 1e-3)) for count in counts), *map(float, asks)]


def work_of(problem: Problem) -> float:
    """What a problem's time is about proportional to."""
    return problem.flops + _BYTE_FLOPS * problem.bytes


def _stake_us(found: Estimate) -> float:
    """Doubted microseconds that a call stands to save."""
    return found.native_us * (1 - 1 / (1 + found.gain + POSSIBLE)) * found.doubt


def _square_distances(some: _Floats, others: _Floats) -> _Floats:
    """`(len(some), len(others))` squared Euclidean distances."""
    square: _Floats = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * some @ others.T
    return square.clip(0.0)


def _picked(rows: _Floats, log_worth: _Floats) -> NDArray[np.intp]:
    """Indices by descending worth, each pick making those like it worth less.

    Single precision and few passes: with 5000 rows this is 5000 times a product of a matrix by a vector.
    """
    if not len(rows):
        return np.array([], dtype=np.intp)
    scaled = ((rows - rows.mean(axis=0)) / REACH).astype(np.float32)
    half = (scaled**2).sum(axis=1) / 2
    left = log_worth.copy()
    order = []
    for _ in range(min(len(rows), PICKS)):
        pick = int((left >= left.max() - TIE).argmax())
        order.append(pick)
        near = np.exp(np.minimum(scaled @ scaled[pick] - half - half[pick], 0))
        left += np.log1p(-SHARED * near)
        left[pick] = -np.inf
    after = np.argsort(-np.round(left / TIE), kind="stable")[: len(rows) - len(order)]
    return np.concatenate([np.array(order, dtype=np.intp), after])
