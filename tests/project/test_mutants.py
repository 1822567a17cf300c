"""Each mutant can be made; found ones, survivors and broken ones are told apart; the record is complete."""

import pandas as pd
import pytest

from tools import mutants
from tools.mutants import Mutant, MutantError

KNOWN = mutants.mutants()


def test_there_are_many_and_each_has_its_own_name():
    names = [mutant.bug for mutant in KNOWN]
    assert len(names) == len(set(names)) >= 25


@pytest.mark.parametrize("mutant", KNOWN, ids=lambda mutant: mutant.bug)
def test_a_mutant_can_be_made(mutant):
    assert mutant.text() != (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    for name in mutant.tests:
        assert (mutants.ROOT / mutants.TESTS / name).is_file()


@pytest.mark.skipif(not mutants.TABLE.is_file(), reason="no test of the tests is recorded")
def test_the_record_names_each_mutant_and_each_was_found():
    table = pd.read_csv(mutants.TABLE, keep_default_na=False)
    assert list(table) == ["mutant", "file", "killed", "by"]
    assert table["mutant"].tolist() == [mutant.bug for mutant in KNOWN]
    assert table["killed"].all()


@pytest.fixture
def project(tmp_path):
    """Return a small project with one function and tests of it."""
    files = {
        "support/__init__.py": "",
        "support/optim/__init__.py": "def double(x):\n    return 2 * x\n",
        "tests/support/optim/test_double.py": (
            "from support.optim import double\n\n\n"
            "def test_zero():\n    assert double(0) == 0\n\n\n"
            "def test_two():\n    assert double(2) == 4\n"
        ),
        "tests/support/optim/test_other.py": "def test_nothing():\n    pass\n",
        "pyproject.toml": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def mutant(old, new, *tests):
    return Mutant(f"{new} for {old}", "support/optim/__init__.py", old, new, tests)


def test_found_ones_and_survivors_are_told_apart(project, tmp_path):
    chosen = [
        mutant("2 * x", "3 * x"),
        mutant("2 * x", "x + x"),
        mutant("2 * x", "2 * x + 1", "test_other.py"),
    ]
    table = mutants.run(chosen, project)
    assert table["killed"].tolist() == [True, False, False]
    assert table["by"].tolist() == ["test_double.py::test_two", "", ""]
    assert "2 * x" in (project / "support/optim/__init__.py").read_text()
    target = tmp_path / "mutants.csv"
    assert mutants.write(table, chosen, target).equals(table)
    again = table[1:2].assign(killed=True)
    both = mutants.write(again, chosen[:2], target)
    assert both["killed"].tolist() == [True, True]
    assert both["mutant"].tolist() == [one.bug for one in chosen[:2]]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("3 * x", "x", "occurs 0 times"),
        ("x", "y", "occurs 2 times"),
        ("return 2", "return (2", "is not Python"),
    ],
)
def test_a_mutant_that_cannot_be_made_stops_everything(project, old, new, complaint):
    with pytest.raises(MutantError, match=complaint):
        mutants.run([mutant("2 * x", "3 * x"), mutant(old, new)], project)


def test_tests_that_fail_without_a_bug_stop_everything(project):
    (project / "tests/support/optim/test_other.py").write_text(
        "def test_it():\n    assert 0\n"
    )
    with pytest.raises(
        MutantError, match=r"without any bug, test_other\.py::test_it fails"
    ):
        mutants.run([mutant("2 * x", "3 * x")], project)


def test_tests_that_cannot_run_are_no_success(project):
    with pytest.raises(MutantError, match=r"(?s)raise ImportError.*could not be run"):
        mutants.attempt(mutant("def double", "raise ImportError\n\n\ndef double"), project)


def test_a_test_without_end_counts_as_failed(project):
    (project / "tests/support/optim/test_other.py").write_text(
        "def test_it():\n    while True:\n        pass\n"
    )
    assert mutants.check(project, ["test_other.py"], timeout=3).failed == "no end after 3 s"


def test_the_package_of_the_copy_is_the_one_that_is_tested(project):
    (project / "support" / "optim" / "__init__.py").write_text(
        "import math\n__file__ = math.__spec__.origin or '/elsewhere/optim.py'\n"
    )
    with (
        mutants.copy(project) as tree,
        pytest.raises(MutantError, match="could not be run"),
    ):
        mutants.check(tree, ["test_other.py"])
