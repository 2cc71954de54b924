"""A server whose bytes are the test's: what it says on each connection, when, and how it ends.

It runs on the test's own event loop. A script is a coroutine function that gets the ``Wire`` of one connection.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self, cast

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire:
    """One connection, from the server's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.requests: list[bytes] = []
        self.gone = asyncio.Event()
        """The client has closed it, as far as a read has told."""

    async def request(self) -> bytes:
        """The next request, whole; ``b""``: there is none."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            body = await self._body(head.lower())
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
            return b""
        self.requests.append(head + body)
        return head + body

    async def _body(self, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" in head:
            return await self._reader.readuntil(LAST)
        if b"content-length: " in head:
            return await self._reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        return b""

    async def send(self, *pieces: bytes) -> Self:
        """Each piece on its own, as far as the loop can tell."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)
        return self

    async def left(self) -> None:
        """Until the client has closed the connection, in whichever way."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        self.gone.set()

    def deaf(self) -> None:
        """Take nothing more from the client."""
        cast("asyncio.ReadTransport", self.writer.transport).pause_reading()

    def hear(self) -> None:
        """Take it again."""
        cast("asyncio.ReadTransport", self.writer.transport).resume_reading()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Wire], Awaitable[None]]


class Server:
    """Use ``wired``."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.wires: list[Wire] = []
        self.url = ""

    @property
    def open(self) -> int:
        """Connections whose script has not ended."""
        return len(self._tasks)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._script(wire)
        except (ConnectionError, asyncio.CancelledError):
            wire.gone.set()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in self.wires:
            wire.writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def wired(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server on 127.0.0.1, under TLS as ``localhost``."""
    one = Server(script)
    listener = await asyncio.start_server(one.connected, "127.0.0.1", 0, ssl=tls)
    one.port = listener.sockets[0].getsockname()[1]
    one.url = f"https://localhost:{one.port}/" if tls else f"http://127.0.0.1:{one.port}/"
    try:
        yield one
    finally:
        listener.close()
        await one.stop()


def always(*pieces: bytes) -> Script:
    """The same answer to every request; the connection is kept."""

    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.send(*pieces)

    return script


def once(*pieces: bytes) -> Script:
    """One answer, and then the connection is closed."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(*pieces)

    return script


async def silent(wire: Wire) -> None:
    """Takes what comes and never answers."""
    await wire.left()
