"""Layers: `mlx.nn.Conv3d` by the fastest way known, and the causal convolution of video VAEs.

`import autoconv.nn`; it imports `mlx.nn`, which `import autoconv` does not.
"""

from autoconv.nn._causal import CausalConv3d
from autoconv.nn._conv3d import Conv3d

__all__ = ["CausalConv3d", "Conv3d"]
