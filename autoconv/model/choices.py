"""Choices: what a way of deciding does with a measured problem, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoconv.model.advice import Advice
from autoconv.model.examples import Example


@dataclass(frozen=True, slots=True)
class Choice:
    """What a way of deciding did with one example.

    Attributes:
        example: The example.
        place: The candidate's place among the example's; None where what was chosen does not run.
        timed: Whether it would have been timed, which finds the winner among those that were in question.
        advice: What was said; None for ways that say nothing.
    """

    example: Example
    place: int | None
    timed: bool = False
    advice: Advice | None = None

    @property
    def regret(self) -> float:
        """Its time over that of the best, less one, by the samples that judge; infinite where it does not run."""
        if self.place is None:
            return math.inf
        return self.example.judging_us[self.place] / min(self.example.judging_us) - 1

    @property
    def against_native(self) -> float | None:
        """Its time over native's, less one; None where native does not run."""
        if self.example.native is None or self.place is None:
            return None
        return self.example.judging_us[self.place] / self.example.judging_us[0] - 1


def predicting(example: Example, said: Advice) -> Choice:
    """What `predict` does: the model's choice where it is safe, else native."""
    if said.safe:
        return Choice(example, example.place(said.choice.candidate), advice=said)
    return Choice(example, example.native if example.native is not None else winner(example), advice=said)


def automatic(example: Example, said: Advice) -> Choice:
    """What `auto` does: the model's choice where it is sure, else what wins among those in question."""
    if said.sure:
        return Choice(example, example.place(said.choice.candidate), advice=said)
    return Choice(example, winner(example, said.in_question), timed=True, advice=said)


def always(example: Example, said: Advice) -> Choice:
    """What is the fastest by forecast, surely or not."""
    fastest = min(said.forecasts, key=lambda f: f.log_ratio)
    return Choice(example, example.place(fastest.candidate), advice=said)


def winner(example: Example, among: Sequence[str] | None = None) -> int:
    """The place of the fastest by the samples that choose; of all where none of the named ones runs."""
    seen = [i for i, usable in enumerate(example.usable) if usable]
    named = [i for i in seen if among is None or example.candidates[i].name in among]
    return min(named or seen, key=lambda i: example.choosing_us[i])
