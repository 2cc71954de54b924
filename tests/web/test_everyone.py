"""The page for everyone: by keyboard and by ear, on a phone and on a slow machine, in the light and in the dark."""

import json
from typing import Any

import pytest
from browsing import PHONE, Opens, ask, over, simulated
from node import packages
from playwright.sync_api import Browser, Page, expect
from serving import Served

TWO_TOOLS = "What time is it in Tokyo, and what is 17*23?"


def findings(page: Page) -> list[str]:
    """What axe-core takes for serious, or worse."""
    page.evaluate((packages() / "axe-core" / "axe.min.js").read_text("utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['target']} {one['nodes'][0].get('failureSummary', '')}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_without_serious_findings(server: Served, opened: Opens, scheme: str) -> None:
    page = opened(server.url)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    assert findings(page) == []
    ask(page, TWO_TOOLS)
    expect(page.locator(".tool")).to_have_count(2)
    over(page)
    assert findings(page) == []
    page.get_by_role("button", name="Connected").click()
    assert findings(page) == []
    page.keyboard.press("Escape")
    for view, shown in (("Runs", "assistant"), ("Usage", "Tokens")):
        page.get_by_role("link", name=view).click()
        expect(page.locator("main")).to_contain_text(shown)
        assert findings(page) == []


def test_a_question_that_waits_for_a_person_is_without_serious_findings(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/#/chat/approval")
    ask(page, "Email ada@example.com that the build is green")
    expect(page.get_by_role("form", name="The run waits for you")).to_be_visible()
    assert findings(page) == []


def test_all_of_it_is_done_by_the_keyboard(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/#/chat/chat")
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("Write a long answer. [[tokens=400&tokens_per_second=40]]")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".answer-state")).to_contain_text("Stopped")


def test_who_listens_hears_what_happens(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/#/chat/assistant")
    page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver(() => window.heard.push(document.getElementById("said").textContent))
                .observe(document.getElementById("said"), {childList: true});
        }"""
    )
    ask(page, TWO_TOOLS)
    over(page)
    heard = page.evaluate("window.heard")
    assert any("Tokyo" in one or "…" in one for one in heard[:-1])
    assert heard[-1].startswith("Answer complete")


def widest(page: Page) -> int:
    """How far anything reaches that can be seen, in px."""
    reach: int = page.evaluate(
        """() => Math.max(innerWidth, ...[...document.querySelectorAll("header *, main > :not([hidden]), .composer *")]
            .map(one => Math.floor(one.getBoundingClientRect().right)))"""
    )
    return reach


def test_on_a_phone_nothing_is_wider_than_the_screen(server: Served, browser: Browser) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{server.url}/#/chat/assistant")
    ask(page, TWO_TOOLS)
    over(page)
    for view in ("Chat", "Runs", "Usage"):
        page.get_by_role("link", name=view).click()
        assert widest(page) <= PHONE["width"], view
    page.get_by_role("link", name="Chat").click()
    page.get_by_role("button", name="Lanes").first.click()
    assert widest(page) <= PHONE["width"]
    page.get_by_role("button", name="Close the lanes").click()
    expect(page.get_by_label("Message")).to_be_visible()
    context.close()


def longest_task(page: Page) -> float:
    """The most processor time, in ms, that one task of the page took: what others did meanwhile does not count."""
    assert page.context.browser is not None
    events: list[dict[str, Any]] = json.loads(page.context.browser.stop_tracing())["traceEvents"]
    threads = {(one["pid"], one["tid"]) for one in events if one["name"] == "FunctionCall"}
    tasks = [one for one in events if one["name"].endswith("RunTask") and (one["pid"], one["tid"]) in threads]
    assert tasks
    return max(float(one.get("tdur", 0)) for one in tasks) / 1000


def test_an_answer_of_five_thousand_tokens_never_holds_the_page_up(opened: Opens) -> None:
    with simulated(simulated_tokens_per_second=1000) as server:
        page = opened(f"{server.url}/#/chat/chat")
        expect(page.get_by_role("button", name="Connected")).to_be_visible()
        assert page.context.browser is not None
        page.context.browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline"])
        ask(page, "Write at length. [[tokens=5000&paragraphs=40]]")
        over(page)
        assert longest_task(page) < 100
