"""A store that lives as long as the process: for tests, and for when no file can be written."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from autoconv.errors import StoreError
from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.contract import MAX_NAME, Gone, ModelRecord, Pruned, Qualification


class MemoryStore:
    """A `Store` in memory. The wrong choice where anything must outlive the process or be seen by another.

    Takes and refuses exactly what a file does, and hands out copies, so that tests on it hold for files.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._closed = False
        self._environments: dict[str, tuple[str, str]] = {}
        self._records: dict[str, dict[Problem, list[tuple[int, Record]]]] = defaultdict(dict)
        self._adding = itertools.count()
        self._begun: dict[tuple[str, Problem], dict[str, int]] = defaultdict(dict)
        self._pending: dict[str, dict[Problem, None]] = defaultdict(dict)
        self._known: dict[str | Problem, None] = {}
        self._qualifications: dict[tuple[str, str, str], Qualification] = {}
        self._models: dict[str, ModelRecord] = {}
        self._networks: dict[str, dict[Problem, int]] = defaultdict(dict)

    @property
    def readonly(self) -> bool:
        """False: memory can always be written."""
        return False

    def add_environment(
        self, environment: str, identity: Mapping[str, object], circumstances: Mapping[str, object]
    ) -> None:
        """As the contract says.

        Raises:
            TypeError, ValueError: a value that JSON cannot hold.
        """
        first, latest = rows.json_text(identity), rows.json_text(circumstances)
        with self._lock:
            self._check_open()
            self._known.setdefault(environment)
            known = self._environments.get(environment)
            self._environments[environment] = (known[0] if known else first, latest)

    def environments(self) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            texts = list(self._environments.items())
        found = {environment: rows.environment_of(*pair) for environment, pair in texts}
        return {environment: pair for environment, pair in found.items() if pair is not None}

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """As the contract says."""
        kept = [rows.checked(problem, record) for record in records]
        with self._lock:
            self._check_open()
            number = next(self._adding)
            for record in kept:
                self._know(record.environment, problem)
                self._records[record.environment].setdefault(problem, []).append((number, record))
                self._pending[record.environment].pop(problem, None)

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return [record for _, record in self._records[environment].get(problem, ())]

    def problems(self, environment: str) -> list[Problem]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            there = self._records[environment]
            return sorted(there, key=lambda problem: there[problem][0][0])

    def all_records(self, environment: str | None = None) -> Iterator[tuple[Problem, list[Record]]]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            places = {known: place for place, known in enumerate(self._known)}
            pairs = [
                (where, problem)
                for where, problems in self._records.items()
                for problem in problems
                if environment in {None, where}
            ]
        for where, problem in sorted(pairs, key=lambda pair: (places[pair[0]], places[pair[1]])):
            yield problem, self.records(where, problem)

    def begin(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says, though in memory no note survives the process."""
        with self._lock:
            self._check_open()
            self._know(environment, problem)
            begun = self._begun[environment, problem]
            begun[candidate] = begun.get(candidate, 0) + 1

    def end(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        with self._lock:
            self._check_open()
            self._begun[environment, problem].pop(candidate, None)

    def unended(self, environment: str, problem: Problem) -> dict[str, int]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return dict(self._begun[environment, problem])

    def note(self, environment: str, problem: Problem) -> None:
        """As the contract says."""
        with self._lock:
            self._check_open()
            self._know(environment, problem)
            self._pending[environment].setdefault(problem)

    def pending(self, environment: str) -> list[Problem]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return list(self._pending[environment])

    def forget(self, environment: str, problems: Iterable[Problem]) -> None:
        """As the contract says."""
        gone = list(problems)
        with self._lock:
            self._check_open()
            for problem in gone:
                self._pending[environment].pop(problem, None)

    def qualify(self, qualification: Qualification) -> None:
        """As the contract says.

        Raises:
            ValueError: a number is not finite.
        """
        key = (qualification.environment, qualification.fingerprint, qualification.origin)
        copy = rows.qualification_of(*key, rows.qualification_row(qualification))
        with self._lock:
            self._check_open()
            self._known.setdefault(qualification.environment)
            if copy is not None:
                self._qualifications.pop(key, None)
                self._qualifications[key] = copy

    def qualification(self, environment: str, fingerprint: str) -> Qualification | None:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return self._qualifications.get((environment, fingerprint, ""))

    def qualifications(self) -> list[Qualification]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return list(self._qualifications.values())

    def trust_model(self, model: ModelRecord) -> None:
        """As the contract says.

        Raises:
            ValueError: `created` is not finite.
        """
        copy = rows.model_of(rows.model_row(model))
        with self._lock:
            self._check_open()
            if copy is not None:
                self._models.pop(model.file, None)
                self._models[model.file] = copy

    def trusted_models(self) -> list[ModelRecord]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return list(self._models.values())

    def name_network(self, name: str, calls: Mapping[Problem, int]) -> None:
        """As the contract says."""
        kept = {problem: times for problem, times in calls.items() if times > 0}
        with self._lock:
            self._check_open()
            for problem, times in kept.items():
                self._known.setdefault(problem)
                self._networks[rows.one_line(name, MAX_NAME)][problem] = times

    def networks(self) -> dict[str, dict[Problem, int]]:
        """As the contract says."""
        with self._lock:
            self._check_open()
            return {name: dict(calls) for name, calls in self._networks.items()}

    def prune(
        self,
        gone: Gone,
        environments: Collection[str] = (),
        *,
        pending: bool = False,
        tell: Callable[[float], None] = lambda _: None,
    ) -> Pruned:
        """As the contract says."""
        whole = set(environments)
        with self._lock:
            self._check_open()
            places = {
                (where, problem): set(gone(problem, [record for _, record in there]))
                for where, problems in self._records.items()
                if where not in whole
                for problem, there in problems.items()
            }
            before = self._counts()
            for (where, problem), out in places.items():
                there = self._records[where][problem]
                there[:] = [kept for place, kept in enumerate(there) if place not in out]
                if not there:
                    del self._records[where][problem]
            for where in self._pending if pending else ():
                self._pending[where].clear()
            for where in whole:
                self._forget(where)
            self._forget_problems()
            after = self._counts()
        tell(1.0)
        return Pruned(*(first - last for first, last in zip(before, after, strict=True)))

    def close(self) -> None:
        """As the contract says; what was kept is gone."""
        with self._lock:
            self._closed = True

    def _counts(self) -> tuple[int, int, int, int]:
        """Records, problems with records, environments, pending problems."""
        groups = [there for problems in self._records.values() for there in problems.values()]
        where = sum(isinstance(known, str) for known in self._known)
        return sum(map(len, groups)), len(groups), where, sum(map(len, self._pending.values()))

    def _forget(self, environment: str) -> None:
        self._known.pop(environment, None)
        self._environments.pop(environment, None)
        self._records.pop(environment, None)
        self._pending.pop(environment, None)
        self._begun = defaultdict(dict, {k: v for k, v in self._begun.items() if k[0] != environment})
        self._qualifications = {k: v for k, v in self._qualifications.items() if k[0] != environment}

    def _forget_problems(self) -> None:
        """Forget the problems of which nothing is known."""
        used = {problem for problems in self._records.values() for problem in problems}
        used |= {problem for problems in self._pending.values() for problem in problems}
        used |= {problem for (_, problem), begun in self._begun.items() if begun}
        used |= {problem for calls in self._networks.values() for problem in calls}
        self._known = {known: None for known in self._known if isinstance(known, str) or known in used}

    def _know(self, environment: str, problem: Problem) -> None:
        self._known.setdefault(environment)
        self._known.setdefault(problem)

    def _check_open(self) -> None:
        if self._closed:
            msg = "this store is closed"
            raise StoreError(msg)
