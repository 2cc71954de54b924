"""Plain text straight from the provider's reader to the log: a run is told the same as when it goes through LangChain.

Each story is told twice, once each way, by the same simulated provider over HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from golden.replay import lines
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable
from langchain_core.tracers.event_stream import _AstreamEventsCallbackHandler
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from openai import DefaultAsyncHttpxClient
from runners import runner_of, told

from app.eventlog.base import LogFull
from app.eventlog.memory import ENTRY_OVERHEAD, MemoryLog
from app.events.event import Event, MessageFinished, Token, Usage
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.executor import installed
from app.runs.run import Run
from app.runs.runner import Brought, Runner, Timing
from app.runs.scope import Scope
from app.runs.shortcut import Overheard, Shortcut, are_deaf
from app.runs.tap import Tap
from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.chat import build_chat
from chains.models import build_model
from chains.quick import quick_deltas
from chains.retries import Retries

Build = Callable[[Any], Runnable[Any, Any]]

STORIES = {
    "an answer": "[[tokens=20]]",
    "as fast as it goes": "[[tokens=500&burst=1]]",
    "with thoughts before it": "[[tokens=5&reasoning=3]]",
    "byte by byte": "[[tokens=5&byte_by_byte=1]]",
    "lines cut": "[[tokens=5&split_lines=1]]",
    "nothing before it": "[[tokens=5&empty_chunks=3]]",
    "letters cut": "[[say=größer 🙂 als&cut_utf8=0]]",
    "without usage": "[[tokens=5&no_usage=1]]",
    "the connection is reset": "[[tokens=20&drop_after=5]]",
    "the stream ends too early": "[[tokens=20&close_after=5]]",
    "the provider fails half way": "[[tokens=20&error_after=5]]",
    "the provider falls silent": "[[tokens=20&stall_after=5]]",
    "a refusal, then an answer": "[[tokens=5&status=429&fail_times=1&retry_after=0.01]]",
    "a refusal": "[[status=400]]",
    "tools": "what is 6 * 7?",
}


def graph_of(node: Any) -> Runnable[Any, Any]:
    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile()


def asking(model: Any) -> Runnable[Any, Any]:
    """A graph as users write it."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return graph_of(ask)


def asking_in_a_thread(model: Any) -> Runnable[Any, Any]:
    """The same, of a synchronous node."""

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return graph_of(ask)


def plain(model: Any) -> ChatOpenAI:
    """The model as users make it."""
    return ChatOpenAI(
        model="simulated",
        base_url=model.openai_api_base,
        api_key=model.openai_api_key,
        stream_usage=True,
        max_retries=1,
    )


BUILDS: dict[str, Build] = {
    "chat": build_chat,
    "assistant": lambda model: build_assistant(model, []),
    "asking": asking,
    "asking in a thread": asking_in_a_thread,
    "asking a plain model in a thread": lambda model: asking_in_a_thread(plain(model)),
}
IN_THREADS = ["asking in a thread", "asking a plain model in a thread"]


@pytest.fixture(scope="module")
def provider() -> Any:
    with Simulator(tokens_per_second=0) as one:
        yield one


def let_go(provider: Simulator, before: int) -> bool:
    """Whether all requests since are over: threads that were left behind may still hold some of those ``before``."""
    since = provider.requests[before:]
    return bool(since) and all(one.ended is not None for one in since)


def events_of(run: Run) -> list[Event]:
    """What the log holds; a reader who lags is told less of it."""
    return [entry.event for entry in MemoryLog.load(run.dump()).read(0, run.last_event_id)]


@asynccontextmanager
async def runner_with(
    provider: Simulator, build: Build, *, quick: bool = True, ours: bool = True, **options: Any
) -> AsyncIterator[Runner]:
    async with AsyncExitStack() as stack:
        stack.enter_context(installed())
        if quick:
            await stack.enter_async_context(quick_deltas(are_deaf))
        client = await stack.enter_async_context(DefaultAsyncHttpxClient())
        retries = Retries(backoff_s=0.01, random=lambda: 0.5)
        model = build_model("openai:simulated", base_url=provider.base_url, client=client, retries=retries)
        yield await stack.enter_async_context(runner_of(build(model), ours=ours, **options))


async def start(runner: Runner, text: str, **more: Any) -> Run:
    return await runner.start(runner.agent("one"), RunRequest(input=text, **more), user="ann", streams=True)


async def story(provider: Simulator, build: Build, text: str, *, quick: bool) -> list[Event]:
    timing = Timing(token_timeout_s=0.3 if "stall_after" in text else 20)
    async with runner_with(provider, build, quick=quick, timing=timing) as runner:
        run = await start(runner, f"{text} Go.")
        await run.done.wait()
        return events_of(run)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", STORIES)
async def test_a_story_is_told_the_same_either_way(provider: Simulator, name: str, build: str) -> None:
    plain = await story(provider, BUILDS[build], STORIES[name], quick=False)
    quick = await story(provider, BUILDS[build], STORIES[name], quick=True)
    assert list(lines(quick)) == list(lines(plain))


async def test_an_answer_that_langgraph_keeps_is_the_one_that_was_told(provider: Simulator) -> None:
    async with runner_with(provider, BUILDS["assistant"]) as runner:
        run = await start(runner, "[[tokens=20]]")
        events = await told(run)
        await run.done.wait()
        (answer,) = [one for one in run.output()["messages"] if isinstance(one, AIMessage)]
    assert answer.text == "".join(one.text for one in events if isinstance(one, Token))
    assert [answer.id] == [one.message_id for one in events if isinstance(one, MessageFinished)]


async def test_a_run_that_is_paused_in_the_midst_of_it_goes_on_where_it_stopped(
    provider: Simulator, until: Any
) -> None:
    async with runner_with(provider, BUILDS["assistant"]) as runner:
        run = await start(runner, "[[tokens=40&tokens_per_second=200]]")
        await until(lambda: run.last_event_id > 8)
        await runner.pause(run)
        assert run.status == "paused"
        await runner.resume(run)
        events = await told(run)
        await run.done.wait()
        whole = await start(runner, "[[tokens=40&tokens_per_second=200]]")
        await whole.done.wait()
        assert run.result()["text"] == whole.result()["text"]
    assert "".join(one.text for one in events if isinstance(one, Token)) == run.result()["text"]
    assert len([one for one in events if isinstance(one, MessageFinished)]) == 1


async def test_a_run_stops_at_its_first_paragraph_when_it_is_asked_to(provider: Simulator) -> None:
    async with runner_with(provider, BUILDS["chat"]) as runner:
        run = await start(runner, "[[paragraphs=3]]", pause_after="paragraph")
        async with asyncio.timeout(20):
            await run.paused.wait()
        held = (run.held or [])[0]
        assert held.text.endswith("\n\n")
        assert held.text.count("\n\n") == 1
        await runner.cancel(run)


@pytest.mark.parametrize(("build", "ours"), [("chat", True), *((one, False) for one in IN_THREADS)])
async def test_what_a_cancel_cuts_is_accounted_for_and_the_provider_is_let_go(
    provider: Simulator, build: str, ours: bool, until: Any
) -> None:
    before = len(provider.requests)
    async with runner_with(provider, BUILDS[build], ours=ours) as runner:
        run = await start(runner, "[[tokens=2000&tokens_per_second=100]]")
        await until(lambda: run.last_event_id > 8)
        await runner.cancel(run)
        events = await told(run)
        await until(lambda: let_go(provider, before))
    (usage,) = [one for one in events if isinstance(one, Usage)]
    shown = len([one for one in events if isinstance(one, Token)])
    assert usage.estimated
    if build in IN_THREADS:
        assert usage.output_tokens >= shown > 0  # what a thread has heard since the cancel is paid for too
    else:
        assert usage.output_tokens == shown


async def test_a_cancel_reaches_a_call_in_a_task_that_its_node_does_not_await(provider: Simulator, until: Any) -> None:
    def leaving(model: Any) -> Runnable[Any, Any]:
        async def ask(state: MessagesState) -> dict[str, Any]:
            await asyncio.wait({asyncio.create_task(model.ainvoke(state["messages"]))})
            return {"messages": []}

        return graph_of(ask)

    before = len(provider.requests)
    async with runner_with(provider, leaving, ours=False) as runner:
        run = await start(runner, "[[tokens=2000&tokens_per_second=100]]")
        await until(lambda: run.last_event_id > 8)
        await runner.cancel(run)
        await until(lambda: let_go(provider, before))


async def test_text_that_is_not_for_the_reader_stays_unseen_and_is_counted(provider: Simulator) -> None:
    def silent(model: Any) -> Runnable[Any, Any]:
        return asking(model.with_config(tags=["nostream"]))

    async with runner_with(provider, silent) as runner:
        run = await start(runner, "[[tokens=20&no_usage=1]]")
        events = await told(run)
        await run.done.wait()
    assert not [one for one in events if isinstance(one, Token) and one.text != run.result()["text"]]
    assert [one.output_tokens for one in events if isinstance(one, Usage)] == [20]


async def test_who_wants_langchains_own_events_gets_each_token(provider: Simulator) -> None:
    tap = Tap()
    async with runner_with(provider, BUILDS["chat"]) as runner:
        request = RunRequest(input="[[tokens=20]]")
        run = await runner.start(runner.agent("one"), request, user="ann", streams=True, brought=Brought(tap=tap))
        await run.done.wait()
        raws = [raw async for raw in tap]
    texts = [raw["data"]["chunk"].text for raw in raws if raw["event"] == "on_chat_model_stream"]
    assert len([one for one in texts if one]) == 20


async def test_a_node_that_reads_its_models_events_gets_each_token(provider: Simulator) -> None:
    heard: list[str] = []

    def reading(model: Any) -> Runnable[Any, Any]:
        inner = asking(model)

        async def ask(state: MessagesState) -> dict[str, Any]:
            raws = [raw async for raw in inner.astream_events(state, version="v2")]
            texts = [raw["data"]["chunk"].text for raw in raws if raw["event"] == "on_chat_model_stream"]
            heard.extend(text for text in texts if text)
            return {"messages": [AIMessage("".join(heard))]}

        return graph_of(ask)

    async with runner_with(provider, reading, ours=False) as runner:
        run = await start(runner, "[[tokens=20]]")
        await run.done.wait()
    assert len(heard) == 20


@pytest.mark.parametrize("mode", ["messages", "custom"])
async def test_a_node_that_streams_a_graph_of_its_own_gets_each_token(provider: Simulator, mode: str) -> None:
    heard: list[Any] = []

    def reading(model: Any) -> Runnable[Any, Any]:
        inner = asking(model)

        async def ask(state: MessagesState) -> dict[str, Any]:
            heard.extend([one async for one in inner.astream(state, stream_mode=mode)])
            return {"messages": [AIMessage("done")]}

        return graph_of(ask)

    async with runner_with(provider, reading, ours=False) as runner:
        run = await start(runner, "[[tokens=20]]")
        await run.done.wait()
    assert len(heard) >= (20 if mode == "messages" else 0)


@pytest.mark.parametrize("asking", [asking, asking_in_a_thread])
async def test_a_callback_of_the_models_own_hears_each_token(provider: Simulator, asking: Build) -> None:
    heard: list[str] = []

    class Ear(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            heard.append(token)

    def with_ear(model: Any) -> Runnable[Any, Any]:
        return asking(model.model_copy(update={"callbacks": [Ear()]}))

    async with runner_with(provider, with_ear) as runner:
        run = await start(runner, "[[tokens=20]]")
        await run.done.wait()
    assert len([one for one in heard if one]) == 20


# One run's part in it


class Deaf(BaseCallbackHandler):
    """Listens to other things."""


class Hearing(AsyncCallbackHandler):
    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_only_those_that_do_nothing_with_chunks_are_deaf_and_one_event_stream() -> None:
    stream, other = _AstreamEventsCallbackHandler(), _AstreamEventsCallbackHandler()
    assert are_deaf([])
    assert are_deaf([Deaf(), stream])
    assert not are_deaf([Deaf(), Hearing()])
    assert not are_deaf([stream, other])
    assert not are_deaf([object()])


def new_run(**options: Any) -> Run:
    options = {"log": MemoryLog(), **options}
    run = Run(
        str(uuid4()), agent=Agent("echo", asking(None)), request=RunRequest(), user="ann", idempotency_key=None,
        scope=Scope("cancel", 0, 60), grammar=None, **options,
    )  # fmt: skip
    run.start()
    run.begin()
    return run


def model_event(event: str, call: UUID, **data: Any) -> dict[str, Any]:
    return {"event": event, "run_id": str(call), "name": "m", "tags": [], "metadata": {}, "data": data}


async def test_what_comes_before_its_call_has_been_told_of_waits_for_that() -> None:
    run, call = new_run(direct=True), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    assert run.hear(Shortcut(run, call, "m1"), "a")
    assert run.hear(Shortcut(run, call, "m1"), "b")
    assert [one.type for one in events_of(run)] == ["run.started"]
    run.feed(model_event("on_chat_model_start", call))
    assert [one.type for one in events_of(run)] == ["run.started", "message.started", "token", "token"]


async def test_a_run_that_stands_still_refuses_and_so_it_does_what_began_before() -> None:
    run, call = new_run(direct=True), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    shortcut = run.shortcut(call, "m1", [run.meter], seen=False)
    assert shortcut is not None
    run.scope.pause("requested")
    assert not shortcut.say("a")
    run.stop()
    run.scope.resume()
    assert not shortcut.say("b")
    assert [one.type for one in events_of(run) if one.type != "usage"] == ["run.started"]


async def test_a_run_gives_no_lane_to_calls_that_its_meter_does_not_hear() -> None:
    run = new_run(direct=True)
    assert run.shortcut(uuid4(), "m1", [], seen=False) is None
    assert run.shortcut(uuid4(), "m1", [run.meter], seen=False) is not None
    assert run.shortcut(uuid4(), "m1", [run.meter, Hearing()], seen=False) is None
    assert new_run(direct=False).shortcut(uuid4(), "m1", [run.meter], seen=False) is None


async def test_a_node_of_a_user_that_reads_chunk_by_chunk_gets_them_all() -> None:
    run = new_run(direct=True)
    assert run.shortcut(uuid4(), "m1", [run.meter], seen=True) is None


async def test_a_synchronous_node_that_reads_chunk_by_chunk_gets_them_all(provider: Simulator) -> None:
    heard: list[str] = []

    def reading(model: Any) -> Runnable[Any, Any]:
        def ask(state: MessagesState) -> dict[str, Any]:
            heard.extend(one.text for one in plain(model).stream(state["messages"]) if one.text)
            return {"messages": [AIMessage("".join(heard))]}

        return graph_of(ask)

    async with runner_with(provider, reading, ours=False) as runner:
        run = await start(runner, "[[tokens=20]]")
        await run.done.wait()
        assert run.result()["text"] == "".join(heard)
    assert len(heard) == 20


async def test_what_a_thread_says_is_told_on_the_runs_loop_in_its_order() -> None:
    run, call = new_run(direct=True), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)

    def speak() -> bool:
        shortcut = run.shortcut(call, "m1", [run.meter], seen=False)
        return shortcut is not None and all(map(shortcut.say, "abc"))

    run.feed(model_event("on_chat_model_start", call))
    assert await asyncio.to_thread(speak)
    assert [one.text for one in events_of(run) if isinstance(one, Token)] == ["a", "b", "c"]


async def test_what_a_thread_said_just_before_its_run_stood_still_is_passed_over() -> None:
    run, call = new_run(direct=True), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    run.feed(model_event("on_chat_model_start", call))
    shortcut = Overheard(run, call, "m1")
    assert shortcut.say("a")  # it waits for its turn on the loop, which is at this
    run.scope.pause("requested")
    assert not shortcut.say("b")
    await asyncio.sleep(0)
    assert [one.type for one in events_of(run)] == ["run.started"]


async def test_a_text_of_a_thread_for_which_the_log_has_no_room_fails_the_run_at_its_next_event() -> None:
    run, call = new_run(direct=True, log=MemoryLog(ENTRY_OVERHEAD + 300)), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    run.feed(model_event("on_chat_model_start", call))
    shortcut = Overheard(run, call, "m1")
    assert shortcut.say("a")
    assert shortcut.say("b")
    await asyncio.sleep(0)
    assert not shortcut.say("c")  # else the whole answer would be waited for, and paid
    with pytest.raises(LogFull):
        run.feed(model_event("on_chat_model_stream", call, chunk=AIMessageChunk(content="ab", id="m1")))


def test_a_thread_that_outlives_the_loop_is_refused() -> None:
    async def begun() -> Run:
        return new_run(direct=True)

    run, call = asyncio.run(begun()), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    assert not Overheard(run, call, "m1").say("a")


async def test_a_node_with_a_loop_of_its_own_has_no_shortcut() -> None:
    run = new_run(direct=True)

    async def ask() -> object:
        return run.shortcut(uuid4(), "m1", [run.meter], seen=False)

    assert await asyncio.to_thread(asyncio.run, ask()) is None


async def test_a_text_for_which_the_log_has_no_room_must_come_the_usual_way_where_it_fails_the_run() -> None:
    run, call = new_run(direct=True, log=MemoryLog(ENTRY_OVERHEAD + 300)), uuid4()
    run.meter.on_chat_model_start({}, [[]], run_id=call)
    run.feed(model_event("on_chat_model_start", call))
    assert not run.hear(Shortcut(run, call, "m1"), "a")
    assert run.said() == []
    with pytest.raises(LogFull):
        run.feed(model_event("on_chat_model_stream", call, chunk=AIMessageChunk(content="a", id="m1")))
