"""A problem: everything that determines one convolution's work, and nothing else."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NoReturn, SupportsIndex, TypeAlias

Triple: TypeAlias = tuple[int, int, int]
Shape5: TypeAlias = tuple[int, int, int, int, int]
IntOrInts: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Padding: TypeAlias = IntOrInts | Sequence[Sequence[SupportsIndex]]

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of one element, for the dtypes that MLX convolves."""

MAX_ELEMENTS = 2**31 - 1
"""Past this an array's elements cannot be addressed by a signed 32-bit index, which MLX's kernels use."""

_KEY = re.compile(
    r"(?P<kind>\w+) (?P<dtype>\w+) x(?P<x>[\d,]+) w(?P<w>[\d,]+) s(?P<s>[\d,]+) p(?P<lo>[\d,]+):(?P<hi>[\d,]+) "
    r"d(?P<d>[\d,]+) i(?P<i>[\d,]+) g(?P<g>\d+) f(?P<f>[01])"
)


class Kind(StrEnum):
    """Which of a convolution's three computations a problem is."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"


def dilated(size: int, dilation: int) -> int:
    """The extent of `size` elements that stand `dilation` apart."""
    return (size - 1) * dilation + 1 if size else 0


def triple(value: IntOrInts, name: str) -> Triple:
    """Three ints, in D, H, W order, from one int for all or a sequence of one or three.

    Raises:
        TypeError: `value` is neither an int nor a sequence of ints.
        ValueError: a sequence of another length.
    """
    msg = f"[conv] {name} must be an int of 32 bits or a sequence of three, got {value!r}."
    try:
        one = not isinstance(value, Sequence)
        items = (operator.index(value),) if one else tuple(operator.index(v) for v in value)  # type: ignore
    except TypeError:
        raise TypeError(msg) from None
    if any(abs(v) > MAX_ELEMENTS for v in items):
        raise TypeError(msg)
    if len(items) == 1:
        items *= 3
    if len(items) != 3:
        msg = f"[conv] Invalid {name} {items} for 3D convolution."
        raise ValueError(msg)
    return items[0], items[1], items[2]


def padding_pair(value: Padding) -> tuple[Triple, Triple]:
    """(low, high) padding in D, H, W order, from an int, three ints, or a pair of sequences.

    Raises:
        TypeError: `value` is none of these.
        ValueError: a sequence of another length.
    """
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, Sequence) for v in value):
        low, high = value
        return triple(low, "padding"), triple(high, "padding")
    both = triple(value, "padding")  # type: ignore[arg-type]
    return both, both


def cropped(shape: Sequence[int], low: Triple, high: Triple) -> tuple[tuple[slice, ...], Triple, Triple]:
    """What negative padding leaves of an input: slices of its N, D, H, W, and the padding that remains, (low, high).

    MLX takes negative padding off the input before it convolves.
    """
    inner = (slice(max(0, -a), max(0, size - max(0, -b))) for size, a, b in zip(shape[1:4], low, high, strict=True))
    left_low = (max(0, low[0]), max(0, low[1]), max(0, low[2]))
    left_high = (max(0, high[0]), max(0, high[1]), max(0, high[2]))
    return (slice(None), *inner), left_low, left_high


@dataclass(frozen=True)
class Problem:
    """One convolution's work; equal problems are run the same by MLX.

    Arguments that cannot act, such as a depth stride with one output frame, are kept as they are: they choose
    MLX's kernel.

    A gradient is a problem of its own, with the shapes and arguments of the convolution that it is a gradient of:

    | kind | operands | result |
    | --- | --- | --- |
    | forward | input, weight | as `output_shape` |
    | input gradient | cotangent as `output_shape`, weight | as `input_shape` |
    | weight gradient | input, cotangent as `output_shape` | as `weight_shape` |

    Attributes:
        input_shape: `(N, D, H, W, C_in)`.
        weight_shape: `(C_out, KD, KH, KW, C_in / groups)`.
        stride: Steps of the kernel over D, H, W; at least 1.
        padding_low: Zeros before the first element of D, H, W; at least 0.
        padding_high: Zeros after the last element of D, H, W; at least 0.
        dilation: Distance of the kernel's taps; at least 1.
        input_dilation: Distance of the input's elements, zeros between; at least 1.
        groups: Groups of channels that do not mix.
        flip: Whether the kernel is flipped in D, H and W (a convolution rather than a cross-correlation).
        dtype: What the sum of both dtypes promotes to: float16, bfloat16, float32 or float64.
        kind: Forward, or one of the two gradients.
    """

    input_shape: Shape5
    weight_shape: Shape5
    stride: Triple = (1, 1, 1)
    padding_low: Triple = (0, 0, 0)
    padding_high: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    input_dilation: Triple = (1, 1, 1)
    groups: int = 1
    flip: bool = False
    dtype: str = "float32"
    kind: Kind = Kind.FORWARD

    def __post_init__(self) -> None:
        """Refuse what is no convolution, with the errors that MLX raises for it."""
        if self.dtype not in ITEM_BYTES:
            msg = (
                f"[conv] Invalid input array with type {self.dtype}. "
                "Convolution currently only supports floating point types."
            )
            raise ValueError(msg)
        for name, shape in (("input", self.input_shape), ("weight", self.weight_shape)):
            if len(shape) != 5:
                layout = "[N, D, H, W, C_in]" if name == "input" else "[C_out, KD, KH, KW, C_in / groups]"
                msg = (
                    f"[conv] Invalid {name} array with {len(shape)} dimensions for 3D convolution. "
                    f"Expected an array with 5 dimensions following the format {layout}."
                )
                raise ValueError(msg)
        # One look at all of them: which it is only matters where one is too low.
        least = min((*self.stride, *self.dilation, *self.input_dilation, self.groups))
        if least < 1 or min((*self.padding_low, *self.padding_high, 0)) < 0:
            self._refuse_argument()
        if min(self.input_shape) < 0 or min(self.weight_shape) < 1 or self.input_shape[4] < 1:
            msg = (
                "[conv] The weight's sizes and the input's channels must be at least 1. "
                f"Got input {self.input_shape} and weight {self.weight_shape}."
            )
            raise ValueError(msg)
        channels, outputs = self.input_shape[4], self.weight_shape[0]
        if channels != self.weight_shape[4] * self.groups or outputs % self.groups:
            msg = (
                "[conv] Expect the input channels to be the weight's times groups, and the output channels to be "
                f"divisible by groups. Got input {self.input_shape}, weight {self.weight_shape}, groups {self.groups}."
            )
            raise ValueError(msg)
        if min(self.output_shape[1:4]) < 1:
            msg = (
                "[conv] Spatial dimensions of input after padding cannot be smaller than weight spatial dimensions. "
                f"Got input {self.input_shape}, padding low {self.padding_low}, padding high {self.padding_high}, "
                f"weight {self.weight_shape} and dilation {self.dilation}."
            )
            raise ValueError(msg)

    def _refuse_argument(self) -> NoReturn:
        """Say which argument is too low."""
        name, low, values = next(
            (name, low, values)
            for name, low, values in (
                ("stride", 1, self.stride),
                ("kernel dilation", 1, self.dilation),
                ("input dilation", 1, self.input_dilation),
                ("padding", 0, (*self.padding_low, *self.padding_high)),
                ("number of groups", 1, (self.groups,)),
            )
            if any(v < low for v in values)
        )
        msg = f"[conv] The {name} must be at least {low}. Got {values}."
        raise ValueError(msg)

    @classmethod
    def parse(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        dtype: str = "float32",
        *,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        input_dilation: IntOrInts = 1,
        groups: int = 1,
        flip: bool = False,
        kind: Kind = Kind.FORWARD,
    ) -> Problem:
        """The problem that a call with these arguments poses; ints, lists and tuples that mean the same are one.

        Negative padding is taken off the input, as MLX does.

        Raises:
            TypeError, ValueError: as MLX does for the same arguments.
        """
        if not isinstance(flip, bool):
            msg = f"[conv] flip must be True or False, got {flip!r}."
            raise TypeError(msg)
        shape = tuple(operator.index(v) for v in input_shape)
        low, high = padding_pair(padding)
        if min(*low, *high) < 0 and len(shape) == 5:
            slices, low, high = cropped(shape, low, high)
            shape = (shape[0], *(len(range(n)[s]) for n, s in zip(shape[1:4], slices[1:], strict=True)), shape[4])
        return cls(
            input_shape=shape,  # type: ignore[arg-type]
            weight_shape=tuple(operator.index(v) for v in weight_shape),  # type: ignore[arg-type]
            stride=triple(stride, "stride"),
            padding_low=low,
            padding_high=high,
            dilation=triple(dilation, "kernel dilation"),
            input_dilation=triple(input_dilation, "input dilation"),
            groups=operator.index(groups),
            flip=flip,
            dtype=dtype,
            kind=kind,
        )

    @classmethod
    def from_key(cls, key: str) -> Problem:
        """The problem whose `key` this is.

        Raises:
            ValueError: no problem has this key.
        """
        found = _KEY.fullmatch(key)
        if not found:
            msg = f"{key!r} is not the key of a problem"
            raise ValueError(msg)

        def ints(group: str) -> tuple[int, ...]:
            return tuple(int(v) for v in found[group].split(","))

        problem = cls.parse(
            ints("x"),
            ints("w"),
            found["dtype"],
            stride=ints("s"),
            padding=(ints("lo"), ints("hi")),
            dilation=ints("d"),
            input_dilation=ints("i"),
            groups=int(found["g"]),
            flip=found["f"] == "1",
            kind=Kind(found["kind"]),
        )
        if problem.key != key:
            msg = f"{key!r} is not the canonical key of a problem, which would be {problem.key!r}"
            raise ValueError(msg)
        return problem

    @cached_property
    def key(self) -> str:
        """The problem as one line of text, the same for equal problems and no others; `from_key` reads it."""

        def text(values: Sequence[int]) -> str:
            return ",".join(map(str, values))

        return (
            f"{self.kind} {self.dtype} x{text(self.input_shape)} w{text(self.weight_shape)} s{text(self.stride)} "
            f"p{text(self.padding_low)}:{text(self.padding_high)} d{text(self.dilation)} "
            f"i{text(self.input_dilation)} g{self.groups} f{int(self.flip)}"
        )

    @cached_property
    def output_shape(self) -> Shape5:
        """`(N, OD, OH, OW, C_out)`: each size is `(dilated input + padding - dilated kernel) // stride + 1`."""
        sizes = [
            (dilated(i, idil) + low + high - dilated(k, dil)) // s + 1
            for i, k, s, low, high, dil, idil in zip(
                self.input_shape[1:4],
                self.weight_shape[1:4],
                self.stride,
                self.padding_low,
                self.padding_high,
                self.dilation,
                self.input_dilation,
                strict=True,
            )
        ]
        return (self.input_shape[0], sizes[0], sizes[1], sizes[2], self.weight_shape[0])

    @property
    def operand_shapes(self) -> tuple[Shape5, Shape5]:
        """Shapes of the two arrays that it is computed from (see the table above)."""
        if self.kind is Kind.INPUT_GRADIENT:
            return self.output_shape, self.weight_shape
        if self.kind is Kind.WEIGHT_GRADIENT:
            return self.input_shape, self.output_shape
        return self.input_shape, self.weight_shape

    @property
    def result_shape(self) -> Shape5:
        """Shape of what it computes (see the table above)."""
        if self.kind is Kind.INPUT_GRADIENT:
            return self.input_shape
        if self.kind is Kind.WEIGHT_GRADIENT:
            return self.weight_shape
        return self.output_shape

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of the direct convolution, a multiply-add counted as two, padding included.

        Each gradient multiplies the very same pairs of numbers.
        """
        return 2 * math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.input_shape) * self.item_bytes

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return math.prod(self.weight_shape) * self.item_bytes

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return math.prod(self.output_shape) * self.item_bytes

    @property
    def operand_bytes(self) -> tuple[int, int]:
        """Bytes of each operand."""
        first, second = self.operand_shapes
        return math.prod(first) * self.item_bytes, math.prod(second) * self.item_bytes

    @property
    def result_bytes(self) -> int:
        """Bytes of the result."""
        return math.prod(self.result_shape) * self.item_bytes

    @property
    def bytes(self) -> int:
        """The fewest bytes that must move: both operands read once, the result written once."""
        return self.input_bytes + self.weight_bytes + self.output_bytes

    @cached_property
    def addressable(self) -> bool:
        """Whether input, weight and output have at most 2^31-1 elements each."""
        return max(map(math.prod, (self.input_shape, self.weight_shape, self.output_shape))) <= MAX_ELEMENTS

    def __str__(self) -> str:
        """A line for people: sizes, then only the arguments that are not the default."""

        def text(values: Sequence[int]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        parts = [
            "x".join(map(str, self.input_shape)) + " * " + "x".join(map(str, self.weight_shape)),
            self.dtype,
        ]
        if self.stride != (1, 1, 1):
            parts.append(f"stride {text(self.stride)}")
        if self.padding_low != self.padding_high:
            parts.append(f"padding {text(self.padding_low)}:{text(self.padding_high)}")
        elif any(self.padding_low):
            parts.append(f"padding {text(self.padding_low)}")
        if self.dilation != (1, 1, 1):
            parts.append(f"dilation {text(self.dilation)}")
        if self.input_dilation != (1, 1, 1):
            parts.append(f"input dilation {text(self.input_dilation)}")
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        if self.flip:
            parts.append("flipped")
        if self.kind is not Kind.FORWARD:
            parts.append(self.kind.replace("_", " "))
        return ", ".join(parts)
