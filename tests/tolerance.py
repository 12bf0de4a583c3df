"""How much further off than elsewhere results may be on a device that nobody has run on.

`TEST_SLACK=20` in the environment multiplies what is allowed where tests compare results of the default device: a Metal
GPU's own kernels, 2D Winograd above all, round in other places than those that the bounds were measured on. What is
wrong rather than rounded, a lost tap or a shifted frame, is off by the result's own size, and is still found. Bounds of
the library itself are not touched.
"""

from __future__ import annotations

import os

SLACK = float(os.environ.get("TEST_SLACK") or 1)
"""Times as far."""
