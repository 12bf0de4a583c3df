"""What the doctor says of settings, variables and packages; without MLX, which may be what is missing."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping

from autoconv import settings
from autoconv.errors import StoreError
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import default_path

BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
"""Packages of MLX's backends on Linux."""

_FOR_SCRIPTS = frozenset(("AUTOCONV_BACKEND", "AUTOCONV_PYTHON"))
"""Variables of a checkout's scripts."""

_OF_THE_IMPORT = frozenset(("AUTOCONV_PATCH", "AUTOCONV_LOG"))
"""Variables that are no settings, and are read once."""


def backends() -> Iterator[Finding]:
    """Whether backends of MLX are in each other's way."""
    installed = [name for name in BACKENDS if _is_installed(name)]
    if len(installed) > 1:
        advice = f"uninstall all of {', '.join(installed)}, then install one: they overwrite each other's library file"
        yield Finding("backends", ", ".join(installed), advice)


def in_force(chosen: Settings, environ: Mapping[str, str], memory_limit: str) -> Iterator[Finding]:
    """Every setting with where it came from, variables whose value cannot be, and those that nothing reads.

    Args:
        chosen: The settings.
        environ: The variables.
        memory_limit: What the memory limit comes to where none is set, in words.
    """
    variables = {name: variable for variable, name in settings.VARIABLES.items()}
    from_variables, wrong = settings.as_far_as_can_be(environ)
    values, asked = settings.as_dict(chosen), settings.as_dict(from_variables)
    defaults = settings.as_dict(settings.from_environment({}))

    def origin(name: str) -> str:
        variable = variables.get(name, "")
        if environ.get(variable) and variable not in wrong and values[name] == asked[name]:
            return variable
        return "default" if values[name] == defaults[name] else "given"

    shown = values | {"memory_limit": memory_limit if chosen.memory_limit is None else gigabytes(chosen.memory_limit)}
    if chosen.database is None:
        shown["database"] = _default_database()
    told = ", ".join(f"{name} {value} ({origin(name)})" for name, value in shown.items())
    yield Finding("settings", told, values=values | {"database": str(shown["database"])})
    if level := settings.level_fault(environ.get("AUTOCONV_LOG", "")):
        wrong = {**wrong, "AUTOCONV_LOG": level}
    for variable, fault in wrong.items():
        yield Finding("variable", f"{variable}: {fault}", "unset it or change it: every other command is refused")
    read = {*settings.VARIABLES, *_OF_THE_IMPORT, *_FOR_SCRIPTS}
    strange = sorted(name for name in environ if name.startswith("AUTOCONV_") and name not in read)
    if strange:
        yield Finding("variables", f"{', '.join(strange)}: nothing reads that", f"there are {', '.join(sorted(read))}")


def gigabytes(count: float) -> str:
    """Bytes for people, as a setting can be given."""
    return f"{count / 1e9:.3g}GB"


def _default_database() -> str:
    try:
        return str(default_path())
    except StoreError as error:
        return f"none: {error.found}"


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
