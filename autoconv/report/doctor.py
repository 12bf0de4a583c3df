"""The doctor: what this machine has, what is slow about it, where the database lies, whether it is sound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoconv import environment
from autoconv._backend import mx
from autoconv._version import __version__
from autoconv.algorithms import algorithms, places
from autoconv.counsellor import BROKEN, describe
from autoconv.decision import Limits, choose
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.kin import are_kin, differences
from autoconv.model.advisers import Advisers, adviser_for, ceilings_of
from autoconv.report import machine
from autoconv.report.finding import Finding
from autoconv.report.grid import Column, Grid
from autoconv.settings import Settings
from autoconv.store import Qualification, Store, default_path, open_store
from autoconv.store import shipped as came_with
from autoconv.store.connection import SCHEMA
from autoconv.store.health import Health, health, outdated
from autoconv.tuning.qualification import fingerprint, first_run

if TYPE_CHECKING:
    from autoconv.model.card import Card

LOW_DISK_BYTES = 10**8
"""Room on a database's disk below which the next sweep may not fit."""

LARGE_BYTES = 256 * 10**6
"""A database of this size is looked through for what decides nothing."""

MUCH = 0.25
"""Part of a large database that decides nothing, from which on that is worth a word."""


def examine(
    chosen: Settings,
    device: mx.Device,
    shipped: Mapping[str, Store] | None = None,
    advisers: Advisers = adviser_for,
    environ: Mapping[str, str] = os.environ,
    probe: Callable[[], float] = machine.blas_gflops,
) -> list[Finding]:
    """Everything worth knowing about this machine and its databases; times no convolution, writes nothing.

    What has advice needs attention.

    Args:
        chosen: The settings.
        device: The device.
        shipped: Databases that came with the package, by name. Default: those that did.
        advisers: Finds the cost model of an environment. Default: those of the user and of the package.
        environ: The variables that settings came from.
        probe: Measures the rate of a CPU's BLAS, which is asked for where no first run did.
    """
    where = environment.of(device)
    own, qualification = _database(chosen, where)
    if shipped is None:
        opened, unread = came_with.open_all_shipped()
        with contextlib.ExitStack() as stack:
            for store in opened.values():
                stack.callback(store.close)
            came = [*_unread(unread), *([_shipped(where, opened)] if opened or not unread else [])]
            came += _shipped_files(set(unread))
            model = list(_model(chosen, where, opened, advisers))
    else:
        came, model = [_shipped(where, shipped)], list(_model(chosen, where, shipped, advisers))
    known = qualification.ceilings.get("matmul_float32_gflops") if qualification else None
    return [
        Finding("autoconv", __version__),
        *machine.mlx(where),
        *machine.blas(where, known, probe),
        Finding("environment", f"{where.id}: " + ", ".join(f"{k} {v}" for k, v in where.identity.items())),
        Finding("circumstances", ", ".join(f"{k} {v}" for k, v in where.circumstances.items())),
        machine.memory(chosen, where),
        machine.patched(environ),
        *machine.settings_in_force(chosen, environ),
        *own,
        *came,
        *model,
    ]


def table(findings: list[Finding]) -> Grid:
    """The findings as a table for rich; advice stands beneath what it is about."""
    found = Grid((Column("about", style="bold"), Column("found", beneath=True)), headed=False)
    for finding in findings:
        found.add(finding.about, finding.found)
        if finding.advice:
            found.add("", f"→ {finding.advice}", style="yellow")
    return found


def as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    """The findings as plain values for JSON."""
    return [asdict(finding) for finding in findings]


def _database(chosen: Settings, where: Environment) -> tuple[list[Finding], Qualification | None]:
    """The database, what it tells of this device, and that device's first run; None where there was none."""
    path: Path = chosen.database or default_path()
    if not path.exists():
        return [Finding("database", f"{path}, not begun yet")], None
    try:
        with contextlib.closing(open_store(path, readonly=True)) as store:
            problems, pending = len(store.problems(where.id)), len(store.pending(where.id))
            others = len(store.environments()) - (where.id in store.environments())
            known = first_run(store, where.id, fingerprint(algorithms()))
            state = health(path)
            large = state.bytes >= LARGE_BYTES
            idle = outdated(path, {a.name: a.version for a in algorithms()}) if large else 0.0
    except StoreError as error:
        advice = "move the file away, or name another by AUTOCONV_DATABASE"
        return [Finding("database", str(error), advice)], None
    found = f"{path}, {state.bytes / 1e6:.1f} MB: {problems} problems measured here, {pending} pending"
    found += f", {others} other environments" if others else ""
    advice = f"{idle:.0%} of it decides nothing: autoconv prune makes it smaller" if idle >= MUCH else ""
    return [Finding("database", found, advice), _file(path, state), *_first_run(known)], known


def _file(path: Path, state: Health) -> Finding:
    """Whether the database's file is sound, and what its owner should do about it if it is not."""
    found = (
        f"{state.faults[0] if state.faults else 'sound'}; schema {state.schema} of {SCHEMA}, journal {state.journal}, "
        f"mode {state.mode:04o}, {state.free_bytes / 1e9:.1f} GB free on its disk"
    )
    advice = []
    if state.faults:
        advice.append("export what can be read by autoconv export, move the file away, and import that")
    if not state.writable:
        advice.append("it cannot be written: measurements last for a process; see to its modes, or set readonly=True")
    if state.others_write:
        advice.append(f"others may write what decides your calls: chmod 600 {path}")
    if state.free_bytes < LOW_DISK_BYTES:
        advice.append("make room on its disk")
    return Finding("database file", found, "; ".join(advice))


def _shipped_files(unread: Collection[str]) -> Iterator[Finding]:
    """Whether those that came with the package, and could be opened, are sound."""
    count = size = 0
    for path in came_with.shipped_files():
        if path.stem in unread:
            continue
        try:
            state = health(path, immutable=True)
        except StoreError as error:
            yield Finding("shipped files", str(error), "install autoconv anew: it is damaged")
            continue
        if state.faults:
            fault = f"{path.name} is damaged: {state.faults[0]}"
            yield Finding("shipped files", fault, "install autoconv anew: it is damaged")
            continue
        count, size = count + 1, size + state.bytes
    if count:
        yield Finding("shipped files", f"{count} databases, {size / 1e6:.1f} MB, sound")


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


def _model(chosen: Settings, where: Environment, shipped: Mapping[str, Store], advisers: Advisers) -> Iterator[Finding]:
    """Which cost model applies here, or why none does, and how good it is."""
    try:
        found, why = advisers(where, ceilings_of(where, chosen, shipped), chosen)
    except BROKEN as error:
        yield Finding("cost model", f"it cannot be used: {describe(error)}", "train another, or install autoconv anew")
        return
    applies = f"{found.name} applies" if found is not None else ""
    yield Finding("cost model", "; ".join(filter(None, (applies, why))))
    card: Card | None = getattr(getattr(found, "model", None), "card", None)
    if card is not None:
        yield Finding("its card", _judged(card))


def _judged(card: Card) -> str:
    """How good a model was on networks that it had not seen, in a line."""
    ways = card.judgements["network"]["all"]  # without which it would not be used
    auto, native = ways.get("auto", ways["predict"]), ways["native"]
    return (
        f"on {auto.problems} problems of networks that it did not see {auto.regret_mean:.1%} slower than the best in "
        f"the mean, {auto.timed_share:.0%} of shapes timed, where native is {native.regret_mean:.1%} slower"
    )


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


def _first_run(known: Qualification | None) -> Iterator[Finding]:
    """What the first run on this device found out."""
    if known is None:
        yield Finding("qualification", "not done yet; the first measurement does it")
        return
    state = "all algorithms are right" if not known.barred else "; ".join(f"{n}: {w}" for n, w in known.barred.items())
    advice = "barred algorithms are not used here" if known.barred else ""
    yield Finding("qualification", f"{state}; native beats itself by {known.noise:.1%} at most", advice)
    rates = {name: rate for name, rate in known.ceilings.items() if name.startswith("matmul")}
    others = {name: rate for name, rate in known.ceilings.items() if name not in rates}
    yield Finding("ceilings", ", ".join(f"{name} {value:.3g}" for name, value in (rates | others).items()))
