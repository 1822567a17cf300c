"""Each published number stands beside ours, judged by the rule of the page, and none is left out."""

import re

import nbformat
import pandas as pd
import pytest

from support import plotting, records
from tools import results_page
from tools.results_page import Ours, collect, outcome, shown


@pytest.fixture(scope="module")
def blank():
    """Return the page as it is when nothing has been run."""
    return results_page.text([])


def page(*numbers):
    """Return an executed page that shows comparisons."""
    metadata = {plotting.COMPARISON: list(numbers)}
    output = nbformat.v4.new_output("execute_result", {"text/plain": ""}, metadata=metadata)
    code = nbformat.v4.new_code_cell("plotting.beside_published(...)", outputs=[output])
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page"), code])


def number(row, mean, sd=None, runs=1):
    return {"row": row, "mean": mean, "sd": sd, "runs": runs}


def row_of(**values):
    table = records.published()
    for name, value in values.items():
        table = table[table[name] == value]
    return int(table["row"].item())


TABLE1 = dict(
    table="1", optimizer="Adam", source="chabanenko", dataset="MNIST", model="MLP"
)


def test_our_numbers_are_found_in_the_pages_and_what_was_not_run_is_not():
    first = page(number(3, 0.5, 0.1, 3), number(4, None, None, None))
    second = page(number(4, 2.0), number(3, None, None, None))
    assert collect([first, second]) == {3: Ours(0.5, 0.1, 3), 4: Ours(2.0, None, 1)}


@pytest.mark.parametrize(
    ("mean", "sd", "runs", "expected"),
    [
        (0.5, 0.01, 3, "agree"),
        # t(0.975, 2) = 4.3027; times 0.01 sqrt(4/3) is 0.04968, and half a unit is 0.005
        (0.5 + 0.0546, 0.01, 3, "agree"),
        (0.5 + 0.0548, 0.01, 3, "differ"),
        (0.5 - 0.0548, 0.01, 3, "differ"),
        # t(0.975, 9) = 2.2622; times 0.01 sqrt(1.1) is 0.02373
        (0.5 + 0.0286, 0.01, 10, "agree"),
        (0.5 + 0.0288, 0.01, 10, "differ"),
        (0.504, 0.0, 5, "agree"),
        (0.506, 0.0, 5, "differ"),
        (0.5, 0.01, 2, "fewer than three runs"),
        (0.5, None, 1, "fewer than three runs"),
    ],
)
def test_a_number_agrees_if_it_could_be_one_more_run_of_ours(mean, sd, runs, expected):
    assert outcome("0.50", Ours(mean, sd, runs), 2) == expected


def test_what_is_not_there_is_called_so():
    assert outcome("0.5", None, 1) == "not run"
    assert outcome("0.5", None, 1, setting=True) == "not compared"
    assert outcome("0.5", Ours(0.5, None, 1), 1, setting=True) == "the same"
    assert outcome("0.5", Ours(0.3, None, 1), 1, setting=True) == "another"


@pytest.mark.parametrize(
    ("ours", "setting", "expected"),
    [
        (None, False, "–"),
        (Ours(0.98712, 0.00123, 5), False, "0.9871 ± 0.0012"),
        (Ours(3.0, 0.0, 5), False, "3.00 ± 0.00"),
        (Ours(0.9, None, 1), False, "0.900"),
        (Ours(0.00025, None, 1), True, "0.00025"),
        (Ours(60000, None, 1), True, "60000"),
    ],
)
def test_our_numbers_are_rounded_to_what_they_are_worth(ours, setting, expected):
    assert shown("0.12", ours, 2, setting=setting) == expected


def test_every_published_number_stands_on_the_page_and_in_its_counts(blank):
    values, text = records.published(), blank
    counted = re.findall(r"^\| together \| (\d+) \|", text, re.MULTILINE)
    assert sum(map(int, counted)) == len(values) == 671
    tables = text[text.index("## E1:") :]
    cells = [
        cell.split("<br>")[0].strip()
        for line in tables.splitlines()
        if line.startswith("| ")
        for cell in line.strip("|").split("|")
    ]
    raw = pd.read_csv(results_page.RESULTS / "published.csv", dtype=str)
    for value, times in raw["value"].value_counts().items():
        assert cells.count(value.replace("-", "−")) >= times, value


def test_ours_stand_below_the_printed_number_with_a_mark_if_they_differ():
    row = row_of(**TABLE1)
    text = results_page.text([page(number(row, 0.06, 0.01, 3))])
    assert "| Adam | 0.05<br>0.060<br>± 0.010 |" in text
    assert "Table 1: rel. improvement from BN (test). Ours below; runs: 3.**" in text
    assert "| chabanenko | 534 | 1 | 0 | 0 | 533 |" in text
    text = results_page.text([page(number(row, 0.9, 0.01, 3))])
    assert "| Adam | 0.05<br>**0.900**<br>± 0.010 |" in text
    assert "| chabanenko | 534 | 0 | 1 | 0 | 533 |" in text


def test_the_last_digit_is_that_of_the_table_where_the_file_has_lost_a_zero():
    row = row_of(table="5", optimizer="SGDm", epoch=50)  # 0.1, printed as 0.10
    text = results_page.text([page(number(row, 0.12, 0.001, 3))])
    assert "0.1<br>**0.1200**<br>± 0.0010" in text


def test_a_table_names_its_errata(blank):
    part = blank[blank.index("**Table 8:") :]
    part = part[: part.index("**Table 9-left:")]
    assert (
        "On this table: {ref}`CH-10 <erratum-ch-10>`, {ref}`CH-11 <erratum-ch-11>`." in part
    )


def test_what_is_missing_comes_from_the_list_beside_the_records(blank):
    known = results_page.record()
    assert set(known) >= {"mnist_lenet", "batchnorm", "voc2012_fcn32s"}
    have, missing = known["div2k_superresolution"]
    assert have.startswith("a study on a sample")
    assert "make run NOTEBOOK=div2k_superresolution" in missing
    assert f"Recorded: {have}.\n\nMissing: {missing}." in blank
    part = blank[blank.index("## E17:") : blank.index("**Table 7-left:")]
    assert "What is recorded and what is missing stands with E15." in part
