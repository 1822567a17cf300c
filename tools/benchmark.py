"""Benchmarks, measured side by side in one run: ``make bench`` writes them to ``support/results``.

Each row compares variants of the same work. They take turns, round after round, so that a change in the
machine's speed hits all of them; the table holds the median time of each and its ratio to the first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from support import data, models, sweep, training
from support.data import files
from support.records import RESULTS

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


def measure(
    variants: dict[str, Callable[[], None]], rounds: int, device: str
) -> dict[str, float]:
    """Return the median seconds of each variant over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for current in range(rounds + 1):  # the first round warms up
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if current:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and write ``support/results/benchmarks/training.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    medians = measure(
        training_loop(arguments.root, arguments.device), arguments.rounds, arguments.device
    )
    first = next(iter(medians.values()))
    table = pd.DataFrame(
        [
            {
                "benchmark": "LeNet-5, MNIST, batch 100, one step",
                "variant": name,
                "milliseconds": round(1000 * value / STEPS, 3),
                "time relative to bare": round(value / first, 3),
                "rounds": arguments.rounds,
                **sweep.environment(arguments.device),
            }
            for name, value in medians.items()
        ]
    )
    write(table, RESULTS / "benchmarks" / "training.csv")
    print(table.iloc[:, :4].to_string(index=False))


def write(table: pd.DataFrame, target: Path) -> None:
    """Write the table; rows of the same benchmark on other devices are kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        old = pd.read_csv(target)
        table = pd.concat([old[old["device"] != table["device"].iloc[0]], table])
    table.to_csv(target, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
