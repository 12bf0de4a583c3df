"""Which cost model advises in an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoconv.environment import Environment
from autoconv.model.advice import Adviser
from autoconv.settings import Settings

Advisers = Callable[[Environment, Mapping[str, float], Settings], tuple[Adviser | None, str]]
"""From an environment, its ceilings (see `store.contract.Qualification`; empty where it was not qualified) and settings
to what advises there, or to None and why nothing does, in words."""


def adviser_for(_where: Environment, _ceilings: Mapping[str, float], _settings: Settings) -> tuple[Adviser | None, str]:
    """What advises in an environment, or None and why nothing does."""
    return None, "no model is there"
