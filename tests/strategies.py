"""Hypothesis strategies for problems; what they draw is valid by the way it is built."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from autoconv.problem import Kind, Problem

MAX_SIZES = (6, 5, 5)
MAX_KERNEL = (5, 3, 3)


@st.composite
def axes(draw: st.DrawFn, max_size: int, max_kernel: int, dilations: bool = True) -> tuple[int, ...]:
    """(size, kernel, stride, low, high, dilation, input dilation) of one axis that has an output."""
    size = draw(st.integers(1, max_size))
    input_dilation = draw(st.sampled_from((1, 1, 1, 2, 3) if dilations else (1,)))
    low, high = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    extent = (size - 1) * input_dilation + 1 + low + high
    kernel = draw(st.integers(1, min(max_kernel, extent)))
    reach = min(3, (extent - 1) // (kernel - 1)) if kernel > 1 else 3
    dilation = draw(st.integers(1, reach if dilations else 1))
    stride = draw(st.integers(1, 3))
    return size, kernel, stride, low, high, dilation, input_dilation


@st.composite
def problems(
    draw: st.DrawFn,
    dtypes: Sequence[str] = ("float32",),
    kinds: Sequence[Kind] = (Kind.FORWARD,),
    max_groups: int = 3,
    dilations: bool = True,
) -> Problem:
    """Small problems, every argument random."""
    drawn = [draw(axes(*limits, dilations)) for limits in zip(MAX_SIZES, MAX_KERNEL, strict=True)]
    size, kernel, stride, low, high, dilation, input_dilation = zip(*drawn, strict=True)
    groups = draw(st.integers(1, max_groups))
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)) * groups
    return Problem.parse(
        (draw(st.integers(1, 2)), *size, inputs * groups),
        (outputs, *kernel, inputs),
        draw(st.sampled_from(dtypes)),
        stride=stride,
        padding=(low, high),
        dilation=dilation,
        input_dilation=input_dilation,
        groups=groups,
        flip=draw(st.booleans()),
        kind=draw(st.sampled_from(kinds)),
    )


@st.composite
def decomposed_problems(draw: st.DrawFn, dtypes: Sequence[str] = ("float32",)) -> Problem:
    """Small problems that the fixed rule of MLX's Metal backend takes apart along depth."""
    drawn = [draw(axes(*limits)) for limits in zip(MAX_SIZES, MAX_KERNEL, strict=True)]
    _, kernel, stride, low, high, dilation, _ = (list(values) for values in zip(*drawn, strict=True))
    kernel[0], stride[0], low[0], dilation[0] = draw(st.integers(1, 7)), 1, 0, 1
    # Each axis is as long as the kernel and up to three more, less the padding.
    size = [
        max(1, (k - 1) * d + 1 + draw(st.integers(0, 3)) - below - above)
        for k, d, below, above in zip(kernel, dilation, low, high, strict=True)
    ]
    return Problem.parse(
        (1, *size, 16),
        (draw(st.sampled_from((1, 3, 16, 32))), *kernel, 16),
        draw(st.sampled_from(dtypes)),
        stride=stride,
        padding=(low, high),
        dilation=dilation,
        flip=draw(st.booleans()),
    )
