"""Choices and their judgement: by the samples that did not choose, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from autoconv.algorithms import candidates
from autoconv.decision import NATIVE
from autoconv.model.advice import Advice, Forecast
from autoconv.model.card import Card, Judgement, judge
from autoconv.model.choices import Choice, always, automatic, predicting, winner
from autoconv.model.examples import Device, Example, networks, read, shape_of, spread
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MemoryStore, Qualification
from autoconv.sweep import packaged_workloads, read_workload

LAYER = Problem.parse((1, 6, 12, 12, 16), (16, 3, 3, 3, 16), "float32", padding=1)
DEVICE = Device("e", {"device": "A", "backend": "cuda"}, {})
NAMES = (NATIVE, "kd_decomposition(sum=float32)", "depth_concat(edges=split)")


def example(choosing: Sequence[float], judging: Sequence[float]) -> Example:
    found = {c.name: c for c in candidates(LAYER, "cuda")}
    usable = tuple(t < math.inf for t in choosing)
    return Example(LAYER, DEVICE, tuple(found[n] for n in NAMES), tuple(choosing), tuple(judging), usable)


def said(*names: str, safe: bool = True, sure: bool = True, question: Sequence[str] = NAMES) -> Advice:
    forecasts = tuple(Forecast(name, 0.1 * place, 0.1) for place, name in enumerate(names))
    return Advice(forecasts, 1.0, 1.0, safe, sure, tuple(question), "")


def test_the_winner_is_chosen_by_some_samples_and_judged_by_others() -> None:
    e = example([10, 9, 8], [10, 7, 9])
    choice = Choice(e, winner(e))
    assert choice.place == 2
    assert choice.regret == pytest.approx(9 / 7 - 1)
    assert choice.against_native == pytest.approx(-0.1)


def test_what_does_not_run_is_never_the_winner_and_has_no_regret_as_a_choice() -> None:
    e = example([10, math.inf, 12], [10, math.inf, 12])
    assert winner(e) == 0
    assert winner(e, [NAMES[1]]) == 0
    assert always(e, said(NAMES[1], NATIVE)).place is None
    assert always(e, said(NAMES[1], NATIVE)).regret == math.inf


def test_predict_takes_what_is_safe_and_auto_times_what_is_in_question() -> None:
    e = example([10, 9, 8], [10, 9, 8])
    assert predicting(e, said(NAMES[1], NAMES[0])).place == 1
    assert predicting(e, said(NAMES[1], NAMES[0], safe=False)).place == 0
    assert automatic(e, said(NAMES[1])) == Choice(e, 1, timed=False, advice=said(NAMES[1]))
    unsure = automatic(e, said(NAMES[1], sure=False, question=NAMES[:2]))
    assert (unsure.place, unsure.timed) == (1, True)


def test_a_judgement_is_what_counting_by_hand_gives() -> None:
    slow = Choice(example([10, 9, 9], [10, 12, 8]), 1)  # regret 50%, 20% worse than native
    best = Choice(example([10, 9, 9], [10, 12, 5]), 2)
    native = Choice(example([10, 9, 9], [10, 12, 10]), 0, timed=True)
    broken = Choice(example([10, math.inf, 9], [10, math.inf, 9]), None)
    found = judge([slow, best, native, broken])
    assert found is not None
    assert found.problems == 3
    assert found.not_run == 1
    assert found.regret_mean == pytest.approx(0.5 / 3)
    assert found.regret_worst == pytest.approx(0.5)
    assert found.regret_p95 == pytest.approx(0.5)
    assert found.worse_share == pytest.approx(1 / 3)
    assert found.worse_mean == found.worse_most == pytest.approx(0.2)
    # Native's 30 could be 23, and 27 are taken.
    assert found.captured == pytest.approx(3 / 7)
    assert found.other_share == pytest.approx(2 / 3)
    assert found.timed_share == pytest.approx(1 / 3)
    assert judge([broken]) is None


def judgement(**changes: float) -> Judgement:
    some = {"problems": 9, "not_run": 0, "captured": 0.5}
    return Judgement(**dict.fromkeys(Judgement.__dataclass_fields__, 0.0) | some | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (judgement(regret_mean=0.1), ""),
        (judgement(regret_mean=0.1, worse_share=0.03), "worse than native by over 2% on 3.0%"),
        (judgement(regret_mean=0.1, captured=-0.2), "saves -20%"),
        (judgement(regret_mean=0.3), "a regret of 30.0% in the mean, where native's is 20.0%"),
    ],
)
def test_a_bad_card_says_why(mine: Judgement, says: str) -> None:
    card = Card({"network": {"all": {"predict": mine, "native": judgement(regret_mean=0.2)}}}, ())
    assert says in card.fault()
    assert bool(card.fault()) == bool(says)
    assert Card.of_dict(card.as_dict()) == card


def test_a_card_that_judges_nothing_is_bad() -> None:
    assert "does not judge" in Card({}, ()).fault()
    with pytest.raises(ValueError, match="cannot be understood"):
        Card.of_dict({"judgements": {"network": {"all": {"predict": {"problems": 3}}}}, "coverages": []})


def record(candidate: str, samples: Sequence[float], run: str = "r", status: Status = Status.OK) -> Record:
    algorithm, _, rest = candidate.partition("(")
    return Record(
        LAYER.key,
        "e",
        algorithm,
        1,
        rest.rstrip(")"),
        status,
        tuple(samples),
        error=1e-7,
        run=run,
        created=float(len(run)),
    )


def store_with(*records: Record, ceilings: bool = True) -> MemoryStore:
    found = MemoryStore()
    found.add_environment("e", {"backend": "cuda", "device": "A"}, {})
    if ceilings:
        found.qualify(Qualification("e", "f", ceilings={"launch_us": 3.0}, created=1.0))
    found.add(LAYER, records)
    return found


def test_examples_are_read_with_both_kinds_of_samples() -> None:
    from autoconv.algorithms import algorithms

    store = store_with(
        record(NAMES[1], [5, 7, 5.2, 7.2, 5.4, 7.4]),
        record(NAMES[0], [9, 8, 9, 8]),
        record(NAMES[2], [30]),
        record("matmul", [1]),  # does not apply
        record("depth_winograd(tile=4)", [], status=Status.INACCURATE),
        record("depth_winograd(tile=2)", [], status=Status.TOO_SLOW),
    )
    (found,) = read(store, "cuda", algorithms())
    assert [c.name for c in found.candidates] == [NAMES[0], NAMES[1], NAMES[2], "depth_winograd(tile=4)"]
    assert found.choosing_us == (9.0, 5.2, 30.0, math.inf)
    assert found.judging_us == (8.0, 7.2, 30.0, math.inf)
    assert found.usable == (True, True, True, False)
    assert found.device.ceilings == {"launch_us": 3.0}


def test_other_backends_devices_without_ceilings_and_what_never_ran_are_no_examples() -> None:
    from autoconv.algorithms import algorithms

    whole = store_with(record(NAMES[0], [9, 8]))
    assert not list(read(whole, "cpu", algorithms()))
    assert not list(read(store_with(record(NAMES[0], [9, 8]), ceilings=False), "cuda", algorithms()))
    failed = store_with(record(NAMES[0], [], status=Status.FAILED))
    assert not list(read(failed, "cuda", algorithms()))


def test_networks_that_share_a_layer_are_one_and_a_fold_has_all_of_a_network() -> None:
    layers = [layer for path in packaged_workloads().values() for layer in read_workload(path)]
    one = (example([1, 1, 1], [1, 1, 1]),)
    examples = [Example(la.problem, DEVICE, one[0].candidates, (1.0,) * 3, (1.0,) * 3, (True,) * 3) for la in layers]
    found = networks([*examples, *one])
    assert found[-1] == shape_of(LAYER)
    by_network: dict[str, set[str]] = {}
    by_shape: dict[str, set[str]] = {}
    for layer, group in zip(layers, found, strict=False):
        by_network.setdefault(layer.network, set()).add(group)
        by_shape.setdefault(shape_of(layer.problem), set()).add(group)
    assert all(len(groups) == 1 for groups in by_network.values())
    assert all(len(groups) == 1 for groups in by_shape.values())
    folds = spread(found, 5)
    assert len({(group, fold) for group, fold in zip(found, folds.tolist(), strict=True)}) == len(set(found))
    assert set(folds.tolist()) == set(range(5))
