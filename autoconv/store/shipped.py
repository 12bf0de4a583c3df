"""Databases that came with the package: measured on real devices, only read, beneath the user's own."""

from __future__ import annotations

import logging
from pathlib import Path

from autoconv.errors import StoreError
from autoconv.store.contract import Store
from autoconv.store.sqlite import SqliteStore

FOLDER = "tuning_db"

_PACKAGE = Path(__file__).resolve().parents[1]
_log = logging.getLogger(__name__)


def shipped_folder(package: Path = _PACKAGE) -> Path | None:
    """Where they lie: within an installed package, or beside the package in a checkout; None where there are none."""
    installed, checkout = package / FOLDER, package.parent / FOLDER
    if installed.is_dir():
        return installed
    # Another project's folder of that name may lie beside an installed package.
    return checkout if checkout.is_dir() and (package.parent / "pyproject.toml").is_file() else None


def shipped_files() -> list[Path]:
    """The files of all shipped databases, sorted by name."""
    folder = shipped_folder()
    return sorted(folder.glob("*.db")) if folder else []


def shipped_models(backend: str) -> list[Path]:
    """The files of all shipped cost models of a backend, sorted by name: `cuda.npz`, `cuda_blackwell.npz`."""
    folder = shipped_folder()
    found = sorted(folder.glob(f"{backend}*.npz")) if folder else []
    return [path for path in found if path.stem == backend or path.stem.startswith(f"{backend}_")]


def open_shipped() -> dict[str, Store]:
    """All shipped databases, by name, open as immutable files; one that cannot be read is left out, and logged."""
    found, unread = open_all_shipped()
    for reason in unread.values():
        _log.warning("a database that came with the package is left out: %s", reason)
    return found


def open_all_shipped() -> tuple[dict[str, Store], dict[str, str]]:
    """As `open_shipped`, with why each of the others cannot be read, by name; nothing is logged."""
    found: dict[str, Store] = {}
    unread: dict[str, str] = {}
    for path in shipped_files():
        try:
            found[path.stem] = SqliteStore(path, readonly=True, immutable=True)
        except StoreError as error:
            unread[path.stem] = str(error)
    return found, unread
