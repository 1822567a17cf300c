"""What a sweep costs besides training: runs that do nothing, in this process, on a pool, and on a cluster.

The ways take turns, each time on a new store in a temporary folder of this machine. Processes and workers are
started before; the last row asks for runs that are all recorded.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from support import sweep
from support.records import RESULTS, Configuration, Outcome, Store
from tools import timing
from tools.build_book import ROOT

TABLE = RESULTS / "benchmarks" / "sweep.csv"
GUIDE = ROOT / "CONTRIBUTING.md"
RUNS = 200
WORKERS = 2
WAYS = {
    "this process": "",
    f"pool of {WORKERS} processes": f"processes:{WORKERS}",
    f"cluster of {WORKERS} local workers": "cluster",
}
RECORDED = "recorded before"
MEASURED = re.compile(r"Measured on \S+ \(.*if it is recorded already\.")


def nothing(configuration: Configuration, checkpoint: Path) -> Outcome:
    """Be a run that takes no time."""
    return Outcome("finished", [(1, "test", "loss", 0.0, 0.0)])


@contextlib.contextmanager
def opened(where: str) -> Iterator:
    """Open an executor and see that its workers have started; ``cluster`` starts a local one."""
    with contextlib.ExitStack() as stack:
        if where == "cluster":
            from distributed import LocalCluster

            local = LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0"
            )
            where = stack.enter_context(local).scheduler_address
        pool = stack.enter_context(sweep.executor(where))
        carry_out(pool, stack.enter_context(tempfile.TemporaryDirectory()), 4 * WORKERS)
        yield pool


def carry_out(pool: object, folder: str, number: int = 0) -> None:
    """Run a sweep of empty runs on a store."""
    runs = sweep.grid(seed=list(range(number or RUNS)))
    sweep.run(nothing, runs, Store(folder), pool)


def run(rounds: int | None = None) -> None:
    """Measure all rows and write them; those of other devices stay."""
    rounds = rounds or 5
    os.environ["SUPPORT_PROGRESS"] = "0"
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(opened(where)) for where in WAYS.values()]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores = iter(range(10**6))
        turns = [
            lambda pool=pool: carry_out(pool, str(folder / str(next(stores))))
            for pool in pools
        ]
        carry_out(None, str(folder / "recorded"))
        turns.append(lambda: carry_out(None, str(folder / "recorded")))
        seconds = np.median(timing.measure(turns, rounds, "cpu"), axis=0)
    table = pd.DataFrame(
        {
            "way": [*WAYS, RECORDED],
            "milliseconds a run": [float(f"{1000 * s / RUNS:.2g}") for s in seconds],
            "runs": RUNS,
            "measured": datetime.now(UTC).date().isoformat(),
            "rounds": rounds,
            **sweep.environment(),
        }
    )
    print(table.iloc[:, :2].to_string(index=False))
    timing.write(timing.joined(table, TABLE), TABLE)
    text = GUIDE.read_text(encoding="utf-8")
    GUIDE.write_text(MEASURED.sub(lambda _: sentence(table), text), encoding="utf-8")


def sentence(table: pd.DataFrame) -> str:
    """Return what ``CONTRIBUTING.md`` says of the rows of one device."""
    cost = table.set_index("way")["milliseconds a run"]
    own, pool, cluster = (f"{cost[way]:g}" for way in WAYS)
    first = table.iloc[0]
    return (
        f"Measured on {first['measured']} ({first['device']}, a store on its own disk): an empty run takes "
        f"{own} ms in this process, {pool} ms on a pool of {WORKERS} processes, {cluster} ms on a cluster of "
        f"{WORKERS} local workers, and {cost[RECORDED]:g} ms if it is recorded already."
    )
