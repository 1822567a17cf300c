"""The text of ``book/map.md``: which page needs which, as the pages themselves say under "Before you start"."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
ROW, LEFT, WIDTH = (
    26,
    150,
    480,
)  # height of a line, where the names begin, width; in the units of the drawing

OPENING = """\
# Which page needs which

Each line is a page, in the order of the book. An arc leads from what you need to the page that needs it,
which is always farther down. If you come for one method, follow its arcs upwards.

"""


def pages(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the notebooks of each part in the order of the contents: caption -> names without a suffix."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        part["caption"]: [chapter["file"] for chapter in part["chapters"]]
        for part in contents["parts"]
    }
    return {
        caption: [name for name in names if not name.startswith("book/")]
        for caption, names in parts.items()
        if any(not name.startswith("book/") for name in names)
    }


def opening_of(name: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """Return the title of a page, and the names of the pages that it says it needs."""
    notebook = nbformat.read(root / f"{name}.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = re.search(r"^# (.+)$", first, re.MULTILINE)[1]
    note = re.search(r":::\{admonition\} Before you start\n(.*?)\n:::", first, re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)\.ipynb", note[1]) if note else []
    folder = (root / name).parent
    return title, [
        (folder / link).resolve().relative_to(root.resolve()).as_posix() for link in links
    ]


def text(root: Path = ROOT) -> str:
    """Return the page.

    Raises
    ------
    ValueError
        If a page says that it needs one that comes after it.
    """
    parts = pages(root)
    order = [name for names in parts.values() for name in names]
    known = {name: opening_of(name, root) for name in order}
    for name, (_, needed) in known.items():
        for other in needed:
            if order.index(other) >= order.index(name):
                raise ValueError(f"{name} needs {other}, which does not come before it")
    titles = {name: title for name, (title, _) in known.items()}
    arcs = [(other, name) for name, (_, needed) in known.items() for other in needed]
    lines = [OPENING, "```{raw} html", drawing(parts, titles, arcs), "```", ""]
    lines += ["## The same as a list", ""]
    for name, (_, needed) in known.items():
        what = ", ".join(f"[](../{other}.ipynb)" for other in needed) or "no other page"
        lines.append(f"- [](../{name}.ipynb) needs {what}.")
    return "\n".join([*lines, ""])


def drawing(
    parts: Mapping[str, Iterable[str]],
    titles: Mapping[str, str],
    arcs: Iterable[tuple[str, str]],
) -> str:
    """Return the names below one another, with arcs to their left, as SVG."""
    height, place, shapes = 0, {}, []
    for caption, names in parts.items():
        height += ROW * 1.3
        shapes.append(f'<text x="{LEFT}" y="{height:.0f}" class="part">{caption}</text>')
        for name in names:
            height += ROW
            place[name] = height
            shapes.append(
                f'<a href="../{name}.html"><text x="{LEFT + 12}" y="{height:.0f}">'
                f"{html.escape(titles[name])}</text></a>"
            )
    for start, end in arcs:
        y0, y1 = place[start] - 4, place[end] - 6
        reach = LEFT - min(LEFT - 6, 16 + 0.55 * (y1 - y0))
        shapes.append(
            f'<path d="M{LEFT},{y0:.0f} C{reach:.0f},{y0:.0f} {reach:.0f},{y1:.0f} {LEFT + 6},{y1:.0f}"/>'
        )
    marker = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" class="tip"/></marker>'
    )
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH} {height + ROW / 2:.0f}" role="group" '
        f'aria-label="Pages with arcs from what is needed to what needs it; the list below says the same">'
        f"<defs>{marker}</defs>{''.join(shapes)}</svg>"
    )
