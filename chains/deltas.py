"""What a provider of the OpenAI wire streams, as plain dicts, and its plain text by a shortcut of its own.

The ``openai`` client makes a pydantic object of each delta, which LangChain turns into a dict again: most of what a
token costs. ``Deltas`` and ``SyncDeltas`` are the client's own streams without that; which calls have them is decided
in ``chains.quick``. Errors, and their order among the chunks, are those of the stock streams. Where the connection is
``chains.transport``'s, events are split off as its bytes come, in no task; else the client's own decoder does it.

Plain text goes by the call's shortcut, if it has one (``chains.shortcut``), up to the first chunk that says anything
else. What was said is put into one chunk before that, at the stream's end, and before an error: LangChain misses
nothing.
"""

import asyncio
import json
import time
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import httpx2
import orjson
from openai import APIConnectionError, APIError, APITimeoutError, AsyncStream, Stream
from typing_extensions import override

from chains.shortcut import Shortcut
from chains.transport import Body, body_of

MAX_EVENT = 16 * 1024 * 1024
"""Bytes of one event at the most; more is no answer of a model."""

MAX_CHUNKS = 256
"""Chunks that wait for LangChain before no more is read from the provider."""


class Asked(NamedTuple):
    """What a stream that is about to be opened is to do: its shortcut, and how long LangChain may be shown nothing."""

    shortcut: Shortcut | None
    bound_s: float | None


asked: ContextVar[Asked | None] = ContextVar("millrace_asked", default=None)
"""What the call that is being made in this context is to do. ``None``: it is none of LangChain's."""


class Answer:
    """One answer's chunks on their way to LangChain, and its plain text past it."""

    def __init__(self, asks: Asked) -> None:
        self.chunks: deque[Any] = deque()
        self._shortcut = asks.shortcut
        self._bound_s = asks.bound_s
        self._first: dict[str, Any] = {}
        self._said: list[str] = []
        self._settled_at = time.monotonic()

    def hear(self, chunk: Any) -> None:
        """The next chunk of the provider's."""
        if self._shortcut is None:
            self.chunks.append(_whole(chunk))
            return
        text = plain_text(chunk)
        if text and self._shortcut.say(text):
            if not self._said:
                self._first = chunk
            self._said.append(text)
            if self._bound_s is not None and time.monotonic() - self._settled_at > self._bound_s:
                self.settle()
            return
        if text != "":
            self._shortcut = None
            self.settle()
        self.chunks.append(_whole(chunk))

    def take(self) -> Iterator[Any]:
        """The chunks that LangChain has not had."""
        while self.chunks:
            yield self.chunks.popleft()

    def settle(self) -> None:
        """Have LangChain told what was said, as one chunk."""
        if self._said:
            choice = self._first["choices"][0]
            delta = {**choice["delta"], "content": "".join(self._said)}
            self.chunks.append({**self._first, "choices": [{**choice, "delta": delta}]})
            self._said.clear()
        self._settled_at = time.monotonic()


def plain_text(chunk: Any) -> str | None:
    """The text of a chunk that says nothing but that; empty where it says nothing at all, ``None`` where it says more.

    Whose role is told is no more: it is always the assistant's.
    """
    try:
        if not chunk["choices"] and not chunk.get("usage"):
            return ""  # Azure's first, of what its filters say of the question
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text = delta.get("content") or ""
        if chunk.get("usage") or choice.get("index") or choice.get("finish_reason") or choice.get("logprobs"):
            return None
        if delta.get("role") not in (None, "assistant") or not isinstance(text, str):
            return None
        if text and len(delta) == 1:
            return text
        if any(value for name, value in delta.items() if name not in ("role", "content")):
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return text


def _whole(chunk: Any) -> Any:
    """The chunk with what LangChain takes for granted, since the client's own objects have it."""
    for choice in _dicts(chunk, "choices"):
        choice.setdefault("delta", None)
        for call in _dicts(choice["delta"], "tool_calls"):
            call.setdefault("index", None)
            call.setdefault("function", {})
    return chunk


def _dicts(owner: Any, name: str) -> Iterator[dict[str, Any]]:
    many = owner.get(name) if isinstance(owner, dict) else None
    return (one for one in many if isinstance(one, dict)) if isinstance(many, list) else iter(())


class Events:
    """Splits an event stream into the data of its events: WHATWG HTML, 9.2.6. Comments and names are passed over."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the event that has not ended; joined once, however many there are
        self._size = 0
        self._half = b""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """The events that end in ``data``. Raises ``ValueError`` when one grows beyond ``MAX_EVENT``."""
        ends = len(data) - 2
        one = data[:6] == b"data: " and data.find(b"\n") == ends > 6 and data[ends:] == b"\n\n" and b"\r" not in data
        if one and not self._pieces and not self._half:  # and nothing else: so it most often is
            return (data[6:ends],)
        return self._split(data)

    def _split(self, data: bytes) -> Iterator[bytes]:
        if self._half or b"\r" in data:
            data = self._half + data
            self._half = b"\r" if data.endswith(b"\r") else b""  # of a CRLF, it may be
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._pieces:
            before = self._pieces[-1]
            if b"\n\n" not in data and not (data.startswith(b"\n") and before.endswith(b"\n")):
                self._keep(data)
                return
            data = b"".join((*self._pieces, data))
            self._pieces.clear()
            self._size = 0
        *blocks, rest = data.split(b"\n\n")
        self._keep(rest)
        for block in blocks:
            found = block[6:] if block.startswith(b"data: ") and b"\n" not in block else _data(block)
            if found:
                yield found

    def _keep(self, rest: bytes) -> None:
        self._size += len(rest)
        if self._size > MAX_EVENT:
            raise ValueError("the provider sent an event without an end")
        if rest:
            self._pieces.append(rest)


def _data(block: bytes) -> bytes:
    values = (line[5:] for line in block.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(value.removeprefix(b" ") for value in values)


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)  # half of a surrogate pair, NaN: not JSON by its standard, but providers send it


class SyncDeltas(Stream[object]):
    """The client's own stream, of plain dicts. Errors and their order are those of the stock one."""

    @override
    def __stream__(self) -> Iterator[object]:
        answer = Answer(asked.get() or Asked(None, None))
        try:
            for chunk in super().__stream__():
                answer.hear(chunk)
                yield from answer.take()
        except Exception:
            answer.settle()
            yield from answer.take()
            raise
        answer.settle()
        yield from answer.take()


class Deltas(AsyncStream[object]):
    """The same of an asynchronous call."""

    @override
    async def __stream__(self) -> AsyncIterator[object]:
        answer, body = Answer(asked.get() or Asked(None, None)), body_of(self.response)
        more = _more(super().__stream__(), answer) if body is None else self._pushed(answer, body)
        async with aclosing(more) as batches:
            async for _ in batches:
                for chunk in answer.take():
                    yield chunk

    async def _pushed(self, answer: Answer, body: Body) -> AsyncGenerator[None]:
        """Ends a step whenever there are chunks; the bytes are read as they come, in no task."""
        inlet = _Inlet(self.response.request, answer, body)
        try:
            while not await inlet.wait():
                yield
                inlet.drained()
            yield
            if inlet.error is not None:
                raise inlet.error
        finally:
            await self.response.aclose()  # from here on the body calls nobody


async def _more(stream: AsyncIterator[object], answer: Answer) -> AsyncGenerator[None]:
    """The same of the stock stream, whose bytes come by another transport."""
    error: Exception | None = None
    async with aclosing(cast("AsyncGenerator[object]", stream)) as chunks:
        try:
            async for chunk in chunks:
                answer.hear(chunk)
                if answer.chunks:
                    yield
        except Exception as raised:  # noqa: BLE001 - raised again, after what came before it
            error = raised
    answer.settle()
    yield
    if error is not None:
        raise error


class _Inlet:
    """Where a body's bytes come in: within the transport's own callback."""

    def __init__(self, request: httpx2.Request, answer: Answer, body: Body) -> None:
        self.error: Exception | None = None
        self._ended = False
        self._request = request
        self._answer = answer
        self._body = body
        self._events = Events()
        self._waiter: Future[None] | None = None
        self._paused = False
        body.push(self._feed, self._end)

    async def wait(self) -> bool:
        """Until there are chunks, or nothing more will come, which is True."""
        while not self._answer.chunks and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._ended

    def drained(self) -> None:
        """There is room again."""
        if self._paused:
            self._paused = False
            self._body.resume()

    def _feed(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            for event in self._events.feed(data):
                if event.startswith(b"[DONE]"):
                    self._body.release()
                    self._finish(None)
                    return
                chunk = _loads(event)
                if isinstance(chunk, dict) and chunk.get("error"):
                    raise self._refusal(chunk["error"])
                self._answer.hear(chunk)
        except Exception as error:  # noqa: BLE001 - the stream's reader is to have it, not the event loop
            self._finish(error)
        if self._answer.chunks:
            self._wake()
        if len(self._answer.chunks) > MAX_CHUNKS and not self._paused:
            self._paused = True
            self._body.pause()

    def _end(self, error: Exception | None) -> None:
        if isinstance(error, httpx2.TimeoutException):
            told: Exception = APITimeoutError(request=self._request)
        elif isinstance(error, httpx2.RequestError):
            told = APIConnectionError(request=self._request)
        else:
            self._finish(error)
            return
        told.__cause__ = error
        self._finish(told)

    def _finish(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            self.error = error
            self._answer.settle()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refusal(self, error: Any) -> APIError:
        message = error.get("message") if isinstance(error, dict) else None
        if not message or not isinstance(message, str):
            message = "An error occurred during streaming"
        return APIError(message=message, request=self._request, body=error)
