"""A plain file: what is none, and one that is written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))

_ALONE = 0o600
"""Mode of what is for the user alone."""

_PERMISSIONS = 0o777


def other_kind(file: Path) -> str:
    """What is there in place of a plain file, links followed: `a pipe`; empty where it is one, or nothing is there.

    Who opens a pipe waits for its other end, and a device has no end.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    return next((words for is_it, words in _KINDS if is_it(mode)), "a device")


def written_at(file: Path) -> Path:
    """Where a file of that name is to be written: a link stays, and what it leads to is written.

    Raises:
        OSError: something else than a plain file is there, or there is no folder for it; its text says what to do.
    """
    if kind := other_kind(file):
        raise OSError(errno.EINVAL, f"it is {kind}, no file that can be replaced: name another")
    real = Path(os.path.realpath(file))
    if not real.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {real.parent}: make it, or name a file elsewhere")
    return real


def unwritten(file: Path, error: OSError) -> str:
    """That a file cannot be written, and why, in a sentence."""
    return f"cannot write {file}: {error.strerror or error}"


@contextmanager
def refusing(file: Path, kind: Callable[[str], Exception]) -> Iterator[None]:
    """A block that writes a file: whatever of the system's keeps it from that is raised as an error of this kind."""
    try:
        yield
    except OSError as error:
        raise kind(unwritten(file, error)) from error


@contextmanager
def replacing(file: Path, *, private: bool = False) -> Iterator[Path]:
    """A new empty file beside the one named: it takes that one's place when the block ends, or goes if it raises.

    Until then it is for the user alone, whatever of it is to be taken out yet, and so it stays where a kill leaves it.
    Then it has the mode of the file that it replaces, or of any new file where there is none.

    Args:
        file: The file, which need not exist (see `written_at`).
        private: Whether it stays for the user alone, whatever is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = written_at(file)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    mode = _ALONE if private else _mode_at(target, temporary)
    _create(temporary, _ALONE)
    try:
        yield temporary
        _finish(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        for suffix in ("", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{temporary}{suffix}")
        raise


def write(file: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file, whole or not at all (see `replacing`).

    Raises:
        OSError: it cannot be written.
    """
    with replacing(file, private=private) as temporary:
        temporary.write_bytes(data)


def _create(file: Path, mode: int) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


def _mode_at(target: Path, probe: Path) -> int:
    """The mode of a file, or where there is none the one that it would be made with there.

    That is found out with an empty file, as a process's umask is read only by changing it, for all its threads.
    """
    try:
        return os.stat(target).st_mode & _PERMISSIONS
    except FileNotFoundError:
        pass
    _create(probe, 0o666)
    try:
        return os.stat(probe).st_mode & _PERMISSIONS
    finally:
        os.unlink(probe)


def _finish(file: Path, mode: int) -> None:
    """Give a file its mode, and see it to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_mode & _PERMISSIONS != mode:  # some file systems have none, and refuse any
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
