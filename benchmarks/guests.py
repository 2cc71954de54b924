"""Clients that start a run, follow it, and leave in whatever way: hundreds of them in one event loop.

Bare sockets for HTTP, since how a connection ends is the matter. A guest starts one run over one of the server's
ways in, and knows it by the same few verbs, whatever the way: ``until`` something has come, ``cancel``, ``leave``. A
start that the server refuses raises ``Refused``, of which ``wrong`` says whether the refusal has its form.
"""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Leaving = Literal["FIN", "RST"]

TOO_MANY = "Maximum concurrent streams reached. Please wait for an existing response to complete."
STATUS = {"too_many_streams": 429, "rate_limited": 429, "too_many_readers": 429, "upstream_busy": 503}


class Place(NamedTuple):
    """Where the server is, and who asks."""

    address: tuple[str, int]
    user: str
    key: str


class Refused(Exception):
    """A start was refused: its code, when to try again, and what is not as the contract has it."""

    def __init__(self, code: str, retry_after_s: float, wrong: list[str]) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after_s = retry_after_s
        self.wrong = wrong


class Odd(Exception):
    """An answer that nobody should get."""


class Http:
    """One request, over a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_id = 0
        self._reader = reader
        self._writer = writer

    @classmethod
    async def send(cls, place: Place, method: str, path: str, body: Any = None, accept: str = "*/*") -> "Http":
        """Connect, and write the request."""
        reader, writer = await asyncio.open_connection(*place.address)
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {place.key}",
            f"Accept: {accept}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        )
        writer.write("\r\n".join((*head, "", "")).encode() + data)
        return cls(reader, writer)

    async def head(self) -> int:
        """Read the response's head; its status."""
        try:
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except asyncio.IncompleteReadError:
            raise Odd("the server has closed the connection instead of an answer") from None
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return self.status

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(self.headers.get("content-length", 0)))
            return
        while size := int(await self._reader.readline() or b"0", 16):
            yield await self._reader.readexactly(size)
            await self._reader.readline()

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def events(self) -> AsyncIterator[tuple[str, bytes]]:
        """The body's server-sent events: name and data."""
        rest = b""
        async for chunk in self.chunks():
            *blocks, rest = (rest + chunk.replace(b"\r\n", b"\n")).split(b"\n\n")
            for block in blocks:
                lines = block.split(b"\n")
                named = dict(
                    line.split(b": ", 1) for line in lines if line.startswith((b"event: ", b"data: ", b"id: "))
                )
                if (number := named.get(b"id", b"")).isdigit():
                    self.last_id = int(number)
                yield named.get(b"event", b"").decode(), named.get(b"data", b"")

    async def leave(self, way: Leaving) -> None:
        """Hang up. The server must do so too."""
        if way == "RST":
            # Lingering for no time at all is what turns the close into a reset.
            self._writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._writer.transport.abort()
            return
        with suppress(OSError):
            self._writer.write_eof()
            while await self._reader.read(65536):
                pass
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._writer.close()


async def ask(place: Place, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request for a short answer: status and JSON."""
    http = await Http.send(place, method, path, body)
    try:
        status, data = await http.head(), await http.body()
    finally:
        http.close()
    return status, json.loads(data) if data else None


def refusal(http: Http, data: bytes) -> Refused:
    """What the server said instead of a run; raises ``Odd`` for what is no refusal by a limit."""
    error = json.loads(data).get("error", {}) if data.startswith(b"{") else {}
    code = str(error.get("code"))
    if STATUS.get(code) != http.status:
        raise Odd(f"{http.status} {data[:200]!r}")
    wrong = _wrong(error)
    if http.headers.get("retry-after") != str(-(-error.get("retry_after_ms", -1) // 1000)):
        wrong.append(f"{code}: Retry-After is {http.headers.get('retry-after')}")
    return Refused(code, error.get("retry_after_ms", 1000) / 1000, wrong)


def _wrong(error: Mapping[str, Any]) -> list[str]:
    wrong = [] if error.get("message") else ["without a message"]
    if error.get("code") == "too_many_streams" and error.get("message") != TOO_MANY:
        wrong.append(f"too_many_streams: {error.get('message')}")
    if not error.get("retry_after_ms", 0) > 0:
        wrong.append(f"{error.get('code')}: retry_after_ms is {error.get('retry_after_ms')}")
    return wrong


class Guest:
    """Whoever has started a run. ``seen`` are the names of the events that have come, ``ends`` those of the last."""

    ends: frozenset[str] = frozenset({"run.finished"})

    def __init__(self, place: Place) -> None:
        self.place = place
        self.run_id: str | None = None
        self.over = False
        self.seen: set[str] = set()

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """Ask for the run."""
        raise NotImplementedError

    async def admitted(self) -> None:
        """Wait until it is started. Raises ``Refused``."""
        raise NotImplementedError

    async def step(self) -> str | None:
        """The next event's name; ``None`` when there is none to come."""
        raise NotImplementedError

    async def until(self, *names: str) -> bool:
        """Read on until one of these has come; whether one has."""
        while not self.over and self.seen.isdisjoint(names):
            name = await self.step()
            if name is None:
                self.over = True
            else:
                self.seen.add(name)
        return not self.seen.isdisjoint(names)

    async def read(self) -> None:
        """To the end. Raises ``Odd`` when it breaks off without one."""
        await self.until()
        if self.seen.isdisjoint(self.ends):
            raise Odd(f"a stream ended without an end, after {sorted(self.seen)}")

    async def tell(self, verb: str) -> None:
        """``cancel``, ``pause`` or ``continue`` the run."""
        status, said = await ask(self.place, "POST", f"/runs/{self.run_id}/{verb}")
        if status == 429 and verb == "continue":
            raise Refused(said["error"]["code"], said["error"]["retry_after_ms"] / 1000, _wrong(said["error"]))
        if status not in {200, 202}:
            raise Odd(f"{verb}: {status} {said}")

    async def leave(self, way: Leaving) -> None:
        """Be gone."""
        raise NotImplementedError

    async def back(self) -> None:
        """Be there again, behind the last event that has come."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of what is still open."""


class Stream(Guest):
    """A run whose start is its stream: ours."""

    http: Http

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """See ``Guest``."""
        body = {"input": text, **options}
        self.http = await Http.send(self.place, "POST", f"/agents/{agent}/runs", body, "text/event-stream")

    async def admitted(self) -> None:
        """See ``Guest``."""
        if await self.http.head() != 200:
            raise refusal(self.http, await self.http.body())
        self.run_id = self.http.headers["x-run-id"]
        self._events = self.http.events()

    async def step(self) -> str | None:
        """See ``Guest``."""
        event = await anext(self._events, None)
        return None if event is None else self._name(*event)

    def _name(self, event: str, data: bytes) -> str:
        return event

    async def leave(self, way: Leaving) -> None:
        """See ``Guest``."""
        await self.http.leave(way)

    async def back(self) -> None:
        """See ``Guest``."""
        await self._attach(f"/runs/{self.run_id}/events?after={self.http.last_id}")

    async def _attach(self, path: str) -> None:
        self.http = await Http.send(self.place, "GET", path)
        status = await self.http.head()
        if status == 204:  # it has nothing to say any more
            self.seen.add("run.finished")
            self.over = True
        elif status != 200:
            raise Odd(f"attach: {status} {await self.http.body()!r}")
        self._events = self.http.events()

    async def close(self) -> None:
        """See ``Guest``."""
        self.http.close()


class Background(Stream):
    """A run that is started without a reader, and attached to; when it is left, it goes on or does not."""

    def __init__(self, place: Place, chance: random.Random) -> None:
        super().__init__(place)
        self._on_disconnect = chance.choice((None, "cancel"))

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """See ``Guest``."""
        body = {"input": text, "on_disconnect": self._on_disconnect, **options}
        self.http = await Http.send(self.place, "POST", f"/agents/{agent}/runs", body)

    async def admitted(self) -> None:
        """See ``Guest``."""
        status, data = await self.http.head(), await self.http.body()
        self.http.close()
        if status != 202:
            raise refusal(self.http, data)
        self.run_id = self.http.headers["x-run-id"]
        await self._attach(f"/runs/{self.run_id}/events")


class LangServe(Stream):
    """A run by one of LangServe's streams."""

    ends = frozenset({"end", "error"})

    def __init__(self, place: Place, chance: random.Random) -> None:
        super().__init__(place)
        self._route = chance.choice(("stream", "stream_events", "stream_log"))

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """See ``Guest``."""
        body = {"input": message(text)}
        self.http = await Http.send(self.place, "POST", f"/agents/{agent}/{self._route}", body, "text/event-stream")

    def _name(self, event: str, data: bytes) -> str:
        if event == "data" and (b"on_chat_model_stream" in data or self._route != "stream_events"):
            return "token"
        return "tool.started" if b'"on_tool_start"' in data else event


class Whole(Guest):
    """A run by LangServe's ``invoke``, or several by its ``batch``: nothing is heard of them before their end."""

    ends = frozenset({"end"})
    http: Http

    def __init__(self, place: Place, chance: random.Random) -> None:
        super().__init__(place)
        self._route = chance.choice(("invoke", "batch"))

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """See ``Guest``."""
        asked = {"inputs": [message(text)] * 3} if self._route == "batch" else {"input": message(text)}
        self.http = await Http.send(self.place, "POST", f"/agents/{agent}/{self._route}", asked)

    async def admitted(self) -> None:
        """Nothing tells."""

    async def step(self) -> str | None:
        """See ``Guest``; the answer, or a failure of the run, is its one event."""
        if self.over:
            return None
        status, data = await self.http.head(), await self.http.body()
        self.over = True
        if status not in {200, 502}:
            raise refusal(self.http, data)
        return "end"

    async def leave(self, way: Leaving) -> None:
        """See ``Guest``."""
        await self.http.leave(way)

    async def close(self) -> None:
        """See ``Guest``."""
        self.http.close()


def message(text: str) -> Any:
    """What LangServe's clients send."""
    return {"messages": [{"type": "human", "content": text}]}


class Socket:
    """A WebSocket with several streams."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._streams: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, place: Place) -> "Socket":
        """Connect."""
        host, port = place.address
        headers = {"Authorization": f"Bearer {place.key}"}
        url = f"ws://{host}:{port}/ws"
        return cls(
            await connect(url, additional_headers=headers, compression=None, open_timeout=60, ping_interval=None)
        )

    def stream(self) -> tuple[str, "asyncio.Queue[dict[str, Any] | None]"]:
        """A new stream: its id, and where its frames come."""
        name = f"s{len(self._streams)}"
        self._streams[name] = asyncio.Queue()
        return name, self._streams[name]

    async def send(self, **frame: Any) -> None:
        """Say something."""
        await self._socket.send(json.dumps(frame))

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self._socket:
                frame = json.loads(text)
                self._streams[frame["stream_id"]].put_nowait(frame)
        for one in self._streams.values():
            one.put_nowait(None)

    async def leave(self, way: Leaving) -> None:
        """Close it, with whatever goes on over it."""
        if way == "RST":
            transport = self._socket.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        await self._socket.close()
        await self._reading


class SocketStream(Guest):
    """A run over one of a socket's streams."""

    ends = frozenset({"run.finished", "end"})

    def __init__(self, place: Place, socket: Socket) -> None:
        super().__init__(place)
        self._socket = socket
        self._first: dict[str, Any] | None = None
        self._id, self._frames = socket.stream()

    async def send(self, agent: str, text: str, options: Mapping[str, Any]) -> None:
        """See ``Guest``."""
        await self._socket.send(type="start", stream_id=self._id, agent=agent, input=text, **options)

    async def admitted(self) -> None:
        """See ``Guest``."""
        frame = self._first = await self._frames.get()
        if frame is not None and frame.get("final") and frame["event"] == "error":
            error = frame["data"]
            if error["code"] not in STATUS:
                raise Odd(f"a stream was refused: {error}")
            wrong = _wrong(error) if error.get("retryable") else [f"{error['code']}: not retryable"]
            raise Refused(error["code"], error.get("retry_after_ms", 1000) / 1000, wrong)
        if frame is not None:
            self.run_id = frame["data"]["run_id"]

    async def step(self) -> str | None:
        """See ``Guest``."""
        frame, self._first = self._first, None
        if frame is None:
            frame = await self._frames.get()
        if frame is None:
            return None
        if frame["event"] == "run.finished" or frame.get("final"):
            self.over = True
        return str(frame["event"])

    async def tell(self, verb: str) -> None:
        """See ``Guest``; that it is carried out is told by the events."""
        await self._socket.send(type=verb, stream_id=self._id)

    async def leave(self, way: Leaving) -> None:
        """See ``Guest``: the socket stays."""
        await self._socket.send(type="detach", stream_id=self._id)
