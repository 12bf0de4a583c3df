"""`autoconv sweep`."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoconv.cli._common import Command, environment_here, json_option, settings, tell_of_stop
from autoconv.cli._foreknown import informed, measured, unchanged
from autoconv.cli._values import Duration
from autoconv.interrupt import INTERRUPTED
from autoconv.report.progress import progress
from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.model.shelf import Kept
    from autoconv.problem import Problem
    from autoconv.settings import Settings
    from autoconv.sweep import Layer
    from autoconv.sweep.runner import Outcome


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        msg = f"{value} is no number of GFLOP"
        raise click.BadParameter(msg, ctx, param)
    return value


@dataclass(frozen=True)
class _Asked:
    """Which layers are asked for."""

    workloads: Sequence[str]
    count: int
    seed: int
    pending: bool
    max_gflop: float | None
    dtypes: Sequence[str]
    gradients: bool


@click.command(cls=Command, epilog="Example: autoconv sweep wan21 my_layers.csv --max-gflop 200 --time-limit 30m")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD ...]")
@click.option("--random", "count", type=click.IntRange(min=1), help="Also so many random realistic layers.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random layers.")
@click.option(
    "--pending",
    is_flag=True,
    help="Also the shapes that calls noted under the policy record, or for want of time; with --scheduler those of "
    "this machine alone.",
)
@click.option(
    "--max-gflop",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    help="Leave out larger convolutions, and draw no larger ones.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    multiple=True,
    help="Time the layers in this dtype instead of their own, and draw random ones in it; may be given more than once.",
)
@click.option("--gradients", is_flag=True, help="Time each layer's input gradient and weight gradient as well.")
@click.option("--time-limit", type=Duration(), help="Begin no other convolution after so long, such as 30m.")
@click.option(
    "--resume/--refresh",
    default=True,
    help="Leave out what the database tells of this device already (default), or time it once more.",
)
@click.option(
    "--on-battery",
    is_flag=True,
    help="On a Mac, go on as well on battery, in Low Power Mode or throttled, where a sweep pauses otherwise.",
)
@click.option(
    "--train/--no-train",
    "trains",
    default=True,
    help="At the end train a cost model of this device (default), where 150 convolutions or more were measured on it, "
    "and a fifth more than the last one learned from.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Spread the work over the workers of a Dask scheduler, such as tls://HOST:8786, instead of timing here.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Go to a scheduler beyond this machine without encryption. Dask runs what it is sent: whoever is on that "
    "network can run anything on the workers and here.",
)
@click.option(
    "-o",
    "--database",
    type=click.Path(path_type=Path),
    help="The database to write. Default: AUTOCONV_DATABASE, else the user's own.",
)
@json_option
def sweep(
    count: int | None,
    time_limit: float | None,
    resume: bool,
    on_battery: bool,
    trains: bool,
    scheduler: str | None,
    insecure: bool,
    database: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Time the convolutions of WORKLOADs on this device or a fleet's, those that the database does not tell of yet.

    A WORKLOAD is a CSV file with a convolution a row, or the name of one that comes with the package. Each is timed in
    a process of its own, so that a candidate that ends it ends no sweep. Ctrl-C ends after the current convolution;
    the same command goes on from there. A cost model of this device is trained at the end. Exit code 1 where any
    convolution could not be timed.
    """
    wanted = _Asked(count=count or 0, **asked)
    if not wanted.workloads and not wanted.pending and not wanted.count:
        from autoconv.sweep import packaged_workloads

        msg = f"name a workload file, --random, --pending, or one of those packaged: {', '.join(packaged_workloads())}"
        raise click.UsageError(msg)
    from autoconv.report import tables
    from autoconv.report.console import console
    from autoconv.sweep.runner import stopping

    chosen = settings(database, policy="measure")
    noted = _noted(chosen) if wanted.pending else []
    layers = [*_workload_layers(wanted, chosen), *_random_layers(wanted), *noted]
    layers = _each_once(layers, wanted.max_gflop)
    with stopping(tell_of_stop) as stop:
        how = _How(
            chosen=chosen,
            refresh=not resume,
            again=frozenset(layer.problem for layer in noted),
            limit_s=math.inf if time_limit is None else time_limit,
            stop=stop,
            on_battery=on_battery,
        )
        try:
            swept = _here(layers, how) if scheduler is None else _fleet(layers, how, scheduler, insecure)
        except KeyboardInterrupt:
            _say("interrupted; what was timed is kept, and the same command goes on from there")
            raise click.exceptions.Exit(INTERRUPTED) from None
    outcomes = swept.outcomes
    if as_json:
        click.echo(json.dumps(tables.outcomes_dict(outcomes) | {"seconds": swept.seconds}, indent=2, allow_nan=False))
    else:
        tables.print_outcomes(console(), outcomes)
        if any(outcome.ending == "timed" for outcome in outcomes):
            _say("`autoconv report out.html` shows all that is known as a page")
    if len(outcomes) < swept.expected:
        why = "stopped" if stop.is_set() else "its time was up"
        click.echo(f"{why} after {len(outcomes)} of {swept.expected}; the same command goes on from there", err=True)
    if stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)
    if trains and any(outcome.ending == "timed" for outcome in outcomes):
        _train(chosen)
    if tables.failures(outcomes):
        raise click.exceptions.Exit(1)


@dataclass(frozen=True)
class _How:
    """How layers are to be timed."""

    chosen: Settings
    refresh: bool
    again: Collection[Problem]
    limit_s: float
    stop: threading.Event
    on_battery: bool


@dataclass(frozen=True)
class _Swept:
    """What a sweep did: its outcomes, how many there would be in all, and where its seconds went."""

    outcomes: Sequence[Outcome]
    expected: int
    seconds: dict[str, float]


def _say(text: str) -> None:
    click.echo(f"autoconv: {text}", err=True)


def _here(layers: Sequence[Layer], how: _How) -> _Swept:
    """A sweep on this machine."""
    from autoconv._backend import mx
    from autoconv.dispatch import dispatcher
    from autoconv.sweep.isolated import Isolated
    from autoconv.sweep.power import awake, wait_until_unhindered
    from autoconv.sweep.runner import sweep as run

    def wait() -> None:
        if not how.on_battery:
            wait_until_unhindered(how.stop, _say)

    start = time.monotonic()
    with awake(), Isolated(dispatcher()) as tuner, progress(len(layers), "sweeping") as bar:
        outcomes = run(
            layers,
            tuner,
            how.chosen,
            mx.default_device(),
            refresh=how.refresh,
            again=how.again,
            limit_s=how.limit_s,
            measured=measured(how.chosen) if layers else (),
            informed=informed(how.chosen) if layers else unchanged,
            stop=how.stop,
            tell=_teller(bar.advance),
            wait=wait,
        )
    seconds = {
        "total": time.monotonic() - start,
        "in_candidates": tuner.run_s,
        "in_first_run": tuner.first_run_s,
        "children": tuner.children,
    }
    return _Swept(outcomes, len(layers), seconds)


def _fleet(layers: Sequence[Layer], how: _How, scheduler: str, insecure: bool) -> _Swept:
    """A sweep over the workers of a Dask scheduler."""
    from autoconv.dispatch import dispatcher
    from autoconv.sweep.fleet import sweep_fleet

    expected = 0

    def expect(total: int) -> None:
        nonlocal expected
        expected = total
        bar.expect(total)

    start = time.monotonic()
    with progress(None, "sweeping") as bar:
        outcomes = sweep_fleet(
            layers,
            scheduler,
            how.chosen,
            dispatcher().store(how.chosen, strict=True),
            refresh=how.refresh,
            again=how.again,
            measured=measured(how.chosen) if layers else (),
            limit_s=how.limit_s,
            stop=how.stop,
            tell=_teller(bar.advance),
            expect=expect,
            insecure=insecure,
            hindered=how.on_battery,
        )
    return _Swept(outcomes, expected, {"total": time.monotonic() - start})


def _train(chosen: Settings) -> None:
    """Train the user's own model, if enough was measured here; what goes wrong is one line, as the sweep is done."""
    from autoconv.counsellor import BROKEN, describe
    from autoconv.model import learning
    from autoconv.model.advisers import fault_here

    where = environment_here()
    try:
        count = learning.measured_here(chosen, where)
        if not learning.is_due(count, chosen, where):
            return
        _say(f"training a cost model: {count} convolutions are measured here; --no-train leaves it")
        with progress(None, "training") as bar:
            kept, trusted = learning.learn_own(chosen, where, tell=bar.advance)
        _say(printable(_worth(kept, fault_here(trusted, where))))
    except BROKEN as error:
        _say(printable(f"no cost model was trained: {describe(error)}"))
    except KeyboardInterrupt:
        _say("training was interrupted, the measurements are kept; `autoconv train` begins it anew")
        raise click.exceptions.Exit(INTERRUPTED) from None


def _worth(kept: Kept, unfit: str) -> str:
    """How good a model is, in a line; or why it is not used."""
    fault = kept.model.card.fault() or unfit
    if fault:
        return f"{kept.path.name} is kept, and is not used: {fault}"
    ways = kept.model.card.judgements["network"]["all"]
    auto, native = ways["auto"], ways["native"]
    return (
        f"{kept.path.name} is used from now on: on networks that it did not see {auto.regret_mean:.1%} slower than the "
        f"best in the mean, {auto.timed_share:.0%} of shapes timed, where native is {native.regret_mean:.1%} slower"
    )


def _teller(advance: Callable[[str], None]) -> Callable[[Outcome], None]:
    """What tells of each outcome on the progress bar: the best gain so far, how many failed, and the network."""
    best, failed = 1.0, 0

    def tell(outcome: Outcome) -> None:
        nonlocal best, failed
        best, failed = max(best, outcome.speedup or 1.0), failed + outcome.failed
        where = f"{outcome.layer.network} on {outcome.device}" if outcome.device else outcome.layer.network
        parts = [f"best {best:.2f}x", *([f"{failed} failed"] if failed else []), where]
        advance(", ".join(parts))

    return tell


def _noted(chosen: Settings) -> list[Layer]:
    """The problems that calls noted, as layers of the networks that made them, where that is known."""
    from autoconv.dispatch import dispatcher
    from autoconv.sweep import Layer

    store = dispatcher().store(chosen, strict=True)
    most: dict[Problem, tuple[int, str]] = {}
    for name, calls in store.networks().items():
        for problem, count in calls.items():
            most[problem] = max(most.get(problem, (0, "")), (count, name))
    layers = []
    for place, problem in enumerate(store.pending(environment_here().id), start=1):
        count, name = most.get(problem, (1, "pending"))
        layers.append(Layer(name, "", str(place), count, problem, ""))
    return layers


def _workload_layers(asked: _Asked, chosen: Settings) -> list[Layer]:
    """The layers of workloads, as they are asked for; of the user's own files the database keeps whose they are."""
    from autoconv.dispatch import dispatcher
    from autoconv.sweep import packaged_workloads, read_workload

    packaged, layers = packaged_workloads(), []
    for name in asked.workloads:
        found = read_workload(packaged.get(name, Path(name)))
        if asked.dtypes:
            found = [replace(la, problem=replace(la.problem, dtype=d)) for la in found for d in asked.dtypes]
        found = _with_gradients(found, asked)
        layers += found
        if name not in packaged:
            store = dispatcher().store(chosen, strict=True)
            for network, calls in _calls_of(found).items():
                store.name_network(network, calls)
    return layers


def _random_layers(asked: _Asked) -> list[Layer]:
    """The layers that are drawn."""
    from autoconv.sweep import random_layers
    from autoconv.sweep.sampler import MAX_GFLOP

    if not asked.count:
        return []
    most = asked.max_gflop or MAX_GFLOP
    return _with_gradients(random_layers(asked.count, asked.seed, max_gflop=most, dtypes=asked.dtypes or None), asked)


def _with_gradients(layers: Sequence[Layer], asked: _Asked) -> list[Layer]:
    """The layers, each with both of its gradients where these are asked for."""
    from autoconv.problem import Kind

    kinds = tuple(Kind) if asked.gradients else (Kind.FORWARD,)
    return [replace(layer, problem=replace(layer.problem, kind=kind)) for layer in layers for kind in kinds]


def _calls_of(layers: Iterable[Layer]) -> dict[str, Counter[Problem]]:
    """How often each network makes each problem."""
    found: defaultdict[str, Counter[Problem]] = defaultdict(Counter)
    for layer in layers:
        found[layer.network][layer.problem] += layer.count
    return found


def _each_once(layers: Iterable[Layer], max_gflop: float | None) -> list[Layer]:
    """The layers to time: each problem once, and none that is larger than is wanted."""
    from autoconv.sweep.runner import unique

    return [layer for layer in unique(layers) if max_gflop is None or layer.problem.flops <= max_gflop * 1e9]
