"""Every page is in the contents, and every notebook keeps the conventions."""

import ast
import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from markdown_it import MarkdownIt

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
# Their scales above the smallest are made for a GPU: Colab shall open them on one.
ON_A_GPU = {
    "batchnorm",
    "cifar10_resnet18",
    "cluttered_mnist",
    "div2k_superresolution",
    "imagenet100_resnet18",
    "voc2012_fcn32s",
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
    asked = outputs.GPU if Path(name).stem in ON_A_GPU else {}
    assert notebook.metadata == outputs.METADATA | asked
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


def opening(name):
    """Return the note under the title of a page as one line."""
    note = re.search(
        r":::\{admonition\} Before you start\n(.*?)\n:::", text(name), re.DOTALL
    )
    assert note, "no note 'Before you start'"
    return " ".join(note[1].split())


@pytest.mark.parametrize("name", names)
def test_a_page_says_what_it_needs_and_how_long_it_takes(name):
    assert re.search(r"\b(need|needs|nothing)\b", opening(name)), opening(name)
    assert re.search(r"Reading takes about \d+ minutes", opening(name)), opening(name)


@pytest.mark.parametrize("name", names)
def test_a_page_says_what_comes_next(name):
    (following,) = re.findall(
        r"^\*\*Next\.\*\*.*?(?=\n\n|\Z)", text(name), re.MULTILINE | re.DOTALL
    )
    assert re.search(r"\]\([\w/.]+\.(ipynb|md)\)", following), following


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


def hidden(source):
    """Return what a reader of plain Markdown, as on Colab, does not see, or sees as code."""
    definitions = {}
    tokens = list(flat(MarkdownIt("commonmark").parse(source, definitions)))
    found = [f"definition of a link: {name}" for name in definitions.get("references", ())]
    for token, following in pairwise([*tokens, None]):
        if token.type == "link_open" and following.type == "link_close":
            found.append(f"link without words: {token.attrs['href']}")
        elif token.type == "fence" and token.info.startswith("{"):
            found.append(f"directive as code: {token.info}")
        elif token.type.startswith("html") and "<!--" in token.content:
            found.append(f"comment: {token.content}")
        elif token.type == "code_block" and ":::" in token.content:
            found.append(f"directive as code: {token.content}")
    return found


def flat(tokens):
    """Yield tokens and all that is inside them."""
    for token in tokens:
        yield token
        yield from flat(token.children or ())


@pytest.mark.parametrize("name", names)
def test_colab_shows_all_text(name):
    found = {cell.id: hidden(cell.source) for cell in read(name).cells if is_text(cell)}
    assert {key: what for key, what in found.items() if what} == {}


def is_text(cell):
    return cell.cell_type == "markdown"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("See [](momentum.ipynb).", "link without words: momentum.ipynb"),
        ("```{note}\nText $x$.\n```", "directive as code: {note}"),
        ("~~~{math}\nx\n~~~", "directive as code: {math}"),
        ("A\n\n    :::{note}\n    Text.\n    :::", "directive as code: :::{note}"),
        ("Text <!-- more --> text", "comment: <!-- more -->"),
        ("[note]: # (more)", "definition of a link: NOTE"),
    ],
)
def test_what_colab_would_hide_is_found(source, complaint):
    (found,) = hidden(source)
    assert found.startswith(complaint)
    assert (
        hidden("[Momentum](momentum.ipynb)\n\n:::{note}\nText\n:::\n\n```python\n1\n```")
        == []
    )
