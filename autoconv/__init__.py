"""An autotuner for 3D convolutions in MLX: `autoconv.conv3d` is `mx.conv3d`, only faster."""

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
from autoconv.settings import configure, using

try:
    from autoconv.ops import conv3d, conv_general, explain, statistics, tune
    from autoconv.patching import patch, unpatch
    from autoconv.preparing import Preparation, prepare
    from autoconv.report.explanation import Explanation
except BackendMissingError as missing:  # whoever asks for these is told; the command still says what is wrong
    _missing = missing

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise BackendMissingError(_missing.found, _missing.advice)
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg, name=name)


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
