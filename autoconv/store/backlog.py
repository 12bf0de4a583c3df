"""What a store could not take, until it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller

from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store.contract import Store
from autoconv.store.memory import MemoryStore


class Backlog:
    """Measurements and notes, in the order in which they came; true while there are any. Any thread may call."""

    def __init__(self) -> None:
        self._lock = Mutex()
        self._records: dict[Problem, list[Record]] = {}
        self._others: list[Callable[[Store], None]] = []

    def __bool__(self) -> bool:
        return bool(self._records or self._others)

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """Records of a problem are to be added."""
        with self._lock:
            self._records.setdefault(problem, []).extend(records)

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """Those that are still to be added."""
        with self._lock:
            return [record for record in self._records.get(problem, ()) if record.environment == environment]

    def do_later(self, write: Callable[[Store], None]) -> None:
        """Something else is to be written, which is done before the records."""
        with self._lock:
            self._others.append(write)

    def take_in(self, store: MemoryStore) -> None:
        """All that a store in memory was given is to be written, but its notes of what began: that has ended."""
        for environment, (identity, circumstances) in store.environments().items():
            self.do_later(methodcaller("add_environment", environment, identity, circumstances))
            for problem in store.pending(environment):
                self.do_later(methodcaller("note", environment, problem))
        for name, calls in store.networks().items():
            self.do_later(methodcaller("name_network", name, calls))
        for qualification in store.qualifications():
            self.do_later(methodcaller("qualify", qualification))
        for problem, records in store.all_records():
            self.add(problem, records)

    def pay(self, store: Store) -> None:
        """Write all of it that the store lacks.

        Raises:
            StoreError: the store cannot take it now; what it has taken is owed no longer.
        """
        with self._lock:
            while self._others:
                self._others[0](store)
                self._others.pop(0)
            while self._records:
                problem = next(iter(self._records))
                add_lacking(store, problem, self._records[problem])
                del self._records[problem]


def add_lacking(store: Store, problem: Problem, records: Sequence[Record]) -> None:
    """Add those of a problem's records that a store does not have, such as those that a process of the same origin
    wrote.

    Raises:
        StoreError: the store cannot be read or written.
    """
    lacking = list(records)
    for environment in {record.environment for record in records}:
        there = set(store.records(environment, problem))
        lacking = [record for record in lacking if record not in there]
    if lacking:
        store.add(problem, lacking)
