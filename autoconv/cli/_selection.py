"""Which measurements a command takes: the options that say so, and what they mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from autoconv.problem import Problem
    from autoconv.settings import Settings


def device_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--device`."""
    return click.option(
        "--device", default="", help="Only measurements on devices with this in their name, such as M3."
    )(function)


def network_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--network`, passed as `networks`, which `network_problems` understands."""
    return click.option(
        "--network",
        "networks",
        multiple=True,
        help="Only its convolutions, in every dtype and with their gradients: a network that the database knows, as a "
        "program that `autoconv run` ran, a packaged workload, a network in one, or a CSV file; may be given more "
        "than once.",
    )(function)


def network_problems(networks: Sequence[str], chosen: Settings, databases: Sequence[Path] = ()) -> list[Any] | None:
    """The convolutions of networks that databases know, of packaged workloads, of networks in them, and of workload
    files; None where no network is asked for.

    Args:
        networks: Their names.
        chosen: Settings, whose database is asked where none is named, if it is begun.
        databases: Those that are named.

    Raises:
        ClickException: none is named so.
        StoreError: a database cannot be read.
        WorkloadError: a workload file cannot.
    """
    if not networks:
        return None
    from autoconv.open_stores import begun
    from autoconv.sweep import packaged_workloads, read_workload

    packaged, problems = packaged_workloads(), []
    own = _known_to(databases or list(filter(None, [begun(chosen)])))
    for name in networks:
        mine = own.get(name.casefold(), [])
        problems += mine
        if name in packaged or Path(name).suffix.lower() == ".csv":
            found = read_workload(packaged.get(name, Path(name)))
        else:
            layers = (layer for path in packaged.values() for layer in read_workload(path))
            found = [layer for layer in layers if layer.network.casefold() == name.casefold()]
        if not found and not mine:
            msg = f"no network is named {name}: name a CSV file, or one of {', '.join([*own, *packaged])}"
            raise click.ClickException(msg)
        problems += [layer.problem for layer in found]
    return problems


def _known_to(databases: Sequence[Path]) -> dict[str, list[Problem]]:
    """The convolutions of the networks that databases know, by their names in lower case."""
    from autoconv.store import open_store

    found: defaultdict[str, list[Problem]] = defaultdict(list)
    for path in databases:
        with closing(open_store(path, readonly=True)) as store:
            for name, calls in store.networks().items():
                found[name.casefold()] += calls
    return dict(found)
