"""MLX, imported once: `from autoconv._backend import mx` is how every module here gets it."""

from __future__ import annotations

import platform

from autoconv.errors import BackendMissingError

try:
    import mlx.core as mx
except ImportError as error:
    # On Linux `mlx` alone has no libmlx.so: it comes with a backend's package.
    if platform.system() == "Linux":
        what = "pip install 'autoconv[cpu]', or 'autoconv[cuda13]' for an NVIDIA GPU (one of the two, never both)"
    else:
        what = "pip install --upgrade --force-reinstall mlx"
    msg = f"MLX cannot be loaded ({error}). Its backend is installed by: {what}"
    raise BackendMissingError(msg) from error

__all__ = ["mx"]
