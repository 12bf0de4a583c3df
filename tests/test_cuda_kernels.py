"""The source of our CUDA kernels, compiled for the CPU and run thread by thread, computes what the docstrings say.

What a GPU alone shows is in `test_gpu`.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from reference import Array

from autoconv.algorithms import _cuda, _nvrtc

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

_DEVICE = """
#define __global__
struct Index { unsigned x; };
extern "C" { Index blockIdx; }
static const Index threadIdx = {0}, blockDim = {1};
"""

Size = tuple[int, int, int]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def _built(source: str, libraries: Path) -> Path:
    """A library with the source's kernel, which runs the thread that `blockIdx` says."""
    program = _DEVICE + source
    library = libraries / f"{hashlib.sha256(program.encode()).hexdigest()}.so"
    if not library.exists():
        command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-w", "-x", "c++", "-", "-o", str(library)]
        subprocess.run(command, input=program, text=True, check=True)
    return library


def _run(
    library: Path,
    name: str,
    inputs: list[mx.array],
    grid: Size,
    threadgroup: Size,
    output_shapes: list[tuple[int, ...]],
    output_dtypes: list[mx.Dtype],
) -> list[mx.array]:
    """Run the kernel for float32, thread by thread; operands keep the place in memory that they have."""
    assert grid[0] % threadgroup[0] == 0
    assert set(output_dtypes) == {mx.float32}
    found = [np.full(shape, np.nan, np.float32) for shape in output_shapes]
    arrays = [np.array(a) if a.dtype == mx.int32 else _view(a) for a in inputs]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, *found)]
    code = ctypes.CDLL(str(library))
    thread, kernel = ctypes.c_uint.in_dll(code, "blockIdx"), getattr(code, name)
    for thread.value in range(grid[0]):
        kernel(*pointers)
    return [mx.array(a) for a in found]


def _refused(*_arguments: Any, **_named: Any) -> Any:
    pytest.fail("the other way was taken")


@pytest.fixture
def compiled_by_ourselves(monkeypatch: pytest.MonkeyPatch, libraries: Path) -> None:
    """NVRTC, and MLX's launch of what it compiles, on the CPU."""

    def compiled(source: str, architecture: str) -> bytes:
        assert architecture == "sm_90"
        return str(_built(source, libraries)).encode()

    def precompiled_cuda_kernel(
        *, name: str, compiled_source: bytes, scalars: list[Any], ensure_row_contiguous: bool, **launch: Any
    ) -> list[mx.array]:
        assert not scalars
        assert ensure_row_contiguous
        return _run(Path(compiled_source.decode()), name, **launch)

    monkeypatch.setattr(_cuda, "_architecture", lambda: "sm_90")
    monkeypatch.setattr(_nvrtc, "compiled", compiled)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", precompiled_cuda_kernel)
    monkeypatch.setattr(mx.fast, "cuda_kernel", _refused)


@pytest.fixture
def compiled_by_mlx(monkeypatch: pytest.MonkeyPatch, libraries: Path) -> None:
    """No NVRTC, and `mx.fast.cuda_kernel` on the CPU."""

    def compiled(source: str, architecture: str) -> bytes:
        raise _nvrtc.NvrtcError("none")

    def cuda_kernel(
        name: str, inputs: Sequence[str], outputs: Sequence[str], source: str, header: str
    ) -> Callable[..., list[mx.array]]:
        parameters = [f"const {'int' if n == 'sizes' else 'float'}* {n}" for n in inputs]
        parameters += [f"float* {n}" for n in outputs]

        def call(template: list[tuple[str, Any]], **launch: Any) -> list[mx.array]:
            assert ("T", mx.float32) in template
            constants = "using T = float; " + " ".join(
                f"constexpr {'bool' if isinstance(value, bool) else 'int'} {key} = {int(value)};"
                for key, value in template
                if key != "T"
            )
            kernel = f'{header} extern "C" void {name}({", ".join(parameters)}) {{ {constants} {source} }}'
            return _run(_built(kernel, libraries), name, **launch)

        return call

    monkeypatch.setattr(_cuda, "_architecture", lambda: "sm_90")
    monkeypatch.setattr(_nvrtc, "compiled", compiled)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", _refused)
    monkeypatch.setattr(mx.fast, "cuda_kernel", cuda_kernel)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What one test compiles no other one launches."""
    _cuda._compiled.cache_clear()
    _cuda._say_once.cache_clear()
    yield
    _cuda._compiled.cache_clear()
    _cuda._say_once.cache_clear()


@pytest.fixture(params=["compiled_by_ourselves", "compiled_by_mlx"])
def on_the_cpu(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


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


@pytest.mark.usefixtures("compiled_by_ourselves")
def test_a_kernel_is_compiled_once_for_a_dtype_and_its_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    compiled = _nvrtc.compiled

    def counted(source: str, architecture: str) -> bytes:
        sources.append(source)
        return compiled(source, architecture)

    monkeypatch.setattr(_nvrtc, "compiled", counted)
    for shape in ((2, 8), (4, 4), (3, 5), (5, 3)):
        _cuda.combine(ROWS, [array(shape, seed) for seed in range(3)])
    assert len(sources) == len(set(sources)) == 2


@pytest.mark.usefixtures("compiled_by_mlx")
def test_mlx_compiles_where_nvrtc_does_not_and_the_log_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "autoconv"):
        test_sums_of_arrays((2, 8), 0)
        test_sums_of_arrays((3, 5), 0)
    assert [r.getMessage() for r in caplog.records] == ["MLX compiles our CUDA kernels, for seconds each: none"]


@pytest.mark.usefixtures("compiled_by_mlx")
def test_mlx_compiles_where_it_launches_nothing_precompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(mx.fast, "precompiled_cuda_kernel")
    monkeypatch.setattr(_nvrtc, "compiled", _refused)
    with caplog.at_level(logging.WARNING, "autoconv"):
        test_sums_of_arrays((2, 8), 0)
    assert ["no precompiled_cuda_kernel" in r.getMessage() for r in caplog.records] == [True]
