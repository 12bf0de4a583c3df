"""Tables of outcomes, for terminals and for JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from autoconv.decision import NATIVE
from autoconv.problem import Kind
from autoconv.report.explanation import finite
from autoconv.report.grid import Column, Grid, paragraphs
from autoconv.sweep.runner import Ending, Outcome
from autoconv.words import counted

MANY = 40
"""Outcomes past which a table has a row a network."""


def outcome_table(outcomes: Sequence[Outcome]) -> Grid:
    """A row an outcome: network, layer, native's and the best time, winner, speed-up, error."""
    table = Grid(
        (
            Column("network", narrows=16),
            Column("layer", narrows=16),
            Column("convolution", beneath=True),
            Column("native ms", numbers=True),
            Column("best ms", numbers=True),
            Column("winner", beneath=True),
            Column("speed-up", numbers=True),
            Column("error", numbers=True, leaves=1),
        )
    )
    for outcome in outcomes:
        layer = outcome.layer
        decision = outcome.decision
        shape = str(layer.problem) + (" (crop)" if layer.crop_of else "")
        row = (
            layer.network,
            layer.layer,
            shape,
            _ms(outcome.native_us) or _native_state(outcome),
            _ms(outcome.best_us),
            decision.candidate if decision else str(outcome.ending),
            "" if outcome.speedup is None else f"{outcome.speedup:.2f}x",
            "" if outcome.error is None else f"{outcome.error:.1e}",
        )
        table.add(*row)
    return table


def network_table(outcomes: Sequence[Outcome]) -> Grid:
    """A row a network, on each device: how its problems ended, native's and the best time of a pass, and gains."""
    fleet = any(o.device for o in outcomes)
    numbers = {
        "problems": 0,
        "timed": 4,
        "known": 3,
        "failed": 6,
        "native ms": 0,
        "best ms": 5,
        "weighted": 0,
        "geometric": 2,
        "most": 1,
    }
    table = Grid(
        (
            *(Column(name, narrows=16) for name in (("device", "network") if fleet else ("network",))),
            *(Column(name, numbers=True, leaves=leaves) for name, leaves in numbers.items()),
            Column("won by, of other than native", beneath=True),
        )
    )
    networks: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        key: tuple[str, ...] = (outcome.device, outcome.layer.network) if fleet else (outcome.layer.network,)
        networks.setdefault(key, []).append(outcome)
    for key, members in networks.items():
        found = summary(members)
        both = [o for o in members if o.speedup is not None]
        before = sum(o.layer.count * (o.native_us or 0.0) for o in both)
        gains = (found["gain_weighted"], found["gain_geometric"], found["best_gain"])
        algorithms = Counter(o.decision.candidate.partition("(")[0] for o in members if o.decision)
        del algorithms[NATIVE]
        row = (
            *key,
            str(len(members)),
            *(str(sum(o.ending is ending for o in members)) for ending in (Ending.TIMED, Ending.KNOWN)),
            str(sum(o.failed for o in members) or ""),
            _ms(before or None),
            _ms(before / found["gain_weighted"] if before else None),
            *("" if gain is None else f"{gain:.2f}x" for gain in gains),
            ", ".join(f"{n} {name}" for name, n in algorithms.most_common()),
        )
        table.add(*row)
    return table


def _gain_weighted(outcomes: Sequence[Outcome]) -> float | None:
    """Count x native time over count x chosen time, of outcomes that have both."""
    before = sum(o.layer.count * (o.native_us or 0.0) for o in outcomes)
    after = sum(o.layer.count * (o.native_us or 0.0) / (o.speedup or 1.0) for o in outcomes)
    return before / after if after else None


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts and gains of a sweep, as plain values.

    `gain_weighted` is the sum of count x native time over the sum of count x chosen time; `gain_geometric` the
    geometric mean of native's time over the chosen one's. Both leave out problems that native cannot do.
    """
    both = [o for o in outcomes if o.speedup is not None]
    kinds = sorted({o.layer.problem.kind for o in outcomes}, key=list(Kind).index)
    statuses = Counter((v.record.algorithm, str(v.status)) for o in outcomes if o.decision for v in o.decision.verdicts)
    return {
        "problems": len(outcomes),
        "endings": {str(e): n for e, n in Counter(o.ending for o in outcomes).items()},
        "winners": dict(Counter(o.decision.candidate for o in outcomes if o.decision).most_common()),
        "native_cannot": sum(o.decision is not None and o.native_us is None for o in outcomes),
        "gain_weighted": _gain_weighted(both),
        "gain_by_kind": {str(k): _gain_weighted([o for o in both if o.layer.problem.kind is k]) for k in kinds},
        "gain_geometric": math.exp(statistics.fmean(math.log(o.speedup or 1.0) for o in both)) if both else None,
        "best_gain": max((o.speedup or 1.0 for o in both), default=None),
        "statuses": {f"{algorithm} {status}": n for (algorithm, status), n in sorted(statuses.items())},
    }


def print_outcomes(target: Console, outcomes: Sequence[Outcome]) -> None:
    """Print a table of the outcomes, by network where they are many, their summary and what could not be timed."""
    if outcomes:
        many = len(outcomes) > MANY or any(o.device for o in outcomes)
        target.print(network_table(outcomes) if many else outcome_table(outcomes))
        target.print()
    target.print(paragraphs([*summary_lines(summary(outcomes)), *failures(outcomes)]))


def outcomes_dict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcomes with their summary, as plain values for JSON."""
    return {"outcomes": [outcome_dict(o) for o in outcomes], "summary": summary(outcomes)}


def summary_lines(found: dict[str, Any]) -> list[str]:
    """The summary in a few lines for people."""
    if not found["problems"]:
        return ["nothing to time"]
    lines = [f"{counted(found['problems'], 'problem')}: " + ", ".join(f"{n} {e}" for e, n in found["endings"].items())]
    if found["winners"]:
        lines.append("winners: " + ", ".join(f"{n} {name}" for name, n in found["winners"].items()))
    if found["gain_weighted"]:
        lines.append(
            f"over native: {found['gain_weighted']:.2f}x time-weighted, {found['gain_geometric']:.2f}x geometric mean, "
            f"{found['best_gain']:.2f}x at most"
        )
        if len(found["gain_by_kind"]) > 1:
            gains = {kind.replace("_", " "): gain for kind, gain in found["gain_by_kind"].items() if gain}
            lines.append("time-weighted: " + ", ".join(f"{kind} {gain:.2f}x" for kind, gain in gains.items()))
    if found["native_cannot"]:
        lines.append(f"{found['native_cannot']} that native cannot do")
    return lines


def outcome_dict(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values for JSON."""
    layer, decision = outcome.layer, outcome.decision
    return {
        "network": layer.network,
        "part": layer.part,
        "layer": layer.layer,
        "count": layer.count,
        "problem": layer.problem.key,
        "kind": str(layer.problem.kind),
        "crop_of": layer.crop_of.key if layer.crop_of else None,
        "environment": outcome.environment or None,
        "device": outcome.device or None,
        "ending": str(outcome.ending),
        "why": outcome.why,
        "candidate": decision.candidate if decision else None,
        "native_us": outcome.native_us,
        "best_us": outcome.best_us,
        "speedup": outcome.speedup,
        "error": finite(outcome.error),
        "candidates": [
            {
                "candidate": v.record.candidate,
                "status": str(v.status),
                "median_us": v.record.median_us,
                "speedup": v.speedup,
                "error": finite(v.record.error),
                "bound": decision.bound if decision else None,
                "workspace_bytes": v.record.workspace_bytes,
                "peak_bytes": v.record.peak_bytes,
                "reason": v.reason,
            }
            for v in (decision.verdicts if decision else ())
        ],
    }


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each problem that was not timed or that no candidate does accurately."""
    return [f"{o.ending}: {_named(o)}: {o.why}" for o in outcomes if o.failed]


def _named(outcome: Outcome) -> str:
    """The network's name and the layer's, which of its gradients, and on which device of a fleet."""
    layer, kind = outcome.layer, outcome.layer.problem.kind
    gradient = "" if kind is Kind.FORWARD else f" ({kind.replace('_', ' ')})"
    device = f" on {outcome.device}" if outcome.device else ""
    return f"{layer.network}, {layer.layer}{gradient}{device}"


def _ms(time_us: float | None) -> str:
    return "" if time_us is None else f"{time_us / 1e3:.3f}"


def _native_state(outcome: Outcome) -> str:
    verdicts = outcome.decision.verdicts if outcome.decision else ()
    return next((str(v.status).replace("_", " ") for v in verdicts if v.record.candidate == "native"), "")
