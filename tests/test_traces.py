"""A first call inside a trace: what cannot be timed there comes from a database or native, is counted, and keeps no
array alive.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, cast

import mlx.core as mx
import numpy as np
import pytest
from planted import plant

import autoconv
from autoconv import _calls
from autoconv.dispatch import Dispatcher
from autoconv.errors import TuningError
from autoconv.problem import Kind

X = mx.array(np.random.default_rng(0).standard_normal((1, 5, 6, 6, 4)).astype(np.float32))
W = mx.array(np.random.default_rng(1).standard_normal((4, 3, 3, 3, 4)).astype(np.float32))
Convolve = Callable[[mx.array, mx.array], mx.array]


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def ours(x: mx.array, w: mx.array) -> mx.array:
    return autoconv.conv3d(x, w, padding=1)


def theirs(x: mx.array, w: mx.array) -> mx.array:
    return mx.conv3d(x, w, padding=1)


TRACES: dict[str, Callable[[Convolve], mx.array]] = {
    "compile": lambda f: mx.compile(f)(X, W),
    "compile, shapeless": lambda f: mx.compile(f, shapeless=True)(X, W),
    "grad": lambda f: mx.grad(lambda x: f(x, W).square().sum())(X),
    "vmap": lambda f: mx.vmap(f, (0, None))(mx.stack([X, 2 * X]), W),
    "checkpoint": lambda f: mx.grad(mx.checkpoint(lambda x: f(x, W).square().sum()))(X),
    "custom function": lambda f: cast("mx.array", mx.custom_function(f)(X, W)),
}
POLICIES = ("auto", "measure", "predict", "record")


def changed(before: dict[str, int]) -> dict[str, int]:
    after = autoconv.statistics()
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def close(found: mx.array, expected: mx.array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_first_call_in_a_trace_is_decided_and_counted(policy: str, trace: str) -> None:
    before = autoconv.statistics()
    with autoconv.using(policy=policy, budget_ms=20):
        found = TRACES[trace](ours)
        close(found, TRACES[trace](theirs))
        first = changed(before)
        shapeless = trace == "compile, shapeless"
        source = "measured" if policy in ("auto", "measure") and not shapeless else "native"
        again = 1 if trace == "checkpoint" else 0  # which calls what it wraps once more
        assert first == {source: 1} | ({"memory": again} if again else {})
        TRACES[trace](ours)
    assert changed(before)[source] == (2 if shapeless else 1)  # under it nothing is kept: that is no decision


@pytest.mark.parametrize("trace", [name for name in TRACES if name != "compile, shapeless"])
@pytest.mark.parametrize("policy", ["auto", "measure"])
def test_what_cannot_be_timed_in_a_trace_is_native_and_counted(
    policy: str, trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> NoReturn:
        msg = "another process is timing on this device"
        raise TuningError(msg)

    monkeypatch.setattr(Dispatcher, "_measure", busy)
    before = autoconv.statistics()
    with autoconv.using(policy=policy):
        close(TRACES[trace](ours), TRACES[trace](theirs))
    assert changed(before)["native"] == 1


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_database_knows_is_taken_in_a_trace(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    autoconv.tune(X, W, padding=1, budget_ms=20)

    def timed(*_: object, **__: object) -> NoReturn:
        pytest.fail("something is timed")

    monkeypatch.setattr(Dispatcher, "_measure", timed)
    before = autoconv.statistics()
    with autoconv.using(policy=policy):
        close(TRACES["compile"](ours), theirs(X, W))
    assert changed(before) == {"database": 1}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("trace", ["compile", "compile, shapeless", "grad", "vmap"])
@pytest.mark.parametrize("chosen", ["native(frames=2)", "kd_decomposition(sum=float32)"])
def test_what_was_decided_in_a_trace_keeps_no_array_alive(
    chosen: str, trace: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict.fromkeys(Kind, chosen) | {Kind.WEIGHT_GRADIENT: "wgrad_depth_taps(taps=each)"}
    plant(monkeypatch, names)
    seen: list[weakref.ref[mx.array]] = []

    def watched(x: mx.array, w: mx.array) -> mx.array:
        seen.append(weakref.ref(x))
        y = ours(x, w)
        seen.append(weakref.ref(y))
        return y

    def step() -> None:
        mx.eval(TRACES[trace](watched))

    with autoconv.using(gradients=gradients):
        step()
    gc.collect()
    assert _calls.known or trace == "compile, shapeless"
    assert len(seen) >= 2
    assert [ref() for ref in seen] == [None] * len(seen)


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("policy", ["measure", "record"])
def test_what_was_timed_in_a_trace_leaves_no_memory_taken(policy: str) -> None:
    def step() -> None:
        x = mx.zeros((1, 6, 24, 24, 32))  # 0.4 MB
        mx.eval(mx.compile(ours)(x, mx.zeros((2, 3, 3, 3, 32))))

    with autoconv.using(policy=policy, budget_ms=1):
        mx.eval(ours(X, W))
        gc.collect()
        before = mx.get_active_memory()
        step()
    gc.collect()
    assert mx.get_active_memory() - before < 2e5


def test_a_known_winner_runs_in_every_trace_and_each_call_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch, "kd_decomposition(sum=float32)")
    ours(X, W)
    for trace, use in TRACES.items():
        before = autoconv.statistics()
        close(use(ours), use(theirs))
        assert changed(before) == {"memory": 2 if trace == "checkpoint" else 1}, trace
    assert len(asked) == 1


def test_a_compiled_function_is_traced_once_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "kd_decomposition(sum=float32)")
    compiled = mx.compile(ours)
    before = autoconv.statistics()
    for _ in range(3):
        mx.eval(compiled(X, W))
    assert changed(before) == {"database": 1}
