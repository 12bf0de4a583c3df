"""Drop-ins for `mx.conv3d` and `mx.conv_general`, and what can be asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoconv import settings as _settings
from autoconv._arguments import kind_of, problem_of
from autoconv._backend import mx
from autoconv._backend import mx_conv3d as _mx_conv3d
from autoconv._backend import mx_conv_general as _mx_conv_general
from autoconv._calls import Stream, call, changed, device_key, forget, hashable, hit, hits, known, on
from autoconv.decision import Source
from autoconv.problem import IntOrInts, Padding
from autoconv.report.explanation import Explanation
from autoconv.settings import Settings

_around = _settings.override.get


def _is_int_or_three(value: object) -> bool:
    return not isinstance(value, (tuple, list)) or (len(value) == 3 and not isinstance(value[0], (tuple, list)))


def conv3d(
    input: mx.array,
    weight: mx.array,
    /,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    stream: Stream = None,
    policy: str | None = None,
    accuracy: str | float | None = None,
    memory_limit: int | str | None = None,
) -> mx.array:
    """3D convolution over an input with several channels, by the fastest way known on this device.

    The first call for a shape may time the ways to compute it; later ones, in this process and the next, use the
    winner.

    Args:
        input: Input array of shape `(N, D, H, W, C_in)`.
        weight: Weight array of shape `(C_out, KD, KH, KW, C_in / groups)`.
        stride: Kernel strides, one for all or three. Default: `1`.
        padding: Symmetric input padding, one for all or three. Default: `0`.
        dilation: Kernel dilation, one for all or three. Default: `1`.
        groups: Input feature groups; unlike `mx.conv3d`, any number that divides the channels. Default: `1`.
        stream: Stream or device. Default: the default stream.
        policy: This call's policy (see `configure`).
        accuracy: This call's accuracy (see `configure`).
        memory_limit: This call's memory limit (see `configure`).

    Returns:
        The convolved array, `(N, OD, OH, OW, C_out)`, lazy as any array of MLX.

    Raises:
        TypeError, ValueError: for bad arguments, as `mx.conv3d`.
        SettingsError: for a setting's value that cannot be.
    """
    if stream is None and policy is None and accuracy is None and memory_limit is None:
        try:
            run = known[
                input.shape,
                weight.shape,
                input.dtype,
                weight.dtype,
                tuple(stride) if type(stride) is list else stride,
                tuple(padding) if type(padding) is list else padding,
                tuple(dilation) if type(dilation) is list else dilation,
                groups,
                device_key(),
                _around(),
            ]
        except (KeyError, TypeError, AttributeError):
            pass
        else:
            hit()
            if run is None:
                return _mx_conv3d(input, weight, stride, padding, dilation, groups)
            return run(input, weight)
    if not all(map(_is_int_or_three, (stride, padding, dilation))):  # `mx.conv3d` takes nothing else
        with on(stream):
            return _mx_conv3d(input, weight, stride, padding, dilation, groups)
    return call(
        lambda: _mx_conv3d(input, weight, stride, padding, dilation, groups),
        input,
        weight,
        (stride, padding, dilation, groups),
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        stream,
        {"policy": policy, "accuracy": accuracy, "memory_limit": memory_limit},
    )


def conv_general(
    input: mx.array,
    weight: mx.array,
    /,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    kernel_dilation: IntOrInts = 1,
    input_dilation: IntOrInts = 1,
    groups: int = 1,
    flip: bool = False,
    *,
    stream: Stream = None,
    policy: str | None = None,
    accuracy: str | float | None = None,
    memory_limit: int | str | None = None,
) -> mx.array:
    """General convolution over an input with several channels; in 3D by the fastest way known on this device.

    Args:
        input: Input array of shape `(N, ..., C_in)`; one that is not 5-dimensional goes to MLX as it is.
        weight: Weight array of shape `(C_out, ..., C_in / groups)`.
        stride: Kernel strides, one for all or one an axis. Default: `1`.
        padding: Input padding: one for all, one an axis, or a pair of low and high ones. Default: `0`.
        kernel_dilation: Kernel dilation, one for all or one an axis. Default: `1`.
        input_dilation: Input dilation, one for all or one an axis. Default: `1`.
        groups: Input feature groups. Default: `1`.
        flip: Whether to flip the kernel's spatial axes. Default: `False`.
        stream: Stream or device. Default: the default stream.
        policy: This call's policy (see `configure`).
        accuracy: This call's accuracy (see `configure`).
        memory_limit: This call's memory limit (see `configure`).

    Returns:
        The convolved array.

    Raises:
        TypeError, ValueError: for bad arguments, as `mx.conv_general`.
        SettingsError: for a setting's value that cannot be.
    """
    if stream is None and policy is None and accuracy is None and memory_limit is None:
        try:
            run = known[
                input.shape,
                weight.shape,
                input.dtype,
                weight.dtype,
                tuple(stride) if type(stride) is list else stride,
                padding if type(padding) is int else hashable(padding),
                tuple(kernel_dilation) if type(kernel_dilation) is list else kernel_dilation,
                tuple(input_dilation) if type(input_dilation) is list else input_dilation,
                groups,
                flip,
                device_key(),
                _around(),
            ]
        except (KeyError, TypeError, AttributeError):
            pass
        else:
            hit()
            if run is None:
                arguments: Any = (stride, padding, kernel_dilation, input_dilation, groups, flip)
                return _mx_conv_general(input, weight, *arguments)
            return run(input, weight)

    def untouched() -> mx.array:
        arguments: Any = (stride, padding, kernel_dilation, input_dilation, groups, flip)
        return _mx_conv_general(input, weight, *arguments)

    changes = {"policy": policy, "accuracy": accuracy, "memory_limit": memory_limit}
    if not isinstance(input, mx.array) or input.ndim != 5:
        changed(changes)
        with on(stream):
            return untouched()
    return call(
        untouched,
        input,
        weight,
        (stride, padding, kernel_dilation, input_dilation, groups, flip),
        {
            "stride": stride,
            "padding": padding,
            "dilation": kernel_dilation,
            "input_dilation": input_dilation,
            "groups": groups,
            "flip": flip,
        },
        stream,
        changes,
    )


def _under(stream: Stream, changes: dict[str, Any]) -> tuple[Settings, mx.Device]:
    """The settings and the device of what is asked with these changes, on this stream."""
    with on(stream):
        return _settings.with_changes(_settings.current(), changes), mx.default_device()


def tune(
    input: mx.array | Sequence[int],
    weight: mx.array | Sequence[int],
    /,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    input_dilation: IntOrInts = 1,
    flip: bool = False,
    dtype: str | None = None,
    kind: str = "forward",
    stream: Stream = None,
    **changes: Any,
) -> Explanation:
    """Time a convolution or a gradient of it now, whatever is known of it, and keep what was measured.

    Only shapes and dtype matter: the operands that are timed are random.

    Args:
        input: Input array, or its shape `(N, D, H, W, C_in)`.
        weight: Weight array, or its shape `(C_out, KD, KH, KW, C_in / groups)`.
        stride: As in `conv3d`. Default: `1`.
        padding: As in `conv_general`. Default: `0`.
        dilation: As in `conv3d`. Default: `1`.
        groups: As in `conv3d`. Default: `1`.
        input_dilation: As in `conv_general`. Default: `1`.
        flip: As in `conv_general`. Default: `False`.
        dtype: Name of the dtype. Default: that of the arrays, `"float32"` for shapes.
        kind: `"forward"`, or `"input_gradient"` or `"weight_gradient"` for a gradient of this convolution.
            Default: `"forward"`.
        stream: Stream or device. Default: the default device.
        changes: Settings for this measurement alone (see `configure`).

    Returns:
        The decision with every candidate's time and error; prints as a table.

    Raises:
        TypeError, ValueError: for bad arguments, as `mx.conv3d`.
        TuningError: it cannot be timed now; the message says why.
        AccuracyError: no candidate is accurate enough.
        StoreError: the database cannot be opened or written.
    """
    from autoconv.dispatch import dispatcher  # imports what only a first call needs

    problem = problem_of(
        input,
        weight,
        dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_dilation=input_dilation,
        groups=groups,
        flip=flip,
        kind=kind_of(kind),
    )
    settings, device = _under(stream, changes)
    try:
        found = dispatcher().tune(problem, settings, device)
    finally:
        forget()  # decisions made before may be others now
    return dispatcher().explanation(problem, settings, device, found)


def explain(
    input: mx.array | Sequence[int],
    weight: mx.array | Sequence[int],
    /,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    input_dilation: IntOrInts = 1,
    flip: bool = False,
    dtype: str | None = None,
    kind: str = "forward",
    stream: Stream = None,
    **changes: Any,
) -> Explanation:
    """What would compute a convolution or a gradient of it, and why; times nothing.

    Args:
        input: Input array, or its shape `(N, D, H, W, C_in)`.
        weight: Weight array, or its shape `(C_out, KD, KH, KW, C_in / groups)`.
        stride: As in `conv3d`. Default: `1`.
        padding: As in `conv_general`. Default: `0`.
        dilation: As in `conv3d`. Default: `1`.
        groups: As in `conv3d`. Default: `1`.
        input_dilation: As in `conv_general`. Default: `1`.
        flip: As in `conv_general`. Default: `False`.
        dtype: Name of the dtype. Default: that of the arrays, `"float32"` for shapes.
        kind: `"forward"`, or `"input_gradient"` or `"weight_gradient"` for a gradient of this convolution.
            Default: `"forward"`.
        stream: Stream or device. Default: the default device.
        changes: Settings for this question alone (see `configure`).

    Returns:
        The decision with every candidate's time and error; prints as a table.

    Raises:
        TypeError, ValueError: for bad arguments, as `mx.conv3d`.
    """
    from autoconv.dispatch import dispatcher  # imports what only a first call needs

    problem = problem_of(
        input,
        weight,
        dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_dilation=input_dilation,
        groups=groups,
        flip=flip,
        kind=kind_of(kind),
    )
    settings, device = _under(stream, changes)
    return dispatcher().explanation(problem, settings, device)


def statistics() -> dict[str, int]:
    """Decisions since the process started, by where they came from.

    Returns:
        `memory` counts calls whose shape was known; `database`, `shipped`, `model`, `measured` and `native` count the
        decisions that made them known.
    """
    from autoconv.dispatch import dispatcher  # imports what only a first call needs

    return {str(Source.MEMORY): hits()} | {str(s): n for s, n in dispatcher().statistics().items()}
