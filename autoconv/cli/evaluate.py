"""`autoconv evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv.cli._common import Command, database_option, environment_here, json_option, settings
from autoconv.report.progress import progress
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.model.cost_model import CostModel


@click.command(cls=Command, epilog="Example: autoconv evaluate, or autoconv evaluate my_layers.csv --model cuda.npz")
@click.argument("names", nargs=-1, metavar="[DATABASE|WORKLOAD ...]")
@click.option(
    "--model",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The model. Default: the one that applies on this device.",
)
@database_option
@json_option
def evaluate(names: Sequence[str], file: Path | None, database: Path | None, as_json: bool) -> None:
    """Make a cost model's card again, or judge the model on what it did not learn from.

    Without a name the card is made again from the databases that the model names, yours or those that came with the
    package, and compared: exit code 1 where it differs. With DATABASEs or WORKLOADs, CSV files or names of packaged
    ones, the model is judged on the measured problems in them whose shapes it did not learn from.
    """
    chosen = settings(database)
    model = _model(file, chosen)
    from autoconv.model import learning

    beside = sorted(file.absolute().parent.glob("*.db")) if file is not None else []
    there = [*learning.default_databases(chosen), *beside]
    if names:
        _judge(model, names, there, as_json)
    else:
        _again(model, there, as_json)


def _model(file: Path | None, chosen: Any) -> CostModel:
    """The model of a file, or the one that applies here."""
    from autoconv.model import shelf

    if file is not None:
        return shelf.load(file)
    from autoconv.model.advisers import ceilings_of, model_for

    where = environment_here()
    found, why = model_for(where, ceilings_of(where, chosen), chosen)
    if found is None:
        msg = f"no cost model applies here ({why}): name one by --model, or run autoconv train"
        raise click.ClickException(printable(msg))
    return found


def _again(model: CostModel, databases: Sequence[Path], as_json: bool) -> None:
    from autoconv.model import evaluation
    from autoconv.report import judgements
    from autoconv.report.console import console

    with progress(None, f"judging {model.name} anew") as bar:
        card = evaluation.again(model, databases, bar.advance)
    found = evaluation.differences(model, card)
    if as_json:
        click.echo(
            json.dumps(
                {"model": model.name, "reproduced": not found, "differences": found, "card": card.as_dict()}, indent=2
            )
        )
    else:
        console().print(judgements.of_card(card.judgements))
        if not found:
            click.echo(printable(f"{model.name}: its card is reproduced"))
    if found:
        click.echo(
            printable(f"Error: {model.name} carries another card: {'; '.join(found)}{_versions(model)}"), err=True
        )
        raise click.exceptions.Exit(1)


def _versions(model: CostModel) -> str:
    """With which other versions of libraries a model was trained, in words; empty where with these."""
    from autoconv.model.training import libraries

    here = libraries()
    other = [f"{name} {version}" for name, version in model.origin.libraries.items() if here.get(name) != version]
    return f" (it was trained by {', '.join(other)})" if other else ""


def _judge(model: CostModel, names: Sequence[str], there: Sequence[Path], as_json: bool) -> None:
    from autoconv.model import evaluation
    from autoconv.model.examples import shape_of
    from autoconv.report import judgements
    from autoconv.report.console import console
    from autoconv.store.transfer.export import SQLITE_SUFFIXES
    from autoconv.sweep import packaged_workloads, read_workload

    databases = [Path(name) for name in names if Path(name).suffix.lower() in SQLITE_SUFFIXES]
    workloads = [name for name in names if Path(name) not in databases]
    packaged = packaged_workloads()
    for path in databases:
        if not path.is_file():
            msg = f"there is no database {path}"
            raise click.ClickException(printable(msg))
    for name in workloads:
        if name not in packaged and not Path(name).is_file():
            msg = (
                f"{name} is neither a file nor a packaged workload: name a database, a CSV file or one of "
                + ", ".join(packaged)
            )
            raise click.ClickException(printable(msg))
    shapes = {shape_of(la.problem) for name in workloads for la in read_workload(packaged.get(name, Path(name)))}
    with progress(None, f"judging {model.name}"):
        found = evaluation.judge(model, databases or there, [*there, *databases], shapes if workloads else None)
    if as_json:
        groups = {group: {way: asdict(j) for way, j in ways.items()} for group, ways in found.groups.items()}
        values = {"model": model.name, "problems": found.problems, "learned": found.learned, "groups": groups}
        click.echo(json.dumps(values, indent=2))
        return
    console().print(judgements.of_groups(found.groups))
    left_out = f"; {found.learned} are left out, as it learned from their shapes" if found.learned else ""
    click.echo(printable(f"{model.name}: judged on {found.problems} problems{left_out}"))
