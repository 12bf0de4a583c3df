"""A mutex: a lock among threads that a forked child never finds taken by a thread which it has not."""

from __future__ import annotations

import os
import threading
import weakref


class Mutex:
    """A lock for one thread at a time, which that thread may take more than once.

    A fork copies one thread alone, the one that forks: what any other held then would stay taken in the child for
    ever. So there the lock is a new one, and free. What it guards must be whole between any two steps of Python's, or
    be of no use to the child.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _mutexes.add(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it; without `blocking` only if it is free. Whether it was taken."""
        return self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()

    def __enter__(self) -> None:
        """Take it."""
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        """Let go of it, whatever was raised."""
        self._lock.release()

    def renew(self) -> None:
        """In a forked child, replace the lock where a thread holds it that is not there."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_mutexes: weakref.WeakSet[Mutex] = weakref.WeakSet()


def _renew_all() -> None:
    for mutex in _mutexes:
        mutex.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
