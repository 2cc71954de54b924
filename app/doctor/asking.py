"""Asks the layers, and writes down what it sees: the same requests through each, one layer after another.

What is asked is cheap, and works with any server: a short answer, which is read; one that is left at once; and one
that is paused, whose stream is silent and costs nothing, through all layers together. The simulated provider is told
its pace; a real model's is what it is, and its answer is kept short. No run is left going.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, TypedDict
from uuid import uuid4

import httpx
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from app.doctor.measurement import HEARD_S, Failure, Layer, Silence, Socket, Stream, is_held
from app.doctor.request import STALLED, Agents, Request, chosen
from app.doctor.wire import Reader
from app.remote import Refusal
from app.remote import answer as answered

ANSWER_S, SILENT_S, LONGEST_S = 10.0, 20.0, 60.0
"""How long an answer is waited for, the next bytes of a stream, and a stream's end."""

LEAVING_S, LEFT_S = 2.0, 5.0
"""How long a stream that is to be left is waited for, and how long its run is then looked at."""

WATCH_S, HEARTBEATS, AFTER_S = 12.0, 2, 1.0
"""How long a silence is watched; the heartbeats of the nearest layer that are enough, and for how long after them."""

LOOK_S = 0.05

NOT_SHARED = 501
"""A server of several workers: what one of them knows of a run, the others do not."""


class Row(TypedDict):
    """What of a run's row matters here."""

    run_id: str
    status: str
    reason: str | None
    finished_at: float | None
    ttft_ms: float | None
    last_event_id: int
    metadata: dict[str, Any]


class Rows(TypedDict):
    """The answer of ``GET /runs``."""

    runs: list[Row]


class Examination:
    """One look at all layers. ``server`` is a client of the nearest, ``say`` is told what is being done.

    ``notes`` has what could not be asked, and why. Raises ``Refusal`` where the server starts no such run.
    """

    def __init__(
        self, server: httpx.Client, say: Callable[[str], object], *, agent: str | None = None, value: Any = None
    ) -> None:
        self.notes: list[str] = []
        self._server = server
        self._say = say
        self._wanted, self._value = agent, value
        self._request: Request | None = None
        self._knows_runs = True

    def layers(self, urls: Sequence[str]) -> list[Layer]:
        """What is seen at each of these addresses, of which the first is nearest to the server."""
        with ExitStack() as stack:
            seen: list[tuple[Layer, httpx.Client]] = []
            for at, url in enumerate(urls):
                client = stack.enter_context(self._client(url)) if at else self._server
                seen.append((Layer(url), client))
                self._look(*seen[-1])
                if seen[0][0].failure is not None:
                    break
            sound = [pair for pair in seen if pair[0].failure is None]
            if sound and self._knows_runs:
                self._be_silent(sound)
        return [layer for layer, _ in seen]

    def _client(self, url: str) -> httpx.Client:
        key = self._server.headers.get("authorization")
        return httpx.Client(base_url=url, headers={"Authorization": key} if key else {}, timeout=ANSWER_S)

    # One layer

    def _look(self, layer: Layer, client: httpx.Client) -> None:
        self._say(f"{layer.url}: what answers")
        try:
            answer = client.get("/agents")
        except httpx.TransportError as error:
            layer.failure = Failure(None, problem=str(error) or type(error).__name__)
            return
        layer.server = answer.headers.get("server", "")
        layer.failure = _failure(answer)
        if layer.failure is not None:
            return
        if self._request is None:
            self._request = chosen(answered(answer, Agents)["agents"], self._wanted, self._value)
            self._see_whether_runs_are_known()
        with suppress(httpx.TransportError):
            layer.as_page = client.get("/agents", headers={"Origin": _origin(client)}).status_code
        self._say(f"{layer.url}: an answer, as it streams")
        self._measure(layer, client, self._request)
        layer.socket = _refused_socket(client)
        if self._knows_runs:
            self._say(f"{layer.url}: leaving in mid-answer")
            layer.left_s = self._leave(client, self._request)
            if layer.left_s is not None and layer.left_s > HEARD_S:
                layer.left_s = self._leave(client, self._request)

    def _see_whether_runs_are_known(self) -> None:
        answer = self._server.get("/runs")
        if answer.status_code == NOT_SHARED:
            self._knows_runs = False
            self.notes.append("leaving, coming back and silence were not judged: the server has several workers")
        else:
            answered(answer, Rows)

    def _measure(self, layer: Layer, client: httpx.Client, request: Request) -> None:
        """Read an answer; where something is wrong with it, another, to be sure, and without compression."""
        layer.stream = stream = _start(client, request, "gzip")
        if is_held(stream.events) or (stream.refused is None and not stream.complete):
            self._say(f"{layer.url}: once more, to be sure")
            layer.again = _start(client, request, "identity")
        if self._knows_runs and stream.complete and stream.run_id and len(stream.events) > 1:
            after = stream.events[-2].id
            again = _read(client, "GET", f"/runs/{stream.run_id}/events", headers={"Last-Event-ID": str(after)})
            layer.resumed = (after, again.events[0].id) if again.events else None

    def _leave(self, client: httpx.Client, request: Request) -> float | None:
        """How long a run goes on when its reader has left; ``None`` where it ended by itself, or never began."""
        mark = uuid4().hex
        body = request.body(STALLED, on_disconnect="cancel", disconnect_grace_s=0, metadata={"doctor": mark})
        reader, began = Reader(), time.monotonic()
        with (
            suppress(httpx.RequestError),
            client.stream("POST", request.path, json=body, headers=_ACCEPT, timeout=LEAVING_S) as answer,
        ):
            for data in answer.iter_bytes():  # until nothing more is about to come: a write would tell a proxy
                reader.feed(data, time.monotonic())
                if reader.tokens or reader.complete or time.monotonic() - began > LEAVING_S:
                    break
        row, left = None, time.monotonic()
        for now in _until(LEFT_S):
            rows = answered(self._server.get("/runs"), Rows)["runs"]
            row = next((one for one in rows if one["metadata"].get("doctor") == mark), row)
            if row is not None and row["finished_at"] is not None:
                return now - left if row["reason"] == "disconnected" or now - left > HEARD_S else None
        if row is None:
            return None
        self._server.post(f"/runs/{row['run_id']}/cancel")
        return time.monotonic() - left

    # All layers

    def _be_silent(self, layers: Sequence[tuple[Layer, httpx.Client]]) -> None:
        assert self._request is not None
        if not self._request.agent["capabilities"]["pause"]:
            self.notes.append(f"silence was not judged: the agent {self._request.agent['name']!r} cannot be paused")
            return
        self._say(f"all layers: silence, for up to {WATCH_S:.0f} s")
        try:
            with self._paused(self._request) as row, ExitStack() as stack:
                if row is None:
                    raise Refusal("no run could be paused")
                watched = [(layer, Watch(client, row), _quiet(client, stack)) for layer, client in layers]
                _watch([watch for _, watch, _ in watched], [quiet for _, _, quiet in watched])
        except Refusal as refusal:
            self.notes.append(f"silence was not judged: {refusal}")
            return
        for layer, watch, quiet in watched:
            watch.join(ANSWER_S)
            layer.silence = watch.silence
            if quiet is not None and layer.socket is not None and layer.socket.refused is None:
                layer.socket = Socket(cut_after_s=quiet.cut_after_s)

    @contextmanager
    def _paused(self, request: Request) -> Iterator[Row | None]:
        """A run that stands still, if one can be had. It is over afterwards."""
        body = request.body(STALLED, on_disconnect="continue")
        row = answered(self._server.post(request.path, json=body), Row)
        path = f"/runs/{row['run_id']}"
        try:
            asked = False
            for _ in _until(ANSWER_S):
                if row["status"] == "paused" or row["finished_at"] is not None:
                    break
                if row["ttft_ms"] is not None and not asked:  # before that there may be no call to break off
                    asked = True
                    row = answered(self._server.post(f"{path}/pause"), Row)
                else:
                    row = answered(self._server.get(path), Row)
            yield row if row["status"] == "paused" else None
        finally:
            self._server.post(f"{path}/cancel")


class Watch(threading.Thread):
    """Reads a silent stream; what comes after ``end`` does not count. ``silence`` is there when the stream is over."""

    def __init__(self, client: httpx.Client, row: Row) -> None:
        super().__init__(daemon=True)
        self.reader = Reader()
        self.silence: Silence | None = None
        self._heard: int | None = None
        self._client = client
        self._path = f"/runs/{row['run_id']}/events"
        self._headers = {"Last-Event-ID": str(row["last_event_id"])}
        self.start()

    def end(self) -> None:
        """The silence ends now."""
        self._heard = self.reader.heartbeats

    def run(self) -> None:
        """Until the run's last event, or the stream's end."""
        with suppress(Refusal):
            stream = _read(self._client, "GET", self._path, headers=self._headers, reader=self.reader)
            over = self._heard is not None
            if stream.refused is None:
                heard = self.reader.heartbeats if self._heard is None else self._heard
                self.silence = Silence(heard, None if over else stream.broken_after_s)


class Quiet:
    """A socket on which nothing is said; ``cut_after_s`` is there once it has gone."""

    def __init__(self, socket: ClientConnection) -> None:
        self.cut_after_s: float | None = None
        self._socket = socket
        self._since = time.monotonic()

    def look(self, now: float) -> None:
        """See whether it is still there."""
        if self.cut_after_s is None and self._socket.state is not State.OPEN:
            self.cut_after_s = now - self._since


def _quiet(client: httpx.Client, stack: ExitStack) -> Quiet | None:
    """One, as long as the stack, where a socket can be had: whether it can was asked before."""
    with suppress(WebSocketException, OSError, EOFError):
        return Quiet(stack.enter_context(_connected(client)))
    return None


def _watch(watches: Sequence[Watch], sockets: Sequence[Quiet | None]) -> None:
    """Look on until the nearest layer has shown enough."""
    enough = None
    for now in _until(WATCH_S):
        for quiet in sockets:
            if quiet is not None:
                quiet.look(now)
        if enough is None and (watches[0].reader.heartbeats >= HEARTBEATS or watches[0].silence is not None):
            enough = now + AFTER_S
        if enough is not None and now >= enough:
            break
    for watch in watches:
        watch.end()


# Streams

_ACCEPT = {"Accept": "text/event-stream"}


def _start(client: httpx.Client, request: Request, coding: str) -> Stream:
    body = request.body(on_disconnect="cancel", disconnect_grace_s=0)
    return _read(client, "POST", request.path, headers={"Accept-Encoding": coding}, body=body)


def _read(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    headers: dict[str, str],
    body: Any = None,
    reader: Reader | None = None,
) -> Stream:
    """A stream, read until its end or ``LONGEST_S``. Raises ``Refusal`` where Millrace itself refuses it."""
    reader = reader or Reader()
    headers_s, told, unanswered_s, ended = None, {}, None, False
    began = last = time.monotonic()
    try:
        timeout = httpx.Timeout(ANSWER_S, read=SILENT_S)
        with client.stream(method, path, json=body, headers=_ACCEPT | headers, timeout=timeout) as answer:
            headers_s, told = time.monotonic() - began, dict(answer.headers)
            last = time.monotonic()
            if answer.status_code != 200 or not told.get("content-type", "").startswith("text/event-stream"):
                answer.read()
                if words := _words(answer):
                    raise Refusal(words)
                return Stream(headers_s, headers=told, refused=answer.status_code)
            for data in answer.iter_bytes():
                last = time.monotonic()
                reader.feed(data, last)
                if reader.complete or last - began > LONGEST_S:
                    break
            else:
                ended = True
    except httpx.ReadTimeout:
        unanswered_s = time.monotonic() - last
    except httpx.RequestError:
        ended = True
    first = reader.events[0].at - began if reader.events else None
    broken_after_s = time.monotonic() - last if ended and not reader.complete else None
    return Stream(
        headers_s,
        first,
        told,
        reader.events,
        reader.complete,
        broken_after_s,
        unanswered_s,
        None,
        reader.run_id,
        reader.error,
    )


def _failure(answer: httpx.Response) -> Failure | None:
    if answer.is_redirect:
        return Failure(answer.status_code, location=str(answer.headers.get("location", "")))
    if answer.is_success:
        with suppress(ValueError, TypeError, KeyError):
            if isinstance(answer.json()["agents"], list):
                return None
    return Failure(answer.status_code, _words(answer))


def _words(answer: httpx.Response) -> str | None:
    """Millrace's own words for a refusal."""
    with suppress(ValueError, TypeError, KeyError):
        return str(answer.json()["error"]["message"])
    return None


def _until(seconds: float) -> Iterator[float]:
    """The time, every now and then, for so long."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        yield now
        time.sleep(LOOK_S)


# Sockets


def _refused_socket(client: httpx.Client) -> Socket:
    """Whether a socket can be had, and answers."""
    try:
        with _connected(client) as socket:
            socket.send('{"type": "ping"}')
            socket.recv(timeout=ANSWER_S)
    except InvalidStatus as error:
        return Socket(f"/ws is answered {error.response.status_code}")
    except (InvalidHandshake, WebSocketException, OSError, EOFError) as error:  # TimeoutError is an OSError
        return Socket(f"/ws: {str(error) or type(error).__name__}")
    return Socket()


def _connected(client: httpx.Client) -> AbstractContextManager[ClientConnection]:
    base = client.base_url
    url = base.copy_with(scheme="wss" if base.scheme == "https" else "ws", path=base.path.rstrip("/") + "/ws")
    key = client.headers.get("authorization")
    headers = {"Authorization": key} if key else {}
    return connect(str(url), additional_headers=headers, open_timeout=ANSWER_S, close_timeout=1, ping_interval=None)


def _origin(client: httpx.Client) -> str:
    """The origin of a page that is read through this layer."""
    return f"{client.base_url.scheme}://{client.base_url.netloc.decode()}"
