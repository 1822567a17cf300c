"""The list of the sources' contents finds what the pages cover, and covers name what there is."""

import re

import nbformat
import pandas as pd
import pytest

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
        "[One: Inside](../lectures/a.ipynb#inside)",
        "[Two](../lectures/b.ipynb#two)",
    ]
    text = sources_page.text(tmp_path)
    assert "## Methods: 2 of 81" in text
    assert "| [One](../lectures/a.ipynb#one) |" in text


def test_anchors_are_those_of_myst(tmp_path):
    (tmp_path / "_toc.yml").write_text(TOC.replace("      - file: lectures/b\n", ""))
    (tmp_path / "lectures").mkdir()
    cells = [
        ("# A *short* title", ["M01"]),
        ("## Where $\\epsilon$ stands, `eps`", ["M02"]),
        ("### Again\n\ntext\n\n### Again", ["M03"]),
        ("under the second", ["M04"]),
        ("#### Deep", ["M05"]),
        ("## With [a link](b.ipynb)", ["M06"]),
    ]
    nbformat.write(_page(cells), tmp_path / "lectures" / "a.ipynb")
    found = sources_page.places(tmp_path)
    assert [found[f"M0{i}"][0].anchor for i in range(1, 7)] == [
        "#a-short-title",
        "#where--stands-eps",
        "#again",
        "#again-1",
        "",
        "#with-a-link",
    ]


# What belongs to experiments whose pages do not exist yet; a new page takes its ids out of here.
WAITING = {
    "E25",
    *("F-B6", "F-B7"),
    *(f"F-U{number}" for number in range(30, 45)),
    *("C41", "C42", "C102", "C105", "C111", "C112"),
}


def test_nothing_of_the_sources_is_missing():
    places = sources_page.places()
    missing = set()
    for kind in sources_page.KINDS:
        listed = pd.read_csv(ROOT / "support" / "results" / "inventory" / f"{kind}.csv")
        if kind == "figures":
            listed = listed[listed["must_show"] != sources_page.NOT_NEEDED]
        missing |= set(listed["id"]) - set(places)
    assert missing <= WAITING


def test_what_need_not_stand_in_the_book_says_why():
    text = sources_page.text()
    assert "not needed, because it is the logo of Technosphere" in text
    assert "not needed, because it is the title slide picture" in text


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


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("lectures/*.ipynb")), ids=lambda p: p.stem
)
def test_a_lecture_links_terms_of_the_glossary(page):
    cells = nbformat.read(page, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    linked = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", text)
    known = set(pd.read_csv(glossary_page.TERMS)["english"].str.lower())
    assert linked
    assert {term.lower() for term in linked} <= known
