"""A device whose memory is full, or that takes no work, when it is first met: that tells nothing of any algorithm."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from faulty import PROBLEM as SMALL
from faulty import Faulty, is_right, operands
from replay import Benches, ReplayBench, Run, VirtualClock, contenders, registry

import autoconv
from autoconv import environment, measurer, settings
from autoconv._backend import mx
from autoconv.algorithms import Candidate, algorithms
from autoconv.backoff import MAX_RETRY_S
from autoconv.cli import main
from autoconv.decision import Decision, Source
from autoconv.dispatch import Dispatcher
from autoconv.errors import AutoconvWarning, DeviceLostError, StoreError, TuningError
from autoconv.knowledge import Knowledge
from autoconv.model.advisers import ceilings_of
from autoconv.problem import Kind, Problem
from autoconv.record import Status
from autoconv.report.gathering import _Passed as Passed
from autoconv.settings import Settings
from autoconv.store import MemoryStore, Qualification, Store, open_store
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.qualification import PATIENCE_S, PROBLEMS, Qualifier, fingerprint, first_run
from autoconv.tuning.tuner import Plan, tune
from autoconv.tuning.verification import Verdict
from autoconv.warn import WarnOnce

REGISTRY = registry("native", "a", "b")
TABLE: dict[str, Run | Exception] = {"native": Run((6e-3,)), "a": Run((3e-3,)), "b": Run((4e-3,))}
PROBLEM = Problem.parse((1, 4, 5, 5, 3), (2, 3, 3, 3, 3))
OTHER = Problem.parse((1, 4, 5, 6, 3), (2, 3, 3, 3, 3))
CPU = mx.Device(mx.cpu)
HERE = environment.of(CPU)
MARK = fingerprint(REGISTRY)
UNABLE = RuntimeError("[malloc] Unable to allocate 99 bytes.")
PUT_OFF = "the first run on this device is put off: "

MOMENTARY = (
    UNABLE,
    RuntimeError("[malloc_or_wait] Unable to allocate 99 bytes."),
    RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
    RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
    RuntimeError("Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"),
    RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
    RuntimeError("cudnnBackendExecute(handle, plan, pack) failed: CUDNN_STATUS_ALLOC_FAILED."),
    RuntimeError("cudnnCreate(&cudnn_) failed: CUDNN_STATUS_NOT_INITIALIZED."),
    RuntimeError("cublasLtCreate(&lt_) failed: CUBLAS_STATUS_ALLOC_FAILED."),
    RuntimeError("cudaSetDevice(device_) failed: CUDA-capable device(s) is/are busy or unavailable"),
    ValueError("Unable to allocate 1.2 GiB for an array"),
    MemoryError("std::bad_alloc"),
    MemoryError(),
    type("OutOfMemoryError", (RuntimeError,), {})(),
)
FAR = "at " + "/a/very/long/path" * 30 + ": "
LASTING = (
    RuntimeError("CUDA error 700: an illegal memory access was encountered"),
    RuntimeError(
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size"
    ),
    ValueError("no such shape"),
    MemoryError("9 bytes are greater than the maximum allowed buffer size"),
    MemoryError(f"{FAR}9 bytes are greater than the maximum allowed buffer size"),
)


class Card:
    """A device that others may hold: what its first run runs fails while they do.

    Attributes:
        error: What is raised, None while there is room.
        when: `"made"`, `"verified"` or `"timed"`: what of a bench finds no room.
        whose: The algorithms that find none.
        alive: Whether the device answers rightly.
        tries: How many benches were begun.
        ran: What ran on which problem, and was right.
    """

    def __init__(self, error: Exception | None, when: str = "verified", whose: Sequence[str] = tuple(TABLE)) -> None:
        self.error = error
        self.when = when
        self.whose = whose
        self.alive = True
        self.tries = 0
        self.ran: list[tuple[Problem, str]] = []
        self.clock = VirtualClock()

    def fail(self, when: str, name: str) -> None:
        if self.error is not None and when == self.when and name in self.whose:
            raise self.error

    def bench(self, problem: Problem, _device: mx.Device) -> ReplayBench:
        self.tries += 1
        self.fail("made", "native")
        return _CardBench(self, problem)


class _CardBench(ReplayBench):
    def __init__(self, card: Card, problem: Problem) -> None:
        super().__init__(TABLE, card.clock)
        self._card = card
        self._problem = problem

    def verify(self, candidate: Candidate) -> Verdict:
        self._card.fail("verified", candidate.algorithm.name)
        self._card.ran.append((self._problem, candidate.name))
        return super().verify(candidate)

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        self._card.fail("timed", candidate.algorithm.name)
        return super().sample(candidate, repetitions)

    def alive(self) -> bool:
        return self._card.alive


@pytest.fixture(autouse=True)
def _unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceilings are not what is tested, and the clock stands still."""
    monkeypatch.setattr(Qualifier, "_best_of", lambda *_: 1e-3)


Meet = Callable[..., Dispatcher]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """Makes the dispatcher of a process that meets a card, over a store."""

    def made(card: Card, store: MemoryStore) -> Dispatcher:
        monkeypatch.setattr(measurer, "Qualifier", partial(Qualifier, bench=card.bench))
        benches = Benches(TABLE, card.clock)
        return Dispatcher(REGISTRY, stores=lambda _path, _readonly: store, bench=benches, clock=card.clock)

    with contextlib.redirect_stderr(io.StringIO()):  # the first stall is told of
        yield made


def asked(policy: str = "measure") -> Settings:
    return settings.with_changes(settings.from_environment({}), {"policy": policy})


def decide(made: Dispatcher, problem: Problem = PROBLEM, policy: str = "measure") -> Decision:
    return made.decide(problem, asked(policy), CPU)


def notes(store: MemoryStore) -> list[dict[str, int]]:
    return [left for left in (store.unended(HERE.id, problem) for problem in PROBLEMS) if left]


# What says nothing of an algorithm


@pytest.mark.parametrize("policy", ["auto", "measure"])
@pytest.mark.parametrize("when", ["made", "verified", "timed"])
@pytest.mark.parametrize("error", MOMENTARY, ids=lambda error: f"{type(error).__name__} {str(error)[:30]}")
def test_a_full_device_bars_nobody_and_is_met_again(error: Exception, when: str, policy: str, meet: Meet) -> None:
    card, store = Card(error, when), MemoryStore()
    made = meet(card, store)
    found = decide(made, policy=policy)
    assert (found.candidate, found.source) == ("native", Source.NATIVE)
    assert found.reason.startswith(PUT_OFF)
    assert str(error) in found.reason
    assert (store.qualifications(), notes(store), store.pending(HERE.id)) == ([], [], [PROBLEM])
    card.error = None
    card.clock.pass_(MAX_RETRY_S)
    assert decide(made, policy=policy).candidate == "a"
    (kept,) = store.qualifications()
    assert kept.barred == {}
    assert {name for name, _ in kept.passed} == {"native", "a", "b"}
    assert kept.noise == pytest.approx(0.0)


def test_nothing_is_left_out_of_a_first_run_that_was_put_off_time_and_again(
    meet: Meet, caplog: pytest.LogCaptureFixture
) -> None:
    class Flickering(Card):
        """Full every other time."""

        def bench(self, problem: Problem, device: mx.Device) -> ReplayBench:
            self.error = UNABLE if self.tries % 2 else None
            return super().bench(problem, device)

    plain, flickering = Card(None), Flickering(None, "made")
    decide(meet(plain, MemoryStore()))
    made = meet(flickering, MemoryStore())
    for _ in plain.ran:
        decide(made)
        flickering.clock.pass_(MAX_RETRY_S)
    assert decide(made).candidate == "a"
    assert flickering.ran == plain.ran
    assert len([line for line in caplog.messages if PUT_OFF in line]) == 1


def test_the_probes_of_the_ceilings_wait_for_room_as_well(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise UNABLE

    card, store = Card(None), MemoryStore()
    made = meet(card, store)
    with monkeypatch.context() as patch:
        patch.setattr(Qualifier, "_best_of", full)
        assert decide(made).reason.startswith(PUT_OFF)
    card.clock.pass_(MAX_RETRY_S)
    assert decide(made).candidate == "a"
    assert {name for name in store.qualifications()[0].ceilings if name.startswith("matmul")} == {
        "matmul_float32_gflops",
        "matmul_float16_gflops",
        "matmul_bfloat16_gflops",
    }


@pytest.mark.parametrize("kind", [Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT])
def test_the_first_run_of_gradients_is_put_off_by_itself(kind: Kind, meet: Meet) -> None:
    among = registry("native", "a", "b")
    card, store = Card(None), MemoryStore()
    made = meet(card, store)
    assert decide(made).candidate == "a"
    card.error = UNABLE
    assert decide(made, replace(PROBLEM, kind=kind)).reason.startswith(PUT_OFF)
    assert decide(made, OTHER).candidate == "a"
    assert [q.fingerprint for q in store.qualifications()] == [fingerprint(among)]
    assert PUT_OFF in made.explanation(replace(OTHER, kind=kind), asked(), CPU).decision.reason
    assert PUT_OFF not in made.explanation(OTHER, asked(), CPU).decision.reason


@pytest.mark.parametrize("error", LASTING, ids=lambda error: str(error)[:30])
def test_what_any_moment_would_show_bars_as_ever(error: Exception, meet: Meet) -> None:
    store = MemoryStore()
    with pytest.warns(AutoconvWarning, match="^a is not used on (?!.* in this process: )"):
        assert decide(meet(Card(error, whose=["a"]), store)).candidate == "b"
    known = first_run(store, HERE.id, MARK)
    assert known is not None
    assert set(known.barred) == {"a"}


# A device that answers wrongly for a while


def test_a_device_that_answers_wrongly_for_want_of_memory_is_not_lost_and_nobody_is_accused(meet: Meet) -> None:
    card, store = Card(UNABLE), MemoryStore()
    made = meet(card, store)
    card.alive = False
    assert decide(made).reason.startswith(PUT_OFF)
    card.error = RuntimeError("the stream is poisoned")  # whatever fails now, it fails by what was before
    card.clock.pass_(MAX_RETRY_S)
    assert decide(made).reason.startswith(PUT_OFF)
    assert (notes(store), store.qualifications()) == ([], [])
    card.error, card.alive = None, True
    card.clock.pass_(MAX_RETRY_S)
    assert decide(made).candidate == "a"


def test_who_breaks_the_device_each_time_it_finds_no_memory_is_not_accused_either(meet: Meet) -> None:
    class Breaking(Card):
        """It is right again at the next try."""

        def bench(self, problem: Problem, device: mx.Device) -> ReplayBench:
            self.alive = True
            return super().bench(problem, device)

        def fail(self, when: str, name: str) -> None:
            try:
                super().fail(when, name)
            except Exception:
                self.alive = False
                raise

    card, store = Breaking(UNABLE, whose=["a"]), MemoryStore()
    made = meet(card, store)
    for _ in range(5):
        assert decide(made).reason.startswith(PUT_OFF)
        card.clock.pass_(PATIENCE_S)
    assert (notes(store), store.qualifications()) == ([], [])


def test_a_database_without_memory_is_not_taken_for_the_device(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        msg = "the database: out of memory"
        raise StoreError(msg)

    store = MemoryStore()
    made = meet(Card(None), store)
    monkeypatch.setattr(store, "begin", fails)
    assert decide(made).reason.startswith("no note can be left of what runs")


def test_what_else_fails_before_anything_runs_is_told_as_it_is(meet: Meet) -> None:
    assert decide(meet(Card(LASTING[0], "made"), MemoryStore())).reason.startswith("the bench failed: ")


def test_a_device_that_something_else_broke_is_lost(meet: Meet) -> None:
    card, store = Card(LASTING[0], whose=["a"]), MemoryStore()
    made = meet(card, store)
    card.alive = False
    with pytest.raises(DeviceLostError):
        made.tune(PROBLEM, asked(), CPU)
    assert notes(store) == [{"a": 2}]


# How often, and how it is told


def test_it_is_not_tried_in_each_call_but_ever_more_seldom(meet: Meet) -> None:
    card = Card(UNABLE)
    made = meet(card, MemoryStore())
    for _ in range(20):
        assert decide(made).reason.startswith(PUT_OFF)
    assert card.tries == 1
    for _ in range(600):
        card.clock.pass_(1.0)
        decide(made)
    # After 1, 2, 4, 8, 16 and 32 s, which makes 63, and each minute from then on.
    assert card.tries == 1 + 6 + (600 - 63) // 60


def test_once_the_cap_is_spent_it_is_not_tried(meet: Meet) -> None:
    card = Card(UNABLE)
    made = meet(card, MemoryStore())
    capped = settings.with_changes(asked("auto"), {"stall": "0"})
    assert "timing has taken" in made.decide(PROBLEM, capped, CPU).reason
    assert card.tries == 0


def test_who_asks_for_the_time_is_told_and_tries_at_once(meet: Meet) -> None:
    card = Card(UNABLE)
    made = meet(card, MemoryStore())
    decide(made)
    for tries in (2, 3):
        with pytest.raises(TuningError, match=f"^{PUT_OFF}.* Unable to allocate"):
            made.tune(PROBLEM, asked(), CPU)
        assert card.tries == tries
    card.error = None
    assert made.tune(PROBLEM, asked(), CPU).candidate == "a"


@pytest.mark.parametrize("policy", ["auto", "measure"])
def test_it_is_explained_counted_and_logged_once(policy: str, meet: Meet, caplog: pytest.LogCaptureFixture) -> None:
    card = Card(UNABLE)
    made = meet(card, MemoryStore())
    assert PUT_OFF not in made.explanation(OTHER, asked(policy), CPU).decision.reason
    with caplog.at_level(logging.INFO, "autoconv"):
        for _ in range(3):
            decide(made, policy=policy)
            card.clock.pass_(MAX_RETRY_S)
    (line,) = caplog.messages
    assert PUT_OFF in line
    assert made.statistics()[Source.NATIVE] == 3
    found = made.explanation(OTHER, asked(policy), CPU)  # of a shape that was not called, too
    assert PUT_OFF in found.decision.reason
    assert PUT_OFF in str(found)
    for other in ("predict", "record"):  # which would not have timed it
        assert PUT_OFF not in made.explanation(OTHER, asked(other), CPU).decision.reason
    card.error = None
    decide(made, policy=policy)
    assert PUT_OFF not in made.explanation(OTHER, asked(policy), CPU).decision.reason


def test_it_is_explained_though_a_thread_is_done_with_it_meanwhile(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Emptied(dict[str, object]):
        """Another thread empties it after each look."""

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

        def get(self, key: str, default: object = None) -> object:
            found = super().get(key, default)
            self.clear()
            return found

    made = meet(Card(UNABLE), MemoryStore())
    decide(made)
    monkeypatch.setattr(made._measurer, "_put_off", Emptied(made._measurer._put_off))
    assert PUT_OFF in made.explanation(OTHER, asked(), CPU).decision.reason
    assert PUT_OFF not in made.explanation(OTHER, asked(), CPU).decision.reason


# An algorithm that alone finds no memory


@pytest.mark.parametrize(
    "error",
    [
        *MOMENTARY,
        RuntimeError(f"{FAR}out of memory"),
        RuntimeError(f"{FAR}CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(FAR),
        type("NoRoomError", (MemoryError,), {})(),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:30]}",
)
def test_who_alone_finds_none_for_long_is_left_out_by_this_process_alone(error: Exception, meet: Meet) -> None:
    card, store = Card(error, whose=["a"]), MemoryStore()
    made = meet(card, store)
    start = card.clock()
    while card.clock() - start < PATIENCE_S:
        assert decide(made).reason.startswith(PUT_OFF)
        card.clock.pass_(1.0)
    card.clock.pass_(MAX_RETRY_S)
    with pytest.warns(AutoconvWarning, match="^a is not used on .* in this process: "):
        assert decide(made).candidate == "b"
    assert store.qualifications() == []
    store.note(HERE.id, OTHER)
    card.error = None
    assert decide(made, OTHER).candidate == "b"
    assert decide(meet(card, store), Problem.parse((1, 4, 5, 7, 3), (2, 3, 3, 3, 3))).candidate == "a"
    (kept,) = store.qualifications()
    assert kept.barred == {}


@pytest.mark.parametrize("whose", ["native", "a"])
def test_while_nothing_can_be_told_nobody_is_left_out_however_long(whose: str, meet: Meet) -> None:
    card, store = Card(UNABLE, whose=[whose]), MemoryStore()
    made = meet(card, store)
    card.alive = whose == "native"
    for _ in range(20):
        assert decide(made).reason.startswith(PUT_OFF)
        card.clock.pass_(MAX_RETRY_S)
    card.error, card.alive = None, True
    assert decide(made).candidate == "a"
    assert store.qualifications()[0].barred == {}


# What was kept of such a run by mistake


def stored(barred: dict[str, str]) -> MemoryStore:
    store = MemoryStore()
    store.add_environment(HERE.id, dict(HERE.identity), {})
    store.qualify(Qualification(HERE.id, MARK, barred=barred, created=1.0))
    return store


@pytest.mark.parametrize("names", [["native", "a", "b"], ["native"], ["a"]], ids=str)
@pytest.mark.parametrize("why", [*(str(e) for e in MOMENTARY if str(e)), "MemoryError: "], ids=lambda why: why[:30])
def test_a_first_run_that_was_kept_of_a_full_device_is_done_anew(why: str, names: list[str], meet: Meet) -> None:
    store = stored(dict.fromkeys(names, f"{why}, for {PROBLEMS[0]}"))
    assert first_run(store, HERE.id, MARK) is None
    assert decide(meet(Card(None), store)).candidate == "a"
    (kept,) = store.qualifications()
    assert (kept.barred, {name for name, _ in kept.passed}) == ({}, {"native", "a", "b"})


@pytest.mark.parametrize("why", ["silent zeros", "the process ended while it ran", *map(str, LASTING)])
def test_a_first_run_that_tells_of_algorithms_is_believed(why: str, meet: Meet) -> None:
    store, card = stored({"a": f"{why}, for {PROBLEMS[0]}"}), Card(None)
    assert first_run(store, HERE.id, MARK) == store.qualifications()[0]
    assert decide(meet(card, store)).candidate == "b"
    assert card.tries == 0


def test_the_doctor_does_not_believe_it_either(tmp_path: Path) -> None:
    here = environment.of(mx.default_device())
    with closing(open_store(tmp_path / "autoconv.db")) as store:
        store.add_environment(here.id, dict(here.identity), {})
        store.qualify(Qualification(here.id, fingerprint(algorithms()), barred={"native": str(UNABLE)}, created=1.0))
    told = CliRunner().invoke(main, ["doctor"])
    assert "the first measurement does it" in told.output
    assert "Unable to allocate" not in told.output


def from_the_package(store: Store) -> object:
    return Knowledge(algorithms(), lambda: {"shipped": store}, WarnOnce()).qualification(HERE, None, gradients=False)


def for_a_report(store: Store) -> object:
    return Passed(store, HERE.id, here=HERE.id)(Kind.FORWARD)


def for_a_report_elsewhere(store: Store) -> object:
    return Passed(store, HERE.id, here="elsewhere")(Kind.FORWARD)


def for_a_model(store: Store) -> object:
    return ceilings_of(HERE, settings.current(), {"shipped": store}) or None


@pytest.mark.parametrize("read", [from_the_package, for_a_report, for_a_report_elsewhere, for_a_model])
def test_nobody_else_believes_it(read: Callable[[Store], object]) -> None:
    known = Qualification(HERE.id, fingerprint(algorithms()), ceilings={"copy_gb_per_s": 1.0}, created=1.0)
    store = MemoryStore()
    store.qualify(known)
    assert read(store) is not None
    store.qualify(replace(known, barred={"native": str(UNABLE)}))
    assert read(store) is None


# Native, which is what there is where nothing else is


def test_native_is_barred_by_nothing_in_chunks_either() -> None:
    whole, other = contenders("native", "a")
    chunked = replace(whole, items=(("frames", 1),))
    bench = ReplayBench({"native": Run(), chunked.name: Run(), "a": Run()})
    plan = Plan(barred={"native": "wrong", "a": "wrong"})
    found = tune(PROBLEM, HERE.id, "cpu", (whole, chunked, other), bench, plan, clock=bench.clock)
    assert [record.status for record in found] == [Status.OK, Status.OK, Status.FAILED]


def test_native_that_fails_a_first_run_is_not_said_to_be_unused(meet: Meet) -> None:
    store = MemoryStore()
    with pytest.warns(AutoconvWarning, match="^native failed the first run on .* verified") as told:
        assert decide(meet(Card(LASTING[0], whose=["native"]), store)).candidate == "a"
    assert len(told) == 1
    assert set(store.qualifications()[0].barred) == {"native"}


# On a real device


def test_a_call_is_right_though_everything_in_the_first_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: DeviceBench, candidate: Candidate) -> Verdict:
        raise UNABLE

    autoconv.configure(policy="measure", budget_ms=1)
    made = Faulty(lambda result: result).dispatcher()
    here = environment.of(mx.default_device()).id
    made.store(settings.current()).qualify(
        Qualification(here, fingerprint(made._algorithms), barred={"native": str(UNABLE)}, created=1.0)
    )
    with monkeypatch.context() as patch:
        patch.setattr(DeviceBench, "verify", full)
        assert is_right(autoconv.conv3d(*operands()))
    found = autoconv.explain(*operands())
    assert (found.decision.candidate, PUT_OFF in found.decision.reason) == ("native", True)
    with closing(open_store(tmp_path / "autoconv.db")) as store:
        assert store.records(here, SMALL) == []
        assert store.pending(here) == [SMALL]
        assert [q.passed for q in store.qualifications()] == [frozenset()]
