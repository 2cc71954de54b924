"""Plays a provider's stream to the provider's own client, over HTTP, and notes what a reader is told.

A wire file has one chunk a line, in the provider's form: a ``chat.completion.chunk`` of the OpenAI wire, or an event of
Anthropic's. The ways they are cut are those of providers, the words are ours. It may hold several answers, those of one
run, in the order in which they are asked for. The graph is the usual one, a model and a ``ToolNode`` in a loop; where
two models speak at once their chunks come in turns, each when the one before it has been heard, so that there is one
order of events and no other.

Read it may be in four ways: as the provider's client and LangChain have it (``stock``); as plain dicts, where this
changes anything (``dicts``); and with plain text past LangChain (``shortcut``), in which nobody is heard of but the
reader, also from a synchronous node, which is called in a thread (``thread``).

``told`` gives the run's events, a line each. What differs from run to run is replaced by two rules, and nothing else:
``TIMES`` are left out, and every UUID becomes ``#1``, ``#2`` … in the order in which they are first told.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

import httpx
from fastapi import FastAPI
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from runners import runner_of
from runners import told as events_of
from serving import running
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from typing_extensions import override

from app.events import codec
from app.events.event import Event
from app.events.request import RunRequest
from app.runs.calls import own_id
from chains.quick import quick_deltas

TRACES = Path(__file__).parent

TIMES = frozenset(("ts", "duration_ms", "ttft_ms", "tokens_per_s", "queue_ms"))
"""Fields that tell of a clock."""

RANDOM = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

CUT = frozenset(("length", "max_tokens"))
"""Why an answer ended whose calls are not whole."""

UNHEARD = frozenset(("ping", "content_block_stop", "message_stop"))
"""Anthropic's events of which LangChain makes no chunk; nor does it of a text or a thought that begins with nothing."""

PATIENCE_S = 20.0

LANE = "lane-"
"""Of the names of models, and of the nodes of models that speak at once."""

Way = Literal["stock", "dicts", "shortcut", "thread"]
PAST_LANGCHAIN = ("shortcut", "thread")

State = dict[str, Any]


class Trace(NamedTuple):
    """A stream: ``style`` is the provider's wire, ``shape`` what is peculiar to it."""

    style: str
    shape: str

    @property
    def wire(self) -> Path:
        """What the provider sent."""
        return TRACES / self.style / f"{self.shape}.wire.jsonl"

    @property
    def told(self) -> Path:
        """What a reader is told of it."""
        return TRACES / self.style / f"{self.shape}.told.jsonl"

    @property
    def lanes(self) -> int:
        """How many models speak at once."""
        return 2 if self.shape == "two_messages_at_once" else 1


def traces() -> list[Trace]:
    """All there are."""
    wires = sorted(TRACES.glob("*/*.wire.jsonl"))
    return [Trace(path.parent.name, path.name.removesuffix(".wire.jsonl")) for path in wires]


async def told(trace: Trace, way: Way = "stock") -> bytes:
    """What a reader is told of a run over this stream, a line an event: ``{"id", "event", "data"}``."""
    return b"".join(lines(await run(trace, way)))


async def run(trace: Trace, way: Way = "stock") -> list[Event]:
    """The events themselves."""
    provider = Provider(trace, paced=way not in PAST_LANGCHAIN)
    app = FastAPI(routes=[Route(path, provider.answer, methods=["POST"]) for path in ENDPOINTS])
    with running(app) as url:
        async with _read(way), _graph(trace, url, way) as graph, runner_of(_heard(graph, provider, way)) as runner:
            started = await runner.start(runner.agent("one"), RunRequest(input="Go."), user="ann", streams=True)
            events = await events_of(started)
            await started.done.wait()
            return events


def _read(way: Way) -> AbstractAsyncContextManager[None]:
    return nullcontext() if way == "stock" else quick_deltas()


def _heard(graph: Any, provider: "Provider", way: Way) -> Any:
    return graph if way in PAST_LANGCHAIN else graph.with_config(callbacks=[provider])


# The provider

ENDPOINTS = ("/v1/chat/completions", "/v1/messages")

Frame = tuple[str, bool]
"""What is written at once, and whether the client's callbacks hear of it."""


class Provider(BaseCallbackHandler):
    """Sends a trace's answers. As a callback of the run it hears how far the client has come, and then goes on."""

    run_inline = True

    def __init__(self, trace: Trace, *, paced: bool = True) -> None:
        self._paced = paced
        self._frames = FRAMES[trace.style]
        self._answers = answers(trace)
        self._lanes = trace.lanes
        self._asked = 0
        self._tokens = 0
        self._nodes: dict[UUID, int] = {}
        self._heard: list[float] = [0] * trace.lanes  # chunks; all there will ever be, when the lane's node is through

    async def answer(self, request: Request) -> StreamingResponse:
        """The answer to this lane's question: that with as many answers before it."""
        asked = await request.json()
        lane = int(asked["model"].removeprefix(LANE))
        before = sum(message["role"] == "assistant" for message in asked["messages"])
        self._asked += 1
        frames = list(self._frames(self._answers[before * self._lanes + lane]))
        return StreamingResponse(self._played(lane, frames), media_type="text/event-stream")

    async def _played(self, lane: int, frames: list[Frame]) -> AsyncIterator[str]:
        await self._until(lambda: self._asked >= self._lanes)
        for number, (frame, heard) in enumerate(frames):
            await self._until(lambda: self._may_send(lane))
            before = self._tokens
            yield frame
            if heard and self._paced:
                await self._until(lambda: self._tokens > before)  # noqa: B023 - it is over before the next round
            if number < len(frames) - 1:
                self._heard[lane] += 1

    def _may_send(self, lane: int) -> bool:
        mine, others = self._heard[lane], self._heard
        return all(others[one] > mine if one < lane else others[one] >= mine for one in range(self._lanes))

    @staticmethod
    async def _until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.001)

    @override
    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self._tokens += 1

    @override
    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        name = kwargs.get("name") or ""
        if self._lanes > 1 and name.startswith(LANE):
            self._nodes[run_id] = int(name.removeprefix(LANE))

    @override
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if run_id in self._nodes:
            self._heard[self._nodes[run_id]] = math.inf


def answers(trace: Trace) -> list[list[Any]]:
    """The wire's chunks by the answer they belong to, in the order in which the answers begin."""
    found: dict[Any, list[Any]] = {}
    for line in trace.wire.read_bytes().splitlines():
        chunk = json.loads(line)
        if chunk.get("type") == "message_start":
            found[len(found)] = []
        key = chunk["id"] if trace.style == "openai" else len(found) - 1
        found.setdefault(key, []).append(chunk)
    return list(found.values())


def _openai(chunks: Iterable[Any]) -> Iterator[Frame]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n", True
    yield "data: [DONE]\n\n", False


def _anthropic(chunks: Iterable[Any]) -> Iterator[Frame]:
    for chunk in chunks:
        block = chunk.get("content_block", {})
        silent = chunk["type"] in UNHEARD or block.get("text") == "" or block.get("thinking") == ""
        yield f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n", not silent


FRAMES = {"openai": _openai, "anthropic": _anthropic}


# The graph


@tool
async def get(url: str) -> str:
    """Get a page."""
    return f"the page at {url}"


@tool
async def get_weather(city: str, unit: str = "celsius") -> str:
    """Say what the weather is."""
    return f"{city}: 7 degrees {unit}"


@tool
async def get_time(zone: str) -> str:
    """Say what time it is."""
    return f"{zone}: noon"


@tool
async def ping() -> str:
    """See whether anybody is there."""
    return "pong"


TOOLS = [get, get_weather, get_time, ping]
RUNS = ToolNode(TOOLS, handle_tool_errors=True)


@asynccontextmanager
async def _graph(trace: Trace, url: str, way: Way) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        models = [await stack.enter_async_context(MODELS[trace.style](url, f"{LANE}{n}")) for n in range(trace.lanes)]
        asks = _asks_in_a_thread if way == "thread" else _asks
        yield _loop(asks(models[0])) if len(models) == 1 else _side_by_side(map(asks, models))


@asynccontextmanager
async def _chat_openai(url: str, name: str) -> AsyncIterator[BaseChatModel]:
    with httpx.Client() as sync_client:
        async with httpx.AsyncClient() as client:
            options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none"}
            options |= {"http_async_client": client, "http_client": sync_client}
            yield ChatOpenAI(model=name, stream_usage=True, max_retries=0, **options)


@asynccontextmanager
async def _chat_anthropic(url: str, name: str) -> AsyncIterator[BaseChatModel]:
    options: dict[str, Any] = {"base_url": url, "api_key": "none", "model": name, "max_tokens": 2048}
    model = ChatAnthropic(max_retries=0, thinking={"type": "enabled", "budget_tokens": 1024}, **options)
    async with model._async_client:
        yield model


MODELS = {"openai": _chat_openai, "anthropic": _chat_anthropic}


def _asks(model: BaseChatModel) -> Any:
    bound: Runnable[Any, AIMessage] = model.bind_tools(TOOLS)

    async def ask(state: MessagesState) -> State:
        return {"messages": [_named(await bound.ainvoke(state["messages"]))]}

    return ask


def _asks_in_a_thread(model: BaseChatModel) -> Any:
    bound: Runnable[Any, AIMessage] = model.bind_tools(TOOLS)

    def ask(state: MessagesState) -> State:
        return {"messages": [_named(bound.invoke(state["messages"]))]}

    return ask


def _named(answer: AIMessage) -> AIMessage:
    """A call that a provider gave no id gets one, as in the built-in graphs: LangGraph runs no call without."""
    for number, call in enumerate(answer.tool_calls):
        call["id"] = call["id"] or own_id(answer.id or "", number)
    return answer


def _loop(ask: Any) -> Any:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", ask)
    graph.add_node("tools", RUNS)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if _whole(state["messages"][-1]) else END)
    graph.add_edge("tools", "model")
    return graph.compile()


def _whole(answer: AIMessage) -> bool:
    """Whether there are calls, and none of them was cut."""
    told = answer.response_metadata
    return bool(answer.tool_calls) and (told.get("finish_reason") or told.get("stop_reason")) not in CUT


def _side_by_side(asks: Iterable[Any]) -> Any:
    """A branch for each model, and a node that runs the calls of all, those of one message after the other's."""

    async def run_all(state: MessagesState) -> State:
        asked = [message for message in state["messages"] if isinstance(message, AIMessage)]
        return {"messages": [one for message in asked for one in (await RUNS.ainvoke([message]))]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("tools", run_all)
    for number, ask in enumerate(asks):
        graph.add_node(f"{LANE}{number}", ask)
        graph.add_edge(START, f"{LANE}{number}")
        graph.add_edge(f"{LANE}{number}", "tools")
    return graph.compile()


# What was told


def lines(events: Iterable[Event]) -> Iterator[bytes]:
    seen: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return seen.setdefault(found[0], f"#{len(seen) + 1}")

    for number, event in enumerate(events, 1):
        data = _timeless(json.loads(codec.encode(event)))
        line = json.dumps({"id": number, "event": event.type, "data": data}, ensure_ascii=False, separators=(",", ":"))
        yield f"{RANDOM.sub(numbered, line)}\n".encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return value
