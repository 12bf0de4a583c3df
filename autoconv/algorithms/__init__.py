"""Ways to compute a convolution and its gradients, one file each.

An algorithm is a module of this package whose name does not begin with an underscore and that has a constant
`ALGORITHM`. Adding one touches no other file.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Iterator, Sequence

from autoconv.algorithms._adjoint import adjoint
from autoconv.algorithms._algorithm import Algorithm, Candidate, Convolution, Parameters, chunk_bytes
from autoconv.algorithms._chunks import FEWEST, MOST, PARAMETERS, largest, number, parts
from autoconv.problem import MAX_ELEMENTS, Kind, Problem

__all__ = ["Algorithm", "Candidate", "Convolution", "algorithms", "candidates", "find", "places"]

SLACK = 1.15
"""What an estimate of a chunk's memory may be too low by; what it takes is to be within the limit."""


@functools.cache
def algorithms() -> tuple[Algorithm, ...]:
    """All algorithms, in the order by which ties are settled; native is first."""
    found = [
        importlib.import_module(f"{__name__}.{module.name}").ALGORITHM
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
    return tuple(sorted(found, key=lambda algorithm: (algorithm.order, algorithm.name)))


def places(among: Sequence[Algorithm]) -> dict[str, int]:
    """Place of each algorithm where times tie, by `name@version`: what `decision.choose` takes."""
    return {f"{algorithm.name}@{algorithm.version}": place for place, algorithm in enumerate(among)}


def candidates(
    problem: Problem,
    backend: str,
    among: tuple[Algorithm, ...] | None = None,
    memory_bytes: float = math.inf,
) -> tuple[Candidate, ...]:
    """Every candidate that applies to a problem on a backend, in the order by which ties are settled.

    Those that compute all at once come whatever they need. Where one needs too much, the same in chunks comes as well:
    as large chunks as stay within `memory_bytes` and within 2^31-1 elements an array.

    Args:
        problem: The problem.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        among: The algorithms to take them from. Default: all.
        memory_bytes: Bytes that a candidate may take beyond input, weight and output. Default: any number.
    """
    known = algorithms() if among is None else among
    if problem.kind is Kind.INPUT_GRADIENT:
        of = adjoint(problem)
        if of is None:  # no output sees the input, and zeros need no algorithm
            return tuple(Candidate(a) for a in known if a.name == "native")
        return candidates(of.problem, backend, known, memory_bytes)
    found: list[Candidate] = []
    passes = _may_pass_index(problem)
    for algorithm in known:
        if problem.kind not in algorithm.kinds:
            continue
        whole = [_candidate(algorithm, parameters) for parameters in algorithm.parameters(problem, backend)]
        found += whole
        if algorithm.one_call and problem.groups > 1:  # one 3D convolution of MLX's, which has no groups in 3D
            continue
        wanted = [dict(c.items) for c in whole if not _fits(c, problem, backend, memory_bytes)]
        # What one of a weight gradient's parameters may be depends on its size.
        if passes or (wanted and problem.kind is Kind.WEIGHT_GRADIENT):
            wanted += _of_chunks_alone(problem, backend, algorithm, whole)
        if wanted:
            found += _in_chunks(problem, backend, algorithm, wanted, memory_bytes)
    return tuple(found)


def find(name: str, problem: Problem, backend: str, among: tuple[Algorithm, ...] | None = None) -> Candidate | None:
    """The candidate of that name, such as `kd_decomposition(sum=float32)`; None where no such one applies.

    One in chunks, such as `native(frames=8)`, is found whatever memory there is.
    """
    if problem.kind is Kind.INPUT_GRADIENT:
        of = adjoint(problem)
        if of is not None:
            return find(name, of.problem, backend, among)
    whole = next((c for c in candidates(problem, backend, among) if c.name == name), None)
    return whole or _find_in_chunks(name, problem, backend, algorithms() if among is None else among)


def _candidate(algorithm: Algorithm, parameters: Parameters) -> Candidate:
    return Candidate(algorithm, tuple(sorted(parameters.items())))


def _fits(whole: Candidate, problem: Problem, backend: str, memory_bytes: float) -> bool:
    """Whether a candidate that computes all at once is within the limit, so that it need not be offered in chunks.

    An estimate of no workspace is that of MLX's own kernels on GPUs, whose scratch is not known. They are offered in
    chunks as well where the limit is below what input, weight and output take: scratch is of their order, and below
    that limit a measurement may well find too much.
    """
    if not problem.addressable:
        return False
    return memory_bytes == math.inf or (whole.cost(problem, backend).workspace_bytes or problem.bytes) <= memory_bytes


def _of_chunks_alone(
    problem: Problem, backend: str, algorithm: Algorithm, whole: Sequence[Candidate]
) -> list[dict[str, str | int]]:
    """The parameters that small chunks have, and the whole has not."""
    known = [dict(candidate.items) for candidate in whole]
    found: list[dict[str, str | int]] = []
    for first, *others in _small(problem):
        new = [dict(p) for p in algorithm.parameters(first, backend) if p not in known and p not in found]
        for part in others if new else ():
            offered = list(algorithm.parameters(part, backend))
            new = [p for p in new if p in offered]
        found += new
    return found


def _in_chunks(
    problem: Problem, backend: str, algorithm: Algorithm, wanted: Sequence[Parameters], memory_bytes: float
) -> Iterator[Candidate]:
    """For each set of parameters the largest chunks that fit; none where none do."""

    @functools.cache  # the sets of parameters are tried on much the same chunks
    def offered(part: Problem) -> list[Parameters]:
        return list(algorithm.parameters(part, backend))

    for parameters in wanted:
        alone = _candidate(algorithm, parameters)

        def applies(part: Problem, own: Parameters = parameters) -> bool:
            return own in offered(part)

        def fits(part: Problem, own: Parameters = parameters, of_part: Candidate = alone) -> bool:
            if not part.addressable or own not in offered(part):
                return False
            return SLACK * chunk_bytes(part, of_part.cost(part, backend)) <= memory_bytes

        found = largest(problem, fits, applies)
        if found is not None:
            yield _candidate(algorithm, {**parameters, **found})


def _may_pass_index(problem: Problem) -> bool:
    """Whether some algorithm's array may have more than 2^31-1 elements; none has more than all taps' inputs."""
    batch, depth, height, width, channels = problem.input_shape
    low, high = problem.padding_low, problem.padding_high
    padded = batch * (depth + low[0] + high[0]) * (height + low[1] + high[1]) * (width + low[2] + high[2]) * channels
    padded *= math.prod(problem.input_dilation)
    most = max(padded, math.prod(problem.output_shape), math.prod(problem.weight_shape))
    return most * math.prod(problem.weight_shape[1:4]) > MAX_ELEMENTS


@functools.lru_cache(maxsize=16)  # every algorithm is asked about those of one problem
def _small(problem: Problem) -> tuple[list[Problem], ...]:
    """The different chunks of one frame and of a few of one clip, or of one row where a frame has too many elements."""
    clips = None if problem.input_shape[0] == 1 else 1  # as `largest` asks for them, so that they are made once
    cuts = [parts(problem, frames, clips=clips) for frames in (1, FEWEST)]
    addressable = [cut for cut in cuts if all(part.addressable for part in cut)]
    return tuple(cut for cut in addressable or [parts(problem, 1, 1, 1)] if cut)


def _find_in_chunks(name: str, problem: Problem, backend: str, among: Sequence[Algorithm]) -> Candidate | None:
    read = re.fullmatch(r"(\w+)\((\w+=\w+(?:,\w+=\w+)*)\)", name)
    algorithm = next((a for a in among if read and a.name == read[1]), None)
    if read is None or algorithm is None or problem.kind not in algorithm.kinds:
        return None
    if algorithm.one_call and problem.groups > 1:
        return None
    given = dict(pair.split("=") for pair in read[2].split(","))
    chunks = {key: int(given[key]) for key in PARAMETERS if re.fullmatch(r"[1-9]\d{0,9}", given.get(key, ""))}
    own = {key: value for key, value in given.items() if key not in chunks}
    if not chunks or ("rows" in chunks and "frames" not in chunks) or number(problem, **chunks) > MOST:
        return None
    offers = [
        [dict(p) for p in algorithm.parameters(part, backend) if {k: str(v) for k, v in p.items()} == own]
        for part in parts(problem, **chunks)
        if part.addressable
    ]
    if not offers or not all(offers) or len(offers) < len(parts(problem, **chunks)):
        return None
    found = _candidate(algorithm, {**offers[0][0], **chunks})
    return found if found.name == name else None
