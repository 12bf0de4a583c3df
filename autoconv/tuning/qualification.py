"""The first run on a device: which algorithms are right there, how noisy it is, and what it can do at most."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from autoconv import accuracy
from autoconv._backend import mx
from autoconv.algorithms import Algorithm, Candidate, candidates
from autoconv.decision import NATIVE
from autoconv.environment import Environment
from autoconv.errors import AutoconvError, DeviceLostError
from autoconv.problem import ITEM_BYTES, Kind, Problem
from autoconv.rank_sum import ratio
from autoconv.store.contract import Qualification, Store
from autoconv.tuning.bench import (
    FAILURES,
    NEVER_ENOUGH,
    RESOLUTION_S,
    Bench,
    Clock,
    DeviceBench,
    in_words,
    is_momentary,
    timing_stream,
)
from autoconv.tuning.tuner import MIN_SAMPLE_S
from autoconv.tuning.verification import Verdict

_log = logging.getLogger("autoconv")

DTYPES = ("float32", "float16", "bfloat16")

PROBLEMS = (
    Problem.parse((1, 4, 6, 6, 16), (32, 3, 3, 3, 16), "float32", padding=1),
    Problem.parse((1, 3, 8, 8, 32), (32, 3, 3, 3, 32), "float16", padding=(0, 1, 1)),
    Problem.parse((1, 5, 6, 7, 32), (16, 3, 3, 3, 32), "bfloat16", padding=(0, 1, 1)),
    Problem.parse((2, 7, 7, 9, 16), (32, 3, 3, 3, 16), "float16", stride=2, padding=1),
    *(Problem.parse((2, 6, 8, 8, 32), (16, 3, 1, 1, 32), dtype, padding=(1, 0, 0)) for dtype in DTYPES),
    Problem.parse((1, 7, 8, 8, 24), (20, 2, 3, 3, 24), "float32", dilation=(2, 1, 2), padding=((2, 1, 0), (0, 1, 2))),
    Problem.parse((1, 8, 5, 5, 16), (2, 5, 3, 3, 16), "float16", padding=2, flip=True),  # frames at odd addresses
    Problem.parse((1, 4, 6, 6, 32), (32, 3, 3, 3, 16), "float32", padding=1, groups=2),
)
"""Ten small problems that between them meet every argument, and every algorithm in every dtype; a few million
operations each. Gradients are qualified by both gradients of each."""

PROBE_BYTES = 256 * 10**6
"""Most bytes that the probe of the ceilings takes."""

CHAIN = 16
"""Operations that depend on each other in one probe."""

GROSSLY = 10.0
"""An algorithm fails if its error is over this times what passes under `native`; less is a single candidate's
affair."""

PATIENCE_S = 30.0
"""How long an algorithm may find no memory, time and again, while the device is right: it may be that it asks for what
there never is."""

MAX_WORDS = 200
"""Characters of an error that are kept."""

SHORT = "the device was short of memory or busy: "
"""What the reason begins with why an algorithm is barred that failed for what was true of that moment alone."""

Benches = Callable[[Problem, mx.Device], Bench]
Guard = Callable[[Problem, Candidate], AbstractContextManager[None]]


GRADIENTS = (Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT)


def fingerprint(algorithms: Sequence[Algorithm], *, gradients: bool = False) -> str:
    """Names and versions of the algorithms that are qualified: with others, a device must be qualified again.

    Those of convolutions alone; with `gradients` all, marked as another qualification, since gradients are qualified
    when the first one is timed: who never trains does not wait for that.
    """
    names = (f"{a.name}@{a.version}" for a in algorithms if gradients or Kind.FORWARD in a.kinds)
    return ("gradients:" if gradients else "") + ",".join(sorted(names))


def tells(known: Qualification) -> bool:
    """Whether what a first run found out is about the algorithms alone.

    It is not where it bars one for what was true of that moment: the memory was full, of which a first run that is
    put off tells nothing, but earlier versions kept it, and native was barred with all others.
    """
    return not any(_is_of_the_moment(why) for why in known.barred.values())


def first_run(store: Store, environment: str, mark: str) -> Qualification | None:
    """What a store knows of a device from its first run with algorithms of this fingerprint; None where that is
    nothing, or does not tell of them.
    """
    known = store.qualification(environment, mark)
    return known if known is not None and tells(known) else None


def said_of(name: str, where: Environment, why: str) -> str:
    """What is said of an algorithm that failed a device's first run."""
    if name == NATIVE:
        return f"{name} failed the first run on {where}, and is used where it is verified or nothing else is: {why}"
    return f"{name} is not used on {where}{' in this process' if _is_of_the_moment(why) else ''}: {why}"


class _WrongForNowError(MemoryError):
    """The device does not answer rightly since memory ran out: what fails meanwhile may do so for that alone."""


class Qualifier:
    """Qualifies a device step by step, so that it can be spread over several calls.

    A device that is full or takes no work tells nothing of what ran: that step is left to a later call. An algorithm
    that finds no memory for `PATIENCE_S`, on a device that is right, is barred in what is found out then, which
    therefore does not tell (see `tells`) and is to be kept by nobody.

    Args:
        environment: The device's environment.
        device: The device.
        algorithms: The algorithms to qualify.
        bench: Makes the bench of a problem. Default: on the device.
        guard: Context in which a candidate runs on a problem; it sees `DeviceLostError`.
        crashed: The candidates that ended a process on a problem before.
        clock: Seconds.
        forward: The qualification of convolutions, to go on to gradients: its noise and ceilings hold for them, and
            whom it barred stays barred. Default: qualify convolutions.

    Attributes:
        shortage: What the device lacked, that the last `advance` stopped for; empty if it did not.
    """

    def __init__(
        self,
        environment: Environment,
        device: mx.Device,
        algorithms: Sequence[Algorithm],
        *,
        bench: Benches = DeviceBench,
        guard: Guard = lambda _problem, _candidate: nullcontext(),
        crashed: Callable[[Problem], Collection[str]] = lambda _problem: (),
        clock: Clock = time.perf_counter,
        forward: Qualification | None = None,
    ) -> None:
        self.shortage = ""
        self._short: tuple[str, float] | None = None  # the algorithm that the last step stopped for, and since when
        self._forward = forward
        self._environment = environment
        self._device = device
        self._algorithms = tuple(algorithms)
        self._bench = bench
        self._guard = guard
        self._crashed = crashed
        self._clock = clock
        self._failed: dict[str, str] = dict(forward.barred) if forward else {}
        self._native_errors: dict[str, float] = {}
        self._ran: set[tuple[str, str]] = set()
        self._beats: list[float] = []
        self._ceilings: dict[str, float] = dict(forward.ceilings) if forward else {}
        probes: list[Callable[[], None]] = [
            *(functools.partial(self._probe_matmul, dtype) for dtype in DTYPES),
            self._probe_copy,
            self._probe_launch,
        ]
        self._steps: list[Callable[[], None]] = [
            *(
                functools.partial(self._try, problem, candidate)
                for kind in (GRADIENTS if forward else (Kind.FORWARD,))
                for problem in (replace(problem, kind=kind) for problem in PROBLEMS)
                for candidate in candidates(problem, environment.backend, self._algorithms)
                if not (candidate.name == NATIVE and problem.groups > 1)  # MLX has none
            ),
            *([] if forward else probes),
        ]

    def advance(self, seconds: float = math.inf) -> Qualification | None:
        """Go on for about so many seconds; the qualification once it is complete, else None, and `shortage` says if the
        device was why.

        Raises:
            DeviceLostError: the device no longer answers rightly.
        """
        end = self._clock() + seconds
        while self._steps:
            if self._clock() >= end:
                return None
            step = self._steps.pop(0)
            try:
                step()
            except AutoconvError:
                raise
            except FAILURES as error:
                if not is_momentary(error):
                    raise
                self._steps.insert(0, step)
                self.shortage = str(error) if isinstance(error, _WrongForNowError) else in_words(error)
                return None
            self.shortage = ""
        return Qualification(
            environment=self._environment.id,
            fingerprint=fingerprint(self._algorithms, gradients=self._forward is not None),
            passed=frozenset(pair for pair in self._ran if pair[0] not in self._failed),
            barred=dict(self._failed),
            noise=self._noise(),
            ceilings=dict(self._ceilings),
            created=time.time(),
        )

    def _noise(self) -> float:
        if self._forward is not None:
            return self._forward.noise
        return float(np.quantile(self._beats, 0.95)) if self._beats else 0.0

    def _try(self, problem: Problem, candidate: Candidate) -> None:
        """Verify a candidate on one problem; native is also timed against itself."""
        name = candidate.algorithm.name
        if name in self._failed and name != NATIVE:
            return
        if candidate.name in self._crashed(problem):
            self._fail(name, problem, "the process ended while it ran")
            return
        short, self._short = self._short, None
        bench = self._bench(problem, self._device)
        if self.shortage and not bench.alive():
            raise _WrongForNowError(self.shortage)
        with self._guard(problem, candidate):
            try:
                verdict = bench.verify(candidate)
                if name == NATIVE:
                    self._learn_from_native(problem, verdict, bench, candidate)
            except FAILURES as error:
                if is_momentary(error):
                    self._short = short if short and short[0] == name else (name, self._clock())
                    if name == NATIVE or self._clock() - self._short[1] < PATIENCE_S or not bench.alive():
                        raise
                self._fail(name, problem, _reason(error))
                if not bench.alive():
                    raise DeviceLostError(self._failed[name], candidate.name) from error
                return
        self._ran.add((name, problem.dtype))
        # For groups, which native has none of, its error on the other problems tells how exact the device is:
        # under TF32 no float32 result comes near strict's bounds.
        bound = accuracy.bound("native", problem.dtype, self._native_errors.get(problem.dtype))
        if verdict.wrong:
            self._fail(name, problem, verdict.wrong)
        elif verdict.error > GROSSLY * bound:
            self._fail(name, problem, f"error {verdict.error:.1e} where {bound:.1e} passes")

    def _learn_from_native(self, problem: Problem, verdict: Verdict, bench: Bench, candidate: Candidate) -> None:
        """How exact the device is in this dtype, and how noisy."""
        if not verdict.wrong:
            known = self._native_errors.get(problem.dtype, 0.0)
            self._native_errors[problem.dtype] = max(known, verdict.error)
        if self._forward is None:
            self._beats += self._against_itself(bench, candidate)

    def _fail(self, name: str, problem: Problem, why: str) -> None:
        if name not in self._failed:
            self._failed[name] = f"{why}, for {problem}"
            _log.warning("%s failed the first run on %s: %s", name, self._environment, self._failed[name])

    def _against_itself(self, bench: Bench, candidate: Candidate) -> tuple[float, float]:
        """How far native beats itself, both ways, by the very bound that decides who wins."""
        once = bench.sample(candidate, 1)
        repetitions = max(1, min(50, math.ceil(MIN_SAMPLE_S / once)))
        samples = [bench.sample(candidate, repetitions) for _ in range(6)]
        first, second = samples[::2], samples[1::2]
        return max(0.0, ratio(first, second)[1] - 1), max(0.0, ratio(second, first)[1] - 1)

    def _probe_matmul(self, dtype: str) -> None:
        """The rate of a square matrix product, as large as runs in about half a millisecond.

        Three matrices are alive at a time. In 16 bits that lets them have 4096 rows, without which launching them
        took as long as the work: half of an H100's rate was seen, and once a sixth.
        """
        size, rate = 128, 0.0
        while 3 * size * size * ITEM_BYTES[dtype] <= PROBE_BYTES:
            with mx.stream(timing_stream(self._device)):
                # Scaled so that products keep their size along the chain.
                scale = (3 / size) ** 0.5
                a = mx.random.uniform(-scale, scale, (size, size), key=mx.random.key(0)).astype(getattr(mx, dtype))
                seconds = self._best_of(5, functools.partial(_chain, functools.partial(mx.matmul, a), a))
            rate = max(rate, 2 * size**3 / seconds / 1e9)
            if seconds > 5e-4:
                break
            size *= 2
        self._ceilings[f"matmul_{dtype}_gflops"] = rate

    def _probe_copy(self) -> None:
        """Bytes read and written per second by adding one to an array."""
        count, rate = 2**18, 0.0
        while 3 * count * 4 <= PROBE_BYTES:
            with mx.stream(timing_stream(self._device)):
                a = mx.zeros((count,), mx.float32)
                seconds = self._best_of(3, functools.partial(_chain, lambda b: b + 1, a))
            rate = max(rate, 2 * count * 4 / seconds / 1e9)
            if seconds > 5e-4:
                break
            count *= 4
        self._ceilings["copy_gb_per_s"] = rate

    def _probe_launch(self) -> None:
        """Time of one small operation among many that depend on each other."""
        with mx.stream(timing_stream(self._device)):
            a = mx.zeros((8,), mx.float32)
            self._ceilings["launch_us"] = self._best_of(3, functools.partial(_chain, mx.sin, a)) * 1e6

    def _best_of(self, times: int, run: Callable[[], mx.array]) -> float:
        """Seconds of one link of a chain, the least of some runs."""
        mx.eval(run())
        best = math.inf
        for _ in range(times):
            start = self._clock()
            mx.eval(run())
            best = min(best, self._clock() - start)
        return max(best / CHAIN, RESOLUTION_S)


def _is_of_the_moment(why: str) -> bool:
    """Whether the reason why an algorithm is barred is what was true of that moment: it says so at its beginning, or
    is an error that an earlier version kept as it stood.
    """
    return why.startswith(SHORT) or is_momentary(why)


def _reason(error: BaseException) -> str:
    """Why an algorithm is barred for what it raised: so many characters of that, and of the moment if that is."""
    words = in_words(error)[:MAX_WORDS]
    if is_momentary(error):
        return f"{SHORT}{words}"
    # Where the words by which no later moment is better stood further on, what is left may read as of the moment.
    return f"{NEVER_ENOUGH}: {words}" if is_momentary(words) else words


def _chain(step: Callable[[mx.array], mx.array], start: mx.array) -> mx.array:
    """The step done `CHAIN` times, each on the one before, so that what an evaluation costs by itself is shared."""
    for _ in range(CHAIN):
        start = step(start)
    return start
