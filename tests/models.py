"""Small databases and models that are trained in a second or two."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autoconv.environment import Environment
from autoconv.model import fitting, training
from autoconv.model.card import Card
from autoconv.store import open_store

DATABASE = Path(__file__).parents[1] / "tuning_db" / "amd_epyc_genoa_reference_blas.db"
PROBLEMS = 160
FAULT = Card.fault


def identity() -> dict[str, str | int]:
    """That of the one environment in it."""
    with closing(open_store(DATABASE, readonly=True, immutable=True)) as store:
        ((found, _),) = store.environments().values()
    return found  # type: ignore[return-value]


def there() -> Environment:
    """That environment."""
    return Environment(identity(), {}, memory_bytes=64 * 10**9)


def part(path: Path, start: int = 0, count: int = PROBLEMS, *, version: int | None = None) -> Path:
    """A database with so many of its problems."""
    with closing(open_store(DATABASE, readonly=True, immutable=True)) as store, closing(open_store(path)) as mine:
        for key, (found, circumstances) in store.environments().items():
            mine.add_environment(key, found, circumstances)
        for qualification in store.qualifications():
            mine.qualify(qualification)
        for problem, records in itertools.islice(store.all_records(), start, start + count):
            mine.add(problem, [replace(r, version=version or r.version) for r in records])
    return path


def quick(patch: pytest.MonkeyPatch) -> None:
    """Train fast and badly, and let no card that there is be too bad."""
    for options in (fitting.RATIO, fitting.DOUBT, fitting.RISK):
        patch.setitem(options, "max_iter", 6)
    patch.setattr(fitting, "BAGS", 1)
    patch.setattr(training, "FOLDS", 3)
    lenient(patch)


def lenient(patch: pytest.MonkeyPatch) -> None:
    """Let no card that there is be too bad."""
    patch.setattr(Card, "fault", lambda self: "" if self.judgements else FAULT(self))
