"""Servers for tests: the real app under the real uvicorn, on a port of its own, in a thread with its own loop."""

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from langchain_core.runnables import Runnable
from starlette.types import ASGIApp

from app.main import create_app
from app.runs.run import Run
from app.runs.runner import Runner
from app.settings import Settings
from app.simulator.server import Simulator


@dataclass
class Served:
    """A running server, its provider, and its inside."""

    url: str
    app: FastAPI
    simulator: Simulator

    @property
    def runner(self) -> Runner:
        runner = self.app.state.runner
        assert isinstance(runner, Runner)
        return runner

    def run(self, run_id: str) -> Run:
        """A run's inside; it lives in the server's thread, so look only."""
        return self.runner._runs[run_id]


def open_requests(provider: Simulator) -> int:
    """Requests that the provider has not ended, nor its client."""
    return sum(1 for one in provider.requests if one.ended is None)


async def settled(server: Served, provider: Simulator, until: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
    """Wait until nothing of any run is left: no task, no request at the provider."""
    await until(lambda: server.runner.live == 0)
    await until(lambda: open_requests(provider) == 0)


@contextmanager
def running(app: ASGIApp, host: str = "127.0.0.1", **options: Any) -> Iterator[str]:
    """Serve ``app`` and give its address. ``options`` are uvicorn's."""
    options = {"lifespan": "on", "timeout_graceful_shutdown": 1, **options}
    config = uvicorn.Config(app, log_config=None, access_log=False, **options)
    server = uvicorn.Server(config)
    # The protocol is named, as asyncio sets TCP_NODELAY only where it is.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind((host, 0))
        listener.listen(512)
        ready = threading.Event()
        thread = threading.Thread(target=_run, args=(server, listener, ready))
        thread.start()
        try:
            assert ready.wait(30), "the server did not start"
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def _run(server: uvicorn.Server, listener: socket.socket, ready: threading.Event) -> None:
    startup = server.startup

    async def started(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]  # uvicorn has no other sign of being up
    server.run(sockets=[listener])


@contextmanager
def serving(agents: Mapping[str, Runnable[Any, Any]] | None = None, **settings: Any) -> Iterator[Served]:
    """The whole product beside a simulated provider that keeps its records for the test."""
    with Simulator(tokens_per_second=200) as simulator:
        kept = {"database_url": "sqlite://", "max_streams_per_user": 0, "max_readers_per_user": 0}
        chosen = {
            "openai_base_url": simulator.base_url,
            "model": "openai:simulated",
            "strict": True,
            **kept,
            **settings,
        }
        app = create_app(Settings(**chosen), agents)
        with running(app) as url:
            yield Served(url, app, simulator)
