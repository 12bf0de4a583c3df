"""A rule that people can read: the tree that it is, what it says of itself, its files, and when there is none."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import ENVIRONMENT, IDENTITY, asked, case, layer, record, run_rule
from strategies import problems

from autoconv.errors import RuleError
from autoconv.model.rule import LEAVES, Case, cases_in, distil, python_source, readable
from autoconv.model.rule.distilled import FEWEST
from autoconv.model.rule.features import FEATURES
from autoconv.model.rule.tree import leaves_of, roundest
from autoconv.problem import ITEM_BYTES, Problem
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Store, open_store
from autoconv.store.shipped import shipped_files

CHIPS = ("Apple M1", "Apple M2 Ultra", "Apple M4 Max")


def structured() -> list[Case]:
    """Few channels are for `depth_concat`, many in 16 bits for `depth_winograd`, all others for native."""
    found = []
    for channels in range(1, 129, 3):
        for dtype in ("float16", "float32"):
            best = "depth_concat" if channels <= 40 else "depth_winograd" if dtype == "float16" else "native"
            times = {name: 10.0 if name == best else 20.0 for name in ("native", "depth_concat", "depth_winograd")}
            found.append(case(layer(channels, dtype=dtype), **times))
    return found


@st.composite
def random_cases(draw: st.DrawFn) -> list[Case]:
    """Cases without any structure, as many as make more than one leaf."""
    source = random.Random(draw(st.integers(0, 2**32)))
    names = ["native", "matmul", "depth_concat", "kd_decomposition(sum=float32)", "im2col(axes=dw,frames=2)"]
    found = []
    for _ in range(draw(st.integers(1, 300))):
        known = source.sample(names, source.randint(1, len(names)))
        times = {name: (source.uniform(1, 9), source.uniform(1, 9)) for name in known}
        problem = layer(source.randint(1, 64), source.randint(3, 40), source.choice(["float16", "float32"]))
        found.append(Case(problem, source.choice(CHIPS), times))
    return found


# The tree


def test_a_structure_that_is_there_is_found() -> None:
    rule = distil(structured())
    assert 3 <= len(rule.leaves) <= 4
    assert rule.in_sample.mean == rule.winners.mean == 0
    assert rule.held_out.mean < rule.native.mean / 10
    assert rule.choose(layer(8)) == "depth_concat"
    assert rule.choose(layer(64, dtype="float16")) == "depth_winograd"
    assert rule.choose(layer(64)) == "native"


@given(random_cases(), st.integers(1, LEAVES))
@settings(max_examples=25, deadline=None)
def test_a_rule_has_at_most_so_many_leaves_each_of_enough_shapes(cases: list[Case], leaves: int) -> None:
    rule = distil(cases, leaves)
    assert len(rule.leaves) <= leaves
    if len(rule.leaves) > 1:
        inside: dict[int, set[str]] = {}
        for each in cases:
            node = rule.tree
            while not hasattr(node, "choice"):
                node = node.low if node.feature.of(each.problem) <= node.most else node.high
            inside.setdefault(id(node), set()).add(each.shape)
        assert set(inside) == {id(leaf) for leaf in leaves_of(rule.tree)}
        assert min(map(len, inside.values())) >= FEWEST
    assert all("frames=" not in leaf.choice for leaf in rule.leaves)


@given(random_cases(), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_of_cases_changes_nothing(cases: list[Case], order: random.Random) -> None:
    known = distil(cases)
    order.shuffle(cases)
    again = distil(cases)
    assert again == known
    assert python_source(again, "cpu") == python_source(known, "cpu")


@given(random_cases())
@settings(max_examples=25, deadline=None)
def test_the_python_chooses_as_the_tree_does(cases: list[Case]) -> None:
    rule = distil(cases)
    choose = run_rule(python_source(rule, "cpu"))
    assert [asked(choose, each.problem) for each in cases] == [rule.choose(each.problem) for each in cases]


def test_samples_that_chose_do_not_judge() -> None:
    lucky = [Case(layer(c), "a chip", {"native": (10.0, 10.0), "matmul": (5.0, 20.0)}) for c in range(1, 30)]
    rule = distil(lucky)
    assert [leaf.choice for leaf in rule.leaves] == ["matmul"]
    assert rule.in_sample.mean == pytest.approx(1.0)
    assert rule.in_sample.gain == pytest.approx(0.5)
    assert rule.in_sample.worse == 1.0


def test_shapes_held_out_are_judged_by_trees_that_never_saw_them() -> None:
    # The fastest is drawn for each shape, which nothing can learn: in sample a tree looks better, held out it is not.
    cases = []
    for size in range(3, 203):
        best = random.Random(size).choice(["depth_concat", "matmul"])
        cases += [
            case(
                layer(16, size, dtype),
                native=30.0,
                **{name: 10.0 if name == best else 15.0 for name in ("depth_concat", "matmul")},
            )
            for dtype in ("float16", "bfloat16", "float32")
        ]
    rule = distil(cases)
    assert rule.held_out.mean > rule.in_sample.mean


def test_what_may_not_run_somewhere_means_native_there() -> None:
    cases = [case(layer(c), native=10.0, **({"matmul": 5.0} if c % 2 else {})) for c in range(1, 60)]
    rule = distil(cases)
    assert [leaf.choice for leaf in rule.leaves] == ["matmul"]
    assert rule.in_sample.mean == 0
    assert (rule.evidence[0].problems, rule.evidence[0].runs) == (59, 30)


def test_where_native_cannot_run_is_said_apart() -> None:
    grouped = [case(layer(c, groups=1, size=s), matmul=5.0) for c in range(1, 4) for s in range(3, 9)]
    rule = distil([*structured(), *grouped])
    assert rule.without_native.cases == len(grouped)
    assert rule.without_native.compared == 0
    assert rule.in_sample.cases == len(structured())


def test_a_model_can_teach_what_was_never_timed() -> None:
    def forecast(problem: Problem) -> dict[str, float]:
        few = problem.input_shape[4] <= 20
        return {"native": 2.0 if few else 1.0, "matmul": 1.0 if few else 2.0}

    timed = [case(layer(64), native=1.0, matmul=2.0)]
    assert [leaf.choice for leaf in distil(timed).leaves] == ["native"]
    rule = distil(timed, forecast=forecast, unlabelled=[layer(c) for c in range(1, 60)])
    assert rule.choose(layer(4)) == "matmul"
    assert rule.choose(layer(50)) == "native"
    assert rule.in_sample.cases == 1


def test_nothing_teaches_nothing() -> None:
    with pytest.raises(RuleError, match="no measurements"):
        distil([])


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_bound_is_the_roundest_between_two_values(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert low <= roundest(low, high) <= high


def test_bounds_are_such_as_people_would_choose() -> None:
    assert [roundest(*pair) for pair in ((33, 95), (7, 9), (5, 5), (0, 3), (318_767_105, 330_000_000))] == [
        64,
        8,
        5,
        0,
        320_000_000,
    ]


# Features


@given(problems(dtypes=tuple(ITEM_BYTES)).filter(readable))
@settings(max_examples=200, deadline=None)
def test_features_are_what_their_python_says(problem: Problem) -> None:
    rule = distil([case(problem, native=1.0)])
    source = python_source(rule, "cpu").replace('return "native"', f"return [{', '.join(f.python for f in FEATURES)}]")
    found: Any = asked(run_rule(source), problem)
    assert list(map(int, found)) == [feature.of(problem) for feature in FEATURES]


def test_arguments_may_be_short() -> None:
    choose = run_rule(python_source(distil(structured()), "cpu"))
    for each in (layer(8), layer(90), layer(8, padding=1), layer(8, stride=2)):
        short = choose(each.input_shape, each.weight_shape, each.stride[0], each.padding_low[0], (1,), dtype=each.dtype)
        assert short == asked(choose, each)


# What was measured


def stored(*records: Record, store: Store | None = None) -> Store:
    store = store or MemoryStore()
    store.add_environment(ENVIRONMENT, IDENTITY, {})
    for each in records:
        store.add(Problem.from_key(each.problem), [each])
    return store


def test_cases_are_what_may_run_by_its_samples_that_choose_and_that_judge() -> None:
    problem = layer(16)
    store = MemoryStore()
    store.add_environment(ENVIRONMENT, IDENTITY, {})
    store.add(
        problem,
        [
            record(problem, "native", (10, 12, 10, 12)),
            record(problem, "implicit_gemm", (5, 6, 5, 6)),
            record(problem, "depth_concat", (30,)),
            record(problem, "matmul", (), Status.TOO_SLOW),
            record(problem, "im2col", (), Status.FAILED),
            record(problem, "depth_winograd", (1, 1, 1, 1), error=1.0),
        ],
    )
    (found,) = cases_in([store], "metal")
    assert found.times_us == {
        "native": (10, 12),
        "implicit_gemm": (5, 6),
        "depth_concat": (30, 30),
        "matmul": (15, 15),
    }
    assert (found.chip, found.winner) == ("Apple M2", "implicit_gemm")
    assert cases_in([store], "cuda") == []


def test_a_problem_in_two_databases_is_one_case() -> None:
    problem = layer(16)
    first, second = (stored(record(problem, "native", (10, 12), run=name)) for name in "ab")
    assert cases_in([first, second], "metal") == cases_in([second, first], "metal")
    assert len(cases_in([first, second], "metal")) == 1


@pytest.mark.skipif(not shipped_files(), reason="no databases came with the package")
def test_the_shipped_measurements_teach_more_than_native_always() -> None:
    files = [path for path in shipped_files() if "epyc" in path.name]
    stores = [open_store(path, readonly=True, immutable=True) for path in files]
    rule = distil(cases_in(stores, "cpu"))
    for store in stores:
        store.close()
    assert rule.winners.mean < rule.held_out.mean < rule.native.mean / 4
