"""The layer in front of a model's class, against a provider over real HTTP."""

import asyncio
import functools
import gc
import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from openai import APIStatusError, DefaultAsyncHttpxClient, OpenAIError
from pydantic import BaseModel

from app.simulator.server import Simulator
from chains.answering import GO_ON, Continuation, prefills, serve
from chains.models import build_model
from chains.retries import Retries
from chains.shortcut import CONTROL

Until = Callable[[Callable[[], bool]], Any]


@pytest.fixture
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


class Waits:
    """Waits for no time at all, and remembers for how long it should have been."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def retries(self) -> Retries:
        return Retries(sleep=self.sleep, block=self.seconds.append, random=lambda: 1.0)


@pytest.fixture
def waits() -> Waits:
    return Waits()


Make = Callable[..., BaseChatModel]


@pytest.fixture
async def make(provider: Simulator, waits: Waits) -> AsyncIterator[Make]:
    """``make("status=503")``: a model whose provider was told that."""
    async with DefaultAsyncHttpxClient() as client:

        def build(told: str = "", name: str = "simulated", **options: Any) -> BaseChatModel:
            return build_model(
                f"openai:{name}?{told}" if told else f"openai:{name}",
                base_url=provider.base_url,
                client=client,
                retries=waits.retries(),
                **options,
            )

        yield build


async def astream(model: Runnable[Any, Any], question: Any = "hello", config: RunnableConfig | None = None) -> str:
    return "".join([chunk.text async for chunk in model.astream(question, config)])


async def ainvoke(model: Runnable[Any, Any], question: Any = "hello", config: RunnableConfig | None = None) -> str:
    return str((await model.ainvoke(question, config)).text)


async def stream(model: Runnable[Any, Any], question: Any = "hello", config: RunnableConfig | None = None) -> str:
    return await asyncio.to_thread(lambda: "".join(chunk.text for chunk in model.stream(question, config)))


async def invoke(model: Runnable[Any, Any], question: Any = "hello", config: RunnableConfig | None = None) -> str:
    return str((await asyncio.to_thread(model.invoke, question, config)).text)


Way = Callable[..., Any]
every_way = pytest.mark.parametrize("way", [astream, ainvoke, stream, invoke])
streamed = pytest.mark.parametrize("way", [astream, stream])


# -- retries ----------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("status", [429, 503])
async def test_a_refused_call_is_made_again(
    make: Make, way: Way, status: int, provider: Simulator, waits: Waits
) -> None:
    model = make(f"status={status}&fail_times=2&tokens=5")
    assert await way(model) == "The stream turns without"
    assert [exchange.status for exchange in provider.requests] == [status, status, 200]
    assert waits.seconds == [0.5, 1.0]


@every_way
async def test_two_attempts_follow_the_first_and_no_more(make: Make, way: Way, provider: Simulator) -> None:
    with pytest.raises(APIStatusError):
        await way(make("status=503"))
    assert len(provider.requests) == 3


@every_way
@pytest.mark.parametrize("told", ["status=400", "status=401", "status=404", "status=429&code=insufficient_quota"])
async def test_what_will_not_change_is_asked_once(make: Make, way: Way, told: str, provider: Simulator) -> None:
    with pytest.raises(APIStatusError):
        await way(make(told))
    assert len(provider.requests) == 1


@every_way
async def test_the_provider_says_when(make: Make, way: Way, provider: Simulator, waits: Waits) -> None:
    await way(make("status=429&retry_after=7&fail_times=1"))
    assert waits.seconds == [7.25]
    assert len(provider.requests) == 2


@every_way
async def test_a_provider_that_wants_to_be_left_alone_for_long_is_not_waited_for(
    make: Make, way: Way, provider: Simulator, waits: Waits
) -> None:
    with pytest.raises(APIStatusError) as caught:
        await way(make("status=429&retry_after=60&fail_times=1"))
    assert caught.value.response.headers["retry-after"] == "60"
    assert len(provider.requests) == 1
    assert waits.seconds == []


@every_way
async def test_a_connection_that_was_closed_without_a_response_is_opened_anew(
    make: Make, way: Way, provider: Simulator
) -> None:
    model = make("hang_up=1&fail_times=1&tokens=5&call=2")
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    assert await way(model, [HumanMessage("one")])
    answer = await way(model, [HumanMessage("one"), call, ToolMessage("x", tool_call_id="1")])
    assert answer == "The stream turns without"
    assert [exchange.status for exchange in provider.requests] == [200, None, 200]
    if way is not stream:  # the synchronous client keeps no connection after a stream
        assert [exchange.connection for exchange in provider.requests] == [1, 1, 2]


@every_way
async def test_a_provider_that_cannot_be_reached_is_tried_again(
    make: Make, way: Way, provider: Simulator, waits: Waits
) -> None:
    provider.stop()
    with pytest.raises(OpenAIError):
        await way(make())
    assert len(waits.seconds) == 2
    assert provider.requests == []


@streamed
@pytest.mark.parametrize("told", ["drop_after=3", "error_after=3", "drop_after=0", "error_after=0"])
async def test_an_answer_that_has_begun_is_never_begun_again(
    make: Make, way: Way, told: str, provider: Simulator
) -> None:
    with pytest.raises(Exception, match=r"(?i)connection|read|incomplete|simulated|reset|network|peer|^$"):
        await way(make(f"{told}&tokens=9"))
    assert len(provider.requests) == 1


async def test_a_timeout_is_not_repeated_as_the_provider_may_be_at_work(make: Make, provider: Simulator) -> None:
    with pytest.raises(OpenAIError):
        await astream(make("headers_s=30", timeout=0.2))
    assert len(provider.requests) == 1


async def test_a_cancel_ends_the_wait(make: Make, provider: Simulator, until: Until) -> None:
    model = serve(make("status=503"), retries=Retries(random=lambda: 1000.0))
    task = asyncio.create_task(astream(model))
    await until(lambda: bool(provider.requests) and provider.requests[0].ended is not None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(provider.requests) == 1


async def test_a_cancel_that_was_swallowed_is_no_reason_to_ask_again(provider: Simulator, waits: Waits) -> None:
    class Swallowing(ParrotFakeChatModel):
        asked: int = 0

        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            self.asked += 1
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise ConnectionRefusedError from None
            yield ChatGenerationChunk(message=AIMessageChunk(content="never"))

    model = serve(Swallowing(), retries=waits.retries())
    task = asyncio.create_task(astream(model))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(ConnectionRefusedError):
        await task
    assert model.asked == 1


class Raising(BaseCallbackHandler):
    """What a run's own callback does when the run is over."""

    run_inline = True
    raise_error = True

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.chunks = 0

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.chunks += 1
        raise self.error


@streamed
async def test_an_error_of_a_callback_is_not_the_providers(make: Make, way: Way, provider: Simulator) -> None:
    callback = Raising(ConnectionRefusedError("the run is over"))
    with pytest.raises(ConnectionRefusedError):
        await way(make("tokens=5"), "hello", {"callbacks": [callback]})
    assert len(provider.requests) == 1
    assert callback.chunks == 1


# -- retries are seen -------------------------------------------------------------------------------------------------


SEEN = {"attempt": 1, "of": 2, "wait_ms": 500, "reason": "unavailable", "status": 503}


def graph(node: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    built = StateGraph(MessagesState)
    built.add_node("model", node)
    built.add_edge(START, "model")
    built.add_edge("model", END)
    return built.compile()


def agents(model: BaseChatModel) -> dict[str, Runnable[Any, Any]]:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def streaming(state: MessagesState) -> dict[str, Any]:
        return {"messages": ["".join([chunk.text async for chunk in model.astream(state["messages"])])]}

    def synchronous(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    bound = model.bind(temperature=0)

    async def binding(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"], config)]}

    return {
        "node": graph(node),
        "streaming node": graph(streaming),
        "synchronous node": graph(synchronous),
        "binding": graph(binding),
        "subgraph": graph(graph(node)),
        "chain": ChatPromptTemplate.from_messages([("placeholder", "{messages}")]) | model,
        "model": ChatPromptTemplate.from_messages([("placeholder", "{messages}")]) | model | (lambda it: it),
    }


@pytest.mark.parametrize("name", agents(ParrotFakeChatModel()))
async def test_each_retry_is_an_event_of_the_run(make: Make, name: str, provider: Simulator) -> None:
    agent = agents(make("status=503&fail_times=1&tokens=5"))[name]
    events = [event async for event in agent.astream_events({"messages": [HumanMessage("hi")]})]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert [(event["name"], event["data"]) for event in custom] == [("provider.retry", SEEN)]
    called = next(event for event in events if event["event"] == "on_chat_model_start")
    assert custom[0]["run_id"] == called["parent_ids"][-1]
    starts = [at for at, event in enumerate(events) if event["event"] == "on_chat_model_stream"]
    assert events.index(custom[0]) < starts[0]
    assert len(provider.requests) == 2


async def test_a_model_that_is_run_by_itself_says_it_too(make: Make) -> None:
    model = make("status=503&fail_times=1&tokens=5")
    events = [event async for event in model.astream_events("hi")]
    (custom,) = [event for event in events if event["event"] == "on_custom_event"]
    assert custom["data"] == SEEN
    assert custom["run_id"] == events[0]["run_id"]


# -- what is behind the layer stays what it is -------------------------------------------------------------------------


def test_a_served_model_is_what_it_was(provider: Simulator) -> None:
    plain = ChatOpenAI(model="m", base_url=provider.base_url, api_key="x", temperature=0.5)  # type: ignore[arg-type]
    served = serve(plain.model_copy())
    assert isinstance(served, ChatOpenAI)
    assert served.get_name() == plain.get_name() == "ChatOpenAI"
    assert served._llm_type == plain._llm_type
    assert dumpd(served) == dumpd(plain)
    assert type(served).model_fields.keys() == ChatOpenAI.model_fields.keys()
    copied = served.model_copy(update={"temperature": 1.0})
    assert (type(copied), copied.temperature) == (type(served), 1.0)
    assert type(plain) is ChatOpenAI


def test_the_clients_own_retries_and_timeouts_are_off(provider: Simulator) -> None:
    model = cast("ChatOpenAI", build_model("openai:m", base_url=provider.base_url))
    assert (model.max_retries, model.root_client.max_retries, model.root_async_client.max_retries) == (0, 0, 0)
    assert model.stream_chunk_timeout is None
    assert cast("ChatOpenAI", build_model("openai:m", base_url="http://x", max_retries=4)).max_retries == 4
    azure = build_model("azure_openai:m", azure_endpoint="http://x", api_version="1", openai_api_key="x")
    assert getattr(azure, "max_retries", None) == 0


@every_way
async def test_structured_output_tools_and_bindings_work_through_it(make: Make, way: Way, provider: Simulator) -> None:
    class Weather(BaseModel):
        """The weather."""

        city: str

    model = make("status=503&fail_times=1")
    assert isinstance(await model.with_structured_output(Weather).ainvoke("Weather in Oslo?"), Weather)
    assert len(provider.requests) == 2
    assert await way(model.bind(max_tokens=3), "count to 9") == "1, 2"
    asked = await model.bind_tools([Weather]).ainvoke("What is the weather in Oslo?")
    assert [call["name"] for call in asked.tool_calls] == ["Weather"]


@every_way
async def test_a_class_that_does_not_stream_is_not_thought_to(way: Way) -> None:
    class Plain(BaseChatModel):
        asked: int = 0

        @property
        def _llm_type(self) -> str:
            return "plain"

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            self.asked += 1
            if self.asked == 1:
                raise ConnectionRefusedError
            return ChatResult(generations=[ChatGeneration(message=AIMessage("plain"))])

    model = serve(Plain(), retries=Waits().retries())
    assert await way(model) == "plain"
    assert model.asked == 2


@every_way
async def test_a_class_with_synchronous_methods_alone_is_asked_once_per_attempt(way: Way, waits: Waits) -> None:
    class Synchronous(ParrotFakeChatModel):
        asked: int = 0

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            self.asked += 1
            raise ConnectionRefusedError

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            self.asked += 1
            yield from ()
            raise ConnectionRefusedError

    model = serve(Synchronous(), retries=waits.retries())
    with pytest.raises(ConnectionRefusedError):
        await way(model)
    assert model.asked == 3
    assert len(waits.seconds) == 2


# -- the provider's stream is closed ----------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever closes now, closes without it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_reader_that_leaves_closes_the_providers_stream(make: Make, provider: Simulator) -> None:
    model = make("tokens_per_second=50&tokens=500")
    async with aclosing(cast("Any", model.astream("hello"))) as chunks:
        async for chunk in chunks:
            if chunk.text:
                break
    assert await asyncio.to_thread(provider.wait_closed, 1)
    assert provider.requests[0].tokens_sent < 100


@pytest.mark.usefixtures("no_collector")
def test_a_synchronous_reader_that_leaves_closes_it_too(provider: Simulator) -> None:
    model = build_model("openai:simulated?tokens_per_second=50&tokens=500", base_url=provider.base_url)
    with closing(cast("Any", model.stream("hello"))) as chunks:
        next(chunks)
        next(chunks)
    assert provider.wait_closed(1)


async def test_a_reader_that_leaves_has_ended_the_call_when_it_has_left(make: Make) -> None:
    class Ended(BaseCallbackHandler):
        error: BaseException | None = None

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            self.error = error

    ended = Ended()
    async with aclosing(cast("Any", make("tokens=50").astream("hello", {"callbacks": [ended]}))) as chunks:
        await anext(chunks)
    assert isinstance(ended.error, GeneratorExit)


class Hanging(BaseCallbackHandler):
    """A callback that a cancel meets: then the provider's generator is not what is being awaited."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", [astream, ainvoke])
async def test_a_cancel_closes_the_providers_stream_wherever_it_strikes(
    make: Make, way: Way, provider: Simulator
) -> None:
    from langchain_core.callbacks import AsyncCallbackHandler

    class Handler(Hanging, AsyncCallbackHandler):
        pass

    handler = Handler()
    model = make("tokens_per_second=50&tokens=500", streaming=True)
    task = asyncio.create_task(way(model, "hello", {"callbacks": [handler]}))
    await handler.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    assert await asyncio.to_thread(provider.wait_closed, 1)
    assert kept.value is not None  # and with it every frame on the way


# -- the run's wishes -------------------------------------------------------------------------------------------------


class Told:
    """A run's control that lets one call go on."""

    def __init__(self, said: str | None = None, max_tokens: int | None = None) -> None:
        self.said = said
        self.max_tokens = max_tokens
        self.asked: list[UUID] = []

    def take(self, run_id: UUID) -> tuple[str, str] | None:
        self.asked.append(run_id)
        said, self.said = self.said, None
        return None if said is None else (said, "m-1")

    def shortcut(self, run_id: UUID, message_id: str, handlers: Sequence[object], *, seen: bool) -> None:
        return None


def under(told: Told, **more: Any) -> RunnableConfig:
    return cast("RunnableConfig", {"configurable": {CONTROL: told}, **more})


def chain(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_messages([("user", "{input}")]) | model


@every_way
async def test_a_run_bounds_each_of_its_calls(make: Make, way: Way) -> None:
    assert await way(chain(make()), {"input": "count to 9"}, under(Told(max_tokens=3))) == "1, 2"
    assert await way(chain(make()), {"input": "count to 9"}, under(Told(max_tokens=500))) != "1, 2"


@every_way
async def test_the_graphs_own_bound_wins_and_so_does_a_models_that_is_lower(make: Make, way: Way) -> None:
    assert await way(chain(make().bind(max_tokens=6)), {"input": "count to 9"}, under(Told(max_tokens=3))) == "1, 2, 3,"
    assert await way(chain(make(max_tokens=1)), {"input": "count to 9"}, under(Told(max_tokens=3))) == "1"


@every_way
@pytest.mark.parametrize("cut", [1, 40, 214, 215])
async def test_an_answer_goes_on_from_where_it_was(make: Make, way: Way, cut: int, provider: Simulator) -> None:
    agent = chain(make("tokens=120&paragraphs=3"))
    whole = await way(agent, {"input": "hello"})
    assert whole.count("\n\n") == 2
    assert await way(agent, {"input": "hello"}, under(Told(whole[:cut]))) == whole
    assert provider.requests[-1].roles == ("user", "assistant")
    assert provider.requests[-1].tokens_sent <= provider.requests[0].tokens_sent


@every_way
@pytest.mark.parametrize("said", ["", "\n\n"])
async def test_an_answer_without_a_word_so_far_is_begun(make: Make, way: Way, said: str, provider: Simulator) -> None:
    assert (
        await way(chain(make("tokens=5")), {"input": "hello"}, under(Told(said))) == f"{said}The stream turns without"
    )
    assert provider.requests[-1].roles == ("user",)


@pytest.mark.parametrize("said", ["", "The stream turns"])
async def test_the_first_chunk_is_the_text_so_far_and_the_message_has_the_id_it_had(make: Make, said: str) -> None:
    events = [
        event["data"]["chunk"]
        async for event in chain(make("tokens=40")).astream_events({"input": "hello"}, under(Told(said)))
        if event["event"] == "on_chat_model_stream"
    ]
    assert events[0].text == said
    assert "".join(chunk.text for chunk in events[1:])[: len(said)] != said or not said
    assert functools.reduce(operator.add, events).id == "m-1"
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in events) == 40 - len(said.split())


async def test_the_call_that_goes_on_is_asked_for_by_the_id_it_has_in_events(make: Make) -> None:
    model = make("tokens=5")
    for agent in (chain(model), *(agents(model)[name] for name in ("node", "streaming node", "synchronous node"))):
        told = Told()
        value = {"input": "hi", "messages": [HumanMessage("hi")]}
        events = [event async for event in agent.astream_events(value, under(told))]
        started = [event["run_id"] for event in events if event["event"] == "on_chat_model_start"]
        assert [str(one) for one in told.asked] == started


@every_way
async def test_a_continued_call_is_tried_again_too(make: Make, way: Way, provider: Simulator, waits: Waits) -> None:
    said = "The stream turns"
    answer = await way(chain(make("tokens=9&status=503&fail_times=2")), {"input": "hello"}, under(Told(said)))
    assert answer == "The stream turns without haste and nothing"
    assert [exchange.status for exchange in provider.requests] == [503, 503, 200]


@every_way
@pytest.mark.parametrize("overlap", [0, 5, 1000])
async def test_without_prefill_it_is_asked_to_go_on_and_what_it_says_twice_is_trimmed(
    make: Make, way: Way, overlap: int, provider: Simulator
) -> None:
    agent = chain(make(f"overlap={overlap}" if overlap else "", name="other"))
    whole = await way(agent, {"input": "write three paragraphs"})
    for cut in (whole.index("\n\n") + 2, len(whole) // 2 - 3):
        assert await way(agent, {"input": "write three paragraphs"}, under(Told(whole[:cut]))) == whole
        assert provider.requests[-1].roles == ("user", "assistant", "user")


@every_way
async def test_a_model_that_begins_anew_is_trimmed_to_what_is_new(make: Make, way: Way) -> None:
    agent = chain(make("tokens=60", name="other"))
    whole = await way(agent, {"input": "hello"})
    assert await way(agent, {"input": "hello"}, under(Told(whole[:100]))) == whole


@every_way
async def test_long_repetitions_are_trimmed_with_prefill_too(make: Make, way: Way) -> None:
    agent = chain(make("tokens=60&overlap=9"))
    whole = await way(agent, {"input": "hello"})
    assert await way(agent, {"input": "hello"}, under(Told(whole[:100]))) == whole


async def test_an_answer_from_tool_results_goes_on_too(make: Make, provider: Simulator) -> None:
    asked = [
        HumanMessage("What is 17*23?"),
        AIMessage("", tool_calls=[{"name": "calculator", "args": {"expression": "17*23"}, "id": "1"}]),
        ToolMessage("391", tool_call_id="1"),
    ]
    assert await astream(make(), asked, under(Told("17*23"))) == "17*23 = 391."
    assert provider.requests[-1].roles == ("user", "assistant", "tool", "assistant")


@streamed
async def test_a_class_with_a_synchronous_stream_alone_goes_on_once(way: Way) -> None:
    class Synchronous(ParrotFakeChatModel):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            for text in ("two", " three"):
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    told = Told("One two")
    assert await way(chain(serve(Synchronous())), {"input": "hello"}, under(told)) == "One two three"
    assert len(told.asked) == 1


def test_white_space_at_the_end_is_not_sent_to_a_model_with_prefill() -> None:
    messages = Continuation("One.\n\n", "m-1", prefill=True).messages([HumanMessage("hi")])
    assert [message.content for message in messages] == ["hi", "One."]


def test_a_continued_message_has_one_id_whatever_the_provider_says() -> None:
    continuation = Continuation("One", "m-1", prefill=True)
    chunk = ChatGenerationChunk(message=AIMessageChunk(content=" two", id="msg_1"))
    assert continuation.next(chunk).message.id == continuation.first().message.id


def test_the_wish_to_go_on_is_understood_by_models_that_read() -> None:
    messages = Continuation("Half", "m-1", prefill=False).messages([HumanMessage("hi")])
    assert [message.content for message in messages] == ["hi", "Half", GO_ON]


def test_text_in_blocks_is_trimmed_and_other_blocks_are_kept() -> None:
    continuation = Continuation("One two", "m-1", prefill=False)
    block = {"type": "text", "text": "two three", "index": 0}
    thought = {"type": "reasoning", "reasoning": "two"}
    chunk = ChatGenerationChunk(message=AIMessageChunk(content=[thought, block]))
    assert continuation.next(chunk).message.content == [thought, {**block, "text": " three"}]


def test_what_is_held_back_comes_before_a_tool_call() -> None:
    continuation = Continuation("One two three", "m-1", prefill=False)
    assert continuation.next(ChatGenerationChunk(message=AIMessageChunk(content="One"))).text == ""
    calling = AIMessageChunk(content="", tool_call_chunks=[{"name": "f", "args": "", "id": "1", "index": 0}])
    assert continuation.next(ChatGenerationChunk(message=calling)).text == "One"
    assert continuation.last() is None


# -- prefill ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider_name", "model", "known"),
    [
        ("openai", "simulated", True),
        ("openai", "simulated?tokens=5", True),
        ("openai", "gpt-5-mini", False),
        ("anthropic", "claude-3-5-sonnet-20241022", True),
        ("anthropic", "claude-opus-4-20250514", True),
        ("anthropic", "claude-opus-4-1-20250805", True),
        ("anthropic", "claude-sonnet-4-5", True),
        ("anthropic", "claude-haiku-4-5-20251001", True),
        ("anthropic", "claude-opus-4-6", False),
        ("anthropic", "claude-sonnet-4-6-20260101", False),
        ("anthropic", "claude-opus-5", False),
        ("anthropic", "claude-opus-4-50", False),
        ("fireworks", "simulated", False),
    ],
)
def test_which_models_go_on_without_a_seam(provider_name: str, model: str, known: bool) -> None:
    class Named(ParrotFakeChatModel):
        def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
            return {"ls_provider": provider_name, "ls_model_name": model}

    assert prefills(serve(Named())) is known
    assert prefills(serve(Named(), prefill=not known)) is not known


def test_a_binding_goes_on_as_its_model_does(provider: Simulator) -> None:
    model = build_model("openai:simulated", base_url=provider.base_url)
    assert prefills(model)
    assert prefills(model.bind_tools([]))
    assert not prefills(ParrotFakeChatModel())
