"""Times the report of many problems: writing the page, and a headless browser that draws it.

    python scripts/bench_report.py --problems 100000

A figure is drawn when it comes near to what is in sight. So two times count, both from the page's opening: until its
first screen is seen, and until every figure was scrolled to and seen, one after another with no rest between.
Fails where one takes longer than it may; with no browser there is only the writing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from bench_store import ENVIRONMENT, IDENTITY, made
from browser import launched, new_page, program, show

from autoconv import settings
from autoconv.algorithms import candidates
from autoconv.problem import Problem
from autoconv.record import Record
from autoconv.report.report import write
from autoconv.store import Selection, open_store

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCROLL = """async () => {
    const seen = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
    const times = {};
    for (const figure of document.querySelectorAll("figure")) {
        const start = performance.now();
        figure.scrollIntoView();
        do await seen(); while ("stale" in figure.dataset);
        await seen();
        times[figure.id] = performance.now() - start;
    }
    return { times, end: performance.now() };
}"""
"""Scrolls to each figure and waits until it is drawn and painted: what each took, and the page's age at the end."""

FILTER = """async () => {
    const select = document.querySelector("#filters [name=winner]");
    const start = performance.now();
    select.value = select.options[1].value;
    select.dispatchEvent(new Event("change"));
    while (!("ready" in document.documentElement.dataset)) await new Promise((done) => setTimeout(done, 5));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    return performance.now() - start;
}"""
"""Selects what one algorithm wins and waits until the page is drawn anew."""


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
@click.option("--most-first", default=5.0, show_default=True, help="Seconds from opening to all that is in sight.")
@click.option("--most-draw", default=8.0, show_default=True, help="Seconds from opening to the last figure.")
def main(problems: int, most_write: float, most_first: float, most_draw: float) -> None:
    """Print the page's size, and what writing, drawing and filtering it take.

    Exit code 1 where that is too long, or the page has an error.
    """
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
        executable, first, drawn = program(), 0.0, 0.0
        errors: list[str] = []
        if executable is None:
            click.echo("no browser here: drawing is not timed")
        else:
            with launched(executable) as browser:
                page = new_page(browser)
                page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
                page.on("pageerror", lambda error: errors.append(str(error)))
                first, drawn = _drawn(show(page, out))
                _filter(page)
            click.echo("\n".join(errors) or "no error on its console")
    if written > most_write or first > most_first or drawn > most_draw or errors:
        raise click.exceptions.Exit(1)


def _filter(page: Page) -> None:
    """Choose what one algorithm wins: what that takes until all in sight is drawn anew, and how many are left."""
    took = page.evaluate(FILTER)
    click.echo(f"filtered in {took / 1e3:.1f} s: {page.inner_text('#count')}")


def _drawn(page: Page) -> tuple[float, float]:
    """Seconds from the page's opening, so without the browser's start, to its first screen and to its last figure."""
    first = float(page.evaluate("document.documentElement.dataset.ready")) / 1e3
    click.echo(f"first screen seen after {first:.1f} s")
    resting = float(page.evaluate("performance.now()")) / 1e3 - first
    found = page.evaluate(SCROLL)
    drawn = float(found["end"]) / 1e3 - resting
    each = ", ".join(f"{name} {ms / 1e3:.1f}" for name, ms in found["times"].items())
    click.echo(f"every figure seen, one after another, after {drawn:.1f} s ({each})")
    return first, drawn


if __name__ == "__main__":
    main()
