"""The connection to a provider: told apart from the stock one by nothing but its cost.

Every test runs on asyncio's event loop and on uvloop's, against a server on loopback whose bytes are the test's.
"""

import asyncio
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import httpx2
import openai
import pytest
from wires import CHUNKED, LAST, OK, Script, Server, Wire, always, chunk, once, silent, wired

from app.simulator.server import Simulator
from chains.connection import MOST_REST, MOST_UNREAD, Connection
from chains.http11 import NO_RESPONSE
from chains.transport import Body, Pool, StreamTransport, body_of, quicken

Until = Callable[[Callable[[], bool]], Awaitable[None]]

PACKET = 256 * 1024
"""The most that an event loop reads at once."""


class Fallback(httpx2.AsyncBaseTransport):
    """The stock transport's place, with a record of what comes there."""

    def __init__(self) -> None:
        self.asked: list[httpx2.Request] = []
        self.closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return httpx2.Response(200, content=b"fallback")

    async def aclose(self) -> None:
        self.closed = True


def limits(most: int | None = None, idle: int | None = None, expiry_s: float | None = 60.0) -> httpx2.Limits:
    return httpx2.Limits(max_connections=most, max_keepalive_connections=idle, keepalive_expiry=expiry_s)


@asynccontextmanager
async def quick(**options: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, StreamTransport]]:
    """A client with the transport under test; when it is closed, nothing may be left."""
    transport = StreamTransport(fallback=Fallback(), **{"limits": limits(), **options})
    async with httpx2.AsyncClient(transport=transport, timeout=10) as client:
        pool = transport.pool
        yield client, transport
    assert (pool.open, pool.idle, pool.waiting) == (0, 0, 0)


async def streamed(client: httpx2.AsyncClient, url: str, **more: Any) -> tuple[httpx2.Response, Body]:
    response = await client.send(client.build_request("GET", url, **more), stream=True)
    body = body_of(response)
    assert body is not None
    return response, body


class Reader:
    """Whom a body is pushed to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[Exception | None] = []

    @property
    def text(self) -> bytes:
        return b"".join(self.pieces)

    def data(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of ``localhost`` with its key, signed by itself."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["-keyout", str(path), "-out", f"{path}.crt", "-subj", "/CN=localhost", "-addext"]
    names = "subjectAltName=DNS:localhost,DNS:other.example"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *made, names]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=f"{certificate}.crt")


# -- the same as the stock transport ----------------------------------------------------------------------------------

RESPONSES: dict[str, tuple[str, Script]] = {
    "sized": (
        "GET",
        always(b"HTTP/1.1 200 Very OK\r\nX-Mixed-Case: a \r\nX-Mixed-Case: b\r\nContent-Length: 3\r\n\r\nabc"),
    ),
    "empty": ("GET", always(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    "no reason": ("GET", always(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok")),
    "chunked": ("GET", always(CHUNKED + chunk(b"one"), chunk(b"two"), LAST)),
    "chunked with trailers": ("GET", always(CHUNKED, chunk(b"one"), b"0\r\nX-Trailer: t\r\n\r\n")),
    "both lengths": (
        "GET",
        always(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"one") + LAST),
    ),
    "until close": ("GET", once(b"HTTP/1.1 200 OK\r\n\r\n", b"all of", b" it")),
    "http 1.0": ("GET", once(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nold")),
    "bare newlines": ("GET", always(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")),
    "interim": ("GET", always(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK)),
    "head": ("HEAD", always(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")),
    "no content": ("GET", always(b"HTTP/1.1 204 No Content\r\n\r\n")),
    "not modified": ("GET", always(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")),
    "close": ("GET", once(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")),
    "latin": ("GET", always(b"HTTP/1.1 200 OK\r\nX: caf\xe9\r\nContent-Length: 2\r\n\r\nok")),
    "gzip": (
        "GET",
        always(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 22\r\n\r\n"
            + bytes.fromhex("1f8b08000000000002ffcbcf06004779dd4702000000")
        ),
    ),
    "error": ("POST", always(b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops")),
    "nothing": ("GET", once()),
    "half a head": ("GET", once(b"HTTP/1.1 200 OK\r\nContent-")),
    "cut in a chunk": ("GET", once(CHUNKED + b"5\r\nab")),
    "cut between chunks": ("GET", once(CHUNKED + chunk(b"one"))),
    "cut in a sized body": ("GET", once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")),
    "garbage": ("GET", once(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")),
    "garbage for a chunk": ("GET", once(CHUNKED + chunk(b"one") + b"zz\r\n")),
    "no colon": ("GET", once(b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n")),
    "endless head": ("GET", once(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"x" * 8192 + b"\r\n"] * 20)),
}


async def resetting(wire: Wire) -> None:
    await wire.request()
    wire.reset()


async def resetting_in_the_body(wire: Wire) -> None:
    await wire.request()
    await wire.send(CHUNKED + chunk(b"one"))
    await wire.request()
    wire.reset()


RESPONSES["reset"] = ("GET", resetting)


async def outcome(client: httpx2.AsyncClient, method: str, url: str) -> Any:
    """What a client sees of it: all of the response, or what was raised."""
    try:
        async with client.stream(method, url) as response:
            content = await response.aread()
    except httpx2.HTTPError as error:
        return type(error), str(error)[:40] if str(error) == NO_RESPONSE else None
    shown = response.headers.raw, response.extensions["http_version"], response.extensions["reason_phrase"]
    return response.status_code, content, response.http_version, shown


@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_is_what_the_stock_transport_makes_of_it(name: str) -> None:
    method, script = RESPONSES[name]
    async with wired(script) as server, httpx2.AsyncClient(trust_env=False, timeout=10) as stock:
        expected = await outcome(stock, method, server.url)
    async with wired(script) as server, httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        assert quicken(client)
        assert await outcome(client, method, server.url) == expected
        assert await outcome(client, method, server.url) == expected, "the connection's state must not leak"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"small", b"x" * 3_000_000, ["in ", "", "pieces"]],
    ids=["none", "empty", "small", "big", "stream"],
)
async def test_a_request_is_what_the_stock_transport_makes_of_it(content: Any) -> None:
    asked: list[bytes] = []
    for fast in (False, True):
        async with wired(always(OK)) as server, httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            assert quicken(client) if fast else True

            async def pieces() -> AsyncIterator[bytes]:
                for piece in content:
                    yield piece.encode()

            body = pieces() if isinstance(content, list) else content
            await client.post(f"{server.url}path?q=%20", content=body, headers={"X-One": "a b", "Host": "same"})
            asked.append(server.wires[0].requests[0])
    assert asked[0] == asked[1]


async def test_a_chunked_body_byte_by_byte_is_the_same_body() -> None:
    whole = CHUNKED + b"".join(chunk(b"word%d " % n) for n in range(40)) + LAST
    script = always(*[whole[n : n + 1] for n in range(len(whole))])
    async with wired(script) as server, quick() as (client, _):
        for _ in range(2):
            assert (await client.get(server.url)).content == b"".join(b"word%d " % n for n in range(40))
        assert len(server.wires) == 1


# -- the openai client above it ---------------------------------------------------------------------------------------


@asynccontextmanager
async def openai_client(url: str, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        assert quicken(http)
        given = {"max_retries": 0, "timeout": 10, **options}
        yield openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http, **given)


async def asked(client: openai.AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(
        model="simulated", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_openai_streams_the_same_answer_and_uses_the_connection_again(provider: Simulator) -> None:
    stock = openai.AsyncOpenAI(base_url=provider.base_url, api_key="none", max_retries=0)
    async with stock, openai_client(provider.base_url) as client:
        expected = await asked(stock)
        assert expected
        assert [await asked(client) for _ in range(3)] == [expected] * 3
        pool = client._client._transport.pool  # type: ignore[attr-defined]
        assert (pool.open, pool.idle) == (1, 1)


async def test_openai_tries_again_after_a_500_and_a_broken_connection() -> None:
    answers = [b"HTTP/1.1 500 Oh\r\nretry-after-ms: 1\r\nContent-Length: 2\r\n\r\n{}", b""]
    answers.append(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{"object":"list"}     '
    )

    async def script(wire: Wire) -> None:
        while await wire.request():
            answer = answers.pop(0)
            if not answer:
                return
            await wire.send(answer)

    async with wired(script) as server, openai_client(server.url, max_retries=2) as client:
        assert (await client.models.list()).object == "list"
        assert answers == []


async def test_openai_names_what_went_wrong() -> None:
    async with wired(silent) as server, openai_client(server.url, timeout=0.05) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.models.list()
    async with openai_client(f"http://127.0.0.1:{unused_port()}") as client:
        with pytest.raises(openai.APIConnectionError) as refused:
            await client.models.list()
        assert isinstance(refused.value.__cause__, httpx2.ConnectError)
    cut = once(CHUNKED + chunk(b'data: {"choices":[]}\n\n'))
    async with wired(cut) as server, openai_client(server.url) as client:
        with pytest.raises(openai.APIConnectionError) as broken:
            await asked(client)
        assert isinstance(broken.value.__cause__, httpx2.RemoteProtocolError)


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def blurting(wire: Wire) -> None:
    await wire.send(OK)
    await wire.left()


# -- connecting -------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_reached_is_a_connect_error_that_names_its_cause(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with quick(ssl_context=client_tls) as (client, transport):
        with pytest.raises(httpx2.ConnectError, match=r"(?i)connect") as refused:
            await client.get(f"http://127.0.0.1:{unused_port()}")
        assert isinstance(refused.value.__cause__, ConnectionRefusedError)
        with pytest.raises(httpx2.ConnectError) as unknown:
            await client.get("http://no-such-host.invalid")
        assert isinstance(unknown.value.__cause__, OSError)
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"http://{'x' * 64}.example")
        async with wired(always(OK), server_tls) as server:
            with pytest.raises(httpx2.ConnectError, match="mismatch") as wrong_name:
                await client.get(f"https://127.0.0.1:{server.port}")
            assert isinstance(wrong_name.value.__cause__, ssl.SSLError)
        async with wired(blurting) as server:
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"https://localhost:{server.port}")
        assert transport.pool.open == 0


async def test_tls_agrees_on_http_1_whatever_the_context_asked_for(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    agreed: list[str | None] = []

    async def script(wire: Wire) -> None:
        agreed.append(wire.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await always(CHUNKED, chunk(b"x" * 300_000), LAST)(wire)

    client_tls.set_alpn_protocols(["h2", "http/1.1"])
    async with wired(script, server_tls) as server, quick(ssl_context=client_tls) as (client, _):
        for _ in range(2):
            assert (await client.get(server.url)).content == b"x" * 300_000
        assert agreed == ["http/1.1"]
        other = client.build_request("GET", server.url, extensions={"sni_hostname": "other.example"})
        assert (await client.send(other)).status_code == 200
        assert len(agreed) == 2, "another name is another connection"


async def test_socket_options_are_set_and_small_writes_are_not_held_back() -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    async with wired(always(OK)) as server, quick(socket_options=options) as (client, transport):
        await client.get(server.url)
        (connection,) = transport.pool._places
        sock = connection._info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- keeping and pooling ----------------------------------------------------------------------------------------------


async def test_the_connection_used_last_is_used_first() -> None:
    async with wired(always(OK)) as server, quick() as (client, _):
        await asyncio.gather(*(client.get(server.url) for _ in range(3)))
        used = [len(wire.requests) for wire in server.wires]
        for _ in range(4):
            await client.get(server.url)
        assert sorted(len(wire.requests) - before for wire, before in zip(server.wires, used, strict=True)) == [0, 0, 4]


async def test_a_connection_that_the_server_has_closed_is_not_given_out(until: Until) -> None:
    async with wired(once(OK)) as server, quick() as (client, transport):
        await client.get(server.url)
        await until(lambda: transport.pool.open == 0)
        assert (await client.get(server.url)).content == b"ok"


async def test_a_close_that_the_loop_has_not_seen_yet_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ends: list[socket.socket] = []

        def serve() -> None:
            for _ in range(2):
                one, _ = listener.accept()
                one.recv(65536)
                one.sendall(OK)
                ends.append(one)

        thread = threading.Thread(target=serve)
        thread.start()
        async with quick() as (client, _):
            await client.get(url)
            ends[0].close()  # and the loop has not run since
            assert (await client.get(url)).content == b"ok"
        thread.join(10)
        ends[1].close()


async def test_a_kept_connection_that_breaks_under_a_request_is_named_as_the_retries_expect() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()

    async with wired(script) as server, quick() as (client, _):
        await client.get(server.url)
        with pytest.raises(httpx2.RemoteProtocolError, match=NO_RESPONSE):
            await client.get(server.url)


async def test_a_connection_with_bytes_that_nobody_asked_for_is_not_used_again(until: Until) -> None:
    async with wired(always(OK + OK)) as server, quick() as (client, _):
        for _ in range(3):
            assert (await client.get(server.url)).content == b"ok"
        await until(lambda: all(wire.gone.is_set() for wire in server.wires))
        assert len(server.wires) == 3


async def test_no_more_idle_connections_are_kept_than_allowed_and_none_for_longer() -> None:
    async with wired(always(OK)) as server:
        async with quick(limits=limits(idle=2)) as (client, transport):
            await asyncio.gather(*(client.get(server.url) for _ in range(5)))
            assert (transport.pool.open, transport.pool.idle) == (2, 2)
        async with quick(limits=limits(idle=0)) as (client, transport):
            await client.get(server.url)
            assert transport.pool.open == 0
        async with quick(limits=limits(expiry_s=0.0)) as (client, transport):
            before = len(server.wires)
            for _ in range(2):
                await client.get(server.url)
            assert len(server.wires) - before == 2
            assert transport.pool.open == 1


async def test_a_place_goes_to_the_next_in_turn(until: Until) -> None:
    order: list[int] = []
    gate = asyncio.Semaphore(0)

    async def script(wire: Wire) -> None:
        while await wire.request():
            await gate.acquire()
            await wire.send(OK)

    async with wired(script) as server, quick(limits=limits(most=1)) as (client, transport):

        async def ask(number: int) -> None:
            await client.get(server.url)
            order.append(number)

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(ask(number)))
            await until(lambda: transport.pool.open == 1 and transport.pool.waiting == len(tasks) - 1)
        tasks[2].cancel()
        for _ in range(4):
            gate.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 4]
        assert (len(server.wires), transport.pool.waiting) == (1, 0)


async def test_who_is_cancelled_in_the_moment_of_his_turn_passes_it_on() -> None:
    answers = [CHUNKED, OK]

    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.send(answers.pop(0))

    async with wired(script) as server, quick(limits=limits(most=1)) as (client, transport):
        response, _ = await streamed(client, server.url)
        first, second = (asyncio.create_task(client.get(server.url)) for _ in range(2))
        while transport.pool.waiting < 2:
            await asyncio.sleep(0)
        await response.aclose()  # the first has its place now, and does not know it yet
        assert transport.pool.waiting <= 1
        first.cancel()
        assert (await asyncio.wait_for(second, 10)).content == b"ok"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert transport.pool.open == 1


async def test_a_connection_that_breaks_while_it_is_handed_on_is_replaced() -> None:
    async with wired(always(OK)) as server, quick(limits=limits(most=1)) as (client, transport):
        pool = transport.pool
        await client.get(server.url)
        (connection,) = pool._places
        taken = await pool.take(connection.origin, None)
        assert taken is connection
        waiting = asyncio.create_task(client.get(server.url))
        while not pool.waiting:
            await asyncio.sleep(0)
        pool.put(connection)
        assert not pool.waiting
        connection.connection_lost(None)
        connection.abort()
        assert (await waiting).content == b"ok"
        assert len(server.wires) == 2


async def test_an_idle_connection_to_elsewhere_makes_room() -> None:
    async with (
        wired(always(OK)) as one,
        wired(always(OK)) as other,
        quick(limits=limits(most=1)) as (client, transport),
    ):
        for server in (one, other, one):
            assert (await client.get(server.url)).content == b"ok"
            assert transport.pool.open == 1


async def test_a_full_pool_is_waited_for_only_so_long() -> None:
    async with wired(silent) as server, quick(limits=limits(most=1)) as (client, transport):
        busy = asyncio.create_task(client.get(server.url))
        while not transport.pool.open:
            await asyncio.sleep(0)
        with pytest.raises(httpx2.PoolTimeout):
            await client.get(server.url, timeout=httpx2.Timeout(None, pool=0.02))
        assert (transport.pool.open, transport.pool.waiting) == (1, 0)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


# -- timeouts ---------------------------------------------------------------------------------------------------------


async def stuck(wire: Wire) -> None:
    wire.deaf()
    await asyncio.Event().wait()


async def stalling(wire: Wire) -> None:
    await wire.request()
    await wire.send(CHUNKED + chunk(b"one"))
    await wire.left()


@pytest.mark.parametrize(
    ("script", "bounds", "error"),
    [
        (silent, {"read": 0.02}, httpx2.ReadTimeout),
        (stalling, {"read": 0.02}, httpx2.ReadTimeout),
        (stuck, {"write": 0.02}, httpx2.WriteTimeout),
    ],
)
async def test_silence_has_its_own_timeout_in_every_phase(
    script: Script, bounds: dict[str, float], error: type[Exception]
) -> None:
    async with wired(script) as server, quick() as (client, transport):
        content = b"x" * 20_000_000 if "write" in bounds else b""
        with pytest.raises(error):
            await client.post(server.url, content=content, timeout=httpx2.Timeout(None, **bounds))
        assert transport.pool.open == 0


async def test_a_handshake_that_never_ends_is_a_connect_timeout(client_tls: ssl.SSLContext, until: Until) -> None:
    async with wired(silent) as server, quick(ssl_context=client_tls) as (client, transport):
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get(f"https://localhost:{server.port}", timeout=httpx2.Timeout(None, connect=0.02))
        assert transport.pool.open == 0
        await until(lambda: server.wires[0].gone.is_set())


async def test_a_slow_reader_is_no_silent_server(until: Until) -> None:
    more = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED + chunk(b"one"))
        await more.wait()
        await wire.send(chunk(b"two") + LAST)

    async with wired(script) as server, quick() as (client, transport):
        response, body = await streamed(client, server.url, timeout=httpx2.Timeout(None, read=0.02))
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"one"
        (connection,) = transport.pool._places
        timer = connection._timer
        await until(lambda: connection._timer is not timer)  # it has looked, and nobody waited
        more.set()
        assert await anext(pieces) == b"two"
        assert not body.waits


async def test_a_stream_sets_one_timer_however_many_bytes_come() -> None:
    async with wired(always(CHUNKED, *[chunk(b"x")] * 50, LAST)) as server, quick() as (client, transport):
        response, body = await streamed(client, server.url)
        (connection,) = transport.pool._places
        timers, reader = set(), Reader()
        body.push(lambda _: timers.add(connection._timer), reader.end)
        while not reader.ends:
            await asyncio.sleep(0)
        assert len(timers) == 1
        await response.aclose()


# -- pushed -----------------------------------------------------------------------------------------------------------


async def test_a_body_is_pushed_as_it_comes_and_its_end_is_said_once(until: Until) -> None:
    more = asyncio.Semaphore(0)

    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.send(CHUNKED + chunk(b"one"))
            await more.acquire()
            await wire.send(chunk(b"two"))
            await more.acquire()
            await wire.send(LAST)

    async with wired(script) as server, quick() as (client, transport):
        response, body = await streamed(client, server.url)
        reader = Reader()
        while body._unread == 0:
            await asyncio.sleep(0)
        body.push(reader.data, reader.end)
        assert reader.pieces == [b"one"], "what is there is handed over at once"
        more.release()
        await until(lambda: reader.text == b"onetwo")
        more.release()
        await until(lambda: bool(reader.ends))
        assert (reader.ends, reader.pieces) == ([None], [b"one", b"two"])
        assert transport.pool.idle == 1
        await response.aclose()
        assert transport.pool.idle == 1, "closing what has ended changes nothing"


async def test_a_body_that_has_ended_is_pushed_at_once() -> None:
    async with wired(always(OK)) as server, quick() as (client, transport):
        _, body = await streamed(client, server.url)
        while not transport.pool.idle:
            await asyncio.sleep(0)
        reader = Reader()
        body.push(reader.data, reader.end)
        assert (reader.pieces, reader.ends) == ([b"ok"], [None])


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (once(CHUNKED + chunk(b"one")), httpx2.RemoteProtocolError),
        (once(CHUNKED + chunk(b"one") + b"zz\r\n"), httpx2.RemoteProtocolError),
        (stalling, httpx2.ReadTimeout),
        (resetting_in_the_body, httpx2.ReadError),
    ],
)
async def test_a_pushed_body_that_breaks_says_how(script: Script, error: type[Exception], until: Until) -> None:
    async with wired(script) as server, quick() as (client, transport):
        _, body = await streamed(client, server.url, timeout=httpx2.Timeout(None, read=0.05))
        reader = Reader()
        body.push(reader.data, reader.end)
        if script is resetting_in_the_body:
            await until(lambda: bool(reader.pieces))
            server.wires[0].reset()
        await until(lambda: bool(reader.ends))
        assert reader.text == b"one"
        assert [type(end) for end in reader.ends] == [error]
        assert transport.pool.open == 0


async def test_a_reader_that_raises_closes_the_connection_and_hears_of_it(until: Until) -> None:
    for early in (True, False):
        async with wired(always(CHUNKED, chunk(b"one"), chunk(b"two"))) as server, quick() as (client, transport):
            _, body = await streamed(client, server.url)
            while early and body._unread < 6:
                await asyncio.sleep(0)
            reader, wrong = Reader(), ValueError("cannot read this")

            def data(piece: bytes) -> None:
                reader.data(piece)  # noqa: B023
                raise wrong  # noqa: B023

            body.push(data, reader.end)
            await until(lambda: bool(reader.ends))  # noqa: B023
            assert reader.ends == [wrong]
            assert len(reader.pieces) == 1
            assert transport.pool.open == 0
            await until(lambda: server.wires[0].gone.is_set())


async def test_after_a_close_nothing_is_called_and_the_socket_is_closed(until: Until) -> None:
    async with wired(always(CHUNKED, *[chunk(b"x")] * 1000)) as server, quick() as (client, transport):
        response, body = await streamed(client, server.url)
        reader = Reader()
        body.push(reader.data, reader.end)
        await until(lambda: bool(reader.pieces))
        got = len(reader.pieces)
        await response.aclose()
        assert transport.pool.open == 0
        await until(lambda: server.wires[0].gone.is_set())
        assert (len(reader.pieces), reader.ends) == (got, [])
        with pytest.raises(httpx2.StreamClosed):
            body.push(reader.data, reader.end)


async def test_a_reader_may_close_from_within() -> None:
    for stop in ("close", "release"):
        async with wired(always(CHUNKED, chunk(b"one"), chunk(b"two") + LAST)) as server, quick() as (client, _):
            _, body = await streamed(client, server.url)
            reader = Reader()

            def data(piece: bytes) -> None:
                reader.data(piece)  # noqa: B023
                getattr(body, stop)()  # noqa: B023

            body.push(data, reader.end)
            while not body._closed:
                await asyncio.sleep(0)
            assert (await client.get(server.url)).status_code == 200
            assert (len(reader.pieces), reader.ends) == (1, [])


async def test_a_paused_reader_gets_one_packet_at_most_and_all_of_it_in_the_end(until: Until) -> None:
    size = 8_000_000
    async with (
        wired(always(CHUNKED, *[chunk(b"x" * 10_000)] * (size // 10_000), LAST)) as server,
        quick() as (client, _),
    ):
        _, body = await streamed(client, server.url)
        reader = Reader()
        body.pause()
        body.push(reader.data, reader.end)
        before = len(reader.text)
        writer = server.wires[0].writer
        await until(lambda: writer.transport.get_write_buffer_size() > 0)
        assert len(reader.text) - before <= PACKET
        body.resume()
        await until(lambda: bool(reader.ends))
        assert len(reader.text) == size


# -- iterated ---------------------------------------------------------------------------------------------------------


async def test_a_body_that_nobody_reads_is_held_back_at_the_server(until: Until) -> None:
    size = 8_000_000
    async with (
        wired(always(CHUNKED, *[chunk(b"x" * 10_000)] * (size // 10_000), LAST)) as server,
        quick() as (client, transport),
    ):
        response, body = await streamed(client, server.url)
        writer = server.wires[0].writer
        await until(lambda: writer.transport.get_write_buffer_size() > 0)
        assert body._unread <= MOST_UNREAD + PACKET
        assert len(await response.aread()) == size
        assert transport.pool.idle == 1
        assert (await client.get(server.url)).status_code == 200


async def test_a_second_iteration_goes_on_where_the_first_one_stands() -> None:
    async with wired(always(CHUNKED, chunk(b"one"), chunk(b"two") + LAST)) as server, quick() as (client, transport):
        response, _ = await streamed(client, server.url)
        first = response.aiter_raw()
        text = await anext(first)
        async for piece in response.stream:  # type: ignore[union-attr]
            text += piece
        assert text == b"onetwo"
        assert transport.pool.idle == 1
        await first.aclose()
        assert transport.pool.idle == 1


async def test_a_reader_that_leaves_in_the_middle_closes_the_socket(until: Until) -> None:
    async with wired(stalling) as server, quick() as (client, transport):
        response, _ = await streamed(client, server.url)
        pieces = response.aiter_raw()
        await anext(pieces)
        await pieces.aclose()
        assert transport.pool.open == 0
        await until(lambda: server.wires[0].gone.is_set())


# -- release ----------------------------------------------------------------------------------------------------------


async def test_a_released_connection_is_used_again_when_the_body_ends(until: Until) -> None:
    more = asyncio.Event()

    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.send(CHUNKED + chunk(b"data: [DONE]\n\n"))
            await more.wait()
            await wire.send(chunk(b": bye\n\n") + LAST)

    async with wired(script) as server, quick() as (client, transport):
        response, body = await streamed(client, server.url)
        reader = Reader()
        body.push(reader.data, reader.end)
        await until(lambda: bool(reader.pieces))
        body.release()
        await response.aclose()
        assert (transport.pool.open, transport.pool.idle) == (1, 0)
        more.set()
        await until(lambda: transport.pool.idle == 1)
        assert (reader.text, reader.ends) == (b"data: [DONE]\n\n", [])
        await client.get(server.url)
        assert len(server.wires) == 1


@pytest.mark.parametrize("rest", [[], [chunk(b"x" * 1000)] * (MOST_REST // 1000 + 2)], ids=["silent", "long"])
async def test_a_released_connection_is_closed_when_the_body_does_not_end(rest: list[bytes], until: Until) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED, *rest)
        await wire.left()

    async with wired(script) as server, quick() as (client, transport):
        _, body = await streamed(client, server.url)
        body.release()
        await until(lambda: server.wires[0].gone.is_set())
        assert transport.pool.open == 0


# -- sending ----------------------------------------------------------------------------------------------------------


async def test_an_error_that_comes_before_the_request_is_sent_ends_the_sending(until: Until) -> None:
    async def script(wire: Wire) -> None:
        wire.deaf()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.Event().wait()

    async with wired(script) as server, quick() as (client, transport):
        response = await client.post(server.url, content=b"x" * 50_000_000)
        assert (response.status_code, response.content) == (413, b"big")
        assert transport.pool.open == 0, "the rest of the request is still due on that connection"


async def test_an_answer_that_begins_early_does_not_cut_the_request(until: Until) -> None:
    async def script(wire: Wire) -> None:
        await wire.send(CHUNKED + chunk(b"early"))
        await wire.request()
        await wire.send(LAST)
        await wire.left()

    async with wired(script) as server, quick() as (client, _):
        content = b"x" * 5_000_000
        assert (await client.post(server.url, content=content)).content == b"early"
        assert server.wires[0].requests[0].endswith(content)


async def test_a_request_whose_body_fails_closes_the_connection(until: Until) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise LookupError("no more")

    async with wired(silent) as server, quick() as (client, transport):
        with pytest.raises(LookupError):
            await client.post(server.url, content=body())
        with pytest.raises(httpx2.LocalProtocolError):
            await client.post(server.url, content=b"four", headers={"Content-Length": "5"})
        assert transport.pool.open == 0
        await until(lambda: all(wire.gone.is_set() for wire in server.wires))


# -- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["handshake", "sending", "head", "body"])
async def test_a_cancel_closes_the_socket_in_every_phase(phase: str, client_tls: ssl.SSLContext, until: Until) -> None:
    scripts: dict[str, Script] = {"handshake": silent, "sending": stuck, "head": silent, "body": stalling}
    async with wired(scripts[phase]) as server, quick(ssl_context=client_tls) as (client, transport):
        url = f"https://localhost:{server.port}" if phase == "handshake" else server.url
        content = b"x" * 20_000_000 if phase == "sending" else b""
        task = asyncio.create_task(client.post(url, content=content))
        await until(lambda: bool(server.wires))

        def there() -> bool:
            connection: Connection = next(iter(transport.pool._places))
            return {
                "handshake": connection.fresh,
                "sending": connection._room is not None,
                "head": connection._headed is not None,
                "body": connection._sink is not None and connection._sink.waits,
            }[phase]

        await until(there)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.pool.open == 0
        if phase == "sending":
            server.wires[0].hear()
            await server.wires[0].left()
        await until(lambda: server.wires[0].gone.is_set())


async def test_a_cancel_before_the_first_byte_to_the_server_leaves_no_connection(until: Until) -> None:
    async with wired(always(OK)) as server, quick() as (client, transport):
        for turns in range(12):
            task = asyncio.create_task(client.get(server.url))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert transport.pool.open == transport.pool.idle
        idle = transport.pool.idle
        await until(lambda: server.open == idle)


async def test_random_cancels_leave_nothing_open(until: Until) -> None:
    dice = random.Random(7)
    scripts = [always(OK), always(CHUNKED, *[chunk(b"x" * 50)] * 20, LAST), silent, once(CHUNKED + chunk(b"cut"))]

    async def script(wire: Wire) -> None:
        await dice.choice(scripts)(wire)

    async with wired(script) as server, quick(limits=limits(most=20, idle=5)) as (client, transport):

        async def one() -> None:
            response, body = await streamed(client, server.url, timeout=5)
            how = dice.randrange(4)
            reader = Reader()
            if how == 0:
                await response.aread()
            elif how == 1:
                body.push(reader.data, reader.end)
                while not reader.ends:
                    await asyncio.sleep(0.001)
            elif how == 2:
                body.release()
            await response.aclose()

        async def cancelled() -> None:
            task = asyncio.create_task(one())
            for _ in range(dice.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError, httpx2.HTTPError):
                await task

        for _ in range(4):
            await asyncio.gather(*(cancelled() for _ in range(60)))
        pool = transport.pool
        await until(lambda: pool.open == pool.idle and pool.waiting == 0)
        await client.aclose()
        assert pool.open == 0
        await until(lambda: server.open == 0)


# -- closing, and event loops -----------------------------------------------------------------------------------------


async def test_closing_the_client_breaks_what_is_open_and_what_waits() -> None:
    async with wired(stalling) as server, quick(limits=limits(most=1)) as (client, transport):
        response, body = await streamed(client, server.url)
        reader = Reader()
        body.push(reader.data, reader.end)
        waiting = asyncio.create_task(client.get(server.url))
        while not transport.pool.waiting:
            await asyncio.sleep(0)
        pool = transport.pool
        await transport.aclose()
        with pytest.raises(httpx2.ConnectError, match="closed"):
            await waiting
        assert isinstance(reader.ends[0], httpx2.ReadError)
        assert pool.open == 0
        await response.aclose()
        fallback = transport._fallback
        assert isinstance(fallback, Fallback)
        assert fallback.closed


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a loop that is closed over its sockets leaves them so
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_connections_of_another_event_loop_are_never_given_out() -> None:
    transport = StreamTransport(fallback=Fallback(), limits=limits())
    served: list[Server] = []

    async def ask() -> Pool:
        async with wired(always(OK)) as server:
            served.append(server)
            request = httpx2.Request("GET", server.url)
            response = await transport.handle_async_request(request)
            assert await response.aread() == b"ok"
            assert transport.pool.open == transport.pool.idle == 1
            return transport.pool

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first is not second
    assert list(transport._pools.values()) == [second], "the closed loop's are thrown away"
    asyncio.run(transport.aclose())


# -- which clients ----------------------------------------------------------------------------------------------------


async def test_a_plain_client_is_quickened_once_and_keeps_all_else() -> None:
    tls = ssl.create_default_context()
    bounds = httpx2.Limits(max_connections=7, max_keepalive_connections=3, keepalive_expiry=2.0)
    async with httpx2.AsyncClient(verify=tls, limits=bounds, trust_env=False) as client:
        stock = client._transport
        assert quicken(client)
        transport = client._transport
        assert isinstance(transport, StreamTransport)
        assert (transport._tls, transport._limits, transport._fallback) == (tls, bounds, stock)
        assert quicken(client)
        assert client._transport is transport
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(socket_options=options)) as client:
        assert quicken(client)
        assert isinstance(client._transport, StreamTransport)
        assert client._transport._options == tuple(options)


async def test_any_other_client_is_left_alone() -> None:
    class Own(httpx2.AsyncHTTPTransport):
        pass

    changed = httpx2.AsyncHTTPTransport()
    del changed._pool._retries  # an httpx2 that is built otherwise
    others: list[httpx2.AsyncBaseTransport] = [
        httpx2.AsyncHTTPTransport(retries=1),
        httpx2.AsyncHTTPTransport(uds="/nowhere"),
        httpx2.AsyncHTTPTransport(local_address="127.0.0.1"),
        httpx2.AsyncHTTPTransport(proxy="http://127.0.0.1:1"),
        httpx2.MockTransport(lambda _: httpx2.Response(200)),
        Fallback(),
        Own(),
        changed,
    ]
    for transport in others:
        async with httpx2.AsyncClient(transport=transport) as client:
            assert not quicken(client)
            assert client._transport is transport
    assert not quicken(object())  # type: ignore[arg-type]


async def test_what_is_no_plain_request_goes_to_the_fallback() -> None:
    async with quick() as (client, transport):
        extensions = {"trace": None}
        requests = [
            client.build_request("GET", "http://127.0.0.1:1", headers={"Upgrade": "websocket"}),
            client.build_request("CONNECT", "http://127.0.0.1:1"),
            client.build_request("GET", "http://127.0.0.1:1", extensions=extensions),
            client.build_request("GET", "ftp://127.0.0.1:1"),
        ]
        for request in requests:
            assert (await client.send(request)).content == b"fallback"
        fallback = transport._fallback
        assert isinstance(fallback, Fallback)
        assert fallback.asked == requests


async def test_a_body_is_only_had_where_pushing_it_is_right() -> None:
    encoded = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok"
    async with wired(always(encoded)) as server, quick() as (client, _):
        response = await client.send(client.build_request("GET", server.url), stream=True)
        assert body_of(response) is None
        await response.aclose()
    async with wired(always(OK)) as server, quick() as (client, _):
        response, body = await streamed(client, server.url)
        assert body_of(response) is body
        await response.aread()
        assert body_of(response) is None
        response, body = await streamed(client, server.url)
        await response.aclose()
        assert body_of(response) is None
    assert body_of(httpx2.Response(200, content=b"ok")) is None


async def test_ipv6_is_reached_by_its_literal() -> None:
    try:
        listener = await asyncio.start_server(Server(always(OK)).connected, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    async with listener, quick() as (client, _):
        url = f"http://[::1]:{listener.sockets[0].getsockname()[1]}"
        assert (await client.get(url)).content == b"ok"
        await client.aclose()
