"""Thousands of client connections in one thread, at a few microseconds for each piece that comes.

A client library, or asyncio itself, would take more of the machine than the servers that are measured. ``Line`` is one
connection and what its owner does with what comes over it; ``Epoll`` waits for all of them.
"""

import select
import socket
import time
from contextlib import suppress

READ = 65_536


class Line:
    """One connection. ``began`` is when it was opened, in monotonic seconds."""

    __slots__ = ("began", "socket")

    def __init__(self) -> None:
        self.began = 0.0
        self.socket: socket.socket | None = None

    def greeting(self) -> bytes:
        """What is sent at once."""
        raise NotImplementedError

    def received(self, data: bytes, now: float) -> bool:
        """What came; false: it was the last, and the connection is closed."""
        raise NotImplementedError

    def lost(self, now: float) -> None:
        """The other side has closed, or broken off, before that."""

    def send(self, data: bytes) -> None:
        """Something small; what the kernel does not take is a broken connection."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.send(data)


class Epoll:
    """The connections that are open."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._lines: dict[int, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def open(self, line: Line, address: tuple[str, int]) -> None:
        """Connect, and send the greeting as soon as that is done."""
        line.began = time.monotonic()
        line.socket = one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            one.connect(address)
        self._lines[one.fileno()] = line
        self._poll.register(one.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def turn(self, timeout_s: float) -> None:
        """Wait for whatever comes, and hand it to whom it is for."""
        for number, event in self._poll.poll(max(timeout_s, 0)):
            line = self._lines[number]
            one = line.socket
            assert one is not None
            if event & select.EPOLLOUT:
                self._poll.modify(number, select.EPOLLIN)
                line.send(line.greeting())
            if event & ~select.EPOLLOUT:
                self._read(line, one)

    def _read(self, line: Line, one: socket.socket) -> None:
        try:
            data = one.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        if not data:
            self.close(line)
            line.lost(now)
        elif not line.received(data, now):
            self.close(line)

    def close(self, line: Line) -> None:
        """Let go of a connection."""
        assert line.socket is not None
        del self._lines[line.socket.fileno()]
        line.socket.close()
        line.socket = None
