"""The tuner: from a problem to the records of its candidates.

Native runs first. A candidate whose bound by FLOPs or bytes is over three times the best so far is not started.
Every other runs once and is verified; then those that are right are timed in turns, so that a change of clock or load
meets them all, and losers drop out, until it is settled who beats native or the budget is spent. Samples at even turns
choose a winner, those at odd turns judge it.
"""

from __future__ import annotations

import math
import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from autoconv import accuracy as accuracies
from autoconv._version import __version__
from autoconv.algorithms import Candidate
from autoconv.decision import LOSER, MIN_MARGIN, NATIVE
from autoconv.errors import DeviceLostError, TuningError
from autoconv.problem import Problem
from autoconv.rank_sum import ratio
from autoconv.record import MAX_DETAIL, Record, Status
from autoconv.tuning.bench import FAILURES, Bench, Clock, is_out_of_memory
from autoconv.tuning.verification import Verdict

MIN_SAMPLE_S = 2e-3
"""Shortest time of one sample: a shorter convolution is repeated within it."""

AGAIN_S = 0.05
"""A first run under this that looks like a loser's is taken once more: what is done once, such as making a graph
ready, took up to 4 ms on an H100, and made one native in twenty-five look twenty times as slow as it is."""

MAX_REPETITIONS = 100
FINAL_TURNS = 6
"""Turns that every finalist gets, whatever the budget: three to choose by and three to judge by."""

MAX_TURNS = 24
HOPELESS = 3.0
"""A candidate whose bound is over this times the best is not started."""

CEILING_SLACK = 2.0
"""What a ceiling from a short probe may be too low by."""

WINOGRAD_GAIN = 5.0625
"""Multiplications that F(6x6, 3x3) saves over direct convolution (36 * 9 / 64): on Metal, MLX's 2D kernels can be
that much faster than their FLOPs say."""


@dataclass(frozen=True)
class Plan:
    """What a tuner is held to.

    Attributes:
        accuracy: `"native"`, `"strict"` or a relative L2 error.
        memory_bytes: Bytes that a candidate may take beyond input, weight and output, by its estimate.
        budget_s: Seconds of timing, beyond the turns that finalists get in any case.
        limit_s: Seconds after which nothing more is begun; what is not known by then raises `TuningError`.
        ceilings: What the device can do at most, from its qualification; none bounds nothing.
        barred: Algorithms that failed the qualification, and why.
        crashed: Candidates that ended a process before.
        peaks: Whether to measure each candidate's peak memory, which resets MLX's counter of it.
        noise: How far native beats itself on this device (see `store.contract.Qualification`).
        isolated: Whether this process may end without harm to anyone: then native as a whole is tried as well where
            an array has more than 2^31-1 elements.
    """

    accuracy: str | float = "native"
    memory_bytes: float = math.inf
    budget_s: float = 0.5
    limit_s: float = math.inf
    ceilings: Mapping[str, float] = field(default_factory=dict)
    barred: Mapping[str, str] = field(default_factory=dict)
    crashed: frozenset[str] = frozenset()
    peaks: bool = False
    noise: float = 0.0
    isolated: bool = False


Guard = Callable[[Candidate], AbstractContextManager[None]]
"""Holds a note in the store while a candidate runs for the first time."""


@dataclass
class _Progress:
    candidate: Candidate
    workspace_bytes: int
    again_bytes: int
    """What one more run takes, while the one before is not over: workspace, output, and what links it to that."""

    status: Status = Status.OK
    error: float | None = None
    detail: str = ""
    bound: float = math.inf
    peak_bytes: int | None = None
    first_s: float = math.inf
    samples_s: list[float] = field(default_factory=list)

    @property
    def is_native(self) -> bool:
        return self.candidate.name == NATIVE

    @property
    def left_out(self) -> bool:
        return self.status in {Status.OVER_MEMORY, Status.NOT_STARTED}

    def drop(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail
        self.samples_s.clear()


def tune(
    problem: Problem,
    environment: str,
    backend: str,
    candidates: Sequence[Candidate],
    bench: Bench,
    plan: Plan | None = None,
    *,
    guard: Guard = lambda _: nullcontext(),
    race: AbstractContextManager[None] | None = None,
    clock: Clock = time.perf_counter,
    now: Clock = time.time,
) -> list[Record]:
    """The records of all candidates, in their order.

    Args:
        problem: The problem.
        environment: Id of the environment.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        candidates: Native first.
        bench: Where they run.
        plan: What they are held to.
        guard: Context in which each candidate runs for the first time.
        race: Context of all further runs. Default: none.
        clock: Seconds, for the budget.
        now: Seconds since the epoch, for the records.

    Raises:
        TuningError: `limit_s` would be passed; nothing is known then.
        DeviceLostError: a candidate failed and the device no longer answers rightly.
    """
    plan = plan or Plan()
    start = clock()
    more = problem.result_bytes + min(problem.operand_bytes)
    workspaces = [c.cost(problem, backend).workspace_bytes for c in candidates]
    entries = [_Progress(c, needed, needed + more) for c, needed in zip(candidates, workspaces, strict=True)]
    plan = _with_room_for_one(entries, problem, plan)
    native, native_error = entries[0], None
    for entry in entries:
        best = min((e.first_s for e in entries), default=math.inf)
        if not _may_start(entry, problem, backend, plan, best):
            continue
        # Where native is left out, native in chunks, which comes next, is what there is of it.
        is_native = entry.is_native or (native.left_out and entry.candidate.algorithm.name == NATIVE)
        least = 2 * bound_s(entry.candidate, problem, backend, plan.ceilings) if is_native else 0.0
        _require_time(clock() - start + least, plan)
        if not is_native:
            entry.bound = accuracies.bound(plan.accuracy, problem.dtype, native_error)
        with guard(entry.candidate):
            _run_first(entry, bench)
        if is_native and entry.status is Status.OK:
            native_error = entry.error
            # Native is known: the others are taken to need about as long, with one run to verify and one to time.
            needed = (clock() - start) + entry.first_s * (2 * (len(entries) - 1) + 2 * FINAL_TURNS)
            _require_time(needed, plan)
    with race or nullcontext():
        _take_turns([e for e in entries if e.status is Status.OK], bench, plan, start, clock)
        if plan.peaks:
            for entry in entries:
                if entry.status is Status.OK:
                    _measure_peak(entry, bench)
    run, created = uuid.uuid4().hex, now()
    return [
        Record(
            problem=problem.key,
            environment=environment,
            algorithm=e.candidate.algorithm.name,
            version=e.candidate.algorithm.version,
            parameters=e.candidate.parameters,
            status=e.status,
            samples_us=tuple(round(s * 1e6, 3) for s in e.samples_s),
            error=e.error,
            workspace_bytes=e.workspace_bytes,
            peak_bytes=e.peak_bytes,
            detail=e.detail[:MAX_DETAIL],
            run=run,
            created=created,
            library=__version__,
        )
        for e in entries
    ]


def _require_time(needed_s: float, plan: Plan) -> None:
    if needed_s > plan.limit_s:
        msg = f"timing would take {needed_s:.1f} s at least, and {max(0.0, plan.limit_s):.1f} s are left"
        raise TuningError(msg)


def _with_room_for_one(entries: Sequence[_Progress], problem: Problem, plan: Plan) -> Plan:
    """The plan with a memory limit that lets those run that need the least, where it lets none.

    Something must run in the end, and better what is known to be right, and to take the least.
    """
    needs = [
        e.workspace_bytes
        for e in entries
        if e.candidate.name not in plan.crashed and not _barred(e, plan) and not _past_index(e, problem, plan)
    ]
    return replace(plan, memory_bytes=max(plan.memory_bytes, min(needs, default=0)))


def _may_start(entry: _Progress, problem: Problem, backend: str, plan: Plan, best_s: float) -> bool:
    """Whether a candidate is worth its first run; if not, its status says why."""
    if entry.candidate.name in plan.crashed:
        entry.drop(Status.CRASHED, "the process ended while it ran; not tried again")
    elif _barred(entry, plan):
        entry.drop(Status.FAILED, f"barred on this device: {plan.barred[entry.candidate.algorithm.name]}")
    elif _past_index(entry, problem, plan):
        entry.drop(Status.NOT_STARTED, "an array of it has more than 2^31-1 elements, which has ended processes")
    elif entry.workspace_bytes > plan.memory_bytes:
        entry.drop(
            Status.OVER_MEMORY,
            f"needs {entry.workspace_bytes / 1e6:.1f} MB, the limit was {plan.memory_bytes / 1e6:.1f} MB",
        )
    else:
        least = bound_s(entry.candidate, problem, backend, plan.ceilings)
        if least > HOPELESS * best_s and not entry.is_native:
            entry.drop(Status.TOO_SLOW, f"takes {least * 1e3:.3g} ms at least, the best {best_s * 1e3:.3g} ms")
    return entry.status is Status.OK


def _barred(entry: _Progress, plan: Plan) -> bool:
    """Whether a candidate's algorithm is barred; native is not, in chunks neither: where nothing else is it must be."""
    name = entry.candidate.algorithm.name
    return name != NATIVE and name in plan.barred


def _past_index(entry: _Progress, problem: Problem, plan: Plan) -> bool:
    """Whether a candidate might end the process, and this one is not there for that."""
    return not (problem.addressable or entry.candidate.chunks or (plan.isolated and entry.is_native))


def bound_s(candidate: Candidate, problem: Problem, backend: str, ceilings: Mapping[str, float]) -> float:
    """Seconds below which a candidate cannot be, by its FLOPs and bytes and the device's ceilings; 0 if unknown."""
    cost = candidate.cost(problem, backend)
    rate = ceilings.get(f"matmul_{problem.dtype}_gflops", math.inf) * 1e9 * CEILING_SLACK
    if backend == "metal":
        rate *= WINOGRAD_GAIN
    copy = ceilings.get("copy_gb_per_s", math.inf) * 1e9 * CEILING_SLACK
    return max(cost.flops / rate, cost.bytes / copy)


def _run_first(entry: _Progress, bench: Bench) -> None:
    """Run a candidate once to verify it and once to see how long it takes."""
    try:
        verdict = bench.verify(entry.candidate)
        _apply(entry, verdict)
        if entry.status is Status.OK:
            entry.first_s = bench.sample(entry.candidate, 1)
    except FAILURES as error:
        _fail(entry, error, bench)


def _apply(entry: _Progress, verdict: Verdict) -> None:
    entry.error = max(verdict.error, entry.error or 0.0)
    if verdict.wrong:
        entry.drop(Status.WRONG, verdict.wrong)
    elif entry.error > entry.bound:
        entry.drop(Status.INACCURATE, f"error {entry.error:.1e} is over {entry.bound:.1e}")


def _fail(entry: _Progress, error: Exception, bench: Bench) -> None:
    status = Status.OUT_OF_MEMORY if is_out_of_memory(error) else Status.FAILED
    entry.drop(status, " ".join(f"{type(error).__name__}: {error}".split()))
    entry.first_s = math.inf
    if not bench.alive():
        msg = f"after {entry.candidate.name} failed ({entry.detail}) the device no longer answers rightly"
        raise DeviceLostError(msg, entry.candidate.name)


def _take_turns(contenders: list[_Progress], bench: Bench, plan: Plan, start: float, clock: Clock) -> None:
    """Time the contenders in turns; once more without one that failed, since others may have been given up for it."""
    while contenders:
        _race(contenders, bench, plan, start, clock)
        left = [e for e in contenders if e.status is Status.OK]
        if len(left) == len(contenders):
            return
        for entry in left:
            entry.samples_s.clear()
            entry.detail = ""
        contenders = left


def _race(contenders: list[_Progress], bench: Bench, plan: Plan, start: float, clock: Clock) -> None:
    """Time the contenders in turns until the budget is spent, dropping losers, and verify what was timed last."""
    best = min(e.first_s for e in contenders)
    repetitions = max(1, min(MAX_REPETITIONS, math.ceil(MIN_SAMPLE_S / best)))
    if repetitions * max(e.again_bytes for e in contenders) > plan.memory_bytes:
        repetitions = 1  # MLX allocates ahead, so all of them might live at a time
    racing = []
    for entry in contenders:
        if entry.first_s > LOSER * best and entry.first_s < AGAIN_S:
            entry.first_s = min(entry.first_s, _sample_again(entry, bench))
        if entry.status is not Status.OK:
            continue
        # Native is what a winner is compared with: it is given up only where racing it would take too long.
        affordable = entry.is_native and FINAL_TURNS * repetitions * entry.first_s <= plan.budget_s
        if entry.first_s > LOSER * best and not affordable:
            entry.samples_s.append(entry.first_s)
            entry.detail = f"given up after one run of {entry.first_s / best:.1f} times the best's time"
        else:
            racing.append(entry)
    turn = 0
    while racing and turn < MAX_TURNS:
        elapsed = clock() - start
        if turn >= FINAL_TURNS and (elapsed > plan.budget_s * (1 + _unclear(racing)) or _settled(racing, plan.noise)):
            break
        shift = turn % len(racing)
        for entry in racing[shift:] + racing[:shift]:
            try:
                entry.samples_s.append(bench.sample(entry.candidate, repetitions))
            except FAILURES as error:
                _fail(entry, error, bench)
        racing = [e for e in racing if e.status is Status.OK]
        if racing and 1 <= turn < FINAL_TURNS:
            racing = _still_racing(racing, over_budget=clock() - start > plan.budget_s)
        turn += 1
    for entry in contenders:
        if entry.status is Status.OK and len(entry.samples_s) > 1:
            _verify_last(entry, bench)


def _sample_again(entry: _Progress, bench: Bench) -> float:
    try:
        return bench.sample(entry.candidate, 1)
    except FAILURES as error:
        _fail(entry, error, bench)
        return math.inf


def _verify_last(entry: _Progress, bench: Bench) -> None:
    """An earlier buffer's failure can be dropped silently, and then the last result shows it."""
    try:
        verdict = bench.verify_last(entry.candidate)
    except FAILURES as error:
        _fail(entry, error, bench)
    else:
        wrong = verdict.wrong and f"in the last run, {verdict.wrong}"
        _apply(entry, Verdict(verdict.error, wrong, verdict.peak))


def _measure_peak(entry: _Progress, bench: Bench) -> None:
    """After all times are taken, so that it touches none."""
    try:
        entry.peak_bytes = bench.peak_bytes(entry.candidate)
    except FAILURES as error:
        _fail(entry, error, bench)


def _unclear(racing: list[_Progress]) -> bool:
    """Whether more samples may settle if the best is faster than native: its median is, and not all its samples."""
    native = next((e for e in racing if e.is_native), None)
    if native is None:
        return False
    best = min(racing, key=lambda e: statistics.median(e.samples_s))
    gain = statistics.median(native.samples_s) / statistics.median(best.samples_s)
    return gain > 1 + MIN_MARGIN and min(native.samples_s) / max(best.samples_s) < 1 + MIN_MARGIN


def _settled(racing: list[_Progress], noise: float) -> bool:
    """Whether more samples would change nothing: of each that may beat native it is known whether it does.

    It does where the samples that judge say so, by the bound that decides; it does not where the same bound, of all
    samples and the other way, says that its gain is below what is needed. (On an H100 three quarters of all samples
    were taken of races that were settled after six turns.)
    """
    native = next((e for e in racing if e.is_native), None)
    if native is None:
        return len(racing) == 1
    threshold = 1 + max(MIN_MARGIN, noise)
    for entry in racing:
        if entry is native:
            continue
        wins = ratio(native.samples_s[1::2], entry.samples_s[1::2])[1] > threshold
        loses = ratio(entry.samples_s, native.samples_s)[1] > 1 / threshold
        if not (wins or loses):
            return False
    return True


def _still_racing(racing: list[_Progress], *, over_budget: bool) -> list[_Progress]:
    """Those that can still win: native, the best, and who is not clearly behind it.

    Clearly behind is a fastest sample slower than the best's slowest, by 2% or, past the budget, at all.
    """
    leader = min(racing, key=lambda e: statistics.median(e.samples_s))
    worst = max(leader.samples_s) * (1.0 if over_budget else 1.02)
    kept = []
    for entry in racing:
        if entry is leader or entry.is_native or min(entry.samples_s) <= worst:
            kept.append(entry)
        else:
            ratio = statistics.median(entry.samples_s) / statistics.median(leader.samples_s)
            entry.detail = f"given up after {len(entry.samples_s)} turns at {ratio:.2f} times the best's time by then"
    return kept
