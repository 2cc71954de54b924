"""Ends a request's work when its client leaves, for work that does not look: LangServe's ``invoke`` and ``batch``.

The work runs beside a task that listens to the transport. When the client leaves, the work is cancelled where it
stands. The request's body must have been read before: from then on the transport tells of nothing but the leaving.
"""

from collections.abc import Awaitable
from typing import TypeVar

import anyio
from starlette.types import Receive

T = TypeVar("T")


class ClientLeft(Exception):
    """The client is gone; nobody waits for an answer."""


async def until_disconnect(work: Awaitable[T], receive: Receive) -> T:
    """What ``work`` comes to. Raises what it raises, and ``ClientLeft`` when the client went before it was done."""
    done: list[T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(listen)
        try:
            done.append(await work)
        except Exception as error:  # noqa: BLE001 - raised below: the task group would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not done:
        raise ClientLeft
    return done[0]


async def wait_or_leave(done: Awaitable[object], receive: Receive) -> bool:
    """Wait for ``done``; false when the client left before."""
    try:
        await until_disconnect(done, receive)
    except ClientLeft:
        return False
    return True
