"""The simulated provider as a server: a thread of its own with its own event loop, so that nothing which blocks the
house's loop, a user's synchronous graph for instance, can starve the provider that it waits for.

Its address is bound, and known, from the beginning; connections are refused until ``start()``, which returns when they
are accepted. ``stop()`` aborts what is open and returns when the thread is gone. Installs no signal handlers, changes
no loggers.
"""

import asyncio
import logging
import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

from uvicorn.config import Config
from uvicorn.server import ServerState

from app.simulator.api import Provider
from app.simulator.connection import LoggedConnection
from app.simulator.records import Connection, Exchange, Records

KEEP_ALIVE_S = 75  # longer than clients pool idle connections, so that they never meet one just closed
BACKLOG = 2048


class Simulator:
    """An OpenAI-wire provider on ``host``; ``port`` 0 takes a free one. ``OSError`` when the address is taken.

    ``tokens_per_second`` (0: flat out) and ``first_token_s`` are the pace where a request does not say otherwise.
    ``directives`` False: text in names, headers and messages is text and commands nothing.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tokens_per_second: float = 40.0,
        first_token_s: float = 0.0,
        directives: bool = True,
        log: logging.Logger | None = None,
    ) -> None:
        self._host = host
        self._listener: socket.socket | None = self._bind(port)
        self._port: int = self._listener.getsockname()[1]
        self._records = Records(log or logging.getLogger("millrace.simulator"))
        self._provider = Provider(
            self._records, tokens_per_second=tokens_per_second, first_token_s=first_token_s, directives=directives
        )
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as ``base_url``; the same before the start and after a stop."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    @property
    def connections(self) -> list[Connection]:
        """The TCP connections so far (the last 10,000), oldest first."""
        return self._records.connections

    @property
    def requests(self) -> list[Exchange]:
        """The requests to ``/v1`` so far (the last 10,000), oldest first."""
        return self._records.exchanges

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Block until ``predicate()`` holds; it is asked at every connection, request, token and ending.

        False when ``timeout`` seconds pass first. Blocks the calling thread: in a coroutine use ``asyncio.to_thread``.
        """
        return self._records.wait_for(predicate, timeout)

    def wait_closed(self, number: int, timeout: float = 5.0) -> bool:
        """Block until connection ``number`` (from 1) was opened and closed."""
        return self.wait_for(lambda: any(c.number == number and c.ended for c in self.connections), timeout)

    def start(self) -> Self:
        """Accept connections; after a stop on the same port again (``OSError`` when it was taken meanwhile)."""
        if self._thread is not None:
            raise RuntimeError("The simulator is already running.")
        listener, self._listener = self._listener or self._bind(self._port), None
        ready: Future[Callable[[], object]] = Future()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="simulator", daemon=True)
        self._thread.start()
        try:
            self._stop = ready.result()
        except OSError:
            self._thread.join()
            self._thread = None
            raise
        return self

    def stop(self) -> None:
        """Abort what is open, end the thread and wait for it. Does nothing when not running."""
        if self._thread is not None:
            self._stop()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self, port: int) -> socket.socket:
        # The protocol is named, as asyncio sets TCP_NODELAY only where it is: else every token waits for an ACK.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        weakref.finalize(self, listener.close)  # one that is never started gives its port back
        if port:  # past connections may linger on it; a free one is to be nobody else's until we listen
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, port))
        return listener

    def _run(self, listener: socket.socket, ready: Future[Callable[[], object]]) -> None:
        try:
            asyncio.run(self._serve(listener, ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, listener: socket.socket, ready: Future[Callable[[], object]]) -> None:
        """uvicorn's protocol under a plain asyncio server: its own loop waits 0.1 s and more before it ends."""
        # The log options stand as they are: setting them would change the loggers of the house in this process.
        config = Config(
            self._provider.app(), ws="none", lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        server = await loop.create_server(
            lambda: LoggedConnection(config, state, self._records), sock=listener, backlog=BACKLOG
        )
        ready.set_result(partial(loop.call_soon_threadsafe, stopped.set))
        await stopped.wait()
        server.close()
        for _ in range(3):  # `connection_lost` comes a turn later, a connection just being accepted two
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        await asyncio.gather(*state.tasks, return_exceptions=True)
