"""One process at a time times on a device."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: nothing to wait for
    fcntl = None  # type: ignore[assignment]

_POLL_S = 0.05


@contextlib.contextmanager
def hold(name: str, wait_s: float = 0.0, poll_s: float = _POLL_S) -> Iterator[bool]:
    """Hold this user's lock of that name; yields whether it was had within `wait_s`, asking every `poll_s`.

    The lock lies in a folder of the user's own beneath the system's temporary folder, and the system lets go of it
    when the process ends, however that happens. Where no such folder can be made, nothing is held and True is
    yielded: timing beside another process is worse than not timing only by its noise.
    """
    path = _folder()
    if fcntl is None or path is None:
        yield True
        return
    try:
        file = os.open(path / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield True
        return
    try:
        yield _acquire(file, wait_s, poll_s)
    finally:
        os.close(file)


def _acquire(file: int, wait_s: float, poll_s: float) -> bool:
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= end:
                return False
            time.sleep(poll_s)
        else:
            return True


def _folder() -> Path | None:
    path = Path(tempfile.gettempdir()) / f"autoconv-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        mine = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return path if mine.st_uid == os.getuid() and not path.is_symlink() else None
