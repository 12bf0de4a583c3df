"""`autoconv report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from autoconv.cli._common import Command, json_option, settings
from autoconv.cli._selection import device_option, network_option, network_problems
from autoconv.report.progress import progress_of
from autoconv.report.words import printable


@click.command(cls=Command, epilog="Example: autoconv report report.html, or autoconv report h100.html --device H100")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.html")
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
    from autoconv.model.rule.python import plural
    from autoconv.open_stores import begun
    from autoconv.report.report import here, write
    from autoconv.store import Selection

    chosen = settings(databases[0] if databases else None)
    own = begun(chosen)
    selection = Selection(device, problems=network_problems(networks, databases or ([own] if own else [])))
    with progress_of(f"writing {out.name}") as tell:
        found = write(out, chosen, selection, None if databases else here(), databases, tell)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    counts = {"problem": found.problems, "environment": len(found.environments)}
    what = " of ".join(f"{count} {plural(word, count)}" for word, count in counts.items())
    click.echo(printable(f"{out}: {found.size / 1e6:.1f} MB, {what if found.problems else 'nothing measured yet'}"))
