"""A model's card: how good its choices were on problems that it did not see, beside other ways to choose.

It travels with the model and is checked when that is loaded: a model whose card is bad is not used.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autoconv.model.bounds import WORSE_BY

if TYPE_CHECKING:
    from autoconv.model.choices import Choice

MAX_WORSE_SHARE = 0.02
"""A model that is worse than native on more problems than this share, where it decides alone, is not used."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How good a way of choosing was on some problems.

    Attributes:
        problems: How many.
        regret_mean: Mean of its time over that of the best, less one; both by the samples that judge.
        regret_p95: 95th percentile of that.
        regret_worst: The largest.
        worse_share: Share of the problems on which it was slower than native by over 2%.
        worse_mean: By how much it was in the mean, on those.
        worse_most: By how much at most.
        captured: Share of what the best saves of native's time, all problems' times added up, that it saves; 1 where
            there is nothing to save.
        other_share: Share of the problems for which it chose another candidate than native.
        timed_share: Share of the problems that it would have had timed.
        not_run: Problems for which its choice does not run accurately; they are in no other number.
    """

    problems: int
    regret_mean: float
    regret_p95: float
    regret_worst: float
    worse_share: float
    worse_mean: float
    worse_most: float
    captured: float
    other_share: float
    timed_share: float
    not_run: int


def judge(choices: Sequence[Choice]) -> Judgement | None:
    """The judgement of choices; None where none of them runs."""
    ran = [c for c in choices if c.place is not None]
    if not ran:
        return None
    regrets = sorted(c.regret for c in ran)
    compared = [(c, c.against_native) for c in ran]
    worse = [by for _, by in compared if by is not None and by > WORSE_BY]
    known = [c for c, by in compared if by is not None]
    native_us = math.fsum(c.example.judging_us[0] for c in known)
    best_us = math.fsum(min(c.example.judging_us) for c in known)
    taken_us = math.fsum(c.example.judging_us[c.place] for c in known if c.place is not None)
    saved = native_us - best_us
    return Judgement(
        problems=len(ran),
        regret_mean=math.fsum(regrets) / len(regrets),
        regret_p95=regrets[math.ceil(0.95 * len(regrets)) - 1],
        regret_worst=regrets[-1],
        worse_share=len(worse) / len(known) if known else 0.0,
        worse_mean=statistics.fmean(worse) if worse else 0.0,
        worse_most=max(worse, default=0.0),
        captured=(native_us - taken_us) / saved if saved > 0 else 1.0,
        other_share=sum(c.place != c.example.native for c in ran) / len(ran),
        timed_share=sum(c.timed for c in ran) / len(ran),
        not_run=len(choices) - len(ran),
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often an interval held that was to hold with a probability.

    Attributes:
        interval: `native`, `best` or `question` (see `bounds.Bounds`).
        nominal: The probability.
        seen: The share of held-out choices of which it was true, networks weighing the same.
        choices: How many there were.
        networks: Of how many networks.
    """

    interval: str
    nominal: float
    seen: float
    choices: int
    networks: int


@dataclass(frozen=True)
class Card:
    """Judgements by split, group and way, and coverages.

    Attributes:
        judgements: By split (`network`: networks held out; `shape`: shapes held out; `device`: a device held out;
            `device and network`: both), then by group (`all`, a dtype, a device), then by way (`predict`, `auto`,
            `always`: the fastest by forecast, surely or not; `native`; `fixed rule`: MLX's of Metal; `neighbour`: what
            won on the nearest problem; `winner`: what the samples that choose say, which is the floor of all).
        coverages: Of the intervals.
    """

    judgements: Mapping[str, Mapping[str, Mapping[str, Judgement]]]
    coverages: tuple[Coverage, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        judgements = {
            split: {group: {way: asdict(found) for way, found in ways.items()} for group, ways in groups.items()}
            for split, groups in self.judgements.items()
        }
        return {"judgements": judgements, "coverages": [asdict(each) for each in self.coverages]}

    @staticmethod
    def of_dict(values: Mapping[str, Any]) -> Card:
        """The card of such values.

        Raises:
            ValueError: they make no card.
        """
        try:
            judgements = {
                str(split): {
                    str(group): {str(way): _judgement(found) for way, found in ways.items()}
                    for group, ways in groups.items()
                }
                for split, groups in values["judgements"].items()
            }
            return Card(judgements, tuple(Coverage(**each) for each in values["coverages"]))
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"a card that cannot be understood: {error}"
            raise ValueError(msg) from error

    def fault(self) -> str:
        """Why a model of this card is not to be used, in words; empty where nothing speaks against it."""
        found = self.judgements.get("network", {}).get("all", {})
        mine, native = found.get("predict"), found.get("native")
        if mine is None or native is None:
            return "its card does not judge it on held-out networks"
        if mine.worse_share > MAX_WORSE_SHARE:
            return f"its card: worse than native by over 2% on {mine.worse_share:.1%} of held-out problems"
        if mine.captured <= 0:
            return f"its card: it saves {mine.captured:.0%} of the time that could be saved on held-out problems"
        if mine.regret_mean > native.regret_mean:
            return (
                f"its card: a regret of {mine.regret_mean:.1%} in the mean, where native's is {native.regret_mean:.1%}"
            )
        return ""

    def markdown(self) -> list[str]:
        """Lines of tables for people."""
        lines = []
        for split, groups in self.judgements.items():
            lines += [
                f"## {split.capitalize()} held out",
                "",
                "| group | way | problems | mean regret | 95th percentile | worst | worse than native by over 2% "
                "| by at most | gain captured | not native | timed | does not run |",
                "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            ]
            lines += [
                f"| {group} | {way} | {j.problems} | {j.regret_mean:.2%} | {j.regret_p95:.1%} | {j.regret_worst:.0%} "
                f"| {j.worse_share:.2%} | {j.worse_most:.0%} | {j.captured:.1%} | {j.other_share:.1%} "
                f"| {j.timed_share:.1%} | {j.not_run} |"
                for group, ways in groups.items()
                for way, j in ways.items()
            ]
            lines.append("")
        lines += [
            "## Intervals",
            "",
            "| interval | to hold for | held for | choices | networks |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {c.interval} | {c.nominal:.0%} | {c.seen:.1%} | {c.choices} | {c.networks} |" for c in self.coverages
        ]
        return lines


def _judgement(values: Mapping[str, Any]) -> Judgement:
    found = Judgement(**values)
    if not all(isinstance(getattr(found, name), (int, float)) for name in Judgement.__dataclass_fields__):
        msg = "a judgement that is no number"
        raise ValueError(msg)
    return found
