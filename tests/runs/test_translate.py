"""Real graphs, real event streams: what a reader is told of them, checked against the grammar and a few laws.

Every stream here is made by LangChain and LangGraph themselves, from models that say what the test wants. ``told``
translates it and holds for every one of them: the order is legal, every event has its JSON, fragments sum up to the
arguments, and whatever was opened is closed.
"""

import asyncio
import dataclasses
import json
import operator
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, message_chunk_to_message
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableGenerator, RunnableLambda, RunnableParallel
from langchain_core.tools import InjectedToolCallId, ToolException, tool
from langgraph.graph import START, MessagesState, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel
from scripted import Scripted, Turn, piece, say, usage, words
from telling import (
    BEGIN,
    CUT,
    Full,
    State,
    Told,
    asks,
    calls,
    invokes,
    loop,
    model,
    parsed,
    row,
    side_by_side,
    told,
    without_model,
)
from typing_extensions import TypedDict

from app.events.event import (
    Custom,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    NodeFinished,
    NodeStarted,
    Reasoning,
    RunInterrupted,
    Token,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolProgress,
    ToolStarted,
    Usage,
)
from app.runs.agent import read_messages
from app.runs.calls import MAX_TOOL_OUTPUT, tool_error
from app.runs.translate import paragraph_end


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: a word"


@tool
async def fails(word: str) -> str:
    """Fail."""
    raise ValueError(f"no such word: {word}")


TOOLS = ToolNode([look_up, fails], handle_tool_errors=True)


# Text


async def test_a_bare_models_chunks_are_the_tokens() -> None:
    run = await told(model(words("It ", "ra", "ins")))
    assert run.names() == [
        "run.started",
        "message.started",
        *["token"] * 3,
        "message.finished",
        "usage",
        "run.finished",
    ]
    assert [one.text for one in run.all(Token)] == ["It ", "ra", "ins"]
    assert run.one(MessageStarted).message_id == run.translator.output.id
    assert run.translator.text() == run.translator.output.text == "It rains"
    assert type(run.translator.output) is AIMessage


async def test_a_model_of_langchains_own_is_told_like_any_other() -> None:
    run = await told(GenericFakeChatModel(messages=iter([AIMessage("It rains in Spain")])))
    assert run.texts() == ["It rains in Spain"]
    assert len(run.all(Token)) == 7


async def chunks_of(texts: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for _ in texts:
        yield "It "
        yield ""
        yield "rains"


X = {"x": "hi"}
HI = {"messages": "hi"}

ANSWERS: dict[str, tuple[Any, Any, int, int]] = {
    "a chain": (ChatPromptTemplate.from_template("{x}") | model(words("It ", "rains")), X, 2, 1),
    "a parsed chain": (
        ChatPromptTemplate.from_template("{x}") | model(words("It ", "rains")) | StrOutputParser(), X, 2, 1,
    ),
    "a silent model": (model(words("It ", "rains"), tags=["nostream"]) | StrOutputParser(), "hi", 2, 1),
    "its text": (model(words("It ", "rains"), tags=["nostream"]) | RunnableLambda(lambda one: one.text), "hi", 1, 1),
    "no streaming": (model(words("It ", "rains"), disable_streaming=True), "hi", 1, 1),
    "parsed": (model(words("It ", "rains"), disable_streaming=True) | StrOutputParser(), "hi", 1, 1),
    "a text": (RunnableLambda(lambda _: "It rains"), "hi", 1, 0),
    "a message": (RunnableLambda(lambda _: AIMessage("It rains")), "hi", 1, 0),
    "a message's text": (RunnableLambda(lambda _: AIMessage("It rains").text), "hi", 1, 0),
    "a generator": (RunnableGenerator(chunks_of), "hi", 2, 0),
    "a node's message": (row(say=lambda _: {"messages": [AIMessage("It rains")]}), HI, 1, 0),
    "a node's model": (row(say=asks(model(words("It ", "rains")))), HI, 2, 1),
    "a node's model at once": (row(say=asks(model(words("It ", "rains"), disable_streaming=True))), HI, 1, 1),
    "a subgraph": (row(deep=row(say=asks(model(words("It ", "rains"))))), HI, 2, 1),
    "a graph called": (row(deep=invokes(row(say=asks(model(words("It ", "rains")))))), HI, 2, 1),
    "a retried model": (row(say=asks(model(words("It ", "rains")).with_retry())), HI, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize(("runnable", "value", "tokens", "usages"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_told_once_whatever_gives_it(runnable: Any, value: Any, tokens: int, usages: int) -> None:
    run = await told(runnable, value)
    assert run.error is None
    assert run.texts() == ["It rains"]
    assert run.translator.text() == "It rains"
    assert len(run.all(Token)) == tokens
    assert len(run.all(Usage)) == usages


@pytest.mark.parametrize("value", [{"a": 1}, 7, None, [1], {"__interrupt__": "mine"}])
async def test_an_output_that_is_no_text_is_kept_and_tells_nothing(value: Any) -> None:
    run = await told(RunnableLambda(lambda _: value))
    assert run.names() == ["run.started", "run.finished"]
    assert run.translator.output == value


async def test_an_empty_answer_is_a_message_without_tokens() -> None:
    run = await told(model(words("", "")))
    assert run.names() == ["run.started", "message.started", "message.finished", "usage", "run.finished"]


def synchronous(one: Scripted) -> Callable[[Any], Any]:
    def ask(state: State) -> State:
        return {"messages": [one.invoke(state["messages"])]}

    return ask


async def test_a_synchronous_node_streams_too() -> None:
    run = await told(row(say=synchronous(model(words("It ", "rains")))), HI)
    assert [one.text for one in run.all(Token)] == ["It ", "rains"]
    assert len(run.all(Usage)) == 1


async def test_a_silent_models_tokens_are_not_told_but_counted() -> None:
    secret = model(words("class ", "A"), tags=["nostream"])

    async def classify(state: State) -> State:
        await secret.ainvoke(state["messages"])
        return {}

    run = await told(row(classify=classify, say=asks(model(words("It rains")))), HI)
    assert run.texts() == ["It rains"]
    assert len(run.all(Usage)) == 2


async def test_a_silent_models_message_is_told_when_its_node_hands_it_on() -> None:
    run = await told(row(say=asks(model(words("It ", "rains"), tags=["nostream"]))), HI)
    assert [one.text for one in run.all(Token)] == ["It rains"]


async def test_usage_is_told_once_for_every_leaf_call() -> None:
    counted = model([say("a"), say("", usage_metadata=usage(3, 4))])
    whole = model([say("a", usage_metadata=usage(5, 6))], disable_streaming=True)
    graph = row(one=asks(counted), two=asks(whole), three=synchronous(counted), four=row(five=asks(counted)))
    run = await told(graph, HI)
    counts = [(one.input_tokens, one.output_tokens, one.estimated) for one in run.all(Usage)]
    assert counts == [(3, 4, False), (5, 6, False), (3, 4, False), (3, 4, False)]
    total = run.meter.totals
    assert (total.input_tokens, total.output_tokens, total.total_tokens, total.estimated) == (14, 18, 32, False)


# Nodes and namespaces


async def test_a_nodes_step_encloses_what_happens_in_it() -> None:
    run = await told(row(think=asks(model(words("a"))), done=lambda _: {}), HI)
    inside = [(event.type, event.node) for event in run.events[1:-1]]
    assert inside == [
        ("node.started", "think"), ("message.started", "think"), ("token", "think"), ("message.finished", "think"),
        ("usage", None), ("node.finished", "think"), ("node.started", "done"), ("node.finished", "done"),
    ]  # fmt: skip


async def test_a_subgraphs_events_carry_their_path() -> None:
    inner = row(think=asks(model(words("a"))))
    run = await told(row(outer=row(middle=inner)), HI)
    token = run.one(Token)
    assert token.node == "think"
    assert [one.split(":")[0] for one in token.namespace] == ["outer", "middle"]
    assert [(one.node, len(one.namespace)) for one in run.all(NodeStarted)] == [
        ("outer", 0),
        ("middle", 1),
        ("think", 2),
    ]
    assert [one.node for one in run.all(NodeFinished)] == ["think", "middle", "outer"]


async def test_the_answer_is_the_roots_last_message_even_when_a_subgraph_speaks_after_it() -> None:
    graph = row(say=asks(model(words("root"))), deep=row(muse=asks(model(words("deep")))))
    run = await told(graph, HI)
    assert run.texts() == ["root", "deep"]
    assert run.translator.text() == "root"


async def test_models_side_by_side_keep_their_tokens_apart() -> None:
    together = asyncio.Barrier(2)
    one = model([say("a1"), together.wait, say("a2"), together.wait, say("a3")])
    two = model([say("b1"), together.wait, say("b2"), together.wait, say("b3")])
    run = await told(side_by_side(one=asks(one), two=asks(two)), HI)
    assert sorted(run.texts()) == ["a1a2a3", "b1b2b3"]
    order = [one.text[0] for one in run.all(Token)]
    assert order not in (sorted(order), sorted(order, reverse=True)), "they did not run side by side"
    assert {(one.node, run.text(one.message_id)[0]) for one in run.all(MessageStarted)} == {("one", "a"), ("two", "b")}


async def test_chains_side_by_side_without_a_graph_keep_their_tokens_apart() -> None:
    run = await told(RunnableParallel(a=model(words("a", "b")), b=model(words("c", "d"))))
    assert sorted(run.texts()) == ["ab", "cd"]
    assert len(run.all(Usage)) == 2


async def test_a_fan_out_is_a_message_for_each_branch() -> None:
    class Items(TypedDict):
        items: list[str]
        messages: Annotated[list[Any], operator.add]

    speaker = model(words("a", "b"))

    async def work(state: State) -> State:
        return {"messages": [await speaker.ainvoke(state["item"])]}

    graph: Any = StateGraph(Items)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda state: [Send("work", {"item": item}) for item in state["items"]])
    run = await told(graph.compile(), {"items": ["x", "y", "z"], "messages": []})
    assert run.texts() == ["ab"] * 3
    assert len(run.all(NodeStarted)) == len(run.all(NodeFinished)) == len(run.all(Usage)) == 3


# Which message is which


@pytest.mark.parametrize("graph", [side_by_side, row], ids=["at once", "one after the other"])
async def test_messages_of_one_provider_id_are_told_apart(graph: Any) -> None:
    # Some providers draw from a thousand ids, and some send the same one always.
    speaker = model([say("a", id="chatcmpl-1"), say("b", id="chatcmpl-1")])
    run = await told(graph(one=asks(speaker), two=asks(speaker)), HI)
    assert run.texts() == ["ab", "ab"]
    ids = [one.message_id for one in run.all(MessageStarted)]
    assert ids[0] == "chatcmpl-1"
    assert len(set(ids)) == 2


async def test_a_message_whose_id_comes_with_a_later_chunk_is_told_once() -> None:
    run = await told(row(say=asks(model([say("It "), say("rains", id="resp-1")]))), HI)
    assert run.texts() == ["It rains"]


async def test_a_message_is_announced_under_the_id_it_is_stored_by() -> None:
    graph = row(one=asks(model(words("a"))), two=lambda _: {"messages": [AIMessage("b")]}, three=row(
        four=lambda _: {"messages": [AIMessage("c"), AIMessage("d", id="mine")]}
    ))  # fmt: skip
    run = await told(graph, HI)
    stored = [one.id for one in run.translator.output["messages"] if isinstance(one, AIMessage)]
    assert [one.message_id for one in run.all(MessageStarted)] == stored
    assert run.texts() == ["a", "b", "c", "d"]


HISTORY = [HumanMessage("hi"), AIMessage("long ago"), HumanMessage("and now?")]


class Plain(TypedDict):
    messages: list[Any]


class Summed(TypedDict):
    messages: Annotated[list[Any], operator.add]


class Model(BaseModel):
    messages: Annotated[list[Any], add_messages] = []


class PlainModel(BaseModel):
    messages: list[Any] = []


@dataclasses.dataclass
class Data:
    messages: Annotated[list[Any], add_messages] = dataclasses.field(default_factory=list)


def held(state: Any) -> list[Any]:
    messages: list[Any] = state["messages"] if isinstance(state, dict) else state.messages
    return messages


def new() -> AIMessage:
    return AIMessage("new")


STATES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "an update": (MessagesState, lambda _: {"messages": [new()]}),
    "a single message": (MessagesState, lambda _: {"messages": new()}),
    "the whole state": (MessagesState, lambda state: {"messages": [*held(state), new()]}),
    "the whole of a state without a reducer": (Plain, lambda state: {"messages": [*held(state), new()]}),
    "an update of a sum": (Summed, lambda _: {"messages": [new()]}),
    "a model's update": (Model, lambda _: {"messages": [new()]}),
    "a model": (Model, lambda _: Model(messages=[new()])),
    "a whole model": (Model, lambda state: Model(messages=[*held(state), new()])),
    "a whole model without a reducer": (PlainModel, lambda state: PlainModel(messages=[*held(state), new()])),
    "a dataclass's update": (Data, lambda _: {"messages": [new()]}),
    "a dataclass": (Data, lambda _: Data(messages=[new()])),
    "a whole dataclass": (Data, lambda state: Data(messages=[*held(state), new()])),
    "a command": (MessagesState, lambda _: Command(update={"messages": [new()]})),
    "a command with pairs": (MessagesState, lambda _: Command(update=[("messages", [new()])])),
    "a command with a model": (Model, lambda _: Command(update=Model(messages=[new()]))),
    "commands": (MessagesState, lambda _: [Command(update={"messages": [new()]})]),
    "a command that goes on": (MessagesState, lambda _: Command(update={"messages": [new()]}, goto="again")),
}


@pytest.mark.parametrize(("schema", "node"), STATES.values(), ids=STATES)
async def test_a_nodes_new_message_is_told_and_the_history_is_not(schema: Any, node: Any) -> None:
    graph = row(schema, first=node, again=lambda _: {})
    history = read_messages([{"role": one.type, "content": one.content} for one in HISTORY])
    run = await told(graph, {"messages": history})
    assert run.error is None
    assert run.texts() == ["new"]


async def test_a_client_that_repeats_the_history_with_ids_is_not_told_it_again() -> None:
    history = [HumanMessage("hi", id="1"), AIMessage("long ago", id="2"), HumanMessage("and now?", id="3")]
    run = await told(row(Summed, say=lambda state: {"messages": [*held(state), new()]}), {"messages": history})
    assert run.texts() == ["new"]


# Generated anew


def breaking(*texts: str) -> Turn:
    return [*words(*texts), RuntimeError("broken")]


async def test_what_a_broken_model_said_is_discarded_when_a_fallback_takes_over() -> None:
    speaker = model(breaking("It sn")).with_fallbacks([model(words("It ", "rains"))])
    run = await told(row(say=asks(speaker)), HI)
    assert run.texts() == ["It rains"]
    first, second = run.all(MessageStarted)
    assert run.one(MessageDiscarded).message_id == first.message_id
    names = run.names()
    assert names.index("message.discarded") < len(names) - 1 - names[::-1].index("message.started")
    assert run.translator.text() == "It rains"
    assert sorted(one.output_tokens for one in run.all(Usage)) == [1, 2]
    assert run.one(MessageFinished).message_id == second.message_id


async def test_what_a_broken_model_said_is_discarded_when_it_is_asked_again() -> None:
    speaker = model(breaking("It sn"), breaking("It h"), words("It ", "rains"))
    run = await told(row(say=asks(speaker.with_retry(wait_exponential_jitter=False))), HI)
    assert run.texts() == ["It rains"]
    assert len(run.all(MessageDiscarded)) == 2
    assert len(run.all(Usage)) == 3


@pytest.mark.parametrize("nested", [False, True])
async def test_what_a_broken_model_said_is_discarded_when_its_node_is_retried(nested: bool) -> None:
    speaker = model(breaking("It sn"), words("It ", "rains"))
    graph: Any = StateGraph(MessagesState)
    again = RetryPolicy(initial_interval=0.001, jitter=False, retry_on=RuntimeError)
    graph.add_node("say", row(inner=asks(speaker)) if nested else asks(speaker), retry_policy=again)
    graph.add_edge(START, "say")
    run = await told(graph.compile(), HI)
    assert run.texts() == ["It rains"]
    assert len(run.all(MessageDiscarded)) == 1


async def test_a_stream_that_ended_without_a_reason_is_discarded_when_it_is_asked_again() -> None:
    whole = [*words("It ", "rains"), say("", response_metadata={"finish_reason": "stop"})]
    speaker = model(words("It sn"), whole, provider="openai").with_retry(wait_exponential_jitter=False)
    run = await told(row(say=asks(speaker)), HI)
    assert run.texts() == ["It rains"]
    assert len(run.all(MessageDiscarded)) == 1
    assert len(run.all(Usage)) == 2


async def test_another_branchs_model_does_not_void_what_a_broken_one_said() -> None:
    broken, going = asyncio.Event(), asyncio.Event()

    async def breaks() -> None:
        broken.set()
        raise RuntimeError("broken")

    async def caught(state: State) -> State:
        try:
            await model([say("half"), breaks]).ainvoke(state["messages"])
        except RuntimeError:
            await going.wait()
        return {"messages": [await model(words("whole")).ainvoke(state["messages"])]}

    async def other(state: State) -> State:
        await broken.wait()

        async def go() -> None:
            going.set()

        return {"messages": [await model([say("other"), go]).ainvoke(state["messages"])]}

    run = await told(side_by_side(caught=caught, other=other), HI)
    assert sorted(run.texts()) == ["other", "whole"]
    assert run.text(run.one(MessageDiscarded).message_id) == "half"
    assert run.one(MessageDiscarded).node == "caught"


async def test_a_branch_of_the_same_node_does_not_void_what_a_broken_one_said() -> None:
    class Items(TypedDict):
        messages: Annotated[list[Any], operator.add]

    broken = asyncio.Event()

    async def breaks() -> None:
        broken.set()
        raise RuntimeError("broken")

    async def work(state: State) -> State:
        if state["item"] == "second":
            await broken.wait()
            return {"messages": [await model(words("second")).ainvoke("hi")]}
        try:
            return {"messages": [await model([say("first"), breaks]).ainvoke("hi")]}
        except RuntimeError:
            return {}

    graph: Any = StateGraph(Items)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda _: [Send("work", {"item": item}) for item in ("first", "second")])
    run = await told(graph.compile(), {"messages": []})
    assert sorted(run.texts()) == ["first", "second"]
    assert run.all(MessageDiscarded) == []


async def test_a_broken_message_ends_with_the_node_that_made_do_without_it() -> None:
    async def resigned(state: State) -> State:
        try:
            return {"messages": [await model(breaking("It sn")).ainvoke(state["messages"])]}
        except RuntimeError:
            return {"messages": [AIMessage("I do not know.")]}

    run = await told(row(say=resigned, more=asks(model(words("more")))), HI)
    assert run.texts() == ["It sn", "I do not know.", "more"]
    names = run.names()
    assert names.index("message.finished") < names.index("node.finished")


async def test_calls_of_a_discarded_message_end_with_it() -> None:
    first: Turn = [say("", piece("look_up", '{"word": "a', "c1", 0)), RuntimeError("broken")]
    second: Turn = [say("", piece("look_up", '{"word": "ab"}', "c1", 0))]
    speaker = model(first, second, words("done")).with_retry(wait_exponential_jitter=False)
    run = await told(loop(speaker, TOOLS), HI, labels={"look_up": "Looking it up…"})
    void, real = run.all(ToolFinished)
    assert void.status == "error"
    assert void.duration_ms == 0
    assert (real.status, real.output) == ("ok", "ab: a word")
    assert run.names().index("tool.finished") < run.names().index("message.discarded")
    assert run.one(ToolStarted).call_id == real.call_id


async def test_a_model_that_breaks_for_good_leaves_its_words() -> None:
    run = await told(row(say=asks(model(breaking("It sn")))), HI)
    assert isinstance(run.error, RuntimeError)
    assert run.texts() == ["It sn"]
    assert run.translator.text() == "It sn"
    assert [one.output_tokens for one in run.all(Usage)] == [1]


async def test_what_was_discarded_is_not_the_answer_of_a_run_that_was_cut() -> None:
    async def never() -> None:
        raise ValueError("refused")

    speaker = model(breaking("It sn"), [never]).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    run = await told(row(say=asks(speaker)), HI)
    assert run.texts() == []
    assert run.translator.text() == ""


# Blocks, reasoning, surrogates


async def test_content_blocks_are_told_as_text_reasoning_and_calls() -> None:
    turn: Turn = [
        say([{"type": "thinking", "thinking": "Hm, ", "index": 0}]),
        say([{"type": "thinking", "thinking": "rain?", "index": 0}]),
        say([{"type": "thinking", "signature": "x", "index": 0}]),
        say([{"type": "text", "text": "It ", "index": 1}, "ra"]),
        say([{"type": "text", "text": "ins", "index": 1}]),
        say([{"type": "text", "text": "", "index": 1}]),
        say([{"type": "tool_use", "id": "t1", "name": "f", "input": {}, "index": 2}], piece("f", "", "t1", 2)),
        say([{"type": "input_json_delta", "partial_json": '{"a"', "index": 2}], piece(args='{"a"', index=2)),
        say([{"type": "input_json_delta", "partial_json": ": 1}", "index": 2}], piece(args=": 1}", index=2)),
        say([{"type": "image", "url": "x", "index": 3}]),
    ]
    run = await told(model(turn), labels={"f": "F"})
    assert "".join(one.text for one in run.all(Reasoning)) == "Hm, rain?"
    assert run.texts() == ["It rains"]
    assert run.args("t1") == '{"a": 1}'
    assert run.all(ToolArgs)[-1].args == {"a": 1}


@pytest.mark.parametrize(
    "chunk",
    [
        say("", additional_kwargs={"reasoning_content": "Hm"}),
        say([{"type": "reasoning", "reasoning": "Hm", "index": 0}]),
        say([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm", "index": 0}], "index": 0}]),
    ],
)
async def test_reasoning_is_told_wherever_a_provider_puts_it(chunk: Any) -> None:
    run = await told(model([chunk, say("so")]))
    assert run.one(Reasoning).text == "Hm"
    assert run.texts() == ["so"]


@pytest.mark.parametrize("odd", [{"a": 1}, ["Hm"], 7, None, ""])
async def test_reasoning_of_an_unknown_shape_is_no_obstacle(odd: Any) -> None:
    run = await told(model([say("so", additional_kwargs={"reasoning_content": odd})]))
    assert run.error is None
    assert run.texts() == ["so"]


async def test_a_pair_cut_in_two_is_one_character_again() -> None:
    run = await told(model(words("a\ud83d", "\ude00b", "\ud83d", "\ude00")))
    assert [one.text for one in run.all(Token)] == ["a", "😀b", "😀"]
    assert run.translator.text() == "a😀b😀"


async def test_half_a_pair_without_the_other_is_replaced() -> None:
    run = await told(model(words("a\ud83d", "b\ude00", "\ud83d")))
    assert run.texts() == ["a\ufffdb\ufffd\ufffd"]


async def test_surrogates_in_names_ids_and_arguments_are_replaced() -> None:
    turn: Turn = [
        say("a", piece("f\ud83d", '{"a": "\ud83d', "c\ud83d", 0), id="m\ud83d"),
        say("", piece(args='\ude00"}', index=0)),
    ]
    run = await told(model(turn))
    call = run.one(ToolPending)
    assert (call.name, call.call_id) == ("f\ufffd", "c\ufffd")
    assert run.args(call.call_id) == '{"a": "😀"}'
    assert run.all(ToolArgs)[-1].args == {"a": "😀"}
    assert run.one(MessageStarted).message_id == "m\ufffd"


# Tool calls while they are written

LABELS = {"look_up": "Looking it up…"}


async def test_a_tool_is_pending_before_its_arguments_are_there() -> None:
    turn: Turn = [
        say("", piece("look_up", "", "c1", 0)),
        say("", piece(args='{"wo', index=0)),
        say("", piece(args='rd": "a"}', index=0)),
    ]
    run = await told(loop(model(turn, words("done")), TOOLS), HI, labels=LABELS)
    story = [
        event.type for event in run.events if isinstance(event, ToolPending | ToolArgs | ToolStarted | ToolFinished)
    ]
    assert story == ["tool.pending", *["tool.args"] * 3, "tool.started", "tool.finished"]
    assert run.one(ToolPending).label == "Looking it up…"
    assert run.one(ToolStarted).args == {"word": "a"}
    finished = run.one(ToolFinished)
    assert (finished.status, finished.output, finished.node) == ("ok", "a: a word", "tools")
    assert finished.duration_ms == finished.ts - run.one(ToolStarted).ts


TWO: dict[str, Turn] = {
    "each in one lump": [say("", piece("f", '{"a": 1}', "c1", 0), piece("g", '{"b": 2}', "c2", 1))],
    "interleaved": [
        say("", piece("f", "", "c1", 0)), say("", piece("g", "", "c2", 1)),
        say("", piece(args='{"a"', index=0)), say("", piece(args='{"b"', index=1)),
        say("", piece(args=": 1}", index=0)), say("", piece(args=": 2}", index=1)),
    ],
    "byte by byte": [
        say("", piece("f", "", "c1", 0), piece("g", "", "c2", 1)),
        *(say("", piece(args=a, index=0), piece(args=b, index=1)) for a, b in zip('{"a": 1}', '{"b": 2}', strict=True)),
    ],
    "the name in pieces": [
        say("", piece("f", None, "c1", 0)), say("", piece("", '{"a": 1}', index=0)), say("", piece("g", None, "c2", 1)),
        say("", piece(None, '{"b": 2}', index=1)),
    ],
    "the arguments before the name": [
        say("", piece(None, '{"a": ', "c1", 0)), say("", piece(None, "1}", None, 0), piece(None, '{"b": 2}', "c2", 1)),
        say("", piece("f", None, None, 0)), say("", piece("g", "", None, 1)),
    ],
    "one index for all": [say("", piece("f", '{"a": 1}', "c1", 0)), say("", piece("g", '{"b": 2}', "c2", 0))],
    "one index, in pieces": [
        say("", piece("f", '{"a"', "c1", 0)), say("", piece(None, ": 1}", "c1", 0)),
        say("", piece("g", '{"b"', "c2", 0)), say("", piece(None, ": 2}", "c2", 0)),
    ],
    "no index": [say("", piece("f", '{"a": 1}', "c1")), say("", piece("g", '{"b": 2}', "c2"))],
    "the index only at first": [
        say("", piece("f", '{"a"', "c1", 0)), say("", piece(None, ": 1}", "c1")), say("", piece("g", '{"b"', "c2", 1)),
        say("", piece(None, ": 2}")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("labels", [{"f": "F", "g": "G"}, {}], ids=["known", "unknown"])
@pytest.mark.parametrize("turn", TWO.values(), ids=TWO)
async def test_fragments_find_their_call_however_a_provider_cuts_them(turn: Turn, labels: State) -> None:
    run = await told(model(turn), labels=labels)
    assert sorted((one.call_id, one.name) for one in run.all(ToolPending)) == [("c1", "f"), ("c2", "g")]
    assert (parsed(run.args("c1")), parsed(run.args("c2"))) == ({"a": 1}, {"b": 2})
    last = {one.call_id: one.args for one in run.all(ToolArgs)}
    assert last == {"c1": {"a": 1}, "c2": {"b": 2}}


async def test_a_call_whose_id_comes_last_has_its_own_result() -> None:
    turn: Turn = [
        say("", piece("fails", None, None, 0), piece("look_up", None, None, 1)),
        say("", piece(None, '{"word": "a"}', "c1", 0), piece(None, '{"word": "b"}', "c2", 1)),
    ]
    run = await told(loop(model(turn, words("done")), TOOLS), HI, labels={"fails": "F", "look_up": "L"})
    first, second = (one.call_id for one in run.all(ToolPending))
    results = {one.call_id: one.output for one in run.all(ToolFinished)}
    assert results == {first: "ValueError: no such word: a", second: "b: a word"}


NAMELESS: dict[str, tuple[Turn, list[str]]] = {
    "no id": ([say("", piece("f", "{}", None, 0)), say("", piece("g", "{}", None, 1))], ["f", "g"]),
    "an empty id": ([say("", piece("f", "{}", "", 0)), say("", piece("g", "{}", "", 1))], ["f", "g"]),
    "neither id nor index": ([say("", piece("f", "{}")), say("", piece("g", "{}"))], ["f", "g"]),
    "one id for both": ([say("", piece("f", "{}", "c", 0)), say("", piece("g", "{}", "c", 1))], ["f", "g"]),
    "no name": ([say("", piece(None, "{}", "c", 0))], [""]),
    "nothing at all": ([say("", piece())], [""]),
}


@pytest.mark.parametrize(("turn", "names"), NAMELESS.values(), ids=NAMELESS)
async def test_every_call_gets_an_id_of_its_own(turn: Turn, names: list[str]) -> None:
    run = await told(model(turn), labels={"f": "F"})
    pending = run.all(ToolPending)
    assert [one.name for one in pending] == names
    assert len({one.call_id for one in pending}) == len(names)
    assert all(one.call_id for one in pending)


@pytest.mark.parametrize("args", [None, "", "{}"])
async def test_a_call_without_arguments_ends_with_an_empty_object(args: str | None) -> None:
    run = await told(model([say("", piece("f", args, "c", 0))]))
    assert run.all(ToolArgs)[-1].args == {}
    assert run.args("c") == (args or "")


@pytest.mark.parametrize(
    "args", ['{"a": 1', '{"a": NaN}', "[1]", "null", '"text"', "nonsense", '{"a": ' + "9" * 5000 + "}"]
)
async def test_arguments_that_are_no_object_are_passed_on_as_they_came(args: str) -> None:
    run = await told(model([say("", piece("f", args, "c", 0))]))
    assert run.error is None
    assert run.args("c") == args


async def test_partial_arguments_are_parsed_as_they_grow_and_not_at_every_piece() -> None:
    whole = json.dumps({"text": "x" * 1000})
    turn: Turn = [say("", piece("f", "", "c", 0)), *(say("", piece(args=one, index=0)) for one in whole)]
    run = await told(model(turn))
    partial = [one.args["text"] for one in run.all(ToolArgs) if one.args is not None]
    assert 15 < len(partial) < 50
    assert partial == sorted(partial, key=len)
    assert partial[-1] == "x" * 1000
    assert sum(map(len, partial)) < 12 * len(whole)


PIECES = st.lists(st.integers(1, 12), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def sliced(text: str, sizes: list[int]) -> list[str]:
    pieces: list[str] = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.dictionaries(st.text(max_size=5), JSON, max_size=3), PIECES), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_fragments_sum_up_to_the_arguments_in_any_order_of_arrival(
    asked: list[tuple[State, list[int]]], shuffle: Any, known: bool
) -> None:
    queues = [sliced(json.dumps(args, ensure_ascii=False), sizes) for args, sizes in asked]
    run = Told({"f0": "F"} if known else {}, None)
    run.put(BEGIN)
    opened: set[int] = set()
    turn = []
    while any(queues):
        index = shuffle.choice([number for number, queue in enumerate(queues) if queue])
        first = index not in opened
        opened.add(index)
        name, call_id = (f"f{index}", f"c{index}") if first else (None, None)
        turn.append(say("", piece(name, queues[index].pop(0), call_id, index)))
    root: State = {"run_id": "root", "tags": [], "metadata": {}, "name": "model"}
    for chunk in turn:
        for event in run.translator.feed({**root, "event": "on_chat_model_stream", "data": {"chunk": chunk}}, 1):
            run.put(event)
    output = message_chunk_to_message(sum(turn[1:], start=turn[0]))
    root["run_id"] = "00000000-0000-0000-0000-000000000000"
    run.translator._models[root["run_id"]] = run.translator._models.pop("root")
    for event in run.translator.feed({**root, "event": "on_chat_model_end", "data": {"output": output}}, 1):
        run.put(event)
    run.finish()
    last = {one.call_id: one.args for one in run.all(ToolArgs)}
    for index, (args, _) in enumerate(asked):
        assert run.args(f"c{index}") == json.dumps(args, ensure_ascii=False)
        assert last[f"c{index}"] == args


# Tools that run


async def test_tools_of_one_turn_each_get_their_own_result() -> None:
    turn: Turn = [
        say("", piece("look_up", '{"word": "a"}', "c1", 0), piece("fails", '{"word": "b"}', "c2", 1)),
        say("", piece("nowhere", '{"word": "c"}', "c3", 2), piece("look_up", '{"wrong": 1}', "c4", 3)),
        say("", piece("look_up", '{"word": "e"}', "c5", 4)),
    ]
    run = await told(loop(model(turn, words("done")), TOOLS), HI, labels=LABELS)
    assert [one.call_id for one in run.all(ToolPending)] == ["c1", "c2", "c3", "c4", "c5"]
    results = {one.call_id: (one.name, one.status) for one in run.all(ToolFinished)}
    assert results == {
        "c1": ("look_up", "ok"), "c2": ("fails", "error"), "c3": ("nowhere", "error"), "c4": ("look_up", "error"),
        "c5": ("look_up", "ok"),
    }  # fmt: skip
    outputs = {one.call_id: one.output for one in run.all(ToolFinished)}
    assert outputs["c1"] == "a: a word"
    assert outputs["c2"] == "ValueError: no such word: b"
    assert "nowhere is not a valid tool" in outputs["c3"]
    assert {one.call_id for one in run.all(ToolStarted)} == {"c1", "c2", "c4", "c5"}
    assert run.translator.text() == "done"


async def test_langchains_own_agent_is_told_like_any_graph() -> None:
    turn: Turn = [say("", piece("look_up", '{"word": "a"}', "c1", 0), piece("look_up", '{"word": "b"}', "c2", 1))]
    run = await told(create_agent(model(turn, words("do", "ne")), [look_up]), HI)
    assert {one.call_id: one.output for one in run.all(ToolFinished)} == {"c1": "a: a word", "c2": "b: a word"}
    assert run.texts() == ["", "done"]
    assert len(run.all(Usage)) == 2


async def test_a_structured_answer_is_a_call_that_gets_its_result() -> None:
    class Weather(BaseModel):
        celsius: float

    turns: list[Turn] = [
        [say("", piece("Weather", '{"celsius": "warm"}', "c1", 0))],
        [say("", piece("Weather", '{"celsius": 21}', "c2", 0))],
    ]
    run = await told(create_agent(model(*turns), response_format=ToolStrategy(Weather)), HI)
    assert [one.call_id for one in run.all(ToolFinished)] == ["c1", "c2"]
    assert run.all(ToolStarted) == []
    assert run.translator.output["structured_response"] == Weather(celsius=21)


async def test_a_tool_that_hands_over_to_another_agent_has_its_result() -> None:
    @tool
    def hand_over(to: str) -> Command[Any]:
        """Let another agent go on."""
        return Command(goto=to, graph=Command.PARENT, update={"messages": [ToolMessage("done", tool_call_id="c1")]})

    graph: Any = StateGraph(MessagesState)
    graph.add_node(
        "first", loop(model([say("", piece("hand_over", '{"to": "other"}', "c1", 0))]), ToolNode([hand_over]))
    )
    graph.add_node("other", asks(model(words("hello"))))
    graph.add_edge(START, "first")
    run = await told(graph.compile(), HI)
    assert run.one(ToolFinished).output == ["done"]
    assert run.translator.text() == "hello"


async def test_tools_run_side_by_side() -> None:
    together = asyncio.Barrier(3)

    @tool
    async def meet(name: str) -> str:
        """Wait for the others."""
        await together.wait()
        return name

    run = await told(without_model(ToolNode([meet]), *(("meet", {"name": n}, n) for n in "abc")), HI)
    assert run.names().count("tool.finished") == 3
    started = [index for index, name in enumerate(run.names()) if name == "tool.started"]
    assert max(started) < run.names().index("tool.finished")
    assert {one.call_id: one.output for one in run.all(ToolFinished)} == {"a": "a", "b": "b", "c": "c"}


async def test_a_tool_that_raises_ends_the_run_and_has_its_result() -> None:
    tools = ToolNode([look_up, fails], handle_tool_errors=False)
    run = await told(without_model(tools, ("fails", {"word": "a"}, "c1")), HI)
    assert isinstance(run.error, ValueError)
    assert run.one(ToolFinished).output == "ValueError: no such word: a"


async def test_a_tool_that_runs_when_another_one_raises_is_ended_at_the_close() -> None:
    reached = asyncio.Event()

    @tool
    async def hangs() -> str:
        """Hang."""
        reached.set()
        await asyncio.Event().wait()
        return "never"

    @tool
    async def breaks() -> str:
        """Break."""
        await reached.wait()
        raise ValueError("broken")

    tools = ToolNode([hangs, breaks], handle_tool_errors=False)
    run = await told(without_model(tools, ("hangs", {}, "c1"), ("breaks", {}, "c2")), HI)
    results = {one.call_id: one.output for one in run.all(ToolFinished)}
    assert results["c2"] == "ValueError: broken"
    assert run.all(ToolFinished)[-1].status == "error"
    assert set(results) == {"c1", "c2"}


async def test_arguments_that_are_no_json_leave_a_call_that_never_ran() -> None:
    turn: Turn = [say("", piece("look_up", "nonsense", "c1", 0))]
    run = await told(loop(model(turn), TOOLS), HI)
    finished = run.one(ToolFinished)
    assert (finished.status, finished.output, finished.duration_ms) == ("error", CUT, 0)


def by_hand(messages: list[BaseMessage], *, backwards: bool = False) -> list[BaseMessage]:
    """The tool node of many tutorials: the tool is called with the arguments alone."""
    last = messages[-1]
    assert isinstance(last, AIMessage)
    asked = last.tool_calls[::-1] if backwards else last.tool_calls
    return [ToolMessage(shout.invoke(call["args"]), tool_call_id=call["id"]) for call in asked]


@tool
def shout(word: str) -> str:
    """Say it louder."""
    return word.upper()


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_node_that_calls_tools_by_hand_answers_the_calls_it_was_given(backwards: bool) -> None:
    turn: Turn = [
        say("", piece("shout", '{"word": "a"}', "c1", 0), piece("shout", '{"word": "b"}', "c2", 1)),
        say("", piece("nowhere", '{"word": "b"}', "c3", 2)),
    ]
    graph = row(
        ask=asks(model(turn)), tools=lambda state: {"messages": by_hand(state["messages"], backwards=backwards)}
    )
    run = await told(graph, HI)
    started = {one.call_id: one.args for one in run.all(ToolStarted)}
    assert (started["c1"], started["c2"]) == ({"word": "a"}, {"word": "b"})
    results = {one.call_id: (one.name, one.status, one.output) for one in run.all(ToolFinished)}
    assert results["c1"] == ("shout", "ok", "A")
    assert results["c2"] == ("shout", "ok", "B")
    assert results["c3"] == ("nowhere", "ok", "B")


async def test_a_node_may_call_a_tool_that_nobody_asked_for() -> None:
    run = await told(row(work=lambda _: {"messages": [AIMessage(shout.invoke({"word": "a"}))]}), HI)
    started, finished = run.one(ToolStarted), run.one(ToolFinished)
    assert run.all(ToolPending) == []
    assert started.call_id == finished.call_id
    assert (started.args, finished.output) == ({"word": "a"}, "A")


async def test_a_call_that_is_made_twice_is_two_calls() -> None:
    again = without_model(TOOLS, ("look_up", {"word": "a"}, "c1"))
    graph = row(first=again, second=again)
    run = await told(graph, HI)
    assert [one.output for one in run.all(ToolFinished)] == ["a: a word"] * 2
    assert len({one.call_id for one in run.all(ToolFinished)}) == 2


async def test_a_bare_tool_is_told_as_a_tool() -> None:
    run = await told(look_up, {"word": "a"})
    assert run.names() == ["run.started", "tool.started", "tool.finished", "run.finished"]
    assert run.translator.output == "a: a word"


@tool
async def goes_on(word: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Change the state."""
    return Command(update={"messages": [ToolMessage(word, tool_call_id=tool_call_id)]})


@tool(response_format="content_and_artifact")
async def with_artifact(word: str) -> tuple[str, Any]:
    """Return more than text."""
    return word, object()


@tool
async def blocks(word: str) -> list[dict[str, str]]:
    """Return content blocks."""
    return [{"type": "text", "text": word}]


@tool
async def apologises(word: str) -> str:
    """Fail in words of its own."""
    raise ToolException("Not today.\nTraceback: /srv/secret")


@pytest.mark.parametrize(
    ("used", "status", "output"),
    [
        (goes_on, "ok", ["a"]),
        (with_artifact, "ok", "a"),
        (blocks, "ok", [{"type": "text", "text": "a"}]),
        (apologises, "error", "Not today."),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_each_kind_of_tool_has_its_result(used: Any, status: str, output: Any) -> None:
    tools = ToolNode([used], handle_tool_errors=True)
    run = await told(without_model(tools, (used.name, {"word": "a"}, "c1")), HI)
    finished = run.one(ToolFinished)
    assert (finished.call_id, finished.status, finished.output) == ("c1", status, output)


@pytest.mark.parametrize("output", ["é" * (MAX_TOOL_OUTPUT + 1), [{"text": "x" * 1000}] * 1000])
async def test_an_output_beyond_the_bound_is_cut_and_says_so(output: Any) -> None:
    @tool
    async def floods() -> Any:
        """Return a lot."""
        return output

    run = await told(floods, {})
    shown = run.one(ToolFinished).output
    assert isinstance(shown, str)
    assert "(cut: " in shown[-60:]
    assert len(shown.encode()) <= MAX_TOOL_OUTPUT + 100
    assert run.translator.output == output


async def test_a_model_inside_a_tool_is_told_and_counted() -> None:
    oracle = model(words("4", "2"))

    @tool
    async def consult(question: str, config: RunnableConfig) -> str:
        """Ask."""
        return (await oracle.ainvoke(question, config)).text

    run = await told(without_model(ToolNode([consult]), ("consult", {"question": "?"}, "c1")), HI)
    assert run.one(ToolFinished).output == "42"
    assert "42" in run.texts()
    assert len(run.all(Usage)) == 1


# Custom events


async def test_what_a_tool_says_of_itself_is_its_progress() -> None:
    together = asyncio.Barrier(2)

    @tool
    async def works(name: str) -> str:
        """Work."""
        await together.wait()
        await adispatch_custom_event("progress", {"of": name})
        await together.wait()
        await RunnableLambda(nested).ainvoke(name)
        return name

    async def nested(name: str) -> None:
        await adispatch_custom_event("progress", {"of": name, "nested": True})

    graph = without_model(ToolNode([works]), ("works", {"name": "a"}, "c-a"), ("works", {"name": "b"}, "c-b"))
    run = await told(graph, HI)
    for call_id, name in (("c-a", "a"), ("c-b", "b")):
        said = [one.data for one in run.all(ToolProgress) if one.call_id == call_id]
        assert said == [{"of": name}, {"of": name, "nested": True}]
    assert run.all(Custom) == []


async def test_what_a_synchronous_tool_says_of_itself_is_its_progress() -> None:
    @tool
    def works() -> str:
        """Work."""
        dispatch_custom_event("progress", 0.5)
        return "done"

    run = await told(without_model(ToolNode([works]), ("works", {}, "c")), HI)
    assert run.one(ToolProgress).data == 0.5


async def test_what_a_node_says_of_itself_is_a_custom_event() -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)

    async def node(_: Any) -> State:
        await adispatch_custom_event("odd \ud83d", {"bytes": b"x", "self": cyclic, "nan": float("nan")})
        return {}

    run = await told(row(node=node), HI)
    custom = run.one(Custom)
    assert custom.node == "node"
    assert custom.name == "odd \ufffd"
    assert custom.data["self"] == [1, {"type": "…"}]
    assert custom.data["nan"] is None


# Interrupts


async def test_a_node_that_waits_for_a_person_interrupts_the_run() -> None:
    run = await told(row(ask=lambda _: interrupt({"sure": b"?"}), more=lambda _: {}), HI)
    assert run.translator.interrupted
    (shown,) = run.one(RunInterrupted).interrupts
    assert shown["id"]
    assert shown["value"] == {"sure": {"media_type": "application/octet-stream", "base64": "Pw=="}}
    assert [one.node for one in run.all(NodeStarted)] == ["ask"]


async def test_a_subgraph_that_waits_for_a_person_interrupts_the_run_once() -> None:
    run = await told(row(deep=row(ask=lambda _: interrupt("sure?"))), HI)
    assert [one["value"] for one in run.one(RunInterrupted).interrupts] == ["sure?"]


async def test_a_breakpoint_interrupts_the_run_without_a_question() -> None:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("tools", TOOLS)
    graph.add_edge(START, "tools")
    run = await told(graph.compile(interrupt_before=["tools"]), {"messages": [calls(("look_up", {"word": "a"}, "c"))]})
    assert run.translator.interrupted
    assert run.one(RunInterrupted).interrupts == []


async def test_a_tool_that_waits_for_a_person_has_no_result_yet() -> None:
    @tool
    async def asks_first(word: str) -> str:
        """Ask first."""
        return str(interrupt("sure?"))

    tools = ToolNode([asks_first, look_up], handle_tool_errors=True)
    graph = without_model(tools, ("asks_first", {"word": "a"}, "c1"), ("look_up", {"word": "b"}, "c2"))
    run = await told(graph, HI)
    assert run.translator.interrupted
    results = {one.call_id: one.output for one in run.all(ToolFinished)}
    assert results["c1"] == CUT  # the close's words: there is no other result
    assert run.names().index("run.interrupted") < len(run.names()) - 1 - run.names()[::-1].index("tool.finished")


# Cuts


def deep() -> Any:
    inner = loop(model([say("", piece("look_up", '{"word": "a"}', "c1", 0))], words("in", "side")), TOOLS)
    return row(deep=inner, last=asks(model(words("out", "side"))))


def parallel() -> Any:
    asked: Turn = [
        say("Let me see", piece("look_up", '{"wo', "c1", 0)), say("", piece("fails", "", "c2", 1)),
        say("", piece(args='rd": "a"}', index=0)), say("", piece(args='{"word": "b"}', index=1)),
    ]  # fmt: skip
    return loop(model(asked, words("do", "ne")), TOOLS)


SHAPES: dict[str, tuple[Callable[[], Any], Any]] = {
    "a bare model": (lambda: model([*words("a", "b"), say("", piece("f", '{"a": 1}', "c", 0))]), "hi"),
    "a chain": (lambda: ChatPromptTemplate.from_template("{x}") | model(words("a", "b")) | StrOutputParser(), X),
    "a generator": (lambda: RunnableGenerator(chunks_of), "hi"),
    "a loop with parallel tools": (parallel, HI),
    "a subgraph": (deep, HI),
    "branches": (
        lambda: side_by_side(one=asks(model(words("a", "b"))), two=asks(model(words("c", "d")))), HI,
    ),
    "a node's own message": (lambda: without_model(TOOLS, ("look_up", {"word": "a"}, "c")), HI),
    "a fallback": (
        lambda: row(say=asks(model(breaking("a", "b")).with_fallbacks([model(words("c", "d"))]))), HI,
    ),
    "an agent": (
        lambda: create_agent(model([say("", piece("look_up", '{"word": "a"}', "c", 0))], words("a")), [look_up]), HI,
    ),
    "by hand": (
        lambda: row(ask=lambda _: {"messages": [calls(("shout", {"word": "a"}, "c"))]}, tools=lambda state: {
            "messages": by_hand(state["messages"])
        }), HI,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "value"), SHAPES.values(), ids=SHAPES)
async def test_a_run_cut_anywhere_is_brought_to_a_legal_end(make: Any, value: Any) -> None:
    whole = await told(make(), value)
    for cut in range(1, 200):
        run = await told(make(), value, cut=cut)
        if run.names() == whole.names():
            break
    assert cut > 3


@pytest.mark.parametrize(("make", "value"), SHAPES.values(), ids=SHAPES)
async def test_a_run_whose_log_is_full_anywhere_is_brought_to_a_legal_end(make: Any, value: Any) -> None:
    whole = await told(make(), value)
    for room in range(len(whole.events) + 1):
        run = await told(make(), value, room=room)
        assert (run.error is None) or isinstance(run.error, Full)
    assert run.error is None


async def test_a_close_after_the_end_has_nothing_to_say() -> None:
    run = await told(parallel(), HI)
    assert list(run.translator.close(9, CUT)) == []


# A tool's failure in words


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("error", "words_"),
    [
        (ToolException("Try a city."), "Try a city."),
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError(""), "The tool failed (ValueError)."),
        (ValueError("  \n "), "The tool failed (ValueError)."),
        (FileNotFoundError(2, "No such file", "/srv/secret"), "The tool failed (FileNotFoundError)."),
        (ValueError("x" * 1000), "ValueError: " + "x" * 500),
        (Unspeakable(), "The tool failed (Unspeakable)."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_tools_failure_is_one_line_without_a_path(error: BaseException, words_: str) -> None:
    assert tool_error(error) == words_


# Pauses


@pytest.mark.parametrize(
    ("before", "text", "end"),
    [
        ("", "One.\n\nTwo.", 6),
        ("One.", "\n\nTwo.", 2),
        ("One.\n", "\nTwo.", 1),
        ("One.", "\nTwo.", None),
        ("", "\n\nOne.", None),
        ("\n", "\n", None),
        ("", "```\na = 1\n\nb = 2", None),
        ("```\na = 1\n```", "\n\nSo", 2),
        ("One.", " two", None),
    ],
)
def test_a_paragraph_ends_at_a_blank_line_after_its_first_word_and_outside_of_code(
    before: str, text: str, end: int | None
) -> None:
    assert paragraph_end([before] if before else [], text) == end
