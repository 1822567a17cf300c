"""The wheel carries the results, and installing it as Colab does changes no version of what is there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest

from tools.address import files
from tools.build_book import ROOT, pages

VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions()}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of what is in git, without network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(target), str(source))
    (built,) = target.glob("descent_lectures-*.whl")
    return built


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def test_the_wheel_holds_the_package_and_its_results_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in files() if path.is_file()}
    package = {name for name in package if name.startswith("support/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert {
        "support/results/published.csv",
        "support/results/inventory/claims.csv",
    } <= names


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Path:
    """Return the Python of an environment that has all that is installed here, except the project itself."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    shipped = folder / "shipped"
    shipped.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("descent_lectures", "__editable__")):
            (shipped / entry.name).symlink_to(entry)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "shipped.pth").write_text(f"{shipped}\n")
    return folder / "venv" / "bin" / "python"


def output_of(python, *arguments, **environment):
    """Run a Python away from this tree, where pip reaches nothing, and return what it prints."""
    ran = subprocess.run(
        [str(python), *arguments],
        cwd=python.parent,
        env=os.environ | {"PIP_NO_INDEX": "1", "PYTHONPATH": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_first_cell_installs_and_changes_no_version(wheel, colab, tmp_path):
    notebook = nbformat.read(pages()[0], as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    script = tmp_path / "cell.ipy"
    script.write_text(f"{cell}\nimport support\nprint(support.__file__)\n")
    before = json.loads(output_of(colab, "-c", VERSIONS))
    assert "descent-lectures" not in before

    said = output_of(colab, "-m", "IPython", str(script), SUPPORT_SOURCE=str(wheel))

    after = json.loads(output_of(colab, "-c", VERSIONS))
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"descent-lectures"}
    assert str(colab.parent.parent) in said.splitlines()[-1]
    count = "from support import records; print(len(records.published()))"
    assert output_of(colab, "-c", count).strip() == "671"
    nowhere = output_of(colab, "-m", "IPython", str(script), SUPPORT_SOURCE="/nowhere")
    assert str(colab.parent.parent) in nowhere.splitlines()[-1]
