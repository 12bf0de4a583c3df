"""Contributing: which convolutions are timed, in which order, and that nothing else leaves the machine."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import autoconv
from autoconv import environment
from autoconv._backend import mx
from autoconv.algorithms import algorithms
from autoconv.cli import main
from autoconv.decision import Decision, Source, Verdict
from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id
from autoconv.settings import Settings, from_environment
from autoconv.store import Qualification, import_file, open_store
from autoconv.store.transfer.contribution import contribution, user_names, write
from autoconv.sweep import Layer, packaged_workloads, read_workload
from autoconv.sweep import contribution as listed
from autoconv.sweep.order import Measured, Neighbours
from autoconv.sweep.runner import REORDER, Ending, sweep

HERE = environment.of(mx.default_device())
KNOWN = {algorithm.name for algorithm in algorithms()}
TINY = [
    Layer("net", "", f"conv{width}", 1, Problem.parse((1, 3, 4, width, 4), (4, 3, 3, 3, 4)), "") for width in (5, 6, 7)
]
OWN = Problem.parse((1, 3, 9, 11, 4), (4, 3, 3, 3, 4))
"""A shape of the user's own."""


# The list


def without_dtype(problem: Problem) -> Problem:
    return replace(problem, dtype="float32")


@pytest.mark.parametrize("backend", ["metal", "cuda", "cpu"])
def test_the_list_is_of_layers_that_come_with_the_package(backend: str) -> None:
    """So a contribution tells of known networks, whoever made it."""
    packaged = {
        (layer.network, without_dtype(layer.problem))
        for path in packaged_workloads().values()
        for layer in read_workload(path)
    }
    found = listed.contribution_layers(backend)
    assert {(layer.network, without_dtype(layer.crop_of or layer.problem)) for layer in found} <= packaged
    assert len({layer.problem for layer in found}) == len(found) >= 500


def test_the_list_fits_a_mac_of_8_gb() -> None:
    for layer in listed.contribution_layers("metal"):
        assert layer.problem.bytes <= listed.MAX_BYTES < 8e9 / 10
        assert layer.problem.flops <= listed.MAX_GFLOP["metal"] * 1e9


@pytest.mark.parametrize(("count", "networks", "kernels"), [(10, 6, 4), (40, 15, 8), (150, 22, 10)])
def test_any_beginning_of_the_list_is_diverse(count: int, networks: int, kernels: int) -> None:
    found = listed.contribution_layers("metal")[:count]
    assert len({layer.network for layer in found}) >= networks
    assert len({layer.problem.weight_shape[1:4] for layer in found}) >= kernels
    assert len({layer.problem.dtype for layer in found}) >= 2
    most = max(sum(layer.network == name for layer in found) for name in {layer.network for layer in found})
    assert most <= max(3, count // 4)


def test_all_of_the_list_takes_about_the_time_on_a_small_mac() -> None:
    """At a TFLOP/s, sixty runs of each and half a second beside them: no more than half as much again."""
    seconds = sum(0.5 + 60 * layer.problem.flops / 1e12 for layer in listed.contribution_layers("metal"))
    assert 600 <= seconds <= 1350


class Noting:
    """A tuner that times nothing, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Problem] = []

    def look_up(self, _problem: Problem, _settings: Settings, _device: mx.Device) -> Decision | None:
        return None

    def tune(self, problem: Problem, _settings: Settings, _device: mx.Device, *, anew: bool) -> Decision:
        self.asked.append(problem)
        worth = 1.0 + problem.flops % 7  # tells problems apart, which would put a sweep in another order
        times = {"native": 8000.0 * worth, "fast": 4000.0}
        records = [
            Record(problem.key, "e", name, 1, "", Status.OK, (time,) * 4, 1e-7, run="r") for name, time in times.items()
        ]
        verdicts = tuple(Verdict(record, Status.OK, 1.0, "") for record in records)
        return Decision("fast", Source.MEASURED, 2 * worth - 1, "", verdicts=verdicts)


def test_the_list_keeps_its_order_whatever_is_learned() -> None:
    layers = listed.contribution_layers("cpu")[: 2 * REORDER + 10]
    asked = {}
    for name, informed in (("as listed", lambda _: listed.AsListed()), ("learning", lambda found: found)):
        tuner = Noting()
        sweep(layers, tuner, from_environment({}), mx.default_device(), informed=informed)
        asked[name] = tuner.asked
    assert asked["as listed"] == [layer.problem for layer in layers]
    assert asked["learning"] != asked["as listed"]


# What leaves


def records(problem: Problem, where: str = HERE.id, detail: str = "") -> list[Record]:
    times = {"native": 8000.0, "depth_concat": 4000.0}
    found = [
        Record(problem.key, where, name, 1, "", Status.OK, (time,) * 6, 1e-7, 10**6, run="r", created=2.0, library="1")
        for name, time in times.items()
    ]
    failed = replace(found[1], algorithm="im2col", status=Status.FAILED, samples_us=(), error=None, detail=detail)
    return [*found, failed]


PLANTED = "[Errno 2] /Users/alice/models/secret.py on alices-studio.local by Alice Example: studio is alices-studio"
GIVEAWAYS = ("alice", "studio", "secret", "Example", "24.5", "SERIAL", OWN.key.split(" ", 2)[2], "0123456789abcdef")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with names, paths and a shape of its owner's in every place that can hold one."""
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-studio.local")
    path = tmp_path / "kept.db"
    store = open_store(path)
    told = {"os": "Darwin 24.5.0-alice", "hostname": "alices-studio", "power": "AC Power", "memory_bytes": 17 * 10**9}
    store.add_environment(HERE.id, dict(HERE.identity), told)
    other = {"backend": "metal", "device": "alice's other", "mlx": "0.32.4"}
    store.add_environment(environment_id(other), other, {})
    store.add(TINY[0].problem, records(TINY[0].problem, environment_id(other)))
    for problem in (TINY[0].problem, TINY[1].problem, OWN):
        store.add(problem, records(problem, detail=PLANTED))
    store.begin(HERE.id, OWN, "native")
    store.note(HERE.id, replace(OWN, dtype="float16"))
    fingerprint = ",".join(f"{a.name}@{a.version}" for a in algorithms())
    store.qualify(Qualification(HERE.id, fingerprint, barred={"im2col": PLANTED}, created=1.0))
    store.close()
    return path


NAMES = ("alice", "Alice Example", "Alice", "Example", "studio")


def test_nothing_about_the_owner_leaves(database: Path, tmp_path: Path) -> None:
    given = contribution(database, HERE.id, [layer.problem for layer in TINY], NAMES)
    files = [tmp_path / "given.jsonl", tmp_path / "given.db"]
    for file in files:
        write(given, file, known=KNOWN)
    assert files[0].read_text() == given.text
    for text in (given.text, *(file.read_bytes().decode(errors="replace") for file in files)):
        assert not [word for word in GIVEAWAYS if word.casefold() in text.casefold()]
    assert "<path>" in given.text
    assert (given.problems, given.records) == (2, 6)


@pytest.mark.parametrize("suffix", ["jsonl", "db"])
def test_a_file_that_came_in_between_is_not_replaced(database: Path, tmp_path: Path, suffix: str) -> None:
    given, file = contribution(database, HERE.id, [TINY[0].problem], NAMES), tmp_path / f"of.{suffix}"
    file.write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        write(given, file, known=KNOWN)
    assert file.read_text() == "precious"


def test_what_leaves_of_the_machine_is_what_times_depend_on(database: Path) -> None:
    given = contribution(database, HERE.id, [layer.problem for layer in TINY], NAMES)
    assert given.identity == HERE.identity
    assert given.circumstances == {"os": "Darwin 24", "power": "AC Power", "memory_bytes": 17 * 10**9}
    lines = [json.loads(line) for line in given.text.splitlines()]
    assert [line["type"] for line in lines] == ["autoconv", "environment", "qualification", *["record"] * 6]
    assert {line["problem"] for line in lines[3:]} == {TINY[0].problem.key, TINY[1].problem.key}
    assert {line["environment"] for line in lines[1:]} == {HERE.id}


def test_the_user_s_names_are_those_that_the_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/wonderland"))
    assert {"alice", "wonderland"} <= set(user_names())

    def unknown() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", unknown)
    assert "wonderland" in set(user_names())


def test_nothing_measured_is_no_contribution(database: Path) -> None:
    with pytest.raises(StoreError, match="nothing was measured yet"):
        contribution(database, HERE.id, [TINY[2].problem])


@pytest.mark.parametrize("suffix", ["jsonl", "db"])
def test_a_contribution_imports_and_is_credited_to_its_file(database: Path, tmp_path: Path, suffix: str) -> None:
    given = contribution(database, HERE.id, [layer.problem for layer in TINY], NAMES)
    file, into = tmp_path / f"m3-max.{suffix}", tmp_path / "into.db"
    write(given, file, known=KNOWN)
    imported = import_file(into, file, known=KNOWN)
    assert (imported.added, imported.problems, imported.complete) == (6, 2, True)
    assert import_file(into, file, known=KNOWN).known == 6
    store = open_store(into)
    found = store.records(HERE.id, TINY[1].problem)
    store.close()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert {record.origin for record in found} == {digest[:12]}
    assert [r.samples_us for r in found] == [r.samples_us for r in records(TINY[1].problem)]


# The command


def run(*arguments: str, **extra: Any) -> Result:
    return CliRunner().invoke(main, ["contribute", *arguments], **extra)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three tiny convolutions instead of the list, and a working directory of the test's own."""
    monkeypatch.setattr(listed, "contribution_layers", lambda _backend: TINY)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kept(qualified: Path) -> Path:
    """Where measurements are kept, with the first run done; it is not the user's own database."""
    return qualified.rename(qualified.with_name("kept.db"))


def problems_in(file: Path) -> list[str]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return list(dict.fromkeys(line["problem"] for line in lines if line["type"] == "record"))


@pytest.mark.usefixtures("tiny")
def test_one_run_measures_shows_and_writes(kept: Path, tmp_path: Path) -> None:
    found = run("--yes", "--show", "--database", str(kept))
    assert found.exit_code == 0, found.output
    (file,) = tmp_path.glob("autoconv-*.jsonl")
    assert problems_in(file) == [layer.problem.key for layer in TINY]
    assert file.read_text() in found.output
    shown = found.output.index(file.read_text())
    assert found.output.index(f"chip: {HERE.identity['device']}") < shown < found.output.index("is written")
    assert f"versions: MLX {HERE.identity['mlx']}, autoconv {autoconv.__version__}" in found.output
    assert f"'measurements: {HERE.identity['device']}'" in found.output
    assert not (tmp_path / "autoconv.db").exists()  # the user's own


@pytest.mark.usefixtures("tiny")
def test_the_user_s_settings_do_not_matter(kept: Path) -> None:
    autoconv.configure(policy="off", accuracy="strict", memory_limit=1)
    assert run("of.jsonl", "--yes", "--database", str(kept)).exit_code == 0
    lines = [json.loads(line) for line in Path("of.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["type"] == "record"]
    assert {line["problem"] for line in found if line["algorithm"] == "native" and not line["parameters"]} == {
        layer.problem.key for layer in TINY
    }
    assert "over_memory" not in {line["status"] for line in found}


@pytest.mark.usefixtures("tiny")
def test_the_command_sweeps_the_list_as_it_stands(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def noted(layers: list[Layer], *_: Any, **more: Any) -> list[Any]:
        asked.update(more, layers=layers)
        return []

    monkeypatch.setattr("autoconv.sweep.runner.sweep", noted)
    assert run("of.jsonl", "--yes", "--minutes", "2", "--database", str(database)).exit_code == 0
    assert (asked["layers"], asked["limit_s"]) == (TINY, 120.0)
    measured = [Measured(layer.problem, 1.0 + at, 0.1 * at) for at, layer in enumerate(TINY)]
    estimates = asked["informed"](Neighbours(measured, least=1)).estimate([layer.problem for layer in TINY])
    assert len(set(estimates)) == 1


@pytest.mark.usefixtures("tiny")
def test_ctrl_c_writes_what_there_is_and_a_second_run_goes_on(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings: list[Ending] = []

    def interrupted(*arguments: Any, tell: Callable[[Any], None], **more: Any) -> Any:
        def told(outcome: Any) -> None:
            tell(outcome)
            endings.append(outcome.ending)
            if len(endings) == 1:
                signal.raise_signal(signal.SIGINT)

        return sweep(*arguments, tell=told, **more)

    monkeypatch.setattr("autoconv.sweep.runner.sweep", interrupted)
    first = run("first.jsonl", "--yes", "--database", str(kept))
    assert first.exit_code == 0, first.output
    assert problems_in(Path("first.jsonl")) == [TINY[0].problem.key]
    second = run("second.jsonl", "--yes", "--database", str(kept))
    assert second.exit_code == 0, second.output
    assert len(problems_in(Path("second.jsonl"))) == 3
    assert endings == [Ending.TIMED, Ending.KNOWN, Ending.TIMED, Ending.TIMED]


@pytest.mark.usefixtures("tiny")
def test_a_second_ctrl_c_ends_it_at_once_and_keeps_what_there_was(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, tell: Callable[[Any], None], **more: Any) -> Any:
        def told(outcome: Any) -> None:
            tell(outcome)
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

        return sweep(*arguments, tell=told, **more)

    monkeypatch.setattr("autoconv.sweep.runner.sweep", interrupted)
    found = run("of.jsonl", "--yes", "--database", str(kept))
    assert found.exit_code == 130
    assert not Path("of.jsonl").exists()
    assert run("of.jsonl", "--minutes", "0", "--yes", "--database", str(kept)).exit_code == 0
    assert problems_in(Path("of.jsonl")) == [TINY[0].problem.key]


@pytest.mark.usefixtures("tiny")
def test_who_stops_before_anything_is_measured_is_told_so(tmp_path: Path) -> None:
    found = run("of.jsonl", "--minutes", "0", "--yes", "--database", "new.db")
    assert (found.exit_code, found.stderr) == (
        1, "Error: nothing was measured yet: let it run for a minute or more\n"
    )  # fmt: skip
    assert not list(tmp_path.glob("of.*"))


@pytest.fixture
def asked(database: Path, monkeypatch: pytest.MonkeyPatch, tiny: None) -> Path:
    """A terminal, and something measured already."""
    monkeypatch.setattr("autoconv.cli._common.can_ask", lambda: True)
    return database


@pytest.mark.parametrize(
    ("answers", "options", "code", "shown"),
    [
        ("n\ny\n", [], 0, False),
        ("y\ny\n", [], 0, True),
        ("n\nn\n", [], 1, False),
        ("y\n", ["--show"], 0, True),
        ("", ["--yes"], 0, False),
    ],
)
def test_a_terminal_is_asked(asked: Path, answers: str, options: list[str], code: int, shown: bool) -> None:
    found = run("of.jsonl", "--minutes", "0", "--database", str(asked), *options, input=answers)
    assert found.exit_code == code, found.output
    assert Path("of.jsonl").exists() is (code == 0)
    assert ('"type": "record"' in found.output) is shown


@pytest.mark.usefixtures("tiny")
def test_without_a_terminal_nothing_is_written_unasked(database: Path) -> None:
    refused = run("of.jsonl", "--minutes", "0", "--database", str(database))
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    shown = run("of.jsonl", "--minutes", "0", "--show", "--database", str(database))
    assert shown.exit_code == 0
    assert '"type": "record"' in shown.output
    assert not Path("of.jsonl").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["of.csv"], "a contribution is a file .jsonl or .db"),
        (["there.jsonl"], "there.jsonl exists"),
        (["no/folder/of.jsonl"], "make it, or name a file elsewhere"),
        (["of.jsonl", "--database", "autoconv.db"], "is your own database"),
    ],
)
def test_what_would_be_refused_at_the_end_is_refused_at_the_start(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("there.jsonl").write_text("precious")

    def timed(*_: object, **__: object) -> None:
        pytest.fail("something is timed")

    monkeypatch.setattr("autoconv.sweep.runner.sweep", timed)
    found = run(*arguments, "--yes")
    assert found.exit_code == 1
    assert says in " ".join(found.stderr.split())
    assert len(found.stderr.splitlines()) == 1
    assert Path("there.jsonl").read_text() == "precious"


@pytest.mark.usefixtures("tiny")
def test_what_changes_mlx_is_no_contribution_of_this_chip(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(HERE, identity={**HERE.identity, "MLX_CONV_FILE": "/Users/alice/x"})
    monkeypatch.setattr(environment, "of", lambda _device: changed)
    found = run("of.jsonl", "--minutes", "0", "--yes", "--database", str(database))
    assert found.exit_code == 1
    assert "unset" in found.stderr
    assert "MLX_CONV_FILE" in found.stderr


@pytest.mark.usefixtures("tiny")
def test_a_file_is_replaced_by_force_alone(database: Path) -> None:
    Path("of.db").write_text("precious")
    asked = ["of.db", "--minutes", "0", "--yes", "--database", str(database)]
    assert run(*asked).exit_code == 1
    assert Path("of.db").read_text() == "precious"
    assert run(*asked, "--force").exit_code == 0
    assert import_file("into.db", "of.db", known=KNOWN).added == 6
