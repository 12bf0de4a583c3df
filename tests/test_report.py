"""The report: what it shows is what calls decide, whatever database that comes from; and how it is written."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from models import lenient, there
from unpacking import Unpacked, unpack, unpacked

import autoconv
from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.algorithms import algorithms
from autoconv.cli import main
from autoconv.environment import Environment
from autoconv.errors import ReportError, StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report import card
from autoconv.report.columns import Columns, pack
from autoconv.report.document import document, script_json
from autoconv.report.gathering import NO_BACKEND, NO_TELLING
from autoconv.report.model_curves import SHARES, model_cards
from autoconv.report.report import Report, write
from autoconv.store import Qualification, Selection, open_store, shipped
from autoconv.store import export as export_file
from autoconv.sweep import packaged_workloads, read_workload
from autoconv.tuning.qualification import fingerprint

HERE = environment.of(mx.default_device())
OTHER = Environment({"backend": "cuda", "device": "a GPU", "architecture": "sm_90", "mlx": "1.2.3"}, {}, 8 * 10**9)
PROBLEM = Problem.parse((1, 3, 4, 5, 4), (4, 3, 3, 3, 4))
WIDE = Problem.parse((1, 3, 4, 6, 4), (4, 3, 3, 3, 4), dtype="float16")
LAYERS = read_workload(packaged_workloads()["svd_unet"])
SPLIT = "depth_concat(edges=split)"


def record(problem: Problem, where: Environment, candidate: str, us: float, **fields: Any) -> Record:
    algorithm, _, parameters = candidate.partition("(")
    made = Record(problem.key, where.id, algorithm, 1, parameters.removesuffix(")"), Status.OK, (us,) * 6, 1e-7)
    return replace(made, **{"run": "r", "created": 86400.0, "library": "0.1.0", **fields})


def fill(path: Path, problem: Problem, where: Environment, winner_us: float = 50.0, **fields: Any) -> Path:
    """A database in which native takes 100 microseconds."""
    with closing(open_store(path)) as store:
        store.add_environment(where.id, dict(where.identity), dict(where.circumstances))
        rows = [record(problem, where, name, us, **fields) for name, us in (("native", 100.0), (SPLIT, winner_us))]
        store.add(problem, rows)
    return path


def qualify(path: Path, where: Environment, noise: float = 0.0) -> None:
    passed = frozenset((a.name, dtype) for a in algorithms() for dtype in ("float32", "float16"))
    with closing(open_store(path)) as store:
        store.qualify(Qualification(where.id, fingerprint(algorithms()), passed, noise=noise, created=1.0))


def written(tmp_path: Path, *databases: Path, selection: Selection | None = None, **changes: Any) -> Report:
    chosen = settings.with_changes(settings.current(), changes)
    here = None if databases else HERE
    return write(tmp_path / "report.html", chosen, selection or Selection(), here, databases)


def winners(found: Unpacked) -> list[str]:
    return found.words("problems.candidate", "names")


def sources(found: Unpacked) -> list[tuple[str, str, list[str]]]:
    numbers = found.column("problems.source")
    return [(s["name"], s["kind"], s["imported"]) for s in (found.meta["sources"][n] for n in numbers)]


@pytest.fixture
def own() -> Path:
    """The user's own database."""
    path = settings.current().database
    assert path is not None
    return path


@pytest.fixture
def came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database that came with the package and knows this environment."""
    folder = tmp_path / "came"
    folder.mkdir()
    path = folder / "like_this.db"
    monkeypatch.setattr(shipped, "shipped_files", lambda: [path] if path.exists() else [])
    return path


def test_the_winner_and_the_reason_are_those_of_explain(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE)
    qualify(own, HERE)
    expected = autoconv.explain(PROBLEM.input_shape, PROBLEM.weight_shape).decision
    assert expected.candidate == SPLIT
    written(tmp_path)
    found = unpacked(tmp_path / "report.html")
    assert winners(found) == [SPLIT]
    assert found.words("problems.reason", "reasons") == [expected.reason]
    assert found.column("problems.speedup") == pytest.approx([2.0], rel=1e-4)
    assert found.column("problems.bound") == pytest.approx([expected.bound], rel=1e-4)


def test_a_device_s_own_noise_keeps_native(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE, winner_us=95.0)
    written(tmp_path)
    assert winners(unpacked(tmp_path / "report.html")) == [SPLIT]
    qualify(own, HERE, noise=0.2)
    written(tmp_path)
    assert winners(unpacked(tmp_path / "report.html")) == ["native"]


def test_the_noise_of_another_device_counts_where_it_was_imported(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, OTHER, winner_us=95.0, origin="abc")
    with closing(open_store(own)) as store:
        told = Qualification(OTHER.id, fingerprint(algorithms()), noise=0.2, created=1.0, origin="abc")
        store.qualify(told)
    written(tmp_path)
    assert winners(unpacked(tmp_path / "report.html")) == ["native"]


def test_a_memory_limit_holds(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE, workspace_bytes=10**6)
    assert winners_of(tmp_path) == [SPLIT]
    with closing(open_store(own)) as store:
        free = [record(PROBLEM, HERE, n, us, run="s", workspace_bytes=w) for n, us, w in (("native", 100.0, 0),)]
        store.add(PROBLEM, free)
    assert winners_of(tmp_path, memory_limit=10**5) == ["native"]


def winners_of(tmp_path: Path, **changes: Any) -> list[str]:
    written(tmp_path, **changes)
    return winners(unpacked(tmp_path / "report.html"))


def test_own_measurements_come_before_what_came_with_the_package(own: Path, came: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE, winner_us=200.0)
    fill(came, PROBLEM, HERE)
    fill(came, WIDE, HERE, error=1e-4)
    qualify(came, HERE)
    assert winners_of(tmp_path) == ["native", SPLIT]
    assert sources(unpacked(tmp_path / "report.html")) == [
        (own.name, "own", []),
        ("like_this", "shipped", []),
    ]


def test_what_came_with_the_package_stands_in_where_own_records_do_not_tell(
    own: Path, came: Path, tmp_path: Path
) -> None:
    with closing(open_store(own)) as store:  # a run without native, as an old one that was cut
        store.add_environment(HERE.id, dict(HERE.identity), {})
        store.add(PROBLEM, [record(PROBLEM, HERE, SPLIT, 10.0)])
    assert winners_of(tmp_path) == [""]
    assert NO_TELLING in unpacked(tmp_path / "report.html").meta["reasons"]
    fill(came, PROBLEM, HERE)
    qualify(came, HERE)
    assert winners_of(tmp_path) == [SPLIT]
    assert sources(unpacked(tmp_path / "report.html")) == [("like_this", "shipped", [])]


def test_what_came_for_other_devices_is_shown_where_it_is_asked_for(came: Path, tmp_path: Path) -> None:
    fill(came, PROBLEM, OTHER)
    assert written(tmp_path).problems == 0
    assert written(tmp_path, selection=Selection("a gpu")).environments == {OTHER.id: "a GPU"}


def test_an_imported_row_names_its_file(own: Path, tmp_path: Path) -> None:
    fill(tmp_path / "theirs.db", PROBLEM, OTHER)
    export_file(tmp_path / "theirs.db", tmp_path / "their M3.db")
    from autoconv.store import import_file

    import_file(own, tmp_path / "their M3.db", known={a.name for a in algorithms()})
    written(tmp_path)
    assert sources(unpacked(tmp_path / "report.html")) == [(own.name, "imported", ["their M3.db"])]


def test_files_that_are_named_are_shown_alone_and_of_twins_the_first(own: Path, tmp_path: Path) -> None:
    fill(own, WIDE, HERE)
    first, second = fill(tmp_path / "a.db", PROBLEM, OTHER), fill(tmp_path / "b.db", PROBLEM, OTHER, 400.0)
    assert written(tmp_path, first, second).problems == 1
    assert winners(unpacked(tmp_path / "report.html")) == [SPLIT]
    assert written(tmp_path, second, first).problems == 1
    assert winners(unpacked(tmp_path / "report.html")) == ["native"]


def test_gains_by_network_are_those_of_the_card(tmp_path: Path) -> None:
    path = tmp_path / "gpu.db"
    for layer, us in zip(LAYERS[:3], (50.0, 80.0, 300.0), strict=True):
        fill(path, layer.problem, OTHER, us)
    fill(path, PROBLEM, OTHER, 25.0)
    with closing(open_store(path, readonly=True)) as store:
        (expected,) = card.cards(store)
    found = written(tmp_path, path)
    assert set(found.gains) == {LAYERS[0].network, card.OTHERS}
    assert found.gains == expected["by_network"]


def test_a_time_of_the_samples_that_judge_is_told_where_it_is_another(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE, winner_us=50.0)
    with closing(open_store(own)) as store:
        cold = replace(record(PROBLEM, HERE, "kd_decomposition(sum=float32)", 0.0), samples_us=(300.0, 80.0))
        store.add(PROBLEM, [cold])
    written(tmp_path)
    found = unpacked(tmp_path / "report.html")
    names = found.words("candidates.candidate", "names")
    judged = dict(zip(names, found.column("candidates.judged"), strict=True))
    speedups = dict(zip(names, found.column("candidates.speedup"), strict=True))
    assert judged.pop(cold.candidate) == pytest.approx(80.0, rel=1e-4)
    assert speedups[cold.candidate] == pytest.approx(100.0 / 80.0, rel=1e-4)
    assert list(map(math.isnan, judged.values())) == [True, True]


def test_networks_of_the_user_s_own_have_their_names_and_counts(own: Path, tmp_path: Path) -> None:
    known = LAYERS[0].problem
    for problem, us in ((PROBLEM, 50.0), (WIDE, 100.0), (known, 25.0)):
        fill(own, problem, HERE, us)
    with closing(open_store(own)) as store:
        store.name_network("mine.py", {PROBLEM: 3, known: 1})
        store.name_network("never timed.py", {Problem.parse((1, 9, 9, 9, 9), (9, 3, 3, 3, 9)): 1})
    found = written(tmp_path)
    assert list(found.gains) == ["mine.py", LAYERS[0].network, card.OTHERS]
    # Native takes 100 us a call: three calls at 50 us and one at 25.
    assert found.gains["mine.py"]["weighted"] == pytest.approx(400 / (3 * 50 + 25))
    assert found.gains["mine.py"]["problems"] == 2
    shown = unpacked(tmp_path / "report.html")
    assert shown.meta["own"] == ["mine.py"]
    assert shown.words("problems.networks", "networks")[0] == "3 mine.py"


def test_every_column_has_a_row_a_problem_or_candidate(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE)
    fill(own, WIDE, HERE, error=math.inf)
    written(tmp_path)
    found = unpacked(tmp_path / "report.html")
    assert {len(v) for name, v in found.columns.items() if name.startswith("problems.")} == {2}
    assert {len(v) for name, v in found.columns.items() if name.startswith("candidates.")} == {4}
    assert found.column("problems.first") == [0, 2]
    errors = found.column("candidates.error")
    assert errors[:2] == pytest.approx([1e-7] * 2, rel=1e-4)
    assert errors[2:] == [math.inf] * 2
    assert found.column("candidates.us") == pytest.approx([100.0, 50.0] * 2, rel=1e-4)


@given(st.lists(st.floats(width=32), min_size=1))
def test_packed_floats_are_as_they_were_but_for_what_nobody_reads(values: list[float]) -> None:
    columns = Columns({"x": "f", "y": "d"})
    for value in values:
        columns.add({"x": value, "y": value})
    found = unpack(pack({"t": columns}, {"word": "é"}))
    assert found.meta == {"word": "é"}
    np.testing.assert_array_equal(found.columns["t.y"], values)
    normal = [abs(v) > 1e-37 and abs(v) < 3e38 for v in values]
    np.testing.assert_allclose(
        found.columns["t.x"][normal], np.array(values)[normal], rtol=2.0**-16, atol=0, equal_nan=True
    )
    special = [not math.isfinite(v) for v in values]
    np.testing.assert_array_equal(found.columns["t.x"][special], np.array(values)[special])


def test_an_unknown_number_is_nan() -> None:
    columns = Columns({"x": "f"})
    columns.add({"x": None})
    assert math.isnan(unpack(pack({"t": columns}, {})).column("t.x")[0])


def test_the_same_measurements_make_the_same_bytes() -> None:
    columns = Columns({"x": "I"})
    columns.add({"x": 1})
    assert pack({"t": columns}, {}) == pack({"t": columns}, {})


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;", "\u2028"])
def test_json_in_a_page_ends_no_script(text: str) -> None:
    made = script_json({text: text})
    assert json.loads(made) == {text: text}
    assert not set("<>&\u2028") & set(made)


def test_a_title_is_text() -> None:
    made = document("</title><script>alert(1)</script>", {}, b"")
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;</title>" in made


def test_the_page_names_no_other_place() -> None:
    """But for what Plotly's code names in its own text, which no policy lets it ask for."""
    made = document("t", {}, b"")
    from plotly.offline import get_plotlyjs

    own = made.replace(get_plotlyjs(), "")
    assert "http:" not in own
    assert "https:" not in own
    assert "default-src 'none'" in own


def test_a_model_is_shown_with_its_card_and_curves(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "shipped_models", lambda _backend: [model_folder / "cpu.npz"])
    lenient(monkeypatch)
    from autoconv.model.shelf import load

    expected = load(model_folder / "cpu.npz")
    monkeypatch.setattr("autoconv.report.model_curves.MOST", 20)
    with closing(open_store(model_folder / "some.db", readonly=True)) as store:
        (found,) = model_cards([there()], [store], settings.current(), Selection())
        (narrow,) = model_cards(
            [there()], [store], settings.current(), Selection(problems=store.problems(there().id)[:15])
        )
        (few,) = model_cards([there()], [store], settings.current(), Selection(problems=store.problems(there().id)[:3]))
    assert found["name"] == expected.name
    assert found["seen"]
    assert 10 < found["examples"] <= 20
    assert 10 < narrow["examples"] <= 15  # of those that the report shows alone
    assert (0 < few["examples"] <= 3, few["curves"]) == (True, {})  # of which a curve would say nothing
    assert [c["seen"] for c in found["coverages"]] == [c.seen for c in expected.card.coverages]
    of_all = expected.card.judgements["network"]["all"]
    assert found["judgements"]["network"]["predict"]["regret_mean"] == of_all["predict"].regret_mean
    for way, curve in found["curves"].items():
        assert len(curve) == len(SHARES)
        assert curve == sorted(curve)
        assert curve[0] >= 0, way


def test_without_a_model_the_reason_is_shown(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE)
    written(tmp_path)
    (found,) = unpacked(tmp_path / "report.html").meta["models"]
    assert found["name"] == ""
    assert found["why"]


def test_the_command_says_what_it_wrote(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE)
    out = tmp_path / "out.html"
    done = CliRunner().invoke(main, ["report", str(out)])
    assert done.exit_code == 0, done.output
    assert f"{out}: {out.stat().st_size / 1e6:.1f} MB, 1 problem measured here, of 1 environment" in done.output
    done = CliRunner().invoke(main, ["report", str(out), "--json"])
    said = json.loads(done.output)
    assert said["bytes"] == out.stat().st_size
    assert (said["problems"], said["candidates"]) == (1, 2)
    assert said["by_network"][card.OTHERS]["weighted"] == pytest.approx(2.0)


def test_the_command_says_what_is_the_user_s_own(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(own, PROBLEM, HERE)
    came = fill(tmp_path / "came.db", WIDE, HERE)
    fill(came, LAYERS[0].problem, HERE)
    imported = fill(tmp_path / "given.db", LAYERS[1].problem, OTHER)
    export_file(imported, tmp_path / "given.jsonl")
    assert CliRunner().invoke(main, ["import", str(tmp_path / "given.jsonl")]).exit_code == 0
    monkeypatch.setattr(shipped, "shipped_files", lambda: [came])
    done = CliRunner().invoke(main, ["report", str(tmp_path / "o.html")])
    says = "1 problem measured here, 1 imported, 2 that came with the package, of 2 environments"
    assert says in done.output, done.output
    done = CliRunner().invoke(main, ["report", str(tmp_path / "o.html"), "--json"])
    assert json.loads(done.output)["by_source"] == {"own": 1, "imported": 1, "shipped": 2}
    none = CliRunner().invoke(main, ["report", str(tmp_path / "o.html"), "--network", "wan21"])
    assert none.exit_code == 1
    assert "of wan21 nothing was measured; of other devices --device shows what came" in none.output


def test_the_command_narrows_by_network_and_device(own: Path, tmp_path: Path) -> None:
    fill(own, LAYERS[0].problem, HERE)
    fill(own, PROBLEM, OTHER)

    def problems(*options: str) -> int:
        done = CliRunner().invoke(main, ["report", str(tmp_path / "o.html"), "--json", *options])
        assert done.exit_code == 0, done.output
        return int(json.loads(done.output)["problems"])

    assert problems() == 2
    assert problems("--network", "svd_unet") == 1
    with closing(open_store(own)) as store:
        store.name_network("Mine.py", {PROBLEM: 1})
    assert problems("--network", "mine.py") == 1
    assert problems("--network", "mine.py", "--network", "svd_unet") == 2
    with closing(open_store(own)) as store:
        store.name_network("svd_unet", {PROBLEM: 1})  # as one of the package's: that is meant as well
    assert problems("--network", "svd_unet") == 2
    assert problems("--device", "A gpu") == 1


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(own: Path, tmp_path: Path) -> None:
    fill(own, PROBLEM, HERE)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out.html").mkdir()
    with pytest.raises(ReportError, match="cannot write"):
        write(folder / "out.html", settings.current(), Selection(), HERE)
    assert [path.name for path in folder.iterdir()] == ["out.html"]
    done = CliRunner().invoke(main, ["report", str(tmp_path / "none" / "out.html")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: cannot write")
    assert len(done.output.splitlines()) == 1


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError):
        written(tmp_path, broken)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "o.html"), "--database", str(broken)])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "o.html").exists()


def test_nothing_measured_makes_a_page_as_well(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path / "o.html")])
    assert done.exit_code == 0, done.output
    assert "nothing measured yet" in done.output
    assert unpacked(tmp_path / "o.html").column("problems.n") == []


def test_an_environment_that_tells_nothing_of_itself_is_shown(tmp_path: Path) -> None:
    """Older versions imported any identity and any moment."""
    path, strange = tmp_path / "old.db", Environment({"device": "a GPU"}, {})
    fill(path, PROBLEM, strange, created=1e300)
    assert written(tmp_path, path).environments == {strange.id: "a GPU"}
    (told,) = unpacked(tmp_path / "report.html").meta["environments"]
    assert NO_BACKEND in unpacked(tmp_path / "report.html").meta["reasons"]
    assert told["identity"] == {"backend": "unknown", "device": "a GPU", "mlx": "unknown"}
