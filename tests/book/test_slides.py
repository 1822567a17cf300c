"""The slides as a lecturer sees them: set, within the frame, without a network; and the archive is complete."""

import re
import zipfile

import nbformat
import pytest
from conftest import SITE, Visitors
from test_reading import RAW

from tools import slides

SMALLEST = 220  # pixels: a figure that is lower cannot be read from the last row
FRAME = (1280, 720)
LONGEST = 60  # seconds of a processor that a demonstration may take

# What leaves the frame of its slide, and figures that are too low: [slide, what].
MISFITS = """(smallest) => {
  const bad = [];
  for (const section of document.querySelectorAll('.slides > section')) {
    section.style.cssText = 'display: block !important; visibility: visible; top: 0';
    section.hidden = false;
    const content = section.querySelector('.content'), frame = content.getBoundingClientRect();
    const say = (what) => bad.push([section.querySelector('h2').textContent, what]);
    if (!frame.width) say('is not shown');
    for (const e of content.querySelectorAll('*:not(mjx-container *)')) {
      const box = e.getBoundingClientRect();
      if (!box.width || e.closest('svg') && e.tagName !== 'svg') continue;
      if (box.bottom > frame.bottom + 2 || box.top < frame.top - 2 || box.right > frame.right + 2)
        say(`${e.tagName}.${e.className} leaves the frame`);
      if (e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).display === 'block')
        say(`${e.tagName}.${e.className} is too wide`);
      if (e.tagName === 'IMG' && box.height < smallest) say(`a figure only ${box.height} high`);
    }
    section.style.cssText = '';
  }
  return bad;
}"""
PROSE = """() => {
  const slides = document.querySelector('.slides').cloneNode(true);
  slides.querySelectorAll('mjx-container, pre, code, script, style').forEach(e => e.remove());
  return slides.textContent;
}"""


@pytest.fixture(scope="module", params=slides.taught())
def deck(request, chromium, address):
    """Return the slides of each lecture, all of them, in a window of their size."""
    visitors = Visitors(chromium, address)
    yield request.param, visitors(f"slides/{request.param}.html", FRAME)
    visitors.leave()


def test_nothing_leaves_its_slide(deck):
    lecture, visit = deck
    shown = visit.page.locator(".slides > section").count()
    assert shown == len(slides.read(lecture)) + 2  # the title, the routes
    assert visit.page.evaluate(MISFITS, SMALLEST) == []


def test_mathematics_is_set_and_no_directive_is_raw(deck):
    page = deck[1].page
    assert page.locator("mjx-container").count()
    assert not page.locator("mjx-merror, [data-mjx-error]").count()
    prose = page.evaluate(PROSE)
    assert not re.search(RAW, prose)
    assert "![" not in prose


def test_nothing_is_fetched_from_elsewhere(deck, address):
    requests = deck[1].requests
    assert [
        url for url in requests if not url.startswith((address, "data:", "blob:"))
    ] == []
    assert deck[1].complaints == []


def test_every_picture_says_what_it_shows(deck):
    for picture in deck[1].page.locator(".slides img").all():
        assert len(picture.get_attribute("alt") or "") > 20
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")


def test_a_route_shows_its_slides_and_minutes(deck, address):
    lecture, visit = deck
    chosen = [slide for slide in slides.read(lecture) if 45 in slide.minutes]
    visit.go(f"{address}slides/{lecture}.html?route=45")
    marks = visit.page.locator(".mark span").all_text_contents()
    visit.go(f"{address}slides/{lecture}.html")
    assert len(marks) == len(chosen)
    assert marks[-1].endswith("to 45 of 45")


@pytest.mark.parametrize("lecture", slides.taught())
def test_the_page_leads_to_its_slides_and_the_archive_is_complete(lecture):
    links = slides.article(lecture).select("h1 + p.slides-line a")
    assert [link["href"] for link in links] == [
        f"../slides/{lecture}.html",
        f"../slides/{lecture}.zip",
    ]
    with zipfile.ZipFile(SITE / "slides" / f"{lecture}.zip") as archive:
        text = archive.read(f"{lecture}_slides/{lecture}.html").decode()
        used = re.findall(r'(?:src|href)="((?:images|assets)/[^"]+)"', text)
        assert len(used) > 5
        assert {f"{lecture}_slides/{name}" for name in used} <= set(archive.namelist())
        assert f"{lecture}_slides/{lecture}_demonstration.ipynb" in archive.namelist()


@pytest.mark.parametrize("lecture", slides.taught())
def test_a_demonstration_takes_less_than_a_minute(lecture):
    path = SITE / "slides" / f"{lecture}_demonstration.ipynb"
    assert 0 < slides.seconds(nbformat.read(path, as_version=4)) < LONGEST
