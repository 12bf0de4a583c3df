"""The files of a rule: its Python, and for Metal what MLX would need of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoconv import plain_file
from autoconv.errors import RuleError
from autoconv.model.rule import metal
from autoconv.model.rule.benchmark import benchmark_source
from autoconv.model.rule.case import Case
from autoconv.model.rule.distilled import LEAVES, Rule, distil, readable
from autoconv.model.rule.python import python_source


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rule: The rule that the Python file is.
        files: The files.
        upstream: The rule for MLX's own dispatch; None where there is none.
        missing: Why there is none, in words; empty on backends other than Metal, which have no such rule.
    """

    rule: Rule
    files: tuple[Path, ...]
    upstream: Rule | None = None
    missing: str = ""


def write(cases: Sequence[Case], backend: str, out: Path, *, leaves: int = LEAVES, force: bool = False) -> Written:
    """Distil the rule of a backend and write it to `out`.

    On Metal, where there are measurements enough, the upstream rule comes with it: `NAME.cpp`, a table by chip in
    `NAME.md`, and `NAME_bench.py`. Nothing is written unless everything can be made.

    Args:
        cases: The backend's cases.
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        out: The file of the Python rule.
        leaves: Most leaves.
        force: Replace files that exist.

    Raises:
        RuleError: there is nothing to learn from, a file exists and may not be replaced, or cannot be written.
    """
    if out.suffix != ".py":
        msg = f"a rule is Python: name a file with suffix .py, not {out.name}"
        raise RuleError(msg)
    rule = distil([case for case in cases if readable(case.problem)], leaves)
    texts = {out: python_source(rule, backend)}
    upstream, missing = None, ""
    if backend == "metal":
        both = metal.two_ways(cases)
        missing = metal.lacking(both)
        if not missing:
            upstream = metal.upstream_rule(both, leaves)
            texts[out.with_suffix(".cpp")] = metal.cpp_source(upstream)
            texts[out.with_suffix(".md")] = metal.page(upstream, leaves)
            texts[out.with_name(f"{out.stem}_bench.py")] = benchmark_source(upstream)
    for path in texts:
        if path.exists() and not force:
            msg = f"{path} exists: name another file, or have it replaced (--force)"
            raise RuleError(msg)
    for path, text in texts.items():
        with plain_file.refusing(path, RuleError):
            plain_file.write(path, text.encode())
    return Written(rule, tuple(texts), upstream, missing)
