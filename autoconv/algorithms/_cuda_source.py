"""Sources of CUDA kernels that include nothing, since MLX's headers take NVRTC 2 s a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from autoconv._backend import mx

Constants: TypeAlias = tuple[tuple[str, int], ...]
"""Names and values, int or bool."""

PACK = "template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };\n"

_FLOAT16 = """
struct half {
  unsigned short bits;
  half() = default;
  explicit __device__ half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
  explicit __device__ operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};
using T = half;
"""

_BFLOAT16 = """
struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  explicit __device__ bfloat16(float value) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const unsigned exact = __float_as_uint(value);
    const bool nan = (exact & 0x7fffffffu) > 0x7f800000u;  // rounded, it could become an infinity
    bits = nan ? 0x7fffu : (exact + 0x7fffu + (exact >> 16 & 1u)) >> 16;
#endif
  }
  explicit __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
using T = bfloat16;
"""

TYPES = {
    mx.float64: "using T = double;\n",
    mx.float32: "using T = float;\n",
    mx.float16: _FLOAT16,
    mx.bfloat16: _BFLOAT16,
}
"""What `T` is: constructed from a float, to nearest and ties to even, and converted to one; nothing more."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, for arrays of any `T` and with `V` and other constants left open.

    Attributes:
        name: C identifier.
        inputs: Names of the arrays that it reads, without the last one, `sizes`, whose elements are int32.
        outputs: Names of the arrays that it writes.
        body: What is between the braces.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str

    def source(self, dtype: mx.Dtype, constants: Constants) -> str:
        """All that is compiled; the kernel has its name, and takes pointers alone: inputs, `sizes`, outputs."""
        values = "".join(f"constexpr {type(value).__name__} {name} = {int(value)};\n" for name, value in constants)
        parameters = [*(f"const T* {n}" for n in self.inputs), "const int* sizes", *(f"T* {n}" for n in self.outputs)]
        head = f'extern "C" __global__ void {self.name}({", ".join(parameters)})'
        return f"{TYPES[dtype]}{PACK}{values}{head} {{{self.body}}}\n"
