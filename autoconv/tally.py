"""What autoconv did for a program, in one line: its calls, their shapes, what timing took and what that gained."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from autoconv import words
from autoconv._backend import mx
from autoconv._calls import count_of
from autoconv.algorithms._algorithm import Convolution, InTwoSteps
from autoconv.decision import NATIVE, Decision, Source
from autoconv.mutex import Mutex
from autoconv.problem import Kind, Problem

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
        return len(self._decided())

    @property
    def calls(self) -> Counter[Problem]:
        """How often each convolution and gradient was called so far."""
        found: Counter[Problem] = Counter()
        for entry in self._called():
            found[entry.problem] += count_of(entry.calls)
        return found

    @property
    def undecided(self) -> int:
        """How many of these run native because nothing is known of them."""
        return sum(source is Source.NATIVE for source in self._decided())

    @property
    def gain_s(self) -> float:
        """Seconds that the calls so far gained over native by what was measured of both."""
        return sum(count_of(e.calls) * e.saved_us for e in self._called() if e.saved_us is not None) / 1e6

    @property
    def unmeasured(self) -> int:
        """How many convolutions and gradients, called, are not in `gain_s`, as a time of theirs is not known."""
        return sum(e.saved_us is None and count_of(e.calls) > 0 for e in self._called())

    def _decided(self) -> list[Source]:
        """Where the decision on each convolution came from."""
        with self._lock:
            return list(self._sources.values())

    def _called(self) -> list[_Entry]:
        """What was chosen, for convolutions and gradients."""
        with self._lock:
            return list(self._entries.values())

    def line(self, calls: int, tuned_s: float, noted: Collection[Problem] = ()) -> str:
        """What happened, and what comes next, for people.

        Args:
            calls: Calls of 3D convolutions, those of native and those that MLX refused among them.
            tuned_s: Seconds that they took for timing.
            noted: The convolutions and gradients that they noted to be timed by a sweep.
        """
        if not calls:
            return NOTHING
        if not self.shapes:  # the policy is off, or MLX refused them all
            return f"{words.counted(calls, 'conv3d call')}, all left to MLX"
        parts = [words.counted(calls, "conv3d call"), words.counted(self.shapes, "shape")]
        shapes = sum(problem.kind is Kind.FORWARD for problem in noted)
        gradients = len(noted) - shapes
        if self.undecided > shapes:
            parts[-1] += f" ({self.undecided - shapes} never timed)"
        next_step = f"`autoconv sweep --pending` times {'it' if len(noted) == 1 else 'them'}"
        if shapes == self.shapes == self.undecided and not tuned_s:  # as in a first run under `record`
            if gradients:
                parts[-1] += f" and {words.counted(gradients, 'gradient')}"
            return f"{', '.join(parts)} noted: {next_step}"
        parts += [f"{_time(tuned_s)} tuning", f"estimated gain {_time(self.gain_s)}"]
        if self.unmeasured:
            parts[-1] += f" ({words.counted(self.unmeasured, 'shape')} not counted: no times to compare)"
        if noted:
            both = {"shape": shapes, "gradient": gradients}
            what = " and ".join(words.counted(count, name) for name, count in both.items() if count)
            parts[-1] += f"; {what} noted: {next_step}"
        return ", ".join(parts)


def _time(seconds: float) -> str:
    if abs(seconds) >= 1 or not seconds:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if abs(seconds) >= 0.01 else f"{seconds * 1e3:.2g} ms"
