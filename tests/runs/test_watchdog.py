"""A provider that goes silent ends its run, whoever called it and however; one that is only slow does not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest
from graphs import Slow, openai, tool_caller
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler, adispatch_custom_event
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult, GenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tracers._streaming import _StreamingCallbackHandler
from langgraph.graph import START, MessagesState, StateGraph
from openai import DefaultAsyncHttpxClient
from runners import runner_of
from scripted import Scripted, Step, say, words

from app.events.event import Error, RunFinished
from app.events.request import RunRequest
from app.runs.executor import installed
from app.runs.run import Run
from app.runs.runner import Runner
from app.runs.scope import Ending, Scope
from app.runs.usage import RETRY, Meter
from app.runs.watchdog import Watchdog
from app.simulator.server import Simulator
from chains.models import build_model

Until = Callable[[Callable[[], bool]], Awaitable[None]]
Speaks = Callable[..., Runnable[Any, Any]]
State = dict[str, Any]

NO_FIRST = Ending("timed_out", "first_token_timeout")
NO_NEXT = Ending("timed_out", "token_timeout")
AGES = 3600.0

PROMPT: list[BaseMessage] = [HumanMessage("How is the weather?")]


class Streaming(BaseCallbackHandler, _StreamingCallbackHandler[Any]):
    """Makes whatever can stream do so, as the handler of ``astream_events`` does in every run."""

    run_inline = True

    def tap_output_aiter(self, run_id: Any, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return output

    def tap_output_iter(self, run_id: Any, output: Iterator[Any]) -> Iterator[Any]:
        return output


class Watch:
    """A run's scope and watchdog, and the config under which its models are called."""

    def __init__(self, first_s: float = AGES, token_s: float = AGES) -> None:
        self.scope = Scope("continue", 0)
        self.dog = Watchdog(self.scope, first_token_timeout_s=first_s, token_timeout_s=token_s)
        self.meter = Meter(self.scope, self.dog)
        self.config: RunnableConfig = {"callbacks": [self.meter, Streaming()]}

    async def ending(self) -> Ending | None:
        async with asyncio.timeout(20):
            await self.scope.changed.wait()
        return self.scope.ending

    async def outlasts(self, seconds: float) -> None:
        """Another run, whose call is silent from now on, is ended after that time; this one is not."""
        other = Watch(seconds)
        call = asyncio.ensure_future(invoke(model(hang), other))
        await other.ending()
        assert self.scope.ending is None
        await stopped(call)


async def stopped(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hang() -> None:
    await asyncio.Event().wait()


def model(*turn: Step, **fields: Any) -> Scripted:
    return Scripted(turns=[turn], **fields)


async def read(one: Runnable[Any, Any], watch: Watch, **options: Any) -> None:
    async for _ in one.astream(PROMPT, watch.config, **options):
        pass


async def invoke(one: Runnable[Any, Any], watch: Watch, **options: Any) -> None:
    await one.ainvoke(PROMPT, watch.config, **options)


async def read_in_thread(one: Runnable[Any, Any], watch: Watch, **options: Any) -> None:
    await asyncio.to_thread(lambda: list(one.stream(PROMPT, watch.config, **options)))


async def invoke_in_thread(one: Runnable[Any, Any], watch: Watch, **options: Any) -> None:
    await asyncio.to_thread(lambda: one.invoke(PROMPT, watch.config, **options))


WAYS = [read, invoke, read_in_thread, invoke_in_thread]


# Silence


@pytest.mark.parametrize("way", [read, invoke])
async def test_silence_before_the_first_chunk_ends_the_run(way: Any) -> None:
    watch = Watch(0.01)
    call = asyncio.ensure_future(way(model(hang), watch))
    assert await watch.ending() == NO_FIRST
    await stopped(call)


@pytest.mark.parametrize("way", [read, invoke])
@pytest.mark.parametrize("text", ["It", ""], ids=["word", "nothing"])
async def test_silence_after_a_chunk_ends_the_run_whatever_was_in_it(way: Any, text: str) -> None:
    watch = Watch(token_s=0.01)
    call = asyncio.ensure_future(way(model(say(text), hang), watch))
    assert await watch.ending() == NO_NEXT
    await stopped(call)


async def test_each_chunk_gives_the_next_one_its_time() -> None:
    watch = Watch(token_s=1.5)

    async def rest() -> None:
        await asyncio.sleep(0.5)

    await read(model(say("a"), rest, say("b"), rest, say("c"), rest, say("d"), rest, say("e")), watch)
    assert watch.scope.ending is None


async def test_of_two_calls_at_once_each_has_its_own_time() -> None:
    watch = Watch(token_s=0.3)

    async def breathe() -> None:
        await asyncio.sleep(0.02)

    steps: list[Step] = [say("a"), breathe] * 200
    chatty = asyncio.ensure_future(read(model(*steps), watch))
    silent = asyncio.ensure_future(read(model(say("a"), hang), watch))
    assert await watch.ending() == NO_NEXT
    await stopped(chatty, silent)


class Blocking(Scripted):
    """Waits for the test, in whatever thread, before it says anything."""

    free: Any

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self.free()
        yield from super()._stream(*args, **kwargs)


@pytest.mark.parametrize("way", [read_in_thread, invoke_in_thread])
async def test_silence_in_a_thread_ends_the_run_on_its_loop(way: Any) -> None:
    watch, free = Watch(0.01), asyncio.Event()
    loop = asyncio.get_running_loop()
    one = Blocking(turns=[words("a")], free=lambda: asyncio.run_coroutine_threadsafe(free.wait(), loop).result(20))
    call = asyncio.ensure_future(way(one, watch))
    assert await watch.ending() == NO_FIRST
    free.set()
    with pytest.raises(asyncio.CancelledError):  # the thread hears of it at its first chunk
        await call


def test_a_thread_that_outlives_its_loop_calls_in_vain() -> None:
    async def made() -> Watch:
        return Watch(0.01)

    watch = asyncio.run(made())
    model(say("a")).invoke(PROMPT, watch.config)
    assert watch.scope.ending is None


# Which calls are streamed


class Probe(Scripted):
    """Tells how many calls have a clock while it is called."""

    dog: Any
    seen: Any
    streaming: bool = False

    def _look(self) -> None:
        self.seen.append(self.dog.waiting)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self._look()
        return super()._generate(*args, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self._look()
        yield from super()._stream(*args, **kwargs)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self._look()
        async for chunk in super()._astream(*args, **kwargs):
            yield chunk


TOOLS = {"tools": [{"name": "f"}]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "options", "streamed"),
    [
        ({}, {}, True),
        ({}, TOOLS, True),
        ({"disable_streaming": True}, {}, False),
        ({"disable_streaming": "tool_calling"}, {}, True),
        ({"disable_streaming": "tool_calling"}, TOOLS, False),
        ({"streaming": True}, {}, True),
        ({"streaming": False}, {}, False),
    ],
)
async def test_a_call_has_a_clock_when_it_is_streamed(
    way: Any, fields: dict[str, Any], options: dict[str, Any], streamed: bool
) -> None:
    watch, seen = Watch(), list[int]()
    await way(Probe(turns=[words("a", "b")], dog=watch.dog, seen=seen, **fields), watch, **options)
    assert seen == [int(streamed)]
    assert watch.dog.waiting == 0


async def test_one_that_is_told_not_to_stream_this_time_has_none() -> None:
    watch, seen = Watch(), list[int]()
    await invoke(Probe(turns=[words("a")], dog=watch.dog, seen=seen), watch, stream=False)
    assert seen == [0]


class InOnePiece(BaseChatModel):
    """A model that cannot stream, though it may tell of tokens on the way."""

    tokens: int = 0
    wait: Any

    @property
    def _llm_type(self) -> str:
        return "piece"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("It rains"))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        for _ in range(self.tokens):
            assert run_manager is not None
            await run_manager.on_llm_new_token("It")
        await self.wait()
        return self._generate(messages)


@pytest.mark.parametrize("way", [read, invoke])
async def test_an_answer_in_one_piece_may_take_its_time(way: Any) -> None:
    watch = Watch(0.01, 0.01)

    async def ages() -> None:
        await watch.outlasts(0.05)

    await way(InOnePiece(wait=ages), watch)
    assert watch.scope.ending is None


async def test_one_that_was_not_known_to_stream_is_by_its_first_chunk() -> None:
    watch = Watch(0.01, 0.02)
    call = asyncio.ensure_future(invoke(InOnePiece(tokens=1, wait=hang), watch))
    assert await watch.ending() == NO_NEXT
    await stopped(call)


async def test_a_text_completion_that_is_read_is_streamed_and_one_that_is_awaited_is_not() -> None:
    class Completing(FakeListLLM):
        dog: Any
        seen: Any

        async def _acall(self, *args: Any, **kwargs: Any) -> str:
            self.seen.append(self.dog.waiting)
            return "abc"

        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            self.seen.append(self.dog.waiting)
            yield GenerationChunk(text="abc")

    watch, seen = Watch(), list[int]()
    one = Completing(responses=["abc"], dog=watch.dog, seen=seen)
    await one.ainvoke("hi", watch.config)
    async for _ in one.astream("hi", watch.config):
        pass
    assert seen == [0, 1]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_the_newer_stream_of_typed_events_shows_life_too() -> None:
    watch = Watch(token_s=0.02)

    async def follow() -> None:
        async for _ in await model(say("a"), hang).astream_events(PROMPT, watch.config, version="v3"):
            pass

    call = asyncio.ensure_future(follow())
    assert await watch.ending() == NO_NEXT
    await stopped(call)


# Calls that are over


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_that_is_over_is_forgotten(way: Any) -> None:
    watch = Watch()
    await way(model(*words("a", "b")), watch)
    assert watch.dog.waiting == 0
    with pytest.raises(RuntimeError):
        await way(model(say("a"), RuntimeError("broken")), watch)
    assert watch.dog.waiting == 0


async def test_a_stream_that_was_left_is_forgotten() -> None:
    watch = Watch()
    chunks: Any = model(*words("a", "b")).astream(PROMPT, watch.config)
    await anext(chunks)
    assert watch.dog.waiting == 1
    await chunks.aclose()
    assert watch.dog.waiting == 0


@pytest.mark.parametrize("way", [read, invoke])
async def test_a_call_that_the_graph_has_given_up_is_no_silence_though_no_callback_tells_of_it(way: Any) -> None:
    watch = Watch(0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await way(model(hang), watch)
    await watch.outlasts(0.1)
    await watch.outlasts(0.1)


@pytest.mark.parametrize(
    ("before_s", "first_s", "data"), [(0.4, 1, {"attempt": 1}), (0.4, 1, "mine"), (0, 0.3, {"wait_ms": 600})]
)
async def test_a_retry_gives_those_without_a_chunk_their_time_anew_from_the_end_of_its_wait(
    before_s: float, first_s: float, data: Any
) -> None:
    watch = Watch(first_s)

    async def retries(_: Any) -> None:
        await asyncio.sleep(before_s)
        await adispatch_custom_event(RETRY, data)

    call = asyncio.ensure_future(invoke(model(hang), watch))
    outlasting = asyncio.ensure_future(watch.outlasts(first_s))
    await RunnableLambda(retries).ainvoke(None, watch.config)
    await outlasting
    assert await watch.ending() == NO_FIRST
    await stopped(call)


async def test_at_the_runs_end_or_pause_nothing_is_watched_any_more() -> None:
    watch = Watch(0.05)
    call = asyncio.ensure_future(invoke(model(hang), watch))
    while not watch.dog.waiting:
        await asyncio.sleep(0)
    watch.meter.take_rest(0, "cancelled")
    assert watch.dog.waiting == 0
    await watch.outlasts(0.1)
    await stopped(call)


async def test_what_a_continued_call_repeats_is_no_sign_of_the_providers_life() -> None:
    watch, call = Watch(0.01), uuid4()

    async def goes_on() -> None:
        watch.meter.skip(call)

    config: RunnableConfig = {**watch.config, "run_id": call}
    told = asyncio.ensure_future(model(goes_on, say("It ra"), hang).ainvoke(PROMPT, config))
    assert await watch.ending() == NO_FIRST
    assert [one.output_tokens for one in watch.meter.take_rest(0, "cancelled")] == [0]
    await stopped(told)


# Over a provider


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=200) as one:
        yield one


@pytest.fixture
async def speaks(provider: Simulator) -> AsyncIterator[Speaks]:
    """Makes models whose connections are closed with the test's loop."""
    async with httpx.AsyncClient(timeout=60) as client:
        yield partial(openai, provider.base_url, http_async_client=client)


async def run_of(runner: Runner, text: str, **bounds: float) -> Run:
    """A run that has come to its end."""
    request = RunRequest(input={"messages": [{"role": "user", "content": text}]}, **bounds)  # type: ignore[arg-type]
    run = await runner.start(runner.agent("one"), request, user="ann", streams=False)
    async with asyncio.timeout(20):
        await run.done.wait()
    return run


async def told(run: Run) -> tuple[Error, RunFinished]:
    entries = await run.subscribe(0).read()
    *_, error, finished = (entry.event for entry in entries)
    assert isinstance(error, Error)
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.reason) == ("timed_out", error.code)
    return error, finished


def graph(*nodes: Callable[[MessagesState], Any]) -> Runnable[Any, Any]:
    built: Any = StateGraph(MessagesState)
    for number, node in enumerate(nodes):
        built.add_node(f"n{number}", node)
        built.add_edge(START, f"n{number}")
    return built.compile()  # type: ignore[no-any-return]


def asks(one: Runnable[Any, Any], text: str | None = None) -> Any:
    async def ask(state: MessagesState) -> State:
        return {"messages": [await one.ainvoke(text or state["messages"])]}

    return ask


async def closed(provider: Simulator, until: Until) -> None:
    await until(lambda: all(one.ended for one in provider.requests))


async def test_a_provider_without_a_first_token_is_left(provider: Simulator, speaks: Speaks, until: Until) -> None:
    async with runner_of(graph(asks(speaks()))) as runner:
        run = await run_of(runner, "[[first_token_s=60]] hm", first_token_timeout_s=0.2)
        error, _ = await told(run)
        assert (error.code, error.retryable) == ("first_token_timeout", True)
        assert "FIRST_TOKEN_TIMEOUT_S" in error.message
        await closed(provider, until)
        assert run.result()["usage"]["output_tokens"] == 0


async def test_a_provider_that_stalls_is_left_and_what_came_is_kept_and_counted(
    provider: Simulator, speaks: Speaks, until: Until
) -> None:
    async with runner_of(graph(asks(speaks()))) as runner:
        run = await run_of(runner, "[[stall_after=3]] tell me", token_timeout_s=0.3)
        error, finished = await told(run)
        assert error.code == "token_timeout"
        await closed(provider, until)
        assert provider.requests[-1].tokens_sent == 3
        assert (finished.usage.output_tokens, finished.usage.estimated) == (3, True)
        result = run.result()
        assert result["text"]
        assert result["status"] == "timed_out"


@pytest.mark.parametrize("fault", ["first_token_s=60", "stall_after=3"])
async def test_a_model_that_millrace_builds_is_watched_like_any_other(
    provider: Simulator, until: Until, fault: str
) -> None:
    async with DefaultAsyncHttpxClient() as client:
        one = build_model("openai:simulated", base_url=provider.base_url, client=client)
        async with runner_of(graph(asks(one))) as runner:
            run = await run_of(runner, f"[[{fault}]] hm", first_token_timeout_s=0.3, token_timeout_s=0.3)
            error, _ = await told(run)
            assert error.code == ("token_timeout" if "stall" in fault else "first_token_timeout")
            await closed(provider, until)


async def test_a_tool_knows_only_the_runs_deadline() -> None:
    slow = Slow()
    async with runner_of(tool_caller([slow.tool], [{"name": "wait", "args": {}, "id": "c1"}])) as runner:
        run = await run_of(runner, "wait", timeout_s=0.5, first_token_timeout_s=0.01, token_timeout_s=0.01)
        error, _ = await told(run)
        assert error.code == "run_timeout"
        assert "RUN_TIMEOUT_S" in error.message
        assert slow.cancelled == 1


async def test_an_answer_in_one_piece_knows_only_the_runs_deadline(speaks: Speaks) -> None:
    for one in (speaks(disable_streaming=True), speaks(streaming=False)):
        async with runner_of(graph(asks(one))) as runner:
            run = await run_of(
                runner, "[[first_token_s=0.5&tokens=3]] hm", first_token_timeout_s=0.1, token_timeout_s=0.1
            )
            assert run.status == "completed"


async def test_of_two_branches_the_one_that_stalls_ends_the_run_and_both_streams(
    provider: Simulator, speaks: Speaks, until: Until
) -> None:
    one = speaks()
    both = graph(asks(one, "[[stall_after=3]] a"), asks(one, "[[tokens=5000&burst=0]] b"))
    async with runner_of(both) as runner:
        error, finished = await told(await run_of(runner, "go", token_timeout_s=0.5))
        assert error.code == "token_timeout"
        assert finished.usage.output_tokens > 3
        await closed(provider, until)


async def test_a_stalled_call_in_a_synchronous_node_ends_the_run_and_its_thread_is_left_behind(until: Until) -> None:
    with Simulator(tokens_per_second=200) as provider, installed(2) as executor:
        one = openai(provider.base_url)

        def ask(state: MessagesState) -> State:
            return {"messages": [one.invoke(state["messages"])]}

        async with runner_of(graph(ask)) as runner:
            run = await run_of(runner, "[[stall_after=3]] tell me", token_timeout_s=0.3)
            error, finished = await told(run)
            assert (error.code, finished.usage.output_tokens) == ("token_timeout", 3)
            assert executor.running == 1
            provider.stop()
            await until(lambda: executor.running == 0)
