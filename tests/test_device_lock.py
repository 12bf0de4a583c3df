"""The lock by which one process at a time times on a device."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoconv import device_lock

HOLDER = """
import sys
from autoconv import device_lock
with device_lock.hold(sys.argv[1], 30.0) as held:
    print(held, flush=True)
    sys.stdin.read()
"""

TRIER = """
import sys
from autoconv import device_lock
with device_lock.hold(sys.argv[1]) as held:
    print(held)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this process and of those that it starts lie here."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def own(folder: Path) -> Path:
    return folder / f"autoconv-{os.getuid()}"


@contextlib.contextmanager
def another_process_holding(name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "True\n"
            yield holder
        finally:
            holder.kill()


def test_who_comes_first_holds_it() -> None:
    with device_lock.hold("gpu") as held:
        assert held


def test_two_processes_exclude_each_other() -> None:
    with another_process_holding("gpu"), device_lock.hold("gpu") as held:
        assert not held
    with device_lock.hold("gpu") as held:
        assert held
        tried = subprocess.run([sys.executable, "-c", TRIER, "gpu"], capture_output=True, text=True, check=True)
    assert tried.stdout == "False\n"


def test_other_devices_are_free() -> None:
    with another_process_holding("gpu"), device_lock.hold("cpu") as held:
        assert held


def test_two_threads_exclude_each_other() -> None:
    found: list[bool] = []

    def attempt() -> None:
        with device_lock.hold("gpu") as held:
            found.append(held)

    with device_lock.hold("gpu"):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert found == [False]


def test_a_process_that_is_killed_lets_go_of_it() -> None:
    with another_process_holding("gpu") as holder:
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
        with device_lock.hold("gpu") as held:
            assert held


def test_it_is_waited_for() -> None:
    with another_process_holding("gpu") as holder:
        assert holder.stdin is not None
        threading.Timer(0.2, holder.stdin.close).start()
        with device_lock.hold("gpu", 30.0) as held:
            assert held


def test_an_error_inside_lets_go_of_it() -> None:
    with pytest.raises(KeyError), device_lock.hold("gpu"):
        raise KeyError
    with device_lock.hold("gpu") as held:
        assert held


def test_a_program_started_meanwhile_does_not_keep_it() -> None:
    with device_lock.hold("gpu"):
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with other, device_lock.hold("gpu", 5.0) as held:  # its copy is closed as it starts, not before
        other.kill()
        assert held


def test_the_folder_is_the_user_s_alone(folder: Path) -> None:
    with device_lock.hold("gpu"):
        assert own(folder).stat().st_mode & 0o777 == 0o700
        (lock,) = own(folder).iterdir()
        assert lock.stat().st_mode & 0o777 == 0o600


def both_are_let_in_and_nothing_is_left(where: Path) -> bool:
    with device_lock.hold("gpu") as first, device_lock.hold("gpu") as second:
        return first and second and not any(where.iterdir())


def test_a_link_in_the_folder_s_place_is_not_followed(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    own(folder).symlink_to(elsewhere)
    assert both_are_let_in_and_nothing_is_left(elsewhere)


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    own(folder).mkdir()
    assert own(folder).stat().st_uid != somebody
    assert both_are_let_in_and_nothing_is_left(own(folder))


def test_a_file_in_the_folder_s_place_hinders_nobody(folder: Path) -> None:
    own(folder).touch()
    with device_lock.hold("gpu") as first, device_lock.hold("gpu") as second:
        assert first
        assert second


def test_without_a_temporary_folder_nobody_is_hindered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    with device_lock.hold("gpu") as first, device_lock.hold("gpu") as second:
        assert first
        assert second
    assert list(folder.iterdir()) == []


def test_where_no_temporary_folder_is_found_nobody_is_hindered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(folder / "missing")])
    with device_lock.hold("gpu") as held:
        assert held


def test_where_a_file_system_has_no_locks_nobody_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    with device_lock.hold("gpu", 1000.0) as held:
        assert held


# Forks


FORKED = """
import os, signal, sys
from autoconv import device_lock
with device_lock.hold(sys.argv[1], 30.0) as held:
    child = os.fork()
    if child == 0:
        signal.pause()
    print(held, child, flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["lets go", "is killed"])
def test_a_child_that_was_forked_meanwhile_does_not_keep_it(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, "gpu"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        held, child = process.stdout.readline().split()
        assert held == "True"
        try:
            with device_lock.hold("gpu") as free:
                assert not free
            if end == "lets go":
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "let go\n"
            else:
                process.kill()
                process.wait()
            os.kill(int(child), 0)  # which is still there
            with device_lock.hold("gpu", 30.0) as free:  # it may have come no further than the fork yet
                assert free
        finally:
            os.kill(int(child), signal.SIGKILL)
            process.stdin.close()


def test_a_child_that_leaves_the_block_lets_go_of_nothing() -> None:
    with device_lock.hold("gpu") as held:
        assert held
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks amid threads
            child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            tried = subprocess.run([sys.executable, "-c", TRIER, "gpu"], capture_output=True, text=True, check=True)
            assert tried.stdout == "False\n"
    if not child:
        os._exit(0)
