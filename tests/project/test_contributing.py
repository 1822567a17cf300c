"""The worked examples of CONTRIBUTING.md, carried out in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from tools.address import files
from tools.build_book import QUIET, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|toml|diff)\n(?:# |--- )(\S+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the tree in which every example has been written down as the text says."""
    root = tmp_path_factory.mktemp("tree")
    for path in files():
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for kind, name, content in BLOCKS:
        target = root / name
        match kind:
            case "python":
                assert not target.exists(), f"{name} is there already"
                target.write_text(content, encoding="utf-8")
            case "toml":
                target.write_text(f"{target.read_text(encoding='utf-8')}\n{content}")
            case "diff":
                target.write_text(patched(target.read_text(encoding="utf-8"), content))
    return root


def patched(text, difference):
    """Return a text with changes made; each part of the difference stands once in it."""
    for part in difference.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def call(tree, *arguments):
    """Run Python in the copy and return what it prints; it must succeed."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | QUIET | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def write_page(tree, script, name, after):
    """Write a page by its script, and put it into the contents behind another page."""
    call(tree, script)
    contents = tree / "_toc.yml"
    entry = f"      - file: {after}\n"
    text = patched(contents.read_text(), f" {entry}+      - file: {name}\n")
    contents.write_text(text)
    call(tree, "-m", "ruff", "format", "-q", f"{name}.ipynb")
    call(tree, "-m", "ruff", "check", f"{name}.ipynb")
    call(tree, "-m", "tools.outputs", f"{name}.ipynb")


def check_page(tree, name):
    """Let the tests of the pages look at one, and at the contents."""
    chosen = f"{name} or contents"
    said = call(tree, "-m", "pytest", "-q", "tests/project/test_pages.py", "-k", chosen)
    assert " passed" in said


def test_every_example_is_there():
    names = [name for _, name, _ in BLOCKS]
    assert {"new_lecture.py", "new_experiment.py", "support/optim/__init__.py"} <= set(
        names
    )


def test_the_lecture_passes_the_checks_and_its_bound_is_measured(tree):
    write_page(tree, "new_lecture.py", "lectures/sign_steps", "lectures/gradient_descent")
    check_page(tree, "sign_steps")
    cells = nbformat.read(tree / "lectures/sign_steps.ipynb", as_version=4).cells
    kept = [cell.outputs for cell in cells if cell.get("outputs")]
    assert [[output.text for output in outputs] for outputs in kept] == [
        ["never above the bound: True\n"]
    ]


def test_the_experiment_passes_the_checks_and_runs_with_its_parameters(tree):
    name = "notebooks/digits_batches"
    write_page(tree, "new_experiment.py", name, "notebooks/mnist_lenet")
    check_page(tree, "digits_batches")
    said = call(tree, "-m", "tools.run", "digits_batches", "-p", "seeds", "[0]")
    executed = nbformat.read(said.rpartition("Done: ")[2].strip(), as_version=4)
    table = executed.cells[-2].outputs[0].data["text/plain"]
    assert [row.split()[0] for row in table.splitlines()[2:]] == ["25", "100"]
    assert all(row.split()[-1] == "1" for row in table.splitlines()[2:]), "one seed"


def test_the_method_takes_its_steps_and_its_bug_is_found(tree):
    new = ["support/optim/sign_descent.py", "tests/support/optim/test_sign_descent.py"]
    call(tree, "-m", "ruff", "check", *new, "support/optim/__init__.py")
    call(tree, "-m", "ruff", "format", "--check", *new)
    assert "2 passed" in call(tree, "-m", "pytest", "-q", new[1])
    build = "from torch import nn; from support import optim; print(optim.make('sign_descent', nn.Linear(1, 1)))"
    assert "SignDescent" in call(tree, "-c", build)
    call(tree, "-m", "tools.mutants", "--only", "sign_descent")  # fails if the bug survives
