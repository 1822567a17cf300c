"""Execute pages as on Colab: ``make colab``, or of some, with ``ARGS="lectures/adam.ipynb --torch oldest"``.

Each page lies alone in an empty folder, with a Python of its own that has what Colab ships and nothing else.
The first cell of the page installs the package, from a wheel of this tree. Afterwards every version that was
there before must be the same.
"""

import argparse
import importlib.metadata as metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement

from tools.address import files
from tools.build_book import QUIET, ROOT, TIMEOUT, pages

BUILD = ROOT / "_build" / "colab"
TORCH = ("torch", "torchvision")
SHIPPED = (
    *("numpy", "pandas", "matplotlib", "seaborn", "scikit-learn", "tqdm"),
    *("ipykernel", "pip"),
)
BRIEF = ("lectures/gradient_descent.ipynb", "notebooks/mnist_lenet.ipynb")
WORKERS = 2
VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({name: m.version(name) for name in {d.metadata["Name"] for d in m.distributions()}}))
"""
WHERE = "import support; print(support.__file__)"


@dataclass(frozen=True)
class Outcome:
    """What became of a page: the seconds it took, what was installed, and what went wrong."""

    seconds: float
    added: set[str] = field(default_factory=set)
    problem: str = ""


def build_wheel(target: Path) -> Path:
    """Build the wheel of what is in git into a folder, without network, and return it."""
    with tempfile.TemporaryDirectory() as source:
        for path in files():
            copy = Path(source) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        arguments = ["wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        pip(Path(sys.executable), *arguments, "-w", str(target), source)
    (wheel,) = target.glob("descent_lectures-*.whl")
    return wheel


def pip(python: Path, *arguments: str) -> None:
    """Run pip with this Python; stop if it fails."""
    subprocess.run([str(python), "-m", "pip", *arguments], env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a process that must not find this tree."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "SUPPORT_DATA"}}
    return kept | QUIET | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more


def closure(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Return distributions that are installed here, and all that they need, by name."""
    found, waiting = {}, [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower().replace("_", "-"), frozenset(wanted.extras))
        if key in found:
            continue
        found[key] = metadata.distribution(wanted.name)
        for line in found[key].requires or ():
            need = Requirement(line)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                waiting.append(need)
    return {name: distribution for (name, _), distribution in found.items()}


def link(names: Iterable[str], folder: Path) -> Path:
    """Fill a folder with links to distributions that are installed here, and to all that they need."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for distribution in closure(names).values():
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def python_with(folder: Path, places: Iterable[Path]) -> Path:
    """Make a virtual environment that also sees what lies in these places; return its Python."""
    venv.create(folder, clear=True, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shipped.pth").write_text("".join(f"{place}\n" for place in places))
    return folder / "bin" / "python"


def oldest() -> dict[str, str]:
    """Return the lower bounds of torch and torchvision in ``pyproject.toml``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    bounds = [Requirement(line) for line in project["project"]["dependencies"]]
    found = {bound.name: bound for bound in bounds if bound.name in TORCH}
    return {name: next(iter(found[name].specifier)).version for name in TORCH}


def places(age: str) -> list[Path]:
    """Return where lies what Colab ships, with the oldest or the newest torch.

    The newest is the one that ``constraints.txt`` pins and that is installed here. The oldest is downloaded
    once, with what it needs (3 GB, 6 GB on the disk).
    """
    if age == "newest":
        return [link([*TORCH, *SHIPPED], BUILD / "newest")]
    shipped = link(SHIPPED, BUILD / "shipped")
    wanted = [f"{name}=={version}" for name, version in oldest().items()]
    folder = BUILD / f"torch-{oldest()['torch']}"
    ready = folder / ".ready"
    if not ready.is_file():
        print(f"Installing {' and '.join(wanted)} into {folder}", flush=True)
        pip(python_with(folder, [shipped]), "install", "--quiet", *wanted)
        ready.touch()
    return [*folder.glob("lib/python*/site-packages"), shipped]


def ask(python: Path, code: str, folder: Path) -> str:
    """Return what a Python prints in a folder."""
    ran = subprocess.run(
        [str(python), "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return (ran.stdout or ran.stderr).strip()


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what was there before and is not the same now."""
    return [
        f"{name}: {version} became {after.get(name, 'nothing')}"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def only_first_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Cut a notebook off behind its first code cell."""
    kinds = [cell.cell_type for cell in notebook.cells]
    notebook.cells = notebook.cells[: kinds.index("code") + 1]
    return notebook


def run(page: Path, shipped: Iterable[Path], wheel: Path, first_cell: bool) -> Outcome:
    """Execute a page, or its first code cell only, with nothing but itself around it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "content"
        folder.mkdir()
        python = python_with(Path(name) / "python", shipped)
        copy = Path(shutil.copy(page, folder))
        before = json.loads(ask(python, VERSIONS, folder))
        notebook = nbformat.read(copy, as_version=4)
        notebook = only_first_cell(notebook) if first_cell else notebook
        try:
            variables = environment(SUPPORT_SOURCE=str(wheel))
            # cleanup_kc: end the kernel, though it was given
            client(notebook, python).execute(env=variables, cleanup_kc=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
            return Outcome(time.perf_counter() - start, problem=text)
        after = json.loads(ask(python, VERSIONS, folder))
        where = ask(python, WHERE, folder)
        problems = changed(before, after)
        if not Path(where).is_relative_to(python.parent.parent):
            problems.append(f"support was not installed by the page: {where}")
    seconds = time.perf_counter() - start
    return Outcome(seconds, set(after) - set(before), "\n".join(problems))


def client(notebook: nbformat.NotebookNode, python: Path) -> NotebookClient:
    """Return what executes a notebook with this Python in the folder ``content`` beside it."""
    root = python.parents[2]
    spec = root / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    command.append("--log-level=ERROR")
    spec.write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python"})
    )
    specs = KernelSpecManager(kernel_dirs=[str(spec.parents[1])])
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    resources = {"metadata": {"path": str(root / "content")}}
    return NotebookClient(notebook, timeout=TIMEOUT, km=kernel, resources=resources)


def run_all(chosen: Sequence[Path], age: str, wheel: Path, first_cell: bool) -> list[str]:
    """Execute pages with the oldest or the newest torch, say how it went, and return those that failed."""
    shipped = places(age)
    with tempfile.TemporaryDirectory() as name:
        python = python_with(Path(name), shipped)
        torch = ask(python, "import torch; print(torch.__version__)", Path(name))
    what = "the first cell of each" if first_cell else "whole"
    print(f"torch {torch}: {len(chosen)} page(s), {what}", flush=True)
    one = partial(run, shipped=shipped, wheel=wheel, first_cell=first_cell)
    failed, added = [], set()
    with ThreadPoolExecutor(WORKERS) as pool:
        for page, outcome in zip(chosen, pool.map(one, chosen), strict=True):
            name = page.relative_to(ROOT).as_posix()
            verdict = f"FAILED\n{outcome.problem}" if outcome.problem else "ok"
            print(f"  {name}: {outcome.seconds:.0f} s, {verdict}", flush=True)
            added |= outcome.added
            failed += [f"{name} (torch {torch})"] if outcome.problem else []
    print(f"  installed besides: {', '.join(sorted(added))}")
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="tools/colab.py", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="all pages by default")
    parser.add_argument("--torch", choices=("oldest", "newest"), help="both by default")
    parser.add_argument("--first-cell", action="store_true", help="no other cell")
    brief = f"with the newest torch the first cell of every page, and whole {BRIEF}"
    parser.add_argument("--brief", action="store_true", help=brief)
    options = parser.parse_args(arguments)
    chosen = [page.resolve() for page in options.pages] or pages()
    if strangers := [str(page) for page in chosen if page not in pages()]:
        sys.exit(f"no pages of the book: {', '.join(strangers)}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        if options.brief:
            failed = run_all(chosen, "newest", wheel, first_cell=True)
            whole = [ROOT / name for name in BRIEF]
            failed += run_all(whole, "newest", wheel, first_cell=False)
        else:
            ages = [options.torch] if options.torch else ["oldest", "newest"]
            failed = [
                name
                for age in ages
                for name in run_all(chosen, age, wheel, options.first_cell)
            ]
    if failed:
        sys.exit(f"{len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
