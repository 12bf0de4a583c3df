"""A kill at any statement of SQL costs at most the call that was under way, and the next process goes on."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from old_schemas import first_schema, second_schema

from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id
from autoconv.store import (
    ModelRecord,
    Qualification,
    SqliteStore,
    Store,
    connection,
    export,
    import_file,
    open_store,
)
from autoconv.store.transfer import imports

FIRST, SECOND = (Problem.parse((1, 4, 8, 8, c), (16, 3, 3, 3, c), padding=1) for c in (1, 2))
IDENTITY: dict[str, object] = {"backend": "cpu", "device": "a device", "mlx": "1.2.3"}
HERE = environment_id(IDENTITY)
KNOWN = ("native", "kd_decomposition", "im2col")
MOST = 400
"""More statements than anything here takes."""


def run_of(problem: Problem, run: str, here: str = HERE) -> list[Record]:
    """What a run of the tuner leaves."""
    return [
        Record(problem.key, here, name, 1, "", Status.OK, (2.0, 1.0), 1e-7, 0, run=run, created=1.0) for name in KNOWN
    ]


STEPS: tuple[Callable[[Store], None], ...] = (
    lambda store: store.add_environment(HERE, IDENTITY, {"os": "an OS"}),
    lambda store: store.qualify(Qualification(HERE, "all", frozenset({("native", "float32")}), created=1.0)),
    lambda store: store.note(HERE, FIRST),
    lambda store: store.note(HERE, SECOND),
    lambda store: store.begin(HERE, FIRST, "native"),
    lambda store: store.end(HERE, FIRST, "native"),
    lambda store: store.begin(HERE, FIRST, "im2col"),
    lambda store: store.add(FIRST, run_of(FIRST, "one")),
    lambda store: store.add(FIRST, run_of(FIRST, "two")),
    lambda store: store.trust_model(ModelRecord("cpu", "cpu.npz", "ab", HERE, 1, 1.0)),
    lambda store: store.forget(HERE, [SECOND]),
)


def state(file: Path) -> dict[str, Any]:
    """All that a database tells."""
    with closing(open_store(file)) as store:
        return {
            "environments": store.environments(),
            "records": {p.key: store.records(HERE, p) for p in (FIRST, SECOND)},
            "pending": store.pending(HERE),
            "notes": {p.key: store.unended(HERE, p) for p in (FIRST, SECOND)},
            "qualifications": store.qualifications(),
            "models": store.trusted_models(),
        }


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as opened:
        whole = opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return whole and opened.execute("PRAGMA foreign_key_check").fetchall() == []


def killed(work: Callable[[], object], number: int) -> bool:
    """Whether a process that does the work comes to its statement of that number, before which it is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks amid threads
        child = os.fork()
    if child == 0:
        try:
            _kill_at(number)
            work()
        except BaseException:  # noqa: BLE001 - the child must end here whatever happens
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _kill_at(number: int) -> None:
    """Kill this process before its statement of that number runs, when the one before has."""
    left, connect = number, sqlite3.connect

    def count(_statement: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened: sqlite3.Connection = connect(*arguments, **options)
        opened.set_trace_callback(count)
        return opened

    sqlite3.connect = counted  # type: ignore[assignment]  # in this child alone


def kills(folder: Path, work: Callable[[Path], object], base: Path | None = None) -> Iterator[Path]:
    """A database for each statement of the work, which was killed before it; at last one for work that came through."""
    for number in range(1, MOST):
        file = folder / f"{number}.db"
        if base is not None:
            shutil.copy(base, file)
        if not killed(lambda file=file: work(file), number):  # type: ignore[misc]
            assert number > 5
            yield file
            return
        yield file
    pytest.fail("it takes more statements than that")


def returned(file: Path) -> int:
    """How many steps returned."""
    beside = file.with_suffix(".returned")
    return beside.stat().st_size if beside.exists() else 0


def all_steps(file: Path) -> None:
    beside = os.open(file.with_suffix(".returned"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with closing(open_store(file)) as store:
        for step in STEPS:
            step(store)
            os.write(beside, b".")


def test_every_write_is_there_in_full_or_not_at_all_and_none_that_returned_is_lost(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    open_store(whole).close()
    states = [state(whole)]
    for step in STEPS:
        with closing(open_store(whole)) as store:
            step(store)
        states.append(state(whole))
    assert all(before != after for before, after in itertools.pairwise(states))
    file = whole
    for file in kills(tmp_path, all_steps):
        if not file.exists():  # killed before there was anything
            continue
        assert is_sound(file)
        assert state(file) in states[returned(file) :][:2]
        with closing(open_store(file)) as store:
            before = store.records(HERE, SECOND)
            store.add(SECOND, run_of(SECOND, "next"))
            assert store.records(HERE, SECOND) == before + run_of(SECOND, "next")
    assert returned(file) == len(STEPS)


@pytest.mark.parametrize("made", [first_schema, second_schema])
def test_a_database_of_an_older_schema_is_converted_in_full_or_is_as_it_was(
    made: Callable[..., None], tmp_path: Path
) -> None:
    records = [*run_of(FIRST, "one"), *run_of(SECOND, "two"), *run_of(FIRST, "three")]
    old = tmp_path / "old.db"
    made(old, records, [FIRST.key, SECOND.key], [HERE])
    numbers = set()
    for file in kills(tmp_path, lambda file: open_store(file).close(), old):
        assert is_sound(file)
        with closing(sqlite3.connect(file)) as opened:
            numbers.add(opened.execute("PRAGMA user_version").fetchone()[0])
        assert state(file)["records"] == {
            problem.key: [r for r in records if r.problem == problem.key] for problem in (FIRST, SECOND)
        }
    assert numbers == {1 if made is first_schema else 2, connection.SCHEMA}


def test_an_import_that_is_begun_again_has_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "BATCH", 4)
    with closing(open_store(tmp_path / "theirs.db")) as theirs:
        for step in STEPS:
            step(theirs)
    open_store(tmp_path / "empty.db").close()
    file = tmp_path / "theirs.jsonl"
    export(tmp_path / "theirs.db", file)

    def again(database: Path) -> int:
        return import_file(database, file, known=KNOWN).added

    own = tmp_path / "own.db"
    assert again(own) == 2 * len(KNOWN)
    expected = state(own)
    added = []
    for database in kills(tmp_path, again, tmp_path / "empty.db"):
        assert is_sound(database)
        added.append(again(database))
        assert state(database) == expected
    assert added[0] == 2 * len(KNOWN)
    assert added[-1] == 0
    assert len(set(added)) > 2  # some were killed amid it


def test_a_prune_is_done_in_full_or_not_at_all_and_the_next_one_finishes_it(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    with closing(open_store(whole)) as store:
        for step in STEPS:
            step(store)
        store.add(SECOND, run_of(SECOND, "three"))
        store.note("elsewhere", SECOND)
        store.begin("elsewhere", FIRST, "im2col")
        store.qualify(Qualification("elsewhere", "all"))
        for number in range(40):  # so that there is something to give back
            store.add(FIRST, run_of(FIRST, f"another {number}", "elsewhere"))

    def prune(file: Path) -> None:
        with closing(SqliteStore(file)) as store:
            store.prune(lambda _, records: [p for p, r in enumerate(records) if r.run == "one"], ["elsewhere"])
            store.compact()

    shutil.copy(whole, tmp_path / "pruned.db")
    prune(tmp_path / "pruned.db")
    states, size = (state(whole), state(tmp_path / "pruned.db")), (tmp_path / "pruned.db").stat().st_size
    assert states[0] != states[1]
    assert size < whole.stat().st_size
    found = []
    for file in kills(tmp_path, prune, whole):
        assert is_sound(file)
        now = state(file)
        assert now in states
        found.append((now == states[1], file.stat().st_size == size))
        prune(file)
        assert is_sound(file)
        assert state(file) == states[1]
        assert file.stat().st_size == size
    assert set(found) == {(False, False), (True, False), (True, True)}  # before, amid and after what shrinks it
    assert found == sorted(found)
