"""What tests use of the machine. A program that is not there skips its tests, and fails them where CI is set."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(reason: str) -> NoReturn:
    """Skip, or fail where CI is set."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(*names: str, package: str) -> str:
    """The path of the first of these programs that is there; ``package`` is Debian's."""
    for name in names:
        if path := shutil.which(name):
            return path
    missing(f"no {names[0]} on this machine: install the Debian package {package!r}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. Not for a whole session: while it is there, this thread can have no event loop of its own."""
    path = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield one
        one.close()
