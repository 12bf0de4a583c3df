"""The demo: a second process over the first one's database times nothing and runs the same winners."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autoconv.errors import AutoconvError
from autoconv.sweep import Layer, demo, demo_layers
from autoconv.sweep.runner import Ending


def test_the_layers_are_many_and_real() -> None:
    layers = demo_layers()
    assert len(layers) >= 12
    assert len({layer.network for layer in layers}) >= 5
    for layer in layers:
        if layer.crop_of is not None:
            assert layer.problem.weight_shape == layer.crop_of.weight_shape
            assert layer.problem.input_shape[4] == layer.crop_of.input_shape[4]


def test_the_second_process_times_nothing_and_runs_the_same(qualified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the two layers of least work, as the command itself runs them all."""
    layers = sorted(demo_layers(), key=lambda layer: layer.problem.flops)[:2]
    monkeypatch.setattr(demo, "demo_layers", lambda: layers)
    told: list[Layer] = []
    outcomes = demo.first_run(qualified, tell=lambda o: told.append(o.layer))
    assert told == layers
    assert [o.ending for o in outcomes] == [Ending.TIMED] * 2
    winners = {o.layer.problem.key: o.decision.candidate for o in outcomes if o.decision}

    # As the second process runs it; the others of its layers are new to it, so here only these two.
    second = demo.replay(layers, qualified)
    assert second.outputs == 2
    assert second.winners == winners
    assert second.statistics["database"] == 2
    assert second.statistics["measured"] == 0


def test_a_second_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(AutoconvError, match="second process failed: no such luck"):
        demo.second_run(tmp_path / "demo.db")
