"""A whole Millrace inside a notebook: real HTTP on a free port of this machine, and nothing to start by hand.

The server works in a thread, with an event loop of its own, so that it goes on while a cell computes. The second
notebook does the same in a cell.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

import uvicorn
from langchain_core.runnables import Runnable

from app.main import create_app
from app.settings import Settings
from app.simulator.server import Simulator


class Server:
    """A server at ``url`` that keeps what it knows in memory, until ``stop``.

    ``provider`` is the simulated one that its models are to talk to; without one it is whom the environment names, as
    for ``millrace serve``. ``settings`` are those of ``app.settings``. Raises ``RuntimeError`` if it does not come up.
    """

    def __init__(
        self, provider: Simulator | None = None, agents: Mapping[str, Runnable[Any, Any]] | None = None, **settings: Any
    ) -> None:
        if provider is not None:
            settings |= {"openai_base_url": provider.base_url, "openai_api_key": "none", "model": "openai:simulated"}
        app = create_app(Settings(**{"database_url": "sqlite://", **settings}), agents)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.01)
        if not self._server.started:
            raise RuntimeError("The server did not start; what it wrote above says why.")
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """End it, with whatever it is doing, and wait until it is gone."""
        self._server.should_exit = True
        self._thread.join()
