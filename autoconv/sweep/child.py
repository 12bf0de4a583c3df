"""The child of a sweep: a process that times problems, and may end by any of them.

    python -m autoconv.sweep.child '{"database": ..., "witness": <descriptor>, ...}'

It reads requests from standard input and answers on standard output, a JSON object a line. What it times goes to the
database, as anywhere; the answer only says how it ended. Before a candidate runs its name goes to the witness.

    {"problem": <key>, "anew": false}      time one problem
    {"ending": "timed", "run_s": 0.21}     it was; its candidates ran for so many seconds (`first_run_s` is what came
                                           before a child's first: opening the database, its turn on the device, and
                                           the device's first run where that was not known)
    {"ending": "inaccurate", "why": ...}   it was, and nothing is accurate enough
    {"ending": "not timed", "why": ...}    it cannot be timed now
    {"ending": "lost", "why": ...}         a candidate broke the device; that is noted, and this process ends
    {"ending": "store", "why": ...}        the database cannot be read or written
    {"warning": ...}                       may come before an answer
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.algorithms import Candidate
from autoconv.dispatch import Dispatcher
from autoconv.errors import AccuracyError, DeviceLostError, StoreError, TuningError
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.sweep.witness import saw
from autoconv.tuning.bench import DeviceBench
from autoconv.tuning.verification import Verdict

CACHE_SHARE = 0.25
"""Of the memory: what other problems left is given back past it, since the next one has other sizes."""

ORPHAN_S = 60.0
"""How long a child goes on whose sweep was killed: enough for most problems to end and be kept."""

Answer = dict[str, Any]
Result = TypeVar("Result")


class WitnessedBench(DeviceBench):
    """A bench whose candidates are known by name if they end the process."""

    witness: int

    def verify(self, candidate: Candidate) -> Verdict:
        """As the bench does."""
        return self._told(super().verify, candidate)

    def sample(self, candidate: Candidate, repetitions: int) -> float:
        """As the bench does."""
        return self._told(super().sample, candidate, repetitions)

    def peak_bytes(self, candidate: Candidate) -> int:
        """As the bench does."""
        return self._told(super().peak_bytes, candidate)

    def _told(self, method: Callable[..., Result], candidate: Candidate, *arguments: Any) -> Result:
        saw(self.witness, candidate.name)
        try:
            return method(candidate, *arguments)
        finally:
            saw(self.witness, "")


class Child:
    """Times problems one after another.

    Args:
        witness: Descriptor of the file that names what runs.
        chosen: What candidates are held to, and the database.
        device: Where.
    """

    def __init__(self, witness: int, chosen: Settings, device: mx.Device) -> None:
        self._witness = witness
        self._settings = chosen
        self._device = device
        self._bench: DeviceBench | None = None
        self._started = self._first_run_s = 0.0
        self._tuner = Dispatcher(bench=self._make_bench, isolated=True)
        saw(witness, "")

    def _make_bench(self, problem: Problem, device: mx.Device, /, *, memory_bytes: float, peaks: bool) -> DeviceBench:
        began = time.monotonic()
        bench = WitnessedBench(problem, device, memory_bytes=memory_bytes, peaks=peaks)
        bench.witness = self._witness
        self._bench = bench
        if not self._first_run_s:
            self._first_run_s = began - self._started
        return bench

    def time(self, problem: Problem, *, anew: bool) -> Answer:
        """The answer to one request."""
        answer: Answer = {"ending": "timed"}
        self._started, before = time.monotonic(), self._first_run_s
        try:
            self._tuner.tune(problem, self._settings, self._device, anew=anew)
        except AccuracyError as error:
            answer = {"ending": "inaccurate", "why": str(error)}
        except DeviceLostError as error:
            answer = {"ending": "lost", "why": str(error)}
        except TuningError as error:
            answer = {"ending": "not timed", "why": str(error)}
        except StoreError as error:
            answer = {"ending": "store", "why": str(error)}
        bench, self._bench = self._bench, None
        return answer | {"run_s": bench.run_s if bench else 0.0, "first_run_s": self._first_run_s - before}

    def answer(self, requests: Iterable[str], tell: Callable[[Answer], None]) -> None:
        """Answer requests until there are no more, or the device is lost."""
        memory = environment.of(self._device).memory_bytes
        for line in requests:
            request = json.loads(line)
            answer = self.time(Problem.from_key(request["problem"]), anew=request["anew"])
            tell(answer)
            if answer["ending"] == "lost":
                os._exit(0)  # not even the end of the process can be trusted now
            if mx.get_cache_memory() > CACHE_SHARE * memory:
                mx.clear_cache()
        self._tuner.close()


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(ORPHAN_S)
    os._exit(1)


def main(arguments: str, requests: IO[str], answers: IO[str]) -> None:
    """Be a child, of the options that are given as JSON."""
    options = json.loads(arguments)

    def tell(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    warnings.showwarning = lambda message, *_where: tell({"warning": str(message)})
    threading.Thread(target=_end_when_orphaned, args=(os.getppid(),), daemon=True).start()
    device = mx.Device(mx.cpu if options["cpu"] else mx.gpu, options["index"])
    mx.set_default_device(device)
    limits = {name: options[name] for name in ("accuracy", "memory_limit", "budget_ms")}
    changes = {"policy": "measure", "database": Path(options["database"]), **limits}
    chosen = settings.with_changes(settings.from_environment({}), changes)
    Child(options["witness"], chosen, device).answer(requests, tell)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which lets the current problem end
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    main(sys.argv[1], sys.stdin, _answers)
