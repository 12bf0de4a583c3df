"""`autoconv report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoconv.cli._common import Command, OutFile, environment_here, json_option, settings
from autoconv.cli._selection import device_option, network_option, network_problems
from autoconv.report.progress import progress_of
from autoconv.words import counted, printable

if TYPE_CHECKING:
    from autoconv.report.report import Report

_SOURCES = {"own": " measured here", "imported": " imported", "shipped": " that came with the package", "file": ""}
"""What is said of problems, by the kind of their source."""


@click.command(cls=Command, epilog="Example: autoconv report report.html, or autoconv report h100.html --device H100")
@click.argument("out", type=OutFile(), metavar="OUT.html")
@click.option(
    "--database",
    "databases",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Show these files alone; may be given more than once. Default: the user's own database, and those that came "
    "with the package as far as they are of this device.",
)
@device_option
@network_option
@json_option
def report(out: Path, databases: Sequence[Path], device: str, networks: Sequence[str], as_json: bool) -> None:
    """Write one HTML page about what was measured: gains, winners, accuracy, memory, the cost model, every problem.

    It holds all it shows and asks no network for anything, so that it can be kept or sent. Decisions are those that
    calls would make.
    """
    from autoconv.report.report import write
    from autoconv.store import Selection

    chosen = settings(databases[0] if databases else None)
    problems = network_problems(networks, chosen, databases)
    selection = Selection(device, problems=problems, named=" and ".join(networks))
    with progress_of(f"writing {out.name}") as tell:
        found = write(out, chosen, selection, None if databases else environment_here(), databases, tell)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    click.echo(printable(f"{out}: {found.size / 1e6:.1f} MB, {_what(found)}"))


def _what(found: Report) -> str:
    """How many problems the page shows, by where they come from, and of how many environments."""
    if not found.problems:
        return "nothing measured yet"
    where = counted(len(found.environments), "environment")
    counts = [(found.sources.get(kind, 0), words) for kind, words in _SOURCES.items()]
    (first, words), *rest = [(count, words) for count, words in counts if count]
    parts = [f"{counted(first, 'problem')}{words}", *(f"{count}{words}" for count, words in rest)]
    return f"{', '.join(parts)}, of {where}" if words else f"{parts[0]} of {where}"
