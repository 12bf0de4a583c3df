"""Damaged databases by the thousand: a store raises StoreError and nothing else, a decision raises nothing at all."""

from __future__ import annotations

import runpy
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay import Benches, Run, registry

from autoconv import environment
from autoconv import settings as _settings
from autoconv.dispatch import Dispatcher
from autoconv.errors import AutoconvWarning
from autoconv.store import Qualification, open_store
from autoconv.tuning.qualification import fingerprint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "fuzz_store.py"
FUZZ: dict[str, Any] = runpy.run_path(str(SCRIPT))
REGISTRY = registry("native", "a", "b")
TABLE: dict[str, Run | Exception] = {"native": Run((6e-3,)), "a": Run((3e-3,)), "b": Run((4e-3,))}
CPU = mx.Device(mx.cpu)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small database that knows the device, and how long a problem takes on it."""
    file = tmp_path_factory.mktemp("sound") / "autoconv.db"
    where = environment.of(CPU)
    with closing(open_store(file)) as store:
        store.qualify(Qualification(where.id, fingerprint(REGISTRY)))
        benches = Benches(TABLE)
        made = Dispatcher(REGISTRY, stores=lambda _path, _readonly: store, bench=benches, clock=benches.clock)
        made.decide(FUZZ["PROBLEM"], asked("measure", file), CPU)
    return file.read_bytes()


def asked(policy: str, file: Path) -> _settings.Settings:
    return _settings.with_changes(_settings.from_environment({}), {"policy": policy, "database": file})


def test_of_two_thousand_damaged_databases_none_raises_anything_but_a_store_error() -> None:
    outcomes, bad = FUZZ["fuzz"](2000, seed=1, processes=1)
    assert bad == []
    assert outcomes.total() == 2000
    # Damage of every kind was met, and some that does not matter.
    assert min(outcomes[of] for of in ("read: used", "read: DamagedError", "mend: used", "mend: put aside")) > 0


def test_what_is_no_store_error_is_found_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, _: object) -> None:
        raise KeyError(file.name)

    monkeypatch.setitem(FUZZ["WAYS"], "read", fail)
    _, bad = FUZZ["fuzz"](3, seed=1, processes=1)
    assert bad
    assert "KeyError" in bad[0]


places = st.integers(0, 2**20)
Edit = Callable[[bytearray], None]


def _flip(place: int, bit: int) -> Edit:
    def edit(content: bytearray) -> None:
        if content:
            content[place % len(content)] ^= 1 << bit

    return edit


def _cut(place: int) -> Edit:
    def edit(content: bytearray) -> None:
        if content:
            del content[place % len(content) :]

    return edit


def _splice(source: int, target: int, length: int) -> Edit:
    def edit(content: bytearray) -> None:
        if content:
            source_, target_ = source % len(content), target % len(content)
            content[target_ : target_ + length] = content[source_ : source_ + length]

    return edit


edits = st.lists(
    st.builds(_flip, places, st.integers(0, 7))
    | st.builds(_cut, places)
    | st.builds(_splice, places, places, st.sampled_from((1, 8, 100, 4096))),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, policy=st.sampled_from(("auto", "measure", "predict", "record")))
def test_no_damage_reaches_a_decision(content: bytes, tmp_path: Path, edits: Sequence[Edit], policy: str) -> None:
    file = tmp_path / "fuzzed" / "autoconv.db"
    file.parent.mkdir(exist_ok=True)
    for path in file.parent.iterdir():
        path.unlink()
    damaged = bytearray(content)
    for edit in edits:
        edit(damaged)
    file.write_bytes(damaged)
    benches = Benches(TABLE)
    made = Dispatcher(REGISTRY, bench=benches, clock=benches.clock, shipped=dict)
    made._measurer._qualifications[environment.of(CPU).id] = Qualification(
        environment.of(CPU).id, fingerprint(REGISTRY)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [made.decide(FUZZ[name], asked(policy, file), CPU).candidate for name in ("PROBLEM", "OTHER")]
        made.close()
    assert set(found) <= {"native", "a", "b"}
    assert Counter(w.category for w in caught)[AutoconvWarning] == len(caught) <= 2
    if policy == "measure":
        assert found[1] == "a"


def test_the_script_counts_what_came_of_it() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--openings", "40", "--processes", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("40 openings in ")
    assert sum(int(line.split()[0]) for line in done.stdout.splitlines()[1:]) == 40
