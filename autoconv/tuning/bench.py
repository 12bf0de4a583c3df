"""The bench: where candidates of one problem are run, timed and verified on a device.

Times are taken on a stream of their own, since an error in a command buffer poisons the stream that it ran on. A
sample is the time from before the graph is built until the result is there: users pay for both. Short convolutions
are repeated within a sample, the smaller operand of each depending on the result of the one before, so that they
cannot overlap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autoconv._backend import mx
from autoconv.algorithms import Candidate, Convolution
from autoconv.problem import MAX_ELEMENTS, Problem
from autoconv.tuning.operands import blocks_of, half_scale, make_operands
from autoconv.tuning.reference import Reference
from autoconv.tuning.verification import Verdict

Clock = Callable[[], float]
"""Seconds since some moment."""

RESOLUTION_S = 1e-9
"""What a sample takes at least: clocks of virtual machines were seen to stand still, and to be set back."""

FAILURES = (Exception,)
"""What a candidate may raise: anything, as anyone may have written it. Ctrl-C and an exit are not its own, and pass."""

_OUT_OF_MEMORY = (
    "unable to allocate",
    "out of memory",
    "outofmemory",
    "out_of_memory",
    "insufficient memory",
    "memoryallocation",
    "alloc_failed",
    "allocation_failed",
    "bad_alloc",
    "memoryerror",
    "maximum allowed buffer size",
    "resource limit",
)
"""What MLX's allocators, Python and the libraries and drivers under them say when memory runs out."""

NEVER_ENOUGH = "maximum allowed buffer size"
"""One array is larger than the device takes at any time: of these alone no later moment is better."""

_UNAVAILABLE = ("not_initialized", "busy or unavailable", "innocentvictim", "backgroundexecutionnotpermitted")
"""What is said where the device, for now, takes no work from this process at all: cuDNN and cuBLAS where they find no
memory to begin in, CUDA where another process has the device, Metal where another's fault was this one's end or an
application is in the background."""


class Bench(Protocol):
    """Runs candidates of one problem. Every method may raise what MLX raises."""

    def verify(self, candidate: Candidate) -> Verdict:
        """Run a candidate for the first time and compare its result with the reference."""
        ...

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        """Seconds of one convolution, the mean of so many one after another."""
        ...

    def verify_last(self, candidate: Candidate) -> Verdict:
        """Compare the result that was timed last with the reference."""
        ...

    def peak_bytes(self, candidate: Candidate) -> int:
        """Peak of the device's memory during one more run, its input, weight and output included."""
        ...

    def alive(self) -> bool:
        """Whether the device still answers rightly, and what candidates compute with is what it was."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of MLX says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def is_momentary(error: BaseException | str) -> bool:
    """Whether an error, or what was written down of one by `in_words`, tells of the moment and nothing of what ran:
    memory that others held, or a device that took no work.
    """
    text = (error if isinstance(error, str) else in_words(error)).lower()
    if NEVER_ENOUGH in text:
        return False
    return isinstance(error, MemoryError) or any(words in text for words in (*_OUT_OF_MEMORY, *_UNAVAILABLE))


def in_words(error: BaseException) -> str:
    """An error in one line, with its kind, since not every one has a text."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass
class _Entry:
    run: Convolution
    peak_bytes: int | None = None
    last: mx.array | Verdict | None = None
    """The last result that was timed; its verdict where it could not be kept."""


class DeviceBench:
    """A bench on a real device.

    Beside the operands, and the output of the run that is under way, what it holds takes `memory_bytes` at most:
    results that are yet to be checked, the scaled operand of float16's second run, and what making the operands takes.
    Where that is too little, results are checked at once, the weight is scaled rather than the input, or neither.

    Args:
        problem: The problem.
        device: Where to run.
        clock: What time is read from. Default: `time.perf_counter`.
        seed: Of the operands.
        memory_bytes: Bytes that its own arrays may take. Default: any number.
        peaks: Whether the first run of each candidate measures its peak as well, which resets MLX's counter of it.

    Attributes:
        run_s: Seconds that candidates have run in all, their first runs included.

    Raises:
        RuntimeError: what MLX raises when the operands do not fit.
    """

    def __init__(
        self,
        problem: Problem,
        device: mx.Device,
        *,
        clock: Clock = time.perf_counter,
        seed: int = 0,
        memory_bytes: float = math.inf,
        peaks: bool = False,
    ) -> None:
        self._problem = problem
        self._memory_bytes = memory_bytes
        self._peaks = peaks
        self._clock = clock
        self._stream = timing_stream(device)
        self._entries: dict[Candidate, _Entry] = {}
        self.run_s = 0.0
        mx.synchronize(mx.default_stream(device))  # what the caller has under way is not to be timed
        with mx.stream(self._stream):
            self._first, self._second = make_operands(problem, seed, memory_bytes)
            self._reference = Reference(problem, self._first, self._second)
            self._sums = self._checksums()
            mx.synchronize(self._stream)

    def verify(self, candidate: Candidate) -> Verdict:
        """Run a candidate for the first time, under float16 once more near the top of its range.

        Raises:
            RuntimeError: what MLX raises, or that the candidate wrote over its operands: past some 10^9 elements
                kernels of cuDNN were seen to, and whatever ran after them was wrong.
        """
        verdict = self._verify(candidate)
        with mx.stream(self._stream):
            if self._checksums() != self._sums:
                msg = "it wrote over its operands"
                raise RuntimeError(msg)
        return verdict

    def _verify(self, candidate: Candidate) -> Verdict:
        entry = self._entries[candidate] = _Entry(candidate.build(self._problem))
        with mx.stream(self._stream):
            others = self._watch_memory() if self._peaks else 0
            start = self._clock()
            output = entry.run(self._first, self._second)
            misfit = self._misfit(output)
            if misfit:
                return Verdict(math.inf, misfit, 0.0)
            mx.eval(output)
            self.run_s += self._clock() - start
            if self._peaks:
                entry.peak_bytes = mx.get_peak_memory() - others
            verdict = self._reference.check(output)
            scale = half_scale(verdict.peak) if self._problem.dtype == "float16" else 1.0
            if verdict.wrong or scale == 1.0:
                return verdict
            del output
            scaled = self._scaled(scale)
            if scaled is None:
                return verdict
            start = self._clock()
            output = entry.run(*scaled)
            mx.eval(output)
            self.run_s += self._clock() - start
            large = self._check(output, scale)
        wrong = large.wrong and f"near float16's range, {large.wrong}"
        return Verdict(max(verdict.error, large.error), wrong, verdict.peak)

    def _scaled(self, scale: float) -> tuple[mx.array, mx.array] | None:
        """Operands whose output is so much larger: by the input if there is room for a copy, else by the weight."""
        if self._has_room_for(self._first) and self._problem.addressable:
            return self._first * scale, self._second
        if self._has_room_for(self._second):
            return self._first, self._second * scale
        return None

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        """Seconds of one convolution, building its graph included."""
        entry = self._entries[candidate]
        entry.last = None  # its buffer may be used again, as between the layers of a network
        run, first, second = entry.run, self._first, self._second
        with mx.stream(self._stream):
            mx.synchronize(self._stream)
            start = self._clock()
            output = run(first, second)
            for _ in range(repetitions - 1):
                if second.size <= first.size:
                    second = _linked(second, output)
                else:
                    first = _linked(first, output)
                output = run(first, second)
            mx.eval(output)
            mx.synchronize(self._stream)
            elapsed = self._clock() - start
            self.run_s += elapsed
            entry.last = output if self._has_room_for(output) else self._check(output)
        return max(elapsed / repetitions, RESOLUTION_S)

    def _has_room_for(self, one_more: mx.array) -> bool:
        """Whether an array of that size can be held beside the results that are yet to be checked."""
        kept = sum(entry.last.nbytes for entry in self._entries.values() if isinstance(entry.last, mx.array))
        return kept + one_more.nbytes <= self._memory_bytes

    def verify_last(self, candidate: Candidate) -> Verdict:
        """Compare the result that was timed last with the reference, and let go of it."""
        entry = self._entries[candidate]
        last, entry.last = entry.last, None
        if last is None:
            msg = f"{candidate.name} has not been timed"
            raise ValueError(msg)
        if isinstance(last, Verdict):
            return last
        with mx.stream(self._stream):
            return self._check(last)

    def _check(self, output: mx.array, scale: float = 1.0) -> Verdict:
        misfit = self._misfit(output)
        return Verdict(math.inf, misfit, 0.0) if misfit else self._reference.check(output, scale)

    def _misfit(self, output: object) -> str:
        """What a result is that no value of it need be looked at; empty where it is an array such as it must be."""
        if not isinstance(output, mx.array):
            return f"the result is a {type(output).__name__}, and no array"
        if output.shape != self._problem.result_shape:
            return f"the result has shape {output.shape}"
        if output.dtype != self._second.dtype:
            return f"the result has dtype {str(output.dtype).removeprefix('mlx.core.')}"
        return ""

    def peak_bytes(self, candidate: Candidate) -> int:
        """Peak of MLX's memory during a run, its input, weight and output included.

        That of the first run where it was measured, else of one more, which resets MLX's counter.
        """
        entry = self._entries[candidate]
        if entry.peak_bytes is not None:
            return entry.peak_bytes
        entry.last = None
        with mx.stream(self._stream):
            others = self._watch_memory()
            start = self._clock()
            mx.eval(entry.run(self._first, self._second))
            mx.synchronize(self._stream)
            self.run_s += self._clock() - start
            return mx.get_peak_memory() - others

    def _checksums(self) -> list[object]:
        """Sums of the bits of both operands: one pass, and no copy."""
        sums = [
            mx.sum(_bits(a[block])) for a in (self._first, self._second) for block in blocks_of(a.shape, MAX_ELEMENTS)
        ]
        mx.eval(sums)
        return [total.item() for total in sums]

    def _watch_memory(self) -> int:
        """Begin to watch the peak of memory; the bytes that are there now beside the operands.

        MLX's cache stays: a buffer that is used again is larger than what was asked for by two pages at most.
        """
        mx.synchronize(self._stream)
        mx.reset_peak_memory()
        return mx.get_active_memory() - self._first.nbytes - self._second.nbytes

    def alive(self) -> bool:
        """Whether a small matrix product still comes out right, and the operands are what they were."""
        try:
            with mx.stream(self._stream):
                right = mx.all(mx.matmul(mx.ones((32, 32)), mx.ones((32, 32))) == 32).item()
                return bool(right) and self._checksums() == self._sums
        except (RuntimeError, ValueError):
            return False


def _bits(array: mx.array) -> mx.array:
    """The bits of an array's elements, as whole numbers."""
    return mx.view(array, mx.uint16 if array.itemsize == 2 else mx.uint32)


def _linked(operand: mx.array, output: mx.array) -> mx.array:
    """The same operand, which however cannot be read before the output is there.

    One pass over it, which every candidate pays. (Writing one element through `at` is a pass as well, and compiles a
    kernel first, which takes five seconds on CUDA.)
    """
    return operand + output[-1, -1, -1, -1, -1] * 0


def timing_stream(device: mx.Device) -> mx.ThreadLocalStream:
    """The stream of this thread that times are taken on; made once for a device."""
    key = repr(device)
    if key not in _streams:
        _streams[key] = mx.new_thread_local_stream(device)
    return _streams[key]


_streams: dict[str, mx.ThreadLocalStream] = {}
