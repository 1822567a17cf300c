"""The repository's address stands in one place, and one command sets it everywhere."""

import json
import subprocess
import tomllib

import pytest

from tools import address
from tools.build_book import ROOT

PLACEHOLDER = "/".join(["OWNER", "REPOSITORY"])
NEW = "ada-lovelace/notes.on-engines"


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the text files of the repository, in a repository of its own."""
    for path in address.files():
        if (text := address.text_of(path)) is not None:
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_setting_the_address_leaves_no_stray_one(copy, capsys):
    old = address.current()
    address.main(f"https://github.com/{NEW}.git/", copy)
    assert address.current(copy) == NEW
    stray = [p for p in address.files(copy) if f"github.com/{old}" in address.text_of(p)]
    stray += [p for p in address.files(copy) if f"github/{old}" in address.text_of(p)]
    assert not stray
    said = capsys.readouterr().out
    for name in ("_config.yml", "pyproject.toml", "README.md", "CITATION.cff"):
        assert f"https://github.com/{NEW}" in (copy / name).read_text()
        assert f"{name}: " in said
    project = tomllib.loads((copy / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Homepage"] == f"https://github.com/{NEW}"
    for page in [*copy.glob("lectures/*.ipynb"), *copy.glob("notebooks/*.ipynb")]:
        cells = [
            c for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code"
        ]
        assert f"git+https://github.com/{NEW}" in "".join(cells[0]["source"])


def test_once_the_address_is_set_no_placeholder_is_left():
    if address.current() == PLACEHOLDER:
        pytest.skip("the repository has no address yet: `make address URL=...` sets it")
    assert not [p for p in address.files() if PLACEHOLDER in (address.text_of(p) or "")]


def test_a_longer_name_is_another_repository(tmp_path):
    file = tmp_path / "a.md"
    file.write_text(
        "github.com/a/b github.com/a/b-c github.com/a/b.d github.com/a/b.git. a/b"
    )
    assert address.replace("a/b", "x/y", [file]) == {file: 2}
    assert file.read_text() == (
        "github.com/x/y github.com/a/b-c github.com/a/b.d github.com/x/y.git. a/b"
    )


@pytest.mark.parametrize(
    "given",
    ["https://github.com/a/b", "https://github.com/a/b/", "https://github.com/a/b.git"],
)
def test_an_address_may_end_as_it_is_copied(given):
    assert address.repository(given) == "a/b"


@pytest.mark.parametrize(
    "given",
    ["", "github.com/a/b", "https://github.com/a", "https://github.com/a/b/tree/main"],
)
def test_what_is_no_address_is_refused(given):
    with pytest.raises(SystemExit, match="such as https://github"):
        address.main(given)
