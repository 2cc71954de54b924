"""Pause and continue: nothing is billed while a run stands still, and the answer goes on as if it never had."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from graphs import Slow
from httpx_sse import ServerSentEvent, aconnect_sse
from serving import Served, open_requests, serving

from app.runs.agent import Agent
from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.models import build_model

Until = Callable[[Callable[[], bool]], Awaitable[None]]

PARAGRAPHS = "[[paragraphs=3&tokens=90]] Tell me"
"""Three paragraphs of thirty tokens."""

LONG = "[[tokens=400]] Tell me more"


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    with serving(openai_base_url=provider.base_url, pause_timeout_s=30) as one:
        model = build_model("openai:simulated", base_url=provider.base_url)
        waits = Agent("waits", build_assistant(model, [slow.tool]), served_model=True)
        one.runner.agents = {**one.runner.agents, "waits": waits}
        yield one


async def start(client: httpx.AsyncClient, agent: str, text: str, **request: Any) -> str:
    answer = await client.post(f"/agents/{agent}/runs", json={"input": text, **request})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def read(client: httpx.AsyncClient, run_id: str, until: str, after: int = 0) -> list[ServerSentEvent]:
    """The run's events up to the first of that name."""
    events = []
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events", params={"after": after}) as source:
        async for one in source.aiter_sse():
            events.append(one)
            if one.event == until:
                break
    return events


def text_of(events: list[ServerSentEvent]) -> str:
    return "".join(one.json()["text"] for one in events if one.event == "token")


async def whole(client: httpx.AsyncClient, agent: str, text: str) -> str:
    """What the agent says when nothing happens to it."""
    run_id = await start(client, agent, text)
    answer = (await client.get(f"/runs/{run_id}/result", params={"wait": True})).json()
    assert answer["status"] == "completed"
    said: str = answer["text"]
    return said


@pytest.mark.parametrize(("agent", "thread"), [("chat", None), ("assistant", None), ("assistant", "t-paragraph")])
async def test_an_answer_pauses_after_its_first_paragraph_and_goes_on_to_its_end(
    client: httpx.AsyncClient, provider: Simulator, until: Until, agent: str, thread: str | None
) -> None:
    expected = await whole(client, agent, PARAGRAPHS)
    options = {} if thread is None else {"thread_id": thread}
    run_id = await start(client, agent, PARAGRAPHS, pause_after="paragraph", **options)
    first = await read(client, run_id, "run.paused")
    assert text_of(first) == expected[: expected.index("\n\n") + 2]
    await until(lambda: open_requests(provider) == 0)
    paused = first[-1].json()
    assert paused["reason"] == "paragraph"
    assert paused["usage"]["output_tokens"] > 0
    assert (await client.get(f"/runs/{run_id}")).json()["status"] == "paused"
    assert (await client.post(f"/runs/{run_id}/continue")).json()["status"] == "running"
    rest = await read(client, run_id, "run.finished", after=int(first[-1].id))
    assert rest[0].event == "run.resumed"
    assert rest[0].json()["seamless"] is True
    assert text_of(first) + text_of(rest) == expected
    assert [one.event for one in [*first, *rest]].count("message.started") == 1
    result = (await client.get(f"/runs/{run_id}/result")).json()
    assert (result["status"], result["text"]) == ("completed", expected)


async def test_a_paused_answer_is_one_message_of_its_thread_under_the_id_it_was_streamed_under(
    client: httpx.AsyncClient,
) -> None:
    run_id = await start(client, "assistant", PARAGRAPHS, pause_after="paragraph", thread_id="t-one")
    first = await read(client, run_id, "run.paused")
    await client.post(f"/runs/{run_id}/continue")
    await read(client, run_id, "run.finished")
    messages = (await client.get("/threads/t-one")).json()["messages"]
    assert [message["type"] for message in messages] == ["human", "ai"]
    assert messages[1]["id"] == next(one.json()["message_id"] for one in first if one.event == "token")


@pytest.mark.parametrize("agent", ["chat", "assistant"])
async def test_a_pause_in_mid_answer_stops_at_once(
    client: httpx.AsyncClient, provider: Simulator, until: Until, agent: str
) -> None:
    expected = await whole(client, agent, LONG)
    run_id = await start(client, agent, LONG)
    await read(client, run_id, "token")
    assert (await client.post(f"/runs/{run_id}/pause")).json()["status"] == "paused"
    await until(lambda: open_requests(provider) == 0)
    assert (await client.post(f"/runs/{run_id}/pause")).status_code == 200
    await client.post(f"/runs/{run_id}/continue")
    events = await read(client, run_id, "run.finished")
    assert text_of(events) == expected
    names = [one.event for one in events]
    assert (names.count("run.paused"), names.count("run.resumed"), names.count("run.finished")) == (1, 1, 1)


async def test_a_run_may_pause_again_and_again(client: httpx.AsyncClient) -> None:
    expected = await whole(client, "assistant", LONG)
    run_id = await start(client, "assistant", LONG)
    after = 0
    for _ in range(4):
        events = await read(client, run_id, "token", after)
        after = int(events[-1].id)
        assert (await client.post(f"/runs/{run_id}/pause")).json()["status"] == "paused"
        await client.post(f"/runs/{run_id}/continue")
    assert text_of(await read(client, run_id, "run.finished")) == expected


async def test_a_pause_before_the_first_token_asks_anew(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "assistant", "[[first_token_s=1]] hi")
    await read(client, run_id, "node.started")
    assert (await client.post(f"/runs/{run_id}/pause")).json()["status"] == "paused"
    await client.post(f"/runs/{run_id}/continue")
    events = await read(client, run_id, "run.finished")
    assert events[-1].json()["status"] == "completed"
    assert text_of(events)


async def test_a_pause_in_mid_tool_waits_for_the_next_model_call(
    client: httpx.AsyncClient, slow: Slow, until: Until
) -> None:
    entered = slow.entered
    run_id = await start(client, "waits", "Please wait 1 second")
    await until(lambda: slow.entered > entered)
    pausing = asyncio.create_task(client.post(f"/runs/{run_id}/pause"))
    events = await read(client, run_id, "run.paused")
    names = [one.event for one in events]
    assert "tool.finished" in names
    await pausing
    cancelled = slow.cancelled
    await client.post(f"/runs/{run_id}/continue")
    events = await read(client, run_id, "run.finished")
    assert events[-1].json()["status"] == "completed"
    assert [one.event for one in events].count("tool.started") == 1  # what was done is not done again
    assert slow.cancelled == cancelled


async def test_cancelling_a_paused_run_ends_it(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "assistant", PARAGRAPHS, pause_after="paragraph", thread_id="t-cancelled")
    first = await read(client, run_id, "run.paused")
    assert (await client.post(f"/runs/{run_id}/cancel")).json()["status"] == "cancelled"
    rest = await read(client, run_id, "run.finished", after=int(first[-1].id))
    assert [one.event for one in rest] == ["message.finished", "run.finished"]
    result = (await client.get(f"/runs/{run_id}/result")).json()
    assert result["text"] == text_of(first)
    messages = (await client.get("/threads/t-cancelled")).json()["messages"]
    assert [message["content"] for message in messages] == [PARAGRAPHS, text_of(first)]
    answer = await client.post("/agents/assistant/runs", json={"input": "[[say=ok]] go", "thread_id": "t-cancelled"})
    following = (await client.get(f"/runs/{answer.json()['run_id']}/result", params={"wait": True})).json()
    assert (following["status"], following["text"]) == ("completed", "ok")


async def test_a_paused_run_has_its_thread(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "assistant", PARAGRAPHS, pause_after="paragraph", thread_id="t-held")
    await read(client, run_id, "run.paused")
    answer = await client.post("/agents/assistant/runs", json={"input": "hi", "thread_id": "t-held"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "thread_busy")
    answer = await client.post(
        "/agents/assistant/runs",
        json={"input": "[[say=ok]] go", "thread_id": "t-held", "multitask_strategy": "interrupt"},
    )
    following = (await client.get(f"/runs/{answer.json()['run_id']}/result", params={"wait": True})).json()
    assert following["text"] == "ok"
    assert (await client.get(f"/runs/{run_id}")).json()["reason"] == "superseded"


async def test_the_last_reader_may_leave_a_paused_run(client: httpx.AsyncClient, server: Served) -> None:
    request = {"input": PARAGRAPHS, "pause_after": "paragraph"}
    async with aconnect_sse(client, "POST", "/agents/chat/runs", json=request) as source:
        run_id = source.response.headers["x-run-id"]
        async for one in source.aiter_sse():
            if one.event == "run.paused":
                break
    run = server.runner.kept("127.0.0.1")[0]
    assert run.run_id == run_id
    await client.get("/health/live")
    assert run.status == "paused"
    await client.post(f"/runs/{run_id}/continue")
    assert (await read(client, run_id, "run.finished"))[-1].json()["status"] == "completed"


async def test_a_pause_without_an_answer_ends_the_run() -> None:
    with serving(pause_timeout_s=0.2) as served:
        async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
            run_id = await start(client, "chat", PARAGRAPHS, pause_after="paragraph")
            events = await read(client, run_id, "run.finished")
    assert [one.json().get("reason") for one in events[-1:]] == ["pause_timeout"]
    assert events[-1].json()["status"] == "cancelled"


async def test_the_clock_stands_still_in_a_pause(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "chat", PARAGRAPHS, pause_after="paragraph", timeout_s=1.5)
    await read(client, run_id, "run.paused")
    async with asyncio.timeout(20):
        await asyncio.sleep(1.6)  # longer than the run may take in all
    await client.post(f"/runs/{run_id}/continue")
    last = (await read(client, run_id, "run.finished"))[-1].json()
    assert last["status"] == "completed"
    assert last["duration_ms"] < 1500


async def test_two_continues_at_once_are_one(client: httpx.AsyncClient) -> None:
    expected = await whole(client, "chat", PARAGRAPHS)
    run_id = await start(client, "chat", PARAGRAPHS, pause_after="paragraph")
    await read(client, run_id, "run.paused")
    answers = await asyncio.gather(*(client.post(f"/runs/{run_id}/continue") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    events = await read(client, run_id, "run.finished")
    assert [one.event for one in events].count("run.resumed") == 1
    assert text_of(events) == expected


async def test_continuing_what_is_not_paused_changes_nothing(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "chat", LONG)
    answer = await client.post(f"/runs/{run_id}/continue")
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    await client.post(f"/runs/{run_id}/cancel")
    for verb in ("continue", "pause", "cancel"):
        answer = await client.post(f"/runs/{run_id}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    events = await read(client, run_id, "run.finished")
    assert not {"run.paused", "run.resumed"} & {one.event for one in events}


async def test_what_cannot_be_paused_says_so(client: httpx.AsyncClient, server: Served) -> None:
    request = {"input": {"messages": [{"role": "user", "content": LONG}]}}
    async with aconnect_sse(client, "POST", "/agents/chat/stream", json=request) as source:
        async for _ in source.aiter_sse():
            break
        answer = await client.post(f"/runs/{source.response.headers['x-run-id']}/pause")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsupported_by_agent")


async def test_a_bound_on_tokens_reaches_the_provider(client: httpx.AsyncClient) -> None:
    run_id = await start(client, "chat", LONG, max_tokens=7)
    events = await read(client, run_id, "run.finished")
    assert events[0].json()["max_tokens"] == 7
    assert sum(one.event == "token" for one in events) <= 7
