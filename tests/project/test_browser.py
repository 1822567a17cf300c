"""Where the tests of the built book look for a browser."""

import pytest

from tools import browser


def program(folder, name, status=0):
    """Write a program that ends with this status, and return its path."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "playwrights_own", lambda: None)


def test_the_named_browser_comes_first(monkeypatch, tmp_path):
    program(tmp_path, "chromium")
    named = program(tmp_path, "mine")
    monkeypatch.setenv("BROWSER_PATH", named)
    assert browser.find() == named


def test_a_named_browser_that_does_not_start_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", program(tmp_path, "mine", status=127))
    with pytest.raises(SystemExit, match="not a browser that starts"):
        browser.find()


def test_a_browser_without_its_libraries_is_passed_over(tmp_path):
    program(tmp_path, "chromium", status=127)
    assert browser.find() is None
    chrome = program(tmp_path, "google-chrome")
    assert browser.find() == chrome


def test_without_any_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(browser, "install", lambda: None)
    with pytest.raises(SystemExit, match="need a Chromium: install the package"):
        browser.main()
