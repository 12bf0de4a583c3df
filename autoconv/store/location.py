"""The location of the user's own database, and whether there is one."""

from __future__ import annotations

import os
from pathlib import Path

from autoconv.errors import EmptyError, StoreError
from autoconv.store.connection import connect

_EMPTY_BYTES = 65536
"""SQLite's largest page: a database that has no table yet is no larger."""


def default_path() -> Path:
    """Where the user's own database lies: `autoconv.db` in the system's folder for a user's data.

    Raises:
        StoreError: there is no such folder, since nothing says where the user's home is.
    """
    import platformdirs

    try:
        folder = Path(platformdirs.user_data_dir("autoconv"))
    except RuntimeError:  # as its newer versions have it
        folder = Path()
    if not folder.is_absolute():  # else it begins with `~`, which would be made in the working folder
        msg = "there is no home folder for autoconv.db"
        raise StoreError(msg, "name a file in AUTOCONV_DATABASE")
    return folder / "autoconv.db"


def located(database: Path | None) -> Path:
    """Where the database of some settings lies: in the file that they name, else where the user's own does.

    Raises:
        StoreError: as `default_path`.
    """
    return database or default_path()


def is_begun(file: Path) -> bool:
    """Whether a file is there, a database or not, where this user may look; not one that a kill left empty.

    What is there and cannot be opened counts as begun: whoever opens it tells of that.
    """
    try:
        if os.stat(file).st_size > _EMPTY_BYTES:  # it need not be opened
            return True
    except (OSError, ValueError):
        return False
    try:
        connect(file, readonly=True).close()
    except EmptyError:
        return False
    except StoreError:
        return True
    return True
