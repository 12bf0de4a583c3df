"""How far off results may be, and how much further on a device that nobody has run on.

`TEST_SLACK=20` in the environment multiplies what is allowed where tests compare results of the default device: a Metal
GPU's own kernels, 2D Winograd above all, round in other places than those that the bounds were measured on. What is
wrong rather than rounded, a lost tap or a shifted frame, is off by the result's own size, and is still found. Bounds of
the library itself are not touched.
"""

from __future__ import annotations

import os

import mlx.core as mx

SLACK = float(os.environ.get("TEST_SLACK") or 1)
"""Times as far."""

EXACT_FLOAT32 = mx.default_device().type == mx.cpu or os.environ.get("MLX_ENABLE_TF32") == "0"
"""Whether the default device is known to compute in float32 what is; else perhaps in TF32, whose unit is float16's."""

FLOAT32 = max(SLACK * 1e-5, 0.0 if EXACT_FLOAT32 else 2e-3)
"""Relative L2 error of a float32 result of the default device: some roundings of its unit, 6e-8 or TF32's 5e-4."""
