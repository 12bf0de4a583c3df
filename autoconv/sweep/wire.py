"""The wire: what a fleet's client and its workers tell each other, as plain values that JSON has too.

No class of ours is pickled, so that what comes is only read, and read with suspicion: a value of another type than a
field has is a `ValueError`, whatever else it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, get_type_hints

from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import Qualification, Store
from autoconv.sweep.runner import Ending

Values: TypeAlias = dict[str, Any]
Data = TypeVar("Data", Record, Qualification)


def values_of(data: Record | Qualification) -> Values:
    """The fields of a record or of a qualification by name, as plain values."""
    return {field.name: _plain(getattr(data, field.name)) for field in dataclasses.fields(data)}


@dataclass(frozen=True)
class Greeting:
    """What a worker says that it is.

    Attributes:
        worker: What tells it from another at the same address.
        library: Version of its autoconv.
        algorithms: Their fingerprint (see `tuning.qualification.fingerprint`).
        where: The environment of its device.
    """

    worker: str
    library: str
    algorithms: str
    where: Environment


@dataclass(frozen=True)
class Result:
    """What a worker tells of a problem.

    Attributes:
        ending: How it ended.
        why: What stood in the way, in words; empty where nothing did.
        records: All that the worker has.
        notes: How many notes there are of each candidate that ends processes.
        qualifications: What the device's first runs found out.
    """

    ending: Ending
    why: str
    records: tuple[Record, ...]
    notes: Mapping[str, int]
    qualifications: tuple[Qualification, ...]


def greeting_of(values: object) -> Greeting:
    """The greeting that these values are.

    Raises:
        ValueError: they are none.
    """
    told = _fields(values, "worker", "library", "algorithms", "identity", "circumstances", "memory_bytes")
    identity = {name: _text_or_whole(value) for name, value in _map(told["identity"])}
    circumstances = {name: _text_or_whole(value) for name, value in _map(told["circumstances"])}
    if not {"backend", "device", "mlx"} <= identity.keys():
        msg = f"{', '.join(identity)} are no device's identity"
        raise ValueError(msg)
    where = Environment(identity, circumstances, _whole(told["memory_bytes"]))
    return Greeting(_text(told["worker"]), _text(told["library"]), _text(told["algorithms"]), where)


def result_of(values: object, environment: str) -> Result:
    """The result, measured in this environment, that these values are.

    Raises:
        ValueError: they are none.
    """
    told = _fields(values, "ending", "why", "records", "notes", "qualifications")
    records = tuple(_read(Record, each) for each in _list(told["records"]))
    qualifications = tuple(_read(Qualification, each) for each in _list(told["qualifications"]))
    if {environment} != {environment, *(r.environment for r in records), *(q.environment for q in qualifications)}:
        msg = "it tells of another device"
        raise ValueError(msg)
    notes = {name: _whole(count) for name, count in _map(told["notes"])}
    return Result(Ending(_text(told["ending"])), _text(told["why"]), records, notes, qualifications)


def qualification_of(values: object) -> Qualification:
    """The qualification that these values are.

    Raises:
        ValueError: they are none.
    """
    return _read(Qualification, values)


def leave_notes(store: Store, environment: str, problem: Problem, notes: Mapping[str, int]) -> None:
    """See to it that a store has at least these notes of a problem (see `Store.begin`)."""
    there = store.unended(environment, problem)
    for candidate, count in notes.items():
        for _ in range(count - there.get(candidate, 0)):
            store.begin(environment, problem, candidate)


def _plain(value: object) -> object:
    if isinstance(value, Status):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset):
        return sorted(list(each) for each in value)
    return list(value) if isinstance(value, tuple) else value


def _read(kind: type[Data], values: object) -> Data:
    hints = get_type_hints(kind)
    found = _fields(values, *hints)
    read: dict[str, Any] = {name: _READERS[hint](found[name]) for name, hint in hints.items()}
    return kind(**read)


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = f"{value!r:.80} is no text"
        raise ValueError(msg)
    return value


def _text_or_whole(value: object) -> str | int:
    return _whole(value) if isinstance(value, int) else _text(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{value!r:.80} is no whole number"
        raise ValueError(msg)
    return value


def _number(value: object) -> float:
    """A number, infinite ones too: so is the error of a result that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        msg = f"{value!r:.80} is no number"
        raise ValueError(msg)
    return float(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        msg = f"{value!r:.80} is no list"
        raise ValueError(msg)
    return value


def _map(value: object) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        msg = f"{value!r:.80} is no mapping"
        raise ValueError(msg)
    return [(_text(name), each) for name, each in value.items()]


def _fields(value: object, *names: str) -> Values:
    found = dict(_map(value))
    if found.keys() != set(names):
        msg = f"{', '.join(names)} were to come, and {', '.join(found) or 'nothing'} came"
        raise ValueError(msg)
    return found


def _pair(value: object) -> tuple[str, str]:
    first, second = _list(value)
    return _text(first), _text(second)


_READERS: dict[Any, Callable[[object], object]] = {
    str: _text,
    int: _whole,
    float: _number,
    Status: lambda value: Status(_text(value)),
    float | None: lambda value: None if value is None else _number(value),
    int | None: lambda value: None if value is None else _whole(value),
    tuple[float, ...]: lambda value: tuple(map(_number, _list(value))),
    frozenset[tuple[str, str]]: lambda value: frozenset(map(_pair, _list(value))),
    Mapping[str, str]: lambda value: {name: _text(each) for name, each in _map(value)},
    Mapping[str, float]: lambda value: {name: _number(each) for name, each in _map(value)},
}
"""How each type that a field may have is read."""
