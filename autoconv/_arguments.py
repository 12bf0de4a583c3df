"""The arguments of a call: the dtype that they are computed in, and the problem that they pose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoconv._backend import mx
from autoconv.problem import Kind, Problem

DTYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32", mx.float64: "float64"}
"""Names of the dtypes that MLX convolves."""


def promoted(first: mx.Dtype, second: mx.Dtype) -> mx.Dtype | None:
    """The dtype that MLX computes a convolution of these in; None if it is none that it convolves."""
    if first not in DTYPES or second not in DTYPES:
        return None
    if first == second:
        return first
    return mx.float64 if mx.float64 in (first, second) else mx.float32


def name_of_dtype(first: mx.Dtype, second: mx.Dtype) -> str:
    """The name of the dtype that MLX computes a convolution of these in; of the first if it convolves none such."""
    dtype = promoted(first, second)
    return DTYPES[dtype] if dtype is not None else str(first).removeprefix("mlx.core.")


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: there is none.
    """
    try:
        return Kind(name)
    except ValueError:
        msg = f"kind must be one of {', '.join(Kind)}; got {name!r}"
        raise ValueError(msg) from None


def problem_of(
    input: mx.array | Sequence[int], weight: mx.array | Sequence[int], dtype: str | None, **arguments: Any
) -> Problem:
    """The problem that a call poses, of arrays or of their shapes.

    Args:
        input: The input, or its shape.
        weight: The weight, or its shape.
        dtype: The dtype's name. Default: what the arrays promote to, float32 for shapes.
        arguments: As `Problem.parse` takes them.

    Raises:
        TypeError, ValueError: as `mx.conv3d`.
    """
    shapes = [a.shape if isinstance(a, mx.array) else tuple(a) for a in (input, weight)]
    if dtype is None:
        dtypes = [a.dtype for a in (input, weight) if isinstance(a, mx.array)] or [mx.float32]
        dtype = name_of_dtype(dtypes[0], dtypes[-1])
    return Problem.parse(shapes[0], shapes[1], dtype, **arguments)
