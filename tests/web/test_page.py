"""The page as a person uses it, in Chromium, against a real server with simulated answers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsing import Opens, ask, over, simulated
from playwright.sync_api import BrowserContext, Page, expect
from serving import Served

LONG = "Write a long answer. [[tokens=200&tokens_per_second=40]]"


def talk(server: Served, agent: str = "assistant") -> str:
    return f"{server.url}/#/chat/{agent}"


def answer(page: Page, at: int = -1) -> str:
    """The text of an answer, as it stands."""
    shown = page.locator(".answer").nth(at)
    return "\n".join(shown.locator(".md").all_inner_texts())


def written(page: Page, words: int) -> None:
    """Wait until there are so many words."""
    page.wait_for_function(
        "words => (document.querySelector('.answer:last-child .md')?.innerText ?? '').split(/\\s+/).length >= words",
        arg=words,
    )


def run_id(page: Page) -> str:
    stored = page.evaluate("Object.entries(localStorage).find(([key]) => key.startsWith('millrace.conversation.'))[1]")
    found: str = json.loads(stored)["turns"][-1]["runId"]
    return found


def result(server: Served, run: str) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{server.url}/runs/{run}/result?wait=true", timeout=30).json()
    return found


# -- an answer --------------------------------------------------------------------------------------------------------


def test_it_says_plainly_that_answers_are_simulated(server: Served, opened: Opens) -> None:
    page = opened(server.url)
    expect(page.get_by_text("answers are simulated")).to_be_visible()
    expect(page.get_by_role("button", name="Connected")).to_be_visible()


def test_an_answer_is_there_word_by_word_and_is_markdown_when_it_is_complete(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "chat"))
    text = "A **bold** word, `code`, and\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    ask(page, f"Say it. [[say={httpx.QueryParams({'x': text})['x'] and _quoted(text)}&tokens_per_second=20]]")
    written(page, 2)
    over(page)
    shown = page.locator(".answer")
    expect(shown.locator("strong")).to_have_text("bold")
    expect(shown.locator(".md-code pre")).to_have_text("print(1)")
    expect(shown.locator("td").first).to_have_text("1")
    for name in ("First word", "Speed", "Tokens", "Cost", "Took"):
        expect(shown.locator(".figures dt", has_text=name)).to_be_visible()


def _quoted(text: str) -> str:
    return httpx.URL("http://x", params={"x": text}).query.decode().removeprefix("x=").replace("+", "%20")


def test_tools_appear_when_they_are_named_and_show_what_came_of_them(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, "What time is it in Tokyo, and what is 17*23?")
    expect(page.locator(".tool")).to_have_count(2)
    over(page)
    calculator = page.get_by_label(re.compile("Tool calculator: done"))
    expect(calculator).to_contain_text("17*23")
    expect(calculator.locator(".tool-output")).to_contain_text("391")
    expect(calculator.locator(".tool-took")).not_to_be_empty()


def test_an_object_fills_in(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "extract"))
    ask(page, "Ada Lovelace met Charles Babbage in London. [[tokens_per_second=80]]")
    expect(page.locator(".object-head")).to_contain_text("so far")
    over(page)
    expect(page.locator(".object-head")).not_to_contain_text("so far")
    expect(page.locator(".object")).to_contain_text("London")


def test_branches_that_run_side_by_side_are_told_apart(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "research"))
    ask(page, "Compare the weather in Oslo and in Rome. [[call=all&tokens_per_second=400]]")
    expect(page.locator(".branch").nth(1)).to_be_attached()
    over(page)
    assert page.locator(".branch").count() >= 2
    assert answer(page)


# -- the person decides -----------------------------------------------------------------------------------------------


def test_stop_ends_the_run_and_keeps_what_was_written(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, LONG)
    written(page, 5)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer-state")).to_contain_text("Stopped")
    kept = answer(page)
    told = result(server, run_id(page))
    assert told["status"] == "cancelled"
    assert _plain(str(told["text"])) == _plain(kept)


def _plain(text: str) -> str:
    return re.sub(r"[\s#*`>-]+", "", text)


def test_escape_stops_too(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, LONG)
    written(page, 5)
    page.keyboard.press("Escape")
    expect(page.locator(".answer-state")).to_contain_text("Stopped")


def test_a_pause_comes_at_a_paragraphs_end_and_continue_goes_on(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    page.get_by_role("button", name="Pause after paragraph").click()
    ask(page, "Write 2 paragraphs about mills. [[paragraphs=2&tokens_per_second=200]]")
    expect(page.locator(".answer-state")).to_contain_text("Paused")
    paused = answer(page)
    go_on = page.get_by_role("button", name="Continue")
    go_on.click()
    over(page)
    assert len(answer(page)) > len(paused) > 0


def test_an_email_waits_for_a_person_who_may_change_it(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "approval"))
    ask(page, "Email ada@example.com that the build is green")
    form = page.get_by_role("form", name="The run waits for you")
    form.get_by_label("Edit").check()
    field = form.get_by_label("Arguments of send_email, as JSON")
    field.fill("{not json")
    form.get_by_role("button", name="Go on").click()
    expect(form.get_by_role("alert")).to_contain_text("no JSON")
    field.fill(json.dumps({"to": "ada@example.com", "subject": "Green", "body": "All is well."}))
    form.get_by_role("button", name="Go on").click()
    expect(page.locator(".question").last).to_have_text("You: Edited: send_email")
    over(page)
    expect(page.get_by_label("Tool send_email: done").last).to_be_visible()
    expect(form).to_have_count(0)


def test_an_email_that_is_rejected_is_not_written(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "approval"))
    ask(page, "Email ada@example.com that the build is green")
    form = page.get_by_role("form", name="The run waits for you")
    form.get_by_label("Reject").check()
    form.get_by_label("Why not").fill("Not yet.")
    form.get_by_role("button", name="Go on").click()
    expect(page.locator(".question").last).to_have_text("You: Rejected: send_email")
    over(page)
    expect(page.get_by_label("Tool send_email: done")).to_have_count(0)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_provider_that_fails_is_told_in_words_and_may_be_asked_again(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "chat"))
    ask(page, "Hello. [[drop_after=4&tokens_per_second=40]]")
    problem = page.locator(".problem")
    expect(problem).to_have_attribute("data-code", "provider_dropped")
    assert answer(page)  # what came is kept
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn")).to_have_count(2)


def test_its_place_in_the_line_is_shown(opened: Opens) -> None:
    with simulated(upstream_concurrency=1) as server:
        first = opened(talk(server, "chat"))
        ask(first, LONG)
        written(first, 2)
        second = opened(talk(server, "chat"))
        ask(second, "Hello.")
        expect(second.locator(".answer-state")).to_contain_text("number 1 in line")
        first.get_by_role("button", name="Stop").click()
        over(second)
        assert answer(second)


def test_a_refused_start_says_why(opened: Opens) -> None:
    with simulated(max_streams_per_user=1) as server:
        first = opened(talk(server, "chat"))
        ask(first, LONG)
        written(first, 2)
        second = opened(talk(server, "chat"))
        ask(second, "Hello.")
        expect(second.locator(".problem")).to_contain_text("Maximum concurrent streams reached")
        expect(second.get_by_role("button", name="Send")).to_be_visible()


# -- coming back ------------------------------------------------------------------------------------------------------


def test_a_reload_in_mid_answer_goes_on_where_it_was(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, LONG)
    written(page, 10)
    run = run_id(page)
    page.reload()
    written(page, 20)
    over(page)
    told = result(server, run)
    assert told["status"] == "completed"
    assert _plain(str(told["text"])) == _plain(answer(page))
    expect(page.locator(".turn")).to_have_count(1)


def test_a_second_tab_joins_the_run_and_hears_of_the_next_one(server: Served, opened: Opens) -> None:
    first = opened(talk(server))
    ask(first, LONG)
    written(first, 5)
    second = opened(first.url)
    written(second, 5)
    expect(second.get_by_role("button", name="Stop")).to_be_visible()
    second.get_by_role("button", name="Stop").click()
    over(first)
    over(second)
    ask(first, "What is 17*23?")
    expect(second.locator(".tool")).to_have_count(1)
    over(first)
    over(second)
    assert answer(second) == answer(first)


def test_a_browser_that_remembers_nothing_has_the_conversation_from_the_server(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, "What is 17*23?")
    over(page)
    said = answer(page)
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator(".question")).to_have_text("You: What is 17*23?")
    assert answer(page) == said


def test_offline_and_back(server: Served, opened: Opens, context: BrowserContext) -> None:
    page = opened(talk(server), "ERR_INTERNET_DISCONNECTED")
    ask(page, LONG)
    written(page, 5)
    context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("Offline")
    context.set_offline(False)
    expect(page.locator("#connection")).to_contain_text("Connected")
    over(page)
    assert _plain(str(result(server, run_id(page))["text"])) == _plain(answer(page))


# -- the connection, tried --------------------------------------------------------------------------------------------


def test_a_dropped_connection_loses_nothing(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, LONG)
    written(page, 5)
    page.get_by_role("button", name="Connected").click()
    page.get_by_role("button", name="Drop my connection").click()
    expect(page.locator(".trial")).to_contain_text("None is missing")
    page.keyboard.press("Escape")
    over(page)
    assert _plain(str(result(server, run_id(page))["text"])) == _plain(answer(page))


def test_a_slow_reader_sees_the_gap_and_has_the_whole_answer_in_the_end(server: Served, opened: Opens) -> None:
    page = opened(talk(server, "chat"))
    page.get_by_role("button", name="Connected").click()
    page.get_by_role("button", name="Slow my reader down").click()
    expect(page.locator(".trial")).to_contain_text("This reader was told of a gap", timeout=60_000)
    expect(page.locator(".gap").first).to_contain_text("fetched afterwards")
    assert _plain(str(result(server, run_id(page))["text"])) == _plain(answer(page))


def test_fifty_tabs_are_three_streams_and_forty_seven_refusals(opened: Opens) -> None:
    with simulated(max_streams_per_user=3) as server:
        page = opened(talk(server, "chat"))
        page.get_by_role("button", name="Connected").click()
        page.get_by_role("button", name="Open fifty tabs").click()
        expect(page.locator(".trial")).to_contain_text("3 let through, 47 refused with 429")
        expect(page.locator(".trial")).to_contain_text("Maximum concurrent streams reached")
        expect(page.locator(".tabs [data-state=done]")).to_have_count(3)


# -- the other views --------------------------------------------------------------------------------------------------


def test_the_lanes_and_the_raw_events_of_a_run_are_beside_it_and_can_be_taken_away(
    server: Served, opened: Opens
) -> None:
    page = opened(talk(server))
    ask(page, "What time is it in Tokyo, and what is 17*23?")
    over(page)
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Download")).click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["event"] == "run.finished"


def test_a_run_of_any_client_is_found_and_opened(server: Served, opened: Opens) -> None:
    started = httpx.post(f"{server.url}/agents/chat/runs", json={"input": "Write 30 words about a weir."}).json()
    result(server, started["run_id"])
    page = opened(f"{server.url}/#/run/{started['run_id']}")
    expect(page.locator(".figures")).to_contain_text("tokens/s")
    assert answer(page)


def test_a_run_that_is_not_there_says_so(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/#/run/no-such-run", "404")
    expect(page.get_by_role("alert").filter(has_text="no such run")).to_be_visible()


# -- keys -------------------------------------------------------------------------------------------------------------

KEY = "a-key-for-ada-that-nobody-guesses"


@pytest.fixture
def keyed() -> Iterator[Served]:
    with simulated(api_keys=f"{KEY}:ada") as one:
        yield one


def test_a_server_with_keys_asks_for_one_and_remembers_the_session(keyed: Served, opened: Opens) -> None:
    page = opened(keyed.url, "401")
    field = page.get_by_role("textbox", name="Key")
    field.fill("a-wrong-key")
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty()
    field.fill(KEY)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("button", name="Connected")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Connected")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
