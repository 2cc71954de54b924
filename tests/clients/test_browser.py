"""A page's plain ``EventSource`` in Chromium: it comes back by itself, and stops at the 204 for good."""

import json
from collections.abc import Iterator

import httpx
import pytest
from machine import chromium
from playwright.sync_api import Browser, Page
from scripted import Gate, Scripted, words
from serving import serving
from story import Eventually, Seen, Story, documented, telling

READ = """url => {
    window.seen = [];
    window.told = [];
    window.lost = 0;
    window.source = new EventSource(url);
    const types = ["run.started", "message.started", "token", "message.finished", "usage", "run.finished"];
    for (const type of types) {
        window.source.addEventListener(type, one => window.seen.push([one.lastEventId, one.type, one.data]));
    }
    window.source.onerror = one => {
        if (one.data === undefined) window.lost += 1;
        else window.told.push(JSON.parse(one.data).code);
    };
}"""

STOPPED = "() => window.source.readyState === EventSource.CLOSED"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def story() -> Iterator[Story]:
    with telling() as one:
        yield one


def page_of(browser: Browser, origin: str) -> Page:
    """A page of the server's own origin, as ``EventSource`` and the server want it."""
    page = browser.new_page()
    page.goto(f"{origin}/health/live")
    return page


def seen_by(page: Page) -> list[Seen]:
    return [Seen(*event) for event in page.evaluate("window.seen")]


def test_a_page_whose_line_breaks_five_times_has_every_event_once_and_stops_by_itself(
    browser: Browser, story: Story, eventually: Eventually
) -> None:
    page = page_of(browser, story.proxy.url)
    # Where a head breaks off on a connection that has lain idle, Chromium asks again by itself and tells nobody.
    story.proxy.hang_up()
    page.evaluate(READ, story.url)
    story.tell(eventually)
    page.wait_for_function(STOPPED, timeout=20_000)
    story.check(seen_by(page))
    assert page.evaluate("window.lost") == 7
    assert story.requests == 7  # one, five after the breaks, and the one that is told to stop
    page.close()


def test_a_second_tab_and_a_late_one_read_the_same_run(browser: Browser) -> None:
    with telling(breaks=()) as story:
        first, second, third, last = story.gates
        early = page_of(browser, story.proxy.url)
        early.evaluate(READ, story.url)
        first.open()
        early.wait_for_function("() => window.seen.length >= 5")
        beside = page_of(browser, story.proxy.url)
        beside.evaluate(READ, story.url)
        second.open()
        beside.wait_for_function("() => window.seen.length >= 10")
        third.open()
        last.open()
        early.wait_for_function(STOPPED, timeout=20_000)
        late = page_of(browser, story.proxy.url)
        late.evaluate(READ, story.url)
        for page in (early, beside, late):
            page.wait_for_function(STOPPED, timeout=20_000)
            story.check(seen_by(page))
            page.close()


def test_the_runs_own_error_and_a_lost_line_come_to_one_handler_and_only_the_first_has_data(browser: Browser) -> None:
    turn = [*words("It ", "was "), RuntimeError("broken")]
    with serving({"breaks": Scripted(turns=[turn])}) as served:
        run_id = httpx.post(f"{served.url}/agents/breaks/runs", json={"input": "Tell me."}).json()["run_id"]
        page = page_of(browser, served.url)
        page.evaluate(READ, f"{served.url}/runs/{run_id}/events")
        page.wait_for_function(STOPPED, timeout=20_000)
        assert page.evaluate("window.told") == ["agent_error"]
        assert page.evaluate("window.lost") == 2  # the stream's end, and the 204
        last = seen_by(page)[-1]
        assert (last.event, json.loads(last.data)["status"]) == ("run.finished", "failed")
        page.close()


TAKE = """run => {
    window.said = {text: "", errors: [], ends: []};
    window.stop = follow(run, {
        onText: text => window.said.text += text,
        onError: error => window.said.errors.push(error.code),
        onEnd: end => window.said.ends.push([end.status, end.reason]),
    });
}"""


def test_the_code_in_the_docs_tells_a_page_all_it_has_to_know(browser: Browser) -> None:
    breaks = Scripted(turns=[[*words("It ", "was "), RuntimeError("broken")]])
    waits = Scripted(turns=[[*words("It ", "is "), Gate()]])
    with serving({"breaks": breaks, "waits": waits}) as served:
        page = page_of(browser, served.url)
        page.add_script_tag(content=documented("js"))

        def start(agent: str) -> None:
            run_id = httpx.post(f"{served.url}/agents/{agent}/runs", json={"input": "Tell me."}).json()["run_id"]
            page.evaluate(TAKE, run_id)

        start("breaks")
        page.wait_for_function("() => window.said.ends.length")
        assert page.evaluate("window.said") == {
            "text": "It was ",
            "errors": ["agent_error"],
            "ends": [["failed", "agent_error"]],
        }
        start("waits")
        page.wait_for_function("() => window.said.text === 'It is '")
        page.evaluate("window.stop()")
        page.wait_for_function("() => window.said.ends.length")
        assert page.evaluate("window.said.ends") == [["cancelled", "requested"]]
        page.evaluate(TAKE, "no-such-run")
        page.wait_for_function("() => window.said.errors.length")
        assert page.evaluate("window.said") == {"text": "", "errors": ["stream_refused"], "ends": []}
        page.close()
