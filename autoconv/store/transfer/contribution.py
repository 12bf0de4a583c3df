"""A contribution: measurements of built-in convolutions on one machine, to be given away, with nothing about its owner.

It is an export with less in it: of one environment, of the convolutions that are named, and of what is known of the
machine only what times depend on.
"""

from __future__ import annotations

import getpass
import io
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from autoconv import plain_file
from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.store.sqlite import open_store
from autoconv.store.transfer import entries
from autoconv.store.transfer.export import SQLITE_SUFFIXES, export
from autoconv.store.transfer.imports import import_file
from autoconv.store.transfer.scrub import scrub
from autoconv.store.transfer.selection import Selection

_TOLD = ("memory_bytes", "power", "driver", "cudnn")
"""Circumstances that leave; of the system its name and major version do as well."""


@dataclass(frozen=True)
class Contribution:
    """What is to be given away.

    Attributes:
        text: Every word of it: JSON lines, as `export` writes them.
        problems: How many convolutions it tells of.
        records: How many results.
        identity: What the times depend on: chip, GPU cores, macOS, MLX.
        circumstances: What else is told of the machine.
    """

    text: str
    problems: int
    records: int
    identity: Mapping[str, object]
    circumstances: Mapping[str, object]


def contribution(
    database: Path, environment: str, problems: Collection[Problem], names: Iterable[str] | None = None
) -> Contribution:
    """What a database tells of these convolutions in an environment, without names, hosts and paths.

    Args:
        database: The database's file, which is only read.
        environment: The environment's id.
        problems: The convolutions; nothing of others leaves.
        names: What must not stand in a message beside this machine's names. Default: the names of its user.

    Raises:
        StoreError: nothing of that was measured, or the database cannot be read.
    """
    hidden = tuple(sorted({*(user_names() if names is None else names)} - {""}, key=len, reverse=True))
    selection = Selection(environment=environment, problems=problems)
    if not _has_any(database, selection):
        msg = "nothing was measured yet: let it run for a minute or more"
        raise StoreError(msg)
    with tempfile.TemporaryDirectory(prefix="autoconv-") as folder:
        file = Path(folder) / "all.jsonl"
        export(database, file, selection=selection)
        found = [_cleaned(entry, hidden) for _, entry in entries.read_lines(file) if isinstance(entry, dict)]
    told = [entry for entry in found if entry["type"] != "autoconv"]
    records = [entry for entry in told if entry["type"] == "record"]
    where = next((entry for entry in told if entry["type"] == "environment"), None)
    if where is None:
        msg = f"{database} does not say what machine measured it"
        raise StoreError(msg)
    text = io.StringIO()
    entries.write_lines(told, text)
    timed = len({entry["problem"] for entry in records})
    return Contribution(text.getvalue(), timed, len(records), where["identity"], where["circumstances"])


def write(given: Contribution, out: Path, *, known: Collection[str], force: bool = False) -> None:
    """Write a contribution to a file, whole or not at all: JSON lines, or a database that holds the same.

    Args:
        given: The contribution.
        out: The file.
        known: Names of the algorithms that there are.
        force: Replace the file if it exists.

    Raises:
        StoreError: the file exists and may not be replaced, or cannot be written.
    """
    if out.exists() and not force:
        msg = f"{out} exists: name another file, or replace it by --force"
        raise StoreError(msg)
    if out.suffix.lower() not in SQLITE_SUFFIXES:
        with plain_file.refusing(out, StoreError):
            plain_file.write(out, given.text.encode())
        return
    with tempfile.TemporaryDirectory(prefix="autoconv-") as folder:
        lines, database = Path(folder) / "all.jsonl", Path(folder) / "all.db"
        lines.write_text(given.text, encoding="utf-8")
        import_file(database, lines, known=known)
        export(database, out, force=force)


def user_names() -> Iterator[str]:
    """What this user is called here: login, full name and its parts, the home folder."""
    with suppress(OSError, KeyError):  # there may be no such user, as in a container
        yield getpass.getuser()
    with suppress(RuntimeError):
        yield Path.home().name
    with suppress(ImportError, KeyError):
        import pwd

        full = pwd.getpwuid(os.getuid()).pw_gecos.split(",")[0]
        yield full
        yield from full.split()


def _has_any(database: Path, selection: Selection) -> bool:
    if not database.exists():
        return False
    with closing(open_store(database, readonly=True)) as store:
        return any(selection.takes_problem(problem.key) for problem in store.problems(selection.environment))


def _cleaned(entry: entries.Entry, hidden: tuple[str, ...]) -> entries.Entry:
    """An entry less what tells of the owner. Scrubbed once by the export, of paths and the machine's names."""
    match entry["type"]:
        case "environment":
            return entry | {"circumstances": _told(entry["circumstances"])}
        case "record":
            return entry | {"detail": scrub(entry["detail"], hidden)}
        case "qualification":
            return entry | {"barred": {name: scrub(why, hidden) for name, why in entry["barred"].items()}}
    return entry


def _told(circumstances: Mapping[str, object]) -> dict[str, object]:
    found = {name: circumstances[name] for name in _TOLD if name in circumstances}
    system = re.match(r"\w+ \d+", str(circumstances.get("os", "")))
    return found | ({"os": system[0]} if system else {})
