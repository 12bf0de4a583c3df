"""Patching: `mx.conv3d` and `mx.conv_general` do what autoconv's do, for code that never heard of autoconv.

`mlx.nn.Conv3d` looks `mx.conv3d` up at each call, so that layers made before and after are reached alike. What took
the function itself before, as `from mlx.core import conv3d` does, keeps MLX's own.

| call | goes to |
| --- | --- |
| `mx.conv3d`, `mx.conv_general` of a 5-dimensional input | `autoconv.conv3d`, `autoconv.conv_general` |
| `mx.conv_general` of any other input, arguments that MLX's functions do not have | MLX, untouched |
| `mx.conv1d`, `mx.conv2d`, `mx.conv_transpose3d` and all else | MLX: these are not replaced |
"""

from __future__ import annotations

import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from autoconv import settings as _settings
from autoconv._backend import ORIGINAL, mx, mx_conv3d, mx_conv_general
from autoconv._calls import count_of
from autoconv.errors import AutoconvWarning, SettingsError
from autoconv.mutex import Mutex
from autoconv.ops import conv3d, conv_general

_OWN_SETTINGS = {"policy", "accuracy", "memory_limit"}
"""Arguments of our functions that MLX's do not have."""

_counter = itertools.count()
_count = _counter.__next__


class Patcher:
    """Puts functions in a module's place, for as long as anybody wants them there.

    Plain calls and blocks are counted apart: many plain calls are as one, and end with one `unpatch`; a block ends for
    itself, and until then no `unpatch` ends it. May be used from any thread.

    Attributes:
        active: Whether the functions in place are to act; else they do as those that they replaced.

    Args:
        module: Whose functions are replaced.
        original: What was in that module when it was imported, by name.
        stand_ins: What is put there, by name.
    """

    def __init__(
        self, module: types.ModuleType, original: Mapping[str, object], stand_ins: Mapping[str, object]
    ) -> None:
        self.active = False
        self._module = module
        self._original = original
        self._stand_ins = stand_ins
        self._found: dict[str, object] = {}
        self._lock = Mutex()
        self._calls = 0  # plain ones since the last `unpatch`, but for those that became blocks
        self._blocks = 0
        self._era = 0  # how often `unpatch` was called

    def patch(self) -> Patch:
        """A plain call; what it returns makes a block of it."""
        with self._lock:
            self._calls += 1
            self._settle()
            return Patch(self, self._era)

    def unpatch(self) -> None:
        """End all plain calls."""
        with self._lock:
            self._calls = 0
            self._era += 1
            self._settle()

    def enter(self, era: int | None) -> None:
        """Begin a block, which takes the place of a plain call of that era unless that has ended."""
        with self._lock:
            self._blocks += 1
            if era == self._era:
                self._calls -= 1
            self._settle()

    def leave(self) -> None:
        """End a block."""
        with self._lock:
            self._blocks -= 1
            self._settle()

    def _settle(self) -> None:
        wanted = self._calls > 0 or self._blocks > 0
        if not wanted:
            self._restore()
        elif not self.active:
            self._install()
        self.active = wanted

    def _install(self) -> None:
        for name, stand_in in self._stand_ins.items():
            found = getattr(self._module, name)
            if found is not stand_in:
                self._found[name] = found
                setattr(self._module, name, stand_in)

    def _restore(self) -> None:
        """Put back what was found. What somebody else has put there since stays, and what it calls of ours is idle."""
        for name, stand_in in self._stand_ins.items():
            found = self._found.pop(name, self._original[name])
            if getattr(self._module, name) is stand_in:
                setattr(self._module, name, found)


class Patch:
    """What `patch` returns: a context that undoes that call at its end, and no other."""

    def __init__(self, patcher: Patcher, era: int) -> None:
        self._patcher = patcher
        self._era: int | None = era

    def __enter__(self) -> Patch:
        """Make a block of the call; entered once more, it is another block."""
        era, self._era = self._era, None
        self._patcher.enter(era)
        return self

    def __exit__(self, *_error: object) -> None:
        """End the block, whatever was raised in it."""
        self._patcher.leave()


def _conv3d(
    input: Any = None,
    weight: Any = None,
    /,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *more: Any,
    stream: Any = None,
    **unknown: Any,
) -> mx.array:
    if more or unknown or not _patcher.active:
        return mx_conv3d(input, weight, stride, padding, dilation, groups, *more, stream=stream, **unknown)
    _count()
    if stream is None:  # by place alone, which costs less
        return conv3d(input, weight, stride, padding, dilation, groups)
    return conv3d(input, weight, stride, padding, dilation, groups, stream=stream)


def _conv_general(
    input: Any = None,
    weight: Any = None,
    /,
    stride: Any = 1,
    padding: Any = 0,
    kernel_dilation: Any = 1,
    input_dilation: Any = 1,
    groups: Any = 1,
    flip: Any = False,
    *more: Any,
    stream: Any = None,
    **unknown: Any,
) -> mx.array:
    if more or unknown:
        given = (input, weight, stride, padding, kernel_dilation, input_dilation, groups, flip)
        return mx_conv_general(*given, *more, stream=stream, **unknown)
    try:
        ours = input.ndim == 5 and _patcher.active
    except AttributeError:
        ours = False
    if ours:
        _count()
    run = conv_general if ours else mx_conv_general
    if stream is None:  # by place alone, which costs less
        return run(input, weight, stride, padding, kernel_dilation, input_dilation, groups, flip)
    return run(input, weight, stride, padding, kernel_dilation, input_dilation, groups, flip, stream=stream)


def _posing(stand_in: Callable[..., mx.array], ours: Callable[..., mx.array], original: Callable[..., mx.array]) -> Any:
    """`stand_in` with the name, the words and the signature of MLX's function.

    By its name it is pickled as `mlx.core.conv3d`, and is there whatever it is where that is read.
    """
    name = original.__name__
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = "mlx.core", name, name
    stand_in.__doc__ = original.__doc__
    signature = inspect.signature(ours)
    theirs = [p for p in signature.parameters.values() if p.name not in _OWN_SETTINGS]
    stand_in.__signature__ = signature.replace(parameters=theirs)  # type: ignore[attr-defined]
    setattr(stand_in, ORIGINAL, original)
    return stand_in


_patcher = Patcher(
    mx,
    {"conv3d": mx_conv3d, "conv_general": mx_conv_general},
    {
        "conv3d": _posing(_conv3d, conv3d, mx_conv3d),
        "conv_general": _posing(_conv_general, conv_general, mx_conv_general),
    },
)


def patch() -> Patch:
    """Make `mx.conv3d` and 5-dimensional `mx.conv_general` those of autoconv, for the whole process, from now on.

    So are layers of `mlx.nn.Conv3d` and its subclasses, made before or after. All else goes to MLX untouched, errors
    for bad arguments with it.

    Plain calls are as one, whose end is `unpatch`; as a context, `with autoconv.patch():`, it ends with the block.
    Blocks may be nested and overlap in threads: MLX's functions are back when the last one has ended and no plain call
    is left. Where somebody else has replaced them since, that stays, and what it calls of ours is MLX's again.

    Returns:
        The context.

    Raises:
        SettingsError: an environment variable has a value that it cannot have; nothing is patched.
    """
    _settings.current()  # here, rather than in somebody's convolution
    return _patcher.patch()


def unpatch() -> None:
    """End every plain call of `patch`; blocks, this thread's and others', end for themselves."""
    _patcher.unpatch()


def calls() -> int:
    """Calls of 3D convolutions so far that came through a patched function."""
    return count_of(_counter)


def _at_import() -> None:
    """Patch if `AUTOCONV_PATCH` says so; a value that cannot be costs a warning, and the import goes on."""
    try:
        if _settings.patches():
            patch()
    except SettingsError as error:
        warnings.warn(f"{error}; nothing is patched", AutoconvWarning, stacklevel=2)


_at_import()
