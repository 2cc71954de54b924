"""One WebSocket as a wire that many streams share: RFC 6455, by way of ASGI.

Promises: reading and writing never wait for one another, so the client's leaving is heard in every phase. Streams
take turns, in the order in which they have something to send. A stream's source is read when its turn has come and
not before: what the socket has not taken stays unread, where the reader's bound counts it. What is said to the client
beside the streams waits in a line with a bound; at the bound no more is read from a client who reads nothing.

A socket costs the task that reads it. One that writes is there while there is something to write, whatever waits for
its turn is a place in a line, and nothing else is made before it is needed: most sockets are idle most of the time.

How long a client may take nothing is not judged here: ``wire`` drops it, and that is a leaving like any other.

A socket that is refused is accepted first and then closed with its code: no page learns why a handshake failed.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

SUBPROTOCOL = "millrace"

MAX_ANSWERS = 32
"""Answers that wait for the socket; at this bound the client is not read until it reads."""

AT_ONCE = 64
"""Frames of a socket that takes all there is, before others have their turn on the loop."""

MAX_REASON_BYTES = 123
"""What a close frame has room for (RFC 6455, 5.5)."""

CLOSE_TIMEOUT_S = 1.0
"""How long a close waits for room in the socket."""


class CloseCode(IntEnum):
    """Why the server hangs up. Codes from 4000 on are our own: trying again will not help."""

    RESTART = 1012
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403


# Of ASGI the first; uvicorn raises the second after a close of its own, as when a ping was not answered.
_GONE = (OSError, RuntimeError)


class HangUp(Exception):
    """A reason of the server's to close the socket."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ClientGone(Exception):
    """The socket takes nothing any more."""


class FrameSource(Protocol):
    """Where a stream's frames come from."""

    def take(self) -> Iterable[bytes]:
        """The next frames, each the text of a message; none, when there is nothing now. Its turn has come.

        Each is asked for when the one before has been sent. What is raised ends the socket: see ``Socket.end``.
        """


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    """Take the connection, under our subprotocol's name where the client offered it. Raises ``ClientGone``."""
    await receive()  # that it wants to connect
    offered = SUBPROTOCOL in scope.get("subprotocols", ())
    await _sent(send, {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None, "headers": []})


async def refuse(scope: Scope, receive: Receive, send: Send, code: CloseCode, reason: str) -> None:
    """Take the connection and close it."""
    with suppress(ClientGone):
        await accept(scope, receive, send)
        await _sent(send, _close(code, reason))


class Socket:
    """An accepted connection, within ``with``: leaving that raises what ``end`` was told, if it was.

    ``quiet`` is called whenever all that there was to send has been sent.
    """

    __slots__ = ("_answers", "_ended", "_line", "_quiet", "_receive", "_receiver", "_send", "_writer")

    def __init__(self, receive: Receive, send: Send, quiet: Callable[[], object] | None = None) -> None:
        self._receive = receive
        self._send = send
        self._quiet = quiet
        self._line: list[FrameSource] = []  # first come, first served; short, as streams are few
        self._answers: _Answers | None = None
        self._writer: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[object] | None = None
        self._ended: Exception | None = None

    def __enter__(self) -> None:
        if self._ended is not None:
            raise self._ended
        self._receiver = asyncio.current_task()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        receiver, self._receiver = self._receiver, None
        reason, self._ended = self._ended, ClientGone()
        # What is left of the count after ours is somebody else's cancel, which must go on its way.
        cut = reason is not None and receiver is not None and receiver.uncancel() == 0
        try:
            if reason is not None and cut and isinstance(error, asyncio.CancelledError):
                raise reason from None
        finally:
            del reason  # its traceback holds this frame: no ring is left to the collector

    @property
    def writing(self) -> bool:
        """Whether there is something that has not been sent."""
        return self._writer is not None

    async def receive(self) -> str | bytes:
        """What the client sends next. Raises ``ClientGone`` when it leaves."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        text: str | None = message.get("text")
        return bytes(message["bytes"]) if text is None else text

    async def answer(self, frame: bytes) -> None:
        """Say something beside the streams, one such frame each turn. Waits for room in the line, not to be sent."""
        if self._answers is None:
            self._answers = _Answers()
        await self._answers.put(frame)
        self.call(self._answers)

    def call(self, source: FrameSource) -> None:
        """Have ``take`` called when its turn has come. Who is in the line already keeps his place."""
        if source in self._line or self._ended is not None:
            return
        self._line.append(source)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    def end(self, reason: Exception) -> None:
        """Read and write no more: this is raised where the socket was entered. The first reason counts."""
        if self._ended is None:
            self._ended = reason
            if self._receiver is not None:
                self._receiver.cancel()

    async def stop(self) -> None:
        """Write no more."""
        self._line.clear()
        self._quiet = None  # whose it was holds this socket: no ring is left to the collector
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,))

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close from our side, after what was sent."""
        with suppress(ClientGone, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await _sent(self._send, _close(code, reason))

    async def _write(self) -> None:
        try:
            sent = 0
            while self._line:
                source, before = self._line.pop(0), sent
                for frame in source.take():
                    await _sent(self._send, {"type": "websocket.send", "text": frame.decode()})
                    sent += 1
                if sent > before:
                    self.call(source)  # it may have more
                if sent >= AT_ONCE:
                    sent = 0
                    await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the socket's end is told by who entered it
            self.end(error)
        finally:
            self._writer = None
        if self._quiet is not None:
            self._quiet()


class _Answers:
    """What is said beside the streams. At the bound, whoever has more to say waits, in the order of coming."""

    __slots__ = ("_frames", "_room")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._room = asyncio.Semaphore(MAX_ANSWERS)

    async def put(self, frame: bytes) -> None:
        await self._room.acquire()
        self._frames.append(frame)

    def take(self) -> Iterable[bytes]:
        if not self._frames:
            return ()
        self._room.release()
        return (self._frames.pop(0),)


async def _sent(send: Send, message: Message) -> None:
    try:
        await send(message)
    except _GONE:
        raise ClientGone from None


def _close(code: CloseCode, reason: str) -> Message:
    text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    return {"type": "websocket.close", "code": int(code), "reason": text}
