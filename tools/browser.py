"""Find a Chromium for the printed book and the tests of the built one; as a script, make sure that one is there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return the path of a Chromium that starts, ``None`` if there is none.

    Looked for in this order: the variable ``BROWSER_PATH``, the programs on the path, Playwright's own.
    """
    if named := os.environ.get("BROWSER_PATH"):
        if not starts(named):
            sys.exit(f"BROWSER_PATH={named}: this is not a browser that starts")
        return named
    installed = [path for name in NAMES if (path := shutil.which(name))]
    return next((path for path in installed if starts(path)), None) or playwrights_own()


@contextmanager
def opened() -> Iterator[Browser]:
    """Start the Chromium that is there, and close it at the end.

    Raises
    ------
    SystemExit
        If there is none.
    """
    path = find()
    if not path:
        sys.exit("no Chromium found: `make browser` installs one or says how")
    root = os.name == "posix" and os.geteuid() == 0
    switches = ["--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=switches + ["--no-sandbox"] * root
        )
        yield browser
        browser.close()


def playwrights_own() -> str | None:
    """Return the path of the Chromium that Playwright has downloaded, ``None`` if it has not."""
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() and starts(path) else None


def starts(program: str) -> bool:
    """Tell whether a browser can say its version: one without its system libraries cannot."""
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def install() -> None:
    """Try to install a Chromium: Playwright's own, then, where it may, the system's."""
    print("No Chromium found; installing one", flush=True)
    own = [sys.executable, "-m", "playwright", "install", "chromium"]
    if subprocess.run(own, check=False).returncode == 0 and playwrights_own():
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=False)


def main() -> None:
    """Say which browser the tests will use."""
    if not (browser := find()):
        install()
        browser = find()
    if not browser:
        sys.exit(
            "The tests of the built book need a Chromium: install the package `chromium` of your system,"
            "\nor run `.venv/bin/python -m playwright install --with-deps chromium`,"
            "\nor name one that is there: make test BROWSER_PATH=/path/to/chrome"
        )
    print(f"Browser: {browser}")


if __name__ == "__main__":
    main()
