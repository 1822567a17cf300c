"""What the benchmarks share: taking turns, and writing the results beside those of other devices."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch


def options(description: str, benchmarks: Sequence[str]) -> argparse.ArgumentParser:
    """Return the options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--only", nargs="+", choices=benchmarks, default=benchmarks, metavar="NAME",
        help=f"which of {', '.join(benchmarks)} to run; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="how often all take turns; by default each has its own"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def measure(
    turns: Sequence[Callable[[], object]], rounds: int, device: str, *, warm_up: bool = True
) -> np.ndarray:
    """Return the seconds of each call, an array of shape (rounds, turns).

    In each round all take their turn once, in the given order, so that a change in the machine's speed hits all of
    them. One round more, the first, warms up and is not returned.
    """
    seconds = np.empty((rounds + warm_up, len(turns)))
    for current, row in enumerate(seconds):
        for place, run in enumerate(turns):
            synchronise(device)
            began = time.perf_counter()
            run()
            synchronise(device)
            row[place] = time.perf_counter() - began
        say = "warming up" if warm_up and not current else f"round {current + 1 - warm_up}"
        print(f"  {say}: {row.sum():.1f} s", file=sys.stderr, flush=True)
    return seconds[int(warm_up) :]


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def joined(
    table: pd.DataFrame, target: Path, keys: Sequence[str] = ("device",)
) -> pd.DataFrame:
    """Return the rows of a file whose keys do not occur in the table, and then the table."""
    if not target.is_file():
        return table
    old = pd.read_csv(target)
    new = set(table[list(keys)].itertuples(index=False, name=None))
    kept = [row not in new for row in old[list(keys)].itertuples(index=False, name=None)]
    return pd.concat([old[kept], table], ignore_index=True) if any(kept) else table


def write(table: pd.DataFrame, target: Path) -> None:
    """Write a table."""
    target.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(target, index=False, lineterminator="\n")
