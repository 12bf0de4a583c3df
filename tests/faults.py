"""Faults: convolutions whose results are checked, a user who may not do everything, and ways to spoil a database."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference

import autoconv
from autoconv import measurer, open_stores
from autoconv.problem import Problem
from autoconv.store import Qualification, open_store
from autoconv.tuning.qualification import Qualifier

NOBODY = 65534
"""A user without rights on any folder but their own."""


@dataclass(frozen=True)
class Told:
    """What convolutions said.

    Attributes:
        warnings: In the order in which they came.
    """

    warnings: Sequence[str]

    @property
    def only(self) -> str:
        """The one warning."""
        assert len(self.warnings) == 1, self.warnings
        return self.warnings[0]


def problem(width: int) -> Problem:
    """A convolution as small as they come; every width is another shape."""
    return Problem.parse((1, 3, 3, width, 2), (3, 2, 2, 2, 2), padding=(1, 0, 1))


def convolve(*widths: int, policy: str = "measure") -> Told:
    """Call convolutions, every other one as MLX's own that is patched; each must be right, and none may raise."""
    with warnings.catch_warnings(record=True) as caught, autoconv.using(policy=policy):
        warnings.simplefilter("always")
        for place, width in enumerate(widths):
            posed = problem(width)
            chance = np.random.default_rng(width)
            input, weight = (chance.standard_normal(shape) for shape in (posed.input_shape, posed.weight_shape))
            operands = mx.array(input, mx.float32), mx.array(weight, mx.float32)
            with autoconv.patch() if place % 2 else contextlib.nullcontext():
                found = (mx if place % 2 else autoconv).conv3d(*operands, padding=(1, 0, 1))
            np.testing.assert_allclose(np.array(found), reference.convolve(input, weight, posed), rtol=1e-3, atol=1e-3)
    return Told([str(w.message) for w in caught])


def recall_first_run(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the device's first run be over at once: what it found stands in a database."""
    with contextlib.closing(open_store(database, readonly=True)) as store:
        known = store.qualifications()[0]

    class Recalled(Qualifier):
        def advance(self, limit_s: float = math.inf) -> Qualification:
            return known

    monkeypatch.setattr(measurer, "Qualifier", Recalled)


@contextlib.contextmanager
def as_nobody(*paths: Path) -> Iterator[None]:
    """Without root's rights, which would let it write everywhere; what is named belongs to this user then."""
    if os.geteuid() != 0:
        yield
        return
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """This process may have no more than so much of something."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def once_measured(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something at the worst moment: when something has been measured, and not been kept yet."""
    keep = open_stores.OpenStores.keep

    def spoiled(self: open_stores.OpenStores, *arguments: object, **options: bool) -> None:
        do()
        keep(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(open_stores.OpenStores, "keep", spoiled)


def flip(file: Path, seed: int, flips: int = 40, first: int = 0) -> None:
    """Change bytes of a file."""
    chance, content = np.random.default_rng(seed), bytearray(file.read_bytes())
    for place in chance.integers(first, len(content), flips):
        content[place] ^= 1 << int(chance.integers(8))
    file.write_bytes(content)


def aside(file: Path) -> list[str]:
    """Names of what was put aside beside a database, less the files that SQLite keeps beside those."""
    found = (path.name for path in file.parent.glob(f"{file.name}.damaged-*"))
    return sorted(name for name in found if not name.endswith(("-wal", "-shm", "-journal")))


HOLDER = """
import sqlite3, sys
writer = sqlite3.connect(sys.argv[1], isolation_level=None)
if sys.argv[2] == "EXCLUSIVE":
    writer.execute("PRAGMA journal_mode = DELETE")
writer.execute("BEGIN " + sys.argv[2])
print("held", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def held(file: Path, how: str) -> Iterator[None]:
    """Another process holds the database, until the block ends."""
    me = os.geteuid()
    os.seteuid(os.getuid())  # whose rights it may take to start this Python
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file), how], stdin=-1, stdout=-1, text=True)
    os.seteuid(me)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.communicate("enough\n")
