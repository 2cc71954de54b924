"""Connections over a real network stack: tuned, watched, dropped when nobody is at the other end, and kept else."""

import asyncio
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.testclient import TestClient
from langchain_core.runnables import RunnableGenerator
from serving import running
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.sync.client import connect

from app.protocols.frame import Frame
from app.routes.agents import agent_routes
from app.routes.langserve import langserve_routes
from app.runs.agent import Agent
from app.runs.runner import Runner
from app.transports.disconnect import wait_or_leave
from app.transports.sse import EndOfFrames, EventStream, Render, beating
from app.transports.wire import HIGH_WATER, LOOK_S, LOST_AFTER_S, Connection, TcpInfo, Wire, connection_of, gone

Eventually = Callable[[Callable[[], bool]], None]

ESTABLISHED, CLOSED, PEER_CLOSED = 1, 7, 8
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")

# -- what decides -----------------------------------------------------------------------------------------------------


def info(*, silent_s: float = 0, ack_s: float | None = None, asked: int = 0, state: int = ESTABLISHED) -> TcpInfo:
    ack_ms = int((silent_s if ack_s is None else ack_s) * 1000)
    return TcpInfo(
        state,
        retransmits=asked,
        probes=0,
        last_data_ms=int(silent_s * 1000),
        last_ack_ms=ack_ms,
        acked_bytes=0,
        unsent_bytes=0,
    )


OVER = LOST_AFTER_S + 0.1


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        pytest.param(None, info(), False, id="just made"),
        pytest.param(info(silent_s=600), info(silent_s=602.5), False, id="silent, and nobody asked it anything"),
        pytest.param(info(silent_s=2, asked=3), info(silent_s=4.5, asked=4), False, id="a hiccup"),
        pytest.param(info(silent_s=8, asked=4), info(silent_s=OVER, asked=5), True, id="no answer for too long"),
        pytest.param(info(silent_s=8), info(silent_s=OVER, asked=1), False, id="a question on its way"),
        pytest.param(None, info(silent_s=OVER, asked=1), False, id="a question on its way at the first look"),
        pytest.param(info(silent_s=OVER, asked=1), info(silent_s=OVER), False, id="an answer between the looks"),
        pytest.param(info(silent_s=60, ack_s=0.1, asked=1), info(silent_s=60, ack_s=0.1, asked=1), False, id="it acks"),
        pytest.param(info(silent_s=1, ack_s=60, asked=1), info(silent_s=1, ack_s=60, asked=1), False, id="it sends"),
        pytest.param(None, info(state=PEER_CLOSED), True, id="it has said goodbye"),
        pytest.param(None, info(state=CLOSED), True, id="it has slammed the door"),
    ],
)
def test_a_peer_is_gone_when_it_hung_up_or_left_questions_unanswered(
    before: TcpInfo | None, now: TcpInfo, verdict: bool
) -> None:
    assert gone(before, now) is verdict


def test_a_probe_of_the_kernel_is_a_question_too() -> None:
    probed = TcpInfo(
        ESTABLISHED, retransmits=0, probes=1, last_data_ms=11_000, last_ack_ms=11_000, acked_bytes=0, unsent_bytes=0
    )
    assert gone(probed, probed)


def test_of_a_socket_that_is_no_tcp_or_is_closed_nothing_is_known() -> None:
    one, two = socket.socketpair()
    assert TcpInfo.of(one) is None
    one.close()
    two.close()
    assert TcpInfo.of(one) is None
    assert TcpInfo.of(None) is None


class Held(asyncio.Transport):
    """A transport whose buffer a test fills, on a system whose kernel watches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0
        self.aborted = 0
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted += 1


def test_where_the_kernel_does_not_watch_a_reader_that_takes_nothing_is_noticed() -> None:
    held = Held()
    connection = Connection(held)
    looks = [(0, 0.0), (50_000, 2.5), (50_000, 12.4), (50_000, 12.5)]
    reasons = []
    for held.unsent, now in looks:
        reasons.append(connection.look(now, 10))
    assert reasons == [None, None, None, "the reader takes nothing"]


def test_where_the_kernel_does_not_watch_a_slow_reader_and_an_idle_one_are_kept() -> None:
    for sizes in ([60_000, 59_999, 59_998, 59_997], [HIGH_WATER] * 4, [0] * 4, [50_000, 0, 50_000, 0]):
        held = Held()
        connection = Connection(held)
        for number, held.unsent in enumerate(sizes):
            assert connection.look(number * 9.0, 10) is None


# -- an app whose streams a test can look into ------------------------------------------------------------------------


class Numbers:
    """Frames of ``size`` bytes, ``count`` of them, ``every_s`` seconds apart; ``wait_s`` before the first."""

    def __init__(self, size: int = 10, count: int = 10**9, every_s: float = 0, wait_s: float = 0) -> None:
        self.sent = 0
        self._data = b"x" * size
        self._count = count
        self._every_s = every_s
        self._next_s = wait_s
        self._due = False
        self._timer: asyncio.Handle | None = None
        self._woken: Callable[[], object] = lambda: None

    def watch(self, woken: Callable[[], object]) -> None:
        self._woken = woken

    def take(self, render: Render) -> bytes:
        if not self._due:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._next_s, self._ring)
            return b""
        if self.sent == self._count:
            raise EndOfFrames
        self._due, self._next_s = False, self._every_s
        self.sent += 1
        return render((Frame(str(self.sent), "n", self._data),))

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._due, self._timer = True, None
        self._woken()


class Door:
    """Three ways in (a stream, a call that waits, a socket), and which of the guests have left again."""

    def __init__(self, *, heartbeat_s: float = 5.0, send_timeout_s: float = 30.0, direct: bool = False) -> None:
        self.left: dict[str, threading.Event] = {}
        self.connections: dict[str, Connection | None] = {}
        self.sources: dict[str, Numbers] = {}
        self.app = FastAPI()
        self._heartbeats = beating(heartbeat_s)
        self.app.get("/stream/{name}")(self._stream)
        self.app.get("/call/{name}")(self._call)
        self.app.websocket("/socket/{name}")(self._socket)
        self.app.add_middleware(Seen, door=self)
        self.served: ASGIApp = self.app
        if direct:  # outside of Starlette's own error handler too
            self.served = Wire(self.app, send_timeout_s=send_timeout_s)
        else:
            self.app.add_middleware(Wire, send_timeout_s=send_timeout_s)

    def enter(self, name: str, scope: Scope) -> Callable[[], None]:
        self.connections[name] = connection_of(scope)
        self.left[name] = threading.Event()
        return self.left[name].set

    async def _stream(self, request: Request, name: str) -> Response:
        asked = {key: json.loads(value) for key, value in request.query_params.items()}
        self.sources[name] = source = Numbers(**asked)
        leave = self.enter(name, request.scope)
        return EventStream(source, heartbeats=self._heartbeats, headers={}, on_close=leave)

    async def _call(self, request: Request, name: str) -> Response:
        leave = self.enter(name, request.scope)
        await wait_or_leave(asyncio.Event().wait(), request.receive)
        leave()
        return Response()

    async def _socket(self, socket: WebSocket, name: str) -> None:
        leave = self.enter(name, socket.scope)
        await socket.accept()
        await socket.send_text("hello")
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
        leave()


class Seen:
    """Middleware of anybody's, which puts its own ``receive`` and ``send`` between: ``Wire`` is outside of it."""

    def __init__(self, app: Any, door: Door) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            return await receive()

        await self._app(scope, received, send)


@contextmanager
def raw(url: str, path: str, *, receive_buffer: int = 0, more: str = "") -> Iterator[socket.socket]:
    """A client that is all ours, with its request sent."""
    where = urlsplit(url)
    with socket.socket() as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect((where.hostname, where.port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n{more}".encode())
        yield sock


def read_until(sock: socket.socket, text: bytes) -> bytes:
    read = b""
    while text not in read:
        data = sock.recv(65536)
        assert data, "the connection ended early"
        read += data
    return read


# -- tuned ------------------------------------------------------------------------------------------------------------


def option(sock: Any, name: str) -> int:
    return int(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)))


@LINUX
@pytest.mark.parametrize("way", ["stream", "socket"])
def test_a_connection_is_tuned_and_its_buffers_are_bounded(way: str, eventually: Eventually) -> None:
    door = Door(send_timeout_s=12.5)
    with running(door.app) as url:
        if way == "stream":
            with raw(url, "/stream/one?every_s=60") as client:
                read_until(client, b"data: ")
                check_tuned(door.connections["one"])
        else:
            with connect(f"{url.replace('http', 'ws')}/socket/one") as client_socket:
                client_socket.recv(timeout=10)
                check_tuned(door.connections["one"])
        assert door.left["one"].wait(10)


def check_tuned(connection: Connection | None) -> None:
    assert connection is not None
    sock = connection._sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 64 * 1024
    assert connection._transport.get_write_buffer_limits() == (HIGH_WATER, HIGH_WATER)
    assert option(sock, "TCP_NODELAY")
    assert option(sock, "TCP_USER_TIMEOUT") == 25_000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert option(sock, "TCP_KEEPIDLE") == 5


def test_a_connection_is_tuned_once_however_many_requests_come_over_it() -> None:
    door = Door()
    tuned = []

    class Counted(Wire):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)

    door.app.add_middleware(Counted)
    with running(door.app) as url, httpx.Client(base_url=url) as client:
        for number in range(3):
            assert client.get(f"/stream/s{number}?count=3").text.count("data: ") == 3
            connection = door.connections[f"s{number}"]
            assert connection is not None
            tuned.append(connection._transport)
    assert len(set(map(id, tuned))) == 1


def test_where_there_is_no_transport_the_app_is_served_without() -> None:
    door = Door()
    with TestClient(door.app) as client:
        assert client.get("/stream/one?count=3").text.count("data: ") == 3
        with client.websocket_connect("/socket/two") as session:
            assert session.receive_text() == "hello"
    assert door.connections == {"one": None, "two": None}


async def test_a_unix_socket_and_a_closed_one_are_served_all_the_same() -> None:
    one, two = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
    served = []

    class Cycle:
        def __init__(self) -> None:
            self.transport = transport

        async def receive(self) -> Message:
            return {"type": "http.disconnect"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(connection_of(scope))

    async def send(message: Message) -> None:
        pass

    await Wire(app)({"type": "http"}, Cycle().receive, send)
    transport.abort()
    two.close()
    await asyncio.sleep(0)
    await Wire(app)({"type": "http", "extensions": {"other": {}}}, Cycle().receive, send)
    assert None not in served
    assert len(served) == 2


async def test_it_looks_only_while_something_is_being_served(until: Callable[[Any], Any]) -> None:
    one, two = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=one)
    done = asyncio.Event()

    class Cycle:
        def __init__(self) -> None:
            self.transport = transport

        async def receive(self) -> Message:
            return {"type": "http.disconnect"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await done.wait()

    wire = Wire(app)
    serving = [asyncio.ensure_future(wire({"type": "http"}, Cycle().receive, wire)) for _ in range(3)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    looks = wire._looks
    assert len(looks._due) == 3
    assert looks._loop is not None
    done.set()
    await asyncio.gather(*serving)
    assert not looks._due
    await until(lambda: looks._loop is None)
    transport.close()
    two.close()


def test_a_connection_that_the_server_closes_behind_its_answer_is_left_to_itself() -> None:
    looks = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
        connection = connection_of(scope)
        assert connection is not None
        looks.append((connection._transport.is_closing(), connection.look(time.monotonic(), 10)))

    with running(Wire(app), lifespan="off") as url:
        assert httpx.get(url, headers={"Connection": "close"}).text == "hello"
    assert looks == [(True, None)]  # dropped now, it would be reset, and its last words might not arrive


# -- hung up ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "by the server"])
def door(request: pytest.FixtureRequest) -> Door:
    return Door(send_timeout_s=2.5, direct=request.param)


@pytest.fixture(scope="module")
def url(door: Door) -> Iterator[str]:
    with running(door.served) as address:
        yield address


PHASES = {
    "before the first byte": ("/stream/{}?wait_s=60", b""),
    "before the first frame": ("/stream/{}?wait_s=60", b"retry: 1000"),
    "between frames": ("/stream/{}?every_s=0.01", b"id: 9\n"),
    "in silence": ("/stream/{}?every_s=60", b"id: 1\n"),
    "in a flood": ("/stream/{}?size=100000", b"id: 1\n"),
    "in a call": ("/call/{}", b""),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_client_that_hangs_up_is_gone_at_once(
    door: Door, url: str, eventually: Eventually, phase: str, way: str
) -> None:
    path, seen = PHASES[phase]
    name = re.sub(r"\W", "-", f"{way} {phase}")
    with raw(url, path.format(name)) as client:
        read_until(client, seen)
        eventually(lambda: name in door.left)
        if way == "rst":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert door.left[name].wait(1), "the disconnect was not heard from the transport"


@LINUX
def test_a_client_is_heard_to_leave_though_it_had_sent_more_than_the_server_reads(
    door: Door, url: str, eventually: Eventually
) -> None:
    # A second request in the pipe: the server stops reading, and so would not see the end of the connection.
    with raw(url, "/call/piped", more="GET /call/second HTTP/1.1\r\nHost: x\r\n\r\n" * 2) as client:
        eventually(lambda: "piped" in door.left)
        client.shutdown(socket.SHUT_WR)
        assert door.left["piped"].wait(2 * LOOK_S)


# -- does not read ----------------------------------------------------------------------------------------------------


@LINUX
def test_a_reader_that_takes_nothing_is_dropped_and_costs_little_until_then(door: Door, url: str) -> None:
    with raw(url, "/stream/deaf?size=1000", receive_buffer=4096) as client:
        read_until(client, b"id: 1\n")
        began = time.monotonic()
        assert door.left["deaf"].wait(20)
        assert time.monotonic() - began > 2
        with pytest.raises((ConnectionError, AssertionError)):
            read_until(client, b"0\r\n\r\n")
    # The kernel's two buffers and the transport's, with the kernels' own waste; not all that there was.
    assert door.sources["deaf"].sent < 400


@LINUX
def test_a_reader_that_pauses_for_less_loses_nothing(door: Door, url: str, eventually: Eventually) -> None:
    with raw(url, "/stream/dozing?size=1000&count=2000", receive_buffer=4096) as client:
        read = read_until(client, b"id: 1\n")
        for _ in range(3):
            before, silence = door.sources["dozing"].sent, time.monotonic() + 1.0
            eventually(lambda until=silence: time.monotonic() > until)  # type: ignore[misc]
            assert not door.left["dozing"].is_set()
            read += read_until(client, f"id: {before + 50}\n".encode())
        read += read_until(client, b"0\r\n\r\n")
    assert [int(one) for one in re.findall(rb"id: (\d+)\n", read)] == list(range(1, 2001))


# -- the cable is pulled ----------------------------------------------------------------------------------------------

CLIENT = """
import selectors, socket, sys
host, port, requests = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
selector = selectors.DefaultSelector()
for request in requests:
    deaf = request.startswith("deaf ")
    sock = socket.create_connection((host, port))
    sock.sendall(request.removeprefix("deaf ").encode().decode("unicode_escape").encode())
    if not deaf:
        selector.register(sock, selectors.EVENT_READ)
    else:
        globals()["kept"] = sock
print("connected", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.recv(65536)
"""

HANDSHAKE = (
    r"GET /socket/{} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    r"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Cable:
    """Another machine at the end of a cable: a network namespace and a veth pair."""

    def __init__(self) -> None:
        number = os.getpid() % 16_000
        self.name = f"mill{number}"
        net = f"10.213.{number // 64}.{number % 64 * 4}"
        stem, last = net.rsplit(".", 1)
        self.host = f"{stem}.{int(last) + 1}"
        self._ours, self._theirs = f"mr{number}a", f"mr{number}b"
        self._peer = f"{stem}.{int(last) + 2}"

    def plug(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self.name)
        ip("addr", "add", f"{self.host}/30", "dev", self._ours)
        ip("link", "set", self._ours, "up")
        ip("-n", self.name, "addr", "add", f"{self._peer}/30", "dev", self._theirs)
        ip("-n", self.name, "link", "set", self._theirs, "up")

    def pull(self) -> None:
        ip("-n", self.name, "link", "set", self._theirs, "down")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._ours], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    ci = os.environ.get("CI") == "true"
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("no cable to pull: needs Linux and `ip` (package iproute2)")
    if os.geteuid() != 0:
        pytest.skip(f"no cable to pull: a network namespace needs root{', which this CI does not give' if ci else ''}")
    one = Cable()
    try:
        one.plug()
    except subprocess.CalledProcessError as error:
        one.remove()
        if ci:
            raise
        pytest.skip(f"no cable to pull: {error.stderr.decode().strip()}")
    yield one
    one.remove()


class Known:
    """Middleware that lets anybody in: these guests are not of this machine."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["user"] = "ann"
        await self._app(scope, receive, send)


async def never(inputs: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for _ in inputs:
        await asyncio.Event().wait()
        yield ""


def get(path: str) -> str:
    return rf"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"


def post(path: str) -> str:
    head = r"Host: x\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: 14"
    return rf"POST {path} HTTP/1.1\r\n{head}\r\n\r\n" + '{"input":"go"}'


def test_when_the_cable_is_pulled_every_guest_is_gone_in_fifteen_seconds(cable: Cable, eventually: Eventually) -> None:
    door = Door(heartbeat_s=5.0, send_timeout_s=30.0)
    runner = Runner({"never": Agent("never", RunnableGenerator(never))}, strict=True)
    door.app.include_router(agent_routes(runner, heartbeat_s=5.0))
    door.app.include_router(langserve_routes(runner, heartbeat_s=5.0))
    door.app.add_middleware(Known)
    guests = {
        "talking": get("/stream/talking?every_s=0.2"),
        "silent": get("/stream/silent?wait_s=600"),
        "flood": get("/stream/flood?size=10000&every_s=0.001"),
        "deaf": "deaf " + get("/stream/deaf?size=10000"),
        "call": get("/call/call"),
        "socket": HANDSHAKE.format("socket"),
    }
    runs = [post("/agents/never/runs"), post("/agents/never/invoke"), post("/agents/never/stream")]
    with running(door.app, cable.host) as url:
        port = str(urlsplit(url).port)
        command = ["ip", "netns", "exec", cable.name, sys.executable, "-c", CLIENT, cable.host, port]
        with subprocess.Popen([*command, *guests.values(), *runs], stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == b"connected\n"
                eventually(lambda: door.left.keys() == guests.keys())
                eventually(lambda: door.sources["talking"].sent > 5)
                eventually(lambda: runner.live == len(runs))
                assert not any(left.is_set() for left in door.left.values())
                cable.pull()
                deadline = time.monotonic() + 20  # some slack for the machine; the kernel alone would take far longer
                for name, left in door.left.items():
                    assert left.wait(deadline - time.monotonic()), f"{name} still hangs on"
                eventually(lambda: runner.live == 0)
                assert time.monotonic() < deadline
                assert [run.status for run in runner.kept("ann")] == ["cancelled"] * len(runs)
            finally:
                client.kill()
