"""Build the slides of every lecture that has a teaching file, ``lectures/teaching/<lecture>.md``.

A teaching file holds what the page does not: the order, the minutes, short texts, notes for the speaker, a
derivation for the board, a problem, a demonstration. Figures, theorems, equations, code and outputs are taken by
name from the built page, so that slides and page cannot disagree. The format stands in ``CONTRIBUTING.md``.
"""

import html
import re
import shutil
import sys
import zipfile
from base64 import b64decode
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template

import nbformat
import yaml
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tools import build_book
from tools.build_book import ROOT

SITE = ROOT / "_build" / "html"
SLIDES = SITE / "slides"
TEACHING = ROOT / "lectures" / "teaching"
DEMONSTRATIONS = ROOT / "_build" / "demonstrations"
TEMPLATE = Path(__file__).with_name("slides.html")
ROUTES = (45, 90)  # minutes
KINDS = {"recall", "idea", "board", "problem", "solution", "demonstration", "recorded"}
HEADING = re.compile(
    r"^## (?P<title>.+?) \{(?P<kind>\w+)(?P<minutes>(?:, \d+: [\d.]+)*)\}$"
)
SECONDS = """# How much time of a processor this notebook has taken, in seconds.
import time

print(f"{time.process_time():.1f}")"""
REVEAL = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js")


@dataclass
class Slide:
    """A slide as the teaching file has it: route -> minutes, and two texts in Markdown."""

    title: str
    kind: str
    minutes: dict[int, float]
    body: str
    notes: str

    @property
    def code(self) -> str:
        """The program of a demonstration."""
        found = re.search(r"^```python\n(.*?)^```$", self.body, re.MULTILINE | re.DOTALL)
        return found[1].strip() if found else ""


def read(lecture: str) -> list[Slide]:
    """Return the slides of a teaching file.

    Raises
    ------
    ValueError
        If a heading has no kind, or one that is not known.
    """
    slides = []
    text = (TEACHING / f"{lecture}.md").read_text(encoding="utf-8")
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("\n")
        found = HEADING.match(heading)
        if not found or found["kind"] not in KINDS:
            raise ValueError(
                f"{lecture}.md: {heading!r} must end with {{kind, 45: minutes, 90: minutes}}, "
                f"the kind one of {sorted(KINDS)}"
            )
        minutes = {
            int(route): float(time)
            for route, time in re.findall(r"(\d+): ([\d.]+)", found["minutes"])
        }
        body, _, notes = rest.partition("\nNote:\n")
        slides.append(Slide(found["title"], found["kind"], minutes, body, notes))
    return slides


def taught() -> list[str]:
    """Return the lectures that have a teaching file."""
    return sorted(path.stem for path in TEACHING.glob("*.md"))


def lectures() -> list[str]:
    """Return all lectures, in the order of the book."""
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    files = [chapter["file"] for part in parts for chapter in part["chapters"]]
    return [Path(file).name for file in files if file.startswith("lectures/")]


@cache
def article(lecture: str) -> Tag:
    """Return the article of a built page."""
    text = (SITE / "lectures" / f"{lecture}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser").select_one("article.bd-article")


def element(lecture: str, name: str) -> Tag:
    """Return what a page calls by a name: a figure, a theorem, an equation, an exercise, a verdict.

    ``other#name`` is taken from the page of another lecture.

    Raises
    ------
    KeyError
        If the page has no such thing.
    """
    page, _, label = name.rpartition("#")
    for identity in (label, f"equation-{label}"):
        if found := article(page or lecture).find(id=identity):
            return found
    raise KeyError(f"the page {page or lecture} has nothing that is called {label}")


def cell(lecture: str, name: str) -> Tag:
    """Return the cell that defines a function or a class of this name, or has this id.

    Raises
    ------
    KeyError
        If the page has no such cell.
    """
    page, _, label = name.rpartition("#")
    page = page or lecture
    notebook = nbformat.read(ROOT / "lectures" / f"{page}.ipynb", as_version=4)
    wanted = re.compile(rf"^(def|class) {re.escape(label)}\b", re.MULTILINE)
    sources = [
        one.source.strip()
        for one in notebook.cells
        if one.cell_type == "code" and (one.id == label or wanted.search(one.source))
    ]
    for found in article(page).select("div.cell"):
        text = found.select_one("pre")
        if sources and text and text.get_text().strip() == sources[0]:
            return found
    raise KeyError(f"the page {page} shows no cell that is called {label} or defines it")


@dataclass
class Deck:
    """The slides of one lecture, while they are put together."""

    lecture: str
    recorded: list[Tag] = field(default_factory=list)
    pictures: set[str] = field(default_factory=set)

    def markdown(self, text: str) -> str:
        """Return a text in Markdown as HTML, with what it refers to in place."""
        text = re.sub(
            r"\{(?:eq|prf:ref|numref|ref)\}`([^`]+)`", lambda m: self.number(m[1]), text
        )
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        parser.use(dollarmath_plugin, renderer=mathematics, double_inline=True)
        parser.options["highlight"] = coloured
        soup = BeautifulSoup(parser.render(text), "html.parser")
        for block in soup.find_all("pre"):
            block.wrap(soup.new_tag("div", attrs={"class": "highlight"}))
        for image in soup.find_all("img"):
            parts = self.taken(image["alt"], image["src"])
            for picture in (one for part in parts for one in part.select("img:not([alt])")):
                picture["alt"] = image[
                    "title"
                ]  # of what was recorded: the page says it of its own
            image.parent.replace_with(*parts)
        return str(soup)

    def number(self, name: str) -> str:
        """Return the number that the book gives to an equation, a theorem, a figure."""
        found = element(self.lecture, name).select_one(".eqno, .caption-number")
        return re.sub(r"[#\s]+", " ", found.get_text()).strip()

    def taken(self, what: str, name: str) -> list[Tag]:
        """Return a copy of what the page or the demonstration holds."""
        if what == "code":
            found = [cell(self.lecture, name).select_one(".highlight")]
        elif what == "output":
            found = [cell(self.lecture, name).select_one(".cell_output")]
        elif what == "recorded":
            found = self.recorded
        else:
            found = [element(self.lecture, name)]
        if None in found or not found:
            raise KeyError(f"{self.lecture}: nothing to show for ![{what}]({name})")
        return [self.clean(BeautifulSoup(str(one), "html.parser")) for one in found]

    def clean(self, part: BeautifulSoup) -> BeautifulSoup:
        """Make a part of a page fit for a slide: no links within the book, its pictures beside it."""
        for one in part.select(".headerlink, button.copybtn"):
            one.decompose()
        for link in part.select("a:not([href^=http])"):
            link.unwrap()
        for dialogue in part.select("details.hide"):
            dialogue.decompose()
        for image in part.select("img[src*=_images]"):
            self.pictures.add(Path(image["src"]).name)
            image["src"] = f"images/{Path(image['src']).name}"
        return part

    def section(self, slide: Slide) -> str:
        """Return one slide as HTML."""
        minutes = " ".join(
            f'data-m{route}="{slide.minutes[route]:g}"'
            for route in ROUTES
            if route in slide.minutes
        )
        return (
            f'<section class="{slide.kind}" {minutes}><div class="slide">'
            f"<h2>{inline(self.markdown(slide.title))}</h2>"
            f'<div class="content">{self.markdown(slide.body)}</div></div>'
            f'<aside class="notes">{self.markdown(slide.notes)}</aside></section>'
        )

    def route(self, slides: list[Slide], minutes: int) -> str:
        """Return a route as a list: the minute at which each slide begins, and its title."""
        rows, now = [], 0.0
        for slide in (slide for slide in slides if minutes in slide.minutes):
            title = inline(self.markdown(slide.title))
            rows.append(f"<tr><td>{now:g}</td><td>{title}</td></tr>")
            now += slide.minutes[minutes]
        return f"<table><caption>{minutes} minutes</caption>{''.join(rows)}</table>"


def mathematics(content: str, options: dict) -> str:
    """Return mathematics as MathJax reads it."""
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f'<span class="math">{left}{html.escape(content)}{right}</span>'


def coloured(code: str, language: str, _: str) -> str:
    """Return a block of code as the pages colour it."""
    if language != "python":
        return ""
    return f"<pre>{highlight(code, PythonLexer(), HtmlFormatter(nowrap=True))}</pre>"


def inline(text: str) -> str:
    """Return HTML without the paragraph around it."""
    return text.strip().removeprefix("<p>").removesuffix("</p>")


def demonstration(lecture: str) -> Path:
    """Write the notebook of a lecture's demonstration; the first cell is the page's, which installs on Colab."""
    page = nbformat.read(ROOT / "lectures" / f"{lecture}.ipynb", as_version=4)
    setup = next(one for one in page.cells if one.cell_type == "code")
    code = next(slide.code for slide in read(lecture) if slide.kind == "demonstration")
    notebook = nbformat.v4.new_notebook(metadata=page.metadata)
    notebook.cells = [
        nbformat.v4.new_code_cell(source, id=f"demonstration-{number}")
        for number, source in enumerate([setup.source, code, SECONDS])
    ]
    path = DEMONSTRATIONS / f"{lecture}_demonstration.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def seconds(executed: nbformat.NotebookNode) -> float:
    """Return how much time of a processor a recorded demonstration took, the start of Python included."""
    return float(executed.cells[-1].outputs[0]["text"])


def outputs(lecture: str, notebook: nbformat.NotebookNode) -> list[Tag]:
    """Return what a demonstration showed, as HTML; pictures are written beside the slides."""
    found = []
    printed = "".join(one.get("text", "") for one in notebook.cells[1].outputs)
    if printed:
        text = f'<pre class="output">{html.escape(printed)}</pre>'
        found.append(BeautifulSoup(text, "html.parser"))
    for number, one in enumerate(notebook.cells[1].outputs):
        data = one.get("data", {})
        if "image/png" in data:
            name = f"{lecture}_demonstration_{number}.png"
            (SLIDES / "images" / name).write_bytes(b64decode(data["image/png"]))
            text = f'<figure><img src="images/{name}"></figure>'
        elif "text/html" in data:
            text = data["text/html"]
        else:
            continue
        found.append(BeautifulSoup(text, "html.parser"))
    return found


def build(lecture: str, executed: nbformat.NotebookNode) -> None:
    """Write the slides of a lecture and the archive to download, and link both from its page."""
    slides, deck = read(lecture), Deck(lecture, outputs(lecture, executed))
    path = DEMONSTRATIONS / f"{lecture}_demonstration.ipynb"
    heading = article(lecture).h1.get_text().rstrip("#").strip()
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        lecture=lecture,
        title=re.sub(r"^[\d.]+\s*", "", heading),
        slides="\n".join(map(deck.section, slides)),
        routes="".join(deck.route(slides, minutes) for minutes in ROUTES),
        seconds=f"{seconds(executed):.0f}",
    )
    (SLIDES / f"{lecture}.html").write_text(text, encoding="utf-8")
    nbformat.write(executed, SLIDES / path.name)
    for name in deck.pictures:
        shutil.copy(SITE / "_images" / name, SLIDES / "images" / name)
    pictures = [SLIDES / "images" / name for name in sorted(deck.pictures)]
    pictures += sorted((SLIDES / "images").glob(f"{lecture}_demonstration_*"))
    files = [SLIDES / f"{lecture}.html", SLIDES / path.name, *pictures]
    files += sorted((SLIDES / "assets").iterdir())
    with zipfile.ZipFile(SLIDES / f"{lecture}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"{lecture}_slides/{file.relative_to(SLIDES)}")
    link(lecture)


def link(lecture: str) -> None:
    """Put the line that leads to the slides under the title of the built page, once."""
    page = SITE / "lectures" / f"{lecture}.html"
    line = (
        f'<p class="slides-line">To teach this lecture: <a href="../slides/{lecture}.html">slides</a> '
        f'(<a href="../slides/{lecture}.zip">download</a>), for 45 or 90 minutes.</p>'
    )
    text = page.read_text(encoding="utf-8")
    if line not in text:
        before, article_tag, after = text.partition('<article class="bd-article">')
        after = after.replace("</h1>", f"</h1>\n{line}", 1)
        page.write_text(before + article_tag + after, encoding="utf-8")


def copy_assets() -> None:
    """Put what all slides need beside them: reveal.js, MathJax in one file, the colours of code."""
    assets = SLIDES / "assets"
    shutil.rmtree(SLIDES, ignore_errors=True)
    (SLIDES / "images").mkdir(parents=True)
    assets.mkdir()
    reveal = Path(str(resources.files("sphinx_revealjs"))) / "_static" / "revealjs"
    for name in REVEAL:
        shutil.copy(reveal / name, assets)
    for name in ("mathjax/tex-svg-full.js", "pygments.css", "descent.css"):
        shutil.copy(SITE / "_static" / name, assets)


def main() -> None:
    """Build the slides of every lecture that has a teaching file, and say which have none."""
    if not (SITE / "index.html").is_file():
        sys.exit("the slides are taken from the built site: run `make book` first")
    names = [name for name in lectures() if name in taught()]
    executed = build_book.execute([demonstration(name) for name in names])
    copy_assets()
    for name, notebook in zip(names, executed.values(), strict=True):
        build(name, notebook)
    print(
        f"Slides of {len(names)} lecture(s): {SLIDES.relative_to(ROOT)}/<lecture>.html, .zip"
    )
    if waiting := [name for name in lectures() if name not in names]:
        print(f"No teaching file yet: {', '.join(waiting)}")


if __name__ == "__main__":
    main()
