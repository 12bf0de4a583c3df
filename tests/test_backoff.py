"""What failed is left alone for a while, twice as long each time, up to a minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from replay import VirtualClock

from autoconv import settings
from autoconv.backoff import Backoff
from autoconv.errors import AutoconvWarning, StoreError
from autoconv.open_stores import OpenStores
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Store
from autoconv.warn import WarnOnce

SETTINGS = settings.from_environment({})
PROBLEM = Problem.parse((1, 4, 5, 5, 3), (2, 3, 3, 3, 3))
RECORD = Record(PROBLEM.key, "here", "native", 1, "", Status.OK)


def test_what_did_not_fail_may_be_tried_at_any_time() -> None:
    assert Backoff().is_over(-1e9)
    assert Backoff().is_over(0.0)


def test_each_failure_makes_it_twice_as_long_up_to_a_minute() -> None:
    backoff, waited = Backoff(), []
    for now in range(100, 900, 100):
        backoff = backoff.failed(now)
        waited.append(backoff.until - now)
        assert not backoff.is_over(backoff.until - 0.01)
        assert backoff.is_over(backoff.until)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def warn() -> Iterator[WarnOnce]:
    with pytest.warns(AutoconvWarning):
        yield WarnOnce()


def tries(clock: VirtualClock, stores: OpenStores, made: list[float], seconds: int) -> list[float]:
    """When something was tried in so many seconds of a call each, counted from now."""
    start, before = clock(), len(made)
    for _ in range(seconds):
        stores.get(SETTINGS)
        clock.pass_(1.0)
    return [at - start for at in made[before:]]


def test_a_database_that_cannot_be_opened_is_tried_ever_more_seldom(clock: VirtualClock, warn: WarnOnce) -> None:
    made: list[float] = []

    def opener(_path: Path, _readonly: bool) -> Store:
        made.append(clock())
        msg = "it is locked"
        raise StoreError(msg)

    stores = OpenStores(opener, warn, clock)
    assert tries(clock, stores, made, 200) == pytest.approx([0, 1, 3, 7, 15, 31, 63, 123, 183])


def test_a_database_that_could_be_written_is_soon_tried_again_when_it_fails_anew(
    clock: VirtualClock, warn: WarnOnce
) -> None:
    made: list[float] = []

    class Failing(MemoryStore):
        """It cannot be written while it is full."""

        full = True

        def add(self, problem: Problem, records: Sequence[Record]) -> None:
            made.append(clock())
            if self.full:
                msg = "the disk is full"
                raise StoreError(msg)

    store = Failing()
    stores = OpenStores(lambda _path, _readonly: store, warn, clock)
    for _ in range(2):
        store.full = True
        stores.keep(SETTINGS, PROBLEM, [RECORD], strict=False)
        assert tries(clock, stores, made, 10) == pytest.approx([1, 3, 7])
        store.full = False
        clock.pass_(60.0)
        stores.get(SETTINGS)
