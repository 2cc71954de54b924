"""What the simulated provider saw: each TCP connection and each request, when it began, how it ended.

This is what a test, or a person at the log, checks the house against: that a client's leaving closed the provider's
stream, when, and after how many tokens. Bounded: the oldest records go first. Written by the server's thread, read
by any other; a reader may wait for a condition, and is woken by every token.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

KEPT = 10_000

Ended: TypeAlias = Literal["client_closed", "client_reset", "server_closed", "server_reset"]


@dataclass(slots=True)
class Connection:
    """One TCP connection. ``opened`` and ``closed`` are monotonic seconds, ``…_at`` seconds of the wall clock."""

    number: int
    peer: str
    opened: float
    opened_at: float
    closed: float | None = None
    closed_at: float | None = None
    ended: Ended | None = None
    requests: int = 0
    tokens_sent: int = 0  # of the current response, or of the last one


@dataclass(slots=True)
class Exchange:
    """One request and its response. ``tokens_sent`` are generated; a response in one piece shows them at its end."""

    number: int
    connection: int
    method: str
    path: str
    started: float
    model: str = ""
    roles: tuple[str, ...] = ()
    stream: bool = False
    prompt_tokens: int = 0
    status: int | None = None  # None: no response was begun
    tokens_sent: int = 0
    ended: float | None = None
    finished: bool = False  # the whole response went out; False with ``ended`` set: it was broken off


class Records:
    """The log of one server; ``logger`` gets a line when a connection opens and when it closes."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._changed = threading.Condition()
        self._connections: deque[Connection] = deque(maxlen=KEPT)
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self._opened = 0
        self._begun = 0

    @property
    def connections(self) -> list[Connection]:
        """The connections, oldest first; the records are live."""
        with self._changed:
            return list(self._connections)

    @property
    def exchanges(self) -> list[Exchange]:
        """The requests, oldest first; the records are live."""
        with self._changed:
            return list(self._exchanges)

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Block until ``predicate()`` holds, looking at every change; False when ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout)

    def opened(self, peer: str) -> Connection:
        """A client connected."""
        with self._changed:
            self._opened += 1
            connection = Connection(self._opened, peer, opened=time.monotonic(), opened_at=time.time())
            self._connections.append(connection)
            self._changed.notify_all()
        self._logger.info(
            "connection=%d event=open peer=%s monotonic=%.6f wall=%.6f",
            connection.number,
            peer,
            connection.opened,
            connection.opened_at,
        )
        return connection

    def closed(self, connection: Connection, ended: Ended) -> None:
        """The connection is gone."""
        with self._changed:
            connection.closed, connection.closed_at, connection.ended = time.monotonic(), time.time(), ended
            self._changed.notify_all()
        self._logger.info(
            "connection=%d event=close how=%s monotonic=%.6f wall=%.6f open_s=%.6f requests=%d tokens_sent=%d",
            connection.number,
            ended,
            connection.closed,
            connection.closed_at,
            connection.closed - connection.opened,
            connection.requests,
            connection.tokens_sent,
        )

    def begun(self, connection: Connection, method: str, path: str) -> Exchange:
        """A request came in."""
        with self._changed:
            self._begun += 1
            connection.requests += 1
            connection.tokens_sent = 0
            exchange = Exchange(self._begun, connection.number, method, path, started=time.monotonic())
            self._exchanges.append(exchange)
            self._changed.notify_all()
        return exchange

    def sent(self, connection: Connection, exchange: Exchange, tokens: int) -> None:
        """So many more tokens of the answer went out."""
        with self._changed:
            exchange.tokens_sent += tokens
            connection.tokens_sent += tokens
            self._changed.notify_all()

    def ended(self, exchange: Exchange, *, finished: bool) -> None:
        """The response is over, whole or not."""
        with self._changed:
            exchange.ended, exchange.finished = time.monotonic(), finished
            self._changed.notify_all()
