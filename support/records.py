"""Runs on disk, recorded full runs, published values, and verdicts. This module knows no torch."""

import contextlib
import csv
import errno
import hashlib
import html
import json
import math
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TextIO

import pandas as pd

Value = str | int | float | bool | None
Configuration = Mapping[str, Value]
Row = tuple[int, str, str, float, float]

COLUMNS = ("epoch", "split", "metric", "value", "seconds")
"""Columns of a history, one measured value a row; seconds are of training so far, without evaluation."""

TYPES = {"run": str} | dict(zip(COLUMNS, (int, str, str, float, float), strict=True))
"""Types of the columns of a history, which one without rows or with a run of digits alone does not show."""

RESULTS = Path(__file__).parent / "results"


@dataclass
class Outcome:
    """What one run gave: its status, its history, and why it ended if it ended early."""

    status: str
    """``finished``, ``diverged`` (a loss became infinite or NaN) or ``failed`` (it raised an error)."""
    history: list[Row] = field(default_factory=list)
    """Rows of :data:`COLUMNS`."""
    reason: str = ""


@dataclass(frozen=True)
class Records:
    """Runs with their histories.

    ``runs`` has one row a run: ``run`` (its identity), the configuration, ``status``, ``reason`` and the
    environment.
    ``history`` has one row a measured value: ``run`` and :data:`COLUMNS`.
    """

    runs: pd.DataFrame
    history: pd.DataFrame

    @classmethod
    def empty(cls) -> "Records":
        """Return no runs at all."""
        return cls(pd.DataFrame(columns=["run"]), pd.DataFrame(columns=["run", *COLUMNS]))

    def metric(self, split: str, metric: str) -> pd.DataFrame:
        """Return the history of one metric on one split, each row with the configuration of its run."""
        chosen = self.history[
            (self.history["split"] == split) & (self.history["metric"] == metric)
        ]
        return chosen.merge(self.runs, on="run")

    def first_reaching(self, split: str, metric: str, target: float) -> pd.DataFrame:
        """Return for each run the first epoch at which a metric is at least ``target``.

        One row a run, with its configuration, ``epoch`` and ``seconds`` of training until then; both are
        NaN for a run that never gets there.
        """
        values = self.metric(split, metric)
        first = (
            values[values["value"] >= target].sort_values("epoch").drop_duplicates("run")
        )
        return self.runs.merge(first[["run", "epoch", "seconds"]], on="run", how="left")

    def where(self, **values: Value) -> "Records":
        """Return the runs whose configuration has these values, with their histories."""
        mask = pd.Series(True, index=self.runs.index)
        for name, value in values.items():
            column = self.runs.get(name, pd.Series(math.nan, index=self.runs.index))
            mask &= column.isna() if value is None else column == value
        return self.only(self.runs["run"][mask])

    def only(self, names: Iterable[str]) -> "Records":
        """Return the runs with these identities, with their histories."""
        names = set(names)
        runs = self.runs[self.runs["run"].isin(names)].reset_index(drop=True)
        return Records(
            runs, self.history[self.history["run"].isin(names)].reset_index(drop=True)
        )

    def join(self, other: "Records") -> "Records":
        """Return the runs of both; where both have a run, that of ``other``."""
        mine = self.only(set(self.runs["run"]) - set(other.runs["run"]))
        if mine.runs.empty or other.runs.empty:
            return other if mine.runs.empty else mine
        return Records(
            pd.concat([mine.runs, other.runs], ignore_index=True),
            pd.concat([mine.history, other.history], ignore_index=True),
        )

    def save(self, folder: Path) -> None:
        """Write ``runs.csv`` and ``history.csv``, sorted, six significant digits."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in self.runs if name != "run"]
        self.runs.sort_values(names, key=lambda column: column.astype(str))[
            ["run", *names]
        ].to_csv(folder / "runs.csv", index=False, lineterminator="\n")
        self.history.sort_values(["run", "epoch", "split", "metric"]).to_csv(
            folder / "history.csv", index=False, float_format="%.6g", lineterminator="\n"
        )


REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)
"""What the system answers where nothing can be written: no space, or no permission."""


class StoreError(OSError):
    """A store that cannot be written: its disk is full, or its folder may only be read."""


@contextlib.contextmanager
def refusals_of(path: Path) -> Iterator[None]:
    """Turn a refusal to write into a :class:`StoreError` that names the folder."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error  # torch hides it behind an error of its own
        while cause and getattr(cause, "errno", None) not in REFUSALS:
            cause = cause.__cause__ or cause.__context__
        if cause is None or isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write to {path}: {os.strerror(cause.errno)}. What is recorded is whole; once there is "
            "space and permission, the same sweep goes on from there"
        ) from error


class Store:
    """A folder of runs: one directory a run, ``run.json`` and ``history.csv`` in it.

    A run appears whole or not at all: it is written to a folder beside its place and moved there in one
    step. If two processes finish the same run, the first one stays. On a file system that does not rename in
    one step, such as a mounted drive, a run counts from when both files are whole.

    Processes of several machines may share the folder: see :meth:`claim`.

    Parameters
    ----------
    path
        The folder; made when the first run is written.
    stale
        Seconds without a sign of life after which the claim of a process on another machine is taken over.
    """

    def __init__(self, path: str | Path, *, stale: float = 60.0) -> None:
        self.path, self.stale = Path(path), stale

    def __getstate__(self) -> dict:
        """Give another process the same folder, wherever it works."""
        return vars(self) | {"path": self.path.absolute()}

    @property
    def beat(self) -> float:
        """Seconds between two signs of life of a claim, and between two looks at those of others."""
        return self.stale / 6

    def __contains__(self, configuration: Configuration) -> bool:
        """Tell whether the run of this configuration is recorded."""
        return _described(self.path / folder_name(configuration)) is not None

    def status(self, configuration: Configuration) -> str | None:
        """Return the status of a recorded run, ``None`` if there is none."""
        run = _described(self.path / folder_name(configuration))
        return run and run["status"]

    def checkpoint(self, configuration: Configuration) -> Path:
        """Return the place for the checkpoint of an unfinished run; its folder exists."""
        folder = self._unfinished(configuration)
        with refusals_of(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / "checkpoint.pt"

    def _unfinished(self, configuration: Configuration) -> Path:
        return self.path / ".unfinished" / folder_name(configuration)

    @contextlib.contextmanager
    def claim(self, configurations: Iterable[Configuration]) -> Iterator[bool]:
        """Hold runs while they are carried out; gives ``False`` where another process holds one of them.

        A claim is a file that only one process can make, and that it touches every :attr:`beat` seconds. If
        its process has died, another takes over: at once on the same machine, from another one when the
        claim is ``stale``. Ages are measured on the clock of the file system.
        """
        wanted = sorted(configurations, key=identity)
        held, ended = [], threading.Event()
        pulse = threading.Thread(target=self._touch, args=(held, ended), daemon=True)
        try:
            with refusals_of(self.path):
                for configuration in wanted:
                    if not (file := self._take(configuration)):
                        break
                    held.append(file)
            if mine := len(held) == len(wanted):
                pulse.start()
            yield mine
        finally:
            ended.set()
            for file in held:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
                    file.parent.rmdir()  # unless there is a checkpoint in it

    def _touch(self, files: Iterable[Path], ended: threading.Event) -> None:
        while not ended.wait(self.beat):
            for file in files:
                with contextlib.suppress(OSError):
                    os.utime(file)

    def _take(self, configuration: Configuration) -> Path | None:
        """Make a claim and return its file, ``None`` if another process holds the run or was faster."""
        claims = self._claims(configuration)
        if claims and self._lives(claims[-1]):
            return None
        number = int(claims[-1].suffix[1:]) + 1 if claims else 1
        file = self.checkpoint(configuration).with_name(f"claim.{number}")
        try:
            with open(file, "x", encoding="utf-8") as new:
                new.write(f"{_machine()} {os.getpid()}")
        except (FileExistsError, FileNotFoundError):  # the run has just been recorded
            return None
        if any(
            self._lives(other) for other in self._claims(configuration) if other != file
        ):
            file.unlink()
            return None
        return file

    def _claims(self, configuration: Configuration) -> list[Path]:
        """Return the claims on a run, the last one at the end; all before it were given up."""
        claims = self._unfinished(configuration).glob("claim.*")
        return sorted(claims, key=lambda file: int(file.suffix[1:]))

    def _lives(self, claim: Path) -> bool:
        try:
            with open(claim, encoding="utf-8") as file:  # opening asks a file server afresh
                machine, _, process = file.read().rpartition(" ")
                touched = os.fstat(file.fileno()).st_mtime
            if machine == _machine() and _has_ended(int(process)):
                return False
            with tempfile.TemporaryFile(dir=claim.parent) as now:
                return os.fstat(now.fileno()).st_mtime - touched < self.stale
        except FileNotFoundError:
            return False

    def abandoned(self, configuration: Configuration) -> int:
        """Return how many processes have died while they carried out a run that is not recorded."""
        return sum(not self._lives(claim) for claim in self._claims(configuration))

    def write(
        self,
        configuration: Configuration,
        outcome: Outcome,
        environment: Mapping[str, Value] | None = None,
    ) -> None:
        """Record a run and drop its checkpoint.

        Raises
        ------
        StoreError
            If the disk is full or the folder may only be read; no part of the record is left then.
        """
        name = folder_name(configuration)
        run = {
            "configuration": dict(configuration),
            "status": outcome.status,
            "reason": outcome.reason,
            "environment": dict(environment or {}),
        }
        with refusals_of(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path, prefix=".writing-") as scratch:
                whole = Path(scratch) / "run"
                whole.mkdir()
                with _durable(whole / "history.csv") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerows([COLUMNS, *outcome.history])
                with _durable(whole / "run.json") as file:
                    file.write(json.dumps(run, indent=1, allow_nan=False) + "\n")
                self._place(whole, self.path / name)
        shutil.rmtree(self.path / ".unfinished" / name, ignore_errors=True)

    def _place(self, whole: Path, target: Path) -> None:
        try:
            os.rename(whole, target)
        except OSError as error:
            if _described(target) is not None:  # another process was first
                return
            if error.errno is None or error.errno in REFUSALS - {errno.EPERM}:
                raise
            # The file system does not rename folders, or left half of one: a run counts from its last file.
            target.mkdir(exist_ok=True)
            (target / "run.json").unlink(missing_ok=True)
            try:
                for name in ("history.csv", "run.json"):
                    with _durable(target / name) as file:
                        file.write((whole / name).read_text(encoding="utf-8"))
            except BaseException:
                shutil.rmtree(target, ignore_errors=True)
                raise

    def forget(self, configuration: Configuration) -> None:
        """Remove a recorded run, so that it will be run again."""
        shutil.rmtree(self.path / folder_name(configuration), ignore_errors=True)

    def load(self) -> Records:
        """Read all runs."""
        runs, histories = [], []
        for folder in sorted(file.parent for file in self.path.glob("*/run.json")):
            run = _described(folder)
            if run is None:
                continue
            name = identity(run["configuration"])
            runs.append(
                {
                    "run": name,
                    **run["configuration"],
                    "status": run["status"],
                    "reason": run["reason"],
                }
                | run["environment"]
            )
            histories.append(
                pd.read_csv(folder / "history.csv", dtype=TYPES).assign(run=name)
            )
        if not runs:
            return Records.empty()
        history = pd.concat(histories, ignore_index=True)[["run", *COLUMNS]]
        return Records(pd.DataFrame(runs), history)


def _described(folder: Path) -> dict | None:
    """Return what ``run.json`` says; ``None`` if it is not there, or a part of the record is missing."""
    try:
        run = json.loads((folder / "run.json").read_bytes())
        whole = (folder / "history.csv").read_bytes().endswith(b"\n")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return run if whole else None


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[TextIO]:
    """Open a text file that is on the disk when it is closed."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@cache
def _machine() -> str:
    """Return what the processes have in common that see each other's numbers."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # on Linux: this boot, and this container
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _has_ended(process: int) -> bool:
    """Tell whether no process of this machine has a number; never where that cannot be asked."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def folder_name(configuration: Configuration) -> str:
    """Return the name of a run's directory: its values, made fit for a file name, and its identity."""
    values = "-".join(str(value) for value in _canonical(configuration).values())
    readable = re.sub(r"[^\w.-]+", "", values)
    return f"{readable[:60]}-{identity(configuration)}"


def identity(configuration: Configuration) -> str:
    """Return ten characters that name a run: a hash of its configuration, whatever the order of the entries.

    Raises
    ------
    ValueError
        If a value is not a text, a finite number, a truth value or ``None``.
    """
    whole = json.dumps(_canonical(configuration))
    return hashlib.sha256(whole.encode()).hexdigest()[:10]


def _canonical(configuration: Configuration) -> dict[str, Value]:
    """Return the one form that all ways of writing a configuration have in common."""
    for name, value in configuration.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, str | int | float | bool | None) or not finite:
            raise ValueError(
                f"a configuration holds only texts, finite numbers, truth values and None; got {name}={value!r}"
            )
    return {  # 1.0 is 1
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in sorted(configuration.items())
    }


def recorded(name: str) -> Records:
    """Return the recorded full runs of an experiment from ``support/results``, empty if there are none."""
    folder = RESULTS / name
    if not (folder / "runs.csv").is_file():
        return Records.empty()
    texts = {
        "run": str,
        "code": str,
        "commit": str,
        "reason": str,
    }  # even if of digits alone
    runs = pd.read_csv(folder / "runs.csv", dtype=texts)
    return Records(
        runs.fillna({"reason": ""}),
        pd.read_csv(folder / "history.csv", dtype=TYPES),
    )


def published(experiment: str | None = None) -> pd.DataFrame:
    """Return the values printed in the sources, of one experiment or of all.

    Columns: source, experiment, dataset, model, optimizer, metric, epoch, value, unit, table, and row, the place
    in ``published.csv`` by which the page of all results knows a value again.
    """
    values = pd.read_csv(RESULTS / "published.csv")
    values["row"] = values.index
    return (
        values
        if experiment is None
        else values[values["experiment"] == experiment].reset_index(drop=True)
    )


@cache
def inventory(kind: str) -> pd.DataFrame:
    """Return a list of what the sources hold, indexed by id.

    ``kind`` is one of methods, experiments, figures, claims, errata; or glossary, which has no ids.
    """
    table = pd.read_csv(RESULTS / "inventory" / f"{kind}.csv", keep_default_na=False)
    return table.set_index("id") if "id" in table else table


def oscillation(values: Iterable[float]) -> float:
    """Return the standard deviation of a curve about its trend, in the unit of its values.

    The square root of the mean of (y_{t+1} - 2 y_t + y_{t-1})^2 / 6. Second differences remove a trend as far as
    it is straight over three neighbouring values; for a line plus independent noise of variance s^2 the square
    of the result is s^2 on average.

    Raises
    ------
    ValueError
        If there are fewer than three values.
    """
    curve = [float(value) for value in values]
    if len(curve) < 3:
        raise ValueError(f"values must be three or more; got {len(curve)}")
    bends = [
        before - 2 * here + after
        for before, here, after in zip(curve, curve[1:], curve[2:], strict=False)
    ]
    return math.sqrt(sum(bend**2 for bend in bends) / (6 * len(bends)))


def compare(
    ours: pd.DataFrame, theirs: pd.DataFrame, on: Iterable[str] = ("optimizer", "metric")
) -> pd.DataFrame:
    """Set our values beside the published ones.

    Parameters
    ----------
    ours
        One row a run: the columns ``on`` and ``value``.
    theirs
        Published values (:func:`published`) with the same columns.
    on
        What names a value.

    Returns
    -------
    DataFrame
        Indexed by ``on``: ``published``, its ``row`` if ``theirs`` has that column, and of ours the ``mean``,
        the standard deviation ``sd`` over the runs and their number ``runs``. A value that one side lacks is NaN
        there.
    """
    on = list(on)
    statistics = ours.groupby(on)["value"].agg(mean="mean", sd="std", runs="size")
    return (
        theirs.set_index(on)[["value", *{"row"} & set(theirs)]]
        .rename(columns={"value": "published"})
        .join(statistics, how="outer")
    )


OUTCOMES = {True: "confirmed", False: "refuted", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """A claim of a source, what came of testing it, and the evidence; shows itself in a notebook."""

    claim: str
    hypothesis: str
    outcome: str
    evidence: str

    def __repr__(self) -> str:
        """Return the verdict as one line of text."""
        return f"{self.claim} {self.outcome}: {self.evidence}"

    def _repr_mimebundle_(self, **_: object) -> dict:
        formula = r'<span class="math notranslate nohighlight">\\(\1\\)</span>'
        hypothesis = re.sub(r"\$(.+?)\$", formula, html.escape(self.hypothesis))
        claim = f"<strong>Claim {self.claim}</strong> ({hypothesis})"
        outcome = (
            f"<strong>{html.escape(self.outcome)}</strong>. {html.escape(self.evidence)}."
        )
        kind = self.outcome.split()[0]
        return {
            "text/plain": repr(self),
            "text/html": f'<div class="verdict verdict-{kind}" id="claim-{self.claim}">'
            f"<p>{claim}: {outcome}</p></div>",
            "application/vnd.descent.verdict+json": {
                "claim": self.claim,
                "outcome": self.outcome,
                "evidence": self.evidence,
            },
        }


def verdict(claim: str, outcome: bool | str | None, evidence: str) -> Verdict:
    """Record what a page found about a claim; the last expression of its cell.

    Parameters
    ----------
    claim
        Id in the inventory, such as ``"C1"``.
    outcome
        Whether the criterion, which stands in the page before the results, holds: ``True`` gives *confirmed*,
        ``False`` *refuted*, ``None`` *undecided*. A text names what a test would need: *not tested (needs ...)*.
    evidence
        One line with the measured numbers.

    Raises
    ------
    KeyError
        If the inventory has no such claim.
    TypeError
        If the outcome is something else, NaN above all.
    """
    hypothesis = inventory("claims").loc[claim, "hypothesis"]
    if isinstance(outcome, str):
        decided = f"not tested (needs {outcome})"
    elif outcome is None or outcome in (True, False):
        decided = OUTCOMES[outcome]
    else:
        raise TypeError(f"outcome must be a truth value, None or a text; got {outcome!r}")
    return Verdict(claim, hypothesis, decided, evidence)


@dataclass(frozen=True)
class Badge:
    """How much of an experiment the recorded runs cover; shows itself in a notebook."""

    kind: str
    text: str

    def _repr_mimebundle_(self, **_: object) -> dict:
        return {
            "text/plain": f"{self.kind}: {self.text}",
            "text/html": (
                f'<p class="badge-line"><span class="record-badge record-{self.kind.split()[0]}">'
                f"{html.escape(self.kind)}</span> {html.escape(self.text)}</p>"
            ),
        }


def badge(
    recorded_runs: Records, configurations: Iterable[Configuration], *, sample: bool = False
) -> Badge:
    """Say whether the recorded runs are the whole experiment, a part, none of it, or a study on a sample.

    A diverged run is a result; one that failed with an error does not count.
    """
    wanted = {identity(configuration) for configuration in configurations}
    runs = recorded_runs.only(wanted).runs
    have = int((runs["status"] != "failed").sum()) if len(runs) else 0
    what = "runs of the study" if sample else "full runs"
    if not have:
        return Badge("not run", f"none of the {len(wanted)} {what} has been recorded yet")
    kind = "sample" if sample else "complete" if have == len(wanted) else "partial"
    where = ", ".join(sorted(set(runs["device"].dropna())))
    return Badge(kind, f"{have} of the {len(wanted)} {what} are recorded, run on {where}")
