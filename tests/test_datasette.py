"""A database in Datasette: every view answers with rows, and is explained."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autoconv.cli import main
from autoconv.errors import AutoconvWarning
from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id
from autoconv.report.metadata import metadata
from autoconv.store import Selection, export, import_file, open_store
from autoconv.store.shipped import shipped_folder

VIEWS = ("winners", "gains", "failures", "devices", "measured_environments", "results", "times")
"""As Datasette lists them."""

PROBLEM = Problem.parse((1, 4, 8, 8, 4), (6, 3, 3, 3, 2), groups=2, padding=1)
OTHER = Problem.parse((1, 4, 8, 9, 4), (6, 1, 3, 3, 4), dtype="float16")
IDENTITY: dict[str, object] = {
    "backend": "metal",
    "device": "Apple M3",
    "architecture": "applegpu_g15s",
    "mlx": "1.2",
    "MLX_ENABLE_TF32": "0",
    "MLX_METAL_FAST_SYNCH": "1",
    "gpu_cores": 10,
    "working_set": 17_179_869_184,
}
ENV = environment_id(IDENTITY)


def record(problem: Problem, name: str, us: float, status: Status = Status.OK, **fields: Any) -> Record:
    algorithm, _, parameters = name.partition("(")
    samples = (us - 1, us, us + 5) if status is Status.OK else ()
    made = {"run": "a", "created": 86400.0, "library": "0.1.0", **fields}
    return Record(problem.key, ENV, algorithm, 1, parameters.rstrip(")"), status, samples, 1e-7, 10, 20, **made)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A database of a few records."""
    path = tmp_path / "fresh.db"
    with closing(open_store(path)) as store:
        store.add_environment(ENV, IDENTITY, {"os": "Darwin 24", "memory_bytes": 25_769_803_776})
        store.add(PROBLEM, [record(PROBLEM, "native", 100), record(PROBLEM, "im2col(axes=dhw)", 40)])
        crashed = record(PROBLEM, "matmul", 0, Status.CRASHED, run="b", detail="the process ended")
        store.add(
            PROBLEM, [record(PROBLEM, "native", 100, run="b"), record(PROBLEM, "turned_kernel", 80, run="b"), crashed]
        )
        store.add(PROBLEM, [record(PROBLEM, "native", 0, Status.TOO_SLOW, run="c")])
        store.add(OTHER, [record(OTHER, "native", 100), record(OTHER, "turned_kernel", 99)])
    return path


@pytest.fixture
def browsable(fresh: Path, tmp_path: Path) -> Path:
    """An export of it for Datasette."""
    path = tmp_path / "browsable.db"
    export(fresh, path, browsable=True)
    return path


def selected(path: Path, sql: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as opened:
        opened.row_factory = sqlite3.Row
        opened.execute("PRAGMA trusted_schema = OFF")  # as every connection of this library has it
        return [dict(row) for row in opened.execute(sql)]


def pages(path: Path, described: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, Any], str]]:
    """Of every view the status, the rows as JSON, and the page, by Datasette in this process."""
    from datasette.app import Datasette

    async def asked() -> dict[str, tuple[int, dict[str, Any], str]]:
        datasette = Datasette(
            [str(path)], metadata=described, settings={"sql_time_limit_ms": 20_000, "facet_time_limit_ms": 20_000}
        )
        found = {}
        for view in VIEWS:
            rows = await datasette.client.get(f"/{path.stem}/{view}.json?_shape=objects&_size=5")
            page = await datasette.client.get(f"/{path.stem}/{view}?_size=5")
            assert page.status_code == rows.status_code
            found[view] = (rows.status_code, rows.json(), page.text)
        return found

    return asyncio.run(asked())


# Datasette 0.65 opens databases in threads that it never joins, and finds plugins by a deprecated interface.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("which", ["fresh", "shipped"])
def test_every_view_answers_with_rows(which: str, browsable: Path, tmp_path: Path) -> None:
    path = browsable
    if which == "shipped":
        folder = shipped_folder()
        assert folder is not None
        path = tmp_path / "copy.db"
        export(folder / "amd_epyc_genoa_reference_blas.db", path, browsable=True)
    for view, (status, rows, page) in pages(path, metadata(path.stem)).items():
        assert status == 200, view
        assert rows["rows"], view
        told = metadata(path.stem)["databases"][path.stem]["tables"][view]
        assert told["title"] in page
        assert page.count("<dt>") == len(rows["columns"])
        assert set(rows["facet_results"]) == set(told.get("facets", []))


def test_a_winner_is_that_of_the_newest_run_that_timed_anything(fresh: Path) -> None:
    found = {row["problem"]: row for row in selected(fresh, "SELECT * FROM winners")}
    assert set(found) == {PROBLEM.key, OTHER.key}
    winner = found[PROBLEM.key]
    assert (winner["winner"], winner["native_us"], winner["winner_us"]) == ("turned_kernel", 100, 80)
    assert winner["speedup"] == 1.25
    assert (winner["input"], winner["weight"], winner["kernel"]) == ("1x4x8x8x4", "6x3x3x3x2", "3x3x3")
    assert (winner["device"], winner["measured"]) == ("Apple M3", "1970-01-02")


def test_native_is_kept_up_to_two_percent(fresh: Path) -> None:
    (found,) = selected(fresh, f"SELECT * FROM winners WHERE problem = '{OTHER.key}'")
    assert (found["winner"], found["speedup"]) == ("native", 1.0)


def test_where_native_does_not_run_another_wins_by_nothing(tmp_path: Path) -> None:
    path = tmp_path / "groups.db"
    with closing(open_store(path)) as store:
        store.add_environment(ENV, IDENTITY, {})
        store.add(PROBLEM, [record(PROBLEM, "native", 0, Status.FAILED), record(PROBLEM, "im2col", 40)])
    (found,) = selected(path, "SELECT * FROM winners")
    assert (found["winner"], found["native_us"], found["speedup"]) == ("im2col", None, None)
    assert selected(path, "SELECT * FROM gains") == []


def test_gains_add_up_times(fresh: Path) -> None:
    found = {row["dtype"]: row for row in selected(fresh, "SELECT * FROM gains")}
    assert (found["float32"]["gain"], found["float32"]["not_native"]) == (1.25, 1)
    assert (found["float16"]["gain"], found["float16"]["problems"]) == (1.0, 1)


def test_failures_are_those_that_failed(fresh: Path) -> None:
    (found,) = selected(fresh, "SELECT * FROM failures")
    assert (found["candidate"], found["status"], found["detail"]) == ("matmul", "crashed", "the process ended")


def test_devices_say_what_they_are_and_have(fresh: Path) -> None:
    (found,) = selected(fresh, "SELECT * FROM devices")
    assert (found["device"], found["backend"], found["os"]) == ("Apple M3", "metal", "Darwin 24")
    assert (found["problems"], found["runs"], found["records"]) == (2, 4, 8)


def test_an_environment_is_read_without_json(browsable: Path) -> None:
    (found,) = selected(browsable, "SELECT * FROM measured_environments")
    assert not any(str(value).startswith("{") for value in found.values())
    assert (found["environment"], found["device"], found["mlx"], found["gpu_cores"]) == (ENV, "Apple M3", "1.2", 10)
    assert found["variables"] == "MLX_ENABLE_TF32=0 MLX_METAL_FAST_SYNCH=1"
    assert (found["working_set_gb"], found["memory_gb"], found["os"]) == (17.2, 25.8, "Darwin 24")
    assert (found["problems"], found["first"], found["driver"]) == (2, "1970-01-02", None)


def test_every_column_of_a_view_is_described_and_every_name_is_one(browsable: Path) -> None:
    tables = metadata("fresh")["databases"]["fresh"]["tables"]
    there = {row["name"]: row["type"] for row in selected(browsable, "SELECT name, type FROM sqlite_master")}
    assert tuple(name for name, type_ in there.items() if type_ == "view") == VIEWS
    for view in VIEWS:
        columns = [row["name"] for row in selected(browsable, f"SELECT name FROM pragma_table_info('{view}')")]
        told = tables[view]
        assert list(told["columns"]) == columns, view
        named = [*told.get("facets", []), *told.get("units", {}), *([told["sort_desc"]] if "sort_desc" in told else [])]
        assert set(columns).issuperset(named), view
    hidden = {name for name, told in tables.items() if told.get("hidden")}
    assert {name for name, type_ in there.items() if type_ == "table" and not name.startswith("sqlite_")} == hidden


# An export for Datasette


def views(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every view that every database has."""
    return {view: selected(path, f"SELECT * FROM {view}") for view in VIEWS if view != "measured_environments"}


def schema(path: Path) -> list[dict[str, Any]]:
    return selected(path, "SELECT type, name, sql FROM sqlite_master ORDER BY name")


def test_its_views_have_the_rows_of_any_other_export(fresh: Path, browsable: Path, tmp_path: Path) -> None:
    export(fresh, tmp_path / "plain.db")
    assert views(browsable) == views(tmp_path / "plain.db")


@pytest.mark.parametrize("view", ["winners", "gains"])
def test_no_sample_is_read_for_its_winners(view: str, browsable: Path) -> None:
    """Datasette asks for them once a facet, and ends what takes longer than 0.2 s."""
    steps = [row["detail"] for row in selected(browsable, f"EXPLAIN QUERY PLAN SELECT device FROM {view}")]
    assert {step for step in steps if step.startswith(("SCAN", "SEARCH"))} - {"SCAN gains"} == {"SCAN winners_kept"}


def test_another_export_of_it_is_as_any_other_and_holds_what_is_selected_alone(
    fresh: Path, browsable: Path, tmp_path: Path
) -> None:
    with closing(open_store(browsable)) as store:
        store.add(OTHER, [record(OTHER, "native", 100, run="d"), record(OTHER, "im2col", 10, run="d")])
    for name, made in (("again.db", True), ("plain.db", False)):
        selection = Selection(problems=[OTHER])
        export(browsable, tmp_path / name, selection=selection, browsable=made)
        assert [row["winner"] for row in selected(tmp_path / name, "SELECT * FROM winners")] == ["im2col"]
        assert PROBLEM.key.encode() not in (tmp_path / name).read_bytes()
    export(fresh, tmp_path / "other.db")
    assert schema(tmp_path / "plain.db") == schema(tmp_path / "other.db")
    assert schema(tmp_path / "again.db") == schema(browsable)


def test_it_is_imported_as_any_other(browsable: Path, tmp_path: Path) -> None:
    known = {"native", "im2col", "turned_kernel", "matmul"}
    imported = import_file(tmp_path / "own.db", browsable, known=known)
    assert (imported.added, imported.rejected) == (8, {})


@pytest.mark.parametrize("kind", ["VIEW winners AS SELECT 'a lie' AS device", "TABLE Winners (device)"])
@pytest.mark.parametrize("kept", ["", "VIEW winners_kept AS SELECT 'a lie' AS device", "TABLE winners_kept (device)"])
def test_what_stands_in_place_of_its_views_is_not_believed(kind: str, kept: str, fresh: Path, tmp_path: Path) -> None:
    expected = views(fresh)
    with closing(sqlite3.connect(fresh)) as opened:
        opened.execute("DROP VIEW winners")
        for made in (kind, kept, "TABLE measured_environments (device)"):
            opened.execute(f"CREATE {made}" if made else "")
    export(fresh, tmp_path / "out.db", browsable=True)
    assert views(tmp_path / "out.db") == expected
    if kept:
        export(fresh, tmp_path / "plain.db")
        assert views(tmp_path / "plain.db") == expected


def test_a_damaged_row_costs_it_the_winners_and_a_warning(fresh: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(fresh)) as opened, opened:
        opened.execute("UPDATE records SET samples_us = '[1,' WHERE run = 2 AND position = 0")
    with pytest.warns(AutoconvWarning, match="damaged"):
        export(fresh, tmp_path / "out.db", browsable=True)
    assert len(selected(tmp_path / "out.db", "SELECT * FROM failures")) == 1
    assert [row["name"] for row in schema(tmp_path / "out.db") if row["name"] in ("winners", "winners_kept")] == [
        "winners"
    ]


def test_the_command_writes_it_beside_an_export(fresh: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.db"
    done = CliRunner().invoke(main, ["export", str(out), "--datasette", "--database", str(fresh)])
    assert done.exit_code == 0, done.output
    assert f"datasette {out} --metadata {tmp_path / 'mine.metadata.json'}" in done.output
    assert json.loads((tmp_path / "mine.metadata.json").read_text()) == metadata("mine")
    assert {view for view in VIEWS if selected(out, f"SELECT * FROM {view}")} == set(VIEWS)
    refused = CliRunner().invoke(main, ["export", str(tmp_path / "a.csv"), "--datasette", "--database", str(fresh)])
    assert refused.exit_code == 2
    assert not (tmp_path / "a.csv").exists()
