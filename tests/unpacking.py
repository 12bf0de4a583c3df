"""Reads back the columns that a report's page takes along, from the page alone."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"Uint8Array": "<u1", "Uint16Array": "<u2", "Uint32Array": "<u4", "Float32Array": "<f4", "Float64Array": "<f8"}


@dataclass(frozen=True)
class Unpacked:
    meta: dict[str, Any]
    columns: dict[str, Any]

    def column(self, name: str) -> list[Any]:
        found: list[Any] = self.columns[name].tolist()
        return found

    def words(self, column: str, name: str) -> list[str]:
        """The texts whose numbers a column holds."""
        return [self.meta[name][number] for number in self.column(column)]


def unpack(packed: bytes) -> Unpacked:
    data = gzip.decompress(packed)
    length = int.from_bytes(data[:4], "little")
    assert (4 + length) % 8 == 0
    meta = json.loads(data[4 : 4 + length])
    columns = {}
    for name, (type_, place, count) in meta.pop("columns").items():
        assert place % 8 == 0
        columns[name] = np.frombuffer(data, TYPES[type_], count, 4 + length + place)
    return Unpacked(meta, columns)


def unpacked(page: Path) -> Unpacked:
    found = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return unpack(base64.b64decode(found[1]))
