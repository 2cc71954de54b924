"""A line that a test can break: a TCP proxy between a client and a server, in a thread with its own loop.

A break is placed, never timed: ``cut_after(rb"id: 7\\n")`` breaks the connection on which this goes to the client, and
right behind it, so that a client loses its line inside a frame, or inside a letter, at the very byte the test names.
With ``step``, a client gets so many bytes each time the test says ``step()``, and the server feels it.
"""

import asyncio
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

How = Literal["reset", "close"]
"""``reset``: RST, what was on its way is lost. ``close``: FIN, as if the other end had hung up."""

SMALL_BUFFER = 4096
"""Of the socket to the server in ``step`` mode: else the kernel would read on in the client's name."""


class Cut(NamedTuple):
    """Where a connection breaks: behind what the pattern matches of the bytes to its client."""

    behind: "re.Pattern[bytes]"
    how: How


class Line:
    """One client's connection and its other half to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._halves = (client, server)
        self.sent = bytearray()

    def cut(self, how: How) -> None:
        for half in self._halves:
            if how == "reset":
                half.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                half.transport.abort()
            else:
                half.close()


class Proxy:
    """Use ``proxying``. Its methods may be called from any thread."""

    def __init__(self, server: str, step: int | None) -> None:
        self._server = urlsplit(server)
        self._step = step
        self._steps = asyncio.Semaphore(0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: set[Line] = set()
        self._planned: deque[Cut] = deque()
        self.url = ""
        self.connections = 0
        self.cuts = 0
        self.asked = bytearray()
        """All bytes that clients have sent."""

    @property
    def open(self) -> int:
        """Connections at the moment."""
        return len(self._lines)

    @property
    def planned(self) -> int:
        """Cuts that have not happened yet."""
        return len(self._planned)

    def cut(self, how: How = "reset") -> None:
        """Break every connection now."""

        def all_lines() -> None:
            for line in list(self._lines):
                self._cut(line, how)

        self._call(all_lines)

    def hang_up(self) -> None:
        """Close every connection now, as a server does with those that lie idle. It is no cut."""

        def all_lines() -> None:
            for line in list(self._lines):
                self._lines.discard(line)
                line.cut("close")

        self._call(all_lines)

    def cut_after(self, pattern: bytes, how: How = "reset") -> None:
        """Break the next connection that carries this to its client, right behind it. One after the other."""
        self._call(lambda: self._planned.append(Cut(re.compile(pattern), how)))

    def step(self, times: int = 1) -> None:
        """Let each stepping connection have so many bytes more."""

        def release() -> None:
            for _ in range(times):
                self._steps.release()

        self._call(release)

    def _call(self, act: Callable[[], object]) -> None:
        async def done() -> None:
            act()

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    async def serve(self, listener: socket.socket, ready: threading.Event, stop: asyncio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.ensure_future(self._carry(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async with await asyncio.start_server(connected, sock=listener):
            ready.set()
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        line = Line(writer, to_server)
        self._lines.add(line)
        up = asyncio.ensure_future(self._up(reader, to_server))
        try:
            await self._down(line, from_server, writer)
        finally:
            up.cancel()
            self._lines.discard(line)
            with suppress(OSError, asyncio.CancelledError):
                await up
            for half in (writer, to_server):
                half.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setblocking(False)
        if self._step is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        await asyncio.get_running_loop().sock_connect(sock, (self._server.hostname, self._server.port))
        return await asyncio.open_connection(sock=sock, limit=SMALL_BUFFER if self._step is not None else 65536)

    async def _up(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.asked += data
                to_server.write(data)
                await to_server.drain()
            to_server.write_eof()
        except ConnectionError:
            to_server.transport.abort()

    async def _down(self, line: Line, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                if self._step is not None:
                    await self._steps.acquire()
                data = await from_server.read(self._step or 65536)
                if not data or self._breaks(line, data, writer):
                    return
                writer.write(data)
                await writer.drain()

    def _breaks(self, line: Line, data: bytes, writer: asyncio.StreamWriter) -> bool:
        before = len(line.sent)
        line.sent += data
        if not self._planned:
            return False
        found = self._planned[0].behind.search(line.sent)
        if found is None:
            return False
        cut = self._planned.popleft()
        writer.write(data[: max(0, found.end() - before)])
        self._cut(line, cut.how)
        return True

    def _cut(self, line: Line, how: How) -> None:
        self._lines.discard(line)
        self.cuts += 1
        line.cut(how)


@contextmanager
def proxying(server: str, *, step: int | None = None) -> Iterator[Proxy]:
    """A proxy before ``server`` (``http://host:port``)."""
    proxy, ready, stop = Proxy(server, step), threading.Event(), asyncio.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(listener, ready, stop)))
        thread.start()
        try:
            assert ready.wait(10), "the proxy did not start"
            yield proxy
        finally:
            proxy._call(stop.set)
            thread.join(10)
            assert not thread.is_alive(), "the proxy did not stop"
