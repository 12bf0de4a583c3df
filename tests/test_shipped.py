"""Databases that came with the package, and those of kin: what they decide, and when they may not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from replay import Benches, Run, nothing_is_timed, registry

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.algorithms import algorithms
from autoconv.decision import Source
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.knowledge import Knowledge, Question
from autoconv.problem import Kind, Problem
from autoconv.record import Record, Status
from autoconv.report import doctor
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Qualification, Store, open_store
from autoconv.store.shipped import open_shipped, shipped_folder
from autoconv.store.sqlite import SqliteStore
from autoconv.tuning.qualification import fingerprint
from autoconv.warn import WarnOnce

CPU = mx.Device(mx.cpu)
ALGORITHMS = registry("native", "fast", "other")
IDENTITY: dict[str, str | int] = {"backend": "cpu", "device": "a device", "mlx": "1.2.3"}
HERE = Environment(IDENTITY, {}, memory_bytes=10**9)
NEWER = Environment({**IDENTITY, "mlx": "1.2.4"}, {}, memory_bytes=10**9)
FARTHER = Environment({**IDENTITY, "mlx": "1.2.2", "macos": "26"}, {}, memory_bytes=10**9)
STRANGER = Environment({**IDENTITY, "device": "another"}, {}, memory_bytes=10**9)
PROBLEM = Problem.parse((1, 4, 6, 6, 8), (8, 3, 3, 3, 8))
OTHER = Problem.parse((1, 4, 6, 7, 8), (8, 3, 3, 3, 8))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "of", lambda _device: HERE)
    monkeypatch.setattr(environment, "free_bytes", lambda _where: 10**9)


def fill(
    store: Store,
    where: Environment,
    times_us: Mapping[str, float],
    *,
    passed: bool = True,
    origin: str = "",
    problem: Problem = PROBLEM,
) -> Store:
    """A store that knows what each candidate takes there, and that the first run passed."""
    store.add_environment(where.id, dict(where.identity), {})
    if passed:
        store.qualify(qualification(where))
    store.add(
        problem,
        [
            Record(
                problem.key, where.id, name, 1, "", Status.OK, (us,) * 6, 1e-7, 0, run="r", created=1.0, origin=origin
            )
            for name, us in times_us.items()
        ],
    )
    return store


def qualification(where: Environment, *barred: str) -> Qualification:
    names = [a.name for a in ALGORITHMS if a.name not in barred]
    passed = frozenset((name, dtype) for name in names for dtype in ("float32", "float16"))
    reasons = dict.fromkeys(barred, "it is wrong here")
    return Qualification(where.id, fingerprint(ALGORITHMS), passed=passed, barred=reasons, created=1.0)


class Case:
    """A dispatcher over an own store and shipped ones, whose bench is replayed."""

    def __init__(self, shipped: Mapping[str, Store], times_ms: Mapping[str, float] | None = None) -> None:
        self.own = MemoryStore()
        self.benches = Benches({name: Run((ms / 1e3,)) for name, ms in (times_ms or {}).items()})
        self.dispatcher = Dispatcher(
            ALGORITHMS,
            stores=lambda _path, _readonly: self.own,
            bench=self.benches if times_ms else nothing_is_timed,
            shipped=lambda: shipped,
        )

    def settings(self, policy: str = "auto") -> Settings:
        return settings.with_changes(settings.from_environment({}), {"policy": policy, "stall": "100"})

    def decide(self, policy: str = "auto", problem: Problem = PROBLEM) -> tuple[str, Source]:
        found = self.dispatcher.decide(problem, self.settings(policy), CPU)
        return found.candidate, found.source


# Shipped


@pytest.mark.parametrize("policy", ["auto", "measure", "predict", "record"])
def test_what_is_shipped_for_this_very_environment_decides_and_times_nothing(policy: str) -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    assert case.decide(policy) == ("fast", Source.SHIPPED)
    assert case.own.pending(HERE.id) == []
    assert case.dispatcher.statistics()[Source.SHIPPED] == 1


def test_under_policy_off_nothing_is_asked() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    assert case.decide("off") == ("native", Source.NATIVE)


def test_the_users_own_database_comes_first() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    fill(case.own, HERE, {"native": 8.0, "other": 5.0})
    assert case.decide() == ("other", Source.DATABASE)


def test_what_is_shipped_for_a_stranger_decides_nothing() -> None:
    case = Case({"a": fill(MemoryStore(), STRANGER, {"native": 8.0, "fast": 4.0})})
    assert case.decide("predict") == ("native", Source.NATIVE)


def test_it_was_verified_on_such_a_device_and_needs_no_first_run_here() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0}, passed=False)})
    assert case.decide("predict") == ("fast", Source.SHIPPED)


def test_what_this_device_barred_is_not_taken_from_what_is_shipped() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0, "other": 6.0})})
    case.own.qualify(qualification(HERE, "fast"))
    assert case.decide() == ("other", Source.SHIPPED)


def test_a_sweep_looks_at_the_users_own_database_alone() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    assert case.dispatcher.look_up(PROBLEM, case.settings(), CPU) is None


def test_an_explanation_shows_what_is_shipped() -> None:
    case = Case({"a": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    found = case.dispatcher.explanation(PROBLEM, case.settings(), CPU)
    assert (found.decision.candidate, found.decision.source) == ("fast", Source.SHIPPED)
    assert {row[0] for row in found.rows()} == {"native", "fast", "other"}


def test_a_shipped_database_that_cannot_be_read_costs_a_warning() -> None:
    broken = fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})
    broken.close()
    case = Case({"broken": broken, "b": fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})})
    with pytest.warns(UserWarning, match="closed"):
        assert case.decide() == ("fast", Source.SHIPPED)


# Imported


def test_what_was_imported_is_verified_by_the_first_run_before_it_runs() -> None:
    case = Case({})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0}, passed=False, origin="0123456789ab")
    assert case.decide("predict") == ("native", Source.NATIVE)
    case.own.qualify(qualification(HERE))
    assert case.decide("predict") == ("fast", Source.DATABASE)


def test_where_the_first_run_bars_what_was_imported_the_problem_is_timed_here() -> None:
    case = Case({}, {"native": 8.0, "fast": 4.0, "other": 6.0})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0}, passed=False, origin="0123456789ab")
    case.own.qualify(qualification(HERE, "fast"))
    assert case.decide() == ("other", Source.MEASURED)


def test_what_a_file_names_that_nothing_here_has_changes_nothing() -> None:
    case = Case({})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0})
    rows = case.own.records(HERE.id, PROBLEM)
    bogus = [replace(rows[0], run="x", origin="0123456789ab"), replace(rows[1], run="x", origin="0123456789ab")]
    bogus[1] = replace(bogus[1], parameters="sum=float99", samples_us=(1.0,) * 6)
    case.own.add(PROBLEM, bogus)
    assert case.decide() == ("fast", Source.DATABASE)


@pytest.mark.parametrize("status", [Status.WRONG, Status.CRASHED])
def test_what_a_file_says_against_a_candidate_counts_for_nothing_where_it_was_right_here(status: Status) -> None:
    case = Case({})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0})
    row = next(r for r in case.own.records(HERE.id, PROBLEM) if r.candidate == "fast")
    against = replace(row, status=status, samples_us=(), run="x", created=row.created + 1e6)
    case.own.add(PROBLEM, [replace(against, origin="0123456789ab")])
    assert case.decide() == ("fast", Source.DATABASE)
    case.own.add(PROBLEM, [against])
    assert case.decide() == ("native", Source.DATABASE)


def test_native_runs_whatever_said_so() -> None:
    case = Case({})
    fill(case.own, HERE, {"native": 4.0, "fast": 8.0}, passed=False, origin="0123456789ab")
    assert case.decide("predict") == ("native", Source.DATABASE)


# Some candidates of all


def test_records_of_some_do_not_say_that_none_passes() -> None:
    case = Case({}, {"native": 8.0, "fast": 4.0, "other": 6.0})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0})
    held = settings.with_changes(case.settings(), {"accuracy": 1e-8})  # all of them have errors of 1e-7
    assert case.dispatcher.look_up(PROBLEM, case.settings(), CPU) is not None
    assert case.dispatcher.look_up(PROBLEM, held, CPU) is None
    with pytest.warns(UserWarning, match="the most accurate"):
        assert case.dispatcher.decide(PROBLEM, held, CPU).source is Source.MEASURED
    assert {r.candidate for r in case.own.records(HERE.id, PROBLEM)} == {"native", "fast", "other"}
    assert case.dispatcher.look_up(PROBLEM, held, CPU) is not None  # now none does


def test_where_nothing_may_be_timed_records_of_some_say_what_they_can() -> None:
    case = Case({})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0})
    held = settings.with_changes(case.settings("predict"), {"accuracy": 1e-8})
    with pytest.warns(UserWarning, match="the most accurate"):
        assert case.dispatcher.decide(PROBLEM, held, CPU).source is Source.DATABASE


# Kin


def kin(native_us: float, fast_us: float, where: Environment = NEWER) -> dict[str, Store]:
    return {"kin": fill(MemoryStore(), where, {"native": native_us, "fast": fast_us, "other": 7.0})}


def test_what_won_among_kin_fights_a_duel_with_native_here() -> None:
    case = Case(kin(8.0, 4.0), {"native": 8.0, "fast": 4.0})  # `other` is not in the table: it must not run
    case.own.qualify(qualification(HERE))
    assert case.decide() == ("fast", Source.MEASURED)
    assert {r.candidate for r in case.own.records(HERE.id, PROBLEM)} == {"native", "fast"}
    assert case.own.pending(HERE.id) == [PROBLEM]  # for a sweep, which times them all
    assert case.decide() == ("fast", Source.DATABASE)


def test_a_problem_noted_for_want_of_time_is_noted_again_after_its_duel() -> None:
    case = Case(kin(8.0, 4.0), {"native": 8.0, "fast": 4.0})
    case.own.qualify(qualification(HERE))
    case.decide("record")
    assert case.own.pending(HERE.id) == [PROBLEM]
    assert case.decide() == ("fast", Source.MEASURED)
    assert case.own.pending(HERE.id) == [PROBLEM]


def test_who_loses_the_duel_is_not_taken() -> None:
    case = Case(kin(8.0, 4.0), {"native": 4.0, "fast": 8.0})
    case.own.qualify(qualification(HERE))
    assert case.decide() == ("native", Source.MEASURED)


def test_a_duel_takes_a_fifth_of_the_budget() -> None:
    def spent(shipped: Mapping[str, Store]) -> float:
        case = Case(shipped, {"native": 50.0, "fast": 49.0, "other": 300.0})
        case.own.qualify(qualification(HERE))
        start = case.benches.clock.now
        case.decide()
        return case.benches.clock.now - start

    assert spent(kin(8.0, 4.0)) < spent({})


def test_where_native_won_among_kin_it_runs_and_a_sweep_is_to_look() -> None:
    case = Case(kin(4.0, 8.0))
    assert case.decide("auto") == ("native", Source.SHIPPED)
    assert case.own.pending(HERE.id) == [PROBLEM]


def test_under_measure_native_of_kin_is_no_measurement() -> None:
    case = Case(kin(4.0, 8.0), {"native": 8.0, "fast": 4.0, "other": 9.0})
    case.own.qualify(qualification(HERE))
    assert case.decide("measure") == ("fast", Source.MEASURED)


@pytest.mark.parametrize(("fast_us", "taken"), [(6.0, True), (7.3, False)])
def test_under_predict_kin_decide_where_they_won_by_more_than_fifteen_percent(fast_us: float, taken: bool) -> None:
    case = Case(kin(8.0, fast_us))
    assert case.decide("predict") == ("native", Source.NATIVE)  # nothing was verified here yet
    case.own.qualify(qualification(HERE))
    assert case.decide("predict") == (("fast", Source.SHIPPED) if taken else ("native", Source.NATIVE))


def test_the_nearest_kin_are_asked_first_and_the_users_own_before_those() -> None:
    shipped = MemoryStore()
    fill(shipped, FARTHER, {"native": 8.0, "other": 4.0, "fast": 9.0})
    fill(shipped, NEWER, {"native": 8.0, "fast": 4.0, "other": 9.0})
    case = Case({"kin": shipped})
    case.own.qualify(qualification(HERE))
    assert case.decide("predict") == ("fast", Source.SHIPPED)
    fill(case.own, FARTHER, {"native": 8.0, "other": 4.0, "fast": 9.0})
    assert case.decide("predict") == ("other", Source.DATABASE)
    found = case.dispatcher.decide(PROBLEM, case.settings("predict"), CPU)
    assert "MLX 1.2.2 rather than 1.2.3" in found.reason


def test_strangers_name_no_challenger() -> None:
    case = Case(kin(8.0, 4.0, STRANGER), {"native": 8.0, "fast": 9.0, "other": 4.0})
    case.own.qualify(qualification(HERE))
    assert case.decide() == ("other", Source.MEASURED)


# Files


def test_they_lie_in_the_package_or_beside_it_in_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "site" / "autoconv"
    package.mkdir(parents=True)
    assert shipped_folder(package) is None
    beside = package.parent / "tuning_db"
    beside.mkdir()
    assert shipped_folder(package) is None  # somebody else's
    (package.parent / "pyproject.toml").touch()
    assert shipped_folder(package) == beside
    (package / "tuning_db").mkdir()
    assert shipped_folder(package) == package / "tuning_db"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shipped databases: one that is right, one that is damaged, and a card."""
    found = tmp_path / "tuning_db"
    found.mkdir()
    source = tmp_path / "source.db"
    fill(open_store(source), HERE, {"native": 8.0, "fast": 4.0}).close()
    from autoconv.store import export

    export(source, found / "right.db")
    (found / "damaged.db").write_bytes(b"no database")
    (found / "right.md").write_text("a card")
    files = sorted(found.glob("*.db"))
    monkeypatch.setattr("autoconv.store.shipped.shipped_files", lambda: files)
    yield found
    shutil.rmtree(found)


def test_they_are_only_read_and_leave_no_file_beside_them(folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    stores = open_shipped()
    assert list(stores) == ["right"]
    assert len(stores["right"].records(HERE.id, PROBLEM)) == 2
    assert stores["right"].readonly
    assert sorted(path.name for path in folder.iterdir()) == before
    stores["right"].close()


def test_every_problem_of_those_of_this_checkout_is_decided_without_timing() -> None:
    """Of up to a few hundred each, and on such a device; where no candidate is accurate that is said."""
    for name, store in open_checkout().items():
        for key, (identity, _) in store.environments().items():
            where = Environment({k: v for k, v in identity.items() if isinstance(v, (str, int))}, {}, 80 * 10**9)
            knowledge = Knowledge(algorithms(), lambda found=store: {"": found}, WarnOnce())  # type: ignore[misc]
            problems = store.problems(key)
            for problem in problems[:: max(1, len(problems) // 200)]:
                question = Question(problem, where, "native", 48e9, may_time=True, passed=None)
                assert knowledge.shipped(question) is not None, (name, problem.key)
        store.close()


def open_checkout() -> dict[str, Store]:
    from autoconv.store import shipped

    folder = shipped.shipped_folder()
    assert folder is not None
    return {p.stem: open_store(p, readonly=True, immutable=True) for p in sorted(folder.glob("*.db"))}


def test_those_of_this_checkout_can_all_be_opened() -> None:
    from autoconv.store import shipped

    folder = shipped.shipped_folder()
    assert folder is not None
    for path in sorted(folder.glob("*.db")):
        store = open_store(path, readonly=True, immutable=True)
        assert store.environments()
        assert path.with_suffix(".md").is_file(), "it has no card"
        store.close()


# The doctor


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (HERE, "mine applies: 1 problems"),
        (NEWER, "mine differs in MLX 1.2.4 rather than 1.2.3: what won there is tried first here"),
        (STRANGER, "none applies: mine differs in device another rather than a device"),
    ],
)
def test_the_doctor_names_the_one_that_applies_or_says_why_none_does(where: Environment, says: str) -> None:
    shipped = {"mine": fill(MemoryStore(), where, {"native": 8.0, "fast": 4.0})}
    found = doctor.examine(settings.from_environment({}), CPU, shipped)
    (finding,) = [f for f in found if f.about == "shipped database"]
    assert says in finding.found


def test_the_doctor_counts_what_decides_with_the_algorithms_of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(MemoryStore(), HERE, {"native": 8.0, "fast": 4.0})
    fill(store, HERE, {"fast": 4.0}, problem=OTHER)  # without native nothing can be compared
    for version, deciding in ((1, 1), (2, 0)):
        known = [replace(a, version=version) for a in ALGORITHMS]
        monkeypatch.setattr(doctor, "algorithms", partial(tuple, known))
        (finding,) = shipped_findings({"mine": store})
        assert (
            finding.found == f"mine applies: 2 problems measured on such a device, {deciding} decide with this version"
        )


def test_the_doctor_names_what_cannot_be_read_and_closes_what_it_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SqliteStore] = []

    def close(store: SqliteStore) -> None:
        closed.append(store)

    monkeypatch.setattr(SqliteStore, "close", close)
    unread, right = shipped_findings(None)
    assert unread.found.startswith("damaged cannot be read: ")
    assert str(folder / "damaged.db") in unread.found
    assert unread.advice
    assert right.found.startswith("right applies: 1 problems")
    assert not right.advice
    monkeypatch.undo()
    assert len([store for store in closed if store.readonly]) == 1
    for store in closed:
        store.close()


def test_the_doctor_does_not_say_that_none_came_where_one_is_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoconv.store.shipped.shipped_files", lambda: [folder / "damaged.db"])
    (finding,) = shipped_findings(None)
    assert finding.found.startswith("damaged cannot be read: ")


def shipped_findings(shipped: Mapping[str, Store] | None) -> list[Finding]:
    found = doctor.examine(settings.from_environment({}), CPU, shipped)
    return [f for f in found if f.about == "shipped database"]


def test_the_doctor_says_where_none_came_with_the_package() -> None:
    (finding,) = [f for f in doctor.examine(settings.from_environment({}), CPU, {}) if f.about == "shipped database"]
    assert finding.found == "none came with this package"


def test_imported_gradients_are_verified_by_the_first_run_of_gradients() -> None:
    gradient = replace(PROBLEM, kind=Kind.INPUT_GRADIENT)
    case = Case({})
    fill(case.own, HERE, {"native": 8.0, "fast": 4.0}, problem=gradient, origin="0123456789ab")
    assert case.decide("predict", gradient) == ("native", Source.NATIVE)
    passed = qualification(HERE)
    case.own.qualify(Qualification(HERE.id, fingerprint(ALGORITHMS, gradients=True), passed=passed.passed, created=1.0))
    assert case.decide("predict", gradient) == ("fast", Source.DATABASE)
