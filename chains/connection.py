"""One HTTP/1.1 connection to a model provider, on a bare ``asyncio.Protocol``, and the body of what it answers.

A token of a stream costs one call from the event loop to whoever reads: no task, no timer, no lock is made for it.

- A body is read in one of two ways: iterated, bounded by ``MOST_UNREAD``; or pushed, within the very call in which the
  event loop hands over the bytes.
- Whoever stops early, by ``close``, by a cancel or by an error, closes the socket there and then.
- Every ending has its httpx2 exception: ``ReadError``, ``RemoteProtocolError``, ``ReadTimeout``, ``WriteTimeout``,
  ``ConnectError``, ``ConnectTimeout``. Timeouts are httpx2's: of silence, not of the whole.

A connection belongs to the event loop it was opened on, and is used from nowhere else.
"""

import asyncio
import select
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, nullcontext
from typing import Any, NamedTuple, Protocol, cast

import httpx2

from chains.dialling import dial, resolve
from chains.http11 import NO_RESPONSE, Framing, Reply, head

MOST_UNREAD = 64 * 1024
"""Bytes of a body that wait for whoever iterates it; over it, nothing more is read from the socket."""

MOST_REST = 16 * 1024
"""Bytes that may follow when a reader has all it wants; over it, the connection is closed."""

REST_S = 1.0
"""How long they may take."""

Timeouts = Mapping[str, float | None]
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class Origin(NamedTuple):
    """Where a connection goes. ``server_name``: the name that TLS asks for; None without TLS."""

    host: str
    port: int
    server_name: str | None


class Sink(Protocol):
    """What a connection gives a body's bytes to."""

    @property
    def waits(self) -> bool:
        """Whether the server's silence counts: somebody waits for the next byte."""

    def feed(self, data: bytes) -> None:
        """The next bytes."""

    def finish(self, error: Exception | None) -> None:
        """The end, said once; not after the connection was aborted by the reader."""


class Connection(asyncio.Protocol):
    """One socket. ``freed`` is called with it whenever an exchange is over, and when the socket is."""

    def __init__(self, origin: Origin, loop: asyncio.AbstractEventLoop, freed: Callable[["Connection"], None]) -> None:
        self.origin = origin
        self.loop = loop
        self.expires_at = float("inf")
        """Of the loop's clock: how long the pool may keep it."""
        self._freed = freed
        self._transport: asyncio.Transport | None = None
        self._open = False
        self._dead = False
        self._reply: Reply | None = None
        self._sink: Sink | None = None
        self._headed: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._sent = True
        self._paused = False
        self._heard_at = 0.0
        self._read_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def fresh(self) -> bool:
        """Whether it is still to be connected."""
        return self._transport is None and not self._dead

    @property
    def connected(self) -> bool:
        """Whether it is open, as far as the loop has seen."""
        return self._open

    @property
    def usable(self) -> bool:
        """Whether it is open. It asks the socket: the loop may not have seen yet that the server has closed it."""
        return self._open and not self._readable()

    async def connect(
        self, tls: ssl.SSLContext | None, options: tuple[SocketOption, ...], timeout_s: float | None
    ) -> None:
        """Open the socket. Raises ``ConnectError`` or ``ConnectTimeout``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._dial(tls)
            for option in options:
                self._info("socket").setsockopt(*option)
        except TimeoutError as error:
            self.abort()
            raise httpx2.ConnectTimeout(f"No connection to {self.origin.host}:{self.origin.port}") from error
        except (OSError, UnicodeError) as error:
            self.abort()
            raise httpx2.ConnectError(str(error) or type(error).__name__) from error
        except BaseException:
            self.abort()
            raise

    async def _dial(self, tls: ssl.SSLContext | None) -> None:
        host, port, name = self.origin
        addresses = await resolve(self.loop, host, port)
        options: dict[str, Any] = {"ssl": tls, "server_hostname": None if tls is None else name}
        if len(addresses) > 1:
            options["sock"] = await dial(self.loop, addresses)
        else:
            options["host"], options["port"] = addresses[0].sockaddr[:2] if addresses else (host, port)
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])  # each time, as the stock transport: the context may be shared
        await self.loop.create_connection(lambda: self, **options)
        agreed = None if tls is None else self._info("ssl_object").selected_alpn_protocol()
        if agreed not in (None, "http/1.1"):  # another client has changed the context during the handshake
            raise ConnectionError(f"The server agreed on {agreed}, which was not to be asked for.")

    # -- one exchange ------------------------------------------------------------------------------------------------

    async def exchange(self, request: httpx2.Request, timeouts: Timeouts) -> httpx2.Response:
        """Send the request and wait for the response's head. On any error and on a cancel the socket is closed."""
        if not self._open:
            raise httpx2.RemoteProtocolError(NO_RESPONSE)
        reply, body = Reply(request.method), Body(self)
        self._reply, self._sink, self._sent = reply, body, False
        try:
            await self._send(request, reply, timeouts.get("write"))
            await self._answered(reply, timeouts.get("read"))
        except BaseException:
            if self._reply is reply:  # else it is over, and the connection perhaps another's
                self.abort()
            raise
        if body.error is not None and not reply.status:
            raise body.error
        extensions = {"http_version": reply.version, "reason_phrase": reply.reason}
        return httpx2.Response(reply.status, headers=reply.headers, stream=body, extensions=extensions)

    async def _answered(self, reply: Reply, read_s: float | None) -> None:
        """Wait for the response's head, or for what went wrong."""
        if self._reply is not reply:
            return
        self._watch(read_s)
        if not reply.status:
            self._headed = self.loop.create_future()
            await self._headed

    async def _send(self, request: httpx2.Request, reply: Reply, timeout_s: float | None) -> None:
        """All of the request; or no more of it, once the server has refused it or closed the connection.

        What it said of that is read then, as the stock transport does.
        """
        framing, out = Framing(request), head(request)
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        pieces = request.stream.__aiter__()
        async with aclosing(pieces) if isinstance(pieces, AsyncGenerator) else nullcontext():
            async for piece in pieces:
                if piece:
                    await self._write(out + framing.piece(piece), timeout_s)
                    out = b""
                if not self._open or reply.status >= 400:
                    return
        out += framing.end()
        if out:
            await self._write(out, timeout_s)
        self._sent = self._room is None

    async def _write(self, data: bytes, timeout_s: float | None) -> None:
        if self._transport is None or not self._open:
            return
        self._transport.write(data)
        if self._room is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._room
        except TimeoutError as error:
            raise httpx2.WriteTimeout("The server does not take the request.") from error

    def pause_writing(self) -> None:
        """The server does not keep up with the request."""
        self._room = self.loop.create_future()

    def resume_writing(self) -> None:
        """It does again; or there is nothing more to wait for."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # -- what comes back ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open, and TLS agreed on."""
        self._transport = cast("asyncio.Transport", transport)
        self._open = not self._dead
        if self._dead:  # the pool was closed meanwhile
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand the bytes over. Called for each packet: all that a token costs is here."""
        reply, sink = self._reply, self._sink
        if reply is None or sink is None:  # nobody asked: "408 Request Timeout", or what is no HTTP
            self.abort()
            return
        self._heard_at = self.loop.time()
        content = reply.feed(data)
        if reply.status and not self._sent and reply.status >= 400:
            self._refused()
        if self._headed is not None and reply.status:
            self._wake()
        if content:
            sink.feed(content)
            if self._reply is not reply:  # the reader has closed it
                return
        if reply.complete:
            self._over(None)
        elif reply.error is not None:
            self._over(reply.error)

    def eof_received(self) -> None:
        """The server has said its last."""
        if self._reply is not None:
            self._over(self._reply.cut())
        self._open = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        self._open = False
        if self._reply is not None:
            error = self._reply.cut() if exc is None else httpx2.ReadError(str(exc) or type(exc).__name__)
            if error is not None:
                error.__cause__ = exc
            self._over(error)
        self.resume_writing()
        self._freed(self)

    def abort(self) -> None:
        """Close the socket at once, and tell nobody but the pool."""
        self._detach()
        self._shut()
        self._freed(self)

    def fail(self, error: Exception) -> None:
        """Close the socket at once, and let the reader know."""
        if self._reply is not None:
            self._open = False
            self._over(error)

    def _over(self, error: Exception | None) -> None:
        """The exchange's end: the connection goes back to the pool, or is closed; the reader hears of it last."""
        reply, sink = self._reply, self._sink
        assert reply is not None
        assert sink is not None
        self._detach()
        if error is not None or not self._sent or not reply.keeps or not self._open:
            self._shut()
        self.resume_reading()
        self._freed(self)
        self._wake()
        sink.finish(error)

    def _detach(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self._reply = self._sink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _shut(self) -> None:
        self._open, self._dead = False, True
        self.resume_writing()
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        headed, self._headed = self._headed, None
        if headed is not None and not headed.done():
            headed.set_result(None)

    def _refused(self) -> None:
        """An error, before the request was sent: what is left of it, the server will not read."""
        room = self._room
        if room is not None and not room.done():
            room.set_result(None)

    # -- for the body ------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Read nothing more from the socket for now."""
        if not self._paused and self._open and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on; the server's silence counts from now."""
        self._heard_at = self.loop.time()
        if self._paused and self._open and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def leave(self) -> None:
        """The reader has all it wants: see how the body ends, for the sake of the connection."""
        self._sink = Rest(self)
        self.resume_reading()

    # -- silence -----------------------------------------------------------------------------------------------------

    def _watch(self, read_s: float | None) -> None:
        """From now on, ``read_s`` seconds without a byte end the exchange. One timer, however many bytes there are."""
        if read_s is not None:
            self._read_s = read_s
            self._heard_at = self.loop.time()
            self._timer = self.loop.call_later(read_s, self._look)

    def _look(self) -> None:
        assert self._sink is not None
        now = self.loop.time()
        waits = self._headed is not None or self._sink.waits
        due = (self._heard_at if waits else now) + self._read_s
        if due <= now:
            self.fail(httpx2.ReadTimeout(f"The server was silent for {self._read_s:g} s."))
        else:
            self._timer = self.loop.call_at(due, self._look)

    def _info(self, name: str) -> Any:
        return None if self._transport is None else self._transport.get_extra_info(name)

    def _readable(self) -> bool:
        """Whether the socket has something to read: while nothing is asked, that can only be its end."""
        sock = self._info("socket")
        if sock is None or not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class Rest:
    """What follows when the reader has all it wants. Bounded in bytes and time; past a bound the socket is closed."""

    waits = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = MOST_REST
        self._timer = connection.loop.call_later(REST_S, connection.fail, httpx2.ReadTimeout("The body did not end."))

    def feed(self, data: bytes) -> None:
        """Throw the bytes away."""
        self._left -= len(data)
        if self._left < 0:
            self._connection.fail(httpx2.ReadError("The body did not end."))

    def finish(self, error: Exception | None) -> None:
        """The connection is back in the pool, or closed."""
        self._timer.cancel()


class Body(httpx2.AsyncByteStream):
    """A response's body. Iterate it, or have it pushed; ``release`` or close it to stop before its end."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._pieces: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._data: Callable[[bytes], None] | None = None
        self._end: Callable[[Exception | None], None] | None = None
        self._held = False
        self._closed = False
        self.begun = False
        """Whether somebody reads it already."""
        self.error: Exception | None = None
        """How it ended, if not well."""

    # -- for the connection ------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether somebody waits for the next byte."""
        return self._waiter is not None or (self._data is not None and not self._held)

    def feed(self, data: bytes) -> None:
        """The next bytes, to whoever reads."""
        if self._data is None:
            self._keep(data)
            return
        try:
            self._data(data)
        except Exception as error:  # noqa: BLE001 - the reader's, which goes to the reader
            self._fail(error)

    def finish(self, error: Exception | None) -> None:
        """The end. The connection is no longer this body's."""
        self._connection, self.error = None, error
        self._wake()
        end, self._data, self._end = self._end, None, None
        if end is not None:
            end(error)

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._unread += len(data)
        self._wake()
        if self._unread > MOST_UNREAD and self._connection is not None:
            self._connection.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.fail(error)
        else:
            self.finish(error)

    # -- iterated ----------------------------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """All that is there, each time; then ``error``, if there is one. Left before the end, the socket is closed.

        A second iteration goes on where the first one stands.
        """
        self.begun = True
        try:
            while await self._more():
                yield self._taken()
        except BaseException:
            self.close()
            raise

    async def _more(self) -> bool:
        """Whether there is something to read. Waits for it."""
        while not self._pieces:
            if self._closed:
                raise httpx2.StreamClosed
            if self._connection is None:
                if self.error is not None:
                    raise self.error
                return False
            self._connection.resume_reading()
            await self._wait(self._connection.loop)
        return True

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _taken(self) -> bytes:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._unread = 0
        return data

    # -- pushed ------------------------------------------------------------------------------------------------------

    def push(self, data: Callable[[bytes], None], end: Callable[[Exception | None], None]) -> None:
        """Hand over what is there now, and what comes as it comes; ``end`` once, when it has ended.

        ``end`` gets None, or what broke the body off: an httpx2 exception, or the one that ``data`` raised, which
        closes the connection. After ``release`` or ``close`` neither is called any more.
        """
        if self._closed:
            raise httpx2.StreamClosed
        self.begun = True
        self._data, self._end = data, end
        if self._pieces:
            self.feed(self._taken())
        if self._connection is not None and not self._held:
            self._connection.resume_reading()
        elif self._connection is None and self._end is not None:
            self.finish(self.error)

    def pause(self) -> None:
        """Read nothing more from the socket. What was read already may still be pushed: one packet."""
        self._held = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._held = False
        if self._connection is not None:
            self._connection.resume_reading()

    # -- stopping before the end -------------------------------------------------------------------------------------

    def release(self) -> None:
        """The reader has all it wants. What follows is thrown away, so that the connection can be used again.

        If more than ``MOST_REST`` bytes follow, or for longer than ``REST_S``, the connection is closed instead.
        """
        connection = self._let_go()
        if connection is not None:
            connection.leave()

    def close(self) -> None:
        """Close the socket at once, if the body has not ended."""
        connection = self._let_go()
        if connection is not None:
            connection.abort()

    async def aclose(self) -> None:
        """The same."""
        self.close()

    def _let_go(self) -> Connection | None:
        connection, self._connection = self._connection, None
        self._data = self._end = None
        self._closed = True
        self._pieces.clear()
        self._wake()
        return connection
