"""The command `autoconv`: one module a command."""

from __future__ import annotations

import warnings
from typing import Any

import click

from autoconv._version import __version__
from autoconv.cli._common import Group
from autoconv.cli.contribute import contribute
from autoconv.cli.demo import demo
from autoconv.cli.doctor import doctor
from autoconv.cli.evaluate import evaluate
from autoconv.cli.explain import explain
from autoconv.cli.prune import prune
from autoconv.cli.report import report
from autoconv.cli.run import run
from autoconv.cli.sweep import sweep
from autoconv.cli.train import train
from autoconv.cli.transfer import export, import_
from autoconv.errors import AutoconvWarning

__all__ = ["main"]


@click.group(cls=Group)
@click.version_option(__version__, prog_name="autoconv")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find, check and remember the fastest way to compute each 3D convolution on this device."""
    ctx.with_resource(warnings.catch_warnings())
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes more than it names


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    """A warning as one line, without the place in the code, which tells a user of commands nothing."""
    click.echo(f"{'autoconv' if issubclass(category, AutoconvWarning) else category.__name__}: {message}", err=True)


for _command in (demo, run, sweep, train, evaluate, explain, report, export, import_, contribute, prune, doctor):
    main.add_command(_command)
