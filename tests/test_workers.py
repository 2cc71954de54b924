"""Several workers behind one port, which share nothing: what each knows by itself works, the rest is refused."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import ValidationError
from uvicorn.config import STARTUP_FAILURE
from websockets.asyncio.client import connect

from app.settings import Settings
from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

STREAM = {"Accept": "text/event-stream"}

AGENTS = """
import os
from langchain_core.runnables import RunnableLambda

pid = RunnableLambda(lambda text: str(os.getpid()))
"""


@dataclass
class Workers:
    """A server of several workers, started as a user would."""

    popen: "subprocess.Popen[str]"
    url: str
    lines: list[str]

    @property
    def pids(self) -> set[int]:
        """Of the workers that are there; the parent has a helper beside them."""
        children = psutil.Process(self.popen.pid).children()
        there = (child for child in children if child.status() != psutil.STATUS_ZOMBIE)
        return {child.pid for child in there if "spawn_main" in " ".join(child.cmdline())}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "app.cli", "serve", "--port", "0", *args]


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}
    return kept | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"} | settings


@contextmanager
def workers(folder: Path, provider: Simulator, *args: str, **settings: str) -> Iterator[Workers]:
    (folder / "agents.py").write_text(AGENTS)
    settings = {"MILLRACE_STRICT": "true", "MILLRACE_MAX_STREAMS_PER_USER": "0", **settings}
    env = environment(OPENAI_BASE_URL=provider.base_url, **settings)
    popen = subprocess.Popen(
        command("--workers", "2", "pid=agents:pid", *args),
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert popen.stdout is not None
    lines: list[str] = []
    up = threading.Event()

    def follow(stream: Iterator[str]) -> None:
        for line in stream:
            lines.append(line)
            if "Uvicorn running on" in line:
                up.set()
        up.set()

    reader = threading.Thread(target=follow, args=(popen.stdout,))
    reader.start()
    try:
        assert up.wait(60)
        address = re.search(r"http://127\.0\.0\.1:\d+", next(line for line in lines if "running on" in line))
        assert address, lines
        yield Workers(popen, address[0], lines)
    finally:
        popen.terminate()
        popen.wait(60)
        reader.join(60)
        popen.stdout.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=200) as one:
        yield one


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, provider: Simulator) -> Iterator[Workers]:
    with workers(tmp_path_factory.mktemp("workers"), provider, MILLRACE_DRAIN_GRACE_S="0") as one:
        yield one


@pytest.fixture
async def client(server: Workers) -> Any:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as one:
        yield one


async def who_answers(url: str, wanted: int) -> set[int]:
    """The processes that answer, on a connection each, until there are so many."""
    found: set[int] = set()
    async with asyncio.timeout(60):
        while len(found) < wanted:
            async with httpx.AsyncClient(base_url=url, timeout=60) as one:
                answers = await asyncio.gather(*(one.post("/agents/pid/invoke", json={"input": "?"}) for _ in range(8)))
            found |= {int(answer.json()["output"]) for answer in answers}
    return found


def can_connect(url: str) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) == 0


async def test_both_workers_serve_what_needs_no_other(server: Workers, client: httpx.AsyncClient) -> None:
    assert await who_answers(server.url, 2) == server.pids
    for _ in range(4):
        stream = (await client.post("/agents/chat/runs", json={"input": "hi"}, headers=STREAM)).text
        assert stream.rstrip().splitlines()[-2] == "event: run.finished"
        assert '"status":"completed"' in stream.rstrip().splitlines()[-1]
        answer = (await client.post("/agents/assistant/invoke", json={"input": "What is 6*7?"})).json()
        assert "42" in answer["output"]["messages"][-1]["content"]
        assert len((await client.post("/agents/pid/batch", json={"inputs": ["a", "b"]})).json()["output"]) == 2
        assert (await client.get("/agents")).json()["agents"][-1]["name"] == "pid"
        for path in ("/health/live", "/health/ready", "/metrics", "/docs"):
            assert (await client.get(path)).status_code == 200


async def test_a_socket_starts_pauses_continues_and_cancels_its_runs_whichever_worker_has_it(server: Workers) -> None:
    async def talk() -> None:
        async with connect(server.url.replace("http:", "ws:") + "/ws", proxy=None) as connection:

            async def say(type_: str, **fields: Any) -> None:
                await connection.send(json.dumps({"type": type_, "stream_id": "a", **fields}))

            async def hear(event: str) -> dict[str, Any]:
                while (frame := json.loads(await connection.recv()))["event"] != event:
                    assert frame["event"] != "error", frame
                return dict(frame)

            await say("start", agent="chat", input="[[tokens=3000]] go on")
            run_id = (await hear("run.started"))["data"]["run_id"]
            await hear("token")
            await say("pause")
            await hear("run.paused")
            await say("continue")
            await hear("run.resumed")
            await say("cancel")
            assert (await hear("run.finished"))["data"]["status"] == "cancelled"
            await say("attach", run_id=run_id, after=3)
            frame = json.loads(await connection.recv())
            assert (frame["data"]["code"], frame["final"]) == ("not_shared", True)

    async with asyncio.timeout(60):
        for _ in range(3):
            await asyncio.gather(talk(), talk())


STARTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("chat", {}, {}),
    ("chat", {}, {**STREAM, "Idempotency-Key": "k"}),
    ("assistant", {"thread_id": "t"}, STREAM),
    ("assistant", {"resume": True, "thread_id": "t"}, STREAM),
    ("approval", {}, STREAM),
    ("chat", {"on_disconnect": "continue"}, STREAM),
    ("chat", {"disconnect_grace_s": 5}, STREAM),
    ("chat", {"pause_after": "paragraph"}, STREAM),
]


@pytest.mark.parametrize(("agent", "fields", "headers"), STARTS)
async def test_a_start_that_another_worker_would_have_to_know_of_is_refused(
    client: httpx.AsyncClient, provider: Simulator, agent: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    before = len(provider.requests)
    answer = await client.post(f"/agents/{agent}/runs", json={"input": "hi", **fields}, headers=headers)
    assert_refused(answer)
    assert len(provider.requests) == before


async def test_a_thread_is_refused_to_langserves_clients_too(client: httpx.AsyncClient) -> None:
    body = {"input": {"messages": [["user", "hi"]]}, "config": {"configurable": {"thread_id": "t"}}}
    assert_refused(await client.post("/agents/assistant/invoke", json=body))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/runs"),
        ("GET", "/runs/RUN"),
        ("GET", "/runs/RUN/events"),
        ("GET", "/runs/RUN/result?wait=true"),
        ("POST", "/runs/RUN/cancel"),
        ("POST", "/runs/RUN/pause"),
        ("POST", "/runs/RUN/continue"),
        ("GET", "/threads/t"),
        ("GET", "/usage"),
    ],
)
async def test_what_only_one_worker_may_know_is_refused_by_both_and_never_said_not_to_be(
    server: Workers, client: httpx.AsyncClient, method: str, path: str
) -> None:
    body = {"input": "[[tokens=3000]] go on"}
    async with client.stream("POST", "/agents/chat/runs", json=body, headers=STREAM) as stream:
        for _ in range(4):  # a connection each
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as another:
                url = path.replace("RUN", stream.headers["X-Run-Id"])
                assert_refused(await another.request(method, url, headers={"Last-Event-ID": "1"}))


def assert_refused(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (501, "not_shared"), answer.text
    assert "2 workers" in error["message"]
    assert "one worker" in error["message"]


async def test_a_client_that_leaves_ends_its_run_in_whichever_worker(
    server: Workers, provider: Simulator, until: Until
) -> None:
    for _ in range(4):
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as one:
            body = {"input": "[[tokens=5000]] go on"}
            async with one.stream("POST", "/agents/chat/runs", json=body, headers=STREAM) as stream:
                lines = stream.aiter_lines()
                while await anext(lines) != "event: token":
                    pass
        await until(lambda: all(request.ended is not None for request in provider.requests))


async def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, provider: Simulator, until: Until) -> None:
    with workers(tmp_path, provider) as server:
        before = await who_answers(server.url, 2)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: len(server.pids - before) == 1 and killed not in server.pids)
        after: set[int] = set()
        async with asyncio.timeout(60):
            while not after - before:
                after |= await who_answers(server.url, 1)
        assert killed not in after


@pytest.mark.parametrize("to_all", [False, True])
async def test_told_to_stop_both_workers_let_their_runs_finish_and_no_port_is_left(
    tmp_path: Path, provider: Simulator, to_all: bool
) -> None:
    async def follow(url: str, started: asyncio.Semaphore) -> str:
        body = {"input": "[[tokens=300]] go on"}
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as one,
            one.stream("POST", "/agents/chat/runs", json=body, headers=STREAM) as stream,
        ):
            started.release()
            return "".join([text async for text in stream.aiter_text()])

    with workers(tmp_path, provider, MILLRACE_DRAIN_GRACE_S="30") as server:
        await who_answers(server.url, 2)
        started = asyncio.Semaphore(0)
        streams = [asyncio.create_task(follow(server.url, started)) for _ in range(8)]
        for _ in streams:
            await started.acquire()
        for pid in [server.popen.pid, *(server.pids if to_all else ())]:  # as a service manager does
            os.kill(pid, signal.SIGTERM)
        for told in await asyncio.gather(*streams):
            assert '"status":"completed"' in told.rstrip().splitlines()[-1]
        assert await asyncio.to_thread(server.popen.wait, 60) == 0
        assert not can_connect(server.url)
        assert not any("Traceback" in line for line in server.lines)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
async def test_an_interrupt_or_a_second_signal_waits_for_no_run(
    tmp_path: Path, provider: Simulator, signals: list[signal.Signals], until: Until
) -> None:
    with workers(tmp_path, provider, MILLRACE_DRAIN_GRACE_S="300") as server:
        await who_answers(server.url, 2)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=60) as one,
            one.stream("POST", "/agents/chat/runs", json={"input": "[[tokens=20000]] go on"}, headers=STREAM) as stream,
        ):
            texts = stream.aiter_text()
            await anext(texts)
            for number in signals:
                os.kill(server.popen.pid, number)
                await asyncio.sleep(0.5)  # two at once are one to a process
            told = "".join([text async for text in texts])
        assert '"status":"cancelled"' in told.rstrip().splitlines()[-1]
        await asyncio.to_thread(server.popen.wait, 60)
        assert not can_connect(server.url)


async def test_workers_whose_parent_is_killed_stop_too(tmp_path: Path, provider: Simulator, until: Until) -> None:
    with workers(tmp_path, provider, MILLRACE_DRAIN_GRACE_S="0") as server:
        left = [psutil.Process(pid) for pid in await who_answers(server.url, 2)]
        server.popen.kill()
        await until(lambda: not any(process.is_running() for process in left))
        assert not can_connect(server.url)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_streams_per_user", 3),
        ("requests_per_minute", 60),
        ("tokens_per_day", 1000),
        ("cost_per_day_usd", 1),
        ("max_readers_per_user", 9),
        ("limits_file", "limits.toml"),
        ("disconnect_grace_s", 5),
        ("database_url", "sqlite:///mine.db"),
        ("upstream_concurrency", 1),
    ],
)
def test_a_setting_that_they_cannot_hold_to_is_refused_by_its_name(setting: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"MILLRACE_{setting.upper()}"):
        Settings(workers=2, **{setting: value})
    Settings(workers=1, **{setting: value})


def test_what_holds_for_all_workers_together_is_divided() -> None:
    settings = Settings(workers=4, upstream_concurrency=64, upstream_tokens_per_minute=0, max_streams_per_user=0)
    assert (settings.share(settings.upstream_concurrency), settings.share(3), settings.share(0)) == (16, 1, 0)
    assert settings.database_path() == ":memory:"


def test_the_command_says_which_setting_is_in_the_way_in_one_line(tmp_path: Path) -> None:
    done = serve(tmp_path, MILLRACE_TOKENS_PER_DAY="5")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("millrace: ")
    assert "MILLRACE_TOKENS_PER_DAY" in line


def test_a_port_that_is_taken_ends_the_command_with_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve(tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == STARTUP_FAILURE
    assert "Traceback" not in done.stderr


def test_workers_that_cannot_start_are_not_started_over_and_over(tmp_path: Path) -> None:
    only_the_parent = "import multiprocessing\nassert multiprocessing.parent_process() is None, 'no worker of mine'\n"
    (tmp_path / "agents.py").write_text(only_the_parent + AGENTS)
    done = serve(tmp_path, "pid=agents:pid")
    assert done.returncode == STARTUP_FAILURE
    assert "no worker of mine" in done.stderr


def serve(folder: Path, *args: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """A server that is expected to end by itself."""
    arguments = command("--workers", "2", *args)
    env = environment(**settings)
    return subprocess.run(arguments, cwd=folder, env=env, text=True, capture_output=True, timeout=60, check=False)
