"""A finding of the doctor's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        about: What it is.
        found: What was found.
        advice: What to do about it; empty where all is well.
    """

    about: str
    found: str
    advice: str = ""
