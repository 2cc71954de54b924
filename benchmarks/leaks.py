"""What a thousand runs leave behind: sockets, tasks, threads and memory before and after. Nothing should.

A server of its own process's making, a simulated provider beside it, runs one after another that end in every way:
read to the end, left in mid-token, cancelled, in the background, through LangServe. Counted in the server's process,
which is this one, after the runs' retention is over.

    python benchmarks/leaks.py [RUNS]
"""

import asyncio
import gc
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import httpx
import psutil
import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings

RETENTION_S = 1.0
WARM_UP = 200
STREAM = {"Accept": "text/event-stream"}


class Held(NamedTuple):
    """What the process holds; ``rss`` in MB."""

    sockets: int
    tasks: int
    threads: int
    rows: int
    rss: float


async def main(runs: int) -> None:
    """Warm up, measure, run, measure."""
    app = create_app(
        Settings(model="simulated", simulated_tokens_per_second=0, run_retention_s=RETENTION_S, log_level="error")
    )
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    await many(url, WARM_UP)
    before = await settled(app)
    print("          sockets  tasks  threads   rows   RSS MB")
    show("before", before)
    for part in range(1, 6):
        started = time.monotonic()
        await many(url, runs // 5)
        show(f"{runs * part // 5:5d} runs", await settled(app))
        print(f"            ({(time.monotonic() - started) / (runs // 5) * 1000:.1f} ms a run)")
    server.should_exit = True
    await serving
    listener.close()


async def many(url: str, count: int) -> None:
    """Runs in a row, ended in turn in every way."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        ways: list[Callable[[httpx.AsyncClient], object]] = [read, leave, cancel, background, langserve]
        for number in range(count):
            await ways[number % len(ways)](client)  # type: ignore[misc]


async def read(client: httpx.AsyncClient) -> None:
    """To the end, with tools."""
    await client.post("/agents/assistant/runs", json={"input": "What is 6*7 and what time is it?"}, headers=STREAM)


async def leave(client: httpx.AsyncClient) -> None:
    """In mid-token."""
    body = {"input": "[[tokens=200&tokens_per_second=1000]] go on"}
    async with client.stream("POST", "/agents/assistant/runs", json=body, headers=STREAM) as response:
        async for line in response.aiter_lines():
            if line == "event: token":
                return


async def cancel(client: httpx.AsyncClient) -> None:
    """By the route, before the first token."""
    started = await client.post("/agents/chat/runs", json={"input": "[[first_token_s=30]] think"})
    await client.post(f"/runs/{started.json()['run_id']}/cancel")


async def background(client: httpx.AsyncClient) -> None:
    """Nobody reads, somebody waits for the result."""
    started = await client.post("/agents/chat/runs", json={"input": "hello"})
    await client.get(f"/runs/{started.json()['run_id']}/result", params={"wait": "true"})


async def langserve(client: httpx.AsyncClient) -> None:
    """LangServe's stream."""
    await client.post("/agents/chat/stream", json={"input": "hello"})


async def settled(app: FastAPI) -> Held:
    """What is held once everything that ends by itself has ended."""
    await asyncio.sleep(RETENTION_S + 6)  # idle connections to the provider are closed after 5 s
    gc.collect()
    process = psutil.Process()
    return Held(
        len(process.net_connections("tcp")),
        len(asyncio.all_tasks()),
        threading.active_count(),
        len(app.state.runner.kept("127.0.0.1")),
        process.memory_info().rss / 1e6,
    )


def show(name: str, held: Held) -> None:
    """One row."""
    print(f"{name:>10}{held.sockets:8d}{held.tasks:7d}{held.threads:9d}{held.rows:7d}{held.rss:9.1f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
