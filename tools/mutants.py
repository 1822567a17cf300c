"""Put known bugs into the optimizers, one at a time, and see whether the tests find them: ``make mutants``.

Each mutant of ``tools/mutants.toml`` replaces a text that occurs exactly once in a file. The test files that it
names are run in a copy of the package with that bug. If none fails the mutant survives: a test is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".toml")
TABLE = ROOT / "support" / "results" / "mutants.csv"
TESTS = Path("tests/support/optim")
COPIED = ("support", "tests/support", "pyproject.toml")
TIMEOUT = 900  # seconds
WORKERS = 2
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SUPPORT_PROGRESS": "0"}
# Fails every test of a copy that does not import the package of that copy.
CHECK = """
from pathlib import Path

import support.optim

assert Path(support.optim.__file__).is_relative_to(Path(__file__).parent), support.optim.__file__
"""


class MutantError(Exception):
    """A mutant that cannot be made, or a test run that says nothing about it."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in ``file`` the text ``old`` becomes ``new``, and the files ``tests`` should notice."""

    bug: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    def text(self, root: Path = ROOT) -> str:
        """Return the file with the bug.

        Raises
        ------
        MutantError
            If the text does not occur exactly once, or the file would not be Python afterwards.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (count := text.count(self.old)) != 1:
            raise MutantError(
                f"{self.bug}: the text occurs {count} times in {self.file}, not once:\n{self.old}"
            )
        changed = text.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise MutantError(f"{self.bug}: {self.file} is not Python: {error}") from error
        return changed


@dataclass(frozen=True)
class Outcome:
    """What became of a copy: which test failed first, ``None`` if none did, and how long it took."""

    failed: str | None
    seconds: float


def mutants(path: Path = LIST) -> list[Mutant]:
    """Return the mutants of the list."""
    files = tomllib.loads(path.read_text(encoding="utf-8"))["file"]
    return [
        Mutant(
            mutant["bug"],
            file["path"],
            mutant["old"].strip("\n"),
            mutant["new"].strip("\n"),
            tuple(mutant.get("tests", file.get("tests", ()))),
        )
        for file in files
        for mutant in file["mutant"]
    ]


@contextmanager
def copy(root: Path = ROOT) -> Iterator[Path]:
    """Open a copy of what the tests need, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        target = Path(folder).resolve()
        for name in COPIED:
            if (root / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / name, target / name, ignore=ignored)
            else:
                shutil.copyfile(root / name, target / name)
        (target / "conftest.py").write_text(CHECK)
        yield target


def check(tree: Path, tests: Sequence[str] = (), timeout: float = TIMEOUT) -> Outcome:
    """Run the tests of the optimizers in a copy of the project until one fails.

    Raises
    ------
    MutantError
        If the tests could not be run: something could not be imported, or no test was found.
    """
    files = [str(TESTS / name) for name in tests] or [str(TESTS)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--hypothesis-seed=0", *files]
    environment = {k: v for k, v in os.environ.items() if k != "SUPPORT_DATA"}
    began = time.perf_counter()
    try:
        ran = subprocess.run(
            command,
            cwd=tree,
            env=environment | THREADS | {"PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(f"no end after {timeout:.0f} s", timeout)
    seconds = time.perf_counter() - began
    if ran.returncode not in (0, 1):
        raise MutantError(f"the tests could not be run:\n{ran.stdout}\n{ran.stderr}")
    return Outcome(first_failure(ran.stdout) if ran.returncode else None, seconds)


def first_failure(output: str) -> str:
    """Return the file and the name of the first test that failed, from what pytest printed."""
    found = re.search(
        r"^(?:FAILED|ERROR) \S*?([\w.]+)::(.+?)(?: - |$)", output, re.MULTILINE
    )
    if not found:
        raise MutantError(f"pytest failed but names no test:\n{output}")
    return f"{found[1]}::{found[2]}"


def attempt(mutant: Mutant, root: Path = ROOT) -> Outcome:
    """Test a copy with this bug."""
    with copy(root) as tree:
        (tree / mutant.file).write_text(mutant.text(tree), encoding="utf-8")
        try:
            return check(tree, mutant.tests)
        except MutantError as error:
            raise MutantError(f"{mutant.bug}: {error}") from error


def run(chosen: Sequence[Mutant], root: Path = ROOT) -> pd.DataFrame:
    """Test each mutant, all of them on the project as it is at the start, and return one row each.

    Raises
    ------
    MutantError
        If the tests fail without a bug, or a mutant cannot be tested.
    """
    with copy(root) as tree:
        for mutant in chosen:
            mutant.text(tree)
        files = sorted({name for mutant in chosen for name in mutant.tests})
        every = any(not mutant.tests for mutant in chosen)
        healthy = check(tree, () if every else files)
        if healthy.failed:
            raise MutantError(f"without any bug, {healthy.failed} fails")
        print(f"without a bug: all tests pass, {healthy.seconds:.0f} s", flush=True)
        with ThreadPoolExecutor(WORKERS) as pool:
            outcomes = pool.map(partial(attempt, root=tree), chosen)
            rows = [row(*both) for both in zip(chosen, outcomes, strict=True)]
    return pd.DataFrame(rows)


def row(mutant: Mutant, outcome: Outcome) -> dict:
    """Print what became of a mutant, and return its row of the table."""
    found = f"found by {outcome.failed}" if outcome.failed else "SURVIVES"
    print(f"{mutant.bug}: {found}, {outcome.seconds:.0f} s", flush=True)
    return {
        "mutant": mutant.bug,
        "file": mutant.file,
        "killed": outcome.failed is not None,
        "by": outcome.failed or "",
    }


def write(
    table: pd.DataFrame, known: Sequence[Mutant], target: Path = TABLE
) -> pd.DataFrame:
    """Write the rows into the table, in the order of the list; mutants not tested this time keep their rows."""
    if target.is_file():
        old = pd.read_csv(target, keep_default_na=False)
        table = pd.concat([old[~old["mutant"].isin(table["mutant"])], table])
    order = [mutant.bug for mutant in known if mutant.bug in set(table["mutant"])]
    table = table.set_index("mutant").loc[order].reset_index()
    table.to_csv(target, index=False, lineterminator="\n")
    return table


def main() -> None:
    """Test the mutants, write ``support/results/mutants.csv``, and fail if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the file or the text of a bug")
    given = parser.parse_args()
    known = mutants()
    wanted = given.only.lower()
    chosen = [m for m in known if wanted in m.file.lower() or wanted in m.bug.lower()]
    if not chosen:
        parser.error(f"no mutant has {given.only!r} in its file or text")
    try:
        table = write(run(chosen), known)
    except MutantError as error:
        sys.exit(str(error))
    survivors = list(table.loc[~table["killed"].astype(bool), "mutant"])
    print(f"\n{len(table) - len(survivors)} of {len(table)} mutants are found: {TABLE}")
    if survivors:
        sys.exit("survivors: " + "; ".join(survivors))


if __name__ == "__main__":
    main()
