#!/usr/bin/env python3
"""Write the list of convolutions that `autoconv contribute` times: packaged layers, the most useful first.

    scripts/choose_contribution.py [--count N] >autoconv/sweep/contribution.csv

Each row is picked for what it is worth to know after those before it: its network's time that it stands for, over the
time that it takes to learn, both as square roots, less what rows like it have told already. So the list may be cut
anywhere.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np

from autoconv.sweep import Layer, crop, packaged_workloads, read_workload
from autoconv.sweep.contribution import MAX_BYTES, MAX_GFLOP
from autoconv.sweep.order import features
from autoconv.sweep.runner import unique
from autoconv.sweep.workload import AXES, SIZES

DTYPES = ("float16", "bfloat16", "float32")
OTHER_DTYPE = 0.5
"""What another dtype than the network's own is worth, of that."""

DTYPE_APART = 1.5
"""Distance of two dtypes (see `order.REACH`): one tells something of the other."""

SECONDS_A_PROBLEM = 0.5
RUNS = 60
FLOPS = 1e12
"""What the slowest Mac manages: it sets the price of a large problem beside that of a small one."""

SHARED = 0.9
REACH = 2.0


def pool() -> tuple[list[Layer], list[float]]:
    """The layers that may be picked, in every dtype, and what each is worth alone."""
    layers, worth = [], []
    for path in packaged_workloads().values():
        by_network = defaultdict(list)
        for layer in unique(read_workload(path)):
            by_network[layer.network].append(layer)
        for members in by_network.values():
            total = sum(layer.count * layer.problem.flops for layer in members)
            for layer in members:
                share = layer.count * layer.problem.flops / total
                for dtype in DTYPES:
                    asked = replace(layer, problem=replace(layer.problem, dtype=dtype))
                    timed = crop(asked, MAX_GFLOP["metal"]).problem
                    if timed.bytes > MAX_BYTES:
                        continue
                    cost_s = SECONDS_A_PROBLEM + RUNS * timed.flops / FLOPS
                    known = 1.0 if dtype == layer.problem.dtype else OTHER_DTYPE
                    layers.append(asked)
                    worth.append(known * (share / cost_s) ** 0.5)
    return layers, worth


def chosen(layers: list[Layer], worth: list[float], count: int) -> list[Layer]:
    """So many of them, the most useful first."""
    alike = [replace(crop(la, MAX_GFLOP["metal"]).problem, dtype=DTYPES[0]) for la in layers]
    dtypes = np.array([[la.problem.dtype == d for d in DTYPES] for la in layers]) * (DTYPE_APART / 2**0.5)
    rows = np.hstack([features(alike), dtypes])
    left, picked = np.log(worth), []
    for _ in range(min(count, len(layers))):
        pick = int(left.argmax())
        picked.append(layers[pick])
        near = np.exp(-((rows - rows[pick]) ** 2).sum(axis=1) / (2 * REACH**2))
        left += np.log1p(-SHARED * near)
        left[pick] = -np.inf
    return picked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600, help="rows; default 600")
    layers, worth = pool()
    steps_of = [f"{name}_{axis}" for name in ("stride", "pad", "dil") for axis in AXES]
    names = ["model", "part", "layer", "count", *SIZES, *steps_of]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*names, "groups", "dtype"))
    for layer in chosen(layers, worth, parser.parse_args().count):
        problem = layer.problem
        sizes = (*problem.input_shape, *problem.weight_shape[:4])
        steps = (*problem.stride, *problem.padding_low, *problem.dilation)
        told = (layer.network, layer.part, layer.layer, layer.count)
        writer.writerow((*told, *sizes, *steps, problem.groups, problem.dtype))


if __name__ == "__main__":
    main()
