"""The doctor: what this machine has, what is slow about it, where the database lies, whether it is sound."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv._version import __version__
from autoconv.algorithms import algorithms, places
from autoconv.algorithms._mlx import MAX_DECOMPOSED_DEPTH
from autoconv.counsellor import BROKEN, describe
from autoconv.decision import Limits, choose
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.kin import are_kin, differences
from autoconv.model.advisers import Advisers, adviser_for, ceilings_of
from autoconv.report.words import cell
from autoconv.settings import Settings
from autoconv.store import Store, default_path, open_store
from autoconv.store.shipped import open_all_shipped
from autoconv.tuning.qualification import fingerprint

SLOW_BLAS_GFLOPS = 20.0
"""A float32 matrix product slower than this on a CPU is the mark of a reference BLAS."""


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        about: What it is.
        found: What was found.
        advice: What to do about it; empty where all is well.
    """

    about: str
    found: str
    advice: str = ""


def examine(
    chosen: Settings,
    device: mx.Device,
    shipped: Mapping[str, Store] | None = None,
    advisers: Advisers = adviser_for,
) -> list[Finding]:
    """Everything worth knowing about this machine and its databases; times nothing, writes nothing.

    Args:
        chosen: The settings.
        device: The device.
        shipped: Databases that came with the package, by name. Default: those that did.
        advisers: Finds the cost model of an environment. Default: those of the user and of the package.
    """
    where = environment.of(device)
    if shipped is None:
        opened, unread = open_all_shipped()
        with contextlib.ExitStack() as stack:
            for store in opened.values():
                stack.callback(store.close)
            came = [*_unread(unread), *([_shipped(where, opened)] if opened or not unread else [])]
            model = _model(chosen, where, opened, advisers)
    else:
        came, model = [_shipped(where, shipped)], _model(chosen, where, shipped, advisers)
    return [
        Finding("autoconv", __version__),
        *_mlx(where),
        Finding("environment", f"{where.id}: " + ", ".join(f"{k} {v}" for k, v in where.identity.items())),
        Finding("circumstances", ", ".join(f"{k} {v}" for k, v in where.circumstances.items())),
        Finding("memory", f"{where.memory_bytes / 1e9:.1f} GB, {environment.free_bytes(where) / 1e9:.1f} GB free now"),
        Finding("settings", ", ".join(f"{k} {v}" for k, v in settings.as_dict(chosen).items())),
        *_database(chosen, where),
        *came,
        model,
    ]


def table(findings: list[Finding]) -> Table:
    """The findings as a table of rich; advice stands beneath what it is about."""
    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for finding in findings:
        found.add_row(cell(finding.about), cell(finding.found))
        if finding.advice:
            found.add_row("", cell(f"→ {finding.advice}"), style="yellow")
    return found


def as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    """The findings as plain values for JSON."""
    return [asdict(finding) for finding in findings]


def _mlx(where: Environment) -> Iterator[Finding]:
    yield Finding("MLX", f"{where.identity['mlx']} on {where}")
    if where.backend == "metal":
        rule = f"on Metal it decomposes a 3D convolution with N = 1, KD <= {MAX_DECOMPOSED_DEPTH} and no depth padding"
    else:
        rule = f"none on {where.backend}; native is always the 3D convolution"
    yield Finding("MLX's fixed rule", rule)
    installed = [name for name in ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13") if _is_installed(name)]
    if len(installed) > 1:
        advice = f"uninstall all of {', '.join(installed)}, then install one: they overwrite each other's library file"
        yield Finding("backends", ", ".join(installed), advice)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _database(chosen: Settings, where: Environment) -> list[Finding]:
    """The database, and what it tells of this device."""
    path: Path = chosen.database or default_path()
    if not path.exists():
        return [Finding("database", f"{path}, not begun yet")]
    try:
        with contextlib.closing(open_store(path, readonly=True)) as store:
            problems, pending = len(store.problems(where.id)), len(store.pending(where.id))
            others = len(store.environments()) - (where.id in store.environments())
            measured = list(_measured(store, where))
    except StoreError as error:
        return [Finding("database", str(error), "move the file away, or name another by AUTOCONV_DATABASE")]
    found = f"{path}, {path.stat().st_size / 1e6:.1f} MB: {problems} problems measured here, {pending} pending"
    return [Finding("database", found + (f", {others} other environments" if others else "")), *measured]


def _shipped(where: Environment, shipped: Mapping[str, Store]) -> Finding:
    """Which database that came with the package applies here, or why none does."""
    about = "shipped database"
    if not shipped:
        return Finding(about, "none came with this package")
    near: list[str] = []
    far: list[str] = []
    for name, store in shipped.items():
        for key, (identity, _) in store.environments().items():
            if key == where.id:
                return Finding(about, f"{name} applies: {_worth(store, key)}")
            text = f"{name} differs in {differences(identity, where.identity)}"
            (near if are_kin(identity, where.identity) else far).append(text)
    if near:
        return Finding(about, f"{'; '.join(near)}: what won there is tried first here, and has to win here too")
    return Finding(about, f"none applies: {'; '.join(far)}")


def _model(chosen: Settings, where: Environment, shipped: Mapping[str, Store], advisers: Advisers) -> Finding:
    """Which cost model applies here, or why none does."""
    try:
        found, why = advisers(where, ceilings_of(where, chosen, shipped), chosen)
        applies = f"{found.name} applies" if found is not None else ""
        return Finding("cost model", "; ".join(filter(None, (applies, why))))
    except BROKEN as error:
        return Finding("cost model", f"it cannot be used: {describe(error)}", "train another, or install autoconv anew")


def _unread(unread: Mapping[str, str]) -> Iterator[Finding]:
    """Those that came with the package and cannot be read."""
    for name, reason in unread.items():
        yield Finding("shipped database", f"{name} cannot be read: {reason}", "install autoconv anew: it is damaged")


def _worth(store: Store, key: str) -> str:
    """How many problems were measured in an environment, and of how many a winner is known among the algorithms of this
    version; some 0.2 ms a problem.
    """
    order = places(algorithms())
    problems = deciding = 0
    for problem, records in store.all_records(key):
        problems += 1
        found = choose(records, Limits(), problem.dtype, order, operand_bytes=problem.bytes)
        deciding += found is not None and found.accurate
    return f"{problems} problems measured on such a device, {deciding} decide with this version"


def _measured(store: Store, where: Environment) -> Iterator[Finding]:
    """What the first run on this device found out."""
    known = store.qualification(where.id, fingerprint(algorithms()))
    if known is None:
        yield Finding("qualification", "not done yet; the first measurement does it")
        return
    state = "all algorithms are right" if not known.barred else "; ".join(f"{n}: {w}" for n, w in known.barred.items())
    advice = "barred algorithms are not used here" if known.barred else ""
    yield Finding("qualification", f"{state}; native beats itself by {known.noise:.1%} at most", advice)
    rates = {name: rate for name, rate in known.ceilings.items() if name.startswith("matmul")}
    others = {name: rate for name, rate in known.ceilings.items() if name not in rates}
    slow = where.backend == "cpu" and rates.get("matmul_float32_gflops", SLOW_BLAS_GFLOPS) < SLOW_BLAS_GFLOPS
    yield Finding(
        "ceilings",
        ", ".join(f"{name} {value:.3g}" for name, value in (rates | others).items()),
        f"MLX calls {where.identity['blas']}, a slow BLAS; preloading OpenBLAS (LD_PRELOAD) was measured to be "
        "tens of times as fast"
        if slow
        else "",
    )
