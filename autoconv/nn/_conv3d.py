"""The drop-in for `mlx.nn.Conv3d`."""

from __future__ import annotations

import mlx.nn

from autoconv import _calls
from autoconv._backend import mx
from autoconv.algorithms._algorithm import InTwoSteps
from autoconv.nn._derived import Derived
from autoconv.ops import conv3d


class Conv3d(mlx.nn.Conv3d):  # type: ignore[name-defined, misc] # MLX's layers have no types
    """Applies a 3D convolution over an input with several channels, by the fastest way known on this device.

    As `mlx.nn.Conv3d`, with the same parameters, so that its checkpoints load; and with groups. What an algorithm makes
    of the weight (Winograd's transforms, the taps one by one) is kept between calls while the weight does not change.
    That takes up to twice the weight's memory.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Size of the kernel, one for all or three.
        stride: Kernel strides. Default: `1`.
        padding: Symmetric input padding. Default: `0`.
        dilation: Kernel dilation. Default: `1`.
        bias: Whether to add a learnable bias. Default: `True`.
        groups: Input feature groups. Default: `1`.

    Raises:
        ValueError: the channels are no multiples of the groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        bias: bool = True,
        *,
        groups: int = 1,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            msg = (
                f"in_channels ({in_channels}) and out_channels ({out_channels}) must be multiples of groups ({groups})"
            )
            raise ValueError(msg)
        super().__init__(in_channels // groups, out_channels, kernel_size, stride, padding, dilation, bias)
        self.groups = groups
        self._derived = Derived()

    def _extra_repr(self) -> str:
        return f"{super()._extra_repr()}, groups={self.groups}"

    def __call__(self, x: mx.array) -> mx.array:
        """`(N, OD, OH, OW, C_out)` from `(N, D, H, W, C_in)`."""
        weight = self.weight
        run = _calls.found(x, weight, (self.stride, self.padding, self.dilation, self.groups))
        if isinstance(run, InTwoSteps):
            _calls.hit()
            y = run.apply(x, self._derived.of(weight, run))
        else:
            y = conv3d(x, weight, self.stride, self.padding, self.dilation, self.groups)
        return y + self.bias if "bias" in self else y
