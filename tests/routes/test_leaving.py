"""A client that goes away ends its run and closes the provider's connection; so does a cancel, in every phase."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from graphs import Slow, asks_model_in_tool, branches, nested, tool_caller
from httpx_sse import aconnect_sse
from serving import Served, open_requests, serving, settled

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

STREAMS = "[[tokens=5000]] go on"
SILENT = "[[first_token_s=60]] think"


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    agents = {
        "nested": nested(provider.base_url),
        "branches": branches(provider.base_url),
        "waits": tool_caller([slow.tool], [{"name": "wait", "args": {}, "id": f"c{n}"} for n in range(3)]),
        "consults": asks_model_in_tool(provider.base_url),
    }
    with serving(agents, openai_base_url=provider.base_url) as one:
        yield one


def row(server: Served) -> dict[str, Any]:
    return server.runner.kept("127.0.0.1")[0].row()


PHASES = [
    ("chat", SILENT, 1, None),
    ("chat", STREAMS, 1, "token"),
    ("assistant", STREAMS, 1, "token"),
    ("nested", SILENT, 1, "node.started"),
    ("nested", STREAMS, 1, "token"),
    ("branches", STREAMS, 3, "token"),
    ("consults", "ask", 1, "tool.started"),
    ("waits", "wait", 0, "tool.started"),
]


@pytest.mark.parametrize(("agent", "text", "requests", "seen"), PHASES)
@pytest.mark.parametrize("way", ["close", "reset", "cancel"])
async def test_leaving_or_cancelling_ends_the_run_and_the_providers_stream(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, slow: Slow,
    agent: str, text: str, requests: int, seen: str | None, way: str,
) -> None:  # fmt: skip
    await settled(server, provider, until)
    cancelled = slow.cancelled
    reader, writer = await start_raw(server, agent, text)
    head = await reader.readuntil(b"\r\n\r\n")
    run_id = next(line for line in head.decode().split("\r\n") if line.startswith("x-run-id: ")).split()[1]
    if seen is not None:
        await reader.readuntil(f"event: {seen}\n".encode())
    await until(lambda: open_requests(provider) >= requests)
    if agent == "waits":
        await until(lambda: slow.entered - slow.cancelled == 3)
    if way == "close":
        writer.close()
    elif way == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        answer = await client.post(f"/runs/{run_id}/cancel")
        assert answer.json()["status"] == "cancelled"
    await settled(server, provider, until)
    last = row(server)
    assert (last["run_id"], last["status"]) == (run_id, "cancelled")
    finished = [event async for event in replay(client, run_id)][-1]
    assert finished["reason"] == ("requested" if way == "cancel" else "disconnected")
    if agent == "waits":
        assert slow.cancelled - cancelled == 3
    if way == "cancel":
        assert b"event: run.finished" in await reader.read()
        writer.close()
    await writer.wait_closed() if way != "reset" else None


async def start_raw(server: Served, agent: str, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose socket is ours to break."""
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    body = json.dumps({"input": text}).encode()
    head = (
        f"POST /agents/{agent}/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def replay(client: httpx.AsyncClient, run_id: str) -> AsyncIterator[dict[str, Any]]:
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source:
        async for event in source.aiter_sse():
            yield {"event": event.event, **json.loads(event.data)}


async def test_what_was_generated_before_a_cancel_is_kept_and_counted(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    text, tokens, run_id = "", 0, ""
    body = {"input": "[[stall_after=30]] go on"}
    async with aconnect_sse(client, "POST", "/agents/assistant/runs", json=body) as source:
        async for event in source.aiter_sse():
            data = json.loads(event.data)
            run_id = data.get("run_id", run_id)
            if event.event == "token":
                text, tokens = text + data["text"], tokens + 1
            if tokens == 30:
                break
    await settled(server, provider, until)
    result = (await client.get(f"/runs/{run_id}/result")).json()
    assert (result["status"], result["text"]) == ("cancelled", text)
    assert provider.requests[-1].tokens_sent == 30
    assert result["usage"]["estimated"]
    assert result["usage"]["output_tokens"] == 30
    events = [event async for event in replay(client, run_id)]
    assert [one["event"] for one in events].count("usage") == 1


async def test_a_run_told_to_continue_goes_on_without_readers(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    body = {"input": "[[tokens=60]] go on", "on_disconnect": "continue"}
    async with client.stream("POST", "/agents/chat/runs", json=body, headers={"Accept": "text/event-stream"}) as stream:
        run_id = stream.headers["x-run-id"]
    result = (await client.get(f"/runs/{run_id}/result", params={"wait": "true"})).json()
    assert result["status"] == "completed"
    assert result["usage"]["output_tokens"] == 60


async def test_within_its_grace_a_reader_may_come_back(server: Served, client: httpx.AsyncClient) -> None:
    body = {"input": "[[tokens=60]] go on", "disconnect_grace_s": 30}
    async with client.stream("POST", "/agents/chat/runs", json=body, headers={"Accept": "text/event-stream"}) as stream:
        run_id = stream.headers["x-run-id"]
    events = [event async for event in replay(client, run_id)]
    assert events[-1]["status"] == "completed"
    assert sum(one["event"] == "token" for one in events) == 60


async def test_a_background_run_told_to_cancel_arms_with_its_first_reader(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    body = {"input": STREAMS, "on_disconnect": "cancel"}
    run_id = (await client.post("/agents/chat/runs", json=body)).json()["run_id"]
    await until(lambda: open_requests(provider) == 1)
    async with httpx.AsyncClient(base_url=server.url) as reader:
        waiting = asyncio.create_task(reader.get(f"/runs/{run_id}/result", params={"wait": "true"}))
        await until(lambda: server.runner.kept("127.0.0.1")[0].scope.readers == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await settled(server, provider, until)
    assert row(server)["status"] == "cancelled"


async def test_a_second_reader_keeps_the_run_when_the_first_one_leaves(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    async with client.stream(
        "POST", "/agents/chat/runs", json={"input": "[[tokens=100]] go on"}, headers={"Accept": "text/event-stream"}
    ) as stream:
        run_id = stream.headers["x-run-id"]
        second = asyncio.create_task(last_of(replay(client, run_id)))
        await until(lambda: server.runner.kept("127.0.0.1")[0].scope.readers == 2)
    assert (await second)["status"] == "completed"


async def last_of(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    return [event async for event in events][-1]


async def test_cancelling_twice_or_after_the_end_changes_nothing(client: httpx.AsyncClient) -> None:
    run_id = (await client.post("/agents/chat/runs", json={"input": STREAMS})).json()["run_id"]
    one = await client.post(f"/runs/{run_id}/cancel")
    two = await client.post(f"/runs/{run_id}/cancel")
    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json() == two.json()
    events = [event async for event in replay(client, run_id)]
    assert [event["event"] for event in events].count("run.finished") == 1


async def test_a_run_cancelled_before_its_first_step_still_has_an_end(client: httpx.AsyncClient) -> None:
    runs = await asyncio.gather(
        *(client.post("/agents/assistant/runs", json={"input": STREAMS, "timeout_s": 0.000_001}) for _ in range(5))
    )
    for run in runs:
        run_id = run.json()["run_id"]
        result = (await client.get(f"/runs/{run_id}/result", params={"wait": "true"})).json()
        assert result["status"] == "timed_out"
