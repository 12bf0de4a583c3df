"""The causal 3D convolution of video VAEs, over a whole video or chunk by chunk."""

from __future__ import annotations

import functools
from typing import Literal, TypeAlias, get_args

from autoconv import _calls
from autoconv._arguments import name_of_dtype
from autoconv._backend import mx
from autoconv._tracing import is_shapeless
from autoconv.algorithms._depth import FlatConvolution, flat_convolution, flat_matmul, is_pointwise, zeros_like_output
from autoconv.nn._borders import Axis, Mode, bordered, strips
from autoconv.nn._conv3d import Conv3d
from autoconv.nn._derived import Derived, Kernels
from autoconv.nn._stream import Fill, Held, Stream, Term, add_up, terms
from autoconv.nn._tuned import tuned
from autoconv.problem import IntOrInts, Problem, triple

DepthMode: TypeAlias = Literal["zeros", "first", "symmetric"]
Pair: TypeAlias = tuple[int, int]

SPARE = 0.1
"""Part of the work that may be done beside it to save a copy of the output: all outputs are then convolved with zeros
for what is seen outside the chunk, and that is added to those at its edges."""

JOINED = 0.1
"""Cache and the frames that are seen with it, twice the kernel's reach at most, are joined where another algorithm than
the decomposition, which reads them where they lie, is known to be faster by more than this part; less would be lost by
the copy. (On an H100 MLX's own takes 0.6 of its time over the 268 shipped convolutions of 3 to 6 frames.)"""


class CausalConv3d(Conv3d):
    """Applies a 3D convolution in which no frame sees a later one, as video VAEs do, whole or chunk by chunk.

    `conv(x)` is the whole. `y, cache = conv.chunk(x, cache)` is a chunk of it, with the cache of the chunk before, None
    at first: all `y` one after another are the whole, whatever the chunks' sizes, and a cache is the few frames that
    the next chunk sees.

    Parameters are those of `mlx.nn.Conv3d` and have its names, so that checkpoints load. Neither cache and frames nor
    padding and frames become one array (but for a few frames, where that is known to be faster), and one frame that
    begins a stream costs one 2D convolution.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Size of the kernel, one for all or three.
        stride: Kernel strides, one for all or three. Default: `1`.
        padding: As in `Conv3d`; but that of the depth, of both sides together, lies before the first frame. So
            `padding=1` with a kernel of three keeps all sizes, and each frame sees the two before it. Default: `0`.
        dilation: Kernel dilation, one for all or three. Default: `1`.
        bias: Whether to add a learnable bias. Default: `True`.
        groups: Input feature groups. Default: `1`.
        depth_padding: What lies before the first frame: `"zeros"`, or `"first"` for that frame again. `"symmetric"` is
            not causal: `padding` times the first frame before it and the last one after it. Default: `"zeros"`.
        spatial_padding: `"zeros"`, `"replicate"` for the image's edge, or `"reflect"` for the image mirrored in it.
            Default: `"zeros"`.
        frames_before: Frames of padding before the first, if not twice `padding` in depth. Default: None.

    Raises:
        ValueError: the channels are no multiples of the groups, a mode is unknown, a size is negative, or
            `frames_before` is given with `"symmetric"`.
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
        depth_padding: DepthMode = "zeros",
        spatial_padding: Mode = "zeros",
        frames_before: int | None = None,
    ) -> None:
        for name, mode, known in (("depth", depth_padding, DepthMode), ("spatial", spatial_padding, Mode)):
            if mode not in get_args(known):
                msg = f"{name}_padding must be one of {', '.join(get_args(known))}; got {mode!r}"
                raise ValueError(msg)
        if min(*triple(padding, "padding"), frames_before or 0) < 0:
            msg = f"no padding may be negative; got padding {padding} and frames_before {frames_before}"
            raise ValueError(msg)
        if frames_before is not None and depth_padding == "symmetric":
            msg = "symmetric padding is the same before and after: give it as padding, not as frames_before"
            raise ValueError(msg)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            triple(stride, "stride"),
            triple(padding, "padding"),
            triple(dilation, "dilation"),
            bias,
            groups=groups,
        )
        self.depth_padding = depth_padding
        self.spatial_padding = spatial_padding
        self.frames_before = frames_before
        self._derived_joined = Derived()
        self._kernels = Kernels()

    def _extra_repr(self) -> str:
        before = "" if self.frames_before is None else f", frames_before={self.frames_before}"
        return (
            f"{super()._extra_repr()}, depth_padding={self.depth_padding!r}, spatial_padding={self.spatial_padding!r}"
            f"{before}"
        )

    def __call__(self, x: mx.array) -> mx.array:
        """`(N, OD, OH, OW, C_out)` from a whole video, `(N, D, H, W, C_in)`.

        Raises:
            ValueError: as `mx.conv3d`; a size that cannot be reflected that far; padding by elements of the video under
                `mx.compile(shapeless=True)`.
        """
        stream = self._stream(x, None)
        if not stream.outputs:
            msg = (
                f"[conv] {stream.before + stream.frames + stream.after} frames with their padding are too few for a "
                f"kernel that reaches over {stream.reach + 1}."
            )
            raise ValueError(msg)
        y = self._sizeless(x, stream) if is_shapeless(x, self.weight) else self._bordered(x, None, stream)
        return self._biased(y)

    def chunk(self, x: mx.array, cache: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """The outputs that the stream has come to with these frames, and the cache that the next chunk needs.

        Evaluate both together: `mx.eval(y, cache)`. Else the cache holds the whole chunk until it is used.

        Args:
            x: The next frames, `(N, D, H, W, C_in)`.
            cache: What the call before returned; None at the stream's start. A cache of one's own is the frames that
                the next output begins to see, and then there is no padding before them.

        Returns:
            `(N, OD, OH, OW, C_out)`, where OD is 0 while there are too few frames for an output; and the frames that
            the next output begins to see, the stream's padding among them, as an array of their own. With a stride of 1
            these are the last `(KD - 1) * dilation` frames.

        Raises:
            ValueError: as `mx.conv3d`; with symmetric padding, which needs frames that come later; for a cache of more
                than `(KD - 1) * dilation` frames, or of other sizes than the chunk; where a stride steps past the
                chunk's end, over frames that no output sees, as only one longer than the kernel can; under
                `mx.compile(shapeless=True)`.
        """
        if self.depth_padding == "symmetric":
            msg = "with symmetric padding the last frames see frames that come later: convolve the whole at once"
            raise ValueError(msg)
        if is_shapeless(x, self.weight):
            msg = (
                "mx.compile(shapeless=True) cannot trace a chunk, whose cache depends on its size: use mx.compile alone"
            )
            raise ValueError(msg)
        stream = self._stream(x, cache)
        if cache is not None:
            self._check(x, cache, stream)
        kept = _kept(x, cache, stream)
        if stream.outputs:
            y = self._bordered(x, cache, stream)
        else:
            y = zeros_like_output(self._window(x, self._padding, 1), 0, x)
        return self._biased(y), kept

    def _biased(self, y: mx.array) -> mx.array:
        return y + self.bias if "bias" in self else y

    def _check(self, x: mx.array, cache: mx.array, stream: Stream) -> None:
        if cache.ndim != 5 or (cache.shape[0], *cache.shape[2:]) != (x.shape[0], *x.shape[2:]):
            msg = f"a cache of shape {cache.shape} is none of a stream whose next frames have the shape {x.shape}"
            raise ValueError(msg)
        if cache.shape[1] > stream.reach:
            msg = f"a cache holds at most {stream.reach} frames under this kernel, not {cache.shape[1]}"
            raise ValueError(msg)

    @property
    def _padding(self) -> Pair:
        return self.padding[1], self.padding[2]

    def _stream(self, x: mx.array, cache: mx.array | None) -> Stream:
        if x.ndim != 5 or not x.shape[1]:
            msg = f"[conv] Expected frames of shape (N, D, H, W, C_in), at least one. Got {x.shape}."
            raise ValueError(msg)
        before, after = 2 * self.padding[0] if self.frames_before is None else self.frames_before, 0
        if self.depth_padding == "symmetric":
            before = after = self.padding[0]
        fill = Fill.ZEROS if self.depth_padding == "zeros" else Fill.EDGE
        if cache is not None:
            before, fill = cache.shape[1], Fill.CACHE
        return _stream(x.shape[1], before, after, fill, self.weight.shape[1], self.stride[0], self.dilation[0])

    def _window(self, x: mx.array, padding: Pair, outputs: int) -> Problem:
        """So many outputs and the frames that they see, as a problem."""
        name = name_of_dtype(x.dtype, self.weight.dtype)
        return _window(x.shape, self.weight.shape, name, self.stride, padding, self.dilation, self.groups, outputs)

    def _tuned(self, x: mx.array, low: int, padding: Pair, high: int = 0, derived: Derived | None = None) -> mx.array:
        around = ((low, *padding), (high, *padding))
        return tuned(x, self.weight, self.stride, around, self.dilation, self.groups, derived or self._derived)

    def _sizeless(self, x: mx.array, stream: Stream) -> mx.array:
        """The outputs of a whole video by MLX's own convolution, which knows no size.

        Elements of the video cannot be had so: MLX refuses slices, and gathers by the sizes that it traced.
        """
        by_frames = stream.fill is Fill.EDGE and (stream.before or stream.after)
        if by_frames or (self.spatial_padding != "zeros" and any(self._padding)):
            msg = "mx.compile(shapeless=True) cannot trace padding by the video's own elements: use mx.compile alone"
            raise ValueError(msg)
        return self._tuned(x, stream.before, self._padding, stream.after)

    def _bordered(self, x: mx.array, cache: mx.array | None, stream: Stream) -> mx.array:
        """The outputs, with height and width padded as they are to be."""
        if self.spatial_padding == "zeros" or not any(self._padding):
            return self._outputs(x, cache, stream, self._padding)
        shape = self._window(x, self._padding, 1).output_shape[2:4]
        height, width = (
            Axis(
                x.shape[axis],
                self.weight.shape[axis],
                self.stride[axis - 1],
                self.padding[axis - 1],
                self.dilation[axis - 1],
            )
            for axis in (2, 3)
        )

        def unpadded(x: mx.array, cache: mx.array | None, whole: bool) -> mx.array:
            run = self._outputs if whole else self._by_taps
            return run(x, cache, stream, (0, 0))

        return bordered(
            x,
            cache,
            strips(height, width, self.spatial_padding),
            shape,
            lambda: self._outputs(x, cache, stream, self._padding),
            unpadded,
        )

    def _outputs(self, x: mx.array, cache: mx.array | None, stream: Stream, padding: Pair) -> mx.array:
        """The outputs, with height and width padded by zeros."""
        if stream.frames == 1 and stream.kernel > 1 and cache is None:
            return self._by_taps(x, cache, stream, padding)
        if stream.fill is Fill.ZEROS:
            return self._tuned(x, stream.before, padding, stream.after)
        edges = [edge for edge in (stream.low, stream.high) if edge]
        beside = [terms(stream, edge, outside=True) for edge in edges]
        work = sum(term.count for found in beside for term in found)
        if work <= SPARE * stream.outputs * stream.kernel:
            y = self._tuned(x, stream.before, padding, stream.after)
            for edge, found in zip(edges, beside, strict=True):
                y = y.at[:, edge.start : edge.stop].add(self._sum(found, len(edge), x, cache, stream, padding))
            return y
        parts = []
        if stream.low:
            parts.append(self._edge(x, cache, stream, stream.low, padding))
        if stream.inner:
            start, stop = stream.place(stream.inner[0]), stream.place(stream.inner[-1]) + stream.reach + 1
            seen = x if (start, stop) == (0, stream.frames) else x[:, start:stop]
            parts.append(self._tuned(seen, 0, padding))
        if stream.high:
            parts.append(self._edge(x, cache, stream, stream.high, padding))
        return mx.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _by_taps(self, x: mx.array, cache: mx.array | None, stream: Stream, padding: Pair) -> mx.array:
        """All outputs as sums over taps."""
        outputs = range(stream.outputs)
        return self._sum(terms(stream, outputs), len(outputs), x, cache, stream, padding)

    def _edge(self, x: mx.array, cache: mx.array | None, stream: Stream, edge: range, padding: Pair) -> mx.array:
        """Outputs at an end of the chunk."""
        if cache is not None:
            problem = self._window(x, padding, len(edge))
            if not problem.addressable or _calls.is_beaten("kd_decomposition", problem, JOINED):
                stop = stream.place(edge[-1]) + stream.reach + 1
                return self._tuned(
                    mx.concatenate([cache, x[:, :stop]], axis=1), 0, padding, derived=self._derived_joined
                )
        return self._sum(terms(stream, edge), len(edge), x, cache, stream, padding)

    def _sum(
        self,
        found: tuple[Term, ...],
        outputs: int,
        x: mx.array,
        cache: mx.array | None,
        stream: Stream,
        padding: Pair,
    ) -> mx.array:
        one = self._window(x, padding, 1)
        weight = self.weight
        held = {Held.INPUT: x} if cache is None else {Held.INPUT: x, Held.CACHE: cache}
        return add_up(
            found,
            outputs,
            held,
            stream.stride,
            lambda taps: self._kernels.of(weight, taps),
            _flat(one),
            lambda count: zeros_like_output(one, count, x),
        )


_stream = functools.lru_cache(maxsize=256)(Stream)
"""One object for equal ones, which keeps what it has worked out."""


@functools.lru_cache(maxsize=256)
def _window(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: str,
    stride: IntOrInts,
    padding: Pair,
    dilation: tuple[int, int, int],
    groups: int,
    outputs: int,
) -> Problem:
    frames = (outputs - 1) * triple(stride, "stride")[0] + (weight_shape[1] - 1) * dilation[0] + 1
    return Problem.parse(
        (shape[0], frames, *shape[2:]),
        weight_shape,
        dtype,
        stride=stride,
        padding=(0, *padding),
        dilation=dilation,
        groups=groups,
    )


@functools.lru_cache(maxsize=256)
def _flat(problem: Problem) -> FlatConvolution:
    return (flat_matmul if is_pointwise(problem) else flat_convolution)(problem)


def _kept(x: mx.array, cache: mx.array | None, stream: Stream) -> mx.array:
    """The frames that the output after these begins to see; a copy, so that nothing holds the chunk."""
    start = stream.place(stream.outputs)
    if start > stream.frames:
        msg = (
            f"this chunk ends within frames that no output sees, {start - stream.frames} before the next one that is "
            f"seen: its cache cannot tell. Under a depth stride of {stream.stride} end chunks elsewhere."
        )
        raise ValueError(msg)
    if start >= 0:
        return mx.contiguous(x[:, start:])
    if cache is not None:
        return mx.concatenate([cache[:, start:], x], axis=1)
    if stream.fill is Fill.ZEROS:
        return mx.pad(x, [(0, 0), (-start, 0), (0, 0), (0, 0), (0, 0)])
    return mx.concatenate([mx.repeat(x[:, :1], -start, axis=1), x], axis=1)
