"""The floor: bare ASGI under the same uvicorn. What no server in Python can be below, with no agent behind it.

- ``POST /answer``: a stream of tokens by the server's own clock, each in a frame such as Millrace's.
- ``POST /relay``: the provider's answer, chunk by chunk, over a connection of its own to ``OPENAI_BASE_URL``.
- ``POST /feed/NAME`` begins a feed; ``GET /feed/NAME`` and the WebSocket ``/feed/NAME`` follow it from its first frame.

    python benchmarks/floor_app.py PORT
"""

import asyncio
import os
import re
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple

import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DATA = '{"ts":1700000000000,"node":"answer","message_id":"lc_run--00000000-0000-0000-0000-000000000000","text":" word"}'
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
END = {"type": "http.response.body", "body": b"", "more_body": False}
TOLD = re.compile(rb"(tokens|tokens_per_second)=([\d.]+)")


class Frame(NamedTuple):
    """One event, as it goes over SSE and over a WebSocket."""

    block: bytes
    text: str


def frame(number: int, event: str = "token") -> Frame:
    """As Millrace's own."""
    return Frame(
        f"id: {number}\nevent: {event}\ndata: {DATA}\n\n".encode(),
        f'{{"stream_id":"s","id":{number},"event":"{event}","data":{DATA}}}',
    )


class Feed:
    """A run's events, without a run."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._over = False
        self._changed = asyncio.get_running_loop().create_future()

    async def play(self, tokens: int, pace: float) -> None:
        """Append frame after frame, each at its time."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for number in range(1, tokens + 1):
            await asyncio.sleep(max(began + number / pace - clock(), 0))
            self._append(frame(number))
        self._over = True
        self._append(frame(tokens + 1, "run.finished"))

    def _append(self, one: Frame) -> None:
        self._frames.append(one)
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def after(self, number: int) -> list[Frame]:
        """What came after so many frames, once there is something; nothing when it is over."""
        while len(self._frames) <= number and not self._over:
            await asyncio.shield(self._changed)
        return self._frames[number:]


class App:
    """The ASGI application."""

    def __init__(self) -> None:
        self._feeds: defaultdict[str, Feed] = defaultdict(Feed)
        self._playing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """By path."""
        if scope["type"] == "websocket":
            await self._socket(self._feeds[scope["path"]], receive, send)
            return
        body = (await receive())["body"]
        await send(START)
        if scope["path"] == "/answer":
            await _answer(*_told(body), send)
        elif scope["path"] == "/relay":
            await _relay(body, send)
        elif scope["path"].startswith("/feed/"):
            feed = self._feeds[scope["path"]]
            await (self._follow(feed, send) if scope["method"] == "GET" else self._begin(feed, body))
        await send(END)

    async def _begin(self, feed: Feed, body: bytes) -> None:
        task = asyncio.create_task(feed.play(*_told(body)))
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)

    async def _follow(self, feed: Feed, send: Send) -> None:
        seen = 0
        while new := await feed.after(seen):
            seen += len(new)
            await send({"type": "http.response.body", "body": b"".join(one.block for one in new), "more_body": True})

    async def _socket(self, feed: Feed, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        seen = 0
        with suppress(OSError):  # the client is gone
            while new := await feed.after(seen):
                seen += len(new)
                for one in new:
                    await send({"type": "websocket.send", "text": one.text})


def _told(text: bytes) -> tuple[int, float]:
    told = dict(TOLD.findall(text))
    return int(told[b"tokens"]), float(told[b"tokens_per_second"])


async def _answer(tokens: int, pace: float, send: Send) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    for number in range(tokens):
        if pace:
            await asyncio.sleep(max(began + number / pace - clock(), 0))
        await send({"type": "http.response.body", "body": frame(number).block, "more_body": True})


async def _relay(body: bytes, send: Send) -> None:
    host, port = os.environ["OPENAI_BASE_URL"].removeprefix("http://").split("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b"\r\n\r\n")
    while size := int(await reader.readline(), 16):
        data = await reader.readexactly(size + 2)
        await send({"type": "http.response.body", "body": data[:-2], "more_body": True})
    writer.close()


def main(port: int) -> None:
    """Serve until told to stop."""
    uvicorn.run(
        App(),
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws_per_message_deflate=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
