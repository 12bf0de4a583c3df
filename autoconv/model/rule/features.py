"""Features that a person can check on a layer, each as a function, as Python and, where MLX's dispatch sees it, C++."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoconv.problem import Problem


@dataclass(frozen=True)
class Feature:
    """A whole number that is known of a problem beforehand.

    Attributes:
        python: It as an expression over the names that `python.PRELUDE` defines.
        of: It as a function.
        cpp: It as an expression over the names that `metal` defines; empty where MLX's dispatch on Metal cannot see it.
        is_fact: Whether it is true or false: `python` and `cpp` are conditions then, and `of` is 1 or 0.
    """

    python: str
    of: Callable[[Problem], int]
    cpp: str = ""
    is_fact: bool = False


def _axis(name: str, values: Callable[[Problem], Sequence[int]], cpp: str = "") -> list[Feature]:
    """A feature for each of the axes D, H, W."""
    return [
        Feature(f"{name}_{letter}", lambda p, i=axis: values(p)[i], f"{cpp}[{axis}]" if cpp else "")  # type: ignore[misc]
        for axis, letter in enumerate("dhw")
    ]


def _divides(name: str, of: Callable[[Problem], int], by: int) -> Feature:
    return Feature(f"{name} % {by} == 0", lambda p: int(of(p) % by == 0), f"{name} % {by} == 0", is_fact=True)


def _inputs(problem: Problem) -> int:
    return problem.input_shape[4]


def _outputs(problem: Problem) -> int:
    return problem.weight_shape[0]


_BOTH = (
    Feature("OD", lambda p: p.output_shape[1], "OD"),
    Feature("OH", lambda p: p.output_shape[2], "OH"),
    Feature("OW", lambda p: p.output_shape[3], "OW"),
    Feature("C", _inputs, "C"),
    Feature("O", _outputs, "O"),
    Feature("KD", lambda p: p.weight_shape[1], "KD"),
    Feature("KH", lambda p: p.weight_shape[2], "KH"),
    Feature("KW", lambda p: p.weight_shape[3], "KW"),
    Feature("OH * OW", lambda p: math.prod(p.output_shape[2:4]), "OH * OW"),
    Feature("N * OD * OH * OW", lambda p: math.prod(p.output_shape[:4]), "OD * OH * OW"),
    Feature("N * OD * OH * OW * O", lambda p: math.prod(p.output_shape), "OD * OH * OW * O"),
    Feature("N * D * H * W * C", lambda p: math.prod(p.input_shape), "D * H * W * C"),
    # A multiply-add counted as two, padding included.
    Feature("MFLOP", lambda p: p.flops // 10**6, "MFLOP"),
    Feature("C + O", lambda p: _inputs(p) + _outputs(p), "C + O"),
    *_axis("stride", lambda p: p.stride, "conv_params.str")[1:],
    *_axis("dilation", lambda p: p.dilation, "conv_params.kdil")[1:],
    *_axis("pad_low", lambda p: p.padding_low, "conv_params.pad")[1:],
    Feature("item_bytes", lambda p: p.item_bytes, "item_bytes"),
    _divides("C", _inputs, 32),
    _divides("O", _outputs, 16),
    _divides("O", _outputs, 32),
)

FEATURES: tuple[Feature, ...] = (
    Feature("N", lambda p: p.input_shape[0]),
    Feature("D", lambda p: p.input_shape[1]),
    Feature("H", lambda p: p.input_shape[2]),
    Feature("W", lambda p: p.input_shape[3]),
    Feature("groups", lambda p: p.groups),
    *_BOTH,
    _axis("stride", lambda p: p.stride)[0],
    _axis("dilation", lambda p: p.dilation)[0],
    _axis("pad_low", lambda p: p.padding_low)[0],
    _axis("pad_high", lambda p: p.padding_high)[0],
    _divides("C", _inputs, 8),
    _divides("C", _inputs, 16),
    _divides("O", _outputs, 8),
)
"""What the Python rule may ask."""

METAL_FEATURES: tuple[Feature, ...] = (
    *_BOTH,
    Feature("OD * H * W", lambda p: p.output_shape[1] * math.prod(p.input_shape[2:4]), "OD * H * W"),
    Feature("flip", lambda p: int(p.flip), "conv_params.flip", is_fact=True),
)
"""What `dispatch_conv_3D_gpu` can ask, where both of MLX's ways can run (there the batch, depth stride, depth dilation
and groups are 1, and there is no depth padding).

The device's architecture is known there as well, and left out: three chips cannot teach a rule about generations, and
it is to hold on chips that nobody measured. The table by chip shows whether one rule fits them all.
"""
