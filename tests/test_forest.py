"""Forests as arrays: the same numbers as the trees that they are made of, walked one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor

from autoconv.model.fitting import Grown
from autoconv.model.forest import LEAVES, Forests, Node, grown

SHARED, OWN = 3, 2

numbers = st.floats(-4, 4, width=16)


@st.composite
def trees(draw: st.DrawFn, leaves: int = 6) -> list[Node]:
    """A tree of at most so many leaves, its root first."""
    nodes: list[Node] = []

    def grow(left: int) -> int:
        place = len(nodes)
        nodes.append(Node(0, 0.0, 0, 0, 0.0, is_leaf=True))
        if left == 1 or draw(st.booleans()):
            nodes[place] = Node(0, 0.0, 0, 0, draw(numbers), is_leaf=True)
            return place
        feature, threshold = draw(st.integers(0, SHARED + OWN - 1)), draw(numbers)
        lower = grow(left // 2)
        upper = grow(left - left // 2)
        nodes[place] = Node(feature, threshold, lower, upper, 0.0, is_leaf=False)
        return place

    grow(leaves)
    return nodes


def walked(nodes: list[Node], row: list[float]) -> float:
    node = nodes[0]
    while not node.is_leaf:
        node = nodes[node.left if row[node.feature] <= node.threshold else node.right]
    return node.value


@given(
    st.lists(st.tuples(numbers, st.lists(trees(), min_size=1, max_size=4)), min_size=1, max_size=3),
    st.lists(numbers, min_size=SHARED, max_size=SHARED),
    st.lists(st.lists(numbers, min_size=OWN, max_size=OWN), min_size=1, max_size=4),
)
def test_arrays_say_what_the_walked_trees_say(
    forests: list[tuple[float, list[list[Node]]]], shared: list[float], rows: list[list[float]]
) -> None:
    found = grown(forests, SHARED)
    said = found.predict(np.array(shared), np.array(rows))
    for output, (base, some) in enumerate(forests):
        expected = [base + sum(walked(tree, shared + row) for tree in some) for row in rows]
        assert said[output].tolist() == pytest.approx(expected, abs=1e-12)
    again = Forests.of_arrays(found.arrays(), (SHARED, OWN), len(forests))
    assert (again.predict(np.array(shared), np.array(rows)) == said).all()


def test_thirty_two_leaves_fit_and_thirty_three_do_not() -> None:
    def chain(leaves: int) -> list[Node]:
        nodes = []
        for place in range(leaves - 1):
            nodes += [
                Node(0, float(place), 2 * place + 1, 2 * place + 2, 0.0, is_leaf=False),
                Node(0, 0.0, 0, 0, float(place), is_leaf=True),
            ]
        return [*nodes, Node(0, 0.0, 0, 0, float(leaves - 1), is_leaf=True)]

    full = grown([(0.0, [chain(LEAVES)])], 1)
    for value in range(LEAVES):
        assert full.predict(np.array([float(value)]), np.zeros((1, OWN)))[0, 0] == value
    with pytest.raises(ValueError, match="33 leaves"):
        grown([(0.0, [chain(LEAVES + 1)])], 1)


def test_the_arrays_of_scikit_learns_trees_predict_what_it_does() -> None:
    chance = np.random.default_rng(7)
    rows = chance.normal(size=(600, SHARED + OWN)).round(1)
    target = rows[:, 0] * rows[:, 4] + np.abs(rows[:, 2])
    options = {"max_iter": 20, "max_leaf_nodes": 31, "min_samples_leaf": 5, "early_stopping": False}
    fitted = Grown(tuple(HistGradientBoostingRegressor(random_state=s, **options).fit(rows, target) for s in range(3)))
    found = grown([fitted.trees()], SHARED)
    for row in rows[:50]:
        mine = found.predict(row[:SHARED], row[None, SHARED:])[0, 0]
        assert mine == pytest.approx(fitted.predict(row[None])[0], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("leaves", lambda a: a[:, :5], "leaves"),
        ("leaves", lambda a: a * np.nan, "leaves"),
        ("bases", lambda a: a + np.inf, "outputs"),
        ("starts", lambda a: a + 1, "by tree"),
        ("own_feature", lambda a: a + OWN, "no feature"),
        ("own_feature", lambda a: a - 1, "no feature"),
        ("own_mask", lambda a: a[:-1], "do not fit"),
        ("shared_tree", lambda a: a + 1, "by tree"),
        ("shared_threshold", lambda a: a * np.nan, "no feature"),
    ],
)
def test_arrays_that_are_no_forest_are_refused(name: str, change: object, says: str) -> None:
    tree = [Node(4, 0.5, 1, 2, 0.0, is_leaf=False), *(Node(0, 0.0, 0, 0, v, is_leaf=True) for v in (1.0, 2.0))]
    arrays = grown([(0.0, [tree, tree])], SHARED).arrays()
    Forests.of_arrays(arrays, (SHARED, OWN), 1)
    with pytest.raises(ValueError, match=says):
        Forests.of_arrays(arrays | {name: change(arrays[name])}, (SHARED, OWN), 1)  # type: ignore[operator]
