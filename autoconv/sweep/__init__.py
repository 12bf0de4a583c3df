"""Workloads: which convolutions a sweep times, in which order, and when."""

from autoconv.sweep.order import Estimate, Estimator, Measured, Neighbours, ordered
from autoconv.sweep.power import awake, hindrance, wait_until_unhindered
from autoconv.sweep.sampler import random_layers
from autoconv.sweep.workload import Layer, crop, demo_layers, packaged_workloads, read_workload

__all__ = [
    "Estimate",
    "Estimator",
    "Layer",
    "Measured",
    "Neighbours",
    "awake",
    "crop",
    "demo_layers",
    "hindrance",
    "ordered",
    "packaged_workloads",
    "random_layers",
    "read_workload",
    "wait_until_unhindered",
]
