"""An autotuner for 3D convolutions in MLX: `autoconv.conv3d` is `mx.conv3d`, only faster.

In the process of the command `autoconv` what needs MLX is imported when it is first asked for: so it can tell in a line
that MLX has no backend, and hears Ctrl-C from its first moment on. In any other all is imported at once.
"""

import importlib
import os
import sys

from autoconv import _born as _born
from autoconv._version import __version__
from autoconv.errors import (
    AccuracyError,
    AutoconvError,
    AutoconvWarning,
    BackendMissingError,
    DeviceLostError,
    FleetError,
    ModelError,
    ReadOnlyError,
    ReportError,
    RuleError,
    SchemaError,
    SettingsError,
    StoreError,
    TuningError,
    WorkloadError,
)

TYPE_CHECKING = False  # as `typing` has it, whose import takes half as long as all of this
if TYPE_CHECKING:
    from autoconv.ops import conv3d, conv_general, explain, statistics, tune
    from autoconv.patching import patch, unpatch
    from autoconv.preparing import Preparation, prepare
    from autoconv.report.explanation import Explanation
    from autoconv.settings import configure, using

__all__ = [
    "AccuracyError",
    "AutoconvError",
    "AutoconvWarning",
    "BackendMissingError",
    "DeviceLostError",
    "Explanation",
    "FleetError",
    "ModelError",
    "Preparation",
    "ReadOnlyError",
    "ReportError",
    "RuleError",
    "SchemaError",
    "SettingsError",
    "StoreError",
    "TuningError",
    "WorkloadError",
    "__version__",
    "configure",
    "conv3d",
    "conv_general",
    "explain",
    "patch",
    "prepare",
    "statistics",
    "tune",
    "unpatch",
    "using",
]

_MODULES = {
    **dict.fromkeys(("conv3d", "conv_general", "explain", "statistics", "tune"), "ops"),
    **dict.fromkeys(("patch", "unpatch"), "patching"),
    **dict.fromkeys(("Preparation", "prepare"), "preparing"),
    "Explanation": "report.explanation",
    **dict.fromkeys(("configure", "using"), "settings"),
}
"""Where the names are that need MLX, or take time to import."""

if not TYPE_CHECKING:  # to which every name would be here else

    def __getattr__(name: str) -> object:
        """The public name, imported now.

        Raises:
            AttributeError: there is none.
            BackendMissingError: it needs MLX, which has no backend.
        """
        if name not in _MODULES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg, name=name)
        found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process is the command's: its script, or `python -m autoconv`, whose arguments are not set yet."""
    script = (getattr(sys, "argv", None) or [""])[0]
    asked = {"autoconv", "-mautoconv"}.intersection(sys.orig_argv)
    return os.path.basename(script) == "autoconv" or (script == "-m" and bool(asked))


if not _is_command():
    for _name in _MODULES:
        globals()[_name] = getattr(sys.modules[__name__], _name)
elif os.environ.get("AUTOCONV_PATCH"):
    try:  # noqa: SIM105 - `contextlib` is not imported for this
        importlib.import_module("autoconv.patching")
    except BackendMissingError:  # then there is nothing to patch, and the first use says so
        pass

del TYPE_CHECKING
