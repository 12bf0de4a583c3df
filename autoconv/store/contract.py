"""What every store guarantees, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoconv.problem import Problem
from autoconv.record import Record

MAX_NAME = 100
"""Most characters of the name of a network."""


@dataclass(frozen=True)
class Qualification:
    """What a device's first run found out.

    Attributes:
        environment: The environment's id.
        fingerprint: Names and versions of the algorithms that ran; with others it must be done again.
        passed: `(algorithm, dtype)` pairs whose small problems all agreed with float64.
        barred: Name of an algorithm that failed, and why.
        noise: 95th percentile of how far native beats itself, 0.03 being 3%, by the lower bound that winners are
            judged by.
        ceilings: What the device can do at most, by name with its unit: `matmul_float32_gflops`,
            `copy_gb_per_s`, `launch_us`.
        created: Seconds since the epoch.
        origin: Empty for what was found out here; for what was imported as `Record.origin`.
    """

    environment: str
    fingerprint: str
    passed: frozenset[tuple[str, str]] = frozenset()
    barred: Mapping[str, str] = field(default_factory=dict)
    noise: float = 0.0
    ceilings: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0
    origin: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """That the owner of a database trusts a cost model that lies beside it.

    Attributes:
        backend: `"metal"`, `"cuda"` or `"cpu"`.
        file: The name of the model's file.
        sha256: Of its bytes; a file with others is not read.
        environment: Id of the environment that it was trained in; None where it was in none of its own.
        problems: How many convolutions it learned from that were measured by this very machine; imported ones are none.
        created: When it was trusted, in seconds since the epoch.
    """

    backend: str
    file: str
    sha256: str
    environment: str | None = None
    problems: int = 0
    created: float = 0.0


Gone = Callable[[Problem, Sequence[Record]], Collection[int]]
"""Says which of a problem's records in one environment, oldest first, are to go: their places."""


@dataclass(frozen=True)
class Pruned:
    """What was taken away.

    Attributes:
        records: Records, those of whole environments too.
        problems: Problems of an environment that have no record left in it.
        environments: Environments of which nothing is left.
        pending: Problems that were taken off the pending lists.
    """

    records: int = 0
    problems: int = 0
    environments: int = 0
    pending: int = 0


class Store(Protocol):
    """Measurements by environment and problem.

    Every implementation promises:

    * What was added is there for every later look-up, in this process and, where the store is a file, in any
      other; a call that returned has been committed.
    * `add` keeps all of its records or none. Records are added in the order of the calls,
      never changed, and taken away by `prune` alone.
    * Records of one environment are never returned for another.
    * A row that cannot be understood (an unknown status, samples that are no numbers) is a miss, no error.
    * An environment may be used before it is made known; `environments` lists it from then on.
    * All methods may be called from any thread, and many processes may use one file.
    * A store that is `readonly` raises `ReadOnlyError` from every method that writes.
    * Whatever else goes wrong raises `StoreError` and leaves what was there as it was.
    """

    @property
    def readonly(self) -> bool:
        """Whether this store refuses to be written."""
        ...

    def add_environment(
        self, environment: str, identity: Mapping[str, object], circumstances: Mapping[str, object]
    ) -> None:
        """Make an environment known; once more with the same id replaces its circumstances alone."""
        ...

    def environments(self) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
        """Identity and circumstances of every known environment, by id."""
        ...

    def add(self, problem: Problem, records: Sequence[Record]) -> None:
        """Keep the records of one run over one problem, which leaves the pending list of their environment.

        `detail` is cut to `MAX_DETAIL` characters. An `origin` that is not known yet is made known.

        Raises:
            ValueError: a record is of another problem or has too many samples, a sample is negative or not finite,
                `error` is NaN, or `created` is not finite.
        """
        ...

    def records(self, environment: str, problem: Problem) -> list[Record]:
        """All records of a problem in an environment, oldest first; none is an empty list."""
        ...

    def problems(self, environment: str) -> list[Problem]:
        """Every problem that has a record in an environment, in the order in which each got the first that it has."""
        ...

    def all_records(self, environment: str | None = None) -> Iterator[tuple[Problem, list[Record]]]:
        """Every problem with its records, as `records` has them, once for each environment that it was measured in.

        All environments, or one. Pairs come in the order in which environments and then problems became known, and
        are read as they are asked for, so that any number fits the memory; what is added meanwhile may be among them.
        """
        ...

    def begin(self, environment: str, problem: Problem, candidate: str) -> None:
        """Leave a note that a candidate is about to run, to be found if the process does not survive it; one more where
        there is one already.
        """
        ...

    def end(self, environment: str, problem: Problem, candidate: str) -> None:
        """Take its notes away: the process survived."""
        ...

    def unended(self, environment: str, problem: Problem) -> dict[str, int]:
        """Candidates of a problem whose notes were never taken away, and how many there are of each."""
        ...

    def note(self, environment: str, problem: Problem) -> None:
        """Put a problem on the pending list; twice is once."""
        ...

    def pending(self, environment: str) -> list[Problem]:
        """The problems on the pending list, oldest first."""
        ...

    def forget(self, environment: str, problems: Iterable[Problem]) -> None:
        """Take problems off the pending list."""
        ...

    def qualify(self, qualification: Qualification) -> None:
        """Keep a qualification, in place of an earlier one with the same environment, fingerprint and origin."""
        ...

    def qualification(self, environment: str, fingerprint: str) -> Qualification | None:
        """What this machine itself found out of an environment with these algorithms, None where it did not yet."""
        ...

    def qualifications(self) -> list[Qualification]:
        """All qualifications, imported ones too, oldest first."""
        ...

    def trust_model(self, model: ModelRecord) -> None:
        """Keep that a model is trusted, in place of an earlier one with the same file. No import does so, and none
        leaves in an export.
        """
        ...

    def trusted_models(self) -> list[ModelRecord]:
        """The models that are trusted, those trusted first first; none where the database is of an older schema."""
        ...

    def name_network(self, name: str, calls: Mapping[Problem, int]) -> None:
        """Keep how often one run of a network of the user's own makes each of these problems.

        In place of what was kept of these problems under the same name; what was kept of others stays. The name is made
        one line of at most `MAX_NAME` characters; counts below 1 are left out. None leaves in an export.
        """
        ...

    def networks(self) -> dict[str, dict[Problem, int]]:
        """By the name of a network its problems, and how often one run makes each; none where the database is of an
        older schema.
        """
        ...

    def prune(
        self,
        gone: Gone,
        environments: Collection[str] = (),
        *,
        pending: bool = False,
        tell: Callable[[float], None] = lambda _: None,
    ) -> Pruned:
        """Take away records and what is of none any more: all that is asked for or, where that fails, nothing.

        Only who is asked to by the store's owner may call it; no convolution does. Notes of what ended processes,
        qualifications, trusted models and the names of networks stay, but for those notes and qualifications that are
        of `environments`.

        Args:
            gone: Asked of every problem in each of the other environments, before anything is taken away; what is
                added meanwhile stays.
            environments: Those that go with all that is known of them.
            pending: Whether the pending list of every environment goes.
            tell: Called now and then with how much is done, 1 being all.
        """
        ...

    def close(self) -> None:
        """Release the file; further calls raise `StoreError`."""
        ...
