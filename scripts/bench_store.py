"""Times the store: what a database of many problems takes on disk, and what look-ups, writes and transfers take.

    python scripts/bench_store.py --problems 100000

Opening is timed in a process of its own, imports not counted; writers are processes that all begin at once.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id
from autoconv.store import open_store

IDENTITY = {"backend": "metal", "device": "Apple M3 Max", "architecture": "applegpu_g15s", "mlx": "0.32.4"}
ENVIRONMENT = environment_id(IDENTITY)
CANDIDATES = [
    ("native", ""),
    ("implicit_gemm", ""),
    ("kd_decomposition", "sum=float32"),
    ("kd_decomposition", "channels=8,sum=float32"),
    ("depth_concat", "edges=split"),
    ("depth_winograd", "tile=2"),
    ("depth_winograd", "tile=4"),
    ("im2col", "unfold=depth"),
]
WAIT = 3

OPENING = """
import sys, time
from pathlib import Path
from autoconv.problem import Problem
from autoconv.store import open_store
problem = Problem.from_key(sys.argv[3])
Path(sys.argv[1]).as_uri()
start = time.perf_counter()
store = open_store(sys.argv[1], readonly=sys.argv[4] == "readonly")
assert len(store.records(sys.argv[2], problem)) == 8
print(time.perf_counter() - start)
"""

WRITING = """
import sys, time
from autoconv.store import open_store
from scripts.bench_store import made
file, number, begin, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
work = made(range(10**6 * number, 10**6 * (number + 1)), number)
time.sleep(max(0.0, begin - time.time()))
start, worst, calls = time.perf_counter(), 0.0, 0
before = start
store = open_store(file)
worst = time.perf_counter() - before
while time.perf_counter() - start < seconds:
    problem, records = next(work)
    before = time.perf_counter()
    store.add(problem, records)
    worst, calls = max(worst, time.perf_counter() - before), calls + 1
store.close()
print(calls, worst)
"""


def made(numbers: range, seed: int) -> Iterator[tuple[Problem, list[Record]]]:
    """Problems with eight records each, the same for the same seed."""
    chance = random.Random(seed)
    for number in numbers:
        channels = 1 + number % 1000
        problem = Problem.parse(
            (1, 4 + number // 10**6, 8 + number // 1000 % 1000, 64, channels), (64, 3, 3, 3, channels), padding=1
        )
        run, created = f"{chance.getrandbits(128):032x}", 1.7e9 + number / 7
        yield (
            problem,
            [
                Record(
                    problem.key,
                    ENVIRONMENT,
                    algorithm,
                    1,
                    parameters,
                    Status.OK,
                    tuple(round(chance.uniform(1e3, 2e4), 3) for _ in range(6)),
                    chance.uniform(1e-7, 1e-6),
                    chance.randrange(10**9),
                    chance.randrange(10**9),
                    "",
                    run,
                    created,
                    "0.1.0",
                )
                for algorithm, parameters in CANDIDATES
            ],
        )


@click.command(epilog="Example: python scripts/bench_store.py --problems 100000")
@click.option("--problems", default=100_000, show_default=True, help="Problems in the database, eight records each.")
@click.option("--writers", default=32, show_default=True, help="Processes that write at once; 0 for none.")
@click.option("--transfer/--no-transfer", default=True, show_default=True, help="Export and import as well.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work. Default: a temporary folder.")
def main(problems: int, writers: int, transfer: bool, folder: Path | None) -> None:
    """Print what the store takes: bytes, microseconds, seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as made_here:
        file = Path(made_here) / "autoconv.db"
        _fill(file, problems)
        _look_up(file, problems)
        if transfer:
            _transfer(file, Path(made_here))
        if writers:
            _write_at_once(Path(made_here) / "many.db", writers)


def _fill(file: Path, problems: int) -> None:
    with closing(open_store(file)) as store:
        store.add_environment(ENVIRONMENT, IDENTITY, {"os": "Darwin 24"})
        times = []
        for problem, records in made(range(problems), 0):
            start = time.perf_counter()
            store.add(problem, records)
            times.append(time.perf_counter() - start)
    size = file.stat().st_size / problems
    click.echo(f"{problems} problems of 8 records: {size:.0f} bytes a problem")
    click.echo(f"add: {statistics.median(times) * 1e6:.0f} us (median), {sum(times):.1f} s in all")


def _look_up(file: Path, problems: int) -> None:
    middle = next(made(range(problems // 2, problems), 0))[0]
    for how in ("writing", "readonly"):
        command = [sys.executable, "-c", OPENING, str(file), ENVIRONMENT, middle.key, how]
        opened = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
        click.echo(f"opening for {how} and the first look-up: {statistics.median(opened) * 1e3:.1f} ms")
    with closing(open_store(file, readonly=True)) as store:
        wanted = [problem for problem, _ in made(range(0, problems, max(1, problems // 2000)), 0)]
        for what in ("first", "again"):
            times = []
            for problem in wanted:
                start = time.perf_counter()
                store.records(ENVIRONMENT, problem)
                times.append(time.perf_counter() - start)
            click.echo(f"records(), {what} time: {statistics.median(times) * 1e6:.1f} us")


def _transfer(file: Path, folder: Path) -> None:
    from autoconv.store import export, import_file

    for suffix in (".db", ".jsonl", ".csv"):
        out, into = folder / f"out{suffix}", folder / f"into{suffix}.db"
        start = time.perf_counter()
        exported = export(file, out)
        click.echo(
            f"export {suffix}: {time.perf_counter() - start:.1f} s, {out.stat().st_size / 1e6:.0f} MB, "
            f"{exported.records} records"
        )
        for what in ("import", "import again"):
            start = time.perf_counter()
            imported = import_file(into, out, known={algorithm for algorithm, _ in CANDIDATES})
            click.echo(
                f"{what} {suffix}: {time.perf_counter() - start:.1f} s, {imported.added} added, {imported.known} known"
            )


def _write_at_once(file: Path, writers: int) -> None:
    begin = time.time() + 2 + 0.15 * writers
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(file), str(number), str(begin), str(WAIT)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for number in range(writers)
    ]
    outputs = [process.communicate()[0].split() for process in processes]
    calls, worst = sum(int(o[0]) for o in outputs), max(float(o[1]) for o in outputs)
    with closing(open_store(file, readonly=True)) as store:
        kept = sum(len(store.records(ENVIRONMENT, problem)) for problem in store.problems(ENVIRONMENT))
    click.echo(
        f"{writers} processes: {calls} calls in {WAIT} s, {min(int(o[0]) for o in outputs)} at least of each, "
        f"the slowest {worst:.2f} s; {kept} of {8 * calls} records there"
    )


if __name__ == "__main__":
    main()
