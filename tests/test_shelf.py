"""Where models are kept, which files are read, and which model advises: the reason for each that does not."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import lenient, part, there

from autoconv import environment, ops, settings
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, algorithms
from autoconv.environment import Environment
from autoconv.errors import ModelError
from autoconv.model import advisers, card, learning, shelf, training
from autoconv.model.advisers import adviser_for, ceilings_of
from autoconv.model.cost_model import CostModel, pack, unpack
from autoconv.model.examples import tabulate
from autoconv.store import ModelRecord, open_store
from autoconv.store import shipped as came
from autoconv.store.shipped import shipped_models

CPU = mx.Device(mx.cpu)
SHAPES: tuple[Any, Any] = ((1, 6, 9, 9, 16), (16, 3, 3, 3, 16))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is the device of the database, and no card is too bad."""
    monkeypatch.setitem(environment._environments, repr(CPU), there())
    monkeypatch.setattr(environment, "of", lambda _device: there())
    lenient(monkeypatch)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "shipped"))


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What comes with the package: one database and a model of it."""
    monkeypatch.setattr(came, "shipped_models", lambda backend: [folder / "cpu.npz"] if backend == "cpu" else [])
    monkeypatch.setattr(came, "shipped_files", lambda: [folder / "some.db"])
    return folder


@pytest.fixture
def own(model_folder: Path, tmp_path: Path) -> Path:
    """The user's own database and their model of it, which it trusts."""
    database = Path(shutil.copy(model_folder / "some.db", tmp_path / "autoconv.db"))
    model = shelf.load(model_folder / "cpu.npz")
    mine(database, model)
    return database


def mine(database: Path, model: CostModel, problems: int = 160) -> shelf.Kept:
    sources = tuple(replace(s, name=database.name, problems=problems) for s in model.origin.sources)
    origin = replace(model.origin, sources=sources)
    kept = shelf.keep(replace(model, origin=origin), {}, shelf.own_path(database, "cpu"), private=True)
    learning.trust(kept, database, there())
    return kept


def asked(where: Environment | None = None) -> tuple[str, str]:
    """The name of what advises here, and why nothing does."""
    where = where or there()
    chosen = settings.current()
    found, why = adviser_for(where, ceilings_of(where, chosen), chosen)
    return (found.name if found else ""), why


def explained() -> str:
    return str(ops.explain(*SHAPES))


# Files


def test_a_model_comes_back_as_it_was(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    assert model.name == "cpu.npz"
    assert pack(model) == (folder / "cpu.npz").read_bytes()
    assert model.origin.problems == 160


def test_own_files_are_for_the_user_alone_and_nothing_else_is_left(own: Path) -> None:
    for suffix in (".cpu.npz", ".cpu.joblib"):
        path = own.with_suffix(suffix)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [name for name in os.listdir(own.parent) if name.startswith(".")]


def test_what_cannot_be_written_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "cpu.npz").read_bytes()

    def full(_from: object, _to: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match=r"cannot write .*: No space left"):
        shelf.write(folder / "cpu.npz", b"new")
    assert (folder / "cpu.npz").read_bytes() == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_the_estimators_predict_what_the_arrays_do(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    fitted = shelf.estimators_of(model, folder / "cpu.npz")
    found = learning.reproduced(model, [folder / "some.db"])
    table = tabulate(found.examples, "cpu", model.vocabulary)
    for place in range(0, 160, 20):
        rows = slice(table.first[place], table.first[place + 1])
        mine = model.forests.predict(table.problems[place], table.candidates[rows])
        theirs = [
            np.mean([e.predict(table.rows[rows]) for e in fitted[name]], axis=0)
            for name in ("log_ratio", "doubt", "risk")
        ]
        assert np.abs(mine - np.stack(theirs)).max() < training.AGREE


class Evil:
    """What runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.mark),))


def test_estimators_that_the_model_does_not_name_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = pickle.dumps(Evil(mark))
    (folder / "cpu.joblib").write_bytes(evil)
    model = shelf.load(folder / "cpu.npz")
    with pytest.raises(ModelError, match=r"cpu\.joblib is not loaded: it is not the file that cpu\.npz names"):
        shelf.estimators_of(model, folder / "cpu.npz")
    assert not mark.exists()
    # The test can fail: loading it does what it says.
    pickle.loads(evil)
    assert mark.exists()


def test_a_model_is_read_without_pickles(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    array = np.empty(1, dtype=object)
    array[0] = Evil(mark)
    file = io.BytesIO()
    np.savez(file, about=array, allow_pickle=True)
    (tmp_path / "evil.npz").write_bytes(file.getvalue())
    with pytest.raises(ModelError):
        shelf.load(tmp_path / "evil.npz")
    assert not mark.exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_model_is_refused_whatever_the_damage(folder: Path, seed: int) -> None:
    data, chance = (folder / "cpu.npz").read_bytes(), random.Random(seed)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 5])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        damaged[-chance.randrange(1, 700)] ^= 1 << chance.randrange(8)
        try:
            unpack(bytes(damaged), "cpu.npz")
        except ModelError:
            refused += 1
    assert refused > 50


def test_a_model_whose_range_has_no_ends_is_refused(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    for ends in ("lowest", "highest"):
        nowhere = np.full_like(getattr(model, ends), np.nan)
        with pytest.raises(ModelError, match="its parts do not fit each other"):
            unpack(pack(replace(model, **{ends: nowhere})), "cpu.npz")


# Which one advises


def test_without_a_model_none_advises() -> None:
    assert asked() == ("", "no model is there")


def test_the_shipped_model_advises_where_its_databases_lie(shipped: Path) -> None:
    assert asked() == ("cpu.npz, trained on 160 problems of AMD EPYC", "")
    assert "cpu.npz, trained on 160 problems" in explained()


def test_it_advises_only_once_the_device_is_known(shipped: Path) -> None:
    found, why = adviser_for(there(), {}, settings.current())
    assert found is None
    assert why == "cpu.npz is not used yet: what this device can do at most is not known before its first run"


def _changed(folder: Path) -> None:
    with (folder / "some.db").open("ab") as file:
        file.write(b"\0")


def _other_version(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    versions = {**model.origin.algorithms, "depth_winograd": 7}
    (folder / "cpu.npz").write_bytes(pack(replace(model, origin=replace(model.origin, algorithms=versions))))


def _bad_card(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    (folder / "cpu.npz").write_bytes(pack(replace(model, card=card.Card({}, ()))))


def _tampered(folder: Path) -> None:
    data = bytearray((folder / "cpu.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "cpu.npz").write_bytes(bytes(data))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another database": (_changed, "cpu.npz is not used: it learned from another some.db than the one beside it"),
    "no database": (
        lambda folder: (folder / "some.db").unlink(),
        "cpu.npz is not used: it learned from some.db, which is not beside it",
    ),
    "another version": (_other_version, "cpu.npz is not used: it knows depth_winograd@7, here it is @1"),
    "a bad card": (_bad_card, "cpu.npz is not used: its card does not judge it on held-out networks"),
    "no model": (lambda folder: (folder / "cpu.npz").write_bytes(b"no model"), "cpu.npz is not used: "),
    "tampered with": (_tampered, "cpu.npz is not used: "),
    "no file": (lambda folder: (folder / "cpu.npz").unlink(), "cpu.npz is not used: cannot be read: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_shipped_model_is_refused_with_the_reason(shipped: Path, case: str) -> None:
    change, reason = REFUSED[case]
    # Another database knows the device all the same.
    part(settings.current().database or Path(), count=1)
    change(shipped)
    name, why = asked()
    assert name == ""
    assert why.startswith(reason)
    assert reason in explained()


def test_another_backend_has_no_model(shipped: Path) -> None:
    other = Environment({"backend": "cuda", "device": "a GPU"}, {}, memory_bytes=10**9)
    assert asked(other) == ("", "no model is there")


def test_a_device_too_far_from_all_that_it_learned_from_has_none(shipped: Path) -> None:
    ceilings = {name: 5 * value for name, value in ceilings_of(there(), settings.current()).items()}
    found, why = adviser_for(there(), ceilings, settings.current())
    assert found is None
    assert why.startswith("cpu.npz is not used: it learned from AMD EPYC, and this device is faster or slower")


def test_of_several_shipped_ones_the_nearest_device_s_advises(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shelf.load(shipped / "cpu.npz")
    sources = tuple(
        replace(s, device="a fast one", ceilings={n: 3 * v for n, v in s.ceilings.items()})
        for s in model.origin.sources
    )
    (shipped / "cpu_fast.npz").write_bytes(pack(replace(model, origin=replace(model.origin, sources=sources))))
    files = [shipped / "cpu.npz", shipped / "cpu_fast.npz"]
    monkeypatch.setattr(came, "shipped_models", lambda _backend: files)
    ceilings = ceilings_of(there(), settings.current())
    for factor, device in ((1.0, "AMD EPYC"), (2.5, "a fast one")):
        found, _ = adviser_for(there(), {n: factor * v for n, v in ceilings.items()}, settings.current())
        assert found is not None
        assert found.name.endswith(device)


def test_shipped_models_are_those_of_a_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(came, "shipped_folder", lambda: folder)
    for name in ("cpu_old.npz", "cpus.npz", "cuda.npz"):
        (folder / name).touch()
    assert [path.name for path in shipped_models("cpu")] == ["cpu.npz", "cpu_old.npz"]


def test_the_users_own_model_comes_first(shipped: Path, own: Path) -> None:
    assert asked() == ("autoconv.cpu.npz, trained on 160 problems of AMD EPYC", "")
    assert "autoconv.cpu.npz, trained on 160 problems" in explained()


@pytest.mark.parametrize(("problems", "name"), [(149, "cpu.npz"), (150, "autoconv.cpu.npz")])
def test_it_takes_over_at_150_problems_measured_here(shipped: Path, own: Path, problems: int, name: str) -> None:
    mine(own, shelf.load(shipped / "cpu.npz"), problems)
    assert asked()[0].partition(",")[0] == name


def test_below_that_and_with_none_shipped_the_reason_is_told(own: Path, folder: Path) -> None:
    mine(own, shelf.load(folder / "cpu.npz"), 149)
    reason = "autoconv.cpu.npz is not used: it learned from 149 problems measured here, and 150 are needed"
    assert asked() == ("", reason)
    assert reason in explained()


def test_an_own_model_whose_file_is_not_the_trusted_one_is_not_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shelf.own_path(own, "cpu")
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(shelf, "_unpacked", lambda *_: pytest.fail("it was read"))
    name, why = asked()
    assert name == ""
    assert "autoconv.cpu.npz is not the file that was trained here" in why
    assert why in explained()


def test_a_model_that_no_database_trusts_is_not_read(own: Path, tmp_path: Path) -> None:
    path = shelf.own_path(own, "cpu")
    other = tmp_path / "other.db"
    shutil.copy(path, shelf.own_path(other, "cpu"))
    with settings.using(database=part(other)):
        assert asked() == ("", "no model is there")


def test_a_refused_own_model_leaves_the_shipped_one(shipped: Path, own: Path) -> None:
    shelf.own_path(own, "cpu").unlink()
    name, why = asked()
    assert name.startswith("cpu.npz")
    assert why.startswith("your own model is not used: autoconv.cpu.npz cannot be read")
    assert why in explained()
    told = ops.explain(*SHAPES).as_dict()["advice"]
    assert (told["why_none"], told["why_not_own"]) == (None, why)


def test_what_is_no_file_of_arrays_is_refused_without_advice_to_unpickle_it(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(b"[project]")
    with pytest.raises(ModelError, match=r"^it is no \.npz file$"):
        shelf.load(tmp_path / "m.npz")


def test_what_a_database_trusts_is_one_backend_s(own: Path) -> None:
    with closing(open_store(own)) as store:
        (record,) = store.trusted_models()
        assert (record.backend, record.file, record.environment) == ("cpu", "autoconv.cpu.npz", there().id)
        store.trust_model(ModelRecord("cuda", record.file, record.sha256, created=1.0))
    assert advisers.trusted(settings.current(), "cpu") is None


# What is imported


def test_neither_scikit_learn_nor_joblib_is_imported_to_advise(model_folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from autoconv import settings
from autoconv.algorithms import candidates
from autoconv.environment import Environment
from autoconv.model import card
from autoconv.model.advisers import adviser_for
from autoconv.problem import Problem
from autoconv.store import shipped
card.Card.fault = lambda self: ""
folder = Path({str(model_folder)!r})
shipped.shipped_models = lambda backend: [folder / "cpu.npz"]
shipped.shipped_files = lambda: [folder / "some.db"]
where = Environment({there().identity!r}, {{}}, memory_bytes=10**10)
from autoconv.model.advisers import ceilings_of
chosen = settings.current()
adviser, why = adviser_for(where, ceilings_of(where, chosen), chosen)
problem = Problem.parse({SHAPES[0]!r}, {SHAPES[1]!r})
assert adviser.advise(problem, candidates(problem, "cpu")).forecasts, why
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("sklearn", "joblib", "scipy")))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


def test_algorithms_that_a_model_never_met_do_not_refuse_it(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def more() -> tuple[Algorithm, ...]:
        known = tuple(algorithms())
        return (*known, replace(known[1], name="brand_new"))

    monkeypatch.setattr(advisers, "algorithms", more)
    ceilings = shelf.load(shipped / "cpu.npz").origin.sources[0].ceilings
    assert adviser_for(there(), ceilings, settings.current())[0] is not None
