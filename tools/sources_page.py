"""The text of ``book/sources.md``: where each thing that the sources contain stands in the course."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from tools import map_page

ROOT = Path(__file__).resolve().parent.parent
KINDS = {  # name of the list -> heading, column that says what it is
    "methods": ("Methods", "title"),
    "experiments": ("Experiments", "task"),
    "figures": ("Figures", "must_show"),
    "claims": ("Claims", "hypothesis"),
    "errata": ("Errata", "title"),
}

OPENING = """\
# Sources

The course goes back to five works in Russian: lectures of Victor Kitov and of Danila Baigushev (2021), and
theses of Vladimir A. Zholobov (2021), Mariya P. Kuznetsova (2023) and Vladislav D. Chabanenko. Here stand the
methods, experiments, figures and claims that they contain, and the errata that we found in them, each with its
place in the course. The page is generated from what the pages say that they cover.

"""


@dataclass(frozen=True)
class Place:
    """A section of a page that covers something."""

    page: str
    title: str
    section: str

    def link(self) -> str:
        """Return a link to the page, with the name of the section."""
        plain = (
            not self.section or self.section == self.title or "we have seen" in self.section
        )
        section = "" if plain else f": {self.section}"
        return f"[{self.title}](../{self.page}.ipynb){section}"


def places(root: Path = ROOT) -> dict[str, list[Place]]:
    """Return for each id the sections that cover it, in the order of the book."""
    found: dict[str, list[Place]] = {}
    for names in map_page.pages(root).values():
        for name in names:
            for identity, place in _of_page(name, root):
                known = found.setdefault(identity, [])
                if all(place.page != other.page for other in known):
                    known.append(place)
    return found


def _of_page(name: str, root: Path) -> Iterator[tuple[str, Place]]:
    notebook = nbformat.read(root / f"{name}.ipynb", as_version=4)
    title = section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = _heading(cell.source)
            title = title or heading
            section = heading or section
        for identity in cell.metadata.get("covers", []):
            yield identity, Place(name, title, section)


def _heading(source: str) -> str:
    lines = (line for line in source.splitlines() if line.startswith("#"))
    return next(lines, "").lstrip("#").strip()


def _table(heading: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    lines = [f"## {heading}", "", "| id | what | where |", "|---|---|---|"]
    lines += [f"| {' | '.join(_cell(part) for part in row)} |" for row in rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def text(root: Path = ROOT) -> str:
    """Return the page."""
    found = places(root)
    lines = [OPENING]
    for name, (heading, column) in KINDS.items():
        listed = pd.read_csv(
            ROOT / "support" / "results" / "inventory" / f"{name}.csv",
            keep_default_na=False,
        )
        rows = [
            (
                row["id"],
                f"{row[column]} *({row['source']})*" if "source" in row else row[column],
                "; ".join(place.link() for place in found.get(row["id"], []))
                or "no page yet",
            )
            for _, row in listed.iterrows()
        ]
        standing = sum(row[2] != "no page yet" for row in rows)
        lines += _table(f"{heading}: {standing} of {len(rows)}", rows)
    return "\n".join(lines)
