"""Tables in narrow terminals and in pipes: no number is cut, no heading either, and what is said is said in full."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from autoconv.decision import Decision, Source, Verdict
from autoconv.environment import Environment
from autoconv.model.card import Judgement
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report import finding, judgements, tables
from autoconv.report.console import console
from autoconv.report.explanation import COLUMNS, Explanation
from autoconv.report.finding import Finding
from autoconv.report.grid import Column, Grid
from autoconv.sweep.runner import Ending, Outcome
from autoconv.sweep.workload import Layer

WIDTHS = (60, 80, 100)
PROBLEM = Problem.parse((1, 11, 480, 720, 128), (256, 3, 3, 3, 128), dtype="bfloat16", padding=(0, 1, 1))
LONG = "kd_decomposition(channels=128,frames=7,sum=float32)"
WHY = "it was given up after two turns, since it took 1.24 times as long as the best one did; nothing else is known"


def record(name: str, status: Status, us: float, error: float) -> Record:
    algorithm, _, parameters = name.partition("(")
    samples = (us, us) if status is Status.OK else ()
    fields: dict[str, Any] = {"workspace_bytes": 1_234_567_890, "peak_bytes": 9_876_543_210, "run": "r", "created": 2.0}
    return Record(PROBLEM.key, "here", algorithm, 1, parameters.rstrip(")"), status, samples, error, **fields)


def decision() -> Decision:
    verdicts = (
        Verdict(record("native", Status.OK, 123_456.0, 1.25e-3), Status.OK, 1.0, "the measure"),
        Verdict(record(LONG, Status.OK, 98_765.0, 2.5e-3), Status.OK, 1.25, WHY),
        Verdict(record("im2col(axes=dhw)", Status.INACCURATE, 0.0, 7.5e-2), Status.INACCURATE, None, "error 7.5e-02"),
    )
    return Decision(LONG, Source.DATABASE, 0.25, "1.25 times as fast", bound=1.5e-2, verdicts=verdicts)


def explained() -> Explanation:
    where = Environment({"backend": "cuda", "device": "Some GPU", "mlx": "0.32.4"})
    return Explanation(PROBLEM, where, decision(), 8e9, ("native", LONG, "im2col(axes=dhw)", "matmul"))


def outcomes() -> list[Outcome]:
    layers = [Layer("a_network_of_a_long_name", "", f"decoder.up.{n}.conv1", 7, PROBLEM, "") for n in range(3)]
    return [Outcome(layer, Ending.TIMED, decision()) for layer in layers]


def judged() -> Grid:
    ways = dict.fromkeys(
        judgements.WAYS, Judgement(4443, 0.0847, 0.437, 32.23, 0.0042, 0.1, 1.04, 0.725, 0.5, 0.229, 0)
    )
    return judgements.of_card({"device": {"NVIDIA H100 80GB HBM3": ways}, "network": {"all": ways}})


FINDINGS = [
    Finding("shipped database", f"one_device: {WHY}", "move the file away, or name another"),
    Finding("MLX", "1"),
]

TABLES: dict[str, Callable[[], Grid]] = {
    "explain": lambda: explained().table(),
    "outcomes": lambda: tables.outcome_table(outcomes()),
    "networks": lambda: tables.network_table(outcomes()),
    "fleet": lambda: tables.network_table([Outcome(o.layer, o.ending, o.decision, device="gpu 1") for o in outcomes()]),
    "judgements": judged,
    "doctor": lambda: finding.table(FINDINGS),
}


def printed(what: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(width=width, file=out, highlight=False).print(what)
    return out.getvalue().splitlines()


def numbers(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split() if re.fullmatch(r"[\d.]+(e[-+]\d\d|x|%)?", word)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_in_a_narrow_terminal_no_number_and_no_heading_is_cut(name: str, width: int) -> None:
    table = TABLES[name]()
    lines, whole = printed(table, width), printed(table, 1000)
    assert len(whole) >= len(table.rows)
    assert max(map(len, whole)) > 100
    assert max(map(len, lines)) <= width
    assert not any("…" in line or line != line.rstrip() for line in lines)
    assert numbers(lines) <= numbers(whole)
    if table.headed:
        head = lines[: next(n for n, line in enumerate(lines) if table.rows[0].texts[0][:12] in line)]
        known = {word for column in table.columns for word in column.name.replace(",", "").split()}
        assert {word for line in head for word in re.split(r"[\s:,]+", line) if word} <= known


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in TABLES if name != "judgements"])
def test_what_is_said_in_words_is_said_in_full(name: str, width: int) -> None:
    table = TABLES[name]()
    said = "".join("".join(printed(table, width)).split())
    texts = [row.texts[at] for row in table.rows for at, column in enumerate(table.columns) if column.beneath]
    assert max(map(len, texts)) > 15
    assert all("".join(text.split()) in said for text in texts)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_explanation_keeps_time_gain_error_and_reason_and_tells_what_cannot_win(width: int) -> None:
    lines = printed(explained().table(), width)
    text = "\n".join(lines)
    for number in ("123.456", "98.765", "1.00x", "1.25x", "2.5e-03", "7.5e-02"):
        assert number in text.split()
    assert "".join(WHY.split()) in "".join(text.split())
    head = " ".join(lines[:3]).replace(":", "").split()
    assert {"candidate", "time", "ms", "vs", "native", "error", "status", "why"} <= set(head)
    assert "bound" not in head
    failed = next(n for n, line in enumerate(lines) if line.startswith("im2col"))
    assert "inaccurate" in " ".join(lines[failed : failed + 2])
    assert "not measured" in " ".join(lines[-2:])


def test_with_room_for_all_an_explanation_is_a_line_a_candidate() -> None:
    lines = printed(explained().table(), 250)
    assert [line.split()[0] for line in lines] == ["candidate", "native", LONG, "im2col(axes=dhw)", "matmul"]
    at = 0
    for column in COLUMNS:
        at = lines[0].index(column, at) + len(column)
    assert lines[2].endswith(WHY)


def test_what_is_least_worth_leaves_first_and_what_is_empty_before_it() -> None:
    table = Grid(
        (
            Column("name"),
            Column("worth", numbers=True, leaves=3),
            Column("less", numbers=True, leaves=2),
            Column("empty", numbers=True, leaves=9),
            Column("state", leaves=1, unless="ok"),
        )
    )
    table.add("one", "11111", "22222", "", "ok")
    table.add("two", "33333", "44444", "", "failed")
    heads = {width: printed(table, width)[0].split() for width in (33, 26, 18, 11, 10)}
    assert heads == {
        33: ["name", "worth", "less", "empty", "state"],
        26: ["name", "worth", "less", "state"],
        18: ["name", "worth", "less"],
        11: ["name", "worth"],
        10: ["name"],
    }
    assert printed(table, 18) == [
        "name  worth   less",
        "    state",
        "one   11111  22222",
        "two   33333  44444",
        "    failed",
    ]


def test_names_are_broken_after_a_comma_and_only_where_nothing_else_helps() -> None:
    table = Grid((Column("candidate"), Column("time ms", numbers=True)))
    table.add("depth_concat(channels=8,edges=split)", "5.539")
    assert printed(table, 45) == [
        "candidate                             time ms",
        "depth_concat(channels=8,edges=split)    5.539",
    ]
    assert printed(table, 32) == [
        "                            time",
        "candidate                     ms",
        "depth_concat(channels=8,   5.539",
        "edges=split)",
    ]


def test_a_name_too_long_for_its_room_is_broken_after_its_bracket() -> None:
    table = Grid((Column("candidate"), Column("ms", numbers=True)))
    table.add("depth_concat(channels=8,edges=split)", "5.5")
    assert printed(table, 20)[1:] == ["depth_concat(    5.5", "channels=8,", "edges=split)"]


def test_names_that_may_narrow_do_before_a_column_leaves_and_are_whole_again_once_one_left() -> None:
    table = Grid((Column("network", narrows=12), Column("gain", numbers=True, leaves=1)))
    table.add("a network of some words", "1.25x")
    assert printed(table, 20)[:2] == ["network         gain", "a network of   1.25x"]
    table = Grid((Column("network", narrows=20), Column("gain", numbers=True, leaves=1)))
    table.add("a network of some words", "1.25x")
    assert printed(table, 24) == ["network", "a network of some words"]


def test_a_text_of_many_lines_stays_in_its_row() -> None:
    table = Grid((Column("why"), Column("ms", numbers=True)))
    table.add("first\n\tsecond", "1.5")
    assert printed(table, 80) == ["why            ms", "first second  1.5"]


def test_wide_characters_take_their_room() -> None:
    table = Grid((Column("device", narrows=12), Column("ms", numbers=True)))
    table.add("計算機の名前は長い", "1.5")
    table.add("short", "22.5")
    assert printed(table, 24) == [
        "device                ms",
        "計算機の名前は長い   1.5",
        "short               22.5",
    ]
    assert printed(table, 18) == [
        "device          ms",
        "計算機の名前   1.5",
        "は長い",
        "short         22.5",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_in_a_pipe_a_row_is_a_line_neither_cut_nor_filled_with_blanks(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLES[name]()
    console().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(table.rows) + table.headed
    assert not any(line != line.rstrip() for line in lines)
    for line, row in zip(lines[table.headed :], table.rows, strict=True):
        assert all(text in line for text in row.texts)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_above_a_table_ends_in_blanks_or_is_cut(width: int) -> None:
    found = Explanation(PROBLEM, explained().environment, Decision("native", Source.NATIVE, None, WHY), 1, ())
    lines = printed(found, width)
    assert max(map(len, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)
    assert "".join(WHY.split()) in "".join("".join(lines).split())


def test_a_long_line_above_a_table_is_not_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    found = explained()
    console().print(Explanation(PROBLEM, found.environment, Decision("native", Source.NATIVE, None, WHY * 9), 1, ()))
    assert WHY * 9 in capsys.readouterr().out
