"""Print the built site into one PDF, ``dist/descent.pdf``, through a browser: no LaTeX.

Each page is printed by Chromium with the rules for print of ``book/_static/descent.css``, everything unfolded. Then
the chapters are put together in the order of the contents, behind a title and a table of contents.
"""

import html
import io
import sys
from collections.abc import Iterator

import yaml
from playwright.sync_api import Browser
from pypdf import PdfReader, PdfWriter

from tools import browser as browsers
from tools.build_book import ROOT

SITE = ROOT / "_build" / "html"
BOOK = ROOT / "dist" / "descent.pdf"
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "16mm", "right": "16mm"}

# Unfold what is folded, wait for pictures, and let links lead nowhere but within the page or to the world.
PREPARE = """async () => {
  await window.MathJax?.startup?.promise;
  document.documentElement.dataset.theme = 'light';
  document.querySelectorAll('details').forEach(e => e.open = true);
  document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'));
  document.querySelectorAll('img[loading]').forEach(e => e.removeAttribute('loading'));
  document.querySelectorAll('article a[href]').forEach(e => {
    if (e.protocol === 'file:' && e.pathname !== location.pathname) e.removeAttribute('href');
  });
  await Promise.all([...document.images].map(e => e.decode().catch(() => null)));
  await document.fonts.ready;
}"""
FRONT = """<!doctype html><meta charset="utf-8"><style>
body {{ font: 12pt/1.5 Arial, sans-serif; margin: 0; }}
h1 {{ font-size: 30pt; line-height: 1.2; margin-top: 60mm; }}
.title {{ break-after: page; }} table {{ border-collapse: collapse; width: 100%; }} td {{ padding: 1pt 0; }}
td + td {{ text-align: right; }} .part td {{ font-weight: bold; padding-top: 9pt; }}
</style><div class="title"><h1>{title}</h1><p>{author}</p><p>{copyright}</p></div><h2>Contents</h2>
<table>{rows}</table>"""
NUMBERS = """<!doctype html><meta charset="utf-8"><style>
@page {{ margin: 0; }} body {{ margin: 0; font: 9pt Arial, sans-serif; color: #444; }}
div {{ height: 297mm; position: relative; break-after: page; }}
div:last-child {{ break-after: auto; }} span {{ position: absolute; bottom: 9mm; width: 100%; text-align: center; }}
</style>{divs}"""


def contents() -> Iterator[tuple[str, list[str]]]:
    """Yield each part's caption and its pages, in the order of the book."""
    order = yaml.safe_load((ROOT / "_toc.yml").read_text())
    yield "", [order["root"]]
    for part in order["parts"]:
        yield part["caption"], [chapter["file"] for chapter in part["chapters"]]


def printed(browser: Browser, name: str) -> tuple[str, bytes]:
    """Return the title of a page of the site, and the page as a PDF."""
    page = browser.new_page()
    page.emulate_media(media="print", color_scheme="light")
    page.goto((SITE / f"{name}.html").as_uri(), wait_until="load")
    page.evaluate(PREPARE)
    title = page.locator("article h1").first.inner_text().strip().rstrip("#").strip()
    pdf = page.pdf(format="A4", margin=MARGIN, print_background=True, scale=0.8)
    page.close()
    return title, pdf


def from_html(browser: Browser, text: str, margin: dict[str, str] | None) -> PdfReader:
    """Return a text in HTML as a PDF."""
    page = browser.new_page()
    page.set_content(text)
    pdf = page.pdf(format="A4", margin=margin, prefer_css_page_size=False)
    page.close()
    return PdfReader(io.BytesIO(pdf))


def front(
    browser: Browser, parts: list[tuple[str, list[str]]], starts: dict[str, int]
) -> PdfReader:
    """Return the title and the table of contents; ``starts`` is title -> page."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())
    rows = []
    for caption, titles in parts:
        if caption:
            rows.append(
                f'<tr class="part"><td colspan="2">{html.escape(caption)}</td></tr>'
            )
        rows += [
            f"<tr><td>{html.escape(title)}</td><td>{starts[title]}</td></tr>"
            for title in titles
        ]
    fields = {key: html.escape(settings[key]) for key in ("title", "author", "copyright")}
    return from_html(browser, FRONT.format(rows="".join(rows), **fields), MARGIN)


def book(browser: Browser, parts: list[tuple[str, list[str]]]) -> PdfWriter:
    """Return the book of these pages: front, chapters with bookmarks, page numbers."""
    chapters, titled = {}, []
    for caption, names in parts:
        titles = []
        for name in names:
            title, pdf = printed(browser, name)
            chapters[title] = PdfReader(io.BytesIO(pdf))
            titles.append(title)
            print(f"  {title}: {len(chapters[title].pages)} pages", flush=True)
        titled.append((caption, titles))
    first = len(front(browser, titled, dict.fromkeys(chapters, 0)).pages) + 1
    starts = {}
    for title, chapter in chapters.items():
        starts[title] = first
        first += len(chapter.pages)
    writer = PdfWriter()
    writer.append(front(browser, titled, starts), import_outline=False)
    for title, chapter in chapters.items():
        writer.append(chapter, outline_item=title, import_outline=False)
    divs = "".join(f"<div><span>{n}</span></div>" for n in range(1, len(writer.pages) + 1))
    overlay = from_html(browser, NUMBERS.format(divs=divs), None)
    for page, number in zip(writer.pages, overlay.pages, strict=True):
        page.merge_page(number)
        page.compress_content_streams()  # merging has unpacked them
    return writer


def problems(pdf: PdfReader) -> list[str]:
    """Return what is wrong with a book: bookmarks that lead elsewhere, pages that hold nothing but their number."""
    found = []
    for item in pdf.outline:
        first = pdf.pages[pdf.get_destination_page_number(item)].extract_text()
        if squeezed(item.title)[:20] not in squeezed(first):
            found.append(f"the chapter {item.title!r} does not begin with its title")
    for number, page in enumerate(pdf.pages, 1):
        text = squeezed(page.extract_text()).removesuffix(str(number))
        if not text and not page.images:
            found.append(f"page {number} is blank")
    return found


def squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


def main() -> None:
    """Print the whole book and check it."""
    if not (SITE / "index.html").is_file():
        sys.exit("the PDF is printed from the built site: run `make book` first")
    with browsers.opened() as browser:
        writer = book(browser, list(contents()))
    BOOK.parent.mkdir(exist_ok=True)
    writer.write(BOOK)
    if found := problems(PdfReader(BOOK)):
        sys.exit("\n".join(found))
    print(f"{len(writer.pages)} pages: {BOOK}")


if __name__ == "__main__":
    main()
