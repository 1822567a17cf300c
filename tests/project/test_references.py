"""The bibliography: every entry is cited, and carries the number by which it is found."""

import re

import nbformat
import pytest
from pybtex.database import parse_file

from tools.build_book import ROOT, pages

ENTRIES = parse_file(str(ROOT / "book" / "references.bib")).entries
JOURNAL = "the journal gives no DOI"
CONFERENCE = "the proceedings give no DOI"
# What has neither DOI nor arXiv id, with the reason; each carries the address of its publisher instead.
WITHOUT = {
    "ba2017distributed": CONFERENCE,
    "bergstra2012random": JOURNAL,
    "dozat2016incorporating": "a workshop, whose papers have no DOI",
    "duchi2011adaptive": JOURNAL,
    "glorot2010understanding": CONFERENCE,
    "goodfellow2016deep": "a book, whose publisher gives an ISBN only",
    "krizhevsky2009learning": "a report of a university",
    "lecun1990optimal": CONFERENCE,
    "martens2010deep": CONFERENCE,
    "martens2018kronecker": CONFERENCE,
    "srivastava2014dropout": JOURNAL,
    "sutskever2013importance": CONFERENCE,
}


def cited():
    """Return every key that a page, the frame of the book or a docstring cites."""
    texts = [cell.source for page in pages() for cell in nbformat.read(page, 4).cells]
    places = ("book/*.md", "book/*.toml", "support/**/*.py")
    texts += [path.read_text(encoding="utf-8") for p in places for path in ROOT.glob(p)]
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", "\n".join(texts))
    return {key.strip() for role in roles for key in role.split(",")}


def identity(entry):
    """Return the DOI or the arXiv id of an entry, ``None`` if it has neither."""
    if doi := entry.fields.get("doi"):
        return doi
    arxiv = re.search(r"arXiv[:.](\d{4}\.\d{4,5})", " ".join(entry.fields.values()))
    return entry.fields.get("eprint") or (arxiv and arxiv[1])


def test_every_entry_is_cited_and_every_citation_has_an_entry():
    assert cited() == set(ENTRIES)


@pytest.mark.parametrize("key", sorted(ENTRIES))
def test_an_entry_carries_its_number(key):
    entry = ENTRIES[key]
    if key in WITHOUT:
        assert identity(entry) is None, "it has a number: strike it off the list"
        assert entry.fields["url"].startswith("https://")
    else:
        assert re.fullmatch(
            r"10\.\d{4,}/\S+|\d{4}\.\d{4,5}|[a-z-]+/\d{7}", identity(entry) or "none"
        )


def test_no_number_is_given_twice():
    numbers = [number for entry in ENTRIES.values() if (number := identity(entry))]
    assert len(numbers) == len(set(numbers))
