"""Ends a request's work when its client leaves, for handlers that do not look: LangServe's ``invoke`` and ``batch``.

The body is read first (it is bounded by ``transports.body``), then the handler runs beside a task that listens to
the transport. When the client leaves, the handler is cancelled where it stands.
"""

from collections.abc import Awaitable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


async def until_disconnect(app: ASGIApp, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """Run ``app``, with ``body`` as its request's, until it is done or the client is gone."""
    gone = anyio.Event()
    unread = [body]

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async with anyio.create_task_group() as group:

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            group.cancel_scope.cancel()

        group.start_soon(listen)
        await app(scope, replay, send)
        group.cancel_scope.cancel()


async def wait_or_leave(done: Awaitable[object], receive: Receive) -> bool:
    """Wait for ``done``; false when the client left before."""
    finished = False
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            nonlocal finished
            await done
            finished = True
            group.cancel_scope.cancel()

        group.start_soon(wait)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    return finished
