"""The document: one HTML page that holds all it shows, and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = (
    "data.js",
    "look.js",
    "address.js",
    "filter.js",
    "axes.js",
    "figure.js",
    "plots.js",
    "results.js",
    "models.js",
    "table.js",
    "explain.js",
    "paper.js",
    "main.js",
)
"""Parts of the page's script, in order: each uses what stands before it."""

_FOLDER = files("autoconv.report") / "page"


def document(title: str, about: Mapping[str, Any], packed: bytes) -> str:
    """The page.

    Args:
        title: What it is called.
        about: What the page is to know beside the columns: plain values.
        packed: The columns (see `columns.pack`).
    """
    from plotly.offline import get_plotlyjs  # 5 MB, and only wanted here

    own = '"use strict";\n(() => {\n' + "\n".join(_text(name) for name in SCRIPTS) + "\n})();\n"
    plotly = get_plotlyjs()
    return Template(_text("page.html")).substitute(
        title=_escaped(title),
        policy=_policy(plotly, own),
        style=_text("page.css"),
        about=script_json(about),
        data=base64.b64encode(packed).decode(),
        plotly=plotly,
        script=own,
    )


def script_json(values: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: nothing in it ends that, or begins a comment or another script."""
    text = json.dumps(values, allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*scripts: str) -> str:
    """A Content-Security-Policy that lets these very scripts run, and forbids every request.

    Plotly's WebGL makes functions of text, and its styles stand in elements.
    """
    hashes = " ".join(f"'sha256-{digest}'" for digest in _digests(*scripts))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes} 'unsafe-eval'",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "form-action 'none'",
            "base-uri 'none'",
        )
    )


def _digests(*scripts: str) -> Iterator[str]:
    for script in scripts:
        yield base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
