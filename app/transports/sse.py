"""A stream of frames as server-sent events: WHATWG HTML, section 9.2.

Promises: the head of the response goes out at once; all frames that are there in one write; a comment after a silence.
The client's leaving is heard from the server's transport in every phase, also while nothing is being sent, or while a
client that does not read holds a write up. Whatever ends the response, ``on_close`` is called, once; when the client
leaves, as soon as it is heard.

A stream is called when there is something new, and writes it there and then. Its own task only listens for the client's
leaving. A task that sends, the pump, is there when something has to be waited for: the server's ``send`` where nothing
can be written past it, a client that is slower than its frames, the response's end.

A heartbeat is a comment line without a blank line after it: several decoders take a blank line for an empty event
once they have seen an id. For the same reason ``retry:`` is not a block of its own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.protocols.frame import Frame
from app.transports.wheel import Wheel
from app.transports.wire import Connection, connection_of

RETRY = b"retry: 1000\n"
HEARTBEAT = b": hb\n"

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
"""What keeps proxies from buffering, caching or compressing a stream."""

Render = Callable[[Sequence[Frame]], bytes]


class EndOfFrames(Exception):
    """The terminal frame has been handed out."""


class BrokenFrames(Exception):
    """No more frames will come from here, though the terminal one has not been handed out.

    The connection is broken off: a clean end of the response is what clients take for the end of all there is.
    """


class FrameSource(Protocol):
    """Where frames come from."""

    def watch(self, woken: Callable[[], object]) -> None:
        """Have the event loop call ``woken`` whenever ``take`` may have something new to give, or to raise."""

    def take(self, render: Render) -> bytes:
        """What ``render`` makes of the next frames; ``b""`` while there are none. What it gave is not given again.

        Sources that are at the same place may have it rendered once. Raises ``EndOfFrames`` or ``BrokenFrames``.
        """

    async def aclose(self) -> None:
        """Nobody watches nor takes any more."""


def render(frame: Frame) -> bytes:
    """One frame as a block of the event stream."""
    if frame.id is not None and frame.event is not None:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (frame.id.encode(), frame.event.encode(), frame.data)
    head = b"" if frame.id is None else b"id: %b\n" % frame.id.encode()
    if frame.event is not None:
        head += b"event: %b\n" % frame.event.encode()
    return b"%bdata: %b\n\n" % (head, frame.data)


def blocks(frames: Sequence[Frame]) -> bytes:
    """Frames as a part of the event stream."""
    return b"".join(map(render, frames))


def chunk(frames: Sequence[Frame]) -> bytes:
    """The same as a chunk of an HTTP/1.1 body."""
    return _chunk(blocks(frames))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_HEARTBEAT = _chunk(HEARTBEAT)


class Stream:
    """An event stream that is being sent. See ``wire.Stream``."""

    __slots__ = (
        "_connection", "_direct", "_failure", "_head", "_heartbeats", "_idle", "_listener", "_on_close", "_over",
        "_pump", "_send", "_source",
    )  # fmt: skip

    def __init__(
        self,
        source: FrameSource,
        heartbeats: Wheel["Stream"],
        on_close: Callable[[], None],
        connection: Connection | None,
        head: Message | None,
    ) -> None:
        self._source = source
        self._heartbeats = heartbeats
        self._on_close: Callable[[], None] | None = on_close
        self._connection = connection
        self._direct = connection if head is None else None
        self._head = head
        self._over = False
        self._failure: Exception | None = None
        self._listener: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[bool] | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Send frames until they end or the client leaves, whichever is first. Raises what the source fails with."""
        self._send = send
        self._listener = listener = asyncio.current_task()
        assert listener is not None
        self._source.watch(self._woken)
        self._heartbeats.touch(self)
        self._woken()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            # The end's own cancel, see ``_end``; what is left of the count is somebody else's, and goes on its way.
            if not self._over or listener.uncancel():
                # The server stops: it waits for no reader, and uvloop's end fails of one that is left.
                if self._direct is None:
                    self._abort()
                    raise
                self._direct.drop()  # nobody but the server is outside, to which a trace of each would say nothing
        finally:
            self._listener = None
            self._close()  # here already: the run must not wait until all of this has wound up
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None:
        """Let go of everything."""
        self._over = True
        self._close()
        self._heartbeats.drop(self)
        pump = self._pump
        if pump is not None:
            pump.cancel()
        try:
            await self._source.aclose()
        finally:
            if pump is not None:
                await asyncio.wait((pump,))

    def beat(self, _: float) -> None:
        """Say that the stream lives, unless something is on its way that says so as well."""
        if self._idle is not None:
            self._wake(silence=True)
        elif self._pump is None and self._direct is not None and not (self._over or self._direct.closing):
            self._direct.write(_HEARTBEAT)

    def _close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _woken(self) -> None:
        if self._idle is not None:
            self._wake(silence=False)
        elif self._pump is None and not self._over:
            if self._direct is None:
                self._start_pump()
            elif not self._direct.closing:
                self._write(self._direct)

    def _write(self, connection: Connection) -> None:
        """Write what is there past the server; what cannot be is the pump's."""
        try:
            for _ in range(2):  # the second time there is nothing, as a rule, or the end
                if connection.full:
                    break
                frames = self._source.take(chunk)
                if not frames:
                    return
                connection.write(frames)
                self._heartbeats.touch(self)
        except Exception as ending:  # noqa: BLE001 - the pump tells it
            self._start_pump(ending)
        else:
            self._start_pump()

    def _start_pump(self, ending: Exception | None = None) -> None:
        self._pump = asyncio.get_running_loop().create_task(self._pumping(ending))

    async def _pumping(self, ending: Exception | None) -> None:
        try:
            if self._head is not None:
                await self._begin(self._head)
            if ending is not None:
                raise ending
            await self._drain()
        except EndOfFrames:
            await self._send_end()
        except BrokenFrames:
            self._break_off()
        except Exception as failure:  # noqa: BLE001 - the listener raises it
            self._end(failure)
        finally:
            self._pump = None
            del ending  # its traceback has this frame

    async def _begin(self, head: Message) -> None:
        self._head = None
        await self._send(head)
        await self._send({"type": "http.response.body", "body": RETRY, "more_body": True})

    async def _drain(self) -> None:
        """Send until nothing is left: then the rest can be written again, or has to be waited for."""
        body = self._source.take(blocks)
        while body or self._direct is None:
            if not body:
                silence = await self._news()
                body = self._source.take(blocks) or (HEARTBEAT if silence else b"")
                continue
            if self._direct is not None and self._direct.closing:
                return
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._heartbeats.touch(self)
            body = self._source.take(blocks)
            if body:
                await asyncio.sleep(0)  # a socket that takes all there is must not hold the loop

    async def _news(self) -> bool:
        """Wait until there may be something to take; whether it is only the heartbeat that is due."""
        self._idle = asyncio.get_running_loop().create_future()
        try:
            return await self._idle
        finally:
            self._idle = None

    def _wake(self, *, silence: bool) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(silence)

    async def _send_end(self) -> None:
        self._over = True
        try:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as failure:  # noqa: BLE001 - the listener raises it
            self._end(failure)
        else:
            self._end()

    def _end(self, failure: Exception | None = None) -> None:
        """Have the listener stop. It stands in ``receive``, so that is where the cancel arrives."""
        self._over, self._failure = True, failure
        if self._listener is not None:
            self._listener.cancel()

    def _break_off(self) -> None:
        """Let the connection end as if cut. Where it cannot be got at, the server cuts it: the response has no end."""
        self._over = True
        if self._connection is None:
            self._end()
        else:  # when what was written has had its turn; the listener hears of it as of any disconnect
            asyncio.get_running_loop().call_soon(self._abort)

    def _abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()


class EventStream(Response):
    """The response of every native stream. ``heartbeats`` is made by ``beating``, once for many streams."""

    def __init__(
        self,
        source: FrameSource,
        *,
        heartbeats: Wheel[Stream],
        headers: Mapping[str, str],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(None, headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._source = source
        self._heartbeats = heartbeats
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until they end or the client leaves; or leave that to the connection, the head being sent."""
        connection = connection_of(scope)
        head: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if connection is not None and connection.direct:
            connection.stream = Stream(self._source, self._heartbeats, self._on_close, connection, None)
            # uvicorn's ``send`` returns when the client leaves, so none of these can hold up its being heard.
            await send(head)
            await send({"type": "http.response.body", "body": RETRY, "more_body": True})
            return
        stream = Stream(self._source, self._heartbeats, self._on_close, connection, head)
        try:
            await stream.run(receive, send)
        finally:
            await stream.aclose()


def beating(every_s: float) -> Wheel[Stream]:
    """Heartbeats for streams: each has one when it was silent for so long."""
    return Wheel(every_s, Stream.beat)


def wants_stream(request: Request) -> bool:
    """Whether the client asked for an event stream."""
    return "text/event-stream" in request.headers.get("accept", "")
