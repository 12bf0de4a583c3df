"""An explanation: a decision with all that is known about its problem, as a table for people, HTML or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autoconv.model.counsel import Counsel

from autoconv.decision import Decision, Source
from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.report.grid import Column, Grid, paragraphs
from autoconv.words import printable

_COLUMNS = (
    Column("candidate"),
    Column("status", leaves=4, unless="ok"),
    Column("time ms", numbers=True),
    Column("spread", numbers=True, leaves=2),
    Column("vs native", numbers=True),
    Column("error", numbers=True),
    Column("bound", numbers=True, leaves=1),
    Column("workspace MB", numbers=True, leaves=3),
    Column("peak MB", numbers=True, leaves=5),
    Column("why", beneath=True),
)

COLUMNS = tuple(column.name for column in _COLUMNS)

WORDS = tuple(column.name for column in _COLUMNS if not column.numbers)
"""Columns of words; the others are numbers."""


@dataclass(frozen=True)
class Explanation:
    """What computes a convolution, and why.

    `print` shows it as plain text, rich's `print` as a table in colour, a notebook as HTML; `as_dict` and `to_json` are
    for programs.

    Attributes:
        problem: The convolution.
        environment: Where it would run.
        decision: What was chosen, from where, and every candidate that has a record.
        memory_bytes: Bytes that a candidate may take beyond its input, weight and output.
        candidates: Names of all candidates that apply, measured or not.
        counsel: What a cost model, or a prior, says of those that were not measured; None where all were, or it was
            not asked.
    """

    problem: Problem
    environment: Environment
    decision: Decision
    memory_bytes: float
    candidates: tuple[str, ...]
    counsel: Counsel | None = None

    def rows(self) -> list[tuple[str, ...]]:
        """A row of text for each candidate, those that were never measured last, with what is expected of them; in the
        order of `COLUMNS`.
        """
        rows: list[tuple[str, ...]] = []
        bound = self.decision.bound
        for verdict in self.decision.verdicts:
            record = verdict.record
            median, spread = record.median_us, record.spread
            rows.append(
                (
                    record.candidate,
                    str(verdict.status).replace("_", " "),
                    "" if median is None else f"{median / 1e3:.3f}",
                    "" if spread is None else f"{spread:.1%}",
                    "" if verdict.speedup is None else f"{verdict.speedup:.2f}x",
                    "" if record.error is None else f"{record.error:.1e}",
                    "" if record.error is None or bound is None else f"{bound:.1e}",
                    "" if record.workspace_bytes is None else f"{record.workspace_bytes / 1e6:.1f}",
                    "" if record.peak_bytes is None else f"{record.peak_bytes / 1e6:.1f}",
                    "; ".join(filter(None, (verdict.reason, verdict.provenance))),
                )
            )
        measured = {row[0] for row in rows}
        for name in self.candidates:
            if name not in measured:
                expected = self.counsel.forecast(name) if self.counsel is not None else ""
                rows.append((name, "not measured", *[""] * (len(COLUMNS) - 3), expected))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON: times in microseconds, memory in bytes.

        `workspace_bytes` is the estimate of what is taken beyond input, weight and output; `peak_bytes` is measured,
        with them, and null where it was not; `bound` is what the error was held to. `runs` are those that the times
        come from, `outliers` those whose times were left out, and `origins` the files that these were imported from, an
        empty text standing for own measurements. `advice` is what a cost model says, null where it was not asked:
        its `forecasts` are times over native's, the fastest first, each with the scale of its error as a logarithm.
        """
        decision = self.decision
        return {
            "problem": self.problem.key,
            "kind": str(self.problem.kind),
            "environment": {"id": self.environment.id, **self.environment.identity},
            "candidate": decision.candidate,
            "source": str(decision.source),
            "margin": decision.margin,
            "reason": decision.reason,
            "bound": decision.bound,
            "accurate": decision.accurate,
            "memory_limit_bytes": finite(self.memory_bytes),
            "gflop": self.problem.flops / 1e9,
            "candidates": [
                {
                    "candidate": v.record.candidate,
                    "version": v.record.version,
                    "status": str(v.status),
                    "median_us": v.record.median_us,
                    "samples_us": list(v.record.samples_us),
                    "spread": v.record.spread,
                    "speedup": v.speedup,
                    "error": finite(v.record.error),
                    "bound": decision.bound,
                    "workspace_bytes": v.record.workspace_bytes,
                    "peak_bytes": v.record.peak_bytes,
                    "reason": v.reason,
                    "runs": list(v.runs),
                    "outliers": list(v.outliers),
                    "origins": list(v.origins),
                }
                for v in decision.verdicts
            ],
            "advice": None if self.counsel is None else self.counsel.as_dict(),
            "not_measured": [c for c in self.candidates if c not in {v.record.candidate for v in decision.verdicts}],
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """What `as_dict` has, as JSON text that any reader takes: a number that is infinite is null.

        Args:
            indent: Spaces a level, as of `json.dumps`. Default: all on one line.
        """
        return json.dumps(self.as_dict(), indent=indent, allow_nan=False)

    def summary(self) -> list[str]:
        """Lines above the table: the problem, the device, the decision, the limits that candidates were held to, and
        what a cost model says.
        """
        decision = self.decision
        source = "" if decision.source is Source.NATIVE else f", from {decision.source}"
        limits = f"at most {self.memory_bytes / 1e9:.2f} GB beyond input, weight and output"
        if decision.bound is not None:
            limits = f"error at most {decision.bound:.1e}, {limits}"
        return [
            f"{self.problem}  ({self.problem.flops / 1e9:.3g} GFLOP)",
            f"on {self.environment}",
            f"{decision.candidate}{source}: {decision.reason}",
            limits,
            *(self.counsel.lines() if self.counsel is not None else ()),
        ]

    def table(self) -> Grid:
        """The rows as a table for rich, that of the choice in bold."""
        found = Grid(_COLUMNS)
        for row in self.rows():
            found.add(*row, style="bold" if row[0] == self.decision.candidate else "")
        return found

    def __rich__(self) -> RenderableType:
        """What rich prints: the lines of `summary` and the table."""
        from rich.console import Group

        return Group(paragraphs(self.summary()), self.table())

    def _repr_html_(self) -> str:
        """What a notebook shows: the same as a piece of HTML."""
        from autoconv.report.notebook import as_html

        return as_html(self.summary(), COLUMNS, self.rows(), words=WORDS, chosen=self.decision.candidate)

    def __str__(self) -> str:
        """The lines of `summary` and a table in plain text."""
        return printable("\n".join([*self.summary(), *plain_table(COLUMNS, self.rows())]))


def finite(number: float | None) -> float | None:
    """The number, None where it is infinite: JSON has no word for that."""
    return number if number is not None and math.isfinite(number) else None


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in plain text, columns as wide as they need."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
