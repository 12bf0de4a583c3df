"""Opens damaged databases, as many as asked for, and asks each what a process would: nothing but StoreError may come.

    python scripts/fuzz_store.py [--openings 1000000] [--seed 0] [--processes N] [--seconds S]

Each opening is that of a small database of which bytes were flipped, cut off, moved or overwritten; then it is read,
written, or written as calls do. Prints how many there were of each outcome. Exit code 1 where anything else was
raised, or one took over ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from autoconv.errors import StoreError
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.store import MendingStore, Qualification, Store, connection, open_store

PROBLEM = Problem.parse((1, 4, 8, 8, 1), (16, 3, 3, 3, 1), padding=1)
OTHER = Problem.parse((1, 4, 8, 8, 2), (16, 3, 3, 3, 2), padding=1)
PAGE = 4096
HEADER = 100
TOO_LONG_S = 10.0
BATCH = 250


class UnseenError(Exception):
    """What was written is not found again, though SQLite saw no damage: a miss, which is measured anew."""


def record(problem: Problem, run: str, algorithm: str = "native") -> Record:
    """A result as it is measured."""
    return Record(problem.key, "env", algorithm, 1, "", Status.OK, (1.0, 2.0, 3.0), 1e-7, 0, None, "", run, 1.0, "0.1")


def sound(file: Path) -> bytes:
    """A small database of two problems, as it lies on the disk."""
    with contextlib.closing(open_store(file)) as store:
        store.add_environment("env", {"backend": "cpu", "device": "one", "mlx": "1"}, {"os": "one"})
        for number in range(2):
            store.add(PROBLEM, [record(PROBLEM, f"run {number}", name) for name in ("native", "im2col", "matmul")])
        store.note("env", OTHER)
        store.begin("env", OTHER, "native")
        store.qualify(Qualification("env", "native=1", frozenset({("native", "float32")}), {"im2col": "wrong"}, 0.01))
    content = file.read_bytes()
    file.unlink()
    return content


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bytes flipped or overwritten, a part cut off, moved, or taken out, or several of these."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        size = len(found)
        if size < 2:
            break
        # Of all bytes, of those at the beginning of a page, which say how it is to be read, or of the file's header.
        at = chance.randrange(size)
        kind = chance.random()
        if kind < 0.5:
            at = min(size - 1, at // PAGE * PAGE + chance.randrange(120))
        elif kind < 0.7:
            at = min(size - 1, chance.randrange(HEADER))
        length = chance.choice((1, 2, 4, 16, 100, PAGE))
        match chance.randrange(7):
            case 0 | 1 | 2:
                for _ in range(chance.choice((1, 2, 8, 64))):
                    place = min(size - 1, at + chance.randrange(length))
                    found[place] ^= 1 << chance.randrange(8)
            case 3:
                found[at : at + length] = chance.randbytes(len(found[at : at + length]))
            case 4:
                del found[at:]
            case 5:
                source = chance.randrange(size)
                found[at : at + length] = found[source : source + length]
            case _:
                found[at : at + length] = b"\xff\0"[chance.randrange(2) :][:1] * length
    return bytes(found)


def read(file: Path, chance: random.Random) -> None:
    """Look a problem up, and two of the other things that there are to be read."""
    with contextlib.closing(open_store(file, readonly=True, immutable=True)) as store:
        asks: tuple[Callable[[], object], ...] = (
            lambda: store.records("env", PROBLEM),
            store.environments,
            lambda: store.problems("env"),
            lambda: list(store.all_records()),
            lambda: store.unended("env", OTHER),
            lambda: store.pending("env"),
            lambda: store.qualification("env", "native=1"),
            store.qualifications,
            store.trusted_models,
        )
        for ask in chance.sample(asks[1:], 2):
            with contextlib.suppress(StoreError):
                ask()
        asks[0]()


def write(file: Path, _: random.Random) -> None:
    """Write as a measurement does; what is damaged stays where it is."""
    with contextlib.closing(open_store(file)) as store:
        _write(store)


def mend(file: Path, _: random.Random) -> None:
    """Write as a call does, which puts what is damaged aside."""
    with contextlib.closing(MendingStore(file, tell=lambda _: None)) as store:
        _write(store)


def _write(store: Store) -> None:
    store.begin("env", OTHER, "native")
    store.add(OTHER, [record(OTHER, "more")])
    store.end("env", OTHER, "native")
    if "more" not in {found.run for found in store.records("env", OTHER)}:
        raise UnseenError


WAYS: dict[str, Callable[[Path, random.Random], None]] = {"read": read, "write": write, "mend": mend}


def attempt(way: str, file: Path, chance: random.Random) -> str:
    """What came of it, in a word or two."""
    try:
        WAYS[way](file, chance)
    except (StoreError, UnseenError) as error:
        return type(error).__name__
    return "put aside" if any(".damaged-" in path.name for path in file.parent.iterdir()) else "used"


def batch(task: tuple[int, int, bytes]) -> tuple[Counter[str], list[str]]:
    """So many openings from a seed: outcomes, and what must not be."""
    seed, openings, content = task
    chance, outcomes, bad = random.Random(seed), Counter[str](), []
    connection._in_vain.clear()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        file = Path(folder) / "autoconv.db"
        for number in range(openings):
            file.write_bytes(damaged(content, chance))
            way, start = chance.choices(tuple(WAYS), (30, 1, 1))[0], time.monotonic()
            try:
                outcomes[f"{way}: {attempt(way, file, chance)}"] += 1
            except Exception as error:  # noqa: BLE001 - what is looked for is whatever else there may be
                bad.append(f"seed {seed}, opening {number}, {way}: {type(error).__name__}: {error}")
            if time.monotonic() - start > TOO_LONG_S:
                bad.append(f"seed {seed}, opening {number}, {way}: took {time.monotonic() - start:.0f} s")
            for path in Path(folder).iterdir():
                path.unlink()
    return outcomes, bad


def fuzz(openings: int, seed: int, processes: int, seconds: float = math.inf) -> tuple[Counter[str], list[str]]:
    """That many openings, or as many as so many seconds allow; outcomes, and what must not be."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        content = sound(Path(folder) / "autoconv.db")
    chance = random.Random(seed)
    sizes = [min(BATCH, openings - done) for done in range(0, openings, BATCH)]
    tasks = [(chance.randrange(2**32), size, content) for size in sizes]
    outcomes, bad = Counter[str](), []
    with contextlib.ExitStack() as stack:
        results: Iterator[tuple[Counter[str], list[str]]] = map(batch, tasks)
        if processes > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            results = pool.imap_unordered(batch, tasks)
        for found, wrong in results:
            outcomes += found
            bad += wrong
            if time.monotonic() - start > seconds:
                break
    return outcomes, bad


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openings", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=math.inf)
    asked = parser.parse_args()
    start = time.monotonic()
    outcomes, bad = fuzz(asked.openings, asked.seed, asked.processes, asked.seconds)
    print(f"{outcomes.total()} openings in {time.monotonic() - start:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{count:>9}  {outcome}")
    for line in bad[:50]:
        print(line, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
