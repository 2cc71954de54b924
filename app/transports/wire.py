"""The connections under the server: tuned when a request first comes over one, watched while it is served.

What a reader has not taken must stay in the log, where it can be merged, dropped and counted, and not in buffers
below it: so both the transport's and the kernel's are bounded. And a peer that is gone must be noticed, though TCP
says nothing of one whose cable was pulled:

* a reader for whom something waits and who takes no byte of it for ``send_timeout_s`` is dropped;
* a peer that answers nothing, neither data nor the kernel's own questions, is dropped within 15 s. One whose window
  is shut but who answers is alive.

``TCP_USER_TIMEOUT`` alone would do neither well: it knows one time for both, and Linux does not start it anew when a
reader takes only a part of what a segment holds: a slow one is cut off while it reads. So it is set to twice the time,
for what is still unsent when nobody looks any more, and who takes how much is read off ``TCP_INFO``.

The server hears of a drop as of any other disconnect. Nothing here polls a request or looks into what is sent.
Where there is no TCP transport to be found (a test client, another server), and for each thing that the system does
not have, the app is served without.

Where nobody stands between the server and this place who could want to see what is sent, and the server is uvicorn as
it is known, a stream may be left to the connection: the middlewares and the route, half of the memory that an open
stream would hold, return, and it lives on here; and it may write past the server, see ``Connection.direct``.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from app.transports.wheel import Wheel

logger = logging.getLogger("millrace.wire")

EXTENSION = "millrace.connection"
"""Where a scope's ``extensions`` have the request's ``Connection``."""

HIGH_WATER = 32 * 1024
"""Bytes the transport holds before ``send`` waits. Also the low mark: so what is held over it is never added to."""

SNDBUF = 32 * 1024
"""What the kernel is asked to hold; Linux takes twice that."""

LOOK_S = 2.5
"""How often a connection is looked at (about 4 µs), while a request is being served over it."""

LOST_AFTER_S = 10.0
"""A silence so long, with questions unanswered, is no mere hiccup. A look later than that is within 15 s."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""The kernel's own question to a silent peer, by the names that systems have for it, in seconds and a count."""

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closed without a farewell, and nothing is kept of what was unsent
_TCP_INFO = struct.Struct("=BxBB48xII60xQ16xI")
_CLOSED, _PEER_CLOSED = 7, 8


class TcpInfo(NamedTuple):
    """Linux's ``struct tcp_info`` (linux/tcp.h), as far as it matters here: what the peer did, and how long ago."""

    state: int
    retransmits: int
    probes: int
    last_data_ms: int
    last_ack_ms: int
    acked_bytes: int
    unsent_bytes: int

    @classmethod
    def of(cls, sock: Any) -> Self | None:
        """What the kernel knows of this socket; ``None`` where it does not say, or the socket is closed."""
        try:
            return cls._make(_TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)))
        except (AttributeError, OSError, ValueError, struct.error):  # uvloop: a ValueError, once it is closed
            return None

    @property
    def unanswered(self) -> bool:
        """Whether the kernel has asked (sent again, probed the window, sent a keep-alive) and had no answer yet."""
        return self.retransmits > 0 or self.probes > 0


def gone(before: TcpInfo | None, now: TcpInfo) -> bool:
    """Whether the peer has hung up or is lost. ``before`` is from a look earlier.

    Both looks must find it silent: a probe that is on its way when one of them comes is no sign of anything.
    """
    if now.state in (_CLOSED, _PEER_CLOSED):
        return True
    silent_s = min(now.last_data_ms, now.last_ack_ms) / 1000
    return silent_s > LOST_AFTER_S and now.unanswered and before is not None and before.unanswered


class Stream(Protocol):
    """What goes on when the app has returned: see ``Connection.stream``."""

    async def run(self, receive: Receive, send: Send) -> None:
        """Until the response is complete or the client has left."""

    async def aclose(self) -> None:
        """It is over, or never began."""


class Connection:
    """One request's connection. ``abort`` breaks it off: the client must not take what it has for all there is.

    ``stream`` is what the app leaves to it, with the response's head sent; it runs when the app has returned.
    ``direct``: ``write`` may be used, for chunks (RFC 9112, 7.1) of a response's body between its head and its end,
    which go by the server, as any part of the body may. ``cycle`` is what the server knows the request by.
    """

    __slots__ = ("_cycle", "_info", "_since", "_sock", "_taken", "_transport", "direct", "stream")

    def __init__(self, transport: asyncio.Transport, cycle: Any = None, *, direct: bool = False) -> None:
        self.direct = direct
        self.stream: Stream | None = None
        self._cycle = cycle
        self._transport = transport
        self._sock = transport.get_extra_info("socket")
        self._info: TcpInfo | None = None
        self._taken = -1
        self._since = 0.0

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the other end; nothing on a Unix socket. Of one that has hung up they are empty."""
        name = self._transport.get_extra_info("peername")
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
        return None if self._sock is not None and self._sock.family == getattr(socket, "AF_UNIX", None) else ("", 0)

    @property
    def closing(self) -> bool:
        """Whether nothing may be written any more."""
        return self._cycle.disconnected or self._cycle.response_complete or self._transport.is_closing()

    @property
    def full(self) -> bool:
        """Whether the peer has to take something first: until then the server's own ``send`` waits for it."""
        return self._transport.get_write_buffer_size() > HIGH_WATER

    def write(self, data: bytes) -> None:
        """Hand chunks to the transport; neither ``closing`` nor ``full`` may be true."""
        self._transport.write(data)

    def abort(self) -> None:
        """Close at once; of what is unsent, the kernel's part still goes out. Twice is once."""
        self._transport.abort()

    def drop(self) -> None:
        """Close at once, let go of all that is unsent, and have the request hear of it."""
        with suppress(AttributeError, OSError, ValueError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.abort()
        if self._unheard and hasattr(self._cycle, "message_event"):
            self._cycle.disconnected = True
            self._cycle.message_event.set()

    @property
    def _unheard(self) -> bool:
        """Whether the request knows of no end: uvicorn (0.54, httptools) tells only the last one of a pipeline.

        One that is answered is over. The server then closes the connection itself, if it does; dropped in that moment,
        it would be reset, and the answer's last words might not arrive.
        """
        disconnected, complete = (getattr(self._cycle, name, None) for name in ("disconnected", "response_complete"))
        return disconnected is False and complete is False

    def tune(self, options: list[tuple[int, int, int]]) -> None:
        """Set the options and marks, unless an earlier request has."""
        if getattr(self._transport, "get_write_buffer_limits", tuple)() == (HIGH_WATER, HIGH_WATER):
            return
        self._transport.set_write_buffer_limits(high=HIGH_WATER, low=HIGH_WATER)
        for option in options:
            with suppress(AttributeError, OSError, ValueError):  # no TCP, or a system that does not know the option
                self._sock.setsockopt(*option)

    def look(self, now: float, send_timeout_s: float) -> str | None:
        """Why this connection should be dropped, if it should. ``now`` is the loop's time."""
        if self._transport.is_closing() and self._unheard:
            return "it is closed"
        before, self._info = self._info, TcpInfo.of(self._sock)
        unsent = self._transport.get_write_buffer_size()
        if self._info is None:
            taken, waits = unsent, unsent > HIGH_WATER  # to what is over the mark nothing is added: it can only shrink
        elif gone(before, self._info):
            return "the peer is gone"
        else:
            taken, waits = self._info.acked_bytes, unsent + self._info.unsent_bytes > 0
        if not waits or taken != self._taken:
            self._taken, self._since = taken, now
        return "the reader takes nothing" if now - self._since >= send_timeout_s else None


class Wire:
    """ASGI middleware, the outermost: it finds the transport through the server's own ``receive``.

    ``direct``: none of the middlewares inside of it has any business with what a stream sends after its head.
    """

    def __init__(self, app: ASGIApp, *, send_timeout_s: float = 30.0, direct: bool = True) -> None:
        self._app = app
        self._direct = direct
        self._send_timeout_s = send_timeout_s
        self._options = list(_options(send_timeout_s))
        self._looks: Wheel[Connection] = Wheel(min(LOOK_S, send_timeout_s / 4), self._look)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request with its connection in the scope's extensions."""
        cycle = getattr(receive, "__self__", None)
        transport: Any = getattr(cycle, "transport", None)
        if transport is None:
            await self._app(scope, receive, send)
            return
        connection = Connection(transport, cycle, direct=self._direct and _is_bare(cycle, scope, send))
        connection.tune(self._options)
        scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: connection}
        self._looks.touch(connection)
        try:
            await self._app(scope, receive, send)
            if connection.stream is not None:
                await connection.stream.run(receive, send)
        finally:
            self._looks.drop(connection)
            # No circle is left: with it a run's whole log would wait for the collector, which comes seldom.
            scope["extensions"].pop(EXTENSION, None)
            stream, connection.stream = connection.stream, None
            if stream is not None:
                await stream.aclose()

    def _look(self, connection: Connection, now: float) -> None:
        reason = connection.look(now, self._send_timeout_s)
        if reason is not None:
            logger.debug("a connection was dropped: %s", reason)
            connection.drop()


def connection_of(scope: Scope) -> Connection | None:
    """The connection that ``Wire`` found under this request."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, Connection) else None


def _is_bare(cycle: Any, scope: Scope, send: Send) -> bool:
    """Whether ``send`` is uvicorn's own, with nobody before it, and makes chunks of an HTTP/1.1 response's body.

    Of uvicorn's insides only this is relied on: both its ``RequestResponseCycle``s write at once what they are sent,
    and keep these two marks. Where they are not found, the app is served without.
    """
    return (
        getattr(send, "__self__", None) is cycle
        and type(cycle).__module__.startswith("uvicorn.protocols.http.")
        and (scope["type"], scope.get("http_version")) == ("http", "1.1")
        and scope.get("method") != "HEAD"
        and getattr(cycle, "disconnected", None) is False
        and getattr(cycle, "response_complete", None) is False
    )


def _options(send_timeout_s: float) -> Iterator[tuple[int, int, int]]:
    yield socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    wanted = {"TCP_NODELAY": 1, "TCP_USER_TIMEOUT": max(1, int(send_timeout_s * 2000)), **KEEPALIVE}
    for name, value in wanted.items():
        if hasattr(socket, name):
            yield socket.IPPROTO_TCP, getattr(socket, name), value
