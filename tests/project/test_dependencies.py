"""The three lists of dependencies agree, and nothing in the repository names a package registry."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.address import files, text_of
from tools.build_book import ROOT

CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
CONDA_ONLY = {"python", "pip"}
REGISTRIES = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("anaconda", "org"),
    ("anaconda", "com"),
    ("download.pytorch", "org"),
    ("pypi", "python", "org"),
    ("files.pythonhosted", "org"),
]


def wanted() -> dict[str, Requirement]:
    """Return what ``pyproject.toml`` asks for, the extras included, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def conda() -> dict[str, Requirement]:
    """Return what ``environment.yml`` asks for, under the names of pyproject."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    lines = [entry for entry in listed if isinstance(entry, str)] + by_pip
    found = [Requirement(line) for line in lines if line != "-e ."]
    names = {r: CONDA_NAMES.get(r.name, canonicalize_name(r.name)) for r in found}
    return {names[r]: r for r in found if names[r] not in CONDA_ONLY}


def pins() -> dict[str, str]:
    """Return the version that ``constraints.txt`` pins for each name."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines)
    }


@pytest.mark.parametrize("name", sorted(wanted()))
def test_the_pin_satisfies_the_bound(name):
    assert wanted()[name].specifier.contains(pins()[name], prereleases=True)


def test_conda_users_get_the_same_names_and_bounds():
    assert {name: r.specifier for name, r in conda().items()} == {
        name: r.specifier for name, r in wanted().items()
    }


def test_conda_and_pyproject_want_the_same_python():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "python" + project["requires-python"] in listed


def test_the_package_itself_asks_only_for_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line


def test_no_file_names_a_package_registry():
    hosts = [".".join(parts) for parts in REGISTRIES]
    found = [
        (path.name, host)
        for path in files()
        for host in hosts
        if host in (text_of(path) or "")
    ]
    assert not found


def test_the_pins_are_sorted_and_plain():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines)
    assert len({canonicalize_name(line.split("==")[0]) for line in lines}) == len(lines)
