"""Every error and warning of this library.

As a tree::

    AutoconvError                      the root: `except autoconv.AutoconvError` catches all of them
    ├── BackendMissingError            MLX is installed without a backend (also an ImportError)
    ├── SettingsError                  a setting or AUTOCONV_* variable has no such value (also a ValueError)
    ├── WorkloadError                  a workload file cannot be read; names file, line and column (also a ValueError)
    ├── AccuracyError                  no candidate is accurate enough; raised by `tune` and the sweep, never by a call
    ├── TuningError                    a problem could not be timed now: no time, no memory, or the device is in use
    │   └── DeviceLostError            a candidate broke the device for this process; nothing more is timed in it
    ├── ModelError                     a cost model cannot be read, trained, or used with what is here
    ├── RuleError                      a rule cannot be distilled or written; the message says what is missing
    ├── ReportError                    a report cannot be written
    ├── FleetError                     a fleet's scheduler cannot be reached or may not be used, or has no workers
    └── StoreError                     a database cannot be opened, read or written
        ├── SchemaError                it was written by a newer autoconv, or is no autoconv database
        │   └── EmptyError             it is empty, and was to be read
        ├── DamagedError               it is one of ours, and damaged
        └── ReadOnlyError              it is open for reading only

    AutoconvWarning (UserWarning)      something that a call survives: a database put aside, a candidate barred

Bad arguments of a convolution raise what MLX raises for them: ValueError or TypeError.
"""

from __future__ import annotations


class AutoconvError(Exception):
    """The root of this library's errors."""


class _AdvisedError(AutoconvError):
    """What is wrong, and what to do about it apart from that.

    Attributes:
        found: What is wrong; the message has what to do after it.
        advice: What to do; empty where nothing is known that helps.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(f"{found}: {advice}" if advice else found)
        self.found = found
        self.advice = advice


class BackendMissingError(_AdvisedError, ImportError):
    """MLX is installed without a backend for this machine; the message names the extra to install."""


class SettingsError(AutoconvError, ValueError):
    """A setting, or the environment variable that carries it, has a value that it cannot have."""


class WorkloadError(AutoconvError, ValueError):
    """A workload file cannot be read; the message names the file, the line and the column."""


class AccuracyError(AutoconvError, RuntimeError):
    """No candidate's result is within the accuracy asked for."""


class TuningError(AutoconvError, RuntimeError):
    """A problem could not be timed now; the message says why and what to do."""


class DeviceLostError(TuningError):
    """A candidate failed so that the device no longer answers rightly in this process.

    Attributes:
        candidate: Its name.
    """

    def __init__(self, message: str, candidate: str) -> None:
        super().__init__(message)
        self.candidate = candidate


class ModelError(AutoconvError, RuntimeError):
    """A cost model cannot be read, trained or used here; the message says why."""


class RuleError(AutoconvError, RuntimeError):
    """A rule cannot be distilled from what was measured, or cannot be written; the message says what is missing."""


class ReportError(AutoconvError, RuntimeError):
    """A report cannot be written; the message names the file."""


class FleetError(AutoconvError, RuntimeError):
    """A fleet cannot be used: its scheduler, its workers or the way to them; the message says what to do."""


class StoreError(_AdvisedError, RuntimeError):
    """A database cannot be opened, read or written; the message names the file."""


class SchemaError(StoreError):
    """A database has a schema that this version does not know."""


class EmptyError(SchemaError):
    """A database that is to be read is empty: nothing began it yet."""


class DamagedError(StoreError):
    """A database of ours does not hold what it should: bytes of it were changed, or are missing."""


class ReadOnlyError(StoreError):
    """A write was asked of a store that is open for reading only."""


class AutoconvWarning(UserWarning):
    """Something went wrong that a convolution survives."""
