"""Ctrl-C: how the command ends then; imports next to nothing."""

from __future__ import annotations

import contextlib
import os

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

STDERR = 2
"""Its descriptor, whatever `sys.stderr` is."""


def heard() -> int:
    """Tell in a line that it ends, once Ctrl-C was caught; the exit code to end with."""
    with contextlib.suppress(OSError):  # it may be closed
        os.write(STDERR, b"autoconv: interrupted\n")
    # Where it was caught outside of an `exec` that it had ended, Python would die of the signal at its exit after all.
    exec("")
    return INTERRUPTED
