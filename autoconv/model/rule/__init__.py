"""A rule that people can read, distilled from measurements: a tree of few leaves, and what is lost by following it."""

from autoconv.model.rule.case import Case, cases_in
from autoconv.model.rule.distilled import LEAVES, Evidence, Rule, distil, figures, readable
from autoconv.model.rule.files import Written, write
from autoconv.model.rule.loss import Loss
from autoconv.model.rule.python import python_source

__all__ = [
    "LEAVES",
    "Case",
    "Evidence",
    "Loss",
    "Rule",
    "Written",
    "cases_in",
    "distil",
    "figures",
    "python_source",
    "readable",
    "write",
]
