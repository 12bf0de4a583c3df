"""`autoconv contribute`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoconv.cli import _common
from autoconv.cli._common import Command, OutFile, check_out, environment_here, tell_of_stop
from autoconv.interrupt import INTERRUPTED
from autoconv.report.progress import progress
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.environment import Environment
    from autoconv.settings import Settings
    from autoconv.store.transfer.contribution import Contribution
    from autoconv.sweep import Layer
    from autoconv.sweep.runner import Outcome

SUFFIXES = ("jsonl", "db")

WHERE_TO = "attach it to an issue of this project with the title 'measurements: {chip}'"
"""What the owner is to do with the file."""


@click.command(cls=Command, epilog="Example: autoconv contribute, or autoconv contribute m3-max.jsonl --minutes 5")
@click.argument("out", type=OutFile(), metavar="[FILE.{jsonl,db}]", required=False)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, max=24 * 60),
    default=15.0,
    show_default=True,
    help="Begin no other convolution after so long; 0 measures nothing more, and gives what there is.",
)
@click.option("--show", is_flag=True, help="Show the very content before it is written, in a pager on a terminal.")
@click.option("--yes", is_flag=True, help="Write FILE without asking, as in a script.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--on-battery", is_flag=True, help="On a Mac, go on as well on battery, in Low Power Mode or throttled.")
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where measurements are kept as they come, for a second run to go on from; never your own database's file. "
    "Default: contribution.db in the user's data directory.",
)
def contribute(
    out: Path | None,
    minutes: float,
    show: bool,
    yes: bool,
    force: bool,
    on_battery: bool,
    database: Path | None,
) -> None:
    """Measure built-in convolutions for 15 minutes, and write them to one FILE to send back.

    FILE is shown before it is written. It holds the chip, memory, GPU cores, macOS's major version, versions of MLX and
    autoconv, and times of layers of known networks: no names, paths or serial numbers, and no shape of your own. Stop
    at any minute by Ctrl-C: what there is by then is as good, and a second run goes on from there.
    """
    from autoconv.sweep.contribution import contribution_layers

    where = environment_here()
    out = out or Path(f"autoconv-{_slug(str(where.identity['device']))}.jsonl")
    _check(out, where, force=force, answered=yes or show or _common.can_ask())
    layers, chosen = contribution_layers(where.backend), _settings(database)
    outcomes = _measured(layers, chosen, minutes * 60, on_battery)
    _offer(_given(chosen, where, layers), outcomes, out, show=show, yes=yes, force=force)


def _check(out: Path, where: Environment, *, force: bool, answered: bool) -> None:
    """Refuse before a quarter of an hour is spent what would be refused after it."""
    if out.suffix.lower() not in {f".{suffix}" for suffix in SUFFIXES}:
        msg = f"{out.name}: a contribution is a file .{' or .'.join(SUFFIXES)}"
        raise click.ClickException(msg)
    if out.exists() and not force:
        msg = f"{out} exists: name another file, or replace it by --force"
        raise click.ClickException(msg)
    check_out(out)
    changed = sorted(name for name in where.identity if name.startswith("MLX_"))
    if changed:
        # Their values would leave with the file, and the times would be those of no other machine.
        msg = f"{', '.join(changed)} changes what MLX does: unset that, since contributions are made with its defaults"
        raise click.ClickException(msg)
    if not answered:
        msg = "there is no terminal to ask on: --yes writes the file unasked, --show shows it alone"
        raise click.ClickException(msg)


def _settings(database: Path | None) -> Settings:
    """Those of every contribution, whatever the user has set."""
    from autoconv import settings
    from autoconv.store import default_path, located

    path = database or default_path().with_name("contribution.db")
    own = located(settings.current().database)
    if path.resolve() == own.resolve():
        msg = f"{path} is your own database: name another file by --database"
        raise click.ClickException(msg)
    return settings.with_changes(settings.from_environment({}), {"policy": "measure", "database": path})


def _measured(layers: list[Layer], chosen: Settings, limit_s: float, on_battery: bool) -> list[Outcome]:
    """Time the layers in their order for so long, or until Ctrl-C; what was timed is in the database at once."""
    from autoconv._backend import mx
    from autoconv.dispatch import dispatcher
    from autoconv.sweep.contribution import AsListed
    from autoconv.sweep.isolated import Isolated
    from autoconv.sweep.power import awake, wait_until_unhindered
    from autoconv.sweep.runner import stopping, sweep

    best, began = 1.0, time.monotonic()

    def tell(outcome: Outcome) -> None:
        nonlocal best
        best = max(best, outcome.speedup or 1.0)
        left = max(0.0, limit_s - (time.monotonic() - began)) / 60
        bar.advance(f"{left:.0f} min left, best {best:.2f}x, {outcome.layer.network}")

    def wait() -> None:
        if not on_battery:
            wait_until_unhindered(stop, _say)

    with (
        stopping(tell_of_stop) as stop,
        awake(),
        Isolated(dispatcher()) as tuner,
        progress(len(layers), "measuring") as bar,
    ):
        try:
            return sweep(
                layers,
                tuner,
                chosen,
                mx.default_device(),
                limit_s=limit_s,
                informed=lambda _: AsListed(),
                stop=stop,
                tell=tell,
                wait=wait,
            )
        except KeyboardInterrupt:
            _say("interrupted; what was measured is kept, and the same command goes on from there")
            raise click.exceptions.Exit(INTERRUPTED) from None


def _given(chosen: Settings, where: Environment, layers: list[Layer]) -> Contribution:
    from autoconv.store.transfer.contribution import contribution

    assert chosen.database is not None  # `_settings` names one
    return contribution(chosen.database, where.id, [layer.problem for layer in layers])


def _offer(given: Contribution, outcomes: list[Outcome], out: Path, *, show: bool, yes: bool, force: bool) -> None:
    """Show what would leave, ask, and write it."""
    from autoconv.algorithms import algorithms
    from autoconv.store.transfer.contribution import write

    for line in _summary(given, outcomes):
        click.echo(printable(line))
    if show:
        (click.echo_via_pager if _common.can_ask() else click.echo)(given.text)
    if not yes:
        if not _common.can_ask():  # asked to be shown, no more
            return
        if not show and click.confirm("Show all of it first?", default=False):
            click.echo_via_pager(given.text)
        if not click.confirm(f"Write {out}?", default=True):
            _say("nothing is written; what was measured is kept for another run")
            raise click.exceptions.Exit(1)
    write(given, out, known={algorithm.name for algorithm in algorithms()}, force=force)
    click.echo(f"{out} is written: {WHERE_TO.format(chip=given.identity['device'])}. Thank you!")


def _summary(given: Contribution, outcomes: list[Outcome]) -> Iterator[str]:
    """What the file says, in a few lines."""
    from autoconv._version import __version__
    from autoconv.report import tables

    identity, memory = given.identity, given.circumstances.get("memory_bytes")
    yield f"chip: {identity['device']} ({identity['backend']}, {identity.get('architecture', 'unknown')})"
    if memory:
        yield f"memory: {int(str(memory)) / 1e9:.1f} GB"
    for name, words in (("gpu_cores", "GPU cores"), ("working_set", "working set, bytes"), ("macos", "macOS")):
        if name in identity:
            yield f"{words}: {identity[name]}"
    others = {"backend", "device", "architecture", "gpu_cores", "working_set", "macos", "mlx"}
    rest = {k: v for k, v in {**identity, **given.circumstances}.items() if k not in others | {"memory_bytes"}}
    if rest:
        yield ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in rest.items())
    yield f"versions: MLX {identity['mlx']}, autoconv {__version__}"
    yield f"measurements: {given.records} results of {given.problems} built-in convolutions, and when each was made"
    yield f"size: {len(given.text.encode()) / 1e3:.0f} kB; nothing else is in it"
    yield from tables.summary_lines(tables.summary(outcomes)) if outcomes else ()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "machine"


def _say(text: str) -> None:
    click.echo(f"autoconv: {text}", err=True)
