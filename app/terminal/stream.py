"""Brings one run's events from the server, however often the line breaks.

A thread of its own reads, so that whoever shows the events stays free to hear the keyboard. It reads Server-Sent
Events and not ``/ws``: a start is one POST and coming back one GET with ``Last-Event-ID``, which every proxy lets
through, and a frame of our own server's is three lines, read here.

Each event comes once and in order. A start carries an ``Idempotency-Key``, so that it can be said again when the line
broke before its answer came, without a second run.
"""

import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import httpx
import msgspec

from app.remote import Refusal, answer, harmless

GRACE_S = 15
"""How long the server lets the run go on when the line is broken."""

SILENCE_S = 30.0
"""The server says something every few seconds; a line that is silent for longer is taken for broken."""

CONNECT_S = 5.0

GIVE_UP_S = 60.0
"""How long the server is looked for when the line has broken."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 4.0

MOST_WAITING = 1024
"""Events not yet shown. Beyond it the thread stops reading; then the server tells of a gap, or merges."""

PASSING = frozenset((429, 502, 503, 504))
"""What a server or its proxy says while it restarts, or while it still counts the reader that broke off."""

GONE = frozenset((404, 410))
"""What a server says of a run that it had before it was restarted."""


class Frame(NamedTuple):
    """One event. No text in its data can drive a terminal."""

    id: int
    event: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """The line broke; it is being looked for."""


@dataclass(frozen=True, slots=True)
class Back:
    """It is there again, after so many seconds, and nothing is missing."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """No more comes. ``problem`` says why, unless the run is over."""

    problem: str | None = None


News = Frame | Lost | Back | Ended


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """The events in the pieces of a stream; one that is not whole yet waits for its blank line.

    Raises ``ValueError`` for what no Millrace server would say.
    """
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line and line[:1] != b":")
            if b"event" in fields and b"data" in fields:
                data = msgspec.json.decode(fields[b"data"])
                if not isinstance(data, dict):
                    raise ValueError("an event's data is no object")
                yield Frame(int(fields.get(b"id", b"0")), fields[b"event"].decode(), cleaned(data))


def cleaned(value: Any) -> Any:
    """JSON whose texts cannot drive a terminal."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict):
        return {harmless(key): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


class Start(NamedTuple):
    """A run to be started: its agent, and the body of ``POST /agents/{agent}/runs``."""

    agent: str
    body: dict[str, Any]


class Reader:
    """The events of a run that is to be started, or that is there. The thread begins at once."""

    def __init__(self, server: httpx.Client, run: Start | str, *, give_up_s: float = GIVE_UP_S) -> None:
        self.run_id = None if isinstance(run, Start) else run
        self.cancelled = False
        self._server = server
        self._start = run if isinstance(run, Start) else None
        self._key = str(uuid4())
        self._give_up_s = give_up_s
        self._last = 0
        self._news: queue.Queue[News] = queue.Queue(MOST_WAITING)
        self._known = threading.Event()
        if self.run_id is not None:
            self._known.set()
        self._closed = threading.Event()
        self._response: httpx.Response | None = None
        self._lost_at: float | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, timeout_s: float) -> Iterator[News]:
        """What has come, without waiting; where nothing has, what comes within that time."""
        try:
            yield self._news.get(timeout=timeout_s)
            for _ in range(MOST_WAITING):
                yield self._news.get_nowait()
        except queue.Empty:
            return

    def cancel(self) -> threading.Thread:
        """Have the run ended, as soon as it is known by its id; the thread that asks for it."""
        self.cancelled = True
        thread = threading.Thread(target=self._cancel, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Read no more."""
        self._closed.set()
        if self._response is not None:
            line = self._response.extensions.get("network_stream")
            line = None if line is None else line.get_extra_info("socket")
            if line is not None:
                with contextlib.suppress(OSError):  # it may be closed
                    line.shutdown(socket.SHUT_RDWR)  # a close alone would not wake the thread that reads

    def _cancel(self) -> None:
        if self._known.wait(CONNECT_S):
            # A run that cannot be cancelled has no reader soon, and ends by itself. RuntimeError: we are leaving.
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                self._server.post(f"/runs/{self.run_id}/cancel", timeout=CONNECT_S)

    def _put(self, news: News) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._news.put(news, timeout=0.2)
                return

    def _read(self) -> None:
        waits = back_off()
        while not self._closed.is_set():
            try:
                self._follow()
            except Refusal as refusal:
                return self._put(Ended(str(refusal)))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not self._known.is_set() and self._lost_at is None:
                    return self._put(Ended(f"no server answers at {self._server.base_url} ({error})"))
            except (httpx.HTTPError, httpx.StreamError):
                pass
            except (ValueError, LookupError):
                return self._put(Ended(f"what answers at {self._server.base_url} is no Millrace server"))
            else:
                return self._put(Ended())
            if self._lost_at is None:
                self._lost_at, waits = time.monotonic(), back_off()
                self._put(Lost())
            elif time.monotonic() - self._lost_at > self._give_up_s:
                return self._put(Ended(f"the server has not been reached for {self._give_up_s:g} s"))
            self._closed.wait(next(waits))
        return None

    def _follow(self) -> None:
        """Read over one connection. Returns when the run is over, and raises where the line broke before."""
        with self._server.stream(**self._request(), timeout=httpx.Timeout(CONNECT_S, read=SILENCE_S)) as response:
            self._response = response
            if self._closed.is_set() or response.status_code == httpx.codes.NO_CONTENT:
                return
            if response.is_error:
                response.read()
                if self._lost_at is not None and response.status_code in PASSING:
                    raise httpx.RemoteProtocolError("not yet")
                if self._lost_at is not None and response.status_code in GONE:
                    raise Refusal("the server was restarted, and the answer broke off: ask again")
                answer(response, dict)
            self.run_id = self.run_id or response.headers["x-run-id"]
            self._known.set()
            for frame in frames(response.iter_bytes()):
                self._regained()
                self._last = frame.id
                self._put(frame)
                if frame.event == "run.finished":
                    return
        raise httpx.RemoteProtocolError("the stream ended before the run")

    def _regained(self) -> None:
        if self._lost_at is not None:
            self._put(Back(time.monotonic() - self._lost_at))
            self._lost_at = None

    def _request(self) -> dict[str, Any]:
        headers = {"Accept": "text/event-stream"}
        if self.run_id is None and self._start is not None:
            headers["Idempotency-Key"] = self._key
            url = f"/agents/{quote(self._start.agent, safe='')}/runs"
            body = {"disconnect_grace_s": GRACE_S, **self._start.body}
            return {"method": "POST", "url": url, "json": body, "headers": headers}
        headers["Last-Event-ID"] = str(self._last)
        return {"method": "GET", "url": f"/runs/{self.run_id}/events", "headers": headers}


def back_off() -> Iterator[float]:
    """Seconds to wait between two attempts: longer each time, and by chance, so that not all come at once."""
    wait_s = FIRST_WAIT_S
    while True:
        yield wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
