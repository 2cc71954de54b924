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

The server hears of a drop as of any other disconnect. Nothing here awaits, polls a request or looks into what is
sent. Where there is no TCP transport to be found (a test client, another server), and for each thing that the system
does not have, the app is served without.
"""

import asyncio
import logging
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, Self

from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("millrace.wire")

EXTENSION = "millrace.connection"
"""Where a scope's ``extensions`` have the request's ``Connection``."""

HIGH_WATER = 32 * 1024
"""Bytes the transport holds before ``send`` waits. Also the low mark: so what is held over it is never added to."""

SNDBUF = 32 * 1024
"""What the kernel is asked to hold; Linux takes twice that."""

LOOK_S = 2.5
"""How often a connection is looked at, while a request is being served over it."""

LOOKS_AT_ONCE, REST_S = 256, 0.01
"""So many looks (about 4 µs each) before others have their turn."""

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
        except (AttributeError, OSError, struct.error):
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


class Connection:
    """One request's connection. ``abort`` breaks it off: the client must not take what it has for all there is."""

    __slots__ = ("_info", "_since", "_sock", "_taken", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
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

    def abort(self) -> None:
        """Close at once; of what is unsent, the kernel's part still goes out. Twice is once."""
        self._transport.abort()

    def reset(self) -> None:
        """Close at once, and let go of all that is unsent."""
        with suppress(AttributeError, OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.abort()

    def tune(self, options: list[tuple[int, int, int]]) -> None:
        """Set the options and marks, unless an earlier request has."""
        if getattr(self._transport, "get_write_buffer_limits", tuple)() == (HIGH_WATER, HIGH_WATER):
            return
        self._transport.set_write_buffer_limits(high=HIGH_WATER, low=HIGH_WATER)
        for option in options:
            with suppress(AttributeError, OSError):  # no TCP, or a system that does not know the option
                self._sock.setsockopt(*option)

    def look(self, now: float, send_timeout_s: float) -> str | None:
        """Why this connection should be dropped, if it should. ``now`` is the loop's time."""
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
    """ASGI middleware, the outermost: it finds the transport through the server's own ``receive``."""

    def __init__(self, app: ASGIApp, *, send_timeout_s: float = 30.0) -> None:
        self._app = app
        self._send_timeout_s = send_timeout_s
        self._look_s = min(LOOK_S, send_timeout_s / 4)
        self._options = list(_options(send_timeout_s))
        self._due: OrderedDict[Connection, float] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request with its connection in the scope's extensions."""
        transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is None:
            await self._app(scope, receive, send)
            return
        connection = Connection(transport)
        connection.tune(self._options)
        scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: connection}
        self._watch(connection)
        try:
            await self._app(scope, receive, send)
        finally:
            self._due.pop(connection, None)

    def _watch(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._due[connection] = due = loop.time() + self._look_s
        if self._loop is not loop:  # nobody looks: there was nothing to look at, or an earlier loop has ended
            self._loop = loop
            loop.call_at(due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for all. The order of arrival is the order of looking, as all wait equally long.
        now = loop.time()
        for connection in list(islice(self._due, LOOKS_AT_ONCE)):
            if self._due[connection] > now:
                break
            self._due[connection] = now + self._look_s
            self._due.move_to_end(connection)
            reason = connection.look(now, self._send_timeout_s)
            if reason is not None:
                logger.debug("a connection was dropped: %s", reason)
                connection.reset()
        if self._loop is loop:
            self._loop = None
            for due in islice(self._due.values(), 1):
                self._loop = loop
                loop.call_at(max(due, now + REST_S), self._look, loop)


def connection_of(scope: Scope) -> Connection | None:
    """The connection that ``Wire`` found under this request."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, Connection) else None


def _options(send_timeout_s: float) -> Iterator[tuple[int, int, int]]:
    yield socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    wanted = {"TCP_NODELAY": 1, "TCP_USER_TIMEOUT": max(1, int(send_timeout_s * 2000)), **KEEPALIVE}
    for name, value in wanted.items():
        if hasattr(socket, name):
            yield socket.IPPROTO_TCP, getattr(socket, name), value
