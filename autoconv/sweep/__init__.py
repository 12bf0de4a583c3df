"""Workloads: which convolutions a sweep times, and in which order."""

from autoconv.sweep.order import Estimate, Estimator, Measured, Neighbours, ordered
from autoconv.sweep.sampler import random_layers
from autoconv.sweep.workload import Layer, crop, demo_layers, packaged_workloads, read_workload

__all__ = [
    "Estimate",
    "Estimator",
    "Layer",
    "Measured",
    "Neighbours",
    "crop",
    "demo_layers",
    "ordered",
    "packaged_workloads",
    "random_layers",
    "read_workload",
]
