"""Rows: how problems, records, environments and qualifications are written down and read back.

Reading trusts nothing: a file may have been edited by hand, damaged, or written by a newer version. What
cannot be understood is None and a line in the debug log, so that one bad row never costs the rows beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoconv.problem import Problem
from autoconv.record import MAX_DETAIL, Record, Status
from autoconv.store.contract import ModelRecord, Qualification

_log = logging.getLogger(__name__)

RUN_COLUMNS = ("key", "created", "library")
"""Columns of the runs table that `record_of` reads, in its order."""

RESULT_COLUMNS = ("status", "samples_us", "error", "workspace_bytes", "peak_bytes", "detail")
"""Columns of the records table that `record_of` reads, in its order."""

QUALIFICATION_COLUMNS = ("passed", "barred", "noise", "ceilings", "created")
"""Columns of the qualifications table that `qualification_of` reads, in its order."""

MODEL_COLUMNS = ("backend", "file", "sha256", "environment", "problems", "created")
"""Columns of the models table that `model_of` reads, in its order."""

MAX_SAMPLES = 2_000
"""Most samples of a record, whose tuner takes some twenty; every one is compared with every one of another."""

Candidate = tuple[str, int, str]
"""Algorithm, version and parameters."""

_TYPES = frozenset(
    (str, float, str, str, str, error, workspace, peak, str)
    for error, workspace, peak in itertools.product((float, type(None)), (int, type(None)), (int, type(None)))
)
_FLOATS = {float}
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # json.loads takes twice as long
_STATUSES = {status.value: status for status in Status}
_UNREADABLE = (ValueError, TypeError, KeyError, OverflowError, RecursionError, StopIteration)
"""What reading JSON or a number that nobody checked can raise; RecursionError for `[[[[...`."""


def checked(problem: Problem, record: Record) -> Record:
    """The record as a store keeps it: plain floats, `detail` cut to MAX_DETAIL characters and encodable.

    Raises:
        ValueError: it is of another problem or has too many samples, a sample is negative or not finite, its error is
            NaN, or `created` is not finite.
    """
    if record.problem != problem.key:
        msg = f"a record of {record.problem!r} cannot be added to {problem.key!r}"
        raise ValueError(msg)
    samples = tuple(map(float, record.samples_us))
    if len(samples) > MAX_SAMPLES:
        msg = f"{len(samples)} samples of {record.candidate} are more than {MAX_SAMPLES}"
        raise ValueError(msg)
    if not all(0 <= sample < math.inf for sample in samples):
        msg = f"samples must be finite and not negative, got {samples} for {record.candidate}"
        raise ValueError(msg)
    error = None if record.error is None else float(record.error)
    if error is not None and math.isnan(error):
        msg = f"the error of {record.candidate} is NaN: a result that is no number has error inf"
        raise ValueError(msg)
    if not math.isfinite(record.created):
        msg = f"created must be finite, got {record.created}"
        raise ValueError(msg)
    plain = type(record.status) is Status and type(record.created) is float and type(record.samples_us) is tuple
    plain = plain and _FLOATS.issuperset(map(type, record.samples_us))
    if plain and len(record.detail) <= MAX_DETAIL and record.detail.isascii() and type(record.error) is type(error):
        return record
    return dataclasses.replace(
        record,
        status=Status(record.status),
        samples_us=samples,
        error=error,
        # Messages of the system may hold bytes that are no text, which Python keeps as lone surrogates.
        detail=record.detail[:MAX_DETAIL].encode(errors="replace").decode(),
        created=float(record.created),
    )


def result_row(record: Record) -> tuple[Any, ...]:
    """RESULT_COLUMNS of a checked record."""
    samples = "[" + ",".join(map(repr, record.samples_us)) + "]"
    return record.status.value, samples, record.error, record.workspace_bytes, record.peak_bytes, record.detail


def record_of(
    environment: str, problem: str, candidate: Candidate | None, origin: str | None, row: tuple[Any, ...]
) -> Record | None:
    """The record of a candidate that RUN_COLUMNS and RESULT_COLUMNS hold, None if they hold none.

    Neither is there one where the candidate or the origin that the row refers to cannot be understood.
    """
    if candidate is None or origin is None or tuple(map(type, row)) not in _TYPES:
        _log.debug("skipped a record of %s: it refers to nothing or a column has another type in %r", problem, row)
        return None
    run, created, library, status, samples, error, workspace, peak, detail = row
    try:
        if not -math.inf < created < math.inf:
            _number(created)
        return Record(
            problem,
            environment,
            *candidate,
            _STATUSES[status],
            samples_of(samples),
            error,
            workspace,
            peak,
            detail,
            run,
            created,
            library,
            origin,
        )
    except _UNREADABLE as reason:
        _log.debug("skipped a record of %s: %r", problem, reason)
        return None


def samples_of(text: str) -> tuple[float, ...]:
    """The samples that a JSON text lists.

    Raises:
        ValueError, RecursionError, StopIteration: it lists none, or one is negative or not finite.
    """
    samples, end = _scan(text, 0)
    if type(samples) is not list or end != len(text) or len(samples) > MAX_SAMPLES:
        msg = "samples are no list, or too long a one"
        raise ValueError(msg)
    if not samples:
        return ()
    if set(map(type, samples)) != _FLOATS:
        samples = [_number(sample) for sample in samples]
    # A sum of finite numbers may be infinite, but no sum with NaN or inf among them is finite.
    if not (min(samples) >= 0 and (sum(samples) < math.inf or all(map(math.isfinite, samples)))):
        msg = "a sample is negative or not finite"
        raise ValueError(msg)
    return tuple(samples)


def problem_row(problem: Problem) -> dict[str, Any]:
    """The row of the problems table: the key says all, the rest is for people and queries."""
    n, d, h, w, c_in = problem.input_shape
    c_out, kd, kh, kw, _ = problem.weight_shape
    return {
        "key": problem.key,
        "kind": problem.kind.value,
        "dtype": problem.dtype,
        "n": n,
        "d": d,
        "h": h,
        "w": w,
        "c_in": c_in,
        "c_out": c_out,
        "kd": kd,
        "kh": kh,
        "kw": kw,
        "groups": problem.groups,
        "gflop": problem.flops / 1e9,
    }


def problem_of(key: object) -> Problem | None:
    """The problem with this key, None if no problem has it."""
    try:
        return Problem.from_key(key)  # type: ignore[arg-type]
    except _UNREADABLE as error:
        _log.debug("skipped a problem: %s", error)
        return None


def one_line(text: str, most: int) -> str:
    """The text as a name: in one line, of so many characters at most, without any that do not print; never empty."""
    printing = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printing.split())[:most].rstrip() or "unnamed"


def json_text(value: Mapping[str, object]) -> str:
    """A mapping as JSON text.

    Raises:
        TypeError: JSON has no such value.
        ValueError: a number is not finite.
    """
    return json.dumps(dict(value), allow_nan=False)


def environment_of(identity: object, circumstances: object) -> tuple[dict[str, object], dict[str, object]] | None:
    """An environment's identity and circumstances from their JSON texts, None where they hold no objects."""
    try:
        return _mapping(identity), _mapping(circumstances)
    except _UNREADABLE as error:
        _log.debug("skipped an environment: %s", error)
        return None


def qualification_row(qualification: Qualification) -> tuple[Any, ...]:
    """QUALIFICATION_COLUMNS of a qualification.

    Raises:
        ValueError: a number is not finite.
    """
    if not (math.isfinite(qualification.noise) and math.isfinite(qualification.created)):
        msg = f"noise and created must be finite, got {qualification.noise} and {qualification.created}"
        raise ValueError(msg)
    return (
        json.dumps(sorted(qualification.passed)),
        json_text(qualification.barred),
        float(qualification.noise),
        json_text(qualification.ceilings),
        float(qualification.created),
    )


def qualification_of(
    environment: str, fingerprint: str, origin: str | None, row: Sequence[Any]
) -> Qualification | None:
    """The qualification that QUALIFICATION_COLUMNS hold, None if they hold none."""
    passed, barred, noise, ceilings, created = row
    try:
        pairs = frozenset((_text(algorithm), _text(dtype)) for algorithm, dtype in json.loads(passed))
        return Qualification(
            environment=_text(environment),
            fingerprint=_text(fingerprint),
            passed=pairs,
            barred=_texts(barred),
            noise=_number(noise),
            ceilings={name: _number(value) for name, value in _mapping(ceilings).items()},
            created=_number(created),
            origin=_text(origin),
        )
    except _UNREADABLE as error:
        _log.debug("skipped a qualification of %s: %s", environment, error)
        return None


def model_row(model: ModelRecord) -> tuple[Any, ...]:
    """MODEL_COLUMNS of a model.

    Raises:
        ValueError: `created` is not finite.
    """
    if not math.isfinite(model.created):
        msg = f"created must be finite, got {model.created}"
        raise ValueError(msg)
    created = float(model.created)
    return model.backend, model.file, model.sha256, model.environment, int(model.problems), created


def model_of(row: Sequence[Any]) -> ModelRecord | None:
    """The model that MODEL_COLUMNS hold, None if they hold none."""
    backend, file, sha256, environment, problems, created = row
    try:
        if type(problems) is not int:
            msg = f"{problems!r} is no count"
            raise TypeError(msg)
        return ModelRecord(
            backend=_text(backend),
            file=_text(file),
            sha256=_text(sha256),
            environment=None if environment is None else _text(environment),
            problems=problems,
            created=_number(created),
        )
    except _UNREADABLE as error:
        _log.debug("skipped a model: %s", error)
        return None


def scrubbed_barred(barred: Any, scrub: Callable[[str], str]) -> str:
    """The `barred` column with every reason scrubbed; no reasons where they cannot be understood."""
    try:
        reasons = _texts(barred)
    except _UNREADABLE as error:
        _log.debug("dropped the reasons of a qualification: %s", error)
        reasons = {}
    return json.dumps({name: scrub(reason) for name, reason in reasons.items()})


def _texts(text: Any) -> dict[str, str]:
    return {name: _text(value) for name, value in _mapping(text).items()}


def _mapping(text: Any) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        msg = f"{text!r} is no JSON object"
        raise TypeError(msg)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = f"{value!r} is no text"
        raise TypeError(msg)
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{value!r} is no finite number"
        raise TypeError(msg)
    return float(value)
