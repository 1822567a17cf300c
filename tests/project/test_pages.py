"""Every page is in the contents, and every notebook keeps the conventions."""

import ast
import json
import re
from functools import cache
from statistics import median

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from support import records
from tools import address, outputs
from tools.build_book import FROM_OUTPUTS, GENERATED, ROOT, pages

LONGEST_CELL, MEDIAN_CELL = 30, 8  # lines
LARGEST_OUTPUT = 20_000  # bytes
TAGS = {
    "colab-setup",
    "hide-input",
    "hide-output",
    "keep_output",
    "nbval-check-output",
    "nbval-ignore-output",
    "optimizers",
    "parameters",
    "remove-output",
    "solution",
    "student-assert",
}
DRAWING = {
    "plt": {"figure", "subplots", "subplot_mosaic", "plot"},
    "plotting": {"contours", "curves", "trajectories"},
}
names = [str(page.relative_to(ROOT)) for page in pages()]
lectures = [name for name in names if name.startswith("lectures/")]
experiments = [name for name in names if name.startswith("notebooks/")]


@cache
def read(name):
    return nbformat.read(ROOT / name, as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def text(name):
    return "\n".join(cell.source for cell in read(name).cells if cell.cell_type != "code")


def entries(node):
    """Yield every page that the contents name."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("root", "file") if key in node)
        for value in node.values():
            yield from entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from entries(value)


def test_the_contents_name_every_page_once_and_no_other():
    listed = list(entries(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    there = [page.relative_to(ROOT).with_suffix("") for page in pages()]
    there += [page.relative_to(ROOT).with_suffix("") for page in ROOT.glob("book/*.md")]
    assert len(listed) == len(set(listed))
    generated = {f"book/{name}" for name in [*FROM_OUTPUTS, *GENERATED]}
    assert set(listed) == {str(page) for page in there} | generated


@pytest.mark.parametrize("name", names)
def test_a_page_is_valid_and_for_any_python(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == outputs.METADATA
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", names)
def test_the_first_code_cell_installs_on_colab(name):
    first = code_cells(name)[0]
    assert first.source == code_cells(names[0])[0].source
    assert f'"git+https://github.com/{address.current()}"' in first.source
    assert tags(first) == {"colab-setup", "hide-input"}


@pytest.mark.parametrize("name", names)
def test_outputs_are_kept_where_they_are_compared_and_nowhere_else(name):
    assert outputs.problems(read(name)) == []
    for cell in code_cells(name):
        assert "keep_output" in tags(cell) or "nbval-check-output" not in tags(cell), (
            cell.id
        )


@pytest.mark.parametrize("name", names)
def test_no_kept_output_is_large(name):
    for cell in code_cells(name):
        for output in cell.outputs:
            assert len(json.dumps(output).encode()) <= LARGEST_OUTPUT, cell.id


@pytest.mark.parametrize("name", names)
def test_code_cells_fit_a_screen(name):
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code_cells(name)}
    assert {k: v for k, v in lengths.items() if v > LONGEST_CELL} == {}


@pytest.mark.parametrize("name", lectures)
def test_most_code_cells_of_a_lecture_are_short(name):
    assert median(len(cell.source.splitlines()) for cell in code_cells(name)) <= MEDIAN_CELL


@pytest.mark.parametrize("name", names)
def test_tags_are_known(name):
    found = {tag for cell in read(name).cells for tag in tags(cell)}
    assert found <= TAGS


@pytest.mark.parametrize("name", names)
def test_what_a_page_covers_is_in_the_inventory(name):
    kinds = ("methods", "experiments", "figures", "claims", "errata")
    known = {identity for kind in kinds for identity in records.inventory(kind).index}
    covered = [one for cell in read(name).cells for one in cell.metadata.get("covers", [])]
    assert set(covered) <= known


class Calls(ast.NodeVisitor):
    """What a cell draws with, and which functions it defines that draw."""

    def __init__(self, drawing_functions):
        self.drawing_functions = drawing_functions
        self.draws = False

    def visit_FunctionDef(self, node):
        inside = Calls(self.drawing_functions)
        for line in node.body:
            inside.visit(line)
        if inside.draws:
            self.drawing_functions.add(node.name)

    def visit_Call(self, node):
        match node.func:
            case ast.Attribute(value=ast.Name(id=module), attr=attribute):
                self.draws |= attribute in DRAWING.get(module, ())
            case ast.Name(id=function):
                self.draws |= function in self.drawing_functions
        self.generic_visit(node)


def drawing_cells(cells):
    """Return the cells that draw when they are executed."""
    functions, found, plain = set(), [], TransformerManager().transform_cell
    for cell in cells:
        calls = Calls(functions)
        calls.visit(ast.parse(plain(cell.source)))
        if calls.draws:
            found.append(cell)
    return found


@pytest.mark.parametrize("name", names)
def test_every_figure_says_what_is_to_be_seen(name):
    for cell in drawing_cells(code_cells(name)):
        alternative = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alternative) > 20, cell.id


def test_a_figure_is_found_wherever_it_is_drawn():
    sources = [
        "import matplotlib.pyplot as plt",
        "def panel():\n    fig, ax = plt.subplots()",
        "for _ in range(2):\n    panel()",
        "plotting.curves(frame);",
        "plotting.style()",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    assert drawing_cells(cells) == cells[2:4]


@pytest.mark.parametrize("name", lectures)
def test_a_lecture_has_three_exercises_with_solutions(name):
    exercises = re.findall(
        r":::\{exercise(?:-start)?\}[^\n]*\n(?::[^\n]*\n)*?:label: (\S+)", text(name)
    )
    solutions = re.findall(r":::\{solution(?:-start)?\} (\S+)", text(name))
    assert len(exercises) >= 3
    assert sorted(exercises) == sorted(solutions)


@pytest.mark.parametrize("name", experiments)
def test_an_experiment_has_one_cell_of_parameters(name):
    assert sum("parameters" in tags(cell) for cell in code_cells(name)) == 1


@pytest.mark.parametrize("name", names)
def test_directives_have_colons_so_that_colab_shows_their_text(name):
    assert "```{" not in text(name)
