"""Every candidate computes the convolution and its gradients, with the work and the memory that it says it needs."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import taken
from reference import Array, convolve, input_gradient, weight_gradient
from strategies import decomposed_problems, problems
from tolerance import FLOAT32, SLACK

from autoconv import algorithms
from autoconv.algorithms import Algorithm, Candidate, _adapted, _cuda, _depth, implicit_gemm, native
from autoconv.algorithms._algorithm import Cost
from autoconv.problem import MAX_ELEMENTS, Problem
from autoconv.tuning.operands import make_operands

BACKENDS = ("cpu", "cuda", "metal")
ON_CPU = mx.default_device().type == mx.cpu

BOUND = {"float64": SLACK * 1e-5, "float32": FLOAT32, "float16": SLACK * 2e-3, "bfloat16": SLACK * 1.5e-2}
"""Relative L2 error: some roundings of the dtype's unit, which is 6e-8, 5e-4 and 4e-3; TF32's is that of float16."""

TRANSFORMED = 8.0
"""How many times further off a result may be that was rounded among Winograd's transformed values: they add up to four
roundings to one, and in a result of a few values chance does the rest."""

DTYPES = tuple(BOUND)

PLAIN = {
    "native",
    "implicit_gemm",
    "kd_decomposition(sum=float32)",
    "depth_concat(edges=split)",
    "depth_concat(edges=pad)",
}
"""Candidates that do the work of the convolution and no more, from frames as they are."""

any_problem = st.one_of(problems(), decomposed_problems())


def every_candidate(problem: Problem) -> list[Candidate]:
    """All candidates, whatever the backend: what one asks of MLX works on all. Native has no groups in 3D."""
    found = {c.name: c for backend in BACKENDS for c in algorithms.candidates(problem, backend)}
    return [c for c in found.values() if c.name != "native" or problem.groups == 1]


def random_array(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> mx.array:
    """Normal numbers, rounded to the dtype."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return mx.array(values).astype(getattr(mx, dtype))


def operands(problem: Problem, seed: int = 0) -> tuple[mx.array, mx.array]:
    """Random input and weight of a problem."""
    return (
        random_array(problem.input_shape, 2 * seed, problem.dtype),
        random_array(problem.weight_shape, 2 * seed + 1, problem.dtype),
    )


def cotangent_of(problem: Problem) -> mx.array:
    """What a gradient weighs the output with."""
    return random_array(problem.output_shape, 99)


def host(array: mx.array) -> Array:
    return np.asarray(array.astype(mx.float32)).astype(np.float64)


def off(found: mx.array, exact: Array, squares: Array) -> float:
    """Relative L2 error; infinite where the shape is another.

    Relative to the root of the convolution of the squared operands, which is the result's expected norm for random
    signs: a few terms that happen to cancel must not make an exact result look wrong.
    """
    if found.shape != exact.shape:
        return math.inf
    size = math.sqrt(squares.sum())
    error = float(np.linalg.norm(host(found) - exact))
    return error / size if size else error and math.inf


def bound_of(name: str, problem: Problem) -> float:
    """How far off a candidate may be."""
    return BOUND[problem.dtype] * (TRANSFORMED if "winograd" in name and problem.item_bytes == 2 else 1)


def checker(input: mx.array, weight: mx.array, problem: Problem) -> Callable[[mx.array, str], None]:
    """Compares outputs with the reference's of these operands, which is computed once; names the candidate."""
    exact = convolve(host(input), host(weight), problem)
    squares = convolve(host(input) ** 2, host(weight) ** 2, problem)

    def compare(found: mx.array, by: str) -> None:
        assert found.dtype == input.dtype, by
        assert off(found, exact, squares) < bound_of(by, problem), by

    return compare


def check(found: mx.array, input: mx.array, weight: mx.array, problem: Problem, by: str = "") -> None:
    """Compare an output with the reference's of these operands; `by` names the candidate."""
    checker(input, weight, problem)(found, by)


@dataclass(frozen=True)
class Asked:
    """A convolution that was asked of MLX."""

    input: mx.array
    weight: mx.array
    stride: tuple[int, ...]
    padding: tuple[tuple[int, ...], tuple[int, ...]]
    dilation: tuple[int, ...]
    output: mx.array
    flip: bool


@contextmanager
def asked_of_mlx(module: ModuleType) -> Iterator[list[Asked]]:
    """The convolutions that a module asks of MLX inside the block, which still runs them."""
    asked: list[Asked] = []

    def convolution(
        input: mx.array,
        weight: mx.array,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, ...], tuple[int, ...]],
        dilation: tuple[int, ...],
        input_dilation: tuple[int, ...],
        groups: int,
        flip: bool = False,
    ) -> mx.array:
        output = mx.conv_general(input, weight, stride, padding, dilation, input_dilation, groups, flip)
        asked.append(Asked(input, weight, stride, padding, dilation, output, flip))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "conv_general", convolution)
        yield asked


def allocated(arrays: list[mx.array]) -> int:
    """Bytes that evaluating the arrays takes."""
    mx.synchronize()
    mx.clear_cache()  # a buffer that is used again may be larger than what is asked for
    before = mx.get_active_memory()
    mx.eval(arrays)
    mx.synchronize()
    return mx.get_active_memory() - before


def named(problem: Problem, name: str) -> Candidate:
    """The candidate of that name on any backend."""
    return next(c for c in every_candidate(problem) if c.name == name)


def real_pairs(problem: Problem) -> list[tuple[int, int]]:
    """(tap, output frame) wherever the tap sees a frame of the input and not padding."""
    frames, step = problem.input_shape[1], problem.input_dilation[0]
    where = set(range(0, frames * step, step))
    return [
        (tap, output)
        for tap in range(problem.weight_shape[1])
        for output in range(problem.output_shape[1])
        if output * problem.stride[0] + tap * problem.dilation[0] - problem.padding_low[0] in where
    ]


# Results


def check_every_candidate(problem: Problem) -> None:
    input, weight = operands(problem)
    compare = checker(input, weight, problem)
    for candidate in every_candidate(problem):
        compare(candidate.build(problem)(input, weight), candidate.name)


@settings(max_examples=400)
@given(any_problem)
def test_every_candidate_computes_the_convolution(problem: Problem) -> None:
    check_every_candidate(problem)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@settings(max_examples=130)
@given(data=st.data())
def test_every_candidate_computes_it_in_16_bits(dtype: str, data: st.DataObject) -> None:
    check_every_candidate(data.draw(st.one_of(problems((dtype,)), decomposed_problems((dtype,)))))


@settings(max_examples=50)
@given(problems(("float64",), max_groups=1, dilations=False))
def test_float64_is_computed_on_the_cpu(problem: Problem) -> None:
    # In float32, and only where the CPU unfolds the input: MLX has no other convolution of float64.
    with mx.stream(mx.cpu):
        check_every_candidate(problem)


@settings(max_examples=100)
@given(any_problem)
def test_a_transposed_view_gives_the_same_result(problem: Problem) -> None:
    input, weight = operands(problem)
    planes = mx.contiguous(mx.moveaxis(input, -1, 1))  # NCDHW, as ports of models keep it
    mx.eval(planes)
    compare = checker(input, weight, problem)
    for candidate in every_candidate(problem):
        compare(candidate.build(problem)(mx.moveaxis(planes, 1, -1), weight), candidate.name)


@settings(max_examples=100)
@given(decomposed_problems())
def test_native_does_not_let_mlx_read_past_the_end_on_metal(problem: Problem) -> None:
    # MLX's fixed rule does not look at the high padding, so on Metal the depth's must be in the input by then.
    problem = replace(problem, padding_high=(max(1, problem.padding_high[0]), *problem.padding_high[1:]))
    input, weight = operands(problem)
    with pytest.MonkeyPatch.context() as patch, asked_of_mlx(native) as asked:
        patch.setattr(mx.metal, "is_available", lambda: True)
        output = algorithms.algorithms()[0].build(problem)(input, weight)
    assert [call.padding[1][0] for call in asked] == [0]
    check(output, input, weight, problem)


# Gradients


def _spare(problem: Problem, axis: int) -> int:
    """Elements at the end of the padded input that no output sees."""
    size = (problem.input_shape[1 + axis] - 1) * problem.input_dilation[axis] + 1
    size += problem.padding_low[axis] + problem.padding_high[axis]
    return (size - (problem.weight_shape[1 + axis] - 1) * problem.dilation[axis] - 1) % problem.stride[axis]


def mlx_input_gradient_is_right(problem: Problem, axes: tuple[int, ...]) -> bool:
    """Whether MLX's convolution over these axes has the right gradient with respect to its input.

    It is wrong under input dilation where the padding is longer than the kernel reaches: the gradient is then a
    convolution with negative padding, which MLX cuts off in elements of the dilated input, not of the input.
    """
    return not any(
        problem.input_dilation[axis] > 1
        and max(problem.padding_low[axis], problem.padding_high[axis] - _spare(problem, axis))
        > (problem.weight_shape[1 + axis] - 1) * problem.dilation[axis]
        for axis in axes
    )


def mlx_weight_gradient_is_right(problem: Problem, axes: tuple[int, ...]) -> bool:
    """Whether MLX's convolution over these axes has the right gradient with respect to its weight.

    It is wrong where outputs end before the high padding begins, so that the gradient is a convolution with negative
    padding: under input dilation, since MLX cuts that off the undilated input; and where it is longer than the input.
    """
    return not any(
        (cut := _spare(problem, axis) - problem.padding_high[axis]) > 0
        and (problem.input_dilation[axis] > 1 or cut > problem.input_shape[1 + axis])
        for axis in axes
    )


def axes_left_to_mlx(candidate: Candidate) -> tuple[int, ...]:
    """The axes whose gradients are MLX's own; the candidates that take the depth apart are right along it."""
    return (0, 1, 2) if candidate.algorithm.one_call else (1, 2)


@settings(max_examples=200)
@given(any_problem)
def test_every_candidate_has_the_right_gradients(problem: Problem) -> None:
    input, weight = operands(problem)
    cotangent = cotangent_of(problem)
    x, w, c = host(input), host(weight), host(cotangent)
    of_input, size_of_input = (input_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    of_weight, size_of_weight = (weight_gradient(*arrays, problem) for arrays in ((x, w, c), (x**2, w**2, c**2)))
    for candidate in every_candidate(problem):
        run, axes = candidate.build(problem), axes_left_to_mlx(candidate)
        if mlx_input_gradient_is_right(problem, axes):
            _, (found,) = mx.vjp(lambda x, run=run: run(x, weight), [input], [cotangent])
            assert off(found, of_input, size_of_input) < BOUND["float32"], candidate.name
        if mlx_weight_gradient_is_right(problem, axes):
            _, (found,) = mx.vjp(lambda w, run=run: run(input, w), [weight], [cotangent])
            assert off(found, of_weight, size_of_weight) < BOUND["float32"], candidate.name


@settings(max_examples=100)
@given(any_problem)
def test_the_references_gradients_are_those_of_its_convolution(problem: Problem) -> None:
    # A convolution is linear in each operand, so each gradient times its operand is the weighed output.
    x, w, c = host(operands(problem)[0]), host(operands(problem)[1]), host(cotangent_of(problem))
    weighed, size = (convolve(x, w, problem) * c).sum(), (convolve(x**2, w**2, problem) * c**2).sum()
    tolerance = 1e-12 * (1 + size)
    assert abs((input_gradient(x, w, c, problem) * x).sum() - weighed) < tolerance
    assert abs((weight_gradient(x, w, c, problem) * w).sum() - weighed) < tolerance


WRONG_IN_MLX = pytest.mark.parametrize(
    ("problem", "of_weight"),
    [
        pytest.param(
            Problem.parse((1, 3, 1, 1, 1), (1, 1, 1, 1, 1), padding=(1, 0, 0), input_dilation=(2, 1, 1)),
            False,
            id="padding longer than the kernel",
        ),
        pytest.param(
            Problem.parse((1, 3, 1, 1, 1), (1, 2, 1, 1, 1), stride=(2, 1, 1), input_dilation=(2, 1, 1)),
            True,
            id="elements to spare under input dilation",
        ),
        pytest.param(
            Problem.parse((1, 1, 1, 1, 1), (1,) * 5, stride=(3, 1, 1), padding=([2, 0, 0], [0, 0, 0]), flip=True),
            True,
            id="more elements to spare than there are",
        ),
    ],
)


def check_one_gradient(candidate: Candidate, problem: Problem, of_weight: bool) -> None:
    input, weight = operands(problem)
    cotangent = cotangent_of(problem)
    reference = weight_gradient if of_weight else input_gradient
    exact = reference(host(input), host(weight), host(cotangent), problem)
    run = candidate.build(problem)
    if of_weight:
        _, (found,) = mx.vjp(lambda w: run(input, w), [weight], [cotangent])
    else:
        _, (found,) = mx.vjp(lambda x: run(x, weight), [input], [cotangent])
    np.testing.assert_allclose(host(found), exact, rtol=BOUND["float32"], atol=BOUND["float32"])


@pytest.mark.xfail(reason="MLX 0.32.4 has it wrong; once it has not, compare it above as well", strict=True)
@WRONG_IN_MLX
def test_mlx_has_the_gradients_that_are_not_compared(problem: Problem, of_weight: bool) -> None:
    check_one_gradient(named(problem, "native"), problem, of_weight)


@WRONG_IN_MLX
def test_decompositions_have_the_depths_gradients_that_mlx_has_not(problem: Problem, of_weight: bool) -> None:
    is_right = mlx_weight_gradient_is_right if of_weight else mlx_input_gradient_is_right
    assert not is_right(problem, (0, 1, 2))
    check_one_gradient(named(problem, "kd_decomposition(sum=float32)"), problem, of_weight)


# Transformations

FIXED = {
    "causal": Problem.parse((1, 5, 4, 4, 16), (3, 3, 3, 2, 16), padding=([0, 1, 1], [0, 1, 0])),
    "strided and flipped": Problem.parse(
        (2, 5, 4, 4, 2), (3, 3, 3, 2, 2), stride=(2, 1, 1), padding=([2, 1, 1], [1, 1, 0]), flip=True
    ),
    "one frame": Problem.parse((1, 3, 4, 4, 2), (3, 3, 3, 3, 2), padding=(0, 1, 1)),
    "input dilation": Problem.parse((1, 3, 4, 4, 4), (4, 3, 3, 2, 4), padding=1, input_dilation=(2, 1, 1)),
    "groups": Problem.parse((2, 5, 4, 4, 4), (4, 3, 3, 2, 2), padding=1, groups=2),
}
CASES = [
    pytest.param(problem, candidate, id=f"{what}-{candidate.name}")
    for what, problem in FIXED.items()
    for candidate in every_candidate(problem)
]


def check_compiled(problem: Problem, candidate: Candidate) -> None:
    """Compiled, a candidate computes the same of new operands."""
    compiled = mx.compile(candidate.build(problem))
    for seed in (1, 2):
        input, weight = operands(problem, seed)
        check(compiled(input, weight), input, weight, problem)


def vmapped(run: Callable[..., Any], axes: Any = 0) -> Callable[..., Any]:
    """The function under `mx.vmap`, which MLX cannot of kernels of our own."""

    def mapped(*arrays: mx.array) -> Any:
        try:
            return mx.vmap(run, axes)(*arrays)
        except ValueError as error:
            if not _cuda.is_current() or "CustomKernel" not in str(error):
                raise
            pytest.skip("MLX cannot map kernels of our own")

    return mapped


def check_vmapped(problem: Problem, candidate: Candidate, over: str) -> None:
    """Mapped over input, weight or both, a candidate computes what it does of each."""
    if over == "both" and candidate.algorithm.one_call:
        pytest.skip("MLX makes it a grouped convolution, which it has not in 3D")
    if over == "weight" and problem.groups > 1:
        pytest.skip("MLX mixes the groups up")
    inputs = random_array((3, *problem.input_shape), 0)
    weights = random_array((3, *problem.weight_shape), 1)
    axes = (None if over == "weight" else 0, None if over == "input" else 0)
    operands = (inputs[0] if axes[0] is None else inputs, weights[0] if axes[1] is None else weights)
    outputs = vmapped(candidate.build(problem), axes)(*operands)
    assert len(outputs) == 3
    for index, output in enumerate(outputs):
        input, weight = inputs[index * (over != "weight")], weights[index * (over != "input")]
        check(output, input, weight, problem)


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_compiled_it_computes_the_same_of_new_operands(problem: Problem, candidate: Candidate) -> None:
    check_compiled(problem, candidate)


@pytest.mark.parametrize(("problem", "candidate"), CASES)
@pytest.mark.parametrize("over", ["input", "weight", "both"])
def test_it_can_be_vmapped(problem: Problem, candidate: Candidate, over: str) -> None:
    check_vmapped(problem, candidate, over)


@pytest.mark.xfail(reason="MLX 0.32.4 splits the groups over all weights at once", strict=True)
def test_mlx_can_vmap_a_grouped_convolution_over_its_weight() -> None:
    input, weights = random_array((1, 3, 3, 4), 0), random_array((2, 4, 1, 1, 2), 1)
    found = mx.vmap(lambda w: mx.conv2d(input, w, groups=2))(weights)
    each = mx.stack([mx.conv2d(input, w, groups=2) for w in weights])
    np.testing.assert_allclose(host(found), host(each), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_second_derivatives_are_right(problem: Problem, candidate: Candidate) -> None:
    run = candidate.build(problem)
    input, weight = operands(problem)
    cotangent, direction = cotangent_of(problem), random_array(problem.weight_shape, 98)

    def slope(x: mx.array) -> mx.array:
        """How fast the output grows, weighed, as the weight goes in a direction."""
        of_weight: mx.array = mx.grad(lambda w: (run(x, w) * cotangent).sum())(weight)
        return (of_weight * direction).sum()

    # A convolution is linear in its weight, so the slope is the weighed convolution with the direction.
    x, w, c = host(input), host(direction), host(cotangent)
    exact, squares = input_gradient(x, w, c, problem), input_gradient(x**2, w**2, c**2, problem)
    assert off(mx.grad(slope)(input), exact, squares) < BOUND["float32"]


@pytest.mark.parametrize(("problem", "candidate"), [case for case in CASES if "groups" not in str(case.id)])
def test_curvature_agrees_with_natives(problem: Problem, candidate: Candidate) -> None:
    input, weight = operands(problem)
    direction = random_array(problem.input_shape, 98)

    def curvature(run: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
        first = mx.grad(lambda x: mx.tanh(run(x, weight)).sum())
        second: mx.array = mx.grad(lambda x: (first(x) * direction).sum())(input)
        return second

    of_native = host(curvature(native.ALGORITHM.build(problem)))
    error = np.linalg.norm(host(curvature(candidate.build(problem))) - of_native) / np.linalg.norm(of_native)
    assert error < 10 * BOUND["float32"]


# implicit_gemm


def fixed_rule(problem: Problem) -> bool:
    """What MLX's Metal backend asks before it decomposes (`dispatch_conv_3D_gpu` of 0.32.4)."""
    channels, outputs = problem.input_shape[4], problem.weight_shape[0]
    return (
        problem.groups == 1
        and channels % 16 == 0
        and (outputs <= 16 or outputs % 16 == 0)
        and problem.input_shape[0] == 1
        and problem.weight_shape[1] <= 7
        and problem.stride[0] == problem.dilation[0] == 1
        and problem.padding_low[0] == 0
        and max(problem.input_dilation) == 1
    )


@settings(max_examples=200)
@given(any_problem)
def test_implicit_gemm_is_offered_where_the_fixed_rule_would_decompose(problem: Problem) -> None:
    offered = [b for b in BACKENDS if algorithms.find("implicit_gemm", problem, b)]
    assert offered == (["metal"] if fixed_rule(problem) else [])


DECOMPOSED = Problem.parse((1, 8, 4, 4, 16), (16, 3, 3, 3, 16), padding=(0, 1, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": (2, 8, 4, 4, 16)},
        {"input_shape": (1, 8, 4, 4, 24), "weight_shape": (16, 3, 3, 3, 24)},
        {"weight_shape": (24, 3, 3, 3, 16)},
        {"weight_shape": (16, 8, 3, 3, 16)},
        {"stride": (2, 1, 1)},
        {"dilation": (2, 1, 1)},
        {"padding_low": (1, 1, 1)},
        {"input_dilation": (1, 1, 2)},
        {"groups": 2, "weight_shape": (16, 3, 3, 3, 8)},
    ],
    ids=str,
)
def test_each_condition_of_the_fixed_rule_counts(change: dict[str, object]) -> None:
    assert algorithms.find("implicit_gemm", DECOMPOSED, "metal")
    assert not algorithms.find("implicit_gemm", replace(DECOMPOSED, **change), "metal")  # type: ignore[arg-type]


@settings(max_examples=100)
@given(decomposed_problems())
def test_implicit_gemm_is_natives_result_from_a_call_that_fails_the_rule(problem: Problem) -> None:
    with mx.stream(mx.cpu), asked_of_mlx(implicit_gemm) as asked:
        input, weight = operands(problem)
        found = named(problem, "implicit_gemm").build(problem)(input, weight)
        of_native = mx.conv_general(
            input,
            weight,
            problem.stride,
            (problem.padding_low, problem.padding_high),
            problem.dilation,
            flip=problem.flip,
        )
        np.testing.assert_allclose(host(found), host(of_native), rtol=1e-6, atol=1e-6)
    (call,) = asked
    assert call.stride[0] > 1 or call.dilation[0] > 1 or call.padding[0][0] > 0
    # One extra frame, and none where an argument that cannot act will do.
    frames, depth = problem.output_shape[1], problem.weight_shape[1]
    assert call.output.shape[1] == (frames if frames == 1 or depth == 1 else frames + 1)


# kd_decomposition


@settings(max_examples=200)
@given(any_problem)
def test_kd_decomposition_convolves_each_frame_that_a_tap_sees_and_no_padding(problem: Problem) -> None:
    input, weight = operands(problem)
    with asked_of_mlx(_depth) as asked:
        named(problem, "kd_decomposition(sum=float32)").build(problem)(input, weight)
    pairs = real_pairs(problem)
    assert sum(call.input.shape[0] for call in asked) == problem.input_shape[0] * len(pairs)
    # One convolution a tap; under input dilation, one for the outputs that stand on its grid in the same way.
    period = problem.input_dilation[0] // math.gcd(problem.input_dilation[0], problem.stride[0])
    assert len(asked) == len({(tap, output % period) for tap, output in pairs})


@pytest.mark.parametrize("stride", [1, 2])
def test_kd_decomposition_of_one_batch_takes_views_of_its_frames(stride: int) -> None:
    problem = Problem.parse((1, 8, 8, 8, 4), (4, 3, 3, 3, 4), stride=(stride, 1, 1), padding=1)
    input, weight = operands(problem)
    mx.eval(input, weight)
    with asked_of_mlx(_depth) as asked:
        named(problem, "kd_decomposition(sum=float32)").build(problem)(input, weight)
    assert len(asked) == 3
    assert allocated([call.input for call in asked]) == 0


def test_kd_decomposition_copies_a_transposed_input_once_for_all_taps() -> None:
    problem = Problem.parse((1, 8, 8, 8, 4), (4, 3, 3, 3, 4), padding=1)
    input, weight = operands(problem)
    transposed = mx.moveaxis(mx.contiguous(mx.moveaxis(input, -1, 1)), 1, -1)
    mx.eval(transposed, weight)
    with asked_of_mlx(_depth) as asked:
        named(problem, "kd_decomposition(sum=float32)").build(problem)(transposed, weight)
    assert input.nbytes <= allocated([call.input for call in asked]) < 1.5 * input.nbytes


def test_the_taps_of_16_bits_are_summed_as_the_candidate_says() -> None:
    # 2048 + 1 is 2048 in float16: summed there the ones are lost one by one, in float32 none is.
    problem = Problem.parse((1, 5, 1, 1, 1), (1, 5, 1, 1, 1), "float16")
    input = mx.ones(problem.input_shape, mx.float16)
    weight = mx.array([2048, 1, 1, 1, 1], mx.float16).reshape(problem.weight_shape)
    found = {c.parameters: c.build(problem)(input, weight).item() for c in every_candidate(problem)}
    assert found["sum=float32"] == 2052
    assert found["sum=dtype"] == 2048


# depth_concat


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_depth_concat_of_one_output_frame_is_one_copy(
    groups: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.parse(
        (1, 2 * dilation + 1, 16, 16, 8), (4, 3, 3, 3, 8 // groups), padding=(0, 1, 1),
        dilation=(dilation, 1, 1), groups=groups,
    )  # fmt: skip
    input, weight = operands(problem)
    mx.eval(input, weight)
    run = named(problem, "depth_concat(edges=split)").build(problem)

    def concatenate(*_: object, **__: object) -> mx.array:
        pytest.fail("frames are concatenated")

    monkeypatch.setattr(mx, "concatenate", concatenate)
    with asked_of_mlx(_depth) as asked:
        output = run(input, weight)
    (call,) = asked
    assert call.input.shape == (1, 16, 16, 24)
    assert allocated([call.input]) < 1.5 * call.input.nbytes
    check(output, input, weight, problem)


def test_depth_concat_leaves_out_taps_between_others_that_see_only_padding() -> None:
    # The stride steps over the whole input: taps 0, 1 and 3 see a frame, tap 2 none.
    problem = Problem.parse((1, 2, 1, 1, 2), (2, 4, 1, 1, 2), stride=(3, 1, 1), padding=([3, 0, 0], [2, 0, 0]))
    assert {tap for tap, _ in real_pairs(problem)} == {0, 1, 3}
    input, weight = operands(problem)
    for edges in ("split", "pad"):
        run = named(problem, f"depth_concat(edges={edges})").build(problem)
        check(run(input, weight), input, weight, problem)


@settings(max_examples=100)
@given(any_problem)
def test_depth_concat_offers_padding_where_there_is_some(problem: Problem) -> None:
    found = {c.name for c in every_candidate(problem) if c.algorithm.name == "depth_concat"}
    names = {name for name in found if "channels" not in name}
    assert {
        name.replace("channels=8,", "").replace("channels=16,", "").replace("channels=32,", "") for name in found
    } == names
    taps, outputs = {tap for tap, _ in real_pairs(problem)}, {output for _, output in real_pairs(problem)}
    if problem.weight_shape[1] == 1:
        assert not names
    elif max(problem.input_dilation) == 1 and len(taps) * problem.output_shape[1] == len(real_pairs(problem)):
        assert names == {"depth_concat(edges=split)"}
    elif max(problem.input_dilation) == 1 and outputs:
        assert names == {"depth_concat(edges=split)", "depth_concat(edges=pad)"}


# All of them


@settings(max_examples=100)
@given(any_problem)
def test_2d_convolutions_are_flipped_only_under_an_input_dilation(problem: Problem) -> None:
    # A flipped one never takes MLX's Winograd, as none does under an input dilation; there CUDA has only a flipped one.
    problem = replace(problem, flip=True)
    input, weight = operands(problem)
    with asked_of_mlx(_depth) as asked:
        for candidate in every_candidate(problem):
            if "fold" not in candidate.name:  # which convolves the padding as well
                candidate.build(problem)(input, weight)
    assert {(call.flip, call.input.ndim) for call in asked} <= {(max(problem.input_dilation[1:]) > 1, 4)}
    assert bool(asked) == bool(real_pairs(problem))


FRAME = (2**15, 2**14, 1)  # three of them can be addressed, four cannot
WIDE = (2**11, 2**12, 16)
SPLIT = {"native", "kd_decomposition(sum=float32)", "depth_concat(edges=split)"}


@pytest.mark.parametrize(
    ("problem", "offered"),
    [
        (Problem.parse((1, 3, *FRAME), (1, 2, 1, 1, 1), stride=(2, 1, 1)), SPLIT),
        # Input, output and weight, and an input that the fixed rule would decompose.
        (Problem.parse((1, 4, *FRAME), (1, 2, 1, 1, 1), stride=(3, 1, 1)), {"native"}),
        (Problem.parse((1, 2, *FRAME), (4, 2, 1, 1, 1)), {"native"}),
        (Problem.parse((1, 2, 1, 1, 2**16), (2**15, 2, 1, 1, 2**16)), {"native"}),
        (Problem.parse((1, 16, *WIDE), (16, 2, 1, 1, 16)), {"native"}),
        # Two frames for each of two outputs.
        (Problem.parse((1, 3, *FRAME), (1, 2, 1, 1, 1)), SPLIT - {"depth_concat(edges=split)"}),
        # Two frames of the input and two of zeros, of which a stride of three uses two.
        (Problem.parse((1, 2, *FRAME), (1, 2, 1, 1, 1), stride=(3, 1, 1), padding=([1, 0, 0], [2, 0, 0])), SPLIT),
        # Room for one output frame more, and none.
        (Problem.parse((1, 4, *WIDE), (48, 2, 1, 1, 16)), SPLIT | {"implicit_gemm"}),
        (Problem.parse((1, 4, *WIDE), (80, 2, 1, 1, 16)), SPLIT),
    ],
    ids=lambda value: str(value) if isinstance(value, Problem) else "",
)
def test_no_kernel_of_ours_gets_more_elements_than_can_be_addressed(problem: Problem, offered: set[str]) -> None:
    found = {candidate.name for candidate in algorithms.candidates(problem, "metal") if not candidate.chunks}
    assert found & PLAIN == offered


# The registry


def test_every_module_of_the_package_is_an_algorithm() -> None:
    folder = Path(algorithms.__file__).parent
    modules = {file.stem for file in folder.glob("*.py") if not file.name.startswith("_")}
    found = algorithms.algorithms()
    assert {algorithm.name for algorithm in found} == modules
    assert len({algorithm.order for algorithm in found}) == len(found)
    assert [algorithm.order for algorithm in found] == sorted(algorithm.order for algorithm in found)
    assert found[0].name == "native"
    assert all(algorithm.version >= 1 for algorithm in found)


def test_an_algorithm_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_helper.py").write_text("raise AssertionError('not an algorithm')\n")
    (tmp_path / "half_and_half.py").write_text(
        "from autoconv.algorithms import Algorithm, native\n"
        "ALGORITHM = Algorithm('half_and_half', 1, 99, native.ALGORITHM.build, native.ALGORITHM.cost,\n"
        "                      lambda problem, backend: [{'parts': 2}, {'parts': 4}])\n"
    )
    problem = FIXED["causal"]
    known = algorithms.candidates(problem, "metal")
    try:
        monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
        algorithms.algorithms.cache_clear()
        names = [candidate.name for candidate in algorithms.candidates(problem, "metal")]
        assert names == [*(c.name for c in known), "half_and_half(parts=2)", "half_and_half(parts=4)"]
    finally:
        monkeypatch.undo()
        algorithms.algorithms.cache_clear()
        sys.modules.pop("autoconv.algorithms.half_and_half", None)


@settings(max_examples=100)
@given(st.one_of(problems(DTYPES), decomposed_problems(DTYPES)), st.sampled_from(BACKENDS))
def test_a_candidate_is_found_by_its_name_and_read_from_its_parameters(problem: Problem, backend: str) -> None:
    found = algorithms.candidates(problem, backend)
    assert len({candidate.name for candidate in found}) == len(found)
    assert found[0].name == "native"
    for candidate in found:
        assert algorithms.find(candidate.name, problem, backend) == candidate
        parts = [part.split("=") for part in candidate.parameters.split(",") if part]
        assert dict(parts) == {name: str(value) for name, value in candidate.items}
        assert all(name.isidentifier() and value.isalnum() for name, value in parts)
    assert algorithms.find("no_such_algorithm", problem, backend) is None


# Costs


@settings(max_examples=200)
@given(any_problem)
def test_decompositions_count_the_work_that_is_not_padding(problem: Problem) -> None:
    taps = math.prod(problem.weight_shape[2:])  # KH, KW and channels
    outputs = problem.input_shape[0] * math.prod(problem.output_shape[2:])
    expected = 2 * len(real_pairs(problem)) * taps * outputs
    for candidate in every_candidate(problem):
        if candidate.parameters in {"sum=float32", "sum=dtype", "edges=split"}:
            assert candidate.cost(problem, "cpu").flops == expected, candidate.name


@settings(max_examples=100)
@given(st.one_of(problems(DTYPES), decomposed_problems(DTYPES)), st.sampled_from(BACKENDS))
def test_costs_are_no_less_than_what_must_move(problem: Problem, backend: str) -> None:
    for candidate in every_candidate(problem):
        cost = candidate.cost(problem, backend)
        assert cost.workspace_bytes >= 0, candidate.name
        if real_pairs(problem):
            assert cost.bytes >= problem.output_bytes, candidate.name
        if candidate.algorithm.name in {"native", "implicit_gemm"}:
            assert cost.flops >= problem.flops


def test_a_candidate_asked_again_answers_for_the_problem_and_backend_that_it_is_asked_about() -> None:
    """Its latest answer is kept, so that what looked for candidates that fit and what compares them count once."""
    asked: list[tuple[Problem, str]] = []

    def cost(problem: Problem, backend: str) -> Cost:
        asked.append((problem, backend))
        return Cost(problem.flops, 0, len(backend))

    counting = Algorithm("counting", 1, 1, lambda _: lambda input, _weight: input, cost)
    small, large = (Problem.parse((1, 4, 4, 4, c), (8, 3, 3, 3, c)) for c in (1, 2))
    (candidate,) = algorithms.candidates(small, "cpu", (counting,), memory_bytes=1e9)
    for _ in range(2):
        assert candidate.cost(small, "cpu") == Cost(small.flops, 0, 3)
    assert asked == [(small, "cpu")]
    for problem, backend in [(large, "cpu"), (small, "cuda"), (small, "cpu"), (large, "metal")]:
        assert candidate.cost(problem, backend) == Cost(problem.flops, 0, len(backend))
    assert candidate == Candidate(counting)
    assert hash(candidate) == hash(Candidate(counting))


@given(problems(max_groups=1), st.integers(0, 24), st.sampled_from((8, 16, 32)))
def test_what_fits_32_bits_is_told_without_making_the_other_problem(problem: Problem, power: int, step: int) -> None:
    problem = replace(problem, input_shape=(problem.input_shape[0] * 2**power, *problem.input_shape[1:]))
    assert _adapted.channels_fit(problem, step) == _adapted.with_channels(problem, step).addressable
    if problem.input_shape[0] > 1 and problem.input_dilation[0] == 1:
        clip = _adapted.one_clip(problem)
        most = max(math.prod(clip.input_shape), math.prod(clip.output_shape))
        assert _adapted.can_be_one_clip(problem) == (most <= MAX_ELEMENTS)


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="the estimate on GPUs leaves MLX's own scratch out")
@pytest.mark.parametrize(
    "problem",
    [
        Problem.parse((1, 6, 16, 16, 16), (8, 3, 3, 3, 16), padding=1),
        Problem.parse((1, 5, 16, 16, 16), (16, 5, 3, 3, 16)),
        Problem.parse((2, 6, 20, 20, 16), (16, 3, 3, 3, 16), "bfloat16", padding=1, stride=(2, 1, 1)),
    ],
    ids=str,
)
def test_a_run_takes_no_more_than_the_workspace_and_not_a_small_part_of_it(problem: Problem) -> None:
    # How much of its scratch is alive at a time depends on how far MLX's evaluation happens to run ahead.
    input, weight = make_operands(problem)
    for candidate in algorithms.candidates(problem, "cpu"):
        run = candidate.build(problem)
        most = max(taken(functools.partial(run, input, weight)) for _ in range(5))
        estimate = candidate.cost(problem, "cpu").workspace_bytes
        assert 0.2 * estimate <= most <= 1.2 * estimate, f"{candidate.name}: {most} taken, {estimate} estimated"


@given(problems(max_groups=1))
def test_the_workspace_of_native_on_a_gpu_is_not_ours_to_say(problem: Problem) -> None:
    assert named(problem, "native").cost(problem, "metal").workspace_bytes == 0
