"""`autoconv export` and `autoconv import`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv.cli._common import Command, OutFile, database_option, json_option, settings
from autoconv.cli._selection import device_option, network_option, network_problems
from autoconv.cli.rule import export_rule
from autoconv.report.progress import progress_of
from autoconv.words import counted, printable

if TYPE_CHECKING:
    from autoconv.store import Selection


@click.command(
    cls=Command,
    epilog="Example: autoconv export m3-max.db --device 'M3 Max' --network wan21, or autoconv export --rule rule.py",
)
@click.argument("out", type=OutFile(), metavar="FILE.{db,sqlite,jsonl,csv,py}")
@device_option
@click.option("--environment", default="", help="Only measurements of the environment whose id begins so.")
@network_option
@click.option("--card", is_flag=True, help="Write FILE.md beside a database: what it holds, and what it is worth.")
@click.option(
    "--datasette",
    is_flag=True,
    help="Write a database that is quick to look through in Datasette, and FILE.metadata.json beside it, which names "
    "and explains its views.",
)
@click.option(
    "--rule",
    is_flag=True,
    help="Write a rule that people can read instead: a tree of at most 12 leaves as FILE.py, from your measurements "
    "and those that came with the package, or from the --database named. For Metal, where 300 problems were measured "
    "on 3 chips, also what MLX would need of it: FILE.cpp, FILE.md and FILE_bench.py.",
)
@click.option(
    "--backend",
    type=click.Choice(["metal", "cuda", "cpu"]),
    help="Whose rule. Default: that of this machine.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@database_option
def export(
    out: Path,
    device: str,
    environment: str,
    networks: Sequence[str],
    card: bool,
    datasette: bool,
    rule: bool,
    backend: str | None,
    force: bool,
    database: Path | None,
) -> None:
    """Write measurements to one file for others: a database, JSON lines or a table, as its suffix says.

    No host name, path or pid leaves with them. --device, --environment and --network each leave some out. With --rule
    it is what they teach that is written.
    """
    from autoconv.errors import StoreError
    from autoconv.report import card as cards
    from autoconv.store import Selection
    from autoconv.store import export as write
    from autoconv.store.transfer.export import SQLITE_SUFFIXES

    if backend and not rule:
        msg = "--backend goes with --rule"
        raise click.UsageError(msg)
    beside = "--card" if card else "--datasette" if datasette else ""
    if rule and beside:
        msg = f"{beside} goes with a database, not with --rule"
        raise click.UsageError(msg)
    if beside and out.suffix.lower() not in SQLITE_SUFFIXES:
        msg = f"{beside} goes with a database: name a file with suffix {' or '.join(SQLITE_SUFFIXES)}"
        raise click.UsageError(msg)
    problems = network_problems(networks, settings(database))
    selection = Selection(device, environment, problems, " and ".join(networks))
    if rule:
        export_rule(out, selection, backend, database, force)
        return
    source = _database(database)
    try:
        with progress_of("exporting") as tell:
            exported = write(source, out, selection=selection, force=force, browsable=datasette, tell=tell)
    except StoreError as error:
        came = _came_with_the_package(selection) if database is None and device else None
        if came is None:
            raise
        msg = f"{error}; that came with the package: --database {shlex.quote(str(came))}"
        raise click.ClickException(printable(msg)) from error
    what = f"{counted(exported.records, 'record')} of {counted(exported.environments, 'environment')}"
    click.echo(printable(f"{out}: {what}"))
    if card:
        click.echo(f"{cards.write(out)}: its card")
    if datasette:
        from autoconv.report import metadata

        click.echo(f"datasette {out} --metadata {metadata.write(out)}")


@click.command("import", cls=Command, epilog="Example: autoconv import m3-max.db m2.jsonl")
@click.argument("files", type=click.Path(path_type=Path), metavar="FILE ...", nargs=-1, required=True)
@database_option
@json_option
def import_(files: Sequence[Path], database: Path | None, as_json: bool) -> None:
    """Add the measurements of exported FILEs to the database; what is there already is not added again.

    Every row is checked, and nothing in a file is executed. Exit code 1 where a row was refused or a file could not be
    read to its end; all other rows are added.
    """
    from autoconv.algorithms import algorithms
    from autoconv.errors import AutoconvError
    from autoconv.store import import_file

    known, target = {algorithm.name for algorithm in algorithms()}, _database(database)
    reports: list[dict[str, Any]] = []
    for file in files:
        try:
            with progress_of(file.name) as tell:
                reports.append(_report(file, import_file(target, file, known=known, tell=tell)))
        except (AutoconvError, ValueError) as error:
            reports.append({"file": str(file), "error": " ".join(str(error).split())})
    if as_json:
        click.echo(json.dumps(reports, indent=2, allow_nan=False))
    else:
        for report in reports:
            _print(report)
    if any(report.get("error") or report["rejected"] for report in reports):
        raise click.exceptions.Exit(1)


def _came_with_the_package(selection: Selection) -> Path | None:
    """The database of those that came with the package that has a device of this selection."""
    from autoconv.store import open_store
    from autoconv.store.shipped import shipped_files

    for path in shipped_files():
        with closing(open_store(path, readonly=True, immutable=True)) as store:
            if any(selection.takes_environment(key, identity) for key, (identity, _) in store.environments().items()):
                return path
    return None


def _database(database: Path | None) -> Path:
    from autoconv.store import located

    return located(settings(database).database)


def _report(file: Path, imported: Any) -> dict[str, Any]:
    rejected = {reason: vars(row) for reason, row in imported.rejected.items()}
    fields = ("added", "known", "problems", "environments", "qualifications")
    return {
        "file": str(file),
        **{name: getattr(imported, name) for name in fields},
        "rejected": rejected,
        "error": " ".join(imported.broken.split()),
    }


def _print(report: dict[str, Any]) -> None:
    file = printable(report["file"])
    if "added" in report:
        more = f"{counted(report['environments'], 'new environment')}, {counted(report['problems'], 'new problem')}"
        click.echo(f"{file}: {counted(report['added'], 'record')} added, {report['known']} known already; {more}")
        for reason, row in report["rejected"].items():
            click.echo(f"{file}: {counted(row['count'], 'row')} refused: {reason}, first {row['example']}", err=True)
    if report["error"]:
        click.echo(f"Error: {printable(report['error'])}", err=True)
