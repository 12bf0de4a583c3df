"""What test processes share that time replayed candidates: locks and database are real, and nothing runs."""

from __future__ import annotations

from pathlib import Path

from replay import Benches, Run, registry

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.dispatch import Dispatcher
from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.settings import Settings
from autoconv.store import Qualification, open_store
from autoconv.tuning.qualification import fingerprint

CPU = mx.Device(mx.cpu)
HERE = Environment({"backend": "cpu", "device": "a device", "mlx": "1.2.3"}, {}, memory_bytes=10**9)
PROBLEMS = tuple(Problem.parse((1, 4, 8, n, 4), (8, 3, 3, 3, 4), padding=1) for n in range(8, 14))
REGISTRY = registry("native", "a", "b")


def benches() -> Benches:
    """Benches on which `a` wins."""
    return Benches({"native": Run((6e-3,)), "a": Run((3e-3,)), "b": Run((4e-3,))})


def asked(database: Path, policy: str = "measure") -> Settings:
    """Settings under which there is always time for timing."""
    return settings.with_changes(
        settings.from_environment({}), {"policy": policy, "database": database, "stall": "1000000"}
    )


def dispatcher(made: Benches) -> Dispatcher:
    """A dispatcher of the device that is here."""
    environment._environments[repr(CPU)] = HERE
    return Dispatcher(REGISTRY, bench=made, clock=made.clock)


def qualify(database: Path) -> None:
    """Begin a database that knows the device from its first run."""
    store = open_store(database)
    store.add_environment(HERE.id, dict(HERE.identity), {})
    store.qualify(Qualification(HERE.id, fingerprint(REGISTRY), created=1.0))
    store.close()
