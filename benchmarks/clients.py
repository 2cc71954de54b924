"""Clients that start a run and end it in one of four ways, with nothing between them and the socket.

Blocking: each belongs to one thread. ``ending`` prepares everything, so that what it returns does one system call.
"""

import json
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from load import post
from websockets.sync.client import connect

Way: TypeAlias = Literal["POST", "FIN", "RST", "WebSocket"]

TIMEOUT_S = 120.0
"""How long a client waits for anything: with hundreds of runs beside it, a first token can take many seconds."""

TOKENS = (b"event: token", b'"on_chat_model_stream"', b"chat.completion.chunk")
"""What tells of a token in our stream, in LangServe's, and in the provider's own."""


class HttpRun:
    """A run by one HTTP request. ``run_id`` is needed for POST; a stream's is read from its head."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.run_id: str | None = None
        self._address = address
        self._socket = _connected(address)
        self._socket.sendall(request)
        self._other: socket.socket | None = None
        self._read = b""

    def until_token(self) -> None:
        """Wait for a token."""
        while not any(one in self._read for one in TOKENS):
            self._more()

    def read_run_id(self) -> None:
        """From the response's head."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head = self._read.lower().split(b"\r\n\r\n")[0].split(b"\r\n")
        self.run_id = next(line for line in head if line.startswith(b"x-run-id:")).split(b":")[1].strip().decode()

    def ending(self, way: Way) -> Callable[[], object]:
        """What ends the run."""
        if way == "FIN":
            return lambda: self._socket.shutdown(socket.SHUT_WR)  # closing with bytes unread would send a reset
        if way == "RST":
            # Lingering for no time at all is what turns the close into a reset.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self._socket.close
        assert way == "POST"
        assert self.run_id is not None
        self._other = other = _connected(self._address)
        asked = post(f"/runs/{self.run_id}/cancel", b"")
        return lambda: other.sendall(asked)

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError(f"the server closed before it was cancelled: {self._read[-500:]!r}")
        self._read += data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._other is not None:
            if error is None:
                self._other.recv(65536)  # the answer to the cancel
            self._other.close()
        self._socket.close()


class SocketRun:
    """A run over a WebSocket."""

    def __init__(self, address: tuple[str, int], agent: str, text: str) -> None:
        host, port = address
        # Without a bound on what waits to be read, else the close would wait behind it.
        url = f"ws://{host}:{port}/ws"
        self._socket = connect(url, compression=None, open_timeout=TIMEOUT_S, max_queue=None)
        self._send(type="start", stream_id="s", agent=agent, input=text)

    def until_token(self) -> None:
        """Wait for a token."""
        while (event := json.loads(self._socket.recv(TIMEOUT_S)))["event"] != "token":
            if event["event"] in {"error", "run.finished"}:
                raise ConnectionError(f"the run ended before it was cancelled: {event}")

    def ending(self, _way: Way) -> Callable[[], object]:
        """What ends the run."""
        return lambda: self._send(type="cancel", stream_id="s")

    def _send(self, **frame: Any) -> None:
        self._socket.send(json.dumps(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _connected(address: tuple[str, int]) -> socket.socket:
    client = socket.create_connection(address, TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client
