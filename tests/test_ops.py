"""The drop-ins: what `mx.conv3d` and `mx.conv_general` give, they give, and what those refuse, they refuse."""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import autoconv
from autoconv import _calls, dispatch, environment, ops
from autoconv import settings as _settings
from autoconv._backend import mx
from autoconv.algorithms import Candidate, Convolution, algorithms, candidates
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.errors import AutoconvWarning, SettingsError, TuningError
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.store import Qualification
from autoconv.store.sqlite import SqliteStore
from autoconv.tuning.qualification import fingerprint

mx_conv3d, mx_conv_general = mx.conv3d, mx.conv_general
Arguments = dict[str, Any]


@pytest.fixture(autouse=True)
def on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU is the default device, in a database of this test's own that knows it as qualified."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a lock of this test's own
    monkeypatch.setattr(_settings, "_configured", _settings.from_environment({}))
    autoconv.configure(database=tmp_path / "own.db", policy="measure", budget_ms=1)
    dispatch.forget()
    _calls.forget()
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    here = environment.of(mx.default_device()).id
    store = dispatch.dispatcher().store(_settings.current())
    store.qualify(Qualification(here, fingerprint(algorithms())))
    yield
    mx.set_default_device(before)
    dispatch.dispatcher().close()
    dispatch.forget()
    _calls.forget()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Problem, Settings]]:
    """Every decision is for the last candidate that applies, which is not native; lists what was asked."""
    asked = []

    def decide(self: Dispatcher, problem: Problem, settings: Settings, device: mx.Device) -> Decision:
        asked.append((problem, settings))
        last = candidates(problem, environment.of(device).backend)[-1]
        assert last.name != "native"
        return Decision(last.name, Source.DATABASE, 0.5, "for a test")

    monkeypatch.setattr(Dispatcher, "decide", decide)
    return asked


@pytest.fixture
def nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(*_: object) -> NoReturn:
        msg = "something is decided"
        raise AssertionError(msg)

    monkeypatch.setattr(Dispatcher, "decide", decide)


def array(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.uniform(-1, 1, shape, key=mx.random.key(sum(shape))).astype(dtype)


X, W = array(2, 5, 6, 7, 4), array(6, 3, 2, 3, 4)
TOLERANCE = {mx.float16: 4e-3, mx.bfloat16: 3e-2, mx.float32: 1e-5, mx.float64: 1e-5}


def same(found: mx.array, wanted: mx.array) -> None:
    """Same shape and dtype, and the same values but for rounding."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if wanted.size == 0:
        return
    wide = mx.float64 if wanted.dtype == mx.float64 else mx.float32
    a, b = np.array(found.astype(wide), np.float64), np.array(wanted.astype(wide), np.float64)
    assert np.linalg.norm(a - b) <= TOLERANCE[wanted.dtype] * np.linalg.norm(b)


# What they compute

CONV3D: list[Arguments] = [
    {},
    {"stride": 2},
    {"stride": (2, 1, 3)},
    {"stride": [2, 1, 3]},
    {"padding": 1},
    {"padding": (0, 1, 2)},
    {"padding": [0, 1, 2]},
    {"dilation": 2},
    {"dilation": (2, 1, 3)},
    {"dilation": [2, 1, 3]},
    {"stride": 2, "padding": [1, 0, 1], "dilation": (1, 2, 1), "groups": 1},
    {"stride": np.int64(2), "padding": (np.int32(1), 0, 1)},
    {"padding": range(3)},
]
CONV_GENERAL: list[Arguments] = [
    {},
    {"stride": [2, 1, 3]},
    {"stride": [2]},
    {"padding": 1},
    {"padding": (0, 1, 2)},
    {"padding": ([2, 0, 1], [0, 1, 1])},
    {"padding": [(2, 0, 1), (0, 1, 1)]},
    {"padding": ([1], [0])},
    {"padding": ([-1, 0, 0], [0, -2, 1])},
    {"padding": ([-1, 2, -1], [-1, -2, -1])},
    {"kernel_dilation": [2, 1, 3]},
    {"input_dilation": 2},
    {"input_dilation": (3, 1, 2), "padding": 1, "stride": 2},
    {"flip": True},
    {"flip": True, "padding": ([2, 0, 0], [0, 1, 1]), "input_dilation": [1, 2, 1], "kernel_dilation": 2},
]


@pytest.mark.parametrize("arguments", CONV3D, ids=repr)
def test_conv3d_is_that_of_mlx_by_another_way(decided: list[object], arguments: Arguments) -> None:
    same(autoconv.conv3d(X, W, **arguments), mx_conv3d(X, W, **arguments))
    assert decided


@pytest.mark.parametrize("arguments", CONV_GENERAL, ids=repr)
def test_conv_general_is_that_of_mlx_by_another_way(decided: list[object], arguments: Arguments) -> None:
    same(autoconv.conv_general(X, W, **arguments), mx_conv_general(X, W, **arguments))
    assert decided


@pytest.mark.parametrize("arguments", [CONV3D[0], CONV3D[5], CONV3D[10]], ids=repr)
def test_conv3d_is_that_of_mlx_by_whatever_way_is_fastest_here(arguments: Arguments) -> None:
    small, weight = X[:1, :, :4, :4], W
    wanted = mx_conv3d(small, weight, **arguments)
    for _ in range(3):  # timed, then known
        same(autoconv.conv3d(small, weight, **arguments), wanted)
    counted = autoconv.statistics()
    assert counted["measured"] == 1


def test_arguments_may_be_given_by_place(decided: list[tuple[Problem, Settings]]) -> None:
    same(autoconv.conv3d(X, W, 2, (1, 0, 1), [1, 2, 1], 1), mx_conv3d(X, W, 2, (1, 0, 1), (1, 2, 1), 1))
    pair = ([2, 0, 0], [0, 1, 1])
    same(
        autoconv.conv_general(X, W, 2, pair, 1, [1, 2, 1], 1, True),
        mx_conv_general(X, W, 2, pair, 1, [1, 2, 1], 1, True),
    )
    assert decided[1][0] == Problem.parse(X.shape, W.shape, stride=2, padding=pair, input_dilation=(1, 2, 1), flip=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *itertools.product([mx.float32, mx.float16, mx.bfloat16], repeat=2),
        (mx.float64, mx.float64),
        (mx.float64, mx.float32),
        (mx.bfloat16, mx.float64),
    ],
    ids=str,
)
def test_dtypes_promote_as_in_mlx(decided: list[object], first: mx.Dtype, second: mx.Dtype) -> None:
    x, w = X.astype(first), W.astype(second)
    same(autoconv.conv3d(x, w, padding=1), mx_conv3d(x, w, padding=1))
    pair = ([-1, 0, 0], [0, 1, 1])
    same(autoconv.conv_general(x, w, padding=pair), mx_conv_general(x, w, padding=pair))
    assert decided


def test_a_candidate_gets_operands_of_the_problem_s_shape_and_dtype(
    decided: list[tuple[Problem, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = []

    def build(candidate: Candidate, problem: Problem) -> Convolution:
        def run(x: mx.array, w: mx.array, /) -> mx.array:
            got.append((x.shape, w.shape, x.dtype, w.dtype))
            return mx.zeros(problem.output_shape)

        return run

    monkeypatch.setattr(Candidate, "build", build)
    for first, second in ((mx.float16, mx.bfloat16), (mx.float64, mx.float16), (mx.bfloat16, mx.bfloat16)):
        for pair in (([-1, 0, 0], [0, -2, 1]), ([1, 0, 0], [0, 1, 1])):
            autoconv.conv_general(X.astype(first), W.astype(second), padding=pair)
    assert got == [(p.input_shape, p.weight_shape, getattr(mx, p.dtype), getattr(mx, p.dtype)) for p, _ in decided]
    assert len(got) == 6


@pytest.mark.parametrize("stream", [None, mx.cpu], ids=["", "on a stream"])
@pytest.mark.parametrize("write", [tuple, list])
def test_no_argument_is_lost_on_the_way(decided: list[object], write: type, stream: Any) -> None:
    ones = write((1, 1, 1))
    first: Arguments = {"stride": ones, "padding": ones, "dilation": ones}
    for name in (None, *first):
        arguments = first | ({} if name is None else {name: write((2, 1, 2))})
        wanted = mx_conv3d(X, W, **arguments)
        for _ in range(2):
            same(autoconv.conv3d(X, W, **arguments, stream=stream), wanted)
    general: Arguments = {"stride": ones, "padding": ones, "kernel_dilation": ones, "input_dilation": ones}
    for name in (None, "flip", *general):
        arguments = general | ({} if name is None else {name: True if name == "flip" else write((2, 1, 2))})
        wanted = mx_conv_general(X, W, **arguments)
        for _ in range(2):
            same(autoconv.conv_general(X, W, **arguments, stream=stream), wanted)
    assert len(decided) == 4 + 6


@pytest.mark.usefixtures("nothing_is_decided")
def test_what_is_no_convolution_of_floats_with_floats_goes_to_mlx() -> None:
    x, w = X, (W * 5).astype(mx.int32)
    same(autoconv.conv3d(x, w), mx_conv3d(x, w))


@pytest.mark.usefixtures("nothing_is_decided")
@pytest.mark.parametrize("padding", [np.array([1, 0, 1]), mx.array([1, 0, 1])], ids=["NumPy", "MLX"])
def test_arguments_that_only_mlx_understands_go_to_it(padding: Any) -> None:
    same(autoconv.conv3d(X, W, padding=padding), mx_conv3d(X, W, padding=(1, 0, 1)))


@pytest.mark.usefixtures("nothing_is_decided")
def test_an_empty_batch_goes_to_mlx() -> None:
    same(autoconv.conv3d(X[:0], W), mx_conv3d(X[:0], W))
    same(autoconv.conv_general(X[:0], W, flip=True), mx_conv_general(X[:0], W, flip=True))


def test_an_input_without_frames_is_all_padding() -> None:
    x = mx.zeros((1, 0, 4, 4, 4))
    same(autoconv.conv3d(x, W, padding=2), mx_conv3d(x, W, padding=2))


@pytest.mark.usefixtures("nothing_is_decided")
def test_one_and_two_dimensions_go_to_mlx_untouched() -> None:
    line, image = array(2, 9, 4), array(2, 6, 7, 4)
    for x, w, arguments in (
        (line, array(4, 3, 4), {"padding": 1, "stride": [2]}),
        (line, array(4, 3, 2), {"groups": 2}),
        (image, array(6, 3, 2, 4), {"padding": ([1, 0], [0, 1]), "flip": True, "input_dilation": [1, 2]}),
        (image, array(4, 3, 3, 2), {"groups": 2, "kernel_dilation": 2}),
    ):
        with_ours = autoconv.conv_general(x, w, **arguments)
        assert mx.array_equal(with_ours, mx_conv_general(x, w, **arguments))


def test_views_are_read_as_they_are(decided: list[object]) -> None:
    x, w = mx.transpose(array(2, 4, 5, 6, 7), (0, 2, 3, 4, 1)), mx.transpose(array(4, 3, 2, 3, 6), (4, 1, 2, 3, 0))
    same(autoconv.conv3d(x, w, padding=1), mx_conv3d(x, w, padding=1))
    same(autoconv.conv3d(X[:, ::2, 1:], W, padding=1), mx_conv3d(X[:, ::2, 1:], W, padding=1))


def test_groups_work_although_mlx_has_none_in_3d() -> None:
    x, w = X, array(6, 3, 2, 3, 2)
    halves = [mx_conv3d(x[..., :2], w[:3], padding=1), mx_conv3d(x[..., 2:], w[3:], padding=1)]
    wanted = mx.concatenate(halves, axis=-1)
    with pytest.raises(ValueError, match="groups"):
        mx_conv3d(x, w, padding=1, groups=2)
    for policy in ("measure", "predict", "record", "auto"):
        same(autoconv.conv3d(x, w, padding=1, groups=2, policy=policy), wanted)
        same(autoconv.conv_general(x, w, padding=1, groups=2, policy=policy), wanted)


def cpu_streams() -> list[Any]:
    device = mx.Device(mx.cpu)
    return [None, mx.cpu, device, mx.default_stream(device), mx.new_stream(device), mx.new_thread_local_stream(device)]


@pytest.mark.parametrize("place", range(6))
def test_any_stream_will_do_and_the_default_one_stays(decided: list[object], place: int) -> None:
    stream = cpu_streams()[place]
    before = mx.default_stream(mx.default_device())
    for _ in range(2):
        same(autoconv.conv3d(X, W, padding=1, stream=stream), mx_conv3d(X, W, padding=1))
        same(autoconv.conv_general(X, W, flip=True, stream=stream), mx_conv_general(X, W, flip=True))
    same(autoconv.conv_general(X[0], W[:, 0], stream=stream), mx_conv_general(X[0], W[:, 0]))
    assert mx.default_stream(mx.default_device()) == before
    assert mx.default_device() == mx.cpu


# Under MLX's transformations


def convolve(x: mx.array, w: mx.array) -> mx.array:
    return autoconv.conv3d(x, w, stride=(1, 2, 1), padding=1)


def mlx_s(x: mx.array, w: mx.array) -> mx.array:
    return mx_conv3d(x, w, stride=(1, 2, 1), padding=1)


@pytest.fixture(params=["another way", "timed in the trace"])
def way(request: pytest.FixtureRequest) -> None:
    if request.param == "another way":
        request.getfixturevalue("decided")


@pytest.mark.usefixtures("way")
def test_it_compiles() -> None:
    compiled = mx.compile(convolve)
    for batch in (1, 2, 1):
        same(compiled(X[:batch], W), mlx_s(X[:batch], W))


def test_switched_off_it_compiles_for_any_shape() -> None:
    """Nothing that slices by sizes can, so the README names this policy for it."""
    wanted = mx.compile(mlx_s, shapeless=True)(X, W)
    with autoconv.using(policy="off"):
        same(mx.compile(convolve, shapeless=True)(X, W), wanted)


@pytest.mark.usefixtures("way")
def test_it_is_differentiable() -> None:
    def loss(of: Callable[[mx.array, mx.array], mx.array]) -> Callable[[mx.array, mx.array], mx.array]:
        return lambda x, w: mx.sum(of(x, w) * mx.cos(of(x, w)))

    found = mx.grad(loss(convolve), argnums=(0, 1))(X, W)
    wanted = mx.grad(loss(mlx_s), argnums=(0, 1))(X, W)
    for ours, theirs in zip(found, wanted, strict=True):
        same(ours, theirs)


@pytest.mark.usefixtures("way")
def test_it_is_vectorised() -> None:
    several = mx.stack([X, X + 1, X * 2])
    found = mx.vmap(convolve, in_axes=(0, None))(several, W)
    same(found, mx.stack([mlx_s(x, W) for x in several]))


@pytest.mark.usefixtures("way")
def test_it_trains_inside_a_compiled_step() -> None:
    def step(of: Callable[[mx.array, mx.array], mx.array]) -> Callable[[mx.array, mx.array], mx.array]:
        gradient = mx.grad(lambda w, x: mx.mean(mx.square(of(x, w))))
        return lambda w, x: w - 0.1 * gradient(w, x)

    same(mx.compile(step(convolve))(W, X), step(mlx_s)(W, X))


# What they refuse

INTEGERS = mx.ones((1, 4, 5, 5, 4), mx.int32), mx.ones((8, 3, 3, 3, 4), mx.int32)
S, K = array(1, 4, 5, 5, 4), array(8, 3, 3, 3, 4)
BAD: dict[str, tuple[Any, Any, Arguments]] = {
    "integers": (*INTEGERS, {}),
    "complex numbers": (S.astype(mx.complex64), K.astype(mx.complex64), {}),
    "an input without a batch": (S[0], K, {}),
    "a weight without a depth": (S, K[:, 0], {}),
    "an input of rank 6": (S[None], K, {}),
    "channels that do not match": (S, K[..., :3], {}),
    "a negative stride": (S, K, {"stride": -1}),
    "a stride of zero": (S, K, {"stride": (1, 0, 1)}),
    "a stride that is no integer": (S, K, {"stride": 1.5}),
    "a stride past 32 bits": (S, K, {"stride": 2**31}),
    "two strides": (S, K, {"stride": (1, 1)}),
    "four strides": (S, K, {"stride": (1, 1, 1, 1)}),
    "no output": (S, array(8, 5, 3, 3, 4), {}),
    "a weight larger than the padded input": (S, array(8, 7, 3, 3, 4), {"padding": 1}),
    "padding that takes all away": (S, K, {"padding": -2}),
    "padding in words": (S, K, {"padding": "111"}),
    "no padding at all": (S, K, {"padding": None}),
    "groups of zero": (S, K, {"groups": 0}),
    "groups below zero": (S, K, {"groups": -1}),
    "groups that do not divide the channels": (S, K, {"groups": 3}),
    "groups in words": (S, K, {"groups": "2"}),
    "an input of NumPy": (np.ones((1, 4, 5, 5, 4), np.float32), K, {}),
    "a weight of NumPy": (S, np.ones((8, 3, 3, 3, 4), np.float32), {}),
    "no input": (None, K, {}),
    "no weight": (S, None, {}),
    "lists": ([[1.0]], [[1.0]], {}),
    "a stream that is none": (S, K, {"stream": 5}),
}
BAD_FOR_CONV3D: dict[str, tuple[Any, Any, Arguments]] = {
    "a dilation of zero": (S, K, {"dilation": 0}),
    "too large a dilation": (S, K, {"dilation": 3}),
    "an argument that there is not": (S, K, {"flip": True}),
}
BAD_FOR_CONV_GENERAL: dict[str, tuple[Any, Any, Arguments]] = {
    "a dilation of zero": (S, K, {"kernel_dilation": 0}),
    "an input dilation of zero": (S, K, {"input_dilation": 0}),
    "padding of three sides": (S, K, {"padding": ([1, 1, 1], [1, 1, 1], [1, 1, 1])}),
    "uneven padding": (S, K, {"padding": ([1, 1, 1], [1, 1])}),
    "an argument that there is not": (S, K, {"dilation": 2}),
}
FUNCTIONS: dict[str, tuple[Callable[..., mx.array], Callable[..., mx.array], dict[str, Any]]] = {
    "conv3d": (autoconv.conv3d, mx_conv3d, BAD | BAD_FOR_CONV3D),
    "conv_general": (autoconv.conv_general, mx_conv_general, BAD | BAD_FOR_CONV_GENERAL),
}


def database_state(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("own.db*"))}


@pytest.mark.parametrize(
    ("function", "case"), [(name, case) for name, (_, _, cases) in FUNCTIONS.items() for case in cases]
)
def test_what_mlx_refuses_is_refused_alike_and_leaves_no_trace(function: str, case: str, tmp_path: Path) -> None:
    ours, theirs, cases = FUNCTIONS[function]
    x, w, arguments = cases[case]
    with pytest.raises((TypeError, ValueError)) as wanted:
        mx.eval(theirs(x, w, **arguments))
    before = database_state(tmp_path)
    assert "own.db" in before
    for policy in ("measure", "record"):
        with autoconv.using(policy=policy), pytest.raises((TypeError, ValueError)) as found:
            mx.eval(ours(x, w, **arguments))
        assert found.type is wanted.type
        assert str(found.value)
    assert database_state(tmp_path) == before


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((1, 4, 5, 5, 4), (0, 3, 3, 3, 4)),
        ((1, 4, 5, 5, 4), (8, 0, 3, 3, 4)),
        ((1, 4, 5, 5, 0), (8, 3, 3, 3, 0)),
    ],
    ids=["no output channels", "no taps", "no channels"],
)
@pytest.mark.parametrize("policy", ["measure", "predict", "record"])
def test_sums_of_nothing_are_refused(
    x: Sequence[int], w: Sequence[int], policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLX is not asked what it says of these: on the CPU its BLAS ends the process."""

    def deadly(*_: object, **__: object) -> NoReturn:
        msg = "MLX is called"
        raise AssertionError(msg)

    for name in ("_mx_conv3d", "_mx_conv_general"):
        monkeypatch.setattr(f"autoconv.ops.{name}", deadly)
    before = database_state(tmp_path)
    for function in (autoconv.conv3d, autoconv.conv_general):
        with pytest.raises(ValueError, match="must be at least 1"):
            function(mx.zeros(x), mx.zeros(w), policy=policy)
    assert database_state(tmp_path) == before


@pytest.mark.parametrize(
    "setting", [{"policy": "fast"}, {"accuracy": "good"}, {"accuracy": -1.0}, {"memory_limit": "lots"}], ids=repr
)
def test_a_setting_of_a_call_that_cannot_be_is_refused(setting: Arguments, tmp_path: Path) -> None:
    before = database_state(tmp_path)
    (name,) = setting
    for function in (autoconv.conv3d, autoconv.conv_general):
        with pytest.raises(SettingsError, match=name):
            function(S, K, **setting)
    assert database_state(tmp_path) == before


# Whose settings count


def test_a_call_s_settings_win_over_using_and_that_over_configure(decided: list[tuple[Problem, Settings]]) -> None:
    autoconv.configure(policy="record", accuracy="strict", memory_limit="3GB")
    with autoconv.using(policy="predict", accuracy=0.25):
        autoconv.conv3d(X, W, policy="auto")
        autoconv.conv_general(X, W, accuracy=0.5, memory_limit="1GB")
        autoconv.conv3d(X, W)
    autoconv.conv3d(X, W)
    assert [(str(s.policy), s.accuracy, s.memory_limit) for _, s in decided] == [
        ("auto", 0.25, 3 * 10**9),
        ("predict", 0.5, 10**9),
        ("predict", 0.25, 3 * 10**9),
        ("record", "strict", 3 * 10**9),
    ]


def test_a_decision_under_some_settings_is_none_under_others(decided: list[tuple[Problem, Settings]]) -> None:
    for policy, accuracy in (("auto", None), ("measure", None), ("auto", 0.5), ("auto", None), ("auto", 0.5)):
        autoconv.conv3d(X, W, policy=policy, accuracy=accuracy)
    assert len(decided) == 3


def test_off_is_mlx_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def theirs(*arguments: object) -> mx.array:
        called.append(arguments)
        return mx.zeros(())

    for name in ("_mx_conv3d", "_mx_conv_general"):
        monkeypatch.setattr(f"autoconv.ops.{name}", theirs)
    autoconv.conv3d(X, W, 2, (1, 0, 1), policy="off")
    with autoconv.using(policy="off"):
        autoconv.conv_general(X, W, padding=([1, 0, 0], [0, 0, 0]), flip=True)
    assert called == [(X, W, 2, (1, 0, 1), 1, 1), (X, W, 1, ([1, 0, 0], [0, 0, 0]), 1, 1, 1, True)]


def run_python(code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTOCONV_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SHOW = """
import json, autoconv
from autoconv import settings
autoconv.configure(budget_ms=7)
with autoconv.using(accuracy="strict"):
    print(json.dumps(settings.as_dict(settings.current())))
"""


def test_the_environment_s_settings_give_way_to_all_others() -> None:
    done = run_python(SHOW, AUTOCONV_POLICY="record", AUTOCONV_BUDGET_MS="5", AUTOCONV_ACCURACY="0.5")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["policy"], found["budget_ms"], found["accuracy"]) == ("record", 7.0, "strict")


@pytest.mark.parametrize(
    ("variable", "value"), [("AUTOCONV_POLICY", "fast"), ("AUTOCONV_STALL", "ages"), ("AUTOCONV_MEMORY_LIMIT", "0")]
)
def test_a_variable_that_cannot_be_is_named_at_the_first_call(variable: str, value: str) -> None:
    call = "autoconv.conv3d(mx.zeros((1, 3, 3, 3, 1)), mx.zeros((1, 1, 1, 1, 1)))"
    done = run_python(f"import autoconv, mlx.core as mx; {call}", **{variable: value})
    assert done.returncode != 0
    assert f"SettingsError: {variable}: " in done.stderr.splitlines()[-1]
    assert value in done.stderr.splitlines()[-1]


# What a known shape costs


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (autoconv.conv3d, {"padding": 1}),
        (autoconv.conv3d, {"stride": [1, 2, 1], "padding": (1, 1, 1)}),
        (autoconv.conv_general, {"padding": ([1, 0, 0], [0, 0, 1]), "flip": True}),
        (autoconv.conv3d, {"padding": 1, "accuracy": "strict"}),
        (autoconv.conv3d, {"padding": 1, "stream": mx.cpu}),
    ],
    ids=["ints", "lists", "general", "own settings", "own stream"],
)
def test_a_known_shape_asks_nobody(
    function: Callable[..., mx.array], arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = function(S, K, **arguments)
    before = autoconv.statistics()

    def asked(*_: object, **__: object) -> NoReturn:
        msg = "somebody is asked"
        raise AssertionError(msg)

    monkeypatch.setattr(sqlite3, "connect", asked)
    for name in ("records", "_connected", "_select"):
        monkeypatch.setattr(SqliteStore, name, asked)
    for name in ("decide", "look_up", "store", "candidate"):
        monkeypatch.setattr(Dispatcher, name, asked)
    monkeypatch.setattr(Problem, "parse", asked)
    for _ in range(3):
        same(function(S + 0, K + 0, **arguments), wanted)
    with pytest.raises(AssertionError, match="somebody is asked"):
        function(S[:, 1:], K, **arguments)
    after = autoconv.statistics()
    assert after["memory"] == before["memory"] + 3
    assert {s: n for s, n in after.items() if s != "memory"} == {s: n for s, n in before.items() if s != "memory"}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (autoconv.conv3d, {"stride": [1, 2, 1], "padding": [1, 1, 1], "dilation": [1, 1, 1]}),
        (autoconv.conv_general, {"stride": [1, 2, 1], "padding": [1, 1, 1], "kernel_dilation": [1, 2, 1]}),
        (autoconv.conv_general, {"padding": ([1, 0, 0], [0, 0, 1]), "input_dilation": [1, 2, 1]}),
        (autoconv.conv_general, {"padding": [[1, 0, 0], (0, 0, 1)], "flip": True}),
        (autoconv.conv_general, {"padding": [[1], [0]]}),
    ],
    ids=["conv3d", "lists", "a pair of lists", "a list of both", "short ones"],
)
def test_lists_are_looked_up_as_tuples_are(
    function: Callable[..., mx.array], arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a shape is known nothing but that look-up happens, and both ways of writing it are one."""
    wanted = function(S, K, **arguments)

    def slow(*_: object, **__: object) -> NoReturn:
        msg = "the arguments are read once more"
        raise AssertionError(msg)

    monkeypatch.setattr(ops, "call", slow)
    same(function(S, K, **arguments), wanted)
    as_tuples = {name: tupled(value) for name, value in arguments.items()}
    same(function(S, K, **as_tuples), wanted)
    assert len(_calls.known) == 1


def tupled(value: Any) -> Any:
    return tuple(map(tupled, value)) if isinstance(value, (list, tuple)) else value


def test_one_shape_on_another_device_or_dtype_is_another(decided: list[tuple[Problem, Settings]]) -> None:
    autoconv.conv3d(S, K)
    autoconv.conv3d(S.astype(mx.float16), K)
    autoconv.conv3d(S, K.astype(mx.float16))
    autoconv.conv3d(S.astype(mx.float16), K.astype(mx.float16))
    assert [p.dtype for p, _ in decided] == ["float32", "float32", "float32", "float16"]


def test_a_call_leaves_no_trace_in_mlx() -> None:
    mx.random.seed(3)
    before = np.array(mx.random.state[0]), mx.default_device(), mx.default_stream(mx.default_device())  # type: ignore[index]
    mx.eval(mx.zeros((4_000_000,)) + 1)
    peak = mx.get_peak_memory()
    mx.eval(autoconv.conv3d(S, K, padding=1))
    assert autoconv.statistics()["measured"] == 1
    after = np.array(mx.random.state[0]), mx.default_device(), mx.default_stream(mx.default_device())  # type: ignore[index]
    assert (before[0] == after[0]).all()
    assert before[1:] == after[1:]
    assert mx.get_peak_memory() >= peak >= 16_000_000


# Asking and telling


def test_tune_measures_and_the_next_call_uses_it() -> None:
    with autoconv.using(policy="predict"):
        autoconv.conv3d(S, K, padding=1)
        assert autoconv.statistics()["native"] == 1
        found = autoconv.tune(S, K, padding=1)
        assert found.decision.source is Source.MEASURED
        autoconv.conv3d(S, K, padding=1)
    assert autoconv.statistics()["database"] == 1
    assert {v.record.candidate for v in found.decision.verdicts} == set(found.candidates)
    assert str(found).startswith("1x4x5x5x4 * 8x3x3x3x4, float32, padding 1  (")


@pytest.mark.parametrize("ask", [autoconv.explain, autoconv.tune], ids=["explain", "tune"])
def test_shapes_say_as_much_as_arrays(ask: Callable[..., autoconv.Explanation]) -> None:
    how: Arguments = {"stride": 2, "padding": ([1, 0, 1], [0, 1, 1]), "flip": True, "input_dilation": (1, 2, 1)}
    of_arrays = ask(S.astype(mx.float16), K, **how)
    of_shapes = ask(S.shape, list(K.shape), dtype="float32", **how)
    assert of_arrays.problem == of_shapes.problem == Problem.parse(S.shape, K.shape, **how)
    assert ask(S.shape, K.shape).problem.dtype == "float32"
    assert ask(S.astype(mx.bfloat16), K.astype(mx.bfloat16)).problem.dtype == "bfloat16"


@pytest.mark.parametrize("ask", [autoconv.explain, autoconv.tune], ids=["explain", "tune"])
def test_what_can_be_called_can_be_asked_about(ask: Callable[..., autoconv.Explanation]) -> None:
    """Negative padding takes elements off the input, as it does in a call."""
    how: Arguments = {"padding": ([-1, 0, 0], [0, -1, 1])}
    autoconv.conv_general(S, K, **how)
    assert ask(S, K, **how).problem == Problem.parse((1, 3, 4, 5, 4), K.shape, padding=((0, 0, 0), (0, 0, 1)))


@pytest.mark.parametrize("ask", [autoconv.explain, autoconv.tune], ids=["explain", "tune"])
@pytest.mark.parametrize("case", ["integers", "no output", "a negative stride", "no input", "an input without a batch"])
def test_what_cannot_be_called_cannot_be_asked_about(
    ask: Callable[..., autoconv.Explanation], case: str, tmp_path: Path
) -> None:
    x, w, arguments = BAD[case]
    before = database_state(tmp_path)
    with pytest.raises((TypeError, ValueError)):
        ask(x, w, **arguments)
    assert database_state(tmp_path) == before


def test_explain_follows_the_settings_of_the_question() -> None:
    assert autoconv.explain(S, K, policy="off").decision.reason == "policy is off"
    assert autoconv.explain(S, K, memory_limit="1MB").memory_bytes == 10**6
    with pytest.raises(SettingsError, match="there is no setting"):
        autoconv.explain(S, K, polcy="off")


def test_explain_never_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: object, **__: object) -> NoReturn:
        msg = "something is timed"
        raise AssertionError(msg)

    monkeypatch.setattr(Dispatcher, "_measure", timed)
    for policy in ("auto", "measure", "predict", "record", "off"):
        autoconv.explain(S, K, policy=policy)
    with pytest.raises(AssertionError, match="something is timed"):
        autoconv.tune(S, K)


def test_an_empty_batch_cannot_be_timed_and_says_so() -> None:
    with pytest.raises(TuningError):
        autoconv.tune((0, 4, 5, 5, 4), K.shape)


def test_statistics_name_every_source() -> None:
    assert set(autoconv.statistics()) == {"memory", "database", "shipped", "model", "measured", "native"}
    assert all(type(n) is int for n in autoconv.statistics().values())


def test_a_database_that_cannot_be_opened_costs_a_call_one_warning(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    autoconv.configure(database=tmp_path / "folder.db", policy="predict")
    with pytest.warns(AutoconvWarning, match=r"folder\.db") as caught:
        found = [autoconv.conv3d(x, K) for x in (S, S[:, 1:], S)]
    assert len(caught) == 1
    for ours, x in zip(found, (S, S[:, 1:], S), strict=True):
        same(ours, mx_conv3d(x, K))


# The public face


def signature_of(function: Callable[..., object]) -> inspect.Signature:
    """The signature of a function of MLX, which its docstring begins with."""
    line = (function.__doc__ or "").splitlines()[0]
    (definition,) = ast.parse(f"def {line}: ...").body
    assert isinstance(definition, ast.FunctionDef)
    definition.returns = None
    for argument in (*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs):
        argument.annotation = None
    made: dict[str, Any] = {}
    exec(ast.unparse(definition), made)
    return inspect.signature(made[definition.name])


@pytest.mark.parametrize("name", ["conv3d", "conv_general"])
def test_every_parameter_of_mlx_is_taken_in_its_place_with_its_default(name: str) -> None:
    ours = list(inspect.signature(getattr(autoconv, name)).parameters.values())
    theirs = list(signature_of(getattr(mx, name)).parameters.values())
    assert len(theirs) >= 7
    for mine, wanted in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (wanted.name, wanted.kind, wanted.default)
    own = ours[len(theirs) :]
    assert [p.name for p in own] == ["policy", "accuracy", "memory_limit"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in own)


def test_all_is_sorted_and_complete() -> None:
    assert autoconv.__all__ == sorted(autoconv.__all__)
    assert len(set(autoconv.__all__)) == len(autoconv.__all__)
    there = {
        name
        for name, value in vars(autoconv).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert there | {"__version__"} == set(autoconv.__all__)


PUBLIC = [name for name in autoconv.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_face_has_docstrings(name: str) -> None:
    value = getattr(autoconv, name)
    assert (value.__doc__ or "").strip()
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert (function.__doc__ or "").strip(), method


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(autoconv, name))])
def test_every_parameter_of_the_public_face_is_documented(name: str) -> None:
    function = getattr(autoconv, name)
    text = inspect.cleandoc(function.__doc__)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD or parameter.name != "changes":
            assert f"\n    {parameter.name}: " in text, parameter.name


HEAVY = ("sklearn", "sqlite_utils", "joblib", "rich", "click", "platformdirs", "sqlite3")


def test_the_import_is_light_and_silent() -> None:
    code = "import sys, autoconv; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = run_python(code, *HEAVY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


CALL = """
import sys, mlx.core as mx
mx.set_default_device(mx.cpu)
import autoconv
for _ in range(2):
    mx.eval(autoconv.conv3d(mx.ones((1, 2, 3, 3, 1)), mx.ones((1, 2, 3, 3, 1))))
print([m for m in sys.argv[1:] if m in sys.modules])
"""


def test_off_needs_nothing_but_mlx() -> None:
    done = run_python(CALL, *HEAVY, AUTOCONV_POLICY="off")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_prediction_without_a_model_imports_no_learning(tmp_path: Path) -> None:
    done = run_python(CALL, "sklearn", "joblib", AUTOCONV_POLICY="predict", AUTOCONV_DATABASE=str(tmp_path / "p.db"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
