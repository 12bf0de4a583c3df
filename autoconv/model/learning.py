"""Learning: from files of measurements to a model that is kept. Imports scikit-learn only once there is enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoconv.environment import Environment
from autoconv.errors import ModelError
from autoconv.problem import Kind
from autoconv.settings import Settings
from autoconv.store import ModelRecord, Store, is_begun, located, open_store
from autoconv.store import shipped as came

if TYPE_CHECKING:
    from autoconv.model.cost_model import CostModel
    from autoconv.model.shelf import Kept
    from autoconv.model.training import Material

Tell = Callable[[str], None]

MORE = 1.2
"""A sweep trains anew once so many times as many convolutions are measured here as the last model learned from: that
takes minutes where there are thousands."""


def default_databases(settings: Settings) -> list[Path]:
    """The user's own database, where it is begun, and those that came with the package."""
    own = located(settings.database)
    return [*([own] if is_begun(own) else []), *(path for path in came.shipped_files() if not _is_same(path, own))]


def learn(databases: Sequence[Path], backend: str, out: Path, *, private: bool, tell: Tell = lambda _: None) -> Kept:
    """A model of what databases have of a backend, written to a file and to that of its estimators.

    The same measurements give the same arrays, bit for bit.

    Args:
        databases: Their files; of a problem that several have on the same device the first counts.
        backend: The backend.
        out: The model's file.
        private: Whether both are for the user alone.
        tell: Called with what is being done, for people who wait.

    Raises:
        ModelError: there is too little to learn from, or a file cannot be written.
        StoreError: a database cannot be read.
    """
    from autoconv.model import shelf, training

    with opened(databases) as stores:
        tell("reading measurements")
        found = material(stores, databases, backend)
        newest = _newest(stores, found)
    trained = training.train(found, created=newest, tell=tell)
    return shelf.keep(trained.model, trained.estimators, out, private=private)


def learn_own(
    settings: Settings,
    where: Environment,
    *,
    databases: Sequence[Path] = (),
    backend: str | None = None,
    tell: Tell = lambda _: None,
) -> tuple[Kept, ModelRecord]:
    """The user's own model, written beside their database, which trusts it from then on, and what that says of it.

    Args:
        settings: The settings, which name that database.
        where: This machine.
        databases: What to learn from. Default: `default_databases`.
        backend: The backend. Default: this machine's.
        tell: As in `learn`.

    Raises:
        ModelError, StoreError: as `learn`.
    """
    from autoconv.model.shelf import own_path

    database = located(settings.database)
    backend = backend or where.backend
    learned_from = databases or default_databases(settings)
    kept = learn(learned_from, backend, own_path(database, backend), private=True, tell=tell)
    return kept, trust(kept, database, where)


def trust(kept: Kept, database: Path, where: Environment) -> ModelRecord:
    """Keep in a database that its owner trusts a model; what is kept.

    Raises:
        StoreError: the database cannot be written.
    """
    origin = kept.model.origin
    learned = sum(s.problems for s in origin.sources if (s.environment, s.name) == (where.id, database.name))
    with closing(open_store(database)) as store:
        here = min(learned, _measured(store, where)) if learned else 0
        found = ModelRecord(
            origin.backend, kept.path.name, kept.sha256, where.id if learned else None, here, time.time()
        )
        store.trust_model(found)
    return found


def measured_here(settings: Settings, where: Environment) -> int:
    """How many convolutions the user's own database has that were measured in an environment, none of them imported.

    Raises:
        StoreError: it cannot be read.
    """
    database = located(settings.database)
    if not is_begun(database):
        return 0
    with closing(open_store(database, readonly=True)) as store:
        return _measured(store, where)


def _measured(store: Store, where: Environment) -> int:
    return sum(
        problem.kind is Kind.FORWARD and any(not record.origin for record in records)
        for problem, records in store.all_records(where.id)
    )


def is_due(count: int, settings: Settings, where: Environment) -> bool:
    """Whether a model of a user's own is worth its minutes: there is enough to learn from, and either `MORE` than there
    was or other versions of algorithms than the last one knows.

    Args:
        count: How many convolutions are measured here (see `measured_here`).
        settings: The settings, which name the database.
        where: This machine.

    Raises:
        StoreError: the database cannot be read.
    """
    from autoconv.algorithms import algorithms
    from autoconv.model.advisers import LEAST_HERE, trusted
    from autoconv.model.shelf import load

    found = trusted(settings, where.backend) if count >= LEAST_HERE else None
    if found is None:
        return count >= LEAST_HERE
    path, record = found
    try:
        model = load(path, record.sha256)
    except ModelError:  # it is gone or damaged
        return True
    learned = record.problems if record.environment == where.id else 0
    return bool(model.outdated(algorithms())) or count >= MORE * learned


@contextmanager
def opened(databases: Sequence[Path]) -> Iterator[dict[str, Store]]:
    """Databases open for reading, by the names of their files.

    Raises:
        ModelError: two have the same name.
        StoreError: one cannot be opened.
    """
    with ExitStack() as stack:
        stores: dict[str, Store] = {}
        for path in databases:
            if path.name in stores:
                msg = f"two databases are named {path.name}: rename one, as a model names what it learned from"
                raise ModelError(msg)
            stores[path.name] = stack.enter_context(closing(open_store(path, readonly=True)))
        yield stores


def material(stores: Mapping[str, Store], databases: Sequence[Path], backend: str) -> Material:
    """What open databases have to learn from, with the SHA-256 of those files that nobody writes.

    Raises:
        ModelError: it is too little.
    """
    from autoconv.model import shelf, training

    found = training.material(stores, backend)
    used = {source.name for source in found.sources}
    at_rest = [path for path in databases if path.name in used and not _in_use(path)]
    digests = {path.name: shelf.file_sha256(path) for path in at_rest}
    return replace(found, sources=tuple(replace(s, file_sha256=digests.get(s.name, "")) for s in found.sources))


def reproduced(model: CostModel, databases: Sequence[Path]) -> Material:
    """What a model learned from, of the databases that it names.

    Raises:
        ModelError: one is missing, or has other measurements than it had.
        StoreError: one cannot be read.
    """
    from autoconv.model import shelf

    wanted = list(dict.fromkeys(source.name for source in model.origin.sources))
    digests = {source.name: source.file_sha256 for source in model.origin.sources}
    there: dict[str, Path] = {}
    for path in databases:
        if path.name in digests and path.exists():
            # Of several of a name, the one that is the very file.
            is_it = shelf.file_sha256(path) == digests[path.name]
            there[path.name] = path if is_it else there.get(path.name, path)
    missing = [name for name in wanted if name not in there]
    if missing:
        msg = f"{model.name} learned from {missing[0]}, which is neither yours nor came with the package"
        raise ModelError(msg)
    paths = [there[name] for name in wanted]
    with opened(paths) as stores:
        found = material(stores, paths, model.origin.backend)
    before = {(s.name, s.environment): s.digest for s in model.origin.sources}
    for source in found.sources:
        if before.pop((source.name, source.environment), None) != source.digest:
            msg = f"{source.name} has other measurements of {source.device} than {model.name} learned from"
            raise ModelError(msg)
    if before:
        name, environment = next(iter(before))
        msg = f"{name} has no measurements of {environment} any more, from which {model.name} learned"
        raise ModelError(msg)
    return found


def _newest(stores: Mapping[str, Store], found: Material) -> float:
    """When the newest record was made of those environments: a model has no other time, so that its bytes repeat."""
    return max(
        (
            record.created
            for source in found.sources
            for problem, records in stores[source.name].all_records(source.environment)
            if problem.kind is Kind.FORWARD
            for record in records
        ),
        default=0.0,
    )


def _in_use(path: Path) -> bool:
    """Whether changes wait beside a database."""
    beside = (Path(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    return any(file.exists() and file.stat().st_size for file in beside)


def _is_same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)
