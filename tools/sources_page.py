"""The text of ``book/sources.md``: where each thing that the sources contain stands in the course."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
from myst_parser.mdit_to_docutils.base import default_slugify

from tools import map_page

ROOT = Path(__file__).resolve().parent.parent
KINDS = {  # name of the list -> heading, column that says what it is
    "methods": ("Methods", "title"),
    "experiments": ("Experiments", "task"),
    "figures": ("Figures", "must_show"),
    "claims": ("Claims", "hypothesis"),
    "errata": ("Errata", "title"),
}

NOWHERE = "no page yet"
NOT_NEEDED = "nothing needed"  # what a figure must show that is a logo or the like

OPENING = """\
# Sources

The course goes back to five works in Russian: lectures of Victor Kitov and of Danila Baigushev (2021), and
theses of Vladimir A. Zholobov (2021), Mariya P. Kuznetsova (2023) and Vladislav D. Chabanenko. Here stand the
methods, experiments, figures and claims that they contain, and the errata that we found in them, each with its
place in the course. What the errata say stands in [](errata.md), what came of the claims in [](claims.md), the
printed numbers in [](results.md). The page is generated from what the pages say that they cover.

"""


@dataclass(frozen=True)
class Place:
    """A section of a page that covers something."""

    page: str
    title: str
    section: str
    anchor: str

    def link(self) -> str:
        """Return a link to the section, named by its page and, unless it is the last one, its heading."""
        plain = self.section == self.title or "we have seen" in self.section
        text = self.title if plain else f"{self.title}: {self.section}"
        return f"[{text}](../{self.page}.ipynb{self.anchor})"


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
    title, here, known = "", ("", ""), set()
    for cell in notebook.cells:
        headings = list(_headings(cell, known))
        if headings:
            title = title or headings[0][0]
            here = headings[0]
        for identity in cell.metadata.get("covers", []):
            yield identity, Place(name, title, *here)
        here = headings[-1] if headings else here


def _headings(cell: nbformat.NotebookNode, known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the headings of a cell, each with the anchor that MyST gives it; deeper than three levels, none."""
    if cell.cell_type != "markdown":
        return
    for level, heading in re.findall(r"^(#+) +(.+?) *$", cell.source, re.MULTILINE):
        if len(level) > 3:
            yield heading, ""
            continue
        plain = re.sub(r"\$[^$]*\$|[*`]|\]\([^)]*\)|\[", "", heading)
        slug = base = default_slugify(plain)
        number = 0
        while slug in known:
            number += 1
            slug = f"{base}-{number}"
        known.add(slug)
        yield heading, f"#{slug}"


def _table(heading: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    lines = [f"## {heading}", "", "| id | what | where |", "|---|---|---|"]
    lines += [f"| {' | '.join(_cell(part) for part in row)} |" for row in rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def where(identity: str, found: dict[str, list[Place]]) -> str:
    """Return links to the places of an id."""
    return "; ".join(place.link() for place in found.get(identity, [])) or NOWHERE


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
                f"not needed, because it is the {row['label']}"
                if row.get("must_show") == NOT_NEEDED
                else where(row["id"], found),
            )
            for _, row in listed.iterrows()
        ]
        standing = sum(row[2] != NOWHERE for row in rows)
        lines += _table(f"{heading}: {standing} of {len(rows)}", rows)
    return "\n".join(lines)
