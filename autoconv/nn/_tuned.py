"""A convolution of a layer, by what is known to be the fastest, with what was made of the weight before."""

from __future__ import annotations

from autoconv import _calls
from autoconv._backend import mx
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.nn._derived import Derived
from autoconv.ops import conv_general
from autoconv.problem import IntOrInts, Padding


def tuned(
    input: mx.array,
    weight: mx.array,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
    derived: Derived,
) -> mx.array:
    """As `autoconv.conv_general`; `derived` keeps what the way to compute it makes of the weight."""
    run = _calls.found(input, weight, (stride, padding, dilation, 1, groups, False))
    if isinstance(run, InTwoSteps):
        _calls.hit()
        return run.apply(input, derived.of(weight, run))
    return conv_general(input, weight, stride, padding, dilation, 1, groups)
