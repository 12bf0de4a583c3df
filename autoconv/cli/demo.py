"""`autoconv demo`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from autoconv.cli._common import Command, environment_here, json_option
from autoconv.interrupt import heard
from autoconv.report.progress import progress


@click.command(cls=Command, epilog="Example: autoconv demo")
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is measured in this file. Default: a new one, removed at the end.",
)
@json_option
def demo(database: Path | None, as_json: bool) -> None:
    """Tune real layers that this machine can afford, then use them in a second process that times nothing."""
    with tempfile.TemporaryDirectory(prefix="autoconv-demo-") as folder:
        _demo(database or Path(folder) / "demo.db", as_json)


def _demo(database: Path, as_json: bool) -> None:
    from autoconv.report import tables
    from autoconv.report.console import console
    from autoconv.sweep import demo as demos
    from autoconv.sweep import demo_layers
    from autoconv.sweep.runner import stopping

    out, total = console(), len(demo_layers())
    if not as_json:
        device = environment_here()
        out.print(f"Real layers on {device}; a crop is a smaller frame, its channels are the network's own.\n")
    with stopping() as stop, progress(total, "tuning") as bar:
        outcomes = demos.first_run(database, stop=stop, tell=lambda o: bar.advance(o.layer.network))
    if len(outcomes) < total:
        raise click.exceptions.Exit(heard())
    second = demos.second_run(database)
    winners = {o.layer.problem.key: o.decision.candidate for o in outcomes if o.decision}
    same = sum(second.winners.get(key) == candidate for key, candidate in winners.items())
    timed = second.statistics["measured"]
    if as_json:
        click.echo(json.dumps(tables.outcomes_dict(outcomes) | {"second": vars(second)}, indent=2))
    else:
        tables.print_outcomes(out, outcomes)
        out.print(
            f"\nA second process over the same database: {second.outputs} convolutions run, {timed} timed, "
            f"{same} of {len(winners)} winners the same."
        )
    if timed or same < len(winners) or second.outputs < total or len(winners) < total:
        msg = "the second process did not do what the first one found"
        raise click.ClickException(msg)
