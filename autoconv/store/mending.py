"""A store in a file that is begun anew where it was damaged, removed or replaced."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autoconv.errors import DamagedError, StoreError
from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store import rows
from autoconv.store.backlog import add_lacking
from autoconv.store.contract import Gone, ModelRecord, Pruned, Qualification, Store
from autoconv.store.damage import Identity, identity_of, put_aside
from autoconv.store.sqlite import open_store
from autoconv.warn import warn_now

MOST_KNOWN = 10_000
"""Most writes that are remembered, the latest; each is of one problem."""

LOOK_AGAIN_SECONDS = 60.0
"""How long a file that was said to be damaged, and stayed, is not looked at again."""

_UNKNOWN = (-1, -1)  # of no file

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Write:
    """What was asked of a store, to be asked of another: `records` of a problem where it was `add`."""

    do: Callable[[Store], None]
    problem: Problem | None = None
    records: tuple[Record, ...] = ()

    def again(self, store: Store) -> None:
        """Write what the store lacks of it."""
        if self.problem is None:
            self.do(store)
        else:
            add_lacking(store, self.problem, self.records)


class MendingStore:
    """A `Store` in a SQLite file, for writing. The wrong choice where damage should be an error.

    Where the file is found to be damaged, it is put aside (see `damage`) with a warning that names its new name, and a
    new one is begun. Where another process did that, or the file was removed or replaced, the one that is there now is
    opened. Either way what this process wrote is written to the new one, as far as it is not there.

    All else is as `SqliteStore` has it. Damage that is found while all records are read raises `DamagedError`.

    Args:
        path: The file.
        tell: Called with what happened, in words. Default: warns.

    Raises:
        SchemaError: the file is no autoconv database, or a newer version's; it has not been changed.
        StoreError: it cannot be opened, or is damaged and cannot be put aside.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = warn_now) -> None:
        self._file = path.absolute()
        self._tell = tell
        self._lock = Mutex()
        self._closed = False
        self._known: deque[Write] = deque(maxlen=MOST_KNOWN)
        self._owed: list[Write] = []
        self._news: list[str] = []
        self._looked = -LOOK_AGAIN_SECONDS
        self._identity: Identity | None = None
        self._store = self._open()
        self._announce()

    @property
    def readonly(self) -> bool:
        """False: it is for writing."""
        return False

    def add_environment(
        self, environment: str, identity: Mapping[str, object], circumstances: Mapping[str, object]
    ) -> None:
        """As the contract says."""
        given = dict(identity), dict(circumstances)
        self._write(Write(lambda store: store.add_environment(environment, *given)))

    def environments(self) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
        """As the contract says."""
        return self._ask(lambda store: store.environments())

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """As the contract says."""
        kept = tuple(rows.checked(problem, record) for record in records)
        self._write(Write(lambda store: store.add(problem, kept), problem, kept))

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """As the contract says."""
        return self._ask(lambda store: store.records(environment, problem))

    def problems(self, environment: str) -> list[Problem]:
        """As the contract says."""
        return self._ask(lambda store: store.problems(environment))

    def all_records(self, environment: str | None = None) -> Iterator[tuple[Problem, list[Record]]]:
        """As the contract says."""
        return self._current().all_records(environment)

    def begin(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says; what runs now leaves no note in a new file."""
        self._ask(lambda store: store.begin(environment, problem, candidate))

    def end(self, environment: str, problem: Problem, candidate: str) -> None:
        """As the contract says."""
        self._ask(lambda store: store.end(environment, problem, candidate))

    def unended(self, environment: str, problem: Problem) -> dict[str, int]:
        """As the contract says."""
        return self._ask(lambda store: store.unended(environment, problem))

    def note(self, environment: str, problem: Problem) -> None:
        """As the contract says."""
        self._write(Write(lambda store: store.note(environment, problem)))

    def pending(self, environment: str) -> list[Problem]:
        """As the contract says."""
        return self._ask(lambda store: store.pending(environment))

    def forget(self, environment: str, problems: Iterable[Problem]) -> None:
        """As the contract says."""
        gone = tuple(problems)
        self._write(Write(lambda store: store.forget(environment, gone)))

    def qualify(self, qualification: Qualification) -> None:
        """As the contract says."""
        self._write(Write(lambda store: store.qualify(qualification)))

    def qualification(self, environment: str, fingerprint: str) -> Qualification | None:
        """As the contract says."""
        return self._ask(lambda store: store.qualification(environment, fingerprint))

    def qualifications(self) -> list[Qualification]:
        """As the contract says."""
        return self._ask(lambda store: store.qualifications())

    def trust_model(self, model: ModelRecord) -> None:
        """As the contract says."""
        self._write(Write(lambda store: store.trust_model(model)))

    def trusted_models(self) -> list[ModelRecord]:
        """As the contract says."""
        return self._ask(lambda store: store.trusted_models())

    def name_network(self, name: str, calls: Mapping[Problem, int]) -> None:
        """As the contract says."""
        given = dict(calls)
        self._write(Write(lambda store: store.name_network(name, given)))

    def networks(self) -> dict[str, dict[Problem, int]]:
        """As the contract says."""
        return self._ask(lambda store: store.networks())

    def prune(
        self,
        gone: Gone,
        environments: Collection[str] = (),
        *,
        pending: bool = False,
        tell: Callable[[float], None] = lambda _: None,
    ) -> Pruned:
        """As the contract says; what this process wrote is written once more where the file is begun anew later."""
        return self._ask(lambda store: store.prune(gone, environments, pending=pending, tell=tell))

    def close(self) -> None:
        """As the contract says."""
        with self._lock:
            # What was written to a file that is another by now is not lost; but who removed it wants none.
            if not self._closed and identity_of(self._file) is not None:
                try:
                    self._current()
                except StoreError as error:
                    _log.debug("%s cannot be opened again: %s", self._file, error)
            self._closed = True
            self._store.close()

    def _write(self, write: Write) -> None:
        before = self._current()
        self._ask(write.do)
        self._known.append(write)
        # Another thread may have begun the file anew after this was written, and before it was known.
        if self._store is not before:
            write.again(self._store)

    def _ask(self, ask: Callable[[Store], _T]) -> _T:
        """What the store answers; where it is damaged or was changed for another meanwhile, what the new one does."""
        store = self._current()
        try:
            return ask(store)
        except DamagedError as error:
            self._mend(store, error)
        except StoreError:
            with self._lock:  # it may be that another thread closed it, to begin it anew
                if self._closed or store is self._store:
                    raise
        return ask(self._store)

    def _current(self) -> Store:
        """The store in the file that is there now."""
        if self._closed:
            return self._store
        if identity_of(self._file) != self._identity:
            with self._lock:
                if identity_of(self._file) != self._identity:
                    self._begin_anew()
            self._announce()
        if self._owed:
            self._pay()
        return self._store

    def _mend(self, store: Store, error: DamagedError) -> None:
        """Put the damaged file aside, unless somebody has, and open what is there then.

        Raises:
            DamagedError: `error`, where the file stays.
        """
        with self._lock:
            if store is not self._store:
                return
            if time.monotonic() - self._looked < LOOK_AGAIN_SECONDS:
                raise error
            store.close()  # SQLite writes back what waits in the -wal file, as far as it can
            found, self._identity = self._identity, _UNKNOWN  # so it is opened again, should that fail now
            done = self._put_aside(found)
            self._begin_anew()
        if not done:
            raise error
        self._announce()

    def _put_aside(self, found: Identity | None) -> bool:
        """Whether the damaged file is there no longer."""
        aside = put_aside(self._file, found)
        if aside is not None:
            self._news.append(f"{self._file} was damaged: it is now {aside}, and a new database is begun")
        elif identity_of(self._file) == found:
            self._looked = time.monotonic()
            return False
        return True

    def _announce(self) -> None:
        """Tell what was done; last, since a warning may be made an error."""
        while self._news:
            self._tell(self._news.pop(0))

    def _begin_anew(self) -> None:
        """Open the file that is there, and write to it what this process knows and it lacks."""
        before, self._store = self._store, self._open()
        before.close()
        self._owed = list(self._known)
        self._pay()

    def _open(self) -> Store:
        found = identity_of(self._file)
        try:
            store = open_store(self._file)
        except DamagedError:
            if time.monotonic() - self._looked < LOOK_AGAIN_SECONDS or not self._put_aside(found):
                raise
            store = open_store(self._file)
        self._identity = identity_of(self._file)
        return store

    def _pay(self) -> None:
        """Write what is owed to a file that was begun anew, now or at another call."""
        with self._lock:
            try:
                while self._owed:
                    self._owed[0].again(self._store)
                    self._owed.pop(0)
            except StoreError as error:
                _log.debug("%s lacks something still: %s", self._file, error)
