"""Winograd's minimal filtering along the depth, over 2D convolutions of transformed frames.

F(m, KD) computes `m` output frames by `m + KD - 1` two-dimensional convolutions where a sum over the taps needs
`m * KD`: 1.5 times fewer for F(2, 3), 1.8 for F(3, 3), 2 for F(4, 3). Input frames and weight are transformed by sums
in float32, and so are the convolutions' results; between them all is in the problem's dtype, whose rounding those sums
make up to four times larger than the direct convolution's (`_cook_toom.Transforms.amplification`).

Output frames that see depth padding are summed over their taps directly: they see fewer of them, so no frame of zeros
is ever made. What a tile of `m` does not divide is a smaller tile.

An Inf or a NaN in a frame reaches all `m` outputs of its tiles, as in every algorithm of this kind, MLX's own 2D
Winograd among them.

Parameters:
    tile: `m`, the output frames of a tile.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.algorithms import _cook_toom, _cuda
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, InTwoSteps, Parameters
from autoconv.algorithms._calls import Calls
from autoconv.algorithms._depth import (
    Segment,
    Tap,
    flat_call,
    flat_convolution,
    flipped,
    phases,
    tap_sum,
    zeros_like_output,
)
from autoconv.algorithms._fused import fused
from autoconv.algorithms._mlx import workspace_2d
from autoconv.problem import MAX_ELEMENTS, Problem

TILES = (2, 3, 4)
"""Larger ones save little more and lose too much: F(6, 3) needs 12% fewer products than F(4, 3) for twice its error."""

MANY = 32
"""Most frames that are put in order one by one, which spares a copy; each is a kernel of its own."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring output frames that are computed together.

    Attributes:
        segment: The frames and the taps that they see.
        tile: Frames of a tile; 1 for the sum over taps.
    """

    segment: Segment
    tile: int

    @property
    def outputs(self) -> int:
        """How many output frames."""
        return self.segment.stop - self.segment.start

    @property
    def tiles(self) -> int:
        """How many tiles."""
        return self.outputs // self.tile


def pieces(problem: Problem, tile: int) -> tuple[Piece, ...]:
    """The output frames in order, cut into tiles, tails and what sees padding."""
    return tuple(Piece(Segment(start, stop, taps), size) for start, stop, taps, size in _cuts(problem, tile))


def _cuts(problem: Problem, tile: int) -> Iterator[tuple[int, int, tuple[Tap, ...], int]]:
    """(first output, one past the last, taps, tile) of each piece: all that counting needs, at a sixth of the time."""
    (phase,) = phases(problem)
    for segment in phase.segments:
        start, stop, taps = segment.start, segment.stop, segment.taps
        if len(taps) < problem.weight_shape[1]:
            yield start, stop, taps, 1
            continue
        middle = stop - (stop - start) % tile
        if middle > start:
            yield start, middle, taps, tile
        if middle < stop:
            yield middle, stop, taps, stop - middle


@functools.cache
def _combined(matrix: _cook_toom.Matrix) -> Callable[..., tuple[mx.array, ...]]:
    """The rows of `matrix`, each as that sum of as many arrays, in float32 at least; then in the arrays' dtype."""
    rows = _cook_toom.coefficients(matrix)

    @fused
    def combine(*arrays: mx.array) -> tuple[mx.array, ...]:
        dtype = arrays[0].dtype
        wide = _widened(arrays)
        return tuple(_sum(row, wide).astype(dtype) for row in rows)

    return combine


@fused
def _in_order(*arrays: mx.array) -> mx.array:
    """The outputs of all tiles in order: products of shape `(..., 1, OH, OW, C_out)`, then as many columns of `A`.

    One kernel writes what separate outputs would have to be copied into.
    """
    products, columns = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
    total = None
    for product, column in zip(_widened(products), columns, strict=True):
        total = product * column if total is None else total + product * column
    assert total is not None, "a tile has at least one product"
    return total.astype(products[0].dtype)


def _widened(arrays: Sequence[mx.array]) -> Sequence[mx.array]:
    return arrays if arrays[0].dtype == mx.float64 else [a.astype(mx.float32) for a in arrays]


def _sum(row: Sequence[float], arrays: Sequence[mx.array]) -> mx.array:
    total = None
    for factor, array in zip(row, arrays, strict=True):
        if factor == 0:
            continue
        term = array if factor == 1 else factor * array
        total = term if total is None else total + term
    assert total is not None, "no row of a transform is all zeros"
    return total


def _parameters(problem: Problem, backend: str) -> Iterable[Parameters]:
    taps = problem.weight_shape[1]
    if not problem.addressable or taps == 1:
        return ()
    if problem.stride[0] != 1 or problem.dilation[0] != 1 or problem.input_dilation[0] != 1:
        return ()
    frame = problem.input_shape[0] * math.prod(problem.input_shape[2:])
    # Most neighbouring outputs that see all taps.
    longest = max((count for phase in phases(problem) for count, seen in phase.stacks if seen == taps), default=0)

    def applies(tile: int) -> bool:
        if tile + taps - 1 > _cook_toom.MAX_PRODUCTS:
            return False
        if backend != "cuda":
            return longest >= tile
        # With much depth padding there may be more tiles than frames.
        return tile <= problem.output_shape[1] and _tiles(problem, tile) * frame <= MAX_ELEMENTS

    return [{"tile": tile} for tile in TILES if applies(tile)]


def _build(problem: Problem, tile: int) -> Convolution:
    @functools.cache
    def steps(on_cuda: bool) -> InTwoSteps:
        return (_by_kernels if on_cuda else _by_pieces)(problem, tile)

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        return steps(_cuda.is_current()).derive(weight)

    def apply(input: mx.array, derived: Sequence[mx.array]) -> mx.array:
        return steps(_cuda.is_current()).apply(input, derived)

    return InTwoSteps(derive, apply)


def _by_kernels(problem: Problem, tile: int) -> InTwoSteps:
    """On CUDA: kernels of our own gather the frames of all tiles, whatever lies past the input's ends, and put the
    outputs in order, so that there is one kind of tile and nothing is copied.
    """
    convolve, orient = flat_convolution(problem), flipped(problem)
    taps, (batch, frames) = problem.weight_shape[1], problem.output_shape[:2]
    tiles, low = _tiles(problem, tile), problem.padding_low[0]
    maps = _cook_toom.transforms(tile, taps)
    of_kernel, of_input, of_output = map(_cook_toom.coefficients, (maps.kernel, maps.input, maps.output))
    products = tile + taps - 1
    spare = max(0, (tiles - 1) * tile + products - low - problem.input_shape[1])
    widths = [(0, 0), (low, spare), (0, 0), (0, 0), (0, 0)]

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        return _cuda.combine_taps(of_kernel, orient(weight))

    def derive_plainly(weight: mx.array) -> tuple[mx.array, ...]:
        weight = orient(weight)
        return _combined(maps.kernel)(*(weight[:, k] for k in range(taps)))

    def apply(input: mx.array, *kernels: mx.array) -> mx.array:
        points = _cuda.combine_frames(of_input, input, tiles, tile, -low)
        results = [convolve(images, kernel) for images, kernel in zip(points, kernels, strict=True)]
        return _cuda.combine_to_frames(of_output, results, batch, frames)

    def apply_plainly(input: mx.array, *kernels: mx.array) -> mx.array:
        padded = mx.pad(input, widths)
        last = (tiles - 1) * tile + 1
        points = _combined(maps.input)(*(padded[:, i : i + last : tile] for i in range(products)))
        results = [convolve(mx.flatten(p, 0, 1), kernel) for p, kernel in zip(points, kernels, strict=True)]
        rows = [mx.unflatten(row, 0, (batch, tiles)) for row in _combined(maps.output)(*results)]
        return mx.flatten(mx.stack(rows, axis=2), 1, 2)[:, :frames]

    derive, apply = _cuda.differentiable(derive, derive_plainly), _cuda.differentiable(apply, apply_plainly)
    return InTwoSteps(derive, lambda input, derived: apply(input, *derived))


def _tiles(problem: Problem, tile: int) -> int:
    """Tiles of one clip where there is but one kind of them."""
    return -(-problem.output_shape[1] // tile)


def _by_pieces(problem: Problem, tile: int) -> InTwoSteps:
    """Of public operations alone, wherever MLX runs."""
    plan = pieces(problem, tile)
    convolve, orient = flat_convolution(problem), flipped(problem)
    taps, batch = problem.weight_shape[1], problem.input_shape[0]
    maps = {size: _cook_toom.transforms(size, taps) for size in sorted({p.tile for p in plan} - {1})}
    direct = any(piece.tile == 1 for piece in plan)

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        """The kernels of each tap where they are needed, then of each tile size the transformed ones."""
        # Contiguous, since a kernel of strided arrays is several times slower.
        whole = mx.contiguous(mx.moveaxis(orient(weight), 1, 0))
        kernels = [whole[k] for k in range(taps)]
        found = kernels if direct else []
        return (*found, *(kernel for size in maps for kernel in _combined(maps[size].kernel)(*kernels)))

    def split(derived: Sequence[mx.array]) -> dict[int, Sequence[mx.array]]:
        """The derived kernels by the size of the tile."""
        found, first = {}, taps if direct else 0
        for size in maps:
            found[size] = derived[first : first + size + taps - 1]
            first += size + taps - 1
        return found

    def products_of(piece: Piece, input: mx.array, kernels: Sequence[mx.array]) -> list[mx.array]:
        """What each point's convolution gives: `(tiles, N, OH, OW, C_out)`."""
        size, count = piece.tile, piece.tiles
        first = piece.segment.taps[0].first_frame + piece.segment.start
        # Frame `i` of every tile, for each `i`: as slices of as many contiguous arrays as a tile has outputs.
        longest = count + (taps - 2) // size + 1
        rows = []
        for i in range(size):
            frames = input[:, first + i : first + count * size + taps - 1 : size][:, :longest]
            rows.append(mx.contiguous(mx.moveaxis(frames, 1, 0)))
        seen = [rows[i % size][i // size : i // size + count] for i in range(size + taps - 1)]
        return [
            mx.unflatten(convolve(mx.flatten(points, 0, 1), kernel), 0, (count, batch))
            for points, kernel in zip(_combined(maps[size].input)(*seen), kernels, strict=True)
        ]

    def outputs_of(piece: Piece, products: list[mx.array]) -> list[mx.array]:
        """The piece's frames in order, each array `(N, frames, OH, OW, C_out)`."""
        output = maps[piece.tile].output
        if len(plan) > 1 and piece.outputs <= MANY:  # they are copied once more in any case
            rows = _combined(output)(*products)
            return [mx.moveaxis(row[t : t + 1], 0, 1) for t in range(piece.tiles) for row in rows]
        columns = [
            mx.array(column).reshape(-1, 1, 1, 1) for column in zip(*_cook_toom.coefficients(output), strict=True)
        ]
        return [mx.flatten(_in_order(*(mx.moveaxis(p, 0, 1)[:, :, None] for p in products), *columns), 1, 2)]

    def apply(input: mx.array, derived: Sequence[mx.array]) -> mx.array:
        input = mx.contiguous(input)  # every tap reads it
        kernels = split(derived)
        parts: list[mx.array] = []
        for piece in plan:
            if piece.tile > 1:
                parts += outputs_of(piece, products_of(piece, input, kernels[piece.tile]))
            elif piece.segment.taps:
                parts.append(tap_sum(convolve, input, derived, piece.segment))
            else:
                parts.append(zeros_like_output(problem, piece.outputs, input))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    return InTwoSteps(derive, apply)


def _cost(problem: Problem, backend: str, tile: int) -> Cost:
    batch, _, height, width, channels = problem.input_shape
    products = tile + problem.weight_shape[1] - 1
    if backend == "cuda":
        images, frames = products * _tiles(problem, tile), problem.input_bytes // problem.input_shape[1]
        kernels = problem.weight_bytes // problem.weight_shape[1] * products
        results = problem.output_bytes // problem.output_shape[1] * images
        flops = problem.flops // (problem.output_shape[1] * problem.weight_shape[1]) * images
        moved = problem.bytes + 2 * (images * frames + results + kernels)
        return Cost(flops, moved, images * frames + results + kernels)
    frame_in = batch * height * width * channels * problem.item_bytes
    frame_out = batch * math.prod(problem.output_shape[2:]) * problem.item_bytes
    frame_flops = 2 * batch * math.prod(problem.output_shape[2:]) * math.prod(problem.weight_shape[2:])
    halo, wide = problem.weight_shape[1] - 1, 4 / problem.item_bytes
    convolved = points = rows = ordered = kernels = unfused = count = 0
    for start, stop, taps, size in _cuts(problem, tile):
        outputs, count = stop - start, count + 1
        if size == 1:
            images = outputs * len(taps)
        else:
            images = outputs // size * (size + halo)
            points += images
            rows += outputs + halo
            ordered += outputs
            kernels += size + halo
        convolved += images
        if backend == "cpu":  # without fusion, sums are arrays of their own, and of 16 bits so are the terms
            terms = images * max(frame_in, frame_out) * wide if problem.item_bytes == 2 else 0
            unfused = max(unfused, int(terms + 2 * max(outputs // size * frame_in, outputs * frame_out) * wide))
    weights = kernels * (problem.weight_bytes // problem.weight_shape[1])
    joined = problem.output_bytes if count > 1 else 0
    moved = convolved * (frame_in + 2 * frame_out) + 2 * points * frame_in + problem.output_bytes
    moved += 2 * joined + problem.weight_bytes + 2 * weights
    # The frames in rows, and the outputs in order, besides the points and the products that they come from.
    alive = (points + rows) * frame_in + (convolved + ordered) * frame_out + problem.output_bytes
    # Evaluation runs ahead, so that all pieces' scratch is alive together.
    scratch = workspace_2d(problem, backend, batch * convolved, channels)
    return Cost(convolved * frame_flops, moved, alive + weights + scratch + joined + unfused)


def _calls(problem: Problem, backend: str, tile: int) -> Calls:
    (batch, *_, channels), outputs, taps = problem.input_shape, problem.weight_shape[0], problem.weight_shape[1]
    found: Counter[int] = Counter()
    if backend == "cuda":
        found[_tiles(problem, tile)] = tile + taps - 1
    else:
        for piece in pieces(problem, tile):
            found[piece.tiles] += len(piece.segment.taps) if piece.tile == 1 else piece.tile + taps - 1
    return [(flat_call(problem, batch * images, channels, outputs), times) for images, times in found.items() if times]


ALGORITHM = Algorithm(
    name="depth_winograd", version=1, order=4, build=_build, cost=_cost, parameters=_parameters, calls=_calls
)
