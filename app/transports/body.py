"""Bounds on what a client may send, before anything reads it.

A body is at most ``max_bytes`` long, comes uncompressed (so that a small one cannot unfold into a huge one), and
is there within ``timeout_s``: one that never ends is answered, not waited for. What is refused is read on for a
moment and thrown away: closing a socket with unread bytes resets it, and the client would never see the reason.
"""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, MillraceError, TooLarge, UnsupportedMedia

TIMEOUT_S = 30.0

LINGER_S, LINGER_BYTES = 2.0, 16 * 1024 * 1024
"""How long, and how much of, a refused body is still read."""


class BodyLimit:
    """ASGI middleware for all HTTP requests."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = TIMEOUT_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by the headers where they tell; else count while it is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await _linger(receive)
            await JSONResponse(refusal.body(), refusal.status, headers={"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _refusal(self, headers: Headers) -> MillraceError | None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            return UnsupportedMedia("send the body uncompressed")
        length = headers.get("content-length", "0")
        return self._too_large() if length.isdecimal() and int(length) > self._max_bytes else None

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._max_bytes} bytes")

    def _bounded(self, receive: Receive) -> Receive:
        read, complete = 0, False

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError:
                raise BadRequest(f"the body did not arrive within {self._timeout_s:g} s", code="body_timeout") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._max_bytes:
                if not complete:
                    await _linger(receive)
                raise self._too_large()
            return message

        return bounded


async def _linger(receive: Receive) -> None:
    read, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while more and read < LINGER_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                more = message.get("more_body", False)
