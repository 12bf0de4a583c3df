"""`autoconv doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoconv.cli._common import Command, database_option, json_option

if TYPE_CHECKING:
    from autoconv.report.finding import Finding
    from autoconv.settings import Settings


@click.command(cls=Command, epilog="Example: autoconv doctor --json")
@database_option
@json_option
def doctor(database: Path | None, as_json: bool) -> None:
    """Show what this machine has, what is slow about it, where the database lies and whether it is sound.

    What needs attention has advice beneath it, and makes the exit code 1: a slow BLAS, a database that is damaged,
    cannot be written, or that others may write, a full disk, little free memory, MLX without a backend or with two, a
    cost model that cannot be used, an algorithm that is not right here, a variable that nothing reads or that has no
    such value.
    """
    from autoconv.report.console import console
    from autoconv.report.finding import table

    findings = _findings(_settings(database))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2, allow_nan=False))
    else:
        console().print(table(findings))
    if any(finding.needs_attention for finding in findings):
        raise click.exceptions.Exit(1)


def _settings(database: Path | None) -> Settings:
    """The settings in force, with defaults in place of what variables ask for that cannot be: that is a finding."""
    from autoconv import settings as given
    from autoconv.errors import SettingsError

    try:
        chosen = given.current()
    except SettingsError:
        chosen, _ = given.as_far_as_can_be(os.environ)
    return given.with_changes(chosen, {} if database is None else {"database": database})


def _findings(chosen: Settings) -> list[Finding]:
    from autoconv.errors import BackendMissingError

    try:
        from autoconv._backend import mx
    except BackendMissingError as error:
        from autoconv.report import without_mlx

        return without_mlx.examine(chosen, error)
    from autoconv.report import doctor as doctors

    return doctors.examine(chosen, mx.default_device())
