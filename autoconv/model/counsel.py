"""Counsel: what is known of a problem before it is timed, and what may be done for it.

A model's advice, if one applies; whether its choice was verified on this device and may run as it is; and on Metal,
without a model, the order of a prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoconv.algorithms import Candidate
from autoconv.decision import NATIVE, Decision, Source
from autoconv.model.advice import Advice
from autoconv.problem import Problem


@dataclass(frozen=True)
class Counsel:
    """What a model, or a prior, says of one problem here.

    Attributes:
        problem: The problem.
        accuracy: What results are held to: `"native"`, `"strict"` or a relative L2 error.
        why: Why no model tells of it, or why the user's own does not, in words; empty where nothing was refused.
        adviser: The model's name; empty where none applies.
        advice: What it says; None where it says nothing.
        verified: Whether its choice is of an algorithm that passed this device's first run in this dtype, or native.
        left_out: Candidates that it was not asked about, and why.
        prior: Names of all candidates in the order of the prior; empty where there is none.
        mark: What stands beside whatever comes of the prior.
    """

    problem: Problem
    accuracy: str | float = "native"
    why: str = ""
    adviser: str = ""
    advice: Advice | None = None
    verified: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    prior: tuple[str, ...] = ()
    mark: str = ""

    # What may be done

    def taken(self) -> Decision | None:
        """The model's choice where it is sure of it, and nothing about it is to be verified first.

        Errors are no model's affair: where they are held to more than native's own, every choice is verified.
        """
        if self.advice is None or not self.advice.sure or not self.verified or self.accuracy != "native":
            return None
        return self._choice(self.advice)

    def instead(self) -> Decision | None:
        """The model's choice where nothing can be timed: if it is no worse than native and may run unverified.

        Where MLX has no native (groups in 3D), any that was verified on this device.
        """
        if self.advice is None or not self.advice.forecasts or not self.verified:
            return None
        unheld = self.accuracy == "native" or self.advice.choice.candidate == NATIVE
        if self._has_native and not (self.advice.safe and unheld):
            return None
        return self._choice(self.advice)

    @property
    def doubt(self) -> str:
        """Why the model's choice is not taken instead of a measurement, in words; empty where it is."""
        if self.advice is None:
            return self.why
        if self.instead() is not None:
            return ""
        if not self.advice.forecasts or not self._has_native:
            return self.advice.reason or f"{self.adviser} knows nothing of it"
        choice, worst = self.advice.choice.candidate, self.advice.worst_to_native
        if not self.advice.safe:
            slower = 1 < worst < math.inf  # else it is for something else that it is unsure
            why = f"{choice} may be up to {worst:.2f} times native" if slower else self.advice.reason
            return f"the model is unsure: {why}"
        if not self.verified:
            return f"the model's choice, {choice}, was not verified on this device"
        return f"the model knows nothing of errors, which are held to {self.accuracy}"

    def turns(self, candidates: Sequence[Candidate], *, narrow: bool) -> tuple[tuple[str, ...] | None, ...]:
        """Names of the candidates to time, in order, None for all as they stand; and if those do not tell, the next.

        If `narrow`, native, whole or in chunks, and those that the model still questions come first. Where native as a
        whole is left out, say for its memory, records of some candidates never tell.
        """
        all_of_them = self.prior or None
        if (
            not narrow
            or self.advice is None
            or not self.advice.in_question
            or (self._has_native and NATIVE in self.left_out)
        ):
            return (all_of_them,)
        asked, choice = self.advice.in_question, self.advice.choice.candidate
        native = [c.name for c in candidates if c.algorithm.name == NATIVE]
        few = tuple(dict.fromkeys([*native, *(() if choice in asked else (choice,)), *asked]))
        return (few, all_of_them) if len(few) < len(candidates) else (few,)

    @property
    def _has_native(self) -> bool:
        return self.problem.groups == 1  # MLX has no groups in 3D

    def _choice(self, advice: Advice) -> Decision:
        choice = advice.choice
        margin = 0.0 if choice.candidate == NATIVE else math.expm1(-choice.log_ratio) if self._has_native else None
        reason = advice.reason or self.forecast(choice.candidate)
        return Decision(choice.candidate, Source.MODEL, margin, f"{reason}, by {self.adviser}")

    # What is shown

    def forecast(self, name: str) -> str:
        """What is expected of a candidate, in words; empty where nothing is."""
        if name in self.left_out:
            return self.left_out[name]
        if name in self.prior:
            return f"place {self.prior.index(name) + 1} of {len(self.prior)} by {self.mark}"
        forecasts = self.advice.forecasts if self.advice else ()
        found = next((f for f in forecasts if f.candidate == name), None)
        if found is None or name == NATIVE:
            return ""
        # Without native there is nothing to compare with but the choice.
        base, of = (0.0, "native's time") if self._has_native else (forecasts[0].log_ratio, "the choice's time")
        return f"forecast {_ratio(found.log_ratio - base)}x {of}, give or take {math.expm1(found.doubt):.0%}"

    def lines(self) -> list[str]:
        """What is said of the problem, in lines of words."""
        if self.advice is None:
            return [self.why, *([f"timed in the order of {self.mark}"] if self.prior else [])]
        advice = self.advice
        state = "sure" if advice.sure else "safe, not sure" if advice.safe else "unsure"
        found = [f"{self.adviser} is {state}" + (f": {advice.reason}" if advice.reason else "")]
        if advice.forecasts:
            ends = (
                f"{_ends(advice.worst_to_native)} native's time, {_ends(advice.worst_to_best)} that of the best other"
            )
            found.append(f"its choice, {advice.choice.candidate}: {ends}" + ("" if self.verified else "; not verified"))
        if not advice.sure and advice.in_question:
            found.append(f"in question: {', '.join(advice.in_question)}")
        return [*found, *([self.why] if self.why else [])]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what has no end is null."""
        advice = self.advice
        return {
            "adviser": self.adviser or None,
            "why_none": (self.why or None) if advice is None else None,
            "why_not_own": (self.why or None) if advice is not None else None,
            "verified": self.verified,
            "safe": bool(advice and advice.safe),
            "sure": bool(advice and advice.sure),
            "reason": advice.reason if advice else None,
            "worst_to_native": _finite(advice.worst_to_native) if advice else None,
            "worst_to_best": _finite(advice.worst_to_best) if advice else None,
            "in_question": list(advice.in_question) if advice else [],
            "forecasts": [
                {"candidate": f.candidate, "ratio_to_native": _finite(math.exp(f.log_ratio)), "doubt": _finite(f.doubt)}
                for f in (advice.forecasts if advice else ())
            ],
            "left_out": dict(self.left_out),
            "prior": {"mark": self.mark, "order": list(self.prior)} if self.prior else None,
        }


def _ratio(log_ratio: float) -> str:
    return f"{math.exp(log_ratio):.2f}"


def _ends(worst: float) -> str:
    return f"at most {worst:.2f}x" if math.isfinite(worst) else "no telling against"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
