"""A Runner as a Runnable: each call is a run, gives what the agent itself gives, and ends with its caller."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, RunnableGenerator, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from scripted import Scripted, words

from app.errors import InvalidInput, RunFailed
from app.runs.agent import Agent
from app.runs.run import Run
from app.runs.runnable import AgentRunnable, Caller, caller
from app.runs.runner import Runner
from app.runs.scope import Ending
from app.runs.tap import MAX_PENDING, TapOverflow

State = dict[str, Any]


class Served(NamedTuple):
    """An agent behind the door, and who calls it."""

    agent: AgentRunnable
    runner: Runner
    caller: Caller

    @property
    def runs(self) -> list[Run]:
        return self.runner.kept("ann")


@asynccontextmanager
async def served(runnable: Runnable[Any, Any], **options: Any) -> AsyncIterator[Served]:
    agent = Agent("one", runnable, **options)
    runner = Runner({"one": agent}, strict=True)
    who = Caller("ann")
    token = caller.set(who)
    try:
        async with asyncio.timeout(20):
            yield Served(AgentRunnable(runner, agent), runner, who)
            await runner.close()
    finally:
        caller.reset(token)


def chain() -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_template("{x}") | Scripted(turns=[words("It ", "rains")])


def graph(node: Any) -> Any:
    built: Any = StateGraph(MessagesState)
    built.add_node("node", node)
    built.add_edge(START, "node")
    return built.compile()


async def test_a_call_gives_what_the_agent_gives_and_is_a_run() -> None:
    async with served(chain()) as one:
        run_id = uuid4()
        answer = await one.agent.ainvoke({"x": "hi"}, {"run_id": run_id})
        direct = await chain().ainvoke({"x": "hi"})
        assert (type(answer), answer.text) == (type(direct), "It rains")
        (run,) = one.runs
        assert (run.run_id, run.status, run.user) == (str(run_id), "completed", "ann")
        assert one.caller.runs == [str(run_id)]
        assert run.usage.output_tokens == 2


async def test_a_batch_is_a_run_for_each_of_its_items() -> None:
    async with served(RunnableLambda(lambda text: f"{text}!")) as one:
        assert await one.agent.abatch(["a", "b", "c"]) == ["a!", "b!", "c!"]
        assert len(one.runs) == len(one.caller.runs) == 3


async def test_a_stream_gives_the_agents_own_chunks() -> None:
    async with served(chain()) as one:
        ours = [chunk.text async for chunk in one.agent.astream({"x": "hi"})]
        theirs = [chunk.text async for chunk in chain().astream({"x": "hi"})]
        assert ours == theirs
        assert [run.status for run in one.runs] == ["completed"]


FILTERS: list[dict[str, Any]] = [
    {}, {"include_types": ["chat_model"]}, {"exclude_types": ["chat_model"]}, {"include_names": ["Scripted"]},
    {"exclude_names": ["ChatPromptTemplate"]}, {"include_tags": ["seq:step:1"]}, {"exclude_tags": ["seq:step:2"]},
    {"include_names": ["nobody"]},
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
async def test_events_are_the_agents_own_and_chosen_as_langchain_chooses_them(filters: dict[str, Any]) -> None:
    def shown(raw: Mapping[str, Any]) -> tuple[Any, ...]:
        return raw["event"], raw["name"], tuple(raw["tags"])

    async with served(chain()) as one:
        ours = [shown(raw) async for raw in one.agent.astream_events({"x": "hi"}, version="v2", **filters)]
    theirs = [shown(raw) async for raw in chain().astream_events({"x": "hi"}, version="v2", **filters)]
    assert ours == theirs


async def test_a_log_adds_up_to_the_answer() -> None:
    async with served(chain()) as one:
        patches = [patch async for patch in one.agent.astream_log({"x": "hi"})]
        total = patches[0]
        for patch in patches[1:]:
            total = total + patch
        assert total.state["final_output"].text == "It rains"


CALLS = ["ainvoke", "astream", "astream_events", "astream_log"]


async def call(agent: AgentRunnable, name: str, value: Any = "hi") -> None:
    if name == "ainvoke":
        await agent.ainvoke(value)
        return
    async for _ in getattr(agent, name)(value):
        pass


@pytest.mark.parametrize("name", CALLS)
async def test_a_run_that_fails_raises_without_the_agents_own_words(name: str) -> None:
    async def fails(_: Any) -> None:
        raise ValueError("secret")

    async with served(RunnableLambda(fails)) as one:
        with pytest.raises(RunFailed) as caught:
            await call(one.agent, name)
        assert caught.value.reason == "agent_error"
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
async def test_a_run_that_is_cancelled_raises(name: str) -> None:
    reached = asyncio.Event()

    async def hangs(_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with served(RunnableLambda(hangs)) as one:
        calling = asyncio.create_task(call(one.agent, name))
        await reached.wait()
        one.runs[0].scope.end(Ending("cancelled", "requested"))
        with pytest.raises(RunFailed, match="cancelled"):
            await calling


@pytest.mark.parametrize("name", CALLS)
async def test_a_caller_that_is_gone_takes_its_runs_with_it(name: str) -> None:
    reached = asyncio.Event()

    async def hangs(_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with served(RunnableLambda(hangs)) as one:
        calling = asyncio.create_task(call(one.agent, name))
        await reached.wait()
        one.caller.close()
        one.caller.close()
        await asyncio.wait([calling])
        assert isinstance(calling.exception(), RunFailed)
        assert one.runs[0].scope.ending == Ending("cancelled", "disconnected")


async def test_a_run_that_waits_for_a_person_is_an_answer() -> None:
    async with served(graph(lambda _: interrupt("sure?"))) as one:
        answer = await one.agent.ainvoke("hi")
        assert answer["messages"][0].text == "hi"
        assert one.runs[0].status == "interrupted"


async def test_an_input_that_does_not_fit_starts_nothing() -> None:
    async with served(chain()) as one:
        with pytest.raises(InvalidInput):
            await one.agent.ainvoke({"y": "hi"})
        assert one.runs == []


async def test_a_reader_that_lags_too_far_behind_is_let_go_and_its_run_ended() -> None:
    async def floods(_: AsyncIterator[Any]) -> AsyncIterator[str]:
        for __ in range(2 * MAX_PENDING):
            yield "x"
        await asyncio.Event().wait()

    async with served(RunnableGenerator(floods)) as one:
        chunks = one.agent.astream("hi")
        assert await anext(chunks) == "x"
        await one.runs[0].done.wait()
        with pytest.raises(TapOverflow):
            [chunk async for chunk in chunks]
        assert one.runs[0].status == "cancelled"


async def test_a_run_whose_caller_left_while_it_was_started_is_ended() -> None:
    async with served(RunnableGenerator(waits)) as one:
        one.caller.close()
        with pytest.raises(RunFailed, match="cancelled"):
            await one.agent.ainvoke("hi")
        assert one.caller.started.done()
        assert one.runs[0].scope.readers == 0


async def waits(_: AsyncIterator[Any]) -> AsyncIterator[str]:
    yield "x"
    await asyncio.Event().wait()


async def test_it_has_no_synchronous_form() -> None:
    async with served(chain()) as one:
        with pytest.raises(NotImplementedError, match="ainvoke"):
            one.agent.invoke("hi")


async def test_only_what_the_agent_declares_may_be_configured() -> None:
    model = FakeListChatModel(responses=["a"]).configurable_fields(
        responses=ConfigurableField(id="answers"), sleep=ConfigurableField(id="pace")
    )
    async with served(model, configurable=["answers"]) as one:
        assert [spec.id for spec in one.agent.config_specs] == ["answers"]
        config: RunnableConfig = {"configurable": {"answers": ["b"]}}
        assert (await one.agent.ainvoke("hi", config)).text == "b"


async def test_of_a_clients_config_neither_callbacks_nor_limits_reach_the_agent() -> None:
    seen: list[Any] = []

    def look(_: Any, config: RunnableConfig) -> str:
        seen.append(config)
        return "ok"

    async with served(RunnableLambda(look)) as one:
        await one.agent.ainvoke("hi", {"recursion_limit": 7777, "tags": ["theirs"], "metadata": {"theirs": 1}})
        assert seen[0]["recursion_limit"] != 7777
        assert "theirs" not in seen[0]["tags"]
        assert "theirs" not in seen[0]["metadata"]
