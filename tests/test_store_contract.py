"""What every store guarantees, held against each of them."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import MAX_DETAIL, Record, Status
from autoconv.store import MemoryStore, MendingStore, ModelRecord, Pruned, Qualification, Store, open_store

PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2, 3)]
ENVIRONMENTS = ["metal-m3", "cuda-h100", "env with spaces, quotes ' and ünïcode"]

READS = {
    "environments",
    "records",
    "problems",
    "all_records",
    "unended",
    "pending",
    "qualification",
    "qualifications",
    "trusted_models",
    "networks",
}


class Reopened:
    """A file that every call opens anew: what is read has been through the disk, and through a read-only store."""

    def __init__(self, file: Path) -> None:
        self._file = file
        open_store(file).close()

    @property
    def readonly(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: object, **options: object) -> Any:
            with closing(open_store(self._file, readonly=name in READS)) as store:
                found = getattr(store, name)(*arguments, **options)
                return list(found) if name == "all_records" else found

        return call

    def close(self) -> None:
        """Nothing is open between calls."""


MAKERS: dict[str, Callable[[Path], Store]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": open_store,
    "mending": MendingStore,
    "reopened": lambda file: cast(Store, Reopened(file)),
}
each_kind = pytest.mark.parametrize("kind", MAKERS)


@contextmanager
def opened(kind: str) -> Iterator[Store]:
    """An empty store of one kind. No fixture, since Hypothesis wants a new one for each example."""
    with tempfile.TemporaryDirectory() as folder, closing(MAKERS[kind](Path(folder) / "autoconv.db")) as store:
        yield store


@pytest.fixture(params=MAKERS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with opened(request.param) as store:
        yield store


def nothing(_problem: Problem, _records: Sequence[Record]) -> list[int]:
    return []


def every_other(_problem: Problem, records: Sequence[Record]) -> range:
    return range(0, len(records), 2)


def result(problem: Problem, environment: str = ENVIRONMENTS[0], **fields: Any) -> Record:
    defaults: dict[str, Any] = {"algorithm": "native", "version": 1, "parameters": "", "status": Status.OK}
    return Record(problem=problem.key, environment=environment, **(defaults | fields))


int64 = st.integers(0, 2**63 - 1)
numbers = st.floats(0, allow_nan=False, allow_infinity=False)
results = st.builds(
    Record,
    problem=st.just(PROBLEMS[0].key),
    environment=st.sampled_from(ENVIRONMENTS),
    algorithm=st.text(min_size=1),
    version=int64,
    parameters=st.text(),
    status=st.sampled_from(Status),
    samples_us=st.lists(numbers, max_size=12).map(tuple),
    error=st.none() | st.floats(0, allow_nan=False),
    workspace_bytes=st.none() | int64,
    peak_bytes=st.none() | int64,
    detail=st.text(max_size=MAX_DETAIL),
    run=st.text(),
    created=numbers,
    library=st.text(),
    origin=st.just("") | st.text(),
)


@each_kind
@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.lists(results, max_size=4), max_size=4))
def test_records_come_back_equal_in_order_and_in_their_environment_alone(
    kind: str, batches: list[list[Record]]
) -> None:
    with opened(kind) as store:
        for batch in batches:
            store.add(PROBLEMS[0], batch)
        added = [record for batch in batches for record in batch]
        for environment in ENVIRONMENTS:
            expected = [record for record in added if record.environment == environment]
            assert store.records(environment, PROBLEMS[0]) == expected
            assert store.problems(environment) == (PROBLEMS[:1] if expected else [])
            assert store.records(environment, PROBLEMS[1]) == []


def test_a_store_knows_nothing_at_first(store: Store) -> None:
    environment, problem = ENVIRONMENTS[0], PROBLEMS[0]
    assert not store.readonly
    assert store.environments() == {}
    assert store.records(environment, problem) == []
    assert store.problems(environment) == []
    assert store.pending(environment) == []
    assert list(store.unended(environment, problem)) == []
    assert store.qualification(environment, "native=1") is None


@pytest.mark.parametrize(
    "bad",
    [
        result(PROBLEMS[0], samples_us=(1.0, math.nan)),
        result(PROBLEMS[0], samples_us=(math.inf,)),
        result(PROBLEMS[0], samples_us=(-1.0,)),
        result(PROBLEMS[0], error=math.nan),
        result(PROBLEMS[0], created=math.nan),
        result(PROBLEMS[1]),
    ],
    ids=["nan sample", "infinite sample", "negative sample", "nan error", "nan created", "other problem"],
)
def test_one_record_that_makes_no_sense_keeps_out_all_of_its_call(store: Store, bad: Record) -> None:
    store.note(ENVIRONMENTS[0], PROBLEMS[0])
    with pytest.raises(ValueError, match=r"NaN|finite|cannot be added"):
        store.add(PROBLEMS[0], [result(PROBLEMS[0]), bad])
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == []
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[0]]


def test_a_wrong_result_may_have_an_infinite_error(store: Store) -> None:
    wrong = result(PROBLEMS[0], status=Status.WRONG, error=math.inf)
    store.add(PROBLEMS[0], [wrong])
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == [wrong]


def test_long_messages_are_cut_and_bytes_that_are_no_text_survive(store: Store) -> None:
    store.add(PROBLEMS[0], [result(PROBLEMS[0], detail="x" * 10_000), result(PROBLEMS[0], detail="no \udcff text")])
    details = [record.detail for record in store.records(ENVIRONMENTS[0], PROBLEMS[0])]
    assert details == ["x" * MAX_DETAIL, "no ? text"]


def test_problems_are_listed_in_the_order_of_their_first_record(store: Store) -> None:
    for index in (2, 0, 2, 1, 0):
        store.add(PROBLEMS[index], [result(PROBLEMS[index])])
    assert store.problems(ENVIRONMENTS[0]) == [PROBLEMS[2], PROBLEMS[0], PROBLEMS[1]]
    assert store.problems(ENVIRONMENTS[1]) == []


def test_all_records_are_those_of_each_problem_in_each_environment(store: Store) -> None:
    store.note(ENVIRONMENTS[1], PROBLEMS[2])
    for index, place in [(0, 0), (1, 0), (0, 1), (2, 1), (0, 0)]:
        store.add(PROBLEMS[index], [result(PROBLEMS[index], ENVIRONMENTS[place], version=v) for v in (1, 2)])
    everything = [(problem, environment) for environment in (ENVIRONMENTS[1], ENVIRONMENTS[0]) for problem in PROBLEMS]
    order = [(p, e) for p, e in everything if p in store.problems(e)]
    order.sort(key=lambda pair: (pair[1] != ENVIRONMENTS[1], pair[0] != PROBLEMS[2]))
    assert list(store.all_records()) == [(p, store.records(e, p)) for p, e in order]
    for environment in (*ENVIRONMENTS[:2], "unknown"):
        expected = [(p, store.records(e, p)) for p, e in order if e == environment]
        assert list(store.all_records(environment)) == expected


def test_what_is_added_while_all_records_are_read_does_no_harm(store: Store) -> None:
    for problem in PROBLEMS:
        store.add(problem, [result(problem)])
    seen = []
    for problem, records in store.all_records():
        store.add(problem, [result(problem, run="later")])
        seen.append((problem, records[0]))
    assert seen == [(problem, result(problem)) for problem in PROBLEMS]


def test_records_keep_where_they_came_from(store: Store) -> None:
    added = [result(PROBLEMS[0], run="r", origin=origin) for origin in ("", "0123456789ab", "", "ba9876543210")]
    store.add(PROBLEMS[0], added[:2])
    store.add(PROBLEMS[0], added[2:])
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == added


def test_a_run_that_goes_on_after_another_keeps_the_order_of_the_calls(store: Store) -> None:
    added = [result(PROBLEMS[0], run=run, version=version) for version, run in enumerate("abab")]
    for record in added:
        store.add(PROBLEMS[0], [record])
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == added


def test_adding_no_records_changes_nothing(store: Store) -> None:
    store.note(ENVIRONMENTS[0], PROBLEMS[0])
    store.add(PROBLEMS[0], [])
    store.add(PROBLEMS[1], [])
    assert store.problems(ENVIRONMENTS[0]) == []
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[0]]
    for problem in (PROBLEMS[2], PROBLEMS[1]):
        store.add(problem, [result(problem)])
    assert [problem for problem, _ in store.all_records()] == [PROBLEMS[2], PROBLEMS[1]]


def test_pending_problems_are_kept_once_oldest_first(store: Store) -> None:
    for index in (1, 0, 1, 2):
        store.note(ENVIRONMENTS[0], PROBLEMS[index])
    store.note(ENVIRONMENTS[1], PROBLEMS[0])
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[1], PROBLEMS[0], PROBLEMS[2]]
    store.forget(ENVIRONMENTS[0], iter([PROBLEMS[1], PROBLEMS[2]]))
    store.forget(ENVIRONMENTS[0], [PROBLEMS[1]])
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[0]]
    assert store.pending(ENVIRONMENTS[1]) == [PROBLEMS[0]]


def test_a_problem_noted_again_after_it_was_forgotten_is_the_newest(store: Store) -> None:
    for index in (0, 1):
        store.note(ENVIRONMENTS[0], PROBLEMS[index])
    store.forget(ENVIRONMENTS[0], [PROBLEMS[0]])
    store.note(ENVIRONMENTS[0], PROBLEMS[0])
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[1], PROBLEMS[0]]


def test_records_take_their_problem_off_the_pending_list_of_their_environment(store: Store) -> None:
    for environment in ENVIRONMENTS[:2]:
        store.note(environment, PROBLEMS[0])
    store.add(PROBLEMS[0], [result(PROBLEMS[0])])
    assert store.pending(ENVIRONMENTS[0]) == []
    assert store.pending(ENVIRONMENTS[1]) == [PROBLEMS[0]]


def test_a_candidate_whose_end_was_never_seen_is_found(store: Store) -> None:
    environment, problem = ENVIRONMENTS[0], PROBLEMS[0]
    for candidate in ("native", "im2col(tile=8)", "native"):
        store.begin(environment, problem, candidate)
    store.begin(ENVIRONMENTS[1], problem, "winograd")
    store.begin(environment, PROBLEMS[1], "fft")
    assert sorted(store.unended(environment, problem)) == ["im2col(tile=8)", "native"]
    store.end(environment, problem, "native")
    store.end(environment, problem, "native")
    store.end(environment, problem, "never begun")
    assert list(store.unended(environment, problem)) == ["im2col(tile=8)"]
    assert list(store.unended(ENVIRONMENTS[1], problem)) == ["winograd"]
    assert list(store.unended(environment, PROBLEMS[1])) == ["fft"]


def test_an_environment_keeps_its_identity_and_shows_its_latest_circumstances(store: Store) -> None:
    identity = {"backend": "metal", "cores": 40, "settings": {"MLX_ENABLE_TF32": None}}
    store.add_environment("a", identity, {"macos": "15.1"})
    store.add_environment("b", {"backend": "cpu"}, {})
    store.add_environment("a", identity | {"backend": "another"}, {"macos": "15.2", "power": "battery"})
    expected = {"a": (identity, {"macos": "15.2", "power": "battery"}), "b": ({"backend": "cpu"}, {})}
    assert store.environments() == expected
    assert list(store.environments()) == ["a", "b"]


def test_an_environment_may_have_records_before_it_is_made_known(store: Store) -> None:
    store.add(PROBLEMS[0], [result(PROBLEMS[0], "a")])
    assert store.environments() == {}
    store.add_environment("a", {"backend": "metal"}, {"power": "mains"})
    assert store.environments() == {"a": ({"backend": "metal"}, {"power": "mains"})}
    assert store.records("a", PROBLEMS[0]) == [result(PROBLEMS[0], "a")]


def test_changing_what_was_given_or_got_does_not_change_the_store(store: Store) -> None:
    identity: dict[str, object] = {"backend": "metal"}
    store.add_environment("a", identity, {})
    identity["backend"] = "cpu"
    store.environments()["a"][0]["backend"] = "cuda"
    assert store.environments() == {"a": ({"backend": "metal"}, {})}
    barred = {"winograd": "wrong"}
    store.qualify(Qualification("a", "native=1", barred=barred))
    barred.clear()
    store.add(PROBLEMS[0], [result(PROBLEMS[0])])
    store.records(ENVIRONMENTS[0], PROBLEMS[0]).clear()
    store.problems(ENVIRONMENTS[0]).clear()
    assert store.qualification("a", "native=1") == Qualification("a", "native=1", barred={"winograd": "wrong"})
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == [result(PROBLEMS[0])]
    assert store.problems(ENVIRONMENTS[0]) == [PROBLEMS[0]]


@pytest.mark.parametrize("bad", [{"path": Path("/")}, {"ratio": math.nan}], ids=["no JSON value", "NaN"])
def test_an_environment_that_json_cannot_hold_is_refused(store: Store, bad: dict[str, object]) -> None:
    store.add_environment("a", {"backend": "metal"}, {})
    with pytest.raises((TypeError, ValueError), match="JSON"):
        store.add_environment("a", {}, bad)
    with pytest.raises((TypeError, ValueError), match="JSON"):
        store.add_environment("b", bad, {})
    assert store.environments() == {"a": ({"backend": "metal"}, {})}


@each_kind
@settings(deadline=None, max_examples=25)
@given(
    first=st.builds(
        Qualification,
        environment=st.sampled_from(ENVIRONMENTS),
        fingerprint=st.text(),
        passed=st.frozensets(st.tuples(st.text(), st.sampled_from(["float16", "float32"])), max_size=4),
        barred=st.dictionaries(st.text(), st.text(), max_size=3),
        noise=numbers,
        ceilings=st.dictionaries(st.text(), numbers, max_size=3),
        created=numbers,
    )
)
def test_qualifications_come_back_equal_and_the_last_counts(kind: str, first: Qualification) -> None:
    with opened(kind) as store:
        other = Qualification(first.environment, first.fingerprint + "'", noise=0.5)
        store.qualify(first)
        store.qualify(other)
        assert store.qualification(first.environment, first.fingerprint) == first
        assert store.qualification(first.environment, other.fingerprint) == other
        assert store.qualification(first.environment + "'", first.fingerprint) is None
        again = Qualification(first.environment, first.fingerprint, created=7.0)
        store.qualify(again)
        assert store.qualification(first.environment, first.fingerprint) == again


def test_only_its_own_qualification_counts_and_imported_ones_are_kept(store: Store) -> None:
    imported = [Qualification("a", "native=1", noise=0.1, origin=origin) for origin in ("0123456789ab", "b" * 12)]
    for qualification in imported:
        store.qualify(qualification)
    assert store.qualification("a", "native=1") is None
    own = Qualification("a", "native=1", noise=0.2)
    store.qualify(own)
    again = Qualification("a", "native=1", noise=0.3, origin="0123456789ab")
    store.qualify(again)
    assert store.qualification("a", "native=1") == own
    assert store.qualifications() == [imported[1], own, again]


@pytest.mark.parametrize(
    "bad",
    [
        Qualification("a", "native=1", noise=math.nan),
        Qualification("a", "native=1", created=math.inf),
        Qualification("a", "native=1", ceilings={"launch_us": math.inf}),
    ],
    ids=["noise", "created", "ceiling"],
)
def test_a_qualification_without_finite_numbers_is_refused(store: Store, bad: Qualification) -> None:
    with pytest.raises(ValueError, match=r"finite|JSON"):
        store.qualify(bad)
    assert store.qualification("a", "native=1") is None


def test_no_model_is_trusted_at_first_and_of_one_file_the_last_counts(store: Store) -> None:
    assert store.trusted_models() == []
    first = ModelRecord("cpu", "a.cpu.npz", "ab" * 32, "cpu-1", 150, 1.5)
    other = ModelRecord("cuda", "a.cuda.npz", "cd" * 32, None, 2000, 2.0)
    store.trust_model(first)
    store.trust_model(other)
    again = ModelRecord("cpu", "a.cpu.npz", "ef" * 32, "cpu-2", 160, 3.0)
    store.trust_model(again)
    assert store.trusted_models() == [other, again]


def test_of_a_network_every_problem_has_the_count_of_its_last_run(store: Store) -> None:
    assert store.networks() == {}
    store.name_network("decode.py", {PROBLEMS[0]: 3, PROBLEMS[1]: 1})
    store.name_network("decode.py", {PROBLEMS[1]: 4, PROBLEMS[2]: 0})
    store.name_network("UNet", {PROBLEMS[1]: 2})
    store.name_network("nothing", {})
    assert store.networks() == {"decode.py": {PROBLEMS[0]: 3, PROBLEMS[1]: 4}, "UNet": {PROBLEMS[1]: 2}}
    assert store.problems("a") == store.pending("a") == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("two\nlines\t and\x1b[31m more ", "two lines and [31m more"),
        ("\ud800 alone", "alone"),
        ("n" * 101, "n" * 100),
        ("\u202e", "unnamed"),
    ],
)
def test_a_network_s_name_is_one_line_that_prints(store: Store, name: str, kept: str) -> None:
    store.name_network(name, {PROBLEMS[0]: 1})
    assert store.networks() == {kept: {PROBLEMS[0]: 1}}


def test_a_model_without_a_finite_time_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="finite"):
        store.trust_model(ModelRecord("cpu", "a.npz", "ab", created=math.nan))
    assert store.trusted_models() == []


def test_pruning_takes_away_the_records_that_are_named_and_no_others(store: Store) -> None:
    for where in ENVIRONMENTS[:2]:
        for problem in PROBLEMS[:2]:
            store.add(problem, [result(problem, where, run=run, version=v) for run in "ab" for v in (1, 2)])
    seen = []

    def gone(problem: Problem, records: Sequence[Record]) -> list[int]:
        seen.append((problem, list(records)))
        if records[0].environment != ENVIRONMENTS[0] or problem != PROBLEMS[0]:
            return []
        return [place for place, r in enumerate(records) if r.run == "a" or r.version == 2]

    before = list(store.all_records())
    assert store.prune(gone) == Pruned(records=3)
    assert seen == before
    assert store.records(ENVIRONMENTS[0], PROBLEMS[0]) == [result(PROBLEMS[0], run="b", version=1)]
    assert list(store.all_records())[1:] == before[1:]


def test_a_problem_that_has_no_record_left_in_an_environment_is_none_of_it(store: Store) -> None:
    for problem in PROBLEMS:
        store.add(problem, [result(problem), result(problem, run="b")])

    def gone(problem: Problem, records: Sequence[Record]) -> list[int]:
        return [0, 1] if problem == PROBLEMS[0] else [0] if problem == PROBLEMS[1] else []

    assert store.prune(gone) == Pruned(records=3, problems=1)
    assert store.problems(ENVIRONMENTS[0]) == PROBLEMS[1:]
    store.add(PROBLEMS[0], [result(PROBLEMS[0])])
    assert store.problems(ENVIRONMENTS[0]) == [*PROBLEMS[1:], PROBLEMS[0]]


def test_problems_are_listed_by_the_first_record_that_they_have_left(store: Store) -> None:
    for index in (0, 1, 0):
        store.add(PROBLEMS[index], [result(PROBLEMS[index])])
    store.prune(lambda problem, _: [0] if problem == PROBLEMS[0] else [])
    assert store.problems(ENVIRONMENTS[0]) == [PROBLEMS[1], PROBLEMS[0]]


def test_a_whole_environment_goes_with_all_that_is_known_of_it_and_models_and_names_stay(store: Store) -> None:
    gone, kept = ENVIRONMENTS[:2]
    model = ModelRecord("cpu", "a.npz", "ab", gone)
    store.trust_model(model)
    for where in (gone, kept):
        store.add_environment(where, {"name": where}, {})
        store.qualify(Qualification(where, "native=1"))
        store.add(PROBLEMS[0], [result(PROBLEMS[0], where)])
        store.note(where, PROBLEMS[1])
        store.begin(where, PROBLEMS[0], "fft")
    store.name_network("a.py", {PROBLEMS[0]: 1, PROBLEMS[2]: 2})
    asked: list[Sequence[Record]] = []

    def ask(_: Problem, records: Sequence[Record]) -> list[int]:
        asked.append(records)
        return []

    assert store.prune(ask, [gone, "unknown"]) == Pruned(1, 1, 1, 1)
    assert store.networks() == {"a.py": {PROBLEMS[0]: 1, PROBLEMS[2]: 2}}
    assert asked == [store.records(kept, PROBLEMS[0])]
    assert list(store.environments()) == [kept]
    assert store.records(gone, PROBLEMS[0]) == []
    assert store.pending(gone) == []
    assert store.unended(gone, PROBLEMS[0]) == {}
    assert store.qualifications() == [Qualification(kept, "native=1")]
    assert store.records(kept, PROBLEMS[0]) == [result(PROBLEMS[0], kept)]
    assert store.pending(kept) == [PROBLEMS[1]]
    assert store.unended(kept, PROBLEMS[0]) == {"fft": 1}
    assert store.trusted_models() == [model]


def test_pending_lists_go_where_that_is_asked_for_and_notes_of_what_was_begun_do_not(store: Store) -> None:
    for where in ENVIRONMENTS[:2]:
        store.note(where, PROBLEMS[0])
    store.begin(ENVIRONMENTS[0], PROBLEMS[0], "fft")
    assert store.prune(nothing) == Pruned()
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[0]]
    assert store.prune(nothing, pending=True) == Pruned(pending=2)
    assert store.pending(ENVIRONMENTS[0]) == store.pending(ENVIRONMENTS[1]) == []
    assert store.unended(ENVIRONMENTS[0], PROBLEMS[0]) == {"fft": 1}


def test_what_cannot_be_said_to_go_leaves_everything(store: Store) -> None:
    store.add(PROBLEMS[0], [result(PROBLEMS[0])])
    store.add(PROBLEMS[1], [result(PROBLEMS[1])])
    store.note(ENVIRONMENTS[0], PROBLEMS[2])

    def gone(problem: Problem, _records: Sequence[Record]) -> list[int]:
        if problem == PROBLEMS[1]:
            raise KeyboardInterrupt
        return [0]

    with pytest.raises(KeyboardInterrupt):
        store.prune(gone, pending=True)
    assert store.problems(ENVIRONMENTS[0]) == PROBLEMS[:2]
    assert store.pending(ENVIRONMENTS[0]) == [PROBLEMS[2]]


CALLS: dict[str, Callable[[Store], object]] = {
    "add_environment": lambda store: store.add_environment("a", {}, {}),
    "environments": lambda store: store.environments(),
    "add": lambda store: store.add(PROBLEMS[0], [result(PROBLEMS[0])]),
    "records": lambda store: store.records("a", PROBLEMS[0]),
    "problems": lambda store: store.problems("a"),
    "all_records": lambda store: list(store.all_records()),
    "begin": lambda store: store.begin("a", PROBLEMS[0], "native"),
    "end": lambda store: store.end("a", PROBLEMS[0], "native"),
    "unended": lambda store: store.unended("a", PROBLEMS[0]),
    "note": lambda store: store.note("a", PROBLEMS[0]),
    "pending": lambda store: store.pending("a"),
    "forget": lambda store: store.forget("a", PROBLEMS),
    "qualify": lambda store: store.qualify(Qualification("a", "native=1")),
    "qualification": lambda store: store.qualification("a", "native=1"),
    "qualifications": lambda store: store.qualifications(),
    "trust_model": lambda store: store.trust_model(ModelRecord("cpu", "a.npz", "ab")),
    "trusted_models": lambda store: store.trusted_models(),
    "name_network": lambda store: store.name_network("a.py", {PROBLEMS[0]: 1}),
    "networks": lambda store: store.networks(),
    "prune": lambda store: store.prune(nothing),
}


def test_every_method_of_the_contract_is_tried_after_closing() -> None:
    methods = {name for name in vars(Store) if not name.startswith("_")} - {"readonly", "close"}
    assert set(CALLS) == methods


@pytest.mark.parametrize("kind", ["memory", "sqlite", "mending"])
@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_refuses_every_call_and_may_be_closed_again(kind: str, call: str) -> None:
    with opened(kind) as store:
        store.close()
        with pytest.raises(StoreError, match="closed"):
            CALLS[call](store)


def test_threads_may_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for index in range(15):
                store.begin(ENVIRONMENTS[0], PROBLEMS[0], name)
                store.add(PROBLEMS[0], [result(PROBLEMS[0], run=name, version=index, algorithm=a) for a in "ab"])
                assert [r.version for r in store.records(ENVIRONMENTS[0], PROBLEMS[0]) if r.run == name][-1] == index
                store.end(ENVIRONMENTS[0], PROBLEMS[0], name)
        except BaseException as error:  # noqa: BLE001  a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    records = store.records(ENVIRONMENTS[0], PROBLEMS[0])
    assert len(records) == 6 * 15 * 2
    # Nobody's records came between those of one call, and each thread's are in the order of its calls.
    assert all(first.run == second.run for first, second in zip(records[::2], records[1::2], strict=True))
    for thread in threads:
        versions = [r.version for r in records if r.run == f"thread {threads.index(thread)}"]
        assert versions == sorted(versions)
    assert list(store.unended(ENVIRONMENTS[0], PROBLEMS[0])) == []


environments = st.sampled_from(ENVIRONMENTS[:2])
problems = st.sampled_from(PROBLEMS)
candidates = st.sampled_from(["native", "fft"])


class Agreement(RuleBasedStateMachine):
    """A file and memory answer alike whatever is done to them, and the file does so when opened again."""

    @initialize()
    def open_both(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.memory: Store = MemoryStore()
        self.file = open_store(Path(self.folder.name) / "autoconv.db")

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = open_store(Path(self.folder.name) / "autoconv.db")

    @rule(environment=environments, circumstances=st.dictionaries(st.text(), st.integers(), max_size=1))
    def describe(self, environment: str, circumstances: dict[str, int]) -> None:
        for store in (self.memory, self.file):
            store.add_environment(environment, {"name": environment}, circumstances)

    @rule(problem=problems, environments=st.lists(environments, max_size=3), version=st.integers(0, 9))
    def add(self, problem: Problem, environments: list[str], version: int) -> None:
        for store in (self.memory, self.file):
            store.add(problem, [result(problem, environment, version=version) for environment in environments])

    @rule(environment=environments, problem=problems, candidate=candidates, ending=st.booleans())
    def begin_or_end(self, environment: str, problem: Problem, candidate: str, ending: bool) -> None:
        for store in (self.memory, self.file):
            (store.end if ending else store.begin)(environment, problem, candidate)

    @rule(environment=environments, problem=problems)
    def note(self, environment: str, problem: Problem) -> None:
        for store in (self.memory, self.file):
            store.note(environment, problem)

    @rule(environment=environments, gone=st.lists(problems, max_size=2))
    def forget(self, environment: str, gone: list[Problem]) -> None:
        for store in (self.memory, self.file):
            store.forget(environment, gone)

    @rule(file=st.sampled_from(["a.npz", "b.npz"]), problems=st.integers(0, 2**63 - 1), created=numbers)
    def trust(self, file: str, problems: int, created: float) -> None:
        for store in (self.memory, self.file):
            store.trust_model(ModelRecord("cpu", file, "ab", None, problems, created))

    @rule(
        name=st.sampled_from(["a.py", "a\n.py", "b"]), calls=st.dictionaries(problems, st.integers(-1, 5), max_size=2)
    )
    def name(self, name: str, calls: dict[Problem, int]) -> None:
        for store in (self.memory, self.file):
            store.name_network(name, calls)

    @rule(whole=st.lists(environments, max_size=1), pending=st.booleans(), some=st.booleans())
    def prune(self, whole: list[str], pending: bool, some: bool) -> None:
        gone = every_other if some else nothing
        found = [store.prune(gone, whole, pending=pending) for store in (self.memory, self.file)]
        assert found[0] == found[1]

    def teardown(self) -> None:
        """Compare all that can be asked, once a run, since reading changes nothing."""
        with self.folder, closing(self.file):
            assert self.file.environments() == self.memory.environments()
            assert list(self.file.all_records()) == list(self.memory.all_records())
            assert self.file.trusted_models() == self.memory.trusted_models()
            assert self.file.networks() == self.memory.networks()
            for environment in ENVIRONMENTS:
                assert self.file.problems(environment) == self.memory.problems(environment)
                assert self.file.pending(environment) == self.memory.pending(environment)
                for problem in PROBLEMS:
                    assert self.file.records(environment, problem) == self.memory.records(environment, problem)
                    unended = [sorted(store.unended(environment, problem)) for store in (self.file, self.memory)]
                    assert unended[0] == unended[1]


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(deadline=None, max_examples=25, stateful_step_count=25)
