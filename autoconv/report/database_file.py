"""What the doctor says of a database's file: where it lies, and whether it is sound; without MLX."""

from __future__ import annotations

import os
from pathlib import Path

from autoconv.errors import EmptyError, StoreError
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import default_path
from autoconv.store.connection import SCHEMA
from autoconv.store.health import Health, health

LOW_DISK_BYTES = 10**8
"""Room on a database's disk below which the next sweep may not fit."""


def begun(chosen: Settings) -> tuple[Path | None, list[Finding]]:
    """The file of the user's own database; None, and why, where there is none to look into.

    Raises:
        StoreError: nothing says where it should be.
    """
    path: Path = chosen.database or default_path()
    if not os.path.exists(path):  # `Path.exists` raises where a folder may not be looked into
        return None, [Finding("database", f"{path}, not begun yet")]
    return path, []


def unusable(path: object, error: StoreError) -> Finding:
    """What is told of a database that cannot be read."""
    if isinstance(error, EmptyError):
        return Finding("database", f"{path}, empty: not begun yet")
    return Finding("database", error.found, error.advice or "name another file in AUTOCONV_DATABASE, or by --database")


def soundness(path: Path) -> tuple[Health, Finding]:
    """How a database's file is, and what its owner should do about it if it is not sound.

    Raises:
        StoreError: it cannot be read, or is too damaged to be looked through.
    """
    state = health(path)
    found = (
        f"{state.faults[0] if state.faults else 'sound'}; schema {state.schema} of {SCHEMA}, journal {state.journal}, "
        f"mode {state.mode:04o}, {state.free_bytes / 1e9:.1f} GB free on its disk"
    )
    advice = []
    if state.faults:
        advice.append("export what can be read by autoconv export, move the file away, and import that")
    if not state.writable:
        advice.append("it cannot be written: measurements last for a process; see to its modes, or set readonly=True")
    if state.others_write:
        advice.append(f"others may write what decides your calls: chmod 600 {path}")
    if state.free_bytes < LOW_DISK_BYTES:
        advice.append("make room on its disk")
    values = {
        "bytes": state.bytes,
        "schema": state.schema,
        "mode": state.mode,
        "writable": state.writable,
        "free_bytes": state.free_bytes,
        "faults": list(state.faults),
    }
    return state, Finding("database file", found, "; ".join(advice), values)
