"""A small training job with every kind of state, as a script that starts processes for a test to kill.

``python resumable.py CHECKPOINT`` starts a process of its own for each line of its input. With ``step N`` that
process stops for ever in the middle of the Nth step that it takes, with ``save N`` when its Nth checkpoint is
complete but not yet in its place, with ``tear N`` when a half of it is, on a file system that copies. It says
``stopped`` and its number then; when it has ended, the script says by which signal.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from support.data import Batches, digits, standardise
from support.models import mlp
from support.records import Outcome
from support.training import Task, classification, fit

EPOCHS = 6
STEPS = 45  # an epoch


def job(
    checkpoint: Path | None = None, loss: Callable = classification.loss
) -> tuple[Outcome, nn.Module]:
    train, test = standardise(*digits())
    layers = []
    for layer in mlp((1, 8, 8), hidden=(64, 64), seed=1):
        layers += [layer, nn.Dropout(0.2)] if isinstance(layer, nn.ReLU) else [layer]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batches = Batches(train, 32, seed=2)
    assert len(batches) == STEPS
    outcome = fit(
        model,
        optimizer,
        batches,
        {"test": Batches(test, 100)},
        epochs=EPOCHS,
        task=Task(loss, classification.metrics),
        scheduler=StepLR(optimizer, 2, gamma=0.8),
        seed=3,
        checkpoint=checkpoint,
    )
    return outcome, model


def stopping(function: Callable, number: int, counts: Callable[[], bool]) -> Callable:
    """Return the function, stopped for ever at the call of this number, of those that count."""
    calls = 0

    def call(*arguments):
        nonlocal calls
        calls += counts()
        if calls == number:
            print("stopped", os.getpid(), flush=True)
            time.sleep(60)
        return function(*arguments)

    return call


def torn(number: int) -> Callable:
    """Return a replacement of files by copies, stopped for ever in the middle of the copy of this number."""

    stop = stopping(lambda: None, number, lambda: True)

    def replace(new, old):
        Path(old).write_bytes(Path(new).read_bytes()[:5000])
        stop()
        shutil.copyfile(new, old)
        os.unlink(new)

    return replace


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        where, count = line.split()
        child = os.fork()
        if not child:
            loss = classification.loss
            if where == "step":
                loss = stopping(loss, int(count), torch.is_grad_enabled)
            elif where == "save":
                os.replace = stopping(os.replace, int(count), lambda: True)
            else:
                os.replace = torn(int(count))
            job(Path(sys.argv[1]), loss)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("ended by", os.WTERMSIG(status), flush=True)
