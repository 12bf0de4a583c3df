"""A plain file: what is none, and one that is written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


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


@contextmanager
def replacing(file: Path, mode: int = 0o666) -> Iterator[Path]:
    """A new empty file beside the one named: it takes that one's place when the block ends, or goes if it raises.

    Args:
        file: The file, which need not exist (see `written_at`).
        mode: Of the new one, less what the umask takes.

    Raises:
        OSError: it cannot be written.
    """
    target = written_at(file)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))  # not mkstemp, which has its own mode
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        for suffix in ("", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{temporary}{suffix}")
        raise


def write(file: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file, whole or not at all (see `replacing`).

    Raises:
        OSError: it cannot be written.
    """
    with replacing(file, mode) as temporary:
        temporary.write_bytes(data)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
