"""Exact transforms for the minimal filtering algorithms F(m, r): m outputs of an r-tap filter by m + r - 1 products.

Toom and Cook: two polynomials are multiplied through their values at points, one of them at infinity. Transposed, the
scheme computes a filter's outputs, `y = A ((G g) * (B d))`, with `V` the Vandermonde matrix of the points:
`A = V_m^T`, `G = V_r`, `B = V^-T` (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast
Algorithms for Convolutional Neural Networks, 2016, write `A` as `A^T` and `B` as `B^T`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

Matrix: TypeAlias = tuple[tuple[Fraction, ...], ...]

_POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (Fraction(0),),
    2: (Fraction(2, 3),),
    3: (Fraction(0), Fraction(1)),
    4: (Fraction(2, 5), Fraction(5, 4)),
    5: (Fraction(0), Fraction(2, 3), Fraction(3, 2)),
    6: (Fraction(1, 3), Fraction(5, 6), Fraction(5, 3)),
    7: (Fraction(0), Fraction(1, 2), Fraction(1), Fraction(2)),
}
"""The finite points by their number, each with its negative. Among all small fractions these have the least
`amplification`, or nearly: 3.9 for F(4, 3), where the usual 0, 1, -1, 2, -2 have 5.8."""

MAX_PRODUCTS = max(_POINTS) + 1
"""Most products of a tile: one for each finite point and one for infinity."""


@dataclass(frozen=True)
class Transforms:
    """The three matrices of F(m, r).

    Every row of `input` and `kernel` is scaled by a power of two so that its absolute sum is over 1/2 and at most 1:
    what is transformed is no larger than it was. The columns of `output` undo that.

    Attributes:
        output: `A`, m x (m + r - 1).
        kernel: `G`, (m + r - 1) x r.
        input: `B`, (m + r - 1) x (m + r - 1).
    """

    output: Matrix
    kernel: Matrix
    input: Matrix

    @property
    def amplification(self) -> float:
        """How much larger than direct convolution's the relative error is, where what is convolved, its weight and
        what comes out are each rounded to the same precision, and direct convolution rounds only what comes out.

        For independent random inputs, weights and roundings, over all outputs of a tile.
        """
        sizes = [
            float(sum(v * v for v in kernel) * sum(v * v for v in input))
            for kernel, input in zip(self.kernel, self.input, strict=True)
        ]
        tile, taps = len(self.output), len(self.kernel[0])
        squares = sum(float(a * a) * size for row in self.output for a, size in zip(row, sizes, strict=True))
        return math.sqrt(3 * squares / (tile * taps) + 1)


def transforms(tile: int, taps: int) -> Transforms:
    """The transforms of F(tile, taps).

    Raises:
        ValueError: `tile` or `taps` is under 1, or they need more than `MAX_PRODUCTS` products.
    """
    products = tile + taps - 1
    if min(tile, taps) < 1 or products > MAX_PRODUCTS:
        msg = f"there is no F({tile}, {taps}): tile and taps are at least 1, with at most {MAX_PRODUCTS} products"
        raise ValueError(msg)
    if products == 1:
        one: Matrix = ((Fraction(1),),)
        return Transforms(one, one, one)
    return from_points(tile, taps, [s * p for p in _POINTS[products - 1] for s in ((1, -1) if p else (1,))])


def from_points(tile: int, taps: int, points: Sequence[Fraction]) -> Transforms:
    """The transforms of F(tile, taps) through these points, all different, and infinity.

    Args:
        tile: Outputs of a tile.
        taps: Taps of the filter.
        points: `tile + taps - 2` of them.
    """
    products = tile + taps - 1
    inverse = _inverse(_vandermonde(points, products))
    kernel, kernel_scales = _scaled(_vandermonde(points, taps))
    input, input_scales = _scaled(_transposed(inverse))
    undo = [1 / (a * b) for a, b in zip(kernel_scales, input_scales, strict=True)]
    output = _transposed(_vandermonde(points, tile))
    return Transforms(tuple(tuple(v * u for v, u in zip(row, undo, strict=True)) for row in output), kernel, input)


def _vandermonde(points: Sequence[Fraction], columns: int) -> Matrix:
    """The powers of each point, and of infinity, whose highest power alone counts."""
    last = (*[Fraction(0)] * (columns - 1), Fraction(1))
    return (*[tuple(p**power for power in range(columns)) for p in points], last)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _scaled(matrix: Matrix) -> tuple[Matrix, list[Fraction]]:
    """(the matrix with each row's absolute sum over 1/2 and at most 1, the powers of two it took)."""
    scales = [Fraction(2) ** -math.ceil(math.log2(sum(map(abs, row)))) for row in matrix]
    return tuple(tuple(v * s for v in row) for row, s in zip(matrix, scales, strict=True)), scales


def _inverse(matrix: Matrix) -> Matrix:
    """By Gauss and Jordan, exactly."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [v / rows[column][column] for v in rows[column]]
        for r in range(size):
            if r != column and rows[r][column]:
                factor = rows[r][column]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[column], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)


@functools.cache
def coefficients(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    """A matrix as floats."""
    return tuple(tuple(map(float, row)) for row in matrix)
