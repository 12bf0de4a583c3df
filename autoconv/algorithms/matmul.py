"""One matrix product, or one for each depth tap, where no position is seen twice or no frame's neighbours are.

Three kinds of problems: 1x1x1 kernels; (KD, 1, 1) kernels, over the stacked frames of all taps or as a sum over them;
and kernels that lie side by side, as patch embeddings have them, where a patch is a row.

Parameters:
    taps: For (KD, 1, 1), `stack` or `sum`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from autoconv._backend import mx
from autoconv.algorithms._algorithm import Algorithm, Convolution, Cost, Parameters
from autoconv.algorithms._calls import Calls, Product
from autoconv.algorithms._depth import flat_matmul, flat_product, flipped, is_pointwise
from autoconv.algorithms.depth_concat import calls_concatenated, concatenated, cost_concatenated
from autoconv.algorithms.depth_concat import fits as stack_fits
from autoconv.algorithms.kd_decomposition import calls_decomposed, cost_decomposed, decomposed
from autoconv.problem import Problem


def _is_patches(problem: Problem) -> bool:
    """Whether the kernel's places lie side by side and cover the input, but for what is left at its ends."""
    return (
        problem.groups == 1
        and problem.stride == problem.weight_shape[1:4]
        and problem.dilation == problem.input_dilation == (1, 1, 1)
        and problem.padding_low == problem.padding_high == (0, 0, 0)
    )


def _is_one_patch(problem: Problem) -> bool:
    """Whether the kernel is as large as the input, whatever the stride."""
    return (
        problem.groups == 1
        and problem.input_shape[1:4] == problem.weight_shape[1:4]
        and problem.input_dilation == (1, 1, 1)
        and problem.padding_low == problem.padding_high == (0, 0, 0)
    )


def _parameters(problem: Problem, _backend: str) -> Iterable[Parameters]:
    if not problem.addressable:
        return ()
    if _is_patches(problem) or _is_one_patch(problem):
        return ({},)
    if not is_pointwise(problem):
        return ()
    if problem.weight_shape[1] == 1:
        return ({},)
    return ({"taps": "sum"}, {"taps": "stack"}) if stack_fits(problem, "split") else ({"taps": "sum"},)


def _build(problem: Problem, taps: str = "sum") -> Convolution:
    if _is_patches(problem) or _is_one_patch(problem):
        return _patches(problem)
    if taps == "stack":
        return concatenated(problem, flat_matmul(problem))
    return decomposed(problem, flat_matmul(problem), wide=True)


def _patches(problem: Problem) -> Convolution:
    orient = flipped(problem)
    kernel, outputs = problem.weight_shape[1:4], problem.output_shape[1:4]
    seen = [slice(k * n) for k, n in zip(kernel, outputs, strict=True)]

    def run(input: mx.array, weight: mx.array, /) -> mx.array:
        cut = input[:, seen[0], seen[1], seen[2]]
        for axis in (3, 2, 1):  # (N, OD, KD, OH, KH, OW, KW, C)
            cut = mx.unflatten(cut, axis, (outputs[axis - 1], kernel[axis - 1]))
        rows = mx.flatten(mx.transpose(cut, (0, 1, 3, 5, 2, 4, 6, 7)), 4)
        product = mx.flatten(rows, 0, 3) @ mx.flatten(orient(weight), 1).T
        return mx.unflatten(product, 0, (input.shape[0], *outputs))

    return run


def _cost(problem: Problem, _backend: str, taps: str = "sum") -> Cost:
    def no_workspace(_images: int, _channels: int) -> int:
        return 0

    if _is_patches(problem) or _is_one_patch(problem):
        copied = problem.input_bytes if _is_copied(problem) else 0
        return Cost(problem.flops, problem.bytes + 2 * copied, copied)
    if taps == "stack":
        cost = cost_concatenated(problem, no_workspace)
    else:
        cost = cost_decomposed(problem, no_workspace, wide=True)
    if problem.stride[1:] == (1, 1):
        return cost
    strided = problem.input_bytes // math.prod(problem.input_shape[2:4]) * math.prod(problem.output_shape[2:4])
    return Cost(cost.flops, cost.bytes + 2 * strided, cost.workspace_bytes + strided)


def _is_copied(problem: Problem) -> bool:
    """Whether the patches do not lie in memory as they are."""
    sizes = zip(problem.input_shape[1:4], problem.weight_shape[1:4], problem.output_shape[1:4], strict=True)
    whole = all(size == kernel * outputs for size, kernel, outputs in sizes)
    return not whole or (problem.output_shape[2:4] != (1, 1) and problem.weight_shape[1:4] != (1, 1, 1))


def _calls(problem: Problem, _backend: str, taps: str = "sum") -> Calls:
    if _is_patches(problem) or _is_one_patch(problem):
        outputs, patch = problem.weight_shape[0], math.prod(problem.weight_shape[1:])
        return ((Product(math.prod(problem.output_shape[:4]), outputs, patch), 1),)
    return (calls_concatenated if taps == "stack" else calls_decomposed)(problem, flat_product)


ALGORITHM = Algorithm(name="matmul", version=1, order=5, build=_build, cost=_cost, parameters=_parameters, calls=_calls)
