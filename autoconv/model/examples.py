"""Examples: what was measured, as a cost model learns from it and is judged by.

An example is one problem on one device: its candidates, their numbers (see `features`), the time by which each is
chosen and the time by which it is judged, which come from different samples of the same run.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoconv.algorithms import Algorithm, Candidate, find
from autoconv.decision import NATIVE
from autoconv.model import features
from autoconv.model.features import Ceilings, Floats, Vocabulary
from autoconv.problem import Kind, Problem
from autoconv.record import Record, Status
from autoconv.store import Store
from autoconv.sweep.workload import packaged_workloads, read_workload

UNUSABLE = frozenset({Status.INACCURATE, Status.WRONG, Status.FAILED, Status.OUT_OF_MEMORY, Status.CRASHED})
"""What a model must not choose: it is not accurate enough, or does not run."""


@dataclass(frozen=True)
class Device:
    """Where examples were measured.

    Attributes:
        environment: Its id.
        identity: What its times depend on.
        ceilings: What it can do at most.
    """

    environment: str
    identity: Mapping[str, object]
    ceilings: Ceilings

    @property
    def name(self) -> str:
        """For people."""
        return str(self.identity.get("device", self.environment))


@dataclass(frozen=True)
class Example:
    """One problem on one device.

    Attributes:
        problem: The problem.
        device: Where.
        candidates: Those that ran or were tried, native first where it is among them.
        choosing_us: Median microseconds by the samples that choose; infinite where it is not usable.
        judging_us: The same by the samples that judge; of a loser that was timed once, of that one.
        usable: Whether each ran, and accurately enough.
    """

    problem: Problem
    device: Device
    candidates: tuple[Candidate, ...]
    choosing_us: tuple[float, ...]
    judging_us: tuple[float, ...]
    usable: tuple[bool, ...]

    @property
    def native(self) -> int | None:
        """Native's place, None where it is not among them or not usable."""
        return 0 if self.candidates[0].name == NATIVE and self.usable[0] else None

    @property
    def shape(self) -> str:
        """The problem but for its dtype: what the same layer has in common."""
        return shape_of(self.problem)

    def place(self, name: str) -> int | None:
        """A candidate's place, None where it is not among them or not usable."""
        names = (i for i, c in enumerate(self.candidates) if c.name == name and self.usable[i])
        return next(names, None)


def shape_of(problem: Problem) -> str:
    """A problem's key but for its dtype."""
    return replace(problem, dtype="float32").key


def read(store: Store, backend: str, algorithms: tuple[Algorithm, ...]) -> Iterator[Example]:
    """The examples of a database: convolutions forward, on devices of a backend whose ceilings are known.

    Of several runs over one problem the latest counts that timed the most candidates.
    """
    ceilings: dict[str, Ceilings] = {}
    for qualification in sorted(store.qualifications(), key=lambda q: (not q.origin, q.created)):
        if qualification.ceilings:
            ceilings[qualification.environment] = dict(qualification.ceilings)
    versions = {algorithm.name: algorithm.version for algorithm in algorithms}
    for key, (identity, _) in sorted(store.environments().items()):
        if identity.get("backend") != backend or key not in ceilings:
            continue
        device = Device(key, identity, ceilings[key])
        for problem, records in store.all_records(key):
            if problem.kind is Kind.FORWARD:
                known = [r for r in records if versions.get(r.algorithm) == r.version]
                found = _example(problem, device, known, algorithms)
                if found is not None:
                    yield found


def distinct(
    stores: Mapping[str, Store], backend: str, algorithms: tuple[Algorithm, ...]
) -> Iterator[tuple[str, Example]]:
    """The examples of several databases with the names of these; of a problem that several have on the same device the
    first counts.
    """
    seen: set[tuple[str, str]] = set()
    for name, store in stores.items():
        for example in read(store, backend, algorithms):
            key = (example.device.environment, example.problem.key)
            if key not in seen:
                seen.add(key)
                yield name, example


def _example(
    problem: Problem, device: Device, records: Sequence[Record], algorithms: tuple[Algorithm, ...]
) -> Example | None:
    runs: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        runs[record.run].append(record)
    if not runs:
        return None
    run = max(runs.values(), key=lambda found: (sum(bool(r.samples_us) for r in found), max(r.created for r in found)))
    rows = []
    for record in sorted(run, key=lambda r: r.candidate != NATIVE):
        usable = record.status is Status.OK and bool(record.samples_us)
        if not usable and record.status not in UNUSABLE:
            continue
        candidate = find(record.candidate, problem, str(device.identity["backend"]), algorithms)
        if candidate is None:
            continue
        choosing = statistics.median(record.choosing_us) if usable else math.inf
        judging = statistics.median(record.judging_us or record.samples_us) if usable else math.inf
        rows.append((candidate, choosing, judging, usable))
    if not any(usable for *_, usable in rows):
        return None
    candidates, choosing_us, judging_us, usable_ones = zip(*rows, strict=True)
    return Example(problem, device, candidates, choosing_us, judging_us, usable_ones)


@dataclass(frozen=True, eq=False)
class Table:
    """Examples as arrays; a row is a candidate of an example.

    Attributes:
        examples: The examples.
        vocabulary: What its numbers mean.
        problems: `(examples, numbers)` those of the problems.
        candidates: `(rows, numbers)` those of the candidates.
        example: `(rows,)` each row's example.
        first: `(examples + 1,)` each example's first row.
        log_ratio: `(rows,)` logarithm of its time over native's, by the samples that choose; NaN where unknown.
        usable: `(rows,)` whether it ran accurately.
    """

    examples: tuple[Example, ...]
    vocabulary: Vocabulary
    problems: Floats
    candidates: Floats
    example: NDArray[np.intp]
    first: NDArray[np.intp]
    log_ratio: Floats
    usable: NDArray[np.bool_]

    @property
    def rows(self) -> Floats:
        """`(rows, numbers)` those of problem and candidate, side by side."""
        return np.hstack([self.problems[self.example], self.candidates])


def tabulate(examples: Sequence[Example], backend: str, vocabulary: Vocabulary | None = None) -> Table:
    """The examples as arrays, with a vocabulary of their own by default.

    Where native does not run, as for groups, ratios are to what it would take if the slowest-changing candidate, the
    sum over taps, were as much slower as it is in the mean: only differences matter there.
    """
    if vocabulary is None:
        routes: set[str] = set()
        if backend == "metal":
            from autoconv.model.routes import Route

            routes = {str(route) for route in Route}
        vocabulary = Vocabulary.of((c for e in examples for c in e.candidates), routes)
    stand_in = _stand_in_offset(examples)
    problems = np.array([features.of_problem(e.problem) for e in examples]).reshape(len(examples), -1)
    blocks, ratios = [], []
    for example in examples:
        device = example.device
        blocks.append(features.of_candidates(example.problem, example.candidates, backend, device.ceilings, vocabulary))
        log_native = _log_native(example, stand_in)
        ratios += [math.log(t) - log_native if t < math.inf else math.nan for t in example.choosing_us]
    counts = [len(e.candidates) for e in examples]
    return Table(
        tuple(examples),
        vocabulary,
        problems,
        np.vstack(blocks) if blocks else np.zeros((0, len(features.CANDIDATE) + len(vocabulary.names))),
        np.repeat(np.arange(len(examples)), counts),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.intp),
        np.array(ratios, dtype=np.float64),
        np.array([u for e in examples for u in e.usable], dtype=np.bool_),
    )


STAND_IN = "kd_decomposition(sum=float32)"
"""What applies to every problem, and is compared with where native is not there."""


def _stand_in_offset(examples: Iterable[Example]) -> float:
    """Mean logarithm of the stand-in's time over native's."""
    found = []
    for example in examples:
        place = example.place(STAND_IN)
        if example.native is not None and place is not None:
            found.append(math.log(example.choosing_us[place] / example.choosing_us[0]))
    return math.fsum(found) / len(found) if found else 0.0


def _log_native(example: Example, stand_in: float) -> float:
    if example.native is not None:
        return math.log(example.choosing_us[0])
    place = example.place(STAND_IN)
    return math.log(example.choosing_us[place]) - stand_in if place is not None else math.nan


def networks(examples: Sequence[Example]) -> list[str]:
    """Which network each example belongs to; networks that share a layer are one.

    They come from the workloads of the package. A layer of none of them is a network of its own.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    of_shape: dict[str, str] = {}
    for path in packaged_workloads().values():
        for layer in read_workload(path):
            shape = shape_of(layer.problem)
            parents[root(layer.network)] = root(of_shape.setdefault(shape, layer.network))
    return [root(of_shape[e.shape]) if e.shape in of_shape else e.shape for e in examples]


def spread(groups: Sequence[str], folds: int) -> NDArray[np.intp]:
    """The fold of each row, all rows of a group in one, and about as many rows in each; always the same."""
    sizes: dict[str, int] = defaultdict(int)
    for group in groups:
        sizes[group] += 1
    loads, place = [0] * folds, {}
    for group in sorted(sizes, key=lambda g: (-sizes[g], zlib.crc32(g.encode()), g)):
        least = loads.index(min(loads))
        place[group] = least
        loads[least] += sizes[group]
    return np.array([place[group] for group in groups], dtype=np.intp)
