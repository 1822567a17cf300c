"""The printed book: chapters in order, under their titles, no page blank, all of it unfolded."""

import io

import pytest
from bs4 import BeautifulSoup
from conftest import SITE
from pypdf import PdfReader, PdfWriter

from tools import pdf

PARTS = [
    ("", ["book/introduction"]),
    ("I Descent", ["book/map", "lectures/gradient_descent"]),
]
NAMES = [name for _, names in PARTS for name in names]


@pytest.fixture(scope="module")
def book(chromium):
    written = io.BytesIO()
    pdf.book(chromium, PARTS).write(written)
    return PdfReader(written)


def title(name):
    page = BeautifulSoup((SITE / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    return page.select_one("article.bd-article h1").get_text().rstrip("#").strip()


def test_the_chapters_stand_in_order_and_no_page_is_blank(book):
    assert [item.title for item in book.outline] == [title(name) for name in NAMES]
    assert pdf.problems(book) == []


def test_the_contents_give_the_page_of_each_chapter(book):
    contents = pdf.squeezed(book.pages[1].extract_text())
    for item in book.outline:
        number = book.get_destination_page_number(item) + 1
        assert pdf.squeezed(f"{item.title}{number}") in contents
        assert pdf.squeezed(book.pages[number - 1].extract_text()).endswith(str(number))


def test_solutions_and_code_are_unfolded(book):
    text = pdf.squeezed("".join(page.extract_text() for page in book.pages))
    assert "SolutiontoExercise" in text
    assert "importsupport#noqa" in text


def test_a_blank_page_and_a_wrong_bookmark_are_found(book):
    spoilt = PdfWriter(clone_from=book)
    spoilt.insert_blank_page(index=3)
    spoilt.add_outline_item(title="Nowhere", page_number=1)
    written = io.BytesIO()
    spoilt.write(written)
    found = pdf.problems(PdfReader(written))
    assert "page 4 is blank" in found
    assert any("Nowhere" in problem for problem in found)


def test_the_whole_book_follows_the_contents():
    names = [name for _, part in pdf.contents() for name in part]
    assert names[0] == "book/introduction"
    assert len(names) == len(set(names))
    assert all((SITE / f"{name}.html").is_file() for name in names)
