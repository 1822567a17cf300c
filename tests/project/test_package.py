"""The wheel carries the package and its results, and nothing else."""

import zipfile

from tools import colab
from tools.address import files
from tools.build_book import ROOT


def test_the_wheel_holds_the_package_and_its_results_and_nothing_else(tmp_path):
    names = set(zipfile.ZipFile(colab.build_wheel(tmp_path)).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in files() if path.is_file()}
    package = {name for name in package if name.startswith("support/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert {
        "support/results/published.csv",
        "support/results/inventory/claims.csv",
    } <= names
