"""Points per second of a surface (``support.landscape``) and of a plain loop over the points of its grid.

One row a network and a way; the two take turns on the same 1,000 random pictures. Which way ``surface`` takes is
measured first, as it does by itself, and the seconds for that are counted: the ratio is that of a grid of
25 x 25 points, whose time is extrapolated from a few.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from support import landscape, models, sweep, training
from support.data import Batches
from support.landscape import points
from support.records import RESULTS
from support.tasks import classification
from tools import timing

TABLE = RESULTS / "benchmarks" / "landscape.csv"
IMAGES, BATCH, SIDE = 1000, 250, 25
NETWORKS = {  # network, shape of a picture, points of a turn on a CPU one by one, ratio to reach there
    "mlp, 3 x 32 x 32": ("mlp", (3, 32, 32), 64, 4.0),
    "mlp, 1 x 28 x 28": ("mlp", (1, 28, 28), 64, 4.0),
    "mlp_bn, 1 x 28 x 28": ("mlp_bn", (1, 28, 28), 64, 1.0),
    "lenet5, 1 x 32 x 32": ("lenet5", (1, 32, 32), 8, 1.0),
    "resnet20, 3 x 32 x 32": ("resnet20", (3, 32, 32), 2, 1.0),
}


def examples(shape: Sequence[int], device: str) -> Batches:
    """Return random pictures."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(IMAGES, *shape, generator=generator)
    classes = torch.randint(10, (IMAGES,), generator=generator)
    return Batches(TensorDataset(pictures, classes), BATCH, device=device)


def plain(
    model: nn.Module, batches: Batches, directions: Sequence[dict], grid: Tensor
) -> Callable[[], None]:
    """Return the loop of most tools: put the point into the network, and evaluate it."""
    theta = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def turn() -> None:
        for point in grid.tolist():
            for name, value in model.named_parameters():
                value.copy_(theta[name])
                for coordinate, direction in zip(point, directions, strict=True):
                    value.add_(direction[name], alpha=coordinate)
            training.evaluate(model, batches)
        for name, value in model.named_parameters():
            value.copy_(theta[name])

    return turn


def rows(network: str, rounds: int, device: str) -> pd.DataFrame:
    """Return the two ways, each with its points per second and its ratio to the plain loop."""
    name, shape, few, target = NETWORKS[network]
    model = models.MODELS[name](shape, seed=0).to(device)
    batches = examples(shape, device)
    directions = landscape.directions(model, seed=0)
    job = points._Points(model, batches, directions, classification, "kept")
    axis = torch.linspace(-1, 1, SIDE)
    whole = torch.cartesian_prod(axis, axis)
    timing.synchronise(device)
    began = time.perf_counter()
    together = points.TOGETHER if job.pays(whole) else 1
    choosing = time.perf_counter() - began
    number = few if together == 1 and device == "cpu" else 2 * points.TOGETHER
    ours = partial(
        landscape.surface,
        model,
        batches,
        directions,
        [axis[: number // 2], axis[:2]],
        together=together,
    )
    turns = [plain(model, batches, directions, whole[:number]), ours]
    seconds = np.median(timing.measure(turns, rounds, device), axis=0) / number
    total = seconds * SIDE**2 + [0, choosing]
    return pd.DataFrame(
        {
            "network": network,
            "images": IMAGES,
            "variant": ["plain loop", "surface"],
            "points at once": [1, together],
            "points per second": [float(f"{1 / value:.3g}") for value in seconds],
            "seconds to choose": [0, round(choosing, 2)],
            "times the plain loop": (total[0] / total).round(2),
            "target": target,
            "rounds": rounds,
            **sweep.environment(device),
        }
    )


def run(rounds: int | None = None, device: str = "cpu") -> None:
    """Measure all rows and write them; those of other devices stay."""
    table = pd.concat(
        [rows(network, rounds or 5, device) for network in NETWORKS], ignore_index=True
    )
    print(table.iloc[:, :8].to_string(index=False))
    timing.write(timing.joined(table, TABLE), TABLE)
