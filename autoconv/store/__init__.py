"""Stores: where measurements are kept, and how they leave for other machines."""

from autoconv.store.contract import ModelRecord, Pruned, Qualification, Store
from autoconv.store.location import default_path, is_begun, located
from autoconv.store.memory import MemoryStore
from autoconv.store.mending import MendingStore
from autoconv.store.sqlite import SqliteStore, open_store
from autoconv.store.transfer import Exported, Imported, Rejected, Selection, export, import_file

__all__ = [
    "Exported",
    "Imported",
    "MemoryStore",
    "MendingStore",
    "ModelRecord",
    "Pruned",
    "Qualification",
    "Rejected",
    "Selection",
    "SqliteStore",
    "Store",
    "default_path",
    "export",
    "import_file",
    "is_begun",
    "located",
    "open_store",
]
