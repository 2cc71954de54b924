"""A stream of frames as server-sent events: WHATWG HTML, section 9.2.

Promises: the head of the response goes out at once, each batch of frames in one write, a comment after
``heartbeat_s`` of silence. The client's leaving is heard from the server's transport in every phase, also while
nothing is being sent, or while a client that does not read holds a write up. Whatever ends the response, ``on_close``
is called, once; when the client leaves, as soon as it is heard.

A heartbeat is a comment line without a blank line after it: several decoders take a blank line for an empty event
once they have seen an id. For the same reason ``retry:`` is not a block of its own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Protocol

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.protocols.frame import Frame
from app.transports.wire import connection_of

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


class BrokenFrames(Exception):
    """No more frames will come from here, though the terminal one has not been handed out.

    The connection is broken off: a clean end of the response is what clients take for the end of all there is.
    """


class FrameSource(Protocol):
    """Where frames come from. Being cancelled while it waits must lose nothing."""

    async def read(self) -> Sequence[Frame]:
        """The next frames, at least one. Raises ``EndOfFrames`` or ``BrokenFrames``."""


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
        self._closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until they end or the client leaves, whichever is first."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, receive, group.cancel_scope)
                try:
                    await self._stream(send)
                except BrokenFrames:
                    await _break_off(scope)
                group.cancel_scope.cancel()
        finally:
            self._close()

    async def _listen(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._close()  # here already: the run must not wait until all of this has wound up
        scope.cancel()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": RETRY, "more_body": True})
        with closing(_Silence(self._heartbeat_s)) as silence, suppress(EndOfFrames):
            while True:
                body = HEARTBEAT
                with silence:
                    body = b"".join(map(render, await self._source.read()))
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Silence:
    """Cuts a wait short that lasts for ``bound_s``: ``asyncio.timeout``, but with one timer for all waits of a stream.

    To set and clear a timer for each event would cost as much as all else that is done with it here.
    """

    def __init__(self, bound_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._bound_s = bound_s
        self._since: float | None = None
        self._cut = False
        self._timer = self._loop.call_later(bound_s, self._look)

    def close(self) -> None:
        """No wait will follow."""
        self._timer.cancel()

    def __enter__(self) -> None:
        self._since = self._loop.time()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._since = None
        if not self._cut:
            return False
        self._cut = False
        # What is left of the count after ours is somebody else's cancel, which must go on its way.
        return self._task.uncancel() == 0 and kind is asyncio.CancelledError

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._bound_s
        if due <= now:
            # The task stands in the wait, so that is where the cancel arrives, never in a send.
            self._cut = True
            self._task.cancel()
            due = now + self._bound_s
        self._timer = self._loop.call_at(due, self._look)


async def _break_off(scope: Scope) -> None:
    """Let the connection end as if cut. Where it cannot be got at, the server cuts it: the response has no end."""
    connection = connection_of(scope)
    if connection is not None:
        connection.abort()
        await anyio.sleep_forever()  # until the server has noticed, and tells of it as of any disconnect


def wants_stream(request: Request) -> bool:
    """Whether the client asked for an event stream."""
    return "text/event-stream" in request.headers.get("accept", "")
