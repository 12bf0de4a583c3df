"""The asked stream and device: what is chosen runs there, from any thread, and what one device chose no other runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from planted import plant

import autoconv

CHOSEN = ["native", "native(clips=1)", "kd_decomposition(sum=float32)", "depth_winograd(clips=1,tile=2)"]
X = mx.array(np.random.default_rng(0).standard_normal((2, 5, 6, 6, 4)).astype(np.float32))
W = mx.array(np.random.default_rng(1).standard_normal((4, 3, 3, 3, 4)).astype(np.float32))
EXPECTED = np.array(mx.conv3d(X, W, padding=1, stream=mx.cpu))


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """The CPU is the default device."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def close(found: mx.array, expected: Any = EXPECTED) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-3, atol=1e-2)


def in_threads(work: Callable[[], None], count: int = 4) -> None:
    """Run it in so many threads at once; the first error is the test's."""
    errors: list[Exception] = []
    gate = threading.Barrier(count)

    def guarded() -> None:
        try:
            gate.wait()
            work()
        except Exception as error:  # noqa: BLE001 - a thread's error is raised where it is joined
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


CALLS: dict[str, Callable[[Any], mx.array]] = {
    "conv3d": lambda stream: autoconv.conv3d(X, W, padding=1, stream=stream),
    "conv_general": lambda stream: autoconv.conv_general(X, W, padding=([1, 1, 1], [1, 1, 1]), stream=stream),
}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_threads_have_streams_of_their_own(
    chosen: str, call: Callable[[Any], mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of MLX's may be used in the thread that made it alone."""
    plant(monkeypatch, chosen)

    def work() -> None:
        stream = mx.new_stream(mx.cpu)
        for _ in range(3):
            close(call(stream))
            with mx.stream(stream):
                close(call(None))

    in_threads(work)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("chosen", CHOSEN)
def test_a_thread_local_stream_serves_every_thread(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, chosen)
    stream = mx.new_thread_local_stream(mx.cpu)

    def work() -> None:
        for _ in range(3):
            close(CALLS["conv3d"](stream))
            with mx.stream(stream):
                close(CALLS["conv3d"](None))

    work()
    in_threads(work)


@pytest.mark.usefixtures("on_the_cpu")
def test_threads_that_meet_a_shape_at_once_are_all_served_and_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch, "kd_decomposition(sum=float32)")
    before = autoconv.statistics()
    in_threads(lambda: close(CALLS["conv3d"](None)), 8)
    after = autoconv.statistics()
    assert after["database"] - before["database"] == len(asked) >= 1
    assert sum(after.values()) - sum(before.values()) == 8


def of_another_thread() -> mx.Stream:
    """A stream that no operation may be evaluated on here: MLX raises then."""
    made: list[mx.Stream] = []
    in_threads(lambda: made.append(mx.new_stream(mx.cpu)), 1)
    return made[0]


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_every_operation_is_on_the_asked_stream_and_none_on_the_default(
    chosen: str, call: Callable[[Any], mx.array], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, chosen)
    if known:
        call(None)
    elsewhere, own = of_another_thread(), mx.new_stream(mx.cpu)
    before = mx.default_stream(mx.cpu)
    with pytest.raises(RuntimeError, match="no Stream"):
        mx.eval(call(elsewhere))
    assert mx.default_stream(mx.cpu) == before
    with mx.stream(elsewhere):
        found = call(own)
        mx.eval(found)
    close(found)


# Beside a GPU


def by_device(_problem: object, device: mx.Device) -> str:
    return "kd_decomposition(sum=float32)" if device.type == mx.gpu else "depth_concat(edges=pad)"


@pytest.mark.gpu
def test_each_device_has_a_decision_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch, by_device)
    for _ in range(2):
        for stream in (None, mx.cpu, mx.gpu, mx.new_stream(mx.cpu), mx.new_stream(mx.gpu)):
            close(CALLS["conv3d"](stream))
            close(CALLS["conv_general"](stream))
    assert {(str(p), d.type) for p, d in asked} == {(str(asked[0][0]), mx.cpu), (str(asked[0][0]), mx.gpu)}


@pytest.mark.gpu
def test_a_gradient_is_decided_for_the_device_of_its_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch, lambda _problem, _device: "native")
    with autoconv.using(gradients=True):
        for stream in (mx.cpu, mx.gpu):
            asked.clear()
            slope = mx.grad(lambda x, s=stream: autoconv.conv3d(x, W, padding=1, stream=s).sum())(X)
            close(slope, np.array(mx.grad(lambda x: mx.conv3d(x, W, padding=1).sum())(X)))
            assert {device.type for _, device in asked} == {stream}


@pytest.mark.gpu
def test_float64_goes_to_the_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "kd_decomposition(sum=float32)")
    with mx.stream(mx.cpu):
        x, w = X.astype(mx.float64), W.astype(mx.float64)
    found = autoconv.conv3d(x, w, padding=1, stream=mx.cpu)
    close(found)
