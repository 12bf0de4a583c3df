"""Every setting: its default, its `AUTOCONV_*` variable, and the three ways to change it.

A call's own argument wins over `using`, that over `configure`, that over the environment variable, that over the
default. Variables are read once, when a setting is first needed, and nowhere else.

| setting | variable | values |
| --- | --- | --- |
| `policy` | `AUTOCONV_POLICY` | `auto` (default), `measure`, `predict`, `record`, `off` |
| `accuracy` | `AUTOCONV_ACCURACY` | `native` (default), `strict`, or a relative L2 error such as `1e-3` |
| `memory_limit` | `AUTOCONV_MEMORY_LIMIT` | bytes beyond the operands, or `8GB`; `default`: 60% of the device's |
| `budget_ms` | `AUTOCONV_BUDGET_MS` | milliseconds of timing for one problem, 500 by default |
| `stall` | `AUTOCONV_STALL` | seconds of timing inside calls, and a share of the process's age: `2+5%` (default) |
| `database` | `AUTOCONV_DATABASE` | file of the user's own database; by default in the user's data directory |
| `readonly` | | whether the database is only read |
| `gradients` | `AUTOCONV_GRADIENTS` | `1` or `0` (default): whether gradients are decided like convolutions |
| | `AUTOCONV_PATCH` | `1` or `0` (default): whether `import autoconv` patches MLX (see `patching`) |
| | `AUTOCONV_LOG` | level of the logger `autoconv`, such as `DEBUG`; nothing is printed by default |
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, Unpack

from autoconv.errors import SettingsError
from autoconv.mutex import Mutex

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}


class Policy(StrEnum):
    """What to do for a shape, by whether a database has it.

    | policy | in a database | not in one |
    | --- | --- | --- |
    | `auto` | its winner | the cost model where there is one and it is sure, else time it now within `stall` |
    | `measure` | its winner | time it now |
    | `predict` | its winner | the cost model, else native; never times |
    | `record` | its winner | native, noted for `autoconv sweep --pending` |
    | `off` | native | native |
    """

    AUTO = "auto"
    MEASURE = "measure"
    PREDICT = "predict"
    RECORD = "record"
    OFF = "off"


@dataclass(frozen=True)
class Stall:
    """How long timing inside calls may take in all: `seconds` plus `share` of the process's age."""

    seconds: float = 2.0
    share: float = 0.05


@dataclass(frozen=True, eq=False)
class Settings:
    """A complete set of settings. Equal ones are one object, so that telling them apart costs no comparison.

    Attributes:
        policy: What to do for a shape that is not known.
        accuracy: `"native"`, `"strict"`, or the largest relative L2 error that passes.
        memory_limit: Bytes that a convolution may take beyond input, weight and output; None for 60% of the device's.
        budget_ms: Milliseconds that timing one problem may take, the least number of runs apart.
        stall: How long timing inside calls may take in all, under `auto`.
        database: The user's own database; None for the one in the user's data directory.
        readonly: Whether the database is only read.
        gradients: Whether gradients are problems of their own, decided like convolutions. Else they are those of the
            operations that the forward pass was made of.
    """

    policy: Policy = Policy.AUTO
    accuracy: str | float = "native"
    memory_limit: int | None = None
    budget_ms: float = 500.0
    stall: Stall = field(default_factory=Stall)
    database: Path | None = None
    readonly: bool = False
    gradients: bool = False


def _policy(value: object) -> Policy:
    try:
        return Policy(str(value))
    except ValueError:
        choices = ", ".join(Policy)
        msg = f"policy must be one of {choices}; got {value!r}"
        raise SettingsError(msg) from None


def _accuracy(value: object) -> str | float:
    if isinstance(value, str) and value in {"native", "strict"}:
        return value
    number = _number(value)
    if number is None or not 0 < number < math.inf:
        msg = f"accuracy must be 'native', 'strict' or a relative L2 error over 0; got {value!r}"
        raise SettingsError(msg)
    return number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def parse_bytes(value: object) -> int | None:
    """Bytes from an int or text such as `8GB` (10^9), `8GiB` (2^30) or `8e9`; None from None or `default`.

    Raises:
        SettingsError: not such a value, or not over 0.
    """
    if value is None or value == "default":
        return None
    found = re.fullmatch(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", str(value))
    number = _number(found[1]) if found else None
    bytes_ = number * _UNITS.get(found[2].upper(), 0) if found and number is not None else 0
    if isinstance(value, bool) or not 1 <= bytes_ < math.inf:
        msg = f"memory_limit must be bytes over 0, as a number or as text such as '8GB'; got {value!r}"
        raise SettingsError(msg)
    return int(bytes_)


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(value: object) -> float:
    """Seconds from a number, a `timedelta`, or text such as `90`, `90s`, `30m`, `1.5h` or `180d`.

    Raises:
        SettingsError: not such a value, or not over 0.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value) if isinstance(value, str) else None
    number = _number(found[1] if found else None if isinstance(value, str) else value)
    seconds = number * (_SECONDS[found[2]] if found else 1.0) if number is not None else 0.0
    if not 0 < seconds < math.inf:
        msg = f"{value!r} is no time such as 90s, 30m, 1.5h or 180d"
        raise SettingsError(msg)
    return seconds


def _budget(value: object) -> float:
    number = _number(value)
    if number is None or not 0 < number < math.inf:
        msg = f"budget_ms must be milliseconds over 0; got {value!r}"
        raise SettingsError(msg)
    return number


def _stall(value: object) -> Stall:
    if isinstance(value, Stall):
        return value
    found = re.fullmatch(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*s?\s*(?:\+\s*([\d.]+)\s*%)?\s*", str(value))
    seconds = _number(found[1]) if found else None
    percent = _number(found[2] or 0) if found else None
    if seconds is None or percent is None or isinstance(value, bool):
        msg = f"stall must be seconds, or seconds and a share such as '2+5%'; got {value!r}"
        raise SettingsError(msg)
    return Stall(seconds, percent / 100)


def _database(value: object) -> Path | None:
    if value is None or value == "":
        return None
    if not isinstance(value, (str, os.PathLike)):
        msg = f"database must be a file's path; got {value!r}"
        raise SettingsError(msg)
    if "\0" in str(value):
        msg = f"database must be a file's path, and no path has a NUL; got {str(value)!r}"
        raise SettingsError(msg)
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        msg = f"database {str(value)!r}: {error}"
        raise SettingsError(msg) from None


def _readonly(value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"readonly must be True or False; got {value!r}"
        raise SettingsError(msg)
    return value


_SWITCH = {"1": True, "true": True, "0": False, "false": False}


def _gradients(value: object) -> bool:
    found = _SWITCH.get(str(value).lower())
    if found is None or not isinstance(value, (bool, str)):
        msg = f"gradients must be True or False, in a variable 1 or 0; got {value!r}"
        raise SettingsError(msg)
    return found


_PARSERS: dict[str, Callable[[object], Any]] = {
    "policy": _policy,
    "accuracy": _accuracy,
    "memory_limit": parse_bytes,
    "budget_ms": _budget,
    "stall": _stall,
    "database": _database,
    "readonly": _readonly,
    "gradients": _gradients,
}

VARIABLES = {
    "AUTOCONV_POLICY": "policy",
    "AUTOCONV_ACCURACY": "accuracy",
    "AUTOCONV_MEMORY_LIMIT": "memory_limit",
    "AUTOCONV_BUDGET_MS": "budget_ms",
    "AUTOCONV_STALL": "stall",
    "AUTOCONV_DATABASE": "database",
    "AUTOCONV_GRADIENTS": "gradients",
}
"""The environment variable of each setting that has one."""

_interned: dict[tuple[object, ...], Settings] = {}
_lock = Mutex()


def _intern(settings: Settings) -> Settings:
    with _lock:
        return _interned.setdefault(tuple(getattr(settings, f.name) for f in fields(settings)), settings)


def with_changes(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """`settings` with some of them changed.

    Raises:
        SettingsError: a setting that there is not, or a value that it cannot have.
    """
    unknown = changes.keys() - _PARSERS.keys()
    if unknown:
        msg = f"there is no setting {sorted(unknown)[0]!r}; there are {', '.join(_PARSERS)}"
        raise SettingsError(msg)
    return _intern(replace(settings, **{name: _PARSERS[name](value) for name, value in changes.items()}))


def from_environment(environ: Mapping[str, str]) -> Settings:
    """The settings that environment variables ask for; an empty variable is one that is not set.

    Raises:
        SettingsError: names the variable whose value cannot be.
    """
    settings, wrong = as_far_as_can_be(environ)
    if wrong:
        variable, fault = next(iter(wrong.items()))
        msg = f"{variable}: {fault}"
        raise SettingsError(msg)
    return settings


def as_far_as_can_be(environ: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """As `from_environment`, with the default in place of a value that cannot be; and what is wrong, by variable."""
    settings, wrong = _intern(Settings()), {}
    for variable, name in VARIABLES.items():
        if environ.get(variable):
            try:
                settings = with_changes(settings, {name: environ[variable]})
            except SettingsError as error:
                wrong[variable] = str(error)
    return settings, wrong


def patches(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `AUTOCONV_PATCH` asks for MLX to be patched at import; an empty variable is one that is not set.

    Raises:
        SettingsError: its value cannot be.
    """
    value = environ.get("AUTOCONV_PATCH") or "0"
    if value.lower() not in _SWITCH:
        msg = f"AUTOCONV_PATCH must be 1 or 0; got {value!r}"
        raise SettingsError(msg)
    return _SWITCH[value.lower()]


def level_fault(level: str) -> str:
    """What is wrong with a level of logging; empty where it is one, or none is asked for."""
    if not level or level.upper() in logging.getLevelNamesMapping():
        return ""
    return f"level must be one of DEBUG, INFO, WARNING, ERROR; got {level!r}"


def set_up_logging(level: str) -> None:
    """Print the records of the logger `autoconv` from `level` up on stderr; an empty level prints nothing.

    Raises:
        SettingsError: there is no such level.
    """
    logger = logging.getLogger("autoconv")
    if not level:
        logger.addHandler(logging.NullHandler())
        return
    if fault := level_fault(level):
        msg = f"AUTOCONV_LOG: {fault}"
        raise SettingsError(msg)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())


_configured: Settings | None = None
override: ContextVar[Settings | None] = ContextVar("autoconv_settings", default=None)
"""What the innermost `using` chose; None outside of any."""

on_configure: list[Callable[[], object]] = []
"""Called when the process's settings have changed."""


def current() -> Settings:
    """The settings in force here: those of the innermost `using`, else those configured.

    Raises:
        SettingsError: at the first look, names the environment variable whose value cannot be.
    """
    return override.get() or _configured or _begin()


def _begin() -> Settings:
    """Read the environment; not at import, so that a command can say in one line what is wrong there."""
    global _configured  # noqa: PLW0603 - the one place where the process's settings are kept
    settings = from_environment(os.environ)
    set_up_logging(os.environ.get("AUTOCONV_LOG", ""))
    _configured = settings
    return settings


class Changes(TypedDict, total=False):
    """What `configure`, `using` and a call may change, as it is written by users."""

    policy: str
    accuracy: str | float
    memory_limit: int | str | None
    budget_ms: float
    stall: str | float | Stall
    database: str | os.PathLike[str] | None
    readonly: bool
    gradients: bool


def configure(**changes: Unpack[Changes]) -> None:
    """Change settings for the whole process.

    Args:
        policy: `"auto"`, `"measure"`, `"predict"`, `"record"` or `"off"`. Default: `"auto"`.
        accuracy: `"native"`, `"strict"`, or the largest relative L2 error that passes. Default: `"native"`.
        memory_limit: Bytes that a convolution may take beyond its input, weight and output, and the tuner for arrays
            of its own; or text such as `"8GB"`. What takes more is run in chunks. Default: 60% of the device's
            recommended working set, or of its memory.
        budget_ms: Milliseconds that timing one problem may take. Default: `500`.
        stall: Seconds that timing inside calls may take in all under `auto`, with a share of the process's age.
            Default: `"2+5%"`.
        database: File of the user's own database. Default: `autoconv.db` in the user's data directory.
        readonly: Whether the database is only read. Default: `False`.
        gradients: Whether gradients are timed and decided like convolutions, for training. Convolutions are then
            custom functions, which `mx.export_function` refuses. Default: `False`.

    Raises:
        SettingsError: a setting that there is not, or a value that it cannot have; nothing is changed.
    """
    global _configured  # noqa: PLW0603 - the one place where the process's settings are kept
    _configured = with_changes(_configured or _begin(), changes)
    for listener in on_configure:
        listener()


@contextlib.contextmanager
def using(**changes: Unpack[Changes]) -> Iterator[Settings]:
    """Change settings inside a `with` block, for this thread or task alone; takes what `configure` takes.

    Raises:
        SettingsError: a setting that there is not, or a value that it cannot have.
    """
    before = override.set(with_changes(current(), changes))
    try:
        yield current()
    finally:
        override.reset(before)


def as_dict(settings: Settings) -> dict[str, object]:
    """The settings by name, as plain values for JSON."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    values["policy"] = str(settings.policy)
    values["stall"] = f"{settings.stall.seconds:g}+{settings.stall.share * 100:g}%"
    values["database"] = None if settings.database is None else str(settings.database)
    return values
