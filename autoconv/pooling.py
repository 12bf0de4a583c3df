"""The pool: what all runs of one problem in one environment say together of each of its candidates.

Only times of one run were taken side by side, so that only ratios within a run are formed; of all runs together they
are pooled. Nothing here depends on the order in which records come: which run is the newest does not matter to any
time, and databases that were merged in another order say the same.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoconv import rank_sum
from autoconv.record import Record, Status

SINGLE = 1.5
"""A ratio that rests on a single sample of one side counts from here."""

OUTLIER = 1.15
"""A run may be off by this factor at least before it is an outlier, however closely the others agree."""

OUTLIER_MADS = 3 * 1.4826
"""Median absolute deviations that it may be off by: three standard deviations, were they normal (Leys et al., J. Exp.
Soc. Psychol. 49, 2013)."""

FEWEST = 3
"""Runs without which none can be told to be an outlier."""

BARS = {Status.CRASHED, Status.WRONG}
"""What bars a candidate, whatever else was found of it."""

_FAILURES = {Status.FAILED, Status.OUT_OF_MEMORY}
_SURVIVED = {Status.OK, Status.INACCURATE}

_UNTIMED = (Status.INACCURATE, Status.TOO_SLOW, Status.OVER_MEMORY, Status.NOT_STARTED, Status.CRASHED)
"""Of a candidate that no run timed, what says the most first."""


@dataclass(frozen=True)
class Run:
    """One run of the tuner over a problem.

    Attributes:
        name: Its identifier.
        records: What it found of each candidate, by the candidate's name.
    """

    name: str
    records: Mapping[str, Record]


@dataclass(frozen=True, slots=True)
class Part:
    """What one run adds to a pooled record.

    Attributes:
        record: The candidate's record of that run.
        base: The record of the same run that its times are compared with; None where that has no times.
        scale: How many times slower the base was in that run than in all runs together.
    """

    record: Record
    base: Record | None
    scale: float


@dataclass(frozen=True, slots=True)
class Pooled(Record):
    """One candidate's results of several runs together.

    Samples are those of the runs that count, each over its run's scale, as if the base had taken the same time in all
    of them; their places say nothing. Error, workspace and peak are the largest of any run. What only one run can have,
    such as when it was, is that of the last run of this status.

    Attributes:
        parts: The runs whose times count, the earliest first.
        outliers: The records whose times were left out because they are far off those of the other runs.
    """

    parts: tuple[Part, ...] = ()
    outliers: tuple[Record, ...] = ()

    @property
    def choosing_us(self) -> tuple[float, ...]:
        """The samples that choose, of every run."""
        return tuple(s / part.scale for part in self.parts for s in part.record.choosing_us)

    @property
    def judging_us(self) -> tuple[float, ...]:
        """The samples that judge, of every run."""
        return tuple(s / part.scale for part in self.parts for s in part.record.judging_us)


def timed(record: Record) -> tuple[Record, ...]:
    """The records, one a run, whose times count; none where there are no times."""
    if isinstance(record, Pooled):
        return tuple(part.record for part in record.parts)
    return (record,) if record.samples_us else ()


def left_out(record: Record) -> tuple[Record, ...]:
    """The records, one a run, whose times were left out as outliers."""
    return record.outliers if isinstance(record, Pooled) else ()


def provenance(record: Record) -> str:
    """Where a record's times come from, in words; empty for a single run of this database's own user."""
    out = len(left_out(record))
    found = timed(record) + left_out(record)
    imported = sum(r.origin != "" for r in found)
    if len(found) < 2 and not imported:
        return ""
    said = ["1 run" if len(found) == 1 else f"{len(found)} runs"]
    if imported:
        said.append(f"{imported} imported")
    if out:
        said.append("1 left out as an outlier" if out == 1 else f"{out} left out as outliers")
    return ", ".join(said)


def runs(records: Iterable[Record]) -> list[Run]:
    """The records by their runs, the earliest run first.

    A run has one record of a candidate. Should there be two, as when two files hold the run, an own one counts before
    an imported one, and else that whose text comes first.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        known = found.setdefault(record.run, {})
        twin = known.setdefault(record.candidate, record)
        if twin is not record and (record.origin, repr(record)) < (twin.origin, repr(twin)):
            known[record.candidate] = record
    when = {name: max(r.created for r in known.values()) for name, known in found.items()}
    return [Run(name, found[name]) for name in sorted(found, key=lambda name: (when[name], name))]


def barred(records: Sequence[Record]) -> dict[str, Record]:
    """The last record that bars a candidate, for each one that is barred, by its name.

    Once wrong is always wrong. What ended a process is barred unless it ran to its end later. What a file says against
    a candidate counts for nothing where it was found right here.
    """
    right = {r.candidate for r in records if r.status is Status.OK and not r.origin}
    against = [r for r in records if r.status in BARS and not (r.origin and r.candidate in right)]
    if not against:
        return {}
    survived: dict[str, float] = {}
    for record in records:
        if record.status in _SURVIVED:
            name = record.candidate
            survived[name] = max(record.created, survived.get(name, -math.inf))
    found: dict[str, Record] = {}
    for record in sorted(against, key=lambda r: (r.status is Status.CRASHED, *_age(r))):
        if record.status is Status.WRONG or record.created >= survived.get(record.candidate, -math.inf):
            found[record.candidate] = record
    return found


def pool(among: Sequence[Run], base: str, bars: Mapping[str, Record]) -> dict[str, Record]:
    """What the runs say together of every candidate, by its name; of a single run its very records.

    A candidate that was timed in any run is `ok`, unless it failed in as many runs as it ran in. In a run that is far
    off the others its times are left out; what else the run found of it counts.

    Args:
        among: The runs, each with a record of the base.
        base: Name of the candidate that times are compared with.
        bars: The records that bar candidates, by name; nothing else counts of those.
    """
    if len(among) == 1:
        return {**among[0].records, **bars}
    records: dict[str, dict[str, Record]] = {}
    for run in among:
        for name, record in run.records.items():
            records.setdefault(name, {})[run.name] = record
    statuses = {name: _status(own.values()) for name, own in records.items()}
    times = {
        name: {run: r for run, r in own.items() if r.status is Status.OK and r.samples_us}
        for name, own in records.items()
        if statuses[name] is Status.OK and name not in bars
    }
    bases = times.get(base, {})
    outliers = _outliers(times, base)
    medians = {run: statistics.median(record.choosing_us) for run, record in bases.items()}
    together = statistics.median(m for run, m in medians.items() if run not in outliers[base]) if medians else 1.0

    found = dict[str, Record](bars)
    for name, own in records.items():
        if name in bars:
            continue
        counted, out = times.get(name, {}), outliers.get(name, ())
        parts = [
            Part(record, bases.get(run), medians[run] / together if run in medians else 1.0)
            for run, record in counted.items()
            if run not in out
        ]
        found[name] = _pooled(
            list(own.values()), statuses[name], parts, [r for run, r in counted.items() if run in out]
        )
    return found


def speedup(record: Record, base: Record) -> tuple[float, float] | None:
    """(estimate, lower bound) of the base's time over a candidate's, on the samples that judge; None without times.

    Of several runs it is `pooled_ratio`, a run being a stratum, and does not depend on `base`. Of a run in which one of
    the two was given up after its first turn, what there is counts only if it differs by more than half; for the
    estimate only where no run has more.
    """
    if not isinstance(record, Pooled):
        return _in_one_run(record, base)
    pairs = [(part.record, part.base) for part in record.parts if part.base is not None]
    if len(pairs) < 2:
        return _in_one_run(*pairs[0]) if pairs else None
    judged = [(b.judging_us, r.judging_us) for r, b in pairs if b.judging_us and r.judging_us]
    once = [(r, b) for r, b in pairs if not (b.judging_us and r.judging_us)]
    single = [found for r, b in once if (found := _in_one_run(r, b)) is not None]
    if judged:
        return rank_sum.pooled_ratio(judged, [least for _, least in single])
    return statistics.median(gain for gain, _ in single), rank_sum.lower([least for _, least in single])


def _in_one_run(record: Record, base: Record) -> tuple[float, float] | None:
    if record.judging_us and base.judging_us:
        return rank_sum.ratio(base.judging_us, record.judging_us)
    if base.median_us is None or record.median_us is None:
        return None
    found = base.median_us / record.median_us
    return found, found if max(found, 1 / found) > SINGLE else 1.0


def _status(records: Collection[Record]) -> Status:
    """What several runs say of a candidate that none of them bars."""
    failures = Counter(r.status for r in records if r.status in _FAILURES)
    if failures and failures.total() >= sum(r.status in _SURVIVED for r in records):
        return max(sorted(failures), key=failures.__getitem__)
    if any(r.status is Status.OK and r.samples_us for r in records):
        return Status.OK
    present = {r.status for r in records}
    return next((status for status in _UNTIMED if status in present), Status.INACCURATE)


def _outliers(times: Mapping[str, Mapping[str, Record]], base: str) -> dict[str, frozenset[str]]:
    """Names of the runs that are outliers for each candidate.

    A run is if the candidate's ratio to the base, as a logarithm, is far off the median of the runs. Where more than
    half of a run's candidates are off to the same side it is the base that was off, and the run is an outlier for all
    of them. A candidate that was timed in no other run keeps it.
    """
    bases = {run: _log_median(record) for run, record in times.get(base, {}).items()}
    sides = {
        name: _sides({r: bases[r] - _log_median(own[r]) for r in own if r in bases})
        for name, own in times.items()
        if name != base
    }
    off = set()
    for run in bases:
        votes = Counter(of[run] for of in sides.values() if run in of)
        if max(votes[-1], votes[1]) > votes.total() / 2:
            off.add(run)
    found = {name: off | {run for run, side in sides.get(name, {}).items() if side} for name in times}
    return {name: frozenset() if out.issuperset(times[name]) else frozenset(out) for name, out in found.items()}


def _sides(logarithms: Mapping[str, float]) -> dict[str, int]:
    """By run, to which side of the median it is far off, -1 or 1; 0 where it is not; nothing where runs are too few."""
    if len(logarithms) < FEWEST:
        return {}
    middle = statistics.median(logarithms.values())
    mad = statistics.median(abs(x - middle) for x in logarithms.values())
    most = max(math.log(OUTLIER), OUTLIER_MADS * mad)
    return {run: (x - middle > most) - (middle - x > most) for run, x in logarithms.items()}


def _log_median(record: Record) -> float:
    return math.log(statistics.median(record.samples_us))


def _pooled(records: Sequence[Record], status: Status, parts: Sequence[Part], outliers: Sequence[Record]) -> Pooled:
    """One record of several runs' records of a candidate, of which `parts` and `outliers` have the times."""
    last = max(records, key=lambda r: (r.status is status, *_age(r)))
    changed: dict[str, Any] = {
        "status": status,
        "samples_us": tuple(s / part.scale for part in parts for s in part.record.samples_us),
        "error": max((r.error for r in records if r.error is not None), default=None),
        "workspace_bytes": max((r.workspace_bytes for r in records if r.workspace_bytes is not None), default=None),
        "peak_bytes": max((r.peak_bytes for r in records if r.peak_bytes is not None), default=None),
        "detail": "" if status is Status.OK else last.detail,
    }
    whole = {field.name: getattr(last, field.name) for field in dataclasses.fields(Record)}
    return Pooled(**(whole | changed), parts=tuple(parts), outliers=tuple(outliers))


def _age(record: Record) -> tuple[float, str]:
    """What puts records in one order, whatever order they came in."""
    return record.created, repr(record)
