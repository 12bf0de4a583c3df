"""`autoconv evaluate`: the card made again, and a model judged on what it did not learn from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command import run
from models import PROBLEMS, part

from autoconv.algorithms import algorithms
from autoconv.model import evaluation, learning, shelf
from autoconv.model.card import Card
from autoconv.model.cost_model import pack
from autoconv.model.examples import read
from autoconv.store import shipped as came

pytestmark = pytest.mark.usefixtures("trained_here")

HEADER = "model,layer,N,D,H,W,C_in,C_out,KD,KH,KW,pad_d,pad_h,pad_w\n"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "shipped"))


def test_the_card_is_made_again(folder: Path) -> None:
    found = run("evaluate", "--model", folder / "cpu.npz")
    assert found.exit_code == 0, found.output
    assert "cpu.npz: its card is reproduced" in found.output
    assert "measured winner" in found.output


def test_that_of_the_model_that_applies_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(came, "shipped_models", lambda _backend: [folder / "cpu.npz"])
    monkeypatch.setattr(came, "shipped_files", lambda: [folder / "some.db"])
    found = json.loads(run("evaluate", "--json").stdout)
    assert (found["model"], found["reproduced"], found["differences"]) == ("cpu.npz", True, [])
    assert found["card"] == shelf.load(folder / "cpu.npz").card.as_dict()


def test_another_card_is_told_of(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    all_ways = model.card.judgements["network"]["all"]
    better = {**all_ways, "auto": replace(all_ways["auto"], regret_mean=0.0)}
    judgements = {**model.card.judgements, "network": {**model.card.judgements["network"], "all": better}}
    card = Card(judgements, model.card.coverages)
    (folder / "cpu.npz").write_bytes(pack(replace(model, card=card)))
    found = run("evaluate", "--model", folder / "cpu.npz")
    assert found.exit_code == 1
    assert "cpu.npz carries another card: judgements, network, all, auto, regret_mean: 0.0 is now" in found.output


def test_few_of_many_differences_are_told_of(folder: Path) -> None:
    model = shelf.load(folder / "cpu.npz")
    found = evaluation.differences(model, Card({}, ()))
    assert len(found) == evaluation.MOST_DIFFERENCES + 1
    assert found[-1].startswith("and ")
    assert evaluation.differences(model, model.card) == []


def test_on_a_database_it_is_judged_by_the_shapes_that_it_did_not_learn(folder: Path, tmp_path: Path) -> None:
    more = part(tmp_path / "more.db", start=PROBLEMS - 10, count=40)
    found = json.loads(run("evaluate", more, "--model", folder / "cpu.npz", "--json").stdout)
    assert found["learned"] >= 10
    assert found["problems"] + found["learned"] == 40
    assert found["groups"]["all"]["native"]["problems"] == found["problems"]
    shown = run("evaluate", more, "--model", folder / "cpu.npz")
    assert shown.exit_code == 0, shown.output
    assert f"judged on {found['problems']} problems; {found['learned']} are left out" in shown.output


def test_on_a_workload_it_is_judged_by_the_measured_problems_of_it(folder: Path, tmp_path: Path) -> None:
    more = part(tmp_path / "more.db", start=PROBLEMS, count=60)
    everything = json.loads(run("evaluate", more, "--model", folder / "cpu.npz", "--json").stdout)
    model = shelf.load(folder / "cpu.npz")
    learned = {example.shape for example in learning.reproduced(model, [folder / "some.db"]).examples}
    with learning.opened([more]) as stores:
        examples = [e for e in read(stores["more.db"], "cpu", tuple(algorithms())) if e.shape not in learned]
    problem = next(
        e.problem
        for e in examples
        if e.problem.groups == 1
        and e.problem.padding_low == e.problem.padding_high
        and max(*e.problem.stride, *e.problem.dilation, *e.problem.input_dilation) == 1
    )
    sizes = [*problem.input_shape, problem.weight_shape[0], *problem.weight_shape[1:4], *problem.padding_low]
    workload = tmp_path / "mine.csv"
    workload.write_text(f"{HEADER}net,a,{','.join(map(str, sizes))}\n")
    found = json.loads(run("evaluate", more, workload, "--model", folder / "cpu.npz", "--json").stdout)
    assert 1 <= found["problems"] < everything["problems"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "no model": (["--model", "nowhere.npz"], "nowhere.npz cannot be read: No such file or directory"),
    "none applies": ([], "no cost model applies here (no model is there): name one by --model, or run autoconv train"),
    "no database": (["nowhere.db", "--model", "shipped/cpu.npz"], "there is no database nowhere.db"),
    "no workload": (["nowhere", "--model", "shipped/cpu.npz"], "nowhere is neither a file nor a packaged workload"),
    "not measured": (["empty.db", "--model", "shipped/cpu.npz"], "nothing of it is measured on cpu: sweep it first"),
    "all learned": (["some.db", "--model", "shipped/cpu.npz"], "learned from all 160 measured problems of it on cpu"),
    "database missing": (["--model", "alone.npz"], "learned from some.db, which is neither yours nor came"),
    "database changed": (["--model", "changed/cpu.npz"], "some.db has other measurements of AMD EPYC than cpu.npz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_judged_is_one_line(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = REFUSED[case]
    work = tmp_path / "work"
    shutil.copytree(folder, work / "shipped")
    shutil.copytree(folder, work / "changed")
    shutil.copy(folder / "cpu.npz", work / "alone.npz")
    if "some.db" in arguments:
        shutil.copy(folder / "some.db", work / "some.db")
    (work / "changed" / "some.db").unlink()
    part(work / "changed" / "some.db", start=2)
    part(work / "empty.db", count=0)
    monkeypatch.chdir(work)
    found = run("evaluate", *arguments)
    assert found.exit_code == 1
    assert message in found.output
    assert len(found.output.splitlines()) == 1
