"""The built site, served on this machine, in a real browser."""

import functools
import http.server
import threading
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page

from tools import browser as browsers
from tools.build_book import ROOT

SITE = ROOT / "_build" / "html"
PAGES = sorted(
    str(path.relative_to(SITE))
    for folder in ("book", "lectures", "notebooks")
    for path in (SITE / folder).glob("*.html")
)
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="session", autouse=True)
def _built():
    if not (SITE / "index.html").is_file():
        pytest.skip(
            "THE BOOK IS NOT BUILT, nothing of it was tested: run `make book` first"
        )


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files and say nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address():
    """Return the address at which the site is served."""
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    """Return the browser."""
    with browsers.opened() as program:
        yield program


@dataclass
class Visit:
    """A page in the browser, and what it asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hear(self, said):
        """Note what the console calls an error."""
        if said.type == "error":
            self.complaints.append(said.text)

    def go(self, url):
        """Open an address and wait until its mathematics is set."""
        self.page.goto(url, wait_until="load")
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        return self


class Visitors:
    """People who open pages, each for the first time."""

    def __init__(self, chromium, address):
        self.chromium, self.address, self.contexts = chromium, address, []

    def __call__(self, name, size=DESKTOP, theme="light"):
        """Open a page of the site on a screen of this size, set to light or dark."""
        width, height = size
        context = self.chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme
        )
        self.contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("console", seen.hear)
        return seen.go(self.address + name)

    def leave(self):
        """Close all pages."""
        for context in self.contexts:
            context.close()


@pytest.fixture
def visit(chromium, address):
    """Return a function that opens a page of the site as a new visitor."""
    visitors = Visitors(chromium, address)
    yield visitors
    visitors.leave()


@pytest.fixture(scope="module", params=PAGES)
def opened(request, chromium, address):
    """Return each page, opened by a new visitor on a light desktop, for tests that only look."""
    visitors = Visitors(chromium, address)
    yield visitors(request.param)
    visitors.leave()


@pytest.fixture(scope="module", params=PAGES)
def opened_at_night(request, chromium, address):
    """Return each page, opened by a new visitor on a dark phone, for tests that only look."""
    visitors = Visitors(chromium, address)
    yield visitors(request.param, PHONE, "dark")
    visitors.leave()
