"""The command: what it prints, where it writes, and how it refuses."""

from __future__ import annotations

import io
import json
import math
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
import pytest
from command import run

import autoconv
from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.cli import main
from autoconv.decision import Decision, Source, Verdict
from autoconv.model import advisers
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report import console, doctor, progress, tables, variables
from autoconv.report.finding import Finding, table
from autoconv.store import Qualification, open_store
from autoconv.sweep import Layer
from autoconv.sweep.runner import Ending, Outcome
from autoconv.tuning.qualification import fingerprint

HEADER = "model,layer,N,D,H,W,C_in,C_out,KD,KH,KW\n"
ROW = "net,conv1,1,3,4,5,4,4,3,3,3\n"
SHAPES = ["--input", "1,3,4,5,4", "--weight", "4,3,3,3,4"]
PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database in which depth_concat has won the one problem here."""
    where = environment.of(mx.default_device())
    path = tmp_path / "measured.db"
    store = open_store(path)
    store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
    from autoconv.algorithms import algorithms

    store.qualify(
        Qualification(where.id, fingerprint(algorithms()), ceilings={"matmul_float32_gflops": 1.5}, created=1.0)
    )
    times = {"native": ("", 8000.0), "depth_concat": ("edges=split", 4000.0)}
    store.add(
        PROBLEM,
        [
            Record(
                PROBLEM.key, where.id, name, 1, parameters, Status.OK, (time,) * 6, 1e-7, 10**6, run="r", created=2.0
            )
            for name, (parameters, time) in times.items()
        ],
    )
    store.close()
    return path


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    found = run(name, "--help")
    assert found.exit_code == 0
    assert f"Example: autoconv {name}" in found.output
    undocumented = [o.name for o in main.commands[name].params if isinstance(o, click.Option) and not o.help]
    assert set(undocumented) <= {"groups"}


def test_the_version() -> None:
    assert run("--version").output.split()[-1] == autoconv.__version__


def test_explain_shows_the_winner_and_why(database: Path) -> None:
    found = run("explain", *SHAPES, "--database", str(database))
    assert found.exit_code == 0, found.output
    assert "depth_concat(edges=split), from database: 2.00 times as fast as native" in found.output
    assert "kd_decomposition(sum=float32)" in found.output
    assert "not measured" in found.output


@pytest.mark.parametrize("between", ["x", "X", "*", "\N{MULTIPLICATION SIGN}", ","])
def test_explain_takes_shapes_however_they_are_printed(database: Path, between: str) -> None:
    shapes = [shape.replace(",", between) for shape in SHAPES]
    found = run("explain", *shapes, "--database", str(database), "--json")
    assert json.loads(found.output)["problem"] == PROBLEM.key


def test_explain_takes_its_own_first_line(database: Path) -> None:
    first = run("explain", *SHAPES, "--database", str(database)).output.splitlines()[0]
    given, weight = first.split(",")[0].split(" * ")
    again = run("explain", "--input", given, "--weight", weight, "--database", str(database))
    assert again.output.splitlines()[0] == first


def test_explain_names_no_source_where_nothing_is_known(database: Path) -> None:
    found = run("explain", "--input", "1,3,4,9,4", "--weight", "4,3,3,3,4", "--database", str(database))
    assert "\nnative: " in found.output
    assert "from native" not in found.output


def test_explain_as_json(database: Path) -> None:
    found = json.loads(run("explain", *SHAPES, "--database", str(database), "--json").output)
    assert found["problem"] == PROBLEM.key
    assert found["candidate"] == "depth_concat(edges=split)"
    assert found["margin"] == pytest.approx(1.0)
    assert {c["candidate"]: c["median_us"] for c in found["candidates"]} == {
        "native": 8000.0,
        "depth_concat(edges=split)": 4000.0,
    }


def test_explain_takes_paddings_of_two_sides(database: Path) -> None:
    found = run("explain", *SHAPES, "--padding", "1,0,0:0,2,0", "--database", str(database), "--json")
    key = json.loads(found.output)["problem"]
    assert Problem.from_key(key).padding_low == (1, 0, 0)
    assert Problem.from_key(key).padding_high == (0, 2, 0)


HOSTILE = "[malloc] Unable [/red] :warning: {x} \x1b]0;owned\x07 \x9b2J"
"""What rich would read as markup, as an emoji, or fail at, and what a terminal would obey."""

SHOWN = "[malloc] Unable [/red] :warning: {x} \\x1b]0;owned\\x07 \\x9b2J"


def test_explain_shows_a_message_as_it_is_and_obeys_nothing_in_it(database: Path) -> None:
    store = open_store(database)
    where = next(iter(store.environments()))
    failed = Record(
        PROBLEM.key,
        where,
        "kd_decomposition",
        1,
        "sum=float32",
        Status.FAILED,
        (),
        detail=HOSTILE,
        run="r",
        created=2.0,
    )
    store.add(PROBLEM, [failed])
    store.close()
    found = run("explain", *SHAPES, "--database", str(database))
    assert found.exit_code == 0, found.output
    assert SHOWN in found.output
    with settings.using(database=database):
        assert SHOWN in str(autoconv.explain((1, 3, 4, 5, 4), (4, 3, 3, 3, 4)))


@pytest.mark.parametrize("many", [1, tables.MANY + 1])
def test_names_in_a_sweep_s_tables_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], many: int) -> None:
    layer = Layer(HOSTILE, "", "conv [/b]", 1, PROBLEM, "")
    tables.print_outcomes(console.console(), [Outcome(layer, Ending.NOT_TIMED, None, "[metal] no")] * many)
    lines = capsys.readouterr().out.splitlines()
    assert SHOWN in lines[1]
    assert f"not timed: {SHOWN}, conv [/b]: [metal] no" in lines
    assert len(lines) > many


def test_an_infinite_error_is_null_in_json() -> None:
    """JSON has no such number."""
    inaccurate = Record(PROBLEM.key, "here", "native", 1, "", Status.WRONG, (), math.inf)
    decision = Decision(
        "native", Source.DATABASE, None, "none is accurate", verdicts=(Verdict(inaccurate, Status.WRONG, None, ""),)
    )
    outcome = Outcome(Layer("net", "", "conv", 1, PROBLEM, ""), Ending.INACCURATE, decision)
    found = json.loads(json.dumps(tables.outcomes_dict([outcome]), allow_nan=False))["outcomes"][0]
    assert outcome.error == math.inf
    assert found["error"] is None
    assert found["candidates"][0]["error"] is None


def test_the_doctor_s_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.console().print(table([Finding("database", HOSTILE, advice="[/b]")]))
    out = capsys.readouterr().out
    assert f"database  {SHOWN}" in out
    assert "→ [/b]" in out


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_bars_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm")
    for bar in ("counted", "timed"):
        monkeypatch.setattr(sys, "stderr", Terminal())
        if bar == "counted":
            with progress.progress(2, HOSTILE) as told:
                told.advance(f"in {HOSTILE}")
        else:
            with progress.progress_of(HOSTILE, after_s=-1.0) as tell:
                tell(0.5)
        assert isinstance(sys.stderr, Terminal)
        shown = click.unstyle(sys.stderr.getvalue())
        assert SHOWN in shown
        assert "\x1b]0;" not in sys.stderr.getvalue()
        assert (f"in {SHOWN}" in shown) is (bar == "counted")


def test_an_error_s_one_line_obeys_nothing(tmp_path: Path) -> None:
    found = run("import", str(tmp_path / "\x1b[2J.jsonl"), "--database", str(tmp_path / "into.db"))
    assert found.exit_code == 1
    assert "\x1b" not in found.output
    assert "\\x1b[2J.jsonl" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "1,3,4,x", "--weight", "4,3,3,3,4"], "whole numbers"),
        (["--input", "1,3,4,5", "--weight", "4,3,3,3,4"], "4 dimensions"),
        (["--input", "1,3,4,5,8", "--weight", "4,3,3,3,4"], "channels"),
        ([*SHAPES, "--stride", "-1"], "stride"),
        ([*SHAPES, "--dtype", "int8"], "int8"),
        ([*SHAPES, "--accuracy", "perfect"], "accuracy"),
        ([*SHAPES, "--memory-limit", "lots"], "memory_limit"),
    ],
)
def test_explain_refuses_in_one_line_what_is_no_convolution(arguments: list[str], says: str) -> None:
    found = run("explain", *arguments)
    assert found.exit_code == 2
    assert says in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.output


def test_a_sweep_times_a_file_and_knows_it_the_second_time(qualified: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    first = run("sweep", str(path), "--database", str(qualified), "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["summary"]["endings"] == {"timed": 1}
    assert found["outcomes"][0]["problem"] == PROBLEM.key
    assert {c["status"] for c in found["outcomes"][0]["candidates"]} == {"ok"}
    second = run("sweep", str(path), "--database", str(qualified))
    assert second.exit_code == 0
    assert "1 problem: 1 known" in second.output


@pytest.mark.usefixtures("qualified")
def test_what_is_pending_has_the_name_and_the_count_of_the_network_that_makes_it_most() -> None:
    others = [replace(PROBLEM, dtype="float16"), replace(PROBLEM, dtype="bfloat16")]
    database = settings.current().database
    assert database is not None
    with closing(open_store(database)) as store:
        for problem in (PROBLEM, *others):
            store.note(environment.of(mx.default_device()).id, problem)
        store.name_network("seldom.py", {PROBLEM: 1, others[0]: 2})
        store.name_network("often.py", {PROBLEM: 5})
    found = json.loads(run("sweep", "--pending", "--no-train", "--json").stdout)["outcomes"]
    assert [(o["problem"], o["network"], o["count"]) for o in found] == [
        (PROBLEM.key, "often.py", 5),
        (others[0].key, "seldom.py", 2),
        (others[1].key, "pending", 1),
    ]


@pytest.mark.usefixtures("qualified")
def test_a_workload_of_the_user_s_own_is_a_network_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW + ROW)
    database = settings.current().database
    assert database is not None
    assert run("sweep", str(path), "--dtype", "float16", "--time-limit", "0.001s").exit_code == 0
    with closing(open_store(database)) as store:
        assert store.networks() == {"net": {replace(PROBLEM, dtype="float16"): 2}}
    assert run("sweep", "svd_unet", "--max-gflop", "0.0001").exit_code == 0
    with closing(open_store(database)) as store:
        assert list(store.networks()) == ["net"]


@pytest.mark.usefixtures("qualified")
def test_a_sweep_of_what_is_pending_takes_it_off_the_list() -> None:
    x, w = mx.zeros(PROBLEM.input_shape), mx.zeros(PROBLEM.weight_shape)
    with autoconv.using(policy="record"):
        autoconv.conv3d(x, w)
    database = settings.current().database
    found = run("sweep", "--pending", "--json")
    assert found.exit_code == 0, found.output
    assert [o["problem"] for o in json.loads(found.stdout)["outcomes"]] == [PROBLEM.key]
    assert database is not None
    store = open_store(database)
    assert store.pending(environment.of(mx.default_device()).id) == []
    store.close()
    assert json.loads(run("sweep", "--pending", "--json").stdout)["summary"]["problems"] == 0


def test_a_sweep_of_no_layer_asks_no_model(monkeypatch: pytest.MonkeyPatch, qualified: Path, tmp_path: Path) -> None:
    asked: list[object] = []

    def adviser_for(where: object, *_: object) -> tuple[None, str]:
        asked.append(where)
        return None, "none is there"

    monkeypatch.setattr(advisers, "adviser_for", adviser_for)
    assert run("sweep", "--pending", "--database", str(qualified)).exit_code == 0
    assert not asked
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    assert run("sweep", str(path), "--no-train", "--database", str(qualified)).exit_code == 0
    assert len(asked) == 1


def test_a_sweep_leaves_out_what_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    found = run("sweep", str(path), "--max-gflop", "1e-6", "--json")
    assert json.loads(found.stdout)["outcomes"] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEADER.replace(",KW", "") + ROW, "column KW"),
        (HEADER + ROW.replace("1,3,4,5", "1,three,4,5"), "line 2, column D"),
        (HEADER + ROW + ROW.replace("4,4,3,3,3", "4,4,9,3,3"), "line 3, column KD"),
        (HEADER, "no rows"),
    ],
)
def test_a_sweep_names_file_line_and_column_and_leaves_the_database(tmp_path: Path, text: str, says: str) -> None:
    path, database = tmp_path / "mine.csv", tmp_path / "mine.db"
    path.write_text(text)
    found = run("sweep", str(path), "--database", str(database))
    assert found.exit_code == 1
    assert str(path) in found.stderr
    assert says in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not database.exists()


@pytest.mark.usefixtures("qualified")
def test_a_sweep_of_random_layers_times_as_many_in_the_dtypes_asked_for() -> None:
    asked = ["sweep", "--random", "3", "--seed", "5", "--max-gflop", "0.012", "--dtype", "float16", "--json"]
    found = json.loads(run(*asked).stdout)
    assert found["summary"]["problems"] == 3
    assert {o["problem"].split()[1] for o in found["outcomes"]} == {"float16"}
    assert 0 < found["seconds"]["in_candidates"] < found["seconds"]["total"]
    assert found["seconds"]["children"] == 1
    again = json.loads(run(*asked).stdout)
    assert again["summary"]["endings"] == {"known": 3}
    assert again["seconds"]["children"] == 0
    assert [o["problem"] for o in again["outcomes"]] == [o["problem"] for o in found["outcomes"]]


@pytest.mark.usefixtures("qualified")
def test_a_sweep_without_time_begins_nothing_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    found = run("sweep", str(path), "--time-limit", "0.000001s")
    assert found.exit_code == 0
    assert "its time was up after 0 of 1; the same command goes on from there" in found.stderr
    for wrong in ("soon", "0", "-3m", "3w"):
        assert run("sweep", str(path), "--time-limit", wrong).exit_code == 2


@pytest.mark.usefixtures("qualified")
def test_a_sweep_that_refreshes_times_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    for options in ([], ["--refresh"]):
        found = json.loads(run("sweep", str(path), "--json", *options).stdout)
        assert found["summary"]["endings"] == {"timed": 1}
    database = settings.current().database
    assert database is not None
    store = open_store(database)
    records = store.records(environment.of(mx.default_device()).id, PROBLEM)
    store.close()
    assert len({r.run for r in records}) == 2


def test_a_sweep_of_nothing_names_what_there_is() -> None:
    found = run("sweep")
    assert found.exit_code == 2
    assert "wan21" in found.stderr


@pytest.mark.parametrize("command", [["sweep", "wan21", "--max-gflop", "0.0001"], ["sweep", "--pending"]])
def test_a_database_that_cannot_be_read_is_refused_and_left_as_it_is(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"this is no database" * 100)
    found = run(*command, "--database", str(path))
    if command[1] == "wan21":  # nothing small enough is left to time, so the file is not even opened
        assert found.exit_code == 0
    else:
        assert found.exit_code == 1
        assert str(path) in found.stderr
    assert path.read_bytes() == b"this is no database" * 100


def test_the_doctor_tells_what_there_is_and_what_is_slow(database: Path) -> None:
    found = run("doctor", "--database", str(database), "--json")
    findings = {f["about"]: f for f in json.loads(found.stdout)}
    assert "1 problem measured here, 0 pending" in findings["database"]["found"]
    assert findings["MLX"]["advice"] == ""
    slow = environment.of(mx.default_device()).backend == "cpu"
    assert ("BLAS" in findings and bool(findings["BLAS"]["advice"])) is slow
    assert found.exit_code == int(any(f["advice"] for f in findings.values()))


def test_the_doctor_finds_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(b"no database" * 100)
    found = run("doctor", "--database", str(path))
    assert found.exit_code == 1
    assert str(path) in found.output.replace("\n", "")


def test_the_doctor_begins_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    found = run("doctor", "--database", str(path))
    assert "not begun yet" in found.output
    assert not path.exists()


def test_the_doctor_finds_two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "_is_installed", lambda name: name in {"mlx-cpu", "mlx-cuda-13"})
    findings = {f.about: f for f in doctor.examine(settings.current(), mx.default_device())}
    assert "uninstall" in findings["backends"].advice


def test_a_missing_backend_names_the_extra(tmp_path: Path) -> None:
    """On Linux MLX without a backend's package has no libmlx.so."""
    import subprocess

    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from autoconv import conv3d"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BackendMissingError" in done.stderr
    if sys.platform == "linux":
        assert "autoconv[cpu]" in done.stderr
        assert "autoconv[cuda13]" in done.stderr


def test_a_variable_that_cannot_be_is_one_line_of_any_command(tmp_path: Path) -> None:
    import os
    import subprocess

    environ = {**os.environ, "AUTOCONV_POLICY": "fast", "AUTOCONV_DATABASE": str(tmp_path / "none.db")}
    command = [sys.executable, "-m", "autoconv", "explain", *SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "AUTOCONV_POLICY" in done.stderr


def test_a_sweep_that_could_not_time_all_says_so_by_its_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "huge.csv"
    path.write_text(HEADER + "net,conv1,1,8600,4820,834,96,3,3,3,3\n")
    found = run("sweep", str(path), "--database", str(tmp_path / "mine.db"))
    assert found.exit_code == 1
    assert "not timed: net, conv1" in found.output


def test_a_sweep_of_nothing_that_is_small_enough_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + ROW)
    found = run("sweep", str(path), "--max-gflop", "1e-9")
    assert found.exit_code == 0
    assert found.output == "nothing to time\n"
    assert run("sweep", str(path), "--max-gflop", "nan").exit_code == 2


def test_what_one_database_exports_another_imports_once(database: Path, tmp_path: Path) -> None:
    out, into = tmp_path / "out.jsonl", tmp_path / "into.db"
    found = run("export", str(out), "--database", str(database))
    assert (found.exit_code, found.output) == (0, f"{out}: 2 records of 1 environment\n")
    first, second = (run("import", str(out), "--database", str(into), "--json") for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    counts = [(report["added"], report["known"]) for found in (first, second) for report in json.loads(found.stdout)]
    assert counts == [(2, 0), (0, 2)]
    shown = run("explain", *SHAPES, "--database", str(into))
    assert "depth_concat(edges=split)" in shown.output


def test_an_export_may_hold_a_network_s_convolutions_alone(database: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(HEADER + ROW)
    for network, code in ((str(tmp_path / "mine.csv"), 0), ("wan21", 1)):
        out = tmp_path / f"{code}.csv"
        found = run("export", str(out), "--network", network, "--database", str(database))
        assert found.exit_code == code, found.output
        assert out.exists() is (code == 0)
        assert code or out.read_text().count(PROBLEM.key) == 2
    assert "nothing in" in found.stderr


def test_an_export_knows_the_networks_in_workloads_by_name(database: Path, tmp_path: Path) -> None:
    from autoconv.sweep import packaged_workloads, read_workload

    layer = next(iter(read_workload(packaged_workloads()["wan21"])))
    store = open_store(database)
    where = next(iter(store.environments()))
    store.add(layer.problem, [Record(layer.problem.key, where, "native", 1, "", Status.OK, (1.0,))])
    store.close()
    out = tmp_path / "out.jsonl"
    found = run("export", str(out), "--network", layer.network.upper(), "--database", str(database))
    assert (found.exit_code, found.output) == (0, f"{out}: 1 record of 1 environment\n")
    unknown = run("export", str(tmp_path / "no.jsonl"), "--network", "no-such-network", "--database", str(database))
    assert unknown.exit_code == 1
    assert "wan21" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["report", "export"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "Foo"], "no device has 'Foo' in its name; there are: "),
        (["--network", "wan21"], "of wan21 nothing was measured"),
        (["--device", "", "--network", "wan21", "--network", "nnunet"], "of wan21 and nnunet nothing was measured"),
    ],
)
def test_what_selects_nothing_is_an_error_that_says_what_there_is(
    database: Path, tmp_path: Path, command: str, options: list[str], says: str
) -> None:
    out = tmp_path / ("out.html" if command == "report" else "out.jsonl")
    out.write_text("good")
    force = ["--force"] if command == "export" else []
    found = run(command, str(out), *options, *force, "--database", str(database))
    assert found.exit_code == 1
    assert says in found.stderr
    assert len(found.stderr.splitlines()) == 1
    if "Foo" in options:
        device = environment.of(mx.default_device()).identity["device"]
        assert found.stderr.endswith(f"there are: {device}\n")
    assert out.read_text() == "good"
    assert run(command, str(out), *force, "--database", str(database)).exit_code == 0


def test_an_export_of_a_device_that_came_with_the_package_is_told_of_its_database(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = tmp_path / "their card.db"
    with closing(open_store(came)) as store:
        store.add_environment("there", {"device": "Their Card"}, {})
    monkeypatch.setattr("autoconv.store.shipped.shipped_files", lambda: [came])
    monkeypatch.setenv("AUTOCONV_DATABASE", str(database))
    autoconv.configure(database=database)
    found = run("export", str(tmp_path / "out.db"), "--device", "their")
    assert found.exit_code == 1
    assert f"--database '{came}'" in found.stderr
    assert "came with the package" not in run("export", str(tmp_path / "out.db"), "--device", "nobody").stderr


def test_an_export_replaces_a_file_only_when_forced(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    out.write_text("precious")
    found = run("export", str(out), "--database", str(database))
    assert (found.exit_code, len(found.stderr.splitlines())) == (1, 1)
    assert out.read_text() == "precious"
    assert run("export", str(out), "--database", str(database), "--force").exit_code == 0


def test_an_import_tells_what_it_refused_and_takes_the_rest(database: Path, tmp_path: Path) -> None:
    good, bad, into = tmp_path / "good.jsonl", tmp_path / "bad.db", tmp_path / "into.db"
    run("export", str(good), "--database", str(database))
    good.write_text(good.read_text() + "no json\n")
    bad.write_bytes(b"this is no database" * 100)
    found = run("import", str(bad), str(good), "--database", str(into))
    assert found.exit_code == 1
    assert found.stdout.startswith(f"{good}: 2 records added, 0 known already")
    assert f"Error: {bad} is no SQLite database" in found.stderr
    assert f"{good}: 1 row refused: no JSON, first line 6" in found.stderr
    assert len(found.stderr.splitlines()) == 2
