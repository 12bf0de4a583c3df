"""`autoconv prune`: what it says, what it asks before, and what is left of a database whatever comes in its way."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner, Result
from faults import as_nobody, flip, held, limited
from old_schemas import first_schema

from autoconv import environment
from autoconv.algorithms import algorithms
from autoconv.cli import _common, main
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import Pruned, SqliteStore, connection, open_store, removal, shipped

VERSIONS = {algorithm.name: algorithm.version for algorithm in algorithms()}
PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in range(1, 61)]
OTHER = "another"
DAY = 86400.0


@pytest.fixture(scope="module")
def here() -> str:
    return environment.of(mx.default_device()).id


def run_of(problem: Problem, where: str, *, run: str = "r", age_s: float = 0.0, behind: int = 0) -> list[Record]:
    """A run of the tuner, by the algorithms as they are or so many versions ago."""
    names, created = ("native", "matmul", "im2col"), time.time() - age_s
    times = tuple(10.0 + place / 8 for place in range(24))
    return [
        Record(problem.key, where, n, VERSIONS[n] - behind, "", Status.OK, times, 1e-7, 0, run=run, created=created)
        for n in names
    ]


@pytest.fixture(scope="module")
def whole(here: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which of every problem one run decides and one is by versions before, here and elsewhere."""
    file = tmp_path_factory.mktemp("prune") / "whole.db"
    with closing(open_store(file)) as store:
        store.add_environment(here, {"device": "mine"}, {})
        store.add_environment(OTHER, {"device": "theirs", "mlx": "0.1", "backend": "cpu"}, {})
        for place, problem in enumerate(PROBLEMS):
            store.add(problem, run_of(problem, here, run="old", behind=1, age_s=400 * DAY))
            store.add(problem, run_of(problem, here, age_s=place * DAY))
            store.add(problem, run_of(problem, OTHER))
        store.note(here, Problem.parse((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)))
    return file


@pytest.fixture
def file(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in a folder of the user that this process is now."""
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.3)
    connection._in_vain.clear()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(shutil.copy(whole, Path(folder) / "autoconv.db"))
        Path(folder).chmod(0o700)
    connection._in_vain.clear()


def prune(file: Path, *options: str, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["prune", "--database", str(file), *options], input)


def runs(file: Path, where: str) -> list[str]:
    """The runs of each problem in an environment, in the order in which the problems became known."""
    with closing(open_store(file, readonly=True)) as store:
        return [",".join(dict.fromkeys(r.run for r in records)) for _, records in store.all_records(where)]


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as opened:
        whole = opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return whole and opened.execute("PRAGMA foreign_key_check").fetchall() == []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def beside(file: Path) -> dict[str, bytes]:
    """What SQLite puts beside a database that it only reads: a log in which nothing is, and its index."""
    return {f"{file.name}-wal": b"", f"{file.name}-shm": Path(f"{file}-shm").read_bytes()}


def error_of(found: Result) -> str:
    """What stderr says of a prune that failed: one line."""
    assert found.exit_code == 1, found.output
    lines = [line for line in found.stderr.splitlines() if line]
    assert len(lines) == 1, found.stderr
    return lines[0]


ALL, KEPT = ["old,r"] * len(PROBLEMS), ["r"] * len(PROBLEMS)


# What it does and says


def test_by_itself_it_asks_nothing_and_drops_what_decides_nothing_and_the_file_shrinks(file: Path, here: str) -> None:
    before = file.stat().st_size
    found = prune(file)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "results that decide nothing: 180 of 540" in found.output
    assert f"{before / 1e6:.2f} MB before, {file.stat().st_size / 1e6:.2f} MB after" in found.output
    assert file.stat().st_size < 0.8 * before
    assert (runs(file, here), runs(file, OTHER)) == (KEPT, KEPT)
    assert is_sound(file)
    assert list(content(file.parent)) == [file.name]


def test_a_dry_run_says_as_much_and_changes_no_byte(file: Path) -> None:
    before = content(file.parent)
    options = ("--other-environments", "--older-than", "30d", "--pending", "--json")
    dry = json.loads(prune(file, *options, "--dry-run").stdout)
    assert content(file.parent) in (before, before | beside(file))
    wet = json.loads(prune(file, *options, "--yes").stdout)
    assert dry["dry_run"]
    assert not wet["dry_run"]
    assert abs(dry["bytes_after"] - wet["bytes_after"]) < 0.15 * dry["bytes_before"]
    assert wet["bytes_after"] == file.stat().st_size < dry["bytes_before"] == len(before[file.name])
    assert dry | wet == wet
    assert wet["environments"] == {OTHER: 180}
    assert (wet["deciding_nothing"], wet["pending"]) == (180, 1)


@pytest.mark.parametrize(
    ("options", "mine", "theirs"),
    [
        (["--other-environments"], KEPT, []),
        (["--older-than", "29.5d"], KEPT[:30], KEPT),
        (["--keep-runs", "1"], KEPT, KEPT),
        (["--pending"], KEPT, KEPT),
    ],
)
def test_an_option_drops_what_it_says_beside_that(
    options: list[str], mine: list[str], theirs: list[str], file: Path, here: str
) -> None:
    assert prune(file, *options, "--yes").exit_code == 0
    assert (runs(file, here), runs(file, OTHER)) == (mine, theirs)
    with closing(open_store(file, readonly=True)) as store:
        assert len(store.pending(here)) == (options != ["--pending"])
    assert is_sound(file)


def test_a_size_that_cannot_be_met_is_refused_before_anything_goes(file: Path) -> None:
    before = file.read_bytes()
    for options in ((), ("--dry-run",)):
        found = prune(file, "--size", "10KB", "--yes", *options)
        assert found.exit_code == 1
        assert "cannot be as small as 0.01 MB" in found.stderr
        assert "nothing was dropped" in found.stderr
    assert file.read_bytes() == before


def test_a_file_is_no_larger_than_the_size_that_is_asked_for_and_keeps_what_is_here_and_newest(
    file: Path, here: str
) -> None:
    most = file.stat().st_size * 3 // 5
    assert prune(file, "--size", str(most), "--yes").exit_code == 0
    assert most * 0.8 < file.stat().st_size <= most
    left = len(runs(file, here))
    assert left > 0
    assert left == len(PROBLEMS) or runs(file, OTHER) == []
    with closing(open_store(file, readonly=True)) as store:
        assert store.problems(here) == PROBLEMS[:left]


def test_problems_of_which_nothing_is_known_any_more_take_no_room(file: Path, here: str) -> None:
    assert prune(file, "--other-environments", "--older-than", "29.5d", "--yes").exit_code == 0
    with closing(sqlite3.connect(file)) as opened:
        known = {key for (key,) in opened.execute("SELECT key FROM problems")}
    with closing(open_store(file, readonly=True)) as store:
        assert known == {problem.key for problem in store.problems(here) + store.pending(here)}
    assert len(known) == 31


@pytest.mark.parametrize("options", [["--older-than", "soon"], ["--size", "large"], ["--keep-runs", "0"]])
def test_an_option_that_says_nothing_is_refused(options: list[str], file: Path) -> None:
    before = content(file.parent)
    found = prune(file, *options, "--yes")
    assert found.exit_code == 2
    assert options[1] in found.stderr
    assert content(file.parent) == before


# What it asks


def test_measurements_go_only_after_a_question(file: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_common, "can_ask", lambda: True)
    before = runs(file, OTHER)
    asked = prune(file, "--other-environments", input="n\n")
    assert asked.exit_code == 1
    assert "device theirs, mlx 0.1" in asked.output
    assert (runs(file, here), runs(file, OTHER)) == (ALL, before)
    assert prune(file, "--other-environments", input="y\n").exit_code == 0
    assert (runs(file, here), runs(file, OTHER)) == (KEPT, [])


def test_where_nobody_can_be_asked_no_measurement_goes(file: Path, here: str) -> None:
    assert "--yes" in error_of(prune(file, "--older-than", "1d"))
    assert runs(file, here) == ALL


# What it leaves alone


def test_databases_that_came_with_the_package_are_never_pruned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "shipped_files", lambda: [file])
    link = file.with_name("link.db")
    link.symlink_to(file)
    before = content(file.parent)
    for path in (file, link):
        for option in ("--yes", "--dry-run"):
            assert "came with the package" in error_of(prune(path, option))
    assert content(file.parent) == before


def test_a_database_that_is_not_begun_is_not_begun_by_it(tmp_path: Path) -> None:
    assert "nothing is to be pruned" in error_of(prune(tmp_path / "none.db"))
    assert os.listdir(tmp_path) == []


def test_nothing_but_the_command_and_what_wraps_a_store_prunes() -> None:
    """No convolution does: what it calls is not there to be called."""
    package = Path(removal.__file__).parents[1]
    texts = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    callers = {name for name, text in texts.items() if re.search(r"\.(prune|compact)\(", text)}
    assert callers == {"cli/prune.py", "store/mending.py", "store/sqlite.py"}


def test_an_older_schema_is_pruned_as_well(here: str, tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    records = [*run_of(PROBLEMS[0], here, run="old", behind=1), *run_of(PROBLEMS[0], here)]
    first_schema(file, records, [PROBLEMS[0].key], [here])
    assert prune(file).exit_code == 0
    assert runs(file, here) == ["r"]


# What comes in its way


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_database_that_somebody_holds_stays_as_it_is(how: str, file: Path, here: str) -> None:
    with held(file, how):
        assert "locked" in error_of(prune(file))
    assert runs(file, here) == ALL
    assert prune(file).exit_code == 0
    assert runs(file, here) == KEPT


def test_a_database_that_somebody_takes_before_it_shrinks_is_smaller_at_the_next_run(
    file: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, compact = file.stat().st_size, removal.compact

    def amid(opened: sqlite3.Connection) -> bool:
        with held(file, "IMMEDIATE"):
            return compact(opened)

    with monkeypatch.context() as patched:
        patched.setattr(removal, "compact", amid)
        said = error_of(prune(file))
    assert "what was to go is gone" in said
    assert "locked" in said
    assert runs(file, here) == KEPT
    assert file.stat().st_size == before
    assert prune(file).exit_code == 0
    assert file.stat().st_size < 0.8 * before


def test_while_others_read_it_is_pruned_and_shrinks_once_they_are_done(file: Path, here: str) -> None:
    before = file.stat().st_size
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        seen = reader.execute("SELECT count(*) FROM records").fetchone()
        found = prune(file)
        assert found.exit_code == 0
        assert "once others have done reading it" in found.output
        assert reader.execute("SELECT count(*) FROM records").fetchone() == seen
        reader.execute("COMMIT")
    open_store(file).close()
    assert file.stat().st_size < 0.8 * before
    assert runs(file, here) == KEPT


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_database_that_may_not_be_written_stays_as_it_is(what: str, file: Path, here: str) -> None:
    with as_nobody(file.parent, file):
        (file if what == "file" else file.parent).chmod(0o400 if what == "file" else 0o500)
        before = file.read_bytes()
        error_of(prune(file))
        assert file.read_bytes() == before
        assert prune(file, "--dry-run").exit_code == 0
        file.parent.chmod(0o700)
        file.chmod(0o600)
    assert runs(file, here) == ALL


def test_on_a_disk_that_is_full_it_stays_as_it_is(file: Path, here: str) -> None:
    with limited(resource.RLIMIT_FSIZE, 1 << 16):
        assert "cannot write" in error_of(prune(file))
    assert runs(file, here) == ALL
    assert is_sound(file)


def test_where_there_is_no_room_for_a_copy_what_was_to_go_is_gone_and_the_file_is_whole(
    file: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, compact = file.stat().st_size, removal.compact

    def without_room(opened: sqlite3.Connection) -> bool:
        with limited(resource.RLIMIT_FSIZE, before // 4):
            return compact(opened)

    with monkeypatch.context() as patched:
        patched.setattr(removal, "compact", without_room)
        said = error_of(prune(file))
    assert "what was to go is gone" in said
    assert is_sound(file)
    assert (runs(file, here), runs(file, OTHER)) == (KEPT, KEPT)
    assert prune(file).exit_code == 0
    assert file.stat().st_size < 0.8 * before


def test_a_damaged_database_stays_as_it_is(file: Path) -> None:
    flip(file, 1, flips=3000)
    before = content(file.parent)
    error_of(prune(file))
    assert content(file.parent) == before


@pytest.mark.parametrize("during", ["remove", "compact"])
def test_ctrl_c_is_heard_amid_sqlite_s_own_loops_and_leaves_the_file_whole(
    during: str, file: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, before = getattr(removal, during), file.stat().st_size
    under_way: list[str] = []
    heard: list[str] = []

    def noted(*arguments: object, **options: object) -> object:
        under_way.append(during)
        return step(*arguments, **options)

    def once() -> None:
        if under_way and not heard:
            heard.append(during)
            os.kill(os.getpid(), signal.SIGINT)

    sqlite3.enable_callback_tracebacks(False)  # which Datasette, in other tests, has on for the whole process
    with monkeypatch.context() as patched:
        patched.setattr(removal, during, noted)
        patched.setattr(removal, "_STEPS", 100)
        patched.setattr(removal, "_nothing", once)
        found = prune(file)
    assert found.exit_code == 130
    assert "interrupted" in found.stderr
    assert is_sound(file)
    assert runs(file, here) == (ALL if during == "remove" else KEPT)
    assert file.stat().st_size == before
    assert prune(file).exit_code == 0
    assert file.stat().st_size < 0.8 * before


# Others at the same time

START = """
import sys
from contextlib import closing
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import SqliteStore
from autoconv.store.pruning import Wish, plan
file, here, version = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
"""
WRITER = """
with closing(SqliteStore(file)) as store:
    for c in range(200, 300):
        problem = Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1)
        for v in (version - 1, version):
            made = Record(problem.key, here, "native", v, "", Status.OK, (1.0, 2.0), run=f"{c} by {v}")
            store.add(problem, [made])
"""
PRUNER = """
for _ in range(10):
    with closing(SqliteStore(file)) as store:
        store.prune(plan(store, Wish(), {"native": version}).gone)
        store.compact()
"""


def test_two_who_prune_and_one_who_writes_at_once_lose_nothing_that_is_to_stay(file: Path, here: str) -> None:
    version = VERSIONS["native"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + program, str(file), here, str(version)],
            stdin=-1,
            stdout=-1,
            stderr=-1,
            text=True,
        )
        for program in (PRUNER, PRUNER, WRITER)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    assert is_sound(file)
    assert prune(file).exit_code == 0
    assert runs(file, here) == [*KEPT, *(f"{c} by {version}" for c in range(200, 300))]
    assert runs(file, OTHER) == KEPT


def test_a_store_that_was_open_meanwhile_goes_on(file: Path, here: str) -> None:
    with closing(open_store(file)) as store:
        known = store.records(here, PROBLEMS[0])
        store.add(PROBLEMS[0], run_of(PROBLEMS[0], here, run="before", behind=1))
        assert prune(file).exit_code == 0
        added = run_of(PROBLEMS[0], here, run="after", behind=1)
        store.add(PROBLEMS[0], added)
        assert store.records(here, PROBLEMS[0]) == [*known[3:], *added]
        assert store.prune(lambda _, records: range(3) if records[0].environment == here else ()).records == 180
        assert store._select("PRAGMA foreign_keys") == [(1,)]  # type: ignore[attr-defined]
    assert is_sound(file)


def test_a_run_that_has_the_number_of_one_that_somebody_else_removed_stays(tmp_path: Path, here: str) -> None:
    """The store is read without a lock, and meanwhile its last run may go and another one come."""
    file, problem = tmp_path / "autoconv.db", PROBLEMS[0]
    later = run_of(problem, here, run="later")
    with closing(open_store(file)) as mine, closing(open_store(file)) as other:
        mine.add(problem, run_of(problem, here, run="first"))

        def gone(_problem: Problem, records: object) -> range:
            other.prune(lambda _, records: range(len(records)))
            other.add(problem, later)
            return range(3)

        assert mine.prune(gone) == Pruned()
        assert mine.records(here, problem) == later


def test_what_a_newer_version_wrote_and_this_one_cannot_read_stays(file: Path) -> None:
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("UPDATE records SET status = 'of a newer version' WHERE run = 1 AND position = 1")
        opened.commit()
    assert prune(file).exit_code == 0
    with closing(SqliteStore(file, readonly=True)) as store:
        assert store._select("SELECT status FROM records WHERE run = 1") == [("of a newer version",)]
    assert is_sound(file)
