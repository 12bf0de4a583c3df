"""The source of our CUDA kernels, compiled for the CPU and run thread by thread, computes what the docstrings say.

What a GPU alone shows is in `test_gpu`.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from reference import Array

from autoconv.algorithms import _cuda

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

_PROGRAM = """
#include <cstddef>
struct Index {{ unsigned x; }};
static Index blockIdx, threadIdx = {{0}}, blockDim = {{1}};
{header}
static void kernel({parameters}) {{
  {constants}
  {source}
}}
extern "C" void run({parameters}, unsigned threads) {{
  for (unsigned i = 0; i < threads; ++i) {{ blockIdx.x = i; kernel({names}); }}
}}
"""

_numbers = itertools.count()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`mx.fast.cuda_kernel` for float32, on the CPU; operands keep the place in memory that they have."""

    def cuda_kernel(
        name: str, inputs: Sequence[str], outputs: Sequence[str], source: str, header: str
    ) -> Callable[..., list[mx.array]]:
        parameters = [f"const {'int' if n == 'sizes' else 'float'}* {n}" for n in inputs]
        parameters += [f"float* {n}" for n in outputs]

        def call(
            inputs: list[mx.array],
            template: list[tuple[str, Any]],
            grid: tuple[int, int, int],
            threadgroup: tuple[int, int, int],
            output_shapes: list[tuple[int, ...]],
            output_dtypes: list[mx.Dtype],
        ) -> list[mx.array]:
            assert grid[0] % threadgroup[0] == 0
            assert set(output_dtypes) == {mx.float32}
            constants = "using T = float; " + " ".join(
                f"constexpr {'bool' if isinstance(value, bool) else 'int'} {key} = {int(value)};"
                for key, value in template
                if key != "T"
            )
            library = tmp_path / f"{name}_{next(_numbers)}.so"
            program = _PROGRAM.format(
                header=header,
                parameters=", ".join(parameters),
                constants=constants,
                source=source,
                names=", ".join(p.split("* ")[1] for p in parameters),
            )
            command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-w", "-x", "c++", "-", "-o", str(library)]
            subprocess.run(command, input=program, text=True, check=True)
            found = [np.full(shape, np.nan, np.float32) for shape in output_shapes]
            arrays = [np.array(a) if a.dtype == mx.int32 else _view(a) for a in inputs]
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, *found)]
            ctypes.CDLL(str(library)).run(*pointers, ctypes.c_uint(grid[0]))
            return [mx.array(a) for a in found]

        return call

    def forget() -> None:
        for kernel in (_cuda._sums, _cuda._taps, _cuda._frames, _cuda._to_frames, _cuda._compiled_stack):
            kernel.cache_clear()

    monkeypatch.setattr(mx.fast, "cuda_kernel", cuda_kernel)
    forget()
    yield
    forget()


def _view(array: mx.array) -> Array:
    mx.eval(array)
    buffer: Any = array
    return np.asarray(memoryview(buffer))


def array(shape: tuple[int, ...], seed: int = 0, first: int = 0) -> mx.array:
    """Random numbers, as a view that begins `first` elements after an address that vectors begin at."""
    count = int(np.prod(shape))
    values = np.random.default_rng(seed).standard_normal(count + first).astype(np.float32)
    return mx.array(values)[first:].reshape(shape)


def near(found: mx.array, exact: Array) -> None:
    np.testing.assert_allclose(np.asarray(found), exact, rtol=1e-5, atol=1e-5)


ROWS = ((1.0, -0.5, 0.25), (0.0, 2.0, 1.0))
FIRSTS = (0, 1)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("shape", [(2, 8), (3, 5)])
def test_sums_of_arrays(shape: tuple[int, ...], first: int) -> None:
    arrays = [array(shape, seed, first * seed) for seed in range(3)]
    found = _cuda.combine(ROWS, arrays)
    for row, sum_ in zip(ROWS, found, strict=True):
        near(sum_, np.tensordot(row, np.stack([np.asarray(a) for a in arrays]), 1))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("channels", [4, 3])
def test_sums_of_taps(channels: int, first: int) -> None:
    weight = array((5, 3, 2, 1, channels), 1, first)
    for row, sum_ in zip(ROWS, _cuda.combine_taps(ROWS, weight), strict=True):
        near(sum_, np.einsum("k,okhwc->ohwc", np.array(row), np.asarray(weight)))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("first_element", FIRSTS)
@pytest.mark.parametrize(
    ("tiles", "step", "first", "width"), [(2, 2, 0, 4), (3, 2, -1, 4), (2, 3, -2, 3), (1, 1, 5, 4)]
)
def test_sums_of_frames(tiles: int, step: int, first: int, width: int, first_element: int) -> None:
    input = array((2, 6, 2, width, 2), 2, first_element)
    values = np.asarray(input)
    for row, sum_ in zip(ROWS, _cuda.combine_frames(ROWS, input, tiles, step, first), strict=True):
        exact = np.zeros((2, tiles, *values.shape[2:]))
        for tile, (tap, factor) in itertools.product(range(tiles), enumerate(row)):
            if 0 <= (frame := first + tile * step + tap) < 6:
                exact[:, tile] += factor * values[:, frame]
        near(sum_, exact.reshape(2 * tiles, *values.shape[2:]))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("frames", [4, 5, 6])
@pytest.mark.parametrize("width", [2, 3])
def test_frames_in_order(frames: int, width: int) -> None:
    arrays = [array((2 * 3, 2, width, 1), seed) for seed in range(3)]
    found = _cuda.combine_to_frames(ROWS, arrays, 2, frames)
    tiles = np.einsum("rp,pthwc->trhwc", np.array(ROWS), np.stack([np.asarray(a) for a in arrays]))
    near(found, tiles.reshape(2, 6, 2, width, 1)[:, :frames])


STACKS = [
    _cuda.Stack(3, 1, 0, 4, 1, 12),
    _cuda.Stack(3, 1, -1, 6, 1, 16),
    _cuda.Stack(2, 2, -2, 3, 2, 9),
    _cuda.Stack(4, 1, 3, 2, 1, 20),
]


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("channels", [4, 3])
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_stacks(stack: _cuda.Stack, channels: int, first: int) -> None:
    if stack.channels < stack.taps * channels:
        pytest.skip("more channels than are asked for")
    input = array((2, 6, 2, 3, channels), 3, first)
    near(_cuda._stack_on_cuda(input, stack), np.asarray(_cuda._stack_plainly(input, stack)))
