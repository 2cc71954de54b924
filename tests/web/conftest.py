"""A browser for a file of tests, and a tab for each, which must keep quiet in the console."""

from collections.abc import Iterator

import pytest
from browsing import WIDE, Opens, simulated
from machine import chromium
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, expect
from serving import Served

WAIT_MS = 20_000
"""For what a busy machine may take its time to show."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with simulated() as one:
        yield one


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One person's browser: its tabs share what it remembers."""
    one = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    one.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    yield one
    one.close()


@pytest.fixture
def opened(context: BrowserContext) -> Iterator[Opens]:
    """Open a tab. What a page says in the console, or throws, fails the test; ``expected`` may stand in it."""
    said: list[str] = []
    allowed: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    def failed(error: Error) -> None:
        said.append(str(error))

    def tab(url: str, *expected: str) -> Page:
        allowed.extend(expected)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", failed)
        page.goto(url)
        return page

    yield tab
    assert [one for one in said if not any(words in one for words in allowed)] == []
