"""Entries: environments, qualifications and records as plain dictionaries, and as lines of JSON and rows of CSV."""

from __future__ import annotations

import csv
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from autoconv.errors import SchemaError, StoreError
from autoconv.record import Record
from autoconv.store.contract import Qualification

FORMAT = 2
"""What the first line of JSON lines says: files of a higher number are a newer version's."""

MAX_LINE = 200_000
"""Longest line of JSON and longest row of CSV, in bytes."""

FIELDS: dict[str, tuple[str, ...]] = {
    "environment": ("environment", "identity", "circumstances"),
    "qualification": ("environment", "fingerprint", "passed", "barred", "noise", "ceilings", "created"),
    "record": (
        "environment",
        "problem",
        "algorithm",
        "version",
        "parameters",
        "status",
        "samples_us",
        "error",
        "workspace_bytes",
        "peak_bytes",
        "detail",
        "run",
        "created",
        "library",
    ),
}
"""What an entry of each type has."""

SHOWN = ("device", "median_us")
"""Columns of CSV that are there to be read by people and say nothing new."""

_WHOLE = {"version", "workspace_bytes", "peak_bytes"}
_REAL = {"error", "noise", "created"}
_NESTED = {"identity", "circumstances", "passed", "barred", "ceilings", "samples_us"}
_COLUMNS = ("type", *SHOWN, *dict.fromkeys(field for fields in FIELDS.values() for field in fields))

# The limit of the module csv is the whole process's: 131072 characters, past which a cell would end the file.
_CELL_LIMIT = threading.Lock()

Entry = dict[str, Any]
"""`type`, and the FIELDS of that type."""

Place = tuple[str, float]
"""Where in a file an entry stands, in words, and how much of the file is read then, 1 being all."""

Entries = Iterator[tuple[Place, Entry | str]]
"""Entries and where they stand; in place of an entry that cannot be read why."""


def environment_entry(key: str, identity: dict[str, object], circumstances: dict[str, object]) -> Entry:
    """An environment."""
    return {"type": "environment", "environment": key, "identity": identity, "circumstances": circumstances}


def record_entry(record: Record) -> Entry:
    """A record, less its origin, which is nobody else's."""
    return {"type": "record"} | {field: getattr(record, field) for field in FIELDS["record"]}


def qualification_entry(qualification: Qualification) -> Entry:
    """A qualification, less its origin."""
    entry = {"type": "qualification"} | {field: getattr(qualification, field) for field in FIELDS["qualification"]}
    return entry | {"passed": sorted(qualification.passed)}


def write_lines(entries: Iterable[Entry], out: IO[str]) -> None:
    """Write one object a line; an infinite error, for which JSON has no number, is the text "inf"."""
    out.write(json.dumps({"type": "autoconv", "format": FORMAT}) + "\n")
    for entry in entries:
        if entry["type"] == "record" and entry["error"] is not None and math.isinf(entry["error"]):
            entry["error"] = "inf"
        out.write(json.dumps(entry, allow_nan=False) + "\n")


def write_table(entries: Iterable[Entry], out: IO[str]) -> None:
    """Write a row each, after one with the names of the columns."""
    writer = csv.DictWriter(out, _COLUMNS)
    writer.writeheader()
    devices: dict[str, object] = {}
    for entry in entries:
        if entry["type"] == "environment":
            devices[entry["environment"]] = entry["identity"].get("device", "")
        row = {name: json.dumps(value) if name in _NESTED else value for name, value in entry.items()}
        row["device"] = devices.get(entry["environment"], "")
        samples = sorted(entry.get("samples_us", ()))
        if samples:
            row["median_us"] = (samples[(len(samples) - 1) // 2] + samples[len(samples) // 2]) / 2
        writer.writerow(row)


def read_lines(file: Path) -> Entries:
    """The entries of JSON lines.

    Raises:
        SchemaError: a newer version wrote the file.
        OSError: it cannot be read.
    """
    for place, text in _texts(file):
        yield place, _of_line(text, file) if text is not None else f"a line of over {MAX_LINE} bytes, or no UTF-8"


def _of_line(text: str, file: Path) -> Entry | str:
    try:
        entry = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(entry, dict):
        return "no JSON object"
    if entry.get("type") == "autoconv":
        number = entry.get("format")
        if not isinstance(number, int) or number > FORMAT:
            msg = (
                f"{file} was written by a newer autoconv (format {number!r}, this one knows {FORMAT}): update autoconv"
            )
            raise SchemaError(msg)
        return {"type": "autoconv"}
    if entry.get("type") == "environment" and "id" in entry:  # as the first format had it
        entry["environment"] = entry.pop("id")
    if entry.get("error") == "inf":
        entry["error"] = math.inf
    return entry


def _no_constant(name: str) -> None:
    msg = f"{name} is no JSON"
    raise ValueError(msg)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def read_table(file: Path) -> Entries:
    """The entries of a CSV file.

    Raises:
        SchemaError: it is no table of ours, or has a column that only a newer version knows.
        StoreError: a row is not closed, or longer than `MAX_LINE`; what follows cannot be told from it.
        OSError: it cannot be read.
    """
    texts = _Rows(file)
    reader = csv.reader(texts, strict=True)
    try:
        header = _next_row(reader) or []
        header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]  # a spreadsheet's mark of UTF-8
        if "type" not in header or len(set(header)) < len(header):
            msg = f"{file} is no table of autoconv: its first row names no column `type`, or one twice"
            raise SchemaError(msg)
        unknown = [name for name in header if name not in _COLUMNS]
        if unknown:
            msg = f"{file} has columns that this version does not know, {', '.join(map(repr, unknown))[:200]}"
            raise SchemaError(msg)
        readers, kind_at = _readers(header), header.index("type")
        while (row := _next_row(reader)) is not None:
            texts.begin_row()
            if row:
                yield texts.place, _of_row(len(header), kind_at, readers, row)
    except csv.Error as error:
        msg = f"cannot read {file} from {texts.place[0]} on: {error}"
        raise StoreError(msg) from error


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, with cells as long as a row may be; None after the last."""
    with _CELL_LIMIT:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, MAX_LINE))
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _readers(header: list[str]) -> dict[str, list[tuple[str, int, Callable[[str], Any]]]]:
    """By type of entry: its fields that the table has, in which column, and how a cell is read."""
    return {
        kind: [(field, header.index(field), _reader(field)) for field in fields if field in header]
        for kind, fields in FIELDS.items()
    }


def _reader(field: str) -> Callable[[str], Any]:
    if field in _NESTED:
        return _DECODER.decode
    if field in _WHOLE:
        return lambda text: int(text) if text else None
    if field in _REAL:
        return lambda text: float(text) if text else None
    return str


def _of_row(
    width: int, kind_at: int, readers: dict[str, list[tuple[str, int, Callable[[str], Any]]]], row: list[str]
) -> Entry | str:
    if len(row) != width:
        return "another number of cells than of columns"
    kind = row[kind_at]
    try:
        entry: Entry = {field: read(row[column]) for field, column, read in readers.get(kind, ())}
    except (ValueError, RecursionError):
        return "a cell that is no number or no JSON"
    entry["type"] = kind
    return entry


class _Rows:
    """A file's lines for a reader of CSV, which takes several for a row; raises csv.Error where there is no end."""

    def __init__(self, file: Path) -> None:
        self._texts = _texts(file)
        self._length = 0
        self.place: Place = ("line 1", 0.0)

    def begin_row(self) -> None:
        """The lines so far were rows."""
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.place, text = next(self._texts)
        self._length += len(text or "")
        if text is None or self._length > MAX_LINE:
            msg = f"a row of over {MAX_LINE} bytes, or no UTF-8"
            raise csv.Error(msg)
        return text


def _texts(file: Path) -> Iterator[tuple[Place, str | None]]:
    """Lines and their places; None for one that is too long or no UTF-8."""
    size, read = max(1, file.stat().st_size), 0
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE + 1):
            number, read, whole = number + 1, read + len(line), len(line) <= MAX_LINE
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = lines.readline(MAX_LINE + 1)
                read += len(line)
            try:
                text = line.decode() if whole else None
            except UnicodeDecodeError:
                text = None
            yield (f"line {number}", min(1.0, read / size)), text
