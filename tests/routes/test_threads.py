"""Conversations: they go on whatever ended the last turn, by a provider that refuses an illegal order of messages."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from graphs import Slow, nested, openai
from httpx_sse import aconnect_sse
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
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
        "leaves_calls": leaves_calls(provider.base_url),
        "makes_calls": makes_calls(),
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


def leaves_calls(base_url: str) -> Runnable[Any, Any]:
    """Its tools are its client's: it ends with calls whose results come with the next turn."""
    model = openai(base_url).bind_tools([build_calculator()])

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    return graph.compile()


def makes_calls() -> Runnable[Any, Any]:
    """It makes the calls that its client hands in."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([build_calculator()]))
    graph.add_edge(START, "tools")
    return graph.compile()


async def start(client: httpx.AsyncClient, agent: str, text: Any, **request: Any) -> dict[str, Any]:
    answer = await client.post(f"/agents/{agent}/runs", json={"input": text, **request})
    assert answer.status_code == 202, answer.text
    row: dict[str, Any] = answer.json()
    return row


async def turn(client: httpx.AsyncClient, agent: str, text: Any, **request: Any) -> dict[str, Any]:
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
    assert first["object"] is None  # the state of a graph that waits is no answer
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


# A client's own calls and results


HI = {"type": "human", "content": "[[say=Yes]] hi"}


def called(*ids: Any, name: str = "calculator") -> dict[str, Any]:
    """An answer with calls, as a client hands it in."""
    calls = [{"name": name, "args": {"expression": "6*7"}, "id": one, "type": "tool_call"} for one in ids]
    return {"type": "ai", "content": "", "tool_calls": calls}


def came(call_id: str) -> dict[str, Any]:
    return {"type": "tool", "content": "42", "tool_call_id": call_id}


OPENAIS_CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "at"),
    [
        pytest.param([came("c1")], 0, id="a result without its call"),
        pytest.param([HI, came("c1"), HI], 1, id="a result without its call, within"),
        pytest.param([HI, called("c1"), came("c1"), came("c1"), HI], 3, id="a second result"),
        pytest.param([HI, called("c1"), HI], 2, id="a call without its result"),
        pytest.param([HI, called("c1", "c2"), came("c2"), HI], 3, id="one of two without its result"),
        pytest.param([HI, called("c1"), HI, came("c1")], 2, id="a result that comes too late"),
        pytest.param([HI, {"role": "assistant", "tool_calls": [OPENAIS_CALL]}, HI], 2, id="in OpenAI's form"),
        pytest.param([HI, called(None), HI], 1, id="an id that is null"),
        pytest.param([HI, called(""), came("")], 1, id="an id that is empty"),
        pytest.param([HI, called("c1", "c1"), came("c1"), HI], 1, id="the same id twice"),
        pytest.param([HI, called("x" * 100_000), came("x" * 100_000)], 1, id="an id of 100 KB"),
        pytest.param([HI, called("c1", name="calculator\r\nX-A: b"), came("c1")], 1, id="a name of two lines"),
        pytest.param([HI, called("c1", name=""), came("c1")], 1, id="no name"),
    ],
)
async def test_calls_and_results_that_no_provider_takes_are_refused_and_the_thread_stays_usable(
    client: httpx.AsyncClient, thread: str, messages: list[Any], at: int
) -> None:
    before = await turn(client, "assistant", "[[say=Hello]] I am Ann", thread_id=thread)
    answer = await client.post("/agents/assistant/runs", json={"input": {"messages": messages}, "thread_id": thread})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], [one["field"] for one in error["detail"]]) == ("invalid_input", [f"input.messages[{at}]"])
    assert len(answer.content) < 1000
    after = await turn(client, "assistant", "[[say=Fine]] hi", thread_id=thread)
    assert [(one["status"], one["text"]) for one in (before, after)] == [("completed", "Hello"), ("completed", "Fine")]
    assert [kind for kind, _ in await conversation(client, thread)] == ["human", "ai", "human", "ai"]


async def test_they_are_refused_as_well_when_their_turn_comes_only_later(
    client: httpx.AsyncClient, thread: str
) -> None:
    options = {"thread_id": thread, "multitask_strategy": "enqueue"}
    first = await start(client, "assistant", SILENT, **options)
    second = await start(client, "assistant", {"messages": [came("c1")]}, **options)
    await client.post(f"/runs/{first['run_id']}/cancel")
    assert (await result(client, second["run_id"]))["status"] == "failed"
    assert (await client.get(f"/runs/{second['run_id']}")).json()["reason"] == "invalid_input"
    assert (await turn(client, "assistant", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([HI, called("c1", "c2"), came("c2"), came("c1"), {"type": "ai", "content": "42"}, HI], id="all"),
        pytest.param([HI, {"role": "assistant", "tool_calls": [OPENAIS_CALL]}, came("c1"), HI], id="in OpenAI's form"),
        pytest.param([HI, called("c1"), came("c1"), HI, called("c1"), came("c1"), HI], id="the same ids in two turns"),
        pytest.param([HI, called("x" * 64), came("x" * 64), HI], id="a long id"),
    ],
)
async def test_a_history_with_calls_and_their_results_is_taken(
    client: httpx.AsyncClient, thread: str, messages: list[Any]
) -> None:
    first = await turn(client, "assistant", {"messages": messages}, thread_id=thread)
    assert (first["status"], first["text"]) == ("completed", "Yes")
    assert len(await conversation(client, thread)) == len(messages) + 1
    assert (await turn(client, "assistant", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"


async def leaves(client: httpx.AsyncClient, thread: str) -> list[str]:
    """The ids of two calls that the thread is left with."""
    first = await turn(client, "leaves_calls", "What is 6*7 and what is 3+4?", thread_id=thread)
    assert first["status"] == "completed"
    calls = (await client.get(f"/threads/{thread}")).json()["messages"][-1]["tool_calls"]
    return [call["id"] for call in calls]


@pytest.mark.parametrize("then", [[], [HI]])
async def test_calls_that_the_thread_was_left_with_take_their_results(
    client: httpx.AsyncClient, thread: str, then: list[Any]
) -> None:
    first, second = await leaves(client, thread)
    answer = await turn(client, "leaves_calls", {"messages": [came(second), came(first), *then]}, thread_id=thread)
    assert answer["status"] == "completed"
    assert answer["text"] == "Yes" if then else "6*7 = 42" in answer["text"]
    kinds = [kind for kind, _ in await conversation(client, thread)]
    assert kinds == ["human", "ai", "tool", "tool", *(["human"] if then else []), "ai"]


async def test_calls_that_the_thread_was_left_with_may_be_left(client: httpx.AsyncClient, thread: str) -> None:
    await leaves(client, thread)
    assert (await turn(client, "leaves_calls", "[[say=Fine]] never mind", thread_id=thread))["text"] == "Fine"
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [one["status"] for one in messages if one["type"] == "tool"] == ["error", "error"]


@pytest.mark.parametrize("then", [[], [HI]])
async def test_of_calls_that_the_thread_was_left_with_one_may_be_answered(
    client: httpx.AsyncClient, thread: str, then: list[Any]
) -> None:
    _, second = await leaves(client, thread)
    answer = await turn(client, "leaves_calls", {"messages": [came(second), *then]}, thread_id=thread)
    assert answer["status"] == "completed"
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert {one["tool_call_id"]: one["status"] for one in messages if one["type"] == "tool"}[second] == "success"
    assert (await turn(client, "leaves_calls", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"


@pytest.mark.parametrize("which", [0, 1])
async def test_a_result_that_comes_behind_another_message_is_no_result_of_a_call_before_it(
    client: httpx.AsyncClient, thread: str, which: int
) -> None:
    ids = await leaves(client, thread)
    messages = [*map(came, ids[:which]), HI, *map(came, ids[which:])]
    sent = {"input": {"messages": messages}, "thread_id": thread}
    assert (await client.post("/agents/leaves_calls/runs", json=sent)).status_code == 422
    assert (await turn(client, "leaves_calls", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"


async def test_a_history_that_is_handed_in_after_open_calls_leaves_none_of_them_open(
    client: httpx.AsyncClient, thread: str
) -> None:
    await leaves(client, thread)
    messages = [HI, called("c9"), came("c9"), {"type": "ai", "content": "42"}, HI]
    assert (await turn(client, "leaves_calls", {"messages": messages}, thread_id=thread))["text"] == "Yes"
    assert (await turn(client, "leaves_calls", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"


async def test_calls_that_a_client_hands_in_last_are_the_graphs_to_make(client: httpx.AsyncClient, thread: str) -> None:
    for asked in (called("c1"), called("c2")):
        made = await turn(client, "makes_calls", {"messages": [HI, asked]}, thread_id=thread)
        assert made["status"] == "completed"
    assert [kind for kind, _ in await conversation(client, thread)] == ["human", "ai", "tool"] * 2
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [(one["tool_call_id"], one["status"]) for one in messages if one["type"] == "tool"] == [
        ("c1", "success"), ("c2", "success"),
    ]  # fmt: skip


async def test_calls_that_a_client_hands_in_last_and_that_nobody_makes_are_answered_before_the_next_turn(
    client: httpx.AsyncClient, thread: str
) -> None:
    await turn(client, "assistant", {"messages": [HI, called("c1")]}, thread_id=thread)
    assert (await turn(client, "assistant", "[[say=Fine]] hi", thread_id=thread))["text"] == "Fine"
    assert [kind for kind, _ in await conversation(client, thread)] == ["human", "ai", "tool", "human", "ai"]


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
