"""The file behind a store: how it is created, shared and protected, and what damage does to it."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autoconv.errors import ReadOnlyError, SchemaError, StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import Qualification, Store, connection, migrations, open_store, tables
from autoconv.store.migrations import migrations as steps

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = Problem.parse((1, 4, 8, 8, 2), (16, 3, 3, 3, 2), padding=1)
OTHER = Problem.parse((1, 4, 8, 8, 2), (16, 3, 3, 3, 2), "float16", padding=1)

# What the scripts below share. A line on stdout says that `add` has returned.
PRELUDE = f"""
import os, sys, time
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import open_store
PROBLEM = Problem.from_key({PROBLEM.key!r})
def result(run, algorithm="native"):
    return Record(PROBLEM.key, "env", algorithm, 1, "", Status.OK, (1.0, 2.0), run=run)
"""


def result(run: str = "", **fields: Any) -> Record:
    return Record(PROBLEM.key, "env", "native", 1, "", Status.OK, (1.0, 2.0), run=run, **fields)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database that holds one record."""
    file = tmp_path / "autoconv.db"
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("first")])
    return file


@contextmanager
def raw(file: Path) -> Iterator[sqlite3.Connection]:
    """The file as any other program sees it; what is done to it is kept."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        yield connection


def runs(file: Path, *, readonly: bool = False) -> list[str]:
    with closing(open_store(file, readonly=readonly)) as store:
        return [record.run for record in store.records("env", PROBLEM)]


def start(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def output(script: str, *arguments: object) -> str:
    """What a script prints; it must end well."""
    with start(script, *arguments, start_new_session=True) as process:
        try:
            printed, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # With its children, which may hang in its stead.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return printed


def integrity(file: Path) -> str:
    with raw(file) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


# Creating


@pytest.mark.usefixtures("no_umask")
def test_files_and_folders_are_made_for_the_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "one" / "two" / "autoconv.db"
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result()])
        modes = {path.name: permissions(path) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(["autoconv.db", "autoconv.db-wal", "autoconv.db-shm"], 0o600)
    assert [permissions(folder) for folder in (file.parent, file.parent.parent)] == [0o700, 0o700]


def test_the_file_is_private_before_sqlite_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "autoconv.db"
    seen: list[int] = []
    connect = sqlite3.connect

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(permissions(file))
        return connect(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", spy)
    open_store(file).close()
    assert seen == [0o600]


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    file = tmp_path / "autoconv.db"
    file.touch()
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("kept")])
    assert runs(file) == ["kept"]


@pytest.mark.parametrize("name", ["with space.db", "a?mode=ro.db", "a#b%20c.db", "ünïcode.db"])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    file = tmp_path / "folder" / name
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("kept")])
    assert runs(file, readonly=True) == ["kept"]
    assert {path.name for path in file.parent.iterdir()} >= {name}
    assert all(path.name.startswith(name) for path in file.parent.iterdir())


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_store("autoconv.db")) as store:
        monkeypatch.chdir("/")
        store.add(PROBLEM, [result("kept")])
    assert runs(tmp_path / "autoconv.db") == ["kept"]


def test_the_log_is_written_ahead(file: Path) -> None:
    with raw(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_folder_without_shared_memory_keeps_the_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite's dot-file locking has no shared memory, as on a network folder.
    uri = connection._uri
    monkeypatch.setattr(connection, "_uri", lambda file, query: f"{uri(file, query)}&vfs=unix-dotfile")
    file = tmp_path / "autoconv.db"
    for run in "ab":
        with closing(open_store(file)) as store:
            store.add(PROBLEM, [result(run)])
    assert runs(file, readonly=True) == ["a", "b"]
    with raw(file) as opened:
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_database_that_cannot_change_its_journal_now_is_used_as_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.01)
    with raw(file) as reader:
        reader.execute("PRAGMA journal_mode = DELETE")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records").fetchone()
        assert runs(file) == ["first"]
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)


# The schema


def test_the_schema_number_counts_the_migrations(file: Path) -> None:
    with raw(file) as connected:
        number = connected.execute("PRAGMA user_version").fetchone()[0]
        named = connected.execute("SELECT count(*) FROM _sqlite_migrations").fetchone()[0]
    assert number == named == connection.SCHEMA == len(steps._migrations)


def test_every_table_is_strict(file: Path) -> None:
    with raw(file) as connected:
        tables = connected.execute("SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE '%sqlite%'")
        strict = dict(tables.fetchall())
    views = ["devices", "failures", "gains", "results", "times", "winners"]
    assert [strict.pop(view) for view in views] == [0] * len(views)
    names = [
        "candidates",
        "environments",
        "models",
        "networks",
        "notes",
        "origins",
        "pending",
        "problems",
        "qualifications",
        "records",
        "runs",
    ]
    assert strict == dict.fromkeys(names, 1)


def test_a_look_up_goes_by_the_index(file: Path) -> None:
    with raw(file) as connected:
        plan = connected.execute(f"EXPLAIN QUERY PLAN {tables._RECORDS}", ("env", PROBLEM.key)).fetchall()
    steps = [step[3] for step in plan]
    assert steps[0] == "SEARCH runs USING INDEX runs_by_problem (environment=? AND problem=?)"
    assert "SEARCH records USING PRIMARY KEY (run=?)" in steps
    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]


def test_pages_of_all_records_go_by_the_index(file: Path) -> None:
    with raw(file) as connected:
        for query, values in ((tables._GROUPS, (0, 0, 1, 1)), (tables._RECORDS_OF_GROUPS, (0, 0, 1, 1))):
            steps = [step[3] for step in connected.execute(f"EXPLAIN QUERY PLAN {query}", values)]
            assert "(environment,problem)>(?,?)" in steps[0]
            assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]


def test_a_database_of_today_is_not_migrated_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "migrate", lambda _: pytest.fail("migrated"))
    assert runs(file) == ["first"]


def test_a_migration_that_fails_leaves_the_file_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "autoconv.db"
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_NUMBERS", (*migrations._NUMBERS, "CREATE TABLE records (id)"))
        with pytest.raises(StoreError, match="table records already exists"):
            open_store(file)
        with raw(file) as connected:
            assert connected.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("kept")])
    assert runs(file) == ["kept"]


def test_looking_up_imports_no_sqlite_utils(file: Path) -> None:
    script = """
with __import__("contextlib").closing(open_store(sys.argv[1])) as store:
    print(len(store.records("env", PROBLEM)), "sqlite_utils" in sys.modules)
"""
    assert output(script, file) == "1 False\n"


def alter(file: Path, *statements: str) -> None:
    with raw(file) as connected:
        for statement in statements:
            connected.execute(statement)


def newer(file: Path) -> None:
    alter(file, f"PRAGMA user_version = {connection.SCHEMA + 1}")


def foreign(file: Path) -> None:
    alter(file, "PRAGMA application_id = 1234")


def nameless(file: Path) -> None:
    file.unlink()
    alter(file, "CREATE TABLE photographs (id)")


def garbage(file: Path) -> None:
    file.write_bytes(b"not a database\n" * 1000)


def short(file: Path) -> None:
    file.write_bytes(b"short")


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (newer, "newer autoconv .*update autoconv"),
        (foreign, "another program's"),
        (nameless, "another program's"),
        (garbage, "no SQLite database"),
        (short, "no SQLite database"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_database_of_ours_is_named_and_left_alone(
    file: Path, spoil: Callable[[Path], None], reason: str, readonly: bool
) -> None:
    spoil(file)
    before = file.read_bytes()
    with pytest.raises(SchemaError, match=reason) as caught:
        open_store(file, readonly=readonly)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


# Reading only


WRITES: dict[str, Callable[[Store], None]] = {
    "add_environment": lambda store: store.add_environment("env", {}, {}),
    "add": lambda store: store.add(PROBLEM, [result()]),
    "add nothing": lambda store: store.add(PROBLEM, []),
    "begin": lambda store: store.begin("env", PROBLEM, "native"),
    "end": lambda store: store.end("env", PROBLEM, "native"),
    "note": lambda store: store.note("env", PROBLEM),
    "forget": lambda store: store.forget("env", [PROBLEM]),
    "qualify": lambda store: store.qualify(Qualification("env", "native=1")),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_readonly_store_refuses_every_write(file: Path, write: str) -> None:
    before = file.read_bytes()
    with closing(open_store(file, readonly=True)) as store:
        assert store.readonly
        with pytest.raises(ReadOnlyError, match="reading only"):
            WRITES[write](store)
        assert [record.run for record in store.records("env", PROBLEM)] == ["first"]
    assert file.read_bytes() == before


def test_a_readonly_store_sees_what_others_add(file: Path) -> None:
    with closing(open_store(file, readonly=True)) as reader, closing(open_store(file)) as writer:
        for run in "ab":
            writer.add(PROBLEM, [result(run)])
            assert [record.run for record in reader.records("env", PROBLEM)][-1] == run


def test_an_immutable_file_is_read_without_any_file_beside_it(tmp_path: Path, file: Path) -> None:
    before = set(tmp_path.iterdir())
    with raw(file) as connected:
        assert connected.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with closing(open_store(file, readonly=True, immutable=True)) as store:
        assert [record.run for record in store.records("env", PROBLEM)] == ["first"]
        assert set(tmp_path.iterdir()) == before
        with pytest.raises(ReadOnlyError):
            store.note("env", PROBLEM)
    with pytest.raises(ValueError, match="readonly=True"):
        open_store(file, immutable=True)


def test_reading_only_creates_nothing(tmp_path: Path) -> None:
    for missing in (tmp_path / "autoconv.db", tmp_path / "folder" / "autoconv.db"):
        with pytest.raises(StoreError, match="No such file") as caught:
            open_store(missing, readonly=True)
        assert str(missing) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "autoconv.db"
    file.touch()
    with pytest.raises(SchemaError, match="is empty"):
        open_store(file, readonly=True)
    assert file.stat().st_size == 0


@pytest.fixture
def frozen(file: Path) -> Iterator[Path]:
    """A copy of the database in a folder that nobody but root can write, and everybody read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        copy = Path(folder) / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o444)
        Path(folder).chmod(0o555)
        yield copy
        Path(folder).chmod(0o755)


# Root can write everywhere, so it becomes somebody else, who may be unable to read what as_uri() imports at first.
UNPRIVILEGED = """
from pathlib import Path
from autoconv.errors import StoreError
Path("/").as_uri()
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    store = open_store(sys.argv[1], readonly=sys.argv[2] == "readonly")
    print([record.run for record in store.records("env", PROBLEM)])
    store.close()
except StoreError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_written_can_be_read(frozen: Path) -> None:
    assert output(UNPRIVILEGED, frozen, "readonly") == "['first']\n"
    assert [path.name for path in frozen.parent.iterdir()] == [frozen.name]


def test_a_folder_that_cannot_be_written_is_refused_for_writing(frozen: Path) -> None:
    assert f"cannot open {frozen}: " in output(UNPRIVILEGED, frozen, "writing")


def test_a_crash_s_leftovers_are_not_ignored_where_they_cannot_be_recovered(frozen: Path) -> None:
    log = frozen.with_name(frozen.name + "-wal")
    log.write_bytes(b"changes")
    log.chmod(0o444)
    assert f"cannot open {frozen}: " in output(UNPRIVILEGED, frozen, "readonly")


# Failing


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    for readonly in (False, True):
        with pytest.raises(StoreError, match=f"cannot open {tmp_path}: it is a directory"):
            open_store(tmp_path, readonly=readonly)


def test_a_file_in_the_place_of_its_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        open_store(tmp_path / "folder" / "autoconv.db")


def test_a_truncated_file_is_an_error_that_says_what_to_do(file: Path) -> None:
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result(str(index), detail="x" * 400) for index in range(200)])
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(StoreError, match=r"malformed.*move the file away"):
        runs(file)


def test_damaged_pages_are_an_error_not_a_crash(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:] = random.Random(0).randbytes(len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(StoreError, match="malformed"):
        runs(file)


def test_a_full_disk_loses_that_call_alone(file: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(open_store(file)) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
        try:
            with pytest.raises(StoreError, match=f"cannot write {file}: "):
                store.add(PROBLEM, [result("lost", detail="x" * 500) for _ in range(1000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        store.add(PROBLEM, [result("second")])
    assert runs(file) == ["first", "second"]
    assert integrity(file) == "ok"


def test_a_call_that_fails_halfway_is_undone_in_full(file: Path) -> None:
    with closing(open_store(file)) as store:
        store.note("env", PROBLEM)
        with pytest.raises(StoreError, match=f"cannot write {file}: .*too large"):
            store.add(PROBLEM, [result("lost"), result("lost", workspace_bytes=2**63)])
        assert store.pending("env") == [PROBLEM]
        store.add(PROBLEM, [result("second")])
    assert runs(file) == ["first", "second"]


def test_a_writer_that_never_ends_is_not_waited_for_forever(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.01)
    with closing(open_store(file)) as store, raw(file) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.add(PROBLEM, [result("lost")])
        assert [record.run for record in store.records("env", PROBLEM)] == ["first"]
        writer.execute("ROLLBACK")
        store.add(PROBLEM, [result("second")])
    assert runs(file) == ["first", "second"]


# Rows damaged by hand


@pytest.mark.parametrize(
    "damage",
    [
        "status = 'dreamt'",
        "samples_us = 'no json'",
        "samples_us = '{}'",
        "samples_us = '[1, \"2\"]'",
        "samples_us = '[true]'",
        "samples_us = '[NaN]'",
        "samples_us = '[-1]'",
        "samples_us = '[1e999]'",
        f"samples_us = '{'[' * 100_000}'",
        f"samples_us = '[1{'0' * 400}]'",
        "samples_us = CAST(x'ff' AS TEXT)",
        "algorithm = CAST(x'6eff' AS TEXT)",
        "created = 9e999",
    ],
    ids=lambda damage: damage[:40],
)
def test_a_row_that_cannot_be_understood_is_a_miss(file: Path, damage: str) -> None:
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("damaged"), result("last")])
    run = "(SELECT id FROM runs WHERE key = 'damaged')"
    if damage.startswith("algorithm"):
        alter(file, f"INSERT INTO candidates SELECT 99, {damage.partition(' = ')[2]}, 1, ''")
        alter(file, f"UPDATE records SET candidate = 99 WHERE run = {run}")
    else:
        table, key = ("runs", "id") if damage.startswith("created") else ("records", "run")
        alter(file, f"UPDATE {table} SET {damage} WHERE {key} = {run}")
    assert runs(file) == ["first", "last"]
    with closing(open_store(file, readonly=True)) as store:
        assert [[record.run for record in records] for _, records in store.all_records()] == [["first", "last"]]


@pytest.mark.parametrize("reference", ["candidate", "origin"])
def test_a_record_that_refers_to_nothing_is_a_miss(file: Path, reference: str) -> None:
    with closing(open_store(file)) as store:
        store.add(PROBLEM, [result("damaged"), result("last")])
    table, key = ("runs", "id") if reference == "origin" else ("records", "run")
    alter(file, f"UPDATE {table} SET {reference} = 77 WHERE {key} = (SELECT id FROM runs WHERE key = 'damaged')")
    assert runs(file) == ["first", "last"]


@pytest.mark.parametrize("key", ["nonsense", PROBLEM.key + " ", "forward int8" + PROBLEM.key[15:]])
def test_a_problem_that_cannot_be_understood_is_left_out(file: Path, key: str) -> None:
    with closing(open_store(file)) as store:
        store.add(OTHER, [dataclasses.replace(result("odd"), problem=OTHER.key)])
        store.note("env", OTHER)
    with raw(file) as connected:
        connected.execute("UPDATE problems SET key = ? WHERE dtype = 'float16'", (key,))
    with closing(open_store(file)) as store:
        assert store.problems("env") == [PROBLEM]
        assert store.pending("env") == []
        assert [problem for problem, _ in store.all_records()] == [PROBLEM]


@pytest.mark.parametrize(
    "damage",
    ["passed = '[1]'", "passed = '[[1, 2]]'", "barred = '{\"fft\": 1}'", 'ceilings = \'{"x": "1"}\'', "noise = 9e999"],
)
def test_a_qualification_that_cannot_be_understood_is_none(file: Path, damage: str) -> None:
    with closing(open_store(file)) as store:
        store.qualify(Qualification("env", "native=1", noise=0.01))
        store.qualify(Qualification("env", "native=2", noise=0.02))
    alter(file, f"UPDATE qualifications SET {damage} WHERE fingerprint = 'native=1'")
    with closing(open_store(file)) as store:
        assert store.qualification("env", "native=1") is None
        assert store.qualification("env", "native=2") == Qualification("env", "native=2", noise=0.02)


@pytest.mark.parametrize("identity", ["no json", "[]", "null"])
def test_an_environment_that_cannot_be_understood_is_left_out(file: Path, identity: str) -> None:
    with closing(open_store(file)) as store:
        store.add_environment("damaged", {"backend": "metal"}, {})
        store.add_environment("sound", {"backend": "cpu"}, {})
    alter(file, f"UPDATE environments SET identity = '{identity}' WHERE key = 'damaged'")
    with closing(open_store(file)) as store:
        assert store.environments() == {"sound": ({"backend": "cpu"}, {})}


# Processes


def test_a_forked_child_opens_its_own_connection(file: Path) -> None:
    script = """
import autoconv.store.sqlite as sqlite
opened, connect = [], sqlite.connect
def spy(*arguments, **options):
    opened.append(os.getpid())
    return connect(*arguments, **options)
sqlite.connect = spy
store = open_store(sys.argv[1])
store.add(PROBLEM, [result("parent")])
parent, child = os.getpid(), os.fork()
if child == 0:
    assert opened == [parent], opened
    assert [record.run for record in store.records("env", PROBLEM)][:2] == ["first", "parent"]
    assert opened == [parent, os.getpid()], opened
    store.add(PROBLEM, [result("child")])
    # Left open: the interpreter's end must do no harm either.
    sys.exit()
store.add(PROBLEM, [result("beside")])
assert os.waitpid(child, 0)[1] == 0
store.add(PROBLEM, [result("after")])
print(*sorted(record.run for record in store.records("env", PROBLEM)))
store.close()
"""
    assert output(script, file) == "after beside child first parent\n"
    assert integrity(file) == "ok"


def test_a_fork_amid_other_threads_calls_leaves_a_child_that_works(file: Path) -> None:
    script = """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks amid threads
store, done = open_store(sys.argv[1]), threading.Event()
def work():
    while not done.is_set():
        store.add(PROBLEM, [result("thread")])
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for index in range(5):
    child = os.fork()
    if child == 0:
        store.add(PROBLEM, [result(f"child {index}")])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
done.set()
for thread in threads: thread.join()
print(sum(record.run.startswith("child") for record in store.records("env", PROBLEM)))
store.close()
"""
    assert output(script, file) == "5\n"
    assert integrity(file) == "ok"


def test_many_processes_may_create_and_fill_one_file(tmp_path: Path) -> None:
    script = """
store = open_store(sys.argv[1])
for index in range(50):
    store.add(PROBLEM, [result(f"{sys.argv[2]} {index}", algorithm) for algorithm in "ab"])
store.close()
"""
    file = tmp_path / "folder" / "autoconv.db"
    processes = [start(script, file, number) for number in range(8)]
    for process in processes:
        with process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert Counter(runs(file)) == {f"{number} {index}": 2 for number in range(8) for index in range(50)}
    assert integrity(file) == "ok"


def test_every_record_of_many_writers_arrives(tmp_path: Path) -> None:
    script = """
store = open_store(sys.argv[1])
sys.stdin.readline()  # until all are here
for index in range(20):
    store.begin("env", PROBLEM, sys.argv[2])
    store.add(PROBLEM, [result(f"{sys.argv[2]} {index}", algorithm) for algorithm in "ab"])
    store.end("env", PROBLEM, sys.argv[2])
store.close()
"""
    file = tmp_path / "autoconv.db"
    processes = [start(script, file, number, stdin=subprocess.PIPE) for number in range(32)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        with process:
            _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert Counter(runs(file)) == {f"{number} {index}": 2 for number in range(32) for index in range(20)}
    with closing(open_store(file, readonly=True)) as store:
        assert store.unended("env", PROBLEM) == {}
    assert integrity(file) == "ok"


def test_writers_take_turns_and_do_without_where_they_cannot(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, float]] = []

    @contextmanager
    def hold(name: str, wait_s: float, poll_s: float) -> Iterator[bool]:
        asked.append((name, wait_s))
        yield False

    link = tmp_path / "link.db"
    link.symlink_to(file)
    monkeypatch.setattr(connection, "hold", hold)
    for path, run in ((file, "a"), (link, "b")):
        with closing(open_store(path)) as store:
            store.add(PROBLEM, [result(run)])
    assert len({name for name, _ in asked}) == 1
    # To open it and to write it, and not for long where waiting was in vain.
    assert [wait_s for _, wait_s in asked] == 2 * [connection.BUSY_SECONDS, connection.HURRIED_SECONDS]
    assert runs(file) == ["first", "a", "b"]


def test_many_threads_may_open_one_new_file(tmp_path: Path) -> None:
    file = tmp_path / "autoconv.db"
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(run: str) -> None:
        try:
            barrier.wait()
            with closing(open_store(file)) as store:
                store.add(PROBLEM, [result(run)])
        except BaseException as error:  # noqa: BLE001  a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(runs(file)) == [str(number) for number in range(8)]
    assert permissions(file) == 0o600


def test_no_thread_uses_a_file_whose_creator_has_yet_to_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "autoconv.db"
    events: list[str] = []
    connect, close = sqlite3.connect, os.close

    def spy(*arguments: Any, **options: Any) -> Any:
        events.append("connect")
        return connect(*arguments, **options)

    def slow(descriptor: int) -> None:
        mine = os.path.samestat(os.fstat(descriptor), file.stat())
        time.sleep(0.1 * mine)
        close(descriptor)
        events.extend(["close"] * mine)

    monkeypatch.setattr(sqlite3, "connect", spy)
    monkeypatch.setattr(os, "close", slow)
    threads = [threading.Thread(target=lambda: open_store(file).close()) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events == ["close", "connect", "connect", "connect"]


WRITER = """
import autoconv.store.migrations  # ahead of time, so that nothing but the file is left to be made
print("opening", flush=True)
store = open_store(sys.argv[1])
for index in range(10**6):
    store.begin("env", PROBLEM, "native")
    store.add(PROBLEM, [result(f"{sys.argv[2]} {index}", algorithm) for algorithm in "abc"])
    print(f"{sys.argv[2]} {index}", flush=True)
"""


@pytest.mark.parametrize("fresh", [False, True], ids=["one file over and over", "a new file each time"])
def test_a_kill_at_any_moment_leaves_every_committed_record(tmp_path: Path, fresh: bool) -> None:
    chance = random.Random(fresh)
    returned: set[str] = set()
    for number in range(6):
        file = tmp_path / f"{number if fresh else 0}.db"
        if fresh:
            returned = set()
        with start(WRITER, file, number) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "opening\n"
            if fresh:
                # Making the file takes a few milliseconds, in which most of these kills come.
                time.sleep(chance.uniform(0, 0.01))
            else:
                returned |= {process.stdout.readline().strip() for _ in range(chance.randrange(1, 60))}
            process.send_signal(signal.SIGKILL)
            # The last line may be cut short by the kill; it was not promised then.
            returned |= {line.strip() for line in process.stdout if line.endswith("\n")}
        assert process.returncode == -signal.SIGKILL
        counts = Counter(runs(file))
        assert integrity(file) == "ok"
        assert returned <= set(counts)
        # The kill may come between the commit and its line, and every `add` is there in full or not at all.
        assert len(set(counts) - returned) <= 1
        assert set(counts.values()) <= {3}
        returned = set(counts)
