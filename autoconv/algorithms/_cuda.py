"""Elementwise kernels of our own for CUDA.

MLX's fused kernels moved 400 to 900 GB/s of an H100's 3350 on sums of six arrays; these move 1800 to 2400. (On Metal
MLX's are taken, and nothing here is used.) Each thread handles 16 bytes of every array, in float32.

They are compiled by `_nvrtc` and launched by `mx.fast.precompiled_cuda_kernel`. `mx.fast.cuda_kernel` runs the same
ones, but compiles each with MLX's headers, for 1.7 to 2 s in every process: an H100's first run took 87 s for that. So
it is taken only where ours cannot be.

Such kernels have no derivatives. So each stands beside the same function in plain operations, whose derivatives it
takes. Nor can they be mapped: under `mx.vmap` MLX maps all that a custom function is made of, whatever its own rule for
that is, and raises `ValueError`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from autoconv._backend import mx
from autoconv.algorithms import _nvrtc
from autoconv.algorithms._cuda_source import PACK, Constants, Kernel
from autoconv.algorithms._mlx import rounded

_log = logging.getLogger("autoconv")

Rows: TypeAlias = tuple[tuple[float, ...], ...]
"""Sums to take: each row has a factor for every array."""

Arrays: TypeAlias = tuple[mx.array, ...]
Launch: TypeAlias = Callable[..., list[mx.array]]

VECTOR_BYTES = 16
THREADS = 256

_cuda = bool(mx.cuda.is_available())


def is_current() -> bool:
    """Whether what is computed now runs on CUDA."""
    return _cuda and mx.default_device() == mx.gpu


def differentiable(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`fast`, whose derivatives are those of `plain`, which computes the same."""
    function = mx.custom_function(fast)

    @function.vjp
    def vjp(primals: Any, cotangents: Any, _outputs: Any) -> Any:
        found = mx.vjp(plain, _listed(primals), _listed(cotangents))[1]
        return tuple(found) if isinstance(primals, (list, tuple)) else found[0]

    @function.jvp
    def jvp(primals: Any, tangents: Any) -> Any:
        pairs = zip(_listed(primals), _listed(tangents), strict=True)
        along = [mx.zeros_like(p) if t is None else t for p, t in pairs]
        found = mx.jvp(plain, _listed(primals), along)[1]
        return found[0] if len(found) == 1 else tuple(found)

    return function


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def vector(row: int, item_bytes: int) -> int:
    """Elements that a thread handles, for arrays whose rows have so many."""
    return VECTOR_BYTES // item_bytes if row * item_bytes % VECTOR_BYTES == 0 else 1


def _kernel(name: str, rows: Rows, loads: str, stores: str, *, one_input: bool, one_output: bool) -> Kernel:
    """A kernel that loads `a[i]`, `V` floats of each array, and stores `sum[r]`, one for each row."""
    count = len(rows[0])
    sums = [
        " + ".join(f"({factor!r}f) * a[{i}][k]" for i, factor in enumerate(row) if factor) or "0.0f" for row in rows
    ]
    inputs = ("x",) if one_input else tuple(f"x{i}" for i in range(count))
    outputs = ("y",) if one_output else tuple(f"y{r}" for r in range(len(rows)))
    pointers = " | ".join(f"reinterpret_cast<unsigned long long>({name})" for name in inputs)
    body = f"""
  using P = Pack<T, V>;
  const unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= (unsigned)sizes[0]) return;
  const bool aligned = ({pointers}) % sizeof(P) == 0;
  float a[{count}][V];
  {loads}
  P sum[{len(rows)}];
  #pragma unroll
  for (int k = 0; k < V; ++k) {{
    {" ".join(f"sum[{r}].v[k] = T({text});" for r, text in enumerate(sums))}
  }}
  {stores}
"""
    return Kernel(f"autoconv_{name}", inputs, outputs, body)


def _unpack(index: int, pointer: str, offset: str) -> str:
    """Load `a[index]` from a pack; element by element where an array is a view that begins at an odd place."""
    return (
        f"if (aligned) {{ const P p = reinterpret_cast<const P*>({pointer})[{offset}];"
        f' _Pragma("unroll") for (int k = 0; k < V; ++k) a[{index}][k] = float(p.v[k]); }}'
        f" else {{ const T* p = {pointer} + (unsigned long long)({offset}) * V;"
        f' _Pragma("unroll") for (int k = 0; k < V; ++k) a[{index}][k] = float(p[k]); }}'
    )


def _unpack_each(rows: Rows) -> str:
    """Load the thread's own pack of each array."""
    return "\n  ".join(_unpack(i, f"x{i}", "e") for i in range(len(rows[0])))


def _pack_each(rows: Rows) -> str:
    """Store each sum as the thread's own pack of an array."""
    return " ".join(f"reinterpret_cast<P*>(y{r})[e] = sum[{r}];" for r in range(len(rows)))


def _launch(
    kernel: Kernel,
    arrays: Sequence[mx.array],
    sizes: Sequence[int],
    width: int,
    shapes: Sequence[tuple[int, ...]],
    **flags: bool,
) -> Arrays:
    """Run a kernel with `sizes[0]` threads; the others are what its source reads."""
    dtype = arrays[0].dtype
    run = _compiled(kernel, dtype, (("V", width), *flags.items()))
    return tuple(
        run(
            inputs=[*arrays, mx.array(list(sizes), mx.int32)],
            grid=(rounded(sizes[0], THREADS), 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=[dtype] * len(shapes),
        )
    )


@functools.cache
def _compiled(kernel: Kernel, dtype: mx.Dtype, constants: Constants) -> Launch:
    """What launches the kernel, compiled by ourselves or, where that fails, by MLX; the log says why."""
    try:
        return _by_ourselves(kernel, dtype, constants)
    except _nvrtc.NvrtcError as error:
        _say_once(str(error))
        return _by_mlx(kernel, dtype, constants)


def _by_ourselves(kernel: Kernel, dtype: mx.Dtype, constants: Constants) -> Launch:
    if not hasattr(mx.fast, "precompiled_cuda_kernel"):  # its documentation calls it experimental
        msg = f"MLX {mx.__version__} has no precompiled_cuda_kernel"  # type: ignore[attr-defined]  # its stub has none
        raise _nvrtc.NvrtcError(msg)
    binary = _nvrtc.compiled(kernel.source(dtype, constants), _architecture())
    return functools.partial(
        mx.fast.precompiled_cuda_kernel,
        name=kernel.name,
        compiled_source=binary,
        scalars=[],
        ensure_row_contiguous=True,
    )


def _by_mlx(kernel: Kernel, dtype: mx.Dtype, constants: Constants) -> Launch:
    inputs, outputs = [*kernel.inputs, "sizes"], list(kernel.outputs)
    launch = cast("Launch", mx.fast.cuda_kernel(kernel.name, inputs, outputs, kernel.body, PACK))
    return functools.partial(launch, template=[("T", dtype), *constants])


def _architecture() -> str:
    return str(mx.device_info(mx.Device(mx.gpu))["architecture"])


@functools.cache
def _say_once(reason: str) -> None:
    _log.warning("MLX compiles our CUDA kernels, for seconds each: %s", reason)


@functools.cache
def _sums(rows: Rows) -> Kernel:
    return _kernel("sums", rows, _unpack_each(rows), _pack_each(rows), one_input=False, one_output=False)


def combine(rows: Rows, arrays: Sequence[mx.array]) -> Arrays:
    """For each row the sum of its factors times the arrays, which have one shape."""
    size = arrays[0].size
    width = vector(size, arrays[0].itemsize)
    return _launch(_sums(rows), arrays, [size // width], width, [arrays[0].shape] * len(rows))


@functools.cache
def _taps(rows: Rows) -> Kernel:
    taps = len(rows[0])
    loads = f"const unsigned f = e % sizes[1], o = e / sizes[1] * {taps};\n  "
    loads += "\n  ".join(_unpack(k, "x", f"(o + {k}) * sizes[1] + f") for k in range(taps))
    return _kernel("taps", rows, loads, _pack_each(rows), one_input=True, one_output=False)


def combine_taps(rows: Rows, weight: mx.array) -> Arrays:
    """For each row the sum of its factors times the depth taps of a weight `(C_out, KD, KH, KW, C)`."""
    outputs, taps = weight.shape[:2]
    row = weight.size // (outputs * taps)
    width = vector(row, weight.itemsize)
    shape = (outputs, *weight.shape[2:])
    return _launch(_taps(rows), [weight], [outputs * row // width, row // width], width, [shape] * len(rows))


@functools.cache
def _frames(rows: Rows) -> Kernel:
    loads = "const unsigned f = e % sizes[1], b = e / sizes[1];\n"
    loads += "  const int t = b % sizes[2], n = b / sizes[2], d = t * sizes[5] - sizes[4];\n"
    for i in range(len(rows[0])):
        load = _unpack(i, "x", f"(unsigned)(n * sizes[3] + d + {i}) * sizes[1] + f")
        loads += f"  if (d + {i} >= 0 && d + {i} < sizes[3]) {{ {load} }}\n"
        loads += f"  else {{ for (int k = 0; k < V; ++k) a[{i}][k] = 0.0f; }}\n"
    return _kernel("frames", rows, loads, _pack_each(rows), one_input=True, one_output=False)


def combine_frames(rows: Rows, input: mx.array, tiles: int, step: int, first: int) -> Arrays:
    """For each row the sum of its factors times the frames of every tile: `(N * tiles, H, W, C)` each.

    Args:
        rows: As many as outputs, with as many factors as a tile has frames.
        input: `(N, D, H, W, C)`.
        tiles: How many tiles.
        step: Frames from one tile to the next.
        first: First frame of the first tile; what lies before the input or past it counts as zeros.
    """
    batch, depth = input.shape[:2]
    row = input.size // (batch * depth)
    width = vector(row, input.itemsize)
    sizes = [batch * tiles * row // width, row // width, tiles, depth, -first, step]
    shape = (batch * tiles, *input.shape[2:])
    return _launch(_frames(rows), [input], sizes, width, [shape] * len(rows))


@functools.cache
def _to_frames(rows: Rows) -> Kernel:
    loads = "const unsigned f = e % sizes[1], b = e / sizes[1];\n"
    loads += f"  const int t = (b % sizes[2]) * {len(rows)}, n = b / sizes[2];\n"
    loads += f"  const unsigned o = n * sizes[3] + t;\n  {_unpack_each(rows)}"
    stores = "\n  ".join(
        f"if (t + {r} < sizes[3]) reinterpret_cast<P*>(y)[(o + {r}) * sizes[1] + f] = sum[{r}];"
        for r in range(len(rows))
    )
    return _kernel("to_frames", rows, loads, stores, one_input=False, one_output=True)


def combine_to_frames(rows: Rows, arrays: Sequence[mx.array], batch: int, frames: int) -> mx.array:
    """The sums of each row, a frame of a tile, put in order: `(N, frames, H, W, C)`.

    Args:
        rows: As many as frames of a tile.
        arrays: One for each factor, `(N * tiles, H, W, C)`.
        batch: N.
        frames: Those of the output; what the last tile has beyond them is left out.
    """
    tiles = arrays[0].shape[0] // batch
    row = arrays[0].size // arrays[0].shape[0]
    width = vector(row, arrays[0].itemsize)
    sizes = [batch * tiles * row // width, row // width, tiles, frames]
    (output,) = _launch(_to_frames(rows), arrays, sizes, width, [(batch, frames, *arrays[0].shape[1:])])
    return output


_STACK = Kernel(
    "autoconv_stack",
    ("x",),
    ("y",),
    """
  using P = Pack<T, V>;
  const unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= (unsigned)sizes[0]) return;
  const int frames = sizes[1], positions = sizes[2], channels = sizes[3], taps = sizes[4], apart = sizes[5];
  const unsigned packs = sizes[6];
  const unsigned b = e / packs / positions;
  const unsigned position = e / packs % positions;
  const int n = b / sizes[7], first = (int)(b % sizes[7]) * sizes[8] - sizes[9];
  int c = (e % packs) * V, k = c / channels;
  c -= k * channels;
  P found;
  if (ALIGNED && reinterpret_cast<unsigned long long>(x) % sizeof(P) == 0) {
    const int d = first + k * apart;
    if (k < taps && d >= 0 && d < frames) {
      found = reinterpret_cast<const P*>(x + ((unsigned)(n * frames + d) * positions + position) * channels + c)[0];
    } else {
      for (int i = 0; i < V; ++i) found.v[i] = T(0.0f);
    }
  } else {
    #pragma unroll
    for (int i = 0; i < V; ++i) {
      const int d = first + k * apart;
      const bool seen = k < taps && d >= 0 && d < frames;
      found.v[i] = seen ? x[((unsigned)(n * frames + d) * positions + position) * channels + c] : T(0.0f);
      if (++c == channels) { c = 0; ++k; }
    }
  }
  reinterpret_cast<P*>(y)[e] = found;
""",
)


@dataclass(frozen=True)
class Stack:
    """Which frames are stacked for each output.

    Attributes:
        taps: How many.
        apart: Frames between two taps.
        first: Frame that the first tap of the first output sees; it, as others, may lie outside the input.
        outputs: How many outputs.
        step: Frames from one output to the next.
        channels: Those of the stack, zeros at their end included.
    """

    taps: int
    apart: int
    first: int
    outputs: int
    step: int
    channels: int


def _stack_on_cuda(input: mx.array, stack: Stack) -> mx.array:
    batch, frames, height, width, channels = input.shape
    pack = vector(stack.channels, input.itemsize)
    size = batch * stack.outputs * height * width * stack.channels // pack
    sizes = [size, frames, height * width, channels, stack.taps, stack.apart, stack.channels // pack]
    sizes += [stack.outputs, stack.step, -stack.first]
    shape = (batch * stack.outputs, height, width, stack.channels)
    (found,) = _launch(_STACK, [input], sizes, pack, [shape], ALIGNED=channels % pack == 0)
    return found


def _stack_plainly(input: mx.array, stack: Stack) -> mx.array:
    firsts = [stack.first + k * stack.apart for k in range(stack.taps)]
    span = (stack.outputs - 1) * stack.step + 1
    low, high = max(0, -firsts[0]), max(0, firsts[-1] + span - input.shape[1])
    padded = mx.pad(input, [(0, 0), (low, high), (0, 0), (0, 0), (0, 0)])
    seen = [padded[:, low + first : low + first + span : stack.step] for first in firsts]
    spare = stack.channels - stack.taps * input.shape[-1]
    if spare:
        seen.append(mx.zeros((*seen[0].shape[:-1], spare), input.dtype))
    return mx.flatten(mx.concatenate(seen, axis=-1), 0, 1)


@functools.cache
def stacker(stack: Stack) -> Callable[[mx.array], mx.array]:
    """What stacks the frames of an input `(N, D, H, W, C)` on the channels: `(N * outputs, H, W, channels)`."""
    return differentiable(lambda input: _stack_on_cuda(input, stack), lambda input: _stack_plainly(input, stack))
