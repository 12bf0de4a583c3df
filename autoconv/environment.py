"""An environment: what the times depend on beside the problem."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoconv._backend import mx
from autoconv.record import environment_id

MLX_VARIABLES = {
    "MLX_ENABLE_TF32": "1",
    "MLX_DISABLE_COMPILE": None,
    "MLX_BFS_MAX_WIDTH": None,
    "MLX_MAX_OPS_PER_BUFFER": None,
    "MLX_MAX_MB_PER_BUFFER": None,
    "MLX_METAL_FAST_SYNCH": "0",
    "MLX_METAL_GPU_ARCH": None,
    "MLX_USE_CUDA_GRAPHS": "1",
    "MLX_CUDA_CONV_CACHE_SIZE": None,
}
"""Variables that MLX reads and that change times, with their defaults; every `MLX_CONV_*` is one as well."""

_AT_IMPORT = dict(os.environ)  # MLX reads each variable once, so what counts is what was set at the start


@dataclass(frozen=True)
class Environment:
    """A device with the software that runs on it.

    Attributes:
        identity: What must match for times to be comparable: backend, device, architecture, MLX's version, the
            variables that it reads, and on Metal the macOS major version, GPU cores and recommended working set; on
            CPU the BLAS and its threads.
        circumstances: What is only recorded and shown: operating system, driver, cuDNN, memory, power source.
        memory_bytes: The device's recommended working set, or its memory where there is no such figure.
        unit: What tells this very device from its like in the same machine; never stored, never shown.
    """

    identity: Mapping[str, str | int]
    circumstances: Mapping[str, str | int] = field(default_factory=dict, compare=False)
    memory_bytes: int = field(default=0, compare=False)
    unit: str = field(default="", compare=False, repr=False)

    @functools.cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the identity's SHA-256; another identity has another id."""
        return environment_id(self.identity)

    @functools.cached_property
    def lock_name(self) -> str:
        """Name of the lock that one process at a time holds while it times on this very device."""
        if not self.unit:
            return self.id
        return f"{self.id}-{hashlib.sha256(self.unit.encode()).hexdigest()[:8]}"

    @property
    def backend(self) -> str:
        """`"metal"`, `"cuda"` or `"cpu"`."""
        return str(self.identity["backend"])

    def __str__(self) -> str:
        """The device, backend and MLX version, for people."""
        return f"{self.identity['device']} ({self.backend}, MLX {self.identity['mlx']})"


def mlx_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that MLX reads, that change times and that are not at their defaults."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if (name in MLX_VARIABLES or name.startswith("MLX_CONV_")) and value != MLX_VARIABLES.get(name)
    }


def of(device: mx.Device) -> Environment:
    """The environment of one of this machine's devices; found out once in a process."""
    known = _environments.get(repr(device))
    if known is None:
        known = _environments[repr(device)] = _find_out(device)
    return known


_environments: dict[str, Environment] = {}
_taken_at_start: dict[str, int] = {}
"""Bytes of a CUDA device that others held when it was first looked at, by the environment's id.

What the driver calls free later does not tell: it counts as taken what MLX's own pool holds and will give again.
"""


def _find_out(device: mx.Device) -> Environment:
    info = mx.device_info(device)
    identity: dict[str, str | int] = {
        "backend": backend_of(device.type),
        "device": str(info.get("device_name", "unknown")),
        "architecture": str(info.get("architecture", "unknown")),
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # its stub has none
    }
    identity |= mlx_settings(_AT_IMPORT)
    circumstances: dict[str, str | int] = {
        "os": f"{platform.system()} {_number_of(platform.release())}",
        "python": platform.python_version(),
        "power": _power_source(),
    }
    taken = 0
    memory = int(info.get("max_recommended_working_set_size", 0) or info.get("total_memory", 0) or _host_memory())
    if identity["backend"] == "metal":
        identity["macos"] = platform.mac_ver()[0].split(".")[0]
        identity["gpu_cores"] = _gpu_cores()
        identity["working_set"] = memory
    elif identity["backend"] == "cuda":
        circumstances |= _cuda_libraries()
        taken = memory - int(info.get("free_memory", memory)) - mx.get_active_memory() - mx.get_cache_memory()
    else:
        identity |= _blas() | _cpu_model()
    circumstances["memory_bytes"] = int(info.get("memory_size", 0) or memory)
    found = Environment(identity, circumstances, memory, unit=str(info.get("uuid", "")))
    _taken_at_start[found.id] = max(0, taken)
    return found


def backend_of(device_type: mx.DeviceType) -> str:
    """`"metal"`, `"cuda"` or `"cpu"`: what MLX runs on this type of device."""
    if device_type == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def free_bytes(environment: Environment) -> int:
    """Bytes that timing may take now: the memory less what MLX has active, what others hold, and a tenth."""
    room = environment.memory_bytes * 9 // 10 - mx.get_active_memory() - _taken_at_start.get(environment.id, 0)
    if environment.backend == "cpu":
        room = min(room, _host_available())
    return max(0, room)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _host_memory() -> int:
    """Bytes of memory, or of the control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _host_available() -> int:
    found = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    available = int(found[1]) * 1024 if found else _host_memory()
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used))
    return available


def _gpu_cores() -> int:
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', _output("ioreg", "-rc", "AGXAccelerator", "-d1"))
    return int(found[1]) if found else 0


def _number_of(release: str) -> str:
    """A release's number alone: what follows it may tell who built the kernel, and leaves with every export."""
    found = re.match(r"\d+(?:\.\d+)*", release)
    return found[0] if found else release


def _power_source() -> str:
    if platform.system() == "Darwin":
        found = re.search(r"drawing from '([^']+)'", _output("pmset", "-g", "batt"))
        return found[1] if found else "unknown"
    states = {_read(f"{supply}/online") for supply in Path("/sys/class/power_supply").glob("A*")}
    if not states - {""}:
        return "unknown"
    return "AC Power" if "1" in states else "Battery Power"


def _cuda_libraries() -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    driver = re.search(r"Module\s+([\d.]+)|\s(\d{3}\.[\d.]+)\s", _read("/proc/driver/nvidia/version"))
    if driver:
        found["driver"] = driver[1] or driver[2]
    for name in ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
        try:
            found["cudnn"] = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> dict[str, str | int]:
    """Numbers of the CPU's generation, where the system tells; a device's name may be that of the whole family."""
    fields = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    text = _read("/proc/cpuinfo").split("\n\n")[0]
    found = [re.search(rf"^{field}\s*:\s*(\S+)$", text, re.MULTILINE) for field in fields]
    numbers = [match[1] for match in found if match]
    return {"cpu": ".".join(numbers)} if numbers else {}


class _SymbolInfo(ctypes.Structure):
    """What `dladdr` tells of an address (`Dl_info` of dlfcn.h)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _blas() -> dict[str, str | int]:
    """Name and threads of the BLAS that MLX's CPU backend calls.

    A preloaded library comes before the one that MLX was linked with, as it does for the dynamic linker.
    """
    if platform.system() == "Darwin":
        return {"blas": "Accelerate", "blas_threads": os.cpu_count() or 1}
    own = Path(mx.__file__).parent / "lib" / "libmlx.so"
    for library in (None, str(own)):
        try:
            handle = ctypes.CDLL(library)
            address = ctypes.cast(handle.cblas_sgemm, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
        info = _SymbolInfo()
        ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
        name = Path(os.fsdecode(info.file or b"unknown")).name
        threads = 1  # the reference BLAS has one
        for count in ("openblas_get_num_threads", "MKL_Get_Max_Threads", "bli_thread_get_num_threads"):
            if hasattr(handle, count):
                threads = int(getattr(handle, count)())
        return {"blas": name, "blas_threads": threads}
    return {"blas": "unknown", "blas_threads": 1}
