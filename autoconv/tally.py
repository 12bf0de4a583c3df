"""What autoconv did for a program, in one line: its calls, their shapes, what timing took and what that gained."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoconv._backend import mx
from autoconv._calls import count_of
from autoconv.algorithms._algorithm import Convolution, InTwoSteps
from autoconv.decision import NATIVE, Decision, Source
from autoconv.mutex import Mutex
from autoconv.problem import Kind, Problem
from autoconv.report.words import counted as _some

NOTHING = "no conv3d here"


def saved_us(decided: Decision) -> float | None:
    """Microseconds that a call gains over native; None where the two were not timed.

    The margin comes from the samples that judge, which are not those that chose.
    """
    if decided.candidate == NATIVE:
        return 0.0
    median_us = decided.median_us(decided.candidate)
    return None if median_us is None or decided.margin is None else median_us * decided.margin


@dataclass(frozen=True)
class _Entry:
    """The calls of what one decision chose for a problem."""

    problem: Problem
    saved_us: float | None
    calls: itertools.count[int] = field(default_factory=itertools.count)


class Tally:
    """Counts decisions, and how often what they chose is called.

    What `mx.compile` has traced runs without being called, and is counted once a trace. May be used from any thread.
    """

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._lock = Mutex()

    def counted(self, run: Convolution, problem: Problem, decided: Decision) -> Convolution:
        """Count a decision; what it chose, with its calls counted."""
        with self._lock:
            if problem.kind is Kind.FORWARD:
                self._sources[problem.key] = decided.source
            entry = self._entries.setdefault((problem.key, decided.candidate), _Entry(problem, saved_us(decided)))
        count = entry.calls.__next__
        if isinstance(run, InTwoSteps):  # a layer looks for these, to keep what is derived of its weight
            apply = run.apply

            def counting_apply(input: mx.array, derived: Sequence[mx.array]) -> mx.array:
                count()
                return apply(input, derived)

            return InTwoSteps(run.derive, counting_apply)

        def counting(first: mx.array, second: mx.array, /) -> mx.array:
            count()
            return run(first, second)

        return counting

    @property
    def shapes(self) -> int:
        """How many different convolutions were decided."""
        return len(self._sources)

    @property
    def calls(self) -> Counter[Problem]:
        """How often each convolution and gradient was called so far."""
        with self._lock:
            entries = list(self._entries.values())
        found: Counter[Problem] = Counter()
        for entry in entries:
            found[entry.problem] += count_of(entry.calls)
        return found

    @property
    def undecided(self) -> int:
        """How many of these run native because nothing is known of them."""
        return sum(source is Source.NATIVE for source in self._sources.values())

    @property
    def gain_s(self) -> float:
        """Seconds that the calls so far gained over native by what was measured of both."""
        return sum(count_of(e.calls) * e.saved_us for e in self._entries.values() if e.saved_us is not None) / 1e6

    @property
    def unmeasured(self) -> int:
        """How many convolutions and gradients, called, are not in `gain_s`, as a time of theirs is not known."""
        return sum(e.saved_us is None and count_of(e.calls) > 0 for e in self._entries.values())

    def line(self, calls: int, tuned_s: float, noted: int = 0) -> str:
        """What happened, and what comes next, for people.

        Args:
            calls: Calls of 3D convolutions, those of native and those that MLX refused among them.
            tuned_s: Seconds that they took for timing.
            noted: How many shapes and gradients they noted to be timed by a sweep.
        """
        if not calls:
            return NOTHING
        if not self.shapes:  # the policy is off, or MLX refused them all
            return f"{_some(calls, 'conv3d call')}, all left to MLX"
        parts = [_some(calls, "conv3d call"), _some(self.shapes, "shape")]
        if self.undecided > noted:
            parts[-1] += f" ({self.undecided - noted} never timed)"
        next_step = f"`autoconv sweep --pending` times {'it' if noted == 1 else 'them'}"
        if noted == self.shapes == self.undecided and not tuned_s:  # as in a first run under `record`
            return f"{', '.join(parts)} noted: {next_step}"
        parts += [f"{_time(tuned_s)} tuning", f"estimated gain {_time(self.gain_s)}"]
        if self.unmeasured:
            parts[-1] += f" ({_some(self.unmeasured, 'shape')} not counted: no times to compare)"
        if noted:
            parts[-1] += f"; {_some(noted, 'shape')} noted: {next_step}"
        return ", ".join(parts)


def _time(seconds: float) -> str:
    if abs(seconds) >= 1 or not seconds:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if abs(seconds) >= 0.01 else f"{seconds * 1e3:.2g} ms"
