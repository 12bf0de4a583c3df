"""Power: a sweep keeps a Mac awake, and pauses while it would time a slower machine than this one is.

On battery, in Low Power Mode and when throttled for its heat a Mac is another machine, whose times say nothing of the
one on mains. On other systems nothing is started and nothing hinders.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

Run: TypeAlias = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints; empty where it cannot be run."""

MAC = "Darwin"
SYSTEM = platform.system()

COMMAND_S = 5.0
"""Longest that a command may take to answer; they take some 10 ms."""

POLL_S = 20.0
"""Seconds between two looks while paused: a throttled Mac needs a minute or more to cool down."""

HEAVY = 2
"""The thermal pressure from which clocks are lowered, of 0 nominal, 1 moderate, 2 heavy, 3 trapping and 4 sleeping.

Any longer load brings a portable Mac to 1, so that a sweep which waited for 0 would wait most of the time.
"""

_SLICE_S = 0.5
_END_S = 5.0
_SOURCES = {"Battery Power": "on battery power", "UPS Power": "on the power of a UPS"}


@contextmanager
def awake(system: str = SYSTEM) -> Iterator[bool]:
    """Keep a Mac from sleeping while idle; its display may sleep.

    A `caffeinate` does so that ends with the context, and with this process however that ends. It does not hear the
    terminal's Ctrl-C, after which a sweep still ends its current problem.

    Args:
        system: The operating system's name.

    Yields:
        Whether it is kept awake: not on another system or without that command.
    """
    child = _caffeinate() if system == MAC else None
    try:
        yield child is not None
    finally:
        if child is not None:
            _end(child)


def _caffeinate() -> subprocess.Popen[bytes] | None:
    """A process that keeps the machine awake until this one ends; None where there is no such command."""
    try:
        return subprocess.Popen(
            ["caffeinate", "-i", "-w", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def output(command: Sequence[str]) -> str:
    """What a command prints; empty where there is none, it fails, or it takes over `COMMAND_S`."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_S, check=False, shell=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if done.returncode else done.stdout


def hindrance(run: Run = output, system: str = SYSTEM) -> str:
    """Why times taken now would not be this Mac's, in words; empty where nothing hinders.

    Asked are `pmset` and, since `pmset -g therm` says nothing on Apple silicon however hot it is, `notifyutil`, which
    reads the thermal pressure that `powermetrics` shows to root alone. What does not answer does not hinder.

    Args:
        run: Runs the commands.
        system: The operating system's name.
    """
    if system != MAC:
        return ""
    source = re.search(r"drawing from '([^']+)'", run(("pmset", "-g", "batt")))
    reasons = [
        _SOURCES.get(source[1], "") if source else "",
        "in Low Power Mode" if _low_power(run(("pmset", "-g"))) else "",
        "thermally throttled" if _throttled(run) else "",
    ]
    return " and ".join(filter(None, reasons))


def _low_power(settings: str) -> bool:
    """Whether these settings are Low Power Mode's, which Macs that also have High Power Mode name otherwise."""
    return re.search(r"^\s*(?:low)?powermode\s+1\s*$", settings, re.MULTILINE) is not None


def _throttled(run: Run) -> bool:
    """Whether the machine says that it runs slower for its heat."""
    therm = run(("pmset", "-g", "therm"))
    limits = [int(limit) for limit in re.findall(r"CPU_Speed_Limit\s*=\s*(\d+)", therm)]
    levels = [int(level) for level in re.findall(r"(?:Thermal|Performance) Warning Level\s*=\s*(\d+)", therm)]
    pressure = re.search(r"(\d+)\s*$", run(("notifyutil", "-g", "com.apple.system.thermalpressurelevel")))
    return any(limit < 100 for limit in limits) or any(levels) or (pressure is not None and int(pressure[1]) >= HEAVY)


def wait_until_unhindered(
    stop: threading.Event,
    tell: Callable[[str], None],
    poll_s: float = POLL_S,
    *,
    look: Callable[[], str] = hindrance,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Return at once where nothing hinders; else say so, wait until that ends, and say that too.

    Args:
        stop: Ends the waiting once it is set, within half a second.
        tell: Called with a line whenever it pauses, for another reason, or goes on.
        poll_s: Seconds between two looks.
        look: Tells what hinders; empty for nothing.
        clock: The seconds now.
        sleep: Sleeps for so many seconds.

    Returns:
        Whether to go on; False where it was stopped.
    """
    began, told = clock(), ""
    while not stop.is_set():
        reason = look()
        if not reason:
            if told:
                tell(f"Going on after {clock() - began:.0f} s: no longer {told}.")
            return True
        if reason != told:
            tell(f"Paused: this Mac is {reason}. Going on when that ends; Ctrl-C ends the sweep.")
            told = reason
        until = clock() + poll_s
        # No `stop.wait`: a signal's handler that sets the event while this very thread holds its lock would hang.
        while not stop.is_set() and (left := until - clock()) > 0:
            sleep(min(left, _SLICE_S))
    return False
