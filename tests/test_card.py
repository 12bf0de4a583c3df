"""The card of a database: what it counts, and what it is worth."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from autoconv.cli import main
from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id
from autoconv.report import card
from autoconv.store import MemoryStore, Qualification, Store, open_store
from autoconv.store.shipped import shipped_folder
from autoconv.sweep import packaged_workloads, read_workload

IDENTITY: dict[str, object] = {"backend": "cuda", "device": "a GPU", "architecture": "sm_90", "mlx": "1.2.3"}
HERE = environment_id(IDENTITY)
RANDOM = Problem.parse((1, 3, 5, 7, 8), (8, 3, 3, 3, 8))
LAYERS = read_workload(packaged_workloads()["svd_unet"])


def record(problem: Problem, name: str, us: float, status: Status = Status.OK) -> Record:
    times = (us,) * 6 if status is Status.OK else ()
    return Record(problem.key, HERE, name, 1, "", status, times, 1e-7, created=86400.0, library="0.1.0")


def add(store: Store, problem: Problem, native_us: float, turned_us: float) -> None:
    store.add(problem, [record(problem, "native", native_us), record(problem, "turned_kernel", turned_us)])


@pytest.fixture
def store() -> Store:
    found = MemoryStore()
    found.add_environment(HERE, IDENTITY, {"driver": "580.1", "python": "3.12"})
    return found


def test_gains_are_weighted_by_what_a_pass_calls_and_split_by_network(store: Store) -> None:
    first, second = LAYERS[:2]
    add(store, first.problem, 1000.0, 500.0)
    add(store, second.problem, 100.0, 200.0)
    add(store, RANDOM, 30.0, 10.0)
    (found,) = card.cards(store)
    counts = [sum(la.count for la in LAYERS if la.problem == each.problem) for each in (first, second)]
    before, after = counts[0] * 1000 + counts[1] * 100, counts[0] * 500 + counts[1] * 100
    network = found["by_network"][first.network]
    assert network["problems"] == 2
    assert network["weighted"] == pytest.approx(before / after)
    assert network["geometric"] == pytest.approx(2**0.5)
    assert network["most"] == pytest.approx(2.0)
    assert found["by_network"][card.OTHERS]["most"] == pytest.approx(3.0)
    assert list(found["by_network"])[-1] == card.OTHERS
    assert found["winners"] == {"turned_kernel": 2, "native": 1}
    assert (found["problems"], found["records"], found["samples"]) == (3, 6, 36)
    assert found["measured"] == ["1970-01-02"] * 2


def test_a_network_s_layer_counts_in_any_dtype(store: Store) -> None:
    half = replace(LAYERS[0].problem, dtype="float16")
    add(store, half, 10.0, 9.0)
    (found,) = card.cards(store)
    assert set(found["by_network"]) == {LAYERS[0].network}
    assert set(found["by_dtype"]) == {"float16, forward"}


def test_failures_are_counted_and_what_native_cannot(store: Store) -> None:
    rows = [record(RANDOM, "native", 0.0, Status.OUT_OF_MEMORY), record(RANDOM, "turned_kernel", 5.0)]
    store.add(RANDOM, [*rows, record(RANDOM, "im2col", 0.0, Status.CRASHED)])
    (found,) = card.cards(store)
    assert found["native_cannot"] == 1
    assert found["failures"] == {"im2col": {"crashed": 1}, "native": {"out_of_memory": 1}}
    assert found["by_network"][card.OTHERS] == {"problems": 1, "weighted": None, "geometric": None, "most": None}


def test_winners_are_held_to_the_device_s_noise(store: Store) -> None:
    add(store, RANDOM, 10.5, 10.0)
    assert card.cards(store)[0]["winners"] == {"turned_kernel": 1}
    store.qualify(Qualification(HERE, "native@1", noise=0.1, created=1.0))
    assert card.cards(store)[0]["winners"] == {"native": 1}


def test_an_environment_without_records_has_no_card(store: Store) -> None:
    assert card.cards(store) == []


def test_the_page_says_device_versions_and_gains_and_nothing_of_python(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "gpu.db"
    path.write_bytes(b"x" * 3000)
    add(store, RANDOM, 30.0, 10.0)
    text = card.card_text(path, card.cards(store))
    for words in ("# gpu.db", "a GPU (cuda, sm_90)", "1.2.3", "driver 580.1", "3000 bytes a problem", "3.00x"):
        assert words in text
    assert "python" not in text


def test_an_environment_that_tells_nothing_of_itself_has_a_card(tmp_path: Path) -> None:
    """Older versions imported any identity and any moment."""
    path, store = tmp_path / "old.db", MemoryStore()
    path.touch()
    here = environment_id({"device": "a GPU"})
    store.add_environment(here, {"device": "a GPU"}, {})
    store.add(RANDOM, [replace(record(RANDOM, "native", 30.0), environment=here, created=1e300)])
    text = card.card_text(path, card.cards(store))
    assert "| device | a GPU (unknown, unknown) |" in text
    assert "| MLX | unknown |" in text
    assert "| measured | unknown |" in text


def test_the_command_writes_it_beside_an_export(tmp_path: Path) -> None:
    source, out = tmp_path / "mine.db", tmp_path / "out.db"
    filled = open_store(source)
    filled.add_environment(HERE, IDENTITY, {})
    add(filled, RANDOM, 30.0, 10.0)
    filled.close()
    done = CliRunner().invoke(main, ["export", str(out), "--card", "--database", str(source)])
    assert done.exit_code == 0, done.output
    assert "3.00x" in (tmp_path / "out.md").read_text()
    refused = CliRunner().invoke(main, ["export", str(tmp_path / "a.csv"), "--card", "--database", str(source)])
    assert refused.exit_code == 2
    assert not (tmp_path / "a.csv").exists()
    with pytest.raises(StoreError):
        card.write(tmp_path / "none.db")


def test_the_cards_of_this_checkout_are_those_of_their_databases() -> None:
    folder = shipped_folder()
    assert folder is not None
    for path in sorted(folder.glob("*.db")):
        store = open_store(path, readonly=True, immutable=True)
        made = card.card_text(path, card.cards(store))
        store.close()
        assert path.with_suffix(".md").read_text() == made
        assert not re.search(r"/(home|root|tmp|work|Users)/", made)
