"""What the doctor says of a database's file: where it lies, and whether it is sound; without MLX."""

from __future__ import annotations

import os
from pathlib import Path

from autoconv.errors import StoreError
from autoconv.report.finding import Finding
from autoconv.store.connection import SCHEMA
from autoconv.store.health import Health, health

LOW_DISK_BYTES = 10**8
"""Room on a database's disk below which the next sweep may not fit."""


def not_begun(path: Path) -> Finding:
    """What is told of a database that is not begun."""
    return Finding("database", f"{path}, {'empty: ' if os.path.exists(path) else ''}not begun yet")


def unusable(error: StoreError) -> Finding:
    """What is told of a database that cannot be read."""
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
