"""Real networks in MLX that never heard of autoconv, with random weights: what its users run, to be run whole."""

from networks import ltx2, nnunet, r3d18, wan21, x3d
from networks._network import Network, Size

NETWORKS: dict[str, Network] = {found.NETWORK.name: found.NETWORK for found in (wan21, ltx2, nnunet, r3d18, x3d)}
"""All of them, by name."""

__all__ = ["NETWORKS", "Network", "Size"]
