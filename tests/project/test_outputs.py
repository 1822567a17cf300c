"""``make outputs`` keeps what is tagged, and writes a page always in the same form."""

import nbformat
import pytest
from nbformat import v4

from support import plotting
from tools import outputs


def cell(*tags, printed=(), count=1):
    """Return an executed cell with these tags, which printed these pieces."""
    pieces = [v4.new_output("stream", name="stdout", text=text) for text in printed]
    return v4.new_code_cell(
        "print()",
        id="-".join(tags) or "plain",
        metadata={"tags": list(tags), "execution": {}},
        outputs=pieces,
        execution_count=count,
    )


def test_only_tagged_cells_keep_their_outputs():
    executed = v4.new_notebook(
        cells=[cell(printed=["1"]), cell("keep_output", printed=["2\n", "3\n"])],
        metadata={"papermill": {}},
    )
    tidied = outputs.tidy(v4.new_notebook(cells=[cell(), cell("keep_output")]), executed)
    assert [one.outputs for one in tidied.cells] == [
        [],
        [{"output_type": "stream", "name": "stdout", "text": "2\n3\n"}],
    ]
    assert tidied.metadata == outputs.METADATA
    assert not outputs.problems(tidied)
    assert [one.execution_count for one in tidied.cells] == [None, 1]
    assert not any("execution" in one.metadata for one in tidied.cells)


def test_the_numbers_behind_a_table_stay_out_of_git():
    executed = cell("keep_output")
    metadata = {plotting.COMPARISON: [{"row": 3}], "isolated": True}
    executed.outputs = [
        v4.new_output("display_data", {"text/plain": "1"}, metadata=metadata)
    ]
    (kept,) = outputs.joined(executed.outputs)
    assert kept.metadata == {"isolated": True}
    assert kept.data == {"text/plain": "1"}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (cell(printed=["1"], count=None), "not tagged keep_output"),
        (cell("keep_output"), "holds no outputs"),
        (cell(), "has an execution count"),
        (cell("keep_output", printed=["1"], count=None), "has no execution count"),
    ],
)
def test_what_does_not_belong_in_git_is_found(wrong, complaint):
    (problem,) = outputs.problems(v4.new_notebook(cells=[wrong]))
    assert problem.startswith("cell 0 (")
    assert complaint in problem


def test_a_page_is_written_only_when_it_changed(tmp_path):
    page = tmp_path / "a.ipynb"
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("η ≤ 1/L", id="a")])
    nbformat.write(notebook, page)
    assert not outputs.write(page, notebook)
    notebook.cells[0].source = "η < 2/L"
    assert outputs.write(page, notebook)
    text = page.read_text(encoding="utf-8")
    assert "η < 2/L" in text
    assert text.startswith('{\n "cells": [\n')
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
