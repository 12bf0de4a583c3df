"""The figures of a network that was run stock and patched."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

COLUMNS = (
    "network", "dtype", "input", "stock ms", "patched ms", "ratio", "spread", "stock MB", "patched MB", "apart",
    "at most", "shapes", "decisions", "tuned s",
)  # fmt: skip

CAUSAL_COLUMNS = ("causal ms", "causal ratio", "causal MB", "causal apart")
"""More of them where the network was run with autoconv's causal convolutions as well."""

WORDS = ("network", "dtype", "input", "decisions")
"""Columns of words; the others are numbers."""


@dataclass(frozen=True)
class Way:
    """What a network takes, run one way.

    Attributes:
        seconds: Those of each turn.
        peak_bytes: The most that MLX held in one, weights and input among it; None where it was not run.
        failed: Why there are no times; empty where there are.
        apart: Relative L2 distance of its output from that of MLX's own convolutions; None where there is none, and
            where it is not finite.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    failed: str = ""
    apart: float | None = None

    @property
    def median_s(self) -> float | None:
        """Of the turns, None where there are none."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def median_ms(self) -> float | None:
        """The same in milliseconds."""
        return None if self.median_s is None else self.median_s * 1e3


@dataclass(frozen=True)
class Comparison:
    """One network's figures.

    Attributes:
        stock: MLX's own.
        patched: The same code under `autoconv.patch()`.
        causal: The same with `autoconv.nn.CausalConv3d`; None where it was not asked for or the network has no such.
        calls: 3D convolutions of one pass.
        shapes: Different ones.
        allowed: How far outputs may be apart.
        decisions: New decisions while it ran, by where they came from; `memory` counts calls of known shapes.
        tuned_s: Seconds that timing took, inside calls and by `prepare`.
        prepared: What `prepare` met and did; None where it was not asked to.
        failed: Why there are no figures; empty where there are.
    """

    network: str
    title: str
    dtype: str
    input_shape: tuple[int, ...]
    stock: Way = Way()
    patched: Way = Way()
    causal: Way | None = None
    calls: int = 0
    shapes: int = 0
    allowed: float | None = None
    decisions: dict[str, int] = field(default_factory=dict)
    tuned_s: float = 0.0
    prepared: dict[str, Any] | None = None
    failed: str = ""

    def ratio(self, way: Way) -> float | None:
        """Stock's median time over that of a way."""
        return self.stock.median_s / way.median_s if self.stock.median_s and way.median_s else None

    def spread(self, way: Way) -> tuple[float, float] | None:
        """The least and the largest ratio of one turn."""
        ratios = [a / b for a, b in zip(self.stock.seconds, way.seconds, strict=False)]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def agrees(self) -> bool:
        """Whether the outputs are as near to those of MLX's own convolutions as they must be."""
        apart = [way.apart for way in self._ours]
        return self.allowed is not None and all(a is not None and a <= self.allowed for a in apart)

    @property
    def why(self) -> str:
        """What is wrong with autoconv here, empty where nothing is; what stock cannot do is not."""
        failed = [self.failed, *(way.failed for way in self._ours)]
        return next(filter(None, failed), "" if self.agrees else "the outputs do not agree")

    @property
    def _ours(self) -> list[Way]:
        return [self.patched] if self.causal is None else [self.patched, self.causal]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        ratios: dict[str, Any] = {"ratio": self.ratio(self.patched), "spread": self.spread(self.patched)}
        if self.causal is not None:
            ratios |= {"causal_ratio": self.ratio(self.causal), "causal_spread": self.spread(self.causal)}
        medians = {"stock_ms": self.stock.median_ms, "patched_ms": self.patched.median_ms}
        return asdict(self) | medians | ratios | {"agrees": self.agrees}

    def notes(self) -> list[str]:
        """A line for each thing that failed."""
        failed = {"stock": self.stock.failed, "patched": self.patched.failed, "": self.failed}
        if self.causal is not None:
            failed["causal"] = self.causal.failed
        return [" ".join(filter(None, (self.title, name))) + f": {why}" for name, why in failed.items() if why]

    def row(self, *, causal: bool) -> tuple[str, ...]:
        """A row of text, in the order of `COLUMNS` and, if asked for, `CAUSAL_COLUMNS`."""
        spread = self.spread(self.patched)
        found = (
            self.title,
            self.dtype,
            ",".join(map(str, self.input_shape)),
            _text(self.stock.median_ms, "{:.1f}") or "failed",
            _text(self.patched.median_ms, "{:.1f}") or "failed",
            _text(self.ratio(self.patched), "{:.2f}x"),
            "" if spread is None else "{:.2f} to {:.2f}".format(*spread),
            _text(self.stock.peak_bytes, "{:.0f}", 1e6),
            _text(self.patched.peak_bytes, "{:.0f}", 1e6),
            _text(self.patched.apart, "{:.1e}"),
            _text(self.allowed, "{:.1e}"),
            f"{self.shapes} in {self.calls} calls",
            ", ".join(f"{count} {source}" for source, count in self.decisions.items() if count),
            f"{self.tuned_s:.1f}",
        )
        if not causal:
            return found
        way = self.causal or Way()
        return (
            *found,
            _text(way.median_ms, "{:.1f}") or ("failed" if way.failed else ""),
            _text(self.ratio(way), "{:.2f}x"),
            _text(way.peak_bytes, "{:.0f}", 1e6),
            _text(way.apart, "{:.1e}"),
        )


def _text(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)
