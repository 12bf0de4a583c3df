"""What a cost model sees: numbers of a problem, and of each candidate on a device.

Those of the problem are the same for all candidates; those of a candidate tell what *it* does: its own FLOPs, bytes and
launches, and the largest call that it makes of MLX. Times come in through the device's ceilings, so that a model can
serve a device that it never saw. `PROBLEM` and `CANDIDATE` describe every number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoconv.algorithms import Candidate
from autoconv.algorithms._calls import Call, Convolution2D, Product
from autoconv.problem import Problem

Floats: TypeAlias = NDArray[np.float64]
Ceilings: TypeAlias = Mapping[str, float]
"""What a device can do at most, as `store.contract.Qualification.ceilings` has it."""

COUNTS = ("clips", "frames", "rows")
"""Parameters of chunks: they are seen as a number of chunks."""

TILE = 128
"""Rows and columns of a result that one block of a GPU's matrix kernel computes, typically; on other devices the same
number only measures how many pieces of work there are."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One number.

    Attributes:
        name: Short, and unique.
        meaning: In words, with its unit.
        log: Whether its logarithm to base 2 is taken, after what is below `LEAST` was raised to that.
    """

    name: str
    meaning: str
    log: bool = False


LEAST = 1e-6

PROBLEM = (
    Feature("float32", "1 for float32, else 0"),
    Feature("bfloat16", "1 for bfloat16, else 0"),
    Feature("batch", "clips of the input", log=True),
    Feature("frames", "output frames", log=True),
    Feature("height", "output rows", log=True),
    Feature("width", "output columns", log=True),
    Feature("frame", "positions of an output frame", log=True),
    Feature("channels", "input channels of a group", log=True),
    Feature("outputs", "output channels", log=True),
    Feature("groups", "groups of channels", log=True),
    Feature("kernel_depth", "taps along the depth"),
    Feature("kernel_height", "taps along the height"),
    Feature("kernel_width", "taps along the width"),
    Feature("taps", "taps in all", log=True),
    Feature("stride_depth", "stride along the depth, in frames"),
    Feature("stride_frame", "stride in height times stride in width, in positions", log=True),
    Feature("dilation_depth", "dilation along the depth, in frames"),
    Feature("dilation_frame", "dilation in height times dilation in width", log=True),
    Feature("input_dilation", "product of the input dilations", log=True),
    Feature("padding_low", "frames of padding in front"),
    Feature("padding_high", "frames of padding behind"),
    Feature("padding_frame", "rows and columns of padding in front, added"),
    Feature("padding_uneven", "rows of padding behind less those in front"),
    Feature("flip", "1 where the kernel is flipped, else 0"),
    Feature("flops", "floating-point operations", log=True),
    Feature("bytes", "bytes of input, weight and output", log=True),
    Feature("intensity", "FLOPs per byte", log=True),
    Feature("positions", "output positions: rows of the matrix product that a convolution is", log=True),
    Feature("depth", "terms of each output: what that product sums over", log=True),
    Feature("input_bytes", "bytes of the input", log=True),
    Feature("weight_bytes", "bytes of the weight", log=True),
    Feature("output_bytes", "bytes of the output", log=True),
    Feature("blocks", f"blocks of {TILE} by {TILE} results", log=True),
    Feature("channels_step", "largest of 1, 2, 4 ... 64 that divides a group's input channels", log=True),
    Feature("outputs_step", "largest of 1, 2, 4 ... 64 that divides the output channels", log=True),
    Feature("width_step", "largest of 1, 2, 4 ... 64 that divides the output columns", log=True),
    Feature("frames_by_2", "output frames left over by pairs"),
    Feature("frames_by_3", "output frames left over by threes"),
    Feature("frames_by_4", "output frames left over by fours"),
)
"""The numbers of a problem, in order."""

CANDIDATE = (
    Feature("more_flops", "its FLOPs over the problem's", log=True),
    Feature("more_bytes", "bytes that it reads and writes over the problem's", log=True),
    Feature("own_intensity", "its FLOPs per byte", log=True),
    Feature("more_memory", "one plus its workspace over the bytes of input, weight and output", log=True),
    Feature("workspace", "bytes of its workspace", log=True),
    Feature("launches", "calls of MLX's convolutions and products that it makes", log=True),
    Feature("chunks", "chunks that it computes one after another", log=True),
    Feature("call_images", "images, or products, of its largest call", log=True),
    Feature("call_channels", "input channels of a group of its largest call", log=True),
    Feature("call_outputs", "output channels of its largest call", log=True),
    Feature("call_taps", "taps of the kernel of its largest call", log=True),
    Feature("call_blocks", f"blocks of {TILE} by {TILE} results of its largest call", log=True),
    Feature("call_depth", "terms of each result of its largest call", log=True),
    Feature("call_channels_step", "largest of 1, 2, 4 ... 64 that divides the channels of its largest call", log=True),
    Feature("call_outputs_step", "largest of 1, 2, 4 ... 64 that divides the outputs of its largest call", log=True),
    Feature("compute_us", "microseconds that its FLOPs take at the device's rate of matrix products", log=True),
    Feature("copy_us", "microseconds that its bytes take at the device's rate of copying", log=True),
    Feature("bound_us", "the longer of the two and its launches' latency, in microseconds", log=True),
    Feature("bound_ratio", "that over the same of MLX's own convolution", log=True),
)
"""The numbers of a candidate, in order; those of `Vocabulary` come after them."""

PROBLEM_LOG = np.array([f.log for f in PROBLEM])
CANDIDATE_LOG = np.array([f.log for f in CANDIDATE])


@dataclass(frozen=True)
class Vocabulary:
    """The algorithms and parameters that a model knows, each of which is a number of a candidate.

    Attributes:
        words: `algorithm`, or `parameter=value` for a value that is a word: 1 where the candidate has it, else 0.
        numbers: Parameters whose values are numbers: the value's logarithm to base 2, plus one; 0 without it.
        routes: Metal's kernels for a candidate's largest call (`model.routes.Route`): 1 for the one that it goes to.
    """

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    routes: tuple[str, ...] = ()

    @staticmethod
    def of(candidates: Iterable[Candidate], routes: Iterable[str] = ()) -> Vocabulary:
        """The vocabulary that names all of these."""
        words, numbers = set(), set()
        for candidate in candidates:
            words.add(candidate.algorithm.name)
            for name, value in candidate.items:
                if name not in COUNTS:
                    numbers.add(name) if isinstance(value, int) else words.add(f"{name}={value}")
        return Vocabulary(tuple(sorted(words)), tuple(sorted(numbers)), tuple(sorted(set(routes))))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its numbers, in order."""
        return (*self.words, *self.numbers, *(f"route={name}" for name in self.routes))

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def knows(self, candidate: Candidate) -> bool:
        """Whether it names a candidate's algorithm and all of its parameters."""
        return candidate.algorithm.name in self._places and all(
            name in COUNTS or (name if isinstance(value, int) else f"{name}={value}") in self._places
            for name, value in candidate.items
        )

    def row(self, candidate: Candidate, route: str = "") -> list[float]:
        """Its numbers of a candidate that it knows."""
        places, row = self._places, [0.0] * len(self.names)
        row[places[candidate.algorithm.name]] = 1.0
        for name, value in candidate.items:
            if name in COUNTS:
                continue
            if isinstance(value, int):
                row[places[name]] = 1.0 + math.log2(value)
            else:
                row[places[f"{name}={value}"]] = 1.0
        if route and f"route={route}" in places:
            row[places[f"route={route}"]] = 1.0
        return row


def of_problem(problem: Problem) -> Floats:
    """The numbers of `PROBLEM`."""
    batch, frames, height, width, outputs = problem.output_shape
    _, kernel_depth, kernel_height, kernel_width, channels = problem.weight_shape
    stride, dilation, low, high = problem.stride, problem.dilation, problem.padding_low, problem.padding_high
    flops, moved, taps = problem.flops, problem.bytes, kernel_depth * kernel_height * kernel_width
    positions = batch * frames * height * width
    row = np.array(
        (
            problem.dtype == "float32",
            problem.dtype == "bfloat16",
            batch,
            frames,
            height,
            width,
            height * width,
            channels,
            outputs,
            problem.groups,
            kernel_depth,
            kernel_height,
            kernel_width,
            taps,
            stride[0],
            stride[1] * stride[2],
            dilation[0],
            dilation[1] * dilation[2],
            math.prod(problem.input_dilation),
            low[0],
            high[0],
            low[1] + low[2],
            high[1] - low[1],
            problem.flip,
            flops,
            moved,
            flops / moved,
            positions,
            taps * channels,
            problem.input_bytes,
            problem.weight_bytes,
            problem.output_bytes,
            _blocks(positions, outputs),
            _step(channels),
            _step(outputs),
            _step(width),
            frames % 2,
            frames % 3,
            frames % 4,
        ),
        dtype=np.float64,
    )
    return _logs(row, PROBLEM_LOG)


def of_candidates(
    problem: Problem, candidates: Sequence[Candidate], backend: str, ceilings: Ceilings, vocabulary: Vocabulary
) -> Floats:
    """The numbers of `CANDIDATE` and of the vocabulary, a row a candidate.

    Args:
        problem: The problem.
        candidates: Candidates of it that the vocabulary knows.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        ceilings: The device's.
        vocabulary: The model's.

    Raises:
        KeyError: a ceiling is missing.
    """
    flops_per_us = ceilings[f"matmul_{problem.dtype}_gflops"] * 1e3
    bytes_per_us = ceilings["copy_gb_per_s"] * 1e3
    launch_us = ceilings["launch_us"]
    flops, moved = problem.flops, problem.bytes
    plain_us = max(flops / flops_per_us, moved / bytes_per_us) + launch_us
    routes = _routes(problem, candidates) if backend == "metal" and vocabulary.routes else [""] * len(candidates)
    rows = []
    for candidate in candidates:
        cost, calls = candidate.cost(problem, backend), candidate.calls(problem, backend)
        launches = sum(count for _, count in calls) or 1
        images, channels, outputs, taps, positions = _largest(calls, problem)
        compute_us, copy_us = cost.flops / flops_per_us, cost.bytes / bytes_per_us
        bound_us = max(compute_us, copy_us) + launches * launch_us
        rows.append(
            (
                cost.flops / flops,
                cost.bytes / moved,
                cost.flops / cost.bytes,
                1 + cost.workspace_bytes / moved,
                cost.workspace_bytes + 1,
                launches,
                _chunks(problem, candidate),
                images,
                channels,
                outputs,
                taps,
                _blocks(positions, outputs),
                channels * taps,
                _step(channels),
                _step(outputs),
                compute_us,
                copy_us,
                bound_us,
                bound_us / plain_us,
            )
        )
    if not rows:
        return np.zeros((0, len(CANDIDATE) + len(vocabulary.names)))
    numbers = _logs(np.array(rows, dtype=np.float64), CANDIDATE_LOG)
    words = np.array([vocabulary.row(c, route) for c, route in zip(candidates, routes, strict=True)], dtype=np.float64)
    return np.concatenate([numbers, words], axis=1)


def _routes(problem: Problem, candidates: Sequence[Candidate]) -> list[str]:
    """Metal's kernel for each candidate's largest call."""
    from autoconv.model.routes import routed  # nobody else needs it

    found = [routed(problem, candidate) for candidate in candidates]
    return [str(each.kernel) if each is not None else "" for each in found]


def _largest(calls: Iterable[tuple[Call, int]], problem: Problem) -> tuple[int, int, int, int, int]:
    """(images, channels of a group, outputs, taps, positions) of the call with most FLOPs; of the problem without."""
    found, most = _sizes(problem), -1
    for call, _ in calls:
        sizes = _sizes(call)
        work = sizes[1] * sizes[2] * sizes[3] * sizes[4]
        if work > most:
            found, most = sizes, work
    return found


def _sizes(call: Call) -> tuple[int, int, int, int, int]:
    if isinstance(call, Convolution2D):
        taps = call.kernel[0] * call.kernel[1]
        return call.images, call.channels // call.groups, call.outputs, taps, call.images * math.prod(call.result)
    if isinstance(call, Product):
        return call.batch, call.depth, call.columns, 1, call.batch * call.rows
    batch, frames, height, width, outputs = call.output_shape
    taps = math.prod(call.weight_shape[1:4])
    return batch * frames, call.weight_shape[4], outputs, taps, batch * frames * height * width


def _chunks(problem: Problem, candidate: Candidate) -> int:
    chunks = candidate.chunks
    if not chunks:
        return 1
    sizes = dict(zip(COUNTS, problem.output_shape, strict=False))
    return math.prod(-(-sizes[name] // most) for name, most in chunks.items())


def _blocks(rows: int, columns: int) -> int:
    return -(-rows // TILE) * -(-columns // TILE)


def _step(number: int) -> int:
    return min(number & -number, 64)


def _logs(rows: Floats, log: NDArray[np.bool_]) -> Floats:
    """Those numbers' logarithms."""
    return np.log2(np.maximum(rows, LEAST), where=log, out=rows)
