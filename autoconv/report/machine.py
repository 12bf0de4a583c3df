"""What the doctor says of the machine: MLX and its fixed rule, the BLAS, memory and patching."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping

from autoconv import environment, settings
from autoconv._backend import ORIGINAL, mx
from autoconv.algorithms._mlx import MAX_DECOMPOSED_DEPTH
from autoconv.environment import Environment
from autoconv.errors import SettingsError
from autoconv.grounds import memory_bytes
from autoconv.report.explanation import finite
from autoconv.report.finding import Finding
from autoconv.settings import Settings

SLOW_BLAS_GFLOPS = 20.0
"""A float32 matrix product slower than this on a CPU is the mark of a reference BLAS."""

FIXED_RULE_SINCE = (0, 32, 1)
"""The version of MLX whose Metal backend first chose between two 3D convolutions."""

LOW_MEMORY_SHARE = 0.15
"""Of the memory: with less of it free, many problems would be left for later."""

_FASTER = (
    ", and OpenBLAS was measured to be tens of times as fast: install it (on Debian and Ubuntu apt install "
    "libopenblas0) and begin commands with LD_PRELOAD=libopenblas.so.0, or build MLX from source where libopenblas-dev "
    "and liblapacke-dev are installed"
)
"""How MLX gets another BLAS than its wheel's on Linux: the first library that defines the functions is taken."""

_PROBE_SIZE = 256
"""Rows of the matrices whose product tells of a BLAS: 20 ms of a reference one, 0.3 ms of a fast one."""


def mlx(where: Environment) -> Iterator[Finding]:
    """MLX, and what its fixed rule would do."""
    yield Finding("MLX", f"{where.identity['mlx']} on {where}")
    yield Finding("MLX's fixed rule", fixed_rule(where.backend, str(where.identity["mlx"])))


def fixed_rule(backend: str, version: str) -> str:
    """What MLX itself would do with a 3D convolution, in words, on a backend and in a version."""
    if backend != "metal":
        return f"none on {backend}: native is always the 3D convolution"
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < FIXED_RULE_SINCE:
        since = ".".join(map(str, FIXED_RULE_SINCE))
        return f"none in {version}: native is always the 3D convolution; Metal's came with {since}"
    return (
        f"a sum of 2D convolutions where N == 1 and KD <= {MAX_DECOMPOSED_DEPTH}, with no depth padding in front, "
        "depth stride and dilation 1, and channels in steps of 16; else the 3D kernel"
    )


def blas(where: Environment, known_gflops: float | None, probe: Callable[[], float]) -> Iterator[Finding]:
    """The BLAS that MLX's CPU backend calls, and its rate.

    Args:
        where: The environment.
        known_gflops: What the first run found out; None where there was none.
        probe: Measures it in that case.
    """
    if where.backend != "cpu":
        return
    rate, when = (probe(), "now") if known_gflops is None else (known_gflops, "in the first run")
    name, threads = where.identity.get("blas", "unknown"), where.identity.get("blas_threads", 1)
    advice = ""
    if rate < SLOW_BLAS_GFLOPS:
        advice = f"{name} is a slow BLAS" + (_FASTER if platform.system() == "Linux" else "")
    found = f"{name}, threads {threads}: {rate:.3g} GFLOP/s in float32, measured {when}"
    yield Finding("BLAS", found, advice, {"gflops": rate, "threads": threads})


def blas_gflops() -> float:
    """The rate of a float32 matrix product of MLX's CPU backend, the better of two; takes some 50 ms at most."""
    with mx.stream(mx.cpu):
        a = mx.random.uniform(-1, 1, (_PROBE_SIZE, _PROBE_SIZE), key=mx.random.key(0))
        mx.eval(a)
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            mx.eval(a @ a)
            best = min(best, time.perf_counter() - start)
    return 2 * _PROBE_SIZE**3 / best / 1e9


def memory(chosen: Settings, where: Environment) -> Finding:
    """The device's memory, what of it is free, and what a convolution may take."""
    whose = "recommended working set" if where.backend == "metal" else "memory"
    free, limit = environment.free_bytes(where), memory_bytes(chosen, where)
    origin = "60% of it" if chosen.memory_limit is None else "as set"
    found = (
        f"{where.memory_bytes / 1e9:.1f} GB {whose}, {free / 1e9:.1f} GB free for timing now; a convolution may take "
        f"{limit / 1e9:.2f} GB beyond its operands ({origin})"
    )
    low = free < LOW_MEMORY_SHARE * where.memory_bytes
    advice = "close other programs before a sweep: what does not fit is left for later" if low else ""
    values = {"bytes": where.memory_bytes, "free_bytes": free, "limit_bytes": finite(limit)}
    return Finding("memory", found, advice, values)


def patched(environ: Mapping[str, str]) -> Finding:
    """Whether MLX is patched in this process, and whether `AUTOCONV_PATCH` asks for it."""
    now = "mx.conv3d is autoconv's" if getattr(mx.conv3d, ORIGINAL, None) is not None else "mx.conv3d is MLX's own"
    try:
        asked = settings.patches(environ)
    except SettingsError as error:
        return Finding("patching", f"{now}: {error}", "set AUTOCONV_PATCH to 1 or 0, or unset it")
    if not environ.get("AUTOCONV_PATCH"):
        return Finding("patching", f"{now}: AUTOCONV_PATCH is not set")
    return Finding("patching", f"{now}: AUTOCONV_PATCH asks {'for' if asked else 'against'} it")
