"""Pruning: which records of a database may go, and what that would cost.

Nothing decides by what is `idle` here, whatever candidates are held to: by records of older versions of algorithms, by
all of a run whose native is of an older version, and by what one run has twice. All else may decide: all runs do so
together. That goes only where it is asked for.

What was wrong or ended a process stays, with all that tells of the same candidate, whatever else goes: it is never to
be tried again. Only whole environments take it with them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autoconv import pooling
from autoconv.decision import NATIVE, is_credible
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.store.contract import Gone, Store

Versions = Mapping[str, int]
"""Version of each algorithm by its name; what others did is a newer autoconv's, and stays."""

RECORD_BYTES, SAMPLE_BYTES, PROBLEM_BYTES = 45, 10, 320
"""About what a record, a sample of it, and a problem with a run take, by which shares of a database are estimated."""

EMPTY_BYTES = 110_000
"""What a database takes that holds nothing, with its environments."""

_MARGIN = 0.98
"""Part of a size that is asked for to which it is pruned, since what is left is an estimate."""

_Group = tuple[str, str]
"""An environment's id and a problem's key."""


@dataclass(frozen=True)
class Wish:
    """What is to go beside what decides nothing.

    Attributes:
        here: Id of the environment that is this machine's now; empty where that does not matter.
        others: Whether every other environment goes.
        keep_runs: Of each problem so many of its latest runs are kept, of those with the same candidates; None for all.
        before: Problems whose records are all older go, in seconds since the epoch.
        most_bytes: What the database is to take at most: other environments' problems go first, and of those that are
            left the oldest; None for any size.
        pending: Whether the pending lists go.
    """

    here: str = ""
    others: bool = False
    keep_runs: int | None = None
    before: float = -math.inf
    most_bytes: int | None = None
    pending: bool = False


@dataclass(frozen=True)
class Plan:
    """What goes, and what that costs.

    Attributes:
        gone: Which records, for `Store.prune`.
        environments: The environments that go whole, with how many records each has.
        pending: Whether the pending lists go.
        records: How many records there are.
        idle: How many of those that go decide nothing.
        deciding: How many of those that go may decide.
        noted: How many pending problems go.
        bytes_left: About what the store will take.
    """

    gone: Gone
    environments: Mapping[str, int]
    pending: bool
    records: int
    idle: int
    deciding: int
    noted: int
    bytes_left: int


def idle(records: Sequence[Record], versions: Versions) -> set[int]:
    """Places of the records of one problem in one environment by which nothing decides."""
    known = list(_known(records, versions))
    places = {id(r): place for place, r in known}
    single = {places[id(r)] for run in pooling.runs(r for _, r in known) for r in run.records.values()}
    twins = {place for place, _ in known} - single
    natives: dict[str, set[int]] = defaultdict(set)
    for record in records:
        if record.candidate == NATIVE:
            natives[record.run].add(record.version)
    outdated = {run for run, found in natives.items() if max(found) < versions.get(NATIVE, 0)}
    old = {p for p, r in enumerate(records) if r.version < versions.get(r.algorithm, 0) or r.run in outdated}
    return (twins | old) - _spared(records)


def superseded(records: Sequence[Record], versions: Versions, keep_runs: int) -> set[int]:
    """Places of the records of all runs but the latest so many that have native and the same candidates."""
    alike: dict[frozenset[str], list[str]] = defaultdict(list)
    for run in pooling.runs(r for _, r in _known(records, versions)):
        if NATIVE in run.records:
            alike[frozenset(run.records)].append(run.name)
    out = {name for names in alike.values() for name in names[: max(0, len(names) - keep_runs)]}
    return {place for place, r in _known(records, versions) if r.run in out} - _spared(records)


def plan(
    store: Store,
    wish: Wish,
    versions: Versions,
    used_bytes: int = 0,
    tell: Callable[[float], None] = lambda _: None,
) -> Plan:
    """What a store is to be rid of; reads all of it, and changes nothing.

    Args:
        store: The store.
        wish: What is to go beside what decides nothing.
        versions: Of the algorithms that there are.
        used_bytes: What the store takes.
        tell: Called now and then with how much of it is read, 1 being all.
    """
    keys = set(store.environments())
    total = sum(len(store.problems(key)) for key in keys)
    survey = _Survey(wish, versions)
    for done, (problem, records) in enumerate(store.all_records(), 1):
        survey.take(problem, records)
        if done % 256 == 0:
            tell(min(1.0, done / max(1, total)))
    whole = survey.too_much(used_bytes)
    environments = {key: survey.of_environment[key] for key in sorted({*keys, *survey.of_environment} - {wish.here})}
    lists = [key for key in {*keys, *survey.of_environment} if wish.pending or (wish.others and key != wish.here)]
    return Plan(
        gone=lambda problem, records: out_of(problem, records, wish, versions, whole),
        environments=environments if wish.others else {},
        pending=wish.pending,
        records=survey.records,
        idle=survey.idle,
        deciding=survey.deciding,
        noted=sum(len(store.pending(key)) for key in lists),
        bytes_left=survey.bytes_left(used_bytes),
    )


def out_of(
    problem: Problem,
    records: Sequence[Record],
    wish: Wish,
    versions: Versions,
    whole: Collection[_Group] = (),
    asleep: set[int] | None = None,
) -> set[int]:
    """Places of a problem's records that are to go.

    Args:
        problem: The problem.
        records: Its records in one environment.
        wish: What is to go beside what decides nothing.
        versions: Of the algorithms that there are.
        whole: Problems of environments of which all goes.
        asleep: What is `idle` of the records, where that is known.
    """
    if (records[0].environment, problem.key) in whole or max(r.created for r in records) < wish.before:
        return set(range(len(records))) - _spared(records)
    found = idle(records, versions) if asleep is None else asleep
    return found if wish.keep_runs is None else found | superseded(records, versions, wish.keep_runs)


@dataclass
class _Survey:
    """What a walk through all records finds."""

    wish: Wish
    versions: Versions
    records: int = 0
    idle: int = 0
    deciding: int = 0
    total: float = 0.0
    left: float = 0.0
    of_environment: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    groups: list[tuple[bool, float, _Group, float, int, int]] = field(default_factory=list)

    def take(self, problem: Problem, records: Sequence[Record]) -> None:
        """Count a problem's records, and what of them goes."""
        where, wish = records[0].environment, self.wish
        weights = [RECORD_BYTES + SAMPLE_BYTES * len(r.samples_us) + len(r.detail) for r in records]
        everything = wish.others and where != wish.here
        asleep = idle(records, self.versions)
        out = set(range(len(records))) if everything else out_of(problem, records, wish, self.versions, asleep=asleep)
        kept = [place for place in range(len(records)) if place not in out]
        self.records += len(records)
        self.of_environment[where] += len(records)
        self.idle += len(out & asleep)
        self.deciding += len(out - asleep)
        self.total += sum(weights) + PROBLEM_BYTES
        self.left += sum(weights[place] for place in kept) + (PROBLEM_BYTES if kept else 0)
        more = set(kept) - _spared(records) if wish.most_bytes is not None else set()
        if more:
            weight = sum(weights[place] for place in more) + (PROBLEM_BYTES if len(more) == len(kept) else 0)
            newest = max(r.created for r in records)
            counts = len(more & asleep), len(more - asleep)
            self.groups.append((where == wish.here, newest, (where, problem.key), weight, *counts))

    def too_much(self, used_bytes: int) -> set[_Group]:
        """The problems that go for the size, as little as that takes."""
        whole: set[_Group] = set()
        if self.wish.most_bytes is None or used_bytes <= self.wish.most_bytes:
            return whole
        for _, _, group, weight, asleep, deciding in sorted(self.groups):
            if self.bytes_left(used_bytes) <= _MARGIN * self.wish.most_bytes:
                break
            whole.add(group)
            self.left -= weight
            self.idle += asleep
            self.deciding += deciding
        return whole

    def bytes_left(self, used_bytes: int) -> int:
        """About what a store of that size will take."""
        empty = min(EMPTY_BYTES, used_bytes)
        return empty + round((used_bytes - empty) * (self.left / self.total if self.total else 1.0))


def _known(records: Sequence[Record], versions: Versions) -> Iterator[tuple[int, Record]]:
    """The records that a decision looks at, with their places."""
    for place, record in enumerate(records):
        if versions.get(record.algorithm) == record.version and is_credible(record):
            yield place, record


def _spared(records: Sequence[Record]) -> set[int]:
    """Places of what tells of candidates that were wrong or ended a process in any run."""
    names = {r.candidate for r in records if r.status in pooling.BARS}
    return {place for place, r in enumerate(records) if r.candidate in names} if names else set()
