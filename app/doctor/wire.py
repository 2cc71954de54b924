"""A stream as bytes arrive: server-sent events with their times, and heartbeats. No I/O."""

from typing import Any

import orjson

from app.doctor.measurement import Event


class Reader:
    """Takes a stream's bytes, with the time at which they came, in seconds of whatever clock."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.heartbeats = self.tokens = 0
        self.complete = False
        self.run_id: str | None = None
        self.error = ""
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def feed(self, data: bytes, at: float) -> None:
        """Read what came now. What is no event of Millrace's is passed over."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b":"):
                self.heartbeats += 1
            elif line.strip():
                name, _, value = line.partition(b":")
                self._fields[name] = value.strip()
            else:
                self._dispatch(at)

    def _dispatch(self, at: float) -> None:
        told, self._fields = self._fields, {}
        try:
            data: dict[str, Any] = orjson.loads(told[b"data"])
            self.events.append(Event(int(told[b"id"]), data["ts"] / 1000, at))
        except (KeyError, ValueError, TypeError):
            return
        kind = told.get(b"event")
        if kind == b"run.started":
            self.run_id = str(data.get("run_id", ""))
        if kind == b"error":
            self.error = str(data.get("message", ""))
        self.tokens += kind == b"token"
        self.complete = self.complete or kind == b"run.finished"
