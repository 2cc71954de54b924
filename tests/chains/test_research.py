"""The research graph on its own: what its models are asked, what comes of it, and what is left of a turn."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from openai import BadRequestError
from typing_extensions import override

from app.simulator.server import Simulator
from chains.research import INVESTIGATION, MAX_BRANCHES, PLANNING, SYNTHESIS, build_research
from tools.calculator import build_calculator

Messages = list[BaseMessage]


class Oracle(BaseChatModel):
    """Answers each of the graph's three kinds of calls by a function of the messages that follow the system's."""

    plan: Any = ("one?", "two?")
    found: Callable[[Messages], Awaitable[AIMessage | str]]
    asked: list[Messages] = []  # noqa: RUF012 - pydantic copies it

    @property
    @override
    def _llm_type(self) -> str:
        return "oracle"

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    @override
    def _generate(self, messages: Messages, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    @override
    async def _agenerate(
        self,
        messages: Messages,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = await self._answer(messages[0].text, messages[1:])
        message = AIMessage(answer) if isinstance(answer, str) else answer
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _answer(self, system: str, messages: Messages) -> AIMessage | str:
        if system == INVESTIGATION:
            return await self.found(messages)
        self.asked.append(messages)
        if system == SYNTHESIS:
            return "All of it."
        assert system == PLANNING
        args = {"questions": list(self.plan)}
        return AIMessage("", tool_calls=[{"name": "Plan", "args": args, "id": "p", "type": "tool_call"}])

    @property
    def findings(self) -> str:
        """What the last synthesis was made of."""
        return self.asked[-1][-1].text


async def plainly(messages: Messages) -> str:
    return f"found {messages[-1].text}"


def research(model: BaseChatModel, *tools: BaseTool, saver: InMemorySaver | None = None) -> Runnable[Any, Any]:
    graph = build_research(model, tools)
    graph.checkpointer = saver
    return graph


def asking(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def thread(name: str = "t") -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


async def test_branches_run_at_the_same_time_and_their_findings_stand_in_the_order_of_the_plan() -> None:
    last_is_done = asyncio.Event()

    async def found(messages: Messages) -> str:
        if messages[-1].text == "three?":
            last_is_done.set()
        async with asyncio.timeout(10):
            await last_is_done.wait()
        return await plainly(messages)

    model = Oracle(plan=["one?", "two?", "three?"], found=found)
    await research(model).ainvoke(asking("all of it?"))
    assert model.findings == (
        "## 1. one?\n\nfound one?\n\n## 2. two?\n\nfound two?\n\n## 3. three?\n\nfound three?"
    )  # fmt: skip


async def test_the_conversation_gets_the_question_and_the_synthesis_alone() -> None:
    saver = InMemorySaver()
    graph = research(Oracle(found=plainly), saver=saver)
    output = await graph.ainvoke(asking("all of it?"), thread())
    assert list(output) == ["messages"]
    assert [(one.type, one.text) for one in output["messages"]] == [("human", "all of it?"), ("ai", "All of it.")]
    assert list((await graph.aget_state(thread())).values) == ["messages"]  # type: ignore[attr-defined]


async def test_the_next_question_knows_the_conversation_and_none_of_its_findings() -> None:
    model = Oracle(found=plainly)
    graph = research(model, saver=InMemorySaver())
    await graph.ainvoke(asking("first?"), thread())
    model.plan = ["three?"]
    await graph.ainvoke(asking("second?"), thread())
    assert model.findings == "## 1. three?\n\nfound three?"
    assert [one.text for one in model.asked[-1][:-1]] == ["first?", "All of it.", "second?"]


async def test_what_a_turn_found_before_it_was_cancelled_is_not_taken_for_the_next_ones() -> None:
    one_is_done, asked = asyncio.Event(), asyncio.Event()

    async def found(messages: Messages) -> str:
        if messages[-1].text == "two?":
            asked.set()
            await asyncio.Event().wait()
        return await plainly(messages)

    async def run() -> None:
        async for event in graph.astream_events(asking("first?"), thread(), version="v2"):
            if event["name"] == "branch.finished":
                one_is_done.set()

    model = Oracle(found=found)
    graph = research(model, saver=InMemorySaver())
    running = asyncio.create_task(run())
    async with asyncio.timeout(10):
        await asyncio.gather(one_is_done.wait(), asked.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    model.plan = ["three?"]
    await graph.ainvoke(asking("second?"), thread())
    assert model.findings == "## 1. three?\n\nfound three?"


@pytest.mark.parametrize(
    "plan", ["No.", "{", "[]", '{"questions": []}', '{"questions": "no"}', '{"questions": [3, null, " "]}', "{}"]
)
async def test_a_plan_that_cannot_be_used_is_one_branch_with_the_conversation_itself(
    model: BaseChatModel, provider: Simulator, plan: str
) -> None:
    said = "".join(f"%{byte:02x}" for byte in plan.encode())
    before = len(provider.requests)
    question = {"messages": [HumanMessage("Hi"), AIMessage("Hello"), HumanMessage(f"[[say={said}]] count to 3")]}
    output = await research(model, build_calculator()).ainvoke(question)
    assert [one.roles for one in provider.requests[before:]] == [
        ("system", "user", "assistant", "user"),
        ("system", "user", "assistant", "user"),
        ("system", "user", "assistant", "user", "user"),
    ]
    assert len(output["messages"]) == 4


async def test_of_a_plan_only_so_many_questions_are_looked_into_each_once() -> None:
    model = Oracle(plan=["a?", "a? ", "", *(f"{number}?" for number in range(10))], found=plainly)
    await research(model).ainvoke(asking("all of it?"))
    assert model.findings.count("##") == MAX_BRANCHES
    assert "## 1. a?\n" in model.findings
    assert "## 2. 0?\n" in model.findings


class Refused(Exception):
    """As a provider's library has them."""

    status_code = 500


async def test_a_branch_that_fails_is_a_finding_and_loses_no_other_ones_work() -> None:
    async def found(messages: Messages) -> str:
        if messages[-1].text == "one?":
            raise Refused("at https://user:secret@provider")
        return await plainly(messages)

    model = Oracle(found=found)
    output = await research(model).ainvoke(asking("all of it?"))
    assert output["messages"][-1].text == "All of it."
    assert model.findings == (
        "## 1. one?\n\nThis could not be looked into: Refused, HTTP status 500.\n\n## 2. two?\n\nfound two?"
    )


async def test_when_all_branches_fail_the_run_fails_by_an_error_of_theirs() -> None:
    async def found(messages: Messages) -> str:
        raise Refused

    model = Oracle(found=found)
    graph = research(model, saver=InMemorySaver())
    with pytest.raises(Refused):
        await graph.ainvoke(asking("all of it?"), thread())
    assert len(model.asked) == 1
    model.found = plainly
    output = await graph.ainvoke(asking("again?"), thread())
    assert output["messages"][-1].text == "All of it."


async def test_a_planner_that_fails_fails_the_run(model: BaseChatModel) -> None:
    with pytest.raises(BadRequestError):
        await research(model, build_calculator()).ainvoke(asking("[[status=400]] hi"))


async def test_a_cancel_reaches_every_branch() -> None:
    entered = asyncio.Barrier(3)
    stopped: list[str] = []

    async def found(messages: Messages) -> str:
        try:
            await entered.wait()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(messages[-1].text)
            raise
        return ""

    model = Oracle(found=found)
    running = asyncio.create_task(research(model).ainvoke(asking("all of it?")))
    async with asyncio.timeout(10):
        await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(stopped) == ["one?", "two?"]


async def test_a_branch_may_wait_for_a_person_while_the_others_are_done_once() -> None:
    done: list[str] = []

    @tool
    async def ask() -> str:
        """Ask a person."""
        return str(interrupt("may I?"))

    async def found(messages: Messages) -> AIMessage | str:
        if messages[-1].type == "human" and messages[-1].text == "one?":
            return AIMessage("", tool_calls=[{"name": "ask", "args": {}, "id": "c", "type": "tool_call"}])
        done.append(messages[-1].text)
        return await plainly(messages)

    model = Oracle(found=found)
    graph = research(model, ask, saver=InMemorySaver())
    waits = await graph.ainvoke(asking("all of it?"), thread())
    assert [one.value for one in waits["__interrupt__"]] == ["may I?"]
    output = await graph.ainvoke(Command(resume="yes"), thread())
    assert output["messages"][-1].text == "All of it."
    assert model.findings == "## 1. one?\n\nfound yes\n\n## 2. two?\n\nfound two?"
    assert sorted(done) == ["two?", "yes"]


async def test_it_says_under_which_namespace_the_events_of_a_branch_come() -> None:
    async def found(messages: Messages) -> str:
        if messages[-1].text == "one?":
            raise Refused
        return await plainly(messages)

    lanes: dict[int, tuple[str, str]] = {}
    ends: dict[int, tuple[str, str | None]] = {}
    inner: set[str] = set()
    async for event in research(Oracle(found=found)).astream_events(asking("all of it?"), version="v2"):
        data: Any = event["data"]
        if event["name"] == "branch.started":
            lanes[data["number"]] = ("|".join(data["namespace"]), data["question"])
        elif event["name"] == "branch.finished":
            ends[data["number"]] = (data["status"], data["problem"])
            assert "|".join(data["namespace"]) == lanes[data["number"]][0]
        elif event["event"] == "on_chain_start" and event["name"] == "model":
            inner.add(event["metadata"]["langgraph_checkpoint_ns"].split("|")[0])
    assert {question for _, question in lanes.values()} == {"one?", "two?"}
    assert {namespace for namespace, _ in lanes.values()} == inner
    assert ends == {1: ("error", "Refused, HTTP status 500"), 2: ("ok", None)}
