"""A WebSocket without a network: what ASGI hands to an app, and what the app hands back, with a client in the test.

The client takes as many messages as the test lets it, so that a socket without room is no matter of buffers and time.
"""

import asyncio
import json
from typing import Any

from starlette.types import Message, Scope

EVERYTHING = 10_000


class Client:
    """The other end. ``room``: how many messages it will take at once."""

    def __init__(self, room: int = EVERYTHING, subprotocols: list[str] | None = None, user: str = "ada") -> None:
        self.scope: Scope = {
            "type": "websocket",
            "path": "/ws",
            "headers": [],
            "subprotocols": subprotocols or [],
            "state": {"user": user},
        }
        self.texts: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.accepted: Message | None = None
        self._sent: asyncio.Queue[Message] = asyncio.Queue()
        self._sent.put_nowait({"type": "websocket.connect"})
        self._room = asyncio.Semaphore(room)
        self._gone = False

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What was said to the client."""
        return [json.loads(text) for text in self.texts]

    def of(self, stream_id: str) -> list[dict[str, Any]]:
        """What was said on one stream."""
        return [frame for frame in self.frames if frame["stream_id"] == stream_id]

    def say(self, type_: str, **fields: Any) -> None:
        self.say_text(json.dumps({"type": type_, **fields}))

    def say_text(self, text: str) -> None:
        self._sent.put_nowait({"type": "websocket.receive", "text": text})

    def take(self, messages: int) -> None:
        """Have room for so many messages more."""
        for _ in range(messages):
            self._room.release()

    def leave(self) -> None:
        self._gone = True
        self._sent.put_nowait({"type": "websocket.disconnect", "code": 1006})

    @property
    def unread(self) -> int:
        """Messages that the app has not read."""
        return self._sent.qsize()

    async def receive(self) -> Message:
        """ASGI's."""
        return await self._sent.get()

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "websocket.accept":
            self.accepted = message
            return
        await self._room.acquire()
        if self._gone:
            raise OSError("the client is gone")
        if message["type"] == "websocket.close":
            self.closed = (message["code"], message["reason"])
        else:
            self.texts.append(message["text"])
