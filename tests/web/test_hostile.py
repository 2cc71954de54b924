"""The page among what means it no good, and what merely goes wrong: each a thing that somebody's browser will meet."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from browsing import Opens, simulated
from langchain_core.runnables import Runnable
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from playwright.sync_api import Browser, BrowserContext, Page, expect
from scripted import Scripted, say
from serving import Served, serving
from story import Eventually
from typing_extensions import TypedDict

ROOT = Path(__file__).resolve().parents[2]

LONG = "Write a long answer. [[tokens=400&tokens_per_second=40]]"

SAID = {
    "markup": '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script><style>body{display:none}</style>'
    '<form id="log"><input name="message"></form><svg onload="window.hurt=1"></svg>',
    "links": "[a](javascript:window.hurt=1) [b](data:text/html,x) [c](JaVaScRiPt&colon;window.hurt=1) [d](/session) "
    "[e](//evil.example) [f](vbscript:x) ![g](https://evil.example/?stolen) ![h](javascript:window.hurt=1)",
    "nested": "> " * 4000 + "deep",
    "brackets": "[" * 20_000,
    "stars": "*a_" * 8_000,
}


class Wanted(TypedDict):
    """What the agent `counts` takes: an object."""

    number: int
    label: str


def looped(model: Scripted) -> Runnable[Any, Any]:
    async def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    return graph.compile()


def counting() -> Runnable[Any, Any]:
    def count(state: Wanted) -> dict[str, Any]:
        return {"label": "counted"}

    graph = StateGraph(Wanted)
    graph.add_node("count", count)
    graph.add_edge(START, "count")
    return graph.compile()


def odd() -> Runnable[Any, Any]:
    """Emits events of its own that bear the names of ours, and things that are no JSON."""

    def emit(state: MessagesState) -> dict[str, Any]:
        tell = get_stream_writer()
        tell({"name": "branch.started", "data": None})
        for name in ("branch.started", "branch.finished", "provider.retry", "__proto__", "constructor"):
            tell({"name": name, "question": {"a": 1}})
            tell({"event": name, "__proto__": {"a": 1}, "picture": b"\x00\x01"})
        return {"messages": [("ai", "Said all of it.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("emit", emit)
    graph.add_edge(START, "emit")
    return graph.compile()


def asking() -> Runnable[Any, Any]:
    def ask_person(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"You said {interrupt({'__proto__': 'x', 'which': 'red or blue?'})}.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask_person)
    graph.add_edge(START, "ask")
    return graph.compile()


@pytest.fixture(scope="module")
def hostile() -> Iterator[Served]:
    agents = {f"says.{name}": looped(Scripted(turns=[[say(text)]])) for name, text in SAID.items()}
    mine = {"constructor": odd(), "counts": counting(), "asks": asking()}
    with serving({**agents, **mine}) as one:
        yield one


def talk(server: Served, agent: str = "chat") -> str:
    return f"{server.url}/#/chat/{agent}"


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def over(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def written(page: Page, words: int) -> None:
    page.wait_for_function(
        "words => (document.querySelector('.turn:last-child .md')?.innerText ?? '').split(/\\s+/).length >= words",
        arg=words,
    )


def stored(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        page.evaluate("Object.entries(localStorage).find(([key]) => key.startsWith('millrace.conversation.'))[1]")
    )
    return found


# -- what a model says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAID)
def test_whatever_a_model_says_is_shown_and_neither_obeyed_nor_fatal(hostile: Served, opened: Opens, name: str) -> None:
    page = opened(talk(hostile, f"says.{name}"))
    ask(page, "Say it.")
    expect(page.locator(".figures")).to_contain_text("Took")
    over(page)
    assert page.locator(".answer .md").inner_text().strip()
    assert page.locator(".answer .md :is(script, style, form, img, svg, input)").count() == 0
    links = page.locator(".answer .md a[href]").evaluate_all("links => links.map(one => one.getAttribute('href'))")
    assert [one for one in links if not one.startswith("https://")] == []
    assert page.evaluate("window.hurt") is None


def test_an_agent_may_be_called_as_a_thing_of_javascript_and_emit_events_of_our_names(
    hostile: Served, opened: Opens
) -> None:
    page = opened(talk(hostile, "constructor"))
    ask(page, "Hello.")
    over(page)
    expect(page.locator(".figures")).to_contain_text("Took")
    expect(page.locator(".problem")).to_have_count(0)


def test_an_agent_that_takes_an_object_is_given_one_and_its_line_is_not_left_to_the_next_agent(
    hostile: Served, opened: Opens
) -> None:
    page = opened(talk(hostile, "counts"))
    field = page.get_by_label("Message")
    expect(field).to_have_value(re.compile('"number": 0'))
    field.fill("{oops")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("takes an object")
    field.fill('{"number": 1, "label": "x"}')
    page.keyboard.press("Enter")
    expect(page.locator(".figures")).to_contain_text("Took")
    page.get_by_label("Agent").select_option("chat")
    expect(field).to_have_value("")


def test_an_answer_whose_end_is_known_only_afterwards_is_shown_once(server: Served, opened: Opens) -> None:
    page = opened(server.url)
    shown = page.evaluate(
        """async () => {
            const { Growing } = await import("./web/markdown.js");
            const growing = new Growing();
            for (const text of ["One.", "One.\\n\\nTwo."]) growing.finish(text);
            return growing.element.textContent;
        }"""
    )
    assert shown.split() == ["One.", "Two."]


def test_values_that_are_deep_long_or_many_take_little_of_the_page(server: Served, opened: Opens) -> None:
    page = opened(server.url)
    shown = page.evaluate(
        """async () => {
            const { asTree } = await import("./web/values.js");
            const nest = (depth) => depth ? { "__proto__x": [nest(depth - 1)] } : "bottom";
            const many = Object.fromEntries(Array.from({ length: 500 }, (_, at) => [`k${at}`, at]));
            return [nest(1000), many, "word".repeat(50_000)].map((value) => {
                const tree = asTree(value);
                return [tree.querySelectorAll("*").length, tree.textContent.slice(-8), tree.tagName];
            });
        }"""
    )
    deep, many, long = shown
    assert deep[0] < 50
    assert many[1] == "300 more"
    assert long[2] == "DETAILS"


# -- what stands in the address and in the browser's memory -----------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["#/chat/%E0%A4%A", "#/%", "#/toString", "#/__proto__", "#/run/", "#/run/..", "#//"]
)
def test_an_address_that_makes_no_sense_still_shows_something(server: Served, opened: Opens, address: str) -> None:
    page = opened(f"{server.url}/{address}", "404")
    expect(page.locator("main > .view:not([hidden])")).to_have_count(1)
    expect(page.locator("#welcome, #trouble-words:not(:empty)").locator("visible=true")).to_have_count(1)


def test_an_agent_that_is_served_no_longer_is_told_in_words(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/#/chat/gone/abc")
    expect(page.get_by_role("alert").filter(has_text="no agent “gone”")).to_be_visible()
    page.get_by_role("link", name="Chat").click()
    expect(page.locator("#welcome")).to_be_visible()


@pytest.mark.parametrize("thread", ["a/b", '50% "off" <b>', "\u202eשלום", "..", "a#b?c"])
def test_a_thread_of_another_client_may_have_any_name(server: Served, opened: Opens, thread: str) -> None:
    page = opened(f"{talk(server)}/{quote(thread, safe='')}", "404")
    ask(page, "Hello. [[tokens=5]]")
    over(page)
    page.reload()
    expect(page.locator(".question")).to_have_count(1)
    assert stored(page)["id"] == thread


def test_nonsense_in_the_browsers_memory_is_passed_over(server: Served, opened: Opens) -> None:
    page = opened(f"{server.url}/web/icon.svg")
    page.evaluate(
        """() => {
            const put = (key, value) => localStorage.setItem("millrace." + key, JSON.stringify(value));
            localStorage.setItem("millrace.theme", "nonsense");
            localStorage.setItem("millrace.conversation.torn", "{");
            put("conversation.nulls", {id: "nulls", agent: "chat", at: 1, turns: [null, 5]});
            put("conversation.odd", {id: "odd", agent: {}, at: "x", turns: [{question: {}, runId: 7, text: 3}]});
            put("conversation.other", {id: "elsewhere", agent: "chat", at: 1, turns: []});
        }"""
    )
    page = opened(f"{talk(server)}/nulls", "404")
    ask(page, "Hello. [[tokens=5]]")
    over(page)
    page.get_by_role("button", name="Earlier").click()
    expect(page.locator("#conversations a")).to_have_count(1)


@pytest.mark.parametrize("storage", ["forbidden", "full"])
def test_without_a_memory_it_works_and_forgets(
    server: Served, browser: Browser, storage: str, context: BrowserContext, opened: Opens
) -> None:
    forbidden = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('forbidden'); }})"
    full = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
    context.add_init_script(f"{forbidden if storage == 'forbidden' else full}; delete crypto.randomUUID;")
    page = opened(talk(server))
    page.get_by_role("button", name="Theme").click()
    ask(page, "Hello. [[tokens=5]]")
    over(page)
    expect(page.locator(".figures")).to_contain_text("Took")


# -- what comes at the wrong moment -----------------------------------------------------------------------------------


def test_a_question_asked_right_before_a_reload_is_neither_lost_nor_asked_twice(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, "Hello. [[tokens=5]]")
    over(page)
    ask(page, f"{LONG} [[first_token_s=1]]")
    page.reload()  # mostly before anything was heard of the run
    expect(page.locator(".turn")).to_have_count(2)
    ends = page.locator(".turn").last.locator(".md:not(:empty), .problem").first
    expect(ends).to_be_visible()


def test_a_question_that_never_left_says_so_after_a_reload(
    server: Served, opened: Opens, context: BrowserContext
) -> None:
    page = opened(talk(server), "ERR_", "WebSocket")
    ask(page, "Hello. [[tokens=5]]")
    over(page)
    page.evaluate("dispatchEvent(new Event('offline'))")
    ask(page, "Anybody? [[tokens=5]]")
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    page.locator(".problem").get_by_role("button", name="Try again").click()
    over(page)
    expect(page.locator(".turn").last.locator(".figures")).to_contain_text("Took")


def test_stop_is_heard_though_the_line_was_dead_when_it_was_pressed(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    page.evaluate(
        """() => {
            const send = WebSocket.prototype.send;
            WebSocket.prototype.send = function (text) { if (!window.deaf) send.call(this, text); };
        }"""
    )
    ask(page, LONG)
    written(page, 3)
    page.evaluate("window.deaf = true")
    page.get_by_role("button", name="Stop").click()
    page.evaluate("window.deaf = false")
    page.get_by_role("button", name="Connected").click()
    page.get_by_role("button", name="Drop my connection").click()
    expect(page.locator(".answer-state")).to_contain_text("Stopped")


def test_try_again_twice_is_once(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, "Hello. [[drop_after=4&tokens_per_second=100]]")
    page.locator(".problem").get_by_role("button", name="Try again").evaluate("one => { one.click(); one.click(); }")
    over(page)
    expect(page.locator(".turn")).to_have_count(2)


def test_a_plain_question_to_a_thread_that_waits_is_refused_in_words_and_the_form_stays(
    hostile: Served, opened: Opens
) -> None:
    page = opened(talk(hostile, "asks"))
    ask(page, "Go.")
    form = page.get_by_role("form", name="The run waits for you")
    expect(form).to_contain_text("red or blue?")
    ask(page, "And now something else.")
    expect(page.locator(".problem")).to_contain_text("waits")
    expect(form).to_have_count(1)
    form.get_by_label("Your answer").fill("blue")
    form.get_by_role("button", name="Go on").click()
    expect(page.locator(".turn").last).to_contain_text("You: blue")
    over(page)
    expect(page.get_by_label("Message")).to_be_focused()
    expect(form).to_have_count(0)


def test_what_waits_is_answered_in_one_tab_and_its_form_closes_in_the_other(hostile: Served, opened: Opens) -> None:
    first = opened(talk(hostile, "asks"))
    ask(first, "Go.")
    expect(first.get_by_role("form", name="The run waits for you")).to_be_visible()
    second = opened(first.url)
    form = second.get_by_role("form", name="The run waits for you")
    form.get_by_label("Your answer").fill("blue")
    form.get_by_role("button", name="Go on").click()
    over(second)
    expect(first.locator(".turn")).to_have_count(2)
    expect(first.get_by_role("form", name="The run waits for you")).to_have_count(0)


def test_a_run_that_waits_can_be_looked_at_by_itself_without_a_form_that_does_nothing(
    hostile: Served, opened: Opens
) -> None:
    started = httpx.post(f"{hostile.url}/agents/asks/runs", json={"input": "Go.", "thread_id": "other"}).json()
    httpx.get(f"{hostile.url}/runs/{started['run_id']}/result?wait=true", timeout=30)
    page = opened(f"{hostile.url}/#/run/{started['run_id']}")
    expect(page.locator(".figures")).to_contain_text("Took")
    expect(page.get_by_role("form", name="The run waits for you")).to_have_count(0)


def test_a_run_that_the_server_knows_no_longer_is_told_to_be_so(opened: Opens) -> None:
    with simulated(run_retention_s=1) as server:
        page = opened(talk(server, "approval"), "404", "410")
        ask(page, "Email ada@example.com that the build is green")
        form = page.get_by_role("form", name="The run waits for you")
        expect(form).to_contain_text("send_email")
        page.wait_for_function(
            "async id => !(await fetch(`runs/${id}/events`)).ok", arg=stored(page)["turns"][-1]["runId"]
        )
        page.reload()
        expect(form).to_contain_text("send_email")  # the thread still waits, and the server has what for


@contextmanager
def process(folder: Path, port: int, eventually: Eventually) -> Iterator[subprocess.Popen[bytes]]:
    """A server of its own, to be killed; what it kept in ``folder`` the next one has."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    environment = {**ours, "PYTHONPATH": str(ROOT), "MILLRACE_SIMULATED_TOKENS_PER_SECOND": "40"}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as one:
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}/health/ready"))
            yield one
        finally:
            one.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_a_server_that_died_in_mid_answer_leaves_what_was_written_and_says_so(
    opened: Opens, tmp_path: Path, eventually: Eventually
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with process(tmp_path, port, eventually):
        page = opened(
            f"http://127.0.0.1:{port}/#/chat/assistant", "ERR_CONNECTION_REFUSED", "WebSocket connection", "410"
        )
        ask(page, LONG)
        written(page, 5)
    with process(tmp_path, port, eventually):
        expect(page.locator(".problem")).to_contain_text("how it ended is not known")
        text = page.locator(".turn .md").inner_text()
        assert text
        page.reload()
        expect(page.locator(".problem")).to_contain_text("how it ended is not known")
        assert page.locator(".turn .md").inner_text().split()[:5] == text.split()[:5]


# -- ways about the page ----------------------------------------------------------------------------------------------


def test_a_look_at_another_view_and_the_skip_link_keep_the_conversation(server: Served, opened: Opens) -> None:
    page = opened(talk(server))
    ask(page, LONG)
    written(page, 3)
    there = page.url
    page.get_by_role("link", name="Skip to the message").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_be_focused()
    assert page.url == there
    page.get_by_role("link", name="Usage").click()
    page.keyboard.press("Escape")  # nothing is seen here that it could stop
    page.get_by_role("link", name="Chat").click()
    expect(page.locator(".turn")).to_have_count(1)
    assert page.url == there
    page.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer-state")).to_contain_text("Stopped")
    expect(page.get_by_label("Message")).to_be_focused()


# -- keys -------------------------------------------------------------------------------------------------------------

KEY = "a-key-for-ada-that-nobody-guesses"


def test_a_key_that_cannot_be_one_is_told_so_and_the_dialog_cannot_be_lost(opened: Opens) -> None:
    with simulated(api_keys=f"{KEY}:ada") as keyed:
        page = opened(keyed.url, "401", "4401", "WebSocket")
        field = page.get_by_role("textbox", name="Key")
        field.fill("ключ-от-двери")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("Latin")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        field.fill(KEY)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("button", name="Connected")).to_be_visible()
        ask(page, "Hello. [[tokens=5]]")
        over(page)
        page.context.clear_cookies()
        page.get_by_role("link", name="Runs").click()
        field.fill(KEY)
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("#runs")).to_contain_text("completed")
