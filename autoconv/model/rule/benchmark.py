"""A benchmark of MLX's two ways on Metal that imports MLX alone, for whoever is to judge a rule."""

from __future__ import annotations

from collections.abc import Iterator

from autoconv.model.rule.distilled import Rule
from autoconv.model.rule.tree import leaf_of, leaves_of
from autoconv.problem import Problem

EACH_LEAF = 3
"""Layers of each leaf: the least, the median and the largest by FLOPs."""

MOST_GFLOP = 2000
"""Larger ones are left out, so that it takes minutes on a small Mac."""

_SOURCE = '''"""Times MLX's two ways to compute a 3D convolution on Metal, on a rule's layers. Needs MLX alone.

MLX's fixed rule decomposes these layers along depth. Its 3D implicit GEMM is reached by an argument that fails the
rule and changes no work: a depth stride of 2 where there is one output frame, a depth dilation of 2 where KD is 1, else
one frame of low depth padding in place of the input's first frame.
"""

import statistics
import sys
import time

import mlx.core as mx

# (input, weight, stride, padding low, padding high, dilation, flip, dtype, what the rule takes)
LAYERS = [
{layers}
]
ROUNDS = 7


def decomposed(x, w, stride, low, high, dilation, flip):
    return mx.conv_general(x, w, stride, (low, high), dilation, flip=flip)


def implicit(x, w, stride, low, high, dilation, flip):
    if x.shape[1] == w.shape[1]:
        return mx.conv_general(x, w, [2, *stride[1:]], (low, high), dilation, flip=flip)
    if w.shape[1] == 1:
        return mx.conv_general(x, w, stride, (low, high), [2, *dilation[1:]], flip=flip)
    return mx.conv_general(x, w, stride, ([1, *low[1:]], high), dilation, flip=flip)


def both(layer):
    """The two ways ready to run: they do the same work, and where a frame is replaced its output differs."""
    shape, weight, *arguments, dtype, _ = layer
    dtype = getattr(mx, dtype)
    x = mx.random.normal(shape).astype(dtype)
    w = (mx.random.normal(weight) / (weight[1] * weight[2] * weight[3] * weight[4]) ** 0.5).astype(dtype)
    padded = shape[1] > weight[1] > 1
    rest = mx.contiguous(x[:, 1:]) if padded else x
    mx.eval(x, w, rest)
    return lambda: decomposed(x, w, *arguments), lambda: implicit(rest, w, *arguments), padded


def difference(first, second, padded):
    """Relative L2 distance of what both compute."""
    a, b = first().astype(mx.float32), second().astype(mx.float32)
    if padded:
        a, b = a[:, 1:], b[:, 1:]
    return (mx.linalg.norm((a - b).flatten()) / mx.linalg.norm(a.flatten())).item()


def seconds(run):
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(run())
    mx.synchronize()
    return time.perf_counter() - start


def main():
    if not mx.metal.is_available():
        sys.exit("this needs a Mac: both ways are MLX's on Metal")
    print(mx.__version__, mx.device_info())
    now = ruled = best = 0.0
    for layer in LAYERS:
        first, second, padded = both(layer)
        off = difference(first, second, padded)
        for run in (first, second):
            seconds(run)
        times = [(seconds(first), seconds(second)) for _ in range(ROUNDS)]
        a, b = (statistics.median(column) for column in zip(*times))
        now, best, ruled = now + a, best + min(a, b), ruled + (a if layer[-1] == "decomposed" else b)
        print(
            f"{{layer[:2]}} {{layer[-2]}}: decomposed {{a * 1e3:.2f}} ms, implicit {{b * 1e3:.2f}} ms, "
            f"rule {{layer[-1]}}, {{'right' if (a <= b) == (layer[-1] == 'decomposed') else 'wrong'}}; "
            f"they differ by {{off:.1e}}"
        )
    print(f"in all: now {{now:.3f}} s, by the rule {{ruled:.3f}} s, the better way always {{best:.3f}} s")


if __name__ == "__main__":
    main()
'''


def benchmark_source(rule: Rule) -> str:
    """The benchmark of a rule of `metal.upstream_rule`, with layers that it was distilled from."""
    return _SOURCE.format(layers="\n".join(f"    {layer!r}," for layer in _layers(rule)))


def _layers(rule: Rule) -> Iterator[tuple[object, ...]]:
    problems = sorted({case.problem for case in rule.cases}, key=lambda problem: (problem.flops, problem.key))
    small = [problem for problem in problems if problem.flops <= MOST_GFLOP * 1e9] or problems[:1]
    for leaf in leaves_of(rule.tree):
        inside = [problem for problem in small if leaf_of(rule.tree, problem) is leaf]
        places = sorted({0, len(inside) // 2, len(inside) - 1}) if inside else []
        yield from (_layer(inside[place], leaf.choice) for place in places[:EACH_LEAF])


def _layer(problem: Problem, choice: str) -> tuple[object, ...]:
    triples = (problem.stride, problem.padding_low, problem.padding_high, problem.dilation)
    return (
        problem.input_shape,
        problem.weight_shape,
        *(list(values) for values in triples),
        problem.flip,
        problem.dtype,
        choice,
    )
