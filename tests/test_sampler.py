"""Random layers are valid, bounded, distinct, the same everywhere, and distributed as their module says."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from autoconv.problem import Kind, Problem
from autoconv.sweep import Layer, packaged_workloads, random_layers, read_workload, sampler

MANY = random_layers(4000, seed=3)
CHANNELS = {1, 3, 4, 12, 16, 48}

LOOKS: dict[str, Callable[[Problem], bool]] = {
    "video": lambda p: p.weight_shape[1:4] == (3, 3, 3) and p.input_shape[0] == 1 and p.padding_low[0] == 0,
    "volume": lambda p: p.weight_shape[1:4] == (3, 3, 3) and p.padding_low == p.padding_high == (1, 1, 1),
    "ends": lambda p: not CHANNELS.isdisjoint((p.input_shape[4], p.weight_shape[0])),
    "factorised": lambda p: p.weight_shape[1:4] in {(1, 3, 3), (3, 1, 1), (5, 1, 1)} and p.stride == (1, 1, 1),
    "pointwise": lambda p: p.weight_shape[1:4] == (1, 1, 1),
    "strided": lambda p: max(p.stride) == 2 and p.groups == 1,
    "stems": lambda p: p.weight_shape[2:4] == (7, 7) and p.input_shape[4] <= 4,
    "patches": lambda p: p.stride == p.weight_shape[1:4] and max(p.stride) > 1,
    "grouped": lambda p: p.groups > 1 and p.padding_low[0] == p.weight_shape[1] // 2,
    "dilated": lambda p: max(p.dilation) > 1,
    "deep": lambda p: 5 <= p.weight_shape[1] <= 9,
    "asymmetric": lambda p: p.padding_low != p.padding_high,
}


def is_sound(layer: Layer, max_gflop: float, index: int, seed: int) -> None:
    """Assert what holds of every random layer, with sizes counted from the shapes anew."""
    problem = layer.problem
    assert (layer.network, layer.layer, layer.count) == ("random", f"{seed}-{index}", 1)
    assert Problem.from_key(problem.key) == problem
    assert problem.kind is Kind.FORWARD
    arrays = [problem.input_shape, problem.weight_shape, problem.output_shape]
    assert max(map(math.prod, arrays)) < 2**31
    assert sum(map(math.prod, arrays)) * (4 if problem.dtype == "float32" else 2) <= 6e9
    assert 2 * math.prod(problem.output_shape) * math.prod(problem.weight_shape[1:]) <= max_gflop * 1e9
    assert LOOKS[layer.part](problem), (layer.part, str(problem))


@pytest.mark.parametrize(
    ("max_gflop", "seed", "count"),
    [(3000.0, 3, 4000), (3000.0, 11, 500), (20.0, 0, 500), (0.05, 0, 500), (0.01, 5, 50)],
)
def test_layers_are_sound_bounded_and_distinct(max_gflop: float, seed: int, count: int) -> None:
    layers = random_layers(count, seed, max_gflop=max_gflop)
    assert len({layer.problem for layer in layers}) == count
    for index, layer in enumerate(layers):
        is_sound(layer, max_gflop, index, seed)


def test_fewer_layers_are_the_first_of_more() -> None:
    assert random_layers(20)[:10] == random_layers(10)
    # Where problems run out many a draw is one that was taken, and still.
    assert random_layers(300, 8, max_gflop=0.01, dtypes=["float16"])[:40] == random_layers(
        40, 8, max_gflop=0.01, dtypes=["float16"]
    )
    assert random_layers(0) == []


def test_other_seeds_give_other_layers() -> None:
    first, second = ({layer.problem for layer in random_layers(500, seed)} for seed in (0, 1))
    assert len(first & second) < 25


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_every_process_draws_the_same(hash_seed: str) -> None:
    code = "from autoconv.sweep import random_layers; print(*(x.problem.key for x in random_layers(200, 9)), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert done.stdout.splitlines() == [layer.problem.key for layer in random_layers(200, 9)]


def test_global_random_states_are_neither_read_nor_moved() -> None:
    random.seed(1)
    np.random.seed(1)
    first = random_layers(50)
    after = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    assert (random.random(), np.random.random()) == after
    assert random_layers(50) == first


def test_families_have_the_shares_that_the_module_documents() -> None:
    rows = re.findall(r"^\| (\w+) +\| +(\d+) \|", sampler.__doc__ or "", re.MULTILINE)
    shares = {family: int(share) / 100 for family, share in rows}
    assert list(shares) == list(LOOKS)
    assert sum(shares.values()) == pytest.approx(1)
    found = Counter(layer.part for layer in MANY)
    for family, share in shares.items():
        assert abs(found[family] - len(MANY) * share) <= 4 * math.sqrt(len(MANY) * share * (1 - share)), family


def test_costs_spread_over_every_decade() -> None:
    decades = Counter(math.floor(math.log10(layer.problem.flops / 1e9)) for layer in MANY)
    for decade in range(-2, 3):
        assert decades[decade] > len(MANY) * 0.08, decade


def test_a_fitted_problem_costs_at_most_what_was_asked_and_at_least_half() -> None:
    chance = sampler._Chance("a fitted problem")
    fitted = 0
    for _ in range(300):
        target = chance.spread(1e7, 3e12)
        form = sampler._FORMS[chance.pick(list(LOOKS))](chance)
        problem = sampler._fitted(form, target, "float16")
        if problem is None:
            continue
        fitted += 1
        assert target / 2 <= problem.flops <= target
        height = problem.output_shape[2]
        longer = next((n for n in form.grid.lengths if n > height > 1), None)
        if longer is not None:
            assert form.problem(longer, "float16").flops > target
    assert fitted > 100


def test_dtypes_are_drawn_evenly_or_as_given() -> None:
    found = Counter(layer.problem.dtype for layer in MANY)
    assert set(found) == {"float32", "float16", "bfloat16"}
    assert min(found.values()) > len(MANY) * 0.28
    assert {layer.problem.dtype for layer in random_layers(50, dtypes=["bfloat16"])} == {"bfloat16"}


def test_what_packaged_networks_call_is_drawn_too() -> None:
    def way(problem: Problem) -> tuple[object, ...]:
        return problem.weight_shape[1:4], problem.stride, problem.padding_low, problem.groups > 1

    real = [way(layer.problem) for path in packaged_workloads().values() for layer in read_workload(path)]
    drawn = {way(layer.problem) for layer in MANY}
    assert sum(found in drawn for found in real) >= 0.97 * len(real)


def test_video_layers_have_few_frames_mostly_and_whole_clips_too() -> None:
    frames = [layer.problem.output_shape[1] for layer in MANY if layer.part == "video"]
    assert max(frames) > 30
    assert sum(f == 1 for f in frames) > 0.2 * len(frames)
    assert sum(f <= 8 for f in frames) > 0.7 * len(frames)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"count": -1}, "count"),
        ({"count": 1, "max_gflop": 0.001}, "max_gflop"),
        ({"count": 1, "max_gflop": math.nan}, "max_gflop"),
        ({"count": 1, "max_gflop": math.inf}, "max_gflop"),
        ({"count": 1, "dtypes": []}, "dtypes"),
        ({"count": 1, "dtypes": ["int8"]}, "dtypes"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        random_layers(**arguments)  # type: ignore[arg-type]


def test_more_layers_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sampler._Grid(range(1, 2), lambda length: (1, length, 100, 100))
    form = sampler._Form(16, 16, grid)
    monkeypatch.setattr(sampler, "_FORMS", {family: lambda _: form for family in LOOKS})
    assert len(random_layers(3, max_gflop=0.2)) == 3  # one a dtype
    with pytest.raises(ValueError, match="the 3 drawn already"):
        random_layers(4, max_gflop=0.2)
