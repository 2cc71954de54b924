"""``/ws`` over real sockets: many runs on one connection, the same events as over SSE, and every way to end."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from graphs import Slow, branches, tool_caller
from langchain_core.runnables import RunnableLambda
from scripted import Scripted, words
from serving import Served, open_requests, serving, settled
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

STREAMS = "[[tokens=5000]] go on"
SILENT = "[[first_token_s=60]] think"


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=400) as one:
        yield one


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    agents = {
        "branches": branches(provider.base_url),
        "waits": tool_caller([slow.tool], [{"name": "wait", "args": {}, "id": "c1"}]),
        "echo": RunnableLambda(str.upper),
    }
    origins = ["https://app.example"]
    with serving(agents, openai_base_url=provider.base_url, cors_origins=origins) as one:
        yield one


class Talk:
    """A client's end of a socket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, type_: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": type_, **fields}))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            frame: dict[str, Any] = json.loads(await self.connection.recv())
        return frame

    async def hear_until(self, event: str, stream_id: str | None = None) -> list[dict[str, Any]]:
        """All frames up to the first such event."""
        frames = [await self.hear()]
        while frames[-1]["event"] != event or stream_id not in (None, frames[-1]["stream_id"]):
            frames.append(await self.hear())
        return frames

    async def hear_close(self) -> int:
        """Why the server closes; nothing may come before."""
        with pytest.raises(ConnectionClosed) as closed:
            await self.connection.recv()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@asynccontextmanager
async def talking(server: Served, **options: Any) -> AsyncIterator[Talk]:
    url = server.url.replace("http:", "ws:") + "/ws"
    async with connect(url, proxy=None, **options) as connection:
        yield Talk(connection)


@pytest.fixture
async def talk(server: Served) -> AsyncIterator[Talk]:
    async with talking(server) as one:
        yield one


async def sse_of(client: httpx.AsyncClient, run_id: str, stream_id: str) -> list[str]:
    """A run's events as SSE has them, put as the socket should."""
    body = (await client.get(f"/runs/{run_id}/events")).text.removeprefix("retry: 1000\n")
    frames = []
    for block in body.split("\n\n")[:-1]:
        lines = (line for line in block.split("\n") if not line.startswith(":"))
        number, event, data = (line.split(": ", 1)[1] for line in lines)
        frames.append(f'{{"stream_id":"{stream_id}","id":{number},"event":"{event}","data":{data}}}')
    return frames


async def test_many_streams_on_one_socket_are_byte_for_byte_what_sse_tells(
    server: Served, talk: Talk, client: httpx.AsyncClient
) -> None:
    asked = {f"s{n}": ("assistant", "branches", "chat", "echo")[n % 4] for n in range(24)}
    # At the pace of people: what comes in a burst while others start, a reader finds merged.
    text = "[[tokens_per_second=50 call=all]] What is 6*7?"
    for stream_id, agent in asked.items():
        await talk.say("start", stream_id=stream_id, agent=agent, input=text)
    texts: dict[str, list[str]] = {stream_id: [] for stream_id in asked}
    left = set(asked)
    switches, last = 0, ""
    while left:
        said = await talk.connection.recv()
        assert isinstance(said, str)
        frame = json.loads(said)
        texts[frame["stream_id"]].append(said)
        switches, last = switches + (frame["stream_id"] != last), frame["stream_id"]
        if frame["event"] == "run.finished":
            left.remove(frame["stream_id"])
    assert switches > 100  # they come side by side
    for stream_id, told in texts.items():
        run_id = json.loads(told[0])["data"]["run_id"]
        assert told == await sse_of(client, run_id, stream_id)


ENDINGS = ["close frame", "FIN", "RST", "detach", "cancel"]


@pytest.mark.parametrize("way", ENDINGS)
@pytest.mark.parametrize(
    ("agent", "text", "requests", "seen"),
    [
        ("chat", SILENT, 1, "run.started"),
        ("chat", STREAMS, 1, "token"),
        ("branches", STREAMS, 3, "token"),
        ("waits", "wait", 0, "tool.started"),
    ],
)
async def test_leaving_or_cancelling_ends_the_run_and_closes_the_providers_connection(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, slow: Slow,
    agent: str, text: str, requests: int, seen: str, way: str,
) -> None:  # fmt: skip
    await settled(server, provider, until)
    cancelled = slow.cancelled
    async with talking(server) as talk:
        await talk.say("start", stream_id="a", agent=agent, input=text)
        frames = await talk.hear_until(seen)
        run_id = frames[0]["data"]["run_id"]
        await until(lambda: open_requests(provider) >= requests)
        if agent == "waits":
            await until(lambda: slow.entered - slow.cancelled == 1)
        if way in ("cancel", "detach"):
            await talk.say(way, stream_id="a")
            last = (await talk.hear_until("run.finished" if way == "cancel" else "end"))[-1]
            assert last.get("final") is (None if way == "cancel" else True)
        else:
            end_socket(talk.connection, way)
        await settled(server, provider, until)
        await until(lambda: server.run(run_id).scope.readers == 0)
    finished = json.loads((await sse_of(client, run_id, "a"))[-1])["data"]
    assert finished["status"] == "cancelled"
    assert finished["reason"] == ("requested" if way == "cancel" else "disconnected")
    if agent == "waits":
        assert slow.cancelled - cancelled == 1


def end_socket(connection: ClientConnection, way: str) -> None:
    sock = connection.transport.get_extra_info("socket")
    if way == "close frame":
        connection.protocol.send_close(1000)
        connection.send_data()
        return
    if way == "RST":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()


async def test_detaching_from_a_run_that_continues_leaves_it_and_another_stream_takes_it_up(
    talk: Talk, client: httpx.AsyncClient
) -> None:
    text = "[[tokens=200]] go on"
    await talk.say("start", stream_id="a", agent="chat", input=text, on_disconnect="continue")
    first = await talk.hear_until("token")
    await talk.say("detach", stream_id="a")
    first += (await talk.hear_until("end"))[:-1]
    run_id, after = first[0]["data"]["run_id"], first[-1]["id"]
    await talk.say("attach", stream_id="a", run_id=run_id, after=after)
    rest = await talk.hear_until("run.finished")
    assert rest[-1]["data"]["status"] == "completed"
    assert [json.dumps(frame) for frame in first + rest] == [
        json.dumps(json.loads(text)) for text in await sse_of(client, run_id, "a")
    ]


async def test_one_run_may_be_read_by_several_streams_and_a_finished_one_as_well(talk: Talk) -> None:
    await talk.say("start", stream_id="a", agent="chat", input="[[tokens=20]] go on")
    run_id = (await talk.hear_until("token"))[0]["data"]["run_id"]
    await talk.say("attach", stream_id="b", run_id=run_id)
    await talk.say("attach", stream_id="c", run_id=run_id, after=3)
    frames: list[dict[str, Any]] = []
    while sum(frame["event"] == "run.finished" for frame in frames) < 3:
        frames.append(await talk.hear())
    last = frames[-1]["id"]
    assert [frame["id"] for frame in frames if frame["stream_id"] == "b"] == list(range(1, last + 1))
    assert [frame["id"] for frame in frames if frame["stream_id"] == "c"] == list(range(4, last + 1))
    await talk.say("attach", stream_id="d", run_id=run_id, after=last - 1)
    assert [frame["event"] for frame in await talk.hear_until("run.finished")] == ["run.finished"]
    await talk.say("attach", stream_id="d", run_id=run_id, after=last)
    assert await talk.hear() == {"stream_id": "d", "event": "end", "data": {"reason": "finished"}, "final": True}


async def test_an_ended_streams_id_can_be_used_at_once(talk: Talk) -> None:
    for _ in range(20):
        await talk.say("start", stream_id="a", agent="echo", input="hi")
        assert (await talk.hear_until("run.finished"))[-1]["data"]["status"] == "completed"


async def test_a_pause_stops_the_providers_stream_and_continue_goes_on(
    talk: Talk, server: Served, provider: Simulator, until: Until
) -> None:
    await talk.say("start", stream_id="a", agent="chat", input="[[tokens=400]] go on")
    await talk.hear_until("token")
    await talk.say("continue", stream_id="a")  # it is not paused: nothing to do
    await talk.say("pause", stream_id="a")
    await talk.say("pause", stream_id="a")
    paused = await talk.hear_until("run.paused")
    assert all(frame["event"] != "error" for frame in paused)
    await until(lambda: open_requests(provider) == 0)
    await talk.say("continue", stream_id="a")
    await talk.say("continue", stream_id="a")
    rest = await talk.hear_until("run.finished")
    assert [frame["event"] for frame in rest].count("run.resumed") == 1
    assert rest[-1]["data"]["status"] == "completed"


async def test_a_command_that_the_agent_cannot_do_is_an_error_and_the_stream_goes_on(talk: Talk, slow: Slow) -> None:
    await talk.say("start", stream_id="a", agent="waits", input="wait")
    await talk.hear_until("tool.started")
    await talk.say("pause", stream_id="a")
    refused = (await talk.hear_until("error"))[-1]
    assert (refused["data"]["code"], "final" in refused, "id" in refused) == ("unsupported_by_agent", False, False)
    await talk.say("cancel", stream_id="a")
    assert (await talk.hear_until("run.finished"))[-1]["data"]["status"] == "cancelled"


# Bad input


async def test_a_bad_frame_is_told_and_the_socket_lives_on(talk: Talk, server: Served) -> None:
    before = len(server.runner.kept("127.0.0.1"))
    deep = '{"type":"start","stream_id":"a","agent":"chat","input":' + "[" * 100_000 + "]" * 100_000 + "}"
    messages: list[tuple[str | bytes, str | None, str]] = [
        ("hello", None, "bad_frame"),
        ("", None, "bad_frame"),
        (b"\x00\x01", None, "bad_frame"),
        ("[]", None, "bad_frame"),
        ('{"type":"start","stream_id":"a","agent":"chat","input":NaN}', None, "bad_frame"),
        (deep, None, "bad_frame"),
        ("x" * 10_000_000, None, "bad_frame"),
        ('{"type":"start","stream_id":"a","agent":"chat","input":"' + "x" * 10_000_000 + '"}', None, "bad_frame"),
        ('{"type":"dance","stream_id":"a"}', "a", "bad_frame"),
        ('{"stream_id":"a"}', "a", "bad_frame"),
        ('{"type":"cancel"}', None, "bad_frame"),
        ('{"type":"cancel","stream_id":"b"}', "b", "unknown_stream"),
        ('{"type":"pause","stream_id":"b"}', "b", "unknown_stream"),
        ('{"type":"continue","stream_id":"b"}', "b", "unknown_stream"),
        ('{"type":"detach","stream_id":"b"}', "b", "unknown_stream"),
    ]
    for message, stream_id, code in messages:
        await talk.connection.send(message)
        frame = await talk.hear()
        assert (frame["stream_id"], frame["event"], frame["data"]["code"]) == (stream_id, "error", code), message[:80]
        assert frame["data"]["message"]
        assert "id" not in frame
        assert "final" not in frame
    await talk.say("ping")
    assert await talk.hear() == {"stream_id": None, "event": "pong", "data": {}}
    assert len(server.runner.kept("127.0.0.1")) == before


async def test_what_opens_no_stream_is_one_final_error(talk: Talk, server: Served, client: httpx.AsyncClient) -> None:
    run_id = (await client.post("/agents/echo/runs", json={"input": "hi"})).json()["run_id"]
    await client.get(f"/runs/{run_id}/result", params={"wait": "true"})
    last = server.run(run_id).last_event_id
    before = len(server.runner.kept("127.0.0.1"))
    openings: list[tuple[str, dict[str, Any], str]] = [
        ("start", {"agent": "nobody", "input": "hi"}, "unknown_agent"),
        ("start", {"agent": "assistant"}, "invalid_input"),
        ("start", {"agent": "assistant", "input": {"messages": [{"role": "wizard"}]}}, "invalid_input"),
        ("start", {"agent": "assistant", "input": "hi", "timeout_s": "5"}, "invalid_input"),
        ("start", {"agent": "assistant", "input": "hi", "on_disconect": "cancel"}, "invalid_input"),
        ("start", {"agent": "echo", "input": "hi", "thread_id": "t"}, "unsupported_by_agent"),
        ("attach", {"run_id": "none"}, "unknown_run"),
        ("attach", {"run_id": run_id, "after": "3"}, "bad_event_id"),
        ("attach", {"run_id": run_id, "after": -1}, "bad_event_id"),
        ("attach", {"run_id": run_id, "after": 2**63}, "bad_event_id"),
        ("attach", {"run_id": run_id, "after": last + 1}, "bad_event_id"),
    ]
    for kind, fields, code in openings:
        await talk.say(kind, stream_id="a", **fields)
        frame = await talk.hear()
        assert (frame["stream_id"], frame["event"], frame["data"]["code"]) == ("a", "error", code), fields
        assert frame["final"] is True
        assert "id" not in frame
    assert len(server.runner.kept("127.0.0.1")) == before


async def test_a_stream_id_that_is_in_use_is_refused_and_its_stream_goes_on(talk: Talk) -> None:
    await talk.say("start", stream_id="a", agent="chat", input="[[tokens=50]] go on")
    await talk.say("start", stream_id="a", agent="chat", input="hi")
    await talk.say("attach", stream_id="a", run_id="any")
    await talk.say("start", stream_id="a", agent="chat", input="hi", timeout_s="x")
    frames = await talk.hear_until("run.finished")
    errors = [frame for frame in frames if frame["event"] == "error"]
    assert [frame["data"]["code"] for frame in errors] == ["duplicate_stream", "duplicate_stream", "invalid_input"]
    assert not any("final" in frame for frame in errors)
    assert frames[-1]["data"]["status"] == "completed"


async def test_an_expired_run_cannot_be_attached_to(until: Until) -> None:
    with serving({"echo": RunnableLambda(str.upper)}, run_retention_s=1) as short:
        async with talking(short) as talk:
            await talk.say("start", stream_id="a", agent="echo", input="hi")
            run_id = (await talk.hear_until("run.finished"))[0]["data"]["run_id"]
            await until(lambda: run_id not in short.runner._runs)
            await talk.say("attach", stream_id="a", run_id=run_id)
            expired = await talk.hear()
            assert (expired["data"]["code"], expired["final"]) == ("run_expired", True)


async def test_a_message_over_the_servers_own_bound_closes_the_socket(server: Served) -> None:
    async with talking(server, max_size=None) as talk:
        await talk.connection.send("x" * (17 * 1024 * 1024))
        assert await talk.hear_close() == 1009


# Who may connect


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("own", True),
        ("https://app.example", True),
        ("https://app.example.evil.example", False),
        ("http://app.example", False),
        ("null", False),
        ("", False),
        ("http://evil.example", False),
        ("http://127.0.0.1:1", False),
        ("own.evil.example", False),
        ("http://user@own", False),
        ("file://", False),
    ],
)
async def test_pages_of_other_origins_are_closed_with_4403(server: Served, origin: str | None, allowed: bool) -> None:
    own = server.url
    if origin is not None:
        origin = origin.replace("http://user@own", own.replace("http://", "http://user@")).replace("own", own)
    async with talking(server, origin=None if origin is None else Origin(origin)) as talk:
        if not allowed:
            assert await talk.hear_close() == 4403
            return
        await talk.say("ping")
        assert (await talk.hear())["event"] == "pong"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"])
async def test_a_name_that_is_not_this_machines_is_closed_with_4403(server: Served, host: str) -> None:
    sock = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
    async with connect(f"ws://{host}/ws", sock=sock, origin=Origin(f"http://{host}"), proxy=None) as connection:
        assert await Talk(connection).hear_close() == 4403


async def test_a_key_offered_as_a_subprotocol_is_taken_as_one(server: Served) -> None:
    async with talking(server, subprotocols=[Subprotocol("millrace"), Subprotocol("bearer.secret")]) as talk:
        assert talk.connection.subprotocol == "millrace"
    async with talking(server) as talk:
        assert talk.connection.subprotocol is None


async def test_elsewhere_there_is_no_socket(server: Served) -> None:
    with pytest.raises(InvalidStatus):
        await connect(server.url.replace("http:", "ws:") + "/agents", proxy=None)


# Slow readers, and the server's end


async def test_a_client_that_stops_reading_has_a_gap_and_others_keep_the_runs_pace() -> None:
    pieces = [f"{number}:{'x' * 4000} " for number in range(1000)]

    class Turn:
        def __iter__(self) -> Iterator[Any]:
            return iter(words(*pieces))

    with serving({"long": Scripted(turns=[Turn()])}, subscriber_max_events=64) as served, socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        where = urlsplit(served.url)
        await asyncio.get_running_loop().sock_connect(small, (where.hostname, where.port))
        async with talking(served, sock=small, max_queue=2, compression=None, ping_interval=None) as talk:
            await talk.say("start", stream_id="a", agent="long", input="go")
            run_id = (await talk.hear())["data"]["run_id"]
            async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
                quick = await sse_of(client, run_id, "a")
            assert '"run.finished"' in quick[-1]
            frames = await talk.hear_until("run.finished")
    assert served.run(run_id).status == "completed"
    ids = [frame["id"] for frame in frames]
    assert ids == sorted(set(ids))
    gaps = [frame["data"] for frame in frames if frame["event"] == "gap"]
    assert all(gap["to"] - gap["from"] + 1 == gap["dropped"] for gap in gaps)
    assert sum(gap["dropped"] for gap in gaps) > 64
    assert ids[-1] == json.loads(quick[-1])["id"] == served.run(run_id).last_event_id


async def test_a_socket_dies_with_all_its_runs_and_with_none_that_continue(
    server: Served, provider: Simulator, until: Until
) -> None:
    await settled(server, provider, until)
    async with talking(server) as talk:
        for number in range(10):
            policy = "continue" if number < 3 else "cancel"
            text = "[[tokens=100]] go on" if number < 3 else STREAMS
            await talk.say("start", stream_id=f"{number}", agent="chat", input=text, on_disconnect=policy)
        runs: dict[str, str] = {}
        while len(runs) < 10:
            frame = await talk.hear()
            if frame["event"] == "run.started":
                runs[frame["stream_id"]] = frame["data"]["run_id"]
        end_socket(talk.connection, "RST")
        await settled(server, provider, until)
    statuses = {stream_id: server.run(run_id).status for stream_id, run_id in runs.items()}
    assert [statuses[f"{n}"] for n in range(10)] == ["completed"] * 3 + ["cancelled"] * 7
    assert [server.run(run_id).scope.readers for run_id in runs.values()] == [0] * 10


async def test_a_draining_server_takes_a_socket_only_to_say_so() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def tell_loop(text: str) -> str:
        loops.append(asyncio.get_running_loop())
        return text

    with serving({"loop": RunnableLambda(tell_loop)}) as served:
        async with talking(served) as idle, talking(served) as busy:
            await idle.say("start", stream_id="a", agent="loop", input="hi")
            await idle.hear_until("run.finished")
            await busy.say("start", stream_id="a", agent="chat", input="[[tokens=100]] go on")
            await busy.hear_until("token")
            loops[0].call_soon_threadsafe(served.runner.draining.set)
            assert await idle.hear_close() == 1012
            async with talking(served) as late:
                assert await late.hear_close() == 1012
            await busy.say("start", stream_id="b", agent="chat", input="hi")
            refused = (await busy.hear_until("error", "b"))[-1]
            assert (refused["data"]["code"], refused["final"]) == ("draining", True)
            assert refused["data"]["retry_after_ms"] > 0
            assert (await busy.hear_until("run.finished"))[-1]["data"]["status"] == "completed"
            assert await busy.hear_close() == 1012
