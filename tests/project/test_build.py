"""What is executed again, what stops the build, and what ``book/claims.md`` says."""

import nbformat
import pytest

from tools import build_book


@pytest.fixture
def tree(tmp_path):
    """Return a small project with a cache that is up to date."""
    for name in (
        "support/sweep.py",
        "support/results/lenet/runs.csv",
        "constraints.txt",
        "pyproject.toml",
        "README.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    build_book.empty_stale_cache(tmp_path)
    (tmp_path / "_build" / ".jupyter_cache").mkdir()
    return tmp_path


def is_kept(tree):
    build_book.empty_stale_cache(tree)
    return (tree / "_build" / ".jupyter_cache").is_dir()


@pytest.mark.parametrize(
    "name", ["support/sweep.py", "support/results/lenet/runs.csv", "constraints.txt"]
)
def test_a_change_of_the_package_its_results_or_the_pins_empties_the_cache(tree, name):
    before = build_book.execution_key(tree)
    (tree / name).write_text("something else")
    assert build_book.execution_key(tree) != before
    assert not is_kept(tree)


def test_a_new_and_a_removed_file_of_the_package_empty_the_cache(tree):
    (tree / "support" / "new.py").touch()
    assert not is_kept(tree)
    (tree / "_build" / ".jupyter_cache").mkdir()
    (tree / "support" / "new.py").unlink()
    assert not is_kept(tree)


def test_other_changes_keep_the_cache(tree):
    (tree / "README.md").write_text("something else")
    assert is_kept(tree)


def page(covers, verdicts):
    """Return an executed page that covers and records these ids."""
    outputs = [
        nbformat.v4.new_output("display_data", {build_book.VERDICT: {"claim": claim}})
        for claim in verdicts
    ]
    code = nbformat.v4.new_code_cell("records.verdict(...)", outputs=outputs)
    heading = nbformat.v4.new_markdown_cell("# A page", metadata={"covers": covers})
    return nbformat.v4.new_notebook(cells=[heading, code])


def test_a_page_records_a_verdict_on_each_claim_that_it_covers():
    name = build_book.ROOT / "lectures" / "a.ipynb"
    found = build_book.verdicts(name, page(["C1", "C12", "M01", "CH-3"], ["C1", "C12"]))
    assert [verdict["claim"] for verdict in found] == ["C1", "C12"]


@pytest.mark.parametrize(
    ("covers", "recorded"), [(["C1"], []), ([], ["C1"]), (["C1", "C2"], ["C1"])]
)
def test_a_claim_without_its_verdict_stops_the_build(covers, recorded):
    name = build_book.ROOT / "lectures" / "a.ipynb"
    with pytest.raises(SystemExit, match=r"a\.ipynb: covers claims"):
        build_book.verdicts(name, page(covers, recorded))


def test_rendered_pages_without_a_source_are_removed(tmp_path):
    html = tmp_path / "_build" / "html" / "lectures"
    html.mkdir(parents=True)
    (tmp_path / "lectures").mkdir()
    (tmp_path / "lectures" / "here.ipynb").touch()
    (html / "here.html").touch()
    (html / "gone.html").touch()
    build_book.remove_left_over_pages(tmp_path)
    assert [path.name for path in html.iterdir()] == ["here.html"]
