"""A page in a headless browser of this machine, for what looks at a report: benchmarks, pictures, tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
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


def browser() -> str | None:
    """The browser's program; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def page_of(
    file: Path, *, width: int = 1366, height: int = 900, dark: bool = False, scale: float = 1.0
) -> Iterator[Any | None]:
    """A page of a file, drawn to its end; None where there is no browser, or nothing to drive it by."""
    program = browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            page = opened.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                device_scale_factor=scale,
            )
            page.goto(file.absolute().as_uri())
            page.wait_for_function("document.documentElement.dataset.ready", timeout=PATIENCE_MS)
            yield page
        finally:
            opened.close()
