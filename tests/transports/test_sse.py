"""A stream of server-sent events: heartbeats that disturb nothing, and every way in which it ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI, Response
from serving import running
from starlette.types import ASGIApp, Message

from app.protocols.frame import Frame
from app.transports.sse import HEARTBEAT, RETRY, BrokenFrames, EndOfFrames, EventStream, Render, beating, render
from app.transports.wire import Wire

Until = Callable[[Callable[[], bool]], Awaitable[None]]
Wired = Callable[[FastAPI], ASGIApp]


class Feed:
    """Frames as a test hands them out. ``reading``: whoever takes them has found that there are no more."""

    def __init__(self, count: int = 0) -> None:
        self.frames = [frame(number + 1) for number in range(count)]
        self.ending: Exception | None = None
        self.reading = False
        self.closed = 0
        self._read = 0
        self._woken: Callable[[], object] = lambda: None

    def put(self, *frames: Frame) -> None:
        self.frames += frames
        asyncio.get_running_loop().call_soon(self._woken)

    def end(self, ending: Exception | None = None) -> None:
        self.ending = ending or EndOfFrames()
        asyncio.get_running_loop().call_soon(self._woken)

    def watch(self, woken: Callable[[], object]) -> None:
        self._woken = woken

    def take(self, render: Render) -> bytes:
        self.reading = self._read == len(self.frames)
        if self.reading and self.ending is not None:
            raise self.ending
        new, self._read = self.frames[self._read :], len(self.frames)
        return render(new)

    async def aclose(self) -> None:
        self.closed += 1
        self._woken = lambda: None


def frame(number: int) -> Frame:
    return Frame(str(number), "n", b"%d" % number)


class Server:
    """The server's side of a request: what was sent, a way to hold sending up, and a client that can leave."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.waiting = 0
        self.left = asyncio.Event()
        self.closed = 0

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.waiting += 1
        await self.writable.wait()
        self.waiting -= 1
        self.sent.append(message)

    def close(self) -> None:
        self.closed += 1

    def serve(self, feed: Feed, heartbeat_s: float = 60) -> "asyncio.Task[None]":
        stream = EventStream(feed, heartbeats=beating(heartbeat_s), headers={}, on_close=self.close)
        return asyncio.create_task(stream({"type": "http"}, self.receive, self.send))

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


# -- what is sent -----------------------------------------------------------------------------------------------------


async def test_the_head_goes_out_before_there_is_anything_to_say(until: Until) -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed)
    await until(lambda: server.bodies == [RETRY])
    feed.end()
    await serving
    assert server.complete


async def test_what_is_there_at_once_is_sent_at_once() -> None:
    server, feed = Server(), Feed(3)
    feed.end()
    await server.serve(feed)
    assert server.bodies == [RETRY, b"".join(render(frame(number)) for number in (1, 2, 3)), b""]
    assert server.closed == 1


# -- heartbeats -------------------------------------------------------------------------------------------------------


async def test_a_heartbeat_follows_each_silence_from_the_first_one_on(until: Until) -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed, heartbeat_s=0.02)
    await until(lambda: server.bodies.count(HEARTBEAT) >= 3)
    assert server.bodies[:3] == [RETRY, HEARTBEAT, HEARTBEAT]
    feed.put(frame(1))
    await until(lambda: render(frame(1)) in server.bodies)
    await until(lambda: server.bodies[-1] == HEARTBEAT)
    feed.end()
    await serving
    assert server.complete


async def test_a_stream_that_is_never_silent_has_no_heartbeat() -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed, heartbeat_s=1)
    loop = asyncio.get_running_loop()
    began, number = loop.time(), 0
    while loop.time() - began < 1.5:
        feed.put(frame(number := number + 1))
        await asyncio.sleep(0.01)
    feed.end()
    await serving
    assert HEARTBEAT not in server.bodies


async def test_no_heartbeat_piles_up_before_a_reader_that_does_not_read(until: Until) -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed, heartbeat_s=0.01)
    await until(lambda: feed.reading)
    server.writable.clear()
    feed.put(frame(1))
    await until(lambda: server.waiting == 1)
    before = len(server.bodies)
    await asyncio.sleep(0.1)
    assert (len(server.bodies), server.waiting) == (before, 1)
    server.writable.set()
    feed.end()
    await serving
    assert render(frame(1)) in server.bodies


async def test_heartbeats_lose_and_repeat_nothing_whenever_they_come() -> None:
    # Silences twice as long as the heartbeat's: each event meets the second, which is just due.
    server, feed, beat = Server(), Feed(), 0.002
    serving = server.serve(feed, heartbeat_s=beat)
    loop = asyncio.get_running_loop()
    for number in range(1, 301):
        loop.call_later(number * 2 * beat, feed.put, frame(number))
    await asyncio.sleep(302 * 2 * beat)
    feed.end()
    await serving
    told = b"".join(body for body in server.bodies if body not in (RETRY, HEARTBEAT))
    assert told == b"".join(render(frame(number)) for number in range(1, 301))
    assert server.bodies.count(HEARTBEAT) > 3
    assert server.complete


async def test_a_cancel_from_outside_that_meets_a_heartbeat_is_a_cancel(until: Until) -> None:
    for number in range(60):
        server, feed = Server(), Feed()
        serving = server.serve(feed, heartbeat_s=0.001)
        await until(lambda feed=feed: feed.reading)  # type: ignore[misc]
        asyncio.get_running_loop().call_later(0.001 + number * 0.00001, serving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(serving), 10)
        assert server.closed == 1
        assert not server.complete


async def test_a_leaving_that_meets_a_heartbeat_is_a_leaving(until: Until) -> None:
    for number in range(60):
        server, feed = Server(), Feed()
        serving = server.serve(feed, heartbeat_s=0.001)
        await until(lambda feed=feed: feed.reading)  # type: ignore[misc]
        asyncio.get_running_loop().call_later(0.001 + number * 0.00001, server.left.set)
        await asyncio.wait_for(serving, 10)
        assert server.closed == 1
        assert not server.complete


# -- endings ----------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_before_the_first_byte_ends_it() -> None:
    server, feed = Server(), Feed()
    server.left.set()
    await asyncio.wait_for(server.serve(feed), 10)
    assert server.closed == 1
    assert not server.complete


async def test_a_client_that_leaves_while_a_send_is_held_up_ends_it(until: Until) -> None:
    server, feed = Server(), Feed(1)
    server.writable.clear()
    serving = server.serve(feed)
    await until(lambda: server.waiting == 1)
    server.left.set()
    await asyncio.wait_for(serving, 10)
    assert server.closed == 1


async def test_a_client_that_leaves_between_the_last_frame_and_the_end_ends_it(until: Until) -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed)
    await until(lambda: feed.reading)
    feed.put(frame(1))
    await until(lambda: len(server.bodies) == 2)
    server.writable.clear()
    feed.end()
    await until(lambda: server.waiting == 1)
    server.left.set()
    await asyncio.wait_for(serving, 10)
    assert server.closed == 1
    assert not server.complete


async def test_an_end_and_a_leaving_at_once_close_once() -> None:
    server, feed = Server(), Feed()
    serving = server.serve(feed)
    for _ in range(5):
        await asyncio.sleep(0)
    feed.end()
    server.left.set()
    await asyncio.wait_for(serving, 10)
    assert server.closed == 1


async def test_a_source_that_fails_closes_too_and_is_not_told_as_an_end() -> None:
    server, feed = Server(), Feed(1)
    feed.end(KeyError("x"))
    with pytest.raises(KeyError):
        await server.serve(feed)
    assert (server.closed, feed.closed) == (1, 1)
    assert not server.complete


async def test_a_server_that_cannot_send_fails_it_and_closes() -> None:
    server, feed = Server(), Feed(1)

    async def send(message: Message) -> None:
        if message.get("body"):
            raise OSError("no more")

    server.send = send  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no more"):
        await asyncio.wait_for(server.serve(feed), 10)
    assert (server.closed, feed.closed) == (1, 1)


async def test_an_end_that_meets_a_cancel_from_outside_is_a_cancel_and_leaves_nothing() -> None:
    for turns in range(12):
        server, feed = Server(), Feed()
        serving = server.serve(feed)
        for _ in range(5):
            await asyncio.sleep(0)
        feed.end()
        for _ in range(turns):
            await asyncio.sleep(0)
        ended = serving.done()
        serving.cancel()
        await asyncio.wait((serving,), timeout=10)
        assert ended or serving.cancelled()
        assert (server.closed, feed.closed) == (1, 1)


# -- broken off -------------------------------------------------------------------------------------------------------


class Once:
    """One frame, and then what the test wants."""

    def __init__(self, then: Exception) -> None:
        self._told = False
        self._then = then

    def watch(self, woken: Callable[[], object]) -> None:
        pass

    def take(self, render: Render) -> bytes:
        if self._told:
            raise self._then
        self._told = True
        return render((frame(1),))

    async def aclose(self) -> None:
        pass


def one_stream(then: Exception, closed: list[str]) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def stream() -> Response:
        return EventStream(Once(then), heartbeats=beating(5), headers={}, on_close=lambda: closed.append("closed"))

    return app


def direct(app: FastAPI) -> ASGIApp:
    """Written past the server."""
    return Wire(app)


def by_the_server(app: FastAPI) -> ASGIApp:
    """With its connection, but by the server's ``send``: Starlette's error handler stands outside."""
    app.add_middleware(Wire)
    return app


def bare(app: FastAPI) -> ASGIApp:
    """By the server, whose connection is not known."""
    return app


@pytest.mark.parametrize("wired", [direct, by_the_server, bare])
def test_broken_frames_break_the_connection_off_and_never_end_it_cleanly(
    wired: Wired,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    closed: list[str] = []
    app = wired(one_stream(BrokenFrames(), closed))
    with running(app) as url, caplog.at_level(logging.DEBUG, "uvicorn.error"):
        read: list[bytes] = []
        with httpx.stream("GET", url) as answer, pytest.raises(httpx.RemoteProtocolError):
            read.extend(answer.iter_raw())
        assert b"".join(read) == RETRY + render(frame(1))
        eventually(lambda: closed == ["closed"])
    # Without our middleware the server breaks it off itself, and says so.
    assert any(record.levelno >= logging.WARNING for record in caplog.records) is (wired is bare)


@pytest.mark.parametrize("wired", [direct, by_the_server, bare])
def test_ended_frames_end_it_cleanly(wired: Wired) -> None:
    with running(wired(one_stream(EndOfFrames(), []))) as url:
        assert httpx.get(url).content == RETRY + render(frame(1))
