"""Which cost model advises in an environment.

The user's own comes first, if it learned from enough problems of this very environment; else the nearest that came
with the package. Nothing here imports NumPy or a model before there is a file to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autoconv.algorithms import algorithms
from autoconv.environment import Environment
from autoconv.errors import ModelError, StoreError
from autoconv.model.advice import Adviser
from autoconv.open_stores import begun
from autoconv.settings import Settings
from autoconv.store import ModelRecord, Store, open_store
from autoconv.store import shipped as came

if TYPE_CHECKING:
    from autoconv.model.cost_model import CostModel

Advisers = Callable[[Environment, Mapping[str, float], Settings], tuple[Adviser | None, str]]
"""From an environment, its ceilings (see `store.contract.Qualification`; empty where it was not qualified) and settings
to what advises there, or to None, and why nothing does or what comes before it does not, in words."""

LEAST_HERE = 150
"""Problems of an environment that a user's own model must have learned from to advise there."""

NONE_THERE = "no model is there"


def adviser_for(where: Environment, ceilings: Mapping[str, float], settings: Settings) -> tuple[Adviser | None, str]:
    """What advises in an environment, or None; and why nothing does, or why the user's own model does not."""
    found, why = model_for(where, ceilings, settings)
    if found is None:
        return None, why
    from autoconv.model.cost_model import Advising

    return Advising(found, ceilings), why


def model_for(where: Environment, ceilings: Mapping[str, float], settings: Settings) -> tuple[CostModel | None, str]:
    """The model that applies in an environment, or None; and why none does, or why the user's own does not."""
    own, why_not_own = _own(where, settings)
    if own is not None and ceilings:
        return own, ""
    files = came.shipped_models(where.backend)
    near: list[tuple[float, str, CostModel]] = []
    reasons = [why_not_own] if why_not_own else []
    for path in files if own is None else ():
        try:
            model = _loaded(path)
            _check_databases(model, path)
        except ModelError as error:
            reasons.append(f"{path.name} is not used: {str(error).removeprefix(f'{path.name} ')}")
            continue
        near.append((model.distance(ceilings) if ceilings else 0.0, path.name, model))
    if not ceilings and (own is not None or near):
        name = own.name if own is not None else near[0][1]
        return None, f"{name} is not used yet: what this device can do at most is not known before its first run"
    if near:
        from autoconv.model.cost_model import REACH

        distance, name, model = min(near, key=lambda each: each[:2])
        if distance <= REACH:
            return model, why_not_own
        reasons.append(f"{name} is not used: {_far(model, ceilings)}")
    return None, "; ".join(reasons) or NONE_THERE


def ceilings_of(
    where: Environment, settings: Settings, shipped: Mapping[str, Store] | None = None
) -> Mapping[str, float]:
    """What an environment's device can do at most, by its own first run or by that of its like; nothing where there was
    none.

    Args:
        where: The environment.
        settings: The settings, which name the user's own database.
        shipped: Databases that came with the package, by name. Default: those that did.
    """
    from autoconv.tuning.qualification import fingerprint, first_run

    database = begun(settings)
    asked_for = fingerprint(algorithms())
    with ExitStack() as stack:
        stores: list[Store] = []
        if database is not None:
            with suppress(StoreError):  # whoever opens it to use it tells of that
                stores.append(stack.enter_context(closing(open_store(database, readonly=True))))
        if shipped is None:
            shipped = came.open_shipped()
            for store in shipped.values():
                stack.callback(store.close)
        for store in (*stores, *shipped.values()):
            with suppress(StoreError):  # as above
                known = first_run(store, where.id, asked_for)
                if known is not None:
                    return known.ceilings
    return {}


def fault_here(trusted: ModelRecord, where: Environment) -> str:
    """Why a user's own model may not advise in an environment, whatever its card; empty if it may."""
    here = trusted.problems if trusted.environment == where.id else 0
    if here >= LEAST_HERE:
        return ""
    return f"it learned from {here} problems measured here, and {LEAST_HERE} are needed"


def trusted(settings: Settings, backend: str) -> tuple[Path, ModelRecord] | None:
    """The file of the user's own model of a backend, and what the database says of it; None where there is none.

    Raises:
        StoreError: the database cannot be read.
    """
    database = begun(settings)
    if database is None:
        return None
    with closing(open_store(database, readonly=True)) as store:
        records = store.trusted_models()
    from autoconv.model.shelf import own_path

    path = own_path(database, backend)
    found = next((r for r in records if r.file == path.name and r.backend == backend), None)
    return None if found is None else (path, found)


def _own(where: Environment, settings: Settings) -> tuple[CostModel | None, str]:
    """The user's own model, if it may advise here, or None and why not; no reason where there is none."""
    try:
        found = trusted(settings, where.backend)
        if found is None:
            return None, ""
        path, record = found
        model = _loaded(path, record.sha256)
    except ModelError as error:
        return None, f"your own model is not used: {error}"
    except StoreError:  # the caller has warned of it
        return None, ""
    fault = fault_here(record, where)
    return (None, f"{path.name} is not used: {fault}") if fault else (model, "")


def _loaded(path: Path, sha256: str | None = None) -> CostModel:
    """The model of a file, if nothing speaks against it.

    Raises:
        ModelError: something does.
    """
    from autoconv.model import shelf

    model = shelf.load(path, sha256)
    fault = model.misfit(algorithms())
    if fault:
        msg = f"{path.name} is not used: {fault}" if sha256 else fault
        raise ModelError(msg)
    return model


def _check_databases(model: CostModel, path: Path) -> None:
    """Refuse a shipped model beside other databases than those that it learned from.

    Raises:
        ModelError: one is missing, or is not what it was.
    """
    from autoconv.model.shelf import file_sha256

    for name, sha256 in {source.name: source.file_sha256 for source in model.origin.sources}.items():
        beside = path.with_name(name)
        if not beside.exists():
            msg = f"it learned from {name}, which is not beside it"
            raise ModelError(msg)
        if file_sha256(beside) != sha256:
            msg = f"it learned from another {name} than the one beside it"
            raise ModelError(msg)


def _far(model: CostModel, ceilings: Mapping[str, float]) -> str:
    devices = " and ".join(model.origin.devices)
    known = set().union(*(source.ceilings for source in model.origin.sources))
    missing = sorted(name for name in known if not ceilings.get(name, 0.0) > 0)
    if missing:
        return f"this device's {missing[0]} is not known"
    return f"it learned from {devices}, and this device is faster or slower than that by over a factor of 4"
