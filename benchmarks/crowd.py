"""A crowd of readers that follow runs, over SSE or WebSocket, from a process of its own; each counts what it gets.

As a process it opens the connections as fast as the server answers, and prints a line of JSON a second: ``{"at",
"open", "frames", "over"}``. Its last line tells how many readers have seen every token and the run's end, with no gap.
``follow`` starts it, and reads the server's processor time and memory at each of its lines.

    python benchmarks/crowd.py HOST PORT sse|ws READERS TOKENS PATH…
"""

import base64
import json
import re
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import harness
import orjson
from epoll import Epoll, Line
from load import MILLRACE

from app.simulator.tokens import count

Wire: TypeAlias = Literal["sse", "ws"]

OPENING = 256
"""So many connections may wait for the server's answer at once."""

STUCK_S = 60.0
"""When nothing has come for so long, the rest will not come."""

SOCKET_TOKEN = re.compile(rb'"event":"token","data":\{[^{}]*?"text":("(?:[^"\\]|\\.)+")')
PING, CLOSE = 9, 8


class Reader(Line):
    """One that follows a run to its end."""

    __slots__ = ("_asked", "_crowd", "_rest", "finished", "frames", "gaps", "open", "tokens")

    TOKEN, EVENT, FINISHED, GAP = MILLRACE, b"event: ", b"event: run.finished", b"event: gap"

    def __init__(self, crowd: "Crowd", asked: bytes) -> None:
        super().__init__()
        self._crowd = crowd
        self._asked = asked
        self._rest = b""
        self.frames = self.tokens = self.gaps = 0
        self.open = self.finished = False

    def greeting(self) -> bytes:
        """See ``Line``."""
        return self._asked

    def received(self, data: bytes, now: float) -> bool:
        """See ``Line``."""
        rest = self._rest + data if self._rest else data
        if not self.open:
            if b"\r\n\r\n" not in rest:
                self._rest = rest
                return True
            self.open = True
            self._crowd.opened()
            rest = rest.partition(b"\r\n\r\n")[2]
        self._rest = self._understood(rest)
        self._crowd.last = now
        if self.finished:
            self._crowd.over += 1
            return False
        return True

    def _understood(self, rest: bytes) -> bytes:
        """Count what is whole; the rest is left."""
        whole, mark, left = rest.rpartition(b"\n\n")
        self._count(whole + mark)
        return left

    def _count(self, whole: bytes) -> None:
        frames = whole.count(self.EVENT)
        self.frames += frames
        self._crowd.frames += frames
        self.tokens += sum(count(orjson.loads(text)) for text in self.TOKEN.findall(whole))
        self.gaps += whole.count(self.GAP)
        self.finished = self.FINISHED in whole

    def lost(self, now: float) -> None:
        """See ``Line``."""
        if not self.open:
            self._crowd.opened()
        self._crowd.broken += 1


class Listener(Reader):
    """The same over a WebSocket: RFC 6455, as far as a client needs it that says next to nothing."""

    __slots__ = ("_hello",)

    TOKEN, EVENT, FINISHED, GAP = SOCKET_TOKEN, b'"event":', b'"event":"run.finished"', b'"event":"gap"'

    def __init__(self, crowd: "Crowd", asked: bytes, hello: bytes) -> None:
        super().__init__(crowd, asked)
        self._hello = hello

    def received(self, data: bytes, now: float) -> bool:
        """See ``Line``; once the handshake is answered, it says which run it wants to follow."""
        was_open = self.open
        goes_on = super().received(data, now)
        if self.open and not was_open and self._hello:
            self.send(masked(self._hello))
        return goes_on

    def _understood(self, rest: bytes) -> bytes:
        at = 0
        while (found := unframed(rest, at)) is not None:
            opcode, payload, at = found
            if opcode == PING:
                self.send(masked(payload, 0x8A))
            elif opcode == CLOSE:
                self._crowd.broken += not self.finished
            else:
                self._count(payload)
        return rest[at:]


def unframed(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """The frame that begins there: opcode, payload, where the next one begins; ``None``: it is not whole."""
    if len(data) < at + 2:
        return None
    size, begin = data[at + 1] & 0x7F, at + 2
    if size >= 126:
        form, begin = (">H", at + 4) if size == 126 else (">Q", at + 10)
        if len(data) < begin:
            return None
        (size,) = struct.unpack_from(form, data, at + 2)
    end = begin + size
    return (data[at] & 0x0F, data[begin:end], end) if len(data) >= end else None


def masked(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame of less than 64 KiB, under the mask 0, which changes nothing."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return bytes([first]) + size + bytes(4) + payload


class Crowd:
    """All readers, and what has come so far."""

    def __init__(self) -> None:
        self.frames = self.over = self.broken = self.open = 0
        self.last = time.monotonic()
        self._epoll = Epoll()
        self._opening = 0

    def opened(self) -> None:
        """A connection has been answered, or has failed."""
        self._opening -= 1
        self.open += 1

    def run(self, readers: Sequence[Reader], address: tuple[str, int], tell: Callable[[], None]) -> None:
        """Open them all, and read until each is over or nothing comes any more."""
        todo, due = iter(readers), time.monotonic()
        left = len(readers)
        while left or (len(self._epoll) and time.monotonic() < self.last + STUCK_S):
            while left and self._opening < OPENING:
                self._epoll.open(next(todo), address)
                self._opening += 1
                left -= 1
            if time.monotonic() >= due:
                due += 1
                tell()
            self._epoll.turn(due - time.monotonic())


def readers(crowd: Crowd, wire: Wire, number: int, paths: Sequence[str]) -> list[Reader]:
    """So many, the paths in turn. Millrace's WebSocket is at ``/ws``, and the run is named by a frame."""
    made: list[Reader] = []
    for index in range(number):
        path = paths[index % len(paths)]
        if wire == "sse":
            made.append(Reader(crowd, _get(path, "Accept: text/event-stream")))
            continue
        run_id = path.split("/")[2] if path.startswith("/runs/") else ""
        hello = (
            json.dumps({"type": "attach", "stream_id": "s", "run_id": run_id, "after": 0}).encode() if run_id else b""
        )
        key = base64.b64encode(index.to_bytes(16, "big")).decode()
        asked = _get(
            "/ws" if run_id else path,
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        made.append(Listener(crowd, asked, hello))
    return made


def _get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")).encode()


def main(address: tuple[str, int], wire: Wire, number: int, tokens: int, paths: Sequence[str]) -> None:
    """Follow to the end."""
    crowd = Crowd()
    everyone = readers(crowd, wire, number, paths)

    def state() -> dict[str, Any]:
        return {"at": time.monotonic(), "open": crowd.open, "frames": crowd.frames, "over": crowd.over}

    crowd.run(everyone, address, lambda: print(json.dumps(state()), flush=True))
    fed = sum(one.finished and one.tokens == tokens and not one.gaps for one in everyone)
    gaps = sum(one.gaps > 0 for one in everyone)
    print(json.dumps(state() | {"fed": fed, "gaps": gaps, "broken": crowd.broken}), flush=True)


# -- the other side of it ---------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """At one line of the crowd's: what it told, and what the server had used by then; ``rss`` in MB."""

    at: float
    open: int
    frames: int
    over: int
    cpu_s: float
    rss: float


class Followed(NamedTuple):
    """What became of the readers: ``fed`` have had every token, the end, and no gap."""

    readers: int
    fed: int
    gaps: int
    broken: int
    moments: Sequence[Moment]

    @property
    def all_open(self) -> list[Moment]:
        """While every reader was there."""
        return [one for one in self.moments if one.open == self.readers and not one.over]


def follow(
    server: harness.Server,
    wire: Wire,
    number: int,
    tokens: int,
    paths: Sequence[str],
    *,
    tell: Callable[[Moment], None] = lambda _: None,
) -> Followed:
    """So many readers of these runs, to the runs' end."""
    host, port = server.address
    command = [sys.executable, str(harness.HERE / "crowd.py"), host, str(port), wire, str(number), str(tokens)]
    moments: list[Moment] = []
    last: dict[str, Any] = {}
    for last in harness.lines([*command, *paths]):
        told = (last["at"], last["open"], last["frames"], last["over"])
        moments.append(Moment(*told, server.cpu_s(), server.rss()))
        tell(moments[-1])
    if "fed" not in last:
        raise SystemExit("the readers ended by themselves")
    return Followed(number, last["fed"], last["gaps"], last["broken"], moments)


if __name__ == "__main__":
    host, port, wire, number, tokens, *paths = sys.argv[1:]
    main((host, int(port)), "ws" if wire == "ws" else "sse", int(number), int(tokens), paths)
