"""Lists of configurations, and running them: each once, whatever happens in between."""

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support.optim import OPTIMIZERS, unwrapped
from support.records import Configuration, Outcome, Records, Store, Value, identity
from support.stacks import Stacks

TrainOne = Callable[..., Outcome]


def grid(**choices: Value | Sequence[Value]) -> list[dict[str, Value]]:
    """Return all combinations of the choices; a single value stands for itself.

    >>> grid(optimizer="sgd", lr=[0.1, 0.01])
    [{'optimizer': 'sgd', 'lr': 0.1}, {'optimizer': 'sgd', 'lr': 0.01}]
    """
    lists = [
        values if isinstance(values, list | tuple) else [values]
        for values in choices.values()
    ]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*lists)]


def run(
    train_one: TrainOne,
    configurations: Iterable[Configuration],
    store: Store,
    executor: Executor | None = None,
    *,
    known: Records | None = None,
    retry_failed: bool = False,
    stacks: Stacks | None = None,
) -> Records:
    """Run every configuration that is not recorded yet, and return the records of all of them.

    A run that raises an error is recorded as failed, with the error as its reason, and the others go on.
    A progress bar is shown unless the variable ``SUPPORT_PROGRESS`` is 0.

    Parameters
    ----------
    train_one
        Called as ``train_one(configuration, checkpoint=path)``; returns an
        :class:`~support.records.Outcome`. With an executor it must be importable there.
    configurations
        What to run. One that occurs twice is run once.
    store
        Where the records go; what it holds is not run again.
    executor
        Any ``concurrent.futures.Executor``; ``None`` runs in this process, one after the other.
    known
        Records from elsewhere that count as run.
    retry_failed
        Run again what raised an error last time.
    stacks
        Trains runs of equal shape together where that is faster; ``None`` trains each alone.
    """
    wanted = {identity(configuration): configuration for configuration in configurations}
    if retry_failed:
        for configuration in wanted.values():
            if store.status(configuration) == "failed":
                store.forget(configuration)
    known = (known or Records.empty()).only(wanted)
    elsewhere = set(known.runs["run"])
    missing = [
        chosen
        for name, chosen in wanted.items()
        if name not in elsewhere and chosen not in store
    ]
    groups = stacks.groups(missing) if stacks else [[chosen] for chosen in missing]
    hidden = os.environ.get("SUPPORT_PROGRESS") == "0" or not missing
    with tqdm(total=len(missing), unit="run", disable=hidden, file=sys.stdout) as bar:
        if executor is None:
            for group in groups:
                bar.update(_run_group(train_one, group, store, stacks))
        else:
            futures = [
                executor.submit(_run_group, train_one, group, store, stacks)
                for group in groups
            ]
            for future in as_completed(futures):
                bar.update(future.result())
    return known.join(store.load().only(wanted))


def search(
    train_one: TrainOne,
    setting: Configuration,
    choices: Mapping[str, Sequence[float]],
    store: Store,
    executor: Executor | None = None,
    *,
    metric: str = "accuracy",
    largest: bool = True,
    known: Records | None = None,
    rounds: int = 3,
    stacks: Stacks | None = None,
) -> tuple[Records, dict[str, Value]]:
    """Search a grid of hyper-parameters, and widen it as long as the best value lies on its edge.

    Parameters
    ----------
    train_one, store, executor, known, stacks
        See :func:`run`.
    setting
        What all runs have in common; they must evaluate a part named *validation*.
    choices
        Hyper-parameter -> values to try (see :func:`widen`).
    metric, largest
        Measured on the validation part after the last epoch, and whether large values are good.
    rounds
        How often the grid may be widened.

    Returns
    -------
    tuple
        The records of all runs, and the best choice.
    """
    choices = {name: list(values) for name, values in choices.items()}
    for _ in range(rounds + 1):
        wanted = grid(**setting, **choices)
        records = run(train_one, wanted, store, executor, known=known, stacks=stacks)
        chosen = best(records, "validation", metric, largest=largest, by=list(choices))
        added = widen(choices, chosen)
        if not added:
            break
        for name, values in added.items():
            choices[name] += values
    return records, chosen


@contextlib.contextmanager
def executor(where: str) -> Iterator[Executor | None]:
    """Open the executor that a page's parameter names.

    ``""`` is this process; ``"processes:N"`` are N processes of one thread each.

    Raises
    ------
    ValueError
        If the text is neither.
    """
    kind, _, number = where.partition(":")
    if not where:
        yield None
    elif kind == "processes" and number.isdecimal() and int(number) > 0:
        with ProcessPoolExecutor(
            int(number),
            get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            yield pool
    else:
        raise ValueError(
            f'executor must be "" or "processes:N" with a positive number N; got {where!r}'
        )


def _run_group(
    train_one: TrainOne,
    group: list[Configuration],
    store: Store,
    stacks: Stacks | None,
) -> int:
    """Run a group as one stack, or each run alone where that is faster or the stack cannot be; return its size."""
    together = False
    if stacks and len(group) > 1:
        try:
            if together := stacks.pays(group):
                outcomes = stacks.train(group, store.checkpoint(_name(group)))
        except Exception as error:  # such as no memory for so many: each is tried alone
            together = False
            warnings.warn(
                f"{len(group)} runs could not be trained together and are trained one by one "
                f"({type(error).__name__}: {error})",
                stacklevel=2,
            )
    if together:
        where = environment(stacks.device) | {"together": len(group)}
        for configuration, outcome in zip(group, outcomes, strict=True):
            store.write(configuration, outcome, where)
    else:
        for configuration in group:
            _run_one(train_one, configuration, store)
    shutil.rmtree(store.checkpoint(_name(group)).parent)  # also of a stack that failed
    return len(group)


def _name(group: list[Configuration]) -> Configuration:
    """Return a configuration that stands for a stack in the name of its checkpoint."""
    return {"stack": " ".join(sorted(map(identity, group)))}


def _run_one(train_one: TrainOne, configuration: Configuration, store: Store) -> None:
    device = getattr(train_one, "keywords", {}).get("device", "cpu")
    try:
        outcome = train_one(configuration, checkpoint=store.checkpoint(configuration))
    except Exception as error:  # a result as well; what stops the process is not caught
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        )
        outcome = Outcome("failed", [], reason)
    store.write(configuration, outcome, environment(device))


def environment(device: str = "cpu") -> dict[str, Value]:
    """Return what a run depends on besides its configuration: device, threads, versions, commit."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the name of the processor and the number of its cores that this process may use."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
            name,
        )
    return f"{name}, {cores} cores"


def _commit() -> str | None:
    """Return the commit of the package: from the checkout it is imported from, or as it was installed."""
    folder = Path(__file__).resolve().parent
    if (folder.parent / ".git").exists():
        command = [
            "git",
            "-C",
            str(folder),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ]
        described = subprocess.run(command, capture_output=True, text=True, check=False)
        return described.stdout.strip() or None
    try:
        origin = (
            metadata.distribution("descent-lectures").read_text("direct_url.json") or "{}"
        )
    except metadata.PackageNotFoundError:
        return None
    return json.loads(origin).get("vcs_info", {}).get("commit_id")


def fingerprint(constructor: Callable) -> str | None:
    """Return a hash of a constructor that this package or torch does not have as it is, else ``None``.

    Put into a configuration as ``code`` it makes a run with an edited class, or with other keywords in a
    ``functools.partial``, another run. A class counts with its bases, and may come from a notebook.
    """
    function, keywords = unwrapped(constructor)
    if any((function, keywords) == unwrapped(known) for known in OPTIMIZERS.values()):
        return None
    own = [
        part
        for part in getattr(function, "__mro__", [function])
        if not _ours_or_torchs(part)
    ]
    if not own and not keywords:
        return None
    members = [
        member
        for part in own
        for member in (vars(part).values() if inspect.isclass(part) else [part])
    ]
    source = "".join(
        inspect.getsource(member) for member in members if inspect.isfunction(member)
    )
    whole = f"{function.__qualname__} {sorted(keywords.items())} {source}"
    return hashlib.sha256(whole.encode()).hexdigest()[:10]


def _ours_or_torchs(part: Callable) -> bool:
    return part.__module__.partition(".")[0] in {"builtins", "torch", "support"}


def best(
    records: Records, split: str, metric: str, *, largest: bool, by: Sequence[str]
) -> dict[str, Value]:
    """Return the hyper-parameters with the best mean value after the last epoch.

    A choice of which one run did not finish cannot win; of equally good ones the first in the order of
    ``by`` does.

    Parameters
    ----------
    records
        The runs to choose from.
    split, metric
        What decides.
    largest
        Whether large values are good.
    by
        Names of the hyper-parameters; runs that agree in them (other seeds) are averaged.

    Raises
    ------
    ValueError
        If no run finished.
    """
    values = records.where(status="finished").metric(split, metric)
    if values.empty:
        reasons = [reason for reason in records.runs.get("reason", []) if reason]
        because = f"; the first: {reasons[0]}" if reasons else ""
        raise ValueError(f"no run finished, so that none can be chosen{because}")
    last = (
        values.sort_values("epoch")
        .drop_duplicates("run", keep="last")
        .set_index("run")["value"]
    )
    every = records.runs.assign(value=records.runs["run"].map(last))
    means = (
        every.groupby(list(by))["value"]
        .apply(lambda seeds: seeds.mean(skipna=False))
        .dropna()
    )
    if means.empty:
        raise ValueError(
            "of every choice some run did not finish, so that none can be chosen"
        )
    winner = means.idxmax() if largest else means.idxmin()
    winner = winner if len(by) > 1 else (winner,)
    plain = (value.item() if isinstance(value, np.generic) else value for value in winner)
    return dict(zip(by, plain, strict=True))


def widen(
    choices: Mapping[str, Sequence[float]], chosen: Mapping[str, Value]
) -> dict[str, list[float]]:
    """Return the values to add where the chosen one lies on the edge of its grid.

    Each choice is a geometric grid of positive numbers, to which 0 may be added as "none"; zero is no edge.
    The new value goes on by the ratio that stands next to the edge's own, so that a grid 1, 3, 10 goes on
    with 30.

    >>> widen({"lr": [0.01, 0.03, 0.1]}, {"lr": 0.1})
    {'lr': [0.3]}
    """
    added = {}
    for name, values in choices.items():
        rising = sorted(value for value in values if value > 0)
        for end, *inner in (rising, rising[::-1]) if rising else ():
            if inner and chosen[name] == end:
                far, near = (inner[1], inner[0]) if len(inner) > 1 else (inner[0], end)
                added.setdefault(name, []).append(float(f"{end * near / far:.1e}"))
    return added
