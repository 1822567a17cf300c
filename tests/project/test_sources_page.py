"""The list of the sources' contents finds what the pages cover, and covers name what there is."""

import nbformat
import pandas as pd

from tools import glossary_page, sources_page
from tools.build_book import ROOT, pages

TOC = "parts:\n  - caption: I\n    chapters:\n      - file: lectures/a\n      - file: lectures/b\n"


def _page(cells):
    made = [
        nbformat.v4.new_markdown_cell(text, metadata={"covers": covers})
        for text, covers in cells
    ]
    return nbformat.v4.new_notebook(cells=made)


def test_an_id_stands_where_it_is_covered_first_on_each_page(tmp_path):
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "lectures").mkdir()
    first = _page([("# One", ["M01"]), ("## Inside\ntext", []), ("more", ["M02", "C1"])])
    second = _page([("# Two", ["M02"]), ("## Again", ["M02"])])
    nbformat.write(first, tmp_path / "lectures" / "a.ipynb")
    nbformat.write(second, tmp_path / "lectures" / "b.ipynb")
    found = sources_page.places(tmp_path)
    assert [place.link() for place in found["M02"]] == [
        "[One](../lectures/a.ipynb): Inside",
        "[Two](../lectures/b.ipynb)",
    ]
    text = sources_page.text(tmp_path)
    assert "## Methods: 2 of 81" in text
    assert "| [One](../lectures/a.ipynb) |" in text


def test_every_id_that_a_page_covers_is_one_of_the_inventory():
    known = set()
    for kind in sources_page.KINDS:
        path = ROOT / "support" / "results" / "inventory" / f"{kind}.csv"
        known |= set(pd.read_csv(path)["id"])
    covered = set()
    for page in pages():
        for cell in nbformat.read(page, as_version=4).cells:
            covered |= set(cell.metadata.get("covers", []))
    assert covered <= known


def test_each_term_of_the_glossary_stands_once_with_all_its_names(tmp_path):
    path = tmp_path / "glossary.csv"
    path.write_text(
        "russian,english,definition\nшаг,step size,Factor\nобучение,training,Fitting.\n"
        "темп,Step size,Factor\n",
        encoding="utf-8",
    )
    lines = glossary_page.text(path).splitlines()
    assert "  Factor. In Russian: шаг, темп." in lines
    assert "  Fitting. In Russian: обучение." in lines
    assert sum(line.lower() == "step size" for line in lines) == 1
    assert lines.index("step size") < lines.index("training")
    whole = glossary_page.text()
    assert all(term in whole for term in pd.read_csv(glossary_page.TERMS)["russian"])
