"""What a layer keeps of its weight between calls."""

from __future__ import annotations

import copy
import ctypes

from autoconv._backend import mx
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.algorithms._chunked import may_evaluate

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
