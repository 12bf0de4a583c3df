"""A selection: which measurements leave in an export."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
        named: What these are called, for people.
    """

    device: str = ""
    environment: str = ""
    problems: Collection[Problem] | None = None
    named: str = ""

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

    def lacking(self, environments: Iterable[tuple[object, Mapping[str, object] | None]]) -> str:
        """Why nothing is selected, in words.

        Args:
            environments: Those that there are, by id, with their identities.
        """
        known = [(str(key), str((identity or {}).get("device", key))) for key, identity in environments]
        if not known:
            return "nothing was measured yet"
        if not any(self.device.casefold() in device.casefold() for _, device in known):
            there = ", ".join(sorted({device for _, device in known}))
            return f"no device has {self.device!r} in its name; there are: {there}"
        if not any(key.startswith(self.environment) for key, _ in known):
            there = ", ".join(sorted({key for key, _ in known}))
            return f"no environment's id begins with {self.environment!r}; there are: {there}"
        what = f"of {self.named or 'these convolutions'} nothing" if self.problems is not None else "nothing"
        where = f" on a device with {self.device!r} in its name" if self.device else ""
        return f"{what} was measured{where}"

    @cached_property
    def _shapes(self) -> frozenset[str]:
        return frozenset(shape_of(problem.key) for problem in self.problems or ())


def shape_of(key: str) -> str:
    """What a key says beside kind and dtype, which are its first two words."""
    return key.split(" ", 2)[-1]
