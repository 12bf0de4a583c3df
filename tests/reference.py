"""3D convolution and its two gradients in NumPy float64: loops over the kernel's taps over a padded input.

Written from the definition; shares no code with what it checks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from autoconv.problem import Problem

Array: TypeAlias = npt.NDArray[np.float64]
Window: TypeAlias = tuple[Any, ...]  # slices, as NumPy indexes by them


def _dilated_and_padded(input: Array, problem: Problem) -> Array:
    """The input with its zeros written out: between the elements first, then around them."""
    batch, *sizes, channels = input.shape
    apart = [(size - 1) * step + 1 for size, step in zip(sizes, problem.input_dilation, strict=True)]
    spread = np.zeros((batch, *apart, channels))
    spread[_elements(problem)] = input
    around = zip(problem.padding_low, problem.padding_high, strict=True)
    return np.pad(spread, [(0, 0), *around, (0, 0)])


def _elements(problem: Problem) -> Window:
    """Where the input's own elements stand once it is dilated."""
    return (slice(None), *(slice(None, None, step) for step in problem.input_dilation))


def _inside(input: Array, problem: Problem) -> Window:
    """Where the dilated input stands once it is padded."""
    around = zip(input.shape[1:4], problem.padding_low, problem.padding_high, strict=True)
    return (slice(None), *(slice(low, size - high) for size, low, high in around))


def _output_sizes(padded: Array, weight: Array, problem: Problem) -> list[int]:
    return [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            padded.shape[1:4], weight.shape[1:4], problem.dilation, problem.stride, strict=True
        )
    ]


def _taps(padded: Array, weight: Array, problem: Problem) -> Iterator[tuple[Window, Window]]:
    """(the weight's elements at one tap, the elements of the padded input that they multiply)."""
    sizes = _output_sizes(padded, weight, problem)
    for place in itertools.product(*map(range, weight.shape[1:4])):
        window = tuple(
            slice(k * dilation, k * dilation + (size - 1) * stride + 1, stride)
            for k, dilation, size, stride in zip(place, problem.dilation, sizes, problem.stride, strict=True)
        )
        index = tuple(kernel - 1 - k if problem.flip else k for k, kernel in zip(place, weight.shape[1:4], strict=True))
        yield (slice(None), *index), (slice(None), *window)


def _groups(weight: Array, problem: Problem) -> Iterator[tuple[slice, slice]]:
    """(output channels, input channels) of each group."""
    outputs, inputs = weight.shape[0] // problem.groups, weight.shape[4]
    for group in range(problem.groups):
        yield slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)


def convolve(input: Array, weight: Array, problem: Problem) -> Array:
    """`(N, OD, OH, OW, C_out)` from `(N, D, H, W, C_in)` and `(C_out, KD, KH, KW, C_in / groups)`."""
    padded = _dilated_and_padded(input, problem)
    output = np.zeros((input.shape[0], *_output_sizes(padded, weight, problem), weight.shape[0]))
    for tap, window in _taps(padded, weight, problem):
        for outputs, inputs in _groups(weight, problem):
            output[..., outputs] += padded[window][..., inputs] @ weight[outputs][tap].T
    return output


def input_gradient(input: Array, weight: Array, cotangent: Array, problem: Problem) -> Array:
    """The gradient of `sum(output * cotangent)` with respect to the input."""
    padded = _dilated_and_padded(input, problem)
    gradient = np.zeros_like(padded)
    for tap, window in _taps(padded, weight, problem):
        for outputs, inputs in _groups(weight, problem):
            gradient[window][..., inputs] += cotangent[..., outputs] @ weight[outputs][tap]
    return gradient[_inside(padded, problem)][_elements(problem)]


def weight_gradient(input: Array, weight: Array, cotangent: Array, problem: Problem) -> Array:
    """The gradient of `sum(output * cotangent)` with respect to the weight."""
    padded = _dilated_and_padded(input, problem)
    gradient = np.zeros_like(weight)
    for tap, window in _taps(padded, weight, problem):
        for outputs, inputs in _groups(weight, problem):
            seen = padded[window][..., inputs].reshape(-1, weight.shape[4])
            wanted = cotangent[..., outputs].reshape(len(seen), -1)
            gradient[outputs][tap] = wanted.T @ seen
    return gradient


def nearest_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the bfloat16 nearest to each float, ties to even; every NaN is 0x7fff, as CUDA has it.

    Eight binary digits are kept, fewer under 2^-126, by rounding a multiple of the last one's worth.
    """
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        exact = values.astype(np.float64)
    numbers = np.where(np.isfinite(exact), exact, 0.0)
    exponents = np.maximum(np.frexp(numbers)[1] - 1, -126)
    rounded = np.ldexp(np.rint(np.ldexp(numbers, 7 - exponents)), exponents - 7)
    finite = np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)
    found = np.where(np.isinf(exact), exact, finite).astype(np.float32)
    return np.where(np.isnan(exact), 0x7FFF, found.view(np.uint32) >> 16).astype(np.uint16)
