"""A stream of frames as server-sent events: WHATWG HTML, section 9.2.

Promises: the head of the response goes out at once, each batch of frames in one write, a comment after
``heartbeat_s`` of silence. The client's leaving is heard from the server's transport in every phase, also while
nothing is being sent. Whatever ends the response, ``on_close`` is called, once.

A heartbeat is a comment line without a blank line after it: several decoders take a blank line for an empty event
once they have seen an id. For the same reason ``retry:`` is not a block of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.protocols.frame import Frame

RETRY = b"retry: 1000\n"
HEARTBEAT = b": hb\n"

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
"""What keeps proxies from buffering, caching or compressing a stream."""


class EndOfFrames(Exception):
    """The terminal frame has been handed out."""


class FrameSource(Protocol):
    """Where frames come from. Being cancelled while it waits must lose nothing."""

    async def read(self) -> Sequence[Frame]:
        """The next frames, at least one. Raises ``EndOfFrames``."""


def render(frame: Frame) -> bytes:
    """One frame as a block of the event stream."""
    head = b"" if frame.id is None else b"id: %b\n" % frame.id.encode()
    if frame.event is not None:
        head += b"event: %b\n" % frame.event.encode()
    return b"%bdata: %b\n\n" % (head, frame.data)


class EventStream(Response):
    """The response of every native stream."""

    def __init__(
        self, source: FrameSource, *, heartbeat_s: float, headers: Mapping[str, str], on_close: Callable[[], None]
    ) -> None:
        super().__init__(None, headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._source = source
        self._heartbeat_s = heartbeat_s
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until they end or the client leaves, whichever is first."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_disconnect, receive, group.cancel_scope)
                await self._stream(send)
                group.cancel_scope.cancel()
        finally:
            self._on_close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": RETRY, "more_body": True})
        while True:
            body = HEARTBEAT
            try:
                with anyio.move_on_after(self._heartbeat_s):
                    body = b"".join(map(render, await self._source.read()))
            except EndOfFrames:
                break
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def wants_stream(request: Request) -> bool:
    """Whether the client asked for an event stream."""
    return "text/event-stream" in request.headers.get("accept", "")
