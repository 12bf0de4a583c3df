"""Origins: the files that imported records came from."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from autoconv.store.connection import FAILURES, connect, failure
from autoconv.store.tables import Tables


def imported_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names of the files that a database's imported records came from, by `Record.origin`; some are not known.

    Raises:
        StoreError: it cannot be read.
    """
    file = Path(path).absolute()
    with closing(connect(file, readonly=True)) as connection:
        try:
            found = Tables(connection).select("SELECT key, file FROM origins")
        except FAILURES as error:
            raise failure("read", file, error) from error
    return {key: name for key, name in found if isinstance(key, str) and isinstance(name, str)}
