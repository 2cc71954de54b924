"""What the page shows of runs: the lanes, the raw events, the list of runs and what was spent."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from browsing import Opens, ask, over, simulated
from playwright.sync_api import BrowserContext, Locator, Page, expect
from serving import Served

LONG = "Write a long answer. [[tokens=2000&tokens_per_second=40]]"
TWO_TOOLS = "What time is it in Tokyo, and what is 17*23?"
GONE = "The server cannot be reached. Is it running?"
OFFLINE = "ERR_INTERNET_DISCONNECTED"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server that is quick where a test does not say otherwise: most of them look at what is over."""
    with simulated(simulated_tokens_per_second=400) as one:
        yield one


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """A server that asks its provider one thing at a time, and whose readers must not lag far."""
    with simulated(upstream_concurrency=1, subscriber_max_events=32) as one:
        yield one


def chat(server: Served, agent: str = "assistant") -> str:
    return f"{server.url}/#/chat/{agent}"


def done(server: Served, text: str, agent: str = "assistant") -> str:
    """The address of a run that is over."""
    started = httpx.post(f"{server.url}/agents/{agent}/runs", json={"input": text}).json()
    httpx.get(f"{server.url}/runs/{started['run_id']}/result?wait=true", timeout=30).raise_for_status()
    return f"{server.url}/#/run/{started['run_id']}"


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).click()
    over(page)


def told(server: Served, path: str) -> Any:
    return httpx.get(f"{server.url}/{path}").raise_for_status().json()


def words(page: Page, name: str, value: Any) -> str:
    """How the page says a number."""
    said: str = page.evaluate("async ([name, value]) => (await import('/web/words.js'))[name](value)", [name, value])
    return said


# -- the lanes --------------------------------------------------------------------------------------------------------


def lanes(page: Page) -> Locator:
    return page.get_by_role("region", name="Lanes", exact=True)


def row(page: Page, *cells: str | re.Pattern[str]) -> Locator:
    """The rows of the lanes' table that have all of these."""
    found = lanes(page).get_by_role("row")
    for text in cells:
        found = found.filter(has_text=text)
    return found


def shown(opened: Opens, address: str) -> Page:
    """The page of a run that is over, when all of it is drawn."""
    page = opened(address)
    expect(lanes(page)).to_contain_text("Completed after")
    return page


def as_table(page: Page) -> None:
    lanes(page).get_by_role("button", name="Table").click()


def test_each_node_and_each_tool_has_a_lane_while_the_run_goes_on_and_when_it_is_over(
    server: Served, opened: Opens
) -> None:
    page = opened(chat(server))
    ask(page, f"{TWO_TOOLS} [[call=2&tokens=2000&tokens_per_second=40]]")
    names = lanes(page).locator(".lanes-name")
    rows = ["run", "model", "check", "tools", "clock", "calculator"]
    expect(names).to_have_text(rows)
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    expect(lanes(page)).to_contain_text("3 nodes, 2 tool calls")
    stop(page)
    expect(names).to_have_text(rows)
    expect(lanes(page)).to_contain_text("Stopped after")


def test_each_branch_of_a_research_is_headed_by_its_question(server: Served, opened: Opens) -> None:
    page = opened(chat(server, "research"))
    ask(page, "Compare the weather in Oslo and in Rome.")
    headings = lanes(page).locator(".lanes-row-branch .lanes-name")
    expect(headings).to_have_text([re.compile("1 .*Oslo"), re.compile("2 .*Rome")])
    over(page)
    expect(headings).to_have_text([re.compile("1 .*Oslo"), re.compile("2 .*Rome")])
    as_table(page)
    expect(row(page, "Branch", "Rome", "state: ok")).to_have_count(1)


def test_a_tool_that_failed_is_told_from_the_others_by_words(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, "What is 1/0, and what time is it in Tokyo?"))
    failed = lanes(page).locator(".lanes-row-tool", has_text="calculator")
    expect(failed.locator(".lanes-figure")).to_have_text("failed")
    expect(lanes(page).locator(".lanes-row-tool", has_text="clock")).not_to_contain_text("failed")
    expect(lanes(page).locator(".lanes-legend li").filter(has_text="failed")).to_be_visible()


def test_the_lanes_are_there_as_a_table_too(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, "What is 1/0, and what time is it in Tokyo?"))
    as_table(page)
    table = lanes(page).get_by_role("button", name="Table")
    expect(table).to_have_attribute("aria-pressed", "true")
    expect(row(page, "Tool calculator", "state: failed", "divides by zero")).to_have_count(1)
    expect(row(page, "Tool clock", "state: done", "Tokyo")).to_have_count(1)
    expect(row(page, "The run is over", "state: completed")).to_have_count(1)
    expect(lanes(page).get_by_role("group", name=re.compile("Timeline"))).to_be_hidden()
    table.press("Enter")
    expect(lanes(page).get_by_role("group", name=re.compile("Timeline"))).to_be_visible()


def test_a_wait_for_the_provider_is_a_stretch_of_its_own(narrow: Served, opened: Opens) -> None:
    first = opened(chat(narrow, "chat"))
    ask(first, LONG)
    expect(first.locator(".answer .md")).not_to_be_empty()
    second = opened(chat(narrow, "chat"))
    ask(second, "Hello.")
    expect(lanes(second).locator(".lanes-labels")).to_contain_text("queued at 1")
    as_table(second)
    expect(row(second, "Queued", "so far", "place: 1")).to_have_count(1)
    stop(first)
    over(second)
    expect(row(second, "Queued", "place: 1")).not_to_contain_text("so far")


def test_a_pause_is_a_stretch_of_its_own(server: Served, opened: Opens) -> None:
    page = opened(chat(server))
    page.get_by_role("button", name="Pause after paragraph").click()
    ask(page, "Write 2 paragraphs about mills. [[paragraphs=2]]")
    go_on = page.get_by_role("button", name="Continue")
    expect(go_on).to_be_visible()
    expect(lanes(page).locator(".lanes-labels")).to_contain_text("paused")
    as_table(page)
    expect(row(page, "Paused", "so far")).to_have_count(1)
    go_on.click()
    over(page)
    expect(row(page, "Paused").last).not_to_contain_text("so far")


def test_what_a_reader_missed_is_in_its_lanes_and_among_its_events(narrow: Served, opened: Opens) -> None:
    page = opened(chat(narrow, "chat"))
    ask(page, "Write at length. [[tokens=3000&tokens_per_second=0]]")
    over(page)
    expect(lanes(page)).to_contain_text(re.compile(r"This page missed [\d,]+ events?\."))
    as_table(page)
    expect(row(page, "Missed by this page", "the answer is whole").first).to_be_visible()
    page.get_by_role("searchbox").fill("gap")
    expect(events(page).get_by_role("treeitem").first).to_contain_text('"dropped"')


def test_an_item_tells_of_itself_to_who_points_at_it_and_to_who_comes_by_the_arrow_keys(
    server: Served, opened: Opens
) -> None:
    page = shown(opened, done(server, TWO_TOOLS))
    tip = lanes(page).locator(".lanes-tip")
    lanes(page).locator(".lanes-row-tool", has_text="calculator").hover()
    expect(tip).to_contain_text("Tool calculator")
    expect(tip).to_contain_text("391")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    said = lanes(page).get_by_role("status")
    lanes(page).get_by_role("group", name=re.compile("Timeline")).focus()
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text(re.compile("^run: "))
    page.keyboard.press("ArrowDown")
    expect(said).to_have_text(re.compile("^model: Node at work, starts at .*, takes "))
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text(re.compile("^model: Message.*pieces: "))
    expect(tip).to_contain_text("Message")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_plus_shows_less_time_and_nought_the_whole_run_again(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, TWO_TOOLS))
    whole = lanes(page).get_by_role("button", name="Whole run")
    expect(whole).to_have_attribute("aria-disabled", "true")
    axis = lanes(page).locator(".lanes-axis text")
    marks = axis.all_text_contents()
    lanes(page).get_by_role("group", name=re.compile("Timeline")).press("+")
    expect(whole).to_have_attribute("aria-disabled", "false")
    assert axis.all_text_contents() != marks
    page.keyboard.press("0")
    expect(whole).to_have_attribute("aria-disabled", "true")
    expect(axis).to_have_text(marks)


# -- the raw events ---------------------------------------------------------------------------------------------------


def events(page: Page) -> Locator:
    return page.get_by_role("tree", name="Raw events")


def test_text_is_folded_into_one_line_that_opens_and_closes(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, "Hello. [[tokens=30]]", "chat"))
    line = events(page).get_by_role("treeitem", name="token × 30")
    expect(line).to_have_attribute("aria-expanded", "false")
    line.locator(".events-twist").click()
    expect(line).to_have_attribute("aria-expanded", "true")
    pieces = events(page).locator("[aria-level='2']")
    expect(pieces.first).to_contain_text('"text"')
    events(page).press("ArrowLeft")
    expect(pieces).to_have_count(0)
    page.get_by_label("fold text").uncheck()
    expect(line).to_have_count(0)
    expect(events(page).locator(".events-type").get_by_text("token", exact=True).first).to_be_visible()


def test_the_filter_takes_words_and_words_to_leave_out(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, TWO_TOOLS))
    items = events(page).get_by_role("treeitem")
    count = page.locator(".events-count")
    expect(count).to_have_text(re.compile(r"^\d+ events$"))
    field = page.get_by_role("searchbox")
    field.fill("tool.finished")
    expect(items).to_have_count(2)
    expect(count).to_have_text(re.compile(r"^2 of \d+ events$"))
    field.fill("-tool, -token, -message, -node")
    expect(items.filter(has_text="run.finished")).to_have_count(1)
    expect(items.filter(has_text="tool")).to_have_count(0)
    field.fill("")
    expect(items.filter(has_text="tool").first).to_be_visible()


def test_an_event_is_opened_by_the_pointer_and_by_the_keyboard(server: Served, opened: Opens) -> None:
    page = shown(opened, done(server, TWO_TOOLS))
    items = events(page).get_by_role("treeitem")
    detail = page.get_by_role("region", name="One event")
    events(page).press("Home")
    items.filter(has_text="run.started").click()
    expect(detail).to_contain_text("run.started, id 1")
    expect(detail.locator("pre")).to_contain_text('"event": "run.started"')
    events(page).press("End")
    expect(detail).to_contain_text("run.finished")
    detail.get_by_role("button", name="Close").click()
    expect(detail).to_be_hidden()
    expect(events(page)).to_be_focused()
    page.keyboard.press("Enter")
    expect(detail).to_contain_text("run.finished")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()


def test_who_has_scrolled_up_stays_where_they_are_until_they_ask_for_the_newest(server: Served, opened: Opens) -> None:
    page = opened(chat(server, "chat"))
    ask(page, "Write a long answer. [[tokens=4000&tokens_per_second=100]]")
    page.get_by_label("fold text").uncheck()
    counted = page.locator(".events-count")
    lines = "least => Number.parseInt(document.querySelector('.events-count').textContent.replace(',', '')) >= least"
    page.wait_for_function(lines, arg=60)
    at_the_end = "one => one.scrollTop + one.clientHeight >= one.scrollHeight - 24"
    assert events(page).evaluate(at_the_end)
    newest = page.get_by_role("button", name="↓ Newest")
    expect(newest).to_be_hidden()
    events(page).hover()
    page.mouse.wheel(0, -400)
    expect(newest).to_be_visible()
    place = events(page).evaluate("one => one.scrollTop")
    seen = int(counted.inner_text().split()[0].replace(",", ""))
    page.wait_for_function(lines, arg=seen + 20)
    assert events(page).evaluate("one => one.scrollTop") == place
    newest.click()
    expect(newest).to_be_hidden()
    page.wait_for_function(lines, arg=seen + 40)
    assert events(page).evaluate(at_the_end)
    stop(page)


# -- usage ------------------------------------------------------------------------------------------------------------


def usage(server: Served) -> str:
    return f"{server.url}/#/usage"


def figure(page: Page, name: str) -> Locator:
    term = page.get_by_role("term").filter(has_text=re.compile(f"^{name}$"))
    return page.locator(".usage-figures > div").filter(has=term)


def test_nothing_spent_is_said_and_then_the_figures_are_those_of_the_server(opened: Opens) -> None:
    with simulated() as server:
        page = opened(usage(server))
        expect(page.get_by_text("Nothing was spent in the last 30 days.")).to_be_visible()
        page.get_by_role("button", name="Look 90 days back").click()
        expect(page.get_by_text("Nothing was spent in the last 90 days.")).to_be_visible()
        expect(page.get_by_role("button", name="90 days", exact=True)).to_have_attribute("aria-pressed", "true")
        done(server, "Write at length. [[tokens=300&tokens_per_second=0]]", "chat")
        page.goto(chat(server, "chat"))
        ask(page, LONG)
        expect(page.locator(".answer .md")).not_to_be_empty()
        stop(page)
        page.get_by_role("link", name="Usage").click()
        total = told(server, "usage?days=90")["total"]
        cancelled = total["cancelled"]
        assert cancelled["runs"] == 1
        assert cancelled["saved_tokens"] > 0
        expect(figure(page, "Tokens")).to_contain_text(words(page, "count", total["total_tokens"]))
        expect(figure(page, "Cost")).to_contain_text(words(page, "money", total["cost_usd"]))
        expect(figure(page, "Runs")).to_contain_text("1 completed")
        expect(figure(page, "Stopped")).to_contain_text("1 of 2 runs")
        saved = words(page, "count", cancelled["saved_tokens"])
        expect(figure(page, "Saved by stopping")).to_contain_text(f"about {saved} tokens")
        stopped = page.get_by_role("region", name="Stopped runs, and what stopping saved")
        expect(stopped).to_contain_text(f"they would have come to about {saved} tokens more")


def test_the_pictures_go_as_far_back_as_one_chooses(server: Served, opened: Opens) -> None:
    done(server, "Hello.", "chat")
    page = opened(usage(server))
    days = page.get_by_role("group", name="Tokens a day").get_by_role("img")
    expect(days).to_have_count(30)
    page.get_by_role("button", name="7 days").click()
    expect(days).to_have_count(7)
    expect(days.last).to_have_accessible_name(re.compile(r", so far: simulated in [\d,]+, simulated out [\d,]+$"))


def test_how_long_one_waited_is_told_in_words_and_bin_by_bin(server: Served, opened: Opens) -> None:
    done(server, "Hello.", "chat")
    runs = [one for one in told(server, "runs")["runs"] if one["ttft_ms"] is not None]
    page = opened(usage(server))
    panel = page.get_by_role("region", name="Time to the first token")
    expect(panel).to_contain_text(re.compile(rf"Of {len(runs)} runs?, half began to answer within .* \(p50\)"))
    bins = panel.get_by_role("group", name="Runs by their time to the first token").get_by_role("img")
    named = [bins.nth(at).get_attribute("aria-label") or "" for at in range(bins.count())]
    assert sum(int(name.rsplit(": ", 1)[1].split()[0]) for name in named) == len(runs)


def test_the_arrow_keys_go_from_column_to_column(server: Served, opened: Opens) -> None:
    done(server, "Hello.", "chat")
    page = opened(usage(server))
    panel = page.get_by_role("region", name="Time to the first token")
    bins = panel.get_by_role("img")
    bins.last.focus()
    page.keyboard.press("ArrowLeft")
    at = bins.count() - 2
    expect(bins.nth(at)).to_be_focused()
    expect(panel.locator(".charts-told")).to_have_text(bins.nth(at).get_attribute("aria-label") or "")
    page.keyboard.press("Home")
    expect(bins.first).to_be_focused()
    assert bins.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1


def test_a_server_that_is_gone_is_told_and_asked_again(server: Served, opened: Opens, context: BrowserContext) -> None:
    done(server, "Hello.", "chat")
    page = opened(usage(server), OFFLINE)
    expect(figure(page, "Tokens")).to_be_visible()
    context.set_offline(True)
    page.get_by_role("button", name="Refresh").click()
    alert = page.get_by_role("alert").filter(has_text=GONE)
    expect(alert).to_be_visible()
    context.set_offline(False)
    alert.get_by_role("button", name="Try again").press("Enter")
    expect(figure(page, "Tokens")).to_be_visible()
    assert page.evaluate("document.activeElement !== document.body")


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_listed_and_stopped_there_and_opened(server: Served, opened: Opens) -> None:
    asking = opened(chat(server))
    ask(asking, LONG)
    expect(asking.locator(".answer .md")).not_to_be_empty()
    page = opened(f"{server.url}/#/runs")
    newest = page.get_by_role("table", name="Runs, newest first").get_by_role("row").nth(1)
    expect(newest).to_contain_text("running")
    stopping = newest.get_by_role("button", name=re.compile("^Stop"))
    stopping.press("Enter")
    expect(newest).to_contain_text("stopped")
    expect(stopping).to_be_hidden()
    expect(newest.get_by_role("button", name=re.compile("^Open"))).to_be_focused()
    over(asking)
    page.keyboard.press("Enter")
    expect(lanes(page)).to_contain_text("Stopped after")
    expect(lanes(page).locator(".lanes-name").first).to_have_text("run")


def test_a_list_that_cannot_be_renewed_stays_and_says_since_when(
    server: Served, opened: Opens, context: BrowserContext
) -> None:
    done(server, "Hello.", "chat")
    page = opened(f"{server.url}/#/runs", OFFLINE)
    rows = page.get_by_role("table", name="Runs, newest first").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("completed")
    listed = rows.count()
    context.set_offline(True)
    page.get_by_role("button", name="Refresh").click()
    alert = page.get_by_role("alert").filter(has_text=GONE)
    expect(alert).to_contain_text(re.compile(r"The list is from \d\d:\d\d:\d\d\."))
    expect(rows).to_have_count(listed)
    context.set_offline(False)
    page.get_by_role("button", name="Try again").press("Enter")
    expect(alert).to_have_count(0)
    assert page.evaluate("document.activeElement !== document.body")
