"""Real networks as a whole, stock MLX beside the same code under `autoconv.patch()`, in turns, in one process.

Each network is run to see what it convolves and once each way, in which shapes are decided; then all ways in turns. Its
outputs must agree: their relative L2 distance is at most `sqrt(layers) * (e + b)`, where `e` is the largest of native's
own errors that the database tells of, and `b` what the accuracy in force lets a convolution be off that native is off
by `e`. Of classifiers, what the last convolutions make is compared, before the mean over all positions.

MLX has no groups in 3D: where a network has any, the stock column fails with MLX's own error, and the output is
compared with that of depthwise convolutions added up by taps, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from networks import NETWORKS
from networks._comparison import CAUSAL_COLUMNS, COLUMNS, WORDS, Comparison
from networks._measuring import Asked, measure
from rich.table import Table

import autoconv
from autoconv import environment, plain_file
from autoconv import settings as _settings
from autoconv.cli._common import Command
from autoconv.report.console import console


def keep(out: Path, report: str) -> None:
    """Write the report; whoever is cut short leaves the one before."""
    with plain_file.refusing(out, click.ClickException):
        plain_file.write(out, report.encode())


def show(found: Sequence[Comparison]) -> None:
    """Print a row a network, and what failed."""
    causal = any(one.causal is not None for one in found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*COLUMNS, *(CAUSAL_COLUMNS if causal else ())):
        table.add_column(name, justify="left" if name in WORDS else "right", overflow="fold")
    for one in found:
        table.add_row(*one.row(causal=causal))
    console().print(table)
    for note in (note for one in found for note in one.notes()):
        console().print(note)


@click.command(
    cls=Command,
    epilog="Example: python scripts/bench_networks.py --network wan21 --network nnunet --prepare --out networks.json",
)
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)), help="Default: all of them.")
@click.option("--size", type=click.Choice(["full", "small"]), default="full", show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns.")
@click.option("--policy", type=click.Choice([str(p) for p in _settings.Policy]), help="Default: the one in force.")
@click.option("--prepare", is_flag=True, help="Time what each network convolves first, by `autoconv.prepare`.")
@click.option("--time-limit", help="How long that may take for each, such as 90s. Default: as long as it takes.")
@click.option("--causal", is_flag=True, help="Run Wan with `autoconv.nn.CausalConv3d` as well.")
@click.option("--database", type=click.Path(path_type=Path), help="Default: the one in force.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the figures in this file as they come.")
def main(
    names: Sequence[str],
    size: str,
    dtype: str,
    repeats: int,
    policy: str | None,
    prepare: bool,
    time_limit: str | None,
    causal: bool,
    database: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Time whole networks, stock and patched."""
    autoconv.unpatch()  # AUTOCONV_PATCH would make stock patched too
    changes: dict[str, Any] = {"policy": policy, "database": database}
    autoconv.configure(**{name: value for name, value in changes.items() if value is not None})
    asked = Asked(size, dtype, repeats, prepare, time_limit, causal)
    here = {"device": str(environment.of(mx.default_device())), "policy": str(_settings.current().policy)}
    if not as_json:
        click.echo(here["device"])
    found: list[Comparison] = []
    report = json.dumps(here | {"networks": []}, indent=1)
    for name in dict.fromkeys(names or NETWORKS):
        found.append(measure(NETWORKS[name], asked))
        report = json.dumps(here | {"networks": [one.as_dict() for one in found]}, indent=1)
        if out is not None:
            keep(out, report + "\n")
        if not as_json:
            show(found[-1:])
    if as_json:
        click.echo(report)
    elif len(found) > 1:
        show(found)
    wrong = [f"{one.network}: {one.why}" for one in found if one.why]
    if wrong:
        raise click.ClickException("; ".join(wrong))


if __name__ == "__main__":
    main()
