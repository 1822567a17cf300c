"""Lists of configurations, and running them: each once, whatever happens in between."""

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
)
from contextlib import AbstractContextManager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support.optim import OPTIMIZERS, unwrapped
from support.records import (
    Configuration,
    Outcome,
    Records,
    Store,
    StoreError,
    Value,
    identity,
)
from support.stacks import Stacks

TrainOne = Callable[..., Outcome]

DEATHS = 3
"""So many processes may die of a run, the last while it ran alone, before it counts as failed."""

_ALONE = threading.Lock()  # torch has one generator a process


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

    A run that raises an error is recorded as failed, with the error as its reason, and the others go on; so is
    one of which the process has died :data:`DEATHS` times. Other sweeps may work on the same store at the same
    time: what they hold is left to them, and its records are awaited.
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
        Any ``concurrent.futures.Executor``; ``None`` runs in this process, one after the other. One of
        :func:`executor` is opened again when its processes have died.
    known
        Records from elsewhere that count as run.
    retry_failed
        Run again what raised an error last time.
    stacks
        Trains runs of equal shape together where that is faster; ``None`` trains each alone.

    Raises
    ------
    support.records.StoreError
        If the store cannot be written.
    RuntimeError
        If the executor has broken (``concurrent.futures.BrokenExecutor``) and cannot be opened again.
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
    hidden = os.environ.get("SUPPORT_PROGRESS") == "0" or not missing
    losses = _Losses(store, missing)
    with tqdm(total=len(missing), unit="run", disable=hidden, file=sys.stdout) as bar:
        while missing:
            groups = stacks.groups(missing) if stacks else [[chosen] for chosen in missing]
            if executor is None:
                sizes = (_run_group(train_one, group, store, stacks) for group in groups)
                waits = not _count(sizes, bar)
            else:
                groups = losses.bearable(groups)
                tasks = [(train_one, group, store, stacks) for group in groups]
                waits = _submit(executor, tasks, bar, losses)
                losses.give_up(groups)
            missing = [chosen for chosen in missing if chosen not in store]
            bar.update(bar.total - len(missing) - bar.n)  # what others have recorded
            if missing and waits:
                time.sleep(store.beat)
    return known.join(store.load().only(wanted))


def _count(sizes: Iterable[int], bar: tqdm) -> int:
    """Move the bar on by each size as it comes, and return their sum."""
    whole = 0
    for size in sizes:
        bar.update(size)
        whole += size
    return whole


def _submit(executor: Executor, tasks: list[tuple], bar: tqdm, losses: "_Losses") -> bool:
    """Carry out groups on an executor; return whether nothing is left but to wait for other sweeps."""
    futures, died = [], []

    def sizes() -> Iterator[int]:
        for future in as_completed(futures):
            try:
                yield future.result()
            except (BrokenExecutor, CancelledError) as error:
                died.append(error)
            except Exception as error:
                if type(error).__name__ != "KilledWorker":  # of dask, which has gone on
                    raise
                died.append(None)

    done = 0
    try:
        for task in tasks:
            futures.append(executor.submit(_run_group, *task))
        done = _count(sizes(), bar)
    except BrokenExecutor as error:
        died.append(error)
    finally:
        for future in futures:
            future.cancel()
    if broken := [error for error in died if error]:
        if not isinstance(executor, Renewable) or losses.in_vain():
            raise broken[0]
        executor.renew()
    return not (done or died)


class _Losses:
    """Counts how many processes each run has taken with it since a sweep began."""

    def __init__(self, store: Store, configurations: list[Configuration]) -> None:
        self.store, self.configurations = store, configurations
        self.before = [store.abandoned(chosen) for chosen in configurations]
        self.state, self.repeats = None, 0

    def of(self, configuration: Configuration) -> int:
        before = self.before[self.configurations.index(configuration)]
        return self.store.abandoned(configuration) - before

    def bearable(self, groups: list[list[Configuration]]) -> list[list[Configuration]]:
        """Return the groups to carry out side by side; one run alone where all of them are suspect."""
        found = [g for g in groups if max(map(self.of, g)) < DEATHS - 1]
        return found or [groups[0][:1]]

    def give_up(self, groups: list[list[Configuration]]) -> None:
        """Record as failed what has taken too many processes with it."""
        reason = f"{DEATHS} processes died of it: killed, or out of memory"
        for chosen in itertools.chain(*groups):
            if self.of(chosen) >= DEATHS:
                with self.store.claim([chosen]) as mine:
                    if mine and chosen not in self.store:
                        failed = Outcome("failed", [], reason)
                        self.store.write(chosen, failed, environment())

    def in_vain(self) -> bool:
        """Tell whether an executor broke again and again without having begun or ended a run."""
        state = [(c in self.store, self.store.abandoned(c)) for c in self.configurations]
        self.repeats = self.repeats + 1 if state == self.state else 0
        self.state = state
        return self.repeats >= DEATHS


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

    ``""`` is this process; ``"processes:N"`` are N processes of one thread each; ``"tcp://HOST:PORT"`` is the
    scheduler of a cluster of dask (``pip install "descent-lectures[cluster]"``), whose workers must reach the
    folders of store and data under the same names.

    Raises
    ------
    ValueError
        If the text is none of them.
    OSError
        If no scheduler answers there.
    """
    kind, _, number = where.partition(":")
    if not where:
        yield None
        return
    if kind == "processes" and number.isdecimal() and int(number) > 0:
        start = functools.partial(
            ProcessPoolExecutor,
            int(number),
            get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
    elif kind in {"tcp", "tls", "ucx"} and number.startswith("//"):
        start = functools.partial(_cluster, where)
    else:
        raise ValueError(
            'executor must be "", "processes:N" with a positive number N, or the address of a scheduler '
            f'such as "tcp://127.0.0.1:8786"; got {where!r}'
        )
    with Renewable(start) as pool:
        yield pool


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f'executor {address!r} needs dask: pip install "descent-lectures[cluster]"'
        ) from error
    with Client(address, set_as_default=False) as client:
        yield client.get_executor(pure=False)


class Renewable(Executor):
    """An executor that can be opened again when its processes or its scheduler have died.

    Parameters
    ----------
    start
        Returns the executor to pass work on to, as a context.
    """

    def __init__(self, start: Callable[[], AbstractContextManager[Executor]]) -> None:
        self._start, self._opened = start, contextlib.ExitStack()
        self._inner = self._opened.enter_context(start())

    def submit(self, function: Callable, /, *values: object, **named: object) -> Future:
        """Pass a call on."""
        return self._inner.submit(function, *values, **named)

    def renew(self) -> None:
        """Leave the executor and open another like it."""
        self._opened.close()
        self._inner = self._opened.enter_context(self._start())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the executor, when what runs there has ended."""
        self._opened.close()


def _run_group(
    train_one: TrainOne,
    group: list[Configuration],
    store: Store,
    stacks: Stacks | None,
) -> int:
    """Carry out a group; return its size, 0 if another process holds a part of it."""
    with _ALONE, store.claim(group) as mine:
        if not mine:
            return 0
        group = [chosen for chosen in group if chosen not in store]  # recorded just now
        if not stacks or not _run_stack(group, store, stacks):
            for configuration in group:
                _run_one(train_one, configuration, store)
    return len(group)


def _run_stack(group: list[Configuration], store: Store, stacks: Stacks) -> bool:
    """Run a group as one stack, unless each alone is faster or the stack cannot be; return whether it was."""
    if len(group) < 2:
        return False
    together = False
    checkpoint = store.checkpoint(_name(group))
    try:
        if together := stacks.pays(group):
            outcomes = stacks.train(group, checkpoint)
    except StoreError:
        raise
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
    shutil.rmtree(checkpoint.parent)  # also of a stack that failed
    return together


def _name(group: list[Configuration]) -> Configuration:
    """Return a configuration that stands for a stack in the name of its checkpoint."""
    return {"stack": " ".join(sorted(map(identity, group)))}


def _run_one(train_one: TrainOne, configuration: Configuration, store: Store) -> None:
    device = getattr(train_one, "keywords", {}).get("device", "cpu")
    try:
        outcome = train_one(configuration, checkpoint=store.checkpoint(configuration))
    except StoreError:
        raise
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


@functools.cache
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
