"""The assistant's graph on its own: no server, a real provider's wire."""

import asyncio
from typing import Annotated, Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from scripted import Scripted, words

from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.checking import InvalidToolArgs
from chains.models import build_model
from chains.toolnode import ToolLimits


class Meeting:
    """Tools that go on only when all of them have been entered: in turn, they would never end."""

    def __init__(self, names: list[str], *, fails: str = "") -> None:
        self.barrier = asyncio.Barrier(len(names))
        self.fails = fails
        self.tools = [self.make(name) for name in names]

    def make(self, name: str) -> BaseTool:
        @tool(name, description=f"Report on the {name}.")
        async def meet(subject: str) -> str:
            async with asyncio.timeout(10), self.barrier:
                pass
            if name == self.fails:
                raise ToolException(f"the {name} is closed")
            return f"{name}: fine"

        return meet


QUESTION = "Report on the harbour, report on the station, and report on the airport."


async def test_the_tools_of_one_turn_run_at_the_same_time(model: BaseChatModel) -> None:
    meeting = Meeting(["harbour", "station", "airport"])
    graph = build_assistant(model, meeting.tools)
    messages = (await graph.ainvoke({"messages": [HumanMessage(QUESTION)]}))["messages"]
    asked = next(one for one in messages if isinstance(one, AIMessage) and one.tool_calls)
    results = [one for one in messages if isinstance(one, ToolMessage)]
    assert [one.tool_call_id for one in results] == [call["id"] for call in asked.tool_calls]
    assert [one.content for one in results] == ["harbour: fine", "station: fine", "airport: fine"]


async def test_a_tool_that_fails_has_a_result_too_and_takes_no_other_with_it(model: BaseChatModel) -> None:
    meeting = Meeting(["harbour", "station", "airport"], fails="station")
    graph = build_assistant(model, meeting.tools)
    messages = (await graph.ainvoke({"messages": [HumanMessage(QUESTION)]}))["messages"]
    results = [one for one in messages if isinstance(one, ToolMessage)]
    assert [(one.status, one.content) for one in results] == [
        ("success", "harbour: fine"),
        ("error", "Error: the station is closed"),
        ("success", "airport: fine"),
    ]
    assert isinstance(messages[-1], AIMessage)
    assert "closed" in messages[-1].text


@tool
def lookup(subject: str) -> str:
    """Look up a subject."""
    return f"{subject} was found"


def results(messages: list[AnyMessage]) -> list[str]:
    return [one.status for one in messages if isinstance(one, ToolMessage)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("bad_json=mismatched", ["success"]),
        ("bad_json=trailing_comma", ["success"]),
        ("bad_json=cut_string", ["error", "success"]),
        ("bad_json=wrong_type", ["error", "success"]),
        ("bad_json=empty", ["error", "success"]),
        ("twice_named=1", ["success"]),
        ("no_ids=1", ["success"]),
    ],
)
async def test_a_broken_call_is_mended_or_made_again(model: BaseChatModel, fault: str, expected: list[str]) -> None:
    graph = build_assistant(model, [lookup])
    messages = (await graph.ainvoke({"messages": [HumanMessage(f"[[{fault}]] Look up the subject Ada")]}))["messages"]
    assert results(messages) == expected
    assert "was found" in messages[-1].text


async def test_a_call_that_is_broken_each_time_ends_by_the_named_error_and_its_conversation_is_sound(
    model: BaseChatModel,
) -> None:
    graph = build_assistant(model, [lookup], limits=ToolLimits(attempts=2))
    graph.checkpointer = InMemorySaver()
    thread: RunnableConfig = {"configurable": {"thread_id": "t"}}
    question = "[[bad_json=cut_string&call=all]] Look up the subject Ada"
    with pytest.raises(InvalidToolArgs, match="lookup"):
        await graph.ainvoke({"messages": [HumanMessage(question)]}, thread)
    messages = (await graph.aget_state(thread)).values["messages"]
    assert results(messages) == ["error"] * 3
    assert not any(one.invalid_tool_calls for one in messages if isinstance(one, AIMessage))
    after = await graph.ainvoke({"messages": [HumanMessage("Look up the subject Bo")]}, thread)
    assert "Bo was found" in after["messages"][-1].text


async def test_a_model_that_does_not_stream_is_judged_as_well() -> None:
    calls = [invalid_tool_call(name="lookup", args='{"subject": "Ada",}', id="c1")]
    turns = [[AIMessageChunk(content="", invalid_tool_calls=calls)], words("It was found.")]
    model = Scripted(turns=turns, disable_streaming=True)
    messages = (await build_assistant(model, [lookup]).ainvoke({"messages": [HumanMessage("Ada?")]}))["messages"]
    assert [one.text for one in messages] == ["Ada?", "", "Ada was found", "It was found."]


def test_a_person_is_asked_only_where_a_tool_needs_it(provider: Simulator) -> None:
    model = build_model("openai:simulated", base_url=provider.base_url)
    marked = lookup.model_copy(update={"metadata": {"needs_approval": True}})
    assert "approve" not in build_assistant(model, [lookup]).nodes
    assert "approve" in build_assistant(model, [marked]).nodes


async def test_nothing_is_asked_of_a_person_for_a_call_that_is_refused(model: BaseChatModel) -> None:
    marked = lookup.model_copy(update={"metadata": {"needs_approval": True}})
    graph = build_assistant(model, [marked])
    graph.checkpointer = InMemorySaver()
    thread: RunnableConfig = {"configurable": {"thread_id": "t"}}
    question = "[[bad_json=cut_string]] Look up the subject Ada"
    asked = await graph.ainvoke({"messages": [HumanMessage(question)]}, thread)
    assert results(asked["messages"]) == ["error"]
    (waiting,) = asked["__interrupt__"]
    assert [one["args"] for one in waiting.value["action_requests"]] == [{"subject": "Ada"}]
    messages = (await graph.ainvoke(Command(resume="approve"), thread))["messages"]
    assert results(messages) == ["error", "success"]


def test_it_can_be_called_without_a_loop(provider: Simulator) -> None:
    graph = build_assistant(build_model("openai:simulated", base_url=provider.base_url), [lookup])
    assert "was found" in graph.invoke({"messages": [HumanMessage("Look up the subject Ada")]})["messages"][-1].text
    question = "[[bad_json=cut_string]] Look up the subject Ada"
    messages = graph.invoke({"messages": [HumanMessage(question)]})["messages"]
    assert results(messages) == ["error", "success"]
    with pytest.raises(InvalidToolArgs):
        graph.invoke({"messages": [HumanMessage("[[bad_json=cut_string&call=all]] Look up the subject Ada")]})


async def test_tools_that_ask_a_person_themselves_get_their_own_answers_and_none_runs_twice() -> None:
    paid, logged = [], []

    @tool
    async def pay(to: str) -> str:
        """Pay somebody."""
        if interrupt(f"Pay {to}?") != "yes":
            return "not paid"
        paid.append(to)
        return f"paid {to}"

    @tool
    async def note(text: str) -> str:
        """Have an effect at once."""
        logged.append(text)
        return "noted"

    asked = [("pay", {"to": "Ada"}, "c1"), ("pay", {"to": "Mallory"}, "c2"), ("note", {"text": "x"}, "c3")]
    turn = AIMessageChunk(
        content="", tool_calls=[{"name": name, "args": args, "id": call_id} for name, args, call_id in asked]
    )
    graph = build_assistant(Scripted(turns=[[turn], words("done")]), [pay, note]).copy(
        {"checkpointer": InMemorySaver()}
    )
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke({"messages": [HumanMessage("pay")]}, config)
    questions = {one.value: one.id for one in (await graph.aget_state(config)).interrupts}
    assert questions.keys() == {"Pay Ada?", "Pay Mallory?"}
    await graph.ainvoke(Command(resume={questions["Pay Mallory?"]: "no"}), config)
    state = await graph.ainvoke(Command(resume={questions["Pay Ada?"]: "yes"}), config)
    assert paid == ["Ada"]
    assert logged == ["x"]
    results = [one for one in state["messages"] if isinstance(one, ToolMessage)]
    assert [(one.tool_call_id, one.content) for one in results] == [
        ("c1", "paid Ada"),
        ("c2", "not paid"),
        ("c3", "noted"),
    ]


async def test_a_tool_that_looks_at_the_state_is_given_it() -> None:
    @tool
    async def count(state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Count the messages."""
        return str(len(state["messages"]))

    turn = AIMessageChunk(content="", tool_calls=[{"name": "count", "args": {}, "id": "c1"}])
    graph = build_assistant(Scripted(turns=[[turn], words("done")]), [count])
    state = await graph.ainvoke({"messages": [HumanMessage("how many?")]})
    assert state["messages"][2].content == "2"
