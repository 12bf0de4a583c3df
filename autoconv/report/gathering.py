"""Gathering: what databases tell, decided as calls would decide it, as the columns that a report shows.

A row is a problem in an environment. The user's own records of it come first, then those that came with the package, as
in a call; all decisions are those of `knowledge`, which calls rest on as well.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoconv.algorithms import algorithms
from autoconv.decision import NATIVE, Decision, Source, Verdict
from autoconv.environment import Environment
from autoconv.grounds import memory_bytes
from autoconv.knowledge import Knowledge, Question
from autoconv.problem import Kind, Problem
from autoconv.record import Record
from autoconv.report.card import OTHERS, gains, networks_by_shape, worth
from autoconv.report.columns import Columns, Words
from autoconv.settings import Settings
from autoconv.store import Qualification, Selection, Store
from autoconv.store.transfer.selection import shape_of
from autoconv.tuning.qualification import fingerprint, first_run, tells
from autoconv.warn import WarnOnce

PROBLEM_COLUMNS = {
    **dict.fromkeys(("environment", "source", "networks", "arguments", "libraries", "candidate", "runs"), "H"),
    **dict.fromkeys(("kind", "dtype", "algorithm", "accurate", "decided"), "B"),
    **dict.fromkeys(("n", "d", "h", "w", "c_in", "c_out", "kd", "kh", "kw", "groups", "reason", "first"), "I"),
    **dict.fromkeys(("gflop", "native_us", "best_us", "speedup", "bound"), "f"),
    **dict.fromkeys(("oldest", "newest"), "d"),
}
"""Columns of the problems. `first` is the first of a problem's candidates, which end where those of the next begin;
`source` the file, `runs` how many the decision rests on; `speedup` is 1 where native is kept, and unknown where native
does not run."""

CANDIDATE_COLUMNS = {
    "candidate": "H",
    "algorithm": "B",
    "status": "B",
    "reason": "I",
    **dict.fromkeys(("us", "judged", "spread", "speedup", "error", "workspace", "peak"), "f"),
}
"""Columns of the candidates. `us` is the median of all samples, `judged` that of those that judge, where it is another:
`speedup` rests on these."""

JUDGED_APART = 1.05
"""A median of the samples that judge is another than that of all from this factor on."""

NO_TELLING = "no run tells: it must be timed anew"
NO_BACKEND = "the environment does not say which backend of MLX it had"
"""Why there is no decision on a problem that has records."""

BACKENDS = frozenset({"metal", "cuda", "cpu"})


Passed = Callable[[Kind], Qualification | None]
"""From the kind of a problem to what the first run on its device found out."""


@dataclass(frozen=True)
class Origin:
    """Where rows come from.

    Attributes:
        name: The file's name.
        kind: `own`, `shipped` or `file`, one that was asked for.
        imported: Names of the files that its imported records came from, by `Record.origin`.
    """

    name: str
    kind: str
    imported: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """All that a report shows of measurements.

    Attributes:
        problems: A row a problem in an environment (see `PROBLEM_COLUMNS`).
        candidates: A row a candidate of a problem (see `CANDIDATE_COLUMNS`).
        meta: What is no column: environments, files, and the texts whose numbers stand in columns.
        gains: By network, as `card.gains`.
        environments: Where it was measured, each once.
    """

    problems: Columns
    candidates: Columns
    meta: Mapping[str, Any]
    gains: Mapping[str, Mapping[str, Any]]
    environments: Sequence[Environment]


def gather(
    own: Sequence[tuple[Origin, Store]],
    shipped: Mapping[str, Store],
    settings: Settings,
    selection: Selection,
    here: str,
    tell: Callable[[float], None] = lambda _: None,
) -> Gathered:
    """What databases tell of the selected environments and problems.

    Args:
        own: Databases whose records count as those of this machine's user do; of a problem that several have in the
            same environment the first counts.
        shipped: Databases that came with the package, by name: what they have of the environment that is here, or of
            any device that is asked for by name.
        settings: Whose accuracy, memory limit and policy decisions are held to.
        selection: Environments and problems.
        here: Id of this machine's environment; empty where it does not matter, as for files that were asked for.
        tell: Called now and then with how much is done, 1 being all.
    """
    gatherer = _Gatherer(shipped, settings, here, _networks_of([store for _, store in own]))
    total = sum(len(store.problems(e)) for _, store in own for e in store.environments()) or 1
    done = 0
    for origin, store in own:
        for where in _environments(store, selection):
            passed = _Passed(store, where.id, here)
            for problem, records in store.all_records(where.id):
                done += 1
                if selection.takes_problem(problem.key):
                    gatherer.take(origin, where, problem, records, passed)
                if done % 200 == 0:
                    tell(done / total)
    passed_here: Passed = _Passed(own[0][1], here, here) if own else lambda _kind: None
    for name, store in shipped.items():
        for where in _environments(store, selection):
            if where.id == here or selection.device:
                for problem, records in store.all_records(where.id):
                    if selection.takes_problem(problem.key):
                        gatherer.take_shipped(Origin(name, "shipped"), where, problem, records, passed_here)
    return gatherer.gathered()


def _networks_of(stores: Sequence[Store]) -> dict[str, dict[str, int]]:
    """The user's own networks that make a convolution, by its key, with their counts."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for store in stores:
        for name, calls in store.networks().items():
            for problem, count in calls.items():
                found[problem.key].setdefault(name, count)
    return found


def _environments(store: Store, selection: Selection) -> Iterator[Environment]:
    for key, (identity, circumstances) in store.environments().items():
        if selection.takes_environment(key, identity):
            yield _environment(key, identity, circumstances)


def _environment(key: str, identity: Mapping[str, Any], circumstances: Mapping[str, Any]) -> Environment:
    """An environment as it describes itself; older versions imported any identity, so that little is sure."""
    whole = {"backend": "unknown", "device": key, "mlx": "unknown", **identity}
    memory = identity.get("working_set", circumstances.get("memory_bytes", 0))
    found = Environment(whole, dict(circumstances), memory if isinstance(memory, int) else 0)
    found.__dict__["id"] = key  # under which its records lie, whatever is missing
    return found


class _Passed:
    """What the first run on a device found out, by whether it is asked for gradients.

    Of this machine only what it found itself counts, as in a call; of another what any file says of it.
    """

    def __init__(self, store: Store, environment: str, here: str) -> None:
        self._store, self._environment, self._here = store, environment, here
        self._known: dict[bool, Qualification | None] = {}

    def __call__(self, kind: Kind) -> Qualification | None:
        gradients = kind is not Kind.FORWARD
        if gradients not in self._known:
            asked_for = fingerprint(algorithms(), gradients=gradients)
            found = first_run(self._store, self._environment, asked_for)
            if found is None and self._environment != self._here:
                of_it = (q for q in self._store.qualifications() if q.environment == self._environment)
                found = next((q for q in of_it if q.fingerprint == asked_for and tells(q)), None)
            self._known[gradients] = found
        return self._known[gradients]


class _Gatherer:
    """Fills the columns, one problem after another."""

    def __init__(
        self,
        shipped: Mapping[str, Store],
        settings: Settings,
        here: str,
        own_networks: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._settings, self._here = settings, here
        self._own_networks = own_networks
        self._knowledge = Knowledge(algorithms(), lambda: shipped, WarnOnce())
        self._problems, self._candidates = Columns(PROBLEM_COLUMNS), Columns(CANDIDATE_COLUMNS)
        self._seen: set[tuple[str, str]] = set()
        self._by_shape = networks_by_shape()
        self._words: defaultdict[str, Words] = defaultdict(Words)
        self._origins: dict[str, dict[str, Any]] = {}
        self._environments: dict[str, tuple[int, Environment]] = {}
        self._worth: defaultdict[str, list[Any]] = defaultdict(list)
        self._members: Counter[str] = Counter()

    def take(
        self,
        origin: Origin,
        where: Environment,
        problem: Problem,
        records: Sequence[Record],
        passed: Passed,
    ) -> None:
        """Add what a user's own database has of a problem; where it does not tell, what came with the package."""
        if (where.id, problem.key) in self._seen:
            return
        question = self._question(problem, where, passed(problem.kind))
        if where.backend not in BACKENDS:  # older versions imported any identity
            self._add(origin, where, problem, records, None)
        elif where.id != self._here:
            self._add(origin, where, problem, records, self._knowledge.choose(records, question, Source.DATABASE))
        else:
            found = self._knowledge.own(records, question)
            if found is not None or self._knowledge.shipped(question) is None:  # else the turn of that comes
                self._add(origin, where, problem, records, found)

    def take_shipped(
        self,
        origin: Origin,
        where: Environment,
        problem: Problem,
        records: Sequence[Record],
        passed: Passed,
    ) -> None:
        """Add what a database that came with the package has of a problem, unless it is known."""
        if (where.id, problem.key) not in self._seen:
            found = self._knowledge.shipped(self._question(problem, where, passed(problem.kind)))
            self._add(origin, where, problem, records, found)

    def gathered(self) -> Gathered:
        """All of it."""
        environments = [where for _, where in self._environments.values()]
        own = {name for names in self._own_networks.values() for name in names}
        meta = {
            "environments": [_told(where) for where in environments],
            "sources": list(self._origins.values()),
            "others": OTHERS,
            "own": sorted(own & self._members.keys()),
            **{name: self._words[name].texts for name in _WORDS},
        }
        by_network = {
            name: gains(self._worth[name], self._members[name])
            for name in sorted(self._members, key=lambda name: (name == OTHERS, name not in own, name.casefold()))
        }
        return Gathered(self._problems, self._candidates, meta, by_network, environments)

    def _question(self, problem: Problem, where: Environment, passed: Qualification | None) -> Question:
        settings = self._settings
        # A report tells what is known: whether a call might time more does not matter to it.
        return Question(problem, where, settings.accuracy, memory_bytes(settings, where), False, passed)

    def _add(
        self,
        origin: Origin,
        where: Environment,
        problem: Problem,
        records: Sequence[Record],
        decision: Decision | None,
    ) -> None:
        self._seen.add((where.id, problem.key))
        known = self._by_shape.get(shape_of(problem.key), {})
        names = {**known, **self._own_networks.get(problem.key, {})} or {OTHERS: 1}
        self._members.update(names.keys())
        found = worth(decision) if decision is not None else None
        if found is not None:
            for name, count in names.items():
                self._worth[name].append(found.times(count))
        verdicts = decision.verdicts if decision is not None else _as_they_are(records)
        told = self._row(where, problem, records, decision, names)
        told["source"] = self._source(origin, records)
        told["runs"] = len({run for v in verdicts for run in v.runs} or {r.run for r in records})
        self._problems.add(told)
        for verdict in verdicts:
            self._add_candidate(verdict)

    def _row(
        self,
        where: Environment,
        problem: Problem,
        records: Sequence[Record],
        decision: Decision | None,
        names: Mapping[str, int],
    ) -> dict[str, float | None]:
        words = self._words
        n, d, h, w, c_in = problem.input_shape
        c_out, kd, kh, kw, _ = problem.weight_shape
        environment, _ = self._environments.setdefault(where.id, (len(self._environments), where))
        candidate = decision.candidate if decision is not None else ""
        why = NO_TELLING if where.backend in BACKENDS else NO_BACKEND
        native_us = decision.median_us(NATIVE) if decision is not None else None
        margin = decision.margin if decision is not None and decision.accurate else None
        return {
            "environment": environment,
            "networks": words["networks"].number(_counted(names)),
            "arguments": words["arguments"].number(_arguments(problem)),
            "libraries": words["libraries"].number(", ".join(sorted({r.library or "unknown" for r in records}))),
            "candidate": words["names"].number(candidate),
            "kind": words["kinds"].number(problem.kind.value),
            "dtype": words["dtypes"].number(problem.dtype),
            "algorithm": words["algorithms"].number(candidate.partition("(")[0]),
            "accurate": decision is not None and decision.accurate,
            "decided": decision is not None,
            "n": n,
            "d": d,
            "h": h,
            "w": w,
            "c_in": c_in,
            "c_out": c_out,
            "kd": kd,
            "kh": kh,
            "kw": kw,
            "groups": problem.groups,
            "reason": words["reasons"].number(decision.reason if decision is not None else why),
            "first": len(self._candidates),
            "gflop": problem.flops / 1e9,
            "native_us": native_us,
            "best_us": decision.median_us(candidate) if decision is not None else None,
            "speedup": 1 + margin if margin is not None and native_us is not None else None,
            "bound": decision.bound if decision is not None else None,
            "oldest": min(r.created for r in records),
            "newest": max(r.created for r in records),
        }

    def _source(self, origin: Origin, records: Sequence[Record]) -> int:
        """The number of where a row comes from: the file, and the files that its records were imported from."""
        imported = sorted({origin.imported.get(r.origin, r.origin) for r in records if r.origin})
        key = f"{origin.kind}\n{origin.name}\n" + "\n".join(imported)
        kind = "imported" if imported and origin.kind == "own" else origin.kind
        known = self._origins.setdefault(
            key,
            {"name": origin.name, "kind": kind, "imported": imported, "place": len(self._origins)},
        )
        return int(known["place"])

    def _add_candidate(self, verdict: Verdict) -> None:
        record = verdict.record
        reason = "; ".join(filter(None, (verdict.reason, verdict.provenance)))
        self._candidates.add(
            {
                "candidate": self._words["names"].number(record.candidate),
                "algorithm": self._words["algorithms"].number(record.algorithm),
                "status": self._words["statuses"].number(verdict.status.value),
                "reason": self._words["reasons"].number(reason),
                "us": record.median_us,
                "judged": _judged_apart(record),
                "spread": record.spread,
                "speedup": verdict.speedup,
                "error": record.error,
                "workspace": record.workspace_bytes,
                "peak": record.peak_bytes,
            }
        )


_WORDS = ("networks", "arguments", "libraries", "names", "kinds", "dtypes", "algorithms", "reasons", "statuses")


def _as_they_are(records: Sequence[Record]) -> list[Verdict]:
    """Records on which nothing was decided, the last of each candidate."""
    last = {r.candidate: r for r in sorted(records, key=lambda r: r.created)}
    return [Verdict(r, r.status, None, r.detail) for r in last.values()]


def _judged_apart(record: Record) -> float | None:
    """The median of the samples that judge, None where it says what the median of all does."""
    if record.median_us is None or not record.judging_us:
        return None
    judged = statistics.median(record.judging_us)
    ratio = judged / record.median_us
    return judged if max(ratio, 1 / ratio) > JUDGED_APART else None


def _counted(names: Mapping[str, int]) -> str:
    """Networks with their counts as one text, a line each: `3 Wan 2.1 VAE`."""
    return "\n".join(f"{count} {name}" for name, count in sorted(names.items()))


def _arguments(problem: Problem) -> str:
    """What a problem's key says after the shapes, but for the groups: with the columns it makes the key again."""
    said = problem.key.split(" ")
    return " ".join(part for part in said[4:] if not part.startswith("g"))


def _told(where: Environment) -> dict[str, Any]:
    identity = {str(k): str(v) for k, v in where.identity.items()}
    circumstances = {str(k): str(v) for k, v in where.circumstances.items() if k != "python"}
    return {"id": where.id, "identity": identity, "circumstances": circumstances, "memory": where.memory_bytes}
