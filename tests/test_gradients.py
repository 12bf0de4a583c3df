"""Gradients are computed rightly by every candidate, verified, decided like convolutions, and taken by training."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Array, convolve, input_gradient, weight_gradient
from strategies import decomposed_problems, problems
from test_algorithms import BACKENDS, BOUND, FIXED, WRONG_IN_MLX, bound_of, host, off, random_array, vmapped
from tolerance import EXACT_FLOAT32, SLACK

import autoconv
from autoconv import accuracy, algorithms, environment
from autoconv import settings as _settings
from autoconv.algorithms import Algorithm, Candidate, _cuda, native, wgrad_matmuls
from autoconv.algorithms._adjoint import adjoint
from autoconv.algorithms._algorithm import Convolution, Cost
from autoconv.cli import main
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.problem import Kind, Problem
from autoconv.record import Status
from autoconv.settings import Settings
from autoconv.store import MemoryStore
from autoconv.tuning.operands import make_operands
from autoconv.tuning.qualification import fingerprint
from autoconv.tuning.reference import Reference
from autoconv.tuning.verification import Verdict

GRADIENTS = (Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT)
CPU = mx.Device(mx.cpu)


def of_kind(problem: Problem, kind: Kind) -> Problem:
    return replace(problem, kind=kind)


def every_candidate(problem: Problem) -> list[Candidate]:
    """All candidates on any backend. Native has no groups in 3D."""
    found = {c.name: c for backend in BACKENDS for c in algorithms.candidates(problem, backend)}
    return [c for c in found.values() if c.name != "native" or problem.groups == 1]


def operands(problem: Problem) -> tuple[mx.array, mx.array]:
    first, second = problem.operand_shapes
    return random_array(first, 0, problem.dtype), random_array(second, 1, problem.dtype)


def exact(problem: Problem, first: Array, second: Array) -> Array:
    """The reference's result for a problem of any kind."""
    if problem.kind is Kind.INPUT_GRADIENT:
        return input_gradient(np.zeros(problem.input_shape), second, first, problem)
    if problem.kind is Kind.WEIGHT_GRADIENT:
        return weight_gradient(first, np.zeros(problem.weight_shape), second, problem)
    return convolve(first, second, problem)


def checker(problem: Problem, first: mx.array, second: mx.array) -> Callable[[Convolution, str], None]:
    """Compares what computes a gradient with the reference's of these operands, which is computed once."""
    a, b = host(first), host(second)
    expected, squares = exact(problem, a, b), exact(problem, a**2, b**2)

    def compare(run: Convolution, by: str) -> None:
        found = run(first, second)
        assert found.dtype == first.dtype, by
        assert off(found, expected, squares) < bound_of(by, problem), by

    return compare


def check(run: Convolution, problem: Problem, by: str, first: mx.array, second: mx.array) -> None:
    checker(problem, first, second)(run, by)


# Candidates


def check_every_candidate(problem: Problem) -> None:
    compare = checker(problem, *operands(problem))
    for candidate in every_candidate(problem):
        compare(candidate.build(problem), candidate.name)


@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=150)
@given(problem=st.one_of(problems(), decomposed_problems()))
def test_every_candidate_computes_the_gradient(kind: Kind, problem: Problem) -> None:
    check_every_candidate(of_kind(problem, kind))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=50)
@given(data=st.data())
def test_every_candidate_computes_it_in_16_bits(kind: Kind, dtype: str, data: st.DataObject) -> None:
    check_every_candidate(of_kind(data.draw(st.one_of(problems((dtype,)), decomposed_problems((dtype,)))), kind))


def check_products(problem: Problem, data: st.DataObject) -> None:
    if "wgrad_matmuls" not in {c.algorithm.name for c in algorithms.candidates(problem, "cpu")}:
        return  # no output sees the input
    plan = wgrad_matmuls._plan(problem)
    assert plan is not None
    splits = data.draw(st.integers(1, min(7, plan.rows)))
    compare = checker(problem, *operands(problem))
    for stack in wgrad_matmuls.STACKS:
        compare(wgrad_matmuls.ALGORITHM.build(problem, stack=stack, splits=splits), f"{stack} {splits}")


@settings(max_examples=100)
@given(data=st.data())
def test_products_of_any_stack_and_splits_are_the_weight_gradient(data: st.DataObject) -> None:
    check_products(data.draw(problems(kinds=GRADIENTS[1:], dilations=False)), data)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@settings(max_examples=34)
@given(data=st.data())
def test_products_are_the_weight_gradient_in_16_bits(dtype: str, data: st.DataObject) -> None:
    check_products(data.draw(problems((dtype,), GRADIENTS[1:], dilations=False)), data)


def test_the_parts_of_a_sum_are_added_up_in_float32() -> None:
    # 2048 + 1 is 2048 in float16, in which the two ones would be lost one by one: three parts, and two rows are left.
    problem = Problem.parse((1, 5, 1, 1, 1), (1, 1, 1, 1, 1), "float16", kind=Kind.WEIGHT_GRADIENT)
    first = mx.ones(problem.input_shape, mx.float16)
    second = mx.array([2048, 1, 0, 1, 0], mx.float16).reshape(problem.output_shape)
    assert wgrad_matmuls.ALGORITHM.build(problem, stack="none", splits=3)(first, second).item() == 2050


@WRONG_IN_MLX
def test_native_has_the_gradients_that_mlx_has_not(problem: Problem, of_weight: bool) -> None:
    problem = of_kind(problem, Kind.WEIGHT_GRADIENT if of_weight else Kind.INPUT_GRADIENT)
    check(native_of(problem), problem, "native", *operands(problem))


def native_of(problem: Problem) -> Convolution:
    found = algorithms.find("native", problem, "cpu")
    assert found is not None
    return found.build(problem)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_of_what_no_output_sees_is_zero(kind: Kind) -> None:
    # One output, which sees only the padding before the input.
    problem = Problem.parse((1, 2, 3, 3, 2), (2, 1, 1, 1, 2), stride=(5, 1, 1), padding=([1, 0, 0], [0, 0, 0]))
    assert problem.output_shape[1] == 1
    problem = of_kind(problem, kind)
    found = every_candidate(problem)
    assert "native" in {c.name for c in found}
    for candidate in found:
        result = candidate.build(problem)(*operands(problem))
        assert result.shape == problem.result_shape
        assert not mx.any(result).item(), candidate.name


@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=50)
@given(problem=problems(max_groups=1, dilations=False))
def test_natives_gradient_is_mlx_own(kind: Kind, problem: Problem) -> None:
    # The very same numbers, of the very same operations; but that cuDNN chooses by addresses among ways to round.
    problem = of_kind(problem, kind)
    first, second = operands(problem)
    padding = (problem.padding_low, problem.padding_high)

    def forward(x: mx.array, w: mx.array) -> mx.array:
        return mx.conv_general(x, w, problem.stride, padding, flip=problem.flip)

    if kind is Kind.INPUT_GRADIENT:
        found = adjoint(problem)
        if found is None or found.cuts:
            return
        _, (of_mlx,) = mx.vjp(lambda x: forward(x, second), [mx.zeros(problem.input_shape)], [first])
    else:
        if not native.weight_gradient_is_right(problem):
            return
        _, (of_mlx,) = mx.vjp(lambda w: forward(first, w), [mx.zeros(problem.weight_shape)], [second])
    if of_mlx.shape != problem.result_shape:
        return  # MLX's, where no output sees the input and the padding is longer than it
    if EXACT_FLOAT32:
        assert mx.array_equal(native_of(problem)(first, second), of_mlx).item() or problem.result_shape[0] == 0
    else:
        check(native_of(problem), problem, "native", first, second)
        check(lambda *_: of_mlx, problem, "MLX", first, second)


@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=50)
@given(problem=problems(dilations=False))
def test_transposed_views_give_the_same_gradient(kind: Kind, problem: Problem) -> None:
    problem = of_kind(problem, kind)
    arrays = operands(problem)
    planes = [mx.contiguous(mx.moveaxis(a, -1, 1)) for a in arrays]
    mx.eval(planes)
    compare = checker(problem, *(mx.moveaxis(a, 1, -1) for a in planes))
    for candidate in every_candidate(problem):
        compare(candidate.build(problem), candidate.name)


CASES = [
    pytest.param(of_kind(problem, kind), candidate, id=f"{what}-{kind}-{candidate.name}")
    for what, problem in FIXED.items()
    for kind in GRADIENTS
    for candidate in every_candidate(of_kind(problem, kind))
]


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_every_candidate_has_the_right_gradients_itself(problem: Problem, candidate: Candidate) -> None:
    # All three are one form, linear in the input x, the weight w and the cotangent c: sum(c * convolve(x, w)).
    first, second = operands(problem)
    weighing = random_array(problem.result_shape, 97)
    run = candidate.build(problem)
    _, found = mx.vjp(run, [first, second], [weighing])
    forward = of_kind(problem, Kind.FORWARD)
    a, b, d = host(first), host(second), host(weighing)

    def slopes(a: Array, b: Array, d: Array) -> tuple[Array, Array]:
        if problem.kind is Kind.INPUT_GRADIENT:  # a is c, b is w, and d stands for x
            return convolve(d, b, forward), weight_gradient(d, b, a, forward)
        return input_gradient(a, d, b, forward), convolve(a, d, forward)

    for slope, of, size in zip(found, slopes(a, b, d), slopes(a**2, b**2, d**2), strict=True):
        assert off(slope, of, size) < BOUND["float32"]


@pytest.mark.parametrize(("problem", "candidate"), CASES)
def test_compiled_it_computes_the_same(problem: Problem, candidate: Candidate) -> None:
    check(mx.compile(candidate.build(problem)), problem, candidate.name, *operands(problem))


VMAPPED = [
    case
    for case in CASES
    if "native" not in str(case.id) and "turned_kernel" not in str(case.id) and "wgrad_convolution" not in str(case.id)
]


@pytest.mark.parametrize(("problem", "candidate"), [c for c in VMAPPED if "groups" not in str(c.id)])
def test_decompositions_can_be_vmapped(problem: Problem, candidate: Candidate) -> None:
    firsts, seconds = (random_array((2, *shape), i) for i, shape in enumerate(problem.operand_shapes))
    outputs = vmapped(candidate.build(problem))(firsts, seconds)
    for first, second, output in zip(firsts, seconds, outputs, strict=True):
        check(lambda *_, output=output: output, problem, candidate.name, first, second)


# The problem


@settings(max_examples=100)
@given(problems(kinds=tuple(Kind)))
def test_a_gradients_operands_and_result_are_the_convolutions(problem: Problem) -> None:
    forward = of_kind(problem, Kind.FORWARD)
    three = {problem.input_shape, problem.weight_shape, problem.output_shape}
    assert {*problem.operand_shapes, problem.result_shape} == three
    assert problem.output_shape == forward.output_shape
    assert (problem.flops, problem.bytes) == (forward.flops, forward.bytes)
    assert problem.bytes == sum(problem.operand_bytes) + problem.result_bytes
    assert problem.addressable == forward.addressable
    assert Problem.from_key(problem.key) == problem


@settings(max_examples=100)
@given(problems())
def test_the_adjoint_maps_outputs_to_inputs(problem: Problem) -> None:
    found = adjoint(of_kind(problem, Kind.INPUT_GRADIENT))
    if found is not None:
        assert found.problem.kind is Kind.FORWARD
        assert found.problem.output_shape == problem.input_shape
        assert found.cuts or found.problem.input_shape == problem.output_shape


# Costs

LAYERS = [
    Problem.parse((1, 128, 128, 128, 32), (32, 3, 3, 3, 32), padding=1),
    Problem.parse((1, 128, 128, 128, 1), (32, 3, 3, 3, 1), padding=1),
    Problem.parse((1, 128, 128, 128, 32), (64, 3, 3, 3, 32), stride=2, padding=1),
    Problem.parse((2, 14, 72, 128, 320), (320, 3, 1, 1, 320), "float16", padding=(1, 0, 0)),
    Problem.parse((8, 16, 112, 112, 3), (64, 7, 7, 7, 3), "bfloat16", stride=(1, 2, 2), padding=3),
]


@pytest.mark.parametrize("problem", LAYERS, ids=str)
def test_no_weight_gradient_takes_many_times_its_operands_on_a_gpu(problem: Problem) -> None:
    problem = of_kind(problem, Kind.WEIGHT_GRADIENT)
    found = {c.name: c.cost(problem, "cuda") for c in algorithms.candidates(problem, "cuda")}
    assert len(found) > 2
    ours = {name: cost.workspace_bytes / problem.bytes for name, cost in found.items() if name != "native"}
    depth = problem.weight_shape[1]  # stacked taps are that many
    assert all(share <= max(4, depth + 2) for share in ours.values()), ours


def test_mlx_unfolds_the_input_for_a_weight_gradient() -> None:
    problem = of_kind(LAYERS[0], Kind.WEIGHT_GRADIENT)
    assert native.ALGORITHM.cost(problem, "cuda").workspace_bytes == 27 * problem.input_bytes


@settings(max_examples=100)
@given(problems(kinds=GRADIENTS), st.sampled_from(BACKENDS))
def test_costs_are_counted_for_every_candidate(problem: Problem, backend: str) -> None:
    for candidate in algorithms.candidates(problem, backend):
        cost = candidate.cost(problem, backend)
        assert min(cost.flops, cost.workspace_bytes) >= 0, candidate.name
        assert cost.bytes > 0, candidate.name


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="the estimate on GPUs leaves MLX's own scratch out")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_workspace_is_about_what_a_run_takes(kind: Kind, stride: int) -> None:
    problem = of_kind(Problem.parse((1, 12, 20, 20, 16), (16, 3, 3, 3, 16), stride=stride, padding=1), kind)
    arrays = make_operands(problem)
    for candidate in algorithms.candidates(problem, "cpu"):
        run = candidate.build(problem)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        output = run(*arrays)
        mx.eval(output)
        mx.synchronize()
        taken = mx.get_peak_memory() - before - output.nbytes
        estimate = candidate.cost(problem, "cpu").workspace_bytes
        assert taken <= 1.5 * estimate + 2**18, f"{candidate.name}: {taken} taken, {estimate} estimated"
        del output


# Verification


@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=150)
@given(data=st.data())
def test_what_is_right_passes(kind: Kind, data: st.DataObject) -> None:
    dtypes = ("float32", "float16", "bfloat16")
    problem = of_kind(data.draw(st.one_of(problems(dtypes), decomposed_problems(dtypes))), kind)
    first, second = make_operands(problem)
    reference = Reference(problem, first, second)
    for candidate in every_candidate(problem):
        verdict = reference.check(candidate.build(problem)(first, second))
        assert verdict.wrong == "", candidate.name
        assert verdict.error < bound_of(candidate.name, problem), candidate.name


@pytest.mark.parametrize("kind", GRADIENTS)
@settings(max_examples=100)
@given(data=st.data())
def test_the_reference_agrees_with_the_definition(kind: Kind, data: st.DataObject) -> None:
    problem = of_kind(data.draw(problems()), kind)
    first, second = make_operands(problem)
    of_definition = mx.array(exact(problem, host(first), host(second)))
    verdict = Reference(problem, first, second).check(of_definition)
    assert verdict.wrong == ""
    assert verdict.error < 1e-6


CHECKED = [
    Problem.parse((1, 8, 10, 11, 6), (5, 3, 3, 3, 6), padding=1),
    Problem.parse((2, 9, 10, 11, 4), (6, 3, 2, 3, 4), "bfloat16", padding=1, stride=2),
    Problem.parse((1, 8, 10, 11, 4), (6, 3, 3, 3, 2), "float16", padding=1, groups=2, flip=True),
]


def _without_last(array: mx.array) -> mx.array:
    flat = mx.reshape(array, (-1, array.shape[-1]))
    return mx.reshape(mx.concatenate([flat[:-1], mx.zeros_like(flat[-1:])]), array.shape)


def _without_a_part(array: mx.array) -> mx.array:
    flat = mx.reshape(array, (-1, array.shape[-1]))
    kept = mx.arange(flat.shape[0])[:, None] // (flat.shape[0] // 8 + 1) != 3
    return mx.reshape(mx.where(kept, flat, mx.zeros_like(flat)), array.shape)


def is_refused(verdict: Verdict, problem: Problem) -> bool:
    """Whether no accuracy that anyone may ask for by name lets it pass."""
    return bool(verdict.wrong) or verdict.error > accuracy.LOSSY[problem.dtype]


WRONG_RESULTS: dict[str, Callable[[mx.array], mx.array]] = {
    "flipped taps": lambda g: g[:, ::-1, ::-1, ::-1],
    "depth flipped": lambda g: g[:, ::-1],
    "one tap too far": lambda g: mx.roll(g, 1, 3),
    "channels mixed": lambda g: g[..., ::-1],
    "zeros": mx.zeros_like,
    "half": lambda g: g / 2,
    "not finite": lambda g: g * math.inf,
}


@pytest.mark.parametrize("mutant", WRONG_RESULTS)
@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("problem", CHECKED, ids=str)
def test_a_wrong_gradient_is_seen(problem: Problem, kind: Kind, mutant: str) -> None:
    problem = of_kind(problem, kind)
    first, second = make_operands(problem)
    right = mx.array(exact(problem, host(first), host(second))).astype(first.dtype)
    assert is_refused(Reference(problem, first, second).check(WRONG_RESULTS[mutant](right)), problem)


@pytest.mark.parametrize("lose", [_without_last, _without_a_part], ids=["the last element", "a part of the sum"])
@pytest.mark.parametrize("of", [0, 1], ids=["input", "cotangent"])
@pytest.mark.parametrize("problem", CHECKED[:1] + CHECKED[2:], ids=str)
def test_a_weight_gradient_that_leaves_something_out_is_seen(
    problem: Problem, of: int, lose: Callable[[mx.array], mx.array]
) -> None:
    problem = of_kind(problem, Kind.WEIGHT_GRADIENT)
    arrays = list(make_operands(problem))
    reference = Reference(problem, *arrays)
    arrays[of] = lose(arrays[of])
    found = mx.array(exact(problem, *map(host, arrays))).astype(arrays[0].dtype)
    assert is_refused(reference.check(found), problem)


def test_the_operands_of_a_gradient_have_results_of_about_one() -> None:
    for kind, problem in itertools.product(GRADIENTS, CHECKED):
        asked = of_kind(problem, kind)
        result = host(native_of(asked)(*make_operands(asked))) if problem.groups == 1 else np.ones(1)
        assert 0.1 < np.sqrt(np.mean(result**2)) < 10


# Training


@pytest.fixture(autouse=True)
def _small(tmp_path: Path) -> None:
    autoconv.configure(budget_ms=5, policy="measure")


X, W = random_array((2, 5, 6, 6, 3), 0), random_array((4, 3, 3, 3, 3), 1)

Loss = Callable[[mx.array, mx.array], mx.array]


def loss_of(convolve: Callable[..., mx.array], **arguments: Any) -> Loss:
    return lambda x, w: mx.tanh(convolve(x, w, **arguments)).square().mean()


NEAR = SLACK * (1e-4 if EXACT_FLOAT32 else 3e-2)


def close(found: Any, expected: Any) -> None:
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(host(f), host(e), rtol=SLACK * 1e-3, atol=NEAR * float(mx.abs(e).max()))


TAKEN: dict[str, Callable[[Loss], tuple[mx.array, ...]]] = {
    "grad": lambda f: mx.grad(f, (0, 1))(X, W),
    "value_and_grad": lambda f: mx.value_and_grad(f, (0, 1))(X, W)[1],
    "compiled": lambda f: mx.compile(mx.grad(f, (0, 1)))(X, W),
    "of what is compiled": lambda f: mx.grad(mx.compile(f), (0, 1))(X, W),
    "checkpoint": lambda f: mx.grad(mx.checkpoint(f), (0, 1))(X, W),
    "of the input": lambda f: (mx.grad(f, 0)(X, W),),
    "of the weight": lambda f: (mx.grad(f, 1)(X, W),),
    "vmap over the input": lambda f: mx.grad(lambda x, w: mx.vmap(f, (0, None))(x, w).sum(), (0, 1))(
        mx.stack([X, X + 1]), W
    ),
    "vmap over the weight": lambda f: mx.grad(lambda x, w: mx.vmap(f, (None, 0))(x, w).sum(), (0, 1))(
        X, mx.stack([W, W + 1])
    ),
    "vmap of the input's gradient": lambda f: (mx.vmap(mx.grad(f), (0, None))(mx.stack([X, X + 1]), W),),
    "second derivatives": lambda f: mx.grad(
        lambda x, w: sum((g.square().sum() for g in mx.grad(f, (0, 1))(x, w)), mx.array(0.0)), (0, 1)
    )(X, W),
}


CHOSEN: dict[str, tuple[dict[str, Any], dict[Kind, str]]] = {
    "native": ({"padding": 1}, dict.fromkeys(Kind, "native")),
    "winograd and products": (
        {"padding": 1},
        {
            Kind.FORWARD: "depth_concat(edges=pad)",
            Kind.INPUT_GRADIENT: "depth_winograd(tile=2)",
            Kind.WEIGHT_GRADIENT: "wgrad_matmuls(splits=1,stack=none)",
        },
    ),
    "taps": (
        {"padding": 1},
        {
            Kind.FORWARD: "kd_decomposition(sum=float32)",
            Kind.INPUT_GRADIENT: "kd_decomposition(sum=float32)",
            Kind.WEIGHT_GRADIENT: "wgrad_depth_taps(taps=each)",
        },
    ),
    "strided": (
        {"stride": 2, "padding": 1},
        {
            Kind.FORWARD: "kd_decomposition(sum=float32)",
            Kind.INPUT_GRADIENT: "depth_concat(edges=split)",
            Kind.WEIGHT_GRADIENT: "wgrad_matmuls(splits=1,stack=w)",
        },
    ),
}
"""Arguments, and what is decided for each kind."""


def decide(monkeypatch: pytest.MonkeyPatch, names: dict[Kind, str]) -> list[Kind]:
    """Let the dispatcher decide for these, as if they had been measured; lists what it is asked."""
    asked = []

    def decided(self: Dispatcher, problem: Problem, settings: Settings, device: mx.Device) -> Decision:
        asked.append(problem.kind)
        return Decision(names[problem.kind], Source.DATABASE, 0.5, "for a test")

    monkeypatch.setattr(Dispatcher, "decide", decided)
    return asked


@pytest.mark.parametrize("how", TAKEN)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_gradients_are_those_of_mlx(how: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, names = CHOSEN[chosen]
    asked = decide(monkeypatch, names)
    with autoconv.using(gradients=True):
        try:
            found = TAKEN[how](loss_of(autoconv.conv3d, **arguments))
        except ValueError as error:
            if not _cuda.is_current() or "CustomKernel" not in str(error):
                raise
            pytest.skip("MLX cannot map kernels of our own")
    close(found, TAKEN[how](loss_of(mx.conv3d, **arguments)))
    # Under `mx.vmap` they are those of the convolution's operations.
    assert set(asked) == ({Kind.FORWARD} if how.startswith("vmap over") else set(Kind))


def test_a_weights_gradient_is_vmapped_where_a_candidate_can(monkeypatch: pytest.MonkeyPatch) -> None:
    # MLX's own cannot: it unfolds by an operation without vmap.
    decide(monkeypatch, dict.fromkeys(Kind, "native") | {Kind.WEIGHT_GRADIENT: "wgrad_depth_taps(taps=each)"})
    inputs = mx.stack([X, X + 1])
    with autoconv.using(gradients=True):
        found = mx.vmap(mx.grad(loss_of(autoconv.conv3d, padding=1), 1), (0, None))(inputs, W)
    close(found, [mx.grad(loss_of(mx.conv3d, padding=1), 1)(x, W) for x in inputs])


PROBLEM = Problem.parse(X.shape, W.shape, padding=1)


@pytest.mark.usefixtures("qualified")
def test_a_training_step_decides_three_problems_once() -> None:
    step = mx.value_and_grad(loss_of(autoconv.conv3d, padding=1), (0, 1))
    before = autoconv.statistics()
    with autoconv.using(gradients=True):
        for _ in range(3):
            mx.eval(step(X, W))
    counts = {source: count - before[source] for source, count in autoconv.statistics().items() if count}
    assert counts["measured"] == 3
    assert counts["memory"] == 6
    for kind in Kind:
        assert str(autoconv.explain(X, W, padding=1, kind=kind).decision.source) == "database"


def test_the_settings_of_the_call_hold_for_its_gradients() -> None:
    loss = loss_of(autoconv.conv3d, padding=1)

    def forward(x: mx.array, w: mx.array) -> mx.array:
        with autoconv.using(gradients=True, policy="record"):
            return loss(x, w)

    mx.eval(mx.grad(forward, (0, 1))(X, W))
    assert autoconv.statistics()["native"] == 3
    with autoconv.using(policy="record") as chosen:
        from autoconv.dispatch import dispatcher

        noted = dispatcher().store(chosen).pending(environment.of(mx.default_device()).id)
    assert {p.kind for p in noted} == set(Kind)


def test_a_gradient_that_is_not_wanted_is_not_computed() -> None:
    def operations(argnum: int) -> str:
        text = io.StringIO()
        mx.export_to_dot(text, mx.grad(loss_of(autoconv.conv3d, padding=1), argnum)(X, W))
        return text.getvalue()

    with autoconv.using(gradients=True, policy="record"):  # MLX's own: only the weight's unfolds
        assert "AsStrided" in operations(1)
        assert "AsStrided" not in operations(0)


def test_off_leaves_everything_to_mlx() -> None:
    with autoconv.using(gradients=True, policy="off"):
        found = mx.grad(loss_of(autoconv.conv3d, padding=1), (0, 1))(X, W)
    close(found, mx.grad(loss_of(mx.conv3d, padding=1), (0, 1))(X, W))
    assert sum(autoconv.statistics().values()) == autoconv.statistics()["memory"]


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("gradients", [False, True])
def test_only_without_gradients_can_it_be_exported(gradients: bool, tmp_path: Path) -> None:
    with autoconv.using(gradients=gradients):
        mx.eval(autoconv.conv3d(X, W, padding=1))

        def export() -> None:
            mx.export_function(str(tmp_path / "f.mlxfn"), lambda x: autoconv.conv3d(x, W, padding=1), X)

        if gradients:
            with pytest.raises(ValueError, match="CustomTransforms"):
                export()
            return
        export()
    imported: Any = mx.import_function(str(tmp_path / "f.mlxfn"))
    (found,) = imported(X)
    close([found], [mx.conv3d(X, W, padding=1)])


@pytest.mark.usefixtures("qualified")
def test_operands_of_two_dtypes_get_gradients_of_their_own() -> None:
    x, w = X.astype(mx.bfloat16), W
    with autoconv.using(gradients=True):
        found = mx.grad(loss_of(autoconv.conv3d, padding=1), (0, 1))(x, w)
    expected = mx.grad(loss_of(mx.conv3d, padding=1), (0, 1))(x, w)
    assert [g.dtype for g in found] == [mx.bfloat16, mx.float32]
    assert off(found[1], host(expected[1]), host(expected[1]) ** 2) < 1e-2
    assert off(found[0], host(expected[0]), host(expected[0]) ** 2) < 2e-2


@pytest.mark.usefixtures("qualified")
def test_without_a_measurement_a_gradient_is_that_of_the_operations_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    # Native's, elsewhere, might run out of memory where another way was chosen for that.
    autoconv.tune(X, W, padding=1)
    chosen, built = Dispatcher.candidate, []

    def candidate(self: Dispatcher, found: Any, problem: Problem, device: mx.Device) -> Candidate:
        built.append(problem.kind)
        if problem.kind is not Kind.FORWARD:
            return chosen(self, found, problem, device)
        other = algorithms.find("kd_decomposition(sum=float32)", problem, "cpu")
        assert other is not None
        return other

    monkeypatch.setattr(Dispatcher, "candidate", candidate)
    with autoconv.using(gradients=True, policy="predict"):
        found = mx.grad(loss_of(autoconv.conv3d, padding=1), (0, 1))(X, W)
    close(found, mx.grad(loss_of(mx.conv3d, padding=1), (0, 1))(X, W))
    assert built == [Kind.FORWARD]


@pytest.mark.usefixtures("qualified")
def test_negative_padding_has_the_gradient_of_the_cut_input() -> None:
    padding = ([-1, 1, 0], [1, -2, 1])
    with autoconv.using(gradients=True):
        found = mx.grad(loss_of(autoconv.conv_general, padding=padding), (0, 1))(X, W)

    def by_hand(x: mx.array, w: mx.array) -> mx.array:
        return mx.conv_general(x[:, 1:, :-2], w, padding=([0, 1, 0], [1, 0, 1]))

    close(found, mx.grad(loss_of(by_hand), (0, 1))(X, W))


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("policy", ["measure", "record"])
def test_groups_can_be_trained(policy: str) -> None:
    problem = Problem.parse((1, 4, 5, 5, 4), (4, 3, 3, 3, 2), padding=1, groups=2)
    x, w = (random_array(shape, i) for i, shape in enumerate(problem.operand_shapes))
    cotangent = random_array(problem.output_shape, 3)
    with autoconv.using(gradients=True, policy=policy):
        _, found = mx.vjp(lambda x, w: autoconv.conv3d(x, w, padding=1, groups=2), [x, w], [cotangent])
    a, b, c = host(x), host(w), host(cotangent)
    np.testing.assert_allclose(host(found[0]), input_gradient(a, b, c, problem), rtol=SLACK * 1e-3, atol=SLACK * 1e-3)
    np.testing.assert_allclose(host(found[1]), weight_gradient(a, b, c, problem), rtol=SLACK * 1e-3, atol=SLACK * 1e-3)


# Decisions


def planted(name: str, build: Callable[[Problem], Convolution]) -> Algorithm:
    """A weight gradient that pretends to cost nothing."""
    return Algorithm(name, 1, 50, build, lambda *_, **__: Cost(0, 1, 0), kinds=frozenset({Kind.WEIGHT_GRADIENT}))


WRONG_GRADIENTS: dict[str, Callable[[Problem], Convolution]] = {
    "zeros": lambda p: lambda _x, c: mx.zeros(p.weight_shape, c.dtype),
    "half": lambda p: lambda x, c: native.ALGORITHM.build(p)(x, c) / 2,
    "flipped": lambda p: lambda x, c: native.ALGORITHM.build(p)(x, c)[:, ::-1],
}


@pytest.mark.parametrize("which", WRONG_GRADIENTS)
def test_a_wrong_candidate_never_wins(which: str) -> None:
    made = Dispatcher(
        (native.ALGORITHM, planted("planted", WRONG_GRADIENTS[which])), stores=lambda _path, _readonly: MemoryStore()
    )
    problem = of_kind(PROBLEM, Kind.WEIGHT_GRADIENT)
    chosen = _settings.with_changes(_settings.current(), {"policy": "measure"})
    # Its qualification bars it already; without that its verification does.
    with pytest.warns(autoconv.errors.AutoconvWarning, match="planted is not used"):
        found = made.tune(problem, chosen, CPU)
    assert found.candidate == "native"
    known = {v.record.candidate: v for v in found.verdicts}["planted"]
    assert known.status in {Status.WRONG, Status.FAILED}


def test_gradients_are_qualified_when_one_is_first_timed() -> None:
    store = MemoryStore()
    made = Dispatcher(stores=lambda _path, _readonly: store)
    chosen, where = _settings.current(), environment.of(CPU)
    marks = [fingerprint(algorithms.algorithms(), gradients=gradients) for gradients in (False, True)]
    made.tune(PROBLEM, chosen, CPU)
    convolutions, gradients = (store.qualification(where.id, mark) for mark in marks)
    assert convolutions is not None
    assert gradients is None
    made.tune(of_kind(PROBLEM, Kind.WEIGHT_GRADIENT), chosen, CPU)
    gradients = store.qualification(where.id, marks[1])
    assert gradients is not None
    assert gradients.barred == {}
    assert gradients.ceilings == convolutions.ceilings
    assert gradients.noise == convolutions.noise
    assert ("wgrad_matmuls", "bfloat16") in gradients.passed


def test_ways_to_compute_gradients_do_not_undo_a_qualification_of_convolutions() -> None:
    known = algorithms.algorithms()
    more = (*known, planted("another", WRONG_GRADIENTS["zeros"]))
    assert fingerprint(known) == fingerprint(more)
    assert fingerprint(known, gradients=True) != fingerprint(more, gradients=True)


# The faces


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("False", False)])
def test_the_variable_turns_gradients_on(text: str, value: bool) -> None:
    assert _settings.from_environment({"AUTOCONV_GRADIENTS": text}).gradients is value


@pytest.mark.parametrize("bad", ["yes", 1, None, 0.5])
def test_gradients_are_on_or_off(bad: Any) -> None:
    with pytest.raises(autoconv.errors.SettingsError, match="gradients must be True or False"):
        autoconv.configure(gradients=bad)


@pytest.mark.usefixtures("qualified")
def test_gradients_are_tuned_and_explained_by_kind() -> None:
    found = autoconv.tune(X, W, padding=1, kind="weight_gradient")
    assert found.problem == of_kind(PROBLEM, Kind.WEIGHT_GRADIENT)
    assert "weight gradient" in str(found)
    assert "wgrad_convolution" in found.candidates
    assert str(autoconv.explain(X, W, padding=1, kind="weight_gradient").decision.source) == "database"
    assert str(autoconv.explain(X, W, padding=1).decision.source) == "native"
    with pytest.raises(ValueError, match="kind must be one of forward, input_gradient, weight_gradient"):
        autoconv.explain(X, W, kind="backward")


def test_a_sweep_times_gradients_if_asked(qualified: Path, tmp_path: Path) -> None:
    layers = tmp_path / "layers.csv"
    layers.write_text("N,D,H,W,C_in,C_out,KD,KH,KW,count\n1,4,5,5,2,3,3,3,3,2\n")
    arguments = ["sweep", str(layers), "--gradients", "--database", str(qualified)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [o["kind"] for o in found["outcomes"]] == [str(kind) for kind in Kind]
    assert set(found["summary"]["gain_by_kind"]) == set(Kind)
    again = CliRunner().invoke(main, arguments)
    assert "3 known" in again.output
    assert "input gradient" in again.output


def test_a_sweep_times_gradients_that_calls_noted(qualified: Path) -> None:
    with autoconv.using(gradients=True, policy="record", database=qualified):
        mx.eval(mx.grad(loss_of(autoconv.conv3d, padding=1), (0, 1))(X, W))
    done = CliRunner().invoke(main, ["sweep", "--pending", "--database", str(qualified), "--json"])
    assert done.exit_code == 0, done.output
    assert {(o["kind"], o["ending"]) for o in json.loads(done.stdout)["outcomes"]} == {(str(k), "timed") for k in Kind}


def test_a_gradient_is_explained_by_the_command() -> None:
    arguments = ["explain", "--input", "1,4,5,5,2", "--weight", "3,3,3,3,2", "--kind", "input_gradient", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kind"] == "input_gradient"
