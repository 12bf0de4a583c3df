"""A damaged database: what is put aside, by whom, what never is, and what the new one knows."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from faults import NOBODY, aside
from old_schemas import first_schema

from autoconv.errors import AutoconvWarning, DamagedError, StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MendingStore, ModelRecord, Qualification, Store, connection, damage, mending, open_store

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2, 3)]


def result(run: str, problem: Problem = PROBLEMS[0]) -> Record:
    return Record(problem.key, "env", "native", 1, "", Status.OK, (1.0, 2.0), run=run)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of a hundred records of one problem."""
    file = tmp_path / "own" / "autoconv.db"
    with closing(open_store(file)) as store:
        for number in range(100):
            store.add(PROBLEMS[0], [result(f"before {number}")])
    return file


def spoil(file: Path) -> None:
    """Overwrite every page but the first, which says whose it is."""
    with file.open("r+b") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(4096)
        opened.write(b"\xa5" * (size - 4096))


def runs(file: Path, problem: Problem = PROBLEMS[0]) -> list[str]:
    with closing(open_store(file, readonly=True)) as store:
        return [record.run for record in store.records("env", problem)]


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as opened:
        return bool(opened.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def alter(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as opened:
        opened.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            opened.execute(statement)


# What is put aside


def test_what_is_damaged_when_it_is_opened_is_put_aside_and_named(file: Path) -> None:
    spoil(file)
    before = file.read_bytes()
    with pytest.warns(AutoconvWarning, match=r"was damaged: it is now .*autoconv\.db\.damaged-1,") as caught:
        store = MendingStore(file)
    with closing(store):
        store.add(PROBLEMS[0], [result("after")])
    assert len(caught) == 1
    assert file.with_name("autoconv.db.damaged-1").read_bytes() == before
    assert runs(file) == ["after"]
    assert is_sound(file)


@pytest.mark.parametrize("place", [15, 16, 50, 99])
def test_a_file_that_ends_within_the_header_is_put_aside(file: Path, place: int) -> None:
    os.truncate(file, place)
    with pytest.warns(AutoconvWarning, match="damaged-1"), closing(MendingStore(file)) as store:
        store.add(PROBLEMS[0], [result("after")])
    assert runs(file) == ["after"]


def test_a_file_whose_header_is_gone_is_known_by_its_schema(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(bytes(100))
    with pytest.warns(AutoconvWarning, match="damaged-1"), closing(MendingStore(file)) as store:
        assert store.records("env", PROBLEMS[0]) == []


@pytest.fixture
def without_columns(file: Path) -> Path:
    """The database, in whose schema no names stand where an index names its columns: SQLite calls that no memory."""
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    content = file.read_bytes()
    start = content.index(b"qualifications (environment,") + len(b"qualifications (environment,")
    file.write_bytes(content[:start] + b"\xff" * 100 + content[start + 100 :])
    with closing(sqlite3.connect(file)) as opened, pytest.raises((MemoryError, sqlite3.Error, UnicodeDecodeError)):
        opened.execute("SELECT count(*) FROM sqlite_master")
    return file


def test_damage_that_sqlite_calls_no_memory_is_put_aside(without_columns: Path) -> None:
    with pytest.raises(DamagedError):
        open_store(without_columns, readonly=True)
    with pytest.warns(AutoconvWarning, match="damaged-1"), closing(MendingStore(without_columns)) as store:
        store.add(PROBLEMS[0], [result("after")])
    assert runs(without_columns) == ["after"]


def test_where_there_is_no_memory_nothing_is_put_aside(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(damage, "_AMPLE_BYTES", 1 << 60)
    for module in ("connection", "damage"):
        monkeypatch.setattr(f"autoconv.store.{module}.schema_of", fail)
    with pytest.raises(StoreError, match="no memory"):
        MendingStore(file)
    assert aside(file) == []


@pytest.mark.parametrize("number", [-1, 3 - 2**31])
def test_a_schema_of_a_number_that_none_has_is_damage(file: Path, number: int) -> None:
    alter(file, f"PRAGMA user_version = {number}")
    with pytest.raises(DamagedError, match="move the file away"):
        open_store(file, readonly=True)
    with pytest.warns(AutoconvWarning, match="damaged-1"), closing(MendingStore(file)) as store:
        store.add(PROBLEMS[0], [result("after")])
    assert runs(file) == ["after"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_master SET sql = 'CREATE TABLE runs (' WHERE name = 'runs'",
        "UPDATE sqlite_master SET sql = replace(sql, 'samples_us', 'samples_xs') WHERE name = 'records'",
        "DROP TABLE records",
    ],
)
def test_a_schema_that_is_not_ours_any_more_is_damage(file: Path, statement: str) -> None:
    alter(file, "DROP VIEW results", statement)

    def use() -> None:
        with closing(MendingStore(file)) as store:
            assert store.records("env", PROBLEMS[0]) == []
            store.add(PROBLEMS[0], [result("after")])

    with pytest.warns(AutoconvWarning, match="damaged-1"):  # where it is opened, or where the table is needed
        use()
    assert runs(file) == ["after"]


@pytest.mark.parametrize("ask", ["records", "add", "qualifications", "begin"])
def test_damage_that_comes_in_the_middle_costs_nothing_that_this_process_wrote(file: Path, ask: str) -> None:
    asked: dict[str, Callable[[MendingStore], object]] = {
        "records": lambda store: store.records("env", PROBLEMS[0]),
        "add": lambda store: store.add(PROBLEMS[2], [result("more", PROBLEMS[2])]),
        "qualifications": lambda store: store.qualifications(),
        "begin": lambda store: store.begin("env", PROBLEMS[0], "native"),
    }
    known = Qualification("env", "native=1", created=2.0)
    model = ModelRecord("cpu", "a.npz", "ab")
    with closing(MendingStore(file)) as store:
        store.add_environment("env", {"device": "one"}, {})
        store.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        store.note("env", PROBLEMS[2])
        store.note("env", PROBLEMS[1])
        store.forget("env", [PROBLEMS[1]])
        store.qualify(known)
        store.trust_model(model)
        alter(file, "PRAGMA wal_checkpoint(TRUNCATE)")
        spoil(file)
        with pytest.warns(AutoconvWarning, match="damaged-1") as caught:
            asked[ask](store)
        assert len(caught) == 1
        assert store.environments() == {"env": ({"device": "one"}, {})}
        assert [record.run for record in store.records("env", PROBLEMS[1])] == ["mine"]
        assert store.pending("env") == ([] if ask == "add" else [PROBLEMS[2]])
        assert store.qualifications() == [known]
        assert store.trusted_models() == [model]
    assert runs(file, PROBLEMS[1]) == ["mine"]
    assert runs(file, PROBLEMS[2]) == (["more"] if ask == "add" else [])
    assert is_sound(file)


def test_what_lies_beside_it_goes_along_and_no_name_is_taken_twice(file: Path) -> None:
    folder = file.parent
    (folder / "autoconv.db.damaged-1").write_text("an earlier one")
    (folder / "autoconv.db.damaged-2-wal").write_text("what is left of an earlier one")
    # Another process has it open, so that what it wrote still waits in the -wal file.
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("INSERT INTO environments (key, first_seen, last_seen) VALUES ('waiting', 0, 0)")
        spoil(file)
        with pytest.warns(AutoconvWarning, match="damaged-3"):
            MendingStore(file).close()
        waiting = (folder / "autoconv.db.damaged-3-wal").read_bytes()
        assert b"waiting" in waiting
        assert not (folder / "autoconv.db-wal").exists()
    assert is_sound(file)
    assert runs(file) == []
    assert (folder / "autoconv.db.damaged-1").read_text() == "an earlier one"
    assert (folder / "autoconv.db.damaged-2-wal").read_text() == "what is left of an earlier one"


def test_of_a_link_the_file_that_it_leads_to_is_put_aside_and_the_link_stays(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(file)
    spoil(file)
    with pytest.warns(AutoconvWarning, match="damaged-1"), closing(MendingStore(link)) as store:
        store.add(PROBLEMS[0], [result("after")])
    assert aside(file) == ["autoconv.db.damaged-1"]
    assert link.is_symlink()
    assert runs(file) == ["after"]


def test_a_hundred_are_kept_and_then_it_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "MOST_ASIDE", 1)
    spoil(file)
    with pytest.warns(AutoconvWarning, match="damaged-1"):
        MendingStore(file).close()
    alter(file, "CREATE TABLE more AS SELECT zeroblob(20000)")
    spoil(file)
    with pytest.raises(DamagedError):
        MendingStore(file)
    assert aside(file) == ["autoconv.db.damaged-1"]


# What never is


def newer(file: Path) -> None:
    alter(file, "PRAGMA user_version = 99")


def foreign(file: Path) -> None:
    file.unlink()
    alter(file, "CREATE TABLE photographs (id)", "INSERT INTO photographs SELECT zeroblob(20000)")


def foreign_damaged(file: Path) -> None:
    """So that nothing says any more whose it is but its header."""
    file.unlink()
    alter(file, *(f"CREATE TABLE photographs_{number} (id, {'x' * 100})" for number in range(100)))
    spoil(file)


def text(file: Path) -> None:
    file.write_text("a novel, in which nobody tunes anything\n" * 100)


@pytest.mark.parametrize("spoiled", [newer, foreign, foreign_damaged, text], ids=lambda each: each.__name__)
def test_what_is_not_ours_stays(file: Path, spoiled: Callable[[Path], None]) -> None:
    spoiled(file)
    before = file.read_bytes()
    with pytest.raises(StoreError):
        MendingStore(file)
    assert file.read_bytes() == before
    assert aside(file) == []


def test_a_directory_in_its_place_stays(tmp_path: Path) -> None:
    (tmp_path / "autoconv.db").mkdir()
    with pytest.raises(StoreError, match="it is a directory"):
        MendingStore(tmp_path / "autoconv.db")
    assert aside(tmp_path / "autoconv.db") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_file_stays_even_where_it_could_be_renamed(file: Path) -> None:
    spoil(file)
    os.chown(file, NOBODY, NOBODY)
    with pytest.raises(DamagedError, match="move the file away"):
        MendingStore(file)
    assert aside(file) == []


def test_what_is_only_read_stays(file: Path) -> None:
    spoil(file)
    with pytest.raises(DamagedError), closing(open_store(file, readonly=True)) as store:
        store.records("env", PROBLEMS[0])
    assert aside(file) == []


def test_an_older_schema_is_no_damage(tmp_path: Path) -> None:
    first_schema(tmp_path / "old.db", [result("old")], [], ["env"])
    with closing(MendingStore(tmp_path / "old.db")) as store:
        assert [record.run for record in store.records("env", PROBLEMS[0])] == ["old"]
    assert aside(tmp_path / "old.db") == []


def test_a_migration_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv.store import migrations

    def fail(*arguments: object) -> None:
        with closing(sqlite3.connect(":memory:")) as opened:
            opened.execute("SELECT * FROM nowhere")

    first_schema(tmp_path / "old.db", [result("old")], [], ["env"])
    monkeypatch.setattr(migrations, "migrate", fail)
    with pytest.raises(StoreError, match="no such table"):
        MendingStore(tmp_path / "old.db")
    assert aside(tmp_path / "old.db") == []


def test_a_row_of_nonsense_is_a_miss_and_no_damage(file: Path) -> None:
    alter(file, "PRAGMA ignore_check_constraints = ON", "UPDATE records SET status = 'dreamt', samples_us = 'none'")
    with closing(MendingStore(file)) as store:
        assert store.records("env", PROBLEMS[0]) == []
        store.add(PROBLEMS[0], [result("after")])
        assert [record.run for record in store.records("env", PROBLEMS[0])] == ["after"]
    assert aside(file) == []


def test_an_error_that_a_second_look_does_not_confirm_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    look = damage.is_damaged

    def looked(path: Path) -> bool:
        looks.append(path)
        return look(path)

    monkeypatch.setattr(damage, "is_damaged", looked)
    monkeypatch.setattr("autoconv.store.sqlite._PENDING", "SELECT 1 FROM nowhere WHERE ? = 1")
    with closing(MendingStore(file)) as store:
        for _ in range(3):
            with pytest.raises(DamagedError, match="no such"):
                store.pending("env")
        assert len(looks) == 1  # a look at all of it may take seconds
        assert len(store.records("env", PROBLEMS[0])) == 100
    assert aside(file) == []


def test_who_finds_a_new_file_in_its_place_leaves_it(file: Path) -> None:
    spoil(file)
    found = damage.identity_of(file)
    assert damage.put_aside(file, found) is not None
    open_store(file).close()
    assert damage.put_aside(file, found) is None
    assert aside(file) == ["autoconv.db.damaged-1"]
    assert is_sound(file)


def test_who_found_another_file_damaged_leaves_this_one(file: Path) -> None:
    spoil(file)
    found = damage.identity_of(file)
    assert found is not None
    assert damage.put_aside(file, (found[0], found[1] + 1)) is None
    assert damage.put_aside(file, None) is None
    assert damage.put_aside(file, found) is not None


def test_without_its_turn_nobody_renames_anything(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv.device_lock import hold

    spoil(file)
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.01)
    with hold(connection._lock_name(file)) as held:
        assert held
        with pytest.raises(DamagedError):
            MendingStore(file)
    assert aside(file) == []


# What becomes of other processes' files


def test_what_another_process_began_anew_is_followed_and_gets_what_this_one_knows(file: Path) -> None:
    with closing(MendingStore(file)) as mine:
        mine.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        os.rename(file, file.with_name("moved"))
        with closing(open_store(file)) as theirs:
            theirs.add(PROBLEMS[1], [result("theirs", PROBLEMS[1])])
        mine.add(PROBLEMS[2], [result("more", PROBLEMS[2])])
    assert runs(file, PROBLEMS[1]) == ["theirs", "mine"]
    assert runs(file, PROBLEMS[2]) == ["more"]


def test_what_was_written_to_a_file_just_before_it_was_put_aside_comes_along_at_the_end(file: Path) -> None:
    with closing(MendingStore(file)) as mine:
        mine.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        os.rename(file, file.with_name("moved"))
        open_store(file).close()
    assert runs(file, PROBLEMS[1]) == ["mine"]


def test_what_the_new_file_has_is_not_written_again(file: Path) -> None:
    with closing(MendingStore(file)) as store:
        store.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        with closing(sqlite3.connect(file)) as opened:
            opened.execute("VACUUM INTO ?", (str(file.with_name("copy")),))
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a log is taken for that of whatever file it lies beside
        os.replace(file.with_name("copy"), file)
        assert [record.run for record in store.records("env", PROBLEMS[1])] == ["mine"]


def test_a_file_that_was_removed_is_begun_again_but_not_at_the_end(file: Path) -> None:
    with closing(MendingStore(file)) as store:
        store.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        file.unlink()
        store.note("env", PROBLEMS[2])
        assert runs(file, PROBLEMS[1]) == ["mine"]
        file.unlink()
    assert not file.exists()


def test_what_a_new_file_cannot_take_at_once_it_takes_later(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.01)
    with closing(MendingStore(file)) as store:
        store.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])
        os.rename(file, file.with_name("moved"))
        open_store(file).close()
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert store.records("env", PROBLEMS[1]) == []
            writer.execute("ROLLBACK")
        assert [record.run for record in store.records("env", PROBLEMS[1])] == ["mine"]


def test_only_the_latest_writes_are_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "MOST_KNOWN", 2)
    with closing(MendingStore(file)) as store:
        for number in range(4):
            store.add(PROBLEMS[1], [result(str(number), PROBLEMS[1])])
        os.rename(file, file.with_name("moved"))
        assert [record.run for record in store.records("env", PROBLEMS[1])] == ["2", "3"]


def test_a_call_that_is_cut_short_as_the_file_is_begun_anew_is_done_on_the_new_one(file: Path) -> None:
    asked: list[Store] = []

    def ask(opened: Store) -> None:
        asked.append(opened)
        if len(asked) == 1:  # and meanwhile, in another thread
            alter(file, "PRAGMA wal_checkpoint(TRUNCATE)")
            spoil(file)
            store.records("env", PROBLEMS[0])
        opened.add(PROBLEMS[1], [result("mine", PROBLEMS[1])])

    with closing(MendingStore(file, tell=lambda _: None)) as store:
        store._ask(ask)
    assert len(asked) == 2
    assert runs(file, PROBLEMS[1]) == ["mine"]


def test_what_is_written_as_the_file_is_begun_anew_is_written_to_the_new_one(file: Path) -> None:
    def write(opened: Store) -> None:
        opened.add(PROBLEMS[1], [mine])
        if not asked:  # and meanwhile, in another thread
            asked.append(opened)
            alter(file, "PRAGMA wal_checkpoint(TRUNCATE)")
            spoil(file)
            store.records("env", PROBLEMS[0])

    mine, asked = result("mine", PROBLEMS[1]), list[Store]()
    with closing(MendingStore(file, tell=lambda _: None)) as store:
        store._write(mending.Write(write, PROBLEMS[1], (mine,)))
    assert runs(file, PROBLEMS[1]) == ["mine"]


def test_of_many_threads_that_find_the_damage_at_once_none_loses_anything(file: Path) -> None:
    told: list[str] = []
    failures: list[BaseException] = []
    damaged = threading.Barrier(5, timeout=60)

    def work(name: str) -> None:
        try:
            store.add(PROBLEMS[1], [result(f"{name} early", PROBLEMS[1])])
            damaged.wait()
            damaged.wait()
            for number in range(20):
                store.add(PROBLEMS[1], [result(f"{name} {number}", PROBLEMS[1])])
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            failures.append(error)

    with closing(MendingStore(file, tell=told.append)) as store:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        damaged.wait()
        alter(file, "PRAGMA wal_checkpoint(TRUNCATE)")
        spoil(file)
        damaged.wait()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(told) == 1
    assert sorted(runs(file, PROBLEMS[1])) == sorted(
        f"{name} {which}" for name in "abcd" for which in ("early", *range(20))
    )


MANY = f"""
import sys, warnings
from pathlib import Path
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MendingStore
warnings.simplefilter("ignore")
PROBLEM = Problem.from_key({PROBLEMS[1].key!r})
store = MendingStore(Path(sys.argv[1]), tell=lambda text: print("told", flush=True))
def add(run):
    store.add(PROBLEM, [Record(PROBLEM.key, "env", "native", 1, "", Status.OK, (1.0,), run=run)])
add(sys.argv[2] + " early")
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    add(f"{{sys.argv[2]}} {{number}}")
store.close()
"""


def test_of_many_processes_that_find_the_damage_at_once_one_puts_it_aside_and_nothing_is_lost(file: Path) -> None:
    names = "abcdef"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, str(file), name], cwd=ROOT, text=True, stdin=-1, stdout=-1, stderr=-1
        )
        for name in names
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    alter(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    spoil(file)
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in started]
    assert [errors for _, errors in ended] == [""] * len(names)
    assert "".join(printed for printed, _ in ended).count("told") == 1
    assert aside(file) == ["autoconv.db.damaged-1"]
    assert sorted(runs(file, PROBLEMS[1])) == sorted(
        f"{name} {which}" for name in names for which in ("early", *range(20))
    )
    assert is_sound(file)
