"""NVRTC through `ctypes`: what it compiles, what it says when it fails; and how our bfloat16 rounds.

What NVRTC itself must be there for is skipped without it: `pip install nvidia-cuda-nvrtc` needs no GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from reference import nearest_bfloat16

from autoconv.algorithms import _cook_toom, _cuda, _nvrtc
from autoconv.algorithms._cuda_source import TYPES, Kernel

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
EMPTY = 'extern "C" __global__ void nothing() {}\n'


def kernels() -> list[Kernel]:
    maps = [_cook_toom.transforms(tile, 3) for tile in (2, 4)]
    found = [_cuda._STACK, _cuda._sums(((1.0,) * 3,))]
    for m in maps:
        of_kernel, of_input, of_output = map(_cook_toom.coefficients, (m.kernel, m.input, m.output))
        found += [_cuda._taps(of_kernel), _cuda._frames(of_input), _cuda._to_frames(of_output)]
    return found


@pytest.fixture
def nvrtc() -> None:
    try:
        _nvrtc.library()
    except _nvrtc.NvrtcError as error:
        pytest.skip(f"no NVRTC: {error}")


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])  # with and without bfloat16 of the hardware
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_compiles(dtype: mx.Dtype, architecture: str) -> None:
    for kernel in kernels():
        flags = [("ALIGNED", True)] if kernel is _cuda._STACK else []
        for width in (1, _cuda.VECTOR_BYTES // dtype.size):
            binary = _nvrtc.compiled(kernel.source(dtype, (("V", width), *flags)), architecture)
            assert binary.startswith(b"\x7fELF")
            assert b"\0" + kernel.name.encode() + b"\0" in binary


@pytest.mark.usefixtures("nvrtc")
def test_a_device_newer_than_the_compiler_gets_ptx() -> None:
    binary = _nvrtc.compiled(EMPTY, "sm_999")
    assert b".entry nothing" in binary
    assert binary.endswith(b"\0")


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("architecture", ["sm_20", "gfx90a"])
def test_a_device_that_the_compiler_cannot_serve_is_named(architecture: str) -> None:
    with pytest.raises(_nvrtc.NvrtcError, match=f"sm_90.* not for {architecture}"):
        _nvrtc.compiled(EMPTY, architecture)


@pytest.mark.usefixtures("nvrtc")
def test_a_wrong_source_is_refused_with_the_compilers_words() -> None:
    with pytest.raises(
        _nvrtc.NvrtcError, match=r'nvrtcCompileProgram.*sm_90: (?s:.*)identifier "missing" is undefined'
    ):
        _nvrtc.compiled(EMPTY.replace("{}", "{ missing; }"), "sm_90")


class FakeNvrtc:
    """The functions of NVRTC, of which one fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.programs = 0
        self.options = b""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 6
            self._answer(name, arguments)
            return 0

        return call

    def nvrtcGetErrorString(self, code: int) -> bytes:
        return b"error %d" % code

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "nvrtcCreateProgram":
                self.programs += 1
            case "nvrtcDestroyProgram":
                self.programs -= 1
            case "nvrtcCompileProgram":
                self.options = arguments[2][0]
            case "nvrtcGetNumSupportedArchs":
                arguments[0]._obj.value = 3
            case "nvrtcGetSupportedArchs":
                arguments[0][:] = [75, 90, 100]
            case "nvrtcGetProgramLogSize" | "nvrtcGetCUBINSize" | "nvrtcGetPTXSize":
                arguments[1]._obj.value = 5
            case _:
                arguments[1].raw = {
                    "nvrtcGetProgramLog": b"line\0",
                    "nvrtcGetCUBIN": b"cubin",
                    "nvrtcGetPTX": b"ptx.\0",
                }[name]


@pytest.fixture(autouse=True)
def _found_anew() -> Iterator[None]:
    _nvrtc._target.cache_clear()
    yield
    _nvrtc._target.cache_clear()


def test_a_program_is_freed_once_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvrtc()
    monkeypatch.setattr(_nvrtc, "library", lambda: fake)
    assert _nvrtc.compiled(EMPTY, "sm_90") == b"cubin"
    assert fake.options == b"--gpu-architecture=sm_90"
    assert _nvrtc.compiled(EMPTY, "sm_120") == b"ptx.\0"
    assert fake.options == b"--gpu-architecture=compute_100"
    assert fake.programs == 0


FAILING = ["GetNumSupportedArchs", "GetSupportedArchs", "CreateProgram", "CompileProgram", "GetCUBINSize", "GetCUBIN"]


@pytest.mark.parametrize("failing", [f"nvrtc{name}" for name in FAILING])
def test_whatever_fails_is_named_and_no_program_is_left(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    fake = FakeNvrtc(failing)
    monkeypatch.setattr(_nvrtc, "library", lambda: fake)
    with pytest.raises(_nvrtc.NvrtcError, match=f"^{failing}: error 6") as raised:
        _nvrtc.compiled(EMPTY, "sm_90")
    assert ("line" in str(raised.value)) == (failing == "nvrtcCompileProgram")
    assert fake.programs == 0


def test_without_nvrtc_the_names_that_were_tried_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "SONAMES", ("libnvrtc.so.none", "libnvrtc.so.other"))
    with pytest.raises(_nvrtc.NvrtcError, match=r"none of libnvrtc\.so\.none, libnvrtc\.so\.other"):
        _nvrtc.library.__wrapped__()


def test_the_library_that_mlx_has_loaded_comes_first_and_packages_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, name in (("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_nvrtc, "_ALREADY_LOADED", 4)
    found = list(_nvrtc._places())
    assert found[:4] == [(name, mode) for mode in (4, ctypes.DEFAULT_MODE) for name in _nvrtc.SONAMES]
    packages = [Path(name) for name, _ in found[4:] if name.startswith(str(tmp_path))]
    assert packages == [
        tmp_path / "nvidia" / "cu13/lib/libnvrtc.so.13",
        tmp_path / "nvidia" / "cuda_nvrtc/lib/libnvrtc.so.12",
    ]


CONVERSIONS = """
#include <cstring>
#define __device__
static unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
static float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
%s
extern "C" void narrow(const float* x, unsigned short* y, int n) { for (int i = 0; i < n; ++i) y[i] = T(x[i]).bits; }
extern "C" void widen(const unsigned short* x, float* y, int n) {
  for (int i = 0; i < n; ++i) { T t; t.bits = x[i]; y[i] = float(t); }
}
"""


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Our bfloat16 as for a device without one, compiled for the CPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("conversions") / "bfloat16.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=CONVERSIONS % TYPES[mx.bfloat16], text=True, check=True)
    return ctypes.CDLL(str(library))


def converted(function: Any, values: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    found = np.empty(values.size, dtype)
    function(ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(found.ctypes.data), values.size)
    return found


def test_a_float_is_rounded_to_the_nearest_bfloat16_and_ties_to_even(conversions: ctypes.CDLL) -> None:
    """About every bfloat16 there is: itself, both sides of the tie after it, the tie, and the last before the next."""
    high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    about = (high | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel()
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    values = np.concatenate([about, random]).view(np.float32)
    found = converted(conversions.narrow, values, np.uint16)
    np.testing.assert_array_equal(found, nearest_bfloat16(values))


def test_every_bfloat16_becomes_its_float(conversions: ctypes.CDLL) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    found = converted(conversions.widen, patterns, np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), patterns.astype(np.uint32) << 16)
    numbers = found[~np.isnan(found)]
    np.testing.assert_array_equal(nearest_bfloat16(numbers), patterns[~np.isnan(found)])
