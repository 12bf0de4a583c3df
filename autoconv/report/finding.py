"""A finding of the doctor's, and findings as a table or as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoconv.report.words import cell

if TYPE_CHECKING:
    from rich.table import Table


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


def table(findings: list[Finding]) -> Table:
    """The findings as a table of rich; advice stands beneath what it is about."""
    from rich.table import Table

    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for finding in findings:
        found.add_row(cell(finding.about), cell(finding.found))
        if finding.needs_attention:
            found.add_row("", cell(f"→ {finding.advice}"), style="yellow")
    return found
