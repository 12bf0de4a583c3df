"""The prior for Metal says what was published, orders candidates, and does no more."""

from __future__ import annotations

import ast
import csv
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import decomposed_problems, problems

import autoconv
from autoconv.algorithms import Candidate, candidates, find
from autoconv.model.prior import CEILINGS, EVALUATION_US, MARK, ordered, prior_us
from autoconv.model.routes import Route, routed
from autoconv.problem import ITEM_BYTES, Kind, Problem

PUBLISHED = Path(__file__).with_name("metal_published.csv")
"""Every published time of an MLX conv3d on Metal that was found, a time a row."""

# What is known of the devices: rates by Apple's clocks and core counts, and nine tenths of the memory's bandwidth.
DEVICES = {
    "M2, 8 cores": {},  # the default
    "M1 Pro, 14 cores": {"matmul": 4000.0, "copy": 180.0},
    "M3 Max, 40 cores": {"matmul": 14000.0, "copy": 360.0},
}

EXCEPTIONS = {
    ("pull/3709", (1, 8, 32, 32), "M3 Max, 40 cores"): (
        "20 us of work on so large a device, less than the latencies, of which the decomposition has more; the device "
        "of the row is not stated, and its times of 0.3 ms are those of an evaluation"
    )
}
"""Rows that the prior has the wrong way round, were they of that device; there it calls it a tie."""


@dataclass(frozen=True)
class Row:
    source: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    dtype: str
    method: str
    milliseconds: float

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Where none is stated, all that a Metal GPU convolves."""
        return (self.dtype,) if self.dtype else tuple(dtype for dtype in ITEM_BYTES if dtype != "float64")

    def problems(self) -> list[Problem]:
        """What the row may have been: its size that of the input or, padded before or by the call, of the output."""
        inner = [size + taps - 1 for size, taps in zip(self.shape[1:4], self.weight[1:4], strict=True)]
        outer = (self.shape[0], *inner, self.shape[4])
        return [
            Problem.parse(shape, self.weight, dtype, padding=padding)
            for dtype in self.dtypes
            for shape, padding in ((self.shape, 0), (outer, 0), (self.shape, 1))
        ]


def rows() -> list[Row]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                "/".join(row["source_url"].split("/")[5:7]),
                tuple(int(row[name]) for name in ("N", "D", "H", "W", "C_in")),
                tuple(int(row[name]) for name in ("C_out", "KD", "KH", "KW", "C_in")),
                row["dtype"],
                row["method"],
                float(row["milliseconds"]),
            )
            for row in csv.DictReader(file)
        ]


def pairs() -> list[tuple[Row, Row]]:
    """(native, decomposition) of each layer that was published with both."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, Row]] = defaultdict(dict)
    for row in rows():
        found[row.source, row.shape][row.method] = row
    return [(by["native_implicit_gemm"], by["kd_decomposition"]) for by in found.values() if len(by) == 2]


def ceilings(device: str) -> dict[str, float]:
    known = DEVICES[device]
    rates = {f"matmul_{dtype}_gflops": known["matmul"] for dtype in ITEM_BYTES if known}
    return rates | ({"copy_gb_per_s": known["copy"]} if known else {})


def as_published(problem: Problem, method: str) -> list[Candidate]:
    """The candidates that do what a row's method did: MLX's 3D kernel, or a decomposition, its own rule among them."""
    offered = {c.name: c for c in candidates(problem, "metal")}
    native = offered["native"]
    found = routed(problem, native)
    assert found is not None
    rule = found.route is Route.KD_DECOMPOSITION
    if method == "native_implicit_gemm":
        return [offered["implicit_gemm"] if rule else native]
    return [offered["kd_decomposition(sum=float32)"], *([native] if rule else [])]


def expected_us(row: Row, problem: Problem, device: str) -> list[float]:
    """The prior's times of a row's method, each with the evaluation that a published time has in it."""
    return [us + EVALUATION_US for us in prior_us(problem, as_published(problem, row.method), ceilings(device))]


def test_every_published_row_is_looked_at() -> None:
    every = rows()
    assert len(every) == 17
    compared = [row for pair in pairs() for row in pair]
    alone = [row for row in every if row not in compared]
    assert len(compared) == 14
    assert {(row.source, row.method) for row in alone} == {
        ("blob/72c6aec7e8152bb8874b9a17008ce88a7dae5174", "native_implicit_gemm")
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("native", "decomposed"), pairs(), ids=lambda row: f"{row.source}-{row.shape}-{row.method}")
def test_the_published_winner_is_the_priors(native: Row, decomposed: Row, device: str) -> None:
    assert native.milliseconds > decomposed.milliseconds
    for problem in native.problems():
        (of_native,) = prior_us(problem, as_published(problem, native.method), ceilings(device))
        for of_other in prior_us(problem, as_published(problem, decomposed.method), ceilings(device)):
            if (native.source, native.shape[:4], device) in EXCEPTIONS:
                assert of_native > 0.9 * of_other, problem
            else:
                assert of_native > 1.02 * of_other, problem


@pytest.mark.parametrize("key", EXCEPTIONS, ids=str)
def test_what_is_excepted_is_an_exception(key: tuple[str, tuple[int, ...], str]) -> None:
    source, shape, device = key
    (native, decomposed) = next(pair for pair in pairs() if (pair[0].source, pair[0].shape[:4]) == (source, shape))
    ratios = [
        prior_us(problem, as_published(problem, native.method), ceilings(device))[0] / of_other
        for problem in native.problems()
        for of_other in prior_us(problem, as_published(problem, decomposed.method), ceilings(device))
    ]
    assert min(ratios) <= 1.02


@pytest.mark.parametrize(("native", "decomposed"), pairs(), ids=lambda row: f"{row.source}-{row.shape}-{row.method}")
def test_the_published_ratio_is_nearly_the_priors(native: Row, decomposed: Row) -> None:
    device = "M3 Max, 40 cores" if "3785" in native.source else "M2, 8 cores"
    published = native.milliseconds / decomposed.milliseconds
    for problem in native.problems():
        if native.dtype or problem.dtype == "float32":  # what MLX's arrays are by default
            (of_native,) = expected_us(native, problem, device)
            for of_other in expected_us(decomposed, problem, device):
                assert 1 / 1.3 < (of_native / of_other) / published < 1.3, problem


@pytest.mark.parametrize(
    "row",
    [row for row in rows() if "3709" not in row.source],  # whose device is not stated
    ids=lambda row: f"{row.source}-{row.shape}-{row.method}-{row.milliseconds}",
)
def test_published_times_of_known_devices_are_of_the_priors_size(row: Row) -> None:
    device = "M3 Max, 40 cores" if "3785" in row.source else "M2, 8 cores"
    for problem in row.problems():
        for us in expected_us(row, problem, device):
            assert 1 / 1.4 < us / 1e3 / row.milliseconds < 1.4, problem


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("shape", sorted({native.shape[:4] for native, _ in pairs() if "3709" in native.source}))
def test_more_channels_without_winograd_lose_by_the_decomposition(
    shape: tuple[int, ...], channels: int, device: str
) -> None:
    # Pull request 3709 in words: with more channels than its own the 3D kernel was faster in local tests.
    for dtype, padding in itertools.product(("float32", "float16"), (0, 1)):
        problem = Problem.parse((*shape, channels), (channels, 3, 3, 3, channels), dtype, padding=padding)
        (native,) = as_published(problem, "native_implicit_gemm")
        (of_native,) = prior_us(problem, [native], ceilings(device))
        others = prior_us(problem, as_published(problem, "kd_decomposition"), ceilings(device))
        # Ours convolves no frame of padding; and to fail the rule costs the 3D kernel an output frame more.
        frames = problem.output_shape[1]
        same_work = 1 - 2 * padding / (3 * frames) if native.name == "native" else frames / (frames + 1)
        assert of_native * same_work < 1.02 * min(others), problem


# What it is for

any_problem = st.one_of(problems(kinds=tuple(Kind)), decomposed_problems())


@settings(max_examples=100)
@given(any_problem, st.sampled_from((math.inf, 1000.0)))
def test_the_order_is_of_all_candidates_natives_first(problem: Problem, memory_bytes: float) -> None:
    offered = candidates(problem, "metal", memory_bytes=memory_bytes)
    found = ordered(problem, offered)
    assert sorted(found, key=offered.index) == list(offered)
    assert found[0] is offered[0]
    natives = [c for c in offered if c.algorithm.name == "native"]
    assert found[: len(natives)] == natives
    times = prior_us(problem, found)
    rest = times[len(natives) :]
    assert rest == sorted(rest)
    assert all(us >= 0 for us in times)
    assert all(us < math.inf for us in times) or problem.groups > 1


def test_candidates_that_are_as_promising_stay_as_they_stood() -> None:
    problem = Problem.parse((1, 8, 34, 34, 128), (128, 3, 3, 3, 128), "bfloat16")
    native, *others = candidates(problem, "metal")
    same = [c for c in others if c.algorithm.name == "kd_decomposition"]
    assert [c.parameters for c in same] == ["sum=float32", "sum=dtype"]
    assert ordered(problem, [*same, native]) == [native, *same]
    assert ordered(problem, [*same[::-1], native]) == [native, *same[::-1]]
    assert ordered(problem, []) == []


def test_what_mlx_refuses_takes_for_ever() -> None:
    problem = Problem.parse((1, 8, 34, 34, 128), (128, 3, 3, 3, 64), "bfloat16", groups=2)
    native, *others = candidates(problem, "metal")
    assert prior_us(problem, [native]) == [math.inf]
    assert all(us < math.inf for us in prior_us(problem, others))
    assert ordered(problem, [*others, native])[0] is native


def test_an_algorithm_that_does_not_say_what_it_asks_is_expected_to_do_its_work() -> None:
    problem = Problem.parse((2, 8, 34, 34, 128), (128, 3, 3, 3, 128), "bfloat16")
    (native, *_) = candidates(problem, "metal")
    silent = Candidate(replace(native.algorithm, name="silent", calls=None))
    of_native, of_silent = prior_us(problem, [native, silent])
    assert of_silent == pytest.approx(of_native, rel=0.05)


def test_a_chunk_costs_an_evaluation() -> None:
    problem = Problem.parse((1, 18, 34, 34, 128), (128, 3, 3, 3, 128), "bfloat16")
    whole = find("kd_decomposition(sum=float32)", problem, "metal")
    parts = find("kd_decomposition(frames=4,sum=float32)", problem, "metal")
    assert whole is not None
    assert parts is not None
    of_whole, of_parts = prior_us(problem, [whole, parts])
    assert of_parts > of_whole + 4 * EVALUATION_US


def test_the_devices_own_ceilings_count_and_those_it_lacks_are_the_defaults() -> None:
    problem = Problem.parse((1, 18, 34, 34, 128), (128, 3, 3, 3, 128), "bfloat16")
    offered = candidates(problem, "metal")
    base = prior_us(problem, offered)
    names = {"matmul_bfloat16_gflops": CEILINGS["matmul_gflops"], **CEILINGS}
    assert prior_us(problem, offered, names) == base
    assert prior_us(problem, offered, {"matmul_float16_gflops": 1.0}) == base
    assert prior_us(problem, offered, {"copy_gb_per_s": 0.0}) == base
    twice = {name: 2 * rate for name, rate in names.items()} | {"launch_us": CEILINGS["launch_us"] / 2}
    assert prior_us(problem, offered, twice) == pytest.approx([us / 2 for us in base])


def test_neural_accelerators_speed_up_products_and_no_implicit_gemm() -> None:
    # As on M5: four times the rate of a product, and no more bandwidth.
    problem = Problem.parse((1, 18, 66, 66, 256), (256, 3, 3, 3, 256), "bfloat16")
    fast = {"matmul_bfloat16_gflops": 4 * 14000.0, "copy_gb_per_s": 360.0}
    slow = fast | {"matmul_bfloat16_gflops": 14000.0}
    offered = {c.name: c for c in candidates(problem, "metal")}
    pair = [offered["implicit_gemm"], offered["kd_decomposition(sum=float32)"]]
    of_implicit, of_winograd = (
        a / b for a, b in zip(prior_us(problem, pair, slow), prior_us(problem, pair, fast), strict=True)
    )
    assert of_implicit < 1.2
    assert of_winograd > 1.5


def test_without_room_for_winograd_the_decomposition_is_not_worth_it() -> None:
    problem = Problem.parse((2, 18, 66, 66, 256), (256, 3, 3, 3, 256), "bfloat16")
    pair = [c for c in candidates(problem, "metal") if c.name in {"native", "kd_decomposition(sum=float32)"}]
    of_native, of_other = prior_us(problem, pair)
    assert of_other < of_native
    of_native, of_other = prior_us(problem, pair, working_set=1e6)
    assert of_other > of_native


def test_it_is_marked_as_a_prior() -> None:
    assert "prior" in MARK
    assert "not measured" in MARK


DECIDING = ("accuracy", "decision", "pooling", "rank_sum", "record", "kin", "knowledge", "tuning.verification")
"""The modules that say who wins, by measurements alone."""


@pytest.mark.parametrize("name", DECIDING)
def test_nothing_that_decides_knows_the_prior(name: str) -> None:
    file = Path(autoconv.__file__).parent.joinpath(*name.split(".")).with_suffix(".py")
    imported = {
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported
    assert not [module for module in imported if "prior" in module or "routes" in module]
