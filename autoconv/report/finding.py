"""A finding of the doctor's, and findings as a table or as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoconv.report.grid import Column, Grid


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        about: What it is.
        found: What was found.
        advice: What to do about it; empty where all is well.
        values: Its numbers for programs, as plain values; bytes, GFLOP/s and counts, as their names say.
    """

    about: str
    found: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_attention(self) -> bool:
        """Whether something is to be done about it."""
        return bool(self.advice)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "about": self.about,
            "found": self.found,
            "advice": self.advice,
            "attention": self.needs_attention,
            "values": dict(self.values),
        }


def table(findings: list[Finding]) -> Grid:
    """The findings as a table for rich; advice stands beneath what it is about."""
    found = Grid((Column("about", style="bold"), Column("found", beneath=True)), headed=False)
    for finding in findings:
        found.add(finding.about, finding.found)
        if finding.needs_attention:
            found.add("", f"→ {finding.advice}", style="yellow")
    return found
