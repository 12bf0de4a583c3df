"""Layers: `mlx.nn.Conv3d` by the fastest way known.

`import autoconv.nn`; it imports `mlx.nn`, which `import autoconv` does not.
"""

from autoconv.nn._conv3d import Conv3d

__all__ = ["Conv3d"]
