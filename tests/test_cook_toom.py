"""The transforms of minimal filtering are exact, keep values in range, and lose less than the usual ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Array

from autoconv.algorithms import _cook_toom
from autoconv.algorithms._cook_toom import MAX_PRODUCTS, Matrix, Transforms, from_points, transforms

SIZES = [(m, r) for m in range(1, MAX_PRODUCTS + 1) for r in range(1, MAX_PRODUCTS + 2 - m)]

numbers = st.integers(-50, 50).map(lambda v: Fraction(v, 7))


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@given(st.sampled_from(SIZES), st.data())
def test_a_tile_is_the_filter_exactly(size: tuple[int, int], data: st.DataObject) -> None:
    tile, taps = size
    kernel = data.draw(st.lists(numbers, min_size=taps, max_size=taps))
    input = data.draw(st.lists(numbers, min_size=tile + taps - 1, max_size=tile + taps - 1))
    found = transforms(tile, taps)
    products = [a * b for a, b in zip(times(found.kernel, kernel), times(found.input, input), strict=True)]
    expected = [sum((kernel[k] * input[j + k] for k in range(taps)), Fraction(0)) for j in range(tile)]
    assert times(found.output, products) == expected


@pytest.mark.parametrize(("tile", "taps"), SIZES)
def test_what_is_transformed_is_no_larger_and_scales_are_powers_of_two(tile: int, taps: int) -> None:
    found = transforms(tile, taps)
    for matrix in (found.kernel, found.input):
        assert all(Fraction(1, 2) < sum(map(abs, row)) <= 1 for row in matrix)
    assert len(found.output) == tile
    assert len(found.kernel) == len(found.input) == tile + taps - 1


USUAL = {(2, 3): "0 1 -1", (4, 3): "0 1 -1 2 -2", (2, 5): "0 1 -1 2 -2", (3, 3): "0 1 -1 2", (4, 2): "0 1 -1 2"}


@pytest.mark.parametrize(("size", "points"), USUAL.items(), ids=str)
def test_its_points_lose_no_more_than_the_usual_ones(size: tuple[int, int], points: str) -> None:
    usual = from_points(*size, [Fraction(p) for p in points.split()])
    assert transforms(*size).amplification <= usual.amplification
    if size == (4, 3):
        assert transforms(*size).amplification < 0.7 * usual.amplification


def rounded(values: Array) -> Array:
    """To 8 bits of mantissa, as bfloat16 has them."""
    mantissa, exponent = np.frexp(values)
    found: Array = np.ldexp(np.round(mantissa * 256) / 256, exponent)
    return found


def simulated(found: Transforms, seed: int = 0) -> float:
    """The relative error of tiles whose transformed values and products are rounded, over that of rounding alone."""
    random = np.random.default_rng(seed)
    output, kernel, input = (
        np.array([[float(v) for v in row] for row in m]) for m in (found.output, found.kernel, found.input)
    )
    channels, count = 64, 400
    g = rounded(random.standard_normal((channels, kernel.shape[1])))
    d = rounded(random.standard_normal((count, channels, input.shape[0])))
    exact = np.stack([np.einsum("ck,nck->n", g, d[:, :, j : j + g.shape[1]]) for j in range(len(output))], axis=1)
    products = rounded(np.einsum("nci,ci->ni", rounded(d @ input.T), rounded(g @ kernel.T)))
    error = np.linalg.norm(rounded(products @ output.T) - exact) / np.linalg.norm(exact)
    return float(error / (np.linalg.norm(rounded(exact) - exact) / np.linalg.norm(exact)))


@pytest.mark.parametrize("size", [(2, 3), (3, 3), (4, 3), (2, 2), (4, 2), (2, 5), (4, 5)], ids=str)
def test_the_error_is_as_large_as_it_says(size: tuple[int, int]) -> None:
    found = transforms(*size)
    assert simulated(found) == pytest.approx(found.amplification, rel=0.35)


@pytest.mark.parametrize(("tile", "taps"), [(0, 3), (3, 0), (6, 4), (MAX_PRODUCTS + 1, 1)])
def test_there_is_no_tile_without_outputs_or_with_too_many_products(tile: int, taps: int) -> None:
    with pytest.raises(ValueError, match="there is no F"):
        transforms(tile, taps)


def test_every_number_of_points_has_so_many() -> None:
    for count, points in _cook_toom._POINTS.items():
        whole = {sign * p for p in points for sign in (1, -1)}
        assert len(whole) == count
