"""Health: whether a database's file is sound, and who may read and write it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from autoconv.store.connection import FAILURES, connect, failure, schema_of
from autoconv.store.removal import used_bytes

_FIRST = 3
"""Faults that are told; a damaged file may have thousands."""


@dataclass(frozen=True)
class Health:
    """How a database's file is.

    Attributes:
        bytes: Its size, with the write-ahead log beside it.
        schema: How many migrations it has had.
        journal: `wal`, or what SQLite keeps where that cannot be had.
        mode: Its permissions.
        writable: Whether this user may write it, and files beside it.
        free_bytes: Room that is left on its disk.
        faults: What SQLite says is wrong with it, the first few; none where it is sound.
    """

    bytes: int
    schema: int
    journal: str
    mode: int
    writable: bool
    free_bytes: int
    faults: tuple[str, ...]

    @property
    def others_write(self) -> bool:
        """Whether anyone but its owner may write it."""
        return bool(self.mode & (stat.S_IWGRP | stat.S_IWOTH))


def health(file: Path, *, immutable: bool = False) -> Health:
    """How a database's file is; reads all of it, some 100 MB a second, and changes nothing.

    Args:
        file: The file.
        immutable: Whether nothing can be writing it (see `connection.connect`).

    Raises:
        SchemaError: it is no autoconv database, or a newer version's.
        StoreError: it cannot be read, or is too damaged to be looked through.
    """
    try:
        with closing(connect(file, readonly=True, immutable=immutable)) as connection:
            schema = schema_of(connection, file)
            journal = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            rows = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({_FIRST})")]
            stray = connection.execute("PRAGMA foreign_key_check").fetchone()
        found = file.stat()
        beside = [Path(f"{file}{suffix}") for suffix in ("-wal", "-journal")]
        size = found.st_size + sum(path.stat().st_size for path in beside if path.exists())
        free = shutil.disk_usage(file.parent).free
    except FAILURES as error:
        raise failure("check", file, error) from error
    faults = tuple(row for row in rows if row != "ok")
    if stray is not None:
        faults += (f"a row of {stray[0]} is of nothing that is there",)
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    return Health(size, schema, journal, stat.S_IMODE(found.st_mode), writable, free, faults)


def outdated(file: Path, versions: Mapping[str, int]) -> float:
    """About what part of a database is of no use: room that holds nothing, and results of older versions of algorithms.

    Args:
        file: The file.
        versions: Of each algorithm by its name.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with closing(connect(file, readonly=True)) as connection:
            counts = connection.execute(
                "SELECT algorithm, version, count(*) FROM records "
                "JOIN candidates ON candidates.id = records.candidate GROUP BY 1, 2"
            ).fetchall()
            used, size = used_bytes(connection), file.stat().st_size
    except FAILURES as error:
        raise failure("read", file, error) from error
    old = sum(int(count) for name, version, count in counts if version < versions.get(name, 0))
    total = sum(int(count) for *_, count in counts)
    return 1 - used / max(size, used) * (1 - old / max(1, total))
