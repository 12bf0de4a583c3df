"""Batch norm in 3D, which `mlx.nn` does not have, and statistics for it, which random weights do not have."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from networks._network import layers


class BatchNorm3d(layers.BatchNorm):  # type: ignore[misc]
    """Batch norm of `(N, D, H, W, C)`; MLX's takes four dimensions at most."""

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(x.shape)


def calibrated(model: Any, x: mx.array) -> None:
    """Give a model's batch norms the statistics of an input, as training would; the model is then one for inference.

    Without them values fade from layer to layer, until biases are all that is left of a deep network's output.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, BatchNorm3d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        model.train()
        mx.eval(model(x), model.parameters())
    model.eval()
