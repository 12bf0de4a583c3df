"""Ways to compute a convolution and its gradients, one file each.

An algorithm is a module of this package whose name does not begin with an underscore and that has a constant
`ALGORITHM`. Adding one touches no other file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from autoconv.algorithms._adjoint import adjoint
from autoconv.algorithms._algorithm import Algorithm, Candidate, Convolution
from autoconv.problem import Kind, Problem

__all__ = ["Algorithm", "Candidate", "Convolution", "algorithms", "candidates", "find"]


@functools.cache
def algorithms() -> tuple[Algorithm, ...]:
    """All algorithms, in the order by which ties are settled; native is first."""
    found = [
        importlib.import_module(f"{__name__}.{module.name}").ALGORITHM
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
    return tuple(sorted(found, key=lambda algorithm: (algorithm.order, algorithm.name)))


def candidates(problem: Problem, backend: str, among: tuple[Algorithm, ...] | None = None) -> tuple[Candidate, ...]:
    """Every candidate that applies to a problem on a backend, in the order by which ties are settled.

    Args:
        problem: The problem.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        among: The algorithms to take them from. Default: all.
    """
    known = algorithms() if among is None else among
    if problem.kind is Kind.INPUT_GRADIENT:
        found = adjoint(problem)
        if found is None:  # no output sees the input, and zeros need no algorithm
            return tuple(Candidate(a) for a in known if a.name == "native")
        return candidates(found.problem, backend, known)
    return tuple(
        Candidate(algorithm, tuple(sorted(parameters.items())))
        for algorithm in known
        if problem.kind in algorithm.kinds
        for parameters in algorithm.parameters(problem, backend)
    )


def find(name: str, problem: Problem, backend: str, among: tuple[Algorithm, ...] | None = None) -> Candidate | None:
    """The candidate of that name, such as `kd_decomposition(sum=float32)`; None where no such one applies."""
    return next((c for c in candidates(problem, backend, among) if c.name == name), None)
