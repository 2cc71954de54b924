"""LangServe's playground in a real browser: a person types a question, and watches the answer being written."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from graphs import branches, openai
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from machine import chromium
from playwright.sync_api import Browser, Page, expect
from serving import Served, serving

from app.simulator.server import Simulator

Eventually = Callable[[Callable[[], bool]], None]

OUTPUT = "h2:has-text('Output') + div"

WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const title = [...document.querySelectorAll("h2")].find(one => one.innerText === "Output");
        const text = title?.nextElementSibling?.innerText;
        if (text && text !== window.seen.at(-1)) window.seen.push(text);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def asks(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(interrupt("May I?"))]}


def asking() -> Runnable[Any, Any]:
    graph = StateGraph(MessagesState)
    graph.add_node("asks", asks)
    graph.add_edge(START, "asks")
    return graph.compile()


def anything(value: Any) -> Any:
    return value


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=60) as one:
        yield one


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    agents = {
        "branches": branches(provider.base_url),
        "bare": openai(provider.base_url),
        "untyped": RunnableLambda(anything),
        "asking": asking(),
    }
    with serving(agents, openai_base_url=provider.base_url) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    """A page on which nothing may go wrong unnoticed, and that loads nothing from elsewhere."""
    context = browser.new_context()
    one = context.new_page()
    wrong: list[str] = []
    one.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("request", lambda sent: None if sent.url.startswith(server.url) else wrong.append(sent.url))
    one.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    yield one
    context.close()
    assert not wrong


def ask(page: Page, question: str) -> None:
    """Write into the empty field, and press the button."""
    field = page.locator("textarea").last
    expect(field).to_be_empty()
    settle(page)
    field.fill(question)
    settle(page)
    page.evaluate(WATCH)
    page.get_by_role("button", name="Start").click()


def settle(page: Page) -> None:
    """Let the form's own timers run out, which are of 10 ms; a person is slower."""
    page.evaluate("() => new Promise(done => setTimeout(done, 100))")


def answered(page: Page) -> str:
    """Wait for the end; the answer."""
    expect(page.get_by_role("button", name="Start")).to_be_visible(timeout=20_000)
    return page.locator(OUTPUT).inner_text()


def drawn(page: Page, answer: str) -> int:
    """How often the answer grew on the page."""
    return len({len(text) for text in page.evaluate("window.seen") if answer.startswith(text)})


@pytest.mark.parametrize(
    ("agent", "question", "last_words"),
    [
        ("chat", "tell me something", "ask for it later."),
        ("assistant", "What is 6*7, and what time is it in Rome?", "in Europe/Rome (UTC+"),
    ],
)
def test_a_person_asks_and_watches_the_answer_being_written(
    page: Page, server: Served, agent: str, question: str, last_words: str
) -> None:
    page.goto(f"{server.url}/agents/{agent}/playground/")
    ask(page, question)
    expect(page.locator(OUTPUT)).to_contain_text(last_words, timeout=20_000)
    answer = answered(page)
    assert drawn(page, answer) >= 5
    assert "{" not in answer
    # It is in the conversation too, followed by a field for what comes next.
    fields = page.locator("textarea")
    expect(fields).to_have_count(3)
    expect(fields.nth(1)).to_have_value(answer)
    assert server.runner.kept("127.0.0.1")[0].status == "completed"


@pytest.mark.parametrize("agent", ["chat", "assistant"])
def test_the_conversation_goes_on(page: Page, server: Served, agent: str) -> None:
    page.goto(f"{server.url}/agents/{agent}/playground/")
    ask(page, "Hello! My name is Ada.")
    answered(page)
    ask(page, "What is my name?")
    assert "Ada" in answered(page)
    expect(page.locator("textarea")).to_have_count(5)


def test_of_parallel_branches_one_is_shown_at_a_time(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/branches/playground/")
    ask(page, "hello")
    answer = answered(page)
    assert answer == server.runner.kept("127.0.0.1")[0].result()["text"]
    assert "as b2" in answer


def test_stop_ends_the_run_and_the_providers_stream(
    page: Page, server: Served, provider: Simulator, eventually: Eventually
) -> None:
    page.goto(f"{server.url}/agents/assistant/playground/")
    ask(page, "[[tokens=5000]] go on")
    expect(page.locator(OUTPUT)).to_contain_text(" ", timeout=20_000)
    page.get_by_role("button", name="Stop").click()
    eventually(lambda: server.runner.live == 0)
    eventually(lambda: all(one.ended is not None for one in provider.requests))
    assert server.runner.kept("127.0.0.1")[0].status == "cancelled"


def test_a_failure_is_told(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/assistant/playground/")
    ask(page, "[[error_after=12]] hello")
    expect(page.locator(OUTPUT)).to_contain_text("The model provider reported an error", timeout=20_000)
    assert "Hello" in page.locator(OUTPUT).inner_text()


def test_agents_without_messages_have_a_form_too(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/untyped/playground/")
    ask(page, "hello")
    expect(page.locator(OUTPUT)).to_have_text("hello", timeout=20_000)
    page.goto(f"{server.url}/agents/bare/playground/")
    page.locator("button").first.click()  # the plus: a message
    ask(page, "[[say=yes]]")
    expect(page.locator(OUTPUT)).to_have_text("yes", timeout=20_000)


def test_extract_takes_a_text_and_shows_its_object(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/extract/playground/")
    expect(page.locator("textarea")).to_have_count(1)  # what may be left out, the schema and the method, is no field
    ask(page, "Ada Lovelace met Charles Babbage in London.")
    answer = answered(page)
    run = server.runner.kept("127.0.0.1")[0]
    assert (run.agent.name, run.status) == ("extract", "completed")
    assert json.loads(answer) == run.result()["object"]


def test_approval_says_that_it_waits_and_on_which_thread(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/approval/playground/")
    ask(page, "Email ada@example.com that the build is green")
    answer = answered(page)
    run = server.runner.kept("127.0.0.1")[0]
    assert (run.agent.name, run.status) == ("approval", "interrupted")
    assert run.thread_id is not None
    assert "waits for a person" in answer
    assert f"on the thread {run.thread_id}" in answer


def test_a_graph_that_asks_without_a_thread_says_that_nobody_can_answer(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/asking/playground/")
    ask(page, "hello")
    assert "there is no thread" in answered(page)


def test_a_shared_link_opens(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/agents/chat/playground/")
    page.get_by_role("button", name="Share").click()
    shared = page.get_by_text("/playground", exact=False).last.inner_text()
    page.goto(f"http://{shared}")
    ask(page, "tell me something")
    assert "ask for it later." in answered(page)
