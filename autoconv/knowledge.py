"""What databases tell of a problem before anything is timed.

The user's own database is asked first, then those that came with the package. Both tell of this very environment; what
kin of it have is only a reason to try (see `kin`). What was imported runs only where its algorithm passed this device's
first run in that dtype: else nothing has been verified here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoconv.algorithms import Algorithm, Candidate, candidates, find, places
from autoconv.decision import NATIVE, Decision, Limits, Source, choose
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.kin import are_kin, differences
from autoconv.mutex import Mutex
from autoconv.problem import Kind, Problem
from autoconv.record import Record
from autoconv.store import Qualification, Store
from autoconv.tuning.qualification import fingerprint, first_run
from autoconv.warn import WarnOnce

Shipped = Callable[[], Mapping[str, Store]]


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        problem: The problem.
        where: Where it is to run.
        accuracy: `"native"`, `"strict"` or a relative L2 error.
        memory_bytes: Bytes that a candidate may take beyond its operands.
        may_time: Whether what is missing could be timed; if not, runs without candidates in chunks tell as well.
        passed: What this device's first run found out; None before that.
    """

    problem: Problem
    where: Environment
    accuracy: str | float
    memory_bytes: float
    may_time: bool
    passed: Qualification | None


class Knowledge:
    """Asks databases. May be used from any thread.

    Args:
        registry: The algorithms to choose among.
        shipped: Opens the databases that came with the package, by name; called once, when they are first needed.
        warn: Warns once of each thing.
    """

    def __init__(self, registry: Sequence[Algorithm], shipped: Shipped, warn: WarnOnce) -> None:
        self._algorithms = tuple(registry)
        self._order = places(self._algorithms)
        self._open_shipped = shipped
        self._opened: Mapping[str, Store] | None = None
        self._opening = Mutex()
        self._warn = warn

    def candidates(self, question: Question) -> tuple[Candidate, ...]:
        """All candidates that apply."""
        return candidates(question.problem, question.where.backend, self._algorithms, question.memory_bytes)

    def choose(self, records: Sequence[Record], question: Question, source: Source) -> Decision | None:
        """The decision that records of this environment, or of kin, make; None where they do not tell."""
        if not records:
            return None
        problem, offered = question.problem, self.candidates(question)
        noise = question.passed.noise if question.passed else 0.0
        names = {c.name for c in offered}
        # A file may name what no algorithm here has, and an algorithm may have had other parameters once.
        for name in {r.candidate for r in records} - names:
            if find(name, problem, question.where.backend, self._algorithms) is not None:
                names.add(name)
        found = choose(
            [r for r in records if r.candidate in names],
            Limits(question.accuracy, question.memory_bytes, noise),
            problem.dtype,
            self._order,
            source,
            operand_bytes=problem.bytes,
            chunked=[c.name for c in offered if c.chunks] if question.may_time else (),
        )
        if found is None or (found.accurate and found.within_memory) or not question.may_time:
            return found
        # None of those that were timed passes; where not all were, one of the others may.
        judged = {v.record.candidate for v in found.verdicts}
        return found if judged.issuperset(c.name for c in offered) else None

    def own(self, records: Sequence[Record], question: Question, source: Source = Source.DATABASE) -> Decision | None:
        """The decision of the user's own records; of those that were measured here, where it may not rest on files."""
        found = self.choose(records, question, source)
        if found is None or self._is_verified(found, question.problem, question.passed):
            return found
        return self.choose([r for r in records if not r.origin], question, source)

    def shipped(self, question: Question) -> Decision | None:
        """The decision of a database that came with the package; all in it was verified on such a device."""
        where = question.where
        for store in self._shipped().values():
            try:
                records = store.records(where.id, question.problem)
                gradients = question.problem.kind is not Kind.FORWARD
                known = self._first_run(store, where, gradients=gradients) if records else None
            except StoreError as error:
                self._warn("shipped", str(error))
                continue
            barred = question.passed.barred if question.passed else {}
            records = [r for r in records if r.algorithm == NATIVE or r.algorithm not in barred]
            # What that device's first run found out is true of this one, which is its like; its own counts for more.
            found = self.choose(records, replace(question, passed=question.passed or known), Source.SHIPPED)
            if found is not None:
                return found
        return None

    def of_kin(self, own: Store, question: Question) -> Decision | None:
        """What was decided in an environment that is kin to this one, the nearest first; None where none tells."""
        here = question.where.identity
        stores = [(Source.DATABASE, own), *((Source.SHIPPED, store) for store in self._shipped().values())]
        for source, store in stores:
            try:
                kin = [(key, other) for key, (other, _) in store.environments().items() if are_kin(other, here)]
                kin.sort(key=lambda pair: (sum(pair[1].get(n) != here.get(n) for n in {*pair[1], *here}), pair[0]))
                for key, identity in kin:
                    found = self.choose(store.records(key, question.problem), question, source)
                    if found is not None and found.accurate and found.within_memory:
                        return replace(found, reason=f"{found.reason}, where {differences(identity, here)}")
            except StoreError as error:
                self._warn("store", str(error))
        return None

    def is_qualified(self, found: Decision, question: Question) -> bool:
        """Whether a candidate's algorithm passed this device's first run in the problem's dtype."""
        return self.has_passed(found.candidate, question.problem, question.passed)

    def has_passed(self, candidate: str, problem: Problem, passed: Qualification | None) -> bool:
        """Whether a candidate's algorithm passed a first run in the problem's dtype; native needs none."""
        if candidate == NATIVE:
            return True
        return passed is not None and (candidate.partition("(")[0], problem.dtype) in passed.passed

    def qualification(self, where: Environment, own: Qualification | None, *, gradients: bool) -> Qualification | None:
        """What is known of an environment from its first run: this device's own, else that of its like, which came with
        the package.
        """
        if own is not None:
            return own
        for store in self._shipped().values():
            try:
                found = self._first_run(store, where, gradients=gradients)
            except StoreError as error:
                self._warn("shipped", str(error))
                continue
            if found is not None:
                return found
        return None

    def _first_run(self, store: Store, where: Environment, *, gradients: bool) -> Qualification | None:
        return first_run(store, where.id, fingerprint(self._algorithms, gradients=gradients))

    def _is_verified(self, found: Decision, problem: Problem, passed: Qualification | None) -> bool:
        """Whether a candidate was verified on such a device, by who measured it here or by the device's first run."""
        winner = next((v for v in found.verdicts if v.record.candidate == found.candidate), None)
        measured_here = winner is not None and "" in winner.origins
        return measured_here or self.has_passed(found.candidate, problem, passed)

    def _shipped(self) -> Mapping[str, Store]:
        with self._opening:
            if self._opened is None:
                self._opened = self._open_shipped()
            return self._opened

    def close(self) -> None:
        """Close the databases that came with the package; they are opened again when they are needed."""
        with self._opening:
            for store in (self._opened or {}).values():
                store.close()
            self._opened = None
