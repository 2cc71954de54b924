"""A log's way to its readers' sockets: the same bytes past the server and by it, whoever else reads how fast."""

import asyncio
import gc
import logging
import re
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from scripted import Scripted, words
from serving import running, serving
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.eventlog.memory import MemoryLog
from app.eventlog.subscriber import Subscriber
from app.events import codec
from app.events.event import Event, RunFinished, Token, Totals
from app.main import create_app
from app.protocols import native
from app.routes.stream import LogFrames
from app.settings import Settings
from app.transports.sse import HEARTBEAT, RETRY, EventStream, beating, blocks
from app.transports.wire import HIGH_WATER, Connection, Wire, connection_of

Eventually = Callable[[Callable[[], bool]], None]

TRACES = sorted((Path(__file__).parents[1] / "protocols" / "traces").glob("*.jsonl"))
SERVERS = [("h11", "asyncio"), ("httptools", "asyncio"), ("h11", "uvloop"), ("httptools", "uvloop")]
END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)
LAST = b"\r\n0\r\n\r\n"
UNBOUNDED = {"max_events": 1 << 30, "max_bytes": 1 << 30}


def token(number: int, size: int = 0) -> Token:
    return Token(ts=0, text=f"<{number}>" + "x" * size, message_id="m")


@dataclass
class Logs:
    """An app that streams logs to whoever asks, ``/{name}``. ``ways``: whether each stream was written directly."""

    heartbeat_s: float = 60.0
    logs: dict[str, MemoryLog] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    loop: asyncio.AbstractEventLoop | None = None

    def app(self) -> FastAPI:
        app = FastAPI()
        heartbeats = beating(self.heartbeat_s)

        @app.api_route("/{name}", methods=["GET", "HEAD"])
        async def stream(name: str) -> Response:
            self.loop = asyncio.get_running_loop()
            self.opened += 1
            source = LogFrames(Subscriber(self.logs[name], **UNBOUNDED), native.encode)  # type: ignore[arg-type]
            return EventStream(source, heartbeats=heartbeats, headers={}, on_close=self._close)

        app.add_middleware(Noting, logs=self)
        return app

    def do(self, what: Callable[..., object], *arguments: object) -> None:
        """In the server's loop."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(what, *arguments)

    def append(self, name: str, *events: Event) -> None:
        """All in one turn of the server's loop."""
        self.do(lambda: [self.logs[name].append(event) for event in events])

    def expected(self, name: str) -> bytes:
        entries = self.logs[name].read(0, 1 << 30)
        return RETRY + b"".join(blocks(native.encode(one.offset, one.event, one.data)) for one in entries)

    def _close(self) -> None:
        self.closed += 1


class Noting:
    """Middleware that remembers the connections."""

    def __init__(self, app: ASGIApp, logs: Logs) -> None:
        self._app = app
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        if connection is not None:
            self._logs.connections.append(connection)
        await self._app(scope, receive, send)


@pytest.fixture(params=SERVERS, ids="-".join)
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    http, loop = request.param
    return {"http": http, "loop": loop}


@contextmanager
def asked(url: str, *requests: str, receive_buffer: int = 0) -> Iterator[socket.socket]:
    """A client of our own; its requests are sent in one piece."""
    where = urlsplit(url)
    with socket.socket() as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect((where.hostname, where.port))
        sock.sendall("".join(f"{one}\r\nHost: {where.netloc}\r\n\r\n" for one in requests).encode())
        yield sock


def read_until(sock: socket.socket, text: bytes, read: bytes = b"") -> bytes:
    while text not in read:
        data = sock.recv(65536)
        assert data, "the connection ended early"
        read += data
    return read


def dechunked(response: bytes) -> bytes:
    """The body of a response that ends with it."""
    body, rest = b"", response.partition(b"\r\n\r\n")[2]
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length:]
        assert rest.startswith(b"\r\n")
        rest = rest[2:]
        if not length:
            assert rest == b""
            return body


def ids(body: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"^id: (\d+)$", body, re.MULTILINE)]


# -- the same bytes ---------------------------------------------------------------------------------------------------


class Line(msgspec.Struct):
    id: int
    event: str
    data: msgspec.Raw


def events_of(path: Path) -> list[Event]:
    lines = [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]
    return [codec.decode(line.event, bytes(line.data)) for line in lines]


@pytest.mark.parametrize("direct", [True, False])
def test_over_recorded_runs_each_way_gives_the_same_bytes(
    direct: bool, server: dict[str, Any], eventually: Eventually
) -> None:
    logs = Logs(logs={path.stem: MemoryLog() for path in TRACES})
    with running(Wire(logs.app(), direct=direct), **server) as url, ExitStack() as clients:
        sockets = {name: clients.enter_context(asked(url, f"GET /{name} HTTP/1.1")) for name in logs.logs}
        read = {name: read_until(sock, RETRY) for name, sock in sockets.items()}
        assert [connection.direct for connection in logs.connections] == [direct] * len(TRACES)
        for path in TRACES:
            for number, event in enumerate(events_of(path)):  # some one by one, some together
                logs.append(path.stem, event)
                if number % 3:
                    eventually(lambda log=logs.logs[path.stem], last=number + 1: log.last == last)  # type: ignore[misc]
        for name, sock in sockets.items():
            assert dechunked(read_until(sock, LAST, read[name])) == logs.expected(name)
            late = httpx.get(f"{url}/{name}")
            assert late.content == logs.expected(name)
        eventually(lambda: logs.closed == logs.opened)


class Readers:
    """Clients that read side by side, each as fast as it can, in a thread of their own."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.read = [b""] * len(sockets)
        self._selector = selectors.DefaultSelector()
        for number, sock in enumerate(sockets):
            self._selector.register(sock, selectors.EVENT_READ, number)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._selector.close()

    def _follow(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                self.read[key.data] += data
                if not data:
                    self._selector.unregister(key.fileobj)


def test_many_readers_of_one_run_get_equal_bytes_also_beside_one_that_reads_nothing(
    server: dict[str, Any], eventually: Eventually
) -> None:
    logs, number = Logs(logs={"one": MemoryLog(1 << 24)}), 0
    with running(Wire(logs.app()), **server) as url, ExitStack() as clients:
        deaf = clients.enter_context(asked(url, "GET /one HTTP/1.1", receive_buffer=4096))
        sockets = [clients.enter_context(asked(url, "GET /one HTTP/1.1")) for _ in range(100)]
        with Readers(sockets) as readers:
            eventually(lambda: all(RETRY in read for read in readers.read) and logs.opened == 101)
            for _ in range(15):
                for _ in range(20):
                    logs.append("one", token(number, 1000))
                    number += 1
                newest = b"<%d>" % (number - 1)
                eventually(lambda newest=newest: all(newest in read[-2000:] for read in readers.read))  # type: ignore[misc]
            logs.append("one", END)
            eventually(lambda: all(read.endswith(LAST) for read in readers.read))
        assert {dechunked(read) for read in readers.read} == {logs.expected("one")}
        # The one that slept gets all of it too, its tokens merged.
        slept = dechunked(read_until(deaf, LAST))
        assert re.findall(rb"<(\d+)>", slept) == [b"%d" % one for one in range(number)]
        assert 0 < len(ids(slept)) < number
        eventually(lambda: logs.closed == 101)


# -- slower than the run ----------------------------------------------------------------------------------------------


def test_a_backlog_is_pumped_and_then_written_again_with_nothing_lost_or_doubled(
    server: dict[str, Any], eventually: Eventually
) -> None:
    logs = Logs(logs={"one": MemoryLog(1 << 26)})
    with running(Wire(logs.app()), **server) as url, asked(url, "GET /one HTTP/1.1", receive_buffer=4096) as client:
        read = read_until(client, RETRY)
        stream: Any = logs.connections[0].stream
        number = 0
        for _ in range(4):
            for _ in range(300):  # far more than all buffers hold
                logs.append("one", token(number, 2000))
                number += 1
            eventually(lambda last=number: logs.logs["one"].last == last)  # type: ignore[misc]
            eventually(lambda: stream._pump is not None)
            read = read_until(client, b"<%d>" % (number - 1), read)
            eventually(lambda: stream._pump is None)
            logs.append("one", token(number))
            read = read_until(client, b"<%d>" % number, read)
            assert stream._pump is None
            number += 1
        logs.append("one", END)
        body = dechunked(read_until(client, LAST, read))
    assert re.findall(rb"<(\d+)>", body) == [b"%d" % one for one in range(number)]
    assert ids(body) == sorted(set(ids(body)))
    assert ids(body)[-1] == number + 1


def test_what_a_reader_has_not_taken_stays_in_the_log(server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(logs={"one": MemoryLog(1 << 26)})
    with running(Wire(logs.app()), **server) as url, asked(url, "GET /one HTTP/1.1", receive_buffer=4096) as client:
        read_until(client, RETRY)
        for number in range(2000):
            logs.append("one", token(number, 2000))
        eventually(lambda: logs.logs["one"].last == 2000)
        transport = logs.connections[0]._transport
        eventually(lambda: transport.get_write_buffer_size() > 0)
        # What was written at once, and what the pump has sent after it: one batch over the mark at the most.
        assert transport.get_write_buffer_size() <= HIGH_WATER + 2 * 66_000


# -- heartbeats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
def test_idle_streams_have_heartbeats_between_their_frames_and_never_within(
    direct: bool, server: dict[str, Any]
) -> None:
    logs = Logs(heartbeat_s=0.02, logs={"one": MemoryLog()})
    with running(Wire(logs.app(), direct=direct), **server) as url, asked(url, "GET /one HTTP/1.1") as client:
        read = read_until(client, RETRY)
        for number in range(5):
            while not read.endswith(HEARTBEAT + b"\r\n") or read.count(HEARTBEAT) < 2 * (number + 1):
                read += client.recv(65536)
            logs.append("one", token(number))
        logs.append("one", END)
        body = dechunked(read_until(client, LAST, read))
    assert body.count(HEARTBEAT) >= 10
    assert body.replace(HEARTBEAT, b"") == logs.expected("one")
    assert not re.search(rb"(?<!\n): hb", body)


def test_a_stream_that_is_never_silent_has_no_heartbeat(server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(heartbeat_s=5, logs={"one": MemoryLog()})
    with running(Wire(logs.app()), **server) as url, asked(url, "GET /one HTTP/1.1") as client:
        read = read_until(client, RETRY)
        for number in range(200):
            logs.append("one", token(number))
            read = read_until(client, b"<%d>" % number, read)
        logs.append("one", END)
        assert HEARTBEAT not in read_until(client, LAST, read)


# -- the connection afterwards ----------------------------------------------------------------------------------------


def test_a_connection_is_as_good_as_new_after_a_stream(server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(heartbeat_s=0.05, logs={name: MemoryLog() for name in ("one", "two")})
    for name in logs.logs:
        logs.logs[name].append(token(1))
    logs.logs["two"].append(END)
    with running(Wire(logs.app()), **server) as url, httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{url}/two").content == logs.expected("two")
        with client.stream("GET", f"{url}/one") as answer:
            logs.append("one", END)
            assert answer.read().replace(HEARTBEAT, b"") == logs.expected("one")
            # Long enough for whatever would still beat, or write, on a connection that is not its own any more.
            eventually(lambda: logs.closed == 4)
        assert client.get(f"{url}/two").content == logs.expected("two")
        assert len({id(connection._transport) for connection in logs.connections}) == 1


def test_requests_in_one_pipe_are_answered_one_after_the_other(server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(logs={name: MemoryLog() for name in ("one", "two")})
    logs.logs["two"].append(END)
    requests = ["GET /one HTTP/1.1", "GET /two HTTP/1.1\r\nConnection: close"]
    with running(Wire(logs.app()), **server) as url, asked(url, *requests) as client:
        first = read_until(client, RETRY)
        logs.append("one", token(1))
        logs.append("one", END)
        first = read_until(client, LAST, first)
        first, _, second = first.partition(LAST)
        while data := client.recv(65536):
            second += data
    assert dechunked(first + LAST) == logs.expected("one")
    assert dechunked(second) == logs.expected("two")


def test_a_connection_that_is_not_used_again_is_closed_by_the_server(server: dict[str, Any]) -> None:
    logs = Logs(logs={"one": MemoryLog()})
    logs.logs["one"].append(END)
    with (
        running(Wire(logs.app()), timeout_keep_alive=1, **server) as url,
        asked(url, "GET /one HTTP/1.1") as client,
    ):
        read_until(client, LAST)
        assert client.recv(1) == b""


# -- who may not be passed by -----------------------------------------------------------------------------------------


class Shouting:
    """Middleware that changes what is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def shout(message: Message) -> None:
            await send({**message, "body": message["body"].upper()} if "body" in message else message)

        await self._app(scope, receive, shout)


def test_whoever_stands_outside_sees_all_that_is_sent(server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(logs={"one": MemoryLog()})
    with running(Shouting(Wire(logs.app())), **server) as url, asked(url, "GET /one HTTP/1.1") as client:
        read = read_until(client, RETRY.upper())
        logs.append("one", token(1))
        logs.append("one", END)
        assert dechunked(read_until(client, LAST, read)) == logs.expected("one").upper()
    assert not logs.connections[0].direct


@pytest.mark.parametrize("added", [True, False])
def test_a_middleware_that_is_added_to_the_app_sees_all_that_is_sent(added: bool, eventually: Eventually) -> None:
    settings: dict[str, Any] = {"model": "openai:gpt-x", "openai_base_url": "http://127.0.0.1:9", "openai_api_key": "k"}
    app = create_app(Settings(**settings), {"says": Scripted(turns=[words("a", "b")])})
    if added:
        app.add_middleware(Shouting)
    with running(app) as url:
        headers = {"Accept": "text/event-stream"}
        answer = httpx.post(f"{url}/agents/says/runs", json={"input": "go"}, headers=headers)
    assert answer.text.endswith("}\n\n")
    assert ("event: run.finished" in answer.text) is not added
    assert ("EVENT: RUN.FINISHED" in answer.text) is added


@pytest.mark.parametrize("first", ["HEAD /one HTTP/1.1", "GET /one HTTP/1.0"])
def test_other_requests_go_by_the_server(first: str, server: dict[str, Any], eventually: Eventually) -> None:
    logs = Logs(logs={"one": MemoryLog()})
    logs.logs["one"].append(END)
    with running(Wire(logs.app()), **server) as url, asked(url, first) as client:
        read = read_until(client, b"\r\n\r\n")
        if first.startswith("GET"):
            read_until(client, b"run.finished", read)
        eventually(lambda: logs.closed == 1)
    assert not logs.connections[0].direct


class Strange:
    """A server of the next year: a request's cycle that has not the marks."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def test_a_server_that_is_not_known_is_not_passed_by() -> None:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    Strange.__module__ = "uvicorn.protocols.http.new_impl"
    found: list[Connection | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(connection_of(scope))

    cycle = Strange(transport)
    scope = {"type": "http", "http_version": "1.1", "method": "GET"}
    await Wire(app)(scope, cycle.receive, cycle.send)
    (connection,) = found
    assert connection is not None
    assert not connection.direct
    transport.close()
    theirs.close()


# -- endings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["silence", "tokens", "backlog"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_client_that_leaves_is_heard_once_and_nothing_is_left(
    phase: str, direct: bool, server: dict[str, Any], eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    logs = Logs(logs={"one": MemoryLog(1 << 24)})
    with running(Wire(logs.app(), direct=direct), **server) as url, caplog.at_level(logging.WARNING):
        with asked(url, "GET /one HTTP/1.1", receive_buffer=4096) as client:
            read_until(client, RETRY)
            if phase == "tokens":
                logs.append("one", token(1))
                read_until(client, b"<1>")
            if phase == "backlog":
                for number in range(1000):
                    logs.append("one", token(number, 2000))
                eventually(lambda: logs.connections[0]._transport.get_write_buffer_size() > 0)
        eventually(lambda: logs.closed == 1)
        logs.append("one", *(token(number) for number in range(10)))
        eventually(lambda: not logs.logs["one"]._watching)
    assert logs.closed == 1
    assert [record.message for record in caplog.records] == []


@pytest.mark.parametrize("direct", [True, False])
def test_a_server_that_stops_closes_its_streams_once(
    direct: bool, server: dict[str, Any], eventually: Eventually
) -> None:
    logs = Logs(logs={"one": MemoryLog(1 << 24)})
    with ExitStack() as clients, running(Wire(logs.app(), direct=direct), **server) as url:
        left = clients.pop_all()  # the clients stay when the server goes
        for _ in range(3):
            read_until(left.enter_context(asked(url, "GET /one HTTP/1.1", receive_buffer=4096)), RETRY)
        for number in range(500):
            logs.append("one", token(number, 2000))
        eventually(lambda: logs.logs["one"].last == 500)
    left.close()
    assert logs.closed == 3
    assert not logs.logs["one"]._watching


@pytest.mark.parametrize("way", ["read out", "left"])
@pytest.mark.parametrize("agent", ["chat", "assistant"])
async def test_a_run_that_is_over_keeps_nothing_for_the_garbage_collector(
    agent: str, way: str, eventually: Eventually
) -> None:
    with serving(run_retention_s=1) as server, collecting_off():
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            body = {"input": "[[tokens=5]] hi" if way == "read out" else "[[tokens=2000&tokens_per_second=50]] hi"}
            headers = {"accept": "text/event-stream"}
            async with client.stream("POST", f"/agents/{agent}/runs", json=body, headers=headers) as stream:
                run = server.run(stream.headers["x-run-id"])
                parts: list[Callable[[], object]] = [weakref.ref(run._log), weakref.ref(run._translator)]
                del run
                async for _ in stream.aiter_text():
                    if way == "left":
                        break
        eventually(lambda: not any(part() for part in parts))


@contextmanager
def collecting_off() -> Iterator[None]:
    """Nothing is freed but by its count of references."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
