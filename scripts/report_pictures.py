"""Makes the pictures of docs/report.md from a database that comes with the package, by a headless browser.

python scripts/report_pictures.py
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
from browser import launched, new_page, program, show

from autoconv import settings
from autoconv.report.report import write
from autoconv.store import Selection

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Picture:
    """What a picture shows: so much of the page, from one of its parts on."""

    width: int
    height: int
    dark: bool = False
    part: str = ""


DRAWN = """[...document.querySelectorAll("figure[data-stale]")].every((figure) => {
    const { top, bottom } = figure.getBoundingClientRect();
    return bottom < 0 || top > innerHeight;
})"""
"""Whether all figures in sight are drawn: one is when it comes near."""

PICTURES = {
    "light": Picture(1280, 1900),
    "dark": Picture(1280, 1840, dark=True, part="map"),
    "narrow": Picture(390, 1500),
}


@click.command(epilog="Example: python scripts/report_pictures.py --database tuning_db/nvidia_h200.db")
@click.option(
    "--database",
    type=click.Path(path_type=Path, exists=True),
    default=ROOT / "tuning_db" / "nvidia_h100_80gb_hbm3.db",
    help="What they show. Default: the H100 that comes with the package.",
)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "images", help="Their folder.")
def main(database: Path, out: Path) -> None:
    """Write report-light.png, report-dark.png and report-narrow.png."""
    executable = program()
    if executable is None:
        msg = "a Chromium or Chrome is needed: install one"
        raise click.ClickException(msg)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "report.html"
        write(page_file, settings.current(), Selection(), None, [database])
        with launched(executable) as browser:
            for name, look in PICTURES.items():
                file = out / f"report-{name}.png"
                with closing(new_page(browser, width=look.width, height=look.height, dark=look.dark)) as page:
                    show(page, page_file)
                    if look.part:
                        page.locator(f"#{look.part}").evaluate("part => part.scrollIntoView()")
                    page.wait_for_function(DRAWN)
                    page.screenshot(path=file)
                click.echo(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
