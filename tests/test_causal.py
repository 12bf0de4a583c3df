"""The causal layer computes the convolution of a padded video, whole and in whatever chunks it comes."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as _layers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import taken
from reference import Array, convolve
from tolerance import FLOAT32, SLACK

import autoconv
import autoconv.nn
import autoconv.settings
from autoconv import _calls, environment
from autoconv.algorithms import _depth
from autoconv.decision import Decision, Source, Verdict, native
from autoconv.dispatch import dispatcher
from autoconv.nn import _causal
from autoconv.problem import Problem
from autoconv.record import Record, Status

layers: Any = _layers  # which has no types

BOUNDS = {"float32": FLOAT32, "float16": SLACK * 1.5e-3, "bfloat16": SLACK * 1e-2}
SPATIAL = {"zeros": "constant", "replicate": "edge", "reflect": "reflect"}


@pytest.fixture(autouse=True)
def _untimed() -> Iterator[None]:
    """Nothing is timed; what is decided is a test's own affair."""
    with autoconv.using(policy="predict"):
        yield


@dataclass(frozen=True)
class Case:
    """A layer, a video, and the chunks that it comes in."""

    shape: tuple[int, int, int, int, int]
    outputs: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    groups: int
    depth: str
    spatial: str
    before: int | None
    chunks: tuple[int, ...]
    dtype: str = "float32"

    @property
    def around(self) -> tuple[int, int]:
        """Padding frames before and after."""
        if self.depth == "symmetric":
            return self.padding[0], self.padding[0]
        return (2 * self.padding[0] if self.before is None else self.before), 0

    def layer(self, bias: bool = True) -> autoconv.nn.CausalConv3d:
        made = autoconv.nn.CausalConv3d(
            self.shape[4], self.outputs, self.kernel, self.stride, self.padding, self.dilation, bias,
            groups=self.groups, depth_padding=self.depth, spatial_padding=self.spatial, frames_before=self.before,  # type: ignore[arg-type]
        )  # fmt: skip
        values = np.random.default_rng(1)
        made.weight = mx.array(values.standard_normal(made.weight.shape).astype(np.float32))
        if bias:
            made.bias = mx.array(values.standard_normal(self.outputs).astype(np.float32))
        made.set_dtype(getattr(mx, self.dtype))
        mx.eval(made.parameters())
        return made

    def video(self) -> mx.array:
        values = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)
        return mx.array(values).astype(getattr(mx, self.dtype))

    def expected(self, made: autoconv.nn.CausalConv3d, x: mx.array) -> Array:
        """The convolution of the video with all its padding written out, in float64."""
        weight = host(made.weight)
        spatial: Any = SPATIAL[self.spatial]
        _, high, wide = self.padding
        video = np.pad(host(x), [(0, 0), (0, 0), (high, high), (wide, wide), (0, 0)], mode=spatial)
        depth: Any = "constant" if self.depth == "zeros" else "edge"
        video = np.pad(video, [(0, 0), self.around, (0, 0), (0, 0), (0, 0)], mode=depth)
        problem = Problem.parse(
            video.shape, weight.shape, stride=self.stride, dilation=self.dilation, groups=self.groups
        )
        return convolve(video, weight, problem) + (host(made.bias) if "bias" in made else 0)


def host(array: mx.array) -> Array:
    return np.asarray(array.astype(mx.float32)).astype(np.float64)


@st.composite
def cases(draw: st.DrawFn, dtypes: Sequence[str] = ("float32",), depths: Sequence[str] = ("zeros", "first")) -> Case:
    """Small videos and layers, every argument random."""
    depth, spatial = draw(st.sampled_from(depths)), draw(st.sampled_from(tuple(SPATIAL)))
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    stride = draw(st.integers(1, min(3, reach[0] + 1))), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
    before = draw(st.none() | st.integers(0, reach[0] + 1)) if depth != "symmetric" else None
    low = 2 * padding[0] if before is None else before
    chunks = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    if sum(chunks) + low <= reach[0]:
        chunks.append(reach[0] + 1)
    if draw(st.booleans()):
        chunks.append(draw(st.integers(20, 45)))  # so long that what is seen outside is added
    sizes = [draw(st.integers(max(1, r + 1 - 2 * p, p + 1), 7)) for r, p in zip(reach[1:], padding[1:], strict=True)]
    groups = draw(st.integers(1, 2))
    return Case(
        (draw(st.integers(1, 2)), sum(chunks), *sizes, draw(st.integers(1, 2)) * groups),  # type: ignore[arg-type]
        draw(st.integers(1, 2)) * groups, kernel, stride, padding, dilation, groups, depth, spatial, before,
        tuple(chunks), draw(st.sampled_from(dtypes)),
    )  # fmt: skip


def usual(**changes: Any) -> Case:
    """A 3x3x3 layer that keeps all sizes."""
    given: dict[str, Any] = {
        "shape": (1, 6, 7, 6, 4), "outputs": 3, "kernel": (3, 3, 3), "stride": (1, 1, 1), "padding": (1, 1, 1),
        "dilation": (1, 1, 1), "groups": 1, "depth": "zeros", "spatial": "zeros", "before": None, "chunks": (1, 1, 4),
    }  # fmt: skip
    return Case(**{**given, **changes})


def by_chunks(made: autoconv.nn.CausalConv3d, x: mx.array, chunks: Sequence[int]) -> mx.array:
    """The outputs of all chunks, each evaluated with its cache."""
    parts, cache = [], None
    for start, frames in zip(itertools.accumulate(chunks, initial=0), chunks, strict=False):
        y, cache = made.chunk(x[:, start : start + frames], cache)
        mx.eval(y, cache)
        parts.append(y)
    return mx.concatenate(parts, axis=1)


def check(found: mx.array, expected: Array, dtype: str = "float32") -> None:
    assert found.shape == expected.shape
    assert str(found.dtype) == f"mlx.core.{dtype}"
    wrong = np.linalg.norm(host(found) - expected)
    assert wrong <= BOUNDS[dtype] * np.linalg.norm(expected) + 1e-12
    # No frame may be wrong by more than its own share, so that an edge is not lost in what is between.
    axes = tuple(axis for axis in range(5) if axis != 1)
    scale = np.sqrt((expected**2).mean())
    assert (np.sqrt(((host(found) - expected) ** 2).mean(axis=axes)) <= 3 * BOUNDS[dtype] * scale + 1e-12).all()


# Results


@settings(max_examples=250)
@given(cases(depths=("zeros", "first", "symmetric")))
def test_the_whole_is_the_convolution_of_the_padded_video(case: Case) -> None:
    made, x = case.layer(), case.video()
    if sum(case.around) + case.shape[1] <= (case.kernel[0] - 1) * case.dilation[0]:
        with pytest.raises(ValueError, match="too few"):
            made(x)
        return
    check(made(x), case.expected(made, x))


@settings(max_examples=250)
@given(cases())
def test_chunks_are_the_whole(case: Case) -> None:
    made, x = case.layer(), case.video()
    check(by_chunks(made, x, case.chunks), case.expected(made, x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@settings(max_examples=60)
@given(data=st.data())
def test_sixteen_bits_are_no_worse_than_a_convolution_s(dtype: str, data: st.DataObject) -> None:
    case = data.draw(cases((dtype,)))
    made, x = case.layer(), case.video()
    expected = case.expected(made, x)
    check(made(x), expected, dtype)
    check(by_chunks(made, x, case.chunks), expected, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_taps_are_added_up_in_float32(dtype: str) -> None:
    made = usual(kernel=(3, 1, 1), padding=(1, 0, 0), shape=(1, 3, 2, 2, 1), outputs=1, dtype=dtype).layer(bias=False)
    made.weight = mx.ones_like(made.weight)
    frames = mx.broadcast_to(mx.array([4096.0, 1.0, -4096.0]).reshape(1, 3, 1, 1, 1), (1, 3, 2, 2, 1))
    x = frames.astype(made.weight.dtype)
    assert (made.chunk(x[:, 2:], x[:, :2])[0] == 1).all()


@pytest.mark.parametrize("chunks", [(6,), (1,) * 6, (2, 4), (5, 1), (1, 2, 3)])
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("depth", ["zeros", "first"])
def test_a_usual_layer_in_usual_chunks(chunks: tuple[int, ...], depth: str, spatial: str) -> None:
    case = usual(depth=depth, spatial=spatial, shape=(2, 6, 9, 8, 4))
    made, x = case.layer(), case.video()
    check(by_chunks(made, x, chunks), case.expected(made, x))
    check(made(x), case.expected(made, x))


def test_symmetric_padding_has_no_chunks() -> None:
    case = usual(depth="symmetric")
    made, x = case.layer(), case.video()
    check(made(x), case.expected(made, x))
    with pytest.raises(ValueError, match="come later"):
        made.chunk(x)


def test_no_frame_sees_a_later_one() -> None:
    case = usual()
    made, x = case.layer(), case.video()
    changed = mx.concatenate([x[:, :3], x[:, 3:] + 1], axis=1)
    assert mx.array_equal(made(x)[:, :3], made(changed)[:, :3])
    assert not mx.array_equal(made(x)[:, 3:], made(changed)[:, 3:])


# Caches


@settings(max_examples=60)
@given(cases())
def test_a_cache_is_no_longer_than_a_kernel_reaches(case: Case) -> None:
    made, x = case.layer(), case.video()
    reach = (case.kernel[0] - 1) * case.dilation[0]
    cache, start = None, 0
    for frames in case.chunks:
        _, cache = made.chunk(x[:, start : start + frames], cache)
        start += frames
        if start + case.around[0] > reach:
            assert cache.shape[1] <= reach
        if case.stride[0] == 1 and start >= reach:
            np.testing.assert_array_equal(host(cache), host(x[:, start - reach : start]))


def test_a_cache_does_not_keep_the_chunk() -> None:
    case = usual(shape=(1, 8, 64, 64, 16))
    made, x = case.layer(), case.video()
    mx.eval(x)
    frame = x.nbytes // 8
    y, cache = made.chunk(x)
    mx.eval(y, cache)
    before = mx.get_active_memory()
    del x
    mx.synchronize()
    assert before - mx.get_active_memory() == 8 * frame
    assert cache.nbytes == 2 * frame


def test_a_stream_begun_by_a_cache_of_one_s_own_has_no_padding() -> None:
    # Wan's temporal downsampling: the first frame passes, and the next chunks see the last frame before them.
    case = usual(kernel=(3, 1, 1), stride=(2, 1, 1), padding=(0, 0, 0), shape=(1, 9, 4, 4, 2))
    made, x = case.layer(), case.video()
    first, second = made.chunk(x[:, 1:5], x[:, :1]), None
    second = made.chunk(x[:, 5:], first[1])
    check(mx.concatenate([first[0], second[0]], axis=1), case.expected(made, x))
    assert first[1].shape[1] == second[1].shape[1] == 1


def test_too_few_frames_for_an_output_give_none_yet() -> None:
    case = usual(padding=(0, 1, 1))
    made, x = case.layer(), case.video()
    y, cache = made.chunk(x[:, :1])
    assert y.shape == (1, 0, 7, 6, 3)
    assert cache.shape[1] == 1
    check(by_chunks(made, x, (1, 1, 1, 3)), case.expected(made, x))
    with pytest.raises(ValueError, match="too few"):
        made(x[:, :2])


def test_a_stride_that_steps_past_the_chunk_s_end_is_refused() -> None:
    case = usual(kernel=(1, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1))
    made, x = case.layer(), case.video()
    check(by_chunks(made, x, (2, 4)), case.expected(made, x))
    with pytest.raises(ValueError, match="no output sees"):
        made.chunk(x[:, :3])


def test_a_cache_that_is_none_of_this_stream_is_refused() -> None:
    case = usual()
    made, x = case.layer(), case.video()
    with pytest.raises(ValueError, match="at most 2 frames"):
        made.chunk(x, x[:, :3])
    with pytest.raises(ValueError, match="none of a stream"):
        made.chunk(x, x[:, :2, :3])
    with pytest.raises(ValueError, match="at least one"):
        made.chunk(x[:, :0])


# Arguments


def test_the_guide_s_example_runs() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "video_vae.md").read_text()
    exec(guide.split("```python\n")[1].split("```")[0], {})


def test_arguments_that_cannot_be_are_refused() -> None:
    make = autoconv.nn.CausalConv3d
    with pytest.raises(ValueError, match="depth_padding must be one of zeros, first, symmetric"):
        make(2, 2, 3, depth_padding="replicate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spatial_padding must be one of zeros, replicate, reflect"):
        make(2, 2, 3, spatial_padding="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        make(2, 2, 3, padding=-1)
    with pytest.raises(ValueError, match="negative"):
        make(2, 2, 3, frames_before=-1)
    with pytest.raises(ValueError, match="before and after"):
        make(2, 2, 3, frames_before=1, depth_padding="symmetric")
    with pytest.raises(ValueError, match="multiples of groups"):
        make(3, 2, 3, groups=2)
    with pytest.raises(ValueError, match="reflection"):
        make(2, 2, 3, padding=2, spatial_padding="reflect")(mx.ones((1, 2, 2, 5, 2)))
    with pytest.raises(ValueError, match="input channels"):
        make(2, 2, 3, padding=1)(mx.ones((1, 1, 4, 4, 3)))


def test_its_parameters_are_those_of_mlx_s_layer(tmp_path: Path) -> None:
    theirs = layers.Conv3d(4, 3, 3)
    theirs.bias = mx.array([1.0, 2.0, 3.0])
    theirs.save_weights(str(tmp_path / "w.safetensors"))
    made = autoconv.nn.CausalConv3d(4, 3, 3, padding=1)
    made.load_weights(str(tmp_path / "w.safetensors"))
    assert set(made.parameters()) == {"weight", "bias"}
    case = usual()
    x = case.video()
    made(x)  # keeps what it derives
    check(made(x), case.expected(made, x))
    assert isinstance(made, layers.Conv3d)
    assert "depth_padding='zeros'" in repr(made)


def test_a_weight_that_changes_is_seen() -> None:
    case = usual(depth="first")
    made, x = case.layer(), case.video()
    for _ in range(2):
        check(by_chunks(made, x, case.chunks), case.expected(made, x))
        made.weight[0] = 7
        other = copy.deepcopy(made)
        other.weight = other.weight * 2
        check(by_chunks(other, x, case.chunks), case.expected(other, x))


# Work


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of input and weight of each convolution that is asked of MLX from now on."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    run = mx.conv_general

    def counted(input: mx.array, weight: mx.array, *rest: Any, **named: Any) -> mx.array:
        found.append((input.shape, weight.shape))
        return run(input, weight, *rest, **named)

    monkeypatch.setattr(_depth, "conv_general", counted)
    monkeypatch.setattr("autoconv.ops._mx_conv_general", counted)
    monkeypatch.setattr("autoconv.ops._mx_conv3d", counted)
    monkeypatch.setattr(mx, "conv3d", counted)
    _causal._flat.cache_clear()
    return found


@pytest.mark.parametrize("depth", ["zeros", "first", "symmetric"])
def test_one_frame_costs_one_2d_convolution(depth: str, asked: list[Any]) -> None:
    case = usual(depth=depth, shape=(1, 1, 7, 6, 4))
    made, x = case.layer(), case.video()
    check(made(x), case.expected(made, x))
    if depth != "symmetric":
        check(made.chunk(x)[0], case.expected(made, x))
    assert asked == [((1, 7, 6, 4), (3, 3, 3, 4))] * (1 if depth == "symmetric" else 2)


def test_a_frame_in_a_stream_costs_each_tap_once(asked: list[Any]) -> None:
    case = usual(shape=(1, 3, 7, 6, 4))
    made, x = case.layer(), case.video()
    made.chunk(x[:, 2:], x[:, :2])
    assert asked == [((1, 7, 6, 4), (3, 3, 3, 4))] * 3


def test_outputs_that_see_no_cache_are_one_convolution(asked: list[Any]) -> None:
    case = usual(shape=(1, 8, 7, 6, 4))
    made, x = case.layer(), case.video()
    made.chunk(x[:, 2:], x[:, :2])
    flat = sorted(found for found in asked if len(found[0]) == 4)
    assert [found for found in asked if len(found[0]) == 5] == [((1, 6, 7, 6, 4), (3, 3, 3, 3, 4))]
    assert [found[0][0] for found in flat] == [1, 1, 2, 2]  # frames of two outputs, each seen through three taps


def operations(*arrays: mx.array) -> list[str]:
    """Names of the operations that lead to some arrays."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return [line.split('"')[1] for line in text.getvalue().splitlines() if "rectangle" in line]


@pytest.mark.parametrize("depth", ["zeros", "first"])
@pytest.mark.parametrize("frames", [1, 2, 6, 40])
def test_nothing_joins_cache_and_frames(frames: int, depth: str) -> None:
    case = usual(shape=(1, frames + 2, 7, 6, 4), depth=depth)
    made, x = case.layer(bias=False), case.video()
    mx.eval(x)
    cache = mx.contiguous(x[:, :2] + 0)
    mx.eval(cache)
    y, _ = made.chunk(mx.contiguous(x[:, 2:] + 0), cache)
    names = operations(y)
    assert "Pad" not in names
    # Outputs may be joined: those at the chunk's start, and with the rest.
    assert names.count("Concatenate") <= 2
    check(y, case.expected(made, x)[:, 2:])


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="GPUs' scratch is MLX's own")
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("depth", ["zeros", "first"])
def test_no_copy_of_the_frames_is_ever_alive(depth: str, spatial: str) -> None:
    # The CPU's convolutions unfold; so they are left out, and what is taken is this layer's own.
    case = usual(shape=(1, 40, 96, 96, 3), outputs=1, depth=depth, spatial=spatial)
    made, x = case.layer(bias=False), case.video()
    cache = mx.contiguous(x[:, :2] + 0)
    mx.eval(x, cache)
    frame = x.nbytes // 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_causal, "tuned", free_in_depth)
        patch.setattr(_depth, "conv_general", free)
        _causal._flat.cache_clear()
        within = taken(lambda: made.chunk(x, cache)[0])
        _causal._flat.cache_clear()
    assert within < 16 * frame  # a copy would be 40; the strips of a larger image are less of it


def free_in_depth(x: mx.array, weight: mx.array, _stride: Any, padding: Any, *_: Any) -> mx.array:
    """A usual layer's output by no work."""
    shape = 1, x.shape[1] + padding[0][0] - 2, *x.shape[2:4], weight.shape[0]
    return mx.broadcast_to(x[:, :1, :1, :1, :1], shape) + 0


def free(images: mx.array, weight: mx.array, _stride: Any, padding: Any, *_: Any) -> mx.array:
    """A convolution's output by no work, of an input that is there."""
    (high, wide), _ = padding
    height, width = (size + 2 * p - 2 for size, p in zip(images.shape[1:3], (high, wide), strict=True))
    return mx.broadcast_to(images[:1, :1, :1, :1], (images.shape[0], height, width, weight.shape[0])) + 0


# Decisions


def test_what_is_known_to_beat_the_decomposition_gets_the_few_frames_as_one(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    questions: list[Problem] = []

    def beaten(algorithm: str, problem: Problem, by: float) -> bool:
        questions.append(problem)
        return True

    monkeypatch.setattr(_calls, "is_beaten", beaten)
    case = usual(shape=(1, 8, 7, 6, 4))
    made, x = case.layer(), case.video()
    y, _ = made.chunk(x[:, 2:], x[:, :2])
    check(y, case.expected(made, x)[:, 2:])
    assert [question.input_shape for question in questions] == [(1, 4, 7, 6, 4)]
    assert sorted(found[0] for found in asked) == [(1, 4, 7, 6, 4), (1, 6, 7, 6, 4)]


PROBLEM = Problem.parse((1, 4, 7, 6, 4), (3, 3, 3, 3, 4), padding=(0, 1, 1))


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """What the dispatcher answers, the last as often as it is asked."""
    answers: list[Decision] = []

    def decide(*_: object) -> Decision:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(dispatcher(), "decide", decide)
    return answers


def measured(winner: str, **times_us: float) -> Decision:
    verdicts = [
        Verdict(Record(PROBLEM.key, "here", candidate, 1, "", Status.OK, (time_us,) * 6), Status.OK, None, "")
        for candidate, time_us in times_us.items()
    ]
    return Decision(winner, Source.DATABASE, None, "", verdicts=tuple(verdicts))


@pytest.mark.parametrize(
    ("answer", "beaten"),
    [
        (native("nothing is known"), False),
        (measured("native", native=10, kd_decomposition=12), True),
        (measured("native", native=10, kd_decomposition=10.5), False),
        (measured("kd_decomposition", native=12, kd_decomposition=10), False),
        (measured("kd_decomposition(sum=dtype)"), False),
        (Decision("native", Source.MODEL, None, ""), True),
    ],
)
def test_the_decomposition_is_beaten_by_what_is_known_to_be_faster(
    answer: Decision, beaten: bool, decided: list[Decision]
) -> None:
    decided.append(answer)
    assert _calls.is_beaten("kd_decomposition", PROBLEM, 0.1) is beaten
    decided[:] = [measured("native", native=10, kd_decomposition=12 if not beaten else 9)]
    assert _calls.is_beaten("kd_decomposition", PROBLEM, 0.1) is beaten  # as it was answered
    _calls.forget()
    assert _calls.is_beaten("kd_decomposition", PROBLEM, 0.1) is not beaten


def test_what_could_not_be_timed_is_asked_again(decided: list[Decision], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autoconv._calls.time.monotonic", lambda: now[0])
    decided += [native("no time"), measured("native", native=10, kd_decomposition=12)]
    with autoconv.using(policy="auto"):
        assert not _calls.is_beaten("kd_decomposition", PROBLEM, 0.1)
        assert not _calls.is_beaten("kd_decomposition", PROBLEM, 0.1)
        now[0] += 2
        assert _calls.is_beaten("kd_decomposition", PROBLEM, 0.1)


def test_nothing_is_asked_where_the_policy_is_off(decided: list[Decision]) -> None:
    decided.append(measured("native", native=10, kd_decomposition=12))
    with autoconv.using(policy="off"):
        assert not _calls.is_beaten("kd_decomposition", PROBLEM, 0.1)


def test_the_few_frames_at_a_chunk_s_start_are_a_problem_that_a_sweep_can_time() -> None:
    case = usual(shape=(1, 8, 7, 6, 4))
    made, x = case.layer(), case.video()
    with autoconv.using(policy="record"):
        y, _ = made.chunk(x[:, 2:], x[:, :2])
        check(y, case.expected(made, x)[:, 2:])
        store = dispatcher().store(autoconv.settings.current())
    pending = store.pending(environment.of(mx.default_device()).id)
    assert [problem.input_shape for problem in pending] == [(1, 4, 7, 6, 4), (1, 6, 7, 6, 4)]


# Transformations


@pytest.mark.parametrize("depth", ["zeros", "first"])
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("frames", [1, 4, 40])
def test_gradients_are_those_of_the_padded_convolution(frames: int, depth: str, spatial: str) -> None:
    case = usual(shape=(1, frames, 7, 6, 2), depth=depth, spatial=spatial)
    made, x = case.layer(bias=False), case.video()
    cotangent = mx.array(np.random.default_rng(2).standard_normal((1, frames, 7, 6, 3)).astype(np.float32))

    def whole(x: mx.array, weight: mx.array) -> mx.array:
        made.weight = weight
        return (made(x) * cotangent).sum()

    def chunked(x: mx.array, weight: mx.array) -> mx.array:
        made.weight = weight
        first, cache = made.chunk(x[:, :1])
        second = made.chunk(x[:, 1:], cache)[0] if frames > 1 else first[:, :0]
        return (mx.concatenate([first, second], axis=1) * cotangent).sum()

    weight = made.weight
    before = case.around[0]

    def padded(x: mx.array, weight: mx.array) -> mx.array:
        places = [np.pad(np.arange(n), 1, mode="edge" if spatial != "reflect" else "reflect") for n in x.shape[2:4]]
        if spatial != "zeros":
            for axis, place in zip((2, 3), places, strict=True):
                x = mx.take(x, mx.array(place), axis=axis)
        else:
            x = mx.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
        first = mx.zeros_like(x[:, :1]) if depth == "zeros" else x[:, :1]
        return (mx.conv3d(mx.concatenate([first] * before + [x], axis=1), weight) * cotangent).sum()

    expected = mx.grad(padded, (0, 1))(x, weight)
    for run in (whole, chunked):
        found = mx.grad(run, (0, 1))(x, weight)
        for ours, theirs in zip(found, expected, strict=True):
            atol = max(SLACK * 1e-3, FLOAT32 * float(mx.abs(theirs).max()))
            np.testing.assert_allclose(host(ours), host(theirs), rtol=SLACK * 1e-3, atol=atol)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_it_compiles(spatial: str) -> None:
    case = usual(depth="first", spatial=spatial)
    made, x = case.layer(), case.video()
    expected = case.expected(made, x)
    check(mx.compile(made)(x), expected)
    step = mx.compile(made.chunk)
    first, cache = step(x[:, :2])
    second, cache = step(x[:, 2:4], cache)
    third, _ = step(x[:, 4:], cache)
    check(mx.concatenate([first, second, third], axis=1), expected)
    assert math.isfinite(float(third.sum()))


def test_a_model_with_it_trains() -> None:
    case = usual(depth="first")
    made, x = case.layer(), case.video()
    _, gradients = layers.value_and_grad(made, lambda m, x: (m(x) ** 2).sum())(made, x)
    assert set(gradients) == {"weight", "bias"}
    before = float((made(x) ** 2).sum())
    made.update({name: made[name] - 1e-5 * gradients[name] for name in gradients})
    assert float((made(x) ** 2).sum()) < before
