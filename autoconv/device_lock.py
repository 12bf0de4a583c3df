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
    when the process ends, however that happens. A child that is forked meanwhile has no part in it. Where no such
    folder can be made, or its file system has no locks, nothing is held and True is yielded: timing beside another
    process is worse than not timing only by its noise.
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
    _held.add(file)
    try:
        yield _acquire(file, wait_s, poll_s)
    finally:
        if file in _held:  # in a child that was forked inside this block it is closed already
            _held.discard(file)
            _release(file)


def _acquire(file: int, wait_s: float, poll_s: float) -> bool:
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(poll_s)
        except OSError:  # there are no locks on this file system, and waiting would change nothing
            return True
        else:
            return True


def _release(file: int) -> None:
    """Let go of the lock, though a forked child may have the file open as well, and close it."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _folder() -> Path | None:
    try:
        path = Path(tempfile.gettempdir()) / f"autoconv-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        mine = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return path if mine.st_uid == os.getuid() and not path.is_symlink() else None


_held: set[int] = set()
"""Files that are open for a lock."""


def _close_in_child() -> None:
    """A lock is the parent's: were its file open in the child, the parent's end would not let go of it."""
    for file in _held:
        os.close(file)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_in_child)
