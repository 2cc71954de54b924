"""The provider's stream as plain dicts, and plain text past LangChain: the same answers, errors and order as stock."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from uuid import UUID

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from openai import APIConnectionError, APIError, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, SecretStr

from chains.deltas import MAX_CHUNKS, MAX_EVENT, Answer, Asked, Events, _Inlet, plain_text
from chains.quick import quick_deltas
from chains.shortcut import CONTROL, Shortcut
from chains.transport import Body

Choice = dict[str, Any]


def chunk(choice: Choice | None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [] if choice is None else [{"index": 0, **choice}], **more}


def says(text: str, **more: Any) -> Choice:
    return {"delta": {"content": text, **more}, "finish_reason": None}


ROLE = chunk(says("", role="assistant"))
END = chunk({"delta": {}, "finish_reason": "stop"})
USAGE = chunk(None, usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
CALL = chunk({"delta": {"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": "{}"}}]}})
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode())


def wire(*chunks: Any) -> list[bytes]:
    return [*map(event, chunks), DONE]


LOGPROBS = {"content": [{"token": "a", "bytes": [97], "logprob": -1.0, "top_logprobs": []}], "refusal": None}

STREAMS: dict[str, list[bytes]] = {
    "text": wire(ROLE, chunk(says("Once")), chunk(says(" upon")), END, USAGE),
    "text_and_call": wire(ROLE, chunk(says("Let me see.")), CALL, END),
    "call_and_text": wire(ROLE, CALL, chunk(says("Done.")), END),
    "thought": wire(ROLE, chunk({"delta": {"reasoning_content": "Hm."}}), chunk(says("Yes.")), END),
    "refusal": wire(ROLE, chunk(says("I")), chunk({"delta": {"refusal": "No."}}), END),
    "logprobs": wire(ROLE, chunk({**says("a"), "logprobs": LOGPROBS}), END),
    "no_delta": wire(ROLE, chunk({"finish_reason": None}), chunk(says("x")), END),
    "delta_of_nothing": wire(ROLE, chunk({"delta": None}), chunk(says("x")), END),
    "call_without_index": wire(chunk({"delta": {"tool_calls": [{"id": "t", "function": {"name": "f"}}]}}), END),
    "two_choices": wire(chunk(says("a")), {"id": "c", "choices": [{"index": 1, **says("b")}]}, END),
    "usage_with_each": wire(*(chunk(says(one), usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
                              for one in "ab"), END),
    "no_end": [event(ROLE), event(chunk(says("half")))],
    "nothing": [DONE],
    "comments_and_names": [b": hello\n\n", b"event: x\ndata: " + json.dumps(ROLE).encode() + b"\n\n", *wire(END)],
    "carriage_returns": [one.replace(b"\n", b"\r\n") for one in wire(ROLE, chunk(says("a")), END)],
    "half_of_a_pair": [event(ROLE), event(b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}'),
                       event(b'{"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}'), *wire(END)],
    "after_the_end": [*wire(ROLE, chunk(says("a")), END), event(chunk(says("b")))],
    "an_error": [event(ROLE), event(chunk(says("half"))), event({"error": {"message": "overloaded", "code": 1}})],
    "an_error_without_words": [event(chunk(says("half"))), event({"error": "bad"})],
    "no_json": [event(chunk(says("half"))), event(b"{oops")],
    "cut": [event(chunk(says("half"))), b"CUT"],
}  # fmt: skip


@asynccontextmanager
async def provider(pieces: Sequence[bytes]) -> AsyncIterator[str]:
    """Answers every request with these pieces, one packet each; ``CUT`` ends the connection there."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for piece in pieces:
                    if piece == b"CUT":
                        return
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with served(answer) as url:
        yield url


async def asked(reader: asyncio.StreamReader) -> None:
    """Read a request."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))


@asynccontextmanager
async def served(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """A provider that speaks with its client itself, to the end of their connection."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with asyncio.timeout(20):
        await asyncio.gather(*connections)


@asynccontextmanager
async def model_of(
    url: str, client: httpx2.AsyncClient | None = None, kind: type[ChatOpenAI] = ChatOpenAI, **options: Any
) -> AsyncIterator[ChatOpenAI]:
    async with client or DefaultAsyncHttpxClient() as http:
        options = {"max_retries": 0, "stream_chunk_timeout": None, "stream_usage": True, **options}
        yield kind(base_url=url, api_key=SecretStr("none"), model="m", http_async_client=http, **options)


Read = Callable[[ChatOpenAI], Any]


async def chunks_of(model: ChatOpenAI) -> Any:
    """The chunks, and how it ended."""
    chunks: list[Any] = []
    try:
        async for one in model._astream([]):
            chunks.append((one.message, one.generation_info))  # noqa: PERF401 - an error must not take them away
    except Exception as error:
        return chunks, type(error), str(error)
    return chunks, None, None


class Listener:
    """A run that gives shortcuts and hears what is said, up to ``most`` pieces."""

    def __init__(self, most: int = 1000) -> None:
        self.said: list[str] = []
        self.asked: list[Sequence[object]] = []
        self._most = most

    def shortcut(self, run_id: UUID, message_id: str, handlers: Sequence[object], *, seen: bool) -> Shortcut:
        self.asked.append(handlers)
        return self

    def say(self, text: str) -> bool:
        if len(self.said) == self._most:
            return False
        self.said.append(text)
        return True


async def answer_of(model: ChatOpenAI, listener: Listener | None = None) -> Any:
    """What an ``ainvoke`` in a graph's node comes to."""

    async def ask(_: str) -> Any:
        answer = await model.ainvoke("?")
        return answer.model_copy(update={"id": None})

    try:
        return await RunnableLambda(ask).ainvoke("", {"configurable": {CONTROL: listener}})
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("stream", STREAMS)
async def test_chunks_errors_and_their_order_are_those_of_the_stock_stream(stream: str) -> None:
    async with provider(STREAMS[stream]) as url:
        async with model_of(url) as model:
            expected = await chunks_of(model)
        async with quick_deltas(), model_of(url) as model:
            assert await chunks_of(model) == expected


@pytest.mark.parametrize("stream", STREAMS)
async def test_they_are_so_in_synchronous_calls(stream: str) -> None:
    def chunks_of_sync(url: str) -> Any:
        options: dict[str, Any] = {"max_retries": 0, "stream_usage": True}
        chunks: list[Any] = []
        with httpx2.Client() as client:
            model = ChatOpenAI(base_url=url, api_key=SecretStr("none"), model="m", http_client=client, **options)
            try:
                for one in model._stream([]):
                    chunks.append((one.message, one.generation_info))  # noqa: PERF401
            except Exception as error:
                return chunks, type(error), str(error)
        return chunks, None, None

    async with provider(STREAMS[stream]) as url:
        expected = await asyncio.to_thread(chunks_of_sync, url)
        async with quick_deltas():
            assert await asyncio.to_thread(chunks_of_sync, url) == expected


@pytest.mark.parametrize("stream", STREAMS)
async def test_they_are_so_over_another_transport(stream: str) -> None:
    class Other(httpx2.AsyncHTTPTransport):
        """Somebody's own, which is left where it is."""

    async with provider(STREAMS[stream]) as url:
        async with model_of(url) as model:
            expected = await chunks_of(model)
        async with quick_deltas(), model_of(url, httpx2.AsyncClient(transport=Other())) as model:
            assert await chunks_of(model) == expected


@pytest.mark.parametrize("most", [0, 1, 1000])
@pytest.mark.parametrize("stream", STREAMS)
async def test_an_answer_is_the_same_whether_its_text_went_past_langchain_or_not(stream: str, most: int) -> None:
    async with provider(STREAMS[stream]) as url:
        async with model_of(url, streaming=True) as model:
            expected = await answer_of(model)
        async with quick_deltas(), model_of(url, streaming=True) as model:
            assert await answer_of(model, Listener(most)) == expected


async def test_what_goes_past_langchain_is_the_plain_text_up_to_anything_else() -> None:
    stream = wire(ROLE, chunk(says("a")), chunk(says("b")), CALL, chunk(says("c")), END)
    listener = Listener()
    async with provider(stream) as url, quick_deltas(), model_of(url, streaming=True) as model:
        await answer_of(model, listener)
    assert listener.said == ["a", "b"]


async def test_who_refuses_a_text_is_offered_no_other() -> None:
    stream = wire(ROLE, *(chunk(says(one)) for one in "abc"), END)
    listener = Listener(1)
    async with provider(stream) as url, quick_deltas(), model_of(url, streaming=True) as model:
        assert (await answer_of(model, listener)).content == "abc"
    assert listener.said == ["a"]


async def test_user_code_that_reads_a_stream_gets_every_chunk() -> None:
    listener = Listener()
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url) as model:

        async def ask(_: str) -> list[str]:
            return [one.text async for one in model.astream("?") if one.text]

        assert await RunnableLambda(ask).ainvoke("", {"configurable": {CONTROL: listener}}) == ["Once", " upon"]
    assert not listener.asked


async def test_a_class_that_looks_at_its_chunks_gets_every_one() -> None:
    class Shouting(ChatOpenAI):
        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async for one in super()._astream(*args, **kwargs):
                one.message.content = f"{one.message.content}!"
                yield one

    listener = Listener()
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, kind=Shouting, streaming=True) as model:
        answer = await answer_of(model, listener)
    assert answer.content == "!Once! upon!!!"
    assert not listener.asked


async def test_a_class_that_finds_more_in_a_chunk_is_given_every_one() -> None:
    class Thinking(ChatOpenAI):
        def _convert_chunk_to_generation_chunk(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._convert_chunk_to_generation_chunk(*args, **kwargs)
            if found is not None and found.message.content:
                found.message.content = f"<{found.message.content}>"
            return found

    listener = Listener()
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, kind=Thinking, streaming=True) as model:
        answer = await answer_of(model, listener)
    assert answer.content == "<Once>< upon>"
    assert not listener.asked


async def test_what_the_client_does_not_know_it_refuses_as_ever() -> None:
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, streaming=True) as model:
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            await model.ainvoke("?", colour="red")


async def test_what_is_not_plain_the_client_makes_plain_as_ever() -> None:
    class Prediction(BaseModel):
        type: str = "content"
        content: str = "Once upon"

    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, streaming=True) as model:
        assert (await model.ainvoke("?", prediction=Prediction())).content == "Once upon"


async def test_a_cache_of_the_users_knows_nothing_of_the_trial() -> None:
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        async with quick_deltas():
            assert hasattr(vars(BaseChatOpenAI)["_astream"], "millrace_used")
    finally:
        set_llm_cache(None)
    assert not cache._cache


async def test_who_gives_shortcuts_is_told_who_else_listens() -> None:
    class Other(BaseCallbackHandler):
        pass

    other, listener = Other(), Listener()
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, streaming=True) as model:

        async def ask(_: str) -> None:
            await model.ainvoke("?")

        config = RunnableConfig(configurable={CONTROL: listener}, callbacks=[other])
        await RunnableLambda(ask).ainvoke("", config)
    assert [other in handlers for handlers in listener.asked] == [True]


async def test_the_client_itself_gives_user_code_its_own_objects() -> None:
    async with provider(STREAMS["text"]) as url, quick_deltas(), model_of(url, streaming=True) as model:
        await answer_of(model, Listener())
        stream = await model.async_client.create(model="m", messages=[], stream=True)
        assert all([isinstance(one, ChatCompletionChunk) async for one in stream])


async def test_who_stops_reading_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(chunk(says("a"))))
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with served(answer) as url, quick_deltas(), model_of(url, streaming=True) as model:
        listener = Listener()
        asking = asyncio.create_task(answer_of(model, listener))
        async with asyncio.timeout(20):
            while not listener.said:
                await asyncio.sleep(0.001)
            asking.cancel()
            await closed.wait()


async def test_after_an_answer_its_connection_serves_the_next() -> None:
    peers = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(writer.get_extra_info("peername"))
        while True:
            await asked(reader)
            body = b"".join(STREAMS["text"])
            writer.write(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with served(answer) as url, quick_deltas(), model_of(url) as model:
        for _ in range(3):
            assert (await model.ainvoke("?", stream=True)).content == "Once upon"
    assert len(peers) == 1


async def test_a_model_with_a_bound_on_silence_is_shown_something_while_text_goes_past_it() -> None:
    answer = Answer(Asked(Listener(), bound_s=0))
    for one in "abc":
        answer.hear(chunk(says(one)))
    assert [one["choices"][0]["delta"]["content"] for one in answer.chunks] == ["a", "b", "c"]


async def test_errors_are_those_of_the_openai_client() -> None:
    async with quick_deltas():
        async with provider(STREAMS["cut"]) as url, model_of(url) as model:
            with pytest.raises(APIConnectionError):
                await model.ainvoke("?", stream=True)
        async with provider(STREAMS["an_error"]) as url, model_of(url) as model:
            with pytest.raises(APIError, match="overloaded"):
                await model.ainvoke("?", stream=True)


class Held:
    """A body whose bytes come when the test wants, and who was told what."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def push(self, data: Callable[[bytes], None], _: Callable[[Exception | None], None]) -> None:
        self.data = data

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


async def test_who_does_not_read_holds_the_provider_up() -> None:
    body, answer = Held(), Answer(Asked(None, None))
    inlet = _Inlet(httpx2.Request("POST", "http://none"), answer, cast("Body", body))
    body.data(b"".join(map(event, [ROLE] * MAX_CHUNKS)))
    assert body.told == []
    body.data(event(ROLE))
    body.data(event(ROLE))
    assert body.told == ["pause"]
    answer.chunks.clear()
    inlet.drained()
    assert body.told == ["pause", "resume"]


# Whether it fits


async def test_it_is_said_once_when_the_libraries_are_not_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    listener, deaf = Listener(), lambda _: False
    async with provider(STREAMS["text"]) as url, quick_deltas(deaf), model_of(url, streaming=True) as model:
        assert (await answer_of(model, listener)).content == "Once upon"
    assert not listener.asked
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING and one.name.startswith("millrace")]
    assert "text has no shortcut" in record.getMessage()


INSTRUMENTED = """
import asyncio, functools
from openai.resources.chat.completions import AsyncCompletions
seen = []
def wrapped(create):
    @functools.wraps(create)
    async def watched(self, **options):
        seen.append(options["messages"])
        return await create(self, **options)
    return watched
AsyncCompletions.create = wrapped(AsyncCompletions.create)
import httpx2
from langchain_openai import ChatOpenAI
from chains.quick import _answer, quick_deltas

async def main():
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: _answer()))
    async with quick_deltas():
        seen.clear()
        model = ChatOpenAI(model="m", api_key="none", http_async_client=client, streaming=True)
        print((await model.ainvoke("what?")).content, seen)

asyncio.run(main())
"""


def test_who_has_wrapped_the_client_sees_what_is_asked() -> None:
    done = subprocess.run([sys.executable, "-c", INSTRUMENTED], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "Right, here [[{'content': 'what?', 'role': 'user'}]]", done.stderr


UPGRADES = {
    "a_method_less": "del BaseChatOpenAI._astream",
    "another_method": """
async def _astream(self, messages, **kwargs):
    yield ChatGenerationChunk(message=AIMessageChunk(content="new"))
BaseChatOpenAI._astream = _astream
""",
    "another_client": """
async def create(self, **options):
    return await self._client.request(**options)
AsyncCompletions.create = create
""",
    "another_stream": "del AsyncStream.__stream__",
    "objects_again": "BaseChatOpenAI._convert_chunk_to_generation_chunk = lambda self, chunk, *more: chunk.choices",
    "another_caller": "BaseChatModel._agenerate_with_cache.__code__ = (lambda: None).__code__",
    "another_http": "httpx2.AsyncHTTPTransport = type('Other', (httpx2.AsyncHTTPTransport,), {})",
}
PROGRAM = """
import asyncio, logging, sys
import httpx2
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai.chat_models.base import BaseChatOpenAI
from openai import AsyncStream
from openai.resources.chat.completions import AsyncCompletions

logging.basicConfig(format="%(levelname)s", stream=sys.stdout)
UPGRADE
before = vars(BaseChatOpenAI).get("_astream")
from chains.quick import quick_deltas

async def main():
    async with quick_deltas():
        print(vars(BaseChatOpenAI).get("_astream") is before)

asyncio.run(main())
"""


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_upgrade_that_breaks_it_leaves_the_stock_way_and_one_warning(upgrade: str) -> None:
    program = PROGRAM.replace("UPGRADE", UPGRADES[upgrade])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.returncode) == (["WARNING", "True"], 0), done.stderr


async def test_cancelled_at_its_start_it_leaves_the_stock_way() -> None:
    def deaf(_: Sequence[object]) -> bool:
        if hasattr(vars(BaseChatOpenAI)["_astream"], "millrace_used"):
            starting.cancel()
        return True

    async def start() -> None:
        async with quick_deltas(deaf):
            pass

    before = vars(BaseChatOpenAI)["_astream"]
    starting = asyncio.create_task(start())
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert vars(BaseChatOpenAI)["_astream"] is before


async def test_opened_twice_it_ends_with_the_first() -> None:
    async with quick_deltas():
        ours = vars(BaseChatOpenAI)["_astream"]
        async with quick_deltas():
            assert vars(BaseChatOpenAI)["_astream"] is ours
    assert vars(BaseChatOpenAI)["_astream"] is not ours


# Parts

BLOCKS = st.lists(st.binary(max_size=8).map(lambda one: one.replace(b"\n", b"").replace(b"\r", b"")), max_size=6)


@given(BLOCKS, st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_events_are_the_same_wherever_their_bytes_are_cut(blocks: list[bytes], end: bytes, data: st.DataObject) -> None:
    whole = b"".join(b"data: %b%b%b" % (one, end, end) for one in blocks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    events = Events()
    assert [one for piece in pieces for one in events.feed(piece)] == [one for one in blocks if one]


def test_an_event_of_several_lines_is_one_text() -> None:
    assert list(Events().feed(b"data: a\ndata:b\n: c\nid: 7\n\n\n\ndata\n\n")) == [b"a\nb"]


def test_an_event_without_an_end_is_refused() -> None:
    events = Events()
    assert list(events.feed(b"x" * MAX_EVENT)) == []
    with pytest.raises(ValueError, match="without an end"):
        list(events.feed(b"x"))


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (chunk(says("a")), "a"),
        (chunk(says("a", role="assistant", refusal=None, tool_calls=None)), "a"),
        (ROLE, ""),
        (chunk({"delta": {}}), ""),
        (END, None),
        (USAGE, None),
        (CALL, None),
        (chunk(says("a", role="user")), None),
        (chunk(says("a", reasoning="b")), None),
        (chunk({"delta": None}), None),
        (chunk({"delta": {"content": ["a"]}}), None),
        ({"choices": "ab"}, None),
        ({"error": 1}, None),
        (["a"], None),
        ("a", None),
        (None, None),
    ],
)
def test_plain_text_is_what_says_nothing_else(one: Any, text: str | None) -> None:
    assert plain_text(one) == text
