"""The cost models that come with the package fit its databases and algorithms, their estimators and their cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoconv.algorithms import algorithms
from autoconv.model import shelf
from autoconv.report.model_card import page_of

FOLDER = Path(__file__).parents[1] / "tuning_db"
MODELS = sorted(FOLDER.glob("*.npz"))


def test_there_is_one_for_cuda_and_one_for_cpus() -> None:
    assert [path.name for path in MODELS] == ["cpu.npz", "cuda.npz"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_is_of_the_databases_beside_it_and_nothing_speaks_against_it(path: Path) -> None:
    model = shelf.load(path)
    assert model.misfit(algorithms()) == ""
    assert model.origin.sources
    for source in model.origin.sources:
        assert shelf.file_sha256(FOLDER / source.name) == source.file_sha256, f"train {path.name} anew"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_what_lies_beside_it_belongs_to_it(path: Path) -> None:
    model = shelf.load(path)
    assert shelf.file_sha256(path.with_suffix(".joblib")) == model.origin.estimators
    page = page_of(shelf.Kept(model, path, shelf.file_sha256(path)))
    # A model keeps its card's tables by name, and the page has them in the order in which they were made.
    assert sorted(path.with_suffix(".md").read_text(encoding="utf-8").splitlines()) == sorted(page.splitlines())
