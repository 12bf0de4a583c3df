"""`autoconv export --rule`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoconv.cli._common import backend_here, settings
from autoconv.report.progress import progress_of
from autoconv.words import counted, printable

if TYPE_CHECKING:
    from autoconv.model.rule import Rule
    from autoconv.store import Selection, Store


def export_rule(out: Path, selection: Selection, backend: str | None, database: Path | None, force: bool) -> None:
    """Write the rule of a backend to a file, and print what it loses."""
    from autoconv.model import rule as rules
    from autoconv.model.rule.metal import lacking

    backend = backend or backend_here()
    with progress_of(f"reading what was measured on {backend}") as tell, ExitStack() as stack:
        stores = [stack.enter_context(closing(store)) for store in _stores(database)]
        cases = rules.cases_in(stores, backend, selection, tell)
        if not cases and not selection.is_everything:
            known = [(key, identity) for store in stores for key, (identity, _) in store.environments().items()]
            msg = selection.lacking(pair for pair in known if pair[1].get("backend") == backend)
            raise click.ClickException(printable(f"no rule is written of {backend}: {msg}"))
    if not cases:
        why = (
            f"; {lacking([])}"
            if backend == "metal"
            else ": run autoconv sweep, or name another --backend or --database"
        )
        msg = f"nothing was measured on {backend} to distil a rule from{why}"
        raise click.ClickException(msg)
    written = rules.write(cases, backend, out, force=force)
    _report(out, written.rule)
    if written.upstream is not None:
        _report(out.with_suffix(".cpp"), written.upstream)
        for path in written.files[2:]:
            click.echo(printable(str(path)))
    if written.missing:
        click.echo(printable(written.missing), err=True)


def _stores(database: Path | None) -> list[Store]:
    """The database that is named, else the user's own, where there is one, and those that came with the package."""
    from autoconv.open_stores import begun
    from autoconv.store import open_store
    from autoconv.store.shipped import open_shipped

    if database is not None:
        return [open_store(database, readonly=True)]
    own = begun(settings(None))
    return [*([open_store(own, readonly=True)] if own is not None else []), *open_shipped().values()]


def _report(path: Path, rule: Rule) -> None:
    from autoconv.model.rule import figures

    chips, leaves = ", ".join(rule.chips), counted(len(rule.leaves), "leaf", "leaves")
    click.echo(printable(f"{path}: {leaves}, from {rule.problems} problems on {chips}; regret"))
    for name, loss in figures(rule):
        click.echo(f"  {name}: {loss} ({loss.cases} cases)")
