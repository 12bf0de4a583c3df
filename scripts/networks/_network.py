"""What a network that is run as a whole is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as _layers

layers: Any = _layers
"""`mlx.nn`, which has no types."""

Model: TypeAlias = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Size:
    """A network at a size.

    Attributes:
        input_shape: `(N, D, H, W, C)` of what one pass takes.
        build: The model, with random weights.
    """

    input_shape: tuple[int, int, int, int, int]
    build: Callable[[], Any]


@dataclass(frozen=True)
class Network:
    """A network at the size at which it is used, and at one that a CPU runs in a moment.

    Attributes:
        name: What it is called by.
        title: For people.
        full: As it is used.
        small: The same layers, narrower, over less.
    """

    name: str
    title: str
    full: Size
    small: Size

    def at(self, size: str) -> Size:
        """`full` or `small`."""
        return {"full": self.full, "small": self.small}[size]
