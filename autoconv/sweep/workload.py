"""Workloads: the layers of real networks, read from CSV files.

A workload file has one convolution a row. Its columns stand in any order; others beside them are ignored:

    N, D, H, W, C_in                       input as the convolution receives it
    C_out, KD, KH, KW                      weight, `(C_out, KD, KH, KW, C_in / groups)`
    stride_d, stride_h, stride_w           default 1
    pad_d, pad_h, pad_w                    zeros at either end; default 0
    dil_d, dil_h, dil_w                    default 1
    groups                                 default 1
    dtype                                  float16, bfloat16, float32 or float64; default float32
    model, part, layer, source             names, free text; default the file's name, "", the row's line, ""
    count                                  how often one forward pass makes this very call; default 1

An empty cell is as good as a missing column.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from autoconv.errors import WorkloadError
from autoconv.problem import ITEM_BYTES, MAX_ELEMENTS, Problem, dilated

AXES = ("d", "h", "w")
SIZES = ("N", "D", "H", "W", "C_in", "C_out", "KD", "KH", "KW")
"""The columns without a default."""

_DEFAULTS = {f"{name}_{axis}": value for name, value in (("stride", 1), ("pad", 0), ("dil", 1)) for axis in AXES}
_DEFAULTS |= {"groups": 1, "count": 1}
_TEXTS = ("model", "part", "layer", "source", "dtype")
_KNOWN = frozenset((*SIZES, *_DEFAULTS, *_TEXTS))
_WHOLE = re.compile(r"[+-]?[0-9]+")

DEMO_GFLOP = 0.13
"""Most GFLOP of a demo layer: MLX's bundled BLAS does 1.5 to 2 GFLOP/s, and a layer runs some 40 times."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a network.

    Attributes:
        network: The network's name.
        part: The setting it was recorded at, such as a resolution.
        layer: The layer's name in the network.
        count: How often one forward pass makes this very call.
        problem: The convolution.
        source: Where the network's structure comes from.
        crop_of: The convolution as the network makes it, where `problem` is a crop of it; else None.
    """

    network: str
    part: str
    layer: str
    count: int
    problem: Problem
    source: str
    crop_of: Problem | None = None


def read_workload(path: str | Path) -> list[Layer]:
    """The layers of a workload file, in its order; at least one.

    Raises:
        WorkloadError: the file cannot be read, or is no workload; the message names the file, and the line
            and the column where there are such.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise WorkloadError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        msg = f"{path}, line {line}: not UTF-8; save the file as UTF-8"
        raise WorkloadError(msg) from error
    rows = _rows(path, text)
    line, names = next(rows, (1, []))
    names = [name.strip() for name in names]
    for name in SIZES:
        if name not in names:
            msg = f"{path}, line {line}, column {name}: missing; a workload has at least {', '.join(SIZES)}"
            raise WorkloadError(msg)
    for name in names:
        if name in _KNOWN and names.count(name) > 1:
            msg = f"{path}, line {line}, column {name}: there are {names.count(name)} columns of this name"
            raise WorkloadError(msg)
    layers = []
    for line, values in rows:
        if len(values) > len(names):
            msg = f"{path}, line {line}, column {len(names) + 1}: the header names only {len(names)} columns"
            raise WorkloadError(msg)
        cells = {name: value.strip() for name, value in zip(names, values, strict=False)}
        layers.append(_Row(path, line, cells).layer())
    if not layers:
        msg = f"{path}, line {line + 1}: no rows; a workload has one convolution a row below its header"
        raise WorkloadError(msg)
    return layers


def packaged_workloads() -> dict[str, Path]:
    """The workload files that come with the package, by name, sorted."""
    folder = Path(__file__).with_name("workloads")
    return {path.stem: path for path in sorted(folder.glob("*.csv"))}


def demo_layers() -> list[Layer]:
    """Real layers of many kinds, cropped where over `DEMO_GFLOP`, so that two slow cores can time them."""
    return [crop(layer, DEMO_GFLOP) for layer in read_workload(Path(__file__).with_name("demo.csv"))]


def crop(layer: Layer, max_gflop: float) -> Layer:
    """The layer on a smaller frame, with at most `max_gflop` GFLOP or as few as a crop can have.

    The output's D, H and W are cut to one length, the longest that fits; axes that are shorter stay whole. So
    H and W go first, D where it is longer than what is left of them. An input keeps the remainder that the
    stride does not reach, and gets no shorter than the kernel spans. Where all three are at their shortest, N
    is cut. Channels, kernel, stride, padding, dilation, groups and dtype are as they were. A layer that fits is
    returned as it is.
    """
    budget = max_gflop * 1e9
    whole = layer.problem
    if whole.flops <= budget:
        return layer
    lengths = range(1, max(whole.output_shape[1:4]) + 1)
    fitting = bisect_right(lengths, budget, key=lambda length: _cut(whole, length).flops)
    problem = _cut(whole, max(fitting, 1))
    if problem.flops > budget:
        batch = problem.input_shape[0]
        batch = max(int(budget // (problem.flops // batch)), 1)
        problem = replace(problem, input_shape=(batch, *problem.input_shape[1:]))
    if problem == whole:
        return layer
    return replace(layer, problem=problem, crop_of=layer.crop_of or whole)


def _cut(problem: Problem, length: int) -> Problem:
    """The problem with `length` output positions in D, H and W, or as near as its input and kernel let it."""
    batch, *sizes, channels = problem.input_shape
    depth, height, width = (
        max(min(size, dilated(kernel, dilation)), size - max(-((length - output) * stride // spread), 0))
        for size, kernel, dilation, output, stride, spread in zip(
            sizes,
            problem.weight_shape[1:4],
            problem.dilation,
            problem.output_shape[1:4],
            problem.stride,
            problem.input_dilation,
            strict=True,
        )
    )
    return replace(problem, input_shape=(batch, depth, height, width, channels))


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line it starts on.

    Raises:
        WorkloadError: the text is no CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        msg = f"{path}, line {line}: no CSV: {error}"
        raise WorkloadError(msg) from error


@dataclass(frozen=True, slots=True)
class _Row:
    """One row's cells by column, and where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    def layer(self) -> Layer:
        """The layer of this row."""
        batch, *sizes, channels = (self.number(name, 1) for name in SIZES[:5])
        outputs, *kernel = (self.number(name, 1) for name in SIZES[5:])
        stride, padding, dilation = (
            tuple(self.number(f"{name}_{axis}", low) for axis in AXES)
            for name, low in (("stride", 1), ("pad", 0), ("dil", 1))
        )
        for column, size, taps, pad, apart in zip(SIZES[6:], sizes, kernel, padding, dilation, strict=True):
            if dilated(taps, apart) > size + 2 * pad:
                span = f"the kernel spans {dilated(taps, apart)}"
                self.fail(column, f"{span}, the padded input only {size + 2 * pad}")
        groups = self.number("groups", 1)
        if channels % groups or outputs % groups:
            self.fail("groups", f"{groups} does not divide C_in {channels} and C_out {outputs}")
        dtype = self.cells.get("dtype") or "float32"
        if dtype not in ITEM_BYTES:
            self.fail("dtype", f"must be one of {', '.join(ITEM_BYTES)}, not {dtype!r}")
        return Layer(
            network=self.cells.get("model") or self.path.stem,
            part=self.cells.get("part", ""),
            layer=self.cells.get("layer") or f"line {self.line}",
            count=self.number("count", 1),
            problem=Problem.parse(
                (batch, *sizes, channels),
                (outputs, *kernel, channels // groups),
                dtype,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
            ),
            source=self.cells.get("source", ""),
        )

    def number(self, column: str, low: int) -> int:
        """The whole number in `column`, or its default."""
        text = self.cells.get(column, "")
        if not text and column in _DEFAULTS:
            return _DEFAULTS[column]
        # The bound on the length keeps `int` from refusing what the bound on the value then refuses.
        if not _WHOLE.fullmatch(text) or len(text) > 20 or not low <= int(text) <= MAX_ELEMENTS:
            self.fail(column, f"must be a whole number from {low} to {MAX_ELEMENTS}, not {text!r}")
        return int(text)

    def fail(self, column: str, what: str) -> NoReturn:
        """Raise the error that says `what` is wrong with `column`."""
        msg = f"{self.path}, line {self.line}, column {column}: {what}"
        raise WorkloadError(msg)
