"""What all tests share: Hypothesis without a clock or chance, no GPU where there is none, and no one's own database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser as browsers
import mlx.core as mx
import pytest
from hypothesis import settings
from models import part, quick, there

import autoconv
from autoconv import _calls, dispatch, environment
from autoconv import settings as _settings
from autoconv.algorithms import algorithms
from autoconv.model.learning import learn
from autoconv.store import open_store, shipped
from autoconv.sweep import power
from autoconv.tuning.qualification import Qualifier

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile("autoconv", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("autoconv")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where MLX's default device is none, and what needs CUDA where that GPU is another."""
    absent = {
        "gpu": "" if mx.default_device().type == mx.gpu else "MLX's default device is no GPU",
        "cuda": "" if mx.cuda.is_available() else "there is no CUDA",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):  # a case may be called so too
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser, for the tests of one file: others fork."""
    program = browsers.program()
    if program is None:
        pytest.skip("no Chromium or Chrome here: scripts/_browser.sh installs one")
    with browsers.launched(program) as launched:
        yield launched


@pytest.fixture(autouse=True)
def _unhindered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac on battery runs the tests as well: sweeps in this process do not wait for mains."""
    monkeypatch.setattr(power, "wait_until_unhindered", lambda *_, **__: True)


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of devices that no other run of the tests holds."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(autouse=True)
def _nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No database or model that came with the package, which may know the machine that runs the tests."""
    monkeypatch.setattr(shipped, "shipped_files", list)
    monkeypatch.setattr(shipped, "shipped_models", lambda _backend: [])


@pytest.fixture(autouse=True)
def _own_database(tmp_path: Path) -> Iterator[None]:
    """Default settings, an empty database and no known decision, for every test alone."""
    before = _settings._configured
    _settings._configured = _settings.from_environment({})
    autoconv.configure(database=tmp_path / "autoconv.db")
    _calls.forget()
    try:
        yield
    finally:
        _settings._configured = before
        _calls.forget()
        dispatch.forget()


@pytest.fixture(scope="session")
def qualified_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows the default device from its first run, of convolutions and of gradients, and no more.

    That run takes seconds, so it is made once. Copy the file.
    """
    path, device = tmp_path_factory.mktemp("qualified") / "autoconv.db", mx.default_device()
    where = environment.of(device)
    convolutions = Qualifier(where, device, algorithms()).advance()
    assert convolutions is not None
    gradients = Qualifier(where, device, algorithms(), forward=convolutions).advance()
    assert gradients is not None
    assert convolutions.barred == gradients.barred == {}
    store = open_store(path)
    store.qualify(convolutions)
    store.qualify(gradients)
    store.close()
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `some.db`, a part of a shipped database, and a model of it, `cpu.npz` and `cpu.joblib`. Copy it."""
    folder = tmp_path_factory.mktemp("model")
    part(folder / "some.db")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        learn([folder / "some.db"], "cpu", folder / "cpu.npz", private=False)
    return folder


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is the device of that database, and models are trained fast, badly, and never too badly."""
    monkeypatch.setattr(environment, "of", lambda _device: there())
    quick(monkeypatch)


@pytest.fixture
def qualified(qualified_database: Path, tmp_path: Path) -> Path:
    """The test's own database knows the device, so that what is timed is the problem alone."""
    return Path(shutil.copy(qualified_database, tmp_path / "autoconv.db"))
