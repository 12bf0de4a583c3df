"""A model's advice: what the dispatcher makes of it under each policy, what is timed all the same, what it survives."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replay import Benches, Run, VirtualClock, nothing_is_timed, registry, replayed

from autoconv import _calls, device_lock, environment, settings
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate
from autoconv.algorithms import algorithms as all_algorithms
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.errors import AutoconvWarning, StoreError
from autoconv.model import prior
from autoconv.model.advice import Advice, Adviser, Forecast
from autoconv.problem import Kind, Problem
from autoconv.report import doctor
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Qualification, Store
from autoconv.tuning.qualification import Qualifier, fingerprint

CPU = mx.Device(mx.cpu)
IDENTITY: dict[str, str | int] = {"backend": "cpu", "device": "a device", "mlx": "1.2.3"}
HERE = Environment(IDENTITY, {}, memory_bytes=10**9)
NEWER = Environment({**IDENTITY, "mlx": "1.2.4"}, {}, memory_bytes=10**9)
PROBLEM = Problem.parse((1, 4, 8, 8, 4), (8, 3, 3, 3, 4), padding=1)
OTHER = Problem.parse((1, 4, 8, 9, 4), (8, 3, 3, 3, 4), padding=1)
LONG = Problem.parse((1, 16, 8, 8, 4), (8, 3, 3, 3, 4), padding=1)
GROUPED = Problem.parse((1, 4, 5, 5, 8), (8, 3, 3, 3, 4), groups=2)
HUGE = Problem.parse((1, 2, 1, 1, 2**16), (2**15, 2, 1, 1, 2**16))  # its weight is what is too large
NAMES = ("native", "a", "b", "c")
REGISTRY = registry(*NAMES)
MS = 1e-3
C_WINS: dict[str, Run | Exception] = {
    "native": Run((6 * MS,)),
    "a": Run((4 * MS,)),
    "b": Run((5 * MS,)),
    "c": Run((3 * MS,)),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is a device of this test's own, with a lock of its own."""
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def advice(*ratios: tuple[str, float], **changes: Any) -> Advice:
    """Advice whose choice is the first, `b` at 0.8 times native's time by default."""
    told = ratios or (("b", 0.8), ("c", 0.9), ("native", 1.0), ("a", 1.5))
    forecasts = tuple(Forecast(name, math.log(ratio), 0.0 if name == "native" else 0.07) for name, ratio in told)
    return replace(Advice(forecasts, 1.07, 1.2, in_question=("b", "c", "native"), reason="a guess"), **changes)


UNSURE, SAFE = advice(), advice(safe=True, worst_to_native=0.9)
SURE = replace(SAFE, sure=True, worst_to_best=1.02)
NATIVE_IS_BEST = advice(("native", 1.0), ("b", 1.2), safe=True, sure=True, worst_to_native=1.0, in_question=("native",))
Asked = tuple[Problem, tuple[str, ...]]


class Model:
    """An adviser that says the same of every problem, as far as it is asked about it, or raises."""

    name = "a model"

    def __init__(self, says: Advice | Exception) -> None:
        self.says = says
        self.asked: list[Asked] = []

    def advise(self, problem: Problem, candidates: tuple[Candidate, ...]) -> Advice:
        self.asked.append((problem, tuple(c.name for c in candidates)))
        if isinstance(self.says, Exception):
            raise self.says
        silent = set(NAMES) - {c.name for c in candidates}
        return replace(
            self.says,
            forecasts=tuple(f for f in self.says.forecasts if f.candidate not in silent),
            in_question=tuple(name for name in self.says.in_question if name not in silent),
        )


class Models:
    """Finds the same model everywhere; every look is listed: the environment and its ceilings."""

    def __init__(self, found: Adviser | Exception | None, why: str = "") -> None:
        self.found = found
        self.why = why
        self.looks: list[tuple[str, dict[str, float]]] = []

    def __call__(
        self, where: Environment, ceilings: Mapping[str, float], chosen: Settings
    ) -> tuple[Adviser | None, str]:
        self.looks.append((where.id, dict(ceilings)))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found, self.why


def first_run(
    where: Environment = HERE, among: Sequence[Algorithm] = REGISTRY, passed: bool = True, **known: Any
) -> Qualification:
    pairs = frozenset((a.name, dtype) for a in among for dtype in ("float32", "float16")) if passed else frozenset()
    return Qualification(where.id, fingerprint(among), passed=pairs, created=1.0, **known)


def own(passed: bool = True, **known: Any) -> MemoryStore:
    """A store that knows the device as qualified; its algorithms passed, or none of them met this dtype."""
    store = MemoryStore()
    store.qualify(first_run(passed=passed, **known))
    return store


def asked(policy: str = "auto", **changes: object) -> Settings:
    return settings.with_changes(settings.from_environment({}), {"policy": policy, **changes})


class Case:
    """A dispatcher with a model, over a store, whose bench is replayed; without a table nothing may be timed."""

    def __init__(
        self,
        says: Advice | Exception | Models = UNSURE,
        store: Store | None = None,
        table: Mapping[str, Run | Exception] | None = None,
        *,
        among: Sequence[Algorithm] = REGISTRY,
        shipped: Mapping[str, Store] | None = None,
    ) -> None:
        self.store = own() if store is None else store
        self.model = Model(UNSURE if isinstance(says, Models) else says)
        self.models = says if isinstance(says, Models) else Models(self.model)
        self.benches = Benches(table or {})
        self.dispatcher = Dispatcher(
            among,
            stores=lambda _path, _readonly: self.store,
            bench=self.benches if table else nothing_is_timed,
            clock=self.benches.clock if table else VirtualClock(),
            shipped=lambda: shipped or {},
            advisers=self.models,
        )

    def decide(self, policy: str = "auto", problem: Problem = PROBLEM, **changes: object) -> Decision:
        with contextlib.redirect_stderr(io.StringIO()):
            return self.dispatcher.decide(problem, asked(policy, **changes), CPU)

    @property
    def started(self) -> list[str]:
        """All that ran, in the order of their first runs."""
        return [name for _, bench in self.benches.made for name in bench.started()]


# The policies


@pytest.mark.parametrize("qualified", [True, False], ids=["qualified", "not"])
@pytest.mark.parametrize("says", [SURE, SAFE, UNSURE], ids=["sure", "safe", "unsure"])
@pytest.mark.parametrize("policy", ["auto", "measure", "predict", "record", "off"])
def test_what_each_policy_makes_of_advice(policy: str, says: Advice, qualified: bool) -> None:
    case = Case(says, own(qualified), C_WINS)
    found = case.decide(policy)
    if policy == "auto" and says is SURE and qualified:
        expected, ran = ("b", Source.MODEL), []
    elif policy == "auto":
        expected, ran = ("c", Source.MEASURED), ["native", "b", "c"]
    elif policy == "measure":
        expected, ran = ("c", Source.MEASURED), ["native", "a", "b", "c"]
    elif policy == "predict" and says is not UNSURE and qualified:
        expected, ran = ("b", Source.MODEL), []
    else:
        expected, ran = ("native", Source.NATIVE), []
    assert (found.candidate, found.source) == expected
    assert case.started == ran
    assert case.store.pending(HERE.id) == ([PROBLEM] if policy == "record" else [])
    assert case.dispatcher.statistics()[expected[1]] == 1


@pytest.mark.parametrize("policy", ["measure", "record", "off"])
def test_who_does_not_decide_by_a_model_asks_none(policy: str) -> None:
    case = Case(SURE, own(), C_WINS)
    case.decide(policy)
    assert case.models.looks == []


@pytest.mark.parametrize("policy", ["auto", "predict"])
def test_a_choice_of_the_model_says_by_how_much_and_by_whom(policy: str) -> None:
    found = Case(SURE).decide(policy)
    assert found.margin == pytest.approx(0.25)
    assert found.reason == "a guess, by a model"
    assert not found.provisional


@pytest.mark.parametrize("policy", ["auto", "predict"])
def test_native_is_taken_from_the_model_without_a_first_run(policy: str) -> None:
    found = Case(NATIVE_IS_BEST, MemoryStore()).decide(policy)
    assert (found.candidate, found.source, found.margin) == ("native", Source.MODEL, 0.0)


def test_under_predict_native_says_why_the_model_was_not_followed() -> None:
    assert "b may be up to 1.07 times native" in Case(UNSURE).decide("predict").reason
    beyond = replace(UNSURE, worst_to_native=0.77, reason="past all that it learned from")
    assert "unsure: past all that it learned from" in Case(beyond).decide("predict").reason
    assert "b, was not verified" in Case(SURE, own(passed=False)).decide("predict").reason
    assert "held to strict" in Case(SURE).decide("predict", accuracy="strict").reason
    none = Models(None, "no model: cuda.npz knows depth_winograd@1, here it is @2")
    assert "no model: cuda.npz knows depth_winograd@1" in Case(none).decide("predict").reason
    stranger = Advice((), reason="it knows no weight gradients")
    assert "it knows no weight gradients" in Case(stranger).decide("predict").reason


def test_what_databases_know_comes_first_and_looks_for_no_model() -> None:
    store = own()
    Case(UNSURE, store, C_WINS).decide("measure")
    case = Case(SURE, store)
    for policy in ("auto", "measure", "predict", "record"):
        assert case.decide(policy).source is Source.DATABASE
    assert case.models.looks == []
    case = Case(SURE, MemoryStore(), shipped={"its like": store})
    assert case.decide().source is Source.SHIPPED
    assert case.models.looks == []


def test_what_won_among_kin_comes_before_the_model() -> None:
    kin = MemoryStore()
    kin.add_environment(NEWER.id, dict(NEWER.identity), {})
    seen = Case(UNSURE, own(), C_WINS)
    seen.decide("measure")
    kin.add(PROBLEM, [replace(r, environment=NEWER.id) for r in seen.store.records(HERE.id, PROBLEM)])
    case = Case(SURE, own(), C_WINS, shipped={"kin": kin})
    assert case.decide().source is Source.MEASURED
    assert case.started == ["native", "c"]
    assert Case(SURE, own(), shipped={"kin": kin}).decide("predict").candidate == "c"
    # And where there is no time for the duel, the model's choice is better than nothing.
    assert Case(SURE, own(), shipped={"kin": kin}).decide(stall="0").source is Source.MODEL


# Verified first


def test_a_first_run_of_its_like_that_was_shipped_counts_where_this_device_had_none() -> None:
    like, stranger = own(), MemoryStore()
    stranger.qualify(first_run(NEWER))
    case = Case(SURE, MemoryStore(), shipped={"stranger": stranger, "like": like})
    assert case.decide("predict").source is Source.MODEL
    assert Case(SURE, MemoryStore(), shipped={"stranger": stranger}).decide("predict").source is Source.NATIVE
    assert Case(SURE, own(passed=False), shipped={"like": like}).decide("predict").source is Source.NATIVE


def test_a_shipped_database_that_cannot_be_read_costs_a_warning() -> None:
    broken = own()
    broken.close()
    case = Case(SURE, MemoryStore(), shipped={"broken": broken, "like": own()})
    with pytest.warns(AutoconvWarning, match="closed"):
        assert case.decide("predict").source is Source.MODEL


def test_a_device_that_was_never_qualified_is_and_then_the_model_is_asked_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(SURE, MemoryStore(), C_WINS)

    def advance(_qualifier: Qualifier, _limit_s: float) -> Qualification:
        case.benches.clock.pass_(1.0)
        return first_run(ceilings={"copy_gb_per_s": 9.0})

    monkeypatch.setattr(Qualifier, "advance", advance)
    found = case.dispatcher.decide(PROBLEM, asked(), CPU)
    assert "took a first look at this device in 1.0 s" in capsys.readouterr().err
    assert (found.candidate, found.source) == ("b", Source.MODEL)
    assert case.started == []
    assert case.models.looks == [(HERE.id, {}), (HERE.id, {"copy_gb_per_s": 9.0})]
    assert case.store.records(HERE.id, PROBLEM) == []


def test_gradients_are_qualified_apart_and_have_the_ceilings_of_convolutions() -> None:
    store = own(ceilings={"launch_us": 4.0})
    gradient = replace(PROBLEM, kind=Kind.INPUT_GRADIENT)
    case = Case(SURE, store)
    assert case.decide("predict", gradient).source is Source.NATIVE
    passed = replace(first_run(ceilings={"launch_us": 4.0}), fingerprint=fingerprint(REGISTRY, gradients=True))
    store.qualify(passed)
    assert case.decide("predict", gradient).source is Source.MODEL
    assert case.models.looks == [(HERE.id, {"launch_us": 4.0})]


# What is timed


def test_only_those_in_question_are_timed_the_most_promising_first() -> None:
    case = Case(advice(in_question=("c", "b", "native")), own(), C_WINS)
    assert case.decide().candidate == "c"
    assert case.started == ["native", "c", "b"]
    case = Case(advice(("c", 0.7), ("a", 0.8), ("b", 0.9), in_question=("a",)), own(), C_WINS)
    assert case.decide().candidate == "c"
    assert case.started == ["native", "c", "a"]  # the choice is in question in any case
    again = Case(SURE, case.store)
    assert (again.decide().candidate, again.decide().source) == ("c", Source.DATABASE)


def test_where_the_model_knows_nothing_all_are_timed_as_they_stand() -> None:
    for says in (Advice((), reason="no such dtype"), replace(UNSURE, in_question=())):
        case = Case(says, own(), C_WINS)
        assert case.decide().source is Source.MEASURED
        assert case.started == list(NAMES)


def test_who_asks_for_a_measurement_gets_all() -> None:
    case = Case(SURE, own(), C_WINS)
    case.dispatcher.tune(PROBLEM, asked(), CPU)
    assert case.started == list(NAMES)
    assert case.models.looks == []


def test_the_order_of_timing_settles_no_tie() -> None:
    ties: dict[str, Run | Exception] = {"native": Run((9 * MS,)), **{name: Run((5 * MS,)) for name in "abc"}}
    winners = []
    for order in (("c", "b", "a"), ("a", "b", "c"), ("b", "c", "a")):
        says = advice(*((name, 0.5 + i / 100) for i, name in enumerate(order)), in_question=order)
        case = Case(says, own(), ties)
        winners.append(case.decide().candidate)
        assert case.started == ["native", *order]
    assert winners == ["a", "a", "a"]


def test_where_nothing_in_question_is_accurate_enough_the_others_are_timed_as_well() -> None:
    loose = {name: Run((3 * MS,), error=1e-3) for name in ("native", "b", "c")}
    case = Case(SURE, own(), {**loose, "a": Run((9 * MS,), error=1e-7)})
    found = case.decide(accuracy="strict")
    assert (found.candidate, found.accurate) == ("a", True)
    assert case.started == ["native", "b", "c", "native", "a", "b", "c"]
    again = Case(SURE, case.store).decide(accuracy="strict")
    assert (again.candidate, again.source) == ("a", Source.DATABASE)


def test_what_was_timed_of_some_does_not_say_under_strict_that_none_is_accurate() -> None:
    rough = {name: Run((3 * MS,), error=9e-6) for name in ("native", "b", "c")}
    case = Case(UNSURE, own(), {**rough, "a": Run((9 * MS,), error=1e-7)})
    assert case.decide().accurate
    later = Case(UNSURE, case.store, {**rough, "a": Run((9 * MS,), error=1e-7)})
    assert later.decide(accuracy=1e-6).candidate == "a"
    assert later.dispatcher.look_up(PROBLEM, asked(accuracy=1e-6), CPU) is not None


def test_where_native_does_not_fit_all_are_timed() -> None:
    among = [replayed("native", 0, outputs=9), *REGISTRY[1:]]
    table = {**C_WINS, "native(frames=4)": Run((6 * MS,))}
    store = MemoryStore()
    store.qualify(first_run(among=among))
    says = advice(("b", 0.8), in_question=("b",))
    case = Case(says, store, table, among=among)
    found = case.decide(problem=LONG, memory_limit=3 * LONG.output_bytes + 10_000)
    assert (found.candidate, found.source) == ("c", Source.MEASURED)
    assert case.started == ["native(frames=4)", "a", "b", "c"]


# Where nothing can be timed


@pytest.mark.parametrize(
    ("says", "qualified", "expected"),
    [
        (SAFE, True, ("b", Source.MODEL)),
        (SAFE, False, ("native", Source.NATIVE)),
        (UNSURE, True, ("native", Source.NATIVE)),
    ],
)
def test_without_time_a_safe_choice_is_taken_for_now(
    says: Advice, qualified: bool, expected: tuple[str, Source]
) -> None:
    case = Case(says, own(qualified))
    found = case.decide(stall="0")
    assert (found.candidate, found.source) == expected
    assert case.store.pending(HERE.id) == [PROBLEM]
    assert _calls._for_want_of_time(found, asked())  # so that it is looked at again
    with device_lock.hold(HERE.lock_name) as held:
        assert held
        found = case.decide()
    assert (found.candidate, found.source) == expected


def test_measure_takes_no_model_for_want_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda _: 0)
    found = Case(SURE).decide("measure")
    assert (found.candidate, found.source) == ("native", Source.NATIVE)


def test_a_choice_that_is_final_is_not_looked_at_again() -> None:
    assert not _calls._for_want_of_time(Case(SURE).decide(), asked())


def test_what_can_never_be_timed_asks_no_model() -> None:
    case = Case(SURE)
    assert "2^31-1" in case.decide(problem=HUGE).reason
    assert case.models.looks == []


# The limits of the call


@pytest.mark.parametrize("accuracy", ["strict", 1e-3])
@pytest.mark.parametrize("says", [SURE, NATIVE_IS_BEST])
def test_where_accuracy_is_asked_for_every_choice_is_verified(says: Advice, accuracy: str | float) -> None:
    case = Case(says, own(), C_WINS)
    assert case.decide(accuracy=accuracy).source is Source.MEASURED
    assert case.started == (["native", "b", "c"] if says is SURE else ["native"])
    assert Case(says).decide("predict", accuracy=accuracy).candidate == "native"
    assert Case(says).decide(accuracy=accuracy, stall="0").candidate == "native"


def test_the_model_is_asked_about_what_fits_the_memory() -> None:
    among = [REGISTRY[0], replayed("a", 1, workspace=10**8), *REGISTRY[2:]]
    for limit, names in (("100MB", NAMES), ("99MB", ("native", "b", "c"))):
        store = MemoryStore()
        store.qualify(first_run(among=among))
        case = Case(SURE, store, among=among)
        case.decide("predict", memory_limit=limit)
        assert case.model.asked == [(PROBLEM, names)]


def test_the_model_is_not_asked_about_what_may_not_run() -> None:
    store = own(barred={"a": "silent zeros"})
    for _ in range(2):
        store.begin(HERE.id, PROBLEM, "c")
    case = Case(advice(("b", 0.8), in_question=("b", "native")), store)
    case.decide("predict")
    assert case.model.asked == [(PROBLEM, ("native", "b"))]
    case.decide("predict", OTHER)
    assert case.model.asked[1:] == [(OTHER, ("native", "b", "c"))]


def test_what_was_wrong_here_is_never_the_models_choice() -> None:
    store = own()
    wrong = {**C_WINS, "b": Run((1 * MS,), wrong="the result is not finite")}
    # Timed with little memory: with more, these records do not tell.
    among = [*REGISTRY[:3], replayed("c", 3, workspace=10**8)]
    Case(UNSURE, store, wrong, among=among).decide("measure", memory_limit="10MB")
    case = Case(SURE, store, among=among)
    found = case.decide("predict")
    assert (found.candidate, found.source) == ("c", Source.MODEL)
    assert case.model.asked == [(PROBLEM, ("native", "a", "c"))]


def test_a_database_that_fails_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SURE)

    def unended(_environment: str, _problem: Problem) -> dict[str, int]:
        msg = "the disk is gone"
        raise StoreError(msg)

    monkeypatch.setattr(case.store, "unended", unended)
    with pytest.warns(AutoconvWarning, match="the disk is gone"):
        assert case.decide("predict").candidate == "b"


# Groups, of which MLX has none in 3D


GROUPS = advice(("b", 0.8), ("c", 0.9), ("a", 1.5), in_question=("b", "c"), worst_to_native=math.inf)


def test_for_groups_the_model_is_asked_about_the_others() -> None:
    case = Case(replace(GROUPS, safe=True, sure=True))
    found = case.decide(problem=GROUPED)
    assert (found.candidate, found.source, found.margin) == ("b", Source.MODEL, None)
    assert case.model.asked == [(GROUPED, ("a", "b", "c"))]


@pytest.mark.parametrize("accuracy", ["native", "strict"])
def test_for_groups_an_unsure_model_is_better_than_the_first_that_can(accuracy: str) -> None:
    found = Case(GROUPS).decide("predict", GROUPED, accuracy=accuracy)
    assert (found.candidate, found.source) == ("b", Source.MODEL)
    found = Case(GROUPS).decide(problem=GROUPED, stall="0")
    assert (found.candidate, found.source, found.provisional) == ("b", Source.MODEL, True)


def test_for_groups_an_unverified_choice_is_none() -> None:
    found = Case(GROUPS, own(passed=False)).decide("predict", GROUPED)
    assert (found.candidate, found.source) == ("a", Source.NATIVE)
    assert "no groups" in found.reason


def test_for_groups_those_in_question_are_timed() -> None:
    table = {**C_WINS, "native": ValueError("[conv] no groups")}
    case = Case(GROUPS, own(), table)
    assert case.decide(problem=GROUPED).candidate == "c"
    assert case.started == ["native", "b", "c"]


# What a bad model costs


RAISED = (ValueError("not\na number"), KeyError("weights"), ZeroDivisionError(), IndexError("out"), TypeError("None"))
NONSENSE = (
    advice(("elsewhere", 0.5), safe=True, sure=True),
    advice(("b", math.inf), safe=True, sure=True),
    replace(UNSURE, in_question=("elsewhere",)),
    replace(SURE, worst_to_native=math.nan),
    replace(SURE, forecasts=()),
    replace(SURE, forecasts=(Forecast("b", math.nan, 0.1),)),
    replace(SURE, forecasts=(Forecast("b", -0.1, math.nan),)),
    replace(SURE, forecasts=(Forecast("b", -1e300, 0.1),)),  # whose exponential is no number
    replace(SURE, forecasts=(Forecast("b", -0.1, 1e300),)),
)


@pytest.mark.parametrize("says", [*RAISED, *NONSENSE], ids=lambda says: type(says).__name__)
def test_a_model_that_raises_or_talks_nonsense_costs_one_warning_and_is_none(says: Advice | Exception) -> None:
    case = Case(says, own(), C_WINS)
    with pytest.warns(AutoconvWarning, match="the cost model cannot be used") as warned:
        found = [case.decide("predict"), case.decide("auto"), case.decide("predict", OTHER)]
    assert [d.source for d in found] == [Source.NATIVE, Source.MEASURED, Source.NATIVE]
    assert "cannot be used" in found[2].reason
    assert len(warned) == 1
    assert case.started == list(NAMES)


@pytest.mark.parametrize("error", [*RAISED, OSError("gone"), ImportError("no numpy"), EOFError()])
def test_a_model_that_cannot_be_loaded_costs_one_warning_and_one_look(error: Exception) -> None:
    case = Case(Models(error), own())
    with pytest.warns(AutoconvWarning, match=type(error).__name__) as warned:
        found = [case.decide("predict", problem) for problem in (PROBLEM, OTHER)]
    assert [d.source for d in found] == [Source.NATIVE] * 2
    assert len(warned) == len(case.models.looks) == 1


def test_a_fault_that_is_no_bad_model_is_seen() -> None:
    with pytest.raises(AssertionError, match="a defect"):
        Case(AssertionError("a defect")).decide("predict")


# Looking for a model


def test_it_is_looked_for_once_in_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    store = own()
    store.qualify(first_run(NEWER))
    case = Case(SURE, store)
    for _ in range(2):
        for where in (HERE, NEWER):
            monkeypatch.setitem(environment._environments, repr(CPU), where)
            for problem in (PROBLEM, OTHER):
                assert case.decide(problem=problem).source is Source.MODEL
    assert [where for where, _ in case.models.looks] == [HERE.id, NEWER.id]
    case.dispatcher.close()
    case.store = store = own()
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    case.decide()
    assert [where for where, _ in case.models.looks] == [HERE.id, NEWER.id, HERE.id]


def test_another_database_may_have_another_model(tmp_path: Path) -> None:
    case = Case(SURE)
    for name in ("one", "two", "one"):
        case.decide("predict", database=tmp_path / name)
    assert len(case.models.looks) == 2


# The prior


METAL = Environment({**IDENTITY, "backend": "metal", "working_set": 10**9}, {}, memory_bytes=10**9)
BACKWARDS = {name: float(len(NAMES) - place) for place, name in enumerate(NAMES)}


@pytest.fixture
def on_metal(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A qualified Metal device, and a prior that orders candidates backwards."""

    def prior_us(
        problem: Problem, candidates: Sequence[Candidate], ceilings: Mapping[str, float], working_set: float
    ) -> list[float]:
        assert (ceilings, working_set) == ({"launch_us": 7.0}, 1e9)
        return [BACKWARDS[c.name] for c in candidates]

    monkeypatch.setattr(prior, "prior_us", prior_us)
    monkeypatch.setitem(environment._environments, repr(CPU), METAL)
    monkeypatch.setattr(environment, "free_bytes", lambda _: 10**9)
    store = MemoryStore()
    store.qualify(first_run(METAL, ceilings={"launch_us": 7.0}))
    return store


NO_MODEL = Models(None, "no model knows Metal")


@pytest.mark.parametrize("ask", ["auto", "measure", "tune"])
def test_without_a_model_the_prior_orders_what_is_timed_and_decides_nothing(on_metal: MemoryStore, ask: str) -> None:
    case = Case(NO_MODEL, on_metal, C_WINS)
    found = case.dispatcher.tune(PROBLEM, asked(), CPU) if ask == "tune" else case.decide(ask)
    assert found.candidate == "c"
    assert case.started == ["native", "c", "b", "a"]
    predicted = case.decide("predict", OTHER)
    assert (predicted.candidate, predicted.source) == ("native", Source.NATIVE)


def test_where_there_is_a_model_there_is_no_prior(on_metal: MemoryStore) -> None:
    case = Case(UNSURE, on_metal, C_WINS)
    case.decide()
    assert case.started == ["native", "b", "c"]


def test_the_prior_is_shown_with_its_mark(on_metal: MemoryStore) -> None:
    found = Case(NO_MODEL, on_metal).dispatcher.explanation(PROBLEM, asked(), CPU)
    why = {row[0]: row[-1] for row in found.rows()}
    assert why["c"] == f"place 2 of 4 by {prior.MARK}"
    assert f"timed in the order of {prior.MARK}" in str(found)
    assert found.as_dict()["advice"]["prior"] == {"mark": prior.MARK, "order": ["native", "c", "b", "a"]}


def test_elsewhere_there_is_no_prior() -> None:
    case = Case(NO_MODEL, own(), C_WINS)
    case.decide()
    assert case.started == list(NAMES)
    assert case.dispatcher.explanation(OTHER, asked(), CPU).as_dict()["advice"]["prior"] is None


# What is shown


@pytest.mark.parametrize(
    ("policy", "says", "candidate", "source"),
    [
        ("auto", SURE, "b", Source.MODEL),
        ("auto", SAFE, "native", Source.NATIVE),
        ("predict", SAFE, "b", Source.MODEL),
        ("predict", UNSURE, "native", Source.NATIVE),
        ("measure", SURE, "native", Source.NATIVE),
        ("record", SURE, "native", Source.NATIVE),
    ],
)
def test_an_explanation_is_of_what_a_call_would_do_without_timing(
    policy: str, says: Advice, candidate: str, source: Source
) -> None:
    case = Case(says)
    found = case.dispatcher.explanation(PROBLEM, asked(policy), CPU)
    assert (found.decision.candidate, found.decision.source) == (candidate, source)
    assert found.counsel is not None
    assert found.counsel.advice == says
    assert set(case.dispatcher.statistics().values()) == {0}
    assert case.store.pending(HERE.id) == []


def test_an_explanation_shows_the_forecast_of_every_candidate_and_how_sure_the_model_is() -> None:
    store = own(barred={"a": "silent zeros"})
    says = advice(("b", 0.82), ("c", 0.9), ("native", 1.0))
    text = str(Case(says, store).dispatcher.explanation(PROBLEM, asked(), CPU))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["b"].endswith("forecast 0.82x native's time, give or take 7%")
    assert lines["c"].endswith("forecast 0.90x native's time, give or take 7%")
    assert lines["a"].endswith("barred on this device: silent zeros")
    assert "a model is unsure: a guess" in text
    assert "its choice, b: at most 1.07x native's time, at most 1.20x that of the best other" in text
    assert "in question: b, c, native" in text
    assert "not verified" not in text
    sure = str(Case(SURE, own(passed=False)).dispatcher.explanation(PROBLEM, asked(), CPU))
    assert "a model is sure" in sure
    assert "not verified" in sure
    assert "in question" not in sure
    assert "safe, not sure" in str(Case(SAFE).dispatcher.explanation(PROBLEM, asked(), CPU))


def test_for_groups_forecasts_are_compared_with_the_choice() -> None:
    found = Case(GROUPS).dispatcher.explanation(GROUPED, asked(), CPU)
    why = {row[0]: row[-1] for row in found.rows()}
    assert why["c"].startswith("forecast 1.12x the choice's time")
    assert why["native"] == "MLX has no groups in 3D"


def test_an_explanation_as_json_has_the_advice() -> None:
    found = Case(replace(UNSURE, worst_to_native=math.inf)).dispatcher.explanation(PROBLEM, asked(), CPU)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))["advice"]
    assert (told["adviser"], told["safe"], told["sure"], told["verified"]) == ("a model", False, False, True)
    assert (told["worst_to_native"], told["worst_to_best"], told["why_none"]) == (None, 1.2, None)
    assert told["in_question"] == ["b", "c", "native"]
    assert told["forecasts"][0] == {"candidate": "b", "ratio_to_native": pytest.approx(0.8), "doubt": 0.07}


def test_an_explanation_without_a_model_says_why_there_is_none() -> None:
    found = Case(Models(None, "no model: it knows c@1, here it is @2")).dispatcher.explanation(PROBLEM, asked(), CPU)
    assert "no model: it knows c@1, here it is @2" in str(found).splitlines()
    assert found.as_dict()["advice"]["why_none"] == "no model: it knows c@1, here it is @2"


def test_an_explanation_of_what_was_measured_asks_no_model_about_that() -> None:
    case = Case(UNSURE, own(), C_WINS)
    case.decide()
    found = case.dispatcher.explanation(PROBLEM, asked(), CPU)
    why = {row[0]: row[-1] for row in found.rows()}
    assert "forecast" in why["a"]  # which was not timed
    assert not any("forecast" in why[name] for name in ("native", "b", "c"))
    case.dispatcher.tune(PROBLEM, asked(), CPU)
    looked = len(case.model.asked)
    measured = case.dispatcher.explanation(PROBLEM, asked(), CPU)
    assert measured.counsel is None
    assert measured.as_dict()["advice"] is None
    assert len(case.model.asked) == looked


def test_off_is_explained_without_a_model() -> None:
    case = Case(SURE)
    assert case.dispatcher.explanation(PROBLEM, asked("off"), CPU).counsel is None
    assert case.models.looks == []


# The doctor


def test_the_doctor_says_which_model_applies(tmp_path: Path) -> None:
    like = MemoryStore()
    like.qualify(first_run(among=all_algorithms(), ceilings={"launch_us": 3.0}))
    chosen = asked(database=tmp_path / "none.db")

    def told(models: Models, shipped: Mapping[str, Store]) -> Finding:
        return next(f for f in doctor.examine(chosen, CPU, shipped, models) if f.about == "cost model")

    models = Models(Model(SURE))
    assert told(models, {"like": like}) == Finding("cost model", "a model applies")
    assert models.looks == [(HERE.id, {"launch_us": 3.0})]
    assert told(Models(Model(SURE), "your own is not"), {}).found == "a model applies; your own is not"
    assert told(Models(None, "no model: none was trained"), {}).found == "no model: none was trained"
    broken = told(Models(KeyError("weights")), {})
    assert "KeyError: 'weights'" in broken.found
    assert broken.advice


def test_the_doctor_knows_the_ceilings_of_the_users_own_database(tmp_path: Path) -> None:
    from autoconv.store import open_store

    with contextlib.closing(open_store(tmp_path / "own.db")) as store:
        store.qualify(first_run(among=all_algorithms(), ceilings={"launch_us": 5.0}))
    like = MemoryStore()
    like.qualify(first_run(among=all_algorithms(), ceilings={"launch_us": 3.0}))
    models = Models(None, "none")
    doctor.examine(asked(database=tmp_path / "own.db"), CPU, {"like": like}, models)
    assert models.looks == [(HERE.id, {"launch_us": 5.0})]


# What is imported


CALL = """
import sys, mlx.core as mx
mx.set_default_device(mx.cpu)
import autoconv
mx.eval(autoconv.conv3d(mx.ones((1, 2, 3, 3, 1)), mx.ones((1, 2, 3, 3, 1))))
print([m for m in sys.modules if m.startswith("autoconv.model.")], "sklearn" in sys.modules, "joblib" in sys.modules)
"""


def test_a_call_that_a_database_knows_imports_no_model(qualified: Path) -> None:
    variables = {**os.environ, "AUTOCONV_DATABASE": str(qualified), "AUTOCONV_POLICY": "measure"}
    for _ in range(2):  # the first one times it
        done = subprocess.run(
            [sys.executable, "-c", CALL], capture_output=True, text=True, check=True, env=variables, timeout=120
        )
    light = ["autoconv.model.advice", "autoconv.model.advisers", "autoconv.model.counsel"]
    assert done.stdout == f"{light} False False\n"
