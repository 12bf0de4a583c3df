"""A card: what a database of measurements holds, how it was made, and what it is worth.

It is made from the database alone, so that anybody can make it again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoconv import plain_file
from autoconv.algorithms import algorithms, places
from autoconv.decision import NATIVE, Decision, Limits, choose
from autoconv.errors import StoreError
from autoconv.record import Status
from autoconv.store import Store, open_store
from autoconv.store.transfer import shape_of
from autoconv.sweep import packaged_workloads, read_workload

OTHERS = "random and others"
"""Problems of none of the packaged networks."""

UNKNOWN = "unknown"
"""What a database does not tell."""

FAILURES = (Status.FAILED, Status.OUT_OF_MEMORY, Status.WRONG, Status.INACCURATE, Status.CRASHED)


@dataclass(frozen=True)
class Won:
    """What one problem is worth: its count, native's time, and how much faster the chosen one is."""

    count: int
    native_us: float
    speedup: float

    def times(self, count: int) -> Won:
        """The same, where it is called so many times as often."""
        return replace(self, count=self.count * count)


def worth(decision: Decision) -> Won | None:
    """What a decision is worth, called once; None where it is not accurate, or native does not run."""
    native_us = decision.median_us(NATIVE)
    if not decision.accurate or native_us is None or decision.margin is None:
        return None
    return Won(1, native_us, 1 + decision.margin)


def cards(store: Store) -> list[dict[str, Any]]:
    """A card for each environment of a database that has records, as plain values."""
    found = []
    for environment, (identity, circumstances) in store.environments().items():
        card = _card(store, environment)
        if card["problems"]:
            shown = {name: value for name, value in circumstances.items() if name != "python"}
            found.append({"environment": environment, "identity": identity, "circumstances": shown} | card)
    return found


def _card(store: Store, environment: str) -> dict[str, Any]:
    order = places(algorithms())
    noise = max((q.noise for q in store.qualifications() if q.environment == environment), default=0.0)
    limits = Limits(noise=noise)
    networks = networks_by_shape()
    won: defaultdict[str, list[Won]] = defaultdict(list)
    members: Counter[str] = Counter()
    dtypes: defaultdict[str, list[Won]] = defaultdict(list)
    winners: Counter[str] = Counter()
    statuses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    libraries: Counter[str] = Counter()
    created: list[float] = []
    records = samples = problems = undecided = native_cannot = 0
    for problem, found in store.all_records(environment):
        problems += 1
        records += len(found)
        samples += sum(len(r.samples_us) for r in found)
        libraries.update({r.library for r in found})
        created += [min(r.created for r in found), max(r.created for r in found)]
        for record in found:
            statuses[record.algorithm][str(record.status)] += 1
        decision = choose(found, limits, problem.dtype, order, operand_bytes=problem.bytes)
        names = networks.get(shape_of(problem.key), {OTHERS: 1})
        members.update(names.keys())
        if decision is None or not decision.accurate:
            undecided += 1
            continue
        winners[decision.candidate.partition("(")[0]] += 1
        one = worth(decision)
        if one is None:
            native_cannot += 1
            continue
        for name, count in names.items():
            won[name].append(one.times(count))
        dtypes[f"{problem.dtype}, {problem.kind.replace('_', ' ')}"].append(one)
    return {
        "problems": problems,
        "records": records,
        "samples": samples,
        "libraries": sorted(libraries),
        "measured": [_day(moment) for moment in ((min(created), max(created)) if created else ())],
        "noise": noise,
        "winners": dict(winners.most_common()),
        "native_cannot": native_cannot,
        "nothing_is_accurate": undecided,
        "by_dtype": {name: gains(wins, len(wins)) for name, wins in sorted(dtypes.items())},
        "by_network": {name: gains(won[name], members[name]) for name in sorted(members, key=_order)},
        "failures": {
            name: {status: n for status, n in sorted(found.items()) if status in FAILURES}
            for name, found in sorted(statuses.items())
            if any(status in FAILURES for status in found)
        },
        "timed": {name: found[Status.OK] for name, found in sorted(statuses.items())},
    }


def gains(wins: Iterable[Won], problems: int) -> dict[str, Any]:
    """How many problems, and gains over native: time-weighted by counts, the geometric mean, and the most."""
    wins = list(wins)
    before = sum(w.count * w.native_us for w in wins)
    after = sum(w.count * w.native_us / w.speedup for w in wins)
    return {
        "problems": problems,
        "weighted": before / after if after else None,
        "geometric": math.exp(statistics.fmean(math.log(w.speedup) for w in wins)) if wins else None,
        "most": max((w.speedup for w in wins), default=None),
    }


def networks_by_shape() -> dict[str, dict[str, int]]:
    """The packaged networks that make a convolution of this shape, in any dtype, with their counts."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for path in packaged_workloads().values():
        for layer in read_workload(path):
            counts = found[shape_of(layer.problem.key)]
            counts[layer.network] = counts.get(layer.network, 0) + layer.count
    return found


def _order(network: str) -> tuple[bool, str]:
    return network == OTHERS, network.casefold()


def _day(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(moment))
    except (OverflowError, OSError, ValueError):  # older versions imported any number
        return UNKNOWN


def write(database: Path) -> Path:
    """Write the card of a database beside it, as `NAME.md`; its file.

    Raises:
        StoreError: one of the two cannot be read or written.
    """
    card = database.with_suffix(".md")
    with closing(open_store(database, readonly=True, immutable=True)) as store:
        text = card_text(database, cards(store))
    with plain_file.refusing(card, StoreError):
        plain_file.write(card, text.encode())
    return card


def card_text(path: Path, found: Iterable[Mapping[str, Any]]) -> str:
    """Cards as one page of Markdown."""
    return "\n".join([f"# {path.name}", "", *(line for card in found for line in _lines(card, path))])


def _lines(card: Mapping[str, Any], path: Path) -> Iterator[str]:
    identity, circumstances = card["identity"], card["circumstances"]
    size = path.stat().st_size
    rows = {
        # Older versions imported any identity.
        "device": "{} ({}, {})".format(*(identity.get(n, UNKNOWN) for n in ("device", "backend", "architecture"))),
        "MLX": identity.get("mlx", UNKNOWN),
        "autoconv": ", ".join(card["libraries"]),
        "other settings that times depend on": _pairs(
            {k: v for k, v in identity.items() if k not in {"backend", "device", "architecture", "mlx"}}
        )
        or "MLX's defaults",
        "circumstances": _pairs(circumstances),
        "measured": " to ".join(dict.fromkeys(card["measured"])),
        "how": "in turns with native, one process at a time on the device; every candidate verified against float64",
        "problems, records, samples": f"{card['problems']}, {card['records']}, {card['samples']}",
        "size": f"{size / 1e6:.1f} MB, {size / max(1, card['problems']):.0f} bytes a problem",
        "native beats itself by at most": f"{card['noise']:.1%}",
        "MLX's own cannot": f"{card['native_cannot']} problems that another way can",
        "nothing is accurate enough": f"{card['nothing_is_accurate']} problems",
    }
    yield from ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    total = sum(card["winners"].values())
    yield from ["| algorithm | wins | share | timed | failures |", "| --- | ---: | ---: | ---: | --- |"]
    for name, timed in sorted(card["timed"].items(), key=lambda pair: -card["winners"].get(pair[0], 0)):
        wins, failures = card["winners"].get(name, 0), _pairs(card["failures"].get(name, {}), "{1} {0}")
        yield f"| `{name}` | {wins} | {wins / max(1, total):.1%} | {timed} | {failures} |"
    yield ""
    for title, groups in (("dtype and kind", card["by_dtype"]), ("network", card["by_network"])):
        yield from [f"| {title} | problems | time-weighted | geometric mean | most |", "| --- " + "| ---: " * 4 + "|"]
        for name, gains in groups.items():
            shown = ("" if gains[key] is None else f"{gains[key]:.2f}x" for key in ("weighted", "geometric", "most"))
            yield f"| {name} | {gains['problems']} | {' | '.join(shown)} |"
        yield ""


def _pairs(values: Mapping[str, object], form: str = "{0} {1}") -> str:
    return ", ".join(form.format(name.replace("_", " "), value) for name, value in values.items())
