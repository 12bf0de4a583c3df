"""Damage: what becomes of a database of ours that does not hold what it should.

It is renamed beside itself, with the files that SQLite keeps beside it, and never deleted: `autoconv.db.damaged-1`.
Many processes may find the same damage at the same moment, and all but one must leave what they find in its place: so
it is looked at once more in turn, and is put aside only if it is still the very file that was found damaged.

What it held is not carried over. SQLite's own `.recover` may find some of it; an import takes only what is sound.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import closing
from pathlib import Path

from autoconv.errors import DamagedError, SchemaError
from autoconv.store.connection import FAILURES, failure, is_damage, is_ours, opened, schema_of, turn
from autoconv.store.schema import check_schema

Identity = tuple[int, int]
"""Device and number of a file: what tells it from another of the same name."""

MOST_ASIDE = 100
"""Most damaged databases of one name that are kept; with more of them something else is wrong."""

LOOK_SECONDS = 10.0
"""Longest look at a whole database, to see whether it is sound."""

_BESIDE = ("-wal", "-shm", "-journal")
_STEPS_AT_ONCE = 100_000
_AMPLE_BYTES = 1 << 26

_log = logging.getLogger(__name__)


def identity_of(file: Path) -> Identity | None:
    """Which file stands under a name now, links followed; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def put_aside(file: Path, found: Identity | None) -> Path | None:
    """Rename a damaged database and what lies beside it; the new name, or None where it stays.

    It stays where another file stands in its place by now, where a second look finds it sound, and where it is not
    ours: no plain file of this very user, or one that is not told to have been a database of this library.

    Args:
        file: The database; where it is a link, the file that it leads to is renamed, beside itself.
        found: Which file was found damaged.

    Raises:
        StoreError: it cannot be renamed.
    """
    real = Path(os.path.realpath(file))
    try:
        with turn(file) as held:
            if not (held and found is not None and identity_of(real) == found and _may_be_renamed(real)):
                return None
            if not is_damaged(real):
                return None
            return _rename(real)
    except OSError as error:
        raise failure("put aside", file, error) from error


def is_damaged(file: Path) -> bool:
    """Whether a database is surely damaged: by SQLite's own check of it all, or by what its schema lacks.

    What cannot be looked at now, or takes longer than `LOOK_SECONDS`, is not.
    """
    end = time.monotonic() + LOOK_SECONDS
    try:
        with closing(opened(file, "mode=ro")) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS_AT_ONCE)
            schema = schema_of(connection, file)
            if schema:
                check_schema(connection, file, schema)
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
    except MemoryError:
        return _is_there_memory()
    except FAILURES as error:
        _log.debug("a look at %s: %s", file, error)
        return is_damage(error)
    except DamagedError:
        return True
    except SchemaError:
        return False  # another program's, or a newer version's


def _is_there_memory() -> bool:
    """Whether this process gets far more memory than a look at a sound database takes."""
    try:
        return bool(bytearray(_AMPLE_BYTES))
    except MemoryError:
        return False


def _may_be_renamed(file: Path) -> bool:
    found = os.lstat(file)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and is_ours(file)


def _rename(file: Path) -> Path | None:
    for number in range(1, MOST_ASIDE + 1):
        aside = file.with_name(f"{file.name}.damaged-{number}")
        if any(os.path.lexists(f"{aside}{suffix}") for suffix in _BESIDE):
            continue
        try:
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # so the name is nobody else's
        except FileExistsError:
            continue
        # The database last: whatever ends this process meanwhile, no new one has the old one's -wal file beside it.
        for suffix in _BESIDE:
            try:
                os.rename(f"{file}{suffix}", f"{aside}{suffix}")
            except FileNotFoundError:
                continue
        os.rename(file, aside)
        return aside
    return None
