"""The layer computes what MLX's does, whatever becomes of its weight."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as _layers
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tolerance import FLOAT32, SLACK

import autoconv
import autoconv.nn
from autoconv import _calls
from autoconv.algorithms import find
from autoconv.problem import Problem

layers: Any = _layers  # which has no types

SHAPE = (1, 6, 4, 4, 2)


@pytest.fixture(autouse=True)
def winograd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is decided for the layer's shape is an algorithm that transforms the weight."""
    known = find("depth_winograd(tile=2)", Problem.parse(SHAPE, (3, 3, 3, 3, 2), padding=1), "cpu")
    assert known is not None

    def decide(*_: object, **__: object) -> Any:
        return known.build(Problem.parse(SHAPE, (3, 3, 3, 3, 2), padding=1))

    monkeypatch.setattr(_calls, "_decide", lambda _i, _w, _a, _s, _d, key: _calls.known.setdefault(key, decide()))
    _calls.forget()
    yield
    _calls.forget()


def layer(**changes: Any) -> Any:
    made = autoconv.nn.Conv3d(2, 3, 3, padding=1, **changes)
    mx.eval(made.parameters())
    return made


def input(seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32))


def check(made: Any, x: mx.array) -> None:
    expected = mx.conv3d(x, made.weight, padding=1) + made.bias
    np.testing.assert_allclose(np.asarray(made(x)), np.asarray(expected), rtol=SLACK * 1e-4, atol=SLACK * 1e-5)


def derivations(made: Any, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Calls of `derive` from now on, of what runs the layer."""
    made(input())
    (run,) = _calls.known.values()
    seen: list[object] = []
    derive = run.derive  # type: ignore[union-attr]

    def counted(weight: mx.array) -> tuple[mx.array, ...]:
        seen.append(weight)
        found: tuple[mx.array, ...] = derive(weight)
        return found

    object.__setattr__(run, "derive", counted)
    return seen


def test_it_is_mlx_s_layer_with_its_parameters() -> None:
    made = layer()
    assert isinstance(made, layers.Conv3d)
    theirs = layers.Conv3d(2, 3, 3, padding=1)
    shapes = [{name: m[name].shape for name in m.parameters()} for m in (made, theirs)]
    assert shapes[0] == shapes[1]
    check(made, input())
    assert "groups=1" in repr(made)


def test_a_weight_that_does_not_change_is_transformed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer()
    seen = derivations(made, monkeypatch)
    for seed in range(3):
        check(made, input(seed))
    assert len(seen) <= 1


def in_place(made: Any) -> None:
    made.weight[0, 0, 0, 0, 0] = 7


def added_in_place(made: Any) -> None:
    weight = made.weight
    weight += 1  # the same object, and the layer is not told


def a_slice_in_place(made: Any) -> None:
    made["weight"][1:] *= 2


def updated(made: Any) -> None:
    made.update({"weight": made.weight * 2})


def replaced(made: Any) -> None:
    made.weight = mx.ones_like(made.weight)


@pytest.mark.parametrize("change", [in_place, added_in_place, a_slice_in_place, updated, replaced])
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_weight_that_changes_is_seen(change: Any, evaluated: bool) -> None:
    made = layer()
    for round_ in range(3):
        check(made, input(round_))
        change(made)
        if evaluated:
            mx.eval(made.weight)
        check(made, input(round_))


def test_weights_that_are_loaded_are_seen(tmp_path: Path) -> None:
    made, other = layer(), layer()
    check(made, input())
    other.save_weights(str(tmp_path / "w.safetensors"))
    made.load_weights(str(tmp_path / "w.safetensors"))
    check(made, input())
    np.testing.assert_array_equal(np.asarray(made(input())), np.asarray(other(input())))


def test_it_trains() -> None:
    made = layer()
    theirs = layers.Conv3d(2, 3, 3, padding=1)
    theirs.update(made.parameters())

    def loss(model: Any, x: mx.array) -> Any:
        return (model(x) ** 2).sum()

    def named(tree: Any) -> dict[str, Any]:
        return dict(tree_flatten(tree))

    for step in range(3):
        x = input(step)
        made(x)  # keeps what it derives, which the gradient must not be taken from
        results = [layers.value_and_grad(m, loss)(m, x) for m in (made, theirs)]
        for name, gradient in named(results[0][1]).items():
            other = named(results[1][1])[name]
            atol = max(SLACK * 1e-3, FLOAT32 * float(mx.abs(other).max()))
            np.testing.assert_allclose(np.asarray(gradient), np.asarray(other), rtol=SLACK * 1e-3, atol=atol)
        for m, (_, gradients) in zip((made, theirs), results, strict=True):
            m.update({n: m[n] - 0.01 * g for n, g in named(gradients).items()})


def test_a_compiled_layer_follows_its_state() -> None:
    made = layer()
    check(made, input())
    run = mx.compile(made, inputs=made.state)
    first = run(input())
    made.weight = made.weight * 3
    made.bias = mx.zeros_like(made.bias)
    second = run(input())
    np.testing.assert_allclose(np.asarray(second), np.asarray(3 * first), rtol=SLACK * 1e-4, atol=SLACK * 1e-4)
    check(made, input())


def test_copies_and_pickles_are_layers_of_their_own() -> None:
    made = layer()
    made(input())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made._derived))):
        if isinstance(other, autoconv.nn.Conv3d):
            other.weight = other.weight + 1
            check(other, input())
    check(made, input())


def test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with autoconv.using(policy="record"):
        made = autoconv.nn.Conv3d(4, 4, 3, padding=1, groups=2)
        assert made.weight.shape == (4, 3, 3, 3, 2)
        assert made(mx.ones((1, 3, 4, 4, 4))).shape == (1, 3, 4, 4, 4)
    with pytest.raises(ValueError, match="multiples of groups"):
        autoconv.nn.Conv3d(3, 4, 3, groups=2)


def test_nothing_is_kept_of_a_weight_that_is_traced() -> None:
    made = layer()
    run = mx.compile(made, inputs=made.state)
    run(input())
    layers.value_and_grad(made, lambda m, x: m(x).sum())(made, input())
    assert made._derived._weight is None
    assert made._derived._found == ()
