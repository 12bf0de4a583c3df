"""`prepare` times what a function convolves, before it is used, and leaves no trace of how."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as _layers
import pytest
from replay import nothing_is_timed

import autoconv
import autoconv.nn
from autoconv import _calls, dispatch, settings
from autoconv.decision import Source
from autoconv.dispatch import Dispatcher
from autoconv.errors import AccuracyError, SettingsError, TuningError
from autoconv.problem import Kind, Problem
from autoconv.store import open_store

layers: Any = _layers  # which has no types

X, W = mx.ones((1, 4, 5, 5, 4)), mx.ones((4, 3, 3, 3, 4))
SMALL = mx.ones((1, 3, 3, 3, 4))


@pytest.fixture(autouse=True)
def _quick(qualified: Path) -> Iterator[None]:
    autoconv.configure(budget_ms=1, stall="0")
    yield
    assert compiles()
    assert not hasattr(mx.conv3d, "_autoconv_original")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """The problems that are timed, in their order; none is."""
    found: list[Problem] = []

    def tune(_self: Dispatcher, problem: Problem, *_: object, **__: object) -> Any:
        found.append(problem)
        msg = "not in a test"
        raise TuningError(msg)

    monkeypatch.setattr(Dispatcher, "tune", tune)
    return found


def compiles() -> bool:
    """Whether `mx.compile` compiles."""
    calls = []

    def function(x: mx.array) -> mx.array:
        calls.append(1)
        return x

    compiled = mx.compile(function)
    compiled(X)
    compiled(X)
    return len(calls) == 1


def test_what_a_function_convolves_is_timed_and_then_runs_from_the_database() -> None:
    def function(x: mx.array, *, w: mx.array) -> mx.array:
        return autoconv.conv3d(x, w, padding=1) + mx.conv3d(x, w, padding=1) + mx.conv_general(x, w)[:, :1, :1, :1]

    done = autoconv.prepare(function, X, w=W)
    assert done == autoconv.Preparation(shapes=2, tuned=2, known=0, failed=0, left=0)
    before = autoconv.statistics()
    mx.eval(mx.compile(lambda x: autoconv.conv3d(x, W, padding=1))(X))
    after = autoconv.statistics()
    assert after["database"] == before["database"] + 1
    assert autoconv.prepare(function, X, w=W) == autoconv.Preparation(2, 0, 2, 0, 0)


class Net(layers.Module):  # type: ignore[misc]
    """Calls one layer thrice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layers.Conv3d(4, 4, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.decode(x)

    def decode(self, x: mx.array) -> mx.array:
        for _ in range(3):
            x = self.layer(x)
        return x


def shaped(x: mx.array) -> mx.array:
    return mx.conv3d(x, W)


NAMED: dict[str, tuple[Any, dict[str, int]]] = {
    "a model": (Net, {"Net": 3}),
    "a method": (lambda: Net().decode, {"Net.decode": 3}),
    "a function": (lambda: shaped, {"shaped": 1}),
    "a partial one": (lambda: functools.partial(shaped), {"shaped": 1}),
    "a lambda": (lambda: lambda x: shaped(2 * x), {}),
}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("made", NAMED)
def test_what_it_makes_is_kept_under_its_name(qualified: Path, made: str) -> None:
    make, expected = NAMED[made]
    autoconv.prepare(make(), X)
    with closing(open_store(qualified, readonly=True)) as store:
        assert {name: sum(calls.values()) for name, calls in store.networks().items()} == expected


@pytest.mark.usefixtures("asked")
def test_what_is_met_under_several_settings_counts_together(qualified: Path) -> None:
    def function(x: mx.array) -> mx.array:
        for accuracy in ("native", "native", "strict"):
            with autoconv.using(accuracy=accuracy):
                x = autoconv.conv3d(x, W, padding=1)
        return x

    autoconv.prepare(function, X)
    with closing(open_store(qualified, readonly=True)) as store:
        assert store.networks() == {"function": {Problem.parse(X.shape, W.shape, padding=1): 3}}


def test_models_and_their_layers(asked: list[Problem]) -> None:
    model = layers.Sequential(
        layers.Conv3d(4, 8, 3),
        autoconv.nn.Conv3d(8, 8, 1, groups=2),
        autoconv.nn.CausalConv3d(8, 4, (3, 1, 1), padding=1),
    )
    done = autoconv.prepare(model, X)
    assert {(p.weight_shape, p.groups) for p in asked} >= {((8, 3, 3, 3, 4), 1), ((8, 1, 1, 1, 4), 2)}
    assert done.shapes == done.failed == len(asked) == len(done.reasons)
    assert all(reason.endswith("not in a test") for reason in done.reasons)


def test_few_frames_beside_a_cache_are_timed_as_the_layer_may_join_them(asked: list[Problem]) -> None:
    layer = autoconv.nn.CausalConv3d(4, 4, 3, padding=1)
    autoconv.prepare(layer.chunk, mx.ones((1, 9, 5, 5, 4)), X[:, :2])
    assert [p.input_shape for p in asked] == [(1, 9, 5, 5, 4), (1, 4, 5, 5, 4)]


def test_compiled_functions_and_known_shapes_are_seen_through(asked: list[Problem]) -> None:
    def function(x: mx.array) -> mx.array:
        return autoconv.conv3d(x, W)

    compiled = mx.compile(function, shapeless=True)
    mx.eval(compiled(X), autoconv.conv3d(X, W))
    autoconv.prepare(compiled, X)
    assert [p.input_shape for p in asked] == [X.shape]


@pytest.mark.parametrize("gradients", [False, True])
def test_gradients_where_they_are_decided(asked: list[Problem], gradients: bool) -> None:
    autoconv.configure(gradients=gradients)

    def loss(w: mx.array) -> mx.array:
        return autoconv.conv3d(X, w).sum()

    autoconv.prepare(mx.grad(loss), W)
    assert {p.kind for p in asked} == (set(Kind) if gradients else {Kind.FORWARD})


def test_the_largest_stake_comes_first(asked: list[Problem]) -> None:
    def function() -> None:
        autoconv.conv3d(SMALL, W)
        autoconv.conv3d(X, W, padding=1)
        for _ in range(1000):
            autoconv.conv3d(SMALL, W, padding=1)

    autoconv.prepare(function)
    assert [(p.input_shape, p.padding_low[0]) for p in asked] == [(SMALL.shape, 1), (X.shape, 1), (SMALL.shape, 0)]


@pytest.mark.parametrize("limit", ["0.000001s", 1e-6, timedelta(microseconds=1)])
def test_what_there_is_no_time_for_is_left(asked: list[Problem], limit: Any) -> None:
    done = autoconv.prepare(autoconv.conv3d, X, W, time_limit=limit)
    assert (done.shapes, done.left, asked) == (1, 1, [])


@pytest.mark.parametrize("limit", ["soon", "", 0, -1, math.nan, math.inf, True, "2 days"])
def test_no_time_limit_that_is_none(limit: Any) -> None:
    def never() -> None:
        pytest.fail("it was called")

    with pytest.raises(SettingsError, match="is no time such as"):
        autoconv.prepare(never, time_limit=limit)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("2m", 120), ("1.5h", 5400), ("180d", 15_552_000), (3, 3), (timedelta(days=1), 86400)],
)
def test_times(text: Any, seconds: float) -> None:
    assert settings.parse_seconds(text) == seconds


def test_errors_of_the_function_pass_and_all_is_as_before(asked: list[Problem]) -> None:
    def function() -> None:
        mx.conv3d(X, W)
        raise KeyError("mine")

    around = settings.current()
    with pytest.raises(KeyError, match="mine"):
        autoconv.prepare(function)
    assert settings.current() is around
    assert _calls.noter.get() is None
    assert not asked
    with pytest.raises(ValueError, match="conv"):
        autoconv.prepare(autoconv.conv3d, X, mx.ones((4, 3, 3, 3, 5)))


def test_compilation_that_is_off_stays_off(asked: list[Problem]) -> None:
    mx.disable_compile()
    try:
        autoconv.prepare(autoconv.conv3d, X, W)
        assert not compiles()
    finally:
        mx.enable_compile()


def test_what_no_candidate_computes_accurately_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(*_: object, **__: object) -> Any:
        raise AccuracyError("none is")

    monkeypatch.setattr(Dispatcher, "tune", tune)
    done = autoconv.prepare(autoconv.conv3d, X, W)
    assert (done.tuned, done.failed) == (0, 1)
    assert done.reasons[0].endswith(": none is")


def test_settings_of_a_call_are_those_it_is_timed_under(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def tune(_self: Dispatcher, problem: Problem, under: settings.Settings, *_: object, **__: object) -> Any:
        seen.append(under.accuracy)
        raise TuningError("not in a test")

    monkeypatch.setattr(Dispatcher, "tune", tune)

    def function() -> None:
        autoconv.conv3d(X, W, accuracy="strict")
        autoconv.conv3d(X, W)
        autoconv.conv3d(X, W, policy="off")

    assert autoconv.prepare(function).shapes == 2
    assert sorted(seen) == ["native", "strict"]


def test_what_a_shipped_database_decides_is_known_and_not_timed(qualified: Path, tmp_path: Path) -> None:
    autoconv.prepare(autoconv.conv3d, X, W, padding=1)
    dispatch.forget()
    shipped = open_store(qualified.rename(tmp_path / "shipped.db"), readonly=True)
    dispatch._dispatcher = Dispatcher(bench=nothing_is_timed, shipped=lambda: {"shipped": shipped})
    assert autoconv.prepare(autoconv.conv3d, X, W, padding=1) == autoconv.Preparation(1, 0, 1, 0, 0)
    assert autoconv.explain(X, W, padding=1).decision.source is Source.SHIPPED


def test_what_cannot_be_timed_costs_only_itself_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = Dispatcher.tune

    def some(self: Dispatcher, problem: Problem, *arguments: Any, **options: Any) -> Any:
        if problem.input_shape == SMALL.shape:
            msg = "there is no room"
            raise TuningError(msg)
        return tune(self, problem, *arguments, **options)

    monkeypatch.setattr(Dispatcher, "tune", some)
    done = autoconv.prepare(lambda: [autoconv.conv3d(x, W) for x in (SMALL, X)])
    assert (done.shapes, done.tuned, done.failed, len(done.reasons)) == (2, 1, 1, 1)
    assert done.reasons[0].endswith("there is no room")
