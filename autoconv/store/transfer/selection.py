"""A selection: which measurements leave in an export."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from autoconv.problem import Problem


@dataclass(frozen=True)
class Selection:
    """What an export is to hold: all that every given part takes.

    Attributes:
        device: Part of the device's name, in upper or lower case; empty for every device.
        environment: How the environment's id begins; empty for every environment.
        problems: Convolutions, in any dtype and with their gradients; None for all.
    """

    device: str = ""
    environment: str = ""
    problems: Collection[Problem] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.device and not self.environment and self.problems is None

    def takes_environment(self, key: object, identity: Mapping[str, object] | None) -> bool:
        """Whether an environment's measurements are selected."""
        device = str((identity or {}).get("device", ""))
        return str(key).startswith(self.environment) and self.device.casefold() in device.casefold()

    def takes_problem(self, key: object) -> bool:
        """Whether the problem with this key is selected."""
        return self.problems is None or shape_of(str(key)) in self._shapes

    @cached_property
    def _shapes(self) -> frozenset[str]:
        return frozenset(shape_of(problem.key) for problem in self.problems or ())


def shape_of(key: str) -> str:
    """What a key says beside kind and dtype, which are its first two words."""
    return key.split(" ", 2)[-1]
