"""The location of the user's own database."""

from __future__ import annotations

from pathlib import Path

from autoconv.errors import StoreError


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
