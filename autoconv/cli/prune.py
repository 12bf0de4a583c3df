"""`autoconv prune`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv.cli import _common
from autoconv.cli._common import Command, database_option, environment_here, json_option, settings
from autoconv.cli._values import Duration, Size
from autoconv.interrupt import INTERRUPTED
from autoconv.report.progress import progress_of
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.store import SqliteStore
    from autoconv.store.pruning import Plan, Wish

_READING, _REMOVING = 0.45, 0.9
"""How much of the time has passed when the plan is made, and when all is removed."""


@click.command(cls=Command, epilog="Example: autoconv prune, or autoconv prune --older-than 180d --size 100MB")
@click.option(
    "--other-environments",
    is_flag=True,
    help="Also all that is known of other environments than this machine's now: other versions of MLX and macOS, other "
    "devices.",
)
@click.option("--older-than", type=Duration(), help="Also shapes not measured for so long, such as 180d.")
@click.option(
    "--keep-runs",
    type=click.IntRange(min=1),
    help="Also all but so many of the latest runs over each shape, of those with the same candidates.",
)
@click.option(
    "--size",
    type=Size(),
    help="Also as many shapes as it takes for the file to be no larger, such as 100MB: those of other environments "
    "first, and then those measured longest ago.",
)
@click.option("--pending", is_flag=True, help="Also the shapes that were noted for autoconv sweep --pending.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Drop measurements without asking, as in a script.")
@database_option
@json_option
def prune(
    other_environments: bool,
    older_than: float | None,
    keep_runs: int | None,
    size: int | None,
    pending: bool,
    dry_run: bool,
    yes: bool,
    database: Path | None,
    as_json: bool,
) -> None:
    """Make the database smaller: drop what decides nothing any more, and give its room back to the disk.

    That is what older versions of algorithms did, and what is there twice; no decision changes by it. Measurements that
    may decide go only by the options, each of which adds to the others, and after a question. What is known to be wrong
    or to have ended a process stays for its environment. All goes or nothing does, and a Ctrl-C leaves the file whole.
    """
    from autoconv.store.pruning import Wish

    path = _own(database)
    wish = Wish(
        here=environment_here().id if other_environments or size is not None else "",
        others=other_environments,
        keep_runs=keep_runs,
        before=time.time() - older_than if older_than is not None else -float("inf"),
        most_bytes=size,
        pending=pending,
    )
    try:
        _prune(path, wish, dry_run=dry_run, yes=yes, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("autoconv: interrupted; the same command goes on from there", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@dataclass(frozen=True)
class _Done:
    """What was done, or in a dry run what would be.

    Attributes:
        before: Bytes of the file before.
        after: Bytes of it after; in a dry run about.
        waits: Whether the file shrinks only once others have done reading it.
    """

    before: int
    after: int
    waits: bool = False


def _prune(path: Path, wish: Wish, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from autoconv.store import SqliteStore

    before = _size(path)
    with (
        closing(SqliteStore(path, readonly=dry_run)) as store,
        progress_of(f"pruning {path.name}") as tell,
    ):
        plan, names = _planned(store, wish, tell)
    if wish.most_bytes is not None and plan.bytes_left > wish.most_bytes:
        least = f"what must stay takes about {plan.bytes_left / 1e6:.2f} MB"
        msg = f"{path} cannot be as small as {wish.most_bytes / 1e6:.2f} MB: {least}; nothing was dropped"
        raise click.ClickException(printable(msg))
    if dry_run:
        _print(path, plan, names, _Done(before, plan.bytes_left), as_json=as_json, dry=True)
        return
    if plan.deciding or plan.environments:
        _ask(path, plan, names, yes=yes, as_json=as_json)
    with closing(SqliteStore(path)) as store, progress_of(f"pruning {path.name}") as tell:
        waits = _do(store, plan, tell)
    _print(path, plan, names, _Done(before, _size(path), waits), as_json=as_json, dry=False)


def _planned(store: SqliteStore, wish: Wish, tell: Callable[[float], None]) -> tuple[Plan, Mapping[str, str]]:
    """What is to go, and what the environments of the store are called."""
    from autoconv.algorithms import algorithms
    from autoconv.store.pruning import plan

    versions = {algorithm.name: algorithm.version for algorithm in algorithms()}
    found = plan(store, wish, versions, store.used_bytes(), lambda part: tell(_READING * part))
    names = {
        key: ", ".join(f"{k} {v}" for k, v in identity.items() if k in {"device", "mlx", "macos"})
        for key, (identity, _) in store.environments().items()
    }
    return found, names


def _do(store: SqliteStore, plan: Plan, tell: Callable[[float], None]) -> bool:
    """Remove what is to go, and make the file smaller; whether that waits for others."""
    from autoconv.errors import StoreError

    tell(_READING)
    store.prune(
        plan.gone,
        plan.environments,
        pending=plan.pending,
        tell=lambda part: tell(_READING + (_REMOVING - _READING) * part),
    )
    try:
        waits = not store.compact()
    except StoreError as error:
        msg = f"what was to go is gone, but the file is as large as before until this is run once more: {error}"
        raise StoreError(msg) from error
    tell(1.0)
    return waits


def _own(database: Path | None) -> Path:
    """The database to be pruned, which must be there and be the user's."""
    from autoconv.store import is_begun, located
    from autoconv.store.shipped import shipped_files

    path = located(settings(database).database)
    if not is_begun(path):
        msg = f"{path} is not begun yet, so nothing is to be pruned"
        raise click.ClickException(printable(msg))
    if any(path.samefile(shipped) for shipped in shipped_files()):
        msg = f"{path} came with the package and is never pruned: name a database of your own"
        raise click.ClickException(printable(msg))
    return path


def _ask(path: Path, plan: Plan, names: Mapping[str, str], *, yes: bool, as_json: bool) -> None:
    """Ask before measurements go that may decide."""
    if yes:
        return
    if as_json or not _common.can_ask():
        msg = "measurements would go: --yes drops them unasked, --dry-run says how many"
        raise click.ClickException(msg)
    for line in _lines(plan, names):
        click.echo(printable(line))
    if not click.confirm(f"Drop them from {printable(str(path))}?", default=False):
        click.echo("autoconv: nothing is dropped", err=True)
        raise click.exceptions.Exit(1)


def _print(path: Path, plan: Plan, names: Mapping[str, str], done: _Done, *, as_json: bool, dry: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_dict(path, plan, done, dry=dry), indent=2, allow_nan=False))
        return
    for line in _lines(plan, names):
        click.echo(printable(line))
    sizes = f"{done.before / 1e6:.2f} MB before, {'about ' if dry else ''}{done.after / 1e6:.2f} MB after"
    more = "; nothing is changed" if dry else ""
    more += "; its room is free once others have done reading it" if done.waits else ""
    click.echo(printable(f"{path}: {sizes}{more}"))


def _lines(plan: Plan, names: Mapping[str, str]) -> list[str]:
    """What goes, in a line each."""
    kept = plan.records - plan.idle - plan.deciding
    lines = [
        f"results that decide nothing: {plan.idle} of {plan.records}",
        f"measurements that may decide: {plan.deciding} of {plan.records}; {kept} results stay",
    ]
    for key, count in plan.environments.items():
        lines.append(f"environment {key} ({names.get(key) or 'unknown'}): all its {count} results")
    if plan.noted:
        lines.append(f"pending shapes: {plan.noted}")
    return lines


def _as_dict(path: Path, plan: Plan, done: _Done, *, dry: bool) -> dict[str, Any]:
    return {
        "database": str(path),
        "dry_run": dry,
        "records": plan.records,
        "deciding_nothing": plan.idle,
        "measurements": plan.deciding,
        "environments": dict(plan.environments),
        "pending": plan.noted,
        "bytes_before": done.before,
        "bytes_after": done.after,
    }


def _size(path: Path) -> int:
    """Bytes of a database and of what waits beside it to be written to it."""
    size = path.stat().st_size
    with suppress(FileNotFoundError):  # who closes it last takes it away
        size += Path(f"{path}-wal").stat().st_size
    return size
