"""Judgements of a cost model as a table, for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from autoconv.report.words import cell

if TYPE_CHECKING:
    from autoconv.model.card import Judgement

WAYS = ("predict", "auto", "native", "winner")
"""The ways to choose that are shown: what the model does under either policy, native, and the floor."""

_NAMES = {"winner": "measured winner"}


def of_card(judgements: Mapping[str, Mapping[str, Mapping[str, Judgement]]]) -> Table:
    """A row a split and way, of all problems; where a device is held out, of each device."""
    found = _table("held out")
    for split, groups in judgements.items():
        for group, ways in groups.items():
            if split.startswith("device"):
                _add(found, f"{split}: {group}", ways)
            elif group == "all":
                _add(found, split, ways)
    return found


def of_groups(groups: Mapping[str, Mapping[str, Judgement]]) -> Table:
    """A row a group and way."""
    found = _table("of")
    for group, ways in groups.items():
        _add(found, group, ways)
    return found


def _table(what: str) -> Table:
    found = Table(box=None, header_style="bold", pad_edge=False)
    for name in (what, "choice by"):
        found.add_column(name, overflow="fold")
    for name in ("problems", "mean regret", "95th", "worst", "worse than native", "by at most", "gain captured"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("timed", justify="right", no_wrap=True)
    return found


def _add(table: Table, name: str, ways: Mapping[str, Judgement]) -> None:
    for way in WAYS:
        found = ways.get(way)
        if found is None:
            continue
        table.add_row(
            cell(name),
            cell(_NAMES.get(way, way)),
            str(found.problems),
            f"{found.regret_mean:.2%}",
            f"{found.regret_p95:.1%}",
            f"{found.regret_worst:.0%}",
            f"{found.worse_share:.2%}",
            f"{found.worse_most:.0%}",
            f"{found.captured:.1%}",
            f"{found.timed_share:.1%}",
        )
