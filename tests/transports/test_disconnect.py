"""Work ends with its client: whichever is first decides, and nothing of the other is left."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message

from app.transports.disconnect import ClientLeft, until_disconnect, wait_or_leave

Receive = Callable[[], Awaitable[Message]]


def client(gone: asyncio.Event) -> Receive:
    """A transport that tells of a piece of body, then waits for the leaving."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def value(done: asyncio.Event) -> str:
    await done.wait()
    return "value"


async def test_the_works_value_comes_back() -> None:
    done = asyncio.Event()
    done.set()
    assert await until_disconnect(value(done), client(asyncio.Event())) == "value"
    assert await wait_or_leave(value(done), client(asyncio.Event()))


async def test_the_works_own_error_comes_back_as_it_was() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await until_disconnect(work(), client(asyncio.Event()))


async def test_a_client_that_leaves_cancels_the_work() -> None:
    gone, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(gone.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ClientLeft):
        await until_disconnect(work(), client(gone))
    assert cancelled.is_set()
    assert not await wait_or_leave(asyncio.Event().wait(), client(gone))


async def test_a_cancel_from_outside_is_no_leaving() -> None:
    waiting = asyncio.create_task(until_disconnect(asyncio.Event().wait(), client(asyncio.Event())))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
