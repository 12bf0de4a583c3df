"""Metadata: what Datasette says of a database's views beside their rows: titles, descriptions, units, facets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoconv import plain_file
from autoconv.errors import ReportError
from autoconv.store.transfer.browsing import ENVIRONMENTS, KEPT

SUFFIX = ".metadata.json"

PLAIN = (
    "candidates",
    "environments",
    "models",
    "networks",
    "notes",
    "origins",
    "pending",
    "problems",
    "qualifications",
)
"""Tables beneath the views, with `records` and `runs`: of numbers, and for programs."""

_COMMON = {
    "device": "What was measured on.",
    "environment": "Id of all that times depend on: device, MLX's version, its settings.",
    "problem": "The whole convolution, as autoconv writes it.",
    "kind": "forward, or one of the two gradients.",
    "dtype": "Of input and weight.",
    "algorithm": "The way to compute it.",
    "candidate": "The algorithm with its parameters.",
    "kernel": "Depth, height and width of the kernel.",
    "gflop": "Floating-point operations in billions, a multiply-add counted as two.",
    "error": "Relative L2 error against float64.",
    "median_us": "Median time.",
    "workspace_bytes": "Estimate of what it takes beyond input, weight and output.",
    "peak_bytes": "Measured peak, input, weight and output included.",
    "measured": "The day of the run.",
    "status": "How the candidate fared; only ok can win.",
    "detail": "What it said.",
    "problems": "How many problems.",
    "backend": "metal, cuda or cpu.",
    "architecture": "As MLX names it.",
    "mlx": "MLX's version.",
    "os": "Operating system.",
    "driver": "Of the device.",
    "first": "Day of the first run.",
    "last": "Day of the last run.",
}


def _common(*columns: str) -> dict[str, str]:
    """What is said of columns that mean the same in every view."""
    return {name: _COMMON[name] for name in columns}


_VIEWS: dict[str, dict[str, Any]] = {
    "winners": {
        "title": "Winners",
        "description": "Each problem's fastest candidate in its newest run; native where no other is faster by over "
        "2%. A decision may differ: it pools all runs, asks for more on a noisy device, and looks at memory. "
        "As of the export.",
        "sort_desc": "speedup",
        "facets": ["algorithm", "dtype", "kernel", "device"],
        "units": {"native_us": "us", "winner_us": "us", "peak_bytes": "byte"},
        "columns": {
            **_common("device", "kind", "dtype"),
            "input": "N x D x H x W x channels.",
            "weight": "Outputs x kernel x channels of a group.",
            **_common("kernel", "gflop", "algorithm"),
            "winner": "The candidate that won.",
            "native_us": "Median time of MLX's own; empty where that does not run.",
            "winner_us": "Median time of the winner.",
            "speedup": "Native's time over the winner's.",
            **_common("error", "peak_bytes", "measured"),
            "imported_from": "The file that it came in; empty for own measurements.",
            **_common("environment", "problem"),
        },
    },
    "gains": {
        "title": "Gains",
        "description": "What the winners save, all problems' times added up, by device, kind, dtype and kernel.",
        "sort_desc": "gain",
        "facets": ["dtype", "kernel", "device"],
        "units": {"native_ms": "ms", "winners_ms": "ms"},
        "columns": {
            **_common("device", "kind", "dtype", "kernel", "problems"),
            "not_native": "How many of them another way than native wins.",
            "native_ms": "Time of all of them with native.",
            "winners_ms": "Time of all of them with their winners.",
            "gain": "The first over the second.",
            "most": "The greatest speed-up.",
            **_common("environment"),
        },
    },
    "failures": {
        "title": "Failures",
        "description": "Results that cannot win: what raised an error, ran out of memory, was wrong or too inaccurate, "
        "or ended the process.",
        "facets": ["status", "algorithm", "dtype", "device"],
        "columns": _common(
            *("device", "algorithm", "candidate", "status", "detail", "error", "kind", "dtype", "measured"),
            *("environment", "problem"),
        ),
    },
    "devices": {
        "title": "Devices",
        "description": "How much was measured on each device, in brief; measured_environments has all that is known of "
        "them.",
        "columns": {
            **_common("device", "backend", "architecture", "mlx", "os", "driver", "problems"),
            "runs": "How many runs of the tuner.",
            "records": "How many results of candidates.",
            **_common("first", "last", "environment"),
        },
    },
    ENVIRONMENTS: {
        "title": "Environments",
        "description": "All that the times depend on, an environment a row, and what else is known of it. (The table "
        "named environments is of JSON, for programs.)",
        "columns": {
            **_common("environment", "backend", "device", "architecture"),
            "gpu_cores": "On Metal.",
            "working_set_gb": "That Metal recommends.",
            "memory_gb": "Of the device, else of the machine.",
            **_common("mlx"),
            "variables": "Those that MLX reads, where they are not as by default.",
            "macos": "Its major version.",
            **_common("os", "driver"),
            "cudnn": "Its version.",
            "cpu": "Family, model and stepping, on a CPU.",
            "blas": "Its file, on a CPU.",
            "blas_threads": "How many it uses.",
            "python": "Its version.",
            "power": "Where the machine's power came from.",
            **_common("problems", "first", "last"),
        },
    },
    "results": {
        "title": "Results",
        "description": "Every result of a candidate.",
        "facets": ["status", "device"],
        "units": {"median_us": "us", "workspace_bytes": "byte", "peak_bytes": "byte"},
        "columns": {
            **_common("environment", "device", "problem", "gflop", "candidate"),
            "version": "Of the algorithm.",
            **_common("status", "median_us", "error", "workspace_bytes", "peak_bytes", "detail"),
            "run": "Id of the tuner's run.",
            "created": "When it was made.",
            "library": "Version of autoconv.",
            "origin": "Of imported ones, the beginning of the file's SHA-256.",
        },
    },
    "times": {
        "title": "Times",
        "description": "The median time of every candidate that ran, by the number of its run.",
        "units": {"median_us": "us", "workspace_bytes": "byte", "peak_bytes": "byte"},
        "columns": {
            "run": "Number of the run.",
            "position": "The candidate's place in it.",
            **_common("candidate", "algorithm", "median_us", "error", "workspace_bytes", "peak_bytes"),
        },
    },
}


def metadata(database: str) -> dict[str, Any]:
    """What Datasette reads by `--metadata`, for a database of this name (its file's, without suffix)."""
    tables = {**_VIEWS, **{name: {"hidden": True} for name in (*PLAIN, "records", "runs", KEPT, "_sqlite_migrations")}}
    return {
        "title": "autoconv",
        "description": "Measurements of the ways to compute 3D convolutions in MLX.",
        "databases": {
            database: {
                "description": "Begin with winners, gains, failures and devices; measured_environments "
                "says what was measured on.",
                "tables": tables,
            },
        },
    }


def write(database: Path) -> Path:
    """Write a database's metadata beside it, as `NAME.metadata.json`; its file.

    Raises:
        ReportError: it cannot be written.
    """
    out = database.with_name(database.stem + SUFFIX)
    with plain_file.refusing(out, ReportError):
        plain_file.write(out, (json.dumps(metadata(database.stem), indent=2) + "\n").encode())
    return out
