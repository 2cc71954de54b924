"""The way to a model provider: HTTP/1.1, pooled, in place of the stock transport below the ``openai`` client.

httpx2's own stack sets a timer, asks for the current task and takes a lock for each token that comes; under load that
is a quarter to a third of a server's CPU. ``quicken`` puts a ``StreamTransport`` below a client that has the stock
one, with its TLS context, limits and socket options; auth, retries, cookies, redirects, proxies and timeouts stay the
client's. What this transport cannot do (HTTP/2, proxies, Unix sockets, upgrades, tracing) the stock one goes on doing.

Promises: the exceptions are httpx2's, each where the stock transport raises it. Whoever waits for a connection gets it
in turn, and who gives up waiting loses nobody's place. A connection is never used on another event loop than its own.
"""

import asyncio
import ssl
from collections.abc import Iterable
from contextlib import suppress
from sys import maxsize
from typing import Any

import httpcore2
import httpx2

from chains.connection import Body, Connection, Origin, SocketOption, Timeouts

__all__ = ["Body", "StreamTransport", "body_of", "leave", "quicken"]

LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=5.0)
"""The ``openai`` client's."""

_PORTS = {"http": 80, "https": 443}


class Pool:
    """The connections of one event loop: the one used last is used first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: httpx2.Limits) -> None:
        self._loop = loop
        self._most = maxsize if limits.max_connections is None else limits.max_connections
        kept = limits.max_keepalive_connections
        self._most_idle = self._most if kept is None else min(kept, self._most)
        self._expiry_s = limits.keepalive_expiry
        self._places: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they became so
        self._waiting: dict[asyncio.Future[Connection | None], Origin] = {}  # in the order in which they came

    @property
    def open(self) -> int:
        """Places that are taken: connections in use, idle, or being opened."""
        return len(self._places)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    async def take(self, origin: Origin, timeout_s: float | None) -> Connection:
        """A connection for one request, perhaps not connected yet. Raises ``PoolTimeout``."""
        connection = None if self._waiting else self._ready(origin)
        return connection or await self._in_turn(origin, timeout_s)

    def put(self, connection: Connection) -> None:
        """A connection of whose exchange, or of which itself, this is the end. Said twice, it changes nothing."""
        if connection not in self._places or (connection in self._idle and connection.connected):
            return
        if connection.connected and self._most_idle > 0:
            self._keep(connection)
        else:
            self._drop(connection)
        self._hand_on()

    def close(self) -> None:
        """Close all connections, those in use as well."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        for connection in list(self._places):
            self._drop(connection, httpx2.ReadError("The client was closed."))

    def _keep(self, connection: Connection) -> None:
        if self._expiry_s is not None:
            connection.expires_at = self._loop.time() + self._expiry_s
        self._idle[connection] = None
        if len(self._idle) > self._most_idle:
            self._drop(next(iter(self._idle)))

    def _drop(self, connection: Connection, error: Exception | None = None) -> None:
        self._idle.pop(connection, None)
        self._places.discard(connection)
        if error is not None:
            connection.fail(error)
        connection.abort()

    def _ready(self, origin: Origin) -> Connection | None:
        """An idle connection, or a new one where there is a place; for it an idle one of elsewhere is closed."""
        self._expire()
        for connection in reversed(list(self._idle)):
            if connection.origin == origin:
                if connection.usable:
                    del self._idle[connection]
                    return connection
                self._drop(connection)
        if len(self._places) >= self._most and self._idle:
            self._drop(next(iter(self._idle)))
        if len(self._places) >= self._most:
            return None
        connection = Connection(origin, self._loop, self.put)
        self._places.add(connection)
        return connection

    def _expire(self) -> None:
        now = self._loop.time()
        while self._idle and (oldest := next(iter(self._idle))).expires_at <= now:
            self._drop(oldest)

    def _hand_on(self) -> None:
        """What is free goes to those who wait, in turn."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            if not waiter.done():
                connection = self._ready(self._waiting[waiter])
                if connection is None:
                    return
                waiter.set_result(connection)
            del self._waiting[waiter]

    async def _in_turn(self, origin: Origin, timeout_s: float | None) -> Connection:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting[waiter] = origin
        self._hand_on()
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._granted(waiter)
        except TimeoutError as error:
            raise httpx2.PoolTimeout("All connections to the model provider are in use.") from error
        if connection is None:
            raise httpx2.ConnectError("The client was closed.")
        return connection

    async def _granted(self, waiter: asyncio.Future[Connection | None]) -> Connection | None:
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            granted = None if waiter.cancelled() else waiter.result()
            if granted is not None:  # in the same moment: it is the next one's
                self.put(granted)
            raise


class StreamTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 (http and https), pooled. What it cannot do is ``fallback``'s.

    ``ssl_context``: None makes httpx2's own when the first https request comes. Each event loop has its own pool, with
    these ``limits``.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        limits: httpx2.Limits = LIMITS,
        socket_options: Iterable[SocketOption] = (),
        fallback: httpx2.AsyncBaseTransport,
    ) -> None:
        self._tls = ssl_context
        self._limits = limits
        self._options = tuple(socket_options)
        self._fallback = fallback
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}

    @property
    def pool(self) -> Pool:
        """The running event loop's."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in list(self._pools):
                if other.is_closed():
                    self._pools.pop(other, None)
            pool = self._pools[loop] = Pool(loop, self._limits)
        return pool

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; the response has its head, and a ``Body`` to read."""
        if not _plain(request):
            return await self._fallback.handle_async_request(request)
        timeouts = request.extensions.get("timeout", {})
        connection = await self._connection(_origin(request), timeouts)
        return await connection.exchange(request, timeouts)

    def leave(self) -> None:
        """Close the running event loop's connections, since it is about to end."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.close()

    async def aclose(self) -> None:
        """Close every connection, on whichever event loop, and the fallback."""
        pools, self._pools = self._pools, {}
        here = asyncio.get_running_loop()
        for loop, pool in pools.items():
            if loop is here:
                pool.close()
            else:
                with suppress(RuntimeError):  # that loop is closed
                    loop.call_soon_threadsafe(pool.close)
        await self._fallback.aclose()

    async def _connection(self, origin: Origin, timeouts: Timeouts) -> Connection:
        while True:
            connection = await self.pool.take(origin, timeouts.get("pool"))
            if connection.fresh:
                await connection.connect(self._context(origin), self._options, timeouts.get("connect"))
                return connection
            if connection.connected:  # else the server closed it while it was handed on
                return connection

    def _context(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.server_name is None:
            return None
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()
        return self._tls


def _plain(request: httpx2.Request) -> bool:
    return (
        request.url.scheme in _PORTS
        and bool(request.url.host)
        and request.method != "CONNECT"
        and "upgrade" not in request.headers
        and "trace" not in request.extensions
    )


def _origin(request: httpx2.Request) -> Origin:
    url = request.url
    host = url.raw_host.decode("ascii")
    secure = url.scheme == "https"
    server_name = request.extensions.get("sni_hostname") or host
    return Origin(host, url.port or _PORTS[url.scheme], server_name if secure else None)


def quicken(client: httpx2.AsyncClient) -> bool:
    """Put a ``StreamTransport`` in place of the client's own transport; whether there is one now.

    Only where that is httpx2's plain one: HTTP/1.1, no proxy, Unix socket, local address or retries. Its TLS context,
    limits and socket options are taken over; it stays as the fallback. Any other client is left as it is, and so is
    one of an httpx2 that is built otherwise than this was written for. Do it before the client's first request.
    """
    transport = getattr(client, "_transport", None)
    if type(transport) is StreamTransport:
        return True
    try:
        quick = _in_place_of(transport)
    except (AttributeError, KeyError, TypeError):
        return False
    if quick is None or not isinstance(client, httpx2.AsyncClient):
        return False
    client._transport = quick  # noqa: SLF001 - it has no other way to change it, and is made by others
    return True


def leave(client: httpx2.AsyncClient) -> None:
    """Close what a quickened client has open in the running event loop; the client itself stays as it is."""
    transport = getattr(client, "_transport", None)
    if isinstance(transport, StreamTransport):
        transport.leave()


def _in_place_of(transport: object) -> StreamTransport | None:
    if type(transport) is not httpx2.AsyncHTTPTransport:
        return None
    stock = vars(transport)["_pool"]
    if type(stock) is not httpcore2.AsyncConnectionPool or not _direct(vars(stock)):
        return None
    pool = vars(stock)
    limits = httpx2.Limits(
        max_connections=pool["_max_connections"],
        max_keepalive_connections=pool["_max_keepalive_connections"],
        keepalive_expiry=pool["_keepalive_expiry"],
    )
    options = pool["_socket_options"] or ()
    return StreamTransport(ssl_context=pool["_ssl_context"], limits=limits, socket_options=options, fallback=transport)


def _direct(pool: dict[str, Any]) -> bool:
    """Whether it speaks HTTP/1.1 to the host itself, over the network, and nothing was asked of it beside."""
    special = any(pool[name] for name in ("_http2", "_proxy", "_uds", "_local_address", "_retries"))
    return bool(pool["_http1"]) and not special and type(pool["_network_backend"]).__name__ == "AutoBackend"


def body_of(response: httpx2.Response) -> Body | None:
    """The response's body, to be pushed; None: it is not of a ``StreamTransport``, is being read, or is encoded."""
    stream = getattr(response.stream, "_stream", response.stream)
    if not isinstance(stream, Body) or stream.begun or response.is_stream_consumed or response.is_closed:
        return None
    return None if "content-encoding" in response.headers else stream
