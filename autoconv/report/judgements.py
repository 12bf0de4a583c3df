"""Judgements of a cost model as a table, for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoconv.report.grid import Column, Grid

if TYPE_CHECKING:
    from autoconv.model.card import Judgement

WAYS = ("predict", "auto", "native", "winner")
"""The ways to choose that are shown: what the model does under either policy, native, and the floor."""

_NAMES = {"winner": "measured winner"}


def of_card(judgements: Mapping[str, Mapping[str, Mapping[str, Judgement]]]) -> Grid:
    """A row a split and way, of all problems; where a device is held out, of each device."""
    found = _table("held out")
    for split, groups in judgements.items():
        for group, ways in groups.items():
            if split.startswith("device"):
                _add(found, f"{split}: {group}", ways)
            elif group == "all":
                _add(found, split, ways)
    return found


def of_groups(groups: Mapping[str, Mapping[str, Judgement]]) -> Grid:
    """A row a group and way."""
    found = _table("of")
    for group, ways in groups.items():
        _add(found, group, ways)
    return found


def _table(what: str) -> Grid:
    numbers = {
        "problems": 0,
        "mean regret": 0,
        "95th": 4,
        "worst": 1,
        "worse than native": 5,
        "by at most": 2,
        "gain captured": 6,
        "timed": 3,
    }
    named = (Column(name, numbers=True, leaves=leaves) for name, leaves in numbers.items())
    return Grid((Column(what, narrows=18), Column("choice by"), *named))


def _add(table: Grid, name: str, ways: Mapping[str, Judgement]) -> None:
    for way in WAYS:
        found = ways.get(way)
        if found is None:
            continue
        table.add(
            name,
            _NAMES.get(way, way),
            str(found.problems),
            f"{found.regret_mean:.2%}",
            f"{found.regret_p95:.1%}",
            f"{found.regret_worst:.0%}",
            f"{found.worse_share:.2%}",
            f"{found.worse_most:.0%}",
            f"{found.captured:.1%}",
            f"{found.timed_share:.1%}",
        )
