"""One WebSocket as a wire that many streams share: RFC 6455, by way of ASGI.

Promises: reading and writing never wait for one another, so the client's leaving is heard in every phase. Streams
take turns, in the order in which they have something to send. A stream's source is read when its turn has come and
not before: what the socket has not taken stays unread, where the reader's bound counts it. What is said to the client
beside the streams waits in a queue with a bound; at the bound no more is read from a client who reads nothing.

How long a client may take nothing is not judged here: ``wire`` drops it, and that is a leaving like any other.

A socket that is refused is accepted first and then closed with its code: no page learns why a handshake failed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Protocol

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

SUBPROTOCOL = "millrace"

MAX_ANSWERS = 32
"""Answers that wait for the socket; at this bound the client is not read until it reads."""

MAX_REASON_BYTES = 123
"""What a close frame has room for (RFC 6455, 5.5)."""

CLOSE_TIMEOUT_S = 1.0
"""How long a close waits for room in the socket."""


class CloseCode(IntEnum):
    """Why the server hangs up. Codes from 4000 on are our own: trying again will not help."""

    RESTART = 1012
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403


# uvicorn raises the second for a message after a close of its own, as when a ping was not answered.
_GONE = (WebSocketDisconnect, RuntimeError)


class HangUp(Exception):
    """Raised by whoever has a reason to close the socket."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ClientGone(Exception):
    """The socket takes nothing any more."""


class FrameSource(Protocol):
    """Where a stream's frames come from. ``ended``: the last one has been handed out."""

    ended: bool

    async def wait(self) -> None:
        """Return once ``read`` has an answer at once. Being cancelled meanwhile must lose nothing."""

    async def read(self) -> Sequence[bytes]:
        """The next frames, each the text of a message."""


async def accept(websocket: WebSocket) -> None:
    """Take the connection, under our subprotocol's name where the client offered it."""
    offered = SUBPROTOCOL in websocket.scope.get("subprotocols", ())
    await websocket.accept(SUBPROTOCOL if offered else None)


async def refuse(websocket: WebSocket, code: CloseCode, reason: str) -> None:
    """Take the connection and close it."""
    await accept(websocket)
    with suppress(*_GONE):
        await websocket.close(code, reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


class Socket:
    """An accepted connection."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._turn = asyncio.Lock()  # first come, first served
        self._answers: asyncio.Queue[bytes] = asyncio.Queue(MAX_ANSWERS)

    async def receive(self) -> str | bytes:
        """What the client sends next. Raises ``ClientGone`` when it leaves."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        text: str | None = message.get("text")
        return bytes(message["bytes"]) if text is None else text

    async def answer(self, frame: bytes) -> None:
        """Say something beside the streams; ``write_answers`` sends it."""
        await self._answers.put(frame)

    async def write_answers(self) -> None:
        """Send the answers, one each turn. Never returns."""
        while True:
            await self.send(await self._answers.get())

    async def send(self, frame: bytes) -> None:
        """Send one frame when its turn has come. Raises ``ClientGone``."""
        async with self._turn:
            await self._write(frame)

    async def pump(self, source: FrameSource) -> None:
        """Send a source's frames until they end. Nothing is awaited after the last. Raises ``ClientGone``."""
        while not source.ended:
            await asyncio.sleep(0)  # a socket that takes all there is must not hold the loop
            await source.wait()
            async with self._turn:
                for frame in await source.read():
                    await self._write(frame)

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close from our side, after what was sent."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S), suppress(*_GONE):
            await self._websocket.close(code, reason)

    async def _write(self, frame: bytes) -> None:
        try:
            await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
        except _GONE:
            raise ClientGone from None
