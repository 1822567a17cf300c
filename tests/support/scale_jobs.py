"""Runs for the tests of sweeps at scale: they say what they train, and stop or die where they are told to.

Each writes lines into ``notes``, a file outside the store, in one call each. They are imported by the workers.
"""

import functools
import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

from support import sweep, training
from support.records import Configuration, Outcome, Records, Store


def note(notes: Path, *words: object) -> None:
    with open(notes, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def lines(notes: Path) -> list[list[str]]:
    return (
        [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
    )


def first(notes: Path, name: str) -> bool:
    """Tell whether this is the first call, of all processes, with this name."""
    try:
        open(notes.with_name(name), "x").close()
    except FileExistsError:
        return False
    return True


def train(configuration: Configuration, checkpoint: Path, *, notes: Path) -> Outcome:
    """Train for real and note the beginning of each epoch; the first time, stay in the third one of seed 0."""
    epoch = training.train_epoch
    done = training.saved(checkpoint) or {"epoch": 0}
    number = done["epoch"]

    def noted(*arguments):
        nonlocal number
        number += 1
        note(notes, "epoch", configuration["seed"], number, os.getpid())
        if configuration["seed"] == 0 and number == 3 and first(notes, "stopped"):
            note(notes, "stopped", os.getpid())
            while True:  # until somebody kills it
                time.sleep(0.05)
        return epoch(*arguments)

    with patch.object(training, "train_epoch", noted):
        return training.train_one(configuration, checkpoint)


def quick(configuration: Configuration, checkpoint: Path, *, notes: Path) -> Outcome:
    """Note that it ran; ``does`` says how it ends."""
    note(notes, "ran", configuration["seed"])
    does = configuration["does"]
    if does == "die" or (does == "die once" and first(notes, "died")):
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "fill":
        return Outcome("finished", [(1, "test", "loss", 0.0, 0.0)] * 20_000)
    if does == "raise":
        raise ArithmeticError("nothing to divide")
    if does == "diverge":
        return Outcome(
            "diverged", [(1, "test", "loss", float("inf"), 0.0)], "epoch 1: too fast"
        )
    return Outcome("finished", [(1, "test", "loss", configuration["seed"] / 3, 0.0)])


def slow(configuration: Configuration, checkpoint: Path, *, notes: Path) -> Outcome:
    """Note that it ran, and take a while."""
    note(notes, "ran", configuration["seed"])
    time.sleep(0.1)
    return Outcome("finished", [(1, "test", "loss", configuration["seed"] / 3, 0.0)])


def whole_sweep(runs: list[Configuration], store: Store, notes: Path) -> Records:
    """Run a sweep as soon as two processes are here to do so."""
    here = notes.with_name("first"), notes.with_name("second")
    here[not first(notes, "first")].touch()
    while not all(file.exists() for file in here):
        time.sleep(0.01)
    return sweep.run(functools.partial(slow, notes=notes), runs, store)
