"""The training loop: closure-based, resumable to the bit, and nothing but torch."""

import contextlib
import errno
import glob
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from support import models, optim
from support.data import DATASETS, Batches, Pictures, batches, split, standardise
from support.records import REFUSALS, Configuration, Outcome, refusals_of
from support.tasks import Task, classification, task_of


class _Means:
    """Sums on the device, so that no step waits for the device; one transfer at the end."""

    def __init__(self, task: Task) -> None:
        self.task, self.sums, self.examples = task, {}, 0
        self.gathered = {name: metric() for name, metric in task.gathered.items()}

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        values = {"loss": loss.detach() * len(targets)}
        values |= {
            name: metric(outputs.detach(), targets)
            for name, metric in self.task.metrics.items()
        }
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for metric in self.gathered.values():
            metric.to(outputs.device).update(outputs.detach(), targets)
        self.examples += len(targets)

    def result(self) -> dict[str, float]:
        means = {name: value.item() / self.examples for name, value in self.sums.items()}
        return means | {
            name: metric.compute().item() for name, metric in self.gathered.items()
        }


@contextlib.contextmanager
def evaluation(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Show the model as it is to be judged: evaluation mode, and the point that the optimizer returns.

    An optimizer that averages or looks ahead has a context ``evaluation()`` of its own, which is entered.
    The mode of the model is put back at the end.
    """
    training = model.training
    model.eval()
    try:
        with getattr(optimizer, "evaluation", contextlib.nullcontext)(), torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    batches: Batches,
    task: Task = classification,
    optimizer: Optimizer | None = None,
) -> dict[str, float]:
    """Return the mean loss and metrics of a model over all batches."""
    means = _Means(task)
    with evaluation(model, optimizer):
        for inputs, targets in batches:
            outputs = model(inputs)
            means.add(task.loss(outputs, targets), outputs, targets)
    return means.result()


def train_epoch(
    model: nn.Module, optimizer: Optimizer, batches: Batches, task: Task = classification
) -> dict[str, float]:
    """Take one step a batch and return the means of loss and metrics over the epoch, before each step.

    The optimizer gets a closure that computes the loss and its gradient at the present parameters, and may
    call it as often as its method needs; what is measured is the first call of each step.
    """
    means = _Means(task)
    model.train()
    for inputs, targets in batches:
        calls = 0

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            nonlocal calls
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = task.loss(outputs, targets)
            loss.backward()
            if not calls:
                means.add(loss, outputs, targets)
            calls += 1
            return loss

        optimizer.step(closure)
    return means.result()


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    train: Batches,
    held_out: Mapping[str, Batches],
    *,
    epochs: int,
    task: Task = classification,
    scheduler: LRScheduler | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Outcome:
    """Train for a number of epochs and measure after each.

    Parameters
    ----------
    model, optimizer, train
        The network, the method and the batches it learns from.
    held_out
        Name of a split -> batches on which the model is evaluated after each epoch.
    epochs
        Passes over ``train``.
    task
        Loss and metrics.
    scheduler
        Stepped once after each epoch.
    seed
        Of the random numbers that the network draws in training (dropout, augmentation). The order of the
        examples is the business of ``train``.
    checkpoint
        File for a checkpoint, written in one step after each epoch (see :func:`save`). If it is there,
        training goes on from it and gives the same numbers as without the interruption (seconds apart) on the
        same device with the same number of threads.

    Returns
    -------
    Outcome
        ``finished``, or ``diverged`` at the first epoch in which a loss is infinite or NaN.
    """
    checkpoint = Path(checkpoint) if checkpoint else None
    device = train.device
    outcome, seconds, start = Outcome("finished"), 0.0, 0
    pieces = {"model": model, "optimizer": optimizer, "train": train}
    pieces |= {"scheduler": scheduler} if scheduler else {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        on_cpu = device.type == "cpu"  # torch.manual_seed would seed every GPU too
        (torch.default_generator if on_cpu else torch).manual_seed(seed)
        if state := saved(checkpoint, device):
            start, seconds = state["epoch"], state["seconds"]
            outcome.history += state["history"]
            _restore(pieces, state, device)
        for epoch in range(start + 1, epochs + 1):
            began = time.perf_counter()
            measured = {"train": train_epoch(model, optimizer, train, task)}
            seconds += time.perf_counter() - began
            measured |= {
                name: evaluate(model, part, task, optimizer)
                for name, part in held_out.items()
            }
            if not note(outcome, epoch, measured, seconds):
                return outcome
            if scheduler:
                scheduler.step()
            if checkpoint:
                state = {name: part.state_dict() for name, part in pieces.items()}
                state |= {"epoch": epoch, "seconds": seconds, "history": outcome.history}
                state["cpu_random"] = torch.get_rng_state()
                if device.type == "cuda":
                    state["cuda_random"] = torch.cuda.get_rng_state(device)
                save(checkpoint, state)
    return outcome


def note(
    outcome: Outcome,
    epoch: int,
    measured: Mapping[str, Mapping[str, float]],
    seconds: float,
) -> bool:
    """Add what was measured after an epoch (split -> metric -> value); a loss that is not finite ends the run.

    Returns whether the run goes on.
    """
    outcome.history += [
        (epoch, name, metric, value, seconds)
        for name, values in measured.items()
        for metric, value in values.items()
    ]
    diverged = [
        name for name, values in measured.items() if not math.isfinite(values["loss"])
    ]
    if diverged:
        outcome.status = "diverged"
        outcome.reason = f"epoch {epoch}: loss on {', '.join(diverged)} is not finite"
    return not diverged


def save(path: Path, state: Mapping) -> None:
    """Write a checkpoint in one step: it is whole, or the one before it stays.

    Where the file system cannot put one file in the place of another, the new one is copied there, and stays
    beside it until the copy is whole.

    Raises
    ------
    support.records.StoreError
        If the disk is full or the folder may only be read.
    """
    with (
        refusals_of(path.parent),
        tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.saving-", delete=False
        ) as file,
    ):
        try:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            replaced = _replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
        if not replaced:
            with open(file.name, "rb") as new, open(path, "wb") as copy:
                shutil.copyfileobj(new, copy)
                copy.flush()
                os.fsync(copy.fileno())
            for other in _unplaced(path):
                other.unlink(missing_ok=True)


def _replace(new: str, old: Path) -> bool:
    """Put a file in the place of another; ``False`` where the file system does not do that."""
    try:
        os.replace(new, old)
    except OSError as error:
        if error.errno is None or error.errno in REFUSALS - {errno.EPERM}:
            raise
        return False
    return True


def _unplaced(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{glob.escape(path.name)}.saving-*"))


def saved(path: Path | None, device: torch.device | str = "cpu") -> dict | None:
    """Return the state of a checkpoint, ``None`` if there is none.

    It is the newest whole file among the checkpoint and what :func:`save` had not yet put in its place.
    """
    if path is None:
        return None
    found = [file for file in (path, *_unplaced(path)) if file.is_file()]
    whole = [file for file in found if zipfile.is_zipfile(file)]  # its end is there
    if not whole:
        return None
    newest = max(whole, key=lambda file: file.stat().st_mtime_ns)
    return torch.load(newest, map_location=device, weights_only=True)


def _restore(pieces: Mapping, saved: Mapping, device: torch.device) -> None:
    for name, part in pieces.items():
        state = saved[name]
        if name == "train":  # the state of a generator lives on the CPU
            state = {key: value.cpu() for key, value in state.items()}
        part.load_state_dict(state)
    torch.set_rng_state(saved["cpu_random"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda_random"].cpu(), device)


SETTING = frozenset(
    {
        "data",
        "size",
        "examples",
        "validation",
        "test",
        "model",
        "optimizer",
        "code",
        "batch",
        "epochs",
        "seed",
        "task",
        "classes",
        "width",
        "pretrained",
    }
)
"""Entries of a configuration that :func:`train_one` reads itself; the others are hyper-parameters."""


def train_one(
    configuration: Configuration,
    checkpoint: str | Path | None = None,
    *,
    root: str | Path | None = None,
    device: str = "cpu",
    optimizers: Mapping[str, Callable[..., Optimizer]] = optim.OPTIMIZERS,
    workers: int = 0,
) -> Outcome:
    """Train one network as a configuration says.

    Parameters
    ----------
    configuration
        ``data`` and ``model`` (names in :data:`support.data.DATASETS` and :data:`support.models.MODELS`),
        ``size`` (side of the pictures), ``validation`` (so many of the training examples are held out and
        evaluated as *validation*; with 0 the model learns from all and the *test* part is evaluated),
        optionally ``test`` (true: the test part is evaluated as well as the validation part),
        ``optimizer``, ``batch``, ``epochs``, ``seed`` (of the initial weights and of the order), optionally
        ``examples`` (learn from so many only), ``task`` (name in :data:`support.tasks.TASKS`), and ``classes``,
        ``width`` and ``pretrained``, which go to the network; all other entries go to the optimizer.
    checkpoint
        See :func:`fit`.
    root
        Folder of the data sets.
    device
        Where to train.
    optimizers
        Name -> constructor.
    workers
        Processes that read pictures ahead (:class:`support.data.Streamed`).

    Returns
    -------
    Outcome
        See :func:`fit`.
    """
    train, held_out = parts(configuration, root)
    seed, how = configuration["seed"], {"device": device, "workers": workers}
    learned = batches(train, configuration["batch"], seed=seed, **how)
    model, optimizer = build(configuration, learned, optimizers)
    size = 100 if isinstance(train, Pictures) else 1000
    return fit(
        model,
        optimizer,
        learned,
        {name: batches(part, size, **how) for name, part in held_out.items()},
        epochs=configuration["epochs"],
        task=task_of(configuration),
        seed=seed,
        checkpoint=checkpoint,
    )


def build(
    configuration: Configuration,
    batches: Batches,
    optimizers: Mapping[str, Callable[..., Optimizer]] = optim.OPTIMIZERS,
) -> tuple[nn.Module, Optimizer]:
    """Build the network of a configuration for batches, on their device, and its optimizer."""
    network = models.MODELS[configuration["model"]]
    choices = {
        name: configuration[name]
        for name in ("classes", "width", "pretrained")
        if name in configuration
    }
    model = network(shape=batches.shape, seed=configuration["seed"], **choices)
    model = model.to(batches.device)
    hyper = {name: value for name, value in configuration.items() if name not in SETTING}
    return model, optim.make(configuration["optimizer"], model, optimizers, **hyper)


def parts(
    configuration: Configuration, root: str | Path | None = None
) -> tuple[TensorDataset | Pictures, dict[str, TensorDataset | Pictures]]:
    """Return the part to learn from and the parts to judge on, tensors standardised by the former."""
    train, test = DATASETS[configuration["data"]](root, size=configuration["size"])
    held_out = {"test": test}
    if configuration["validation"]:
        validation, train = split(train, configuration["validation"], seed=0)
        held_out = {"validation": validation}
        held_out |= {"test": test} if configuration.get("test") else {}
    if configuration.get("examples"):
        train, _ = split(train, configuration["examples"], seed=0)
    if isinstance(train, Pictures):  # their views standardise
        return train.to_learn_from(), held_out
    if not train.tensors[0].is_floating_point():  # words of a vocabulary
        return train, held_out
    train, *others = standardise(train, *held_out.values())
    return train, dict(zip(held_out, others, strict=True))
