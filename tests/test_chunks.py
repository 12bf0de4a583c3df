"""In chunks every candidate computes the same, in the memory of one chunk."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import taken
from reference import Array, convolve, input_gradient, weight_gradient
from strategies import decomposed_problems, problems
from test_algorithms import (
    BACKENDS,
    BOUND,
    check,
    check_compiled,
    check_vmapped,
    cotangent_of,
    every_candidate,
    host,
    off,
    operands,
    random_array,
)
from tolerance import FLOAT32, SLACK

from autoconv import algorithms
from autoconv.algorithms import Algorithm, Candidate, _chunked, _chunks
from autoconv.algorithms._algorithm import Cost
from autoconv.problem import MAX_ELEMENTS, Kind, Problem

any_problem = st.one_of(problems(), decomposed_problems())
needs_cpu = pytest.mark.skipif(
    mx.default_device() == mx.gpu, reason="GPUs allocate ahead, and MLX's scratch is its own"
)


@st.composite
def chunk_sizes(draw: st.DrawFn, problem: Problem) -> dict[str, int]:
    """Parameters of chunks: frames, and often rows and clips."""
    found = {"frames": draw(st.integers(1, problem.output_shape[1]))}
    if draw(st.booleans()):
        found["rows"] = draw(st.integers(1, problem.output_shape[2]))
    if draw(st.booleans()):
        found["clips"] = draw(st.integers(1, problem.input_shape[0]))
    return found


def in_chunks(candidate: Candidate, sizes: dict[str, int]) -> Candidate:
    return Candidate(candidate.algorithm, tuple(sorted({**dict(candidate.items), **sizes}.items())))


# Results


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@settings(max_examples=100)
@given(data=st.data())
def test_every_candidate_computes_the_same_in_chunks(dtype: str, data: st.DataObject) -> None:
    problem = data.draw(st.one_of(problems((dtype,)), decomposed_problems((dtype,))))
    sizes = data.draw(chunk_sizes(problem))
    input, weight = operands(problem)
    for candidate in every_candidate(problem):
        found = in_chunks(candidate, sizes)
        check(found.build(problem)(input, weight), input, weight, problem, found.name)


@settings(max_examples=60)
@given(st.data())
def test_the_gradients_in_chunks_are_right(data: st.DataObject) -> None:
    problem = data.draw(any_problem)
    sizes = data.draw(chunk_sizes(problem))
    input, weight = operands(problem)
    cotangent = cotangent_of(problem)
    x, w, c = host(input), host(weight), host(cotangent)
    of_input, size_of_input = (input_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    of_weight, size_of_weight = (weight_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    for candidate in every_candidate(problem):
        found = in_chunks(candidate, sizes)
        _, gradients = mx.vjp(found.build(problem), [input, weight], [cotangent])
        assert off(gradients[0], of_input, size_of_input) < BOUND["float32"], found.name
        assert off(gradients[1], of_weight, size_of_weight) < BOUND["float32"], found.name


@settings(max_examples=60)
@given(st.data())
def test_a_weight_gradient_in_chunks_is_right_and_so_are_its_derivatives(data: st.DataObject) -> None:
    problem = replace(data.draw(any_problem), kind=Kind.WEIGHT_GRADIENT)
    sizes = data.draw(chunk_sizes(problem))
    input, weight = operands(problem)
    cotangent = cotangent_of(problem)
    x, w, c = host(input), host(weight), host(cotangent)
    exact, size = (weight_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    of_input, size_of_input = (input_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    of_cotangent, size_of_cotangent = convolve(x, w, problem), convolve(x**2, w**2, problem)
    for candidate in every_candidate(problem):
        found = in_chunks(candidate, sizes)
        run = found.build(problem)
        assert off(run(input, cotangent), exact, size) < BOUND["float32"], found.name
        (result,), gradients = mx.vjp(run, [input, cotangent], [weight])
        assert off(result, exact, size) < BOUND["float32"], found.name
        assert off(gradients[0], of_input, size_of_input) < BOUND["float32"], found.name
        assert off(gradients[1], of_cotangent, size_of_cotangent) < BOUND["float32"], found.name


FIXED = {
    "padded": (Problem.parse((1, 6, 5, 4, 16), (3, 3, 3, 2, 16), padding=1), {"frames": 2}),
    "strided and flipped": (
        Problem.parse((2, 5, 6, 4, 2), (3, 3, 3, 2, 2), stride=(2, 2, 1), padding=([2, 1, 1], [1, 1, 0]), flip=True),
        {"frames": 1, "rows": 2},
    ),
    "input dilation": (
        Problem.parse((1, 3, 4, 4, 4), (4, 3, 3, 2, 4), padding=1, input_dilation=(2, 1, 1)),
        {"frames": 3, "rows": 3},
    ),
    "input dilation, a frame at a time": (
        Problem.parse((1, 3, 4, 4, 4), (4, 3, 3, 2, 4), padding=1, input_dilation=(2, 1, 1)),
        {"frames": 1},
    ),
    "clips": (Problem.parse((3, 4, 4, 3, 2), (3, 2, 3, 2, 2), padding=1), {"clips": 2}),
    "groups": (Problem.parse((2, 5, 4, 4, 4), (4, 3, 3, 2, 2), padding=1, groups=2), {"frames": 3}),
}
CASES = [
    pytest.param(problem, in_chunks(candidate, sizes), id=f"{what}-{candidate.name}")
    for what, (problem, sizes) in FIXED.items()
    for candidate in every_candidate(problem)
]


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_compiled_it_computes_the_same_of_new_operands(problem: Problem, candidate: Candidate) -> None:
    check_compiled(problem, candidate)


@pytest.mark.parametrize(("problem", "candidate"), CASES)
@pytest.mark.parametrize("over", ["input", "weight", "both"])
def test_it_can_be_vmapped(problem: Problem, candidate: Candidate, over: str) -> None:
    check_vmapped(problem, candidate, over)


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_gradients_of_each_in_a_batch_are_right(problem: Problem, candidate: Candidate) -> None:
    """Gradients under `vmap`, compiled: three transformations at once."""
    inputs, (_, weight) = random_array((2, *problem.input_shape), 0), operands(problem)
    cotangent = cotangent_of(problem)
    run = candidate.build(problem)
    of_one = mx.grad(lambda x: (run(x, weight) * cotangent).sum())
    found = mx.compile(mx.vmap(of_one))(inputs)
    for x, gradient in zip(inputs, found, strict=True):
        a, b, c = host(x), host(weight), host(cotangent)
        exact, size = input_gradient(a, b, c, problem), input_gradient(a**2, b**2, c**2, problem)
        assert off(gradient, exact, size) < BOUND["float32"]


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_second_derivatives_are_right(problem: Problem, candidate: Candidate) -> None:
    run = candidate.build(problem)
    input, weight = operands(problem)
    cotangent, direction = cotangent_of(problem), random_array(problem.weight_shape, 98)

    def slope(x: mx.array) -> mx.array:
        of_weight: mx.array = mx.grad(lambda w: (run(x, w) * cotangent).sum())(weight)
        return (of_weight * direction).sum()

    x, w, c = host(input), host(direction), host(cotangent)
    exact, squares = input_gradient(x, w, c, problem), input_gradient(x**2, w**2, c**2, problem)
    assert off(mx.grad(slope)(input), exact, squares) < BOUND["float32"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("problem", "candidate"), [case for case in CASES if str(case.id).startswith("padded")])
def test_what_is_not_finite_stays_in_its_own_frames(
    problem: Problem, candidate: Candidate, traced: bool, bad: float
) -> None:
    input, weight = operands(problem)
    clean = host(candidate.build(problem)(input, weight))
    spoilt = mx.array(input)
    spoilt[:, 0] = bad
    run = candidate.build(problem)
    found = host((mx.compile(run) if traced else run)(spoilt, weight))
    assert not np.isfinite(found[:, :2]).any()
    np.testing.assert_allclose(found[:, 2:], clean[:, 2:], rtol=SLACK * 1e-5, atol=SLACK * 1e-5)


def test_a_shape_under_the_gradient_s_trace_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated there is kept for the way back, and would all live at a time."""
    problem, sizes = FIXED["padded"]
    run = in_chunks(every_candidate(problem)[0], sizes).build(problem)
    input, weight = operands(problem)

    def evaluate(*_: object) -> None:
        pytest.fail("evaluated")

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", evaluate)
        gradient = mx.grad(lambda x: run(x, weight).sum())(input)
    of_weight = mx.grad(lambda w: run(input, w).sum())(weight)
    assert gradient.shape == input.shape
    assert of_weight.shape == weight.shape


# Which chunks there are


@given(st.data())
def test_parts_cover_what_sees_the_input_once_and_are_even(data: st.DataObject) -> None:
    problem = data.draw(any_problem)
    axis = data.draw(st.integers(0, 1))
    outputs = problem.output_shape[1 + axis]
    size = data.draw(st.integers(1, outputs))
    found = _chunks.spans(problem, axis, size)
    covered = [output for span in found for output in range(span.start, span.stop)]
    assert covered == sorted(set(covered))
    assert all(span.stop - span.start <= size for span in found)
    reach = (problem.weight_shape[1 + axis] - 1) * problem.dilation[axis]
    spread, elements = problem.input_dilation[axis], problem.input_shape[1 + axis]
    standing = {element * spread for element in range(elements)}
    for output in range(outputs):
        first = output * problem.stride[axis] - problem.padding_low[axis]
        sees = any(position in standing for position in range(first, first + reach + 1))
        assert sees <= (output in covered)
    for span in found:
        # What makes MLX's own gradients wrong is in no part.
        assert max(span.low, span.high) <= reach


def test_chunks_differ_in_size_by_one_at_most() -> None:
    problem = Problem.parse((1, 17, 4, 4, 1), (1, 1, 1, 1, 1))
    sizes = [span.stop - span.start for span in _chunks.spans(problem, 0, 8)]
    assert sizes == [5, 6, 6]
    assert len(_chunks.parts(problem, 8)) == 2


def test_equal_chunks_are_built_once() -> None:
    problem = Problem.parse((1, 64, 4, 4, 2), (2, 3, 3, 3, 2), padding=1)
    built = []

    def build(part: Problem) -> Callable[[mx.array, mx.array], mx.array]:
        built.append(part)
        return lambda _x, _w: mx.zeros(part.output_shape)

    _chunked.chunked(problem, build, frames=4)
    assert len(built) == len(set(built)) == 3  # the first, those between, the last


@settings(max_examples=100)
@given(st.data())
def test_a_candidate_in_chunks_is_found_by_its_name_whatever_the_limit(data: st.DataObject) -> None:
    problem, backend = data.draw(any_problem), data.draw(st.sampled_from(BACKENDS))
    limit = data.draw(st.integers(1, 5000))
    for candidate in algorithms.candidates(problem, backend, memory_bytes=limit):
        assert algorithms.find(candidate.name, problem, backend) == candidate
        if candidate.chunks:
            assert candidate.cost(problem, backend).workspace_bytes <= limit


@pytest.mark.parametrize(
    "name",
    [
        "native(frames=0)",
        "native(frames=x)",
        "native(rows=2)",
        "native(frames=2,sum=float32)",
        "kd_decomposition(frames=2)",
        "kd_decomposition(frames=2,sum=float16)",
        "kd_decomposition(sum=float32,frames=2)",
        "nothing(frames=2)",
        "native(frames=2",
        "native(frames=2,frames=3)",
    ],
)
def test_other_names_find_nothing(name: str) -> None:
    problem = FIXED["padded"][0]
    assert algorithms.find("kd_decomposition(frames=2,sum=float32)", problem, "cpu") is not None
    assert algorithms.find(name, problem, "cpu") is None


MODERATE = Problem.parse((1, 16, 32, 32, 8), (8, 3, 3, 3, 8), padding=1)


def test_without_a_limit_nothing_is_cut() -> None:
    assert not any(c.chunks for c in algorithms.candidates(MODERATE, "cpu"))
    assert not any(c.chunks for c in algorithms.candidates(MODERATE, "cpu", memory_bytes=10**9))


def test_each_candidate_over_the_limit_comes_in_the_largest_chunks_that_fit() -> None:
    limit = 3 * 10**6
    found = algorithms.candidates(MODERATE, "cpu", memory_bytes=limit)
    for candidate in found:
        if candidate.chunks:
            sizes = candidate.chunks
            larger = {"frames": sizes["frames"] + 1} if "rows" not in sizes else {**sizes, "rows": sizes["rows"] + 1}
            outputs = MODERATE.output_shape[2 if "rows" in sizes else 1]
            even = {math.ceil(outputs / n) for n in range(1, outputs + 1)}
            while max(larger.values()) not in even:
                larger = {key: value + (value > 1) for key, value in larger.items()}
            whole = Candidate(candidate.algorithm, tuple(i for i in candidate.items if i[0] not in sizes))
            assert algorithms.SLACK * in_chunks(whole, larger).cost(MODERATE, "cpu").workspace_bytes > limit
    over = [c for c in found if not c.chunks and c.cost(MODERATE, "cpu").workspace_bytes > limit]
    cut = {c.algorithm.name for c in found if c.chunks}
    assert {c.algorithm.name for c in over} == cut > {"native", "kd_decomposition", "depth_concat"}


def test_rows_are_cut_where_a_frame_is_too_much() -> None:
    names = [c.name for c in algorithms.candidates(MODERATE, "cpu", memory_bytes=3 * 10**5)]
    assert any(name.startswith("native(frames=1,rows=") for name in names)
    assert not any(c.chunks for c in algorithms.candidates(MODERATE, "cpu", memory_bytes=1000))


def test_native_on_a_gpu_is_cut_where_the_limit_is_below_its_operands() -> None:
    """What MLX takes there is not known; its estimate is none."""
    assert "native" in {
        c.algorithm.name for c in algorithms.candidates(MODERATE, "metal", memory_bytes=10**5) if c.chunks
    }
    at = algorithms.candidates(MODERATE, "metal", memory_bytes=MODERATE.bytes)
    assert not any(c.chunks for c in at if c.algorithm.name == "native")


def test_an_input_gradient_is_cut_as_the_convolution_that_it_is() -> None:
    problem = replace(MODERATE, kind=Kind.INPUT_GRADIENT)
    found = [c for c in algorithms.candidates(problem, "cpu", memory_bytes=2 * 10**6) if c.chunks]
    assert "native" in {c.algorithm.name for c in found}
    _, weight = operands(MODERATE)
    cotangent = random_array(problem.output_shape, 9)
    exact = input_gradient(np.zeros(problem.input_shape), host(weight), host(cotangent), MODERATE)
    for candidate in found:
        assert algorithms.find(candidate.name, problem, "cpu") == candidate
        gradient = candidate.build(problem)(cotangent, weight)
        assert np.linalg.norm(host(gradient) - exact) < FLOAT32 * np.linalg.norm(exact), candidate.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_gradient_over_the_limit_is_cut_whatever_the_algorithm(backend: str) -> None:
    problem = replace(MODERATE, kind=Kind.WEIGHT_GRADIENT, input_shape=(16, *MODERATE.input_shape[1:]))
    found = algorithms.candidates(problem, backend, memory_bytes=10**6)
    over = {
        c.algorithm.name
        for c in found
        if not c.chunks and (c.cost(problem, backend).workspace_bytes or problem.bytes) > 10**6
    }
    assert {c.algorithm.name for c in found if c.chunks} == over >= {"native", "wgrad_depth_taps"}
    for candidate in found:
        if candidate.chunks:
            assert algorithms.find(candidate.name, problem, backend) == candidate
            assert candidate.cost(problem, backend).workspace_bytes <= 10**6


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.WEIGHT_GRADIENT])
def test_what_mlx_has_not_for_groups_is_not_offered_in_chunks(kind: Kind) -> None:
    problem = replace(MODERATE, input_shape=(1, 16, 32, 32, 8), weight_shape=(8, 3, 3, 3, 4), groups=2, kind=kind)
    cut = [c for backend in BACKENDS for c in algorithms.candidates(problem, backend, memory_bytes=10**6) if c.chunks]
    assert cut
    assert not any(c.algorithm.one_call for c in cut)
    assert algorithms.find("native(frames=1)", problem, "cpu") is None


def test_the_batch_is_cut_before_frames_and_frames_before_rows() -> None:
    problem = replace(MODERATE, input_shape=(6, *MODERATE.input_shape[1:]))
    whole = Candidate(algorithms.algorithms()[0]).cost(MODERATE, "cpu").workspace_bytes + 2 * 4 * 8 * 16 * 32 * 32

    def cut(limit: float) -> dict[str, int]:
        found = algorithms.candidates(problem, "cpu", (algorithms.algorithms()[0],), memory_bytes=limit)
        return found[-1].chunks

    assert cut(3 * algorithms.SLACK * whole) == {"clips": 3}
    assert cut(algorithms.SLACK * whole) == {"clips": 1}
    assert cut(algorithms.SLACK * whole / 2).keys() == {"clips", "frames"}
    assert cut(algorithms.SLACK * whole / 30).keys() == {"clips", "frames", "rows"}


KNOWN = {"native", "kd_decomposition", "depth_concat"}
FRAME = (2**15, 2**14, 1)  # three of them can be addressed, four cannot


@pytest.mark.parametrize(
    ("problem", "cut"),
    [
        (Problem.parse((1, 8, *FRAME), (1, 2, 1, 1, 1)), {"native", "kd_decomposition", "depth_concat"}),
        (Problem.parse((1, 2, *FRAME), (4, 1, 1, 1, 1)), {"native", "kd_decomposition"}),
        # A stack of three frames cannot be addressed, of two rows' can.
        (Problem.parse((1, 3, *FRAME), (1, 2, 1, 1, 1)), {"depth_concat"}),
        # Frames that cannot be addressed at all, and a weight.
        (Problem.parse((1, 2, 2**16, 2**15, 1), (1, 2, 1, 1, 1)), {"native", "kd_decomposition", "depth_concat"}),
        (Problem.parse((1, 2, 1, 1, 2**16), (2**15, 2, 1, 1, 2**16)), set()),
    ],
    ids=str,
)
def test_past_the_index_range_chunks_are_offered_whose_arrays_are_not(problem: Problem, cut: set[str]) -> None:
    found = [c for c in algorithms.candidates(problem, "cuda") if c.chunks]
    assert {c.algorithm.name for c in found} & KNOWN == cut
    for candidate in found:
        for part in _chunks.parts(problem, **candidate.chunks):
            assert max(map(math.prod, (part.input_shape, part.output_shape))) <= MAX_ELEMENTS
            own = [(key, value) for key, value in candidate.items if key not in candidate.chunks]
            assert dict(own) in [dict(p) for p in candidate.algorithm.parameters(part, "cuda")]


def test_an_algorithm_s_own_parameters_are_not_called_as_those_of_chunks() -> None:
    for problem, _ in FIXED.values():
        for backend in BACKENDS:
            for candidate in algorithms.candidates(problem, backend):
                assert not candidate.chunks, candidate.name


def test_looking_for_chunks_is_cheap() -> None:
    """A choice of chunks looks at a few sizes, not at all, and at each kind of chunk once."""
    looked: list[Problem] = []

    def cost(problem: Problem, backend: str) -> Cost:
        looked.append(problem)
        return Cost(1, 1, problem.output_bytes * 10)

    counted = Algorithm("counted", 1, 1, lambda _: lambda x, _w: x, cost)
    problem = Problem.parse((1, 1000, 512, 512, 8), (8, 3, 3, 3, 8), padding=1)
    found = algorithms.candidates(problem, "cpu", (counted,), memory_bytes=10**9)
    assert [c.chunks for c in found] == [{}, {"frames": 8}]
    assert len(looked) < 60


@pytest.mark.parametrize("parameters", ["frames=1,rows=1", "clips=1,frames=2,rows=3"])
def test_of_very_many_chunks_none_are_made(parameters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "pieces", lambda *_: pytest.fail("chunks are made"))
    problem = Problem.parse((2, 300, 2160, 64, 8), (8, 3, 3, 3, 8), padding=1)
    found = algorithms.candidates(problem, "cpu", memory_bytes=10**5)
    assert not any(c.chunks for c in found)
    assert algorithms.find(f"native({parameters})", problem, "cpu") is None
    of_all = in_chunks(found[0], {"frames": 1, "rows": 1}).cost(problem, "cpu")
    assert of_all.flops >= 0.95 * found[0].cost(problem, "cpu").flops


@given(st.data())
def test_forms_are_those_of_the_spans_and_as_many(data: st.DataObject) -> None:
    problem, axis = data.draw(any_problem), data.draw(st.integers(0, 1))
    size = data.draw(st.none() | st.integers(1, problem.output_shape[1 + axis]))
    found = _chunks.forms(problem, axis, size)
    assert Counter(dict(found)) == Counter(s.form for s in _chunks.spans(problem, axis, size))


@given(st.data())
def test_the_parts_counted_are_the_pieces_problems(data: st.DataObject) -> None:
    problem = data.draw(any_problem)
    sizes = data.draw(chunk_sizes(problem))
    pieces = _chunks.pieces(problem, **sizes)
    assert dict(_chunks.counted(problem, **sizes)) == Counter(piece.problem for piece in pieces)
    assert len(pieces) <= _chunks.number(problem, **sizes)


# Memory


def check_within(
    limit: float,
    candidate: Candidate,
    problem: Problem,
    given: tuple[mx.array, mx.array],
    exact: Array,
    compiled: bool,
) -> None:
    """A run takes no more than the limit, and its result is right."""
    run = mx.compile(candidate.build(problem)) if compiled else candidate.build(problem)
    outputs: list[mx.array] = []

    def once() -> mx.array:
        outputs.append(run(*given))
        return outputs[-1]

    most = taken(once)
    assert most <= limit, (candidate.name, most)
    error = np.linalg.norm(host(outputs[-1]) - exact) / np.linalg.norm(exact)
    assert error < BOUND[problem.dtype], candidate.name


@needs_cpu
@pytest.mark.parametrize("compiled", [False, True], ids=["evaluated", "compiled"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("limit", [4 * 10**5, 6 * 10**5, 1.5e6, 4e6])
def test_what_chunks_take_is_within_the_limit(limit: float, dtype: str, batch: int, compiled: bool) -> None:
    problem = replace(MODERATE, input_shape=(batch, *MODERATE.input_shape[1:]), dtype=dtype)
    input, weight = operands(problem)
    mx.eval(input, weight)
    reference = convolve(host(input), host(weight), problem)
    found = [c for c in algorithms.candidates(problem, "cpu", memory_bytes=limit) if c.chunks]
    assert len(found) >= 3
    for candidate in found:
        if compiled and len(_chunks.pieces(problem, **candidate.chunks)) > _chunked.DEPTH // _chunked.LEVELS:
            continue  # too many to be kept apart in a trace
        check_within(limit, candidate, problem, (input, weight), reference, compiled)


@needs_cpu
@pytest.mark.parametrize("compiled", [False, True], ids=["evaluated", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("limit", [4 * 10**5, 1.5e6, 4e6])
def test_a_weight_gradient_s_chunks_take_what_is_within_the_limit(limit: float, dtype: str, compiled: bool) -> None:
    problem = replace(MODERATE, input_shape=(2, *MODERATE.input_shape[1:]), dtype=dtype, kind=Kind.WEIGHT_GRADIENT)
    input, cotangent = random_array(problem.input_shape, 1, dtype), random_array(problem.output_shape, 2, dtype)
    mx.eval(input, cotangent)
    exact = weight_gradient(host(input), np.zeros(problem.weight_shape), host(cotangent), problem)
    found = [c for c in algorithms.candidates(problem, "cpu", memory_bytes=limit) if c.chunks]
    assert "native" in {c.algorithm.name for c in found}
    for candidate in found:
        check_within(limit, candidate, problem, (input, cotangent), exact, compiled)


@needs_cpu
@pytest.mark.parametrize(
    "name", ["native(frames=1)", "kd_decomposition(frames=1,sum=float32)", "depth_concat(edges=split,frames=1)"]
)
def test_without_an_order_inside_a_trace_the_chunks_would_all_live_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight = operands(MODERATE)
    mx.eval(input, weight)
    candidate = algorithms.find(name, MODERATE, "cpu")
    assert candidate is not None

    def peak() -> int:
        compiled = mx.compile(candidate.build(MODERATE))
        return taken(lambda: compiled(input, weight))

    ordered = peak()
    monkeypatch.setattr(_chunked, "LEVELS", 0)
    monkeypatch.setattr(_chunked, "_linked", lambda operand, _last: operand)
    monkeypatch.setattr(_chunked, "_linked_as_it_was", lambda operand, _last: operand)
    assert peak() > 4 * ordered


@pytest.mark.parametrize("name", ["native(frames=2)", "kd_decomposition(frames=2,sum=float32)"])
def test_inside_a_trace_each_chunk_waits_for_a_value_of_the_one_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = MODERATE
    candidate = algorithms.find(name, problem, "cpu")
    assert candidate is not None
    waits = []

    def poisoned(operand: mx.array, last: mx.array) -> mx.array:
        waits.append(operand.shape)
        return mx.where(last == 0, operand, last)

    for link in ("_linked", "_linked_as_it_was"):
        monkeypatch.setattr(_chunked, link, poisoned)
    input, weight = operands(problem)
    compiled = mx.compile(candidate.build(problem))
    clean, spoilt = (host(compiled(x, weight)) for x in (input, mx.concatenate([input[:, :1] + 1, input[:, 1:]], 1)))
    assert len(waits) == problem.output_shape[1] // 2 - 1
    for frame in range(problem.output_shape[1]):
        assert not np.array_equal(clean[:, frame], spoilt[:, frame])
    waits.clear()
    candidate.build(problem)(input, weight)
    assert not waits  # outside a trace the evaluation orders them


@needs_cpu
def test_no_second_output_lives() -> None:
    """A pointwise convolution takes nothing but what chunks take, so that a second output would show."""
    problem = Problem.parse((1, 64, 32, 32, 1), (16, 1, 1, 1, 1))
    input, weight = operands(problem)
    mx.eval(input, weight)
    candidate = algorithms.find("kd_decomposition(frames=2,sum=float32)", problem, "cpu")
    assert candidate is not None
    run = candidate.build(problem)
    assert taken(lambda: run(input, weight)) < problem.output_bytes / 4
    assert taken(lambda: mx.compile(run)(input, weight)) < problem.output_bytes / 4


@needs_cpu
def test_gradients_in_chunks_take_less_than_those_of_the_whole() -> None:
    input, weight = operands(MODERATE)
    mx.eval(input, weight)

    def of_both(name: str) -> int:
        candidate = algorithms.find(name, MODERATE, "cpu")
        assert candidate is not None
        run = candidate.build(MODERATE)

        def gradients() -> mx.array:
            found: list[mx.array] = mx.grad(lambda x, w: (run(x, w) ** 2).sum(), (0, 1))(input, weight)
            mx.eval(found)
            return found[0]

        return taken(gradients)

    assert of_both("native(frames=1)") < 0.8 * of_both("native")


@given(st.data())
@settings(max_examples=50)
def test_the_cost_of_chunks_is_that_of_what_they_are(data: st.DataObject) -> None:
    problem = data.draw(problems())
    sizes = data.draw(chunk_sizes(problem))
    for candidate in every_candidate(problem):
        found = in_chunks(candidate, sizes).cost(problem, "cpu")
        cut = _chunks.pieces(problem, **sizes)
        costs = [candidate.cost(piece.problem, "cpu") for piece in cut]
        assert found.flops == sum(c.flops for c in costs)
        assert found.bytes >= sum(c.bytes for c in costs)
        assert found.workspace_bytes == max(
            (
                c.workspace_bytes + p.problem.output_bytes + p.problem.input_bytes
                for c, p in zip(costs, cut, strict=True)
            ),
            default=0,
        )


# Planted errors


def test_a_lost_halo_frame_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, sizes = FIXED["padded"]
    input, weight = operands(problem)
    spans = _chunks.spans

    def without_halo(problem: Problem, axis: int, size: int | None) -> list[_chunks.Span]:
        found = spans(problem, axis, size)
        if axis == 0:
            found = [replace(s, end=s.end - 1, high=s.high + 1) for s in found]
        return found

    monkeypatch.setattr(_chunks, "spans", without_halo)
    found = in_chunks(every_candidate(problem)[0], sizes)
    with pytest.raises(AssertionError):
        check(found.build(problem)(input, weight), input, weight, problem)


def test_weight_gradients_of_many_chunks_in_16_bits_are_added_up_in_32() -> None:
    problem = Problem.parse((1, 64, 8, 8, 2), (2, 1, 1, 1, 2), "float16")
    input, weight = mx.full(problem.input_shape, 0.1, mx.float16), operands(problem)[1]
    cotangent = mx.ones(problem.output_shape, mx.float16)
    exact = weight_gradient(host(input), host(weight), host(cotangent), problem)
    candidate = algorithms.find("native(frames=1)", problem, "cpu")
    assert candidate is not None
    run = candidate.build(problem)
    _, (found,) = mx.vjp(lambda w: run(input, w), [weight], [cotangent])
    np.testing.assert_allclose(host(found), exact, rtol=SLACK * 1e-3)


def test_sizes_of_chunks_are_those_that_cut_evenly() -> None:
    """No size is offered that leaves one small chunk over."""
    for outputs in range(2, 40):
        problem = Problem.parse((1, outputs, 2, 2, 1), (1, 1, 1, 1, 1))
        for limit in itertools.count(1):

            def fits(part: Problem, limit: int = limit) -> bool:
                return part.output_shape[1] <= limit

            found = _chunks.largest(problem, fits, lambda _part: True)
            assert found is not None
            assert found["frames"] <= limit
            lengths = [s.stop - s.start for s in _chunks.spans(problem, 0, found["frames"])]
            assert max(lengths) == found["frames"]
            assert max(lengths) - min(lengths) <= 1
            if limit >= outputs:
                break
