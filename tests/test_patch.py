"""Patching: MLX's functions do what ours do while anybody wants that, and are as they were after."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import pickle
import threading
import types
from collections.abc import Iterator
from typing import Any, cast

import mlx.nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ops import BAD, BAD_FOR_CONV3D, BAD_FOR_CONV_GENERAL, CONV3D, CONV_GENERAL, array, run_python, same

import autoconv
from autoconv import _backend, _calls, patching, settings
from autoconv._backend import mx
from autoconv.algorithms import _mlx, candidates
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.errors import SettingsError
from autoconv.patching import Patcher
from autoconv.problem import Problem
from autoconv.settings import Settings

NAMES = ("conv3d", "conv_general")
mx_conv3d, mx_conv_general = mx.conv3d, mx.conv_general
X, W = array(2, 5, 6, 7, 4), array(6, 3, 2, 3, 4)


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    """The CPU is the default device; MLX is not patched before, nor after."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    there = dict(vars(mx))
    yield
    mx.set_default_device(before)
    left = {name for name, value in vars(mx).items() if there.get(name) is not value}
    autoconv.unpatch()
    assert not left


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Lists the problems that are decided, each for the last candidate that applies, which is not native."""
    found = []

    def decide(self: Dispatcher, problem: Problem, _settings: Settings, _device: mx.Device) -> Decision:
        found.append(problem)
        last = candidates(problem, "cpu")[-1]
        assert last.name != "native"
        return Decision(last.name, Source.DATABASE, 0.5, "for a test")

    monkeypatch.setattr(Dispatcher, "decide", decide)
    return found


def is_patched() -> bool:
    """Whether both functions are replaced; either both are or none."""
    replaced = {getattr(mx, name) is not original for name, original in originals().items()}
    assert len(replaced) == 1
    return replaced.pop()


def originals() -> dict[str, object]:
    return {"conv3d": mx_conv3d, "conv_general": mx_conv_general}


# When it holds


def test_a_block_patches_and_puts_back_the_very_functions() -> None:
    before = dict(vars(mx))
    with autoconv.patch():
        assert {name for name, value in vars(mx).items() if before[name] is not value} == set(NAMES)
    assert list(vars(mx)) == list(before)
    assert all(vars(mx)[name] is value for name, value in before.items())


def test_plain_calls_are_as_one() -> None:
    for _ in range(3):
        autoconv.patch()
    assert is_patched()
    autoconv.unpatch()
    assert not is_patched()
    autoconv.unpatch()
    assert not is_patched()


def test_blocks_nest() -> None:
    with autoconv.patch():
        with autoconv.patch():
            assert is_patched()
        assert is_patched()
    assert not is_patched()


def test_blocks_that_overlap_hold_until_the_last_ends() -> None:
    first, second = autoconv.patch(), autoconv.patch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_patched()
    second.__exit__(None, None, None)
    assert not is_patched()


def test_a_block_ends_no_plain_call_and_unpatch_ends_no_block() -> None:
    autoconv.patch()
    with autoconv.patch():
        autoconv.unpatch()
        assert is_patched()
        autoconv.patch()
    assert is_patched()
    autoconv.unpatch()
    assert not is_patched()


def test_a_call_that_was_ended_before_its_block_began_is_counted_once() -> None:
    found = autoconv.patch()
    autoconv.unpatch()
    autoconv.patch()
    with found:
        pass
    assert is_patched()
    autoconv.unpatch()


def test_one_context_may_be_entered_again() -> None:
    found = autoconv.patch()
    for _ in range(2):
        with found, found:
            assert is_patched()
        assert not is_patched()


def test_an_error_in_the_block_goes_through_and_the_functions_are_back() -> None:
    with pytest.raises(KeyError, match="mine"), autoconv.patch():
        raise KeyError("mine")
    assert not is_patched()


STEPS = st.lists(st.sampled_from(["patch", "unpatch", "enter", "leave"]), max_size=20)


@given(STEPS)
def test_it_holds_as_long_as_a_block_or_a_plain_call_does(steps: list[str]) -> None:
    module = cast("types.ModuleType", types.SimpleNamespace(f="MLX's"))
    patcher = Patcher(module, {"f": "MLX's"}, {"f": "ours"})
    plain, blocks = False, []
    for step in steps:
        if step == "patch":
            patcher.patch()
            plain = True
        elif step == "unpatch":
            patcher.unpatch()
            plain = False
        elif step == "enter":
            blocks.append(patcher.patch().__enter__())
        elif blocks:
            blocks.pop().__exit__()
        held = plain or bool(blocks)
        assert (module.f == "ours") is held is patcher.active


def test_threads_may_patch_at_once() -> None:
    begin, broken = threading.Barrier(8), []

    def work(plain: bool) -> None:
        begin.wait()
        for _ in range(200):
            if plain:
                autoconv.patch()
                autoconv.unpatch()
            else:
                with autoconv.patch():
                    if not is_patched_whole():
                        broken.append(threading.get_ident())

    def is_patched_whole() -> bool:
        return mx.conv3d is not mx_conv3d and mx.conv_general is not mx_conv_general

    threads = [threading.Thread(target=work, args=(place % 2 == 0,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    assert not is_patched()


def test_a_block_that_begins_while_another_ends_holds() -> None:
    class Slow(types.ModuleType):
        """A module in which a change takes long enough for another thread to come."""

        def __setattr__(self, name: str, value: object) -> None:
            if value == "MLX's" and ending.is_set():
                begins.start()
                begins.join(0.2)
            super().__setattr__(name, value)

    ending, module = threading.Event(), Slow("slow")
    module.f = "MLX's"
    patcher = Patcher(module, {"f": "MLX's"}, {"f": "ours"})
    other = patcher.patch()
    patcher.unpatch()
    begins = threading.Thread(target=other.__enter__)
    with patcher.patch():
        ending.set()
    begins.join()
    assert module.f == "ours"
    assert patcher.active


def test_threads_convolve_while_others_patch(asked: list[Problem]) -> None:
    wanted, done = mx_conv3d(X, W), threading.Event()
    mx.eval(wanted)
    wrong: list[object] = []

    def convolve() -> None:
        with mx.stream(mx.new_stream(mx.Device(mx.cpu))):
            while not done.is_set():
                try:
                    same(mx.conv3d(X, W), wanted)
                except BaseException as error:
                    wrong.append(error)
                    raise

    threads = [threading.Thread(target=convolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        with autoconv.patch():
            same(mx.conv3d(X, W), wanted)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


# Beside others


def test_what_somebody_else_put_there_before_is_put_back() -> None:
    def theirs(*args: Any, **named: Any) -> mx.array:
        return mx_conv3d(*args, **named)

    mx.conv3d = theirs
    try:
        with autoconv.patch():
            assert mx.conv3d is not theirs
        assert mx.conv3d is theirs
    finally:
        mx.conv3d = mx_conv3d


def test_what_somebody_else_put_there_since_stays_and_what_it_calls_of_ours_is_idle(asked: list[Problem]) -> None:
    autoconv.patch()
    ours = mx.conv3d

    def theirs(*args: Any, **named: Any) -> mx.array:
        return ours(*args, **named)

    mx.conv3d = theirs
    same(mx.conv3d(X, W), mx_conv3d(X, W))
    assert len(asked) == 1
    autoconv.unpatch()
    assert mx.conv3d is theirs
    assert mx.conv_general is mx_conv_general
    _calls.forget()
    same(mx.conv3d(X, W), mx_conv3d(X, W))
    assert len(asked) == 1
    mx.conv3d = ours  # as they found it
    same(mx.conv3d(X, W), mx_conv3d(X, W))
    assert len(asked) == 1
    autoconv.unpatch()
    assert mx.conv3d is mx_conv3d
    mx.conv3d = ours
    with autoconv.patch():
        pass
    assert mx.conv3d is mx_conv3d


def test_patching_over_somebody_who_calls_ours_does_not_call_in_circles(asked: list[Problem]) -> None:
    autoconv.patch()
    ours = mx.conv3d

    def theirs(*args: Any, **named: Any) -> mx.array:
        return ours(*args, **named)

    mx.conv3d = theirs
    autoconv.unpatch()
    with autoconv.patch():
        same(mx.conv3d(X, W), mx_conv3d(X, W))
        assert len(asked) == 1
    assert mx.conv3d is theirs
    mx.conv3d = mx_conv3d


@pytest.mark.parametrize("name", NAMES)
def test_a_function_that_was_kept_is_mlx_s_again_after(name: str, asked: list[Problem]) -> None:
    with autoconv.patch():
        kept = getattr(mx, name)
    same(kept(X, W), mx_conv3d(X, W))
    assert not asked


def test_a_function_that_was_taken_before_stays_mlx_s(asked: list[Problem]) -> None:
    with autoconv.patch():
        same(mx_conv3d(X, W), mx_conv3d(X, W))
    assert not asked


def test_our_algorithms_call_mlx_s_own_even_where_they_are_imported_while_it_is_patched() -> None:
    with autoconv.patch():
        assert importlib.reload(_backend).mx_conv_general is mx_conv_general
        assert importlib.reload(_mlx).conv_general is mx_conv_general
    assert _mlx.conv_general is mx_conv_general


AGAIN = """
import sys, mlx.core as mx
mx.set_default_device(mx.cpu)
import autoconv
autoconv.patch()
for name in [n for n in sys.modules if n.partition(".")[0] == "autoconv"]:
    del sys.modules[name]
import autoconv
x, w = mx.ones((1, 3, 4, 4, 2)), mx.ones((2, 2, 2, 2, 2))
with autoconv.patch():
    print(mx.conv3d(x, w).sum().item(), mx.conv_general(x[0], w[:, 0]).sum().item())
"""


def test_two_autoconvs_in_one_process_do_not_call_in_circles() -> None:
    done = run_python(AGAIN, AUTOCONV_POLICY="off")
    assert done.returncode == 0, done.stderr
    assert [float(v) for v in done.stdout.split()] == [2 * 2 * 3 * 3 * 16, 3 * 2 * 3 * 3 * 8]


# What it reaches


@pytest.mark.parametrize("arguments", CONV3D, ids=repr)
def test_conv3d_is_ours(asked: list[Problem], arguments: dict[str, Any]) -> None:
    with autoconv.patch():
        same(mx.conv3d(X, W, **arguments), mx_conv3d(X, W, **arguments))
    assert asked


@pytest.mark.parametrize("arguments", CONV_GENERAL, ids=repr)
def test_conv_general_of_five_dimensions_is_ours(asked: list[Problem], arguments: dict[str, Any]) -> None:
    with autoconv.patch():
        same(mx.conv_general(X, W, **arguments), mx_conv_general(X, W, **arguments))
    assert asked


def test_layers_are_reached_whenever_they_were_made(asked: list[Problem]) -> None:
    class Own(mlx.nn.Conv3d):  # type: ignore[name-defined, misc]  # MLX's layers have no types
        def __call__(self, x: mx.array) -> mx.array:
            return mx.maximum(super().__call__(x), 0)

    before = [mlx.nn.Conv3d(4, 6, 3, padding=1), Own(4, 6, 2)]  # type: ignore[attr-defined]
    wanted = [layer(X) for layer in before]
    with autoconv.patch():
        after = [mlx.nn.Conv3d(4, 6, 3, padding=1), Own(4, 6, 2)]  # type: ignore[attr-defined]
        for made, other in zip(after, before, strict=True):
            made.update(other.parameters())
        found = [[layer(X) for layer in layers] for layers in (before, after)]
    assert len(asked) == 2
    for layers in (*found, [layer(X) for layer in after]):
        for ours, theirs in zip(layers, wanted, strict=True):
            same(ours, theirs)
    assert len(asked) == 2


def test_one_and_two_dimensions_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    line, image = array(2, 9, 4), array(2, 6, 7, 4)
    passed = []

    def listening(*args: Any, **named: Any) -> mx.array:
        passed.append((args, named))
        return mx_conv_general(*args, **named)

    monkeypatch.setattr(patching, "mx_conv_general", listening)
    monkeypatch.setattr(patching, "conv_general", None)
    for x, w in ((line, array(4, 3, 4)), (image, array(6, 3, 2, 4))):
        with autoconv.patch():
            found = mx.conv_general(x, w, padding=1)
            streamed = mx.conv_general(x, w, padding=1, stream=mx.cpu)
        assert mx.array_equal(found, mx_conv_general(x, w, padding=1))
        assert mx.array_equal(found, streamed)
        (first, second), (args, named) = passed[0][0][:2], passed[1]
        assert first is x
        assert second is w
        assert args[:2] == (x, w)
        assert named == {"stream": mx.cpu}
        passed.clear()


@pytest.mark.parametrize(
    ("x", "w"),
    [(X.astype(mx.int32), W), (X.astype(mx.complex64), W.astype(mx.complex64)), (X[:0], W)],
    ids=["integers", "complex", "empty"],
)
def test_what_is_not_understood_goes_to_mlx(x: mx.array, w: mx.array, asked: list[Problem]) -> None:
    for name, original in originals().items():
        call: Any = original

        def outcome(call: Any) -> object:
            try:
                found = call(x, w)
                mx.eval(found)
            except (TypeError, ValueError) as error:
                return type(error), str(error)
            return found.shape, found.dtype, found.tolist()

        with autoconv.patch():
            found = outcome(getattr(mx, name))
        assert found == outcome(call)
    assert not asked


@pytest.mark.parametrize("dtype", [mx.float64, mx.bfloat16], ids=str)
def test_other_floats_are_ours(dtype: mx.Dtype, asked: list[Problem]) -> None:
    with autoconv.patch():
        same(mx.conv3d(X.astype(dtype), W.astype(dtype)), mx_conv3d(X.astype(dtype), W.astype(dtype)))
    assert asked


def test_a_stream_is_the_one_that_is_used(asked: list[Problem]) -> None:
    for stream in (mx.cpu, mx.Device(mx.cpu), mx.new_stream(mx.Device(mx.cpu))):
        with autoconv.patch():
            same(mx.conv3d(X, W, stream=stream), mx_conv3d(X, W))
            same(mx.conv_general(X, W, stream=stream), mx_conv3d(X, W))
    assert asked


# What it refuses


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *itertools.product(["conv3d"], [*BAD, *BAD_FOR_CONV3D]),
        *itertools.product(["conv_general"], [*BAD, *BAD_FOR_CONV_GENERAL]),
    ],
)
def test_bad_arguments_are_refused_as_by_mlx(name: str, case: str) -> None:
    x, w, arguments = (BAD | (BAD_FOR_CONV3D if name == "conv3d" else BAD_FOR_CONV_GENERAL))[case]
    call: Any = originals()[name]
    with pytest.raises((TypeError, ValueError)) as wanted:
        mx.eval(call(x, w, **arguments))
    with autoconv.patch(), pytest.raises(wanted.type):
        mx.eval(getattr(mx, name)(x, w, **arguments))


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((X,), {}),
    ((X, W, *[1] * 12), {}),
    ((X, W), {"policy": "off"}),
    ((X, W), {"accuracy": 1.0}),
    ((X,), {"weight": W}),
    ((), {"input": X, "weight": W}),
    ((X, W, 1), {"stride": 1}),
    ((X, W), {"nonsense": 1}),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", range(len(CALLS)))
def test_a_call_that_mlx_does_not_know_is_refused_and_ours_are_no_arguments_of_it(name: str, place: int) -> None:
    args, named = CALLS[place]
    call: Any = originals()[name]
    with pytest.raises(TypeError):
        call(*args, **named)
    with autoconv.patch(), pytest.raises(TypeError):
        getattr(mx, name)(*args, **named)


# Under MLX's transformations


def convolve(x: mx.array, w: mx.array) -> mx.array:
    return mx.conv3d(x, w, stride=(1, 2, 1), padding=1)


def test_it_compiles(asked: list[Problem]) -> None:
    wanted = [convolve(X[:batch], W) for batch in (1, 2, 1)]
    with autoconv.patch():
        compiled = mx.compile(convolve)
        for batch, theirs in zip((1, 2, 1), wanted, strict=True):
            same(compiled(X[:batch], W), theirs)
    assert len(asked) == 2


def test_it_is_differentiable(asked: list[Problem]) -> None:
    def loss(x: mx.array, w: mx.array) -> mx.array:
        return mx.sum(mx.square(convolve(x, w)))

    wanted = mx.value_and_grad(loss, argnums=(0, 1))(X, W)
    with autoconv.patch():
        found = mx.value_and_grad(loss, argnums=(0, 1))(X, W)
        stepped = mx.compile(mx.grad(loss))(X, W)
    same(found[0], wanted[0])
    for ours, theirs in zip((*found[1], stepped), (*wanted[1], wanted[1][0]), strict=True):
        same(ours, theirs)
    assert asked


def test_it_is_vectorised(asked: list[Problem]) -> None:
    several = mx.stack([X, X + 1])
    wanted = mx.stack([convolve(x, W) for x in several])
    with autoconv.patch():
        same(mx.vmap(convolve, in_axes=(0, None))(several, W), wanted)
    assert asked


def test_switched_off_it_compiles_for_any_shape() -> None:
    wanted = mx.compile(convolve, shapeless=True)(X, W)
    with autoconv.using(policy="off"), autoconv.patch():
        same(mx.compile(convolve, shapeless=True)(X, W), wanted)


# How it looks


@pytest.mark.parametrize("name", NAMES)
def test_a_patched_function_looks_like_mlx_s(name: str) -> None:
    original: Any = originals()[name]
    with autoconv.patch():
        found = getattr(mx, name)
    assert (found.__name__, found.__qualname__, found.__module__) == (name, name, original.__module__)
    assert found.__doc__ == original.__doc__
    signature = inspect.signature(found)
    line = original.__doc__.splitlines()[0]
    assert [p for p in signature.parameters if f"{p}: " not in line] == []
    assert not {"policy", "accuracy", "memory_limit", "more", "unknown"} & set(signature.parameters)


def test_a_patched_function_is_pickled_by_its_name() -> None:
    with autoconv.patch():
        text = pickle.dumps(mx.conv3d)
        assert pickle.loads(text) is mx.conv3d
        assert copy.deepcopy(mx.conv3d) is mx.conv3d
    assert pickle.loads(text) is mx_conv3d


# Settings


def test_settings_that_cannot_be_are_told_of_when_it_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCONV_POLICY", "fast")
    monkeypatch.setattr(settings, "_configured", None)
    with pytest.raises(SettingsError, match="AUTOCONV_POLICY"):
        autoconv.patch()
    assert not is_patched()


def test_calls_are_counted(asked: list[Problem]) -> None:
    before = patching.calls()
    mx.conv3d(X, W)
    with autoconv.patch():
        mx.conv3d(X, W)
        mx.conv_general(X, W)
        mx.conv_general(X[0], W[:, 0])
    assert patching.calls() == before + 2


AT_IMPORT = """
import mlx.core as mx
before = mx.conv3d
import autoconv
print(mx.conv3d is not before)
autoconv.unpatch()
print(mx.conv3d is before)
"""


@pytest.mark.parametrize(
    ("value", "patched"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False), (None, False)]
)
def test_a_variable_patches_at_import(value: str | None, patched: bool) -> None:
    done = run_python(AT_IMPORT, **({} if value is None else {"AUTOCONV_PATCH": value}))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{patched}\nTrue\n", "")


@pytest.mark.parametrize("environ", [{"AUTOCONV_PATCH": "yes"}, {"AUTOCONV_PATCH": "1", "AUTOCONV_POLICY": "fast"}])
def test_a_variable_that_cannot_be_costs_a_warning(environ: dict[str, str]) -> None:
    done = run_python(AT_IMPORT, **environ)
    assert (done.returncode, done.stdout) == (0, "False\nTrue\n")
    assert done.stderr.count("AutoconvWarning") == 1
    assert next(v for v in environ if environ[v] in ("yes", "fast")) in done.stderr
