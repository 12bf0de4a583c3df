"""Stores: where measurements are kept, and how they leave for other machines."""

from autoconv.store.contract import Qualification, Store
from autoconv.store.memory import MemoryStore
from autoconv.store.sqlite import SqliteStore, default_path, open_store
from autoconv.store.transfer import Exported, export

__all__ = [
    "Exported",
    "MemoryStore",
    "Qualification",
    "SqliteStore",
    "Store",
    "default_path",
    "export",
    "open_store",
]
