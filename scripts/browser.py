"""A headless browser of this machine, for what looks at a report: benchmarks, pictures, tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Its program's names; `scripts/_browser.sh` installs the first where it can."""

FLAGS = (
    "--headless",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 120_000


def program() -> str | None:
    """The browser's program; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """A browser with a profile of its own, closed when the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser, *, width: int = 1366, height: int = 900, dark: bool = False, scale: float = 1.0) -> Page:
    """An empty page of a size, in the look that a system's setting asks for."""
    scheme = "dark" if dark else "light"
    size = {"width": width, "height": height}
    return browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=scale)  # type: ignore[arg-type]


def show(page: Page, file: Path, address: str = "") -> Page:
    """The page with a report in it, drawn to its last plot."""
    page.goto(file.absolute().as_uri() + address)
    page.wait_for_function("document.documentElement.dataset.ready", timeout=PATIENCE_MS)
    return page
