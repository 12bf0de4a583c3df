"""The real networks of the benchmark: they convolve what the workloads list, run patched as they run stock, and what
goes wrong with one is told of.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_networks as bench
import mlx.core as mx
import numpy as np
import pytest
import reference
from click.testing import CliRunner
from networks import NETWORKS, Network, Size
from networks._calls import depthwise, recorded
from networks._comparison import Comparison, Way
from networks._measuring import Asked, allowed, in_turns, measure
from networks._norm import BatchNorm3d, calibrated
from networks.ltx2 import Decoder as LtxDecoder
from networks.wan21 import Decoder as WanDecoder
from tolerance import EXACT_FLOAT32

import autoconv
from autoconv import _calls, environment
from autoconv._backend import mx_conv3d
from autoconv.algorithms import candidates
from autoconv.algorithms._algorithm import Convolution
from autoconv.decision import NATIVE
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.settings import Settings
from autoconv.store import open_store
from autoconv.sweep import packaged_workloads, read_workload

SCRIPT = Path(bench.__file__)
TOLERANCE = 2e-3 if EXACT_FLOAT32 else 1e-2  # of outputs of about 0.3
SMALL = Asked("small", "float32", repeats=1)

LISTED = {
    "wan21": ("wan21", "Wan2.1 VAE", "decode 480x832x81 (1 latent frame/chunk, feat cache)"),
    "ltx2": ("ltx", "LTX-2 VAE (mlx-video)", "decode 512x768x97"),
    "nnunet": ("nnunet", "nnU-Net 3d_fullres", "training patch 128x128x128, N=2 (forward)"),
    "r3d18": ("video_classification", "R3D-18", "clip 16x112x112, N=8"),
    "x3d": ("video_classification", "X3D-M", "clip 16x224x224, N=1"),
}
"""(workload, network, part) that lists a network's convolutions, by its name."""

each_network = pytest.mark.parametrize("name", NETWORKS)


def listed(name: str) -> Counter[Problem]:
    """How often a pass makes each convolution, by the workload, at the batch of the network."""
    workload, network, part = LISTED[name]
    batch = NETWORKS[name].full.input_shape[0]
    found: Counter[Problem] = Counter()
    for layer in read_workload(packaged_workloads()[workload]):
        if (layer.network, layer.part) == (network, part):
            shape = layer.problem.input_shape
            problem = replace(layer.problem, input_shape=(batch, *shape[1:]), dtype="float32")
            found[problem] += layer.count
    return found


@each_network
def test_at_full_size_a_pass_convolves_what_the_workload_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "eval", lambda *_: None)  # all stays lazy: nothing is computed
    size = NETWORKS[name].full
    with recorded() as met:
        try:
            size.build()(mx.zeros(size.input_shape))
        except (RuntimeError, TypeError, ValueError) as error:
            pytest.fail(repr(error), pytrace=False)  # a traceback shows arrays, and so would compute them
    assert not met - listed(name)
    assert not listed(name) - met


Chooser = Callable[[Problem], Convolution]


def backend() -> str:
    return environment.of(mx.default_device()).backend


@contextmanager
def deciding(chooser: Chooser) -> Iterator[None]:
    """Patched convolutions are run by what a function says."""

    def choose(problem: Problem, _settings: Settings, _device: mx.Device) -> Convolution:
        return chooser(problem)

    token = _calls.noter.set(choose)
    try:
        yield
    finally:
        _calls.noter.reset(token)


@each_network
def test_patched_a_network_computes_what_it_computes_stock_whichever_way(name: str) -> None:
    ran: Counter[str] = Counter()

    def another(problem: Problem) -> Convolution:
        found = next(c for c in candidates(problem, backend()) if c.name != NATIVE)
        ran[found.algorithm.name] += 1
        built: Convolution = found.build(problem)
        return built

    with deciding(another):
        result = measure(NETWORKS[name], SMALL)
    assert not result.why
    assert result.agrees
    assert ran.total() >= result.shapes
    assert NATIVE not in ran


@each_network
def test_a_wrong_convolution_is_seen_in_the_output(name: str) -> None:
    """Kernels turned round along the depth, which no sum or mean would tell."""

    def turned(problem: Problem) -> Convolution:
        found = next(c for c in candidates(problem, backend()) if c.name != NATIVE or problem.groups == 1)
        built: Convolution = found.build(problem)
        return lambda x, w: built(x, w[:, ::-1])

    with deciding(turned):
        result = measure(NETWORKS[name], SMALL)
    assert not result.agrees
    assert result.patched.apart is not None
    assert result.patched.apart > 0.05
    assert result.why == "the outputs do not agree"


def test_wan_decoded_by_latent_frames_is_wan_decoded_at_once() -> None:
    size = NETWORKS["wan21"].small
    decoder: WanDecoder = size.build()
    z = mx.random.normal((1, 4, *size.input_shape[2:]))
    whole = np.array(decoder(z, 4))
    assert whole.shape == (1, 13, 16, 24, 3)
    for frames in (1, 2, 3):
        np.testing.assert_allclose(np.array(decoder(z, frames)), whole, atol=TOLERANCE)


def test_no_frame_of_wan_sees_a_later_latent() -> None:
    size = NETWORKS["wan21"].small
    decoder: WanDecoder = size.build()
    z = mx.random.normal((1, 3, *size.input_shape[2:]))
    other = mx.concatenate([z[:, :2], -z[:, 2:]], axis=1)
    a, b = np.array(decoder(z, 3)), np.array(decoder(other, 3))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.01


def test_wan_with_causal_convolutions_of_autoconv_computes_the_same(qualified: Path) -> None:
    with autoconv.using(policy="record"):
        result = measure(NETWORKS["wan21"], replace(SMALL, causal=True))
    assert not result.why
    assert result.causal is not None
    assert result.causal.apart is not None
    assert result.allowed is not None
    assert 0 < result.causal.apart < result.allowed
    assert len(result.causal.seconds) == 1
    assert measure(NETWORKS["r3d18"], replace(SMALL, causal=True)).causal is None


def test_ltx_in_chunks_is_ltx_whole() -> None:
    whole = LtxDecoder(width=32, latents=4, blocks=1)
    chunked = LtxDecoder(width=32, latents=4, blocks=1, elements=5 * 18 * 18 * 4)
    chunked.update(whole.parameters())
    z = mx.random.normal((1, 2, 2, 2, 4))
    with recorded() as once:
        expected = whole(z)
    with recorded() as parts:
        found = chunked(z)
    assert parts.total() > once.total()
    assert found.shape == (1, 9, 64, 64, 3)
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3, 3), (1, 2, 2), (1, 1, 1)), ((5, 1, 1), (1, 1, 1), (2, 0, 0))]
)
def test_depthwise_convolutions_added_up_by_taps(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 5, 6, 3)), rng.standard_normal((3, *kernel, 1))
    problem = Problem.parse(x.shape, w.shape, stride=stride, padding=padding, groups=3)
    found = depthwise(mx.array(x, mx.float32), mx.array(w, mx.float32), stride, padding)
    np.testing.assert_allclose(np.array(found), reference.convolve(x, w, problem), atol=1e-5)


class _Identity:
    """A model of one convolution that fails where it is told to.

    Args:
        fails: Whether to fail, asked at each call.
    """

    def __init__(self, fails: Callable[[], bool]) -> None:
        self._fails = fails

    def __call__(self, x: mx.array) -> mx.array:
        if self._fails():
            msg = "[malloc] Unable to allocate 99 bytes."
            raise RuntimeError(msg)
        return mx.conv3d(x, mx.ones((1, 1, 1, 1, 1)))

    def modules(self) -> list[Any]:
        return []

    def parameters(self) -> dict[str, mx.array]:
        return {"weight": mx.ones((1, 1, 1, 1, 1))}

    def eval(self) -> None:
        pass

    def set_dtype(self, _dtype: mx.Dtype) -> None:
        pass


class _Pooled(_Identity):
    """A classifier whose output is the mean of all positions."""

    def features(self, x: mx.array) -> mx.array:
        return super().__call__(x)

    def __call__(self, x: mx.array) -> mx.array:
        return self.features(x).mean(axis=(1, 2, 3))


def test_what_the_mean_of_all_positions_hides_is_seen() -> None:
    size = Size((1, 4, 4, 4, 1), lambda: _Pooled(lambda: False))
    with deciding(lambda _problem: lambda x, _w: x[:, ::-1]):
        result = measure(Network("some", "some", size, size), SMALL)
    assert result.why == "the outputs do not agree"


def test_what_is_recorded_is_put_back() -> None:
    original = mx.conv3d
    with pytest.raises(NotImplementedError, match="only undilated depthwise"), recorded():
        mx.conv3d(mx.zeros((1, 2, 2, 2, 4)), mx.zeros((4, 1, 1, 1, 2)), groups=2)
    assert mx.conv3d is original


def test_calibrated_batch_norms_give_out_no_mean_and_a_variance_of_one() -> None:
    norm = BatchNorm3d(3)
    x = 5.0 + 3.0 * mx.random.normal((2, 4, 5, 6, 3))
    calibrated(norm, x)
    assert not norm.training
    y = np.array(norm(x)).reshape(-1, 3)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-2)


def test_groups_are_mlxs_own_error_in_the_stock_column() -> None:
    with autoconv.using(policy="record"):
        result = measure(NETWORKS["x3d"], SMALL)
    assert "groups" in result.stock.failed
    assert result.stock.seconds == ()
    assert result.ratio(result.patched) is None
    assert len(result.patched.seconds) == 1
    assert not result.why


def failing(fails: Callable[[], bool], name: str = "some") -> Network:
    size = Size((1, 2, 2, 2, 1), lambda: _Identity(fails))
    return Network(name, name, size, size)


def is_stock() -> bool:
    """Whether MLX is neither patched nor recorded."""
    return mx.conv3d is mx_conv3d


def is_patched() -> bool:
    return hasattr(mx.conv3d, "_autoconv_original")


def test_stock_without_memory_is_reported_and_not_fatal() -> None:
    with autoconv.using(policy="off"):
        result = measure(failing(is_stock), SMALL)
    assert result.stock == Way((), None, "[malloc] Unable to allocate 99 bytes.")
    assert len(result.patched.seconds) == 1
    assert not result.why


def test_patched_without_memory_is_an_error() -> None:
    with autoconv.using(policy="off"):
        result = measure(failing(is_patched), SMALL)
    assert result.why == result.patched.failed == "[malloc] Unable to allocate 99 bytes."
    assert len(result.stock.seconds) == 1


def test_a_way_that_fails_in_a_later_turn_has_no_times() -> None:
    turns: list[str] = []

    def stock() -> mx.array:
        turns.append("stock")
        if len(turns) > 2:
            msg = "[malloc] Unable to allocate 99 bytes."
            raise RuntimeError(msg)
        return mx.zeros(())

    def patched() -> mx.array:
        turns.append("patched")
        return mx.zeros(())

    ways = in_turns({"stock": stock, "patched": patched}, {}, 3)
    assert turns == ["stock", "patched", "stock", "patched", "patched"]
    assert ways["stock"] == Way((), None, "[malloc] Unable to allocate 99 bytes.")
    assert len(ways["patched"].seconds) == 3


def test_the_ratio_is_of_medians_and_its_spread_of_turns() -> None:
    stock, patched = Way((3.0, 4.0, 9.0), 5), Way((2.0, 1.0, 3.0), 5)
    result = Comparison("a", "A", "float32", (1,), stock, patched)
    assert result.ratio(patched) == 2.0
    assert result.spread(patched) == (1.5, 4.0)


def test_outputs_may_be_apart_by_what_each_layer_may_be_off_and_the_root_of_their_number() -> None:
    problem = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
    assert allowed([problem], 16, "bfloat16") == pytest.approx(4 * 1.5e-2)
    with autoconv.using(accuracy=0.5):
        # And native's own, under TF32 a thousandth.
        assert allowed([problem], 4, "float32") == pytest.approx(1.0, rel=2e-3)


def test_where_native_is_known_to_be_off_by_more_outputs_may_be_apart_by_more(tmp_path: Path) -> None:
    problem = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
    where = environment.of(mx.default_device())
    store = open_store(tmp_path / "autoconv.db")
    store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
    record = Record(problem.key, where.id, NATIVE, 1, "", Status.OK, (8.0,) * 6, 4e-4, 0, run="r", created=1.0)
    store.add(problem, [record])
    store.close()
    assert allowed([problem], 9, "float32") == pytest.approx(3 * (4e-4 + 2 * 4e-4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_agrees(bad: float) -> None:
    size = Size((1, 2, 2, 2, 1), lambda: _Identity(lambda: False))
    with deciding(lambda _problem: lambda x, _w: x * bad):
        result = measure(Network("some", "some", size, size), SMALL)
    assert not result.agrees
    assert result.patched.apart is None


def test_a_network_that_fails_is_told_of_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, there_before = tmp_path / "figures.json", []

    def built() -> _Identity:
        there_before.extend(networks_in(out))
        return _Identity(lambda: False)

    size = Size((1, 2, 2, 2, 1), built)
    both = {"broken": failing(lambda: True, "broken"), "sound": Network("sound", "Sound", size, size)}
    monkeypatch.setattr(bench, "NETWORKS", both)
    run = CliRunner().invoke(bench.main, ["--size", "small", "--policy", "off", "--repeats", "2", "--out", str(out)])
    assert run.exit_code == 1
    assert run.stderr == "Error: broken: [malloc] Unable to allocate 99 bytes.\n"
    assert "broken: [malloc] Unable to allocate 99 bytes." in run.stdout
    broken, sound = networks_in(out)
    assert there_before == [broken]
    assert broken["failed"] == "[malloc] Unable to allocate 99 bytes."
    assert (sound["failed"], sound["agrees"], len(sound["stock"]["seconds"])) == ("", True, 2)


def networks_in(out: Path) -> list[Any]:
    found: list[Any] = json.loads(out.read_text(encoding="utf-8"))["networks"]
    return found


def test_stock_is_stock_where_mlx_is_patched_from_the_start() -> None:
    options = ["--size", "small", "--network", "x3d", "--policy", "record", "--repeats", "1", "--json"]
    autoconv.patch()
    try:
        run = CliRunner().invoke(bench.main, options)
    finally:
        autoconv.unpatch()
    (found,) = json.loads(run.stdout)["networks"]
    assert run.exit_code == 0
    assert "groups" in found["stock"]["failed"]


def test_prepare_times_first_what_a_network_convolves(qualified: Path) -> None:
    autoconv.configure(budget_ms=1)
    size = Size((1, 2, 3, 3, 1), lambda: _Identity(lambda: False))
    result = measure(Network("some", "some", size, size), replace(SMALL, prepare=True))
    assert result.prepared is not None
    assert (result.prepared["shapes"], result.prepared["tuned"]) == (1, 1)
    assert result.decisions["database"] == 1
    assert result.decisions["measured"] == 0
    assert result.tuned_s > 0


def test_the_script(qualified: Path) -> None:
    options = ["--size", "small", "--network", "r3d18", "--dtype", "float32", "--repeats", "3", "--json"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env=os.environ | {"AUTOCONV_DATABASE": str(qualified), "AUTOCONV_BUDGET_MS": "1", "AUTOCONV_PATCH": "1"},
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    (found,) = printed["networks"]
    assert "MLX" in printed["device"]
    assert found["network"] == "r3d18"
    assert found["input_shape"] == list(NETWORKS["r3d18"].small.input_shape)
    assert len(found["stock"]["seconds"]) == len(found["patched"]["seconds"]) == 3
    assert found["stock"]["peak_bytes"] > 0
    assert found["patched"]["peak_bytes"] > 0
    assert found["ratio"] > 0
    assert found["agrees"]
    assert (found["shapes"], found["calls"]) == (5, 6)
    new = {source: count for source, count in found["decisions"].items() if source != "memory"}
    assert sum(new.values()) >= found["shapes"]
