"""The page about a cost model: what it learned from, what it knows, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoconv.words import printable

if TYPE_CHECKING:
    from autoconv.model.shelf import Kept


def page_of(kept: Kept) -> str:
    """A model's card as a page of Markdown, without what a terminal would obey."""
    origin = kept.model.origin
    fault = kept.model.card.fault()
    lines = [
        f"# {kept.path.name}",
        "",
        f"A cost model of {origin.backend}: {origin.problems} problems of {' and '.join(origin.devices)}, by "
        + ", ".join(f"{name} {version}" for name, version in origin.libraries.items())
        + ".",
        "",
        *([f"It is not used: {fault}.", ""] if fault else []),
        "| database | device | problems |",
        "| --- | --- | ---: |",
        *(f"| {source.name} | {source.device} | {source.problems} |" for source in origin.sources),
        "",
        "It knows " + ", ".join(f"{name}@{version}" for name, version in sorted(origin.algorithms.items())) + ".",
        "",
        *kept.model.card.markdown(),
        "",
        "`autoconv evaluate` makes these tables again.",
        "",
    ]
    return printable("\n".join(lines))
