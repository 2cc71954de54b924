"""Conversations: they go on whatever ended the last turn, by a provider that refuses an illegal order of messages."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from graphs import Slow, nested
from httpx_sse import aconnect_sse
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from serving import Served, serving

from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.models import build_model
from tools.calculator import build_calculator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

STREAMS = "[[tokens=5000]] go on"
SILENT = "[[first_token_s=60]] think"


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    agents = {
        "waits": build_assistant(
            build_model("openai:simulated", base_url=provider.base_url), [slow.tool, build_calculator()]
        ),
        "nested": nested(provider.base_url),
        "asks": asks_a_person(),
        "fails": fails_after_a_call(),
    }
    with serving(agents, openai_base_url=provider.base_url) as one:
        yield one


@pytest.fixture
def thread(request: pytest.FixtureRequest) -> str:
    """A conversation of this test's own."""
    return f"t-{abs(hash(request.node.nodeid))}"


def asks_a_person() -> Runnable[Any, Any]:
    async def ask(state: MessagesState) -> dict[str, Any]:
        answer = interrupt({"question": "may I?"})
        return {"messages": [AIMessage(f"You said {answer}.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    return graph.compile()


def fails_after_a_call() -> Runnable[Any, Any]:
    async def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": "c1", "type": "tool_call"}])]}

    async def fail(state: MessagesState) -> dict[str, Any]:
        raise ValueError("no")

    graph = StateGraph(MessagesState)
    graph.add_node("call", call)
    graph.add_node("fail", fail)
    graph.add_edge(START, "call")
    graph.add_edge("call", "fail")
    return graph.compile()


async def start(client: httpx.AsyncClient, agent: str, text: str, **request: Any) -> dict[str, Any]:
    answer = await client.post(f"/agents/{agent}/runs", json={"input": text, **request})
    assert answer.status_code == 202, answer.text
    row: dict[str, Any] = answer.json()
    return row


async def turn(client: httpx.AsyncClient, agent: str, text: str, **request: Any) -> dict[str, Any]:
    """One turn, to its end."""
    run = await start(client, agent, text, **request)
    return await result(client, run["run_id"])


async def result(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"/runs/{run_id}/result", params={"wait": True})).json()
    return answer


async def conversation(client: httpx.AsyncClient, thread: str) -> list[tuple[str, str]]:
    answer = (await client.get(f"/threads/{thread}")).json()
    return [(message["type"], message["content"]) for message in answer["messages"]]


async def seen(client: httpx.AsyncClient, run_id: str, event: str) -> None:
    """Read the run until that event."""
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source:
        async for one in source.aiter_sse():
            if one.event == event:
                return


def no_order_was_refused(provider: Simulator) -> bool:
    return all(request.status == 200 for request in provider.requests if request.status is not None)


async def test_a_thread_remembers(client: httpx.AsyncClient, thread: str) -> None:
    await turn(client, "assistant", "[[say=Nice%20to%20meet%20you,%20Ann]] I am Ann", thread_id=thread)
    await turn(client, "assistant", "[[say=You%20are%20Ann]] Who am I?", thread_id=thread)
    assert await conversation(client, thread) == [
        ("human", "[[say=Nice%20to%20meet%20you,%20Ann]] I am Ann"),
        ("ai", "Nice to meet you, Ann"),
        ("human", "[[say=You%20are%20Ann]] Who am I?"),
        ("ai", "You are Ann"),
    ]


@pytest.mark.parametrize("way", ["cancel", "leave", "timeout"])
async def test_an_answer_cut_in_mid_token_stays_in_the_thread_as_far_as_it_came(
    server: Served, client: httpx.AsyncClient, provider: Simulator, until: Until, thread: str, way: str
) -> None:
    request: dict[str, Any] = {"input": STREAMS, "thread_id": thread}
    if way == "timeout":
        request["timeout_s"] = 0.3
    async with aconnect_sse(client, "POST", "/agents/assistant/runs", json=request) as source:
        run_id = source.response.headers["x-run-id"]
        async for one in source.aiter_sse():
            if one.event == "token" and way != "timeout":
                break
        if way == "cancel":
            await client.post(f"/runs/{run_id}/cancel")
    await until(lambda: server.runner.live == 0)
    first = await result(client, run_id)
    assert first["status"] == ("timed_out" if way == "timeout" else "cancelled")
    told = await conversation(client, thread)
    assert told == [("human", STREAMS), ("ai", first["text"])]
    assert first["text"]
    second = await turn(client, "assistant", "[[say=Well]] and now?", thread_id=thread)
    assert (second["status"], second["text"]) == ("completed", "Well")
    assert no_order_was_refused(provider)


async def test_what_was_cut_has_the_id_it_was_streamed_under(client: httpx.AsyncClient, thread: str) -> None:
    run = await start(client, "assistant", STREAMS, thread_id=thread)
    async with aconnect_sse(client, "GET", f"/runs/{run['run_id']}/events") as source:
        async for one in source.aiter_sse():
            if one.event == "token":
                message_id = one.json()["message_id"]
                break
    await client.post(f"/runs/{run['run_id']}/cancel")
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert messages[-1]["id"] == message_id


async def test_a_cancel_before_the_first_token_leaves_the_question(client: httpx.AsyncClient, thread: str) -> None:
    run = await start(client, "assistant", SILENT, thread_id=thread)
    await seen(client, run["run_id"], "node.started")
    await client.post(f"/runs/{run['run_id']}/cancel")
    assert await conversation(client, thread) == [("human", SILENT)]
    assert (await turn(client, "assistant", "[[say=Yes]] again", thread_id=thread))["text"] == "Yes"


async def test_a_cancel_during_a_tool_gives_each_open_call_an_error_and_the_next_turn_is_accepted(
    client: httpx.AsyncClient, provider: Simulator, slow: Slow, until: Until, thread: str
) -> None:
    entered = slow.entered
    run = await start(client, "waits", "Please wait", thread_id=thread)
    await until(lambda: slow.entered > entered)
    assert (await client.post(f"/runs/{run['run_id']}/cancel")).json()["status"] == "cancelled"
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [message["type"] for message in messages] == ["human", "ai", "tool"]
    assert messages[2]["status"] == "error"
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]
    second = await turn(client, "waits", "[[say=Fine]] never mind", thread_id=thread)
    assert (second["status"], second["text"]) == ("completed", "Fine")
    assert no_order_was_refused(provider)


async def test_a_tool_that_was_done_keeps_its_result_when_another_is_cut(
    client: httpx.AsyncClient, slow: Slow, until: Until, thread: str
) -> None:
    entered = slow.entered
    run = await start(client, "waits", "Please wait, and what is 6*7?", thread_id=thread)
    await until(lambda: slow.entered > entered)
    await seen(client, run["run_id"], "tool.finished")
    await client.post(f"/runs/{run['run_id']}/cancel")
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert {one["name"]: (one["status"], "42" in one["content"]) for one in messages if one["type"] == "tool"} == {
        "calculator": ("success", True),
        "wait": ("error", False),
    }


async def test_a_failed_run_leaves_the_thread_fit_for_the_next_turn(client: httpx.AsyncClient, thread: str) -> None:
    assert (await turn(client, "fails", "go", thread_id=thread))["status"] == "failed"
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [message["type"] for message in messages] == ["human", "ai", "tool"]
    assert (await client.get(f"/threads/{thread}")).json()["status"] == "idle"


async def test_a_busy_thread_refuses_a_second_run(client: httpx.AsyncClient, thread: str) -> None:
    run = await start(client, "assistant", STREAMS, thread_id=thread)
    answer = await client.post("/agents/assistant/runs", json={"input": "hi", "thread_id": thread})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "thread_busy")
    assert (await client.get(f"/threads/{thread}")).json()["run_id"] == run["run_id"]
    await client.post(f"/runs/{run['run_id']}/cancel")
    assert (await turn(client, "assistant", "[[say=Yes]] hi", thread_id=thread))["text"] == "Yes"


async def test_runs_in_line_take_their_turns(client: httpx.AsyncClient, thread: str) -> None:
    options = {"thread_id": thread, "multitask_strategy": "enqueue"}
    first = await start(client, "assistant", SILENT, **options)
    waiting = [await start(client, "assistant", f"[[say=n{n}]] next", **options) for n in range(8)]
    assert {run["status"] for run in waiting} == {"queued"}
    answer = await client.post("/agents/assistant/runs", json={"input": "hi", **options})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "thread_busy")
    assert (await client.post(f"/runs/{waiting[3]['run_id']}/cancel")).json()["status"] == "cancelled"
    await client.post(f"/runs/{first['run_id']}/cancel")
    results = [await result(client, run["run_id"]) for run in waiting]
    assert [one["status"] for one in results] == ["completed"] * 3 + ["cancelled"] + ["completed"] * 4
    said = [text for kind, text in await conversation(client, thread) if kind == "ai"]
    assert said == ["n0", "n1", "n2", "n4", "n5", "n6", "n7"]


async def test_the_time_in_line_is_no_time_of_the_run(client: httpx.AsyncClient, thread: str) -> None:
    options = {"thread_id": thread, "multitask_strategy": "enqueue"}
    first = await start(client, "assistant", SILENT, **options, timeout_s=0.5)
    second = await start(client, "assistant", "[[say=Yes]] hi", **options, timeout_s=0.45)
    assert (await result(client, first["run_id"]))["status"] == "timed_out"
    assert (await result(client, second["run_id"]))["status"] == "completed"


async def test_an_interrupting_run_takes_the_others_place(client: httpx.AsyncClient, thread: str) -> None:
    first = await start(client, "assistant", STREAMS, thread_id=thread)
    await seen(client, first["run_id"], "token")
    second = await turn(
        client, "assistant", "[[say=Better]] no, this", thread_id=thread, multitask_strategy="interrupt"
    )
    old = (await client.get(f"/runs/{first['run_id']}")).json()
    assert (old["status"], old["reason"]) == ("cancelled", "superseded")
    assert second["text"] == "Better"
    assert [kind for kind, _ in await conversation(client, thread)] == ["human", "ai", "human", "ai"]


async def test_a_thread_that_waits_for_a_person_takes_their_answer_and_nothing_else(
    client: httpx.AsyncClient, thread: str
) -> None:
    first = await turn(client, "asks", "do it", thread_id=thread)
    assert first["status"] == "interrupted"
    told = (await client.get(f"/threads/{thread}")).json()
    assert told["status"] == "interrupted"
    assert told["interrupts"][0]["value"] == {"question": "may I?"}
    answer = await client.post("/agents/asks/runs", json={"input": "well?", "thread_id": thread})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "thread_interrupted")
    both = await client.post("/agents/asks/runs", json={"input": "x", "resume": "yes", "thread_id": thread})
    assert both.status_code == 422
    run = (await client.post("/agents/asks/runs", json={"resume": "yes", "thread_id": thread})).json()
    assert (await result(client, run["run_id"]))["text"] == "You said yes."
    again = await client.post("/agents/asks/runs", json={"resume": "yes", "thread_id": thread})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "thread_not_interrupted")


@pytest.mark.parametrize(
    ("agent", "request_", "code"),
    [
        ("chat", {"input": "hi", "thread_id": "x"}, "unsupported_by_agent"),
        ("assistant", {"resume": "yes"}, "invalid_input"),
        ("assistant", {"input": "hi", "thread_id": ""}, "invalid_input"),
        ("nested", {"input": "hi", "pause_after": "paragraph"}, "unsupported_by_agent"),
        ("nested", {"input": "hi", "max_tokens": 5}, "unsupported_by_agent"),
    ],
)
async def test_what_cannot_be_is_refused(
    client: httpx.AsyncClient, agent: str, request_: dict[str, Any], code: str
) -> None:
    answer = await client.post(f"/agents/{agent}/runs", json=request_)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


async def test_a_thread_belongs_to_one_agent(client: httpx.AsyncClient, thread: str) -> None:
    await turn(client, "assistant", "[[say=Yes]] hi", thread_id=thread)
    answer = await client.post("/agents/nested/runs", json={"input": "hi", "thread_id": thread})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "thread_of_another_agent")


async def test_an_unknown_thread_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get("/threads/nobody-spoke-here")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_thread")


async def test_a_run_without_a_thread_leaves_no_checkpoint(client: httpx.AsyncClient, server: Served) -> None:
    run = await start(client, "assistant", "[[say=Yes]] hi")
    await result(client, run["run_id"])
    assert (await client.get(f"/threads/{run['run_id']}")).status_code == 404


async def test_langserves_clients_have_threads_too(client: httpx.AsyncClient, thread: str) -> None:
    config = {"configurable": {"thread_id": thread}}
    for call, text in (("stream", "[[say=Hello]] I am Ann"), ("invoke", "[[say=Ann]] who am I?")):
        sent = {"input": {"messages": [{"type": "human", "content": text}]}, "config": config}
        answer = await client.post(f"/agents/assistant/{call}", json=sent)
        assert answer.status_code == 200
    said = [message["content"] for message in answer.json()["output"]["messages"]]
    assert said[1::2] == ["Hello", "Ann"]
    assert len(await conversation(client, thread)) == 4


@pytest.mark.parametrize(
    ("agent", "thread_id", "status"), [("chat", "t", 422), ("assistant", "", 422), ("assistant", 7, 422)]
)
async def test_a_thread_that_cannot_be_is_refused_by_langserves_routes(
    client: httpx.AsyncClient, agent: str, thread_id: Any, status: int
) -> None:
    sent = {"input": {"messages": [["user", "hi"]]}, "config": {"configurable": {"thread_id": thread_id}}}
    answer = await client.post(f"/agents/{agent}/invoke", json=sent)
    assert answer.status_code == status
    assert "thread_id" in answer.json()["error"]["message"]
