"""What a layer keeps of its weight between calls."""

from __future__ import annotations

import copy
import ctypes
import functools
from collections.abc import Sequence

from autoconv._backend import mx
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.algorithms._chunked import may_evaluate
from autoconv.algorithms._fused import sum_dtype, sum_float32

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def _address(array: mx.array) -> int | None:
    """Where an evaluated array's elements lie, None where MLX does not tell.

    DLPack's tensor begins with that address. It takes a microsecond.
    """
    try:
        capsule = array.__dlpack__()  # which owns the tensor
        return ctypes.c_void_p.from_address(_pointer(capsule, b"dltensor")).value
    except (ValueError, TypeError, RuntimeError, BufferError):
        return None


class Derived:
    """What is made of a weight, for as long as that is the same weight with the same elements.

    An array can be changed in place (`weight[0] = 1`, `weight += 1`) and is the same object then. It gets other memory,
    though, as long as somebody holds the old: so that is held, which costs nothing while nothing is changed, and its
    address is compared.
    """

    def __init__(self) -> None:
        self._run: InTwoSteps | None = None
        self._weight: mx.array | None = None
        self._held: mx.array | None = None
        self._at: int | None = None
        self._found: tuple[mx.array, ...] = ()

    def of(self, weight: mx.array, run: InTwoSteps) -> tuple[mx.array, ...]:
        """What `run` derives of `weight`; kept, but for a weight that is traced."""
        if self._weight is weight and self._run is run and self._at is not None and _address(weight) == self._at:
            return self._found
        found = run.derive(weight)
        if may_evaluate(weight):
            self._run, self._weight, self._found = run, weight, found
            self._held = copy.copy(weight)
            self._at = _address(self._held)
        return found

    def __deepcopy__(self, _memo: object) -> Derived:
        """A copy of a layer derives anew."""
        return Derived()

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        """Nothing of it is pickled."""
        return Derived, ()


class Kernels:
    """The 2D kernels of a weight's depth taps, and sums of neighbouring ones; those that were asked for are kept."""

    def __init__(self) -> None:
        self._derived: dict[range, Derived] = {}

    def of(self, weight: mx.array, taps: range) -> mx.array:
        """`(C_out, KH, KW, C_in / groups)`, the sum over these taps, rounded once."""
        (found,) = self._derived.setdefault(taps, Derived()).of(weight, _summed(taps))
        return found

    def __deepcopy__(self, _memo: object) -> Kernels:
        """A copy of a layer derives anew."""
        return Kernels()

    def __reduce__(self) -> tuple[type[Kernels], tuple[()]]:
        """Nothing of it is pickled."""
        return Kernels, ()


@functools.cache
def _summed(taps: range) -> InTwoSteps:
    """The first step of a convolution by the sum of these taps; one object for equal ones."""

    def derive(weight: mx.array) -> tuple[mx.array, ...]:
        kernels = [weight[:, tap] for tap in taps]
        return (mx.contiguous(kernels[0]) if len(kernels) == 1 else total(kernels),)

    return InTwoSteps(derive, _no_second_step)


def total(parts: Sequence[mx.array]) -> mx.array:
    """The sum of the parts, of those of 16 bits in float32."""
    if len(parts) == 1:
        return parts[0]
    return (sum_float32 if parts[0].itemsize == 2 else sum_dtype)(*parts)


def _no_second_step(_input: mx.array, _derived: Sequence[mx.array]) -> mx.array:
    raise NotImplementedError
