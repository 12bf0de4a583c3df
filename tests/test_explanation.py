"""The faces of an explanation: plain text in a pipe, a table in a terminal, HTML in a notebook, JSON for programs."""

from __future__ import annotations

import contextlib
import io
import json
import math
from html.parser import HTMLParser

import pytest
from rich.console import Console

from autoconv.decision import Decision, Source, Verdict
from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report.explanation import COLUMNS, Explanation

PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
HOSTILE = '<script>alert("&1")</script> [red] \x1b]0;owned\x07 \u202eover'
"""What a browser, rich or a terminal would obey."""

SHOWN = '<script>alert("&1")</script> [red] \\x1b]0;owned\\x07 \\u202eover'


def record(name: str, status: Status, *times: float, error: float | None = 1e-7, detail: str = "") -> Record:
    return Record(PROBLEM.key, "here", name, 1, "", status, times, error, 10**6, detail=detail, run="r", created=2.0)


@pytest.fixture
def explained() -> Explanation:
    """Of native, one that is faster, one that failed with a message nobody may obey, and one that nobody tried."""
    native, fast = record("native", Status.OK, 8000.0), record("fast", Status.OK, 4000.0)
    failed = record("broken", Status.WRONG, error=math.inf, detail=HOSTILE)
    verdicts = (
        Verdict(native, Status.OK, 1.0, "the measure"),
        Verdict(fast, Status.OK, 2.0, "2.00 times as fast as native"),
        Verdict(failed, Status.WRONG, None, HOSTILE),
    )
    decision = Decision("fast", Source.DATABASE, 1.0, "2.00 times as fast as native", bound=1e-5, verdicts=verdicts)
    where = Environment({"backend": "cpu", "device": HOSTILE, "mlx": "0.32.4"})
    return Explanation(PROBLEM, where, decision, math.inf, ("native", "fast", "broken", "untried"))


class Page(HTMLParser):
    """A piece of HTML as a browser takes it: which elements it has, and the texts of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[str]:
        """The texts in elements of this name."""
        return [text for at, text in self.texts if at == tag]


def test_a_notebook_shows_every_candidate_and_the_decision(explained: Explanation) -> None:
    page = Page(explained._repr_html_())
    assert page.open == []
    assert page.of("th") == list(COLUMNS)
    cells = page.of("td")
    for text in ("native", "fast", "broken", "untried", "not measured", "8.000", "4.000", "2.00x"):
        assert text in cells
    assert page.of("strong") == ["fast, from database: 2.00 times as fast as native"]
    assert [tag for tag, value in page.attributes if tag == "style" and "bold" in str(value)] == ["style"]


def test_a_notebook_obeys_no_text_and_runs_nothing(explained: Explanation) -> None:
    page = Page(explained._repr_html_())
    assert set(page.tags) <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert {name for name, _ in page.attributes} == {"style"}
    assert SHOWN in page.of("td")
    assert any(SHOWN in line for line in page.of("div"))
    assert "\x1b" not in explained._repr_html_()


def test_a_notebook_s_colours_are_the_page_s(explained: Explanation) -> None:
    """What names a colour is unreadable on either a light or a dark page."""
    styles = {
        part.split(":")[0].strip()
        for _, style in Page(explained._repr_html_()).attributes
        for part in (style or "").split(";")
    }
    assert styles
    assert not {name for name in styles if "color" in name or "background" in name}


def test_print_in_a_pipe_is_plain_text(explained: Explanation) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print(explained)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert "fast, from database: 2.00 times as fast as native" in lines
    assert next(line for line in lines if line.startswith("fast  ")).split()[:3] == ["fast", "ok", "4.000"]


def test_rich_prints_a_table_that_reads_no_markup(explained: Explanation) -> None:
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=True, color_system="standard").print(explained)
    text = out.getvalue()
    assert "\x1b[1m" in text
    assert "\x1b]0;" not in text
    assert text.count("[red]") == 2  # the device's name, and why one was not taken


def test_json_is_read_by_any_reader_and_says_the_same(explained: Explanation) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    for indent in (None, 2):
        found = json.loads(explained.to_json(indent=indent), parse_constant=refuse)
        assert found == json.loads(json.dumps(explained.as_dict()))
    broken = next(c for c in found["candidates"] if c["candidate"] == "broken")
    assert (broken["error"], found["memory_limit_bytes"]) == (None, None)
    assert len(explained.to_json().splitlines()) == 1
