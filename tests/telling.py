"""Real graphs, real event streams, translated: what a reader is told of them, held to laws that hold for every stream.

The order is legal, every event has its JSON, fragments sum up to the arguments, and whatever was opened is closed.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langgraph.graph import END, START, MessagesState, StateGraph
from scripted import Scripted, Turn

from app.events import codec
from app.events.event import (
    Event,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    NodeFinished,
    RunFinished,
    RunStarted,
    Token,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolStarted,
    Totals,
    Usage,
)
from app.events.grammar import Grammar
from app.runs.scope import Scope
from app.runs.translate import Translator
from app.runs.usage import Meter

BEGIN = RunStarted(ts=0, run_id="r", agent="a", thread_id=None, model=None, max_tokens=None)
FINISH = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)
CUT = "The run was cut."

Kind = TypeVar("Kind", bound=Event)
State = dict[str, Any]


class Full(Exception):
    """The log takes no more."""


class Told:
    """What a reader was told of one run, and what the run left behind."""

    def __init__(self, labels: Mapping[str, str], room: int | None) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.meter = Meter(Scope("continue", 0))
        self.translator = Translator(labels, self.meter)
        self._grammar = Grammar()
        self._room = room

    def put(self, event: Event) -> None:
        closing = isinstance(event, Usage | MessageFinished | ToolFinished | NodeFinished | RunFinished)
        if self._room is not None and not closing and len(self.events) > self._room:
            raise Full
        self._grammar.check(event)
        assert codec.decode(event.type, codec.encode(event)) == event
        self.events.append(event)

    def finish(self) -> None:
        for event in (*self.translator.close(9, CUT), *self.meter.take_rest(9, "cancelled"), FINISH):
            self.put(event)
        for call in self.all(ToolPending):
            deltas = "".join(one.delta for one in self.all(ToolArgs) if one.call_id == call.call_id)
            last = [one.args for one in self.all(ToolArgs) if one.call_id == call.call_id and one.args is not None]
            if deltas and parsed(deltas) is not None:
                assert not last or self.cut or last[-1] == codec.plain(parsed(deltas))
        finished = Counter(one.call_id for one in self.all(ToolFinished))
        assert all(count == 1 for count in finished.values())
        assert {one.call_id for one in self.all(ToolPending)} | {one.call_id for one in self.all(ToolStarted)} == set(
            finished
        )

    @property
    def cut(self) -> bool:
        return self.error is not None or self.translator.output is None

    def all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[Kind]) -> Kind:
        (event,) = self.all(kind)
        return event

    def texts(self) -> list[str]:
        """The text of each message that was not discarded, in the order in which they began."""
        gone = {one.message_id for one in self.all(MessageDiscarded)}
        return [self.text(one.message_id) for one in self.all(MessageStarted) if one.message_id not in gone]

    def text(self, message_id: str) -> str:
        return "".join(one.text for one in self.all(Token) if one.message_id == message_id)

    def args(self, call_id: str) -> str:
        return "".join(one.delta for one in self.all(ToolArgs) if one.call_id == call_id)

    def names(self) -> list[str]:
        return [event.type for event in self.events]


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


async def told(
    runnable: Runnable[Any, Any],
    value: Any = "hi",
    *,
    labels: Mapping[str, str] | None = None,
    cut: int | None = None,
    room: int | None = None,
) -> Told:
    """Run it and translate its stream; ``cut`` leaves after that many raw events, ``room`` is that of the log."""
    run = Told(labels or {}, room)
    run.put(BEGIN)
    stream = runnable.astream_events(value, {"callbacks": [run.meter]}, version="v2")
    count = 0
    async with asyncio.timeout(20), aclosing(cast("AsyncGenerator[Any, None]", stream)) as raws:
        try:
            async for raw in raws:
                for event in run.translator.feed(raw, count):
                    run.put(event)
                count += 1
                if count == cut:
                    break
        except AssertionError:
            raise
        except Exception as error:
            run.error = error
    run.finish()
    return run


def model(*turns: Turn, **fields: Any) -> Scripted:
    return Scripted(turns=list(turns), **fields)


def asks(one: Runnable[Any, Any]) -> Callable[[Any], Any]:
    """A node that asks a model."""

    async def ask(state: State) -> State:
        return {"messages": [await one.ainvoke(state["messages"])]}

    return ask


def invokes(graph: Runnable[Any, Any]) -> Callable[[Any], Any]:
    """A node that calls a graph, which is then no subgraph that LangGraph knows of."""

    async def call(state: State) -> Any:
        return await graph.ainvoke(state)

    return call


def row(schema: Any = MessagesState, /, **nodes: Any) -> Any:
    """A graph of these nodes, one after the other."""
    graph: Any = StateGraph(schema)
    before = START
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    return graph.compile()


def side_by_side(schema: Any = MessagesState, /, **nodes: Any) -> Any:
    graph: Any = StateGraph(schema)
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(START, name)
    return graph.compile()


def loop(one: Runnable[Any, Any], tools: Any) -> Any:
    """The usual agent: a model node and a tool node, until the model calls no tool."""
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", asks(one))
    graph.add_node("tools", tools)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    return graph.compile()


def calls(*asked: tuple[str, State, str]) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": call_id} for name, args, call_id in asked])


def without_model(tools: Any, *asked: tuple[str, State, str]) -> Any:
    """A graph that makes these calls by itself."""
    return row(ask=lambda _: {"messages": [calls(*asked)]}, tools=tools)
