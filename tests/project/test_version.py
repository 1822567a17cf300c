"""The version is the same wherever it stands."""

import re
import tomllib

import yaml

from tools.build_book import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert next(name for name in sections if name != "Unreleased") == VERSION
    assert "Unreleased" not in sections[1:]
    assert re.search(
        rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE
    )
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = set(re.findall(r"^### (\w+)$", section, re.MULTILINE))
        assert kinds
        assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == VERSION
