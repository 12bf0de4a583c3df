"""Which measurements a command takes: the options that say so, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


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
        help="Only its convolutions, in every dtype and with their gradients: a packaged workload, a network in one, "
        "or a CSV file; may be given more than once.",
    )(function)


def network_problems(networks: Sequence[str]) -> list[Any]:
    """The convolutions of packaged workloads, of networks in them, and of workload files."""
    from autoconv.sweep import packaged_workloads, read_workload

    packaged, problems = packaged_workloads(), []
    for name in networks:
        if name in packaged or Path(name).suffix.lower() == ".csv":
            found = read_workload(packaged.get(name, Path(name)))
        else:
            layers = (layer for path in packaged.values() for layer in read_workload(path))
            found = [layer for layer in layers if layer.network.casefold() == name.casefold()]
        if not found:
            msg = f"no network is named {name}: name a CSV file, or one of {', '.join(packaged)}"
            raise click.ClickException(msg)
        problems += [layer.problem for layer in found]
    return problems
