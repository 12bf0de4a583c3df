"""A rule as Python: one module with one function, which imports nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoconv.decision import NATIVE
from autoconv.model.rule.distilled import Evidence, Rule, figures, percent
from autoconv.model.rule.loss import Loss
from autoconv.model.rule.tree import Leaf, Node
from autoconv.words import counted

_INDENT = "    "

_PRELUDE = '''
def choose(input_shape, weight_shape, stride=1, padding=0, dilation=1, groups=1, dtype="float32"):
    """Name of the way to compute a convolution; one that does not apply to it, or is not accurate enough, means
    "{otherwise}".

    Args:
        input_shape: (N, D, H, W, C).
        weight_shape: (O, KD, KH, KW, C / groups).
        stride: One number, or three for depth, height and width.
        padding: The same, or a pair (low, high) of three each.
        dilation: As stride.
        groups: Groups of channels that do not mix.
        dtype: "float16", "bfloat16", "float32" or "float64".
    """
    N, D, H, W, C = input_shape
    O, KD, KH, KW, _ = weight_shape
    stride_d, stride_h, stride_w = _three(stride)
    dilation_d, dilation_h, dilation_w = _three(dilation)
    pair = isinstance(padding, (list, tuple)) and len(padding) == 2
    pad_low_d, pad_low_h, pad_low_w = _three(padding[0] if pair else padding)
    pad_high_d, pad_high_h, pad_high_w = _three(padding[1] if pair else padding)
    OD = (D + pad_low_d + pad_high_d - (KD - 1) * dilation_d - 1) // stride_d + 1
    OH = (H + pad_low_h + pad_high_h - (KH - 1) * dilation_h - 1) // stride_h + 1
    OW = (W + pad_low_w + pad_high_w - (KW - 1) * dilation_w - 1) // stride_w + 1
    MFLOP = 2 * N * OD * OH * OW * O * (C // groups) * KD * KH * KW // 10**6
    item_bytes = {{"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}}[dtype]

'''

_THREE = """

def _three(value):
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 3 if len(values) == 1 else values
"""


def python_source(rule: Rule, backend: str) -> str:
    """The rule as a module that imports nothing; the same for the same rule."""
    lines = "".join(f"{line}\n" for line in _header(rule, backend))
    body = "".join(f"{line}\n" for line in branches(rule, _python_leaf, PYTHON, 1))
    return lines + "\n" + _PRELUDE.format(otherwise=rule.otherwise) + body + _THREE


def _header(rule: Rule, backend: str) -> Iterator[str]:
    leaves = len(rule.leaves)
    yield f'"""The fastest way to compute a 3D convolution on {backend}: a tree of {counted(leaves, "leaf", "leaves")}.'
    yield ""
    devices = counted(len(rule.chips), "device")
    yield f"Distilled by autoconv from {rule.problems} problems on {devices}:"
    yield from (f"  {quiet(chip)}" for chip in rule.chips)
    yield ""
    yield "Regret is the time taken over the least time measured, less one:"
    yield from (f"  {quiet(name)}, {loss.cases} cases: {loss}" for name, loss in figures(rule))
    yield ""
    yield from textwrap.wrap(f"On shapes held out {against(rule.held_out, rule.otherwise)}.", 110)
    yield '"""'


def against(loss: Loss, otherwise: str) -> str:
    """How choices compare with what would be taken otherwise, in words."""
    return (
        f"it is {loss.gain:.3f} times as fast as {otherwise} in the geometric mean, {loss.weighted:.3f} times in the "
        f"sum of all times, worse by over 2% in {loss.worse:.1%}, and at most {loss.worst_to_native:.2f} times its time"
    )


@dataclass(frozen=True)
class Syntax:
    """How a language writes a question.

    Attributes:
        expression: Name of the field of a feature that says it in this language.
        question: Opens the first branch, with `{}` for the condition.
        negation: What stands before a condition to say its opposite.
        otherwise: What stands between the two branches.
        end: What closes the second; empty where indentation does.
    """

    expression: str
    question: str
    negation: str
    otherwise: str
    end: str = ""


PYTHON = Syntax("python", "if {}:", "not ", "else:")
CPP = Syntax("cpp", "if ({}) {{", "!", "} else {", "}")


def branches(rule: Rule, leaf: Callable[[Leaf, Evidence], tuple[str, ...]], syntax: Syntax, depth: int) -> list[str]:
    """A tree as nested questions, a line each.

    Args:
        rule: The rule.
        leaf: Writes a leaf, as lines.
        syntax: How the language writes questions.
        depth: How deep the first stands.
    """
    evidence = iter(rule.evidence)

    def lines(node: Node, depth: int) -> Iterator[str]:
        pad = _INDENT * depth
        if isinstance(node, Leaf):
            yield from (pad + line for line in leaf(node, next(evidence)))
            return
        text = getattr(node.feature, syntax.expression)
        condition = f"{text} <= {node.most}"
        if node.feature.is_fact:
            condition = text.replace("==", "!=") if "==" in text else syntax.negation + text
        yield pad + syntax.question.format(condition)
        yield from lines(node.low, depth + 1)
        yield pad + syntax.otherwise
        yield from lines(node.high, depth + 1)
        if syntax.end:
            yield pad + syntax.end

    return list(lines(rule.tree, depth))


def note(evidence: Evidence, otherwise: str = NATIVE) -> str:
    """What a leaf rests on, in words."""
    if not evidence.loss.cases:
        return "no problem came here"
    gain = f"{evidence.loss.gain:.2f}x {otherwise}" if evidence.loss.compared else f"{otherwise} cannot"
    problems = counted(evidence.problems, "problem")
    if evidence.runs < evidence.problems:
        problems += f", of which it runs on {evidence.runs}"
    return f"{problems}, regret {percent(evidence.loss.mean)}, worst {percent(evidence.loss.worst)}, {gain}"


def _python_leaf(leaf: Leaf, evidence: Evidence) -> tuple[str, str]:
    return f"# {note(evidence)}", f"return {_quoted(leaf.choice)}"


def _quoted(name: str) -> str:
    return '"' + ascii(name)[1:-1].replace('"', r"\"") + '"'


def quiet(text: str) -> str:
    """A name from a file as text that ends no docstring and no comment."""
    return ascii(text)[1:-1].replace('"', "'").replace("\\", "/").replace("*/", "* /")
