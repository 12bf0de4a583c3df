"""Faults of the database file, while convolutions are called: each is right, and costs one warning and no measurement.

Root may write everywhere: so that these tests can fail, it becomes another user meanwhile.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import pytest
from faults import (
    NOBODY,
    Told,
    as_nobody,
    aside,
    convolve,
    flip,
    held,
    limited,
    once_measured,
    problem,
    recall_first_run,
)
from old_schemas import first_schema

import autoconv
from autoconv import _calls, dispatch, environment
from autoconv.settings import current
from autoconv.store import connection, open_store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def file(qualified_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database that knows the device, in a folder of the user that this process is now."""
    convolve(3, policy="off")
    dispatch.dispatcher()
    recall_first_run(qualified_database, monkeypatch)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(shutil.copy(qualified_database, Path(folder) / "autoconv.db"))
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(connection, "BUSY_SECONDS", 0.3)
        autoconv.configure(database=file, policy="measure", budget_ms=5)
        connection._in_vain.clear()
        with as_nobody(Path(folder), file):
            yield file
            dispatch.forget()
        Path(folder).chmod(0o700)


def measured(file: Path, width: int) -> int:
    """How many runs a database holds of a convolution."""
    where = environment.of(mx.default_device())
    with closing(open_store(file, readonly=True)) as store:
        return len({record.run for record in store.records(where.id, problem(width))})


def decided(width: int) -> str:
    """Where this process's decision on a convolution comes from, asked anew."""
    found = dispatch.dispatcher().look_up(problem(width), current(), mx.default_device())
    return "" if found is None else str(found.source)


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as opened:
        return bool(opened.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def anew() -> None:
    """As another process would find it."""
    dispatch.forget()
    _calls.forget()


def test_without_a_fault_nothing_is_said_and_all_is_kept(file: Path) -> None:
    assert convolve(4, 5).warnings == []
    assert (measured(file, 4), measured(file, 5)) == (1, 1)
    assert aside(file) == []


# A disk that is full, files and folders that cannot be written


def test_what_is_measured_as_the_disk_fills_up_decides_here_and_is_written_once_there_is_room(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    once_measured(monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard)))
    try:
        told = convolve(4)
        assert f"cannot write {file}: " in told.only
        assert decided(4) == "measured"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert measured(file, 4) == 0
    dispatch.dispatcher().settle()
    assert measured(file, 4) == 1
    assert decided(4) == "database"
    assert is_sound(file)


def test_on_a_disk_that_is_full_convolutions_go_on_and_are_measured_once_there_is_room(file: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, 4096):
        assert str(file) in convolve(4, 5, 6).only
    anew()
    assert convolve(4, 5, 6).warnings == []
    assert [measured(file, width) for width in (4, 5, 6)] == [1, 1, 1]


def test_on_a_disk_that_is_full_no_database_can_be_begun_and_all_is_written_once_there_is_room(file: Path) -> None:
    file.unlink()
    with limited(resource.RLIMIT_FSIZE, 0):
        assert f"cannot open {file}: " in convolve(4, 5).only
        assert decided(5) == "database"  # that in memory
    dispatch.dispatcher().settle()
    assert (measured(file, 4), measured(file, 5)) == (1, 1)
    anew()
    assert convolve(4, 5).warnings == []
    assert measured(file, 4) == 1


def test_a_later_call_writes_what_could_not_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.chmod(0o500)
    file.chmod(0o400)
    monkeypatch.setattr("autoconv.backoff.RETRY_S", 0.0)
    monkeypatch.setattr("autoconv.backoff.MAX_RETRY_S", 0.0)
    once_measured(monkeypatch, lambda: None)
    assert len(convolve(4).warnings) == 1
    file.chmod(0o600)
    file.parent.chmod(0o700)
    assert convolve(5, 6).warnings == []
    assert (measured(file, 5), measured(file, 6)) == (1, 1)


@pytest.mark.parametrize("policy", ["measure", "auto", "record"])
def test_a_file_that_may_only_be_read_decides_and_costs_one_warning(file: Path, policy: str) -> None:
    convolve(4)
    anew()
    before = file.read_bytes()
    file.chmod(0o400)
    told = convolve(4, 5, 6, policy=policy)
    assert "cannot" in told.only
    assert decided(4) == "database"
    anew()
    assert file.read_bytes() == before
    assert aside(file) == []


def test_a_folder_that_may_only_be_read_costs_one_warning(file: Path) -> None:
    convolve(4)
    anew()
    file.parent.chmod(0o500)
    told = convolve(5, 6)
    assert str(file) in told.only
    assert aside(file) == []
    file.parent.chmod(0o700)
    dispatch.dispatcher().settle()
    # Some SQLites open it, and then nothing is timed, as no note can be left.
    kept = (1, 1) if "cannot open" in told.only else (0, 0)
    assert (measured(file, 5), measured(file, 6)) == kept


def test_where_no_folder_can_be_made_all_is_kept_in_memory_and_written_when_it_can(file: Path) -> None:
    database = file.parent / "closed" / "deep" / "autoconv.db"
    database.parent.parent.mkdir()
    database.parent.parent.chmod(0o500)
    autoconv.configure(database=database)
    assert "Permission denied" in convolve(4, 5).only
    database.parent.parent.chmod(0o700)
    dispatch.dispatcher().settle()
    assert (measured(database, 4), measured(database, 5)) == (1, 1)


# A lock that somebody holds


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every wait that was in vain."""
    found: list[float] = []
    waited = connection.waited

    def noted(file: Path, doing: str, *, in_vain: bool = False) -> None:
        if in_vain:
            found.append(connection.patience(file, doing))
        waited(file, doing, in_vain=in_vain)

    monkeypatch.setattr(connection, "waited", noted)
    monkeypatch.setattr("autoconv.store.sqlite.waited", noted)
    return found


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_lock_that_is_held_for_long_is_waited_for_once_in_all(file: Path, how: str, waits: list[float]) -> None:
    convolve(4)
    anew()
    with held(file, how):
        told = convolve(5, 6, 7, 8, 9, 10)
        assert "locked" in told.only
        # Where it can be opened, as a look-up needs no lock, each write is tried anew.
        assert waits == [connection.BUSY_SECONDS] + [connection.HURRIED_SECONDS] * (len(waits) - 1)
        assert len(waits) >= (1 if how == "EXCLUSIVE" else 6)
    anew()
    assert convolve(4, 5, 6).warnings == []
    assert measured(file, 6) == 1
    assert connection.patience(file, connection.WRITING) == connection.BUSY_SECONDS  # as it was before


def test_what_is_measured_as_somebody_takes_the_lock_is_written_once_it_is_free(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        once_measured(monkeypatch, lambda: writer.in_transaction or writer.execute("BEGIN IMMEDIATE"))
        told = convolve(4)
        assert "locked" in told.only
        assert decided(4) == "measured"
        assert measured(file, 4) == 0
        writer.execute("ROLLBACK")
    monkeypatch.undo()
    dispatch.forget()  # as the end of a process does
    assert measured(file, 4) == 1


# Damage


PLACES = [0, 1, 60, 99, 511, 4096, 9000, 0.3, 0.9, -1]


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_ends_early_is_begun_anew(file: Path, place: float) -> None:
    convolve(4)
    anew()
    size = file.stat().st_size
    os.truncate(file, int(place * size) if isinstance(place, float) else place % size)
    before = file.read_bytes()
    told = convolve(4, 5)
    assert len(told.warnings) == len(aside(file))
    if aside(file):
        assert "damaged-1" in told.only
        assert file.with_name("autoconv.db.damaged-1").read_bytes() == before
    else:
        assert place < 16, "all that is longer cannot be used, and must be put aside"
    assert (measured(file, 4), measured(file, 5)) == (1, 1)
    anew()
    assert is_sound(file)
    assert convolve(4, 5).warnings == []


@pytest.mark.parametrize("seed", range(8))
def test_a_file_with_other_bytes_than_it_had_is_put_aside_or_used_as_far_as_it_can_be_understood(
    file: Path, seed: int
) -> None:
    convolve(4)
    anew()
    flip(file, seed, flips=4 ** (seed % 5), first=100 * (seed % 2))
    told = convolve(4, 5)
    assert len(told.warnings) <= 1
    anew()
    told = convolve(4, 5, 6)
    assert len(told.warnings) <= 1
    assert len(aside(file)) <= 1


@pytest.mark.parametrize("policy", ["measure", "auto", "record", "predict"])
def test_damage_in_the_middle_costs_nothing_that_was_measured(file: Path, policy: str) -> None:
    convolve(4, 5)
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    flip(file, 0, flips=20_000, first=4096)
    assert "damaged-1" in convolve(6, 7, policy=policy).only
    assert (measured(file, 4), measured(file, 5)) == (1, 1)
    assert is_sound(file)
    with closing(open_store(file, readonly=True)) as store:
        where = environment.of(mx.default_device())
        assert where.id in store.environments()
        assert len(store.pending(where.id)) == (2 if policy == "record" else 0)


def test_damage_in_a_folder_that_may_only_be_read_is_put_aside_once_it_can_be(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoconv.store.mending.LOOK_AGAIN_SECONDS", 0.0)
    convolve(4)
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    flip(file, 0, flips=20_000, first=4096)
    file.parent.chmod(0o500)
    assert str(file) in convolve(5, 6).only
    assert aside(file) == []
    file.parent.chmod(0o700)
    monkeypatch.setattr("autoconv.backoff.RETRY_S", 0.0)
    assert "damaged-1" in convolve(7, 8).only
    assert (measured(file, 4), measured(file, 8)) == (1, 1)


# Other schemas, and what is no file of ours


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA user_version = 99")


def foreign(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("CREATE TABLE photographs (id)")


def text(file: Path) -> None:
    file.write_text("not a database\n" * 1000)


@pytest.mark.parametrize("spoil", [newer, foreign, text], ids=lambda each: each.__name__)
def test_what_is_not_ours_is_left_alone_and_decides_nothing(file: Path, spoil: Callable[[Path], None]) -> None:
    spoil(file)
    before = file.read_bytes()
    assert str(file) in convolve(4, 5).only
    assert decided(5) == "database"  # that in memory
    anew()
    assert file.read_bytes() == before
    assert aside(file) == []


def test_an_older_schema_is_brought_up_to_date_without_a_word(file: Path) -> None:
    file.unlink()
    first_schema(file, [], [], ["env"])
    assert convolve(4).warnings == []
    assert measured(file, 4) == 1


def directory(file: Path) -> None:
    file.mkdir()


def loop(file: Path) -> None:
    file.symlink_to(file)


def link_to_a_directory(file: Path) -> None:
    file.symlink_to(file.parent)


@pytest.mark.parametrize("put", [directory, loop, link_to_a_directory], ids=lambda each: each.__name__)
def test_what_is_no_file_costs_one_warning_and_stays(file: Path, put: Callable[[Path], None]) -> None:
    file.unlink()
    put(file)
    before = os.lstat(file)
    told = convolve(4, 5)
    assert str(file) in told.only
    assert decided(5) == "database"  # that in memory
    assert os.lstat(file).st_ino == before.st_ino
    assert aside(file) == []
    dispatch.forget()
    (file.rmdir if put is directory else file.unlink)()


def test_a_link_to_a_file_is_followed_whether_that_is_there_or_not(file: Path) -> None:
    elsewhere = file.parent / "missing" / "elsewhere.db"
    file.unlink()
    file.symlink_to(elsewhere)
    assert convolve(4).warnings == []
    anew()
    assert convolve(5).warnings == []
    assert (measured(elsewhere, 4), measured(elsewhere, 5)) == (1, 1)
    assert file.is_symlink()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (elsewhere, elsewhere.parent)] == [0o600, 0o700]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_another_user_s_file_stays_as_it_is_damaged_or_not(file: Path, mode: int) -> None:
    flip(file, 0, flips=20_000, first=4096)
    before = file.read_bytes()
    os.seteuid(0)
    os.chown(file, 0, 0)
    os.chmod(file, mode)
    os.seteuid(NOBODY)
    assert str(file) in convolve(4, 5).only
    assert aside(file) == []
    dispatch.forget()
    os.seteuid(0)
    assert file.read_bytes() == before
    os.seteuid(NOBODY)


# Systems that have less


@pytest.mark.parametrize("vfs", ["unix-dotfile", "unix-none"])
def test_a_file_system_without_shared_memory_or_locks_does(
    file: Path, vfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = connection._uri
    monkeypatch.setattr(connection, "_uri", lambda path, query: uri(path, f"{query}&vfs={vfs}"))
    file.unlink()
    assert convolve(4, 5).warnings == []
    anew()
    assert decided(4) == "database"
    assert not file.with_name("autoconv.db-wal").exists()
    with closing(connection.connect(file, readonly=False)) as opened:
        assert opened.execute("PRAGMA synchronous").fetchone() == (2,)  # less is safe with a write-ahead log alone
    monkeypatch.undo()


def test_without_file_descriptors_convolutions_go_on_and_are_kept_once_there_are_some(file: Path) -> None:
    convolve(4)
    anew()
    dispatch.dispatcher()
    with limited(resource.RLIMIT_NOFILE, 0):  # what is open stays so; a number that is free below it may not be taken
        told = convolve(5, 6)
    assert str(file) in told.only
    dispatch.dispatcher().settle()
    assert (measured(file, 5), measured(file, 6)) == (1, 1)


# A whole process


PROGRAM = """
import json, os, resource, sys, warnings
import mlx.core as mx, numpy as np, platformdirs
import autoconv
if sys.argv[1] == "nobody":
    from autoconv import dispatch
    # What is imported at a first call may be nobody else's to read.
    autoconv.configure(database=os.environ["TMPDIR"] + "/first.db")
    mx.eval(autoconv.conv3d(mx.ones((1, 3, 3, 4, 2)), mx.ones((3, 2, 2, 2, 2))))
    autoconv.configure(database=None)
    dispatch.forget()
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.argv[1] == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    for patched in (False, True):
        if patched:
            autoconv.patch()
        for width in (4, 5):
            x, w = mx.ones((1, 3, 3, width, 2)), mx.ones((3, 2, 2, 2, 2))
            assert np.all(np.array((mx if patched else autoconv).conv3d(x, w)) == 16.0)
    if sys.argv[1] == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(json.dumps([str(w.message) for w in caught]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of a user without rights, whatever user runs the tests."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def run(home: Path, *arguments: str, **variables: str) -> Told:
    """What a program that convolves warns of, with a home of its own and no database named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOCONV_", "XDG_"))}
    # NVIDIA's driver keeps a cache in the home.
    kept["CUDA_CACHE_PATH"] = tempfile.gettempdir()
    environ = kept | {"HOME": str(home), "AUTOCONV_POLICY": "measure", **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Told(json.loads(done.stdout.splitlines()[-1]))


def test_a_user_whose_home_cannot_be_written_gets_right_results_and_one_warning(home: Path) -> None:
    home.chmod(0o555)
    assert "Permission denied" in run(home, "nobody").only
    assert list(home.iterdir()) == []


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="a GPU's driver itself cannot do without")
def test_a_process_without_file_descriptors_from_its_first_call_on_gets_right_results(home: Path) -> None:
    assert len(run(home, "descriptors").warnings) <= 1
