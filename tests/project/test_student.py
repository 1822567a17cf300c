"""The student edition: nothing of the solutions is left, and the checks fail until they are solved."""

import nbformat
import pytest
from nbclient import NotebookClient

from tools import student
from tools.build_book import ROOT, pages
from tools.student import student_edition, tagged

PAGE = ROOT / "lectures" / "gradient_descent.ipynb"


def read(page):
    return nbformat.read(page, as_version=4)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_edition_has_the_page_without_solutions(page):
    notebook, edition = read(page), student_edition(read(page))
    nbformat.validate(edition)
    text = "\n".join(cell.source for cell in edition.cells)
    assert "{solution" not in text
    assert not any(tagged(cell, "solution") for cell in edition.cells)
    assert not any(cell.get("outputs") for cell in edition.cells)
    checks = [cell.source for cell in notebook.cells if tagged(cell, "student-assert")]
    kept = [cell for cell in edition.cells if tagged(cell, "student-assert")]
    assert [cell.source for cell in kept] == checks
    for place in (edition.cells.index(cell) for cell in kept):
        assert edition.cells[place - 1].id.startswith("answer-")


def test_a_check_that_needs_no_solution_is_refused():
    cells = [
        nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["solution"]}),
        nbformat.v4.new_code_cell("assert 1 == 1", metadata={"tags": ["student-assert"]}),
    ]
    with pytest.raises(ValueError, match="reads nothing of the solution"):
        student_edition(nbformat.v4.new_notebook(cells=cells))


def test_the_edition_is_written(tmp_path):
    student.main(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.ipynb"))
    assert written == [page.relative_to(ROOT) for page in pages()]


def test_checks_fail_until_they_are_solved(monkeypatch):
    """The second of three exercises is solved, as the page solves it: its check passes, the others fail."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook, edition = read(PAGE), student_edition(read(PAGE))
    marked = [
        cell for cell in notebook.cells if tagged(cell, "solution") or checks_in(cell)
    ]
    first, second, _ = [i for i, cell in enumerate(marked) if checks_in(cell)]
    code = [cell.source for cell in marked[first + 1 : second] if cell.cell_type == "code"]
    answers = [cell for cell in edition.cells if cell.id.startswith("answer-")]
    answers[1].source = "\n".join(code)
    client = NotebookClient(edition, timeout=120, allow_errors=True)
    client.execute(cwd=str(PAGE.parent))
    failed = {
        cell.id
        for cell in edition.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    }
    unsolved = [cell.id for cell in edition.cells if tagged(cell, "student-assert")]
    assert failed == {unsolved[0], unsolved[2]}


def checks_in(cell):
    return tagged(cell, "student-assert")
