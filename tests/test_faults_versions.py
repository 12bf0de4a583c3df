"""Two versions of the library on one database at once: neither decides for the other, and neither damages it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import replaying
from old_schemas import first_schema, second_schema
from replay import Benches, Run, registry, replayed
from replaying import CPU, HERE, PROBLEMS

from autoconv import environment
from autoconv.decision import Source
from autoconv.dispatch import Dispatcher
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Qualification, open_store
from autoconv.tuning.qualification import fingerprint

OLD = registry("native", "a", "b")
NEW = (OLD[0], replayed("a", 1, version=2), OLD[2], replayed("added", 3))
PROBLEM = PROBLEMS[0]
MS = 1e-3


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment._environments, repr(CPU), HERE)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A database in which both versions know the device from its first run."""
    file = tmp_path / "shared.db"
    with closing(open_store(file)) as store:
        for algorithms in (OLD, NEW):
            store.qualify(Qualification(HERE.id, fingerprint(algorithms), created=1.0))
    yield file
    with closing(sqlite3.connect(file)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def version(algorithms: tuple[object, ...], **times: float | Run) -> Dispatcher:
    """A library of these algorithms, which find their candidates to take so many milliseconds."""
    table = {name: found if isinstance(found, Run) else Run((found * MS,)) for name, found in times.items()}
    benches = Benches(dict(table))
    return Dispatcher(algorithms, bench=benches, clock=benches.clock)  # type: ignore[arg-type]


def test_each_decides_by_records_of_its_own_algorithms_alone(database: Path) -> None:
    asked = replaying.asked(database)
    old = version(OLD, native=6, a=3, b=9)
    new = version(NEW, native=6, a=9, b=9, added=2)
    assert old.decide(PROBLEM, asked, CPU).candidate == "a"
    assert new.decide(PROBLEM, asked, CPU).candidate == "native"  # of the newer `a` nothing is known
    assert new.tune(PROBLEM, asked, CPU).candidate == "added"
    for made, candidate in ((old, "a"), (new, "added"), (version(OLD), "a"), (version(NEW), "added")):
        found = made.decide(PROBLEM, asked, CPU)
        assert (found.candidate, found.source) == (candidate, Source.DATABASE)
        made.close()


@pytest.mark.parametrize("wrong", [OLD, NEW])
def test_what_is_wrong_in_one_version_is_not_barred_in_the_other(wrong: tuple[object, ...], database: Path) -> None:
    asked = replaying.asked(database)
    right = NEW if wrong is OLD else OLD
    with closing(version(wrong, native=6, a=Run((MS,), wrong="zeros"), b=9, added=9)) as made:
        assert made.tune(PROBLEM, asked, CPU).candidate == "native"
    with closing(version(right, native=6, a=3, b=9, added=9)) as made:
        assert made.tune(PROBLEM, asked, CPU).candidate == "a"
    with closing(version(wrong)) as made:
        assert made.decide(PROBLEM, asked, CPU).candidate == "native"


def test_they_may_write_in_turns(database: Path) -> None:
    asked = replaying.asked(database)
    old, new = version(OLD, native=6, a=3, b=9), version(NEW, native=6, a=3, b=9, added=9)
    for made in (old, new, old, new):
        made.tune(PROBLEM, asked, CPU)
    old.close()
    new.close()
    with closing(open_store(database)) as store:
        found = store.records(HERE.id, PROBLEM)
    names = [[(a.name, a.version) for a in algorithms] for algorithms in (OLD, NEW)]
    assert [(r.algorithm, r.version) for r in found] == 2 * (names[0] + names[1])


def record(run: str) -> Record:
    return Record(PROBLEM.key, HERE.id, "native", 1, "", Status.OK, (2.0, 1.0), run=run, created=1.0, library="0.1.0")


SECOND = (
    "INSERT INTO runs (environment, problem, key, created, library) VALUES (1, 1, 'older', 1.0, '0.1.0')",
    """INSERT INTO records (run, position, candidate, status, samples_us, detail)
        VALUES ((SELECT max(id) FROM runs), 0, 1, 'ok', '[2.0, 1.0]', '')""",
)
FIRST = (
    f"""INSERT INTO records (environment, problem, algorithm, version, parameters, status, samples_us, detail, run,
        created, library) VALUES ('{HERE.id}', '{PROBLEM.key}', 'native', 1, '', 'ok', '[2.0, 1.0]', '', 'older',
        1.0, '0.1.0')""",
)


@pytest.mark.parametrize(("made", "statements"), [(first_schema, FIRST), (second_schema, SECOND)])
def test_an_older_library_that_has_the_file_open_while_it_is_converted_loses_and_damages_nothing(
    made: Callable[..., None], statements: tuple[str, ...], tmp_path: Path
) -> None:
    """It writes as its schema has it; where the tables are no longer those, its write fails and is undone."""
    file = tmp_path / "old.db"
    made(file, [record("first")], [PROBLEM.key], [HERE.id])

    def write(older: sqlite3.Connection) -> bool:
        older.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                older.execute(statement)
        except sqlite3.Error:
            older.execute("ROLLBACK")
            return False
        older.execute("COMMIT")
        return True

    with closing(sqlite3.connect(file, isolation_level=None)) as older:
        assert write(older)
        with closing(open_store(file)) as newer:
            newer.add(PROBLEM, [record("newer")])
            expected = ["first", "older", "newer"]
            assert write(older) is (made is second_schema)
            expected += ["older"] * (made is second_schema)
            newer.add(PROBLEM, [record("last")])
            assert [r.run for r in newer.records(HERE.id, PROBLEM)] == [*expected, "last"]
        assert older.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert older.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_device_is_known_to_each_version_by_its_own_first_run() -> None:
    new = NEW[:3]  # of the same names
    store = MemoryStore()
    store.qualify(Qualification(HERE.id, fingerprint(OLD), barred={"a": "wrong"}, created=1.0))
    store.qualify(Qualification(HERE.id, fingerprint(new), created=1.0))
    benches = Benches({"native": Run((6 * MS,)), "a": Run((3 * MS,)), "b": Run((9 * MS,)), "added": Run((9 * MS,))})
    asked = replaying.asked(Path("unused"))
    for algorithms, candidate in ((new, "a"), (OLD, "native")):
        made = Dispatcher(algorithms, stores=lambda _path, _only: store, bench=benches, clock=benches.clock)
        assert made.tune(PROBLEM, asked, CPU).candidate == candidate
