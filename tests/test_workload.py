"""Workload files are read as they are meant, refused with the place of the fault, and cropped without being changed."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoconv.sweep
from autoconv.errors import WorkloadError
from autoconv.problem import ITEM_BYTES, Problem
from autoconv.sweep import Layer, crop, demo_layers, packaged_workloads, read_workload
from autoconv.sweep.workload import DEMO_GFLOP

FOLDER = Path(autoconv.sweep.__file__).parent
SIZES = {"N": 1, "D": 5, "H": 8, "W": 9, "C_in": 4, "C_out": 6, "KD": 3, "KH": 2, "KW": 1}


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """A workload file of these rows, its columns those of the first."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def layer_of(problem: Problem) -> Layer:
    """A layer of this problem."""
    return Layer("network", "part", "layer", 1, problem, "source")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """What a workload row can say: symmetric padding, no input dilation, forward."""
    small = st.integers(1, 4)
    kernel = [draw(small) for _ in range(3)]
    dilation = [draw(st.integers(1, 3)) for _ in range(3)]
    padding = [draw(st.integers(0, 3)) for _ in range(3)]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [max(s - 2 * p, 1) + draw(st.integers(0, 70)) for s, p in zip(spans, padding, strict=True)]
    groups = draw(small)
    inputs, outputs = draw(small), draw(small) * groups
    return Problem.parse(
        (draw(st.integers(1, 9)), *sizes, inputs * groups),
        (outputs, *kernel, inputs),
        draw(st.sampled_from(sorted(ITEM_BYTES))),
        stride=[draw(small) for _ in range(3)],
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def row_of(problem: Problem) -> dict[str, object]:
    """The row that says this problem."""
    row: dict[str, object] = dict(zip(("N", "D", "H", "W", "C_in"), problem.input_shape, strict=True))
    row |= zip(("C_out", "KD", "KH", "KW"), problem.weight_shape[:4], strict=True)
    for name, values in (
        ("stride", problem.stride),
        ("pad", problem.padding_low),
        ("dil", problem.dilation),
    ):
        row |= zip((f"{name}_d", f"{name}_h", f"{name}_w"), values, strict=True)
    return row | {"groups": problem.groups, "dtype": problem.dtype}


def test_the_public_names_are_sorted_and_there() -> None:
    assert autoconv.sweep.__all__ == sorted(autoconv.sweep.__all__)
    assert all(hasattr(autoconv.sweep, name) for name in autoconv.sweep.__all__)


def test_every_packaged_workload_is_listed() -> None:
    assert list(packaged_workloads()) == sorted(p.stem for p in (FOLDER / "workloads").glob("*.csv"))
    assert len(packaged_workloads()) == 14


@pytest.mark.parametrize("name", packaged_workloads())
def test_a_packaged_workload_is_read_whole(name: str) -> None:
    path = FOLDER / "workloads" / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    layers = read_workload(path)
    assert len(layers) == len(rows)
    for layer, row in zip(layers, rows, strict=True):
        told = (layer.network, layer.part, layer.layer, str(layer.count), layer.source)
        assert told == (row["model"], row["part"], row["layer"], row["count"], row["source"])
        assert layer.problem.dtype == row["dtype"]
        assert layer.crop_of is None
        sizes = {key: int(value) for key, value in row.items() if key in SIZES or key[-2:] in ("_d", "_h", "_w")}
        outputs = [
            (sizes[a] + 2 * sizes[f"pad_{b}"] - sizes[f"dil_{b}"] * (sizes[f"K{a}"] - 1) - 1) // sizes[f"stride_{b}"]
            + 1
            for a, b in (("D", "d"), ("H", "h"), ("W", "w"))
        ]
        assert layer.problem.output_shape == (sizes["N"], *outputs, sizes["C_out"])
        taps = sizes["KD"] * sizes["KH"] * sizes["KW"] * sizes["C_in"] // int(row["groups"])
        assert layer.problem.flops == 2 * math.prod(layer.problem.output_shape) * taps


def test_the_packaged_workloads_are_of_many_networks() -> None:
    layers = [layer for path in packaged_workloads().values() for layer in read_workload(path)]
    assert len(layers) == 751
    assert len({layer.network for layer in layers}) == 33


def test_all_but_the_sizes_has_a_default(tmp_path: Path) -> None:
    (layer,) = read_workload(write(tmp_path / "mine.csv", [SIZES]))
    problem = Problem((1, 5, 8, 9, 4), (6, 3, 2, 1, 4), dtype="float32")
    assert layer == Layer("mine", "", "line 2", 1, problem, "")


def test_columns_in_any_order_others_ignored_empty_cells_default(tmp_path: Path) -> None:
    row = {"note": "x", "dtype": "", "groups": "2", **dict(reversed(SIZES.items())), "stride_h": "", "model": "M"}
    (layer,) = read_workload(write(tmp_path / "w.csv", [row]))
    assert layer.network == "M"
    assert layer.problem == Problem((1, 5, 8, 9, 4), (6, 3, 2, 1, 2), groups=2, dtype="float32")


def test_the_weight_has_the_channels_of_one_group(tmp_path: Path) -> None:
    (layer,) = read_workload(write(tmp_path / "w.csv", [SIZES | {"C_in": 6, "groups": 3}]))
    assert layer.problem.input_shape[4] == 6
    assert layer.problem.weight_shape == (6, 3, 2, 1, 2)


def test_a_spreadsheets_marks_and_spaces_are_read_past(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    header = " , ".join(SIZES)
    path.write_bytes(f"\ufeff{header}\r\n\r\n {' , '.join(map(str, SIZES.values()))} \r\n".encode())
    (layer,) = read_workload(str(path))
    assert layer.problem.input_shape == (1, 5, 8, 9, 4)
    assert layer.layer == "line 3"


@given(st.lists(problems(), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Problem]) -> None:
    path = write(tmp_path_factory.mktemp("w") / "w.csv", map(row_of, written))
    assert [layer.problem for layer in read_workload(path)] == written


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"H": "eight"}, "H"),
        ({"H": "8.0"}, "H"),
        ({"H": "1_0"}, "H"),
        ({"H": "٣"}, "H"),
        ({"H": ""}, "H"),
        ({"H": "9" * 5000}, "H"),
        ({"W": 2**31}, "W"),
        ({"N": 0}, "N"),
        ({"D": -1}, "D"),
        ({"C_in": 0}, "C_in"),
        ({"C_out": 0}, "C_out"),
        ({"KW": 0}, "KW"),
        ({"stride_d": -1}, "stride_d"),
        ({"stride_w": 0}, "stride_w"),
        ({"pad_h": -1}, "pad_h"),
        ({"dil_h": 0}, "dil_h"),
        ({"count": 0}, "count"),
        ({"count": "1.5"}, "count"),
        ({"groups": 0}, "groups"),
        ({"groups": 3}, "groups"),
        ({"C_in": 6, "groups": 4, "C_out": 8}, "groups"),
        ({"groups": 4}, "groups"),
        ({"dtype": "int8"}, "dtype"),
        ({"KD": 6}, "KD"),
        ({"KH": 11, "pad_h": 1}, "KH"),
        ({"KH": 4, "dil_h": 3}, "KH"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(tmp_path: Path, change: dict[str, object], column: str) -> None:
    good: dict[str, object] = {**SIZES, **dict.fromkeys(change, ""), **SIZES}
    # A name over two lines: the row counts as one, and the fault stands on line 4.
    rows = [good | {"layer": "over\ntwo lines"}, good | change | {"layer": ""}]
    path = write(tmp_path / "w.csv", rows)
    with pytest.raises(WorkloadError) as raised:
        read_workload(path)
    assert str(raised.value).startswith(f"{path}, line 4, column {column}: ")


def test_the_largest_kernel_that_fits_is_read(tmp_path: Path) -> None:
    (layer,) = read_workload(write(tmp_path / "w.csv", [SIZES | {"KD": 5, "KH": 10, "pad_h": 1, "KW": 9}]))
    assert layer.problem.output_shape == (1, 1, 1, 1, 6)


@pytest.mark.parametrize("column", SIZES)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "w.csv", [{key: value for key, value in SIZES.items() if key != column}])
    with pytest.raises(WorkloadError) as raised:
        read_workload(path)
    assert str(raised.value).startswith(f"{path}, line 1, column {column}: missing")


HEADER = ",".join(SIZES)
VALUES = ",".join(map(str, SIZES.values()))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", ", line 1, column N: missing"),
        (b"\n\n", ", line 1, column N: missing"),
        (HEADER.encode(), ", line 2: no rows"),
        (f"{HEADER}\n\n,,\n".encode(), ", line 2: no rows"),
        (f"{HEADER},N\n{VALUES},1\n".encode(), ", line 1, column N: there are 2 columns of this name"),
        (f"{HEADER}\n{VALUES}\n{VALUES},1,2\n".encode(), ", line 3, column 10: the header names only 9 columns"),
        (f"{HEADER}\n{VALUES[:-2]}\n".encode(), ", line 2, column KW: "),
        (f'{HEADER}\n{VALUES}\n"{VALUES}\n'.encode(), ", line 3: no CSV: "),
        (f"{HEADER},layer\n{VALUES},caf\u00e9\n".encode("latin-1"), ", line 2: not UTF-8"),
        (f"{HEADER}\n{VALUES}\n".encode("utf-16"), ", line 1: not UTF-8"),
    ],
)
def test_what_is_no_workload_is_refused_with_its_place(tmp_path: Path, content: bytes, place: str) -> None:
    path = tmp_path / "w.csv"
    path.write_bytes(content)
    with pytest.raises(WorkloadError) as raised:
        read_workload(path)
    assert str(raised.value).startswith(f"{path}{place}")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nothing\.csv: No such file"):
        read_workload(tmp_path / "nothing.csv")
    with pytest.raises(WorkloadError) as raised:
        read_workload(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ")


@given(problems(), st.floats(0, 1.2))
def test_a_crop_keeps_what_it_must_and_fits_or_is_minimal(whole: Problem, share: float) -> None:
    budget = whole.flops * share
    layer = crop(layer_of(whole), budget / 1e9)
    problem = layer.problem
    kept = ("weight_shape", "stride", "padding_low", "padding_high", "dilation", "groups", "dtype", "kind", "flip")
    assert all(getattr(problem, name) == getattr(whole, name) for name in kept)
    assert problem.input_shape[4] == whole.input_shape[4]
    spans = [(k - 1) * d + 1 for k, d in zip(whole.weight_shape[1:4], whole.dilation, strict=True)]
    cut = list(zip(problem.input_shape[1:4], whole.input_shape[1:4], spans, whole.stride, strict=True))
    for size, before, span, _ in cut:
        assert min(before, span) <= size <= before
    if problem.flops > budget * (1 + 1e-9):
        assert problem.input_shape[0] == 1
        for size, _, span, stride in cut:
            assert size < span + stride
    if problem.input_shape[0] < whole.input_shape[0]:
        assert all(size < span + stride for size, _, span, stride in cut)
    assert layer.crop_of == (None if problem == whole else whole)


def cut_step_by_step(whole: Problem, budget: float) -> Problem:
    """The crop by its rule, told as slowly as can be: stride by stride, for ever shorter outputs."""

    def axis(index: int, length: int) -> int:
        size, taps, apart = whole.input_shape[index], whole.weight_shape[index], whole.dilation[index - 1]
        stride, padding = whole.stride[index - 1], whole.padding_low[index - 1]
        span = (taps - 1) * apart + 1
        floor = min(size, span)
        while (size + 2 * padding - span) // stride + 1 > length and size > floor:
            size = max(size - stride, floor)
        return size

    def cut(batch: int, length: int) -> Problem:
        shape = (batch, axis(1, length), axis(2, length), axis(3, length), whole.input_shape[4])
        return dataclasses.replace(whole, input_shape=shape)

    batch = whole.input_shape[0]
    for length in range(max(whole.output_shape[1:4]), 0, -1):
        if cut(batch, length).flops <= budget:
            return cut(batch, length)
    while batch > 1 and cut(batch, 1).flops > budget:
        batch -= 1
    return cut(batch, 1)


@given(problems(), st.floats(0, 1))
def test_a_crop_is_the_largest_that_fits(whole: Problem, share: float) -> None:
    gflop = whole.flops * share / 1e9
    assert crop(layer_of(whole), gflop).problem == cut_step_by_step(whole, gflop * 1e9)


def test_a_crop_takes_height_and_width_before_depth() -> None:
    video = Problem((1, 6, 482, 834, 96), (96, 3, 3, 3, 96), dtype="float32")
    layer = crop(layer_of(video), 0.13)
    assert layer.problem.input_shape == (1, 6, 10, 10, 96)
    assert layer.crop_of == video
    assert crop(layer, 0.01).problem.input_shape == (1, 4, 4, 4, 96)
    assert crop(layer, 0.01).crop_of == video


def test_a_crop_of_patches_takes_some_of_them() -> None:
    patches = Problem((5476, 2, 14, 14, 3), (1280, 2, 14, 14, 3), stride=(2, 14, 14), dtype="float32")
    assert crop(layer_of(patches), 0.13).problem.input_shape == (43, 2, 14, 14, 3)


def test_a_crop_keeps_what_the_stride_leaves_over() -> None:
    strided = Problem((1, 10, 101, 101, 8), (8, 2, 2, 2, 8), stride=(2, 2, 2), dtype="float32")
    assert crop(layer_of(strided), 1e-4).problem.input_shape == (1, 8, 9, 9, 8)


def test_the_demo_is_real_layers_small_enough_for_two_slow_cores() -> None:
    real = [layer for path in packaged_workloads().values() for layer in read_workload(path)]
    demo = demo_layers()
    assert len(demo) >= 14
    assert len({layer.network for layer in demo}) >= 6
    assert len({layer.problem for layer in demo}) == len(demo)
    for layer in demo:
        assert layer.problem.flops <= DEMO_GFLOP * 1e9
        whole = dataclasses.replace(layer, problem=layer.crop_of or layer.problem, crop_of=None)
        assert whole in real
    # Some 40 runs of each at 1.7 GFLOP/s are to take less than a minute.
    assert sum(layer.problem.flops for layer in demo) * 40 / 1.7e9 < 60


def test_the_demo_has_a_chance_for_every_kind_of_algorithm() -> None:
    layers = [layer.problem for layer in demo_layers()]
    assert any(p.groups > 1 for p in layers)
    assert any(p.weight_shape[1:4] == (1, 1, 1) for p in layers)
    assert any(p.weight_shape[1:4] == (3, 1, 1) for p in layers)
    assert any(p.input_shape[1] == p.weight_shape[1] == 3 == p.weight_shape[2] for p in layers)
    assert any(p.stride == p.weight_shape[1:4] != (1, 1, 1) for p in layers)
    assert any(p.input_shape[4] == 3 and p.stride == (1, 1, 1) for p in layers)
    assert any(p.stride == (2, 2, 2) and p.weight_shape[1:4] == (3, 3, 3) for p in layers)
    assert any(p.padding_low == (1, 1, 1) and p.stride == (1, 1, 1) and p.groups == 1 for p in layers)
    assert {p.dtype for p in layers} == {"float16", "bfloat16", "float32"}
