"""`autoconv train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv.cli._common import (
    Command,
    OutFile,
    backend_here,
    check_out,
    database_option,
    environment_here,
    json_option,
    settings,
)
from autoconv.report.progress import progress
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.model.shelf import Kept


@click.command(
    cls=Command,
    epilog="Example: autoconv train, or autoconv train nvidia_h200.db --backend cuda -o cuda.npz",
)
@click.argument("databases", nargs=-1, type=click.Path(path_type=Path), metavar="[DATABASE ...]")
@click.option(
    "--backend",
    type=click.Choice(["metal", "cuda", "cpu"]),
    help="Whose measurements to learn from. Default: this machine's.",
)
@click.option(
    "-o",
    "--out",
    type=OutFile(),
    metavar="MODEL.npz",
    help="Write the model there, its estimators as MODEL.joblib and its card as MODEL.md. Default: a model of your own "
    "beside your database, which is used from then on.",
)
@database_option
@json_option
def train(
    databases: Sequence[Path], backend: str | None, out: Path | None, database: Path | None, as_json: bool
) -> None:
    """Train a cost model from what DATABASEs have, by default from yours and those that came with the package.

    Shows how good its choices were on networks, shapes and devices that it did not see. The same measurements give the
    same model, bit for bit. Exit code 1 where that is not good enough: the model is kept, and is not used.
    """
    from autoconv.errors import ModelError
    from autoconv.report import judgements
    from autoconv.report.console import console

    missing = [path for path in databases if not path.is_file()]
    if missing:
        msg = f"there is no database {missing[0]}"
        raise click.ClickException(printable(msg))
    if out is not None and out.suffix != ".npz":
        msg = f"a model is a file .npz, not {out.name}"
        raise ModelError(msg)
    if out is not None and out.parent.is_dir():  # else it is made
        check_out(out)
    with progress(None, "training") as bar:
        kept, unused = _train(databases, backend or backend_here(), out, settings(database), bar.advance)
    card = kept.model.card
    fault = card.fault()
    if as_json:
        click.echo(json.dumps(_as_dict(kept, fault, unused), indent=2))
    else:
        origin = kept.model.origin
        click.echo(printable(f"{kept.path}: {origin.problems} problems of {' and '.join(origin.devices)}"))
        console().print(judgements.of_card(card.judgements))
    if fault or unused:
        click.echo(printable(f"autoconv: it is kept, and is not used: {fault or unused}"), err=True)
    if fault:
        raise click.exceptions.Exit(1)


def _train(databases: Sequence[Path], backend: str, out: Path | None, chosen: Any, tell: Any) -> tuple[Kept, str]:
    """The model, and why it is not used here whatever its card."""
    from autoconv.model import advisers, learning, shelf
    from autoconv.report.model_card import page_of

    if out is not None:
        kept = learning.learn(databases or learning.default_databases(chosen), backend, out, private=False, tell=tell)
        shelf.write(out.with_suffix(".md"), page_of(kept).encode())
        return kept, ""
    where = environment_here()
    kept, trusted = learning.learn_own(chosen, where, databases=databases, backend=backend, tell=tell)
    if backend != where.backend:
        return kept, f"this machine's backend is {where.backend}"
    return kept, advisers.fault_here(trusted, where)


def _as_dict(kept: Kept, fault: str, unused: str) -> dict[str, Any]:
    origin = kept.model.origin
    return {
        "model": str(kept.path),
        "sha256": kept.sha256,
        "backend": origin.backend,
        "problems": origin.problems,
        "devices": list(origin.devices),
        "fault": fault or None,
        "unused": unused or None,
        "card": kept.model.card.as_dict(),
    }
