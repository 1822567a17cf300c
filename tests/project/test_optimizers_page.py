"""The page about the optimizers says what the tables say, misses included."""

import pandas as pd
import pytest
from torch.optim import Optimizer

from support import optim
from tools import build_book, optimizers_page


@pytest.fixture
def results(tmp_path):
    """Return a folder with small tables."""
    (tmp_path / "benchmarks").mkdir()
    pd.DataFrame(
        [
            ("swapped | betas", "support/optim/lion.py", True, "test_lion.py::test_a[b|c]"),
            ("a bug that no test finds", "support/optim/sam.py", False, ""),
        ],
        columns=["mutant", "file", "killed", "by"],
    ).to_csv(tmp_path / "mutants.csv", index=False)
    head = ["method", "implementation", "milliseconds", "ratio", "lower", "upper", "target"]
    times = pd.DataFrame(
        [
            ("SGD with momentum", "torch 2.0", 4.0, 1.001, 0.99, 1.01, None),
            ("Lion", "support", 4.1, 1.02, 1.01, 1.03, 1.02),
            ("Lion", "lion-pytorch 0.2", 4.4, 1.1, 1.0, 1.2, None),
            ("K-FAC 10/100", "support", 8.0, 2.0004, 1.9, 2.1, 1.6),
        ],
        columns=head,
    )
    more = {
        "benchmark": "LeNet-5, one step",
        "device": "a device",
        "measured": "whole periods",
    }
    kept = {"numbers per parameter": 1.0, "bytes per parameter": 4.0}
    times = times.assign(**more, **kept)
    times.loc[3, "measured"] = "kinds of steps"
    times.to_csv(tmp_path / "benchmarks" / "optimizers.csv", index=False)
    pd.DataFrame(
        [
            ("K-FAC 10/100", "KFAC: factors", 2.0, 0.245),
            ("K-FAC 10/100", "KFAC.step", 6.0, 0.75),
            ("K-FAC 10/100", "between these", 0.01, 0.005),
        ],
        columns=["method", "part", "milliseconds", "share"],
    ).assign(benchmark="LeNet-5, one step", device="a device").to_csv(
        tmp_path / "benchmarks" / "optimizers_profile.csv", index=False
    )
    return tmp_path


def test_the_score_is_counted_and_survivors_are_named(results):
    page = optimizers_page.text(results)
    assert (
        "**The tests find 1 of 2 bugs.** They do not find: a bug that no test finds."
        in page
    )
    assert "| swapped \\| betas | `lion.py` | `test_lion.py::test_a[b\\|c]` |" in page
    assert "| a bug that no test finds | `sam.py` | – |" in page


def test_targets_are_judged_by_the_numbers(results):
    page = optimizers_page.text(results)
    assert "1 of 2 targets are reached. Missed:" in page
    assert "- K-FAC 10/100, LeNet-5, one step: 2.000 instead of 1.6" in page
    lion = "| Lion | 4.1 | 1.020 | 1.01–1.03 | 1.02 reached | 1.100, lion-pytorch 0.2 |"
    assert lion in page
    assert "| K-FAC 10/100 | 8 | 2.000 | 1.90–2.10 | 1.6 **missed** | – |" in page
    assert "| SGD with momentum | 4 | 1.001 | 0.99–1.01 | – | – |" in page
    assert "Not all steps of these methods are alike: K-FAC 10/100." in page
    assert "| Lion | 1.00 (4.0 bytes) |" in page


def test_the_profile_begins_with_the_largest_part(results):
    page = optimizers_page.text(results)
    assert "| K-FAC 10/100 | 8.01 | `KFAC.step` itself 75 %, factors 24 % |" in page


def test_all_reached_is_said_in_one_line(results):
    path = results / "benchmarks" / "optimizers.csv"
    pd.read_csv(path).query("method != 'K-FAC 10/100'").to_csv(path, index=False)
    assert "All 1 targets are reached." in optimizers_page.text(results)


def test_without_tables_the_page_says_so(tmp_path):
    page = optimizers_page.text(tmp_path)
    assert "No such test has been recorded yet." in page
    assert "Nothing has been measured yet." in page


def test_the_page_names_each_method_of_the_package():
    rows = optimizers_page.methods()
    classes = {name.strip("`") for name, *_ in rows}
    exported = {name for name in optim.__all__ if isinstance(getattr(optim, name), type)}
    assert classes == exported
    assert {n for n in classes if issubclass(getattr(optim, n), Optimizer)} >= {
        "KFAC",
        "SAM",
    }
    names = {name.strip("`") for _, all_names, *_ in rows for name in all_names.split(", ")}
    assert names - {"–"} <= set(optim.OPTIMIZERS)
    assert all(len(row) == 4 for row in rows)


def test_a_page_is_written_only_when_it_changed(tmp_path):
    (tmp_path / "book").mkdir()
    build_book.write_page("some", "# Title\n", tmp_path)
    target = tmp_path / "book" / "some.md"
    before = target.stat().st_mtime_ns
    build_book.write_page("some", "# Title\n", tmp_path)
    assert target.stat().st_mtime_ns == before
    build_book.write_page("some", "# Other\n", tmp_path)
    assert target.read_text() == "# Other\n"
