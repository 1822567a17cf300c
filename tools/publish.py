"""Put finished runs into ``support/results``: ``make publish NOTEBOOK=mnist_lenet STORE=runs/mnist_lenet``."""

import sys
from pathlib import Path

from support import records
from tools.run import experiments


def publish(notebook: str, store: Path, results: Path = records.RESULTS) -> str:
    """Join the runs of a store into the recorded ones of an experiment, and say what was added.

    Raises
    ------
    ValueError
        If there is no such experiment, or no run in the store.
    """
    if notebook not in (known := experiments()):
        raise ValueError(f"NOTEBOOK={notebook}: the experiments are {', '.join(known)}")
    new = records.Store(store).load()
    if new.runs.empty:
        raise ValueError(f"STORE={store}: there are no finished runs in this folder")
    old = records.recorded(notebook)
    old.join(new).save(results / notebook)
    added = len(set(new.runs["run"]) - set(old.runs["run"]))
    states = ", ".join(
        f"{count} {status}" for status, count in new.runs["status"].value_counts().items()
    )
    return (
        f"{results / notebook}: {added} runs added, {len(new.runs) - added} replaced, "
        f"{len(old.runs) + added} in all; those of the store are {states}"
    )


if __name__ == "__main__":
    try:
        print(publish(sys.argv[1], Path(sys.argv[2])))
    except ValueError as error:
        sys.exit(str(error))
