"""A bench that replays a table instead of running anything, on a clock that only it moves."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, Convolution
from autoconv.algorithms._algorithm import Cost
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.tuning.verification import Verdict

Time = float | Exception
"""Seconds of one sample, or what is raised instead."""


class VirtualClock:
    """Seconds that pass only when something says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Run:
    """What one candidate does.

    Attributes:
        times: Seconds of its samples in turn, the last one for ever; the first is that of its first run.
        error: Relative L2 error of its result.
        wrong: What makes its result no approximation.
        last_wrong: The same of the result that was timed last.
        raises: What its first run raises.
        peak: Peak bytes of a run.
    """

    times: Sequence[Time] = (1e-3,)
    error: float = 1e-7
    wrong: str = ""
    last_wrong: str = ""
    raises: Exception | None = None
    peak: int | Exception = 0


class ReplayBench:
    """A `tuning.bench.Bench` fed from a table.

    Args:
        table: What each candidate does, by name; one that is not in it must not be run.
        clock: Moved by what each run takes.
        noise: Largest relative deviation of a sample, always the same for the same seed.
        dies_with: Name of the candidate after whose failure the device no longer answers.
        seed: Of the noise.

    Attributes:
        calls: What was asked for in order: `(method, candidate, repetitions)`.
    """

    def __init__(
        self,
        table: Mapping[str, Run | Exception],
        clock: VirtualClock | None = None,
        *,
        noise: float = 0.0,
        dies_with: str = "",
        seed: int = 0,
    ) -> None:
        self.table = {n: run if isinstance(run, Run) else Run(raises=run) for n, run in table.items()}
        self.clock = clock or VirtualClock()
        self.calls: list[tuple[str, str, int]] = []
        self._random = random.Random(seed)
        self._noise = noise
        self._dies_with = dies_with
        self._alive = True
        self._samples: Counter[str] = Counter()

    def verify(self, candidate: Candidate) -> Verdict:
        name = candidate.name
        self.calls.append(("verify", name, 1))
        run = self.table[name]
        if run.raises is not None:
            raise self._failure(name, run.raises)
        first = run.times[0] if run.times else 0.0
        self.clock.pass_(first if isinstance(first, float) else 0.0)
        return Verdict(math.inf if run.wrong else run.error, run.wrong, 1.0)

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        name = candidate.name
        self.calls.append(("sample", name, repetitions))
        times = self.table[name].times
        time = times[min(self._samples[name], len(times) - 1)]
        self._samples[name] += 1
        if isinstance(time, Exception):
            raise self._failure(name, time)
        time *= 1 + self._noise * self._random.uniform(-1, 1)
        self.clock.pass_(time * repetitions)
        return time

    def verify_last(self, candidate: Candidate) -> Verdict:
        self.calls.append(("verify_last", candidate.name, 1))
        run = self.table[candidate.name]
        return Verdict(math.inf if run.last_wrong else run.error, run.last_wrong, 1.0)

    def peak_bytes(self, candidate: Candidate) -> int:
        self.calls.append(("peak_bytes", candidate.name, 1))
        peak = self.table[candidate.name].peak
        if isinstance(peak, Exception):
            raise self._failure(candidate.name, peak)
        return peak

    def alive(self) -> bool:
        return self._alive

    def _failure(self, name: str, error: Exception) -> Exception:
        self._alive = self._alive and name != self._dies_with
        return error

    def started(self) -> list[str]:
        """The candidates that ran, in the order of their first run."""
        return [name for method, name, _ in self.calls if method == "verify"]

    def turns(self) -> list[str]:
        """The candidates in the order in which they were timed after everyone's first run."""
        seen: Counter[str] = Counter()
        found = []
        for method, name, _ in self.calls:
            if method == "sample":
                seen[name] += 1
                if seen[name] > 1:
                    found.append(name)
        return found

    @classmethod
    def of(cls, records: Iterable[Record], clock: VirtualClock | None = None) -> ReplayBench:
        """A bench on which every candidate does what its record says."""
        table: dict[str, Run | Exception] = {}
        for record in records:
            if record.status in {Status.FAILED, Status.OUT_OF_MEMORY}:
                table[record.candidate] = RuntimeError(record.detail)
                continue
            first = (record.median_us or 0.0) / 1e6
            times = (first, *(us / 1e6 for us in record.samples_us))
            wrong = record.detail if record.status is Status.WRONG else ""
            table[record.candidate] = Run(times, record.error or 0.0, wrong, peak=record.peak_bytes or 0)
        return cls(table, clock)


def replayed(
    name: str,
    order: int = 1,
    *,
    version: int = 1,
    flops: int = 1,
    moved: int = 1,
    workspace: int = 0,
    outputs: int = 0,
) -> Algorithm:
    """An algorithm that cannot be run, only replayed; its workspace is so many bytes and so many outputs."""

    def build(problem: Problem) -> Convolution:
        msg = f"{name} is only replayed"
        raise AssertionError(msg)

    def cost(problem: Problem, backend: str, **parameters: object) -> Cost:
        return Cost(flops, moved, workspace + outputs * problem.output_bytes)

    return Algorithm(name, version, order, build, cost)


def registry(*names: str) -> tuple[Algorithm, ...]:
    """Algorithms that can only be replayed, ties going by their order here."""
    return tuple(replayed(name, order) for order, name in enumerate(names))


def contenders(*algorithms: Algorithm | str) -> tuple[Candidate, ...]:
    """One candidate of each algorithm, in this order."""
    named = [replayed(a, i) if isinstance(a, str) else a for i, a in enumerate(algorithms)]
    return tuple(Candidate(algorithm) for algorithm in named)


class Benches:
    """Makes the benches of a dispatcher, all fed from one table; what it makes is listed.

    Args:
        table: As in `ReplayBench`.
        clock: Shared by all of them.
        dies_with: As in `ReplayBench`.

    Attributes:
        made: Each problem that was timed, in order, and its bench.
    """

    def __init__(
        self, table: Mapping[str, Run | Exception], clock: VirtualClock | None = None, *, dies_with: str = ""
    ) -> None:
        self.table = dict(table)
        self.clock = clock or VirtualClock()
        self.made: list[tuple[Problem, ReplayBench]] = []
        self._dies_with = dies_with

    def __call__(
        self, problem: Problem, device: mx.Device, /, *, memory_bytes: float = math.inf, peaks: bool = False
    ) -> ReplayBench:
        bench = ReplayBench(self.table, self.clock, dies_with=self._dies_with)
        self.made.append((problem, bench))
        return bench

    @property
    def problems(self) -> list[Problem]:
        """The problems that were timed, in order."""
        return [problem for problem, _ in self.made]


def nothing_is_timed(
    problem: Problem, device: mx.Device, /, *, memory_bytes: float = math.inf, peaks: bool = False
) -> ReplayBench:
    """A maker of benches where none may be made."""
    msg = f"{problem} is timed"
    raise AssertionError(msg)
