"""What the doctor says where MLX cannot be loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

from autoconv._version import __version__
from autoconv.errors import BackendMissingError, StoreError
from autoconv.report import database_file, variables
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import is_begun, located


def examine(chosen: Settings, error: BackendMissingError, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """What is worth knowing of this machine and its database without MLX; that it is missing is what needs attention.

    Args:
        chosen: The settings.
        error: What came of loading MLX.
        environ: The variables that settings came from.
    """
    return [
        Finding("autoconv", __version__),
        Finding("MLX", error.found, error.advice),
        *variables.backends(),
        *variables.in_force(chosen, environ, "60% of the device's memory"),
        *_database(chosen),
    ]


def _database(chosen: Settings) -> list[Finding]:
    try:
        path = located(chosen.database)
        if not is_begun(path):
            return [database_file.not_begun(path)]
        state, told = database_file.soundness(path)
    except StoreError as error:
        return [database_file.unusable(error)]
    return [Finding("database", f"{path}, {state.bytes / 1e6:.1f} MB", values={"bytes": state.bytes}), told]
