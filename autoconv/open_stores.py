"""The stores that a process has open: opened once, noted in, written to, and what to do where that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoconv.backoff import Backoff
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.settings import Settings
from autoconv.store import MemoryStore, MendingStore, Store, is_begun, located, open_store
from autoconv.store.backlog import Backlog
from autoconv.warn import WarnOnce

Opener = Callable[[Path, bool], Store]
"""Opens a store from a path and whether it is only read."""


def open_file(path: Path, readonly: bool) -> Store:
    """The store in a file; for writing one that is begun anew where the file is damaged."""
    return open_store(path, readonly=True) if readonly else MendingStore(path)


Key = tuple[Path | None, bool]
"""The database of some settings, and whether it is only read."""


@dataclass
class Place:
    """What there is of a database.

    Attributes:
        store: It, or while it cannot be opened a store in memory.
        is_open: Whether it is it.
        backlog: What it could not take yet.
        backoff: Until when no call tries again what failed.
    """

    store: Store
    is_open: bool
    backlog: Backlog = field(default_factory=Backlog)
    backoff: Backoff = field(default_factory=Backoff)


def begun(settings: Settings) -> Path | None:
    """The file of these settings' database; None where it is not begun, or nothing says where it is."""
    try:
        path = located(settings.database)
    except StoreError:
        return None
    return path if is_begun(path) else None


class OpenStores:
    """All methods may be called from any thread.

    What a store cannot take, or could not be opened to take, is known to this process meanwhile, and is written once
    that can be done: at a later call, when the stores are closed, or when the process ends.

    Args:
        opener: Opens a store.
        warn: Warns once of each thing.
        clock: Seconds, for when what failed is tried again.
    """

    def __init__(self, opener: Opener, warn: WarnOnce, clock: Callable[[], float] = time.monotonic) -> None:
        self._open = opener
        self._warn = warn
        self._clock = clock
        self._places: dict[Key, Place] = {}
        self._noted: set[tuple[Store, str, Problem]] = set()
        self._lock = Mutex()

    def get(self, settings: Settings, *, strict: bool = False) -> Store:
        """The store of these settings, opened once.

        With `strict` one that cannot be opened raises `StoreError`; else it costs a warning, and a store in memory
        takes its place.
        """
        key = (settings.database, settings.readonly)
        with self._lock:
            place = self._places.get(key)
            if place is None or (not place.is_open and (strict or place.backoff.is_over(self._clock()))):
                try:
                    place = self._opened(key, place)
                except StoreError as error:
                    if strict:
                        raise
                    self._warn("store", f"{error}; measurements are kept for this process alone, as long as that is so")
                    place = place or Place(MemoryStore(), is_open=False)
                    self._places[key] = place
                    self._put_off(place)
            if place.backlog and place.is_open and place.backoff.is_over(self._clock()):
                self._pay(place)
            return place.store

    def _opened(self, key: Key, before: Place | None) -> Place:
        """A database, with what was kept in memory while it could not be opened."""
        place = Place(self._open(located(key[0]), key[1]), is_open=True)
        if before is not None:
            place.backlog = before.backlog
            if isinstance(before.store, MemoryStore) and not place.store.readonly:
                place.backlog.take_in(before.store)
        self._places[key] = place
        return place

    def _pay(self, place: Place) -> None:
        """Write what a store could not take before, as far as it can now."""
        with self._lock:
            if place.store.readonly:
                return
            try:
                place.backlog.pay(place.store)
            except StoreError as error:
                self._warn("store", str(error))
                self._put_off(place)
            else:
                place.backoff = Backoff()

    def _put_off(self, place: Place) -> None:
        place.backoff = place.backoff.failed(self._clock())

    def is_begun(self, settings: Settings) -> bool:
        """Whether the store of these settings is open, or begun."""
        if (settings.database, settings.readonly) in self._places or self._open is not open_file:
            return True
        return begun(settings) is not None

    def records(self, settings: Settings, environment: str, problem: Problem) -> list[Record]:
        """The store's records; none, and a warning, where they cannot be read."""
        try:
            return self.get(settings).records(environment, problem)
        except StoreError as error:
            self._warn("store", str(error))
            return []

    def unkept(self, settings: Settings, environment: str, problem: Problem) -> list[Record]:
        """Records that could not be written; this process still knows them."""
        place = self._places.get((settings.database, settings.readonly))
        return place.backlog.records(environment, problem) if place is not None else []

    def keep(self, settings: Settings, problem: Problem, records: Sequence[Record], *, strict: bool) -> None:
        """Keep records in the store of these settings, or while that cannot be in this process; with `strict` that
        raises.
        """
        store = self.get(settings, strict=strict)
        place = self._places[settings.database, settings.readonly]
        if not store.readonly:
            try:
                store.add(problem, records)
            except StoreError as error:
                if strict:
                    raise
                self._warn("store", str(error))
                self._put_off(place)
            else:
                # What has records is pending no longer, and may be noted anew.
                with self._lock:
                    self._noted -= {(store, record.environment, problem) for record in records}
                if place.backlog:
                    self._pay(place)
                return
        place.backlog.add(problem, records)

    def note(self, settings: Settings, where: Environment, problem: Problem) -> None:
        """Put a problem on the pending list of these settings' store, once."""
        store = self.get(settings)
        key = (store, where.id, problem)
        if store.readonly or key in self._noted:
            return
        with self._lock:
            self._noted.add(key)

        def write(store: Store) -> None:
            store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
            store.note(where.id, problem)

        try:
            write(store)
        except StoreError as error:
            self._warn("store", str(error))
            place = self._places[settings.database, settings.readonly]
            place.backlog.do_later(write)
            self._put_off(place)

    @property
    def noted(self) -> set[Problem]:
        """The problems that this process noted, and did not time since."""
        with self._lock:
            return {problem for store, _, problem in self._noted if not isinstance(store, MemoryStore)}

    def name_network(self, settings: Settings, name: str, calls: Mapping[Problem, int]) -> None:
        """Keep how often a network makes each problem, in the store of these settings; a warning where that fails, as
        nothing depends on it. A store that is not begun is not begun for this.
        """
        if not calls or settings.readonly or not self.is_begun(settings):
            return
        try:
            self.get(settings).name_network(name, calls)
        except StoreError as error:
            self._warn("store", str(error))

    def settle(self) -> None:
        """Write what could not be written before, as far as that can be done now."""
        with self._lock:
            for key, place in list(self._places.items()):
                if not place.is_open and not key[1] and place.store.environments():
                    with self._warn.tolerating(strict=False):
                        place = self._opened(key, place)  # noqa: PLW2901 - the same database
                if place.is_open and place.backlog:
                    self._pay(place)

    def close(self) -> None:
        """Close every store, what could be written by now included; the next one asked for is opened again."""
        with self._lock:
            self.settle()
            for place in self._places.values():
                place.store.close()
            self._places.clear()
