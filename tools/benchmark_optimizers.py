"""The optimizers beside ``torch.optim.SGD`` with momentum and beside other packages; part of ``make bench``.

A measurement stands between two of the reference and is divided by their mean; the table has the median of
this ratio over the rounds, and its quartiles.

The steps of a method may differ in cost. On LeNet-5 a measurement covers whole periods. On ResNet-18 that
would take hours: there each kind of step (with new roots or inverses, with new factors, with neither) is
measured for itself, and the mean over a period is put together from them.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import record_function

from support import models, sweep
from support.records import RESULTS
from tools import timing
from tools.optimizer_variants import OURS, REFERENCE, Kind, Method, methods

TABLE = RESULTS / "benchmarks" / "optimizers.csv"
PROFILE = RESULTS / "benchmarks" / "optimizers_profile.csv"
BATCH, BATCHES = 100, 10
GRADIENT = "forward and backward"
REST = "between these"
LABELS = ("KFAC: ", "Shampoo: ")
STEP = "Optimizer.step#"


@dataclass(frozen=True)
class Benchmark:
    """Where the methods are measured.

    A turn takes ``steps`` steps, or ``heavy`` of a method whose steps take several times as long; where it is
    ``whole``, as many more as make whole periods. ``without`` are methods that are not measured.
    """

    title: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    rounds: int
    steps: int
    heavy: int
    whole: bool
    without: tuple[str, ...] = ()


def resnet18() -> nn.Module:
    """ResNet-18 with the stem for CIFAR: a convolution 3 x 3 with step 1, and no pooling behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=10)
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


BENCHMARKS = {
    "lenet5": Benchmark(
        "LeNet-5, batch 100, one step", partial(models.lenet5, seed=0), (1, 32, 32),
        rounds=25, steps=20, heavy=10, whole=True,
    ),
    "resnet18": Benchmark(
        "ResNet-18 (CIFAR), batch 100, one step", resnet18, (3, 32, 32),
        rounds=5, steps=2, heavy=1, whole=False,
    ),
    "optimizer": Benchmark(
        "optimizer alone, 11.2 M parameters", resnet18, None,
        rounds=25, steps=10, heavy=10, whole=True, without=("SAM", "Shampoo", "K-FAC"),
    ),
}  # fmt: skip
RANKS = {
    "benchmark": {b.title: rank for rank, b in enumerate(BENCHMARKS.values())},
    "method": {m.name: rank for rank, m in enumerate(methods())},
}

# What was to be reached, fixed before the methods were written: at most so many times the reference.
TARGETS = {
    "cpu": {
        "Lion": (1.05, 1.02, 1.6),
        "SAM": (2.1, 2.1, None),
        "clipped-SGD, norm": (1.08, 1.02, 1.7),
        "clipped-SGD, coordinate": (1.08, 1.02, 1.5),
        "clipped-SSTM": (1.08, 1.02, 2.0),
        "AGC": (1.15, 1.03, 2.0),
        "Shampoo, roots every step": (2.1, 1.6, None),
        "Shampoo, roots every 10 steps": (1.3, 1.18, None),
        "K-FAC 1/10": (3.4, 5.0, None),
        "K-FAC 10/100": (1.4, 1.6, None),
    },
    "cuda": {"K-FAC 10/100": (None, 1.5, None)},
}


class Runner:
    """One way to take steps, with a network of its own."""

    def __init__(
        self, benchmark: Benchmark, method: Method, kind: Kind, device: str
    ) -> None:
        self.model = benchmark.network().to(device)
        self.optimizer, self.step = method.build(self.model, **kind.hyper)
        self.batches = itertools.cycle(batches(benchmark, self.model, device))
        self.gradient = network_gradient if benchmark.shape else fixed_gradient
        least = benchmark.heavy if method.heavy else benchmark.steps
        period = method.period if benchmark.whole else 1
        self.steps = -(-least // period) * period

    def run(self, steps: int | None = None) -> None:
        """Take one turn, or so many steps."""
        for _ in range(steps or self.steps):
            self.step(
                partial(self.gradient, self.model, self.optimizer, next(self.batches))
            )


def batches(benchmark: Benchmark, model: nn.Module, device: str) -> list[Sequence[Tensor]]:
    """Return random batches, or where the network is not evaluated, one list of random gradients."""
    generator = torch.Generator().manual_seed(1)
    normal = partial(torch.randn, generator=generator)
    if benchmark.shape is None:
        return [[0.01 * normal(p.shape).to(device) for p in model.parameters()]]
    return [
        (
            normal(BATCH, *benchmark.shape).to(device),
            torch.randint(10, (BATCH,), generator=generator).to(device),
        )
        for _ in range(BATCHES)
    ]


def network_gradient(
    model: nn.Module, optimizer: Optimizer, batch: Sequence[Tensor]
) -> Tensor:
    """Compute the gradient of the cross-entropy."""
    inputs, targets = batch
    with record_function(GRADIENT):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
    return loss.detach()


def fixed_gradient(model: nn.Module, optimizer: Optimizer, batch: Sequence[Tensor]) -> None:
    """Put a gradient in its place."""
    for parameter, gradient in zip(model.parameters(), batch, strict=True):
        parameter.grad = gradient


class Bench:
    """One benchmark of some methods on one device."""

    def __init__(self, name: str, chosen: Sequence[Method], device: str) -> None:
        self.benchmark, self.device = BENCHMARKS[name], device
        self.targets = {
            method: targets[list(BENCHMARKS).index(name)]
            for method, targets in TARGETS[torch.device(device).type].items()
        }
        without = self.benchmark.without
        self.methods = [m for m in chosen if not (without and m.name.startswith(without))]
        self.runners: dict[object, Runner] = {}
        for method in self.methods:
            for kind in self.kinds(method):
                place = self.place(method, kind)
                if place not in self.runners:
                    self.runners[place] = Runner(self.benchmark, method, kind, device)

    def kinds(self, method: Method) -> list[Kind]:
        """Return the kinds of steps that are measured for themselves."""
        if self.benchmark.whole or not method.kinds:
            return [Kind(1.0, method.hyper)]
        return [kind for kind in method.kinds if kind.share > 1e-9]

    def place(self, method: Method, kind: Kind) -> object:
        """Return what tells runners apart; methods share those kinds of steps that they have in common."""
        return method.build, tuple(kind.hyper.items())

    def parts(self, method: Method) -> list[tuple[float, Runner]]:
        """Return the shares and the runners of a method's kinds of steps."""
        return [
            (kind.share, self.runners[self.place(method, kind)])
            for kind in self.kinds(method)
        ]

    def table(self, rounds: int | None = None) -> pd.DataFrame:
        """Measure, and return one row a method."""
        rounds = rounds or self.benchmark.rounds
        reference = Runner(self.benchmark, self.methods[0], Kind(1.0, {}), self.device)
        turns = [reference]
        for runner in self.runners.values():
            turns += [runner, reference]
        steps = np.array([runner.steps for runner in turns])
        seconds = timing.measure([turn.run for turn in turns], rounds, self.device) / steps
        own, beside = seconds[:, 1::2], (seconds[:, :-2:2] + seconds[:, 2::2]) / 2
        column = {id(runner): place for place, runner in enumerate(turns[1::2])}
        rows = []
        for method in self.methods:
            parts = [(share, column[id(runner)]) for share, runner in self.parts(method)]
            mean = sum(share * own[:, place] for share, place in parts)
            ratio = sum(share * own[:, place] / beside[:, place] for share, place in parts)
            rows.append(self.row(method, mean, ratio))
        return pd.DataFrame(rows).assign(rounds=rounds, **sweep.environment(self.device))

    def row(self, method: Method, seconds: np.ndarray, ratio: np.ndarray) -> dict:
        """Return the row of a method, given the seconds and the ratio of each round."""
        runner = self.parts(method)[0][1]
        count = sum(parameter.numel() for parameter in runner.model.parameters())
        numbers, octets = size_of_state(runner.optimizer, runner.model)
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        return {
            "benchmark": self.benchmark.title,
            "method": method.name,
            "implementation": method.implementation,
            "milliseconds": round(1000 * float(np.median(seconds)), 3),
            "ratio": round(float(middle), 3),
            "lower": round(float(low), 3),
            "upper": round(float(high), 3),
            "target": self.targets.get(method.name)
            if method.implementation == OURS
            else None,
            "numbers per parameter": round(numbers / count, 3),
            "bytes per parameter": round(octets / count, 3),
            "measured": "kinds of steps"
            if len(self.parts(method)) > 1
            else "whole periods",
        }

    def profile(self) -> pd.DataFrame:
        """Return where the time of a step of each of our methods goes, one row a part."""
        rows = []
        for method in (m for m in self.methods if m.implementation == OURS):
            seconds: Counter[str] = Counter()
            for share, runner in self.parts(method):
                spent = spent_in_parts(runner, self.device)
                for part, value in spent.items():
                    seconds[part] += share * value / runner.steps
            whole = sum(seconds.values())
            rows += [
                {
                    "benchmark": self.benchmark.title,
                    "method": method.name,
                    "part": part,
                    "milliseconds": round(1000 * value, 3),
                    "share": round(value / whole, 3),
                }
                for part, value in seconds.items()
            ]
        return pd.DataFrame(rows).assign(**sweep.environment(self.device))


def spent_in_parts(runner: Runner, device: str) -> Counter[str]:
    """Return the seconds of one turn by the innermost label that they were spent under.

    The labels are those of ``torch.profiler.record_function``. Here a clock stands in for the profiler, which would
    slow small operations down; a GPU is waited for at each label.
    """
    seconds: Counter[str] = Counter()
    inside, last = [REST], perf_counter()

    def tick() -> None:
        nonlocal last
        timing.synchronise(device)
        now = perf_counter()
        seconds[inside[-1]] += now - last
        last = now

    def enter(label: record_function) -> record_function:
        tick()
        inside.append(part_of(label.name) or inside[-1])
        return label

    def leave(label: record_function, *error: object) -> None:
        tick()
        inside.pop()

    runner.run()  # whatever others left in the caches is gone
    with mock.patch.multiple(record_function, __enter__=enter, __exit__=leave):
        last = perf_counter()
        runner.run()
        tick()
    return seconds


def part_of(label: str) -> str | None:
    """Return the part of a step that a label stands for, ``None`` if it is counted where it occurs."""
    if label.startswith(STEP):
        return label.removeprefix(STEP)
    return label if label == GRADIENT or label.startswith(LABELS) else None


def size_of_state(optimizer: Optimizer | None, model: nn.Module) -> tuple[int, int]:
    """Return how many numbers an optimizer keeps between two steps, and how many bytes they take.

    That is its state and whatever else it holds, parameters and gradients excepted.
    """
    others = [
        *model.parameters(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    known = {tensor.untyped_storage().data_ptr() for tensor in others}
    numbers = octets = 0
    while optimizer is not None:
        for tensor in tensors(vars(optimizer)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                numbers += storage.nbytes() // tensor.element_size()
                octets += storage.nbytes()
        optimizer = getattr(optimizer, "optimizer", None)  # what a wrapper wraps
    return numbers, octets


def tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a value, also those inside lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def choose(wanted: Sequence[str] | None = None) -> list[Method]:
    """Return the reference and the methods whose name begins with one of those wanted; without any, all.

    Raises
    ------
    ValueError
        If no method's name does.
    """
    every = methods()
    if wanted is None:
        return every
    starts = tuple(name.lower() for name in wanted)
    chosen = [m for m in every if m.name == REFERENCE or m.name.lower().startswith(starts)]
    for start in starts:
        if not any(method.name.lower().startswith(start) for method in chosen):
            known = ", ".join(dict.fromkeys(method.name for method in every))
            raise ValueError(f"no method's name begins with {start!r}; there are {known}")
    return chosen


def run(
    only: Sequence[str],
    chosen: Sequence[Method],
    rounds: int | None = None,
    device: str = "cpu",
) -> None:
    """Measure, and write the table and the profile; rows of other devices, benchmarks and methods stay."""
    for name in (name for name in BENCHMARKS if name in only):
        bench = Bench(name, chosen, device)
        print(f"{bench.benchmark.title}, {len(bench.methods)} rows", flush=True)
        keep(bench.table(rounds), TABLE)
        if bench.benchmark.shape:
            keep(bench.profile(), PROFILE)


def keep(rows: pd.DataFrame, target: Path) -> None:
    """Print rows, and write them in the place of those of the same device, benchmark and method."""
    shown = [name for name in rows if name not in {"benchmark", *sweep.environment()}]
    print(rows[shown].to_string(index=False))
    rows = timing.joined(rows, target, ("device", "benchmark", "method"))
    rows = rows[rows["benchmark"].isin(RANKS["benchmark"])]
    rows = rows.sort_values(
        ["device", *RANKS],
        key=lambda column: column.map(RANKS.get(column.name, lambda device: device)),
        kind="stable",
    )
    timing.write(rows, target)
