"""Columns: values of one type side by side, and the bytes in which a page takes them along.

The bytes are gzip of a number of four bytes, the length of a JSON text; of that text, which names every column with its
type, place and length and holds what is no column; and of the columns, little-endian, each at a multiple of eight, so
that a browser reads them as typed arrays without a copy.
"""

from __future__ import annotations

import gzip
import json
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

TYPES = {"B": "Uint8Array", "H": "Uint16Array", "I": "Uint32Array", "f": "Float32Array", "d": "Float64Array"}
"""JavaScript's names of the types that a column may have."""

NONE = float("nan")
"""Stands for a number that is not known."""

_ALIGNED = 8
_KEPT_BITS = np.uint32(0xFFFFFF00)
_HALF = np.uint32(0x80)


class Words:
    """Texts that repeat: each is kept once, and columns hold its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text, the next one where it is new."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """All texts, each at the place that is its number."""
        return list(self._numbers)


class Columns:
    """Columns of one table, filled row by row.

    Args:
        types: The type of each column by its name (see `TYPES`).
    """

    def __init__(self, types: Mapping[str, str]) -> None:
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in types.items()}

    def add(self, row: Mapping[str, float | None]) -> None:
        """Add a row, with a value for every column; None, of a column of floats, is a number that is not known."""
        for name, column in self._columns.items():
            value = row[name]
            column.append(NONE if value is None else value)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(next(iter(self._columns.values())))

    @property
    def arrays(self) -> Mapping[str, array[Any]]:
        """The columns by name."""
        return self._columns


def pack(tables: Mapping[str, Columns], meta: Mapping[str, Any]) -> bytes:
    """The bytes of all columns, each named `table.column`, and of what is no column.

    Of a float of 32 bits 15 of the mantissa are kept, which is a 60,000th of it: what nobody reads packs badly.
    """
    described: dict[str, list[Any]] = {}
    parts: list[bytes] = []
    place = 0
    for table, columns in tables.items():
        for name, column in columns.arrays.items():
            data = _bytes(column)
            described[f"{table}.{name}"] = [TYPES[column.typecode], place, len(column)]
            data += bytes(-len(data) % _ALIGNED)
            parts.append(data)
            place += len(data)
    head = json.dumps({"columns": described, **meta}, allow_nan=False, ensure_ascii=True).encode()
    head += b" " * (-(len(head) + 4) % _ALIGNED)
    # No time of day in it: the same measurements make the same bytes.
    return gzip.compress(b"".join([len(head).to_bytes(4, "little"), head, *parts]), compresslevel=6, mtime=0)


def _bytes(column: array[Any]) -> bytes:
    found = np.array(column)
    if column.typecode == "f":
        found = (found.view(np.uint32) + _HALF) & _KEPT_BITS
    return found.astype(found.dtype.newbyteorder("<")).tobytes()
