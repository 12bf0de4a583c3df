"""Features: each is described, and says of a candidate what it does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from strategies import problems

from autoconv.algorithms import Candidate, candidates
from autoconv.model import features
from autoconv.model.features import CANDIDATE, PROBLEM, Vocabulary
from autoconv.model.routes import Route
from autoconv.problem import Problem

CEILINGS = {
    "matmul_float32_gflops": 1000.0,
    "matmul_float16_gflops": 4000.0,
    "matmul_bfloat16_gflops": 4000.0,
    "copy_gb_per_s": 100.0,
    "launch_us": 10.0,
}
LAYER = Problem.parse((2, 8, 16, 12, 48), (96, 3, 3, 3, 48), "float16", padding=(0, 1, 1))


def of(problem: Problem, backend: str = "cuda") -> dict[str, dict[str, float]]:
    """Every candidate's numbers by name."""
    found = candidates(problem, backend)
    vocabulary = Vocabulary.of(found, (str(route) for route in Route) if backend == "metal" else ())
    rows = features.of_candidates(problem, found, backend, CEILINGS, vocabulary)
    names = [*(f.name for f in CANDIDATE), *vocabulary.names]
    return {c.name: dict(zip(names, row, strict=True)) for c, row in zip(found, rows.tolist(), strict=True)}


def test_every_feature_has_a_name_of_its_own_and_a_meaning() -> None:
    described = [*PROBLEM, *CANDIDATE]
    assert len({f.name for f in described}) == len(described)
    assert all(f.name.isidentifier() and len(f.meaning) > 5 for f in described)


def test_a_problems_numbers() -> None:
    found = dict(zip([f.name for f in PROBLEM], features.of_problem(LAYER).tolist(), strict=True))
    outputs = 2 * 6 * 16 * 12
    assert found["frames"] == pytest.approx(math.log2(6))
    assert found["flops"] == pytest.approx(math.log2(2 * outputs * 96 * 27 * 48))
    assert found["bytes"] == pytest.approx(math.log2(2 * (2 * 8 * 16 * 12 * 48 + 96 * 27 * 48 + outputs * 96)))
    assert found["intensity"] == pytest.approx(found["flops"] - found["bytes"])
    assert found["channels_step"] == 4.0  # 48 is divided by 16 and no more
    assert found["outputs_step"] == 5.0
    assert found["frames_by_4"] == 2.0
    assert found["padding_frame"] == 2.0
    assert (found["float32"], found["bfloat16"]) == (0.0, 0.0)


def test_a_candidates_numbers_are_its_own() -> None:
    found = of(LAYER)
    native, sum_of_taps = found["native"], found["kd_decomposition(sum=float32)"]
    stacked, winograd = found["depth_concat(edges=split)"], found["depth_winograd(tile=2)"]
    assert native["more_flops"] == native["launches"] == 0.0
    assert sum_of_taps["launches"] == pytest.approx(math.log2(3))
    assert stacked["call_channels"] == pytest.approx(math.log2(3 * 48))
    assert winograd["launches"] == pytest.approx(math.log2(4))
    assert winograd["more_flops"] == pytest.approx(math.log2(4 / 6))  # four products for two outputs of three taps
    assert winograd["tile"] == 2.0  # one plus the logarithm of 2
    assert sum_of_taps["sum=float32"] == 1.0
    assert native["sum=float32"] == 0.0


def test_ceilings_give_times() -> None:
    native = of(LAYER)["native"]
    flops_us, copy_us = LAYER.flops / 4e6, LAYER.bytes / 1e5
    assert native["compute_us"] == pytest.approx(math.log2(flops_us))
    assert native["copy_us"] == pytest.approx(math.log2(copy_us))
    assert native["bound_us"] == pytest.approx(math.log2(max(flops_us, copy_us) + 10))
    assert native["bound_ratio"] == 0.0


def test_on_metal_the_kernel_is_seen() -> None:
    found = of(Problem.parse((1, 8, 66, 66, 128), (128, 3, 3, 3, 128), "float16", padding=0), "metal")
    native = {name: value for name, value in found["native"].items() if name.startswith("route=")}
    assert sum(native.values()) == 1.0
    assert native[f"route={Route.WINOGRAD_2D}"] == 1.0


def test_a_vocabulary_knows_its_own_candidates_alone() -> None:
    known = candidates(LAYER, "cuda")
    vocabulary = Vocabulary.of(c for c in known if c.algorithm.name != "im2col")
    for candidate in known:
        assert vocabulary.knows(candidate) == (candidate.algorithm.name != "im2col")
    chunked = Candidate(known[0].algorithm, (("frames", 2),))
    assert vocabulary.knows(chunked)


@given(problems(dtypes=("float32", "float16", "bfloat16")))
def test_numbers_are_finite_for_any_problem(problem: Problem) -> None:
    assert np.isfinite(features.of_problem(problem)).all()
    for backend in ("cpu", "cuda", "metal"):
        for numbers in of(problem, backend).values():
            assert all(math.isfinite(value) for value in numbers.values())
