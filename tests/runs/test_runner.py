"""The one door: every run that is let in has one end, whatever its graph does, and nothing of it stays behind."""

import asyncio
import gc
import json
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt
from runners import Halt, runner_of, told
from scripted import Scripted, Step, say, usage, words
from typing_extensions import override

from app.errors import InvalidInput, NotFound, RunExpired, Unavailable, Unsupported
from app.events.event import Error, Event, Gap, RunFinished, Token, Usage
from app.events.request import RunRequest
from app.runs.ledger import Ledger
from app.runs.run import Run
from app.runs.runner import MAX_METADATA, Brought, Runner, Timing
from app.runs.scope import Ending
from app.runs.tap import Tap

Until = Callable[[Callable[[], bool]], Awaitable[None]]
State = dict[str, Any]

REQUESTED = Ending("cancelled", "requested")


async def start(runner: Runner, value: Any = "hi", *, user: str = "ann", **request: Any) -> Run:
    return await runner.start(runner.agent("one"), RunRequest(input=value, **request), user=user, streams=True)


async def ended(run: Run) -> list[Event]:
    """All the run's events, read while they are written."""
    events = await told(run)
    await run.done.wait()
    return events


async def outcome(run: Run) -> tuple[str, str | None]:
    last = (await ended(run))[-1]
    assert isinstance(last, RunFinished)
    assert run.status == last.status == run.result()["status"]
    return last.status, last.reason


def model(*turn: Step, **fields: Any) -> Scripted:
    return Scripted(turns=[turn], **fields)


def graph(node: Any) -> Any:
    built: Any = StateGraph(MessagesState)
    built.add_node("node", node)
    built.add_edge(START, "node")
    return built.compile()


def asks(one: Runnable[Any, Any]) -> Callable[[Any], Any]:
    async def ask(state: State) -> State:
        return {"messages": [await one.ainvoke(state["messages"])]}

    return ask


# A run that goes well


async def test_a_run_is_known_readable_and_cancellable_as_soon_as_it_is_started() -> None:
    async with runner_of(model(*words("It ", "rains"))) as runner:
        run = await start(runner)
        assert runner.live == 1
        assert await runner.get(run.run_id, "ann") is run
        assert run.last_event_id == 1
        events = await ended(run)
        assert [event.type for event in events] == [
            "run.started", "message.started", "token", "token", "message.finished", "usage", "run.finished",
        ]  # fmt: skip
        assert runner.live == 0


async def test_a_completed_run_has_its_text_its_message_and_its_usage() -> None:
    async with runner_of(graph(asks(model(*words("It ", "rains"), say("", usage_metadata=usage(3, 4)))))) as runner:
        run = await start(runner)
        assert await outcome(run) == ("completed", None)
        result = run.result()
        assert result["text"] == result["message"]["content"] == "It rains"
        told = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cost_usd": None, "estimated": False}
        assert result["usage"].items() >= told.items()
        assert run.row()["usage"] == result["usage"]
        assert run.ttft_ms is not None


async def test_runs_side_by_side_share_nothing() -> None:
    both = asyncio.Barrier(2)

    async def speak(state: State) -> State:
        name = state["messages"][0].text
        return {"messages": [await model(say(name), both.wait, say(name.upper())).ainvoke("x")]}

    async with runner_of(graph(speak)) as runner:
        one, two = await start(runner, "a"), await start(runner, "b", user="bob")
        await asyncio.gather(ended(one), ended(two))
        assert (one.result()["text"], two.result()["text"]) == ("aA", "bB")
        assert one.meter is not two.meter
        assert one.usage.output_tokens == two.usage.output_tokens == 2


async def test_the_graphs_root_has_the_runs_id() -> None:
    seen: list[Any] = []

    def look(_: Any, config: RunnableConfig) -> str:
        seen.append(config["metadata"])
        return "ok"

    run_id = uuid4()
    taps: list[Any] = []

    class Recorder(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
            taps.append((run_id, parent_run_id))

    async with runner_of(RunnableLambda(look)) as runner:
        run = await runner.start(
            runner.agent("one"), RunRequest(input="hi", metadata={"trace": "t"}), user="ann", streams=True,
            run_id=run_id, brought=Brought({"metadata": {"more": 1}}, [Recorder()]),
        )  # fmt: skip
        await ended(run)
        assert run.run_id == str(run_id)
        assert taps[0] == (run_id, None)
        assert seen[0].items() >= {"trace": "t", "more": 1}.items()


async def test_a_text_completion_model_is_served_like_any_other() -> None:
    async with runner_of(FakeListLLM(responses=["It rains"])) as runner:
        run = await start(runner)
        events = await ended(run)
        assert run.result()["text"] == "It rains"
        assert [event.text for event in events if isinstance(event, Token)] == ["It rains"]
        assert sum(isinstance(event, Usage) for event in events) == 1


class Own(Runnable[str, str]):
    """A user's own class, which tells no callback of itself."""

    @override
    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return f"{input}: It rains"

    @override
    async def astream(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[str]:
        for text in (input, ": ", "It rains"):
            yield text


async def test_a_class_of_the_users_own_is_served_like_any_other() -> None:
    async with runner_of(Own()) as runner:
        run = await start(runner)
        events = await ended(run)
        assert run.output() == run.result()["text"] == "hi: It rains"
        assert [event.text for event in events if isinstance(event, Token)] == ["hi", ": ", "It rains"]


async def test_a_graph_that_waits_for_a_person_is_interrupted() -> None:
    async with runner_of(graph(lambda _: interrupt("sure?"))) as runner:
        assert await outcome(await start(runner)) == ("interrupted", None)


# Who may see it


async def test_what_is_not_there_and_what_is_anothers_look_the_same() -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        run = await start(runner)
        with pytest.raises(NotFound) as none:
            await runner.get(str(uuid4()), "ann")
        with pytest.raises(NotFound) as other:
            await runner.get(run.run_id, "bob")
        assert none.value.body() == other.value.body()
        with pytest.raises(NotFound, match="no agent 'two'"):
            runner.agent("two")


async def test_everybody_lists_their_own_runs_newest_first() -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        first, _, third = await start(runner), await start(runner, user="bob"), await start(runner)
        assert [row["run_id"] for row in await runner.rows("ann")] == [third.run_id, first.run_id]
        assert await runner.rows("eve") == []


# What is refused


REFUSED: list[tuple[State, type[Exception], str]] = [
    ({"value": ""}, InvalidInput, "empty"),
    ({"thread_id": "t"}, Unsupported, "thread_id"),
    ({"resume": 1}, Unsupported, "resume"),
    ({"max_tokens": 1}, Unsupported, "max_tokens"),
    ({"pause_after": "paragraph"}, Unsupported, "pause_after"),
    ({"metadata": {"a": "x" * MAX_METADATA}}, InvalidInput, "metadata"),
    ({"metadata": {"a": {"lc": 1, "type": "constructor", "id": ["os"]}}}, InvalidInput, "metadata"),
]


@pytest.mark.parametrize(("request_", "kind", "match"), REFUSED)
async def test_what_is_refused_leaves_nothing_behind(request_: State, kind: type[Exception], match: str) -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        with pytest.raises(kind, match=match):
            await start(runner, **request_)
        assert (runner.live, await runner.rows("ann")) == (0, [])


async def test_a_repeated_start_attaches_to_the_first() -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        agent, request = runner.agent("one"), RunRequest(input="hi")

        async def again(user: str = "ann", key: str = "k") -> Run:
            return await runner.start(agent, request, user=user, streams=False, idempotency_key=key)

        first = await again()
        assert await again() is first
        assert await again(user="bob") is not first
        assert await again(key="other") is not first
        await ended(first)
        assert await again() is first


async def test_an_idempotency_key_is_forgotten_with_the_runs_log(until: Until) -> None:
    async with runner_of(RunnableLambda(lambda _: "ok"), timing=Timing(retention_s=0.01)) as runner:
        agent, request = runner.agent("one"), RunRequest(input="hi")
        first = await runner.start(agent, request, user="ann", streams=False, idempotency_key="k")
        await first.done.wait()
        await until(is_past(first))
        assert await runner.start(agent, request, user="ann", streams=False, idempotency_key="k") is not first


def is_past(run: Run) -> Callable[[], bool]:
    def past() -> bool:
        try:
            run.result()
        except RunExpired:
            return True
        return False

    return past


async def test_a_clients_metadata_cannot_pass_for_langgraphs_own() -> None:
    spoof = {"langgraph_checkpoint_ns": 5, "langgraph_node": {"a": 1}, "ls_provider": "openai", "mine": 1}
    async with runner_of(model(*words("It rains"))) as runner:
        run = await start(runner, metadata=spoof)
        events = await ended(run)
        assert run.status == "completed"
        assert all(event.node is None and event.namespace == () for event in events)
        assert run.row()["metadata"] == spoof


# A run that fails


async def test_an_agent_that_raises_ends_as_failed_and_its_words_stay_in_the_log_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with runner_of(graph(asks(model(*words("It ra"), ValueError("secret"))))) as runner:
        run = await start(runner)
        with caplog.at_level(logging.ERROR, "millrace.runs"):
            events = await ended(run)
        assert await outcome(run) == ("failed", "agent_error")
        error = next(event for event in events if isinstance(event, Error))
        assert "secret" not in error.message
        assert "ValueError" in error.message
        assert "secret" in caplog.text
        assert run.result()["text"] == "It ra"
        assert run.result()["usage"]["output_tokens"] == 1


async def test_a_provider_that_cannot_be_reached_is_told_as_such_after_an_answer_that_was_whole() -> None:
    first, second = model(*words("Let me see")), model(httpx.ConnectError("secret"))

    async def twice(state: State) -> State:
        await first.ainvoke(state["messages"])
        return {"messages": [await second.ainvoke(state["messages"])]}

    async with runner_of(graph(twice)) as runner:
        run = await start(runner)
        assert await outcome(run) == ("failed", "provider_error")
        assert run.failure is not None
        assert "cannot be reached" in run.failure.message


async def test_a_provider_that_breaks_off_is_told_as_such() -> None:
    async with runner_of(model(*words("It ra"), httpx.ConnectError("secret"))) as runner:
        assert await outcome(await start(runner)) == ("failed", "provider_dropped")


async def test_a_wait_that_a_provider_wishes_for_ever_does_not_keep_the_run_from_ending() -> None:
    class Limited(Exception):
        status_code = 429
        response = httpx.Response(429, headers={"retry-after": "inf"})

    async with runner_of(model(Limited())) as runner:
        assert await outcome(await start(runner)) == ("failed", "provider_rate_limited")


async def test_a_graph_that_cancels_itself_has_failed() -> None:
    async def cancels(_: Any) -> None:
        raise asyncio.CancelledError("mine")

    async with runner_of(RunnableLambda(cancels)) as runner:
        assert await outcome(await start(runner)) == ("failed", "agent_error")


async def test_a_timeout_of_the_graphs_own_is_a_failure_like_any_other() -> None:
    async def waits(_: Any) -> None:
        raise TimeoutError

    async with runner_of(RunnableLambda(waits)) as runner:
        assert (await outcome(await start(runner)))[0] == "failed"


class Rude:
    @property
    def messages(self) -> Any:
        raise RuntimeError("secret")


@pytest.mark.parametrize("output", [10**5000, Rude(), {"\ud800": "\udfff"}, float("nan"), [[[]]] * 3], ids=type)
async def test_an_output_that_cannot_be_shown_does_not_keep_the_run_from_ending(output: Any) -> None:
    async with runner_of(RunnableLambda(lambda _: output)) as runner:
        run = await start(runner)
        assert await outcome(run) == ("completed", None)
        json.dumps(run.result(), allow_nan=False).encode()


async def test_a_tap_is_closed_whatever_ends_the_run() -> None:
    async with runner_of(RunnableLambda(lambda value: 1 / 0 if value == "fail" else "ok")) as runner:
        for value in ("ok", "fail"):
            tap = Tap()
            brought = Brought(tap=tap)
            await runner.start(runner.agent("one"), RunRequest(input=value), user="ann", streams=True, brought=brought)
            async with asyncio.timeout(20):
                raws = [raw async for raw in tap]
            assert raws[0]["event"] == "on_chain_start"


# A run that is ended


async def test_a_cancel_ends_the_run_and_keeps_what_was_said() -> None:
    gate = Halt()
    async with runner_of(graph(asks(model(*words("It ", "ra"), gate, *words("ins"))))) as runner:
        run = await start(runner)
        await gate.reached.wait()
        run.scope.end(REQUESTED)
        assert await outcome(run) == ("cancelled", "requested")
        result = run.result()
        assert (result["text"], result["usage"]["output_tokens"]) == ("It ra", 2)
        assert result["usage"]["estimated"]


async def test_a_run_cancelled_before_its_first_step_has_an_end() -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        run = await start(runner)
        run.scope.end(REQUESTED)
        assert [event.type for event in await ended(run)] == ["run.started", "run.finished"]
        assert run.status == "cancelled"


async def test_a_run_over_its_deadline_is_timed_out() -> None:
    gate = Halt()
    async with runner_of(RunnableLambda(gate)) as runner:
        run = await start(runner, timeout_s=0.01)
        events = await ended(run)
        assert await outcome(run) == ("timed_out", "run_timeout")
        assert [event.code for event in events if isinstance(event, Error)] == ["run_timeout"]


async def test_a_run_over_its_deadline_before_its_first_step_is_timed_out() -> None:
    async with runner_of(RunnableLambda(lambda _: "ok")) as runner:
        assert await outcome(await start(runner, timeout_s=1e-9)) == ("timed_out", "run_timeout")


async def test_the_servers_deadline_holds_where_the_request_names_none() -> None:
    async with runner_of(RunnableLambda(Halt()), timing=Timing(run_timeout_s=0.01)) as runner:
        assert await outcome(await start(runner)) == ("timed_out", "run_timeout")


@pytest.mark.parametrize("timeout_s", [0.01, None], ids=["deadline", "cancel"])
async def test_an_ending_that_the_graph_swallows_is_repeated(timeout_s: float | None) -> None:
    heard = asyncio.Event()

    async def stubborn(_: Any) -> str:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if heard.is_set():
                    raise
                heard.set()

    async with runner_of(RunnableLambda(stubborn)) as runner:
        run = await start(runner, timeout_s=timeout_s)
        await asyncio.sleep(0)
        if timeout_s is None:
            run.scope.end(REQUESTED)
        assert (await outcome(run))[0] == ("timed_out" if timeout_s else "cancelled")


@pytest.mark.parametrize("answer", [RuntimeError("rolled back"), "too late"], ids=["raises", "answers"])
@pytest.mark.parametrize("timeout_s", [0.01, None], ids=["deadline", "cancel"])
async def test_whatever_a_graph_makes_of_a_cancel_the_ending_is_the_one_that_was_decided(
    timeout_s: float | None, answer: Any
) -> None:
    gate = Halt()

    async def converts(_: Any) -> Any:
        try:
            await gate()
        except asyncio.CancelledError:
            if isinstance(answer, Exception):
                raise answer from None
        return answer

    async with runner_of(RunnableLambda(converts)) as runner:
        run = await start(runner, timeout_s=timeout_s)
        if timeout_s is None:
            await gate.reached.wait()
            run.scope.end(REQUESTED)
        assert (await outcome(run))[0] == ("timed_out" if timeout_s else "cancelled")


async def test_the_last_reader_takes_a_streamed_run_with_it_and_no_other() -> None:
    gate = Halt()
    async with runner_of(RunnableLambda(gate)) as runner:
        agent, request = runner.agent("one"), RunRequest(input="hi")
        streamed = await runner.start(agent, request, user="ann", streams=True)
        in_background = await runner.start(agent, request, user="ann", streams=False)
        for run in (streamed, in_background):
            run.scope.attach().close()
        assert await outcome(streamed) == ("cancelled", "disconnected")
        gate.open.set()
        assert await outcome(in_background) == ("completed", None)


async def test_a_request_says_for_itself_what_leaving_means() -> None:
    gate = Halt()
    async with runner_of(RunnableLambda(gate), timing=Timing(disconnect_grace_s=3600)) as runner:
        stays = await start(runner, on_disconnect="continue")
        goes = await start(runner, on_disconnect="cancel", disconnect_grace_s=0)
        waits = await start(runner)
        for run in (stays, goes, waits):
            run.scope.attach().close()
        assert await outcome(goes) == ("cancelled", "disconnected")
        gate.open.set()
        assert await outcome(stays) == await outcome(waits) == ("completed", None)


async def test_a_synchronous_node_that_streams_stops_at_its_next_chunk() -> None:
    reached, go_on = threading.Event(), threading.Event()
    chunks: list[str] = []

    class Slow(Scripted):
        def _stream(self, *args: Any, **kwargs: Any) -> Any:
            for chunk in super()._stream(*args, **kwargs):
                chunks.append(chunk.text)
                yield chunk
                reached.set()
                go_on.wait(20)

    slow = Slow(turns=[words("a", "b", "c", "d")])

    def node(state: State) -> State:
        return {"messages": [slow.invoke(state["messages"])]}

    async with runner_of(graph(node)) as runner:
        run = await start(runner)
        await asyncio.to_thread(reached.wait, 20)
        run.scope.end(REQUESTED)
        go_on.set()
        assert await outcome(run) == ("cancelled", "requested")
        assert run.result()["text"] in ("", "a")
    assert len(chunks) <= 2


# Bounds


async def test_an_agent_that_puts_out_more_than_may_be_dropped_fails_and_ends() -> None:
    @tool
    async def report(number: int) -> str:
        """Write a lot."""
        return "x" * 2000

    calls = [{"name": "report", "args": {"number": n}, "id": f"c{n}", "type": "tool_call"} for n in range(40)]
    built: Any = StateGraph(MessagesState)
    built.add_node("ask", lambda _: {"messages": [AIMessage("", tool_calls=calls)]})
    built.add_node("tools", ToolNode([report]))
    built.add_edge(START, "ask")
    built.add_edge("ask", "tools")
    for size in (2_000, 5_000, 10_000, 15_000):
        async with runner_of(built.compile(), run_max_bytes=size) as runner:
            run = await start(runner)
            assert await outcome(run) == ("failed", "log_full")


async def test_tokens_beyond_the_bound_are_a_gap_and_the_result_is_whole() -> None:
    async with runner_of(model(*words(*(f"{n} " for n in range(500)))), run_max_bytes=20_000) as runner:
        run = await start(runner)
        await run.done.wait()
        events = await ended(run)
        assert any(isinstance(event, Gap) for event in events)
        assert run.status == "completed"
        assert run.result()["text"] == "".join(f"{n} " for n in range(500))


async def test_a_finished_run_is_readable_for_a_while_and_its_row_for_longer(until: Until) -> None:
    async with runner_of(RunnableLambda(lambda _: "ok"), timing=Timing(retention_s=0.01)) as runner:
        run = await start(runner)
        await run.done.wait()
        assert run.result()["text"] == "ok"

        await until(is_past(run))
        past = await runner.get(run.run_id, "ann")
        assert past.row()["status"] == "completed"
        with pytest.raises(RunExpired):
            past.subscribe(0)


async def test_nothing_but_its_row_is_left_of_an_expired_run(until: Until) -> None:
    class Big:
        pass

    async with runner_of(RunnableLambda(lambda _: {"big": Big()}), timing=Timing(retention_s=0.01)) as runner:
        run = await start(runner)
        await run.done.wait()
        seen = weakref.ref(run.output()["big"])

        def gone() -> bool:
            gc.collect()
            return seen() is None

        await until(gone)


# The server's stop


async def test_a_stop_ends_every_run_and_lets_none_in() -> None:
    gate = Halt()
    async with runner_of(RunnableLambda(gate)) as runner:
        runs = [await start(runner) for _ in range(3)]
        async with asyncio.timeout(20):
            await runner.close()
        assert [run.status for run in runs] == ["cancelled"] * 3
        assert await outcome(runs[0]) == ("cancelled", "shutdown")
        assert not runner.open_for_runs
        with pytest.raises(Unavailable):
            await start(runner)
        await runner.close()


async def test_many_runs_leave_no_task_behind() -> None:
    async def chunks(_: AsyncIterator[Any]) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async with runner_of(RunnableGenerator(chunks)) as runner:
        before = len(asyncio.all_tasks())
        runs = [await start(runner) for _ in range(50)]
        for index, run in enumerate(runs):
            if index % 3 == 0:
                run.scope.end(REQUESTED)
        for run in runs:
            await ended(run)
        assert runner.live == 0
        assert len(asyncio.all_tasks()) == before
        assert {run.status for run in runs} == {"completed", "cancelled"}


class SlowSaver(InMemorySaver):
    """Stores nothing of a run until the test says so, or its turn has come at last."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.stored = asyncio.Event()

    @override
    async def aput(self, *args: Any) -> Any:
        if self.slow:
            for _ in range(100):  # whoever does not wait for it is past it by then
                await asyncio.sleep(0)
        return await super().aput(*args)


class SlowLedger(Ledger):
    """A ledger whose checkpoints take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = SlowSaver()

    @property
    @override
    def saver(self) -> SlowSaver:
        return self.slow


async def test_a_persons_answer_is_stored_before_it_is_acted_on() -> None:
    ledger = SlowLedger()
    stored: list[Any] = []

    async def ask(state: MessagesState) -> Any:
        return {"messages": [AIMessage(f"answered: {interrupt('may I?')}")]}

    async def deed(state: MessagesState, config: RunnableConfig) -> Any:
        thread: RunnableConfig = {"configurable": {"thread_id": config["configurable"]["thread_id"]}}
        stored.append(await asks_first.copy({"checkpointer": ledger.slow}).aget_state(thread))
        return {"messages": [AIMessage("done")]}

    builder: Any = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    builder.add_node("deed", deed)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "deed")
    asks_first = builder.compile()
    async with runner_of(asks_first, ledger) as runner:
        first = await start(runner, thread_id="t")
        await first.done.wait()
        assert first.status == "interrupted"
        ledger.slow.slow = True
        second = await start(runner, None, resume="yes", thread_id="t")
        await second.done.wait()
    (state,) = stored
    assert not state.interrupts
    assert state.next == ("deed",)
