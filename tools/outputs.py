"""Renew the outputs that the pages keep in git: ``make outputs``, or of some, with ``PAGES=lectures/...``.

Only cells tagged ``keep_output`` keep theirs; every other output and count and what editors leave in the
metadata are removed. With ``--check`` nothing is executed or written: a page that is not so is an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from support.plotting import COMPARISON
from tools.build_book import ROOT, empty_stale_cache, execute, pages

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}  # Colab then opens the page on one
VOLATILE = {"ExecuteTime", "collapsed", "execution", "jupyter", "papermill", "scrolled"}


def keeps(cell: NotebookNode) -> bool:
    """Tell whether the outputs of a cell belong in git."""
    return "keep_output" in cell.metadata.get("tags", [])


def tidy(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """Return a notebook as it belongs in git, with its outputs from the executed one."""
    for cell, source in zip(notebook.cells, executed.cells, strict=True):
        for name in VOLATILE & set(cell.metadata):
            del cell.metadata[name]
        if cell.cell_type == "code":
            # nbval compares outputs only of cells with a count; always 1, so that new cells change no others.
            cell.execution_count = 1 if keeps(cell) else None
            cell.outputs = joined(source.outputs) if keeps(cell) else []
    asked = GPU if "accelerator" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict(METADATA | asked)
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs with the count 1, what was printed in pieces as one: the pieces depend on the hour.

    The numbers behind a table of published values are left out: the build takes them from a fresh execution.
    """
    result: list[NotebookNode] = []
    for output in outputs:
        output.get("metadata", {}).pop(COMPARISON, None)
        if "execution_count" in output:
            output.execution_count = 1
        before = result[-1] if result else {}
        if output.output_type == "stream" and output.name == before.get("name"):
            before.text += output.text
        else:
            result.append(output)
    return result


def problems(notebook: NotebookNode) -> list[str]:
    """Return what does not belong in git, or is missing, in a notebook."""
    found = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        here = f"cell {number} ({cell.get('id')})"
        if cell.outputs and not keeps(cell):
            found.append(f"{here} holds outputs but is not tagged keep_output")
        if keeps(cell) and not cell.outputs:
            found.append(f"{here} is tagged keep_output but holds no outputs")
        if (cell.execution_count is None) == keeps(cell):
            found.append(f"{here} has {'no' if keeps(cell) else 'an'} execution count")
    return found


def write(page: Path, notebook: NotebookNode) -> bool:
    """Write a page if it changed, always in the same form; tell whether it did."""
    text = nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"
    if page.read_text(encoding="utf-8") == text:
        return False
    page.write_text(text, encoding="utf-8", newline="\n")
    return True


def check(chosen: list[Path]) -> None:
    """Stop with a list of what is wrong in the pages, if anything is."""
    found = [
        f"{page.relative_to(ROOT)}: {problem}"
        for page in chosen
        for problem in problems(nbformat.read(page, as_version=4))
    ]
    if found:
        sys.exit("\n".join([*found, "`make outputs` puts it right"]))


def renew(chosen: list[Path]) -> None:
    """Execute the pages, unless that has been done with the same package, and write what they keep."""
    empty_stale_cache()
    for page, executed in execute(chosen).items():
        changed = write(page, tidy(nbformat.read(page, as_version=4), executed))
        print(f"{page.relative_to(ROOT)}: {'written' if changed else 'unchanged'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="all pages by default")
    parser.add_argument("--check", action="store_true", help="only look, for pre-commit")
    options = parser.parse_args(arguments)
    chosen = [page.resolve() for page in options.pages] or pages()
    if strangers := [str(page) for page in chosen if page not in pages()]:
        sys.exit(f"no pages of the book: {', '.join(strangers)}")
    (check if options.check else renew)(chosen)


if __name__ == "__main__":
    main()
