"""Times the report of many problems: writing the page, and a headless browser that draws it.

    python scripts/bench_report.py --problems 100000

Fails where either takes longer than it may; with no browser there is only the first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
from bench_store import ENVIRONMENT, IDENTITY, made
from browser import launched, new_page, program, show

from autoconv import settings
from autoconv.algorithms import candidates
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.report.report import write
from autoconv.store import Selection, open_store


def _named(problem: Problem, records: Sequence[Record]) -> list[Record]:
    """The records with names of candidates that apply: what does not is looked up at length, and left out."""
    names = [(c.algorithm.name, c.name.partition("(")[2].removesuffix(")")) for c in candidates(problem, "metal")]
    return [
        replace(record, algorithm=name, parameters=parameters)
        for record, (name, parameters) in zip(records, names, strict=False)
    ]


@click.command(epilog="Example: python scripts/bench_report.py --problems 100000")
@click.option("--problems", default=100_000, show_default=True, help="Problems in the database, eight records each.")
@click.option("--most-write", default=60.0, show_default=True, help="Seconds that writing may take.")
@click.option("--most-draw", default=5.0, show_default=True, help="Seconds from the page's opening to its last plot.")
def main(problems: int, most_write: float, most_draw: float) -> None:
    """Print the page's size, and what writing and drawing it take; exit code 1 where that is too long."""
    with tempfile.TemporaryDirectory() as folder:
        database, out = Path(folder) / "autoconv.db", Path(folder) / "report.html"
        with closing(open_store(database)) as store:
            store.add_environment(ENVIRONMENT, IDENTITY, {"os": "Darwin 24"})
            for problem, records in made(range(problems), 0):
                store.add(problem, _named(problem, records))
        start = time.perf_counter()
        found = write(out, settings.current(), Selection(), None, [database])
        written = time.perf_counter() - start
        click.echo(
            f"{found.problems} problems, {found.candidates} results: {found.size / 1e6:.1f} MB in {written:.1f} s"
        )
        executable, drawn = program(), 0.0
        if executable is None:
            click.echo("no browser here: drawing is not timed")
        else:
            with launched(executable) as browser:
                page = show(new_page(browser), out)
                # The page counts from its opening, so that starting the browser is not in it.
                drawn = float(page.evaluate("document.documentElement.dataset.ready")) / 1e3
            click.echo(f"drawn in {drawn:.1f} s")
    if written > most_write or drawn > most_draw:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
