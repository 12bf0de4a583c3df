"""The upstream rule: which of MLX's own two ways a 3D convolution takes on Metal, as a guard for its dispatch.

MLX decomposes along depth by a fixed rule (`KD <= 7` and what it cannot do without), and takes the 3D implicit GEMM
else. Here a tree decides in its place, within what that rule admits: elsewhere the decomposition would be wrong or was
never MLX's. It asks what `dispatch_conv_3D_gpu` sees of a convolution, never how much memory is free, and is taught by
measurements on Metal alone. One more thing is asked that the fixed rule leaves out: that there is no high padding in
depth, as the decomposition would read frames past the input's end.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autoconv.algorithms._mlx import MAX_DECOMPOSED_DEPTH, metal_decomposes, metal_reads_past_end
from autoconv.decision import NATIVE
from autoconv.errors import RuleError
from autoconv.model.rule.case import JUDGING, Case
from autoconv.model.rule.distilled import LEAVES, Evidence, Rule, distil, figures, percent
from autoconv.model.rule.features import METAL_FEATURES
from autoconv.model.rule.loss import loss_of_choices
from autoconv.model.rule.python import CPP, against, branches, note, quiet
from autoconv.model.rule.tree import Leaf
from autoconv.problem import Kind, Problem
from autoconv.words import counted

DECOMPOSED, IMPLICIT = "decomposed", "implicit"
"""MLX's two ways, of which the first is what its fixed rule takes."""

NEEDED_PROBLEMS, NEEDED_CHIPS = 300, 3
"""Without so much no rule is written for others to build into MLX."""

NEEDED_ON_A_CHIP = NEEDED_PROBLEMS // NEEDED_CHIPS
"""Problems from which a chip counts."""


def both_run(problem: Problem) -> bool:
    """Whether MLX's dispatch has the choice: its fixed rule holds, and nothing is read past the input's end."""
    return problem.kind is Kind.FORWARD and metal_decomposes(problem) and not metal_reads_past_end(problem)


def two_ways(cases: Iterable[Case]) -> list[Case]:
    """The cases in which both of MLX's ways were timed, with these two alone.

    `implicit_gemm` computes one frame more than the 3D kernel itself would, where nothing else fails MLX's rule: a
    guard would not, so that its time counts without that frame.
    """
    found = []
    for case in cases:
        decomposed, implicit = case.times_us.get(NATIVE), case.times_us.get("implicit_gemm")
        if decomposed and implicit and both_run(case.problem):
            frames = case.problem.output_shape[1]
            share = frames / (frames + 1) if frames > 1 and case.problem.weight_shape[1] > 1 else 1.0
            alone = implicit[0] * share, implicit[1] * share
            found.append(replace(case, times_us={DECOMPOSED: decomposed, IMPLICIT: alone}, winner=""))
    return found


def lacking(cases: Sequence[Case]) -> str:
    """Why these cases are too few for a rule that others are to build into MLX, in words; empty where they are not."""
    problems = len({case.problem for case in cases})
    on = Counter(chip for chip, _ in {(case.chip, case.problem) for case in cases})
    enough = sum(count >= NEEDED_ON_A_CHIP for count in on.values())
    if problems >= NEEDED_PROBLEMS and enough >= NEEDED_CHIPS:
        return ""
    each = ", ".join(f"{chip} {count}" for chip, count in sorted(on.items()))
    return (
        f"no rule for MLX is written: both of its ways were timed for {counted(problems, 'problem')} on "
        f"{counted(enough, 'chip')} with {NEEDED_ON_A_CHIP} or more ({each or 'none at all'}), and "
        f"{NEEDED_PROBLEMS} problems on {NEEDED_CHIPS} such chips are needed; run autoconv sweep on Macs and import "
        f"what they export"
    )


def upstream_rule(cases: Sequence[Case], leaves: int = LEAVES) -> Rule:
    """The rule that the cases of `two_ways` teach.

    Raises:
        RuleError: they are too few; the message says what there is and what is needed.
    """
    why = lacking(cases)
    if why:
        raise RuleError(why)
    return distil(cases, leaves, features=METAL_FEATURES, otherwise=DECOMPOSED)


_CPP = """
// Whether a 3D convolution is decomposed along depth; the 3D implicit GEMM takes it otherwise.
// In dispatch_conv_3D_gpu, in place of the condition on KD:
//   if (is_idil_one && mod16_channels &&
//       takes_depth_decomposition(conv_params, out.itemsize())) {{ ... }}
static bool takes_depth_decomposition(
    const MLXConvParams<3>& conv_params,
    size_t {item_bytes}) {{
{names}

  // Elsewhere the decomposition is not right, or MLX never took it. No depth padding: OD says so of the high side.
  if (conv_params.N != 1 || conv_params.groups != 1 || KD > {depth} ||
      conv_params.str[0] != 1 || conv_params.kdil[0] != 1 ||
      conv_params.pad[0] != 0 || OD != D - KD + 1) {{
    return false;
  }}
{body}
}}
"""


_NAMES = {
    "D": "conv_params.iS[0]",
    "H": "conv_params.iS[1]",
    "W": "conv_params.iS[2]",
    "OD": "conv_params.oS[0]",
    "OH": "conv_params.oS[1]",
    "OW": "conv_params.oS[2]",
    "KD": "conv_params.wS[0]",
    "KH": "conv_params.wS[1]",
    "KW": "conv_params.wS[2]",
    "C": "conv_params.C",
    "O": "conv_params.O",
    "MFLOP": "2 * OD * OH * OW * O * C * KD * KH * KW / 1000000",
}
"""What the questions' names stand for, each after those that it needs."""


def cpp_source(rule: Rule) -> str:
    """The rule as C++ in the shape of MLX's own guard, against the fields of `MLXConvParams<3>`."""

    def leaf(leaf: Leaf, evidence: Evidence) -> tuple[str, str]:
        return f"// {note(evidence, DECOMPOSED)}", f"return {str(leaf.choice == DECOMPOSED).lower()};"

    body = [line.replace("    ", "  ") for line in branches(rule, leaf, CPP, 1)]
    asked = set(re.findall(r"\w+", " ".join(line for line in body if line.lstrip().startswith("if"))))
    if "MFLOP" in asked:
        asked |= set(_NAMES)
    names = [f"  const int64_t {n} = {of};" for n, of in _NAMES.items() if n in asked | {"D", "OD", "KD"}]
    header = [
        f"// Distilled by autoconv from {rule.problems} problems on {len(rule.chips)} chips: a tree of "
        f"{counted(len(rule.leaves), 'leaf', 'leaves')}.",
        *(f"//   {quiet(chip)}" for chip in rule.chips),
        "// Regret is the time taken over that of the better way, less one:",
        *(f"//   {name}: {loss}" for name, loss in figures(rule)),
    ]
    return "\n".join(header) + _CPP.format(
        depth=MAX_DECOMPOSED_DEPTH,
        names="\n".join(names),
        item_bytes="item_bytes" if "item_bytes" in asked else "/* item_bytes */",
        body="\n".join(body),
    )


@dataclass(frozen=True)
class _Worst:
    """The case in which the rule loses the most to what MLX does now."""

    case: Case
    ratio: float


def _worst(rule: Rule, cases: Sequence[Case]) -> _Worst:
    def ratio(case: Case) -> float:
        return case.time_us(rule.choose(case.problem), JUDGING) / case.time_us(DECOMPOSED, JUDGING)

    case = max(cases, key=ratio)
    return _Worst(case, ratio(case))


def page(rule: Rule, leaves: int = LEAVES) -> str:
    """The table by chip and the worst loss, as Markdown.

    For each chip, too, what a tree loses there that was grown on the other chips alone.
    """
    return "\n".join(_page(rule, leaves)) + "\n"


def _page(rule: Rule, leaves: int) -> Iterator[str]:
    yield "# Which of MLX's two ways a 3D convolution takes on Metal"
    yield ""
    yield (
        f"A tree of {len(rule.leaves)} leaves, distilled from {rule.problems} problems on {len(rule.chips)} chips, in "
        f"place of the fixed rule `KD <= {MAX_DECOMPOSED_DEPTH}`. It asks only what `dispatch_conv_3D_gpu` sees of the "
        "convolution: neither free memory nor the chip. Regret is the time taken over that of the better way, less "
        "one; samples that judge chose nothing. The implicit GEMM's times are without the frame that reaching it took."
    )
    flipped = len({case.problem for case in rule.cases if case.problem.flip})
    yield ""
    yield f"On shapes held out {against(rule.held_out, 'what MLX does now')}. {flipped} of the problems are flipped."
    yield ""
    heads = (
        "chip",
        "problems",
        "decomposed is faster",
        "regret now",
        "implicit always",
        "rule",
        "rule grown elsewhere",
    )
    yield f"| {' | '.join(heads)} | gain | worst |"
    yield "| --- " + "| ---: " * 8 + "|"
    for chip in rule.chips:
        yield _row(rule, chip, leaves)
    worst = _worst(rule, rule.cases)
    yield ""
    yield (
        f"Worst loss: {worst.ratio:.2f} times what MLX takes now, on {quiet(worst.case.chip)}, for "
        f"`{worst.case.problem.key}`."
    )
    yield ""
    yield "| regret | mean | 95th percentile | worst |"
    yield "| --- | ---: | ---: | ---: |"
    for name, loss in figures(rule):
        yield f"| {name} | {percent(loss.mean)} | {percent(loss.p95)} | {percent(loss.worst)} |"


def _row(rule: Rule, chip: str, leaves: int) -> str:
    here = [case for case in rule.cases if case.chip == chip]
    elsewhere = [case for case in rule.cases if case.chip != chip]
    other = distil(elsewhere, leaves, features=METAL_FEATURES, otherwise=DECOMPOSED) if elsewhere else rule
    now, always, ruled, foreign = (
        loss_of_choices(here, choices, DECOMPOSED)
        for choices in (
            [DECOMPOSED] * len(here),
            [IMPLICIT] * len(here),
            [rule.choose(case.problem) for case in here],
            [other.choose(case.problem) for case in here],
        )
    )
    faster = statistics.fmean(c.time_us(DECOMPOSED, JUDGING) <= c.time_us(IMPLICIT, JUDGING) for c in here)
    shown = [percent(loss.mean) for loss in (now, always, ruled, foreign)]
    return (
        f"| {quiet(chip)} | {len({case.problem for case in here})} | {faster:.0%} | {' | '.join(shown)} | "
        f"{ruled.gain:.3f}x | {ruled.worst_to_native:.2f}x |"
    )
