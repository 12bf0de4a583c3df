"""A file that a command writes: whole, where a link leads, and in place of nothing but a file."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from command import run

from autoconv import environment, plain_file
from autoconv._backend import mx
from autoconv.cli._common import check_out
from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import import_file, open_store
from autoconv.store.health import health

PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database that has one record of this device."""
    where, path = environment.of(mx.default_device()), tmp_path / "measured.db"
    store = open_store(path)
    store.add_environment(where.id, dict(where.identity), {})
    store.add(PROBLEM, [Record(PROBLEM.key, where.id, "native", 1, "", Status.OK, (1.0,) * 6, 1e-7, run="r")])
    store.close()
    return path


WRITERS = {"report": (["report"], "out.html"), "export": (["export", "--force"], "out.jsonl")}
"""Commands that write a file, with a name for it."""

each_writer = pytest.mark.parametrize("writer", WRITERS)


def written(writer: str, database: Path, out: Path | str) -> tuple[int, str]:
    """The exit code of a command that writes there, and what it says on stderr."""
    done = run(*WRITERS[writer][0], out, "--database", database)
    return done.exit_code, done.stderr


@each_writer
def test_a_link_stays_and_what_it_leads_to_is_written(database: Path, tmp_path: Path, writer: str) -> None:
    link = tmp_path / "links" / WRITERS[writer][1]
    target = tmp_path / "files" / "target"
    link.parent.mkdir()
    target.parent.mkdir()
    link.symlink_to(Path("..") / "files" / "target")
    for _ in range(2):  # at first it leads to nothing
        assert written(writer, database, link) == (0, "")
        assert link.is_symlink()
        assert target.stat().st_size > 0
        target.write_text("")
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert [path.name for path in link.parent.iterdir()] == [link.name]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/null")


OTHERS = {"a pipe": make_fifo, "a socket": make_socket, "a device": make_device}
each_other = pytest.mark.parametrize(("kind", "make"), OTHERS.items(), ids=OTHERS)


@each_writer
@each_other
def test_what_is_no_file_is_refused_in_a_line_and_stays(
    database: Path, tmp_path: Path, writer: str, kind: str, make: Callable[[Path], None]
) -> None:
    out = tmp_path / WRITERS[writer][1]
    make(out)
    before = os.lstat(out)
    code, said = written(writer, database, out)
    assert code == 1
    assert said.startswith(f"Error: cannot write {out}: it is {kind}")
    assert len(said.splitlines()) == 1
    assert (os.lstat(out).st_ino, stat.S_IFMT(os.lstat(out).st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))


def test_a_pipe_behind_a_link_as_of_the_standard_streams_is_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    link = tmp_path / "stdout"
    try:
        link.symlink_to(f"/proc/self/fd/{writing}" if Path("/proc/self/fd").exists() else f"/dev/fd/{writing}")
        with pytest.raises(OSError, match="it is a pipe"):
            plain_file.written_at(link)
    finally:
        os.close(reading)
        os.close(writing)
    assert link.is_symlink()


@each_other
def test_neither_cards_nor_rules_nor_models_replace_what_is_no_file(
    tmp_path: Path, kind: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=f"it is {kind}"):
        plain_file.write(tmp_path / "file", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["report", "export", "contribute", "train -o"])
def test_a_dash_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*command.split(), "-")
    assert done.exit_code == 2
    assert "name one" in done.stderr.splitlines()[-1]
    assert not Path("-").exists()


@each_writer
def test_a_folder_that_is_not_there_is_named_with_what_to_do(database: Path, tmp_path: Path, writer: str) -> None:
    out = tmp_path / "new" / "folder" / WRITERS[writer][1]
    code, said = written(writer, database, out)
    assert code == 1
    assert f"cannot write {out}: there is no folder {out.parent}: make it, or name a file elsewhere" in said
    assert not out.parent.parent.exists()


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """It is the folder of what a link leads to that counts, not the link's own."""
    closed, opened = tmp_path / "closed", tmp_path / "opened"
    closed.mkdir()
    opened.mkdir()
    may = os.access  # which grants root everything
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and may(path, mode))
    if link:
        (opened / "out").symlink_to(closed / "out")
        (closed / "link").symlink_to(opened / "file")
        check_out(closed / "link")
    with pytest.raises(click.ClickException, match=f"cannot write .*: {closed} is not yours to write in"):
        check_out((opened if link else closed) / "out")


# Modes


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask for the time of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027])
def test_a_file_is_for_the_user_alone_until_it_is_in_its_place(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    with plain_file.replacing(tmp_path / "file") as temporary:
        assert modes(tmp_path) == {0o600}
        temporary.write_text("text")
        assert modes(tmp_path) == {0o600}
    assert modes(tmp_path) == {0o666 & ~mask}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@each_writer
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_keeps_the_mode_of_the_one_that_it_replaces(
    database: Path, tmp_path: Path, umask: Callable[[int], int], writer: str, mode: int
) -> None:
    umask(0o022)
    out = tmp_path / "folder" / WRITERS[writer][1]
    out.parent.mkdir()
    out.touch()
    out.chmod(mode)
    assert written(writer, database, out) == (0, "")
    assert out.stat().st_size > 0
    assert modes(out.parent) == {mode}


def test_a_private_file_is_for_the_user_alone_whatever_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for _ in range(2):  # at first nothing is there
        plain_file.write(file, b"text", private=True)
        assert modes(tmp_path) == {0o600}
        file.chmod(0o644)


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_file_that_has_the_temporary_s_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "taken")
    if there:
        (tmp_path / "file").write_text("before")
    (tmp_path / ".file.taken").write_text("precious")
    with pytest.raises(FileExistsError):
        plain_file.write(tmp_path / "file", b"text")
    assert (tmp_path / ".file.taken").read_text() == "precious"
    assert not there or (tmp_path / "file").read_text() == "before"


# Databases


@pytest.fixture
def waiting() -> Iterator[Callable[[Path], None]]:
    """Ends a test's wait for the other end of a pipe after some seconds, so that it fails rather than hangs."""
    done = threading.Event()

    def watch(pipe: Path) -> None:
        def end() -> None:
            left = 5.0
            while not done.wait(left):
                os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
                left = 0.1

        threading.Thread(target=end, daemon=True).start()

    yield watch
    done.set()


@each_other
def test_a_database_that_is_no_file_is_refused_at_once(
    tmp_path: Path, kind: str, make: Callable[[Path], None], waiting: Callable[[Path], None]
) -> None:
    path = tmp_path / "own.db"
    make(path)
    if kind == "a pipe":
        waiting(path)
    for ask in (
        lambda: open_store(path, readonly=True),
        lambda: open_store(path),
        lambda: open_store(path, readonly=True, immutable=True),
        lambda: health(path),
        lambda: import_file(tmp_path / "into.db", path, known={"native"}),
    ):
        with pytest.raises(StoreError, match=f"cannot .* {path}: it is {kind}: name another file"):
            ask()
    assert not (tmp_path / "into.db").exists()
