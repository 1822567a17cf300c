"""A page alone in an empty folder, as on Colab: what is there, what the first cell installs, what is noticed."""

import json

import nbformat
import pytest
from packaging.version import Version

from tools import colab
from tools.build_book import ROOT, pages

# What `support` needs and Colab lacks. Here it lies there already, so that pip needs no network.
BESIDES = ("torchmetrics", "pooch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return colab.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    names = [*colab.TORCH, *colab.SHIPPED, *BESIDES]
    return [colab.link(names, tmp_path_factory.mktemp("shipped") / "site")]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def notebook(path, *sources):
    """Write a notebook of these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_first_cell_installs_the_package_and_changes_no_version(wheel, shipped):
    outcome = colab.run(pages()[0], shipped, wheel, first_cell=True)
    assert outcome.problem == ""
    assert outcome.added == {"descent-lectures"}


def test_a_page_sees_neither_this_tree_nor_what_colab_lacks(wheel, shipped, tmp_path):
    page = notebook(
        tmp_path / "page.ipynb",
        "import importlib.util as u, os",
        "assert os.listdir() == ['page.ipynb'], os.listdir()",
        "assert not any(map(u.find_spec, ('support', 'tools', 'pytest', 'papermill', 'sphinx')))",
    )
    outcome = colab.run(page, shipped, wheel, first_cell=False)
    assert outcome.problem.startswith("support was not installed by the page")


def test_a_page_that_fails_is_reported_with_its_error(wheel, shipped, tmp_path):
    page = notebook(tmp_path / "page.ipynb", "1 + 1", "raise RuntimeError('lost')")
    assert "lost" in colab.run(page, shipped, wheel, first_cell=False).problem
    assert "lost" not in colab.run(page, shipped, wheel, first_cell=True).problem


def test_a_version_that_an_installation_covers_is_noticed(tmp_path):
    for place, version in (("new", "2.0"), ("old", "1.0")):
        entry = tmp_path / place / f"thing-{version}.dist-info"
        entry.mkdir(parents=True)
        (entry / "METADATA").write_text(f"Name: thing\nVersion: {version}\n")
    found = []
    for number, places in enumerate((["old"], ["new", "old"], [])):
        python = colab.python_with(
            tmp_path / str(number), [tmp_path / place for place in places]
        )
        found.append(json.loads(colab.ask(python, colab.VERSIONS, tmp_path)))
    before, after, gone = found
    assert colab.changed(before, after) == ["thing: 1.0 became 2.0"]
    assert colab.changed(before, gone) == ["thing: 1.0 became nothing"]
    assert colab.changed(before, before | {"other": "1.0"}) == []


def test_what_is_shipped_is_what_colab_ships_and_no_more():
    names = set(colab.closure([*colab.TORCH, *colab.SHIPPED]))
    assert {*colab.TORCH, *colab.SHIPPED} <= names
    ours = {"descent-lectures", "torchmetrics", "pooch", "papermill", "pytest", "sphinx"}
    assert not names & ours


def test_the_oldest_torch_is_the_lower_bound_and_not_the_pin():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert set(colab.oldest()) == set(colab.TORCH)
    for name, version in colab.oldest().items():
        assert Version(version) < Version(pins[name])


def test_the_pages_of_the_brief_run_exist():
    assert {ROOT / name for name in colab.BRIEF} <= set(pages())
