"""Any calls, cut and interleaved in any way the wire allows, are told as what they are.

The streams come from real graphs: branches that each have a model of their own, all of which write at once, and a node
that runs the calls of every message with LangGraph's ``ToolNode``, the messages in any order. The branch hands on what
the model meant, so that what is told of the pieces is compared with the truth, and not with LangChain's sum of them.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import pairwise
from random import Random
from typing import Any, Literal, NamedTuple, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from scripted import Scripted, piece, say

from app.events import codec
from app.events.event import (
    Event,
    MessageStarted,
    RunFinished,
    RunStarted,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolStarted,
    Totals,
)
from app.events.grammar import Grammar
from app.runs.calls import own_id
from app.runs.scope import Scope
from app.runs.translate import Translator
from app.runs.usage import Meter

BEGIN = RunStarted(ts=0, run_id="r", agent="a", thread_id=None, model=None, max_tokens=None)
FINISH = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)

NAMES = ("get", "get_weather", "get_weather_now", "look_up", "x")
"""The tools. Of two, the name is the beginning of another's."""

SNAPSHOTS = 12
"""How many times the size of its arguments all partial parses of a call may have: eighths add up to nine, and the rest
is the beginning, where the steps are longer, and the end.
"""

State = dict[str, Any]
Ids = Literal["first", "all", "none"]
Numbers = Literal["position", "gaps", "absent"]


class Call(NamedTuple):
    """A call as the model means it, and the fragments that it comes in."""

    name: str
    args: State
    text: str
    fragments: list[tuple[str | None, str | None]]


class Message(NamedTuple):
    """Calls, whose fragments come in this ``order``, and how the provider marks which is whose.

    ``shared``: all its calls have one id. ``common``: other messages' calls have the same ids.
    """

    calls: list[Call]
    order: list[int]
    ids: Ids
    numbers: Numbers
    shared: bool = False
    common: bool = False

    def given(self, number: int, branch: str) -> str:
        """The provider's id of a call."""
        return "" if self.ids == "none" else f"{'c' if self.common else branch}-{0 if self.shared else number}"

    def chunks(self, branch: str) -> list[AIMessageChunk]:
        """What the provider sends."""
        rest = [list(call.fragments) for call in self.calls]
        return [self._chunk(number, rest[number], branch) for number in self.order]

    def _chunk(self, number: int, rest: list[tuple[str | None, str | None]], branch: str) -> AIMessageChunk:
        first = len(rest) == len(self.calls[number].fragments)
        name, args = rest.pop(0)
        given = self.given(number, branch) if self.ids == "all" or first else None
        index = {"position": number, "gaps": number * number + 2, "absent": None}[self.numbers]
        return say("", piece(name, args, given, index))

    def first_seen(self) -> list[int]:
        """The calls in the order in which they come up."""
        return list(dict.fromkeys(self.order))


# What the wire allows

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)


def cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


@st.composite
def a_call(draw: st.DrawFn, *, whole: bool = False) -> Call:
    name, args = draw(st.sampled_from(NAMES)), draw(ARGS)
    text = json.dumps(
        args, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    )
    if whole:
        return Call(name, args, text, [(name, text)])
    places = st.lists(st.integers(0, 10_000), max_size=20)
    pieces = cut(text, range(len(text)) if draw(st.booleans()) else draw(places))
    *before, last = cut(name, draw(st.lists(st.integers(0, 100), max_size=2)))
    if draw(st.booleans()):  # the name's end comes with the arguments' beginning
        return Call(
            name,
            args,
            text,
            [*((one, None) for one in before), (last, pieces[0]), *((None, one) for one in pieces[1:])],
        )
    empty = draw(st.sampled_from(["", None]))
    return Call(name, args, text, [*((one, empty) for one in (*before, last)), *((None, one) for one in pieces)])


@st.composite
def a_message(draw: st.DrawFn) -> Message:
    numbers: Numbers = draw(st.sampled_from(["position", "gaps", "absent"]))
    ids: Ids = draw(st.sampled_from(["first", "all", "none"]))
    whole = numbers == "absent" and ids != "all"  # else nothing says which call a fragment belongs to
    calls = draw(st.lists(a_call(whole=whole), min_size=1, max_size=4))
    order = [number for number, call in enumerate(calls) for _ in call.fragments]
    shared = numbers != "absent" and draw(st.booleans())
    return Message(calls, draw(st.permutations(order)), ids, numbers, shared, draw(st.booleans()))


# What is told of it


async def anything(**_: Any) -> str:
    return "done"


def a_tool(name: str) -> BaseTool:
    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    return StructuredTool.from_function(coroutine=anything, name=name, description="Take anything.", args_schema=schema)


def graph_of(messages: Sequence[Message], order: Sequence[int], *, renames: bool) -> Any:
    """A branch for each message, and a node that runs the calls of all, message by message in this ``order``."""
    tools = ToolNode([a_tool(name) for name in NAMES])

    async def run(state: MessagesState) -> State:
        said = sorted((one for one in state["messages"] if one.type == "ai"), key=lambda one: str(one.name))
        results = [await tools.ainvoke({"messages": [said[number]]}) for number in order]
        return {"messages": [one for result in results for one in result["messages"]]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("tools", run)
    for number, message in enumerate(messages):
        graph.add_node(f"b{number}", branch(f"b{number}", message, renames=renames))
        graph.add_edge(START, f"b{number}")
        graph.add_edge(f"b{number}", "tools")
    return graph.compile()


def branch(name: str, message: Message, *, renames: bool) -> Any:
    """Hears the model out and hands on what it meant; calls without an id get one, as in the built-in graphs."""
    model = Scripted(turns=[message.chunks(name)])

    async def ask(state: MessagesState) -> State:
        chunks = [chunk async for chunk in model.astream(state["messages"])]
        seen: set[str] = set()
        asked = []
        for place, number in enumerate(message.first_seen()):
            call, given = message.calls[number], message.given(number, name)
            own = own_id(chunks[0].id or "", place)
            call_id = own if not given or (renames and given in seen) else given
            seen.add(given)
            asked.append({"name": call.name, "args": call.args, "id": call_id})
        return {"messages": [AIMessage("", id=chunks[0].id, name=name, tool_calls=asked)]}

    return ask


async def told(runnable: Runnable[Any, Any], value: Any) -> list[Event]:
    """What a reader is told of a run: in legal order, each event with its JSON."""
    meter = Meter(Scope("continue", 0))
    translator, grammar, events = (
        Translator({name: f"{name}…" for name in NAMES}, meter),
        Grammar(),
        [cast("Event", BEGIN)],
    )
    stream = cast("AsyncGenerator[Any, None]", runnable.astream_events(value, {"callbacks": [meter]}, version="v2"))
    async with asyncio.timeout(20), aclosing(stream) as raws:
        async for raw in raws:
            events += translator.feed(raw, len(events))
    events += [*translator.close(len(events), "The run was cut."), FINISH]
    for event in events:
        grammar.check(event)
        assert codec.decode(event.type, codec.encode(event)) == event
    return events


def calls_told(events: Iterable[Event]) -> dict[str, list[Any]]:
    """The events of each call, in the order in which the calls are announced."""
    calls: dict[str, list[Any]] = {}
    for event in events:
        if isinstance(event, ToolPending | ToolArgs | ToolStarted | ToolFinished):
            calls.setdefault(event.call_id, []).append(event)
    return calls


def snapshots(events: Iterable[Any]) -> list[Any]:
    return [one.args for one in events if isinstance(one, ToolArgs) and one.args is not None]


def grew(before: Any, after: Any) -> bool:
    """Whether ``after`` can be the same JSON value, written further.

    Only the last value of an object or a list is not over: it may grow, others may follow, and all else stays. A text
    grows at its end. A number may have more digits yet; what has once been shown is not taken back.
    """
    match before, after:
        case dict(), dict():
            keys = list(before)
            return keys == list(after)[: len(keys)] and _grew(list(before.values()), list(after.values()))
        case list(), list():
            return _grew(before, after)
        case str(), str():
            return after.startswith(before)
        case (bool(), _) | (_, bool()):
            return before is after
        case int() | float(), int() | float():
            return True
    return before is after is None


def _grew(before: list[Any], after: list[Any]) -> bool:
    return not before or (
        len(before) <= len(after)
        and before[:-1] == after[: len(before) - 1]
        and grew(before[-1], after[len(before) - 1])
    )


AMBIGUOUS = Message(
    [
        Call("get", {"b": 2}, '{"b": 2}', [("get", None), (None, '{"b": 2}')]),
        Call("x", {"a": 1}, '{"a": 1}', [("x", '{"a": 1}')]),
    ],
    order=[0, 1, 0],
    ids="first",
    numbers="position",
    shared=True,
)
"""Of two calls with one id, the one that comes up first is named last: ``get`` might yet become ``get_weather``."""


@settings(max_examples=70, deadline=None)
@given(st.lists(a_message(), min_size=1, max_size=3), st.randoms(use_true_random=False), st.booleans())
@example([AMBIGUOUS], Random(0), False)
@example([AMBIGUOUS], Random(0), True)
def test_calls_are_told_as_they_are_meant_however_they_are_cut_and_interleaved(
    messages: list[Message], shuffle: Random, renames: bool
) -> None:
    order = shuffle.sample(range(len(messages)), len(messages))
    events = asyncio.run(told(graph_of(messages, order, renames=renames), {"messages": "hi"}))
    calls = calls_told(events)
    for told_of in calls.values():
        check(told_of)
    message_ids = {one.node: one.message_id for one in events if isinstance(one, MessageStarted)}
    for number, message in enumerate(messages):
        name = f"b{number}"
        mine = {call_id: one for call_id, one in calls.items() if one[0].node == name}
        meant = [message.calls[place] for place in message.first_seen()]
        assert sorted((one[0].name, text_of(one)) for one in mine.values()) == sorted((c.name, c.text) for c in meant)
        for place, call in enumerate(message.first_seen()):
            given = message.given(call, name)
            if not given or not (message.shared or message.common):  # then nothing is to be made unique
                assert text_of(mine[given or own_id(message_ids[name], place)]) == meant[place].text


def check(told_of: list[Any]) -> None:
    """One call: named once and whole, its fragments its text, its last parse what the tool is given."""
    (pending,) = (one for one in told_of if isinstance(one, ToolPending))
    (started,) = (one for one in told_of if isinstance(one, ToolStarted))
    (finished,) = (one for one in told_of if isinstance(one, ToolFinished))
    args = codec.plain(json.loads(text_of(told_of)))
    assert (pending.label, finished.status, finished.output) == (f"{pending.name}…", "ok", "done")
    assert (started.name, started.args, finished.name) == (pending.name, args, pending.name)
    partial = snapshots(told_of)
    assert partial[-1] == args
    assert all(grew(*two) for two in pairwise(partial))


def text_of(told_of: Iterable[Event]) -> str:
    return "".join(one.delta for one in told_of if isinstance(one, ToolArgs))


# One call, its arguments written in these pieces


def written(pieces: Iterable[str]) -> list[Any]:
    """What a reader is told of a call that a bare model makes."""
    turn = [say("", piece("x", "", "c", 0)), *(say("", piece(args=one, index=0)) for one in pieces)]
    (told_of,) = calls_told(asyncio.run(told(Scripted(turns=[turn]), "hi"))).values()
    return told_of


@pytest.mark.parametrize("number", ["-2.2250738585072014e-308", "12345678901234567.25", "0.1234567890123456789e+10"])
def test_a_number_that_is_being_written_does_not_come_and_go(number: str) -> None:
    for space in range(17):  # parses are sixteen characters apart at least: so each place is looked at
        partial = snapshots(written(f'{{"place": "{"a" * space}", "n": {number}}}'))
        assert all(grew(*two) for two in pairwise(partial)), (space, partial)


@pytest.mark.parametrize("odd", ['"\\ud83d"', '"\\ude00"', '"a\\ud83db"', '{"\\ud83d": 1}', '"a\nb"'])
def test_what_langchain_reads_as_arguments_a_reader_sees_in_the_end(odd: str) -> None:
    # Half a pair of escapes is JSON (RFC 8259, 8.2); a line break in a text is not, yet LangChain runs the tool.
    text = f'{{"a": 1, "b": {odd}}}'
    assert snapshots(written([text]))[-1] == codec.plain(json.loads(text, strict=False))


WIDE = {f"key_{number}": [number, "é" * 20, {"deep": [True, None, 0.5]}] for number in range(100)}
TALL = {"page": 'Größe \U0001f600\n"quoted" ' * 1000}


@pytest.mark.parametrize("kilobytes", [10, 200])
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
def test_all_partial_parses_together_are_linear_in_the_arguments(shape: State, kilobytes: int) -> None:
    entry = json.dumps(shape, ensure_ascii=False)
    text = json.dumps({"entries": [shape] * max(kilobytes * 1000 // len(entry), 1)}, ensure_ascii=False)[
        : kilobytes * 1000
    ]
    told_of = written(text[start : start + kilobytes] for start in range(0, len(text), kilobytes))
    assert text_of(told_of) == text
    partial = snapshots(told_of)
    assert len(partial) > 20
    assert all(grew(*two) for two in pairwise(partial))
    assert sum(len(codec.dumps(one)) for one in partial) <= SNAPSHOTS * len(text.encode())
