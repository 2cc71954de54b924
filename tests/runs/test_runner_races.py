"""What may happen to a run while something else is being done: each moment is held open by a gate, none is waited for.

Whatever comes between, a run has one end, its thread is fit before that is told, and nobody waits for ever.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pytest
import runners
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt
from runners import Halt, told
from scripted import Scripted, piece, say, words

from app.errors import Conflict, InvalidInput, Unavailable, Unsupported
from app.events.event import RunFinished, Token
from app.events.request import RunRequest
from app.runs.ledger import MEMORY, Ledger
from app.runs.run import Run
from app.runs.runner import Brought, Runner, Timing
from app.runs.scope import Ending
from chains.answering import serve

State = dict[str, Any]


async def breaks() -> None:
    raise OSError("the disk is gone")


class Disturbed(Ledger):
    """Its methods do first what ``before`` says: wait, or fail."""

    def __init__(self, path: Path | None = None, **before: Callable[[], Awaitable[object]]) -> None:
        super().__init__(MEMORY if path is None else str(path))
        self.before = before

    async def _first(self, method: str) -> None:
        if method in self.before:
            await self.before[method]()

    async def claim(self, *args: Any) -> Any:
        await self._first("claim")
        return await super().claim(*args)

    async def touch(self, *args: Any) -> None:
        await self._first("touch")
        await super().touch(*args)

    async def hold(self, *args: Any) -> None:
        await self._first("hold")
        await super().hold(*args)

    async def release(self, *args: Any) -> None:
        await self._first("release")
        await super().release(*args)


runner_of = partial(runners.runner_of, ours=True)


async def start(runner: Runner, value: Any = "hi", *, key: str | None = None, **request: Any) -> Run:
    body = RunRequest(input=None if "resume" in request else value, **request)
    return await runner.start(runner.agent("one"), body, user="ann", streams=False, idempotency_key=key)


async def ended(run: Run) -> Ending:
    events = await told(run)
    assert [event.type for event in events].count("run.finished") == 1
    async with asyncio.timeout(20):
        await run.done.wait()
    return Ending(run.status, run.reason)  # type: ignore[arg-type]


async def text_of(run: Run) -> str:
    return "".join(event.text for event in await told(run) if isinstance(event, Token))


async def conversation(runner: Runner, thread_id: str = "t") -> list[tuple[str, str]]:
    messages = (await runner.thread(thread_id, "ann"))["messages"]
    return [(message["type"], message["content"]) for message in messages]


def asks(model: Any) -> Callable[[Any], Awaitable[State]]:
    async def ask(state: State) -> State:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return ask


def graph_of(*nodes: tuple[str, Any], state: Any = MessagesState) -> Any:
    """The nodes, one after the other."""
    built: Any = StateGraph(state)
    for (name, node), before in zip(nodes, (START, *(name for name, _ in nodes)), strict=False):
        built.add_node(name, node)
        built.add_edge(before, name)
    return built.compile()


def talker(gate: Halt) -> Any:
    """A graph that says "It ra", waits, and says the rest."""
    turns = [[*words("It ", "ra"), gate, *words("ins")], words("It ra", "ins")]
    return graph_of(("talk", asks(serve(Scripted(turns=turns)))))


@asynccontextmanager
async def paused(ledger: Ledger, **request: Any) -> AsyncIterator[tuple[Runner, Run]]:
    gate = Halt()
    async with runner_of(talker(gate), ledger) as runner:
        run = await start(runner, **request)
        await gate.reached.wait()
        await runner.pause(run)
        assert run.status == "paused"
        yield runner, run


# A server that stops


async def test_a_paused_run_that_is_being_cancelled_is_not_let_go_of() -> None:
    release = Halt()
    async with paused(Disturbed(release=release), thread_id="t") as (runner, run):
        run.scope.end(Ending("cancelled", "requested"))
        await release.reached.wait()
        runner.stop()
        release.open.set()
        assert await ended(run) == ("cancelled", "requested")


async def test_a_paused_run_that_is_being_continued_is_ended() -> None:
    release = Halt()
    async with paused(Disturbed(release=release)) as (runner, run):
        going_on = asyncio.create_task(runner.resume(run))
        await release.reached.wait()
        runner.stop()
        release.open.set()
        assert await ended(run) == ("cancelled", "shutdown")
        await going_on


@pytest.mark.parametrize("thread", [None, "t"])
async def test_a_run_that_is_being_paused_is_kept_for_the_next_server(tmp_path: Path, thread: str | None) -> None:
    hold, gate = Halt(), Halt()
    async with runner_of(talker(gate), Disturbed(tmp_path / "m.db", hold=hold)) as runner:
        run = await start(runner, thread_id=thread)
        await gate.reached.wait()
        pausing = asyncio.create_task(runner.pause(run))
        await hold.reached.wait()
        runner.stop()
        hold.open.set()
        assert (await told(run))[-1].type == "run.paused"
        await pausing
    gate.open.set()
    async with runner_of(talker(gate), Ledger(str(tmp_path / "m.db"))) as runner:
        other = await runner.get(run.run_id, "ann")
        assert isinstance(other, Run)
        await runner.resume(other)
        assert await ended(other) == ("completed", None)
        assert await text_of(other) == "It rains"


async def test_a_paused_run_that_could_not_be_kept_has_its_end_with_the_server() -> None:
    async with paused(Disturbed(hold=breaks)) as (runner, run):
        runner.stop()
        assert await ended(run) == ("cancelled", "shutdown")


async def test_a_drain_does_not_wait_for_what_pauses() -> None:
    gate = Halt()
    async with runner_of(talker(gate)) as runner:
        run = await start(runner)
        await gate.reached.wait()
        draining = asyncio.create_task(runner.drain(600))
        await runner.draining.wait()
        await runner.pause(run)
        async with asyncio.timeout(20):
            await draining
        assert run.status == "paused"


async def test_a_start_that_looked_at_its_thread_while_the_server_drained_is_refused() -> None:
    claim = Halt()
    async with runner_of(graph_of(("n", Halt())), Disturbed(claim=claim)) as runner:
        starting = asyncio.create_task(start(runner, thread_id="t"))
        await claim.reached.wait()
        runner.stop()
        claim.open.set()
        with pytest.raises(Unavailable):
            await starting


# A disk that fails


@pytest.mark.parametrize("thread", [None, "t"])
@pytest.mark.parametrize("failing", ["hold", "release", "touch"])
async def test_a_run_goes_on_and_ends_whatever_the_disk_does(thread: str | None, failing: str) -> None:
    async with paused(Disturbed(None, **{failing: breaks}), thread_id=thread) as (runner, run):
        await runner.resume(run)
        assert await ended(run) == ("completed", None)
        assert await text_of(run) == "It rains"


async def test_a_thread_is_repaired_though_nothing_else_can_be_written() -> None:
    ledger = Disturbed(release=breaks, touch=breaks)
    async with paused(ledger, thread_id="t") as (runner, run):
        await runner.cancel(run)
        assert await ended(run) == ("cancelled", "requested")
        assert await conversation(runner) == [("human", "hi"), ("ai", "It ra")]
        assert (await runner.thread("t", "ann"))["run_id"] is None


async def test_a_paused_run_that_cannot_be_read_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "m.db"))
    await ledger.open()
    await ledger.hold("x", b"of another version")
    await ledger.close()
    async with runner_of(graph_of(("n", lambda _: {})), Ledger(str(tmp_path / "m.db"))) as runner:
        assert await ended(await start(runner)) == ("completed", None)


async def test_whatever_a_client_put_into_its_metadata_rows_are_written() -> None:
    async with runner_of(graph_of(("n", lambda _: {}))) as runner:
        for value in (10**30, "\ud800", {"a": [float("nan")]}):
            await ended(await start(runner, metadata={"value": value}))
        assert len(await runner.rows("ann")) == 3
        assert {row["status"] for row in await runner.rows("ann")} == {"completed"}


# Pauses


async def test_a_cancel_while_a_pause_is_being_written_ends_the_run_once() -> None:
    hold, gate = Halt(), Halt()
    async with runner_of(talker(gate), Disturbed(hold=hold)) as runner:
        run = await start(runner, thread_id="t")
        await gate.reached.wait()
        pausing = asyncio.create_task(runner.pause(run))
        await hold.reached.wait()
        run.scope.end(Ending("cancelled", "requested"))
        hold.open.set()
        assert await ended(run) == ("cancelled", "requested")
        await pausing
        assert await conversation(runner) == [("human", "hi"), ("ai", "It ra")]
        assert run.row()["status"] == "cancelled"


async def test_a_pause_that_comes_while_a_run_is_being_continued_is_heard() -> None:
    release = Halt()
    ledger = Disturbed(release=release)
    async with paused(ledger) as (runner, run):
        going_on = asyncio.create_task(runner.resume(run))
        await release.reached.wait()
        pausing = asyncio.create_task(runner.pause(run))
        await asyncio.sleep(0)
        release.open.set()
        await asyncio.gather(going_on, pausing)
        assert run.status == "paused"
        del ledger.before["release"]
        await runner.resume(run)
        assert await ended(run) == ("completed", None)
        assert await text_of(run) == "It rains"


@pytest.mark.parametrize("thread", [None, "t"])
async def test_a_node_that_calls_two_models_is_not_broken_off_in_the_second(thread: str | None) -> None:
    gate = Halt()
    first, second = (
        serve(Scripted(turns=[words("one ")])),
        serve(Scripted(turns=[[*words("two "), gate, say("three")]])),
    )

    async def both(state: State) -> State:
        return {"messages": [await first.ainvoke(state["messages"]), await second.ainvoke(state["messages"])]}

    async with runner_of(graph_of(("both", both))) as runner:
        run = await start(runner, thread_id=thread)
        await gate.reached.wait()
        run.want_pause("requested")
        gate.open.set()
        assert await ended(run) == ("completed", None)
        assert await text_of(run) == "one two three"


async def test_a_call_that_ends_in_the_very_moment_of_the_pause_leaves_the_thread_in_order() -> None:
    """Else its node would be over, and the next answer would go on under its message's id."""
    runs: list[Run] = []

    async def pause() -> None:  # the stream's end follows at once
        runs[0].want_pause("requested")
        assert runs[0].scope.pausing == "requested"

    @tool
    async def work() -> str:
        """Work."""
        return "done"

    turns = [[say("Let me see", piece("work", "{}", "c1", 0))], [*words("Do", "ne"), pause], [*words("Do", "ne")]]
    async with runner_of(create_agent(serve(Scripted(turns=turns)), [work])) as runner:
        runs.append(await start(runner, thread_id="t"))
        async with asyncio.timeout(20):
            await runs[0].paused.wait()
        assert runs[0].status == "paused"
        await runner.resume(runs[0])
        assert await ended(runs[0]) == ("completed", None)
        assert await conversation(runner) == [("human", "hi"), ("ai", "Let me see"), ("tool", "done"), ("ai", "Done")]
        assert await text_of(runs[0]) == "Let me seeDone"


async def test_an_answer_goes_on_beside_a_branch_that_is_done() -> None:
    gate, beside = Halt(), asyncio.Event()
    slow = serve(Scripted(turns=[[*words("slow "), gate], words("slow ", "but sure")]))
    quick = serve(Scripted(turns=[words("quick")]))

    async def fast(state: State) -> State:
        return {"messages": [await quick.ainvoke(state["messages"])]}

    async def last(state: State) -> State:
        beside.set()
        return {}

    built: Any = StateGraph(MessagesState)
    for name, node in (("slow", asks(slow)), ("fast", fast), ("last", last)):
        built.add_node(name, node)
    for name in ("slow", "fast"):
        built.add_edge(START, name)
        built.add_edge(name, "last")
    async with runner_of(built.compile()) as runner:
        run = await start(runner)
        await gate.reached.wait()
        await runner.pause(run)
        assert run.status == "paused"
        await runner.resume(run)
        assert await ended(run) == ("completed", None)
        assert beside.is_set()
        assert sorted(await text_of(run)) == sorted("slow but surequick")


async def test_what_langserve_has_started_cannot_be_paused() -> None:
    gate = Halt()
    async with runner_of(talker(gate)) as runner:
        run = await runner.start(
            runner.agent("one"), RunRequest(input="hi"), user="ann", streams=True, brought=Brought({"configurable": {}})
        )
        with pytest.raises(Unsupported):
            await runner.pause(run)


# Threads


async def test_of_two_starts_in_the_same_moment_one_has_the_thread() -> None:
    gate = Halt()
    async with runner_of(graph_of(("n", gate))) as runner:
        both = await asyncio.gather(*(start(runner, thread_id="t") for _ in range(2)), return_exceptions=True)
        assert {type(one) for one in both} == {Run, Conflict}
        gate.open.set()
        assert await ended(next(one for one in both if isinstance(one, Run))) == ("completed", None)


async def test_the_same_start_twice_in_the_same_moment_is_one_run() -> None:
    async with runner_of(graph_of(("n", lambda _: {}))) as runner:
        one, two = await asyncio.gather(*(start(runner, thread_id="t", key="k") for _ in range(2)))
        assert one is two
        await ended(one)


async def test_of_those_that_interrupt_only_the_last_is_still_wanted() -> None:
    gate = Halt()
    async with runner_of(graph_of(("n", gate))) as runner:
        first = await start(runner, thread_id="t")
        await gate.reached.wait()
        waits = await start(runner, thread_id="t", multitask_strategy="enqueue")
        older, newer = [await start(runner, thread_id="t", multitask_strategy="interrupt") for _ in range(2)]
        gate.open.set()
        superseded = ("cancelled", "superseded")
        assert [await ended(run) for run in (first, older)] == [superseded, superseded]
        assert [await ended(run) for run in (newer, waits)] == [("completed", None)] * 2


CALL = {"name": "work", "args": {}, "id": "c1", "type": "tool_call"}


def worker(work: Callable[..., Any], answers: list[Sequence[AnyMessage]], **compiled: Any) -> Any:
    """A graph that calls a tool once, and notes what it is given."""

    async def think(state: State) -> State:
        answers.append(state["messages"])
        return {"messages": [AIMessage("", tool_calls=[CALL]) if len(answers) == 1 else AIMessage("fine")]}

    async def tools(state: State) -> State:
        await work()
        return {"messages": [ToolMessage("ok", tool_call_id="c1")]}

    built: Any = StateGraph(MessagesState)
    built.add_node("think", think)
    built.add_node("tools", tools)
    built.add_edge(START, "think")
    built.add_conditional_edges("think", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    built.add_edge("tools", "think")
    return built.compile(**compiled)


ORDER = ["human", "ai", "tool", "human"]
"""What a provider takes on the turn after one that ended in its tools."""


async def test_a_cancel_in_the_repair_of_a_thread_leaves_it_to_the_next_turn(tmp_path: Path) -> None:
    """The server was killed in mid-tool, and the run that finds it so is cancelled while it repairs."""
    gate, seen = Halt(), list[Sequence[AnyMessage]]()
    agent = worker(gate, seen)
    async with runner_of(agent) as runner:
        graph = runner.agent("one").graph(runner._ledger.saver)
        config: Any = {"configurable": {"thread_id": "t"}}
        killed = asyncio.create_task(graph.ainvoke({"messages": [("user", "hi")]}, config))
        await gate.reached.wait()
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)
        for steps in range(12):  # each step of the event loop is a place to be cancelled at
            run = await start(runner, "again", thread_id="t")
            for _ in range(steps):
                await asyncio.sleep(0)
            run.scope.end(Ending("cancelled", "requested"))
            await ended(run)
        gate.open.set()
        assert await ended(await start(runner, "and now?", thread_id="t")) == ("completed", None)
        assert [message.type for message in seen[-1]][:3] == ORDER[:3]


async def test_a_node_that_ends_in_the_very_moment_of_the_cancel_leaves_the_thread_in_order() -> None:
    runs: list[Run] = []
    seen: list[list[str]] = []

    async def think(state: State) -> State:
        seen.append([message.type for message in state["messages"]])
        if len(seen) > 1:
            return {"messages": [AIMessage("fine")]}
        runs[0].scope.end(Ending("cancelled", "requested"))
        return {"messages": [AIMessage("", tool_calls=[CALL])]}

    async with runner_of(graph_of(("think", think))) as runner:
        runs.append(await start(runner, thread_id="t"))
        assert await ended(runs[0]) == ("cancelled", "requested")
        assert await ended(await start(runner, thread_id="t")) == ("completed", None)
        assert seen[1] in (ORDER, ["human", "human"])


async def test_a_subgraph_with_a_memory_of_its_own_is_repaired_too() -> None:
    gate, seen = Halt(), list[Sequence[AnyMessage]]()
    async with runner_of(graph_of(("sub", worker(gate, seen, checkpointer=True)))) as runner:
        run = await start(runner, thread_id="t")
        await gate.reached.wait()
        await runner.cancel(run)
        assert await ended(await start(runner, thread_id="t")) == ("completed", None)
        assert [message.type for message in seen[1]] == ORDER


async def test_a_state_without_a_reducer_keeps_what_it_had() -> None:
    class Plain(TypedDict):
        messages: list[AnyMessage]

    gate = Halt()
    model = Scripted(turns=[[*words("It ", "ra"), gate]])
    async with runner_of(graph_of(("talk", asks(model)), state=Plain)) as runner:
        run = await start(runner, thread_id="t")
        await gate.reached.wait()
        await runner.cancel(run)
        assert await conversation(runner) == [("human", "hi"), ("ai", "It ra")]


async def test_an_answer_that_was_cut_is_kept_though_its_provider_repeats_its_ids() -> None:
    gate = Halt()
    model = Scripted(
        turns=[[AIMessageChunk(content="first", id="x")], [AIMessageChunk(content="second", id="x"), gate]]
    )
    async with runner_of(graph_of(("talk", asks(model)))) as runner:
        await ended(await start(runner, thread_id="t"))
        run = await start(runner, "more", thread_id="t")
        await gate.reached.wait()
        await runner.cancel(run)
        assert await conversation(runner) == [("human", "hi"), ("ai", "first"), ("human", "more"), ("ai", "second")]


async def test_of_several_questions_each_is_answered_by_its_id() -> None:
    built: Any = StateGraph(MessagesState)
    for name in ("a", "b"):
        built.add_node(name, lambda _, name=name: {"messages": [AIMessage(f"{name}: {interrupt(name)}")]})
        built.add_edge(START, name)
    async with runner_of(built.compile()) as runner:
        assert (await ended(await start(runner, thread_id="t"))).status == "interrupted"
        asked = {one["value"]: one["id"] for one in (await runner.thread("t", "ann"))["interrupts"]}
        for resume in ("yes", {"a": "yes"}, {asked["a"]: "yes", "other": 1}):
            with pytest.raises(InvalidInput, match="several"):
                await start(runner, thread_id="t", resume=resume)
        for name in ("a", "b"):
            run = await start(runner, thread_id="t", resume={asked[name]: "yes"})
            assert (await ended(run)).status == ("interrupted" if name == "a" else "completed")
        assert (await conversation(runner))[1:] == [("ai", "a: yes"), ("ai", "b: yes")]


async def test_no_deadline_runs_on_in_a_pause() -> None:
    gate = Halt()
    async with runner_of(talker(gate), timing=Timing(run_timeout_s=3600)) as runner:
        run = await start(runner, thread_id="t")
        await gate.reached.wait()
        await runner.pause(run)
        loop: Any = asyncio.get_running_loop()
        armed = [timer for timer in loop._scheduled if not timer.cancelled() and timer.when() > loop.time() + 1800]
        assert armed == []


async def test_a_graph_that_fails_while_it_is_ended_is_no_complaint_of_the_loop() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    halt = Halt()

    async def node(_: State) -> State:
        try:
            return await halt()
        except asyncio.CancelledError:
            raise ValueError("could not clean up") from None

    async with runners.runner_of(graph_of(("node", node))) as runner:
        run = await runner.start(runner.agent("one"), RunRequest(input="hi"), user="ann", streams=False)
        await halt.reached.wait()
        await runner.cancel(run)
        assert isinstance((await told(run))[-1], RunFinished)
    gc.collect()
    assert complaints == []
