"""What an algorithm is: its name, where it applies, how it runs, what it costs; and a candidate, which may run it in
chunks.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from autoconv._backend import mx
from autoconv.algorithms import _chunks
from autoconv.algorithms._adjoint import adjoint, adjoint_convolution
from autoconv.algorithms._calls import Call, Calls
from autoconv.algorithms._chunked import chunked, chunked_weight_gradient
from autoconv.problem import Kind, Problem

Parameters: TypeAlias = Mapping[str, str | int]


class Convolution(Protocol):
    """A convolution or one of its gradients ready to run: lazy, built of public MLX operations alone."""

    def __call__(self, first: mx.array, second: mx.array, /) -> mx.array:
        """`(N, OD, OH, OW, C_out)` from `(N, D, H, W, C_in)` and `(C_out, KD, KH, KW, C_in / groups)`; for a gradient
        the problem's `result_shape` from its `operand_shapes`.

        Both have the problem's shape and dtype; the operations go to the default stream.
        """
        ...


@dataclass(frozen=True)
class InTwoSteps:
    """A convolution whose work on the weight alone can be done beforehand, for a weight that does not change.

    Attributes:
        derive: What is made of the weight.
        apply: The convolution of an input with that.
    """

    derive: Callable[[mx.array], tuple[mx.array, ...]]
    apply: Callable[[mx.array, Sequence[mx.array]], mx.array]

    def __call__(self, input: mx.array, weight: mx.array, /) -> mx.array:
        """Both steps."""
        return self.apply(input, self.derive(weight))


@dataclass(frozen=True)
class Cost:
    """What a candidate needs, by counting.

    Attributes:
        flops: Floating-point operations, a multiply-add counted as two.
        bytes: Bytes that it reads and writes in all, intermediate arrays included.
        workspace_bytes: Most bytes alive at a time beyond input, weight and output.
    """

    flops: int
    bytes: int
    workspace_bytes: int


def _everywhere(_problem: Problem, _backend: str) -> Iterable[Parameters]:
    return ({},)


@dataclass(frozen=True)
class Algorithm:
    """A way to compute a convolution, its weight gradient, or both.

    One that computes convolutions computes input gradients as well, without knowing it: an input gradient is a
    convolution of the cotangent (see `_adjoint`), which is handed to it as any other.

    Attributes:
        name: What records call it.
        version: Rises whenever its result or its speed may change.
        order: Its place where times tie; native is 0.
        build: `build(problem, **parameters)` is the convolution ready to run.
        cost: `cost(problem, backend, **parameters)` is what it needs.
        parameters: `parameters(problem, backend)` are those worth trying; none where it does not apply. The names
            `clips`, `frames` and `rows` are taken: every algorithm can be run in chunks, which are no affair of its
            own.
        kinds: What it computes, of `Kind.FORWARD` and `Kind.WEIGHT_GRADIENT`; it meets no problem of another kind.
        one_call: Whether it is one 3D convolution of MLX's, with arguments of its own perhaps.
        calls: `calls(problem, backend, **parameters)` is what it asks of MLX. Default: it does not say.
    """

    name: str
    version: int
    order: int
    build: Callable[..., Convolution]
    cost: Callable[..., Cost]
    parameters: Callable[[Problem, str], Iterable[Parameters]] = _everywhere
    kinds: frozenset[Kind] = frozenset({Kind.FORWARD})
    one_call: bool = False
    calls: Callable[..., Calls] | None = None


@dataclass(frozen=True)
class Candidate:
    """An algorithm with its parameters.

    Attributes:
        algorithm: The algorithm.
        items: The parameters' names and values, sorted by name.
    """

    algorithm: Algorithm
    items: tuple[tuple[str, str | int], ...] = ()
    _latest: tuple[Problem, str, Cost] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def parameters(self) -> str:
        """The parameters as records write them: `sum=float32`, or nothing."""
        return ",".join(f"{name}={value}" for name, value in self.items)

    @property
    def name(self) -> str:
        """`kd_decomposition(sum=float32)`, or `native` where there are no parameters."""
        return f"{self.algorithm.name}({self.parameters})" if self.items else self.algorithm.name

    @property
    def chunks(self) -> dict[str, int]:
        """The most clips, output frames and rows of a chunk; empty where the candidate computes all at once."""
        return {name: int(value) for name, value in self.items if name in _chunks.PARAMETERS}

    @property
    def _own(self) -> dict[str, Any]:
        return {name: value for name, value in self.items if name not in _chunks.PARAMETERS}

    def build(self, problem: Problem) -> Convolution:
        """The convolution ready to run; every size is worked out here, so that a call only adds operations."""
        if problem.kind is Kind.INPUT_GRADIENT:
            return adjoint_convolution(problem, self.build)
        build = functools.partial(self.algorithm.build, **self._own)
        if not self.chunks:
            found: Convolution = build(problem)
            return found
        if problem.kind is Kind.WEIGHT_GRADIENT:
            return chunked_weight_gradient(problem, build, **self.chunks)
        return chunked(problem, build, **self.chunks, one_call=self.algorithm.one_call)

    def cost(self, problem: Problem, backend: str) -> Cost:
        """What it needs on a backend.

        A chunk also takes its result, until that is written into the output, and a copy of its input: a slice is not
        contiguous where there is a batch or it is one of rows, and is copied inside a trace. One of a weight gradient
        takes copies of both operands, its result, and the sum so far.

        The latest answer is kept: who looks for what fits the memory asks, and then who compares what was found. It is
        1 to 13 us to count, 0.3 us to look at.
        """
        if problem.kind is Kind.INPUT_GRADIENT:
            return self._cost_of_input_gradient(problem, backend)
        latest = self._latest
        if latest is not None and latest[0] is problem and latest[1] == backend:
            return latest[2]
        found = self._counted(problem, backend)
        object.__setattr__(self, "_latest", (problem, backend, found))
        return found

    def _counted(self, problem: Problem, backend: str) -> Cost:
        chunks = self.chunks
        if not chunks:
            found: Cost = self.algorithm.cost(problem, backend, **dict(self.items))
            return found
        flops, moved, workspace = 0, problem.result_bytes, 0
        own = self._own
        for part, count in _chunks.counted(problem, **chunks):
            cost = self.algorithm.cost(part, backend, **own)
            flops += count * cost.flops
            moved += count * (cost.bytes + 2 * chunk_bytes(part, Cost(0, 0, 0)))
            workspace = max(workspace, chunk_bytes(part, cost))
        return Cost(flops, moved, workspace)

    def calls(self, problem: Problem, backend: str) -> tuple[tuple[Call, int], ...]:
        """What it asks of MLX on a backend, and how many of each; nothing where it does not say."""
        if problem.kind is Kind.INPUT_GRADIENT:
            of = adjoint(problem)
            return self.calls(of.problem, backend) if of else ()
        if self.algorithm.calls is None:
            return ()
        if not self.chunks:
            return tuple(self.algorithm.calls(problem, backend, **self._own))
        found: Counter[Call] = Counter()
        for part, count in _chunks.counted(problem, **self.chunks):
            for call, times in self.algorithm.calls(part, backend, **self._own):
                found[call] += count * times
        return tuple(found.items())

    def _cost_of_input_gradient(self, problem: Problem, backend: str) -> Cost:
        """That of the convolution of the cotangent, and of transposing the weight.

        The zeros that a stride leaves between the cotangent's elements in H and W are not counted as work: MLX's
        kernels can step over them.
        """
        found = adjoint(problem)
        if found is None:
            return Cost(0, problem.result_bytes, 0)
        cost, apart = self.cost(found.problem, backend), problem.stride[1] * problem.stride[2]
        copy = found.problem.input_bytes if found.cuts else 0
        return Cost(
            cost.flops // apart,
            cost.bytes + 2 * problem.weight_bytes + 2 * copy,
            cost.workspace_bytes + problem.weight_bytes + copy,
        )


def chunk_bytes(part: Problem, cost: Cost) -> int:
    """Most bytes alive at a time while one chunk is computed, beyond the whole's input, weight and output."""
    result = 0
    if part.kind is Kind.WEIGHT_GRADIENT:
        # What is added, in 16 bits a float32 copy of it and the sum as well, and the sum before it.
        result = part.weight_bytes * (6 if part.item_bytes == 2 else 2)
    return cost.workspace_bytes + part.output_bytes + part.input_bytes + result
