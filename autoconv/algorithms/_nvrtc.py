"""NVRTC, the compiler of CUDA C++ that MLX itself loads, called through `ctypes`: source in, a binary to launch out.

Nothing is included, and so nothing is compiled but the kernel: tens of milliseconds, where MLX's own way, with its
headers and CCCL's before each source, took 1.7 to 2 s of an H100's host, in every process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12")
"""Versions whose functions are as declared here, the newest first."""

_ALREADY_LOADED: int = getattr(os, "RTLD_NOLOAD", 0)


class NvrtcError(Exception):
    """NVRTC cannot be loaded, or has refused something; the message has its log."""


@functools.cache
def library() -> ctypes.CDLL:
    """The NVRTC that this process has loaded; else one of the system's, else of an `nvidia` package.

    Raises:
        NvrtcError: there is none.
    """
    for name, mode in _places():
        try:
            found = ctypes.CDLL(name, mode)
        except OSError:
            continue
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        return found
    msg = f"none of {', '.join(SONAMES)} can be loaded"
    raise NvrtcError(msg)


def _places() -> Iterator[tuple[str, int]]:
    """(name, mode) of each library to try.

    What MLX was linked with is there before it is asked for, and what it compiles this device's driver loads: another
    version's output it may not.
    """
    if _ALREADY_LOADED:
        yield from ((name, _ALREADY_LOADED) for name in SONAMES)
    yield from ((name, ctypes.DEFAULT_MODE) for name in SONAMES)
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        for name in SONAMES:
            yield from ((str(path), ctypes.DEFAULT_MODE) for path in sorted(Path(folder).glob(f"*/lib/{name}")))


def _call(function: str, *arguments: object) -> None:
    result = getattr(library(), function)(*arguments)
    if result:
        msg = f"{function}: {library().nvrtcGetErrorString(result).decode()}"
        raise NvrtcError(msg)


def compiled(source: str, architecture: str) -> bytes:
    """A device's code for a source that includes nothing.

    It is a CUBIN; or PTX, which the driver compiles, for a device newer than the compiler.

    Args:
        source: CUDA C++. Kernels are found by their names, so they have C linkage.
        architecture: As `mx.device_info` has it: `sm_90`.

    Raises:
        NvrtcError: there is no NVRTC, it knows no such device, or the source is wrong.
    """
    target = _target(architecture)
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"autoconv.cu", 0, None, None)
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={target}".encode())
        try:
            _call("nvrtcCompileProgram", program, len(options), options)
        except NvrtcError as error:
            msg = f"{error}, for {target}: {_output(program, 'ProgramLog').rstrip(bytes(1)).decode(errors='replace')}"
            raise NvrtcError(msg) from error
        return _output(program, "CUBIN" if target.startswith("sm_") else "PTX")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _output(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, found)
    return found.raw


@functools.cache
def _target(architecture: str) -> str:
    """What to compile for: the architecture where NVRTC knows it, else the newest virtual one that it can run."""
    device = re.fullmatch(r"sm_(\d+)", architecture)
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", known)
    if device and int(device[1]) in known:
        return architecture
    older = [number for number in known if device and number < int(device[1])]
    if not older:
        msg = f"NVRTC compiles for {', '.join(f'sm_{number}' for number in known)}, not for {architecture}"
        raise NvrtcError(msg)
    return f"compute_{max(older)}"
