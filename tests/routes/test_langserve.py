"""LangServe's surface over real HTTP, with LangServe's own client: the runnable's own results, by a run's manners."""

import asyncio
import functools
import json
import operator
import select
import signal
import socket
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypedDict
from urllib.parse import urlsplit

import httpx
import jsonpatch
import pytest
import uvicorn
from fastapi import FastAPI
from graphs import Slow, branches, nested, openai, tool_caller
from httpx_sse import ServerSentEvent, aconnect_sse
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableGenerator, RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send
from langserve import RemoteRunnable
from langserve.lzstring import LZString
from pydantic import BaseModel
from serving import Served, running, serving, settled

from app.routes import errors
from app.routes.access import Access
from app.routes.langserve import langserve_routes
from app.runs.agent import Agent
from app.runs.runner import Runner
from app.simulator.server import Simulator
from app.transports.wire import Wire
from chains.assistant import build_assistant
from chains.chat import build_chat
from chains.models import build_model
from tools.calculator import build_calculator
from tools.clock import build_clock

Until = Callable[[Callable[[], bool]], Awaitable[None]]
Any_ = Runnable[Any, Any]

CALLS = ("invoke", "batch", "stream", "stream_events", "stream_log")
STREAMS = ("stream", "stream_events", "stream_log")
ENDLESS = "[[tokens=5000]] go on"
SILENT = "[[first_token_s=60]] think"

# -- agents such as users write ---------------------------------------------------------------------------------------


class Notes(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    notes: Annotated[list[str], operator.add]
    count: int


def with_notes(base_url: str) -> Any_:
    """Extra keys in the state, some with reducers, none of them required."""
    model = openai(base_url, stream_usage=True)

    async def answer(state: Notes) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])], "notes": ["answered"], "count": 1}

    graph = StateGraph(Notes)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


class Question(BaseModel):
    question: str
    answer: str = ""


def pydantic_state(_: str) -> Any_:
    def answer(state: Question) -> dict[str, str]:
        return {"answer": state.question.upper()}

    graph = StateGraph(Question)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


class Tree(TypedDict):
    root: int
    leaves: list[str]


def no_messages(_: str) -> Any_:
    """Its state has a key that LangServe itself has a use for."""

    async def grow(state: Tree) -> dict[str, Any]:
        return {"leaves": ["leaf"] * state["root"]}

    graph = StateGraph(Tree)
    graph.add_node("grow", grow)
    graph.add_edge(START, "grow")
    return graph.compile()


def shout(text: str) -> str:
    return text.upper()


def double(values: dict[str, int]) -> dict[str, int]:
    return {name: value * 2 for name, value in values.items()}


@tool
def done() -> str:
    """Say that it is done."""
    return "done"


class Flood:
    """An agent that puts out more than any socket's buffers hold, and knows how far it came."""

    def __init__(self) -> None:
        self.sent = 0

    async def run(self, inputs: AsyncIterator[Any]) -> AsyncIterator[dict[str, str]]:
        async for _ in inputs:
            for self.sent in range(50_000):
                yield {"text": "x" * 8192}
                await asyncio.sleep(0)


def fail(_: Any) -> str:
    raise ValueError("the secret is in /etc/secret")


def say(base_url: str) -> Any_:
    return ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")]) | openai(
        base_url, stream_usage=True
    )


AGENTS: dict[str, tuple[Callable[[str], Any_], Any]] = {
    "chat": (
        lambda url: build_chat(build_model("openai:simulated", base_url=url)),
        {"messages": [HumanMessage("[[tokens=12]] Hello", id="h1")]},
    ),
    "assistant": (
        lambda url: build_assistant(build_model("openai:simulated", base_url=url), [build_calculator(), build_clock()]),
        {"messages": [HumanMessage("What is 6*7 and what is 3+4?", id="h1")]},
    ),
    "nested": (nested, {"messages": [HumanMessage("[[tokens=12]] Hello", id="h1")]}),
    "branches": (branches, {"messages": [HumanMessage("[[tokens=12]] Hello", id="h1")]}),
    "with_notes": (with_notes, {"messages": [SystemMessage("Be brief."), HumanMessage("[[tokens=9]] Hi")], "count": 4}),
    "pydantic_state": (pydantic_state, {"question": "who?"}),
    "no_messages": (no_messages, {"root": 3, "leaves": []}),
    "shout": (lambda _: RunnableLambda(shout), "quiet"),
    "double": (lambda _: RunnableLambda(double), {"a": 1, "b": 2}),
    "parsed": (lambda url: say(url) | StrOutputParser(), {"question": "[[tokens=12]] Hello"}),
    "bare": (lambda url: openai(url, stream_usage=True), "[[tokens=12]] Hello"),
    "parallel": (
        lambda url: RunnableParallel(message=say(url), text=say(url) | StrOutputParser()),
        {"question": "[[tokens=12]] Hello"},
    ),
}
BUILTIN = ("chat", "assistant")


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=500) as one:
        yield one


@pytest.fixture(scope="module")
def flood() -> Flood:
    return Flood()


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow, flood: Flood) -> Iterator[Served]:
    agents = {name: build(provider.base_url) for name, (build, _) in AGENTS.items() if name not in BUILTIN}
    agents["fails"] = RunnableLambda(fail)
    agents["flood"] = RunnableGenerator(flood.run)
    agents["impatient"] = build_chat(build_model("openai:simulated", base_url=provider.base_url, max_retries=0))
    agents["waits_not"] = tool_caller([done], [{"name": "done", "args": {}, "id": "c1"}])
    agents["waits"] = tool_caller([slow.tool], [{"name": "wait", "args": {}, "id": f"c{n}"} for n in range(3)])
    with serving(agents, openai_base_url=provider.base_url) as one:
        yield one


@pytest.fixture
async def client(server: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=30, verify=False) as one:
        yield one


class Twin:
    """The same agents for direct calls, on a loop of their own: LangChain's clients are bound to one."""

    def __init__(self, base_url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._base_url = base_url
        self._loop = loop

    def __getitem__(self, agent: str) -> Any_:
        return AGENTS[agent][0](self._base_url)

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def list(self, items: AsyncIterator[Any]) -> list[Any]:
        return list(await self.run(collected(items)))


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with Simulator(tokens_per_second=500) as provider:
        yield Twin(provider.base_url, loop)
        model = openai(provider.base_url)  # shares its connections with all models of that address
        asyncio.run_coroutine_threadsafe(model.root_async_client.close(), loop).result(10)
        model.root_client.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@asynccontextmanager
async def remote(server: Served, agent: str) -> AsyncIterator[RemoteRunnable[Any, Any]]:
    one: RemoteRunnable[Any, Any] = RemoteRunnable(f"{server.url}/agents/{agent}", timeout=30, verify=False)
    try:
        yield one
    finally:
        await one.async_client.aclose()
        one.sync_client.close()


@contextmanager
def remote_sync(server: Served, agent: str) -> Iterator[RemoteRunnable[Any, Any]]:
    one: RemoteRunnable[Any, Any] = RemoteRunnable(f"{server.url}/agents/{agent}", timeout=30, verify=False)
    try:
        yield one
    finally:
        one.sync_client.close()


BY_CHANCE = ("assistant", "branches", "parallel")
"""Whose parallel tasks end in any order."""


def comparable(value: Any) -> Any:
    """A value without what differs between two calls by nature: ids."""
    match value:
        case BaseMessage():
            # The metadata of an answer say whether it was streamed: a run's always is.
            unlike = {"id", "tool_calls", "tool_call_chunks", "tool_call_id", "response_metadata", "additional_kwargs"}
            kept = value.model_dump(exclude=unlike)
            calls = [(one["name"], one["args"]) for one in getattr(value, "tool_calls", ())]
            return {"class": type(value).__name__, **kept, "calls": calls}
        case BaseModel():
            return {name: comparable(getattr(value, name)) for name in type(value).model_fields}
        case dict():
            return {key: comparable(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [comparable(item) for item in value]
        case str():
            return str(value)
        case Send():  # no JSON of its own
            return {"type": "Send"}
    return value


def in_order(agent: str, chunks: list[Any]) -> Any:
    """Chunks to compare: in their order, or in any where chance decides on it."""
    return Counter(map(repr, map(comparable, chunks))) if agent in BY_CHANCE else comparable(chunks)


def total(chunks: list[Any]) -> Any:
    return functools.reduce(operator.add, chunks)


# -- the results are the runnable's own -------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
async def test_invoke_and_batch_give_what_the_runnable_itself_gives(server: Served, twin: Twin, agent: str) -> None:
    direct, value = twin[agent], AGENTS[agent][1]
    expected = comparable(await twin.run(direct.ainvoke(value)))
    async with remote(server, agent) as one:
        assert comparable(await one.ainvoke(value)) == expected
        assert comparable(await one.abatch([value, value])) == [expected, expected]


@pytest.mark.parametrize("agent", AGENTS)
async def test_stream_gives_the_runnables_own_chunks(server: Served, twin: Twin, agent: str) -> None:
    direct, value = twin[agent], AGENTS[agent][1]
    async with remote(server, agent) as one:
        chunks = [chunk async for chunk in one.astream(value)]
    expected = await twin.list(direct.astream(value))
    assert in_order(agent, chunks) == in_order(agent, expected)


@pytest.mark.parametrize("agent", ["chat", "bare", "parsed"])
async def test_the_chunks_add_up_to_the_answer(server: Served, agent: str) -> None:
    value = AGENTS[agent][1]
    async with remote(server, agent) as one:
        answer = await one.ainvoke(value)
        summed = total([chunk async for chunk in one.astream(value)])
    if agent == "parsed":
        assert summed == answer
    else:
        assert (type(summed), type(answer)) == (AIMessageChunk, AIMessage)
        assert (summed.content, summed.usage_metadata) == (answer.content, answer.usage_metadata)


@pytest.mark.parametrize(
    "agent", ["chat", "assistant", "pydantic_state", "shout", "double", "parsed", "bare", "parallel"]
)
def test_the_synchronous_calls_give_the_same(server: Served, twin: Twin, agent: str) -> None:
    direct, value = twin[agent], AGENTS[agent][1]
    expected = comparable(direct.invoke(value))
    with remote_sync(server, agent) as one:
        assert comparable(one.invoke(value)) == expected
        assert comparable(one.batch([value, value])) == [expected, expected]
        chunks = list(one.stream(value))
    assert in_order(agent, chunks) == in_order(agent, list(direct.stream(value)))


@pytest.mark.parametrize("agent", AGENTS)
async def test_stream_events_gives_the_runnables_own_events(server: Served, twin: Twin, agent: str) -> None:
    direct, value = twin[agent], AGENTS[agent][1]
    async with remote(server, agent) as one:
        events = [event async for event in one.astream_events(value)]
    expected = await twin.list(direct.astream_events(value, version="v2"))

    def shown(event: Mapping[str, Any]) -> str:
        name = event["name"] if event["parent_ids"] else "(root)"
        data = {key: item for key, item in event["data"].items() if key != "input"}
        shown = (event["event"], name, sorted(event["tags"]), len(event["parent_ids"]), comparable(data))
        return repr(shown)

    assert Counter(map(shown, events)) == Counter(map(shown, expected))
    assert len({event["run_id"] for event in events}) == len({event["run_id"] for event in expected})
    assert [event["event"] for event in events[:1]] == [event["event"] for event in expected[:1]]


@pytest.mark.parametrize("agent", AGENTS)
async def test_stream_log_adds_up_to_the_runnables_own_log(server: Served, twin: Twin, agent: str) -> None:
    direct, value = twin[agent], AGENTS[agent][1]
    async with remote(server, agent) as one:
        state = total([patch async for patch in one.astream_log(value)]).state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain announces that the method will go
        expected = total(await twin.list(direct.astream_log(value))).state
    assert state["logs"].keys() == expected["logs"].keys()
    assert state["type"] == expected["type"]
    if agent in BY_CHANCE:
        return
    assert comparable(state["streamed_output"]) == comparable(expected["streamed_output"])
    assert comparable(state["final_output"]) == comparable(expected["final_output"])
    for name, entry in expected["logs"].items():
        mine = state["logs"][name]
        for key in ("name", "type", "tags", "streamed_output_str", "streamed_output"):
            assert comparable(mine[key]) == comparable(entry[key]), (name, key)
        assert mine["end_time"]
        assert (mine["final_output"] is None) == (entry["final_output"] is None)


async def test_the_playground_is_told_the_words_of_a_graph_and_its_failure(client: httpx.AsyncClient) -> None:
    async def shown(agent: str, text: str) -> list[str]:
        page = {"Referer": f"{client.base_url}agents/{agent}/playground/"}
        answer = await client.post(f"/agents/{agent}/stream_log", json={"input": text}, headers=page)
        patches = [line for line in answer.text.splitlines() if line.startswith('data: {"ops"')]
        log: Any = None
        states = []
        for patch in patches:
            log = jsonpatch.apply_patch(log, json.loads(patch.removeprefix("data: "))["ops"])
            states.append("".join(chunk["content"] for chunk in log["streamed_output"]))
        assert log["final_output"]["content"] == states[-1]
        return states

    states = await shown("assistant", "What is 6*7?")
    assert states[-1].endswith("42.")
    assert len(set(states)) > 4
    assert all(states[-1].startswith(state) for state in states)
    failed = (await shown("assistant", "[[error_after=3]] hi"))[-1]
    assert failed.endswith("The model provider reported an error in the middle of the answer.")
    assert (await shown("waits_not", "hi"))[-1] == "done"


async def test_filters_choose_the_events(server: Served) -> None:
    value = AGENTS["assistant"][1]
    async with remote(server, "assistant") as one:
        tools = [event async for event in one.astream_events(value, include_types=["tool"])]
        rest = [event async for event in one.astream_events(value, exclude_names=["calculator", "ChatOpenAI"])]
        log = total([patch async for patch in one.astream_log(value, include_names=["calculator"])]).state
    assert {event["event"] for event in tools} == {"on_tool_start", "on_tool_end"}
    assert not {"calculator", "ChatOpenAI"} & {event["name"] for event in rest}
    assert log["logs"].keys() == {"calculator", "calculator:2"}


async def test_a_conversation_goes_on_with_what_came_back(server: Served) -> None:
    async with remote(server, "assistant") as one:
        first = await one.ainvoke({"messages": [HumanMessage("What is 6*7?")]})
        assert [type(message) for message in first["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
        second = await one.ainvoke({"messages": [*first["messages"], HumanMessage("And what is 2+3?")]})
    assert comparable(second["messages"][:4]) == comparable(first["messages"])
    assert [message.id for message in second["messages"][:4]] == [message.id for message in first["messages"]]
    assert "5" in second["messages"][-1].text


async def test_a_conversation_may_hold_a_message_that_was_summed_from_chunks(server: Served) -> None:
    async with remote(server, "chat") as one:
        asked = HumanMessage("[[tokens=5]] my name is Ada")
        summed = total([chunk async for chunk in one.astream({"messages": [asked]})])
        answer = await one.ainvoke({"messages": [asked, summed, HumanMessage("what is my name?")]})
    assert "Ada" in answer.text


@pytest.mark.parametrize(
    "value",
    [
        "[[tokens=4]] hello",
        [HumanMessage("[[tokens=4]] hello")],
        [SystemMessage("Be brief."), HumanMessage("hello"), AIMessage("yes?"), HumanMessage("[[tokens=4]] go")],
        ChatPromptTemplate.from_messages([("human", "{x}")]).invoke({"x": "[[tokens=4]] hello"}),
    ],
)
async def test_a_bare_model_takes_what_models_take(server: Served, value: Any) -> None:
    async with remote(server, "bare") as one:
        answer = await one.ainvoke(value)
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 4


async def test_a_remote_agent_is_a_step_like_any_other(server: Served) -> None:
    async with remote(server, "bare") as model, remote(server, "chat") as chat:
        chain = ChatPromptTemplate.from_messages([("human", "{x}")]) | model | StrOutputParser()
        assert await chain.ainvoke({"x": "[[say=yes]]"}) == "yes"

        async def ask(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke({"messages": state["messages"]})]}

        graph = StateGraph(MessagesState)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        state = await graph.compile().ainvoke({"messages": [HumanMessage("[[say=yes]]")]}, {"recursion_limit": 5})
    assert state["messages"][-1].text == "yes"


# -- a call is a run --------------------------------------------------------------------------------------------------


def body(call: str, text: Any = "[[tokens=7]] hello", **more: Any) -> dict[str, Any]:
    return {"inputs": [text, text], **more} if call == "batch" else {"input": text, **more}


def rows(server: Served) -> list[dict[str, Any]]:
    return [run.row() for run in server.runner.kept("127.0.0.1")]


@pytest.mark.parametrize("agent", ["chat", "assistant"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_is_a_run_in_the_list_with_its_usage_counted(
    client: httpx.AsyncClient, agent: str, call: str
) -> None:
    before = {one["run_id"] for one in (await client.get("/runs")).json()["runs"]}
    answer = await client.post(f"/agents/{agent}/{call}", json=body(call))
    assert answer.status_code == 200
    after = [one for one in (await client.get("/runs")).json()["runs"] if one["run_id"] not in before]
    assert len(after) == (2 if call == "batch" else 1)
    for one in after:
        assert (one["agent"], one["status"], one["usage"]["output_tokens"]) == (agent, "completed", 7)
        assert not one["usage"]["estimated"]
        assert one["ttft_ms"] is not None
        assert (await client.get(f"/runs/{one['run_id']}/result")).json()["text"]
    ids = {one["run_id"] for one in after}
    if call == "batch":
        assert set(answer.json()["metadata"]["run_ids"]) == ids
        assert "x-run-id" not in answer.headers
    else:
        assert {answer.headers["x-run-id"]} == ids
        assert answer.headers["content-location"] == f"/runs/{answer.headers['x-run-id']}"
    if call == "invoke":
        assert answer.json()["metadata"]["run_id"] in ids


async def frames(client: httpx.AsyncClient, agent: str, call: str, text: str) -> list[ServerSentEvent]:
    async with aconnect_sse(client, "POST", f"/agents/{agent}/{call}", json={"input": text}) as source:
        return [event async for event in source.aiter_sse()]


@pytest.mark.parametrize("call", STREAMS)
async def test_a_stream_has_the_contracts_headers_and_its_first_and_last_line(
    client: httpx.AsyncClient, call: str
) -> None:
    async with client.stream("POST", f"/agents/chat/{call}", json=body(call)) as response:
        headers = response.headers
        lines = [line async for line in response.aiter_lines()]
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-location"] == f"/runs/{headers['x-run-id']}"
    assert "content-length" not in headers
    assert lines[0] == "retry: 1000"
    assert [line for line in lines if line.startswith("event: ")][-1] == "event: end"
    assert not [line for line in lines if line.startswith("id:")]
    if call == "stream":
        assert lines[1] == "event: metadata"
        assert json.loads(lines[2].removeprefix("data: ")) == {"run_id": headers["x-run-id"]}
    if call == "stream_events":
        assert json.loads(lines[2].removeprefix("data: "))["run_id"] == headers["x-run-id"]


@pytest.mark.parametrize("call", STREAMS)
async def test_a_stream_can_be_joined_over_another_protocol_while_it_goes_on(
    client: httpx.AsyncClient, call: str
) -> None:
    async with client.stream(
        "POST", "/agents/chat/invoke".replace("invoke", call), json=body(call, "[[tokens=60]] hi")
    ) as stream:
        run_id = stream.headers["x-run-id"]
        assert (await client.get(f"/runs/{run_id}")).json()["status"] == "running"
        async with aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source:
            joined = [event async for event in source.aiter_sse()]
        await stream.aread()
    assert sum(event.event == "token" for event in joined) == 60
    assert json.loads(joined[-1].data)["status"] == "completed"


@pytest.mark.parametrize("call", STREAMS)
async def test_whatever_the_call_the_log_is_the_same(client: httpx.AsyncClient, call: str) -> None:
    async def log(path: str) -> list[str]:
        async with client.stream("POST", path, json={"input": "What is 6*7?"}, headers=SSE) as stream:
            run_id = stream.headers["x-run-id"]
            await stream.aread()
        async with aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source:
            return [event.event async for event in source.aiter_sse()]

    assert await log(f"/agents/assistant/{call}") == await log("/agents/assistant/runs")


SSE = {"Accept": "text/event-stream"}


async def halting(inputs: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Silent before it speaks, and in the middle."""
    async for _ in inputs:
        for word in ("one", "two"):
            await asyncio.sleep(0.4)
            yield word


@pytest.mark.parametrize("call", STREAMS)
async def test_heartbeats_are_sent_while_the_agent_is_silent_before_its_first_word_and_later(call: str) -> None:
    with mounted({"halting": Agent("halting", RunnableGenerator(halting))}, heartbeat_s=0.05) as (url, _):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            answer = await client.post(f"/agents/halting/{call}", json={"input": "go"}, headers=SSE)
    assert answer.text.startswith("retry: 1000\n")
    before, _, rest = answer.text.partition('"one"')
    between = rest.partition('"two"')[0]
    assert before.count(": hb\n") >= 3
    assert between.count(": hb\n") >= 3
    assert answer.text.endswith("event: end\ndata: \n\n")


@contextmanager
def mounted(agents: Mapping[str, Agent], *, send_timeout_s: float = 30, **options: Any) -> Iterator[tuple[str, Runner]]:
    """LangServe's routes alone, for agents that declare something."""
    runner = Runner(agents, strict=True)
    app = FastAPI()
    app.add_middleware(Access)
    errors.install(app)
    app.include_router(langserve_routes(runner, **options))
    app.add_middleware(Wire, send_timeout_s=send_timeout_s)
    with running(app) as url:
        yield url, runner


# -- cancelled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["chat", "assistant", "nested", "branches"])
@pytest.mark.parametrize("call", ["stream", "stream_events"])
async def test_a_cancelled_stream_raises_at_its_client_which_can_go_on_at_once(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, agent: str, call: str
) -> None:
    async with remote(server, agent) as one:
        for _ in range(3):
            calling = one.astream(message(ENDLESS)) if call == "stream" else one.astream_events(message(ENDLESS))
            reading = asyncio.create_task(anext_forever(calling))
            await until(lambda: any(open_and_talking(provider)))
            run_id = rows(server)[0]["run_id"]
            assert (await client.post(f"/runs/{run_id}/cancel")).json()["status"] == "cancelled"
            with pytest.raises(httpx.HTTPStatusError, match="cancelled"):
                await reading
            assert await one.ainvoke(message("[[say=yes]]"))
            await settled(server, provider, until)


def message(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


async def anext_forever(items: AsyncIterator[Any]) -> None:
    async for _ in items:
        pass


def open_and_talking(provider: Simulator) -> list[bool]:
    return [one.tokens_sent > 3 for one in provider.requests if one.ended is None]


@pytest.mark.parametrize("call", CALLS)
async def test_a_cancelled_call_ends_with_an_error_on_a_connection_that_can_be_used_again(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, call: str
) -> None:
    await settled(server, provider, until)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as kept:
        calling = asyncio.create_task(kept.post(f"/agents/chat/{call}", json=body(call, ENDLESS)))
        await until(lambda: len(open_and_talking(provider)) == (2 if call == "batch" else 1))
        await until(lambda: all(open_and_talking(provider)))
        run_id = rows(server)[0]["run_id"]
        await client.post(f"/runs/{run_id}/cancel")
        answer = await calling
        again = await kept.post("/agents/chat/invoke", json={"input": "[[say=yes]]"})
    if call in STREAMS:
        assert answer.status_code == 200
        last = [block for block in answer.text.split("\n\n") if block][-1].splitlines()
        assert last[0] == "event: error"
        error = json.loads(last[1].removeprefix("data: "))
        assert error == {"status_code": 502, "message": "the run was cancelled", "code": "cancelled"}
    else:
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "cancelled"
    assert again.json()["output"]["content"] == "yes"
    await settled(server, provider, until)  # the other items of a batch, too


# -- left -------------------------------------------------------------------------------------------------------------


async def open_raw(server: Served, path: str, sent: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose socket is ours to break."""
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    data = json.dumps(sent).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    ("agent", "requests"), [("chat", 1), ("assistant", 1), ("nested", 1), ("branches", 3), ("waits", 0)]
)
@pytest.mark.parametrize("phase", [SILENT, ENDLESS], ids=["before the first token", "mid-token"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_client_that_leaves_ends_its_runs_and_the_providers_streams(
    server: Served, provider: Simulator, slow: Slow, until: Until, agent: str, requests: int, phase: str, call: str
) -> None:
    await settled(server, provider, until)
    known, cancelled, items = {one["run_id"] for one in rows(server)}, slow.cancelled, 2 if call == "batch" else 1

    def mine() -> list[dict[str, Any]]:
        return [one for one in rows(server) if one["run_id"] not in known]

    _, writer = await open_raw(server, f"/agents/{agent}/{call}", body(call, phase))
    await until(lambda: sum(one.ended is None for one in provider.requests) == requests * items)
    if agent == "waits":
        await until(lambda: slow.entered - slow.cancelled == 3 * items)
    elif phase == ENDLESS:
        await until(lambda: all(one["ttft_ms"] is not None for one in mine()))
    writer.close()
    await settled(server, provider, until)
    await writer.wait_closed()
    ended = mine()
    assert [one["status"] for one in ended] == ["cancelled"] * items
    if agent == "waits":
        assert slow.cancelled - cancelled == 3 * items
    elif phase == ENDLESS:
        assert all(one["usage"]["output_tokens"] > 0 for one in ended)


async def test_a_second_reader_keeps_a_run_that_its_langserve_client_left(
    server: Served, client: httpx.AsyncClient, until: Until
) -> None:
    async with client.stream("POST", "/agents/chat/stream", json=body("stream", "[[tokens=60]] hi")) as stream:
        run_id = stream.headers["x-run-id"]
        waiting = asyncio.create_task(client.get(f"/runs/{run_id}/result", params={"wait": "true"}))
        await until(lambda: server.runner.kept("127.0.0.1")[0].scope.readers == 2)
    assert (await waiting).json()["status"] == "completed"


async def test_a_client_that_leaves_while_it_sends_is_no_fault(
    server: Served, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    where = urlsplit(server.url)
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(b'POST /agents/chat/invoke HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"input"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with remote(server, "chat") as one:
        assert await one.ainvoke(message("[[say=yes]]"))
    assert not caplog.records


# -- a reader that does not read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", STREAMS)
async def test_a_reader_that_lags_too_far_ends_its_run_and_is_told_so_when_it_reads_on(
    server: Served, client: httpx.AsyncClient, until: Until, flood: Flood, call: str
) -> None:
    await until(lambda: server.runner.live == 0)
    async with deaf(server.url, f"/agents/flood/{call}") as sock:
        await until(lambda: server.runner.live == 1)
        await until(lambda: server.runner.live == 0)
        run = server.runner.kept("127.0.0.1")[0]
        assert (run.agent.name, run.status) == ("flood", "cancelled")
        assert flood.sent < 25_000
        # Others are served meanwhile.
        assert (await client.post("/agents/chat/invoke", json={"input": "[[say=yes]]"})).status_code == 200
        read = await asyncio.to_thread(drain, sock)
    assert len(read) < 6 * 1024 * 1024  # what the buffers held, and nothing of what was pending
    assert read.endswith(b"0\r\n\r\n")
    *_, last = read.split(b"\r\nevent: ")
    kind, _, data = last.partition(b"\ndata: ")
    assert kind.split()[-1].endswith(b"error")
    told = json.loads(data.splitlines()[0])
    assert (told["status_code"], told["code"]) == (502, "reader_too_slow")


async def test_a_reader_that_never_reads_is_dropped(until: Until, flood: Flood) -> None:
    agents = {"flood": Agent("flood", RunnableGenerator(flood.run))}
    with mounted(agents, send_timeout_s=1.0) as (url, runner):
        async with deaf(url, "/agents/flood/stream") as sock:
            await until(lambda: runner.live == 1)
            await until(lambda: runner.live == 0)
            poll = select.poll()
            poll.register(sock, 0)
            await until(lambda: bool(poll.poll(0)))  # a reset: nobody waits for this socket any more


@asynccontextmanager
async def deaf(url: str, path: str) -> AsyncIterator[socket.socket]:
    """A client that sends its request and reads nothing."""
    where, loop = urlsplit(url), asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (where.hostname, where.port))
        data = json.dumps({"input": "go"}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        await loop.sock_sendall(sock, head.encode() + data)
        yield sock


def drain(sock: socket.socket) -> bytes:
    """All that comes until the response is over."""
    sock.settimeout(10)
    read = b""
    while not read.endswith(b"\r\n0\r\n\r\n"):
        data = sock.recv(65536)
        assert data, "the connection was broken off"
        read += data
    return read


@pytest.mark.parametrize("call", ["stream", "stream_events"])
async def test_a_reader_that_keeps_up_gets_a_long_answer_whole(server: Served, call: str) -> None:
    async with remote(server, "chat") as one:
        asked = message("[[burst=1 tokens=1500]] go")
        if call == "stream":
            answer = total([chunk async for chunk in one.astream(asked)])
        else:
            answer = [event async for event in one.astream_events(asked)][-1]["data"]["output"]
    assert answer.usage_metadata["output_tokens"] == 1500


async def test_a_log_of_a_long_answer_does_not_repeat_it_with_every_token(client: httpx.AsyncClient) -> None:
    sizes = {}
    for tokens in (200, 2000):
        answer = await client.post("/agents/bare/stream_log", json={"input": f"[[burst=1 tokens={tokens}]] go"})
        assert "event: end" in answer.text
        sizes[tokens] = len(answer.content)
    assert sizes[2000] < 12 * sizes[200]


# -- what clients may not set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
async def test_clients_may_not_set_what_the_agent_does_not_declare(client: httpx.AsyncClient, call: str) -> None:
    before = len((await client.get("/runs")).json()["runs"])
    config: Any = {"configurable": {"thread_id": "t1", "model": "gpt-9"}}
    sent = body(call, config=[{}, config] if call == "batch" else config)
    answer = await client.post(f"/agents/chat/{call}", json=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_input")
    assert [one["field"] for one in error["detail"]] == ["config.configurable.model", "config.configurable.thread_id"]
    assert "config.configurable.model" in error["message"]
    assert "x-run-id" not in answer.headers
    assert len((await client.get("/runs")).json()["runs"]) == before


@pytest.mark.parametrize("call", CALLS)
async def test_the_rest_of_a_clients_config_is_without_effect(client: httpx.AsyncClient, call: str) -> None:
    run_id = "00000000-0000-4000-8000-000000000001"
    config = {
        "recursion_limit": 1,
        "run_id": run_id,
        "run_name": "mine",
        "tags": ["mine"],
        "metadata": {"mine": "mine"},
        "callbacks": [{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}],
        "max_concurrency": 0,
        "configurable": {},
    }
    answer = await client.post(f"/agents/assistant/{call}", json=body(call, "What is 6*7?", config=config))
    assert answer.status_code == 200
    assert "42" in answer.text
    assert "event: error" not in answer.text
    assert run_id not in answer.text
    assert "mine" not in answer.text
    assert (await client.get(f"/runs/{run_id}")).status_code == 404


async def test_what_an_agent_declares_may_be_set_and_nothing_else() -> None:
    def build(base_url: str) -> Any_:
        field = ConfigurableField(id="limit", annotation=int)
        hidden = ConfigurableField(id="model", annotation=str)
        return openai(base_url).configurable_fields(max_tokens=field, model_name=hidden)

    with Simulator(tokens_per_second=0) as provider:
        agent = Agent("bare", build(provider.base_url), configurable=["limit"])
        with mounted({"bare": agent}) as (url, _):
            async with httpx.AsyncClient(base_url=f"{url}/agents/bare", timeout=30) as client:
                short = await client.post(
                    "/invoke", json={"input": "tell me a story", "config": {"configurable": {"limit": 3}}}
                )
                assert short.json()["output"]["usage_metadata"]["output_tokens"] == 3
                batch = await client.post(
                    "/batch", json={"inputs": ["tell me a story"], "config": {"configurable": {"limit": 3}}}
                )
                assert batch.json()["output"][0]["usage_metadata"]["output_tokens"] == 3
                refused = await client.post(
                    "/invoke", json={"input": "hi", "config": {"configurable": {"model": "gpt-9"}}}
                )
                assert refused.json()["error"]["detail"][0]["field"] == "config.configurable.model"
                wrong = await client.post(
                    "/invoke", json={"input": "hi", "config": {"configurable": {"limit": "many"}}}
                )
                assert wrong.status_code == 422
                link = json.dumps({"configurable": {"limit": 3, "model": "x"}})
                shared = LZString.compressToEncodedURIComponent(link)  # type: ignore[no-untyped-call]
                linked = (await client.post(f"/c/{shared}/invoke", json={"input": "tell me a story"})).json()["output"]
                assert linked["usage_metadata"]["output_tokens"] == 3
                assert provider.requests[-1].model == "simulated"
                schema = (await client.get("/config_schema")).json()
                assert "limit" in json.dumps(schema)
                assert "model" not in json.dumps(schema)


# -- bad input --------------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
DEEPISH = b"[" * 900 + b"]" * 900

BAD = [
    (b"", 400, "invalid_json"),
    (b"{nope", 400, "invalid_json"),
    (b"\xff\xfe{}", 400, "invalid_json"),
    ('{"input": "hi"}'.encode("utf-16"), 400, "invalid_json"),
    (b'{"input": "\xff"}', 400, "invalid_json"),
    (b'{"input": "\\ud800"}', 400, "invalid_json"),
    (b'{"input": NaN}', 400, "invalid_json"),
    (b'{"input": {"messages": "hi", "x": Infinity}}', 400, "invalid_json"),
    (b'{"input": ' + DEEP + b"}", 400, "invalid_json"),
    (b'{"input": "hi", "config": ' + DEEP + b"}", 400, "invalid_json"),
    (b'{"input": ' + DEEPISH + b"}", 422, "invalid_input"),
    (b"[]", 422, "invalid_input"),
    (b'"hi"', 422, "invalid_input"),
    (b"null", 422, "invalid_input"),
    (b"7", 422, "invalid_input"),
    (b"{}", 422, "invalid_input"),
    (b'{"input": null}', 422, "invalid_input"),
    (b'{"input": ""}', 422, "invalid_input"),
    (b'{"input": []}', 422, "invalid_input"),
    (b'{"input": {}}', 422, "invalid_input"),
    (b'{"input": 7}', 422, "invalid_input"),
    (b'{"input": {"messages": []}}', 422, "invalid_input"),
    (b'{"input": {"messages": [7]}}', 422, "invalid_input"),
    (b'{"input": {"messages": [{"role": "user", "content": ""}]}}', 422, "invalid_input"),
    (b'{"input": {"messages": [{"role": "wizard", "content": "hi"}]}}', 422, "invalid_input"),
    (b'{"input": {"messages": [{"type": "wizard", "content": "hi"}]}}', 422, "invalid_input"),
    (b'{"input": {"messages": [{"lc": 1, "type": "constructor", "id": ["x"]}]}}', 422, "invalid_input"),
    (b'{"input": {"other": "hi"}}', 422, "invalid_input"),
    (b'{"input": "hi", "config": 7}', 422, "invalid_input"),
    (b'{"input": "hi", "config": {"configurable": 7}}', 422, "invalid_input"),
    (b'{"input": "hi", "config": {"configurable": ["thread_id"]}}', 422, "invalid_input"),
]


@pytest.mark.parametrize(("sent", "status", "code"), BAD, ids=[repr(one[0][:40]) for one in BAD])
async def test_a_bad_body_is_refused_in_the_contracts_form(
    server: Served, client: httpx.AsyncClient, sent: bytes, status: int, code: str
) -> None:
    known = len(rows(server))
    for call in CALLS:
        written = as_batch(sent) if call == "batch" and status == 422 else sent
        answer = await client.post(f"/agents/chat/{call}", content=written)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert answer.json()["error"]["message"]
        assert "x-run-id" not in answer.headers
    assert len(rows(server)) == known


def as_batch(sent: bytes) -> bytes:
    """The body with its input as the second of two."""
    sent = sent.replace(b'"input": ', b'"inputs": ["hi", ', 1).replace(b', "config"', b'], "config"', 1)
    return sent[:-1] + b"]}" if b"inputs" in sent and b"config" not in sent else sent


@pytest.mark.parametrize(
    ("call", "sent"),
    [
        ("batch", b'{"inputs": "hi"}'),
        ("batch", b'{"inputs": 7}'),
        ("batch", b'{"inputs": {"messages": "hi"}}'),
        ("batch", b'{"inputs": ["hi"], "config": [{}, {}]}'),
        ("batch", b'{"inputs": ["hi"], "config": [7]}'),
        ("invoke", b'{"input": "hi", "config": []}'),
        ("stream_events", b'{"input": "hi", "include_names": 7}'),
        ("stream_log", b'{"input": "hi", "exclude_tags": {"a": 1}}'),
    ],
)
async def test_a_field_of_the_wrong_type_is_refused(
    server: Served, client: httpx.AsyncClient, call: str, sent: bytes
) -> None:
    known = len(rows(server))
    answer = await client.post(f"/agents/chat/{call}", content=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input"), answer.text
    assert len(rows(server)) == known


@pytest.mark.parametrize(
    "sent",
    [
        b'{"input": "[[say=yes]]", "kwargs": ' + DEEPISH + b"}",
        b'{"input": "[[say=yes]]", "config": {"metadata": {"a": ' + DEEPISH + b"}}}",
        b'{"input": "[[say=yes]]", "config": {"metadata": {"a": ' + b"9" * 5000 + b"}}}",
        b'{"input": "[[say=yes]]", "config": {"metadata": {"a": 1e999}}}',
        b'{"input": "[[say=no]]", "input": "[[say=yes]]"}',
        b'{"input": "[[say=yes]]", "config": null}',
    ],
    ids=lambda sent: repr(sent[:60]),
)
async def test_oddities_that_nobody_reads_harm_nobody(client: httpx.AsyncClient, sent: bytes) -> None:
    answer = await client.post("/agents/chat/invoke", content=sent)
    if answer.status_code == 200:
        assert answer.json()["output"]["content"] == "yes"
    else:
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["message"]


async def test_an_empty_batch_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert (await client.post("/agents/chat/batch", json={"inputs": []})).json()["output"] == []


async def test_after_all_that_the_server_still_answers(server: Served, client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    assert (await client.post("/agents/chat/invoke", json={"input": "[[say=yes]]"})).json()["output"][
        "content"
    ] == "yes"
    assert server.runner.live == 0


# -- an agent that fails ----------------------------------------------------------------------------------------------

FAULTS = [
    ("fails", "hi", "agent_error"),
    ("impatient", "[[status=500]] hi", "provider_error"),
    ("impatient", "[[status=429]] hi", "provider_rate_limited"),
    ("chat", "[[error_after=3]] hi", "provider_error"),
    ("assistant", "[[drop_after=3]] hi", "provider_dropped"),
    ("nested", "[[drop_after=3]] hi", "provider_dropped"),
]


@pytest.mark.parametrize(("agent", "text", "code"), FAULTS)
@pytest.mark.parametrize("call", CALLS)
async def test_an_agent_that_fails_says_why_and_the_connection_can_be_used_again(
    server: Served, agent: str, text: str, code: str, call: str
) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as kept:
        for _ in range(2):
            answer = await kept.post(f"/agents/{agent}/{call}", json=body(call, text))
            if call in STREAMS:
                assert answer.status_code == 200
                last = [block for block in answer.text.split("\n\n") if block][-1].splitlines()[-2:]
                assert last[0] == "event: error"
                error = json.loads(last[1].removeprefix("data: "))
                assert (error["status_code"], error["code"]) == (502, code)
                assert error["message"]
            else:
                assert answer.status_code == 502
                assert answer.json()["error"]["code"] == code
            if call != "batch":
                run_id = answer.headers["x-run-id"]
                assert (await kept.get(f"/runs/{run_id}")).json()["status"] == "failed"
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text


async def test_a_failing_agent_raises_at_its_remote_runnable(server: Served) -> None:
    async with remote(server, "impatient") as one:
        for _ in range(2):
            with pytest.raises(httpx.HTTPStatusError, match="HTTP status 500") as raised:
                await one.ainvoke(message("[[status=500]] hi"))
            assert raised.value.response.status_code == 502
            for stream in (one.astream, one.astream_events, one.astream_log):
                with pytest.raises(httpx.HTTPStatusError, match="HTTP status 500"):
                    await anext_forever(stream(message("[[status=500]] hi")))
            assert (await one.ainvoke(message("[[say=yes]]"))).text == "yes"


@pytest.mark.parametrize("call", CALLS)
async def test_a_server_that_goes_away_refuses_by_the_status_streams_too(call: str) -> None:
    with mounted({"shout": Agent("shout", RunnableLambda(shout))}) as (url, runner):
        await runner.close()
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.post(f"/agents/shout/{call}", json=body(call, "hi"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert "x-run-id" not in answer.headers


async def test_one_failing_item_fails_its_batch_and_ends_the_others(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    await settled(server, provider, until)
    answer = await client.post("/agents/impatient/batch", json={"inputs": [ENDLESS, "[[status=500]] hi", ENDLESS]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_error")
    await settled(server, provider, until)
    assert sorted(one["status"] for one in rows(server)[:3]) == ["cancelled", "cancelled", "failed"]


# -- what describes the agents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_schemas_are_the_agents_own(server: Served, client: httpx.AsyncClient, agent: str) -> None:
    for kind in ("input_schema", "output_schema", "config_schema"):
        schema = await client.get(f"/agents/{agent}/{kind}")
        assert schema.status_code == 200
        assert not dangling(schema.json())
    served = server.runner.agents[agent]
    input_schema = (await client.get(f"/agents/{agent}/input_schema")).json()
    assert input_schema.get("properties", {}).keys() == served.input_schema.get("properties", {}).keys()
    assert input_schema.get("required") == served.input_schema.get("required")
    output_schema = (await client.get(f"/agents/{agent}/output_schema")).json()
    assert {**output_schema, "title": ""} == {**served.output_schema, "title": ""}


def dangling(document: Any) -> list[str]:
    """References that lead nowhere."""

    def found(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from found(item)
        elif isinstance(value, list):
            for item in value:
                yield from found(item)

    def leads(reference: str) -> bool:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
        return reference.startswith("#/") and place is not None

    return sorted({reference for reference in found(document) if not leads(reference)})


async def test_the_openapi_document_is_sound(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert not dangling(document)
    operations = [one for path in document["paths"].values() for one in path.values() if isinstance(one, dict)]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for agent in AGENTS:
        for call in CALLS:
            assert "post" in document["paths"][f"/agents/{agent}/{call}"]
    invoke = document["paths"]["/agents/assistant/invoke"]["post"]
    assert "messages" in json.dumps(resolved(document, invoke["requestBody"]))
    assert (await client.get("/docs")).status_code == 200


def resolved(document: Any, value: Any) -> Any:
    if isinstance(value, dict) and "$ref" in value:
        place = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        return resolved(document, place)
    if isinstance(value, dict):
        return {key: resolved(document, item) for key, item in value.items()}
    return [resolved(document, item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_playground_is_served_with_its_assets(client: httpx.AsyncClient, agent: str) -> None:
    page = await client.get(f"/agents/{agent}/playground/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assets = [part.split('"')[0] for part in page.text.split(f'="/agents/{agent}/playground/')[1:]]
    assert len(assets) == 3
    for asset in assets:
        got = await client.get(f"/agents/{agent}/playground/{asset}")
        assert got.status_code == 200
        assert got.content
    for outside in ("nothing.js", "..%2f..%2f..%2fclient.py", "%2e%2e/%2e%2e/client.py"):
        assert (await client.get(f"/agents/{agent}/playground/{outside}")).status_code == 404


# -- two servers in one process ---------------------------------------------------------------------------------------


def test_two_servers_in_one_process_stream_at_once() -> None:
    def agent(base_url: str, answer: str) -> Any_:
        return RunnableLambda(lambda _: answer) | openai(base_url)

    with Simulator(tokens_per_second=0) as one_provider, Simulator(tokens_per_second=0) as two_provider:
        one_agents = {"mine": nested(one_provider.base_url)}
        two_agents = {"mine": with_notes(two_provider.base_url)}  # the same name, another schema
        with (
            serving(one_agents, openai_base_url=one_provider.base_url) as one,
            serving(two_agents, openai_base_url=two_provider.base_url) as two,
        ):
            for server in (one, two):  # FastAPI builds its routes with the first request
                httpx.get(f"{server.url}/agents/mine/input_schema").raise_for_status()
            failures: list[str] = []

            def stream(server: Served) -> None:
                with httpx.Client(base_url=server.url, timeout=30) as client:
                    for number in range(8):
                        name = ("chat", "mine")[number % 2]
                        answer = client.post(f"/agents/{name}/stream", json={"input": "[[tokens=9]] hi"})
                        if "event: end" not in answer.text:
                            failures.append(answer.text)
                        answer = client.post(f"/agents/{name}/invoke", json={"input": "[[tokens=9]] hi"})
                        if answer.status_code != 200:
                            failures.append(answer.text)

            threads = [threading.Thread(target=stream, args=(server,)) for server in (one, two) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures
            assert [len(server.runner.kept("127.0.0.1")) for server in (one, two)] == [48, 48]


async def test_another_servers_signal_ends_no_stream_here(server: Served) -> None:
    uvicorn.Server(uvicorn.Config(FastAPI(), log_config=None)).handle_exit(signal.SIGTERM, None)
    async with remote(server, "chat") as one:
        assert total([chunk async for chunk in one.astream(message("[[say=yes]]"))]).text == "yes"
