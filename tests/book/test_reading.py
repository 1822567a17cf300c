"""Each page as a reader sees it: mathematics, pictures, no network, on a phone, light and dark."""

import re

from axe_playwright_python.base import AXE_SCRIPT

RAW = r"\\\(|\\\[|\$\$|\$[^$\n]*\\[a-z]+[^$\n]*\$|:::|\{(eq|prf:ref|ref|cite(:\w)?|doc)\}`"

# What is written in an article outside of code, mathematics that is set left out.
PROSE = """() => {
  const article = document.querySelector('article.bd-article').cloneNode(true);
  article.querySelectorAll('mjx-container, pre, code, script').forEach(e => e.remove());
  return article.textContent;
}"""

# The contrast of every text in an article with what is behind it: [ratio, text, element] below the limit.
FAINT = """(limit) => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    const unit = color.startsWith('color(') ? 255 : 1;
    return [r * unit, g * unit, b * unit, a];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color[3] > 0) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (color) => {
    const [r, g, b] = color.map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = new Set(), faint = [];
  const walker = document.createTreeWalker(
    document.querySelector('article.bd-article'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || seen.has(element) || element.closest('script, style, .headerlink, button')) continue;
    seen.add(element);
    const background = behind(element);
    const color = over(parse(getComputedStyle(element).color), background);
    const [low, high] = [light(color), light(background)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < limit) faint.push(
      [ratio.toFixed(2), text.slice(0, 40), element.tagName + '.' + element.className]);
  }
  return {count: seen.size, faint};
}"""

# What sticks out of the page to the right and does not scroll by itself.
WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll('article.bd-article *')]
    .filter(e => e.getBoundingClientRect().right > width + 1)
    .map(e => e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40))
    .concat('the document').slice(0, 10);
}"""

# What axe-core calls serious or worse. Formulas, most of the elements of a page, are boxes of their size meanwhile.
SERIOUS = """async () => {
  const formulas = [...document.querySelectorAll('mjx-container')];
  const parts = formulas.map(e => [e.scrollWidth, [...e.childNodes]]);
  formulas.forEach((e, i) => {
    const box = document.createElement('span');
    box.style.cssText = `display: inline-block; width: ${parts[i][0]}px`;
    box.textContent = 'formula';
    e.replaceChildren(box);
  });
  try {
    const options = {resultTypes: ['violations'], elementRef: false};
    const {violations} = await axe.run(document, options);
    return violations.filter(v => ['serious', 'critical'].includes(v.impact))
      .map(v => [v.id, v.help, v.nodes.map(n => n.target.join(' '))]);
  } finally {
    formulas.forEach((e, i) => e.replaceChildren(...parts[i][1]));
  }
}"""


def test_mathematics_is_set(opened):
    page = opened.page
    if page.locator("article .math").count():
        assert page.locator("article mjx-container").count()
    assert not page.locator("mjx-merror, [data-mjx-error]").count()
    assert not re.search(RAW, page.evaluate(PROSE))


def test_nothing_is_fetched_from_elsewhere(opened, address):
    assert [url for url in opened.requests if not url.startswith((address, "data:"))] == []


def test_the_console_is_clean(opened):
    assert opened.complaints == []


def test_every_picture_says_what_it_shows(opened):
    for picture in opened.page.locator("article img").all():
        alternative, source = picture.get_attribute("alt"), picture.get_attribute("src")
        assert alternative, source
        assert not alternative.endswith((".png", ".svg")), source
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0"), source


def faint(visit, theme):
    """Return the texts of a page that do not stand out, once it is sure that it has this theme."""
    assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
    measured = visit.page.evaluate(FAINT, 4.5)
    assert measured["count"] > 5
    return measured["faint"]


def test_text_stands_out_in_the_light_theme(opened):
    assert faint(opened, "light") == []


def test_text_stands_out_in_the_dark_theme(opened_at_night):
    assert faint(opened_at_night, "dark") == []


def test_a_phone_shows_the_page_at_its_own_width(opened_at_night):
    assert opened_at_night.page.evaluate(WIDE) == []


def test_the_console_is_clean_on_a_phone(opened_at_night):
    assert opened_at_night.complaints == []


def serious(visit):
    """Return what axe-core finds in a page: rule, what it asks for, where."""
    visit.page.evaluate(AXE_SCRIPT)
    return visit.page.evaluate(SERIOUS)


def test_axe_finds_nothing_serious(opened):
    assert serious(opened) == []


def test_axe_finds_nothing_serious_on_a_dark_phone(opened_at_night):
    assert serious(opened_at_night) == []


def test_axe_finds_a_picture_without_words(visit):
    seen = visit("book/introduction.html")
    seen.page.evaluate("document.querySelector('article').append(new Image(9, 9))")
    assert [rule for rule, *_ in serious(seen)] == ["image-alt"]
