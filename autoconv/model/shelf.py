"""The shelf: where cost models are kept, and which files are read.

A model is two files: `NAME.npz`, plain arrays by which it serves, and `NAME.joblib`, the fitted estimators that it was
made of. A user's own lies beside the database, whose owner trusts it by its SHA-256 (`store.contract.ModelRecord`); the
estimators are loaded, which runs whatever the file says, only if their SHA-256 is the one that a trusted model names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoconv import plain_file
from autoconv.errors import ModelError
from autoconv.model.cost_model import MOST_BYTES, CostModel, pack, unpack

SUFFIX = ".npz"
"""Of a model that serves."""

ESTIMATORS = ".joblib"
"""Of the fitted estimators that belong to it."""


@dataclass(frozen=True)
class Kept:
    """A model that was written.

    Attributes:
        model: The model, which names its estimators.
        path: Its file.
        sha256: Of that.
    """

    model: CostModel
    path: Path
    sha256: str


def own_path(database: Path, backend: str) -> Path:
    """Where the model that belongs to a database lies: `autoconv.cuda.npz` beside `autoconv.db`."""
    return database.with_name(f"{database.stem}.{backend}{SUFFIX}")


def keep(model: CostModel, estimators: Mapping[str, Any], path: Path, *, private: bool) -> Kept:
    """Write a model's two files, each whole or not at all; its estimators first, as the model names their SHA-256.

    Args:
        model: The model.
        estimators: Its estimators, each a `fitting.Grown`, by name.
        path: The model's file, which is replaced if it exists.
        private: Whether they are for the user alone.

    Raises:
        ModelError: the suffix is another, or a file cannot be written.
    """
    if path.suffix != SUFFIX:
        msg = f"a model is a file {SUFFIX}, not {path.name}"
        raise ModelError(msg)
    import joblib

    dumped = io.BytesIO()
    joblib.dump({name: tuple(grown.estimators) for name, grown in estimators.items()}, dumped, compress=3)
    fitted = dumped.getvalue()
    kept = replace(model, origin=replace(model.origin, estimators=_sha256(fitted)), name=path.name)
    data = pack(kept)
    write(path.with_suffix(ESTIMATORS), fitted, private=private)
    write(path, data, private=private)
    return Kept(kept, path, _sha256(data))


def write(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all, which may be for the user alone.

    Raises:
        ModelError: it cannot be written.
    """
    with plain_file.refusing(path, ModelError):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain_file.write(path, data, private=private)


def load(path: Path, sha256: str | None = None) -> CostModel:
    """The model of a file, which is not looked into unless it is the very file of that SHA-256, if one is given.

    Raises:
        ModelError: there is none, none that can be read, or another.
    """
    data = _read(path)
    if sha256 is not None and _sha256(data) != sha256:
        msg = f"{path.name} is not the file that was trained here: train it anew by autoconv train"
        raise ModelError(msg)
    return _unpacked(data, path.name)


def estimators_of(model: CostModel, path: Path) -> Mapping[str, tuple[Any, ...]]:
    """The fitted estimators of a trusted model, by name; their file is not loaded unless the model names its SHA-256.

    Args:
        model: The model, which somebody has reason to trust: loading its estimators runs what they say.
        path: The model's file, beside which they lie.

    Raises:
        ModelError: there are none, or others.
    """
    beside = path.with_suffix(ESTIMATORS)
    data = _read(beside, what="file of estimators")
    if not model.origin.estimators or _sha256(data) != model.origin.estimators:
        msg = f"{beside.name} is not loaded: it is not the file that {path.name} names"
        raise ModelError(msg)
    import joblib

    found: Mapping[str, tuple[Any, ...]] = joblib.load(io.BytesIO(data))
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"{path.name} cannot be read: {error.strerror or error}"
        raise ModelError(msg) from error


@lru_cache(maxsize=4)
def _unpacked(data: bytes, name: str) -> CostModel:
    """A model is asked for twice by a process that is new to a device: before and after its ceilings are known."""
    return unpack(data, name)


def _read(path: Path, what: str = "model") -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            msg = f"{path.name} is too large for a {what}"
            raise ModelError(msg)
        return path.read_bytes()
    except OSError as error:
        msg = f"{path.name} cannot be read: {error.strerror or error}"
        raise ModelError(msg) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
