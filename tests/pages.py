"""A report's page in a real browser, as tests look at it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import browser as browsers

if TYPE_CHECKING:
    from playwright.sync_api import Page


@dataclass
class Seen:
    """A page, with what went wrong in it and what it asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def count(self) -> int:
        """Problems that pass the filter, as the page says."""
        return int(self.page.inner_text("#count").split(" of ")[0].replace(",", ""))

    def points(self, plot: str) -> int:
        """Points that a plot shows."""
        self.bring(plot)
        traces = f"document.getElementById('{plot}-plot').data ?? []"
        return int(self.page.evaluate(f"({traces}).reduce((sum, trace) => sum + trace.x.length, 0)"))

    def bring(self, plot: str) -> None:
        """Scroll to a plot, which is drawn then at the latest."""
        self.page.locator(f"#{plot}-plot").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
        self.page.wait_for_selector(f"#{plot}:not([data-stale])")

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a kind, those of drawings as well."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    def drawn(self) -> None:
        self.page.wait_for_function("document.documentElement.dataset.ready")

    def choose(self, name: str, value: str) -> None:
        self.page.select_option(f"#filters [name={name}]", value)
        self.drawn()

    def type(self, name: str, value: str) -> None:
        before = self.page.inner_text("#count")
        self.page.fill(f"#filters [name={name}]", value)
        self.page.wait_for_function(f"document.getElementById('count').innerText !== {json.dumps(before)}")
        self.drawn()

    def table(self, column: str) -> list[str]:
        """The texts of a column, of the rows in sight."""
        return [text.strip() for text in self.page.locator(f".rows .row .{column}").all_inner_texts()]


def watched(page: Page, file: Path, address: str = "") -> Seen:
    found = Seen(page)
    page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    browsers.show(page, file, address)
    return found
