"""Processes: drained, killed, restarted. What a client was promised holds over all of it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

ROOT = Path(__file__).resolve().parent.parent
PARAGRAPHS = "[[paragraphs=3&tokens=90]] Tell me"
STREAMS = "[[tokens=5000]] go on"


@dataclass
class Process:
    """A server started as a user would, in a folder of its own."""

    popen: "subprocess.Popen[str]"
    url: str

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        return self.popen.wait(30)


@pytest.fixture
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=200) as one:
        yield one


@contextmanager
def process(folder: Path, provider: Simulator, **settings: object) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))},
        "OPENAI_BASE_URL": provider.base_url,
        "MILLRACE_MODEL": "openai:simulated",
        "MILLRACE_STRICT": "true",
        "MILLRACE_MAX_STREAMS_PER_USER": "0",
        **{f"MILLRACE_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    popen = subprocess.Popen(
        command, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    assert popen.stderr is not None
    up = threading.Event()
    lines: list[str] = []

    def follow(stderr: Any) -> None:
        for line in stderr:
            lines.append(line)
            if "Uvicorn running" in line:
                up.set()
        up.set()

    reader = threading.Thread(target=follow, args=(popen.stderr,))
    reader.start()
    try:
        assert up.wait(60)
        assert popen.poll() is None, "".join(lines)
        yield Process(popen, f"http://127.0.0.1:{port}")
    finally:
        popen.kill()
        popen.wait()
        reader.join()
        popen.stderr.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as one:
        yield one


async def read(
    client: httpx.AsyncClient, url: str, until: str, *, after: int = 0, post: Any = None
) -> list[ServerSentEvent]:
    events = []
    method, params = ("POST", {}) if post is not None else ("GET", {"after": after})
    async with aconnect_sse(client, method, url, params=params, json=post) as source:
        async for one in source.aiter_sse():
            events.append(one)
            if one.event == until:
                break
    return events


async def start(client: httpx.AsyncClient, server: Process, agent: str, text: str, **request: Any) -> str:
    answer = await client.post(f"{server.url}/agents/{agent}/runs", json={"input": text, **request})
    run_id: str = answer.json()["run_id"]
    return run_id


def text_of(events: list[ServerSentEvent]) -> str:
    return "".join(json.loads(one.data)["text"] for one in events if one.event == "token")


@pytest.mark.parametrize("grace", [20, 0.2])
async def test_a_drained_server_gives_every_stream_its_terminal_event_and_exits_with_0(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient, until: Until, grace: float
) -> None:
    tokens = 60 if grace > 1 else 5000
    with process(tmp_path, provider, drain_grace_s=grace) as server:
        url = f"{server.url}/agents/assistant/runs"
        request = {"input": f"[[tokens={tokens}&first_token_s=1]] go"}
        readers = [asyncio.create_task(read(client, url, "run.finished", post=request)) for _ in range(50)]
        await until(lambda: sum(one.ended is None for one in provider.requests) == 50)
        server.signal(signal.SIGTERM)
        streams = await asyncio.gather(*readers)
        code = await asyncio.to_thread(server.wait)
    ends = {(json.loads(one[-1].data)["status"], json.loads(one[-1].data)["reason"]) for one in streams}
    assert ends == ({("completed", None)} if grace > 1 else {("cancelled", "shutdown")})
    assert code == 0


async def test_a_draining_server_answers_readers_and_probes_and_takes_no_runs(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient
) -> None:
    with process(tmp_path, provider, drain_grace_s=20) as server:
        run_id = await start(client, server, "chat", "[[tokens=200]] go")
        server.signal(signal.SIGTERM)
        while (await client.get(f"{server.url}/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await client.get(f"{server.url}/health/live")).status_code == 200
        refused = await client.post(f"{server.url}/agents/chat/runs", json={"input": "hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "1"
        events = await read(client, f"{server.url}/runs/{run_id}/events", "run.finished")
        assert json.loads(events[-1].data)["status"] == "completed"
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_second_signal_is_immediate(tmp_path: Path, provider: Simulator, client: httpx.AsyncClient) -> None:
    with process(tmp_path, provider, drain_grace_s=600) as server:
        run_id = await start(client, server, "chat", STREAMS)
        reading = asyncio.create_task(read(client, f"{server.url}/runs/{run_id}/events", "run.finished"))
        server.signal(signal.SIGTERM)
        while (await client.get(f"{server.url}/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        server.signal(signal.SIGTERM)
        assert json.loads((await reading)[-1].data)["reason"] == "shutdown"
        assert await asyncio.to_thread(server.wait) == 0


async def test_the_runs_of_a_killed_server_are_known_as_lost(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient
) -> None:
    with process(tmp_path, provider) as server:
        done = await start(client, server, "chat", "[[say=Yes]] hi")
        await client.get(f"{server.url}/runs/{done}/result", params={"wait": True})
        lost = await start(client, server, "assistant", STREAMS, thread_id="t")
        await read(client, f"{server.url}/runs/{lost}/events", "token")
        await client.get(f"{server.url}/runs")  # rows are written behind; a list is told from what is written
        server.signal(signal.SIGKILL)
        server.wait()
    with process(tmp_path, provider) as server:
        row = (await client.get(f"{server.url}/runs/{lost}")).json()
        assert (row["status"], row["reason"]) == ("failed", "server_lost")
        assert (await client.get(f"{server.url}/runs/{done}")).json()["status"] == "completed"
        for what in ("events", "result"):
            answer = await client.get(f"{server.url}/runs/{lost}/{what}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (410, "run_expired")
        for seen in range(1, 6):  # nobody has all of it: an EventSource must not be told so
            headers = {"Last-Event-ID": str(seen)}
            assert (await client.get(f"{server.url}/runs/{lost}/events", headers=headers)).status_code == 410
        listed = (await client.get(f"{server.url}/runs")).json()["runs"]
        assert [one["run_id"] for one in listed] == [lost, done]
        again = await start(client, server, "assistant", "[[say=Here]] where were we?", thread_id="t")
        answer = await client.get(f"{server.url}/runs/{again}/result", params={"wait": True})
        assert answer.json()["text"] == "Here"


async def test_a_server_killed_in_the_branches_of_a_run_answers_the_next_question_on_the_thread(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient, until: Until
) -> None:
    with process(tmp_path, provider) as server:
        lost = await start(client, server, "research", 'Say "count to 3000" and "what is 6*7"', thread_id="t")
        events = f"{server.url}/runs/{lost}/events"
        told = await read(client, events, "tool.finished")
        await read(client, events, "token", after=int(told[-1].id))
        server.signal(signal.SIGKILL)
        server.wait()
    await until(lambda: all(one.ended is not None for one in provider.requests))
    before = len(provider.requests)
    with process(tmp_path, provider) as server:
        assert (await client.get(f"{server.url}/runs/{lost}")).json()["reason"] == "server_lost"
        again = await start(client, server, "research", 'Say "what is 2*3" and "what is 3*4"', thread_id="t")
        text = (await client.get(f"{server.url}/runs/{again}/result", params={"wait": True})).json()["text"]
        messages = (await client.get(f"{server.url}/threads/t")).json()["messages"]
    assert "2*3 = 6" in text
    assert "6*7" not in text
    assert [one["type"] for one in messages] == ["human", "human", "ai"]
    assert {one.status for one in provider.requests[before:]} == {200}
    assert len(provider.requests) - before == 6  # the plan, two calls in each branch, the synthesis


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("agent", "thread"), [("chat", None), ("assistant", None), ("assistant", "t")])
async def test_a_paused_run_survives_a_restart(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient, until: Until,
    way: signal.Signals, agent: str, thread: str | None,
) -> None:  # fmt: skip
    with process(tmp_path, provider) as server:
        whole = await read(client, f"{server.url}/agents/{agent}/runs", "run.finished", post={"input": PARAGRAPHS})
        run_id = await start(client, server, agent, PARAGRAPHS, pause_after="paragraph", thread_id=thread)
        events = f"/runs/{run_id}/events"
        first = await read(client, server.url + events, "run.paused")
        await until(lambda: all(one.ended is not None for one in provider.requests))
        reading = asyncio.create_task(read(client, server.url + events, "run.finished", after=int(first[-1].id)))
        server.signal(way)
        assert (server.wait() == 0) is (way is signal.SIGTERM)
        with pytest.raises(httpx.TransportError):  # broken off: a clean end would pass for the end of the answer
            await reading
    with process(tmp_path, provider) as server:
        assert (await client.get(f"{server.url}/runs/{run_id}")).json()["status"] == "paused"
        assert (await client.post(f"{server.url}/runs/{run_id}/continue")).json()["status"] == "running"
        rest = await read(client, server.url + events, "run.finished", after=int(first[-1].id))
        assert text_of(first) + text_of(rest) == text_of(whole)
        assert text_of(await read(client, server.url + events, "run.finished")) == text_of(whole)
        result = (await client.get(f"{server.url}/runs/{run_id}/result")).json()
        assert (result["status"], result["text"]) == ("completed", text_of(whole))
        if thread is not None:
            messages = (await client.get(f"{server.url}/threads/{thread}")).json()["messages"]
            assert [message["content"] for message in messages] == [PARAGRAPHS, text_of(whole)]


async def test_two_servers_in_one_folder_do_not_take_each_others_runs_for_lost(
    tmp_path: Path, provider: Simulator, client: httpx.AsyncClient
) -> None:
    with process(tmp_path, provider) as one:
        run_id = await start(client, one, "chat", STREAMS)
        with process(tmp_path, provider) as two:
            assert (await client.get(f"{two.url}/runs")).json()["runs"] == []
        assert (await client.get(f"{one.url}/runs/{run_id}")).json()["status"] == "running"
