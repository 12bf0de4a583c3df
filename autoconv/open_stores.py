"""The stores that a process has open: opened once, noted in, written to, and what to do where that fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.mutex import Mutex
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Store, default_path, open_store
from autoconv.warn import WarnOnce

Opener = Callable[[Path, bool], Store]
"""Opens a store from a path and whether it is only read."""


def open_file(path: Path, readonly: bool) -> Store:
    """The store in a file."""
    return open_store(path, readonly=readonly)


def begun(settings: Settings) -> Path | None:
    """The file of these settings' database; None where it is not begun, or lies where this user may not look."""
    try:
        path: Path = settings.database or default_path()
    except StoreError:
        return None
    return path if os.path.exists(path) else None  # Path.exists raises where a folder may not be looked into


class OpenStores:
    """All methods may be called from any thread.

    Args:
        opener: Opens a store.
        warn: Warns once of each thing.
    """

    def __init__(self, opener: Opener, warn: WarnOnce) -> None:
        self._open = opener
        self._warn = warn
        self._stores: dict[tuple[Path | None, bool], Store] = {}
        self._unkept = MemoryStore()
        self._noted: set[tuple[Store, str, Problem]] = set()
        self._lock = Mutex()

    def get(self, settings: Settings, *, strict: bool = False) -> Store:
        """The store of these settings, opened once.

        With `strict` one that cannot be opened raises `StoreError`; else it costs a warning, and a store in memory
        takes its place.
        """
        key = (settings.database, settings.readonly)
        with self._lock:
            known = self._stores.get(key)
            if known is None or (strict and isinstance(known, MemoryStore)):
                try:
                    known = self._open(settings.database or default_path(), settings.readonly)
                except StoreError as error:
                    if strict:
                        raise
                    self._warn("store", f"{error}; measurements are kept for this process alone")
                    known = MemoryStore()
                self._stores[key] = known
            return known

    def is_begun(self, settings: Settings) -> bool:
        """Whether the store of these settings is open, or is a file that exists."""
        if (settings.database, settings.readonly) in self._stores or self._open is not open_file:
            return True
        return begun(settings) is not None

    def records(self, settings: Settings, environment: str, problem: Problem) -> list[Record]:
        """The store's records; none, and a warning, where they cannot be read."""
        try:
            return self.get(settings).records(environment, problem)
        except StoreError as error:
            self._warn("store", str(error))
            return []

    def unkept(self, environment: str, problem: Problem) -> list[Record]:
        """Records that could not be written; this process still knows them."""
        return self._unkept.records(environment, problem)

    def keep(self, store: Store, problem: Problem, records: Sequence[Record], *, strict: bool) -> None:
        """Keep records in a store, or where that cannot be for this process alone; with `strict` that raises."""
        if not store.readonly:
            try:
                store.add(problem, records)
            except StoreError as error:
                if strict:
                    raise
                self._warn("store", str(error))
            else:
                # What has records is pending no longer, and may be noted anew.
                self._noted -= {(store, record.environment, problem) for record in records}
                return
        self._unkept.add(problem, records)

    def note(self, settings: Settings, where: Environment, problem: Problem) -> None:
        """Put a problem on the pending list of these settings' store, once."""
        store = self.get(settings)
        key = (store, where.id, problem)
        if store.readonly or key in self._noted:
            return
        self._noted.add(key)
        with self._warn.tolerating(strict=False):
            store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
            store.note(where.id, problem)

    def close(self) -> None:
        """Close every store; the next one asked for is opened again."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()
