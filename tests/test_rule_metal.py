"""The rule for MLX's own dispatch on Metal: what teaches it, when there is none, its C++ and its benchmark."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from rules import case, layer
from strategies import decomposed_problems, problems

from autoconv.errors import RuleError
from autoconv.model.rule import Case, Rule, write
from autoconv.model.rule import metal as metals
from autoconv.model.rule.benchmark import benchmark_source
from autoconv.model.rule.features import METAL_FEATURES
from autoconv.problem import ITEM_BYTES, Problem

CHIPS = ("Apple M1", "Apple M2 Ultra", "Apple M4 Max")


def metal_cases(count: int, chips: Sequence[str] = CHIPS) -> list[Case]:
    """Layers that MLX's rule decomposes: rightly so from 64 channels."""
    found = []
    for number in range(count):
        channels, size = 16 * (1 + number % 8), 5 + number // 8
        native, implicit = (10.0, 20.0) if channels >= 64 else (20.0, 10.0)
        found += [case(layer(channels, size), chip, native=native, implicit_gemm=implicit) for chip in chips]
    return found


def upstream(count: int = 300) -> tuple[Rule, list[Case]]:
    both = metals.two_ways(metal_cases(count))
    return metals.upstream_rule(both), both


@given(problems(dtypes=tuple(ITEM_BYTES)))
@settings(max_examples=50, deadline=None)
def test_only_what_mlx_would_decompose_rightly_teaches(problem: Problem) -> None:
    assert metals.two_ways([case(problem, native=1.0, implicit_gemm=2.0)]) == []  # its channels are never in step


def test_frames_past_the_end_and_what_was_timed_one_way_teach_nothing() -> None:
    padded = layer(16, padding=((0, 1, 1), (1, 1, 1)))
    assert metals.two_ways([case(padded, native=1.0, implicit_gemm=2.0), case(layer(16), native=1.0)]) == []


def test_the_extra_frame_is_not_counted() -> None:
    (found,) = metals.two_ways([case(layer(16), native=7.0, implicit_gemm=10.0)])
    assert found.times_us["implicit"] == pytest.approx((8.0, 8.0))  # four frames of five
    single = Problem.parse((1, 3, 8, 8, 16), (16, 3, 3, 3, 16))
    (found,) = metals.two_ways([case(single, native=7.0, implicit_gemm=10.0)])
    assert found.times_us["implicit"] == (10.0, 10.0)


def test_too_few_problems_or_chips_are_refused_with_counts() -> None:
    with pytest.raises(RuleError, match=r"for 299 problems on 3 chips .*300 problems on 3 such chips are needed"):
        upstream(299)
    two = metals.two_ways(metal_cases(400, CHIPS[:2]))
    assert "for 400 problems on 2 chips" in metals.lacking(two)
    few = metals.two_ways([*metal_cases(400, CHIPS[:2]), *metal_cases(99, CHIPS[2:])])
    assert "on 2 chips with 100 or more (Apple M1 400, Apple M2 Ultra 400, Apple M4 Max 99)" in metals.lacking(few)
    assert "none at all" in metals.lacking([])


def test_the_upstream_rule_asks_what_the_dispatch_sees() -> None:
    rule, both = upstream()
    assert {leaf.choice for leaf in rule.leaves} == {metals.DECOMPOSED, metals.IMPLICIT}
    assert rule.in_sample.mean == 0
    assert all(feature.cpp for feature in METAL_FEATURES)
    text = metals.page(rule)
    assert all(f"| {chip} | 300 |" in text for chip in CHIPS)
    assert "Worst loss: 1.00 times" in text
    assert "free" not in metals.cpp_source(rule)
    assert len(both) == 900


compiler = shutil.which("c++") or shutil.which("clang++") or shutil.which("g++")
STUB = """
#include <cstddef>
#include <cstdint>
template <int NDIM> struct MLXConvParams {
  int N, C, O, iS[NDIM], wS[NDIM], oS[NDIM], str[NDIM], pad[NDIM], kdil[NDIM], idil[NDIM];
  int64_t in_strides[NDIM + 2], wt_strides[NDIM + 2], out_strides[NDIM + 2];
  int groups; bool flip;
};
"""


def stub(problem: Problem) -> str:
    def braced(values: Sequence[int]) -> str:
        return "{" + ", ".join(map(str, values)) + "}"

    shapes = (problem.input_shape[1:4], problem.weight_shape[1:4], problem.output_shape[1:4], problem.stride)
    triples = (*shapes, problem.padding_low, problem.dilation, problem.input_dilation)
    fields = (problem.input_shape[0], problem.input_shape[4], problem.weight_shape[0], *map(braced, triples))
    return braced((*fields, "{}", "{}", "{}", problem.groups, str(problem.flip).lower()))  # type: ignore[arg-type]


def compiled(source: str, results: Sequence[str], folder: Path) -> list[int]:
    """What a C++ program prints of each of these expressions."""
    assert compiler is not None
    lines = "\n".join(f'std::printf("%lld\\n", (long long)({result}));' for result in results)
    file, program = folder / "rule.cpp", folder / "rule"
    file.write_text(f"#include <cstdio>\n{STUB}\n{source}\nint main() {{\n{lines}\n}}\n")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, str(file), "-o", str(program)], check=True, timeout=120)
    found = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60)
    return list(map(int, found.stdout.split()))


@pytest.mark.skipif(compiler is None, reason="no C++ compiler")
def test_the_cpp_chooses_as_the_tree_does(tmp_path: Path) -> None:
    rule, both = upstream()
    known = [each.problem for each in both[::30]]
    outside = [layer(128, padding=1), layer(128, stride=2), layer(128, padding=((0, 0, 0), (1, 0, 0)))]
    calls = [f"takes_depth_decomposition({stub(p)}, {p.item_bytes})" for p in [*known, *outside]]
    found = compiled(metals.cpp_source(rule), calls, tmp_path)
    assert found == [*(int(rule.choose(p) == metals.DECOMPOSED) for p in known), 0, 0, 0]


@pytest.mark.skipif(compiler is None, reason="no C++ compiler")
def test_features_are_what_their_cpp_says(tmp_path: Path) -> None:
    drawn: list[Problem] = []

    @given(decomposed_problems(dtypes=("float16", "float32")).filter(metals.both_run))
    @settings(max_examples=20, deadline=None, database=None)
    def draw(problem: Problem) -> None:
        drawn.append(problem)

    draw()
    # Only what the questions ask has a name there, so that all of them are asked, where the first is.
    values = ", ".join(f"(int64_t)({feature.cpp})" for feature in METAL_FEATURES)
    names = "".join(f"const int64_t {name} = {of}; " for name, of in metals._NAMES.items())
    head = "int64_t value(const MLXConvParams<3>& conv_params, size_t item_bytes, int place)"
    source = f"{head} {{ {names} const int64_t all[] = {{{values}}}; return all[place]; }}"
    calls = [
        f"value({stub(problem)}, {problem.item_bytes}, {place})"
        for problem in drawn
        for place in range(len(METAL_FEATURES))
    ]
    assert compiled(source, calls, tmp_path) == [f.of(problem) for problem in drawn for f in METAL_FEATURES]


def test_the_benchmark_imports_mlx_alone() -> None:
    tree = ast.parse(benchmark_source(upstream()[0]))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"mlx"}


def test_the_benchmark_s_two_ways_compute_the_same() -> None:
    names: dict[str, Any] = {"__name__": "bench"}
    exec(compile(benchmark_source(upstream()[0]), "bench.py", "exec"), names)
    assert {layer[-1] for layer in names["LAYERS"]} == {metals.DECOMPOSED, metals.IMPLICIT}
    for frames, depth in ((6, 3), (3, 3), (4, 1), (7, 2)):
        arguments = ([1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1], False)
        first, second, padded = names["both"](((1, frames, 6, 6, 16), (16, depth, 3, 3, 16), *arguments, "float32", ""))
        a, b = np.array(first()), np.array(second())
        assert a.shape == b.shape  # so the work is the same
        assert np.allclose(a[:, padded:], b[:, padded:], atol=1e-5)
        assert names["difference"](first, second, padded) < 1e-5


def test_the_benchmark_needs_a_mac(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if mx.metal.is_available():
        pytest.skip("this is one")
    file = tmp_path / "bench.py"
    file.write_text(benchmark_source(upstream()[0]))
    found = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "needs a Mac" in found.stderr


def test_metal_s_files_come_all_or_not(tmp_path: Path) -> None:
    out = tmp_path / "rule.py"
    written = write(metal_cases(20), "metal", out)
    assert [path.name for path in written.files] == ["rule.py"]
    assert "for 20 problems" in written.missing
    names = ["rule.py", "rule.cpp", "rule.md", "rule_bench.py"]
    with pytest.raises(RuleError, match="exists"):
        write(metal_cases(300), "metal", out)
    assert not (tmp_path / "rule.cpp").exists()
    written = write(metal_cases(300), "metal", out, force=True)
    assert [path.name for path in written.files] == names
    assert all((tmp_path / name).stat().st_size for name in names)
    assert not written.missing


def test_a_rule_is_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"suffix \.py"):
        write(metal_cases(1), "cpu", tmp_path / "rule.db")
    with pytest.raises(RuleError, match="cannot write"):
        write(metal_cases(1), "cpu", tmp_path / "none" / "rule.py")
