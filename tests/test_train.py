"""`autoconv train`, and what a sweep trains at its end: the same from the same, kept, trusted, and told how good."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import run
from models import FAULT, PROBLEMS, part, there

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.algorithms import Candidate, candidates
from autoconv.cli._foreknown import informed
from autoconv.errors import ModelError
from autoconv.model import card, learning, shelf
from autoconv.model.advice import Advice, Forecast
from autoconv.model.advisers import adviser_for, ceilings_of, fault_here
from autoconv.model.cost_model import CostModel
from autoconv.problem import Problem
from autoconv.store import open_store
from autoconv.sweep import Estimate, Layer, ordered
from autoconv.sweep.informed import ModelEstimator
from autoconv.sweep.order import UNKNOWN
from autoconv.sweep.runner import Ending, Outcome

pytestmark = pytest.mark.usefixtures("trained_here")

sweeps: Any = importlib.import_module("autoconv.cli.sweep")  # the package has the command by that name
GUESS = Estimate(100.0, 0.0, 0.5)


@pytest.fixture
def database(model_folder: Path, tmp_path: Path) -> Path:
    """The user's own database, with what was measured here."""
    return Path(shutil.copy(model_folder / "some.db", tmp_path / "autoconv.db"))


def test_the_same_measurements_give_the_same_files_bit_for_bit(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpu.npz"
    shutil.copy(model_folder / "some.db", tmp_path / "some.db")
    found = run("train", tmp_path / "some.db", "--backend", "cpu", "-o", out)
    assert found.exit_code == 0, found.output
    for name in ("cpu.npz", "cpu.joblib"):
        assert (tmp_path / name).read_bytes() == (model_folder / name).read_bytes()
    assert "160 problems of AMD EPYC" in found.output
    assert "measured winner" in found.output
    text = (tmp_path / "cpu.md").read_text()
    assert "| some.db | AMD EPYC | 160 |" in text
    assert "## Network held out" in text


def test_so_they_do_in_another_process(model_folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from models import quick
from autoconv.model.learning import learn
with pytest.MonkeyPatch.context() as patch:
    quick(patch)
    learn([Path({str(model_folder / "some.db")!r})], "cpu", Path({str(tmp_path / "cpu.npz")!r}), private=False)
"""
    environ = {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=120)
    for name in ("cpu.npz", "cpu.joblib"):
        assert (tmp_path / name).read_bytes() == (model_folder / name).read_bytes()


def test_without_arguments_it_is_the_users_own_and_trusted(database: Path) -> None:
    found = run("train", "--database", database)
    assert found.exit_code == 0, found.output
    with closing(open_store(database, readonly=True)) as store:
        (record,) = store.trusted_models()
    path = shelf.own_path(database, "cpu")
    assert (record.file, record.sha256, record.problems) == (path.name, shelf.file_sha256(path), PROBLEMS)
    chosen = settings.current()
    adviser, why = adviser_for(there(), ceilings_of(there(), chosen), chosen)
    assert adviser is not None, why
    assert adviser.name.startswith("autoconv.cpu.npz")
    # Whose files are nobody else's.
    assert path.stat().st_mode & 0o077 == 0


def test_as_json(database: Path, tmp_path: Path) -> None:
    found = json.loads(run("train", database, "--backend", "cpu", "-o", tmp_path / "m.npz", "--json").stdout)
    assert (found["backend"], found["problems"], found["fault"]) == ("cpu", PROBLEMS, None)
    assert found["card"]["judgements"]["network"]["all"]["predict"]["problems"] > 100


def test_with_a_bad_card_it_is_kept_and_the_exit_code_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card.Card, "fault", FAULT)
    monkeypatch.setattr(card, "MAX_WORSE_SHARE", -1.0)
    found = run("train", "--database", database)
    assert found.exit_code == 1
    assert "it is kept, and is not used: its card: worse than native by over 2%" in found.output
    assert shelf.own_path(database, "cpu").exists()


def test_a_model_of_others_measurements_alone_is_not_used_here(database: Path, tmp_path: Path) -> None:
    other = Path(shutil.move(database, tmp_path / "other.db"))
    found = run("train", other, "--database", database)
    assert found.exit_code == 0, found.output
    assert "is not used: it learned from 0 problems measured here, and 150 are needed" in found.output


REFUSED: dict[str, tuple[list[str], str]] = {
    "no database": (["nowhere.db"], "there is no database nowhere.db"),
    "suffix": (["-o", "model.joblib"], "a model is a file .npz, not model.joblib"),
    "too little": (["few.db", "-o", "m.npz"], "20 convolutions are measured on cpu, 150 are the least to learn from"),
    "none of it": (["--backend", "cuda", "few.db", "-o", "m.npz"], "0 convolutions are measured on cuda"),
    "no database of ours": (["text.db", "-o", "m.npz"], "text.db is no SQLite database"),
    "twice": (["few.db", "other/few.db", "-o", "m.npz"], "two databases are named few.db"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    part(tmp_path / "few.db", count=20)
    part(tmp_path / "other" / "few.db", count=1)
    (tmp_path / "text.db").write_text("no database" * 1000)
    arguments, message = REFUSED[case]
    found = run("train", *arguments)
    assert found.exit_code == 1
    assert message in found.output
    assert len(found.output.splitlines()) == 1
    assert not (tmp_path / "m.npz").exists()


# After a sweep


@pytest.fixture
def swept(database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep that times one convolution, of a database that knows enough others."""
    problem = Problem.parse((1, 4, 8, 8, 4), (8, 3, 3, 3, 4))

    def run_it(_layers: object, *_: object) -> Any:
        return sweeps._Swept([Outcome(Layer("net", "", "a", 1, problem, ""), Ending.TIMED, None)], 1, {})

    monkeypatch.setattr(sweeps, "_here", run_it)
    return database


def test_a_sweep_trains_the_users_own_model(swept: Path) -> None:
    found = run("sweep", "--random", "1", "-o", swept)
    assert found.exit_code == 0, found.output
    assert f"training a cost model: {PROBLEMS} convolutions are measured here; --no-train leaves it" in found.output
    assert "autoconv.cpu.npz is used from now on: on networks that it did not see" in found.output
    with closing(open_store(swept, readonly=True)) as store:
        assert [m.file for m in store.trusted_models()] == ["autoconv.cpu.npz"]


def test_it_is_trained_anew_once_a_fifth_more_is_measured(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("sweep", "--random", "1", "-o", swept).exit_code == 0
    again = run("sweep", "--random", "1", "-o", swept)
    assert again.exit_code == 0
    assert "training" not in again.output
    with settings.using(database=swept):
        chosen = settings.current()
        assert not learning.is_due(int(1.2 * PROBLEMS) - 1, chosen, there())
        assert learning.is_due(int(1.2 * PROBLEMS), chosen, there())
        with monkeypatch.context() as patch:
            patch.setattr(CostModel, "outdated", lambda *_: "it knows matmul@1, here it is @2")
            assert learning.is_due(PROBLEMS, chosen, there())
        assert not learning.is_due(PROBLEMS, chosen, there())
        shelf.own_path(swept, "cpu").write_bytes(b"damaged")
        assert learning.is_due(PROBLEMS, chosen, there())


def test_no_train_leaves_it(swept: Path) -> None:
    found = run("sweep", "--random", "1", "-o", swept, "--no-train")
    assert found.exit_code == 0, found.output
    assert not shelf.own_path(swept, "cpu").exists()


def test_nor_is_one_trained_from_few(swept: Path) -> None:
    swept.unlink()
    part(swept, count=149)
    found = run("sweep", "--random", "1", "-o", swept)
    assert "training" not in found.output
    assert not shelf.own_path(swept, "cpu").exists()


def test_what_was_imported_does_not_count(swept: Path, tmp_path: Path) -> None:
    assert learning.measured_here(settings.current(), there()) == PROBLEMS
    other = tmp_path / "new.db"
    exported = tmp_path / "out.jsonl"
    assert run("export", exported, "--database", swept).exit_code == 0
    assert run("import", exported, "--database", other).exit_code == 0
    with settings.using(database=other):
        assert learning.measured_here(settings.current(), there()) == 0
        kept, trusted = learning.learn_own(settings.current(), there(), databases=[other])
        assert kept.model.origin.problems == PROBLEMS
        assert trusted.problems == 0
        assert "0 problems measured here" in fault_here(trusted, there())


@pytest.mark.parametrize("error", [ModelError("it is too little"), ImportError("No module named 'sklearn'")])
def test_a_training_that_fails_fails_no_sweep(swept: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(learning, "learn_own", fail)
    found = run("sweep", "--random", "1", "-o", swept)
    assert found.exit_code == 0, found.output
    assert f"no cost model was trained: {type(error).__name__}: {error}" in found.output


def test_ctrl_c_while_it_trains_loses_nothing(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "learn_own", interrupt)
    found = run("sweep", "--random", "1", "-o", swept)
    assert found.exit_code == 130
    assert "training was interrupted, the measurements are kept" in found.output


# The order of a sweep


class Says:
    """An adviser that says a ratio and how sure it is, by the frames of a problem."""

    name = "a model"

    def __init__(self, said: dict[int, tuple[float, float]]) -> None:
        self.said = said
        self.asked = 0

    def advise(self, problem: Problem, candidates: tuple[Candidate, ...]) -> Advice:
        self.asked += 1
        ratio, worst = self.said[problem.input_shape[1]]
        return Advice((Forecast("a", math.log(ratio), 0.1), Forecast("native", 0.0, 0.0)), worst_to_best=worst)


class Times:
    """An estimator of the same time for all."""

    def __init__(self, found: Estimate = GUESS) -> None:
        self.found = found

    def estimate(self, problems: Any) -> list[Estimate]:
        return [self.found] * len(problems)


def layer(frames: int) -> Layer:
    return Layer("net", "", str(frames), 1, Problem.parse((1, frames, 8, 8, 4), (8, 3, 3, 3, 4)), "")


def test_where_a_model_is_unsure_and_much_is_at_stake_comes_first() -> None:
    said = {5: (1.0, 1.0), 40: (0.5, 1.5), 300: (0.9, 1.5), 2000: (0.5, 1.01)}
    model = ModelEstimator(Says(said), lambda p: candidates(p, "cpu"))
    layers = [layer(frames) for frames in said]
    found = ordered(layers, model.over(Times()))
    assert [int(each.layer) for each in found] == [40, 300, 2000, 5]


def test_each_problem_is_asked_about_once() -> None:
    says = Says({5: (0.8, 2.0), 9: (1.2, float("inf"))})
    model = ModelEstimator(says, lambda p: candidates(p, "cpu"))
    problems = [layer(5).problem, layer(9).problem]
    for _ in range(3):
        found = model.over(Times()).estimate(problems)
    assert says.asked == 2
    assert (found[0].native_us, found[0].gain, found[0].doubt) == pytest.approx((100.0, 0.25, 0.5))
    assert found[1] == Estimate(100.0, 0.0, 1.0)


def test_what_a_model_cannot_tell_of_keeps_its_estimate() -> None:
    model = ModelEstimator(Says({}), lambda p: candidates(p, "cpu"))
    problems = [layer(5).problem]
    assert model.over(Times()).estimate(problems) == [GUESS]
    assert model.over(Times(UNKNOWN)).estimate(problems) == [UNKNOWN]


def test_a_sweep_is_informed_by_the_model_that_applies(database: Path) -> None:
    chosen = settings.current()
    assert isinstance(informed(chosen)(Times()), Times)
    learning.learn_own(chosen, environment.of(mx.default_device()))
    problems = [layer(8).problem, layer(16).problem]
    found = informed(chosen)(Times()).estimate(problems)
    assert [each.native_us for each in found] == [100.0, 100.0]
    assert found != Times().estimate(problems)
