"""Warnings that are given once."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from autoconv.errors import AutoconvWarning, StoreError
from autoconv.mutex import Mutex

_log = logging.getLogger("autoconv")


def warn_now(text: str) -> None:
    """Warn with `text`, and log it."""
    _log.warning(text)
    warnings.warn(text, AutoconvWarning, stacklevel=3)


class WarnOnce:
    """Warns of each thing once in its life; may be called from any thread."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._lock = Mutex()

    def __call__(self, about: str, text: str) -> None:
        """Warn with `text`, unless there was a warning `about` the same before."""
        with self._lock:
            if about in self._warned:
                return
            self._warned.add(about)
        warn_now(text)

    @contextlib.contextmanager
    def tolerating(self, *, strict: bool) -> Iterator[None]:
        """A store that fails costs one warning; with `strict` it raises as it does.

        Raises:
            StoreError: with `strict`, that of the store.
        """
        try:
            yield
        except StoreError as error:
            if strict:
                raise
            self("store", str(error))
