"""Imports run one way: pages, sweep, training, then optim, data and models, then torch."""

import ast
import subprocess
import sys

import pytest

from tools.build_book import ROOT

PACKAGE = ROOT / "support"
OUTSIDE = {"notebooks", "lectures", "tools", "tests", "book"}
FORBIDDEN = {
    "data": {"models", "optim", "training", "sweep", "plotting"},
    "models": {"data", "optim", "training", "sweep", "plotting"},
    "optim": {"data", "models", "training", "sweep", "plotting"},
    "surfaces": {"data", "models", "training", "sweep", "plotting"},
    "tasks": {"models", "optim", "training", "sweep", "plotting"},
    "training": {"sweep", "stacks", "landscape", "plotting"},
    "landscape": {"sweep", "stacks", "plotting"},
    "stacks": {"sweep", "landscape", "plotting"},
    "sweep": {"landscape", "plotting"},
    "plotting": {"data", "models", "optim", "training", "sweep"},
    "noise": {"data", "models", "optim", "training", "sweep", "plotting", "surfaces"},
    "records": {"data", "models", "optim", "training", "sweep", "plotting", "surfaces"},
}
files = sorted(PACKAGE.rglob("*.py"))


def modules(path):
    """Return the full names of all modules that a file imports, also inside functions."""
    found = set()
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def own(path):
    """Return the first part of a file's place in the package: data, for data/mnist.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def reached(name):
    """Return what a module of the package imports, directly and through the package."""
    seen, waiting = set(), [name]
    while waiting:
        part = waiting.pop()
        for path in (path for path in files if own(path) == part):
            new = modules(path) - seen
            seen |= new
            waiting += [m.split(".")[1] for m in new if m.startswith("support.")]
    return seen


@pytest.mark.parametrize("name", sorted({own(path) for path in files}))
def test_no_module_imports_a_page_or_what_surrounds_the_package(name):
    assert not {module.split(".")[0] for module in reached(name)} & OUTSIDE


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_imports_run_one_way(name):
    used = {
        module.split(".")[1] for module in reached(name) if module.startswith("support.")
    }
    assert not used & FORBIDDEN[name]


def test_records_know_no_torch():
    assert not [module for module in reached("records") if module.startswith("torch")]
    program = "import sys; import support.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
