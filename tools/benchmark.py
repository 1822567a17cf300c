"""Benchmarks, measured side by side in one run: ``make bench`` writes them to ``support/results``.

Each row compares variants of the same work. They take turns, round after round, so that a change in the
machine's speed hits all of them. Here stands the training loop: the table holds the median time of each way
and its ratio to the first. Stacks of runs (``tools/benchmark_stacks.py``), surfaces of the loss
(``tools/benchmark_landscape.py``), what a sweep costs besides (``tools/benchmark_sweep.py``) and the optimizers
(``tools/benchmark_optimizers.py``) are measured after it.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from support import data, models, sweep, training
from support.data import files
from support.records import RESULTS
from tools import (
    benchmark_landscape,
    benchmark_optimizers,
    benchmark_stacks,
    benchmark_sweep,
    timing,
)

BATCH, STEPS = 100, 60


def training_loop(root: str | None, device: str) -> dict[str, Callable[[], None]]:
    """Return three ways to take STEPS steps of LeNet-5 on MNIST; each variant has a network of its own."""
    train, _ = data.standardise(*data.mnist(root, size=32))
    some = torch.utils.data.TensorDataset(
        *(tensor[: BATCH * STEPS] for tensor in train.tensors)
    )
    return {
        "bare step on one resident batch": bare(train, device),
        "support.training": ours(some, device),
        "DataLoader and transforms": usual(root, device),
    }


def network(device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = models.lenet5(seed=0).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def bare(train: torch.utils.data.TensorDataset, device: str) -> Callable[[], None]:
    """Forward, backward, step on the same batch: nothing can be faster with this network and optimizer."""
    model, optimizer = network(device)
    inputs, targets = (tensor[:BATCH].to(device) for tensor in train.tensors)

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return run


def ours(some: torch.utils.data.TensorDataset, device: str) -> Callable[[], None]:
    """The loop of the course: shuffled resident batches, closure, loss and accuracy of every step."""
    model, optimizer = network(device)
    batches = data.Batches(some, BATCH, seed=0, device=device)
    return lambda: training.train_epoch(model, optimizer, batches)


def usual(root: str | None, device: str) -> Callable[[], None]:
    """The loop of most tutorials: torchvision's data set, transforms, a DataLoader, ``item()`` in each step."""
    model, optimizer = network(device)
    prepare = transforms.Compose(
        [
            transforms.Pad(2),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    mnist = datasets.MNIST(str(files.root(root)), transform=prepare)
    loader = DataLoader(mnist, BATCH, shuffle=True)

    def run() -> None:
        total = correct = 0.0
        for step, (inputs, targets) in enumerate(loader):
            if step == STEPS:
                break
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += (outputs.argmax(1) == targets).sum().item()

    return run


def bench(root: str | None, rounds: int, device: str) -> pd.DataFrame:
    """Measure the training loop, and return one row a variant."""
    variants = training_loop(root, device)
    seconds = timing.measure(list(variants.values()), rounds, device)
    medians = np.median(seconds, axis=0)
    rows = [
        {
            "benchmark": "LeNet-5, MNIST, batch 100, one step",
            "variant": name,
            "milliseconds": round(1000 * value / STEPS, 3),
            "time relative to bare": round(value / medians[0], 3),
            "rounds": rounds,
            **sweep.environment(device),
        }
        for name, value in zip(variants, medians, strict=True)
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Measure what is asked for, and write it to ``support/results/benchmarks``."""
    kinds = ["training", "stacks", "landscape", "sweep", *benchmark_optimizers.BENCHMARKS]
    parser = timing.options(__doc__, kinds)
    parser.add_argument("--root", help="folder of the data sets, for the training loop")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="how the names of the optimizers begin"
    )
    given = parser.parse_args()
    try:
        chosen = benchmark_optimizers.choose(given.methods)
    except ValueError as error:
        parser.error(str(error))
    if "training" in given.only:
        table = bench(given.root, given.rounds or 15, given.device)
        target = RESULTS / "benchmarks" / "training.csv"
        timing.write(timing.joined(table, target), target)
        print(table.iloc[:, :4].to_string(index=False))
    if "stacks" in given.only:
        benchmark_stacks.run(given.rounds, given.device)
    if "landscape" in given.only:
        benchmark_landscape.run(given.rounds, given.device)
    if "sweep" in given.only:
        benchmark_sweep.run(given.rounds)
    benchmark_optimizers.run(given.only, chosen, given.rounds, given.device)


if __name__ == "__main__":
    main()
