"""Runs per second of a sweep trained as stacks (``support.stacks``) and by the ordinary loop.

One row a network and a number of runs; the two ways take turns on the same random pictures. A run is here one
epoch of 50,000 examples in batches of 128, its time extrapolated from a few steps.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.utils.data import TensorDataset

from support import sweep, training
from support.data import Batches
from support.records import RESULTS, Configuration
from support.stacks import Stack
from tools import timing

TABLE = RESULTS / "benchmarks" / "stacks.csv"
BATCH, EXAMPLES = 128, 50_000
NETWORKS = {  # shape of an example, steps of a turn, ratio to reach on a GPU with 32 runs
    "mlp": ((1, 28, 28), 8, 8.0),
    "mlp_bn": ((1, 28, 28), 8, 8.0),
    "deep_mlp_bn": ((1, 28, 28), 8, 8.0),
    "cnn_bn": ((1, 28, 28), 1, 3.0),
}
RUNS = (1, 8, 32)


def examples(network: str, device: str) -> Batches:
    """Return random pictures, as many as a turn needs."""
    shape, steps, _ = NETWORKS[network]
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(BATCH * steps, *shape, generator=generator)
    classes = torch.randint(10, (len(pictures),), generator=generator)
    return Batches(TensorDataset(pictures, classes), BATCH, seed=0, device=device)


def group(network: str, number: int) -> list[Configuration]:
    """Return runs of four methods, each with a seed and a step size of its own."""
    methods = ["sgd", "momentum", "adam", "rmsprop"]
    return [
        {
            "model": network,
            "optimizer": methods[index % 4],
            "seed": index,
            "lr": 0.001 * (1 + index / number),
        }
        for index in range(number)
    ]


def ordinary(runs: list[Configuration], batches: Batches) -> Callable[[], None]:
    """Return one epoch of each run, one after the other."""
    built = [training.build(run, batches) for run in runs]

    def turn() -> None:
        for model, optimizer in built:
            training.train_epoch(model, optimizer, batches)

    return turn


def rows(network: str, number: int, rounds: int, device: str) -> pd.DataFrame:
    """Return the two ways, each with its runs per second and its ratio to the ordinary loop."""
    batches, runs = examples(network, device), group(network, number)
    stack = Stack(runs, batches)
    turns = [ordinary(runs, batches), partial(stack.train_epoch)]
    seconds = np.median(timing.measure(turns, rounds, device), axis=0)
    epoch = seconds * EXAMPLES / batches.examples
    ratio = seconds[0] / seconds
    target = NETWORKS[network][2] if number == RUNS[-1] and device != "cpu" else 1.0
    return pd.DataFrame(
        {
            "network": network,
            "runs": number,
            "variant": ["ordinary loop", "one stack"],
            "runs per second": [float(f"{number / value:.3g}") for value in epoch],
            "times the ordinary loop": ratio.round(2),
            "chosen": [ratio[1] <= 1, ratio[1] > 1],
            "target": target,
            "rounds": rounds,
            **sweep.environment(device),
        }
    )


def run(rounds: int | None = None, device: str = "cpu") -> None:
    """Measure all rows and write them; those of other devices stay."""
    table = pd.concat(
        [
            rows(network, number, rounds or 7, device)
            for network in NETWORKS
            for number in RUNS
        ],
        ignore_index=True,
    )
    print(table.iloc[:, :7].to_string(index=False))
    timing.write(timing.joined(table, TABLE), TABLE)
