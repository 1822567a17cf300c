"""What a reader does with the site: follow links, search, open the contents, take a page to Colab."""

import json
from functools import cache
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import PAGES, PHONE, SITE

from tools import address as repository
from tools.build_book import ROOT, pages

NOTEBOOKS = [page.relative_to(ROOT).as_posix() for page in pages()]
ALL = [
    str(path.relative_to(SITE))
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts
]


def html_of(notebook):
    return notebook.replace(".ipynb", ".html")


def html_is_a_notebook(name):
    return name.replace(".html", ".ipynb") in NOTEBOOKS


@cache
def parsed(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path):
    return {tag["id"] for tag in parsed(path).find_all(id=True)} | {""}


def targets(path):
    """Yield what a page links to or shows, except what lies on other hosts."""
    for tag in parsed(path).find_all(["a", "img", "script", "link"]):
        target = urlsplit(tag.get("href") or tag.get("src") or "")
        if not target.scheme and not target.netloc and (target.path or target.fragment):
            yield target


@pytest.mark.parametrize("name", ALL)
def test_every_link_inside_the_site_leads_somewhere(name):
    here, broken = SITE / name, []
    for target in targets(here):
        there = (here.parent / unquote(target.path)).resolve() if target.path else here
        known = anchors(there) if there.suffix == ".html" and there.is_file() else {""}
        if there.name == "playground.html" and "=" in target.fragment:
            known = known | {
                unquote(target.fragment)
            }  # settings, tested in test_playground.py
        if not there.is_file() or unquote(target.fragment) not in known:
            broken.append(target.geturl())
    assert broken == []


def test_every_page_of_the_tree_is_rendered():
    assert {html_of(notebook) for notebook in NOTEBOOKS} <= set(PAGES)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_rocket_opens_a_file_that_is_in_git(visit, notebook):
    page = visit(html_of(notebook)).page
    link = page.get_by_role("link", name="Colab")
    assert not link.is_visible()
    page.get_by_label("Launch interactive content").click()
    assert link.is_visible()
    assert link.get_attribute("href") == (
        f"https://colab.research.google.com/github/{repository.current()}/blob/main/{notebook}"
    )
    assert ROOT / notebook in repository.files()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_can_be_downloaded(visit, notebook):
    page = visit(html_of(notebook)).page
    page.get_by_label("Download this page").click()
    link = page.locator("a.btn-download-source-button")
    assert link.is_visible()
    answer = page.request.get(link.evaluate("link => link.href"))
    assert json.loads(answer.body()) == json.loads((ROOT / notebook).read_text())


@pytest.mark.parametrize("name", PAGES)
def test_edits_and_issues_go_to_the_repository(name):
    start = f"https://github.com/{repository.current()}"
    page = parsed(SITE / name)
    edit = page.select_one("a.btn-source-edit-button")["href"]
    issue = page.select_one("a.btn-source-issues-button")["href"]
    assert issue.startswith(f"{start}/issues/new")
    source = name.replace(".html", ".ipynb" if html_is_a_notebook(name) else ".md")
    assert edit == f"{start}/edit/main/{source}"


def test_search_finds_a_theorem(visit):
    page = visit("search.html").page
    page.locator("form.bd-search input[name=q]:visible").first.fill("Descent lemma")
    page.keyboard.press("Enter")
    found = page.locator("#search-results li a[href*='lectures/gradient_descent.html']")
    found.first.wait_for(state="visible")
    found.first.click()
    page.wait_for_url("**/lectures/gradient_descent.html*")


def test_a_phone_opens_and_closes_the_contents(visit):
    page = visit("book/introduction.html", PHONE).page
    entry = page.locator(".bd-links a:visible", has_text="Gradient descent")
    toggle = page.locator("button.primary-toggle:visible")
    assert not entry.count()
    toggle.click()
    entry.wait_for(state="visible")
    page.keyboard.press("Escape")
    entry.wait_for(state="hidden")
    toggle.click()
    entry.click()
    page.wait_for_url("**/lectures/gradient_descent.html")


def test_a_phone_opens_what_is_on_the_page(visit):
    page = visit("lectures/gradient_descent.html", PHONE).page
    entry = page.locator("nav.page-toc a:visible").first
    assert not entry.count()
    page.locator("button.secondary-toggle:visible").click()
    entry.wait_for(state="visible")


def test_the_contents_can_be_put_away_on_a_desktop(visit):
    page = visit("book/introduction.html").page
    entry = page.locator(".bd-links a", has_text="Gradient descent")
    entry.wait_for(state="visible")
    page.locator("button.primary-toggle:visible").click()
    entry.wait_for(state="hidden")
    page.locator("button.primary-toggle:visible").click()
    entry.wait_for(state="visible")


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if n.startswith("lectures/")])
def test_solutions_are_folded_and_open(visit, notebook):
    page = visit(html_of(notebook)).page
    for solution in page.locator("div.solution.dropdown").all():
        body = solution.locator("section").first
        assert not body.is_visible()
        solution.locator("button.toggle-button").first.click()
        body.wait_for(state="visible")


def test_the_theme_stays_as_it_was_chosen(visit, address):
    seen = visit("book/introduction.html")
    theme = "document.documentElement.dataset.theme"
    assert seen.page.evaluate(theme) == "light"
    for _ in range(3):  # auto, light, dark
        if seen.page.evaluate(theme) == "light":
            seen.page.locator(".theme-switch-button:visible").first.click()
    assert seen.page.evaluate(theme) == "dark"
    seen.go(address + "lectures/gradient_descent.html")
    assert seen.page.evaluate(theme) == "dark"


ANIMATED = [name for name in PAGES if 'class="animation"' in (SITE / name).read_text()]


def test_there_are_animations():
    assert ANIMATED


@pytest.mark.parametrize("name", ANIMATED)
def test_an_animation_plays_when_it_is_asked_to_and_stops(visit, name):
    page = visit(name).page
    for box in page.locator("div.animation").all():
        button, slider = box.locator("button"), box.locator("input")
        lines = box.locator("polyline")
        last, still = slider.input_value(), lines.first.get_attribute("points")
        assert last == slider.get_attribute("max")
        assert len(box.locator("svg").get_attribute("aria-label")) > 20
        button.click()
        page.wait_for_function(
            "slider => Number(slider.value) > 0 && Number(slider.value) < Number(slider.max)",
            arg=slider.element_handle(),
        )
        button.press("Enter")
        here = slider.input_value()
        page.wait_for_timeout(300)
        assert slider.input_value() == here != last
        assert still.startswith(lines.first.get_attribute("points"))
        slider.press("End")
        assert lines.first.get_attribute("points") == still
