"""Has ``ChatOpenAI`` read its streams as ``chains.deltas``: the user's own models too, wherever in a graph they are.

While ``quick_deltas`` is open, a wrapper stands before the two methods by which ``ChatOpenAI``, and what derives from
it, streams. It has the ``openai`` client give plain dicts to LangChain, and to nobody else. Request, retries,
authentication and errors stay the client's own; so do structured outputs and the Responses API.

This rests on how openai and langchain-openai are made inside. So the whole is tried on an answer in memory before it is
used; where the stock way and this one differ, there is one warning, and the stock way stays.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from inspect import signature
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakSet

import httpx2
import openai
import orjson
from langchain_core.globals import get_debug
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from langsmith import tracing_context
from openai.resources.chat.completions import AsyncCompletions, Completions
from pydantic import SecretStr

from chains.deltas import Asked, Deltas, SyncDeltas, asked
from chains.shortcut import CONTROL, Shortcut, shortcut_for
from chains.transport import leave, quicken

logger = logging.getLogger("millrace.quick")

Deaf = Callable[[Sequence[object]], bool]

_OPENAI = str(Path(openai.__file__).parent)

APART = {"extra_headers": "headers", "extra_query": "params", "extra_body": "extra_json", "timeout": "timeout"}
"""What the client's ``create`` takes that is no part of the request's body, and what its ``post`` calls it."""

_NAMES = frozenset(signature(AsyncCompletions.create).parameters) - {"self"}
_PLAIN = (str, int, float, list, dict, type(None))


class QuickCompletions(AsyncCompletions):
    """The client's chat completions; those that LangChain streams are ``Deltas``."""

    async def create(self, *args: Any, **options: Any) -> Any:
        """As the stock one."""
        if args or not _is_quick(super().create, options):
            return await super().create(*args, **options)
        return await self._client.post(_PATH, stream_cls=Deltas, **_request(options))


class QuickSyncCompletions(Completions):
    """The same for synchronous calls."""

    def create(self, *args: Any, **options: Any) -> Any:
        """As the stock one."""
        if args or not _is_quick(super().create, options):
            return super().create(*args, **options)
        return self._client.post(_PATH, stream_cls=SyncDeltas, **_request(options))


OF_ITS_TIMEOUT = 5
"""While text goes past LangChain, ``stream_chunk_timeout`` may fire early by this part of it."""

_PATH = "/chat/completions"


def _is_quick(create: Any, options: Mapping[str, Any]) -> bool:
    """Whether LangChain asks for a stream, in plain words, and of openai's own ``create``.

    Who has wrapped that wants to see all. Other words may have to be transformed first, or be refused.
    """
    function = getattr(create, "__func__", None)
    own = isinstance(function, FunctionType) and function.__code__.co_filename.startswith(_OPENAI)
    return (
        own
        and asked.get() is not None
        and bool(options.get("stream"))
        and options.keys() <= _NAMES
        and all(isinstance(value, _PLAIN) for name, value in options.items() if name not in APART)
    )


def _request(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``create`` makes of its arguments, but for the search for what it has to rename.

    In what LangChain has put together that is nothing, and it takes a quarter of the time until the request is sent.
    """
    apart = {
        known_as: options[name]
        for name, known_as in APART.items()
        if name in options and (options[name] is not None or name == "timeout")
    }
    return {
        "body": {name: value for name, value in options.items() if name not in APART},
        "options": {**apart, "security": {"bearer_auth": True}},
        "cast_to": object,
        "stream": True,
    }


# -- before ChatOpenAI's own methods ----------------------------------------------------------------------------------

_Chunks = AsyncGenerator[ChatGenerationChunk]
_SyncChunks = Generator[ChatGenerationChunk]


def _astream(stock: Callable[..., Any], used: WeakSet[Any]) -> Callable[..., AsyncIterator[ChatGenerationChunk]]:
    def astream(self: BaseChatOpenAI, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        if type(self.async_client) is AsyncCompletions:
            client = self.async_client._client  # noqa: SLF001
            quicken(client._client)  # noqa: SLF001
            used.add(client._client)  # noqa: SLF001
            self.async_client = QuickCompletions(client)
        timeout_s = self.stream_chunk_timeout
        asks = Asked(_shortcut(self, sys._getframe(1)), timeout_s / OF_ITS_TIMEOUT if timeout_s else None)  # noqa: SLF001
        return _aquick(stock(self, *args, **kwargs), asks)

    setattr(astream, _USED, used)
    return astream


def _shortcut(model: BaseChatOpenAI, frame: FrameType) -> Shortcut | None:
    """That of the call which ``frame`` makes, if its class makes of a chunk what ChatOpenAI does.

    One for another provider may find more in it.
    """
    name = "_convert_chunk_to_generation_chunk"
    return shortcut_for(frame) if getattr(type(model), name) is getattr(BaseChatOpenAI, name) else None


def _stream(stock: Callable[..., Any], _: WeakSet[Any]) -> Callable[..., Iterator[ChatGenerationChunk]]:
    def stream(self: BaseChatOpenAI, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        if type(self.client) is Completions:
            self.client = QuickSyncCompletions(self.client._client)  # noqa: SLF001
        return _quick(stock(self, *args, **kwargs), Asked(_shortcut(self, sys._getframe(1)), None))  # noqa: SLF001

    return stream


async def _aquick(stream: _Chunks, asks: Asked) -> _Chunks:
    """``stream``, whose request is made at its first step."""
    async with aclosing(stream):
        token = asked.set(asks)
        try:
            chunk = await anext(stream, None)
        finally:
            asked.reset(token)
        if chunk is not None:
            yield chunk
            async for chunk in stream:
                yield chunk


def _quick(stream: _SyncChunks, asks: Asked) -> _SyncChunks:
    with closing(stream):
        token = asked.set(asks)
        try:
            chunk = next(stream, None)
        finally:
            asked.reset(token)
        if chunk is not None:
            yield chunk
            yield from stream


_USED = "millrace_used"
"""Where the method that is installed has the clients that it has met."""

METHODS: Mapping[str, Callable[[Any, WeakSet[Any]], Any]] = {"_astream": _astream, "_stream": _stream}


@asynccontextmanager
async def quick_deltas(deaf: Deaf = lambda _: True) -> AsyncIterator[None]:
    """While it is open, this process's ``ChatOpenAI`` reads dicts. Opened twice, the first one's end is the end.

    ``deaf``: whether callbacks such as those of a run leave its shortcuts free.
    """
    stock = {name: vars(BaseChatOpenAI).get(name) for name in METHODS}
    used: WeakSet[httpx2.AsyncClient] | None = getattr(stock["_astream"], _USED, None)
    if used is not None:
        try:
            yield
        finally:
            _leave(used)
        return
    used = WeakSet()
    try:
        problem = await _install(stock, used, deaf)
        if problem is not None:
            _restore(stock)
            logger.warning(
                "langchain-openai, openai or httpx2 is not as Millrace knows it, or something has been put around it "
                "(%s): answers are read the stock way, which is slower and loses nothing",
                problem,
            )
        yield
    finally:
        _restore(stock)
        _leave(used)


def _leave(used: Iterable[httpx2.AsyncClient]) -> None:
    """Close what is open in this event loop: nobody closes users' models, which last as long as the process."""
    for client in list(used):
        leave(client)


def _restore(stock: Mapping[str, Any]) -> None:
    for name, method in stock.items():
        if method is not None:
            setattr(BaseChatOpenAI, name, method)


async def _install(stock: Mapping[str, Any], used: WeakSet[Any], deaf: Deaf) -> str | None:
    """Put ours before the stock methods. Why it cannot be there, if it cannot."""
    gone = [name for name, method in stock.items() if method is None]
    if gone:
        return f"there is no {gone[0]}"
    try:
        expected = await _tried(deaf)
        for name, wrapped in METHODS.items():
            setattr(BaseChatOpenAI, name, wrapped(stock[name], used))
        found = await _tried(deaf)
        quickened = quicken(httpx2.AsyncClient(verify=False))  # nothing is sent
    except Exception as error:  # noqa: BLE001 - whatever an upgrade may break
        return type(error).__name__
    if found.asked != expected.asked:
        return "the requests differ"
    if found.chunks != expected.chunks:
        return "the chunks differ"
    if found.messages != expected.messages:
        return "the messages differ"
    if found.promised_ids != found.message_ids or (found.said != _TEXT * len(found.messages) and not get_debug()):
        return "text has no shortcut"
    return None if quickened else "the client has another transport"


# -- whether it still fits --------------------------------------------------------------------------------------------

_TEXT = "Right, here"
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
_CONVERSATION: Sequence[BaseMessage] = (
    HumanMessage(
        [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    ),
    AIMessage("", tool_calls=[{"type": "tool_call", "name": "f", "args": {"a": 1}, "id": "c"}]),
    ToolMessage("1", tool_call_id="c"),
)
_CHOICES: Sequence[Any] = (
    {"delta": {"role": "assistant", "content": ""}},
    {"delta": {"content": "Right,"}},
    {"delta": {"content": " here"}},
    {"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}},
    {"delta": {}, "finish_reason": "stop"},
)


class _Trial(NamedTuple):
    """What an answer came to: requests and chunks, messages of ``ainvoke`` and ``invoke``, and all that was said past
    LangChain.
    """

    asked: list[Any]
    chunks: list[ChatGenerationChunk]
    messages: list[tuple[Any, ...]]
    message_ids: list[str | None]
    promised_ids: list[str]
    said: str


async def _tried(deaf: Deaf) -> _Trial:
    """An answer in memory, read the way that is installed."""
    shortcuts, requests = _Listener(deaf), []

    def answer(request: httpx2.Request) -> httpx2.Response:
        told = (request.url, request.headers, request.extensions["timeout"])
        requests.append((*told, orjson.loads(request.content)))
        return _answer()

    provider = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=provider) as client:
        with httpx2.Client(transport=provider) as sync_client:
            options: dict[str, Any] = {"http_async_client": client, "http_client": sync_client, "max_retries": 0}
            options |= {"base_url": "http://none/v1", "openai_proxy": None, "cache": False}
            model = ChatOpenAI(model="none", api_key=SecretStr("none"), **options)
            answers: list[AIMessage] = []

            async def ask(_: str) -> None:
                answers.append(await model.ainvoke("?"))
                answers.append(await asyncio.to_thread(model.invoke, "?"))

            apart = {"extra_headers": {"x-a": "1"}, "extra_query": {"a": "1"}, "extra_body": {"a": 1}, "timeout": 9.0}
            request: Any = {"messages": _CONVERSATION, "tools": [_TOOL], "stop": ["."], **apart}
            chunks = [chunk async for chunk in model._astream(**request)]  # noqa: SLF001
            chunks.extend(model._stream(**request))  # noqa: SLF001
            config = RunnableConfig(configurable={CONTROL: shortcuts})
            with tracing_context(enabled=False):
                async for _ in RunnableLambda(ask).astream_events("", config, version="v2"):
                    pass
    told = [(one.content, one.tool_calls, one.response_metadata, one.usage_metadata) for one in answers]
    return _Trial(requests, chunks, told, [one.id for one in answers], shortcuts.promised_ids, "".join(shortcuts.said))


def _answer() -> httpx2.Response:
    chunks = [{"id": "a", "model": "none", "choices": [{"index": 0, **choice}]} for choice in _CHOICES]
    events = [*(orjson.dumps(chunk) for chunk in chunks), b"[DONE]"]
    content = b"".join(b"data: %b\n\n" % event for event in events)
    return httpx2.Response(200, content=content, headers={"Content-Type": "text/event-stream"})


class _Listener:
    """Gives the shortcut that it listens at, where nobody else listens."""

    def __init__(self, deaf: Deaf) -> None:
        self.said: list[str] = []
        self.promised_ids: list[str] = []
        self._deaf = deaf

    def shortcut(self, _: UUID, message_id: str, handlers: Sequence[object], *, seen: bool) -> Shortcut | None:
        self.promised_ids.append(message_id)
        return self if self._deaf(handlers) else None

    def say(self, text: str) -> bool:
        self.said.append(text)
        return True
