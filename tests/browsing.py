"""The page in Chromium: what its tests share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, expect
from serving import Served, serving

WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

Opens = Callable[..., Page]


@contextmanager
def simulated(**settings: Any) -> Iterator[Served]:
    """A server as ``make run`` starts it: with simulated answers, here at a pace to read along."""
    pace = {"simulated_tokens_per_second": 60}
    with serving(model="simulated", openai_base_url=None, **{**pace, **settings}) as one:
        yield one


def ask(page: Page, text: str) -> None:
    """Write a question and send it."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def over(page: Page) -> None:
    """Wait until the answer is complete, or has ended otherwise."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
