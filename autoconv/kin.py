"""Kin: environments that differ in little, so that what won in one is worth a try in the other.

Another version of MLX or macOS, another number of GPU cores or another working set, all else equal: times of one decide
nothing in the other, and yet its winner is worth a try there.
"""

from __future__ import annotations

from collections.abc import Mapping

MAY_DIFFER = {
    "mlx": "MLX",
    "macos": "macOS",
    "gpu_cores": "GPU cores",
    "working_set": "working set",
}
"""Parts of an identity in which kin may differ, and what they are called."""

Identity = Mapping[str, object]


def are_kin(one: Identity, other: Identity) -> bool:
    """Whether two identities differ, and in nothing else than kin may."""
    return one != other and _rest(one) == _rest(other)


def differences(other: Identity, here: Identity) -> str:
    """In what another environment differs from this one: `MLX 0.32.4 rather than 0.33.0`."""
    parts = [
        f"{MAY_DIFFER.get(name, name)} {other.get(name, 'none')} rather than {here.get(name, 'none')}"
        for name in dict.fromkeys([*here, *other])
        if here.get(name) != other.get(name)
    ]
    return ", ".join(parts)


def _rest(identity: Identity) -> dict[str, object]:
    return {name: value for name, value in identity.items() if name not in MAY_DIFFER}
