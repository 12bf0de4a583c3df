"""What a candidate may take on Metal, by the kernels that MLX takes for it: a prior, which orders and never decides.

No device of ours has a Metal GPU, so that nothing here was measured by us. The prior says which candidates to time
first. Whatever shows a number or an order of it shows `MARK` beside it.

A candidate takes the sum of

* for each kernel the longer of its FLOPs at its route's share of the matrix product's rate, and its operands and
  result at the rate of a copy;
* what MLX moves beside these (padded channels, Winograd's values, an unfolded input) and what the candidate does
  itself (copies, stacks, sums: `Cost.bytes` beyond the above), at the rate of a copy;
* the latency of kernels that wait for one another;
* an evaluation for each chunk.

So Winograd is nowhere said to be so many times faster: its product has 5.06 times fewer FLOPs (`routes` counts them,
whole tiles), and it moves its values through memory for that. The rates are the device's own ceilings where these were
probed. On all that was published the prior has the right winner, and the ratio within a factor of 1.3, if the device
that one source does not state was no larger than an M2 (`tests/test_prior.py`). What that is worth on other shapes is
not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autoconv.algorithms import Candidate
from autoconv.algorithms._adjoint import adjoint
from autoconv.algorithms._chunks import number
from autoconv.decision import NATIVE
from autoconv.model.routes import Route, routed
from autoconv.problem import Kind, Problem

MARK = "a prior from MLX's routes, not measured"
"""What stands beside any number or order that comes from here."""

CEILINGS: Mapping[str, float] = {
    "matmul_gflops": 2400.0,
    "copy_gb_per_s": 90.0,
    "launch_us": 5.0,
}
"""Those of an M2 with eight GPU cores, where the device's own are not known: the smallest with a published time.

A matrix product of float32 runs at 20.5 TFLOP/s on an M2 Ultra of 60 or 76 cores (MLX pull request 424), which is 2.2
to 2.7 on eight. Its memory gives 100 GB/s (Apple's specification), of which a kernel that streams gets nine tenths
(183 of 200 on an M1 Pro, 105 of 120 on an M4: sonos/tract pull request 2638). The latency is a guess: no figure was
found but that a 7x7x960 depthwise convolution takes 30 us with its command buffer (tract pull request 2550)."""

IMPLICIT = 0.8
"""Share of the matrix product's rate that convolutions reach, in 3D as in 2D: the two kernels are tiled alike, and on
one M2 they ran at 1.69 TFLOP/s (3D, 32 to 64 channels) and 1.64 (2D, 64 to 128; both MetalBench at 72c6aec, conv3d and
conv2d). That is 0.7 of `CEILINGS`, and the 12.8 TFLOP/s of the 3D layer on an M3 Max (MLX pull request 3785) are 0.9
of what its 40 cores can do (14.1, by Apple's clock)."""

GENERAL = IMPLICIT / 1.8
"""Of the implicit GEMM for any channels: padding them and taking the other was 1.8 times as fast in the median of 220
shapes (MLX pull request 3904), and on six layers of Inception the other was 1.2 to 4.5 times (sonos/tract pull request
2551)."""

DEPTHWISE = 0.05
"""It uses no matrix units: 10.8 MFLOP in 0.1 ms, which other things take as well, on an M1 Pro (sonos/tract pull
request 2550)."""

SHARES: Mapping[Route, float] = {
    Route.IMPLICIT_GEMM_3D: IMPLICIT,
    Route.IMPLICIT_GEMM_2D: IMPLICIT,
    # 64 products of tall matrices. At this share the layer of pull request 3785 takes what it took, with its copies.
    Route.WINOGRAD_2D: IMPLICIT,
    Route.GENERAL_GEMM_2D: GENERAL,
    Route.DEPTHWISE_2D: DEPTHWISE,
    Route.KD_DECOMPOSITION: 1.0,  # which itself only adds
    Route.EXPLICIT_GEMM: 1.0,
    Route.MATMUL: 1.0,
}
"""Share of the matrix product's rate that each route reaches."""

PRODUCTS = frozenset({Route.MATMUL, Route.EXPLICIT_GEMM, Route.WINOGRAD_2D})
"""Routes whose work is MLX's matrix product."""

WITHOUT_ACCELERATORS = 45.0
"""Most FLOPs that convolutions have to a byte of a copy. From M5 on the matrix product runs on neural accelerators,
which no implicit GEMM uses (MLX pull request 4214: up to 3.75 times slower than unfolding for them), but Winograd's
product does (4242). GPUs before have 23 (M1 Pro, 14 cores) to 42 (M3 Pro) by Apple's specifications."""

AROUND = 2
"""Kernels in a row around a candidate's calls, where it is not MLX's own: what is read is made ready, what comes out is
put together."""

EVALUATION_US = 200.0
"""What an evaluation takes by itself: 0.2 to 0.5 ms. The shortest published times are hardly more (0.27 ms, MLX pull
request 3709)."""


def prior_us(
    problem: Problem,
    candidates: Sequence[Candidate],
    ceilings: Mapping[str, float] | None = None,
    working_set: float = math.inf,
) -> list[float]:
    """Microseconds that each candidate may take on Metal, by `MARK`; infinite for what MLX refuses.

    Only their order and ratios mean anything, and those little: see above.

    Args:
        problem: The problem.
        candidates: Those that apply to it on Metal.
        ceilings: The device's, as its qualification found them; what is missing is taken from `CEILINGS`.
        working_set: The device's recommended working set in bytes. Default: any scratch fits.
    """
    known = ceilings or {}
    product = (known.get(f"matmul_{problem.dtype}_gflops") or CEILINGS["matmul_gflops"]) * 1e3  # FLOPs a microsecond
    copy = (known.get("copy_gb_per_s") or CEILINGS["copy_gb_per_s"]) * 1e3  # bytes a microsecond
    latency_us = known.get("launch_us") or CEILINGS["launch_us"]
    convolution = min(product, WITHOUT_ACCELERATORS * copy)
    flops = {route: share * (product if route in PRODUCTS else convolution) for route, share in SHARES.items()}
    return [_candidate_us(problem, each, working_set, flops, copy, latency_us) for each in candidates]


def ordered(
    problem: Problem,
    candidates: Sequence[Candidate],
    ceilings: Mapping[str, float] | None = None,
    working_set: float = math.inf,
) -> list[Candidate]:
    """The same candidates, those of native first and then the most promising by `prior_us`.

    Where two are as promising they stay as they stood.
    """
    expected = prior_us(problem, candidates, ceilings, working_set)
    places = sorted(range(len(candidates)), key=lambda i: (candidates[i].algorithm.name != NATIVE, expected[i]))
    first = [i for i, candidate in enumerate(candidates) if candidate.algorithm.name == NATIVE]
    return [candidates[i] for i in (*first, *places[len(first) :])]


def _candidate_us(
    problem: Problem,
    candidate: Candidate,
    working_set: float,
    flops: Mapping[Route, float],
    copy: float,
    latency_us: float,
) -> float:
    """One candidate's, by FLOPs a microsecond of each route, bytes copied a microsecond, and a kernel's latency."""
    cost, found = candidate.cost(problem, "metal"), routed(problem, candidate, working_set)
    if found is None:  # an algorithm that does not say what it asks
        return max(cost.flops / flops[Route.IMPLICIT_GEMM_3D], cost.bytes / copy) + latency_us
    if found.route is Route.REFUSED:
        return math.inf
    busy, waits, counted = 0.0, 0, 0
    for launch in found.launches:
        each = max(launch.flops / flops[launch.route], launch.bytes / copy) + launch.scratch_bytes / copy
        busy += launch.count * each
        counted += launch.count * launch.bytes
        waits = max(waits, launch.steps)
    busy += max(0, cost.bytes - counted) / copy
    waits += 0 if candidate.algorithm.one_call else AROUND
    chunks = candidate.chunks
    if not chunks:
        return busy + waits * latency_us
    of = adjoint(problem) if problem.kind is Kind.INPUT_GRADIENT else None
    return busy + number(of.problem if of else problem, **chunks) * (waits * latency_us + EVALUATION_US)
