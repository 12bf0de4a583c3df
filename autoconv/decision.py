"""The one place that decides: from records and limits to a decision that explains itself."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from autoconv import accuracy as accuracies
from autoconv import pooling
from autoconv.pooling import Run, speedup
from autoconv.record import Record, Status

NATIVE = "native"

MIN_MARGIN = 0.02
"""Native is kept unless another is faster by more than this."""

TIE = 0.01
"""Medians closer than this are a tie, which goes by the candidates' order."""

MEMORY_TIE = 0.03
"""Of candidates within this of the fastest the one that takes the least memory is taken."""

MATERIAL = 0.05
MATERIAL_BYTES = 1e6
"""Memory that differs by less than either, relative or in bytes, is a tie."""

LOSER = 2.0
"""A candidate whose first run takes more than this times the best is not timed further."""

SHORTEST_US, LONGEST_US = 1e-12, 1e18
"""Times that no convolution takes; a record with others, which a file may hold, is left out."""

_BY_LIMITS = {Status.OK, Status.INACCURATE, Status.OVER_MEMORY}
"""Statuses that depend on what a candidate is held to."""


class Source(StrEnum):
    """Where a decision came from."""

    MEMORY = "memory"
    """Known in this process; `statistics` alone uses it."""
    DATABASE = "database"
    """Records of the user's own database."""
    SHIPPED = "shipped"
    """Records of a database that came with the package."""
    MODEL = "model"
    """The learned cost model."""
    MEASURED = "measured"
    """Timed just now."""
    NATIVE = "native"
    """Nothing is known, or nothing may be done; so MLX's own convolution."""


@dataclass(frozen=True)
class Verdict:
    """One candidate in the light of the limits.

    Attributes:
        record: Its record; of several runs that of their pool.
        status: `ok` if it may win, else why not; for a record whose own status is `ok` that can be `inaccurate` or
            `over_memory` under these limits.
        speedup: Native's time over its own, of the samples that judge; None where there are none.
        reason: Why it was or was not taken, in words.
    """

    record: Record
    status: Status
    speedup: float | None
    reason: str

    @property
    def runs(self) -> tuple[str, ...]:
        """Identifiers of the runs that its times come from, the earliest first."""
        return tuple(r.run for r in pooling.timed(self.record))

    @property
    def outliers(self) -> tuple[str, ...]:
        """Identifiers of the runs whose times of it were left out, far off those of the other runs."""
        return tuple(r.run for r in pooling.left_out(self.record))

    @property
    def origins(self) -> tuple[str, ...]:
        """The files that these runs were imported from, outliers too, each once; an empty text for own measurements."""
        found = pooling.timed(self.record) + pooling.left_out(self.record)
        return tuple(sorted({r.origin for r in found}))

    @property
    def provenance(self) -> str:
        """Where its times come from: `3 runs, 1 imported, 1 left out as an outlier`; empty for a single own run."""
        return pooling.provenance(self.record)


@dataclass(frozen=True)
class Decision:
    """A chosen candidate.

    Attributes:
        candidate: Its name.
        source: Where the choice came from.
        margin: How much faster than native it is, 0.25 being a quarter; 0 for native itself, None where unknown.
        reason: Why, in words.
        bound: The relative L2 error that candidates were held to; None where none were compared.
        accurate: Whether the candidate is within that bound. If none is, the most accurate one is chosen.
        within_memory: Whether it keeps to the memory limit. If none does, the one that takes the least is chosen.
        provisional: Whether it stands only until the problem can be timed.
        verdicts: Every candidate that has a record, in their order.
    """

    candidate: str
    source: Source
    margin: float | None
    reason: str
    bound: float | None = None
    accurate: bool = True
    within_memory: bool = True
    provisional: bool = False
    verdicts: tuple[Verdict, ...] = ()

    def median_us(self, candidate: str) -> float | None:
        """A candidate's median time in microseconds, None where it has none."""
        return next((v.record.median_us for v in self.verdicts if v.record.candidate == candidate), None)


@dataclass(frozen=True)
class Limits:
    """What a candidate is held to.

    Attributes:
        accuracy: `"native"`, `"strict"` or a relative L2 error.
        memory_bytes: Bytes that it may take beyond its input, weight and output.
        noise: How far native beats itself on this device (see `store.contract.Qualification`).
    """

    accuracy: str | float = "native"
    memory_bytes: float = math.inf
    noise: float = 0.0


def native(reason: str, source: Source = Source.NATIVE) -> Decision:
    """The decision for MLX's own convolution where nothing was compared."""
    return Decision(NATIVE, source, None, reason)


def is_credible(record: Record) -> bool:
    """Whether a convolution may have taken a record's times."""
    return all(SHORTEST_US <= s <= LONGEST_US for s in record.samples_us)


def choose(
    records: Sequence[Record],
    limits: Limits,
    dtype: str,
    order: Mapping[str, int],
    source: Source = Source.DATABASE,
    *,
    operand_bytes: int | None = None,
    chunked: Collection[str] = (),
) -> Decision | None:
    """The winner among the records of one problem in one environment, in whatever order they come.

    All runs that tell under these limits decide together (see `pooling`). A run tells if it has native, if every
    candidate in it that may run now was timed, and if, where the memory limit leaves a candidate of it out, those in
    chunks that would take its place were tried in it. So runs under several limits live side by side. What was wrong or
    ended a process in any run at all is barred.

    Args:
        records: In any order.
        limits: What candidates are held to.
        dtype: The problem's dtype.
        order: Place of each algorithm where times tie, by name and version as `name@version`; records of other
            algorithms or versions are left out. Of one algorithm's candidates that tie, parameters settle it.
        source: Where the records came from.
        operand_bytes: Bytes of the problem's input, weight and output, which measured peaks include. Default: not
            known, so that the estimates count.
        chunked: Names of the candidates in chunks that are offered under these limits.

    Returns:
        The decision; None where no run tells.
    """
    known = [r for r in records if f"{r.algorithm}@{r.version}" in order and is_credible(r)]
    known.sort(key=lambda r: (order[f"{r.algorithm}@{r.version}"], _natural(r.parameters), r.parameters))
    bars = pooling.barred(known)

    def tells(run: Run) -> bool:
        return _tells(run, bars, limits, dtype, operand_bytes, chunked)

    telling = [run for run in pooling.runs(known) if tells(run)]
    if not telling:
        return None
    pooled = pooling.pool(telling, NATIVE, bars)
    places = dict.fromkeys(r.candidate for r in known)
    return _among([pooled[name] for name in places if name in pooled], limits, dtype, source, operand_bytes)


def _tells(
    run: Run,
    bars: Mapping[str, Record],
    limits: Limits,
    dtype: str,
    operand_bytes: int | None,
    chunked: Collection[str],
) -> bool:
    """Whether a run tells under these limits, by what it found itself and who is barred."""
    if NATIVE not in run.records:
        return False
    known = {**run.records, **bars}
    bound = accuracies.bound(limits.accuracy, dtype, _native_error(known.values()))
    statuses = [(r, _status(r, bound, limits, operand_bytes)) for r in known.values()]
    if any(status is Status.OK and not r.samples_us for r, status in statuses):
        return False
    if all(status is not Status.OVER_MEMORY for _, status in statuses):
        return True
    algorithms = {r.algorithm for r in known.values()}
    return all(name in known or name.partition("(")[0] not in algorithms for name in chunked)


def _among(known: Sequence[Record], limits: Limits, dtype: str, source: Source, operand_bytes: int | None) -> Decision:
    """The winner among one record a candidate, in their order."""
    base = next(r for r in known if r.candidate == NATIVE)
    bound = accuracies.bound(limits.accuracy, dtype, _native_error(known))
    verdicts = [_judge(r, base, bound, limits, operand_bytes) for r in known]
    eligible = [v for v in verdicts if v.status is Status.OK]
    if not eligible:
        found = None
        if all(v.status is not Status.INACCURATE for v in verdicts):
            found = _least_memory(verdicts, bound, limits, source, operand_bytes)
        return found or _least_wrong(verdicts, bound, source)

    winner, margin, reason = _winner(eligible, base, limits)
    if all(v.record is not base for v in eligible):
        reason = f"{reason}; {_native_s_state(next(v for v in verdicts if v.record is base))}"
    verdicts = [replace(v, reason=reason) if v is winner else v for v in verdicts]
    return Decision(winner.record.candidate, source, margin, reason, bound, accurate=True, verdicts=tuple(verdicts))


def _native_error(known: Iterable[Record]) -> float | None:
    """Native's error; where native was left out for its memory or its size, that of native in chunks."""
    natives = sorted((r for r in known if r.algorithm == NATIVE), key=lambda r: r.candidate != NATIVE)
    ran = next((r for r in natives if r.status not in {Status.OVER_MEMORY, Status.NOT_STARTED}), None)
    return ran.error if ran is not None and ran.status in {Status.OK, Status.INACCURATE} else None


def _winner(eligible: Sequence[Verdict], base: Record, limits: Limits) -> tuple[Verdict, float | None, str]:
    """(winner, its margin over native, why) of the candidates that pass, in the order by which ties are settled."""
    by_time = _fastest(eligible)
    by_memory = _lightest(eligible, by_time)
    note = ""
    if by_memory is not by_time:
        less = (by_time.record.peak_bytes or 0) - (by_memory.record.peak_bytes or 0)
        note = f"{by_time.record.candidate} is within 3% of it and takes {_bytes(less)} more memory"
    safe = next((v for v in eligible if v.record is base), None)
    if safe is None:
        return by_memory, None, _joined("the fastest of those that pass", note)
    if by_memory is safe:
        return safe, 0.0, f"native is kept: {note}" if note else "native is the fastest"
    threshold = 1 + max(MIN_MARGIN, limits.noise)
    gain, least = speedup(by_memory.record, base) or (1.0, 1.0)
    if least > threshold:
        return by_memory, gain - 1, _joined(_times(gain, least), note)
    if _lighter(by_memory.record, base) and gain >= 1 / (1 + MEMORY_TIE):
        less = (base.peak_bytes or 0) - (by_memory.record.peak_bytes or 0)
        return by_memory, gain - 1, f"{_times(gain, least)}, and takes {_bytes(less)} less memory"
    if by_time is not safe:
        gain, least = speedup(by_time.record, base) or (1.0, 1.0)
        if least > threshold:
            return by_time, gain - 1, _times(gain, least)
    reason = (
        f"native is kept: {by_time.record.candidate} is {gain:.2f} times as fast, at least {least:.2f}, "
        f"and {threshold:.2f} would be needed"
    )
    return safe, 0.0, reason


def _times(gain: float, least: float) -> str:
    return f"{gain:.2f} times as fast as native, {least:.2f} at least"


def _lightest(eligible: Sequence[Verdict], fastest: Verdict) -> Verdict:
    """The fastest of those that take the least memory of all within 3% of the fastest one.

    By measured peaks alone: MLX's own scratch on GPUs is in no estimate.
    """
    near = [v for v in eligible if _choosing_us(v) <= _choosing_us(fastest) * (1 + MEMORY_TIE)]
    if any(v.record.peak_bytes is None for v in near):
        return fastest
    least = min(v.record.peak_bytes or 0 for v in near)
    return _fastest([v for v in near if not _materially(v.record.peak_bytes or 0, least)])


def _lighter(record: Record, than: Record) -> bool:
    """Whether a candidate is measured to take materially less memory than another."""
    if record.peak_bytes is None or than.peak_bytes is None:
        return False
    return _materially(than.peak_bytes, record.peak_bytes)


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _choosing_us(verdict: Verdict) -> float:
    return statistics.median(verdict.record.choosing_us)


def _fastest(verdicts: Sequence[Verdict]) -> Verdict:
    """The fastest; of those that tie with it the first."""
    best = min(map(_choosing_us, verdicts))
    return next(v for v in verdicts if _choosing_us(v) <= best * (1 + TIE))


def _materially(more: int, less: int) -> bool:
    return more - less > max(MATERIAL_BYTES, MATERIAL * less)


def needed_bytes(record: Record, operand_bytes: int | None) -> int:
    """Bytes that a candidate takes beyond input, weight and output: measured, where that is known, else estimated."""
    if record.peak_bytes is not None and operand_bytes is not None:
        return max(0, record.peak_bytes - operand_bytes)
    return record.workspace_bytes or 0


def _status(record: Record, bound: float, limits: Limits, operand_bytes: int | None) -> Status:
    """A record's status under these limits, which may be others than when it was made."""
    if record.status not in _BY_LIMITS:
        return record.status
    if needed_bytes(record, operand_bytes) > limits.memory_bytes:
        return Status.OVER_MEMORY
    return Status.INACCURATE if record.error is not None and record.error > bound else Status.OK


def _judge(record: Record, base: Record, bound: float, limits: Limits, operand_bytes: int | None) -> Verdict:
    """One record under these limits."""
    status, reason = _status(record, bound, limits, operand_bytes), record.detail
    found = speedup(record, base) if record.status in _BY_LIMITS else None
    gain = found[0] if found else None
    if status is Status.OVER_MEMORY:
        needed = needed_bytes(record, operand_bytes)
        reason = f"needs {_bytes(needed)}, over the limit of {_bytes(limits.memory_bytes)}"
    elif status is Status.INACCURATE:
        reason = f"error {record.error or 0.0:.1e} is over {bound:.1e}"
    elif status is Status.OK and not record.samples_us:
        # Every run told, so none might have timed it: another run's native is what lets it pass now.
        status, reason = Status.INACCURATE, reason or "no run has timed it"
    elif status is Status.OK and not reason and gain is not None and record is not base:
        reason = f"{gain:.2f} times as fast as native" if gain >= 1 else f"{1 / gain:.2f} times native's time"
    return Verdict(record, status, gain, reason)


def _least_memory(
    verdicts: Sequence[Verdict], bound: float, limits: Limits, source: Source, operand_bytes: int | None
) -> Decision | None:
    """Of accurate candidates, none of which keeps to the memory limit, the lightest; None without one."""
    ran = [
        v for v in verdicts if v.status is Status.OVER_MEMORY and v.record.error is not None and v.record.error <= bound
    ]
    if not ran:
        return None
    best = min(ran, key=lambda v: needed_bytes(v.record, operand_bytes))
    reason = (
        f"no candidate keeps within {_bytes(limits.memory_bytes)}; this one, with "
        f"{_bytes(needed_bytes(best.record, operand_bytes))}, takes the least"
    )
    return Decision(best.record.candidate, source, None, reason, bound, within_memory=False, verdicts=tuple(verdicts))


def _least_wrong(verdicts: Sequence[Verdict], bound: float, source: Source) -> Decision:
    """The most accurate of candidates none of which passes; native where there is none."""
    ran = [v for v in verdicts if v.status is Status.INACCURATE and v.record.error is not None]
    if not ran:
        state = _native_s_state(verdicts[0]) if verdicts else "native is unknown"
        return Decision(
            NATIVE,
            source,
            None,
            f"no candidate ran; {state}",
            bound,
            accurate=False,
            verdicts=tuple(verdicts),
        )
    best = min(ran, key=lambda v: v.record.error or 0.0)
    reason = f"no candidate is within {bound:.1e}; this one, with {best.record.error:.1e}, is the most accurate"
    return Decision(best.record.candidate, source, None, reason, bound, accurate=False, verdicts=tuple(verdicts))


_STATES = {
    Status.FAILED: "failed",
    Status.OUT_OF_MEMORY: "ran out of memory",
    Status.NOT_STARTED: "was not started",
    Status.CRASHED: "ended the process",
}
"""What is said of native by its status, where that alone does not say it."""


def _native_s_state(verdict: Verdict) -> str:
    """How native fared, in words: `native failed (ValueError: ...)`."""
    state = _STATES.get(verdict.status, f"is {verdict.status.replace('_', ' ')}")
    return f"{verdict.record.algorithm} {state}" + (f" ({verdict.reason})" if verdict.reason else "")


def _bytes(count: float) -> str:
    unit, name = (1e9, "GB") if count >= 1e8 else (1e6, "MB") if count >= 1e5 else (1e3, "kB")
    return f"{count / unit:.2f} {name}"


@functools.lru_cache(1024)
def _natural(text: str) -> tuple[str | int, ...]:
    """By which `frames=8` comes before `frames=16`."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text))
