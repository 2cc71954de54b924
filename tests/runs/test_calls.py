"""Tool calls where providers and graphs make it hard to tell which is which."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import adispatch_custom_event
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from runners import Halt, runner_of
from runners import told as read
from scripted import Gate, piece, say
from telling import Told, asks, loop, model, row, told, without_model

from app.events.event import Custom, Event, NodeFinished, ToolArgs, ToolFinished, ToolPending, ToolProgress, ToolStarted
from app.events.request import RunRequest
from app.runs.calls import MAX_TOOL_OUTPUT, own_id
from app.runs.run import Run
from app.runs.runner import Runner
from chains import transcript

LABELS = {"get": "Getting…", "get_weather": "Looking up the weather…", "look_up": "Looking up…"}


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: a word"


@tool
async def get() -> str:
    """Get."""
    return "got"


TOOLS = ToolNode([look_up, get], handle_tool_errors=True)


def names(run: Told) -> list[str]:
    return [one.name for one in run.all(ToolPending)]


async def written(*pieces: Any) -> Told:
    return await told(model([say("", one) for one in pieces]), labels=LABELS)


# The name


async def test_a_name_that_another_begins_with_is_announced_when_it_cannot_grow_any_more() -> None:
    run = await written(piece("get", call_id="a", index=0), piece("_weather", index=0), piece(args="{}", index=0))
    assert names(run) == ["get_weather"]
    run = await written(piece("get", call_id="a", index=0), piece(args="{}", index=0))
    assert names(run) == ["get"]


async def test_a_name_that_comes_with_every_piece_is_one_name() -> None:
    run = await written(*(piece("look_up", args, "a", 0) for args in ('{"wo', 'rd":', ' "x"}')))
    assert names(run) == ["look_up"]
    assert run.args("a") == '{"word": "x"}'


async def test_a_whole_name_that_comes_again_before_the_arguments_is_one_name() -> None:
    run = await written(
        piece("get", call_id="a", index=0), piece("get", call_id="a", index=0), piece(args="{}", index=0)
    )
    assert names(run) == ["get"]


# Which call a tool answers


def answers(*pieces: dict[str, Any], **renamed: str) -> Any:
    """A graph that gives the calls of its model these ids before the tools see them."""

    async def check(state: MessagesState) -> Any:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        anew = [
            {**call, "id": own_id(last.id or "", number) if call["id"] in (None, "", *renamed) else call["id"]}
            for number, call in enumerate(last.tool_calls)
        ]
        return {"messages": [last.model_copy(update={"tool_calls": anew})]}

    return row(model=asks(model([say("", *pieces, id="m1")])), check=check, tools=TOOLS)


async def test_a_call_without_an_id_is_known_by_its_message_and_number() -> None:
    run = await told(
        answers(piece("look_up", '{"word": "same"}', index=0), piece("look_up", '{"word": "same"}', index=1)),
        {"messages": []},
        labels=LABELS,
    )
    pending = [one.call_id for one in run.all(ToolPending)]
    assert pending == ["m1-0", "m1-1"]
    assert sorted(one.call_id for one in run.all(ToolStarted)) == pending


async def test_a_repeated_id_is_told_apart_by_message_and_number() -> None:
    pieces = (piece("look_up", '{"word": "a"}', "same", 0), piece("look_up", '{"word": "b"}', "same", 1))
    run = await told(answers(*pieces, same="renamed"), {"messages": []}, labels=LABELS)
    args = {one.call_id: one.args for one in run.all(ToolStarted)}
    assert list(args.values()) == [{"word": "a"}, {"word": "b"}]
    assert {one.call_id: one.args for one in run.all(ToolArgs) if one.args} == args


async def test_branches_whose_providers_give_the_same_ids_keep_their_calls_apart() -> None:
    first, second = Gate(), Gate()

    @tool
    async def wait(which: str) -> str:
        """Wait."""
        await {"one": first, "two": second}[which]()
        return which

    def branch(which: str, then: Gate | None) -> Any:
        agent = loop(
            model([say("", piece("wait", f'{{"which": "{which}"}}', "call_1", 0))], [say("ok")]), ToolNode([wait])
        )

        async def run(_: Any) -> None:
            await agent.ainvoke({"messages": [("user", "go")]})
            if then is not None:
                then.open()

        return run

    graph: Any = StateGraph(MessagesState)
    graph.add_node("one", branch("one", None))
    graph.add_node("two", branch("two", first))  # the second branch is over before the first has its result
    graph.add_edge(START, "one")
    graph.add_edge(START, "two")
    task = asyncio.create_task(told(graph.compile(), {"messages": []}, labels={"wait": "Waiting…"}))
    second.open()
    run = await task
    started = {one.call_id: one.args["which"] for one in run.all(ToolStarted)}
    finished = {one.call_id: one.output for one in run.all(ToolFinished)}
    assert len(started) == 2
    assert started == finished


class Channels(TypedDict):
    """A channel for each of two branches that run beside each other in the graph itself."""

    messages: Annotated[list[AnyMessage], add_messages]
    one: Annotated[list[AnyMessage], add_messages]
    two: Annotated[list[AnyMessage], add_messages]


Work = Callable[[], Awaitable[Any]]


async def at_once() -> None:
    """Nothing to wait for."""


def two_branches(*, first: Work, second: Work = at_once, after_second: Work = at_once) -> Any:
    """Each calls its own tool, by the same id; the tools wait, and so does the second one's node when it is done."""

    @tool
    async def work_one() -> str:
        """Do the first one's work."""
        await first()
        return "one"

    @tool
    async def work_two() -> str:
        """Do the second one's work."""
        await second()
        return "two"

    graph: Any = StateGraph(Channels)
    for name, work, after in (("one", work_one, at_once), ("two", work_two, after_second)):
        asked, node = model([say("", piece(work.name, "{}", "call_0", 0))]), ToolNode([work], messages_key=name)

        async def ask(state: Any, name: str = name, asked: Any = asked) -> Any:
            return {name: [await asked.ainvoke(state["messages"])]}

        async def tools(state: Any, config: RunnableConfig, node: Any = node, after: Work = after) -> Any:
            results = await node.ainvoke(state, config)
            await after()
            return results

        graph.add_node(f"ask_{name}", ask)
        graph.add_node(f"tools_{name}", tools)
        graph.add_edge(START, f"ask_{name}")
        graph.add_edge(f"ask_{name}", f"tools_{name}")
    return graph.compile()


async def begun(runner: Runner) -> Run:
    return await runner.start(runner.agent("one"), RunRequest(input="go"), user="ann", streams=False)


async def until(run: Run, wanted: Callable[[Event], bool]) -> None:
    """Read the run until there was such an event."""
    reader = run.subscribe(0)
    async with asyncio.timeout(20):
        found = False
        while not found:
            found = any(wanted(entry.event) for entry in await reader.read())


def is_over(event: Event) -> bool:
    return isinstance(event, NodeFinished) and event.node == "tools_one"


async def test_a_node_that_is_over_ends_no_call_of_another_branch_that_has_the_same_id() -> None:
    slow = Halt()
    async with runner_of(two_branches(first=at_once, second=slow)) as runner:
        run = await begun(runner)
        await until(run, is_over)
        slow.open.set()
        events = await read(run)
    done = [one for one in events if isinstance(one, ToolFinished)]
    assert [(one.name, one.node, one.status, one.output) for one in done] == [
        ("work_one", "tools_one", "ok", "one"), ("work_two", "tools_two", "ok", "two"),
    ]  # fmt: skip


async def test_the_results_of_branches_that_have_the_same_ids_are_kept_apart() -> None:
    fast, held = Halt(), Halt()
    async with runner_of(two_branches(first=fast, after_second=held)) as runner:
        run = await begun(runner)
        await held.reached.wait()  # the second has its result, which its node has not handed to the graph
        fast.open.set()
        await until(run, is_over)
        assert {call_id: one.content for call_id, one in run.results().items()} == {"call_0": "two"}
        held.open.set()
        await read(run)


@given(st.text(max_size=60), st.integers(0, 300))
def test_our_own_graphs_name_such_a_call_by_the_same_id(message_id: str, number: int) -> None:
    call_id = own_id(message_id, number)
    assert call_id == transcript.own_id(message_id, number)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", call_id)  # what OpenAI and Anthropic take back


# Results


def gives_up(*, told_at_once: bool) -> Any:
    """A node that waits for its tools no longer than until they have begun, and makes up their results."""
    begun = Gate()

    @tool
    async def stuck() -> str:
        """Never answers."""
        begun.open()
        await asyncio.Event().wait()
        return ""

    async def tools(state: MessagesState) -> Any:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        call = last.tool_calls[0]
        task = asyncio.create_task(stuck.ainvoke(call))
        await begun()
        if told_at_once:
            result = {"call_id": call["id"], "status": "error", "output": "gave up"}
            await adispatch_custom_event("tool.result", result)
            await adispatch_custom_event("still going", 1)
        task.cancel()
        await asyncio.wait((task,))
        return {"messages": [ToolMessage("gave up", tool_call_id=call["id"], status="error")]}

    return without_model(tools, ("stuck", {}, "c1"))


async def test_a_tool_that_was_left_alone_has_the_result_that_its_node_made_up() -> None:
    run = await told(gives_up(told_at_once=False), {"messages": []})
    done = run.one(ToolFinished)
    assert (done.call_id, done.status, done.output) == ("c1", "error", "gave up")


async def test_a_result_that_is_told_before_its_node_is_over_ends_the_call_there_and_then() -> None:
    run = await told(gives_up(told_at_once=True), {"messages": []})
    done = run.one(ToolFinished)
    assert (done.status, done.output) == ("error", "gave up")
    assert run.events.index(done) < run.events.index(run.one(Custom))


async def test_what_a_tool_says_after_its_result_was_told_is_no_progress() -> None:
    @tool
    async def talks() -> str:
        """Says its own result, and goes on."""
        await adispatch_custom_event("half", 1)
        await adispatch_custom_event("tool.result", {"call_id": "c1", "status": "ok", "output": "enough"})
        await adispatch_custom_event("late", 2)
        return "too late"

    run = await told(without_model(ToolNode([talks]), ("talks", {}, "c1")), {"messages": []})
    assert run.one(ToolProgress).data == 1
    assert run.one(ToolFinished).output == "enough"
    assert run.one(Custom).name == "late"


@pytest.mark.parametrize("data", [None, 7, {}, {"call_id": None}, {"call_id": "nobody's", "output": 1}])
async def test_a_result_of_no_call_ends_none(data: Any) -> None:
    async def node(_: Any) -> None:
        await adispatch_custom_event("tool.result", data)

    run = await told(row(node=node), {"messages": []})
    assert run.all(ToolFinished) == []


async def test_a_result_that_the_thread_is_given_later_is_no_longer_than_its_event() -> None:
    @tool
    async def floods() -> str:
        """Say very much."""
        return "x" * (2 * MAX_TOOL_OUTPUT)

    async def tools(state: MessagesState) -> Any:
        await ToolNode([floods]).ainvoke(state)
        raise ValueError("before it is over")

    run = await told(without_model(tools, ("floods", {}, "c1")), {"messages": []})
    kept = run.translator.results()["c1"]
    assert MAX_TOOL_OUTPUT <= len(kept.content) < MAX_TOOL_OUTPUT + 100
