"""The tool node in a graph of its own: calls in, results out, whatever the tools do."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import pytest
from graphs import Slow
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from runners import Halt, runner_of, told

from app.events.event import ToolFinished, ToolProgress
from app.events.request import RunRequest
from chains.shortcut import CONTROL
from chains.toolnode import ToolLimits, build_tool_node, cut, open_calls

Until = Callable[[Callable[[], bool]], Awaitable[None]]
Graph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]


def graph_of(tools: Sequence[BaseTool], **limits: Any) -> Graph:
    graph = StateGraph(MessagesState)
    graph.add_node("tools", build_tool_node(tools, ToolLimits(**limits)))
    graph.add_edge(START, "tools")
    return graph.compile()


def asks(*names: str, **args: Any) -> AIMessage:
    """A message with a call of each of these tools."""
    calls = [{"name": name, "args": args, "id": f"c{n}", "type": "tool_call"} for n, name in enumerate(names)]
    return AIMessage("", id="m1", tool_calls=calls)


WAYS = ["loop", "thread", "sync"]
"""An asynchronous tool; one in a thread; one in a thread of a graph that was called without an event loop."""

every_way = pytest.mark.parametrize("way", WAYS)


async def results(graph: Graph, *messages: Any, way: str = "loop") -> list[ToolMessage]:
    """What the graph adds to the messages."""
    given: Any = {"messages": [*messages]}
    state = await (asyncio.to_thread(graph.invoke, given) if way == "sync" else graph.ainvoke(given))
    return list(state["messages"][len(messages) :])


def worker(way: str, body: Callable[[], Any], name: str = "work", **metadata: Any) -> BaseTool:
    """A tool that does this."""

    async def awork() -> str:
        """Work."""
        return str(body())

    def work() -> str:
        """Work."""
        return str(body())

    made = tool(name)(awork if way == "loop" else work)
    made.metadata = metadata
    return made


def raises(error: BaseException) -> Callable[[], Any]:
    def body() -> Any:
        raise error

    return body


def well(way: str = "loop", name: str = "well") -> BaseTool:
    return worker(way, lambda: "fine", name)


# -- which calls ------------------------------------------------------------------------------------------------------


def test_open_are_the_calls_of_the_last_message_without_a_result() -> None:
    earlier = [asks("a"), ToolMessage("1", tool_call_id="c0")]
    assert open_calls([]) == open_calls(earlier) == open_calls([*earlier, AIMessage("done")]) == []
    again = [*earlier, asks("a", "b"), ToolMessage("2", tool_call_id="c1")]
    assert [call["name"] for call in open_calls(again)] == ["a"]


async def test_a_call_that_has_a_result_is_not_made() -> None:
    entered: list[int] = []
    graph = graph_of([worker("loop", lambda: entered.append(1))])
    refused = ToolMessage("no", tool_call_id="c0", status="error", id="r")
    state = await graph.ainvoke({"messages": [asks("work", "work"), refused]})
    assert [message.tool_call_id for message in state["messages"][1:]] == ["c0", "c1"]
    assert len(entered) == 1


@every_way
async def test_with_every_call_answered_nothing_is_added(way: str) -> None:
    assert await results(graph_of([well(way)]), asks("well"), ToolMessage("no", tool_call_id="c0"), way=way) == []


async def test_a_tool_knows_its_call_and_the_state() -> None:
    @tool
    async def know(call_id: Annotated[str, InjectedToolCallId], state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Know."""
        return f"{call_id} of {len(state['messages'])}"

    assert [one.content for one in await results(graph_of([know]), asks("know", "know"))] == ["c0 of 1", "c1 of 1"]


# -- whatever a tool does, its call has a result ----------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ToolException("the shop is closed"), "Error: the shop is closed"),
        (ValueError("no"), "Error: ValueError: no"),
        (FileNotFoundError("/secret/path"), "Error: the tool failed (FileNotFoundError)."),
        (TimeoutError(), "Error: the tool failed (TimeoutError)."),
        (asyncio.CancelledError(), "Error: the tool broke off without a result (CancelledError)"),
        (SystemExit(1), "Error: the tool broke off without a result (SystemExit)"),
        (KeyboardInterrupt(), "Error: the tool broke off without a result (KeyboardInterrupt)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_tool_that_fails_however_has_an_error_result_and_takes_no_other_with_it(
    way: str, error: BaseException, said: str
) -> None:
    graph = graph_of([worker(way, raises(error)), well(way)])
    got = await results(graph, asks("work", "well"), way=way)
    assert [(one.tool_call_id, one.status, one.content) for one in got] == [
        ("c0", "error", said),
        ("c1", "success", "fine"),
    ]


async def test_an_error_that_has_no_words_is_a_result_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("none")

    (got,) = await results(graph_of([worker("loop", raises(Mute()))]), asks("work"))
    assert (got.status, got.content) == ("error", "Error: Mute")


async def test_a_command_without_a_result_is_an_error_result() -> None:
    @tool
    async def work() -> Command[Any]:
        """Work."""
        return Command(update={"messages": []})

    (got,) = await results(graph_of([work]), asks("work"))
    assert got.status == "error"


async def test_a_real_cancel_passes_through_after_the_tool_has_cleaned_up() -> None:
    halt, cleaned = Halt(), []

    @tool
    async def work() -> str:
        """Work."""
        try:
            await halt()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return "done"

    task = asyncio.create_task(results(graph_of([work]), asks("work")))
    await halt.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned


@every_way
async def test_a_tool_that_asks_a_person_interrupts_the_graph(way: str) -> None:
    graph = graph_of([worker(way, lambda: interrupt("may I?"))])
    given: Any = {"messages": [asks("work")]}
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    graph.checkpointer = InMemorySaver()
    state = await (asyncio.to_thread(graph.invoke, given, config) if way == "sync" else graph.ainvoke(given, config))
    assert [one.value for one in state["__interrupt__"]] == ["may I?"]
    state = (
        await graph.ainvoke(Command(resume="yes"), config)
        if way != "sync"
        else graph.invoke(Command(resume="yes"), config)
    )
    assert state["messages"][-1].content == "yes"


# -- time -------------------------------------------------------------------------------------------------------------


TOO_SLOW = (
    "Error: work had no result within 0.05 s, and is no longer waited for. It may have had an effect all the same. "
    "Ask for less at once, or answer without it."
)


@pytest.mark.parametrize("way", ["thread", "sync"])
async def test_a_thread_is_waited_for_no_longer_than_its_limit_and_is_left(way: str, until: Until) -> None:
    let_go, ended = threading.Event(), []

    def block() -> None:
        assert let_go.wait(20)
        ended.append(True)

    graph = graph_of([worker(way, block), well(way)], timeout_s=0.05)
    got = await results(graph, asks("work", "well"), way=way)
    assert [(one.status, one.content) for one in got] == [("error", TOO_SLOW), ("success", "fine")]
    assert not ended
    let_go.set()
    await until(lambda: bool(ended))


async def test_what_a_tool_awaits_is_cancelled_at_its_limit() -> None:
    slow = Slow()
    (got,) = await results(graph_of([slow.tool], timeout_s=0.05), asks("wait"))
    assert (got.status, slow.entered, slow.cancelled) == ("error", 1, 1)


async def test_a_tool_that_swallows_the_cancel_is_not_waited_for_either(until: Until) -> None:
    let_go, ended = asyncio.Event(), []

    @tool
    async def work() -> str:
        """Work."""
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()
        ended.append(True)
        raise ValueError("whom does it concern?")

    (got,) = await results(graph_of([work], timeout_s=0.05), asks("work"))
    assert (got.content, ended) == (TOO_SLOW, [])
    let_go.set()
    await until(lambda: bool(ended))


@pytest.mark.parametrize(("own", "ends"), [(0.05, True), (60, False), (None, False)])
async def test_a_tool_may_have_a_limit_of_its_own(own: float | None, ends: bool) -> None:
    halt = Halt()

    @tool
    async def work() -> str:
        """Work."""
        await halt()
        return "done"

    work.metadata = {"timeout_s": own}
    task = asyncio.create_task(results(graph_of([work], timeout_s=60 if ends else 0.01), asks("work")))
    await halt.reached.wait()
    if not ends:
        await asyncio.sleep(0.05)  # longer than the graph's limit
        halt.open.set()
    (got,) = await task
    assert (got.status == "error") is ends


async def test_the_time_counts_from_when_a_call_has_its_place() -> None:
    halt = Halt()
    first = True

    @tool
    async def work() -> str:
        """Work."""
        nonlocal first
        if first:
            first = False
            await halt()
        return "done"

    task = asyncio.create_task(results(graph_of([work], timeout_s=10, at_once=1), asks("work", "work")))
    await halt.reached.wait()
    halt.open.set()
    assert [one.content for one in await task] == ["done", "done"]


async def test_a_limit_that_strikes_is_told_at_once_and_not_when_the_node_is_over(until: Until) -> None:
    halt, slow = Halt(), Slow()
    slow.tool.metadata = {"timeout_s": 0.05}

    @tool
    async def work() -> str:
        """Work."""
        await halt()
        return "done"

    heard: list[Any] = []

    async def listen() -> None:
        given: Any = {"messages": [asks("wait", "work")]}
        async for event in graph_of([slow.tool, work]).astream_events(given, version="v2"):
            heard.extend([event] if event["event"] == "on_custom_event" else [])

    task = asyncio.create_task(listen())
    await until(lambda: bool(heard))
    halt.open.set()
    await task
    ((name, data),) = [(event["name"], event["data"]) for event in heard]
    assert (name, data["call_id"], data["status"]) == ("tool.result", "c0", "error")
    assert data["output"].startswith("Error: wait had no result within 0.05 s")


# -- places -----------------------------------------------------------------------------------------------------------


class Crowd:
    """Knows how many were at work at once; they go on when as many are there as may be."""

    def __init__(self, full: int) -> None:
        self.full = full
        self.at_work = 0
        self.most = 0
        self.changed = threading.Condition()

    def enter(self) -> None:
        with self.changed:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            self.changed.notify_all()

    def leave(self) -> None:
        with self.changed:
            self.at_work -= 1

    def block(self) -> str:
        self.enter()
        with self.changed:
            assert self.changed.wait_for(lambda: self.most >= self.full, 20)
        self.leave()
        return "done"


class OneRun:
    """As a server's run is seen from here."""

    def __init__(self, places: int) -> None:
        self.tool_places = asyncio.Semaphore(places)


@pytest.mark.parametrize("way", ["thread", "sync"])
async def test_no_more_tools_work_at_once_than_there_are_places(way: str) -> None:
    crowd = Crowd(2)
    graph = graph_of([worker(way, crowd.block)], at_once=2)
    assert len(await results(graph, asks(*["work"] * 6), way=way)) == 6
    assert crowd.most == 2


async def test_the_places_of_a_run_are_those_of_all_its_graphs() -> None:
    crowd = Crowd(2)
    inner = graph_of([worker("thread", crowd.block)])
    graph = StateGraph(MessagesState)
    for name in ("one", "two", "three"):
        graph.add_node(name, inner)
        graph.add_edge(START, name)
    config: RunnableConfig = {"configurable": {CONTROL: OneRun(2)}}
    await graph.compile().ainvoke({"messages": [asks("work", "work")]}, config)
    assert crowd.most == 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_tool_that_uses_tools_does_not_wait_for_the_place_it_has_itself(way: str) -> None:
    inner = graph_of([well(way)], at_once=1)
    given: Any = {"messages": [asks("well", "well")]}

    @tool
    def work() -> str:
        """Work."""
        return str(len(inner.invoke(given)["messages"]))

    @tool("work")
    async def awork() -> str:
        """Work."""
        return str(len((await inner.ainvoke(given))["messages"]))

    graph = graph_of([awork if way == "loop" else work], at_once=1)
    config: RunnableConfig = {"configurable": {CONTROL: OneRun(1)}}
    asked: Any = {"messages": [asks("work", "work")]}
    async with asyncio.timeout(20):
        state = await (asyncio.to_thread(graph.invoke, asked) if way == "sync" else graph.ainvoke(asked, config))
    assert [one.content for one in state["messages"][1:]] == ["3", "3"]


async def test_a_call_that_was_given_up_gives_its_place_back() -> None:
    slow = Slow()
    graph = graph_of([slow.tool, well()], timeout_s=0.05, at_once=1)
    got = await results(graph, asks("wait", "wait", "well"))
    assert [one.status for one in got] == ["error", "error", "success"]


# -- outputs ----------------------------------------------------------------------------------------------------------


async def test_the_model_is_given_the_beginning_of_a_large_output_and_is_told_so() -> None:
    graph = graph_of([worker("loop", lambda: "x" * 1_000_000)], output_chars=1000)
    (got,) = await results(graph, asks("work"))
    text = str(got.content)
    assert text.startswith("x" * 1000 + "\n\n[Cut: these are the first 1,000 of 1,000,000 characters.")
    assert len(text) < 1200


def test_an_output_that_fits_is_left_as_it_is() -> None:
    message = ToolMessage("x" * 10, tool_call_id="c")
    assert cut(message, 10) is message


def test_of_content_blocks_the_text_is_cut_and_what_is_no_text_is_kept() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    blocks: list[Any] = [{"type": "text", "text": "a" * 8}, image, {"type": "text", "text": "b" * 8}, "ccc"]
    kept = list(cut(ToolMessage(blocks, tool_call_id="c"), 10).content)
    note = kept.pop()
    assert kept == [{"type": "text", "text": "a" * 8}, image, {"type": "text", "text": "bb"}]
    assert isinstance(note, dict)
    assert note["text"].startswith("[Cut: these are the first 10 of 19 characters.")


def test_plain_strings_stay_plain_strings() -> None:
    kept = list(cut(ToolMessage(["a" * 8, "b" * 8], tool_call_id="c"), 10).content)
    note = kept.pop()
    assert kept == ["a" * 8, "bb"]
    assert isinstance(note, str)


async def test_artifacts_and_what_callbacks_are_told_are_whole() -> None:
    @tool(response_format="content_and_artifact")
    async def work() -> tuple[str, list[int]]:
        """Work."""
        return "x" * 500, list(range(500))

    (got,) = await results(graph_of([work], output_chars=100), asks("work"))
    assert len(got.artifact) == 500
    given: Any = {"messages": [asks("work")]}
    told_of = [event async for event in graph_of([work], output_chars=100).astream_events(given, version="v2")]
    assert [one["data"]["output"].content for one in told_of if one["event"] == "on_tool_end"] == ["x" * 500]


async def test_the_results_in_a_command_are_cut_too() -> None:
    @tool
    async def work(call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Work."""
        return Command(update={"messages": [ToolMessage("x" * 500, tool_call_id=call_id)]})

    (got,) = await results(graph_of([work], output_chars=100), asks("work"))
    assert "[Cut:" in str(got.content)


# -- what a reader is told --------------------------------------------------------------------------------------------


def tells(way: str) -> BaseTool:
    """A tool that tells of its progress."""

    async def awork() -> str:
        """Work."""
        for done in (1, 2):
            await adispatch_custom_event("progress", {"done": done})
        return "done"

    def work() -> str:
        """Work."""
        for done in (1, 2):
            dispatch_custom_event("progress", {"done": done})
        return "done"

    return tool("work")(awork if way == "loop" else work)


@pytest.mark.parametrize("deep", [False, True], ids=["root", "subgraph"])
@pytest.mark.parametrize("way", ["loop", "thread"])
async def test_progress_arrives_under_its_call(way: str, deep: bool) -> None:
    graph = graph_of([tells(way)])
    if deep:
        outer = StateGraph(MessagesState)
        outer.add_node("inner", graph)
        outer.add_edge(START, "inner")
        graph = outer.compile()
    asked = {"messages": [{"role": "user", "content": "go"}, asks("work", "work").model_dump(exclude={"id"})]}
    async with runner_of(graph) as runner:
        run = await runner.start(runner.agents["one"], RunRequest(input=asked), user="u", streams=False)
        events = await told(run)
    progress = [event for event in events if isinstance(event, ToolProgress)]
    assert sorted((event.call_id, event.data["done"]) for event in progress) == [
        ("c0", 1), ("c0", 2), ("c1", 1), ("c1", 2),
    ]  # fmt: skip
    assert {event.namespace[0].partition(":")[0] if event.namespace else "" for event in progress} == {
        "inner" if deep else ""
    }


async def test_the_log_has_the_whole_output_of_a_tool() -> None:
    asked = {"messages": [{"role": "user", "content": "go"}, asks("work").model_dump(exclude={"id"})]}
    async with runner_of(graph_of([worker("loop", lambda: "x" * 5000)], output_chars=100)) as runner:
        run = await runner.start(runner.agents["one"], RunRequest(input=asked), user="u", streams=False)
        events = await told(run)
    (finished,) = [event for event in events if isinstance(event, ToolFinished)]
    assert finished.output == "x" * 5000


@pytest.mark.parametrize("way", ["loop", "thread"])
async def test_a_limit_that_strikes_finishes_the_call_for_the_reader_while_others_go_on(way: str, until: Until) -> None:
    halt, let_go, late = Halt(), threading.Event(), []

    async def awork() -> str:
        """Work."""
        with contextlib.suppress(asyncio.CancelledError):
            await halt.open.wait()
        await adispatch_custom_event("progress", "too late")
        late.append(True)
        return "done"

    def work() -> str:
        """Work."""
        assert let_go.wait(20)
        dispatch_custom_event("progress", "too late")
        late.append(True)
        return "done"

    @tool
    async def other() -> str:
        """Work."""
        await halt()
        return "done"

    slow = tool("work")(awork if way == "loop" else work)
    slow.metadata = {"timeout_s": 0.05}
    asked = {"messages": [{"role": "user", "content": "go"}, asks("work", "other").model_dump(exclude={"id"})]}
    async with runner_of(graph_of([slow, other])) as runner:
        run = await runner.start(runner.agents["one"], RunRequest(input=asked), user="u", streams=False)
        reader = run.subscribe(0)
        events: list[Any] = []
        while not any(isinstance(event, ToolFinished) for event in events):
            events += [entry.event for entry in await reader.read()]
        let_go.set()
        await until(lambda: bool(late))
        halt.open.set()
        events = await told(run)
    finished = [event for event in events if isinstance(event, ToolFinished)]
    assert [(event.call_id, event.status) for event in finished] == [("c0", "error"), ("c1", "ok")]
    assert str(finished[0].output).startswith("Error: work had no result within 0.05 s")
    assert not [event for event in events if isinstance(event, ToolProgress)]


async def test_a_result_that_a_tool_wrote_under_another_id_is_its_calls_all_the_same() -> None:
    @tool
    async def forges() -> ToolMessage:
        """Answer for somebody else."""
        return ToolMessage("mine", tool_call_id="somebody-elses")

    (result,) = await results(graph_of([forges]), asks("forges"))
    assert (result.tool_call_id, result.content) == ("c0", "mine")
