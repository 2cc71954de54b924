"""The assistant's graph on its own: no server, a real provider's wire."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException, tool
from openai import DefaultAsyncHttpxClient

from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.models import build_model


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture
async def model(provider: Simulator) -> AsyncIterator[BaseChatModel]:
    """With a client of this test's loop: the default one is shared by all loops of the process."""
    async with DefaultAsyncHttpxClient() as client:
        yield build_model("openai:simulated", base_url=provider.base_url, client=client)


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


async def test_arguments_that_are_no_json_are_answered_and_the_model_goes_on(model: BaseChatModel) -> None:
    @tool
    def lookup(subject: str) -> str:
        """Look up a subject."""
        return subject

    graph = build_assistant(model, [lookup])
    question = "[[bad_json=mismatched]] Look up the subject Ada"
    messages = (await graph.ainvoke({"messages": [HumanMessage(question)]}))["messages"]
    (result,) = [one for one in messages if isinstance(one, ToolMessage)]
    assert result.status == "error"
    assert "not valid JSON" in str(result.content)
    assert messages[-1].text


def test_it_can_be_called_without_a_loop(provider: Simulator) -> None:
    @tool
    def lookup(subject: str) -> str:
        """Look up a subject."""
        return f"{subject} was found"

    graph = build_assistant(build_model("openai:simulated", base_url=provider.base_url), [lookup])
    assert "was found" in graph.invoke({"messages": [HumanMessage("Look up the subject Ada")]})["messages"][-1].text
