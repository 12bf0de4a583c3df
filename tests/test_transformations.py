"""Under MLX's transformations, one in another too, whatever is chosen computes what MLX's own convolution does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as _layers
import numpy as np
import pytest
from mlx.utils import tree_flatten
from planted import anywhere, names_anywhere, plant
from reference import convolve, input_gradient, weight_gradient

import autoconv
import autoconv.nn
from autoconv import algorithms
from autoconv.problem import Kind, Problem

layers: Any = _layers  # which has no types
Convolve = Callable[[mx.array, mx.array], mx.array]
Found = Any  # an array or several


@pytest.fixture(autouse=True, scope="module")
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def random_array(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@dataclass(frozen=True)
class Case:
    """A convolution of some size, and what is chosen for it and for its gradients."""

    arguments: tuple[tuple[str, Any], ...]
    problem: Problem
    chosen: tuple[tuple[Kind, str], ...]

    @property
    def forward(self) -> str:
        return dict(self.chosen)[Kind.FORWARD]

    def ours(self, x: mx.array, w: mx.array) -> mx.array:
        return autoconv.conv3d(x, w, **dict(self.arguments))

    def theirs(self, x: mx.array, w: mx.array) -> mx.array:
        return mx.conv3d(x, w, **dict(self.arguments))


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "cube": ((2, 5, 4, 3, 4), (3, 3, 3, 3, 4), {"padding": 1}),
    "depth": ((2, 5, 3, 3, 4), (3, 3, 1, 1, 4), {"padding": (1, 0, 0)}),
    "point": ((2, 4, 3, 3, 4), (3, 1, 1, 1, 4), {}),
    "one frame": ((1, 6, 3, 3, 16), (16, 3, 3, 3, 16), {"padding": (0, 1, 1)}),  # the rule on Metal decomposes that
    "strided": ((2, 6, 5, 5, 3), (4, 3, 3, 3, 3), {"stride": 2, "padding": 1}),
}


def first_of_each(problem: Problem) -> dict[str, str]:
    """A candidate of each algorithm that applies, by the algorithm."""
    found: dict[str, str] = {}
    for name in names_anywhere(problem):
        found.setdefault(name.partition("(")[0], name)
    return found


def in_chunks(name: str, problem: Problem) -> str | None:
    """The same candidate in chunks of one clip, or of two frames where there is one."""
    key = "clips=1" if problem.input_shape[0] > 1 else "frames=2"
    algorithm, _, rest = name.partition("(")
    made = f"{algorithm}({','.join(sorted([key, *filter(None, rest.rstrip(')').split(','))]))})"
    return made if anywhere(made, problem) is not None else None


def cases() -> dict[str, Case]:
    """Each algorithm on one layer, whole and in chunks; those of weight gradients take turns beside them."""
    made: dict[str, Case] = {}
    seen: set[str] = set()
    for layer, (input_shape, weight_shape, arguments) in LAYERS.items():
        problem = Problem.parse(input_shape, weight_shape, **arguments)
        of_input, of_weight = (replace(problem, kind=k) for k in (Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT))
        whole = list(first_of_each(of_weight).values())
        cut = [name for name in (in_chunks(n, of_weight) for n in whole) if name is not None]
        for algorithm, name in first_of_each(problem).items():
            if algorithm in seen and layer != "strided":
                continue
            seen.add(algorithm)
            for chosen in filter(None, (name, in_chunks(name, problem))):
                beside = cut if chosen != name else whole
                back = chosen if anywhere(chosen, of_input) is not None else "native"
                names = (chosen, back, beside[len(made) % len(beside)])
                kinds = (Kind.FORWARD, Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT)
                made[f"{layer}-{chosen}"] = Case(
                    tuple(arguments.items()), problem, tuple(zip(kinds, names, strict=True))
                )
    return made


CASES = cases()


def test_every_algorithm_is_among_the_cases() -> None:
    known = {algorithm.name for algorithm in algorithms.algorithms()}
    chosen = {name.partition("(")[0] for case in CASES.values() for _, name in case.chosen}
    assert chosen == known
    in_parts = {case.forward.partition("(")[0] for case in CASES.values() if anywhere_chunked(case)}
    assert in_parts == {name for name in known if not name.startswith("wgrad")}


def anywhere_chunked(case: Case) -> bool:
    candidate = anywhere(case.forward, case.problem)
    assert candidate is not None
    return bool(candidate.chunks)


@functools.cache
def operands(problem: Problem) -> tuple[mx.array, ...]:
    """Input, weight, cotangent, three inputs, three weights."""
    x, w, c = (
        random_array(s, i) for i, s in enumerate((problem.input_shape, problem.weight_shape, problem.output_shape))
    )
    return x, w, c, mx.stack([x, x + 1, 2 * x]), mx.stack([w, w - 1, 2 * w])


def loss(of: Convolve) -> Convolve:
    return lambda x, w: of(x, w).square().sum()


def close(found: Found, expected: Found) -> None:
    pairs = zip(*([a] if isinstance(a, mx.array) else a for a in (found, expected)), strict=True)
    for f, e in pairs:
        assert f.shape == e.shape
        np.testing.assert_allclose(np.asarray(f), np.asarray(e), rtol=1e-3, atol=1e-4 * float(mx.abs(e).max()))


# Forward and both gradients, against NumPy


def pairs(*second: Any) -> list[Any]:
    """All of these with each case; but Winograd's sums are not compiled, since MLX has the CPU's kernels of them
    compiled by the machine's compiler, at seconds a kernel (test_algorithms does so once).
    """
    return [
        pytest.param(case, other, id=f"{name}-{other}")
        for name, case in CASES.items()
        for other in second
        if not ("compile" in other and "winograd" in case.forward)
    ]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("case", "how"), pairs("as it is", "compiled"))
def test_a_convolution_and_its_vjp_are_right(
    case: Case, how: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plant(monkeypatch, dict(case.chosen))
    x, w, c, _, _ = operands(case.problem)

    def both(x: mx.array, w: mx.array, c: mx.array) -> list[mx.array]:
        outputs, slopes = mx.vjp(case.ours, [x, w], [c])
        return [*outputs, *slopes]

    with autoconv.using(gradients=gradients):
        found = (mx.compile(both) if how == "compiled" else both)(x, w, c)
    a, b, d = (np.asarray(array, np.float64) for array in (x, w, c))
    p = case.problem
    exact = [convolve(a, b, p), input_gradient(a, b, d, p), weight_gradient(a, b, d, p)]
    for f, e in zip(found, exact, strict=True):
        np.testing.assert_allclose(np.asarray(f), e, rtol=1e-3, atol=1e-4 * abs(e).max())
    assert {problem.kind for problem, _ in asked} == (set(Kind) if gradients else {Kind.FORWARD})


# One transformation in another, against MLX's own convolution under the same


def squares_of_gradients(of: Convolve) -> Callable[[mx.array, mx.array], mx.array]:
    def total(x: mx.array, w: mx.array) -> mx.array:
        of_input, of_weight = mx.grad(loss(of), (0, 1))(x, w)
        both: mx.array = of_input.square().sum() + of_weight.square().sum()
        return both

    return total


def plain_custom(of: Convolve) -> Convolve:
    wrapped: Any = mx.custom_function(of)
    return wrapped  # type: ignore[no-any-return]


def with_a_vjp_around(of: Convolve) -> Convolve:
    """A function of the user's own, whose vjp takes twice the convolution's."""
    made: Any = mx.custom_function(of)

    @made.vjp  # type: ignore[untyped-decorator]
    def twice(primals: Any, cotangent: mx.array, _output: mx.array) -> list[mx.array]:
        return [2 * slope for slope in mx.vjp(of, list(primals), [cotangent])[1]]

    wrapped: Convolve = made
    return wrapped


def with_a_vmap_around(of: Convolve) -> Convolve:
    """A function of the user's own, that is mapped by calling it for each input."""
    made: Any = mx.custom_function(of)

    @made.vmap  # type: ignore[untyped-decorator]
    def each_by_itself(arrays: Any, axes: Any) -> tuple[mx.array, int]:
        x, w = arrays
        assert axes == (0, None)
        return mx.stack([of(each, w) for each in x]), 0

    wrapped: Convolve = made
    return wrapped


Use = Callable[[Convolve, mx.array, mx.array, mx.array, mx.array], Found]
"""Of a convolution, input and weight, three inputs and three weights."""

USES: dict[str, Use] = {
    "value and grad": lambda f, x, w, _xs, _ws: mx.value_and_grad(loss(f), (0, 1))(x, w)[1],
    "grad of grad": lambda f, x, w, _xs, _ws: mx.grad(squares_of_gradients(f), (0, 1))(x, w),
    "grad of compile": lambda f, x, w, _xs, _ws: mx.grad(mx.compile(loss(f)), (0, 1))(x, w),
    "checkpoint": lambda f, x, w, _xs, _ws: mx.grad(mx.checkpoint(loss(f)), (0, 1))(x, w),
    "stop_gradient": lambda f, x, w, _xs, _ws: mx.grad(
        lambda x, w: loss(f)(mx.stop_gradient(x), w) + loss(f)(2 * x, mx.stop_gradient(w)), (0, 1)
    )(x, w),
    "custom function": lambda f, x, w, _xs, _ws: mx.grad(loss(plain_custom(f)), (0, 1))(x, w),
    "custom function with a vjp": lambda f, x, w, _xs, _ws: mx.grad(loss(with_a_vjp_around(f)), (0, 1))(x, w),
    "custom function with a vmap": lambda f, _x, w, xs, _ws: mx.vmap(with_a_vmap_around(f), (0, None))(xs, w),
    "vmap of inputs": lambda f, _x, w, xs, _ws: mx.vmap(f, (0, None))(xs, w),
    "vmap of inputs, other axes": lambda f, _x, w, xs, _ws: mx.vmap(f, (2, None), 5)(mx.moveaxis(xs, 0, 2), w),
    "vmap of weights": lambda f, x, _w, _xs, ws: mx.vmap(f, (None, 0))(x, ws),
    "vmap of weights, other axes": lambda f, x, _w, _xs, ws: mx.vmap(f, (None, 4), 1)(x, mx.moveaxis(ws, 0, 4)),
    "vmap of vmap": lambda f, _x, w, xs, _ws: mx.vmap(mx.vmap(f, (0, None)), (1, None), 1)(
        mx.stack([xs, 1 - xs], 1), w
    ),
    "vmap of compile": lambda f, _x, w, xs, _ws: mx.vmap(mx.compile(f), (0, None))(xs, w),
    "compile of vmap": lambda f, _x, w, xs, _ws: mx.compile(mx.vmap(f, (0, None)))(xs, w),
    "vmap of grad": lambda f, _x, w, xs, _ws: mx.vmap(mx.grad(loss(f)), (0, None))(xs, w),
    "grad of vmap": lambda f, _x, w, xs, _ws: mx.grad(
        lambda xs, w: mx.vmap(loss(f), (0, None))(xs, w).sum(), (0, 1)
    )(xs, w),
}  # fmt: skip


@functools.cache
def expected(use: str, problem: Problem, arguments: tuple[tuple[str, Any], ...]) -> Found:
    x, w, _, xs, ws = operands(problem)
    found = USES[use](lambda x, w: mx.conv3d(x, w, **dict(arguments)), x, w, xs, ws)
    mx.eval(found)
    return found


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("case", "use"), pairs(*USES))
def test_one_in_another_is_as_mlx_s_own(case: Case, use: str, gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, dict(case.chosen))
    x, w, _, xs, ws = operands(case.problem)
    before = autoconv.statistics()["database"]
    with autoconv.using(gradients=gradients):
        found = USES[use](case.ours, x, w, xs, ws)
    close(found, expected(use, case.problem, case.arguments))
    assert autoconv.statistics()["database"] > before


ONE_CALL = {a.name for a in algorithms.algorithms() if a.one_call}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_inputs_and_weights_are_mapped_at_once_where_no_3d_convolution_of_mlx_s_is(
    case: Case, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX makes groups of them, which it has not in 3D."""
    plant(monkeypatch, dict(case.chosen))
    _, _, _, xs, ws = operands(case.problem)
    twice = mx.stack([xs, 1 - xs])

    def mapped() -> mx.array:
        if not nested:
            return mx.vmap(case.ours, (3, 1), 2)(mx.moveaxis(xs, 0, 3), mx.moveaxis(ws, 0, 1))
        return mx.vmap(mx.vmap(case.ours), (0, None))(twice, ws)

    if case.forward.partition("(")[0] in ONE_CALL:
        with pytest.raises(ValueError, match="groups"):
            mx.eval(mapped())
        return
    each = [mx.stack([case.theirs(x, w) for x, w in zip(some, ws, strict=True)]) for some in twice]
    close(mapped(), mx.stack(each) if nested else mx.moveaxis(each[0], 0, 2))


@pytest.mark.parametrize("gradients", [False, True])
def test_what_mlx_has_not_is_its_own_error(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(iter(CASES.values()))
    plant(monkeypatch, "kd_decomposition(sum=float32)")
    x, w, _, _, _ = operands(case.problem)
    for of in (case.theirs, case.ours):
        with autoconv.using(gradients=gradients), pytest.raises(ValueError, match=r"jvp.*Convolution"):
            mx.jvp(of, [x, w], [x, w])


# Models


class Model(layers.Module):  # type: ignore[misc] # MLX's layers have no types
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.second(self.first(x).square())
        return y


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_of_mlx_s_layers_and_ours_trains_as_one_of_mlx_s_alone(
    gradients: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        Kind.FORWARD: "depth_concat(edges=pad)",
        Kind.INPUT_GRADIENT: "depth_concat(edges=split)",
        Kind.WEIGHT_GRADIENT: "wgrad_depth_taps(taps=stacked)",
    }
    asked = plant(monkeypatch, names)
    theirs = Model(layers.Conv3d(4, 4, 3, padding=1), layers.Conv3d(4, 2, 3, padding=1))
    ours = Model(layers.Conv3d(4, 4, 3, padding=1), autoconv.nn.Conv3d(4, 2, 3, padding=1))
    ours.update(theirs.parameters())
    x = random_array((1, 5, 4, 4, 4), 0)

    def trained(model: Model) -> dict[str, mx.array]:
        of_loss = layers.value_and_grad(model, lambda x: model(x).square().mean())

        def step(x: mx.array) -> mx.array:
            value, slopes = of_loss(x)
            model.update({
                name: {k: model[name][k] - 0.1 * slopes[name][k] for k in ("weight", "bias")} for name in slopes
            })  # fmt: skip
            return value  # type: ignore[no-any-return]

        run = mx.compile(step, inputs=[model.state], outputs=[model.state]) if compiled else step
        for _ in range(3):
            mx.eval(run(x), model.parameters())
        return dict(tree_flatten(model.parameters()))

    wanted = trained(theirs)
    with autoconv.patch(), autoconv.using(gradients=gradients):
        found = trained(ours)
    close([found[name] for name in wanted], list(wanted.values()))
    assert {problem.kind for problem, _ in asked} == (set(Kind) if gradients else {Kind.FORWARD})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_switched_off_it_is_exported_whatever_is_known(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, _, _, _ = operands(case.problem)
    plant(monkeypatch, dict(case.chosen))
    case.ours(x, w)
    path = str(tmp_path / "f.mlxfn")
    with autoconv.using(policy="off"):
        mx.export_function(path, case.ours, x, w)
    imported: Any = mx.import_function(path)
    close(imported(x, w), [case.theirs(x, w)])


@pytest.mark.parametrize(
    ("chosen", "primitive"), [("kd_decomposition(sum=float32)", "Contiguous"), ("native(clips=1)", "CustomTransforms")]
)
def test_mlx_writes_some_of_what_is_chosen_to_no_file(
    chosen: str, primitive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that README names: nothing tells a function that it is being exported."""
    case = next(case for case in CASES.values() if case.forward == chosen)
    x, w, _, _, _ = operands(case.problem)
    plant(monkeypatch, dict(case.chosen))
    with pytest.raises(ValueError, match=primitive):
        mx.export_function(str(tmp_path / "f.mlxfn"), case.ours, x, w)
