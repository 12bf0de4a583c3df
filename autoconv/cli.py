"""The command `autoconv`."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from autoconv._version import __version__
from autoconv.errors import AutoconvError, AutoconvWarning

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class _Command(click.Command):
    """A command whose errors are one line on stderr that says what to do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (AutoconvError, ValueError, TypeError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="autoconv")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find, check and remember the fastest way to compute each 3D convolution on this device."""
    ctx.with_resource(warnings.catch_warnings())
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes more than it names


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    """A warning as one line, without the place in the code, which tells a user of commands nothing."""
    click.echo(f"{'autoconv' if issubclass(category, AutoconvWarning) else category.__name__}: {message}", err=True)


def _database_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--database",
        type=click.Path(path_type=Path),
        help="The database. Default: AUTOCONV_DATABASE, else the user's own.",
    )(function)


def _json_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def _settings(database: Path | None, **changes: object) -> Any:
    from autoconv import settings

    chosen = {name: value for name, value in {"database": database, **changes}.items() if value is not None}
    return settings.with_changes(settings.current(), chosen)


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, where that is a terminal; yields what counts one more with a text."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(what, total=total, text="")
        yield lambda text: progress.update(task, advance=1, text=text)


@main.command(epilog="Example: autoconv demo")
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is measured in this file. Default: a new one, removed at the end.",
)
@_json_option
def demo(database: Path | None, as_json: bool) -> None:
    """Tune real layers that this machine can afford, then use them in a second process that times nothing."""
    with tempfile.TemporaryDirectory(prefix="autoconv-demo-") as folder:
        _demo(database or Path(folder) / "demo.db", as_json)


def _demo(database: Path, as_json: bool) -> None:
    from autoconv import environment
    from autoconv._backend import mx
    from autoconv.report import tables
    from autoconv.sweep import demo as demos
    from autoconv.sweep import demo_layers
    from autoconv.sweep.runner import stopping

    console, total = tables.console(), len(demo_layers())
    if not as_json:
        device = environment.of(mx.default_device())
        console.print(f"Real layers on {device}; a crop is a smaller frame, its channels are the network's own.\n")
    with stopping() as stop, _progress(total, "tuning") as advance:
        outcomes = demos.first_run(database, stop=stop, tell=lambda o: advance(o.layer.network))
    if len(outcomes) < total:
        raise click.exceptions.Exit(INTERRUPTED)
    second = demos.second_run(database)
    winners = {o.layer.problem.key: o.decision.candidate for o in outcomes if o.decision}
    same = sum(second.winners.get(key) == candidate for key, candidate in winners.items())
    timed = second.statistics["measured"]
    if as_json:
        click.echo(json.dumps(tables.outcomes_dict(outcomes) | {"second": vars(second)}, indent=2))
    else:
        tables.print_outcomes(console, outcomes)
        console.print(
            f"\nA second process over the same database: {second.outputs} convolutions run, {timed} timed, "
            f"{same} of {len(winners)} winners the same."
        )
    if timed or same < len(winners) or second.outputs < total or len(winners) < total:
        msg = "the second process did not do what the first one found"
        raise click.ClickException(msg)


@main.command(epilog="Example: autoconv sweep wan21 my_layers.csv --max-gflop 200")
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
@_database_option
@_json_option
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

    chosen, device = _settings(database, policy="measure"), mx.default_device()
    if max_gflop is not None and not max_gflop < math.inf:
        msg = "--max-gflop is a number of GFLOP"
        raise click.UsageError(msg)
    layers = _layers(workloads, pending, chosen, max_gflop, dtype, gradients)
    with stopping() as stop, _progress(len(layers), "sweeping") as advance:
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


def _ints(_ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers with commas between, or a single one."""
    try:
        return tuple(int(v) for v in value.split(","))
    except ValueError:
        msg = f"{value!r} is no list of whole numbers such as 1,16,64,64,128"
        raise click.BadParameter(msg, param=param) from None


def _padding(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
    """As `_ints`, or two such lists with a colon between: low and high."""
    if ":" not in value:
        return _ints(ctx, param, value)
    return tuple(_ints(ctx, param, part) for part in value.split(":"))


@main.command(epilog="Example: autoconv explain --input 1,43,122,210,512 --weight 512,3,3,3,512 --dtype bfloat16")
@click.option("--input", "input_shape", callback=_ints, required=True, help="N,D,H,W,C_in")
@click.option("--weight", "weight_shape", callback=_ints, required=True, help="C_out,KD,KH,KW,C_in/groups")
@click.option("--stride", callback=_ints, default="1", show_default=True, help="One for all, or D,H,W.")
@click.option("--padding", callback=_padding, default="0", show_default=True, help="One, D,H,W, or LOW:HIGH of those.")
@click.option("--dilation", callback=_ints, default="1", show_default=True, help="One for all, or D,H,W.")
@click.option("--input-dilation", callback=_ints, default="1", show_default=True, help="One for all, or D,H,W.")
@click.option("--groups", type=int, default=1, show_default=True)
@click.option("--flip", is_flag=True, help="Flip the kernel.")
@click.option("--dtype", default="float32", show_default=True, help="float16, bfloat16, float32 or float64.")
@click.option(
    "--kind",
    type=click.Choice(["forward", "input_gradient", "weight_gradient"]),
    default="forward",
    show_default=True,
    help="The convolution, or one of its gradients.",
)
@click.option("--accuracy", help="native, strict, or the largest relative L2 error that passes.")
@click.option("--memory-limit", help="Bytes that a convolution may take beyond its operands, such as 8GB.")
@_database_option
@_json_option
def explain(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    accuracy: str | None,
    memory_limit: str | None,
    database: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Show what computes a convolution or a gradient of it here, and why. Times nothing.

    Lists every candidate's time, error and memory.
    """
    from autoconv import ops
    from autoconv.report import tables

    changes = {"accuracy": accuracy, "memory_limit": memory_limit, "database": database}
    chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    found = ops.explain(input_shape, weight_shape, **arguments, **chosen)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        tables.console().print(*found.summary(), found.table(), sep="\n")


@main.command(epilog="Example: autoconv doctor --json")
@_database_option
@_json_option
def doctor(database: Path | None, as_json: bool) -> None:
    """Show what this machine has, what is slow about it, where the database lies and whether it is sound.

    Exit code 1 when something needs attention.
    """
    from autoconv._backend import mx
    from autoconv.report import doctor as doctors
    from autoconv.report import tables

    findings = doctors.examine(_settings(database), mx.default_device())
    if as_json:
        click.echo(json.dumps(doctors.as_dicts(findings), indent=2))
    else:
        tables.console().print(doctors.table(findings))
    if any(finding.advice for finding in findings):
        raise click.exceptions.Exit(1)
