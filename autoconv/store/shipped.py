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


def open_shipped() -> dict[str, Store]:
    """All shipped databases, by name, open as immutable files; one that cannot be read is left out, and logged."""
    found: dict[str, Store] = {}
    for path in shipped_files():
        try:
            found[path.stem] = SqliteStore(path, readonly=True, immutable=True)
        except StoreError as error:
            _log.warning("a database that came with the package is left out: %s", error)
    return found
