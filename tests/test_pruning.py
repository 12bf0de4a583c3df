"""What pruning takes away: by itself only that by which nothing decides, and more where it is asked for."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoconv import pooling
from autoconv.decision import Decision, Limits, choose
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Store, open_store
from autoconv.store.pruning import Plan, Wish, plan

FIRST, SECOND, THIRD = (Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2, 3))
HERE, OTHER = "here", "other"
VERSIONS = {"native": 2, "a": 3, "b": 1}
ORDER = {"native@2": 0, "a@3": 1, "b@1": 2}
MB, GB = 10**6, 10**9

LIMITS = [
    Limits(accuracy, memory_bytes, noise)
    for accuracy, noise in (("native", 0.0), ("native", 0.2), ("strict", 0.0), (1e-3, 0.0))
    for memory_bytes in (math.inf, 40.0 * MB)
]


def result(
    name: str,
    times: Sequence[float] = (10.0, 10.5, 10.0),
    *,
    run: str = "r",
    created: float = 1.0,
    problem: Problem = FIRST,
    where: str = HERE,
    status: Status = Status.OK,
    version: int | None = None,
    origin: str = "",
) -> Record:
    """A record of the version that there is, or of another."""
    samples = tuple(times) if status is Status.OK else ()
    made = Record(problem.key, where, name, version or VERSIONS[name], "", status, samples, 1e-7)
    return replace(made, run=run, created=created, origin=origin)


def store_of(*records: Record) -> MemoryStore:
    store = MemoryStore()
    for record in records:
        store.add(Problem.from_key(record.problem), [record])
    return store


def pruned(store: Store, wish: Wish | None = None, used_bytes: int = 0) -> Plan:
    """Prune a store by the plan that is made of it."""
    found = plan(store, wish or Wish(), VERSIONS, used_bytes)
    before = everything(store)
    done = store.prune(found.gone, found.environments, pending=found.pending)
    assert len(before) - len(everything(store)) == done.records == found.idle + found.deciding
    assert len(before) == found.records
    return found


def everything(store: Store) -> list[Record]:
    return [record for _, records in store.all_records() for record in records]


# By itself


def told(records: Sequence[Record]) -> list[Decision | None]:
    """Every decision that records make: under any limits, with or without those of files, with candidates in chunks."""
    return [
        choose(among, limits, "float32", ORDER, operand_bytes=MB, chunked=chunked)
        for among in (records, [r for r in records if not r.origin])
        for limits in LIMITS
        for chunked in ((), ("a(frames=2)",))
    ]


def decisions(store: Store) -> dict[tuple[str, str], tuple[list[Decision | None], dict[str, Record]]]:
    """What is decided of every problem in every environment, to the last word of the reason, and who is barred."""
    found = {}
    for where in (HERE, OTHER):
        for problem in (FIRST, SECOND):
            records = store.records(where, problem)
            found[where, problem.key] = told(records), pooling.barred(records)
    return found


times = st.lists(st.sampled_from([5.0, 9.0, 10.0, 10.2, 11.0, 30.0]), min_size=1, max_size=6).map(tuple)
bytes_of = st.none() | st.sampled_from([0, 20 * MB, 60 * MB])


@st.composite
def runs_of(draw: st.DrawFn) -> list[Record]:
    """A run as tuners and files leave them: mostly with native, of any version, once or more."""
    where, problem = draw(st.sampled_from([HERE, OTHER])), draw(st.sampled_from([FIRST, SECOND]))
    run, origin = draw(st.sampled_from("rstu")), draw(st.sampled_from(["", "", "file"]))
    old = draw(st.booleans())
    names = draw(st.lists(st.sampled_from(["a", "b", "a(frames=2)", "unknown"]), max_size=4))
    made = []
    for name in ["native", *names] if draw(st.integers(0, 9)) else names:
        algorithm, _, parameters = name.rstrip(")").partition("(")
        version = draw(st.sampled_from([1, 2, 3, 4])) if draw(st.booleans()) else VERSIONS.get(algorithm, 1)
        record = Record(problem.key, where, algorithm, version, parameters, Status.OK, draw(times), run=run)
        if old and algorithm == "native":
            record = replace(record, version=1)
        if not draw(st.integers(0, 3)):
            record = replace(record, status=draw(st.sampled_from(Status)))
        if not draw(st.integers(0, 9)):
            record = replace(record, samples_us=(0.0, 1e30))
        made.append(
            replace(
                record,
                error=draw(st.sampled_from([1e-7, 1e-7, 1e-4, None])),
                workspace_bytes=draw(bytes_of),
                peak_bytes=draw(bytes_of),
                created=draw(st.sampled_from([1.0, 2.0, 3.0])),
                origin=origin,
            )
        )
    return made


def test_whatever_a_store_holds_every_decision_is_the_same_after_it_is_pruned() -> None:
    seen: Counter[str] = Counter()

    @settings(deadline=None, max_examples=100)
    @given(runs=st.lists(runs_of(), max_size=8), in_a_file=st.integers(0, 3).map(lambda number: not number))
    def compare(runs: list[list[Record]], in_a_file: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store: Store = open_store(Path(folder) / "autoconv.db") if in_a_file else MemoryStore()
            with closing(store):
                for records in runs:
                    if records:
                        store.add(Problem.from_key(records[0].problem), records)
                before = decisions(store)
                found = pruned(store)
                assert found.deciding == 0
                assert decisions(store) == before
                assert pruned(store).idle == 0
        seen["gone"] += found.idle
        seen["decided"] += sum(d is not None and d.candidate != "native" for told, _ in before.values() for d in told)
        seen["barred"] += sum(bool(barred) for _, barred in before.values())

    compare()
    assert min(seen[name] for name in ("gone", "decided", "barred")) > 20, seen  # else there was nothing to compare


def test_results_of_older_versions_go_and_those_of_newer_ones_and_unknown_algorithms_stay() -> None:
    kept = [result("native"), result("b"), result("a", version=4)]
    unknown = replace(result("b"), algorithm="of a newer autoconv")
    store = store_of(*kept, unknown, result("a", version=2), result("a", version=1))
    pruned(store)
    assert everything(store) == [*kept, unknown]


def test_a_run_whose_native_is_of_an_older_version_goes_and_one_without_native_stays() -> None:
    """The latter may be on its way: an import adds records some thousand at a time."""
    old = [result("native", version=1, run="old"), result("a", run="old"), result("b", run="old")]
    part = [result("a", run="part")]
    store = store_of(*old, *part)
    pruned(store)
    assert everything(store) == part


def test_of_a_result_that_is_there_twice_one_s_own_stays() -> None:
    own, file = [result("native"), result("a")], [result("native", origin="f"), result("a", origin="f")]
    store = store_of(*file, *own)
    pruned(store)
    assert everything(store) == own


@pytest.mark.parametrize("status", [Status.CRASHED, Status.WRONG])
def test_what_is_known_against_a_candidate_stays_of_whatever_version_it_was(status: Status) -> None:
    against = result("a", version=1, status=status)
    survived = result("a", version=1, run="later", created=2.0)
    store = store_of(against, survived, result("b", run="old"), result("native", run="old", version=1))
    for wish in (Wish(), Wish(keep_runs=1), Wish(before=9.0), Wish(most_bytes=1)):
        pruned(store, wish, used_bytes=10**6)
        assert everything(store) == [against, survived]


# What is asked for


def test_so_many_of_the_latest_runs_are_kept_of_those_with_the_same_candidates() -> None:
    """A duel takes no full run's place."""
    full = [[result(n, run=f"full {i}", created=i) for n in ("native", "a", "b")] for i in (1.0, 2.0, 3.0)]
    duels = [[result(n, run=f"duel {i}", created=i) for n in ("native", "a")] for i in (4.0, 5.0, 6.0)]
    store = store_of(*rows_of([*duels, *full]))
    found = pruned(store, Wish(keep_runs=2))
    assert found.deciding == 5
    assert everything(store) == rows_of([*duels[1:], *full[1:]])


def rows_of(each: Iterable[Sequence[Record]]) -> list[Record]:
    return [record for records in each for record in records]


def test_a_problem_goes_by_age_only_if_all_that_is_known_of_it_is_older() -> None:
    aged = [result("native", created=1.0), result("a", created=1.0)]
    mixed = [result(n, problem=SECOND, run=str(c), created=c) for c in (1.0, 9.0) for n in ("native", "a")]
    store = store_of(*aged, *mixed)
    assert pruned(store, Wish(before=5.0)).deciding == 2
    assert everything(store) == mixed


def test_other_environments_go_whole_with_their_pending_problems() -> None:
    mine = [result("native"), result("a")]
    store = store_of(*mine, result("native", where=OTHER), result("a", version=1, where=OTHER))
    store.add_environment("described", {"name": "d"}, {})
    for where in (HERE, OTHER, "described"):
        store.note(where, THIRD)
    found = pruned(store, Wish(here=HERE, others=True))
    assert dict(found.environments) == {"described": 0, OTHER: 2}
    assert (found.idle, found.deciding, found.noted) == (1, 1, 2)
    assert everything(store) == mine
    assert store.environments() == {}
    assert store.pending(HERE) == [THIRD]


def test_pending_problems_go_where_that_is_asked_for() -> None:
    store = store_of(result("native"))
    store.note(HERE, SECOND)
    assert pruned(store).noted == 0
    assert store.pending(HERE) == [SECOND]
    assert pruned(store, Wish(pending=True)).noted == 1
    assert store.pending(HERE) == []


def test_for_a_size_other_environments_go_first_and_then_the_oldest_and_no_more_than_it_takes() -> None:
    mine = [result("native", problem=p, created=c) for p, c in ((FIRST, 5.0), (SECOND, 3.0), (THIRD, 4.0))]
    others = [result("native", problem=p, created=9.0, where=OTHER) for p in (FIRST, SECOND)]
    left = []
    for part in (1.0, 0.83, 0.62, 0.42, 0.22):
        store = store_of(*mine, *others)
        found = pruned(store, Wish(here=HERE, most_bytes=int(part * GB)), used_bytes=GB)
        assert found.bytes_left <= part * GB
        left.append(sorted((r.created, r.environment, r.problem) for r in everything(store)))
    expected = [mine + others, mine + others[1:], mine, mine[::2], mine[:1]]
    assert left == [sorted((r.created, r.environment, r.problem) for r in records) for records in expected]


def test_what_decides_nothing_goes_before_anything_goes_for_the_size() -> None:
    kept = [result("native"), result("a")]
    store = store_of(*kept, *(result("a", version=1, run=str(i)) for i in range(50)))
    assert pruned(store, Wish(here=HERE, most_bytes=GB // 2), used_bytes=GB).deciding == 0
    assert everything(store) == kept
