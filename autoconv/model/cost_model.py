"""The cost model as it serves: plain arrays, by which candidates that were never timed are compared.

A model is one file of NumPy arrays without pickles, in which its card and what it was trained on lie as JSON; loading
and asking it import neither scikit-learn nor joblib.
"""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from autoconv.algorithms import Algorithm, Candidate
from autoconv.decision import NATIVE
from autoconv.errors import ModelError
from autoconv.model import bounds as b
from autoconv.model import features
from autoconv.model.advice import DAMAGED, Advice
from autoconv.model.bounds import Bounds
from autoconv.model.card import Card
from autoconv.model.features import Ceilings, Floats, Vocabulary
from autoconv.model.forest import Forests
from autoconv.problem import Kind, Problem

FORMAT = 1
"""Version of the file's format; another is refused."""

OUTPUTS = 3
"""Of the forests: log ratio, doubt, risk."""

MOST_BYTES = 64 * 10**6
"""A larger file is no model."""

ZIPPED = b"PK"
"""How a file of arrays begins."""

UNREADABLE = (*DAMAGED, SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
"""What comes of reading a file that was damaged."""

REACH = math.log(4.0)
"""A device whose ceilings are all within this factor of those of one that the model learned from is near enough."""


@dataclass(frozen=True)
class Source:
    """A database that a model learned from.

    Attributes:
        name: The file's name.
        digest: SHA-256 of what was learned from it (see `training.digest`).
        environment: Id of the environment.
        device: Its device, for people.
        ceilings: What that can do at most.
        problems: How many problems.
        file_sha256: Of the file as a whole, where nothing writes it any more: a shipped model is not used beside
            another of that name. Empty where it was not taken.
    """

    name: str
    digest: str
    environment: str
    device: str
    ceilings: Ceilings
    problems: int
    file_sha256: str = ""


@dataclass(frozen=True)
class Origin:
    """What a model was made of.

    Attributes:
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        sources: The databases, an entry an environment.
        algorithms: Versions of the algorithms that it knows, by name.
        libraries: Versions of autoconv, NumPy and scikit-learn.
        created: Seconds since the epoch.
        estimators: SHA-256 of the file of fitted estimators that belongs to it; empty where there is none.
    """

    backend: str
    sources: tuple[Source, ...]
    algorithms: Mapping[str, int]
    libraries: Mapping[str, str]
    created: float = 0.0
    estimators: str = ""

    @property
    def problems(self) -> int:
        """How many problems it learned from, on all devices."""
        return sum(source.problems for source in self.sources)

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that it learned from."""
        return tuple(sorted({source.device for source in self.sources}))


@dataclass(frozen=True, eq=False)
class CostModel:
    """A trained model.

    Attributes:
        origin: What it was made of.
        vocabulary: The algorithms and parameters that it knows.
        forests: Log ratio, doubt and risk.
        bounds: Widths of its intervals.
        lowest: `(problem features,)` the least of each that it learned from.
        highest: The largest.
        dtypes: The dtypes that it learned from.
        card: How good it is.
        name: The file's name.
    """

    origin: Origin
    vocabulary: Vocabulary
    forests: Forests
    bounds: Bounds
    lowest: Floats
    highest: Floats
    dtypes: frozenset[str]
    card: Card
    name: str = ""

    def advise(self, problem: Problem, candidates: Sequence[Candidate], ceilings: Ceilings) -> Advice:
        """What it says of a problem on a device of such ceilings.

        What it cannot know of, another kind or dtype, sizes past those that it learned from, it is not sure of; then
        all candidates are in question. So are those that it does not know.

        Raises:
            KeyError: a ceiling is missing.
            ValueError: there is no candidate.
        """
        if not candidates:
            msg = f"no candidate for {problem}"
            raise ValueError(msg)
        known = [c for c in candidates if self.vocabulary.knows(c)]
        if problem.kind is not Kind.FORWARD or problem.dtype not in self.dtypes or not known:
            what = problem.kind.replace("_", " ") if problem.kind is not Kind.FORWARD else problem.dtype
            return _unknown(candidates, f"the model knows of no {what}" if known else "the model knows no candidate")
        shared = features.of_problem(problem)
        own = features.of_candidates(problem, known, self.origin.backend, ceilings, self.vocabulary)
        said = self.forests.predict(shared, own)
        ratios, doubts, risks = said.tolist()
        found = b.advice(
            [b.expected(c.name, *row) for c, *row in zip(known, ratios, doubts, risks, strict=True)], self.bounds
        )
        past = self._past(shared)
        unknown = tuple(c.name for c in candidates if c not in known) if len(known) < len(candidates) else ()
        if past or unknown:
            why = f"by its {past} it is past all that the model learned from" if past else ""
            why = why or f"the model does not know {unknown[0]}"
            everything = (*(f.candidate for f in found.forecasts), *unknown) if past else (*found.in_question, *unknown)
            return replace(found, safe=False, sure=False, in_question=everything, reason=f"{found.reason}; but {why}")
        return found

    def _past(self, shared: Floats) -> str:
        """Name of the first number that is outside of what was learned from; empty where none is."""
        outside = np.flatnonzero((shared < self.lowest) | (shared > self.highest))
        return features.PROBLEM[outside[0]].name.replace("_", " ") if len(outside) else ""

    def distance(self, ceilings: Ceilings) -> float:
        """How far a device is from the nearest that it learned from: the largest logarithm of two ceilings' ratio."""
        found = math.inf
        for source in self.origin.sources:
            pairs = [(source.ceilings[name], ceilings.get(name, 0.0)) for name in source.ceilings]
            if all(x > 0 and y > 0 for x, y in pairs):
                found = min(found, max((abs(math.log(x / y)) for x, y in pairs), default=math.inf))
        return found

    def misfit(self, algorithms: Sequence[Algorithm]) -> str:
        """Why it must not be used with these algorithms, or for its card; empty where nothing speaks against it."""
        return self.outdated(algorithms) or self.card.fault()

    def outdated(self, algorithms: Sequence[Algorithm]) -> str:
        """Which algorithm of other version it knows than there is; empty where there is none."""
        here = {a.name: a.version for a in algorithms if Kind.FORWARD in a.kinds}
        for name, version in self.origin.algorithms.items():
            if here.get(name) != version:
                there = f"here it is @{here[name]}" if name in here else "here it is not"
                return f"it knows {name}@{version}, {there}"
        return ""


def _unknown(candidates: Sequence[Candidate], why: str) -> Advice:
    """The advice of who knows nothing: native, and all in question."""
    first = b.advice([b.expected(candidates[0].name, 0.0, math.inf, 0.0)], b.UNBOUNDED)
    names = tuple(c.name for c in candidates)
    return replace(first, worst_to_native=math.inf, safe=False, sure=False, in_question=names, reason=why)


@dataclass(frozen=True)
class Advising:
    """A model at work on one device (see `advice.Adviser`).

    Attributes:
        model: The model.
        ceilings: What the device can do at most.
    """

    model: CostModel
    ceilings: Ceilings

    @property
    def name(self) -> str:
        """What it is, for people."""
        origin = self.model.origin
        return f"{self.model.name}, trained on {origin.problems} problems of {' and '.join(origin.devices)}"

    def advise(self, problem: Problem, candidates: tuple[Candidate, ...]) -> Advice:
        """What the model says."""
        return self.model.advise(problem, candidates, self.ceilings)


def pack(model: CostModel) -> bytes:
    """The model's file."""
    about = {
        "format": FORMAT,
        "origin": asdict(model.origin),
        "vocabulary": asdict(model.vocabulary),
        "features": _feature_names(),
        "bounds": asdict(model.bounds),
        "dtypes": sorted(model.dtypes),
        "card": model.card.as_dict(),
    }
    text = np.frombuffer(json.dumps(about, sort_keys=True, allow_nan=True).encode(), dtype=np.uint8)
    arrays = {"about": text, "lowest": model.lowest, "highest": model.highest, **model.forests.arrays()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as folder:  # `savez` stamps the time of day into its entries
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            folder.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue(), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def unpack(data: bytes, name: str) -> CostModel:
    """The model of such a file.

    Raises:
        ModelError: it is none, or of another format.
    """
    try:
        if not data.startswith(ZIPPED):  # NumPy would take it for a pickle, and say how to load that
            msg = "it is no .npz file"
            raise ModelError(msg)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != FORMAT:
            msg = f"its format is {about['format']}, and this version reads {FORMAT}"
            raise ModelError(msg)
        if about["features"] != _feature_names():
            msg = "it was trained on other features"
            raise ModelError(msg)
        origin = about["origin"]
        vocabulary = Vocabulary(**{key: tuple(value) for key, value in about["vocabulary"].items()})
        sizes = (len(features.PROBLEM), len(features.CANDIDATE) + len(vocabulary.names))
        model = CostModel(
            origin=Origin(**{**origin, "sources": tuple(Source(**source) for source in origin["sources"])}),
            vocabulary=vocabulary,
            forests=Forests.of_arrays(arrays, sizes, OUTPUTS),
            bounds=Bounds(**about["bounds"]),
            lowest=arrays["lowest"].astype(np.float64),
            highest=arrays["highest"].astype(np.float64),
            dtypes=frozenset(about["dtypes"]),
            card=Card.of_dict(about["card"]),
            name=name,
        )
    except ModelError:
        raise
    except UNREADABLE as error:
        msg = f"no model that can be read: {' '.join(str(error).split())[:200]}"
        raise ModelError(msg) from error
    fits = all(ends.shape == (sizes[0],) and np.isfinite(ends).all() for ends in (model.lowest, model.highest))
    if not fits or NATIVE not in vocabulary.words:
        msg = "no model that can be read: its parts do not fit each other"
        raise ModelError(msg)
    return model


def _feature_names() -> list[str]:
    return [feature.name for feature in (*features.PROBLEM, *features.CANDIDATE)]
