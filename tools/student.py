"""Write the student edition into ``dist/student``: the notebooks without solutions and without outputs.

In the place of a solution stands a cell that leaves open (``...``) what the check below it reads; the check fails
until it is filled in, and right.
"""

import ast
import re
import shutil
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from tools.build_book import ROOT, pages

STUDENT = ROOT / "dist" / "student"
START = re.compile(r":::\{solution-start\} \S+\n:class: dropdown\n:::\s*$")
END = re.compile(r":::\{solution-end\}\n:::\s*$")


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Tell whether a cell has a tag."""
    return tag in cell.metadata.get("tags", [])


def student_edition(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook without solutions and outputs, with a cell for the answer to each exercise.

    Raises
    ------
    ValueError
        If a check reads nothing that the solution before it defines, so that it cannot fail.
    """
    edition = nbformat.v4.new_notebook(metadata=notebook.metadata)
    removed: set[str] = set()  # what the solution of this exercise defines
    for cell in notebook.cells:
        if tagged(cell, "solution"):
            removed |= names(cell, ast.Store)
            continue
        cell = nbformat.from_dict(cell)
        cell.source = END.sub("", START.sub("", cell.source)).rstrip()
        if tagged(cell, "student-assert"):
            wanted = removed & names(cell, ast.Load) - names(cell, ast.Store)
            if not wanted:
                raise ValueError(f"cell {cell.id} reads nothing of the solution before it")
            text = "\n".join(f"{name} = ...  # your answer" for name in sorted(wanted))
            edition.cells.append(nbformat.v4.new_code_cell(text, id=f"answer-{cell.id}"))
            removed = set()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.source:
            edition.cells.append(cell)
    return edition


def names(cell: nbformat.NotebookNode, context: type[ast.expr_context]) -> set[str]:
    """Return the names that a cell of code reads (``ast.Load``) or binds outside of functions (``ast.Store``)."""
    if cell.cell_type != "code":
        return set()
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    found = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }
    if context is ast.Store:
        found |= {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
    return found


def main(folder: Path = STUDENT) -> None:
    """Write the student edition of every page."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        target = folder / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        edition = student_edition(nbformat.read(page, as_version=4))
        nbformat.write(edition, target)
    print(f"The notebooks without solutions: {folder}")


if __name__ == "__main__":
    main()
