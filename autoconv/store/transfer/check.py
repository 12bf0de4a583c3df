"""Checks: what of an entry that somebody else wrote is let in."""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from autoconv.problem import Problem
from autoconv.record import MAX_DETAIL, Record, Status, environment_id
from autoconv.store import rows
from autoconv.store.contract import Qualification
from autoconv.store.transfer.entries import FIELDS, Entry
from autoconv.store.transfer.scrub import OBEYED_IN_PROSE

MAX_NAME = 500
"""Longest algorithm, parameters, run, library and fingerprint of one algorithm, in characters."""

MAX_OBJECT = 20_000
"""Longest identity, circumstances and other JSON of an entry, in characters; longest fingerprint as well."""

MAX_AHEAD_S = 86_400.0
"""How far another machine's clock may be ahead, in seconds."""

NAMED = ("backend", "device", "mlx")
"""What the identity of an environment says at least, each a text."""

MAX_TIME_US = 1e12
"""Longest sample: eleven days."""

# What terminals obey; messages may have lines and tabs.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f]")
_INT64 = 2**63
_STATUSES = {status.value: status for status in Status}


class RefusedError(ValueError):
    """An entry is not let in.

    Attributes:
        reason: Why, in the same words for all such entries.
        example: What stands there.
    """

    def __init__(self, reason: str, example: object = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.example = example


class Checker:
    """Checks the entries of one file, which may refer to its earlier ones.

    Args:
        known: Names of the algorithms that there are.
        origin: What its records get for one.
    """

    def __init__(self, known: Collection[str], origin: str) -> None:
        self._known = frozenset(known)
        self._origin = origin
        self._latest = time.time() + MAX_AHEAD_S
        self._refused: set[object] = set()

    def environment(self, entry: Entry) -> tuple[str, str, str]:
        """An environment's id, identity and circumstances, those two as JSON texts.

        Raises:
            RefusedError: its id is not that of its identity, that does not say what device it is, or one of the objects
                is none or too long. Records of an environment that was refused are refused as well.
        """
        key = entry.get("environment")
        try:
            _check_fields(entry)
            texts = _json(entry["identity"]), _json(entry["circumstances"])
            if key != environment_id(entry["identity"]):
                reason = "an environment whose id is not that of its identity"
                raise RefusedError(reason, key)
            if not all(isinstance(entry["identity"].get(name), str) for name in NAMED):
                reason = f"an environment without the texts {', '.join(NAMED)}"
                raise RefusedError(reason, key)
        except RefusedError:
            if isinstance(key, str):
                self._refused.add(key)
            raise
        return key, *texts

    def record(self, entry: Entry) -> Record:
        """The record.

        Raises:
            RefusedError: it is of no algorithm or problem that there is, or a field is missing, too long, of another
                type or impossible.
        """
        _check_fields(entry)
        algorithm, problem, status = entry["algorithm"], entry["problem"], entry["status"]
        if not isinstance(algorithm, str) or algorithm not in self._known:
            reason = "an unknown algorithm"
            raise RefusedError(reason, algorithm)
        if not isinstance(problem, str) or problem_of(problem) is None:
            reason = "a problem that is none"
            raise RefusedError(reason, problem)
        if not isinstance(status, str) or status not in _STATUSES:
            reason = "an unknown status"
            raise RefusedError(reason, status)
        return Record(
            problem,
            self._environment(entry),
            algorithm,
            _whole(entry["version"]),
            _text(entry["parameters"]),
            _STATUSES[status],
            _samples(entry["samples_us"]),
            None if entry["error"] is None else _number(entry["error"], math.inf),
            None if entry["workspace_bytes"] is None else _whole(entry["workspace_bytes"]),
            None if entry["peak_bytes"] is None else _whole(entry["peak_bytes"]),
            _text(entry["detail"], MAX_DETAIL, prose=True),
            _text(entry["run"]),
            self._moment(entry["created"]),
            _text(entry["library"]),
            self._origin,
        )

    def qualification(self, entry: Entry) -> Qualification:
        """The qualification.

        Raises:
            RefusedError: a field is missing, too long, of another type or impossible.
        """
        _check_fields(entry)
        fingerprint = _text(entry["fingerprint"], MAX_OBJECT)
        noise, created = _number(entry["noise"]), self._moment(entry["created"])
        texts = _json(entry["passed"], list), _json(entry["barred"], prose=True), _json(entry["ceilings"])
        row = (*texts[:2], noise, texts[2], created)
        found = rows.qualification_of(self._environment(entry), fingerprint, "", row)
        if found is None:
            reason = "a qualification that cannot be understood"
            raise RefusedError(reason, fingerprint)
        for value in found.ceilings.values():
            _number(value)
        return found

    def _moment(self, value: object) -> float:
        """Seconds since 1970; one to come would pass for newer than all that is ever measured."""
        moment = _number(value)
        if moment > self._latest:
            reason = "a moment to come"
            raise RefusedError(reason, value)
        return moment

    def _environment(self, entry: Entry) -> str:
        key = entry["environment"]
        if not isinstance(key, str) or len(key) != 16 or not set(key) <= set("0123456789abcdef"):
            reason = "an environment's id that is none"
            raise RefusedError(reason, key)
        if key in self._refused:
            reason = "an environment that was refused"
            raise RefusedError(reason, key)
        return key


@functools.lru_cache(maxsize=4096)
def problem_of(key: str) -> Problem | None:
    """The problem with this key; those of one batch are asked for again when it is written."""
    return rows.problem_of(key) if len(key) <= MAX_NAME else None


def _check_fields(entry: Entry) -> None:
    fields = FIELDS[entry["type"]]
    missing = [field for field in fields if field not in entry]
    if missing:
        reason = "a missing field"
        raise RefusedError(reason, missing[0])
    if len(entry) > len(fields) + 1:
        reason = "a field that this version does not know"
        raise RefusedError(reason, next(name for name in entry if name not in {"type", *fields}))


def _text(value: object, most: int = MAX_NAME, *, prose: bool = False) -> str:
    if not isinstance(value, str):
        reason = "a text that is none"
        raise RefusedError(reason, value)
    if len(value) > most:
        reason = "a text that is too long"
        raise RefusedError(reason, value)
    if (OBEYED_IN_PROSE if prose else _OBEYED).search(value):
        reason = "a text with control characters"
        raise RefusedError(reason, value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            reason = "a text that is none"
            raise RefusedError(reason, value) from None
    return value


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < _INT64:
        reason = "an impossible number"
        raise RefusedError(reason, value)
    return value


def _number(value: object, most: float = math.nextafter(math.inf, 0)) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= float(value) <= most:
            return float(value)
    except OverflowError:
        pass  # so it is impossible as well
    reason = "an impossible number"
    raise RefusedError(reason, value)


def _samples(value: object) -> tuple[float, ...]:
    reason = "impossible samples"
    try:
        if isinstance(value, str):  # from a database
            samples = rows.samples_of(value)
        elif isinstance(value, list):
            samples = tuple(value if set(map(type, value)) == {float} else map(_number, value))
        else:
            raise RefusedError(reason, value)
    except (ValueError, TypeError, OverflowError, RecursionError, StopIteration):
        raise RefusedError(reason, value) from None
    # No sum with NaN among them is within the bound.
    if len(samples) > rows.MAX_SAMPLES or (
        samples
        and not (min(samples) > 0 and max(samples) <= MAX_TIME_US and sum(samples) <= rows.MAX_SAMPLES * MAX_TIME_US)
    ):
        raise RefusedError(reason, value)
    return samples


def _json(value: Any, of: type = Mapping, *, prose: bool = False) -> str:
    """A value as JSON text that encodes, or the text itself; its order stays."""
    if not isinstance(value, of):
        reason = "an object that is none"
        raise RefusedError(reason, value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        reason = "an object that is none"
        raise RefusedError(reason, "") from None
    if len(text) > MAX_OBJECT:
        reason = "an object that is too long"
        raise RefusedError(reason, text)
    for each in _texts_in(value):
        _text(each, MAX_OBJECT, prose=prose)
    return text


def _texts_in(value: object) -> Iterator[str]:
    """All texts and names within an object, however deep."""
    rest = [value]
    while rest:
        found = rest.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            rest += [*found, *found.values()]
        elif isinstance(found, list):
            rest += found
