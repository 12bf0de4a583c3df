"""Under `mx.compile(shapeless=True)` MLX's own convolution runs, at any size; under a plain one what is known."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tolerance import FLOAT32, SLACK

import autoconv
import autoconv.nn
from autoconv import _calls, _tracing, environment
from autoconv.algorithms import candidates
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.problem import Problem
from autoconv.settings import Settings

Function = Callable[..., mx.array]


def array(*shape: int) -> mx.array:
    made = mx.random.normal(shape, key=mx.random.key(sum(shape)))
    mx.eval(made)
    return made


X, LONGER, W = array(1, 5, 6, 6, 4), array(1, 8, 7, 9, 4), array(4, 3, 3, 3, 4)


@pytest.fixture(autouse=True)
def sliced(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """What is decided is made of slices; lists the problems."""
    asked = []

    def decide(self: Dispatcher, problem: Problem, _settings: Settings, device: mx.Device) -> Decision:
        asked.append(problem)
        self.count(Source.DATABASE)
        found = candidates(problem, environment.of(device).backend)
        name = next(c.name for c in found if c.name.startswith(("kd_decomposition", "im2col", "wgrad")))
        return Decision(name, Source.DATABASE, 0.5, "for a test")

    monkeypatch.setattr(Dispatcher, "decide", decide)
    return asked


def operations(array: mx.array) -> str:
    text = io.StringIO()
    mx.export_to_dot(text, array)
    return text.getvalue()


def close(found: mx.array, expected: mx.array) -> None:
    assert found.shape == expected.shape
    atol = max(SLACK * 1e-4, FLOAT32 * float(mx.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=SLACK * 1e-4, atol=atol)


def ours(x: mx.array, w: mx.array) -> mx.array:
    return autoconv.conv3d(x, w, padding=1)


def test_the_premise_mlx_cannot_trace_a_slice_so() -> None:
    with pytest.raises(ValueError, match="cannot infer output shapes"):
        mx.eval(mx.compile(lambda x: x[:, 1:3], shapeless=True)(X))


@pytest.mark.parametrize("is_known", [False, True])
def test_one_trace_serves_all_sizes_by_mlx_s_own_convolution(is_known: bool) -> None:
    if is_known:
        assert "Slice" in operations(ours(X, W))
    compiled = mx.compile(ours, shapeless=True)
    for x in (X, LONGER):
        close(compiled(x, W), mx.conv3d(x, W, padding=1))
    assert "Slice" in operations(ours(X, W))  # what was traced is no decision for other calls


@pytest.mark.parametrize("gradients", [False, True])
def test_gradients_inside_and_outside_of_it(gradients: bool) -> None:
    """Of the input; that of the weight MLX pads, and cannot trace so itself."""
    autoconv.configure(gradients=gradients)

    def loss(conv: Function) -> Any:
        return mx.grad(lambda x, w: conv(x, w).square().sum())

    def native(x: mx.array, w: mx.array) -> mx.array:
        return mx.conv3d(x, w, padding=1)

    for _ in range(2):
        close(mx.compile(loss(ours), shapeless=True)(X, W), loss(native)(X, W))
        close(loss(mx.compile(ours, shapeless=True))(X, W), loss(native)(X, W))
        ours(X, W)


def test_general_convolutions_with_all_that_they_take() -> None:
    arguments: dict[str, Any] = {
        "stride": (1, 2, 1), "padding": ([2, 1, 0], [0, 1, 1]), "kernel_dilation": [1, 1, 2],
        "input_dilation": (1, 2, 1), "flip": True,
    }  # fmt: skip
    for _ in range(2):
        compiled = mx.compile(lambda x, w: autoconv.conv_general(x, w, **arguments), shapeless=True)
        for x in (X, LONGER):
            close(compiled(x, W), mx.conv_general(x, W, **arguments))
        autoconv.conv_general(X, W, **arguments)  # is known at the second turn


def test_groups_are_mlx_s_error() -> None:
    weight = array(4, 3, 3, 3, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="groups"):
            mx.compile(lambda x, w: autoconv.conv3d(x, w, groups=2), shapeless=True)(X, weight)
        autoconv.conv3d(X, weight, groups=2)


def test_an_error_of_mlx_s_tells_of_no_look() -> None:
    """How a trace is seen is no affair of the user's, who reads a traceback."""
    weight = array(4, 3, 3, 3, 2)
    autoconv.conv3d(X, weight, groups=2)
    with pytest.raises(ValueError, match="groups") as raised:
        mx.compile(lambda x, w: autoconv.conv3d(x, w, groups=2), shapeless=True)(X, weight)
    assert raised.value.__context__ is None


def test_two_dtypes() -> None:
    half = W.astype(mx.float16)
    for _ in range(2):
        close(mx.compile(ours, shapeless=True)(X, half), mx.conv3d(X, half, padding=1))
        ours(X, half)


def test_patched_functions() -> None:
    with autoconv.patch():
        mx.conv3d(X, W)
        compiled = mx.compile(lambda x, w: mx.conv3d(x, w) + mx.conv_general(x, w), shapeless=True)
        found = [compiled(x, W) for x in (X, LONGER)]
        mx.eval(found)
    for x, y in zip((X, LONGER), found, strict=True):
        close(y, 2 * mx.conv3d(x, W))


def test_a_layer() -> None:
    layer = autoconv.nn.Conv3d(4, 4, 3, padding=1)
    mx.eval(layer.parameters())
    for _ in range(2):
        compiled = mx.compile(layer, shapeless=True)
        for x in (X, LONGER):
            close(compiled(x), mx.conv3d(x, layer.weight, padding=1) + layer.bias)
        layer(X)


def test_a_layer_still_keeps_what_is_made_of_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Decision("depth_winograd(tile=2)", Source.DATABASE, 0.5, "for a test")
    monkeypatch.setattr(Dispatcher, "decide", lambda *_: chosen)
    layer = autoconv.nn.Conv3d(4, 4, 3, padding=1)
    mx.eval(layer.parameters())
    made = [layer(X) for _ in range(2)]
    raw = (layer.stride, layer.padding, layer.dilation, layer.groups)
    run = _calls.found(X, layer.weight, raw)
    assert isinstance(run, InTwoSteps)
    derived = layer._derived.of(layer.weight, run)
    assert layer._derived.of(layer.weight, run) is derived
    close(made[1], mx.conv3d(X, layer.weight, padding=1) + layer.bias)


def causal(**arguments: Any) -> Any:
    layer = autoconv.nn.CausalConv3d(4, 4, 3, padding=1, **arguments)
    mx.eval(layer.parameters())
    return layer


@pytest.mark.parametrize("stride", [1, 2])
def test_a_causal_layer_that_pads_by_zeros(stride: int) -> None:
    layer = causal(stride=stride)
    for first in (X, X[:, :1]):  # one frame takes a way of its own elsewhere
        compiled = mx.compile(layer, shapeless=True)
        for x in (first, X, LONGER):
            close(compiled(x), layer(x))


@pytest.mark.parametrize("arguments", [{"depth_padding": "first"}, {"spatial_padding": "replicate"}])
def test_a_causal_layer_that_pads_by_what_it_sees_is_refused_rather_than_wrong(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"use mx\.compile alone"):
        mx.compile(causal(**arguments), shapeless=True)(X)


def test_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use mx\.compile alone"):
        mx.compile(causal().chunk, shapeless=True)(X)


def test_plain_compile_runs_what_is_known_and_statistics_shows_it(sliced: list[Problem]) -> None:
    before = autoconv.statistics()
    ours(X, W)
    seen = []

    def traced(x: mx.array, w: mx.array) -> mx.array:
        y = ours(x, w)
        seen.append("Slice" in operations(y))
        return y

    close(mx.compile(traced)(X, W), mx.conv3d(X, W, padding=1))
    assert seen == [True]
    after = autoconv.statistics()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"database": 1, "memory": 1}
    assert len(sliced) == 1


def test_a_shape_first_met_there_is_counted_as_native_and_not_decided(sliced: list[Problem]) -> None:
    before = autoconv.statistics()
    mx.compile(ours, shapeless=True)(X, W)
    assert autoconv.statistics()["native"] == before["native"] + 1
    assert not sliced
    assert not _calls.known


@pytest.mark.parametrize("shapeless", [False, True])
def test_decisions_made_while_tracing_keep_no_array(shapeless: bool) -> None:
    def step() -> None:
        x, w = mx.zeros((1, 8, 64, 64, 32)), mx.zeros((4, 3, 3, 3, 32))
        mx.eval(mx.compile(ours, shapeless=shapeless)(x, w))

    gc.collect()
    before = mx.get_active_memory()
    step()
    gc.collect()
    assert mx.get_active_memory() - before < 1e6  # of 4.2 MB that the input takes alone


def test_only_what_is_traced_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for x in (X, LONGER):  # the first look at these dtypes and the first call of a shape ask
        ours(x, W)
    asked = []
    monkeypatch.setattr(mx, "export_to_dot", lambda *given: asked.append(given))
    mx.eval(ours(X, W), ours(LONGER, W))
    assert not asked


def test_a_first_look_in_a_trace_does_not_spoil_later_ones() -> None:
    """What is compiled for a look is compiled for arrays that are traced and for those that are not."""
    half = X.astype(mx.float16)
    seen: list[bool] = []

    def function(x: mx.array) -> mx.array:
        made = mx.zeros((1, 2, 3)).astype(
            mx.float16
        )  # axes that are new to this thread, of an array that is not traced
        seen.extend(
            (_tracing.may_be_traced(x, half), _tracing.may_be_traced(made, made), _tracing.is_shapeless(x, made))
        )
        return x

    threads = [threading.Thread(target=lambda s=s: mx.compile(function, shapeless=s)(half)) for s in (True, False)]
    for thread in threads:
        thread.start()
        thread.join()
    assert seen == [True, False, True, True, False, False]
    assert not _tracing.may_be_traced(half, half)


@pytest.mark.parametrize(
    ("transformed", "expected"),
    [
        (lambda f: f, False),
        (mx.compile, False),
        (mx.vmap, False),
        (lambda f: mx.grad(lambda x: f(x).sum()), False),
        (lambda f: mx.compile(f, shapeless=True), True),
        (lambda f: mx.compile(mx.grad(lambda x: f(x).sum()), shapeless=True), True),
        (lambda f: mx.compile(mx.compile(f), shapeless=True), True),
        (lambda f: mx.compile(mx.compile(f, shapeless=True)), False),  # the outer one traces both
    ],
)
def test_what_is_shapeless(transformed: Callable[[Function], Function], expected: bool) -> None:
    seen = []

    def function(x: mx.array) -> mx.array:
        seen.append((_tracing.is_shapeless(x, W), _tracing.is_shapeless(W, 2 * x)))
        return 2 * x

    mx.eval(transformed(function)(X))
    assert seen == [(expected, expected)]


def nested(function: Function) -> dict[str, Callable[[], mx.array]]:
    """Uses of a function of constants inside other transformations."""
    return {
        "grad": lambda: mx.grad(lambda scale: (function(X, W) * scale).sum())(mx.array(2.0)),
        "vmap": lambda: mx.vmap(lambda scale: (function(X, W) * scale).sum())(mx.array([2.0, 3.0])),
        "compile": lambda: mx.compile(lambda scale: (function(X, W) * scale).sum())(mx.array(2.0)),
    }


@pytest.mark.parametrize("where", nested(ours))
def test_of_constants_inside_another_transformation_it_works_once_called_outside(where: str) -> None:
    """The limit that README names: MLX tells of the outermost trace alone."""
    ours(X, W)
    with pytest.raises(ValueError, match="cannot infer output shapes"):
        mx.eval(nested(mx.compile(ours, shapeless=True))[where]())
    compiled = mx.compile(ours, shapeless=True)
    compiled(LONGER, W)
    close(nested(compiled)[where](), nested(lambda x, w: mx.conv3d(x, w, padding=1))[where]())
