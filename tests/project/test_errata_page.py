"""Each erratum has a corrected form, stands on the page once, and leads to where the course treats it."""

import re

import pytest

from support import records
from tools import errata_page

LISTED = records.inventory("errata")
ENTRIES = errata_page.corrections()


def test_every_erratum_has_what_stands_and_the_corrected_form_and_nothing_else():
    assert list(ENTRIES) == list(LISTED.index)
    for identity, entry in ENTRIES.items():
        assert set(entry) == {"stands", "corrected"}, identity
        assert all(part.strip() for part in entry.values()), identity
        assert entry["stands"] != entry["corrected"], identity


@pytest.mark.parametrize("identity", ENTRIES)
def test_the_mathematics_of_an_entry_is_closed(identity):
    for part in ENTRIES[identity].values():
        formulas = part.split("$")[1::2]
        assert part.count("$") % 2 == 0
        for formula in formulas:
            plain = formula.replace(r"\{", "").replace(r"\}", "")
            assert plain.count("{") == plain.count("}"), formula
        assert not re.search(r"\\[a-z]", "".join(part.split("$")[::2])), "LaTeX outside $"


@pytest.fixture(scope="module")
def text():
    return errata_page.text()


def test_the_page_holds_every_erratum_once_with_its_place(text):
    anchors = re.findall(r"^\(erratum-(\S+)\)=$", text, re.MULTILINE)
    assert sorted(anchors) == sorted(identity.lower() for identity in LISTED.index)
    assert text.count(": → ") == len(LISTED)
    entry = text[text.index("(erratum-ku-21)=") : text.index("(erratum-ku-22)=")]
    assert "*Correct:* $j=0,\\dots,J_{max}-1$" in entry
    assert "../lectures/schedules.ipynb#where-the-cosine-counts-from" in entry


def test_an_erratum_without_its_form_stops_the_build(monkeypatch):
    some = {name: entry for name, entry in ENTRIES.items() if name != "CH-7"}
    monkeypatch.setattr(errata_page, "corrections", lambda: some)
    with pytest.raises(KeyError, match="CH-7"):
        errata_page.text()


def test_the_table_counts_all_of_them(text):
    numbers = re.search(r"^\| together \| (.+) \|$", text, re.MULTILINE)[1].split(" | ")
    kinds = LISTED["kind"].value_counts()
    names = ["error", "garbled", "ambiguous", "omission"]
    assert [int(number) for number in numbers] == [*kinds[names], len(LISTED)]
