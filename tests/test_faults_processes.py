"""Many processes, forks, threads at an end, and a user without a home: calls go on, and the database is whole."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import replaying
from importing import python_path
from replaying import CPU, HERE, PROBLEMS

from autoconv import device_lock, dispatch, environment
from autoconv.decision import Source
from autoconv.errors import StoreError
from autoconv.mutex import Mutex
from autoconv.open_stores import begun
from autoconv.settings import from_environment
from autoconv.store import MemoryStore, MendingStore, default_path, open_store
from autoconv.store.backlog import Backlog

PROCESSES = 32


@dataclass(frozen=True)
class Done:
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str, *arguments: object, **variables: str) -> Done:
    """A script's end, with the tests' own modules at hand; one that hangs is killed with its children."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": python_path(*Path(__file__).parents[:2]), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Done(process.returncode, printed, errors)


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as opened:
        return opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database that knows the device from its first run, and nothing else."""
    file = tmp_path / "shared.db"
    replaying.qualify(file)
    return file


# Many at once


CROWD = """
import json, os, sys, time
from pathlib import Path
from replaying import CPU, PROBLEMS, asked, benches, dispatcher, qualify

folder, policy, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def work(place):
    made = benches()
    mine, settings = dispatcher(made), asked(folder / "shared.db", policy)
    while not (folder / "go").exists():
        time.sleep(0.001)
    shift = place % len(PROBLEMS)
    waiting, chosen = list(PROBLEMS[shift:] + PROBLEMS[:shift]), []
    while waiting:
        for problem in list(waiting):
            found = mine.decide(problem, settings, CPU)
            if found.source.value != "native":  # else another process is timing, and it is asked again
                waiting.remove(problem)
                chosen.append(found.candidate)
        time.sleep(0.2 if waiting else 0.0)
    (folder / f"{place}.json").write_text(json.dumps([chosen, [p.key for p in made.problems]]))

# What calls import is there before the forks, and need not be imported by each.
qualify(folder / "warm.db")
warm = dispatcher(benches())
warm.decide(PROBLEMS[0], asked(folder / "warm.db", policy), CPU)
warm.close()
children = []
for place in range(number):
    child = os.fork()
    if child == 0:
        work(place)
        os._exit(0)
    children.append(child)
(folder / "go").touch()
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.parametrize("policy", ["measure", "auto"])
def test_of_many_processes_one_times_each_shape_and_all_take_its_result(
    policy: str, database: Path, tmp_path: Path
) -> None:
    done = run(CROWD, tmp_path, policy, PROCESSES)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{place}.json").read_text()) for place in range(PROCESSES)]
    assert [chosen for chosen, _ in told] == [["a"] * len(PROBLEMS)] * PROCESSES
    assert Counter(key for _, timed in told for key in timed) == {problem.key: 1 for problem in PROBLEMS}
    assert is_sound(database)
    with closing(open_store(database)) as store:
        for problem in PROBLEMS:
            assert [r.algorithm for r in store.records(HERE.id, problem)] == ["native", "a", "b"]
            assert store.unended(HERE.id, problem) == {}


def test_what_another_process_has_timed_by_then_is_taken_and_not_noted_for_later(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `auto`, which does not wait for it: it ends between the look-up and the note."""
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    other, mine = (replaying.dispatcher(replaying.benches()) for _ in range(2))
    hold = device_lock.hold

    @contextmanager
    def timing(name: str, wait_s: float = 0.0) -> Iterator[bool]:
        monkeypatch.setattr(device_lock, "hold", hold)
        other.decide(PROBLEMS[0], replaying.asked(database), CPU)
        yield False

    monkeypatch.setattr(device_lock, "hold", timing)
    found = mine.decide(PROBLEMS[0], replaying.asked(database, "auto"), CPU)
    assert (found.candidate, found.source) == ("a", Source.DATABASE)
    other.close()
    mine.close()
    with closing(open_store(database)) as store:
        assert store.pending(HERE.id) == []


# Forks


FORK = """
import os, sys, threading
from pathlib import Path
from replaying import CPU, PROBLEMS, asked, benches, dispatcher
from autoconv import dispatch

database, made = Path(sys.argv[1]), benches()
timing, may_go_on = threading.Event(), threading.Event()

def bench(problem, device, **options):
    if problem == PROBLEMS[1]:
        timing.set()
        may_go_on.wait(60)
    return made(problem, device, **options)

bench.clock = made.clock
mine, settings = dispatcher(bench), asked(database)
assert mine.decide(PROBLEMS[0], settings, CPU).candidate == "a"
thread = threading.Thread(target=mine.decide, args=(PROBLEMS[1], settings, CPU))
thread.start()
timing.wait(60)
told, tell = os.pipe()
seen, see = os.pipe()
child = os.fork()  # while the thread is timing
if child == 0:
    os.close(tell)
    os.close(seen)
    dispatch.WAIT_S = 0.0
    assert mine.decide(PROBLEMS[0], settings, CPU).source.value == "database"
    found = mine.decide(PROBLEMS[2], settings, CPU)
    assert "another process is timing" in found.reason, found.reason
    dispatch.WAIT_S = 60.0
    os.write(see, b".")
    os.read(told, 1)  # until the parent's thread is done
    assert mine.decide(PROBLEMS[1], settings, CPU).source.value == "database"
    assert mine.decide(PROBLEMS[2], settings, CPU).source.value == "measured"
    os._exit(0)
os.close(told)
os.close(see)
assert os.read(seen, 1) == b"."
assert mine.decide(PROBLEMS[0], settings, CPU).source.value == "database"
may_go_on.set()
thread.join()
os.write(tell, b".")
found = mine.decide(PROBLEMS[3], settings, CPU)
assert found.source.value == "measured", found.reason
assert os.waitpid(child, 0)[1] == 0
assert mine.decide(PROBLEMS[2], settings, CPU).source.value == "database"
"""


def test_parent_and_child_of_a_fork_go_on_though_a_thread_was_timing(database: Path) -> None:
    done = run(FORK, database)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert is_sound(database)
    with closing(open_store(database)) as store:
        assert [len(store.records(HERE.id, problem)) for problem in PROBLEMS[:4]] == [3] * 4
        assert all(store.unended(HERE.id, problem) == {} for problem in PROBLEMS)


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether it holds in a forked child."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = check()
        finally:
            os._exit(not passed)
    return os.waitpid(child, 0)[1] == 0


@contextmanager
def held_elsewhere(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Another thread holds the lock meanwhile."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks amid threads
def test_a_mutex_that_another_thread_holds_is_free_in_a_forked_child() -> None:
    mutex = Mutex()
    with held_elsewhere(mutex):
        assert not mutex.acquire(blocking=False)
        assert in_a_fork(lambda: mutex.acquire(blocking=False))
        assert not mutex.acquire(blocking=False)  # the parent's is what it was


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_store_or_a_backlog_that_another_thread_is_at_is_of_use_in_a_forked_child(tmp_path: Path) -> None:
    store, backlog = MendingStore(tmp_path / "some.db"), Backlog()

    def closes() -> bool:
        signal.alarm(30)  # rather than wait for a lock for ever
        backlog.pay(MemoryStore())
        store.close()
        return True

    with closing(store), held_elsewhere(store._lock), held_elsewhere(backlog._lock):
        assert in_a_fork(closes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_mutex_of_the_thread_that_forks_is_still_its_own_in_the_child() -> None:
    mutex = Mutex()

    def others_wait() -> bool:
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(mutex.acquire(blocking=False)))
        thread.start()
        thread.join()
        mutex.release()
        return found == [False]

    with mutex:
        assert in_a_fork(others_wait)


# Ends


DAEMON = """
import os, sys, threading
from pathlib import Path
from replaying import CPU, PROBLEMS, asked, benches, dispatcher

made, timing = benches(), threading.Event()

class Slow:
    def __init__(self, problem, device, **options):
        self.bench = made(problem, device, **options)
    def __getattr__(self, name):
        return getattr(self.bench, name)
    def verify(self, candidate):
        if candidate.name == sys.argv[2]:
            timing.set()
            threading.Event().wait()
        return self.bench.verify(candidate)
    def sample(self, candidate, repetitions):
        if sys.argv[2] == "the race" and len(self.bench.calls) > 6:
            timing.set()
            threading.Event().wait()
        return self.bench.sample(candidate, repetitions)

Slow.clock = made.clock
mine = dispatcher(Slow)
thread = threading.Thread(target=mine.decide, args=(PROBLEMS[0], asked(Path(sys.argv[1])), CPU), daemon=True)
thread.start()
assert timing.wait(60)
if len(sys.argv) > 3:
    if os.fork() == 0:
        sys.exit()
    os.wait()
    os._exit(0)
"""


@pytest.mark.parametrize("at", ["native", "a", "the race"])
def test_a_process_that_ends_while_a_thread_is_timing_accuses_nobody(at: str, database: Path) -> None:
    done = run(DAEMON, database, at)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_sound(database)
    with closing(open_store(database)) as store:
        assert store.unended(HERE.id, PROBLEMS[0]) == {}
        assert store.records(HERE.id, PROBLEMS[0]) == []


def test_a_forked_child_s_end_takes_no_note_of_its_parent_s_back(database: Path) -> None:
    done = run(DAEMON, database, "a", "forks")
    assert (done.returncode, done.stderr) == (0, "")
    with closing(open_store(database)) as store:
        assert store.unended(HERE.id, PROBLEMS[0]) == {"a": 1}


# No home, no temporary folder


HOMELESS = """
import os, pwd, sys, tempfile, warnings
import mlx.core as mx
import autoconv
from autoconv import dispatch, environment, store

autoconv.configure(policy=sys.argv[2])
x, w = mx.ones((1, 3, 4, 5, 2)), mx.ones((2, 3, 3, 3, 2))
if sys.argv[1] == "locked":
    # All that is imported later is, before its folder may be out of reach.
    autoconv.configure(database=os.environ["WARM"])
    autoconv.conv3d(x, w)
    autoconv.explain(x, w)
    store.default_path()
    autoconv.configure(database=None)
    dispatch.forget()
    if os.getuid() == 0:
        os.setuid(54321)
else:
    del os.environ["HOME"]
    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")
    pwd.getpwuid = getpwuid
tempfile.tempdir = os.path.join(os.environ["LOCKED"], "tmp")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for depth in (3, 4):
        x = mx.ones((1, depth, 4, 5, 2))
        assert mx.array_equal(autoconv.conv3d(x, w), mx.conv3d(x, w)).item()
        autoconv.explain(x, w)
print(*(str(warning.message) for warning in caught), sep=chr(10))
"""


@pytest.fixture
def locked(tmp_path: Path) -> Any:
    """A folder that nobody but the superuser may look into."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("policy", ["record", "predict"])
@pytest.mark.parametrize(("home", "said"), [("none", "AUTOCONV_DATABASE"), ("locked", "Permission denied")])
def test_a_user_without_a_home_is_warned_once_and_calls_are_right(
    home: str, said: str, policy: str, locked: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    variables = {"HOME": str(locked), "LOCKED": str(locked), "WARM": str(tmp_path / "warm.db"), "XDG_DATA_HOME": ""}
    done = run(f"import os; os.chdir({str(folder)!r})\n{HOMELESS}", home, policy, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    (warning,) = done.stdout.splitlines()
    assert said in warning
    assert list(folder.iterdir()) == []


def relative(_name: str) -> str:
    return "~/.local/share/autoconv"


def none(_name: str) -> str:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("told", [relative, none], ids=["in older versions of platformdirs", "in newer ones"])
def test_a_home_that_nobody_knows_is_no_place_for_a_database(
    told: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_data_dir", told)
    with pytest.raises(StoreError, match=r"no home folder .* name a file in AUTOCONV_DATABASE"):
        default_path()
    assert begun(from_environment({})) is None


def test_without_a_temporary_folder_shapes_are_timed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    mine = replaying.dispatcher(replaying.benches())
    found = mine.decide(PROBLEMS[0], replaying.asked(database), CPU)
    mine.close()
    assert (found.candidate, found.source) == ("a", Source.MEASURED)


def test_the_lock_of_a_device_is_waited_for_as_long_as_a_measurement_that_was_asked_for_may(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs with the device costs the others that wait, and no more."""
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)
    monkeypatch.setattr(dispatch, "WAIT_S", 0.1)
    mine = replaying.dispatcher(replaying.benches())
    with device_lock.hold(HERE.lock_name) as held:
        assert held
        start = time.monotonic()
        found = mine.decide(PROBLEMS[0], replaying.asked(database), CPU)
        assert time.monotonic() - start >= 0.1
    mine.close()
    assert (found.candidate, found.source) == ("native", Source.NATIVE)
