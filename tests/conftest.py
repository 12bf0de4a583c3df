"""What all tests share: Hypothesis without a clock or chance, no GPU where there is none, and no one's own database."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import settings

import autoconv
from autoconv import _calls, dispatch
from autoconv import settings as _settings

settings.register_profile("autoconv", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("autoconv")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where MLX's default device is none."""
    if mx.default_device().type == mx.gpu:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="MLX's default device is no GPU"))


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of devices that no other run of the tests holds."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


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
