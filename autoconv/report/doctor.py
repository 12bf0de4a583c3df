"""The doctor: what this machine has, what is slow about it, where the database lies, whether it is sound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from autoconv import environment
from autoconv._backend import mx
from autoconv._version import __version__
from autoconv.algorithms import algorithms, places
from autoconv.counsellor import BROKEN, describe
from autoconv.decision import Limits, choose
from autoconv.environment import Environment
from autoconv.errors import StoreError
from autoconv.grounds import memory_bytes
from autoconv.kin import are_kin, differences
from autoconv.model.advisers import Advisers, adviser_for, ceilings_of
from autoconv.report import database_file, machine, variables
from autoconv.report.finding import Finding
from autoconv.settings import Settings
from autoconv.store import Qualification, Store, is_begun, located, open_store
from autoconv.store import shipped as came_with
from autoconv.store.health import health, outdated
from autoconv.tuning.qualification import fingerprint, first_run
from autoconv.words import counted

if TYPE_CHECKING:
    from autoconv.model.card import Card

_ANEW = "install autoconv anew"

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
        *variables.backends(),
        *machine.blas(where, known, probe),
        Finding("environment", f"{where.id}: " + ", ".join(f"{k} {v}" for k, v in where.identity.items())),
        Finding("circumstances", ", ".join(f"{k} {v}" for k, v in where.circumstances.items())),
        machine.memory(chosen, where),
        machine.patched(environ),
        *variables.in_force(chosen, environ, variables.gigabytes(memory_bytes(chosen, where))),
        *own,
        *came,
        *model,
    ]


def _database(chosen: Settings, where: Environment) -> tuple[list[Finding], Qualification | None]:
    """The database, what it tells of this device, and that device's first run; None where there was none."""
    try:
        path = located(chosen.database)
        if not is_begun(path):
            return [database_file.not_begun(path)], None
        with contextlib.closing(open_store(path, readonly=True)) as store:
            problems, pending = len(store.problems(where.id)), len(store.pending(where.id))
            others = len(store.environments()) - (where.id in store.environments())
            known = first_run(store, where.id, fingerprint(algorithms()))
            state, told = database_file.soundness(path)
            large = state.bytes >= LARGE_BYTES
            idle = outdated(path, {a.name: a.version for a in algorithms()}) if large else 0.0
    except StoreError as error:
        return [database_file.unusable(error)], None
    found = f"{path}, {state.bytes / 1e6:.1f} MB: {counted(problems, 'problem')} measured here, {pending} pending"
    found += f", {counted(others, 'other environment')}" if others else ""
    values = {"bytes": state.bytes, "problems": problems, "pending": pending, "other_environments": others}
    advice = (
        f"{idle:.0%} of it is empty or of older versions of algorithms: autoconv prune makes it smaller"
        if idle >= MUCH
        else ""
    )
    return [Finding("database", found, advice, values), told, *_first_run(known)], known


def _shipped_files(unread: Collection[str]) -> Iterator[Finding]:
    """Whether those that came with the package, and could be opened, are sound."""
    count = size = 0
    for path in came_with.shipped_files():
        if path.stem in unread:
            continue
        try:
            state = health(path, immutable=True)
        except StoreError as error:
            yield Finding("shipped files", error.found, _ANEW)
            continue
        if state.faults:
            yield Finding("shipped files", f"{path.name} is damaged: {state.faults[0]}", _ANEW)
            continue
        count, size = count + 1, size + state.bytes
    if count:
        found = f"{counted(count, 'database')}, {size / 1e6:.1f} MB, sound"
        yield Finding("shipped files", found, values={"databases": count, "bytes": size})


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
        yield Finding("shipped database", f"{name} cannot be read: {reason}", _ANEW)


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
    found = f"{state}; native beats itself by {known.noise:.1%} at most"
    yield Finding("qualification", found, advice, {"noise": known.noise, "barred": dict(known.barred)})
    rates = {name: rate for name, rate in known.ceilings.items() if name.startswith("matmul")}
    others = {name: rate for name, rate in known.ceilings.items() if name not in rates}
    told = ", ".join(f"{name} {value:.3g}" for name, value in (rates | others).items())
    yield Finding("ceilings", told, values=dict(known.ceilings))
