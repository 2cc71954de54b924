"""Model calls at the gate: they wait their turn, whoever makes them, and give their place back however they end."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from runners import Halt, runner_of, told
from scripted import Gate as Held
from scripted import Scripted, say, words

from app.errors import UpstreamBusy
from app.events.event import Error, RunFinished, RunQueued, Token
from app.events.request import RunRequest
from app.limits.gate import Gate
from app.runs.executor import installed
from app.runs.passage import Passage
from app.runs.run import Run
from app.runs.runner import Runner, Timing
from app.runs.scope import Scope
from chains.answering import serve

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def graph_of(node: Any, *more: Any) -> Runnable[Any, Any]:
    graph = StateGraph(MessagesState)
    for number, one in enumerate((node, *more)):
        graph.add_node(f"n{number}", one)
        graph.add_edge(START, f"n{number}")
    return graph.compile()


def asks(model: Any) -> Any:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return node


def asks_in_thread(model: Any) -> Any:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return node


async def start(runner: Runner, user: str = "ann") -> Run:
    return await runner.start(runner.agent("one"), RunRequest(input="hello"), user=user, streams=False)


def finished(events: list[Any]) -> RunFinished:
    assert isinstance(events[-1], RunFinished)
    return events[-1]


def positions(events: list[Any]) -> list[int]:
    return [event.position for event in events if isinstance(event, RunQueued)]


def at_base(gate: Gate) -> bool:
    return (gate.under_way, gate.waiting) == (0, 0)


async def test_a_call_waits_its_turn_and_its_reader_is_told_of_its_place(until: Until) -> None:
    held, gate = Held(), Gate(1)
    model = Scripted(turns=[[say("one"), held], words("two"), words("three")])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        first = await start(runner)
        await until(lambda: first.ttft_ms is not None)
        second, third = await start(runner), await start(runner)
        await until(lambda: gate.waiting == 2)
        held.open()
        stories = [await told(run) for run in (first, second, third)]
    assert [finished(story).status for story in stories] == ["completed"] * 3
    assert positions(stories[0]) == []
    assert positions(stories[1])[0] == 1
    assert positions(stories[2])[0] == 2
    assert finished(stories[1]).usage.queue_ms > 0
    assert at_base(gate)


async def test_a_synchronous_node_waits_in_its_thread(until: Until) -> None:
    gate, held = Gate(1), threading.Event()
    model = Scripted(turns=[[say("one"), held], words("two")])
    async with runner_of(graph_of(asks_in_thread(model)), gate=gate) as runner:
        first = await start(runner)
        await until(lambda: first.ttft_ms is not None)
        second = await start(runner)
        await until(lambda: gate.waiting == 1)
        held.set()
        stories = [await told(run) for run in (first, second)]
    assert [finished(story).status for story in stories] == ["completed", "completed"]
    assert positions(stories[1]) == [1]
    assert at_base(gate)


async def test_a_user_with_one_call_is_next_though_another_has_many_waiting(until: Until) -> None:
    held, gate = Held(), Gate(1)
    model = Scripted(turns=[[say("one"), held], words("x")])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        flood = [await start(runner, "flood") for _ in range(6)]
        await until(lambda: gate.waiting == 5)
        single = await start(runner, "single")
        await until(lambda: gate.waiting == 6)
        ended: list[str] = []
        watched = [asyncio.create_task(_note(run, ended)) for run in (*flood, single)]
        held.open()
        await asyncio.gather(*watched)
    assert ended.index("single") <= 2  # the one under way, at most one of the flood, then this


async def _note(run: Run, ended: list[str]) -> None:
    await run.done.wait()
    ended.append(run.user)


async def test_a_run_that_is_cancelled_in_line_leaves_it(until: Until) -> None:
    held, gate = Held(), Gate(1)
    model = Scripted(turns=[[say("one"), held], words("two")])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        first = await start(runner)
        await until(lambda: first.ttft_ms is not None)
        second = await start(runner)
        await until(lambda: gate.waiting == 1)
        await runner.cancel(second)
        assert finished(await told(second)).status == "cancelled"
        assert (gate.under_way, gate.waiting) == (1, 0)
        held.open()
        await told(first)
    assert at_base(gate)


async def test_a_thread_that_waits_in_line_is_woken_by_its_runs_cancel(until: Until) -> None:
    gate, held = Gate(1), threading.Event()
    model = Scripted(turns=[[say("one"), held], words("two")])
    async with runner_of(graph_of(asks_in_thread(model)), gate=gate) as runner:
        first = await start(runner)
        await until(lambda: first.ttft_ms is not None)
        second = await start(runner)
        await until(lambda: gate.waiting == 1)
        await runner.cancel(second)
        assert finished(await told(second)).status == "cancelled"
        await until(lambda: second.threads == 0)
        assert (gate.under_way, gate.waiting) == (1, 0)
        held.set()
        await told(first)
        await until(lambda: at_base(gate))


@pytest.mark.parametrize("kind", [asks, asks_in_thread])
async def test_a_call_that_waits_too_long_fails_its_run_as_upstream_busy(kind: Any, until: Until) -> None:
    gate = Gate(1)
    blocker = gate.enter("bob")
    model = Scripted(turns=[words("one")])
    async with runner_of(graph_of(kind(model)), gate=gate, timing=Timing(queue_timeout_s=0.05)) as runner:
        story = await told(await start(runner))
        error = next(event for event in story if isinstance(event, Error))
        assert (error.code, error.retryable, error.retry_after_ms) == ("upstream_busy", True, 1000)
        assert finished(story).reason == "upstream_busy"
        await until(lambda: gate.waiting == 0)
        gate.leave(blocker)
        assert finished(await told(await start(runner))).status == "completed"
    assert at_base(gate)


async def test_a_start_is_refused_when_the_line_is_full() -> None:
    gate = Gate(1, max_waiting=1)
    gate.enter("bob"), gate.enter("bob")
    async with runner_of(graph_of(asks(Scripted(turns=[words("one")]))), gate=gate) as runner:
        with pytest.raises(UpstreamBusy):
            await start(runner, "bob")
        assert runner.live == 0


async def test_whoever_has_most_in_a_full_line_gives_way(until: Until) -> None:
    held, gate = Held(), Gate(1, max_waiting=2)
    model = Scripted(turns=[[say("one"), held], words("x")])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        first = await start(runner, "flood")
        await until(lambda: first.ttft_ms is not None)
        crowd = [await start(runner, "flood"), await start(runner, "flood")]
        await until(lambda: gate.waiting == 2)
        single = await start(runner, "single")
        out = finished(await told(crowd[1]))
        assert (out.status, out.reason) == ("failed", "upstream_busy")
        held.open()
        assert finished(await told(single)).status == "completed"
        assert finished(await told(crowd[0])).status == "completed"
    assert at_base(gate)


async def test_parallel_branches_of_one_run_take_turns() -> None:
    gate = Gate(1)
    model = Scripted(turns=[words("a", "b")])
    async with runner_of(graph_of(asks(model), asks(model), asks_in_thread(model)), gate=gate) as runner:
        story = await told(await start(runner))
    assert finished(story).status == "completed"
    assert at_base(gate)


async def test_a_call_in_another_call_needs_no_place_of_its_own() -> None:
    """A model whose stream asks another model: to wait for a second place with one in hand would be for ever."""
    gate = Gate(1)
    inner = Scripted(turns=[words("inner")])

    async def consult() -> None:
        await inner.ainvoke("what now?")

    async with runner_of(graph_of(asks(Scripted(turns=[[say("a"), consult, say("b")]]))), gate=gate) as runner:
        story = await told(await start(runner))
    assert finished(story).status == "completed"
    assert at_base(gate)


async def test_a_batch_of_calls_in_a_node_takes_turns_too() -> None:
    gate = Gate(1)
    model = Scripted(turns=[words("a")])

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": (await model.abatch([[HumanMessage(str(n))] for n in range(5)]))[:1]}

    async with runner_of(graph_of(node), gate=gate) as runner:
        assert finished(await told(await start(runner))).status == "completed"
    assert at_base(gate)


async def test_a_chain_that_reads_its_model_step_by_step_has_its_place_to_the_end(until: Until) -> None:
    """LangChain makes each step of such a stream in a task of its own."""
    gate, held = Gate(1), Held()
    model = Scripted(turns=[[say("one"), held, say("two")], words("three")])
    async with runner_of(RunnableLambda(lambda text: text) | model, gate=gate) as runner:
        run = await start(runner)
        await until(lambda: run.ttft_ms is not None)
        assert gate.under_way == 1
        other = await start(runner)
        await until(lambda: gate.waiting == 1)
        await runner.cancel(run)
        assert finished(await told(other)).status == "completed"
    assert at_base(gate)


async def test_a_call_that_fails_gives_its_place_to_the_one_that_stands_in() -> None:
    gate = Gate(1)
    model = Scripted(turns=[[ConnectionError("gone")]]).with_fallbacks([Scripted(turns=[words("there")])])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        story = await told(await start(runner))
    assert "".join(event.text for event in story if isinstance(event, Token)) == "there"
    assert at_base(gate)


async def test_a_cancel_in_mid_answer_frees_the_place_at_once(until: Until) -> None:
    gate = Gate(1)
    model = Scripted(turns=[[say("one"), Held()], words("two")])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        first = await start(runner)
        await until(lambda: first.ttft_ms is not None)
        await runner.cancel(first)
        assert at_base(gate)
        assert finished(await told(await start(runner))).status == "completed"


async def test_a_thread_that_was_left_behind_keeps_its_place_until_it_ends(until: Until) -> None:
    gate, held = Gate(2), threading.Event()
    model = Scripted(turns=[[say("one"), held, say("two")]])
    with installed():
        async with runner_of(graph_of(asks_in_thread(model)), gate=gate) as runner:
            run = await start(runner)
            await until(lambda: run.ttft_ms is not None)
            await runner.cancel(run)
            assert (run.finished, run.threads) == (True, 1)
            assert gate.under_way == 1
            held.set()
            await until(lambda: at_base(gate))


async def test_a_call_on_the_loop_that_nobody_awaits_is_let_through_and_counts() -> None:
    gate = Gate(1)
    seen: list[int] = []
    model = Scripted(turns=[words("a")])

    async def node(state: MessagesState) -> dict[str, Any]:
        answer = model.invoke(state["messages"])  # synchronous, in an async def
        seen.append(gate.under_way)
        return {"messages": [answer]}

    blocker = gate.enter("bob")
    async with runner_of(graph_of(node), gate=gate) as runner:
        assert finished(await told(await start(runner))).status == "completed"
    gate.leave(blocker)
    assert seen == [1]
    assert at_base(gate)


async def test_a_runnable_without_a_model_needs_no_place() -> None:
    gate = Gate(1)
    blocker = gate.enter("bob")
    async with runner_of(RunnableLambda(lambda _: "plain"), gate=gate) as runner:
        assert finished(await told(await start(runner))).status == "completed"
    gate.leave(blocker)


def too_many(wait: str = "2") -> openai.RateLimitError:
    request = httpx.Request("POST", "http://provider/v1")
    return openai.RateLimitError(
        "slow down", response=httpx.Response(429, headers={"retry-after": wait}, request=request), body=None
    )


async def test_a_429_of_the_provider_slows_the_gate_for_everybody() -> None:
    gate = Gate(8)
    async with runner_of(graph_of(asks(Scripted(turns=[[too_many()]]))), gate=gate) as runner:
        story = await told(await start(runner))
    assert finished(story).reason == "provider_rate_limited"
    assert gate.limit == 4


async def test_so_does_one_after_which_a_model_of_ours_tries_again() -> None:
    gate = Gate(8)
    model = serve(Scripted(turns=[[too_many("0")], words("there")]))
    async with runner_of(graph_of(asks(model)), ours=True, gate=gate) as runner:
        story = await told(await start(runner))
    assert finished(story).status == "completed"
    assert gate.limit == 4
    assert at_base(gate)


async def test_an_answer_opens_the_gate_again_though_nobody_hears_it_out(until: Until) -> None:
    gate = Gate(8)
    model = Scripted(turns=[[too_many("0")], [say("one"), Held()]])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        await told(await start(runner))
        assert gate.limit == 4
        for _ in range(5):
            run = await start(runner)
            await until(lambda: run.ttft_ms is not None)  # noqa: B023 - called in this round
            await runner.cancel(run)
    assert gate.limit == 5


async def test_a_paused_run_has_no_place_and_asks_anew(until: Until) -> None:
    gate, held = Gate(1), Held()
    model = serve(Scripted(turns=[[say("one"), held], words("one", " two")]))
    async with runner_of(graph_of(asks(model)), ours=True, gate=gate) as runner:
        run = await start(runner)
        await until(lambda: run.ttft_ms is not None)
        await runner.pause(run)
        assert run.status == "paused"
        assert at_base(gate)
        blocker = gate.enter("bob")
        await runner.resume(run)
        await until(lambda: gate.waiting == 1)
        gate.leave(blocker)
        story = await told(run)
    assert finished(story).status == "completed"
    assert at_base(gate)


async def test_the_first_token_has_its_time_from_the_gate_on(until: Until) -> None:
    """The wait in line is the server's own, and no sign of a provider that is silent."""
    gate, halt = Gate(1), Halt()
    model = Scripted(turns=[[halt, say("one")]])
    blocker = gate.enter("bob")
    timing = Timing(first_token_timeout_s=0.2)
    async with runner_of(graph_of(asks(model)), gate=gate, timing=timing) as runner:
        run = await start(runner)
        await until(lambda: gate.waiting == 1)
        waited_from = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - waited_from > 0.3)
        assert not run.finished
        gate.leave(blocker)
        await halt.reached.wait()
        halt.open.set()
        assert finished(await told(run)).status == "completed"


async def test_tokens_a_minute_are_charged_by_what_calls_come_to() -> None:
    now = [0.0]
    gate = Gate(8, tokens_per_minute=600, clock=lambda: now[0])
    spent = {"input_tokens": 500, "output_tokens": 600, "total_tokens": 1100}
    model = Scripted(turns=[[say("a", usage_metadata=spent)]])
    async with runner_of(graph_of(asks(model)), gate=gate) as runner:
        await told(await start(runner))
        asked = gate.enter("bob")
        assert not asked.granted.done()
        now[0] = 49.0
        gate.answered()
        assert not asked.granted.done()
        now[0] = 51.0
        gate.answered()
        assert asked.granted.done()


async def test_a_call_that_finds_the_line_full_fails_its_run_and_leaves_nothing_unawaited() -> None:
    """LangChain has coroutines for the other callbacks by then; a warning of one that never ran fails a test here."""
    gate = Gate(1, max_waiting_per_user=1)
    blocker = gate.enter("bob")
    model = Scripted(turns=[words("a")])
    async with runner_of(graph_of(asks(model), asks(model)), gate=gate) as runner:
        story = await told(await start(runner))
        assert finished(story).reason == "upstream_busy"
    gate.leave(blocker)
    assert at_base(gate)
    gc.collect()


async def test_a_task_that_outlives_its_run_makes_no_call() -> None:
    gate, model = Gate(1), Scripted(turns=[words("a")])
    late: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def node(state: MessagesState) -> dict[str, Any]:
        async def call() -> None:
            await over.wait()
            await model.ainvoke("are you there?")

        late.append(asyncio.create_task(call()))
        return {"messages": []}

    async with runner_of(graph_of(node), gate=gate) as runner:
        assert finished(await told(await start(runner))).status == "completed"
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await late[0]
    assert at_base(gate)


async def test_a_call_that_is_cancelled_from_within_gives_its_place_back(until: Until) -> None:
    """LangChain gathers such a call's cancel as a result, and stumbles over it."""
    gate, go_on = Gate(1), asyncio.Event()

    async def cancels() -> None:
        raise asyncio.CancelledError

    model = Scripted(turns=[[say("a"), cancels]])

    async def node(state: MessagesState) -> dict[str, Any]:
        with pytest.raises(AttributeError):
            await asyncio.create_task(model.ainvoke("hm?"))
        await go_on.wait()
        return {"messages": []}

    async with runner_of(graph_of(node), gate=gate) as runner:
        run = await start(runner)
        await until(lambda: run.ttft_ms is not None)
        await until(lambda: gate.under_way == 0)
        go_on.set()
        await told(run)
    assert at_base(gate)


async def test_a_call_that_is_over_leaves_its_task_to_no_collector(until: Until) -> None:
    passage = Passage(Gate(1), "ann", Scope("cancel", 0, 60), lambda _: None, timeout_s=1)

    async def call() -> None:
        run_id = uuid4()
        await passage.on_chat_model_start({}, [[]], run_id=run_id)
        passage.leave(run_id)

    gc.disable()
    try:
        task = asyncio.create_task(call())
        gone = weakref.ref(task)
        await task
        del task
        await until(lambda: gone() is None)
    finally:
        gc.enable()
