"""Cases for rules, and rules run as their readers would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autoconv.algorithms import algorithms
from autoconv.model.rule import Case
from autoconv.problem import Problem
from autoconv.record import Record, Status, environment_id

IDENTITY = {"backend": "metal", "device": "Apple M2", "architecture": "applegpu_g14g", "mlx": "0.32.4"}
ENVIRONMENT = environment_id(IDENTITY)


def layer(channels: int, size: int = 16, dtype: str = "float32", outputs: int = 32, **arguments: Any) -> Problem:
    return Problem.parse((1, 6, size, size, channels), (outputs, 3, 3, 3, channels), dtype, **arguments)


def case(problem: Problem, chip: str = "a chip", /, **times: float) -> Case:
    return Case(problem, chip, {name: (time, time) for name, time in times.items()})


def run_rule(source: str) -> Callable[..., str]:
    names: dict[str, Any] = {}
    exec(compile(source, "rule.py", "exec"), names)
    choose: Callable[..., str] = names["choose"]
    return choose


def asked(choose: Callable[..., str], p: Problem) -> str:
    padding = (p.padding_low, p.padding_high)
    return choose(p.input_shape, p.weight_shape, p.stride, padding, p.dilation, p.groups, p.dtype)


def record(problem: Problem, name: str, samples: Sequence[float], status: Status = Status.OK, **fields: Any) -> Record:
    version = {algorithm.name: algorithm.version for algorithm in algorithms()}[name]
    known: dict[str, Any] = {"error": 1e-7, "parameters": "", "samples_us": tuple(samples), "run": "run"} | fields
    return Record(problem.key, ENVIRONMENT, name, version, status=status, **known)
