"""Workloads: which convolutions a sweep times."""

from autoconv.sweep.sampler import random_layers
from autoconv.sweep.workload import Layer, crop, demo_layers, packaged_workloads, read_workload

__all__ = ["Layer", "crop", "demo_layers", "packaged_workloads", "random_layers", "read_workload"]
