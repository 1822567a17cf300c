"""The map of the pages says what the pages say, and nothing is needed before its time."""

import nbformat
import pytest

from tools import map_page

TOC = """\
parts:
  - caption: Before you start
    chapters:
      - file: book/notation
  - caption: I Descent
    chapters:
      - file: lectures/first
      - file: lectures/second
      - file: notebooks/third
"""


@pytest.fixture
def book(tmp_path):
    """Return a function that makes a small book of three pages with these needs."""

    def write(**needs):
        (tmp_path / "_toc.yml").write_text(TOC)
        for name in ("lectures/first", "lectures/second", "notebooks/third"):
            title = name.split("/")[1]
            text = f"# The {title} & last\n"
            if title in needs:
                text += f"\n:::{{admonition}} Before you start\n:class: note\n{needs[title]}\n:::\n"
            text += "\nSee also [](second.ipynb).\n"
            cell = nbformat.v4.new_markdown_cell(text)
            (tmp_path / name).parent.mkdir(exist_ok=True)
            nbformat.write(
                nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb"
            )
        return tmp_path

    return write


def test_needs_are_those_of_the_note_and_no_other_links(book):
    root = book(
        second="You need [](first.ipynb).",
        third="See [](../lectures/second.ipynb#x) and [](../lectures/first.ipynb).",
    )
    assert map_page.opening_of("lectures/first", root) == ("The first & last", [])
    assert map_page.opening_of("notebooks/third", root)[1] == [
        "lectures/second",
        "lectures/first",
    ]


def test_every_page_and_every_need_is_drawn_and_listed(book):
    text = map_page.text(
        book(
            second="You need [](first.ipynb).",
            third="You need [](../lectures/second.ipynb).",
        )
    )
    assert text.count("<a href=") == 3
    assert text.count("<path d=") == 2 + 1  # and the tip of the arcs
    assert "The first &amp; last" in text
    assert "- [](../lectures/first.ipynb) needs no other page." in text
    assert "- [](../notebooks/third.ipynb) needs [](../lectures/second.ipynb)." in text
    assert "Before you start" not in text


def test_a_page_cannot_need_a_later_one(book):
    with pytest.raises(ValueError, match="lectures/first needs lectures/second"):
        map_page.text(book(first="You need [](second.ipynb)."))
