"""A sweep keeps a Mac awake for as long as it runs, and pauses while the Mac is slower than it can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from autoconv.sweep import power
from autoconv.sweep.power import MAC, awake, hindrance, wait_until_unhindered

ON_MAINS = """\
Now drawing from 'AC Power'
 -InternalBattery-0 (id=22806627)\t100%; charged; 0:00 remaining present: true
"""
CHARGING = """\
Now drawing from 'AC Power'
 -InternalBattery-0 (id=22806627)\t43%; charging; 1:32 remaining present: true
"""
ON_BATTERY = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22806627)\t83%; discharging; 5:12 remaining present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
ON_UPS = """\
Now drawing from 'UPS Power'
 -Back-UPS ES 700 (id=7798784)\t91%; discharging; 0:34 remaining present: true
"""

SETTINGS = """\
System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                1 (sleep prevented by powerd, caffeinate)
 hibernatemode        3
 ttyskeepawake        1
 displaysleep         10
 tcpkeepalive         1
 {}
 womp                 1
"""
NORMAL = SETTINGS.format("lowpowermode         0")
LOW_POWER = SETTINGS.format("lowpowermode         1")
AUTOMATIC = SETTINGS.format("powermode            0")
LOW_POWER_OF_MAX = SETTINGS.format("powermode            1")
HIGH_POWER = SETTINGS.format("powermode            2")

COOL = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
FULL_SPEED = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
2026-03-02 14:10:51 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 100
"""
SLOWED = FULL_SPEED.replace("CPU_Speed_Limit \t= 100", "CPU_Speed_Limit \t= 62")
WARNED = """\
2026-03-02 14:12:03 +0100 Thermal Warning Level = 5
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
PERFORMANCE_WARNED = """\
Note: No thermal warning level has been recorded
2026-03-02 14:12:03 +0100 Performance Warning Level = 1
Note: No CPU power status has been recorded
"""
WARNING_OVER = WARNED.replace("= 5", "= 0")
PRESSURE = "com.apple.system.thermalpressurelevel {}\n"


def answers(batt: str = ON_MAINS, settings: str = NORMAL, therm: str = COOL, pressure: str = "") -> power.Run:
    """A runner of commands that print these."""
    known = {
        ("pmset", "-g", "batt"): batt,
        ("pmset", "-g"): settings,
        ("pmset", "-g", "therm"): therm,
        ("notifyutil", "-g", "com.apple.system.thermalpressurelevel"): pressure,
    }
    return lambda command: known[tuple(command)]


@pytest.mark.parametrize("batt", [ON_MAINS, CHARGING, DESKTOP, ""])
@pytest.mark.parametrize("settings", [NORMAL, AUTOMATIC, HIGH_POWER, ""])
@pytest.mark.parametrize("therm", [COOL, FULL_SPEED, WARNING_OVER, ""])
@pytest.mark.parametrize("pressure", [PRESSURE.format(0), PRESSURE.format(1), ""])
def test_a_mac_on_mains_that_is_cool_is_not_hindered(batt: str, settings: str, therm: str, pressure: str) -> None:
    assert hindrance(answers(batt, settings, therm, pressure), MAC) == ""


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (answers(batt=ON_BATTERY), "on battery power"),
        (answers(batt=ON_UPS), "on the power of a UPS"),
        (answers(settings=LOW_POWER), "in Low Power Mode"),
        (answers(settings=LOW_POWER_OF_MAX), "in Low Power Mode"),
        (answers(therm=SLOWED), "thermally throttled"),
        (answers(therm=WARNED), "thermally throttled"),
        (answers(therm=PERFORMANCE_WARNED), "thermally throttled"),
        (answers(pressure=PRESSURE.format(2)), "thermally throttled"),
        (answers(pressure=PRESSURE.format(4)), "thermally throttled"),
        (answers(ON_BATTERY, LOW_POWER), "on battery power and in Low Power Mode"),
        (
            answers(ON_BATTERY, LOW_POWER, SLOWED, PRESSURE.format(3)),
            "on battery power and in Low Power Mode and thermally throttled",
        ),
    ],
)
def test_what_makes_a_mac_slower_hinders(found: power.Run, says: str) -> None:
    assert hindrance(found, MAC) == says


def test_other_systems_are_asked_nothing(commands: Commands) -> None:
    commands.add("caffeinate", "touch $FOLDER/started")
    commands.add("pmset", "touch $FOLDER/asked; echo \"Now drawing from 'Battery Power'\"")
    assert hindrance(system="Linux") == ""
    with awake("Linux") as kept:
        assert not kept
    assert sorted(path.name for path in commands.folder.iterdir()) == ["caffeinate", "pmset"]
    assert hindrance(system=MAC) == "on battery power"
    assert (commands.folder / "asked").exists()


class Commands:
    """Programs in a folder that comes first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, script: str) -> None:
        """A shell script; `$FOLDER` is where it lies."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nFOLDER='{self.folder}'\n{script}\n")
        path.chmod(0o755)

    def wait_for(self, name: str) -> str:
        """The text of a file that a script writes, once there is one."""
        path = self.folder / name
        deadline = time.monotonic() + 30
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.01)
        return path.read_text().strip()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Commands of one's own; those of the system come after."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield Commands(folder)
    pid = folder / "pid"
    if pid.exists() and runs(int(pid.read_text())):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


STAYS = 'echo "$@" >$FOLDER/arguments; echo $$ >$FOLDER/pid; exec sleep 600'
WAITS = 'echo $$ >$FOLDER/pid; while kill -0 "$3" 2>/dev/null; do sleep 0.02; done; echo yes >$FOLDER/ended'


def test_a_mac_is_kept_awake_until_the_context_ends(commands: Commands) -> None:
    commands.add("caffeinate", STAYS)
    with awake(MAC) as kept:
        assert kept
        pid = int(commands.wait_for("pid"))
        assert commands.wait_for("arguments") == f"-i -w {os.getpid()}"
        assert runs(pid)
        # The terminal's Ctrl-C goes to this process's group.
        assert os.getpgid(pid) != os.getpgid(0)
    assert not runs(pid)


def test_it_ends_with_an_error_too(commands: Commands) -> None:
    def interrupted() -> None:
        with awake(MAC):
            commands.wait_for("pid")
            raise KeyboardInterrupt

    commands.add("caffeinate", STAYS)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not runs(int(commands.wait_for("pid")))


def test_one_that_will_not_end_is_killed(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_END_S", 0.05)
    commands.add("caffeinate", "trap '' TERM; echo $$ >$FOLDER/pid; while :; do sleep 0.05; done")
    with awake(MAC):
        pid = int(commands.wait_for("pid"))
    assert not runs(pid)


def test_one_that_ended_by_itself_is_no_trouble(commands: Commands) -> None:
    commands.add("caffeinate", "echo $$ >$FOLDER/pid")
    with awake(MAC):
        commands.wait_for("pid")


def test_it_ends_when_the_sweep_is_killed(commands: Commands) -> None:
    """As far as it depends on the process that it is told to watch."""
    commands.add("caffeinate", WAITS)
    code = (
        "import os, signal, sys, time; from pathlib import Path; from autoconv.sweep.power import awake\n"
        "with awake('Darwin'):\n"
        "    while not Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(commands.folder / "pid")], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert commands.wait_for("ended") == "yes"


def test_without_the_commands_a_mac_is_neither_kept_awake_nor_hindered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with awake(MAC) as kept:
        assert not kept
    assert hindrance(system=MAC) == ""


def test_a_command_that_fails_or_hangs_does_not_hinder(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "echo \"Now drawing from 'Battery Power'\""
    commands.add("pmset", says)
    assert hindrance(system=MAC) == "on battery power"
    commands.add("pmset", f"{says}; exit 1")
    assert hindrance(system=MAC) == ""
    monkeypatch.setattr(power, "COMMAND_S", 0.05)
    commands.add("pmset", f"{says}; exec sleep 600")
    assert hindrance(system=MAC) == ""


class Time:
    """A clock that only sleeping moves, and what happens at its times."""

    def __init__(self, stop: threading.Event, stop_at: float = float("inf")) -> None:
        self.now = 100.0
        self.looks: list[float] = []
        self._stop = stop
        self._stop_at = stop_at

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.5
        self.now += seconds
        if self.now >= self._stop_at:
            self._stop.set()

    def look(self, reasons: Sequence[str]) -> Callable[[], str]:
        """What hinders at each look; nothing thereafter."""

        def look() -> str:
            self.looks.append(self.now)
            return reasons[len(self.looks) - 1] if len(self.looks) <= len(reasons) else ""

        return look


def waited(reasons: Sequence[str], stop_at: float = float("inf"), poll_s: float = 20) -> tuple[bool, list[str], Time]:
    stop, told = threading.Event(), list[str]()
    when = Time(stop, stop_at)
    goes_on = wait_until_unhindered(
        stop, told.append, poll_s, look=when.look(reasons), clock=when.clock, sleep=when.sleep
    )
    return goes_on, told, when


def test_nothing_is_said_and_no_time_lost_where_nothing_hinders() -> None:
    goes_on, told, when = waited([])
    assert (goes_on, told, when.now, when.looks) == (True, [], 100.0, [100.0])


def test_a_hindrance_pauses_until_it_ends_and_each_reason_is_told_once() -> None:
    goes_on, told, when = waited(["on battery power"] * 3 + ["thermally throttled"])
    assert goes_on
    assert when.looks == [100, 120, 140, 160, 180]
    assert [line.partition(".")[0] for line in told] == [
        "Paused: this Mac is on battery power",
        "Paused: this Mac is thermally throttled",
        "Going on after 80 s: no longer thermally throttled",
    ]


@pytest.mark.parametrize("poll_s", [0.2, 20, 600])
def test_a_stop_ends_the_pause_at_once(poll_s: float) -> None:
    goes_on, told, when = waited(["on battery power"] * 10_000, stop_at=103, poll_s=poll_s)
    assert not goes_on
    assert len(told) == 1
    assert when.now <= 103.5


def test_a_sweep_that_was_stopped_looks_no_more() -> None:
    stop = threading.Event()
    stop.set()
    assert not wait_until_unhindered(stop, pytest.fail, look=lambda: pytest.fail("looked"))


def test_a_signal_ends_the_pause_in_real_time() -> None:
    stop = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    told = []

    def tell(line: str) -> None:
        told.append(line)
        os.kill(os.getpid(), signal.SIGUSR1)

    try:
        assert not wait_until_unhindered(stop, tell, 3600, look=lambda: "on battery power")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(told) == 1
