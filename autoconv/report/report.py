"""A report: from databases to a page and its summary."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoconv import plain_file
from autoconv._version import __version__
from autoconv.environment import Environment
from autoconv.errors import ReportError
from autoconv.open_stores import begun
from autoconv.report.columns import pack
from autoconv.report.document import document
from autoconv.report.gathering import Origin, gather
from autoconv.report.model_curves import SHARES, model_cards
from autoconv.settings import Settings
from autoconv.store import Selection, Store, open_store
from autoconv.store.origins import imported_files
from autoconv.store.shipped import open_shipped

Tell = Callable[[float], None]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        file: The page.
        size: Its bytes.
        problems: How many problems it shows, one in two environments counted twice.
        candidates: How many results of candidates.
        environments: Ids of the environments, with their devices.
        sources: How many of the problems are of each kind of file: `own`, `imported` into that, `shipped` with the
            package, or `file`, one that was asked for.
        gains: By network, as `card.gains`.
    """

    file: Path
    size: int
    problems: int
    candidates: int
    environments: Mapping[str, str]
    sources: Mapping[str, int]
    gains: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "file": str(self.file),
            "bytes": self.size,
            "problems": self.problems,
            "candidates": self.candidates,
            "environments": dict(self.environments),
            "by_source": dict(self.sources),
            "by_network": {name: dict(found) for name, found in self.gains.items()},
        }


def write(
    out: Path,
    settings: Settings,
    selection: Selection,
    here: Environment | None,
    databases: Sequence[Path] = (),
    tell: Tell = lambda _: None,
) -> Report:
    """Write a page about measurements, whole or not at all; says what it holds.

    Args:
        out: The page's file, which is replaced if it exists.
        settings: Whose database is shown, and whose limits decisions are held to.
        selection: Environments and problems.
        here: This machine's environment, for which what came with the package is shown too; None for none.
        databases: To be shown in place of the user's own and of those that came with the package.
        tell: Called now and then with how much is done, 1 being all.

    Raises:
        ReportError: nothing is selected, or the page cannot be written. What was there stays.
        StoreError: a database cannot be read.
    """
    with plain_file.refusing(out, ReportError):
        plain_file.written_at(out)  # before it is gathered, which may take long
    with _opened(settings, here, databases) as (own, shipped):
        found = gather(own, shipped, settings, selection, here.id if here else "", lambda part: tell(0.8 * part))
        tell(0.8)
        if not len(found.problems) and not selection.is_everything:
            raise ReportError(_lacking(selection, [store for _, store in own], list(shipped.values()), here))
        stores = [*(store for _, store in own), *shipped.values()]
        models = list(model_cards(found.environments, stores, settings, selection))
    tell(0.9)
    about = {
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "here": here.id if here else "",
        "accuracy": settings.accuracy,
        "files": [str(path.name) for path in databases],
    }
    meta = {**found.meta, "models": models, "shares": SHARES}
    packed = pack({"problems": found.problems, "candidates": found.candidates}, meta)
    text = document("autoconv report", about, packed)
    with plain_file.refusing(out, ReportError):
        plain_file.write(out, text.encode())
    tell(1.0)
    return Report(
        out,
        out.stat().st_size,
        len(found.problems),
        len(found.candidates),
        {e.id: str(e.identity["device"]) for e in found.environments},
        Counter(found.meta["sources"][int(place)]["kind"] for place in found.problems.arrays["source"]),
        found.gains,
    )


@contextlib.contextmanager
def _opened(
    settings: Settings, here: Environment | None, databases: Sequence[Path]
) -> Iterator[tuple[list[tuple[Origin, Store]], Mapping[str, Store]]]:
    """The databases to show: those that are named, else the user's own and those that came with the package.

    Raises:
        StoreError: one cannot be read.
    """
    with ExitStack() as stack:
        names: Counter[str] = Counter()

        def opened(path: Path, kind: str) -> tuple[Origin, Store]:
            store = stack.enter_context(closing(open_store(path, readonly=True)))
            names[path.name] += 1
            name = path.name if names[path.name] == 1 else f"{path.name} ({names[path.name]})"
            return Origin(name, kind, imported_files(path)), store

        if databases:
            yield [opened(path, "file") for path in databases], {}
            return
        path = begun(settings)
        own = [opened(path, "own")] if path is not None else []
        shipped = open_shipped() if here is not None else {}
        for store in shipped.values():
            stack.callback(store.close)
        yield own, shipped


def _lacking(selection: Selection, own: Sequence[Store], shipped: Sequence[Store], here: Environment | None) -> str:
    """Why nothing is selected, in words."""
    if selection.device or not shipped:
        return selection.lacking(_environments([*own, *shipped]))
    shown = [*_environments(own), *(pair for pair in _environments(shipped) if here and pair[0] == here.id)]
    return f"{selection.lacking(shown)}; of other devices --device shows what came with the package"


def _environments(stores: Sequence[Store]) -> list[tuple[str, Mapping[str, object]]]:
    """Ids of the environments that something was measured in, with their identities."""
    found = ((store, key, identity) for store in stores for key, (identity, _) in store.environments().items())
    return [(key, identity) for store, key, identity in found if store.problems(key)]
