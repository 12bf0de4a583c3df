"""`autoconv doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autoconv.cli._common import Command, database_option, json_option, settings


@click.command(cls=Command, epilog="Example: autoconv doctor --json")
@database_option
@json_option
def doctor(database: Path | None, as_json: bool) -> None:
    """Show what this machine has, what is slow about it, where the database lies and whether it is sound.

    What needs attention has advice beneath it, and makes the exit code 1: a slow BLAS, a database that is damaged,
    cannot be written, or that others may write, a full disk, little free memory, backends in each other's way, a cost
    model that cannot be used, an algorithm that is not right here, a variable that nothing reads.
    """
    from autoconv._backend import mx
    from autoconv.report import doctor as doctors
    from autoconv.report import tables

    findings = doctors.examine(settings(database), mx.default_device())
    if as_json:
        click.echo(json.dumps(doctors.as_dicts(findings), indent=2, allow_nan=False))
    else:
        tables.console().print(doctors.table(findings))
    if any(finding.advice for finding in findings):
        raise click.exceptions.Exit(1)
