"""`autoconv sweep`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autoconv.cli._common import INTERRUPTED, Command, database_option, json_option, progress, settings


@click.command(cls=Command, epilog="Example: autoconv sweep wan21 my_layers.csv --max-gflop 200")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD ...]")
@click.option(
    "--pending", is_flag=True, help="Also the shapes that calls noted under the policy record, or for want of time."
)
@click.option("--max-gflop", type=click.FloatRange(min=0, min_open=True), help="Leave out larger convolutions.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    multiple=True,
    help="Time the layers in this dtype instead of their own; may be given more than once.",
)
@click.option("--gradients", is_flag=True, help="Time each layer's input gradient and weight gradient as well.")
@database_option
@json_option
def sweep(
    workloads: Sequence[str],
    pending: bool,
    max_gflop: float | None,
    dtype: Sequence[str],
    gradients: bool,
    database: Path | None,
    as_json: bool,
) -> None:
    """Time the convolutions of WORKLOADs on this device, those that the database does not tell of yet.

    A WORKLOAD is a CSV file with a convolution a row, or the name of one that comes with the package. Ctrl-C ends
    after the current convolution; the same command goes on from there. Exit code 1 where any could not be timed.
    """
    if not workloads and not pending:
        from autoconv.sweep import packaged_workloads

        msg = f"name a workload file, --pending, or one of those packaged: {', '.join(packaged_workloads())}"
        raise click.UsageError(msg)
    from autoconv._backend import mx
    from autoconv.dispatch import dispatcher
    from autoconv.report import tables
    from autoconv.sweep.runner import stopping
    from autoconv.sweep.runner import sweep as run

    chosen, device = settings(database, policy="measure"), mx.default_device()
    if max_gflop is not None and not max_gflop < math.inf:
        msg = "--max-gflop is a number of GFLOP"
        raise click.UsageError(msg)
    layers = _layers(workloads, pending, chosen, max_gflop, dtype, gradients)
    with stopping() as stop, progress(len(layers), "sweeping") as advance:
        outcomes = run(layers, dispatcher(), chosen, device, stop=stop, tell=lambda o: advance(o.layer.network))
    if as_json:
        click.echo(json.dumps(tables.outcomes_dict(outcomes), indent=2))
    else:
        tables.print_outcomes(tables.console(), outcomes)
    if stop.is_set():
        click.echo(f"stopped after {len(outcomes)} of {len(layers)}; the same command goes on from there", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if tables.failures(outcomes):
        raise click.exceptions.Exit(1)


def _layers(
    workloads: Sequence[str],
    pending: bool,
    chosen: Any,
    max_gflop: float | None,
    dtypes: Sequence[str],
    gradients: bool,
) -> list[Any]:
    """The layers to time: each problem once."""
    from dataclasses import replace

    from autoconv import environment
    from autoconv._backend import mx
    from autoconv.dispatch import dispatcher
    from autoconv.problem import Kind
    from autoconv.sweep import Layer, packaged_workloads, read_workload
    from autoconv.sweep.runner import unique

    packaged = packaged_workloads()
    layers = [layer for name in workloads for layer in read_workload(packaged.get(name, Path(name)))]
    if dtypes:
        layers = [replace(la, problem=replace(la.problem, dtype=d)) for la in layers for d in dtypes]
    if gradients:
        layers = [replace(la, problem=replace(la.problem, kind=kind)) for la in layers for kind in Kind]
    if pending:
        store = dispatcher().store(chosen, strict=True)
        noted = store.pending(environment.of(mx.default_device()).id)
        layers += [Layer("pending", "", str(i), 1, problem, "") for i, problem in enumerate(noted, start=1)]
    return [la for la in unique(layers) if max_gflop is None or la.problem.flops <= max_gflop * 1e9]
