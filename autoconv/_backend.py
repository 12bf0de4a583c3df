"""MLX, imported once: `from autoconv._backend import mx` is how every module here gets it.

Beside it the two functions of MLX's that `patch` replaces, as they are without it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from autoconv.errors import BackendMissingError

try:
    import mlx.core as mx
except ImportError as error:
    if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):  # Ctrl-C, as an extension reports it
        raise KeyboardInterrupt from error
    # On Linux `mlx` alone has no libmlx.so: it comes with a backend's package.
    if platform.system() == "Linux":
        how = "pip install 'autoconv[cpu]', or 'autoconv[cuda13]' for an NVIDIA GPU (one of the two, never both)"
    else:
        how = "pip install --upgrade --force-reinstall mlx"
    msg = f"MLX cannot be loaded ({error})"
    raise BackendMissingError(msg, f"install its backend by {how}") from error

__all__ = ["ORIGINAL", "mx", "mx_conv3d", "mx_conv_general"]

ORIGINAL = "_autoconv_original"
"""The attribute of a function put in place of one of MLX's that holds the latter."""


def _original(name: str) -> Callable[..., mx.array]:
    """MLX's function of that name, also while an autoconv that was imported before this one has replaced it.

    (A module that is reloaded would call itself else, and that the next one, without an end.)
    """
    found: Callable[..., mx.array] = getattr(mx, name)
    original: Callable[..., mx.array] = getattr(found, ORIGINAL, found)
    return original


mx_conv3d = _original("conv3d")
mx_conv_general = _original("conv_general")
