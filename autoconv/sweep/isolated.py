"""Timing in a child process, so that a candidate that ends its process ends no sweep.

The child writes to the same database. It is begun anew when it ends, whatever ended it; the candidate that did is known
by name from the witness, is noted as one that ends processes, and is never tried again for that problem.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from typing import IO, Any

from autoconv import environment
from autoconv._backend import mx
from autoconv.decision import Decision
from autoconv.dispatch import Dispatcher
from autoconv.errors import AccuracyError, AutoconvWarning, StoreError, TuningError
from autoconv.notes import STRIKES
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.store import Store, located
from autoconv.sweep.witness import last_seen, saw

COMMAND = (sys.executable, "-m", "autoconv.sweep.child")

STUCK_S = 300.0
"""A candidate that takes longer than this, and than its work takes at `SLOWEST_FLOPS`, hangs."""

SLOWEST_FLOPS = {"cpu": 1e8, "cuda": 1e11, "metal": 2e10}
"""Operations a second that the slowest way manages on the slowest device, by backend."""

UNEXPLAINED = 3
"""Ends of the process while no candidate ran after which a problem is given up."""

START_S = 600.0
"""A process that answers nothing for so long, while no candidate runs, hangs: the first run on a GPU compiles kernels
for a minute or two."""

_POLL_S = 0.25


class Isolated:
    """A tuner of sweeps that times in a child process, which it begins when it is first needed.

    Args:
        dispatcher: What looks up, and whose stores are written.
        command: What begins a child; the options are added to it.
        stuck_s: Seconds after which a candidate may hang (see `STUCK_S`).
        start_s: Seconds after which a process may hang while no candidate runs (see `START_S`).

    Attributes:
        run_s: Seconds that candidates ran in all.
        first_run_s: Seconds that children took before their first problem, for a device's first run above all.
        children: How many processes were begun.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        command: Sequence[str] = COMMAND,
        stuck_s: float = STUCK_S,
        start_s: float = START_S,
    ) -> None:
        self._dispatcher = dispatcher
        self._command = tuple(command)
        self._stuck_s = stuck_s
        self._start_s = start_s
        self._child: _Child | None = None
        self.run_s = 0.0
        self.first_run_s = 0.0
        self.children = 0

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look_up(self, problem: Problem, settings: Settings, device: mx.Device) -> Decision | None:
        """The decision that the database makes."""
        return self._dispatcher.look_up(problem, settings, device)

    def tune(self, problem: Problem, settings: Settings, device: mx.Device, *, anew: bool) -> Decision:
        """Time a problem in the child; not `anew`, only if the database still does not tell of it.

        Raises:
            TuningError: it cannot be timed now, or what times it ends again and again.
            AccuracyError: no candidate is accurate enough; its records are kept.
            StoreError: the database cannot be opened or written.
        """
        store = self._dispatcher.store(settings, strict=True)
        where = environment.of(device)
        unexplained = 0
        while True:
            noted = store.unended(where.id, problem)
            try:
                answer = self._ask(problem, settings, device, anew=anew)
            except BaseException:
                # Ended by the user, and no fault of the candidate's.
                self.close(at_once=True)
                for name in set(store.unended(where.id, problem)) - set(noted):
                    store.end(where.id, problem, name)
                raise
            if isinstance(answer, dict):
                if answer["ending"] != "lost":
                    return self._decision(answer, problem, settings, device)
                self.close(at_once=True)
                continue  # it is noted already, and left out from here on
            if answer.candidate:
                _accuse(store, where.id, problem, answer.candidate)
                continue
            unexplained += 1
            if unexplained == UNEXPLAINED:
                msg = f"the process that times it {answer.how} each time, while no candidate ran"
                raise TuningError(msg)

    def _decision(self, answer: dict[str, Any], problem: Problem, settings: Settings, device: mx.Device) -> Decision:
        self.run_s += answer["run_s"]
        self.first_run_s += answer["first_run_s"]
        if answer["ending"] == "inaccurate":
            raise AccuracyError(answer["why"])
        if answer["ending"] == "store":
            raise StoreError(answer["why"])
        found = self.look_up(problem, settings, device) if answer["ending"] == "timed" else None
        if found is None:
            raise TuningError(answer.get("why") or "its measurement does not tell under these settings")
        return found

    def _ask(self, problem: Problem, settings: Settings, device: mx.Device, *, anew: bool) -> dict[str, Any] | _Death:
        """The child's answer; where it ended instead, how."""
        options = _options(settings, device)
        if self._child is None or self._child.options != options or not self._child.lives:
            self.close()
            self._child = _Child(self._command, options)
            self.children += 1
        backend = environment.of(device).backend
        stuck_s = max(self._stuck_s, problem.flops / SLOWEST_FLOPS[backend])
        answer = self._child.ask({"problem": problem.key, "anew": anew}, stuck_s, self._start_s)
        if isinstance(answer, _Death):
            self.close()
        return answer

    def close(self, *, at_once: bool = False) -> None:
        """End the child, after the problem that it is at or at once."""
        child, self._child = self._child, None
        if child is not None:
            child.close(at_once=at_once)


class _Death:
    """How a child ended.

    Attributes:
        how: In words.
        candidate: What was running; empty where nothing was.
    """

    def __init__(self, how: str, candidate: str) -> None:
        self.how = how
        self.candidate = candidate


class _Child:
    """A running child."""

    def __init__(self, command: Sequence[str], options: dict[str, Any]) -> None:
        self.options = options
        self._witness = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        saw(self._witness.fileno(), "")
        # MLX ends a process after 256 shapes of convolutions unless this check is off.
        environ = os.environ | {"MLX_ENABLE_CACHE_THRASHING_CHECK": "0"}
        self._process = subprocess.Popen(
            [*command, json.dumps(options | {"witness": self._witness.fileno()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._witness.fileno()],
            start_new_session=True,  # a terminal's Ctrl-C does not reach it
            text=True,
            env=environ,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], stuck_s: float, start_s: float) -> dict[str, Any] | _Death:
        """Send a request; the answer, or how the child ended instead."""
        assert self._process.stdin is not None
        asked = time.monotonic()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            return self._death()
        while True:
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                seen = last_seen(self._witness.fileno())
                limit_s = stuck_s if seen.candidate else start_s + stuck_s
                if time.monotonic() - max(asked, seen.since) > limit_s:
                    self._process.kill()
                continue
            if not line:
                return self._death()
            answer: dict[str, Any] = json.loads(line)
            if "warning" not in answer:
                return answer
            warnings.warn(answer["warning"], AutoconvWarning, stacklevel=2)

    def _death(self) -> _Death:
        code = self._process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            try:
                how = f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was ended by signal {-code}"
        return _Death(how, last_seen(self._witness.fileno()).candidate)

    def close(self, *, at_once: bool) -> None:
        """End it."""
        if at_once:
            self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, and took the request that was under way with it
            self._process.stdin.close()
        self._process.wait()
        self._witness.close()


def _read(pipe: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass on every line, then an empty one."""
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put("")


def _options(settings: Settings, device: mx.Device) -> dict[str, Any]:
    return {
        "database": str(located(settings.database).absolute()),
        "accuracy": settings.accuracy,
        "memory_limit": settings.memory_limit,
        "budget_ms": settings.budget_ms,
        "cpu": device.type == mx.cpu,
        "index": int(re.findall(r"\d+", repr(device))[-1]),  # `Device(gpu, 0)`: there is no other way to learn it
    }


def _accuse(store: Store, environment: str, problem: Problem, candidate: str) -> None:
    """Note that a candidate ends processes, beyond doubt."""
    for _ in range(STRIKES - store.unended(environment, problem).get(candidate, 0)):
        store.begin(environment, problem, candidate)
