"""`autoconv explain`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autoconv.cli._common import Command, database_option, json_option
from autoconv.words import printable

_BETWEEN = re.compile("[,xX*\u00d7]")


def _ints(_ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers with commas between, or x as in what is printed; or a single one."""
    try:
        return tuple(int(v) for v in _BETWEEN.split(value))
    except ValueError:
        msg = f"{value!r} is no list of whole numbers such as 1,16,64,64,128"
        raise click.BadParameter(msg, param=param) from None


def _padding(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
    """As `_ints`, or two such lists with a colon between: low and high."""
    if ":" not in value:
        return _ints(ctx, param, value)
    return tuple(_ints(ctx, param, part) for part in value.split(":"))


@click.command(
    cls=Command, epilog="Example: autoconv explain --input 1,43,122,210,512 --weight 512,3,3,3,512 --dtype bfloat16"
)
@click.option("--input", "input_shape", callback=_ints, required=True, help="N,D,H,W,C_in, or NxDxHxWxC_in")
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
@database_option
@json_option
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
    from autoconv import ops, settings
    from autoconv._arguments import kind_of, problem_of
    from autoconv.report.console import console

    changes = {"accuracy": accuracy, "memory_limit": memory_limit, "database": database}
    chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    now = settings.current()  # what is wrong with a variable is no fault of the arguments
    try:
        settings.with_changes(now, chosen)
        problem_of(input_shape, weight_shape, **{**arguments, "kind": kind_of(arguments["kind"])})
    except (ValueError, TypeError) as error:
        raise click.UsageError(printable(" ".join(str(error).split()))) from error
    found = ops.explain(input_shape, weight_shape, **arguments, **chosen)
    if as_json:
        click.echo(found.to_json(indent=2))
    else:
        console().print(found)
